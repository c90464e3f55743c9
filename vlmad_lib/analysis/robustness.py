"""What shifts of the images do to scores, maps and AUROC, method by method (notebook 15).

Two sweeps of ``run.run`` on an index of shifted copies (module ``corruptions``). *Scores*: zero-shot, all images, every
severity; WinCLIP without its windows, which its zero-shot image score never looks at, so this part is cheap. *Maps*:
whatever still lacks them, the defective images alone, at fewer severities; with references too, which are not shifted.
AUROC is compared over categories, stability over images, always in pairs of the same images, by Student's t.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import combinations

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
ALL = "all shifts"
MOVING = [
    name for name, one in corruptions.CORRUPTIONS.items() if one.matrix
]  # how alike maps are then tells how sharp they are
COLUMNS = ["measure", "mean", "low", "high", "n"]


def thin_windows(spec: Method) -> Method | None:
    """A method that has the zero-shot image scores of ``spec`` at the least cost; none where there is none.

    WinCLIP's class token needs no windows: without them its scores stay and its maps are flat.
    """
    if spec.method == "anomalyclip":
        return spec
    if spec.method != "winclip":
        return None
    chosen = winclip.settings(spec.preset, spec.settings)
    alone = chosen.image_score == "class_token" and chosen.full_image
    return spec.model_copy(update={"settings": spec.settings | {"windows": []}}) if alone else spec


def plan_runs(profile: Profile) -> tuple[Profile, Profile]:
    """What runs for the scores, and what for the maps that the first does not give.

    The second has the methods as they are, zero-shot and with the profile's smallest number of references. Pictures are
    scored one by one (``methods.without_category_context``): how far other shifts move others is no part of a score.
    """
    few = sorted(shots for shots in profile.shots if 0 < shots < FULL)[:1]
    own = [methods.without_category_context(spec) for spec in profile.methods]
    cheap = [one for one in map(thin_windows, own) if one]
    slow = [spec for spec in own if spec not in cheap]
    base = profile.model_copy(update={"imports": [], "seeds": profile.seeds[:1]})
    wanted = [{"methods": cheap, "shots": [0]}, {"methods": slow, "shots": [0, *few]}]
    return tuple(base.model_copy(update=one) for one in wanted)


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
    tested = [*(one.assign(split="train") for one in drawn), moved[datasets.COLUMNS].assign(mask="")]
    results = run.run(profile, table=pd.concat(tested, ignore_index=True))
    facts = moved[["image", "mask", "source", "shift", "severity"]]
    scores = results.scores.drop(columns="mask").merge(facts, on="image")
    scores["name"] = tables.name_rows(scores)
    return dataclasses.replace(results, scores=scores, metrics=results.metrics.iloc[:0])


# ---------------------------------------------------------------- cells: a value for each shift, severity and unit


def auroc_changes(scores: pd.DataFrame) -> pd.DataFrame:
    """Image AUROC of each category (``auroc``), and less that of its images as they are (``change``).

    It rests on ``good`` and ``bad`` images. Categories with one class only are left out.
    """
    keys = ["name", "shift", "severity", "group", "category"]
    rows = []
    for key, part in scores.groupby(keys, sort=False):
        values = statistics.wins(part.label.to_numpy(), part.score.to_numpy())
        counts = (part.label == 0).sum(), (part.label == 1).sum()
        rows.append((*key, *counts, values.mean() if len(values) else np.nan))
    found = pd.DataFrame(rows, columns=[*keys, "good", "bad", "auroc"]).dropna()
    return _paired(found, "auroc", ["name", "category"], "change")


def score_changes(scores: pd.DataFrame, whole: pd.DataFrame) -> pd.DataFrame:
    """``drift``: how far each image's score moves, in standard deviations of all its category's scores.

    ``whole`` is the scores table of a run of all images; nan where it lacks the method, the scores do not vary, or they
    were stretched over the category, as those of single images are not.
    """
    keys = ["name", "category"]
    whole = whole[(whole.image_score != "stretched") | (whole.shots == 0)]
    spread = whole.assign(name=tables.name_rows(whole)).groupby(keys).score.std(ddof=1).rename("spread")
    scores = scores.join(spread, on=keys)
    scaled = scores.score / scores.spread.where(scores.spread > 0)
    return _paired(scores.assign(scaled=scaled), "scaled", ["name", "source"], "drift")


def _paired(found: pd.DataFrame, value: str, keys: list[str], change: str) -> pd.DataFrame:
    """The shifted rows, with the difference of a value to the row of the same keys as it is."""
    clean = found[found["shift"] == corruptions.NONE].set_index(keys)[value].rename("before")
    moved = found[found["shift"] != corruptions.NONE].join(clean, on=keys)
    return moved.assign(**{change: moved[value] - moved.before}).reset_index(drop=True)


def rankings(scores: pd.DataFrame) -> pd.DataFrame:
    """``correlation``: Spearman's of a category's scores and those before, where it has three images or more."""
    moved = _paired(scores, "score", ["name", "source"], "change")
    rows = [
        (*key, _spearman(part.score, part.before))
        for key, part in moved.groupby(["name", "shift", "severity", "category"], sort=False)
        if len(part) > 2
    ]
    return pd.DataFrame(rows, columns=["name", "shift", "severity", "category", "correlation"])


def _spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation; nan where a side is constant or not known."""
    ends = np.ptp(np.stack([first, second]), axis=1)
    return float(stats.spearmanr(first, second).statistic) if (ends > 0).all() else float("nan")


