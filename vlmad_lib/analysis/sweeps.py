"""Sweeps: one part of a method varied at a time. Here the window sizes, and what every sweep's sentences share.

Variants are methods with changed settings for ``run.run``; images are encoded once for all that share their arrays.
Tables and sentences come from the metrics alone. Intervals over categories, images or reference draws are Student's,
paired (``statistics.paired``); a single value, or values that do not vary, have the whole range as theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy import stats

from vlmad_lib import InputError, config, digests, tables, within
from vlmad_lib.analysis import comparison
from vlmad_lib.config import Method
from vlmad_lib.data import datasets, mask_files
from vlmad_lib.encoders import feature_store
from vlmad_lib.evaluation import metrics, statistics
from vlmad_lib.pipeline.results import Results
from vlmad_lib.tables import format_count, format_range

STUDY = datasets.REFERENCE / "study_results.csv"


def study(table: str) -> pd.DataFrame:
    """The rows of one table of the study, or of one of its sections (``text 5.2.2``), as it printed them."""
    known = pd.read_csv(STUDY, dtype=str)
    return known[known.table == table]


def claim(table: str, item: str, metric: str = "auroc") -> str:
    """One figure the study prints for WinCLIP, as printed: a number, or a range of two."""
    rows = study(table)
    return rows[(rows.method == "WinCLIP") & (rows["item"] == item) & (rows.metric == metric)].value.iloc[0]


# ---------------------------------------------------------------- window sizes (notebook 07)

READINGS = {
    "windows alone": {"full_image": False, "image_score": "map_max"},
    "with the whole image": {"full_image": True, "image_score": "class_token"},
}
"""The two variants of a window size; the image score of the first is the maximum of its map, as in the study."""
MEASURES = {
    "image, maximum of the map": ("windows alone", "image_auroc"),
    "image, class token": ("with the whole image", "image_auroc"),
    "pixel, windows alone": ("windows alone", "pixel_auroc"),
    "pixel, with the whole image": ("with the whole image", "pixel_auroc"),
}
"""What is read off the two variants."""


def fitting(sizes: Sequence[int], grid: int) -> tuple[list[int], str]:
    """The window sizes that fit a grid of tokens, and a sentence on those that do not (empty where all do).

    InputError where none does.
    """
    kept = [size for size in dict.fromkeys(sizes) if 1 <= size <= grid]
    if not kept:
        raise InputError(f"None of the window sizes {list(sizes)} fits the {grid} x {grid} tokens; choose 1 to {grid}.")
    out = [str(size) for size in dict.fromkeys(sizes) if size not in kept]
    return kept, f"Left out: sizes {', '.join(out)} do not fit the {grid} x {grid} tokens." if out else ""


def window_costs(grid: int, sizes: Sequence[int], usual: Sequence[int]) -> pd.DataFrame:
    """Windows and tokens of each size on a grid, and tokens as a multiple of a usual run's (sizes ``usual``)."""
    sizes = np.array(sizes, int)
    passes, tokens = (grid - sizes + 1) ** 2, 1 + sizes**2
    known = np.array(usual, int)
    whole = 1 + grid**2 + ((grid - known + 1) ** 2 * (1 + known**2)).sum()
    return pd.DataFrame(
        {
            "tokens per side": sizes,
            "windows per image": passes,
            "tokens in a window": tokens,
            "tokens per image": passes * tokens,
            "of a usual image": passes * tokens / whole,
        }
    )


def cost_findings(costs: pd.DataFrame, usual: Sequence[int], images: int) -> str:
    """What the sizes that a usual run lacks would cost, as a line of a Markdown list."""
    more = costs[~costs["tokens per side"].isin(usual)]
    total = more["of a usual image"].sum()
    return (
        f"- The {format_count(len(more), 'size', 'sizes')} that the run lacks would encode {total:.1f} times "
        f"its tokens, "
        f"for {format_count(images, 'image', 'images')}; sizes {' and '.join(map(str, usual))} are kept already."
    )


def some(table: pd.DataFrame, most: int) -> list[str]:
    """The first ``most`` categories of every group of an index, in the tables' order; all where it is 0."""
    order = tables.order_categories(table)
    if not within("most", most, 0):
        return order
    groups = table.drop_duplicates("category").set_index("category").group
    return [name for name in order if order.index(name) - [groups[one] for one in order].index(groups[name]) < most]


