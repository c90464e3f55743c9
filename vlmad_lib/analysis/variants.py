"""What notebooks vary: window sizes (07), words and references (18), hybrids (14), and how a sweep's data are chosen.

Variants are methods with changed settings for ``run.run``; images are encoded once for all that share their arrays.
Intervals are Student's, paired (``statistics.paired``); values that do not vary have the whole range as theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from scipy import stats

from vlmad_lib import InputError, digests, tables, within
from vlmad_lib.analysis import comparison
from vlmad_lib.config import FULL, Method, Profile, check_record
from vlmad_lib.data import datasets, mask_files
from vlmad_lib.encoders import feature_store
from vlmad_lib.evaluation import metrics
from vlmad_lib.methods import memory_bank, winclip
from vlmad_lib.pipeline.results import Results

# ---------------------------------------------------------------- the data of a sweep


def choose_categories(table: pd.DataFrame, most: int) -> list[str]:
    """The first ``most`` categories of every group of an index, in the tables' order; all where it is 0."""
    order = tables.order_categories(table)
    if not within("most", most, 0):
        return order
    groups = table.drop_duplicates("category").set_index("category").group
    places = pd.Series(order).groupby([groups[name] for name in order], sort=False).cumcount()
    return [name for name, place in zip(order, places, strict=True) if place < most]


def choose_sweep_data(results: Results, most: int = 0, images: int = 0) -> tuple[list[str], pd.DataFrame]:
    """The categories and the index that a sweep runs on: those of a run.

    Of the demo data, which are to be quick, the first ``most`` categories of every group with ``images`` test images
    of each (0 for all of either).
    """
    most, images = (most, images) if results.profile.dataset == "demo" else (0, 0)
    categories = choose_categories(results.index, most)
    return categories, sample_index(results.index, categories, images)


def describe_sweep_data(table: pd.DataFrame, results: Results) -> str:
    """A sentence that names the categories and pictures of a sweep's index; empty where they are all of the run's."""
    tested, all_tested = datasets.select_tested(table), datasets.select_tested(results.index)
    if len(tested) == len(all_tested):
        return ""
    counts = tables.format_range(tested.groupby("category").size())
    names = tables.join_words(tables.order_categories(tested))
    return (
        f"What is varied on this page is tried on {counts} test pictures each of {names}. "
        "The notebook's parameters choose how many, 0 for all."
    )


def sample_index(table: pd.DataFrame, categories: Sequence[str], images: int) -> pd.DataFrame:
    """An index of some categories with up to ``images`` test images of each (``datasets.sample_images``), all for 0."""
    table = table[table.category.isin(categories)]
    if not images:
        return table
    some = datasets.sample_images(table[table.split == "test"], images)
    return pd.concat([some, table[table.split != "test"]], ignore_index=True)


def sample_defective_share(table: pd.DataFrame, share: float, seed: int = 0) -> pd.DataFrame:
    """An index of which in each category this share of the test images is defective; training images stay.

    Of the images of a category as many as the share allows are kept, drawn by ``seed``. ``share`` lies in (0, 1).
    """
    kept = [table[table.split != "test"]]
    for _, tested in table[table.split == "test"].groupby("category", sort=False):
        good, bad = tested[tested.label == 0], tested[tested.label == 1]
        defective = min(len(bad), round(len(good) * share / (1 - share)))
        normal = min(len(good), round(defective * (1 - share) / share))
        kept += [good.sample(normal, random_state=seed), bad.sample(defective, random_state=seed)]
    return pd.concat(kept).loc[lambda rows: table.index.intersection(rows.index)].reset_index(drop=True)


