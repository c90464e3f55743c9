"""Breakdowns by what a defect looks like: contrast, area and sharpness of its outline, and its class.

Contrast is measured at a frame whose short edge is 240 pixels, WinCLIP's own input, so that a picture's resolution does
not matter; or at that of another method's input. Colours are CIELAB, their differences Delta-E 76.

The AUROC of some anomalous images is the mean share of their category's normal images that they outscore. Scores of
different categories are never compared, and images of one category are not independent: figures are means over
categories, and intervals are over categories where there are ``statistics.ENOUGH`` of them. With fewer they are over
images, and speak of these categories only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from joblib import Parallel, delayed
from pandas.io.formats.style import Styler
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2lab

from vlmad_lib import digests, tables, within
from vlmad_lib.config import Profile
from vlmad_lib.data import csv_files, datasets, image_files, mask_files
from vlmad_lib.encoders import feature_store
from vlmad_lib.evaluation import metrics, statistics
from vlmad_lib.evaluation.pixel_ranking import EIGHT
from vlmad_lib.pipeline.results import Results

# Pixels of the short edge at which contrast is measured.
FRAME = 240
# Pixels of the frame from the defect, between which its ring lies: past the soft edge, before the surroundings change.
RING = 1.5, 8.0
# Delta-E: about what a step of 8 bits makes; a flatter surface has no measurable spread.
LEAST_NOISE = 0.5
# The columns of ``measure_defects`` and what they are, with units.
MEASURES = {
    "contrast": "contrast (Delta-E 76 to a ring around it)",
    "contrast_to_noise": "contrast-to-noise (contrast over the ring's own spread)",
    "area": "area (share of the image)",
    "sharpness": "sharpness of the outline (Delta-E per pixel)",
}
LEVELS = ("low", "medium", "high")
# The study's ten defect classes, in the order of its Table 6.
CLASSES = (
    *("Missing Component", "Logical Error", "Geometric Deformation", "Surface Pattern", "Multiple"),
    *("Surface Damage", "Foreign Material", "Appearance Change", "Structural Break", "Missing Material"),
)
UNKNOWN = "unknown"
# What a class is compared with: every other defect of the same category.
REST = "the other defects"
# The column of a data set's table of classes that holds the data set's own defect names, where it is not the usual one.
_LABEL = {"visa": "label_token_in_image_anno_csv"}


# ---------------------------------------------------------------- how visible a defect is


def measure_defect(image: np.ndarray, mask: np.ndarray, size: int = FRAME) -> dict[str, float]:
    """The ``MEASURES`` of the defect in an image (H, W, 3) uint8 RGB, mask (H, W) bool, at a frame of ``size``.

    Contrast is the distance between the mean colours of a region and of the ring around it, the mean over regions by
    area; a mark whose own colours average to that of its surroundings has none. Contrast-to-noise is that distance
    over the spread of the ring's colours (root mean square distance from their mean), likewise. Sharpness is the mean
    colour gradient along the outline. nan where the mask is empty or leaves no ring.
    """
    if not mask.any():
        return dict.fromkeys(MEASURES, float("nan"))
    near, far = (edge * size / FRAME for edge in RING)
    lab = rgb2lab(image)
    regions, count = ndimage.label(mask, EIGHT)
    distances, ratios, areas = [], [], []
    for number, (rows, columns) in enumerate(ndimage.find_objects(regions, count), 1):
        box = tuple(slice(max(0, int(side.start - far)), int(side.stop + far)) for side in (rows, columns))
        inside = regions[box] == number
        away = ndimage.distance_transform_edt(~inside)
        ring = lab[box][(away > near) & (away <= far) & ~mask[box]]
        if len(ring):
            distances.append(np.linalg.norm(lab[box][inside].mean(0) - ring.mean(0)))
            ratios.append(distances[-1] / max(np.sqrt(ring.var(0).sum()), LEAST_NOISE))
            areas.append(inside.sum())
    slopes = np.sqrt(sum(np.square(np.stack(np.gradient(lab[..., k]))).sum(0) for k in range(3)))
    outline = mask & ~ndimage.binary_erosion(mask, EIGHT, border_value=1)
    outline |= ndimage.binary_dilation(outline, EIGHT) & ~mask
    contrasts = np.average([distances, ratios], axis=1, weights=areas) if areas else (float("nan"), float("nan"))
    return {
        "contrast": float(contrasts[0]),
        "contrast_to_noise": float(contrasts[1]),
        "area": float(mask.mean()),
        "sharpness": float(slopes[outline].mean()) if outline.any() else float("nan"),
    }


def measure_defects(results: Results, size: int = FRAME) -> pd.DataFrame:
    """One row per masked test image of a run: image, category, group, defect and the ``MEASURES``, kept on disk.

    ``size``: pixels of the short edge at which images and masks are measured.
    """
    rows = results.scores[results.scores["mask"] != ""].drop_duplicates("image")
    cache = results.cache / "contrast"
    jobs = [(row.image, row.mask, row.width, row.height, size, cache) for row in rows.itertuples()]
    missing = [job for job in jobs if not _file(job[0], job[1], size, cache).is_file()]  # to start workers takes longer
    Parallel(n_jobs=results.profile.processes if missing else 1)(delayed(_kept)(*job) for job in missing)
    table = pd.DataFrame([_kept(*job) for job in jobs], columns=list(MEASURES), index=rows.index)
    return pd.concat([rows[["image", "category", "group", "defect"]], table], axis=1).reset_index(drop=True)


def _kept(image: str, mask: str, width: int, height: int, size: int, cache: Path) -> list[float]:
    file = _file(image, mask, size, cache)
    return feature_store.load_or_compute(file, lambda: _read(image, mask, width, height, size)).tolist()


def _file(image: str, mask: str, size: int, cache: Path) -> Path:
    pixels = [digests.digest_file(path, cache.parent) for path in (image, mask)]
    versions = digests.list_versions(digests.MEASURING_LIBRARIES)
    key = digests.digest(pixels, measure_defect, size, RING, LEAST_NOISE, versions)
    return cache / f"{key}.npy"


def _read(image: str, mask: str, width: int, height: int, size: int = FRAME) -> torch.Tensor:
    shown = image_files.load_image(image).resize(image_files.frame(width, height, "tiles", size), Image.Resampling.BOX)
    measures = measure_defect(np.asarray(shown), mask_files.framed_mask(mask, width, height, "tiles", size), size)
    return torch.tensor([measures[name] for name in MEASURES], dtype=torch.float64)


def assign_levels(
    measures: pd.DataFrame,
    cuts: tuple[float, float] = (1 / 3, 2 / 3),
    column: str = "contrast",
    limits: Sequence[float] = (),
) -> pd.Series:
    """low, medium or high for each row: up to the first limit, up to the second, above; missing where not measured.

    The limits are two quantiles of the run's own defects, or fixed values of the column, which other runs can share.
    """
    low = within("low_cut", cuts[0], 0, 1)
    low, high = limits or measures[column].quantile([low, within("high_cut", cuts[1], low, 1)])
    names = pd.Series(np.select([measures[column] <= low, measures[column] <= high], LEVELS[:2], LEVELS[2]))
    return names.set_axis(measures.index).where(measures[column].notna())


# ---------------------------------------------------------------- what a defect is


def read_taxonomy(profile: Profile) -> dict[tuple[str, str], str]:
    """The defect class of each (category, defect) by a profile's ``taxonomy`` file, or by that of its data set.

    The file is a CSV with the columns category, defect_type and proposed_class. InputError where it cannot be read.
    """
    path = profile.path(profile.taxonomy) if profile.taxonomy else datasets.REFERENCE / f"{profile.dataset}_defects.csv"
    if not path.is_file() and not profile.taxonomy:
        return {}
    usual = "defect_type"
    column = _LABEL.get(profile.dataset, usual)
    table = csv_files.read_text_table(
        path, ("category", "proposed_class"), "correct it or leave 'taxonomy' out", (usual, column)
    )
    column = column if column in table else usual
    return dict(zip(zip(table.category, table[column], strict=True), table.proposed_class, strict=True))


def classify_defects(rows: pd.DataFrame, profile: Profile) -> pd.Series:
    """The defect class of each row of an index or scores table; ``unknown`` where the taxonomy has none.

    Without any taxonomy, as for own pictures, a defect's own name is its class. An image with several labels of
    different classes is ``Multiple``; normal images have the empty class.
    """
    taxonomy = read_taxonomy(profile)
    keys = rows[["category", "labels", "defect", "label"]]
    distinct, names = keys.drop_duplicates(), []  # a large table has few
    for row in distinct.itertuples():
        labels = row.labels.split(";") if row.labels else [row.defect]
        classes = {taxonomy.get((row.category, label), UNKNOWN) if taxonomy else label for label in labels}
        name = "Multiple" if len(classes) > 1 else classes.pop()
        names.append("" if row.label == 0 else name if name in CLASSES or not taxonomy else UNKNOWN)
    distinct = distinct.assign(defect_class=pd.Series(names, distinct.index, dtype=str))
    return keys.merge(distinct, how="left").defect_class.set_axis(rows.index).rename(None)


# ---------------------------------------------------------------- AUROC


def _variants(scores: pd.DataFrame, shots: int) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each method at a number of shots, with the scores of its first reference draw."""
    yield from tables.select_first_draw(scores, shots).groupby("method", sort=False)