def part(results: Results, most: int = 0, images: int = 0) -> tuple[list[str], pd.DataFrame]:
    """The categories and the index that a sweep runs on: those of a run.

    Of the demo data, which are to be quick, the first ``most`` categories of every group with ``images`` test images
    of each (``some``, ``sampled``).
    """
    most, images = (most, images) if results.profile.dataset == "demo" else (0, 0)
    categories = some(results.index, most)
    return categories, sampled(results.index, categories, images)


def sampled(table: pd.DataFrame, categories: Sequence[str], images: int) -> pd.DataFrame:
    """An index of some categories with up to ``images`` test images of each (``datasets.sample_images``), all for 0."""
    table = table[table.category.isin(categories)]
    if not images:
        return table
    some = datasets.sample_images(table[table.split == "test"], images)
    return pd.concat([some, table[table.split != "test"]], ignore_index=True)


def of_sizes(spec: Method, sizes: Sequence[int]) -> Method:
    """A method with other window sizes, all of them fused."""
    return spec.model_copy(update={"settings": spec.settings | {"windows": list(sizes)}})


def window_variants(spec: Method, sizes: Sequence[int], shots: int = 0) -> list[Method]:
    """A WinCLIP as it is, then both readings of each window size.

    With references the association is that of the windows alone too, patch tokens left out.
    """
    few = {"patch_tokens": "none"} if within("references", shots, 0) else {}
    found = [spec]
    for size in sizes:
        for name, change in READINGS.items():
            settings = spec.settings | {"windows": [size]} | change | few
            found.append(spec.model_copy(update={"name": f"{size} x {size}, {name}", "settings": settings}))
    return found


def window_table(results: Results, base: str) -> pd.DataFrame:
    """AUROC of each measure, category and window size ``k``, means over reference draws; nan where there is none.

    ``base`` is the name of the method's own fusion, which is left out.
    """
    kinds = results.scores.drop_duplicates("variant")[["variant", "windows", "full_image"]]
    rows = results.metrics[results.metrics.method != base].merge(kinds, on="variant")
    rows["reading"] = rows.full_image.map({str(one["full_image"]): name for name, one in READINGS.items()})
    rows["k"] = rows.windows.astype(int)
    keys = ["group", "category", "k"]
    parts = [
        rows[rows.reading == reading][keys].assign(measure=measure, auroc=rows[column])
        for measure, (reading, column) in MEASURES.items()
    ]
    return pd.concat(parts).groupby(["measure", *keys], sort=False).auroc.mean().reset_index()


def by_size(table: pd.DataFrame) -> pd.DataFrame:
    """Macro means of a window table by measure, group and size; then of ``all``; *n* categories."""
    cells = table.dropna(subset="auroc")
    groups = cells.groupby("group").category.nunique()
    sources = [cells[cells.group == name] for name in config.GROUPS if name in groups.index and len(groups) > 1]
    rows = []
    for part, name in [*((part, part.group.iloc[0]) for part in sources), (cells, "all")]:
        wide = part.pivot_table(index="measure", columns="k", values="auroc")
        wide = wide.reindex([measure for measure in MEASURES if measure in wide.index])
        wide.insert(0, "n", part.category.nunique())
        wide.insert(0, "group", name)
        rows.append(wide.rename(columns=lambda k: f"k = {k}" if isinstance(k, int) else k).reset_index())
    found = pd.concat(rows, ignore_index=True)
    place = found.measure.map({name: number for number, name in enumerate(MEASURES)})
    return found.iloc[np.argsort(place, kind="stable")].reset_index(drop=True)


def inside(results: Results, rows: pd.DataFrame) -> pd.Series:
    """Pixel AUROC inside each image of masked rows of a scores table, with their index; kept on disk."""
    facts = rows[["image", "mask", "map_file", "map_row"]].to_csv(index=False)
    size, pixels = results.profile.evaluation_size, digests.digest_files(rows["mask"].unique(), results.cache)
    versions = digests.list_versions(digests.MEASURING_LIBRARIES)
    key = digests.digest(facts, pixels, size, metrics.framed_map, metrics.ranking, versions)

    def compute() -> torch.Tensor:
        found = pd.Series(np.nan, rows.index)
        for _, part in rows.groupby("image", sort=False):  # image by image: all maps at once would need gigabytes
            first = part.iloc[0]
            mask = mask_files.framed_mask(first["mask"], first.width, first.height, first.fit, size)
            values = [metrics.ranking(one[~mask], one[mask])["auroc"] for one in results.framed(part)]
            found.loc[part.index] = values
        return torch.from_numpy(found.to_numpy(copy=True))

    return pd.Series(
        feature_store.load_or_compute(results.cache / "inside" / f"{key}.npy", compute).numpy(), rows.index
    )


