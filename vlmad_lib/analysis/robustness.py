"""What shifts of the images do to scores, maps and AUROC, method by method (notebook 15).

Two sweeps of ``run.run`` on an index of shifted copies (module ``corruptions``). *Scores*: zero-shot, all images, every
severity; WinCLIP without its windows, which its zero-shot image score never looks at, so this part is cheap. *Maps*:
whatever still lacks them, the defective images alone, at fewer severities; with references too, which are not shifted.
AUROC is compared over categories, stability over images, always in pairs of the same images, by Student's t.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import chain, combinations
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy import stats

from vlmad_lib import methods, tables
from vlmad_lib.analysis import comparison
from vlmad_lib.config import FULL, Method, Profile
from vlmad_lib.data import corruptions, datasets, mask_files
from vlmad_lib.evaluation import metrics, statistics
from vlmad_lib.methods import winclip
from vlmad_lib.pipeline import run
from vlmad_lib.pipeline.results import Results

FRAME = 96  # pixels of the short edge at which maps are set against masks: an image is compared with itself only
ALL = "all changes"


def thin_windows(spec: Method) -> Method | None:
    """A method that has the zero-shot image scores of ``spec`` at the least cost; none where there is none.

    WinCLIP's class token needs no windows: without them its scores stay and its maps are flat.
    """
    if spec.method == "anomalyclip":
        return spec
    if spec.method != "winclip":
        return None
    settings: Any = winclip.settings(spec.preset, spec.settings)
    alone = settings.image_score == "class_token" and settings.full_image
    return spec.model_copy(update={"settings": spec.settings | {"windows": []}}) if alone else spec


def plan_runs(profile: Profile) -> tuple[Profile, Profile]:
    """What runs for the scores, and what for the maps that the first does not give.

    The second has the methods as they are, zero-shot and with the profile's smallest number of references. Pictures are
    scored one by one (``methods.without_category_context``): how far other shifts move others is no part of a score, so
    methods that score a category as a whole are left out.
    """
    few = sorted(shots for shots in profile.shots if 0 < shots < FULL)[:1]
    own = [methods.without_category_context(spec) for spec in methods.list_scoring_alone(profile.methods)]
    cheap = [spec for spec in map(thin_windows, own) if spec]
    slow = [spec for spec in own if spec not in cheap]
    base = profile.model_copy(update={"imports": [], "seeds": profile.seeds[:1]})
    wanted = [{"methods": cheap, "shots": [0]}, {"methods": slow, "shots": [0, *few]}]
    return tuple(base.model_copy(update=changes) for changes in wanted)


def run_shifts(
    profile: Profile, table: pd.DataFrame, rows: pd.DataFrame, places: Sequence[tuple[str, int]], seed: int = 0
) -> Results | None:
    """The results on index rows as they are and at all ``places`` (shift, severity); none where nothing can be run.

    The scores table has the columns ``name``, ``shift``, ``severity`` (``none``, 0 for the images as they are) and
    ``source``, the image before. References come from ``table`` and are never shifted.
    """
    if not profile.methods or rows.empty or not run.list_variants(profile):
        return None
    folder = profile.path(profile.cache) / "shifted"
    shots = max(profile.shots)
    drawn = (
        [datasets.draw_references(table, name, shots, profile.seeds[0]) for name in rows.category.unique()]
        if shots
        else []
    )
    parts = [
        corruptions.write_corrupted_copies(rows, name, severity, folder, seed).assign(
            source=rows.image, shift=name, severity=severity
        )
        for name, severity in [(corruptions.NONE, 0), *places]
    ]
    moved = pd.concat(parts, ignore_index=True)
    # Only the references that are drawn are there to draw from. Masks are left out, and so are the run's metrics:
    # they would mix all shifts, and counting pixels would take longer than all the rest.
    tested = [*(references.assign(split="train") for references in drawn), moved[datasets.COLUMNS].assign(mask="")]
    results = run.run(profile, table=pd.concat(tested, ignore_index=True))
    facts = moved[["image", "mask", "source", "shift", "severity"]]
    scores = results.scores.drop(columns="mask").merge(facts, on="image")
    scores["name"] = tables.name_rows(scores)
    return dataclasses.replace(results, scores=scores, metrics=results.metrics.iloc[:0])


# ---------------------------------------------------------------- cells: a value for each shift, severity and unit


def measure_auroc_changes(scores: pd.DataFrame) -> pd.DataFrame:
    """Image AUROC of each category (``auroc``), and less that of its images as they are (``change``).

    It rests on ``good`` and ``bad`` images. Categories with one class only are left out.
    """
    keys = ["name", "shift", "severity", "group", "category"]
    rows = []
    for key, images in scores.groupby(keys, sort=False):
        wins = statistics.wins(images.label.to_numpy(), images.score.to_numpy())
        counts = (images.label == 0).sum(), (images.label == 1).sum()
        rows.append((*key, *counts, wins.mean() if len(wins) else np.nan))
    aurocs = pd.DataFrame(rows, columns=[*keys, "good", "bad", "auroc"]).dropna()
    return compare_with_clean(aurocs, "auroc", ["name", "category"], "change")


def measure_score_changes(scores: pd.DataFrame, whole: pd.DataFrame) -> pd.DataFrame:
    """``drift``: how far each image's score moves, in standard deviations of all its category's scores.

    ``whole`` is the scores table of a run of all images; nan where it lacks the method, the scores do not vary, or they
    were stretched over the category, as those of single images are not.
    """
    keys = ["name", "category"]
    whole = whole[(whole.image_score != "stretched") | (whole.shots == 0)]
    spread = whole.assign(name=tables.name_rows(whole)).groupby(keys).score.std(ddof=1).rename("spread")
    scores = scores.join(spread, on=keys)
    scaled = scores.score / scores.spread.where(scores.spread > 0)
    return compare_with_clean(scores.assign(scaled=scaled), "scaled", ["name", "source"], "drift")


def compare_with_clean(table: pd.DataFrame, value: str, keys: list[str], change: str) -> pd.DataFrame:
    """The rows of shifted images, with the value of the row of the same keys ``before``, and its ``change``."""
    clean = table[table["shift"] == corruptions.NONE].set_index(keys)[value].rename("before")
    shifted = table[table["shift"] != corruptions.NONE].join(clean, on=keys)
    return shifted.assign(**{change: shifted[value] - shifted.before}).reset_index(drop=True)


def _spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation; nan where a side is constant or not known."""
    ends = np.ptp(np.stack([first, second]), axis=1)
    return float(stats.spearmanr(first, second).statistic) if (ends > 0).all() else float("nan")