# ---------------------------------------------------------------- maps


def compare_maps(results: Results, seed: int = 0) -> pd.DataFrame:
    """Each shifted image's maps against those before: ``correlation``, and pixel AUROC inside it ``pixel_auroc``.

    ``correlation`` is Spearman's over the patches, the map before moved along with the image (patches that came in
    from outside left out). ``pixel_change`` is that less the image's own before. nan where there is no mask, or a map
    is flat. ``seed`` is that of the shifts.
    """
    scores = results.scores
    clean, rows, masks = {}, [], {}
    for row, tiles in zip(scores.itertuples(), results.kept(scores), strict=True):
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
        moved = corruptions.affine_matrix(row.shift, row.severity, row.source, seed)
        alike = _alike(before, grid, moved, (row.width, row.height))
        facts = row.name, row.shift, row.severity, row.category, row.source
        rows.append((*facts, alike, inside, inside - value))
    columns = ["name", "shift", "severity", "category", "source", "correlation", "pixel_auroc", "pixel_change"]
    return pd.DataFrame(rows, columns=columns)


def _alike(before: np.ndarray, after: np.ndarray, moved: np.ndarray | None, size: tuple[int, int]) -> float:
    """Rank correlation of two maps (h, w), the first moved by a matrix as the image of ``size`` was."""
    if moved is None:
        return _spearman(before.ravel(), after.ravel())
    shown = corruptions.warp_pixels(np.ones_like(before), moved, size, Image.Resampling.BILINEAR, mirror=False) > 0.5
    placed = corruptions.warp_pixels(before, moved, size, Image.Resampling.BILINEAR)
    return _spearman(placed[shown], after[shown])


# ---------------------------------------------------------------- means of cells


CELLS = ["name", "shift", "severity", "category", "source", "label", "image", "correlation"]
CHANGES = ["change", "drift", "pixel_change"]


def measure_changes(parts: Sequence[Results], whole: pd.DataFrame, seed: int = 0) -> tuple[pd.DataFrame, ...]:
    """``auroc_changes``, ``score_changes``, ``rankings`` and ``compare_maps`` of sweeps.

    Scores are read off the first sweep of a method; empty without sweeps. ``whole``: see ``score_changes``.
    """
    if not parts:
        return (pd.DataFrame(columns=[*CELLS, *CHANGES]),) * 4
    scores = pd.concat([part.scores for part in parts]).drop_duplicates(["name", "source", "shift", "severity"])
    maps = pd.concat([compare_maps(part, seed) for part in parts], ignore_index=True)
    return auroc_changes(scores), score_changes(scores, whole), rankings(scores), maps


def summarise(cells: pd.DataFrame, value: str, unit: str, keys: Sequence[str] = ("name", "shift")) -> pd.DataFrame:
    """Means of a value and their 95 % intervals over *n* units, categories or images, each first averaged itself.

    With a row ``ALL`` for all shifts together, unless severities are told apart.
    """
    known = cells.dropna(subset=value)
    several = known["shift"].nunique() > 1 and "severity" not in keys
    everything = pd.concat([known, known.assign(shift=ALL)]) if several else known
    rows = []
    for key, part in everything.groupby(list(keys), sort=False):
        units = part.groupby(unit)[value].mean()
        ends = statistics.paired(units) if value == "drift" else statistics.difference(units)
        rows.append((*key, value, *ends, len(units)))
    return pd.DataFrame(rows, columns=[*keys, *COLUMNS])