def by_image(results: Results, base: str) -> pd.DataFrame:
    """Pixel AUROC inside each masked anomalous image, by window size ``k``, means over reference draws.

    One image at a time, so it does not matter how its map compares with those of other images, nor whether the whole
    image is a scale: that changes all its pixels alike.
    """
    scores = results.scores
    alone = scores[(scores.method != base) & (scores.full_image == "False") & (scores["mask"] != "")]
    table = alone.assign(k=alone.windows.astype(int), auroc=inside(results, alone)).dropna(subset="auroc")
    return table.groupby(["group", "category", "image", "k"], sort=False).auroc.mean().reset_index()


def best(values: pd.DataFrame) -> tuple[int, list[int]]:
    """The best column of (n, sizes) values by mean, and all columns that n cannot tell from it, itself among them.

    Two-sided t tests of the paired differences at 5 % for all pairs of columns together (Bonferroni), since the best
    was picked by the same values.
    """
    values = values.dropna()
    first = values.mean().idxmax()
    pairs = values.shape[1] * (values.shape[1] - 1) / 2
    untold = []
    for name in values:
        apart = (values[first] - values[name]).to_numpy()
        flat = len(apart) < 2 or np.ptp(apart) < 1e-12
        if flat or stats.ttest_1samp(apart, 0).pvalue >= 0.05 / max(pairs, 1):
            untold.append(name)
    return first, untold


def best_sizes(images: pd.DataFrame) -> pd.DataFrame:
    """Each category's best window size by the mean pixel AUROC inside an image, and those not told from it."""
    rows = []
    for category in tables.order_categories(images) if len(images) else []:
        part = images[images.category == category].pivot(index="image", columns="k", values="auroc")
        first, untold = best(part)
        facts = {"group": images[images.category == category].group.iloc[0], "category": category, "images": len(part)}
        means = {f"k = {k}": value for k, value in part.mean().items()}
        rows.append(facts | means | {"best": first, "not told from it": ", ".join(map(str, untold))})
    return pd.DataFrame(rows)


def window_findings(
    table: pd.DataFrame, images: pd.DataFrame, compared: pd.DataFrame, base: str, shots: int = 0
) -> str:
    """What the window sizes do, as a Markdown list; ``compared``: ``comparison.compare_with_base`` of "
    "``base``, pixel AUROC.

    The study's claims are of zero-shot runs and tested on those alone.
    """
    known = table.dropna(subset="auroc")
    if known.empty:
        return tables.NO_AUROC
    wide = {name: part.pivot(index="category", columns="k", values="auroc") for name, part in known.groupby("measure")}
    lines = _image_lines(wide)
    for reading in (one for one in READINGS if f"pixel, {one}" in wide):
        lines.append(_fusion_line(wide[f"pixel, {reading}"], reading, compared, base))
    pixel = known[known.measure == "pixel, with the whole image"]
    lines += [_group_line(name, pixel[pixel.group == name]) for name in config.GROUPS if name in set(pixel.group)]
    if len(images):
        sizes = best_sizes(images)
        single = int((~sizes["not told from it"].str.contains(",")).sum())
        lines.append(
            f"Inside an image, one size is told from all others for {single} of "
            f"{tables.format_categories(len(sizes))} (n = {format_range(sizes.images)} images)."
        )
    return "\n".join(f"- {line}" for line in [*lines, *([] if shots else _claim_lines(known))])


def _image_lines(wide: dict[str, pd.DataFrame]) -> list[str]:
    """The class token's image AUROC against the size, and the map's maximum."""
    lines = []
    token, top = wide.get("image, class token"), wide.get("image, maximum of the map")
    if token is not None:
        moved = float((token.max(axis=1) - token.min(axis=1)).max())
        told = "does not depend on the window size"
        if moved > 1e-9:
            told = f"moves with the window size, by up to {moved:.3f} in a category"
        lines.append(
            f"The image AUROC of the method's own image score {told} "
            f"(macro mean {token.mean().mean():.3f}, n = {len(token)})."
        )
    if top is not None:
        means = top.mean()
        lines.append(
            f"As image score the maximum of the map gives {means.min():.3f} (k = {means.idxmin()}) to "
            f"{means.max():.3f} (k = {means.idxmax()}), n = {len(top)}: "
            "a curve of image AUROC over sizes measures that maximum."
        )
    return lines


