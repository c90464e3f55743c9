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

from vlmad_lib import InputError, digests, tables, within
from vlmad_lib.analysis import comparison, published
from vlmad_lib.config import FULL, Method, Profile, check_record
from vlmad_lib.data import datasets, mask_files
from vlmad_lib.encoders import feature_store
from vlmad_lib.evaluation import metrics
from vlmad_lib.methods import memory_bank
from vlmad_lib.pipeline.results import Results

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


def keep_fitting_sizes(sizes: Sequence[int], grid: int) -> tuple[list[int], str]:
    """The window sizes that fit a grid of tokens, and a sentence on those that do not (empty where all do).

    InputError where none does.
    """
    kept = [size for size in dict.fromkeys(sizes) if 1 <= size <= grid]
    if not kept:
        raise InputError(f"None of the window sizes {list(sizes)} fits the {grid} x {grid} tokens; choose 1 to {grid}.")
    out = [str(size) for size in dict.fromkeys(sizes) if size not in kept]
    return kept, f"Left out: sizes {', '.join(out)} do not fit the {grid} x {grid} tokens." if out else ""


def choose_categories(table: pd.DataFrame, most: int) -> list[str]:
    """The first ``most`` categories of every group of an index, in the tables' order; all where it is 0."""
    order = tables.order_categories(table)
    if not within("most", most, 0):
        return order
    groups = table.drop_duplicates("category").set_index("category").group
    return [name for name in order if order.index(name) - [groups[one] for one in order].index(groups[name]) < most]


def choose_sweep_data(results: Results, most: int = 0, images: int = 0) -> tuple[list[str], pd.DataFrame]:
    """The categories and the index that a sweep runs on: those of a run.

    Of the demo data, which are to be quick, the first ``most`` categories of every group with ``images`` test images
    of each (``some``, ``sampled``).
    """
    most, images = (most, images) if results.profile.dataset == "demo" else (0, 0)
    categories = choose_categories(results.index, most)
    return categories, sample_index(results.index, categories, images)


def sample_index(table: pd.DataFrame, categories: Sequence[str], images: int) -> pd.DataFrame:
    """An index of some categories with up to ``images`` test images of each (``datasets.sample_images``), all for 0."""
    table = table[table.category.isin(categories)]
    if not images:
        return table
    some = datasets.sample_images(table[table.split == "test"], images)
    return pd.concat([some, table[table.split != "test"]], ignore_index=True)


def set_window_sizes(spec: Method, sizes: Sequence[int]) -> Method:
    """A method with other window sizes, all of them fused."""
    return spec.model_copy(update={"settings": spec.settings | {"windows": list(sizes)}})


def list_window_variants(spec: Method, sizes: Sequence[int], shots: int = 0) -> list[Method]:
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


def tabulate_window_sizes(results: Results, base: str) -> pd.DataFrame:
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


def measure_inside_images(results: Results, rows: pd.DataFrame) -> pd.Series:
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


def average_inside_images(results: Results, base: str) -> pd.DataFrame:
    """Pixel AUROC inside each masked anomalous image, by window size ``k``, means over reference draws.

    One image at a time, so it does not matter how its map compares with those of other images, nor whether the whole
    image is a scale: that changes all its pixels alike.
    """
    scores = results.scores
    alone = scores[(scores.method != base) & (scores.full_image == "False") & (scores["mask"] != "")]
    table = alone.assign(k=alone.windows.astype(int), auroc=measure_inside_images(results, alone)).dropna(
        subset="auroc"
    )
    return table.groupby(["group", "category", "image", "k"], sort=False).auroc.mean().reset_index()


def find_best_column(values: pd.DataFrame) -> tuple[int, list[int]]:
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


def find_best_sizes(images: pd.DataFrame) -> pd.DataFrame:
    """Each category's best window size by the mean pixel AUROC inside an image, and those not told from it."""
    rows = []
    for category in tables.order_categories(images) if len(images) else []:
        part = images[images.category == category].pivot(index="image", columns="k", values="auroc")
        first, untold = find_best_column(part)
        facts = {"group": images[images.category == category].group.iloc[0], "category": category, "images": len(part)}
        means = {f"k = {k}": value for k, value in part.mean().items()}
        rows.append(facts | means | {"best": first, "not told from it": ", ".join(map(str, untold))})
    return pd.DataFrame(rows)