def add_wins(scores: pd.DataFrame) -> pd.DataFrame:
    """The anomalous images of one method with ``win``: the share of their category's normal images they outscore."""
    frames = [
        rows[rows.label == 1].assign(win=statistics.wins(rows.label.to_numpy(), rows.score.to_numpy()))
        for _, rows in scores.groupby("category")
    ]
    return pd.concat(frames) if frames else scores.assign(win=0.0)


def _values(column: pd.Series, order: tuple[str, ...]) -> list[str]:
    """The values of a column, those of ``order`` first."""
    present = set(column.dropna())
    return [*(value for value in order if value in present), *sorted(present - set(order))]


def _has_few_categories(scores: pd.DataFrame) -> bool:
    """Whether the categories with normal and defective images are too few to be the unit of an interval."""
    return (scores.groupby("category").label.nunique() == 2).sum() < statistics.ENOUGH


def _cells(variant: pd.DataFrame, keys: list[str], intervals: bool = True) -> pd.DataFrame:
    """AUROC of the anomalous images of each combination of ``keys``, the first of which is the category."""
    rows = []
    for names, anomalous in variant[variant.label == 1].groupby(keys):
        normal = variant.score[(variant.category == names[0]) & (variant.label == 0)]
        labels, values = np.repeat([0, 1], [len(normal), len(anomalous)]), np.r_[normal, anomalous.score]
        ends = statistics.auroc_interval(labels, values) if intervals else (np.nan, np.nan)
        auroc = statistics.wins(labels, values).mean()
        rows.append((*names, auroc, *ends, len(anomalous), anomalous.defect.nunique()))
    return pd.DataFrame(rows, columns=[*keys, "auroc", "low", "high", "images", "types"])