def _fusion_line(pixel: pd.DataFrame, reading: str, compared: pd.DataFrame, base: str) -> str:
    """The best single size of a reading against the method's own fusion."""
    first, _ = best(pixel)
    row = compared.set_index("method").loc[f"{first} x {first}, {reading}"]
    own = compared.set_index("method").loc[base]
    told = {"higher": "better", "lower": "worse"}.get(comparison.verdict(row.low, row.high), "not decided")
    advice = f"k = {first} may replace it here" if told == "better" else "keep the fusion"
    others = len(compared) - 1
    return (
        f"Pixel AUROC of {base}'s own fusion {own.pixel_auroc:.3f}; the best single size, {reading}, is "
        f"k = {first} with {row.pixel_auroc:.3f}: "
        f"{comparison.format_difference(row.difference, row.low, row.high)}, n = {int(row.n)}, {told}: {advice}. "
        f"The interval holds at 95 % for all {others} variants together, of which this one was picked by these data."
    )


def _group_line(name: str, part: pd.DataFrame) -> str:
    values = part.pivot(index="category", columns="k", values="auroc")
    first, untold = best(values)
    others = [str(size) for size in untold if size != first]
    told = f"not told from k = {', '.join(others)}" if others else "told from all others"
    value = f"{values[first].mean():.3f}"
    return f"**{name}** (n = {len(values)}): best k = {first} by pixel AUROC with the whole image ({value}), {told}."


def _claim_lines(known: pd.DataFrame) -> list[str]:
    """What the study says of sizes (section 5.2.2), tested on these data by the measures it can have meant."""
    average = claim("text 5.2.2", "average@size1")
    claims = [
        (f"k = 1 is poor (it has {average} on average)", None, {1}),
        ("textures do best with 3 to 5", "texture", {3, 4, 5}),
        ("structural objects do best with 5 to 7", "rigid", {5, 6, 7}),
    ]
    lines = []
    for said, group, inside in claims:
        told = []
        for measure in ("image, maximum of the map", "pixel, windows alone"):
            part = known[(known.measure == measure) & ((known.group == group) if group else True)]
            values = part.pivot(index="category", columns="k", values="auroc")
            within = [size for size in values if size in inside]
            outside = [size for size in values if size not in inside]
            if within and outside:
                apart = values[within].mean(axis=1) - values[outside].mean(axis=1)
                found = statistics.difference(apart, statistics.together(2 * len(claims)))
                agrees = {"higher": bool(group), "lower": not group}.get(comparison.verdict(*found[1:]))
                word = "not decided" if agrees is None else "agrees" if agrees else "contradicts it"
                if agrees and (beyond := _beyond(values.mean(), within, outside, bool(group))):
                    word = f"agrees on average, yet {beyond}"
                told.append(
                    f"{measure.replace(', ', ' AUROC, ')} {comparison.format_difference(*found)}, n = "
                    f"{len(apart)}: {word}"
                )
        if told:
            lines.append(f"The study: {said}. Here, against the other sizes: {'; '.join(told)}.")
    if lines:
        lines[-1] += f" Intervals on the study's claims hold at 95 % for all {2 * len(claims)} together."
    return lines


def _beyond(means: pd.Series, within: list[int], outside: list[int], upwards: bool) -> str:
    """Which of the other sizes are better than the best of those a claim praises, or worse than the worst it blames."""
    sign = 1 if upwards else -1
    sizes = [str(size) for size in outside if sign * means[size] > (sign * means[within]).max()]
    still = f"{'is' if len(sizes) == 1 else 'are'} {'higher' if upwards else 'lower'} still"
    return f"k = {', '.join(sizes)} {still}" if sizes else ""


def example_findings(maps: dict[str, np.ndarray], row: pd.Series) -> str:
    """What the maps of one image, by window size, say: a line of a Markdown list."""
    spreads = {name: float(one.std()) for name, one in maps.items() if "windows" in name}
    names = list(spreads)
    return (
        f"- One image ({row.category}, {row.defect}; n = 1): the map's standard deviation is {spreads[names[0]]:.3f} "
        f"with {names[0]} and {spreads[names[-1]]:.3f} with {names[-1]}. Nothing about other images follows from it."
    )
