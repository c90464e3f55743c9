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
    name for name, one in corruptions.SHIFTS.items() if one.matrix
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
    scored one by one (``methods.alone``): how far other shifts move other pictures is no part of a score.
    """
    few = sorted(shots for shots in profile.shots if 0 < shots < FULL)[:1]
    own = [methods.alone(spec) for spec in profile.methods]
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
    if not profile.methods or rows.empty or not run.variants(profile):
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


def in_place(cells: pd.DataFrame) -> pd.DataFrame:
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


def table(found: pd.DataFrame) -> pd.DataFrame:
    """``summed`` for people: a row a shift, a column a method with its *n*."""
    told = [comparison.format_difference(row.mean, row.low, row.high) for row in found.itertuples()]
    counts = found.groupby("name").n.agg(tables.format_range) if len(found) else {}
    named = [f"{name} (n = {counts[name]})" for name in found.name]
    rows = found[["shift"]].assign(name=named, told=told)
    wide = rows.pivot(index="shift", columns="name", values="told")
    order = [one for one in (*corruptions.SHIFTS, ALL) if one in wide.index]
    return wide.reindex(order)[list(dict.fromkeys(named))].fillna("none").reset_index().rename_axis(columns=None)


def rests(auroc: pd.DataFrame) -> str:
    """On how many images a category's AUROC rests, from ``auroc_changes``; empty where there is none."""
    if auroc.empty:
        return ""
    good, bad = tables.format_range(auroc.good), tables.format_range(auroc.bad)
    noun = tables.format_counts(auroc.bad, "images").rpartition(" ")[2]
    return f"Each category's image AUROC rests on {good} good and {bad} defective {noun}."


def describe_changes(auroc: pd.DataFrame, drift: pd.DataFrame, maps: pd.DataFrame) -> str:
    """What the shifts do, as a Markdown list, from ``auroc_changes``, ``score_changes`` and ``compare_maps``."""
    lines = list(filter(None, [rests(auroc)]))
    alike, inside = (select_shared(maps, value) for value in ("correlation", "pixel_change"))
    for value, unit, cells, what in (
        ("change", "category", auroc, "image AUROC"),
        ("pixel_change", "source", inside, "pixel AUROC inside an image"),
    ):
        for name, part in summarise(cells, value, unit).groupby("name", sort=False):
            noun = "categories" if unit == "category" else "images"
            lines.append(f"**{name}**, {what}, {_severities(cells, name)}: {_lost(part, noun)}")
    for name, part in summarise(drift[drift.label == 0], "drift", "source").groupby("name", sort=False):
        lines.append(f"**{name}**, scores of good images: {_drifting(part)}")
    for name, part in summarise(alike, "correlation", "source").groupby("name", sort=False):
        least = part[part["shift"] != ALL].sort_values("mean").iloc[0]
        whole = part.iloc[-1]
        lines.append(
            f"**{name}**, maps, {_severities(alike, name)}: rank correlation with the maps before {_plain(whole)} over "
            f"{whole['shift']}, least under {least['shift']} ({_plain(least)}), "
            f"n = {tables.format_count(int(least.n), 'image', 'images')}."
        )
    for value, unit, cells, what, noun in (
        ("change", "category", auroc, "image AUROC lost", "categories"),
        ("correlation", "source", in_place(maps), f"map correlation without {' and '.join(MOVING)}", "images"),
        ("pixel_change", "source", maps, "pixel AUROC lost inside an image", "images"),
    ):
        lines += [
            _holding(part, name, what, noun) for name, part in compare_methods(cells, value, unit).groupby("name")
        ]
    return "\n".join(f"- {line}" for line in lines) or tables.NO_AUROC


def _severities(cells: pd.DataFrame, name: str) -> str:
    """At which severities a method is known: ``severity 3``, ``severities 1, 3, 5``."""
    known = sorted(cells[cells.name == name].severity.unique())
    return f"{'severity' if len(known) == 1 else 'severities'} {', '.join(map(str, known))}"


def _plain(row: pd.Series) -> str:
    return f"{row['mean']:.2f} ({row.low:.2f} to {row.high:.2f})"


def _told(row: pd.Series) -> str:
    return f"{row['shift']} {comparison.format_difference(row['mean'], row.low, row.high)}"


def _split(part: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The single shifts whose intervals lie below zero, and above it, and those that are not decided."""
    single = part[part["shift"] != ALL].sort_values("mean")
    said = [comparison.verdict(row.low, row.high) for _, row in single.iterrows()]
    return tuple(single[[one == word for one in said]] for word in ("lower", "higher", "not decided"))


def _undecided(part: pd.DataFrame, rest: pd.DataFrame) -> str:
    """How many single shifts are not decided, and how many would be by chance."""
    count = (part["shift"] != ALL).sum()
    chance = (1 - statistics.LEVEL) * count
    return f"not decided for {len(rest)} of {count} shifts, of which chance alone would decide about {chance:.1f}"


def _lost(part: pd.DataFrame, noun: str) -> str:
    """Which shifts cost, and how much all of them do."""
    lower, higher, rest = _split(part)
    whole, n = part.iloc[-1], f"n = {tables.format_counts(part.n, noun)}"
    worst = part[part["shift"] != ALL].sort_values("mean").iloc[0]
    told = f"{_told(whole)}, {n}, {comparison.verdict(whole.low, whole.high)}; "
    told += f"lower under {', '.join(lower['shift'])}" if len(lower) else "lower under no shift that is decided"
    told += f"; higher under {', '.join(higher['shift'])}" if len(higher) else ""
    return f"{told}; {_undecided(part, rest)}. Most under {_told(worst)}."


def _drifting(part: pd.DataFrame) -> str:
    """Under which shifts a threshold would reject more good parts, or miss more."""
    lower, higher, rest = _split(part)
    told = [
        f"{word} under {', '.join(f'{row.shift} ({row.mean:+.1f} standard deviations)' for row in rows.itertuples())}"
        for word, rows in (("higher", higher.iloc[::-1]), ("lower", lower))
        if len(rows)
    ]
    told = "; ".join(told) or "no shift decides which way"
    return (
        f"{told}; {_undecided(part, rest)}. Where they rise, a threshold set before rejects more good parts "
        f"(n = {tables.format_counts(part.n, 'images')})."
    )


def _holding(part: pd.DataFrame, name: str, what: str, noun: str) -> str:
    """Which of two methods holds, over all shifts and by shift."""
    one, _, other = name.partition(" less ")
    lower, higher, rest = _split(part)
    whole = part.iloc[-1]
    verdict = {"higher": f"{one} holds better", "lower": f"{other} holds better"}
    decided = verdict.get(comparison.verdict(whole.low, whole.high), "not decided")
    told = f"**{name}**, {what}: {_told(whole)}, n = {tables.format_counts(part.n, noun)}: {decided}"
    for winner, rows in ((one, higher), (other, lower)):
        told += f"; {winner} under {', '.join(rows['shift'])}" if len(rows) else ""
    return f"{told}; {_undecided(part, rest)}."