def measure_inside_images(results: Results, rows: pd.DataFrame) -> pd.Series:
    """Pixel AUROC inside each image of masked rows of a scores table that have maps, with their index; kept on disk.

    One image at a time, so it does not matter how its map compares with those of other images, nor whether the whole
    image is a scale: that changes all its pixels alike. nan where a mask is empty or covers the image.
    """
    if rows.empty:
        return pd.Series(np.nan, rows.index)
    facts = rows[["image", "mask", "map_file", "map_row"]].to_csv(index=False)
    size, pixels = results.profile.evaluation_size, digests.digest_files(rows["mask"].unique(), results.cache)
    versions = digests.list_versions(digests.MEASURING_LIBRARIES)
    key = digests.digest(facts, pixels, size, metrics.framed_map, metrics.ranking, versions)

    def compute() -> torch.Tensor:
        auroc = pd.Series(np.nan, rows.index)
        for _, of_image in rows.groupby("image", sort=False):  # image by image: all maps at once would need gigabytes
            first = of_image.iloc[0]
            mask = mask_files.framed_mask(first["mask"], first.width, first.height, first.fit, size)
            maps, (inside,) = results.framed(of_image), results.inside(of_image[:1])
            normal, mask = (~mask, mask) if inside is None else (~mask & inside, mask & inside)
            auroc.loc[of_image.index] = [metrics.ranking(values[normal], values[mask])["auroc"] for values in maps]
        return torch.from_numpy(auroc.to_numpy(copy=True))

    return pd.Series(
        feature_store.load_or_compute(results.cache / "inside" / f"{key}.npy", compute).numpy(), rows.index
    )


# ---------------------------------------------------------------- window sizes (notebook 07)

READINGS = {
    "windows alone": {"full_image": False, "image_score": "map_max"},
    "with the whole image": {"full_image": True, "image_score": "class_token"},
}
"""The two variants of a window size; the image score of the first is the maximum of its map, as in the study."""


def keep_fitting_sizes(sizes: Sequence[int], grid: int) -> tuple[list[int], str]:
    """The window sizes that fit a grid of tokens, and a sentence on those that do not (empty where all do).

    InputError where none does.
    """
    kept = [size for size in dict.fromkeys(sizes) if 1 <= size <= grid]
    if not kept:
        raise InputError(f"None of the window sizes {list(sizes)} fits the {grid} x {grid} tokens; choose 1 to {grid}.")
    out = [str(size) for size in dict.fromkeys(sizes) if size not in kept]
    return kept, f"Left out: sizes {tables.join_words(out)} do not fit the {grid} x {grid} tokens." if out else ""


def set_window_sizes(spec: Method, sizes: Sequence[int]) -> Method:
    """A method with other window sizes, all of them fused."""
    return spec.model_copy(update={"settings": spec.settings | {"windows": list(sizes)}})


def list_window_variants(spec: Method, sizes: Sequence[int], shots: int = 0) -> list[Method]:
    """A WinCLIP as it is, then both readings of each window size.

    With references the association is that of the windows alone too, patch tokens left out.
    """
    few = {"patch_tokens": "none"} if within("references", shots, 0) else {}
    varied = [spec]
    for size in sizes:
        for name, change in READINGS.items():
            settings = spec.settings | {"windows": [size]} | change | few
            varied.append(spec.model_copy(update={"name": f"{size} x {size}, {name}", "settings": settings}))
    return varied


def find_best_column(values: pd.DataFrame) -> tuple[int, list[int]]:
    """The best column of (n, sizes) values by mean, and all columns that are not shown to be worse, itself among them.

    Two-sided t tests of the paired differences at 5 % for all pairs of columns together (Bonferroni), since the best
    was picked by the same values.
    """
    values = values.dropna()
    first = values.mean().idxmax()
    pairs = values.shape[1] * (values.shape[1] - 1) / 2
    not_worse = []
    for name in values:
        differences = (values[first] - values[name]).to_numpy()
        flat = len(differences) < 2 or np.ptp(differences) < 1e-12
        if flat or stats.ttest_1samp(differences, 0).pvalue >= 0.05 / max(pairs, 1):
            not_worse.append(name)
    return first, not_worse


# ---------------------------------------------------------------- words and references (notebooks 17 and 18)


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