def describe_size_claims(sizewise: pd.DataFrame) -> str:
    """What the study says of sizes (its section 5.2.2), tested on these data, as a Markdown list: one line a claim.

    ``sizewise``: as made by ``tabulate_window_sizes`` of a zero-shot run. Each claim is tested by the two measures that
    the study can have meant; intervals hold at 95 % for all of these together.
    """
    known = sizewise.dropna(subset="auroc")
    average = published.quote_study("text 5.2.2", "average@size1")
    claims = [
        (f"k = 1 is poor (it has {average} on average)", None, {1}),
        ("textures do best with 3 to 5", "texture", {3, 4, 5}),
        ("structural objects do best with 5 to 7", "rigid", {5, 6, 7}),
    ]
    measures = ("image, maximum of the map", "pixel, windows alone")
    lines = []
    for claim, group, praised in claims:
        results = []
        for measure in measures:
            rows = known[(known.measure == measure) & ((known.group == group) if group else True)]
            values = rows.pivot(index="category", columns="k", values="auroc")
            inside = [size for size in values if size in praised]
            outside = [size for size in values if size not in praised]
            if inside and outside:
                sides = (values[sizes].mean(axis=1).to_frame(measure) for sizes in (inside, outside))
                gain = comparison.pair_differences(*sides, "categories", len(measures) * len(claims)).iloc[0]
                words = ("agrees", "contradicts it") if group else ("contradicts it", "agrees")
                beyond = _name_better_sizes(values.mean(), inside, outside, bool(group))
                agrees = comparison.describe_difference(gain, *words)
                agrees += f" on average, yet {beyond}" if beyond and agrees.endswith(" agrees") else ""
                results.append(f"{measure.replace(', ', ' AUROC, ')} {agrees}")
        if results:
            lines.append(f"- The study: {claim}. Here, against the other sizes: {'; '.join(results)}.")
    if lines:
        lines[-1] += f" Intervals hold at 95 % for all {len(measures) * len(claims)} together."
    return "\n".join(lines)


def _name_better_sizes(means: pd.Series, praised: list[int], outside: list[int], upwards: bool) -> str:
    """Which of the other sizes are better than the best of those a claim praises, or worse than the worst it blames."""
    sign = 1 if upwards else -1
    sizes = [str(size) for size in outside if sign * means[size] > (sign * means[praised]).max()]
    still = f"{'is' if len(sizes) == 1 else 'are'} {'higher' if upwards else 'lower'} still"
    return f"k = {', '.join(sizes)} {still}" if sizes else ""


def choose_reference_counts(profile: Profile, full: bool) -> list[int | str]:
    """The profile's smallest and largest number of references, and ``full`` where asked for."""
    few = sorted(shots for shots in profile.shots if 0 < shots < FULL)
    return [*dict.fromkeys([*few[:1], *few[-1:]]), *(["full"] if full and few else [])]


def plan_without_words(
    profile: Profile, spec: Method, shots: list[int | str], drawn: int, categories: list[str]
) -> Profile:
    """The profile that runs a WinCLIP and all methods without words, with and without references.

    All maps are smoothed alike, as in the originals of those without words, or as the WinCLIP's settings say.
    ``drawn``: the reference draws of it, the profile's first ones; 0 for all. InputError for wrong shots.
    """
    seeds = profile.seeds[: within("draws", drawn, 0) or None]
    changes = {"shots": [0, *shots], "categories": categories, "seeds": seeds}
    wanted = check_record(Profile, profile.model_dump() | changes, "shots of notebook 18")
    smoothed = spec.model_copy(update={"settings": {"sigma": memory_bank.SIGMA} | spec.settings})
    return wanted.model_copy(update={"methods": [smoothed, *memory_bank.twins(smoothed)], "imports": []})


PLAIN = {"CLIP": "paper", "CLIP-AC": "ac"}
"""Presets of plain CLIP by the names of the paper."""


def list_relatives(spec: Method, profile: Profile) -> list[Method]:
    """What stands beside an AnomalyCLIP, on its backbone and at its size: nothing learned, then learned otherwise.

    CoOp and APRIL-GAN are those of the profile on this backbone, else the demo's where the AnomalyCLIP is the demo's;
    they are left out where neither is at hand, since they must have learned.
    """
    size = {"settings": {key: spec.settings[key] for key in ("image_size",) if key in spec.settings}}
    found = [Method(method="clip", name=name, preset=preset, **spec.network, **size) for name, preset in PLAIN.items()]
    for method in ("coop", "aprilgan"):
        own = [one for one in profile.methods if one.method == method]
        own = [one for one in own if one.network == spec.network]
        own = [one.model_copy(update={"settings": one.settings | size["settings"]}) for one in own]
        if not own and spec.checkpoint == "demo":
            own = [Method(method=method, checkpoint="demo", force_leak=spec.force_leak, **spec.network, **size)]
        found += own[:1]
    return found


def name_missing_relatives(found: list[Method]) -> str:
    """A sentence on the methods that could not be had, empty where none is missing."""
    missing = [name for method, name in {"coop": "CoOp", "aprilgan": "APRIL-GAN"}.items()
               if method not in {one.method for one in found}]  # fmt: skip
    if not missing:
        return ""
    return f"{' and '.join(missing)}: left out, since the profile names no checkpoint for this backbone."