# ---------------------------------------------------------------- maps


def compare_maps(sweeps: Sequence[Results], seed: int = 0) -> pd.DataFrame:
    """Each shifted image's maps against those before: ``correlation``, and pixel AUROC inside it ``pixel_auroc``.

    ``correlation`` is Spearman's over the patches, the map before moved along with the image (patches that came in
    from outside left out). ``pixel_change`` is the pixel AUROC less the image's own before. nan where there is no mask,
    or a map is flat. ``seed`` is that of the shifts.
    """
    clean, rows, masks = {}, [], {}
    for row, tiles in chain.from_iterable(map(_list_maps, sweeps)):
        side = tiles.shape[-1]
        grid, wide = (
            metrics.framed_map(tiles, row.width, row.height, row.fit, size, row.sigma) for size in (side, FRAME)
        )
        if row.mask not in masks:
            masks[row.mask] = mask_files.framed_mask(row.mask, row.width, row.height, row.fit, FRAME)
        mask = masks[row.mask]
        inside = metrics.ranking(wide[~mask], wide[mask])["auroc"] if np.ptp(wide) else float("nan")
        if row.shift == corruptions.NONE:
            clean[row.variant, row.source] = grid, inside
            continue
        before, value = clean[row.variant, row.source]
        matrix = corruptions.affine_matrix(row.shift, row.severity, row.source, seed)
        alike = _alike(before, grid, matrix, (row.width, row.height))
        facts = row.name, row.shift, row.severity, row.category, row.source
        rows.append((*facts, alike, inside, inside - value))
    columns = ["name", "shift", "severity", "category", "source", "correlation", "pixel_auroc", "pixel_change"]
    return pd.DataFrame(rows, columns=columns)


def _list_maps(results: Results) -> zip:
    """Each row of a scores table with its map as it is kept."""
    return zip(results.scores.itertuples(), results.kept(results.scores), strict=True)


def _alike(before: np.ndarray, after: np.ndarray, moved: np.ndarray | None, size: tuple[int, int]) -> float:
    """Rank correlation of two maps (h, w), the first moved by a matrix as the image of ``size`` was."""
    if moved is None:
        return _spearman(before.ravel(), after.ravel())
    shown = corruptions.warp_pixels(np.ones_like(before), moved, size, Image.Resampling.BILINEAR, mirror=False) > 0.5
    placed = corruptions.warp_pixels(before, moved, size, Image.Resampling.BILINEAR)
    return _spearman(placed[shown], after[shown])


# ---------------------------------------------------------------- means of cells

NOUNS = {"category": "categories", "source": "images"}


def summarise(
    cells: pd.DataFrame, value: str, unit: str, keys: Sequence[str] = ("name", "shift"), comparisons: int = 1
) -> pd.DataFrame:
    """Means of a value and their intervals over *n* units, categories or images, each first averaged itself.

    A row for each of ``keys`` with ``comparison.COLUMNS``; ``difference`` is the mean. With rows ``ALL`` for all shifts
    together, unless severities are a key. Intervals hold at 95 % for ``comparisons`` together (Bonferroni).
    """
    cells, level = cells.dropna(subset=value), statistics.together(comparisons)
    several = cells["shift"].nunique() > 1 and "severity" not in keys
    everything = pd.concat([cells, cells.assign(shift=ALL)]) if several else cells
    rows = []
    for key, group in everything.groupby(list(keys), sort=False):
        units = group.groupby(unit)[value].mean()
        ends = (statistics.paired if value == "drift" else statistics.difference)(units, level)
        rows.append((*key, value, NOUNS[unit], *ends, len(units)))
    return pd.DataFrame(rows, columns=[*keys, *comparison.COLUMNS])


def compare_methods(cells: pd.DataFrame, value: str, unit: str, comparisons: int = 1) -> pd.DataFrame:
    """``summarise`` of the differences of every two methods, at the shifts, severities and units both have.

    ``name`` is ``A less B``.
    """
    keys = ["shift", "severity", unit]
    wide = cells.pivot_table(index=keys, columns="name", values=value, sort=False)
    pairs = [
        (wide[first] - wide[second]).dropna().rename(value).reset_index().assign(name=f"{first} minus {second}")
        for first, second in combinations(dict.fromkeys(cells.name), 2)
        if {first, second} <= set(wide)
    ]
    pairs = [pair for pair in pairs if len(pair)]
    if not pairs:
        return pd.DataFrame(columns=["name", "shift", *comparison.COLUMNS])
    return summarise(pd.concat(pairs), value, unit, comparisons=comparisons)