def weigh_references(
    results: Results, words: str, references: str, shots: int, shares: Sequence[float]
) -> pd.DataFrame:
    """Image and pixel AUROC of weighted means of words and references, by category and share; first reference draw.

    Args:
        results: A run with the maps of both methods, smoothed alike.
        words: The WinCLIP, whose zero-shot scores and maps are taken.
        references: The association, whose scores and maps with ``shots`` references are taken.
        shots: The number of references.
        shares: How much the references count, in [0, 1]: 0 is words alone, 0.5 WinCLIP+, 1 references alone.

    Returns:
        Columns category, share, image_auroc and pixel_auroc, nan where a class or all masks are missing.
    """
    sides = [tables.select_first_draw(results.scores, number) for number in (0, shots)]
    sides = [side[side.method == name] for side, name in zip(sides, (words, references), strict=True)]
    rows, size = [], results.profile.evaluation_size
    for category, said in sides[0].groupby("category", sort=False):
        near = sides[1].set_index("image").loc[said.image].reset_index()
        maps = [np.stack(results.framed(side)) for side in (said, near)]
        files = zip(said["mask"], said.width, said.height, said.fit, strict=True)
        defect = np.stack([mask_files.framed_mask(*facts, size) for facts in files])
        label = said.label.to_numpy() == 1
        outlined = ~label | (said["mask"] != "").to_numpy()  # where a defect is not outlined its pixels are unknown
        counted = np.broadcast_to(outlined[:, None, None], defect.shape)
        if (inside := results.inside(said))[0] is not None:
            counted = counted & np.stack(inside)
        for share in shares:
            score = (1 - share) * said.score.to_numpy() + share * near.score.to_numpy()
            pixels = (1 - share) * maps[0] + share * maps[1]
            ranked = {"image_auroc": (score, label), "pixel_auroc": (pixels[counted], defect[counted])}
            auroc = {
                name: metrics.ranking(values[~bad], values[bad])["auroc"] for name, (values, bad) in ranked.items()
            }
            rows.append({"category": category, "share": share} | auroc)
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- beside an AnomalyCLIP (notebook 03)

PLAIN = {"CLIP": "paper", "CLIP-AC": "ac"}
"""Presets of plain CLIP by the names of the paper."""
LEARNED = {"coop": "CoOp", "aprilgan": "APRIL-GAN"}
"""Methods that learned otherwise than an AnomalyCLIP, with their names."""


def list_relatives(spec: Method, profile: Profile) -> list[Method]:
    """What stands beside an AnomalyCLIP, on its backbone and at its size: nothing learned, then learned otherwise.

    CoOp and APRIL-GAN are those of the profile on this backbone, else the demo's where the AnomalyCLIP is the demo's;
    they are left out where neither is at hand, since they must have learned.
    """
    size = {"settings": {key: spec.settings[key] for key in ("image_size",) if key in spec.settings}}
    relatives = [Method(method="clip", name=name, preset=how, **spec.network, **size) for name, how in PLAIN.items()]
    for method in LEARNED:
        own = [known for known in profile.methods if known.method == method and known.network == spec.network]
        own = [known.model_copy(update={"settings": known.settings | size["settings"]}) for known in own]
        if not own and spec.checkpoint == "demo":
            own = [Method(method=method, checkpoint="demo", force_leak=spec.force_leak, **spec.network, **size)]
        relatives += own[:1]
    return relatives


def name_missing_relatives(relatives: list[Method]) -> str:
    """A sentence on the methods that could not be had, empty where none is missing."""
    missing = [name for method, name in LEARNED.items() if method not in {spec.method for spec in relatives}]
    if not missing:
        return ""
    return f"{tables.join_words(missing)}: left out, since the profile names no checkpoint for this backbone."


# ---------------------------------------------------------------- hybrids (notebook 14)

# Shares of AnomalyCLIP's own V-V map in a hybrid's, from which one is chosen on auxiliary data.
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def make_hybrid(spec: Method, name: str, fit: str, **changes) -> Method:
    """The hybrid that shares an AnomalyCLIP's backbone, prompts and input, with these settings."""
    shared = {key: spec.settings[key] for key in ("image_size", "sigma") if key in spec.settings}
    settings = shared | {"fit": fit} | changes
    return spec.model_copy(update={"method": "hybrid", "name": name, "preset": "paper", "settings": settings})


def choose_fit(index: pd.DataFrame) -> str:
    """How the hybrid fits images: the tiles that WinCLIP keeps where all are square, which changes nothing for them."""
    return "tiles" if (index.width == index.height).all() else "squash"


def make_hand_written(spec: Method, profile: Profile, fit: str) -> Method:
    """WinCLIP, hand-written words, on an AnomalyCLIP's backbone: the profile's own where it is on it and fits alike."""
    for own in [own for own in profile.methods if own.method == "winclip" and own.network == spec.network]:
        if winclip.settings(own.preset, own.settings).fit == fit:
            return own
    return Method(method="winclip", name="WinCLIP, same backbone", settings={"fit": fit}, **spec.network)