def summarise_auroc(scores: pd.DataFrame, column: str, order: tuple[str, ...] = (), shots: int = 0) -> pd.DataFrame:
    """AUROC of the anomalous images of each value of a column, by method: the mean over categories, 95 % interval.

    ``images``, ``types`` and ``categories`` say what it rests on. Images whose category has no normal test image are
    left out; so are missing values.
    """
    rows = []
    for name, variant in _variants(scores, shots):
        over_images = _has_few_categories(variant)
        cells = _cells(variant, ["category", column], over_images).dropna(subset="auroc")
        for value in _values(variant[column][variant.label == 1], order):
            chosen = cells[cells[column] == value]
            mean = statistics.category_mean(chosen[["auroc", "low", "high"]].to_numpy(float), over_images)
            rows.append((name, value, *mean, chosen.images.sum(), chosen.types.sum(), len(chosen)))
    columns = ["method", column, "auroc", "low", "high", "images", "types", "categories"]
    return pd.DataFrame(rows, columns=columns)


def summarise_types(scores: pd.DataFrame, shots: int = 0) -> pd.DataFrame:
    """AUROC of each defect type of each category by method, with its 95 % interval and number of images."""
    keys = ["category", "group", "defect"]
    frames = [_cells(variant, keys).assign(method=name) for name, variant in _variants(scores, shots)]
    columns = ["method", *keys, "auroc", "low", "high", "images"]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