def select_shared(maps: pd.DataFrame, value: str) -> pd.DataFrame:
    """The rows of ``compare_maps`` with a value, of the shifts, severities and images that every method has.

    All with a value where the methods share none.
    """
    known = maps.dropna(subset=value)
    methods = known.groupby(["shift", "severity", "source"]).name.transform("nunique")
    common = known[methods == known.name.nunique()]
    return common if len(common) else known


def select_in_place(cells: pd.DataFrame) -> pd.DataFrame:
    """The rows of shifts that leave everything where it was."""
    return cells[~cells["shift"].isin(MOVING)]


def compare_methods(cells: pd.DataFrame, value: str, unit: str) -> pd.DataFrame:
    """``summed`` of the differences of every two methods, at the shifts, severities and units both have.

    ``name`` is ``one less another``.
    """
    keys = ["shift", "severity", unit]
    wide = cells.pivot_table(index=keys, columns="name", values=value, sort=False)
    parts = [
        (wide[one] - wide[other]).dropna().rename(value).reset_index().assign(name=f"{one} less {other}")
        for one, other in combinations(dict.fromkeys(cells.name), 2)
        if {one, other} <= set(wide)
    ]
    parts = [part for part in parts if len(part)]
    return summarise(pd.concat(parts), value, unit) if parts else pd.DataFrame(columns=["name", "shift", *COLUMNS])


# ---------------------------------------------------------------- tables and sentences


def tabulate(changes: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``summarise`` for people: a row a shift, a column a method with its *n*."""
    cells = [comparison.format_difference(row.mean, row.low, row.high) for row in changes.itertuples()]
    counts = changes.groupby("name").n.agg(tables.format_range) if len(changes) else {}
    titles = [f"{name} (n = {counts[name]})" for name in changes.name]
    wide = changes[["shift"]].assign(name=titles, cell=cells).pivot(index="shift", columns="name", values="cell")
    order = [name for name in (*corruptions.CORRUPTIONS, ALL) if name in wide.index]
    return wide.reindex(order)[list(dict.fromkeys(titles))].fillna("none").reset_index().rename_axis(columns=None)


def describe_changes(auroc: pd.DataFrame, drift: pd.DataFrame, maps: pd.DataFrame) -> str:
    """What the shifts do to each method and which of two holds better, as a Markdown list.

    From ``auroc_changes``, ``score_changes`` and ``compare_maps``.
    """
    inside = select_shared(maps, "pixel_change")
    summaries = [
        ("image AUROC", "categories", summarise(auroc, "change", "category")),
        ("drift of good images", "images", summarise(drift[drift.label == 0], "drift", "source")),
        ("pixel AUROC inside an image", "images", summarise(inside, "pixel_change", "source")),
        ("image AUROC lost", "categories", compare_methods(auroc, "change", "category")),
        ("map correlation in place", "images", compare_methods(select_in_place(maps), "correlation", "source")),
    ]
    lines = [
        f"- **{name}**, {what}: {_describe_shifts(rows, noun)}"
        for what, noun, changes in summaries
        for name, rows in changes.groupby("name", sort=False)
    ]
    return "\n".join(lines) or tables.NO_AUROC


def _describe_shifts(rows: pd.DataFrame, noun: str) -> str:
    """The change over all shifts, under which single ones it is decided, and of how many it is not."""
    single, whole = rows[rows["shift"] != ALL].sort_values("mean"), rows.iloc[-1]
    verdicts = pd.Series(map(comparison.verdict, single.low, single.high), single.index, dtype=object)
    decided = "".join(
        f"; {word} under {', '.join(single['shift'][verdicts == word])}"
        for word in ("lower", "higher")
        if (verdicts == word).any()
    )
    return (
        f"{whole['shift']} {comparison.format_difference(whole['mean'], whole.low, whole.high)}, "
        f"n = {tables.format_counts(rows.n, noun)}, {comparison.verdict(whole.low, whole.high)}{decided}; "
        f"{comparison.NO_DIFFERENCE} for {(verdicts == comparison.NO_DIFFERENCE).sum()} of {len(single)} shifts, "
        f"of which chance alone would decide about {(1 - statistics.LEVEL) * len(single):.1f}."
    )