def draw_auxiliary_data(profile: Profile, categories: Sequence[str]) -> Profile:
    """The profile of a few pictures of auxiliary demo categories, drawn into the cache."""
    from vlmad_lib.demo import data as demo

    root = profile.path(profile.cache) / "auxiliary"
    demo.write(root, "auxiliary", train=0, good=4, per_defect=1, categories=list(categories))
    return profile.model_copy(update={"dataset": "folder", "root": str(root), "categories": []})


def measure_weights(
    run: Callable[[Profile], Results], profile: Profile, auxiliary: Profile, spec: Method
) -> pd.DataFrame:
    """Pixel AUROC of every weight on an auxiliary profile's categories, a row a weight and category.

    ``run`` is ``pipeline.run.run``. InputError where these are the data of ``profile``: the weight would be chosen by
    what it is judged on, and, saying that it is about the auxiliary data, where these are at fault: a reader of the
    report knows other categories. Prompts that were trained on the auxiliary data favour their own V-V map there; the
    method is then called LEAKED.
    """
    if datasets.overlaps_training_data(
        datasets.describe_identity(auxiliary), str(auxiliary.path(auxiliary.root)), profile
    ):
        raise InputError(
            f"The weight would be chosen on {auxiliary.root}, the data under test; name other 'auxiliary' data."
        )
    changes = {"imports": [], "shots": [0], "methods": [spec.model_copy(update={"force_leak": True})]}
    try:
        table, _ = datasets.build_index(auxiliary.model_copy(update=changes))
    except InputError as error:
        place = auxiliary.path(auxiliary.root)
        raise InputError(f"Auxiliary data in {place}, which only choose the hybrid's weight: {error}") from error
    named = {f"weight {weight:g}": weight for weight in WEIGHTS}
    forced = spec.model_copy(update={"force_leak": True})
    hybrids = [make_hybrid(forced, name, choose_fit(table), local_weight=weight) for name, weight in named.items()]
    measured = run(auxiliary.model_copy(update=changes | {"methods": hybrids})).metrics
    weights = measured.method.str.removesuffix(" LEAKED").map(named)
    return measured.assign(weight=weights)[["method", "weight", "group", "category", "pixel_auroc", "n_defective"]]


def choose_weight(weights: pd.DataFrame) -> float:
    """The weight of the largest macro mean; of equal ones the nearest to one half. 0.5 where nothing is known."""
    means = weights.groupby("weight").pixel_auroc.mean().dropna()
    if means.empty:
        return 0.5
    first = means[means >= means.max() - 1e-9].index
    return float(min(first, key=lambda weight: abs(weight - 0.5)))


def compare_halves(table: pd.DataFrame, base: str) -> pd.DataFrame:
    """Gain in pixel AUROC inside an image over ``base``, where that locates worse and where better, by method.

    Each half of a category's images says in turn whether the category is among the worse half for ``base``, the other
    half what is gained there: one half for both would find gains where ``base`` merely had bad luck. A category near
    the middle may be in both rows.

    Args:
        table: One row an image and method: category, image, method and ``auroc``.
        base: The method against which all others are compared.

    Returns:
        Columns method, where (``base`` worse, better, or all) and ``comparison.COLUMNS``: means over *n* categories,
        with intervals at 95 % for all methods of a ``where`` together.
    """
    wide = table.pivot(index=["category", "image"], columns="method", values="auroc").dropna().sort_index()
    half = wide.groupby("category").cumcount() % 2
    rows = []
    methods = [name for name in dict.fromkeys(table.method) if name != base]
    for method in methods:
        gain, halves = wide[method] - wide[base], []
        for judged in (0, 1):
            level = wide[base][half != judged].groupby("category").mean()
            gained = gain[half == judged].groupby("category").mean().reindex(level.index).dropna()
            worse = level[gained.index] < level.median()
            halves.append(pd.DataFrame({"gain": gained, "worse": worse}))
        both = pd.concat(halves)
        sides = {f"{base} worse": both[both.worse], f"{base} better": both[~both.worse], "all": both}
        for name, gains in sides.items():
            gained = gains.groupby(level="category")[["gain"]].mean().set_axis(["pixel_auroc"], axis=1)
            facts = {"method": method, "where": name}
            rows.append(comparison.pair_differences(gained, gained * 0, "categories", len(methods), **facts))
    columns = ["method", "where", *comparison.COLUMNS]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=columns)