def compare_auroc(scores: pd.DataFrame, column: str, pairs: Sequence[tuple[str, str]], shots: int = 0) -> pd.DataFrame:
    """AUROC of the second less that of the first of two values of a column, within each category that has both.

    One row a method and pair, whose first may be ``REST``. ``first_auroc``, ``second_auroc`` and ``difference`` are
    means over those ``categories``, which have ``images`` of the two values. The interval is over categories, or over
    images where the data have few categories; ``over`` says so, and *n* counts them. The intervals hold at 95 % for all
    rows together that have one (Bonferroni): those with two categories or more, or, over images, with any. The others
    have (-1, 1).
    """
    rows = []
    for name, variant in _variants(scores, shots):
        anomalous = add_wins(variant).dropna(subset="win")
        for first, second in pairs:
            is_second = anomalous[column] == second
            is_first = anomalous[column].notna() & ~is_second if first == REST else anomalous[column] == first
            sides = pd.concat([anomalous[is_first].assign(side=0), anomalous[is_second].assign(side=1)])
            sides = sides[sides.groupby("category").side.transform("nunique") == 2]
            normal = variant[(variant.label == 0) & variant.category.isin(sides.category)]
            rows.append((name, first, second, sides, normal, _has_few_categories(variant)))
    counts = [sides.category.nunique() for *_, sides, _, _ in rows]
    comparisons = sum(count >= 2 - few for count, (*_, few) in zip(counts, rows, strict=True))
    level, table = statistics.together(max(comparisons, 1)), []
    for (name, first, second, sides, normal, over_images), count in zip(rows, counts, strict=True):
        estimates, means = [], sides.groupby(["category", "side"]).win.mean().unstack().reindex(columns=[0, 1])
        for category, (before, after) in means.iterrows():
            values = sides[sides.category == category].groupby("side").score.apply(np.array)
            judges = normal.score[normal.category == category].to_numpy()
            ends = (np.nan, np.nan)
            if over_images:
                ends = statistics.subset_difference(judges, values[1], values[0], level)[1:]
            estimates.append((after - before, *ends))
        aurocs = means.to_numpy().mean(0) if count else (np.nan, np.nan)
        interval = statistics.category_mean(estimates, over_images, level, -1.0)
        units = ("images", len(sides)) if over_images else ("categories", count)
        table.append((name, first, second, *aurocs, *interval, *units, count, len(sides)))
    columns = ["method", "first", "second", "first_auroc", "second_auroc", "difference", "low", "high", "over", "n"]
    return pd.DataFrame(table, columns=[*columns, "categories", "images"])


def correlate_measures(scores: pd.DataFrame, measures: Sequence[str], shots: int = 0) -> pd.DataFrame:
    """Spearman's rank correlation of detection with each measure within a category, by method, with intervals.

    Detection is the share of normal images that an image outscores. A category counts that has four images or more
    which differ in both; the correlation is the mean over those ``categories``, with ``images``. The intervals hold at
    95 % for all rows together (Bonferroni), over categories, or over images where they are few.
    """
    variants = [(name, add_wins(rows), _has_few_categories(rows)) for name, rows in _variants(scores, shots)]
    level, rows = statistics.together(max(1, len(variants) * len(measures))), []
    for name, anomalous, over_images in variants:
        for measure in measures:
            estimates, images = [], 0
            for _, own in anomalous.dropna(subset=[measure, "win"]).groupby("category"):
                estimate = statistics.rank_correlation(own[measure], own.win, level)
                if not np.isnan(estimate[0]):
                    estimates.append(estimate)
                    images += len(own)
            row = (name, measure, *statistics.category_mean(estimates, over_images, level, -1.0))
            rows.append((*row, len(estimates), images))
    columns = ["method", "measure", "rank correlation", "low", "high", "categories", "images"]
    return pd.DataFrame(rows, columns=columns)


# ---------------------------------------------------------------- recall


def detect_images(scores: pd.DataFrame, rate: float = 0.1, shots: int = 0) -> pd.DataFrame:
    """The images of every method with ``hit``: whether they exceed ``limit``, their category's threshold.

    That is the lowest score that at most the share ``rate`` of its normal images exceed. Categories without normal
    images are left out.
    """
    within("rate", rate, 0, 1)
    frames = [scores.iloc[:0].assign(limit=0.0, hit=False)]
    for _, variant in _variants(scores, shots):
        normal = variant[variant.label == 0].groupby("category").score
        limits = normal.agg(lambda values: metrics.limit_at(values.to_numpy(), rate))
        rows = variant[variant.category.isin(limits.index)]
        rows = rows.assign(limit=rows.category.map(limits).astype(float))
        frames.append(rows.assign(hit=rows.score > rows.limit))
    return pd.concat(frames[1:] or frames)


def summarise_recall(
    scores: pd.DataFrame, column: str, order: tuple[str, ...] = (), rate: float = 0.1, shots: int = 0
) -> pd.DataFrame:
    """Recall of each value of a column at a false-positive rate of at most ``rate`` in every category, by method.

    Thresholds are those of ``detect_images``. ``recall`` is the mean over categories, ``low`` and ``high`` its 95 %
    interval, which takes the thresholds as given.
    """
    rows, detected = [], detect_images(scores, rate, shots)
    for name, variant in detected[detected.label == 1].groupby("method", sort=False):
        over_images = variant.category.nunique() < statistics.ENOUGH
        for value in _values(variant[column], order):
            hits = variant[variant[column] == value].groupby("category").hit.agg(["sum", "size"])
            estimates = [(hit / size, *statistics.wilson(hit, size)) for hit, size in hits.to_numpy()]
            mean = statistics.category_mean(estimates, over_images)
            rows.append((name, value, *mean, hits["size"].sum(), len(hits)))
    return pd.DataFrame(rows, columns=["method", column, "recall", "low", "high", "images", "categories"])


def estimate_recall_curve(detected: pd.DataFrame, measure: str, at: Sequence[float] | None = None) -> pd.DataFrame:
    """Recall near each value of a measure, by method, with its 95 % band (``statistics.local_share``).

    ``detected``: rows of ``detect_images`` with the measure, which only defects have. ``at``: the values, or 40 between
    the 2nd and the 98th percentile of a method's images. Categories weigh alike; the band leaves out a category at a
    time, or an image where they are few. A method whose images do not differ in the measure has no rows.
    """
    anomalous, frames = detected[detected.label == 1], []
    judged_in = anomalous.groupby("method").category.nunique()
    for name, rows in anomalous[anomalous[measure] > 0].groupby("method", sort=False):
        size, logs = rows.groupby("category").hit.transform("size"), np.log(rows[measure])
        points = np.geomspace(*rows[measure].quantile([0.02, 0.98]), 40) if at is None else np.asarray(at, float)
        clusters = rows.image if judged_in[name] < statistics.ENOUGH else rows.category
        share, low, high = statistics.local_share(logs, rows.hit, clusters, 1 / size, np.log(points))
        counts = {"images": len(rows), "categories": rows.category.nunique()}
        table = {"method": name, "measure": measure, "value": points, "recall": share, "low": low, "high": high}
        frames.append(pd.DataFrame(table | counts).dropna(subset="recall"))
    columns = ["method", "measure", "value", "recall", "low", "high", "images", "categories"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def describe_strict_rate(scores: pd.DataFrame, rate: float, shots: int = 0) -> str:
    """A sentence on the categories whose normal images are too few for ``rate``, so that none may be rejected.

    Empty where there is no such category.
    """
    normal = tables.select_first_draw(scores[scores.label == 0], shots).groupby("category").image.nunique()
    few = normal[np.floor(rate * normal + 1e-9) == 0]
    if few.empty or rate == 0:
        return ""
    return (
        f"In {len(few)} of {tables.format_categories(len(normal))} the good test images ({tables.format_range(few)}) "
        f"are too few for a rate of {statistics.percent(rate)}: none of them may be rejected there."
    )


# ---------------------------------------------------------------- what a reader sees


def show_intervals(
    table: pd.DataFrame, without: str = tables.NO_ROWS, interval: str = "95 % interval"
) -> Styler | Markdown:
    """A frame for display: AUROC spelt out, interval ends in one column of this name, shares with three decimals.

    Without rows it is the sentence ``without``.
    """
    shown = table.copy()
    if {"low", "high"} <= set(shown):
        pairs = list(zip(shown.low, shown.high, strict=True))
        ends = [f"{low:.3f} to {high:.3f}" if low == low and high == high else None for low, high in pairs]
        shown = shown.assign(low=ends).drop(columns="high").rename(columns={"low": interval})
    return tables.show_table(shown.rename(columns={"auroc": "AUROC", "defect_class": "defect class"}), without=without)
