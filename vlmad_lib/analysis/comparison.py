"""Paired differences between methods: computed, corrected for their number, tabulated and put into words in one place.

A table of differences is long, one row a pair and measure, with the columns ``COLUMNS`` (others may stand before them).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
import pandas as pd

from vlmad_lib import config, tables
from vlmad_lib.evaluation import statistics

COLUMNS = ["measure", "over", "difference", "low", "high", "n"]
# A difference whose digits print as zero says nothing, however narrow its interval.
NOTHING = 0.0005


# The one phrase where an interval holds zero: these data show no difference, which is not to say that there is none.
NO_DIFFERENCE = "no difference shown"


def verdict(low: float, high: float) -> str:
    """``higher``, ``lower`` or ``NO_DIFFERENCE``: what the interval of a difference says."""
    return "higher" if low > 0 else "lower" if high < 0 else NO_DIFFERENCE


def judge_row(row) -> str:
    """The ``verdict`` of a row of differences; ``no difference shown`` where its digits print as zero."""
    return verdict(row.low, row.high) if abs(row.difference) >= NOTHING else NO_DIFFERENCE


def format_difference(mean: float, low: float, high: float) -> str:
    """A difference and its interval for people: ``+0.012 (-0.003 to +0.027)``, or ``none`` where it is unknown.

    Differences that are all zero have no interval: that these are the same says little of others. Nor has a single
    one, of which the ends are nan, infinite or all that is possible. No zero has a minus sign.
    """
    if np.isnan(mean):
        return "none"
    if not (low > -1 or high < 1):
        return f"{mean:+z.3f} (too few for an interval)"
    if low == high == 0:
        return f"{mean:+z.3f} (the same in each)"
    if max(abs(low), abs(high)) < NOTHING:
        return f"{mean:+z.3f} (less than 0.001 either way)"
    return f"{mean:+z.3f} ({low:+z.3f} to {high:+z.3f})"


def describe_difference(row, higher: str = "higher", lower: str = "lower") -> str:
    """A row of a table of differences in words: ``+0.012 (-0.003 to +0.027), n = 12 products: no difference shown``.

    ``higher`` and ``lower`` are what an interval above or below zero means for the two sides.
    """
    words = {"higher": higher, "lower": lower, NO_DIFFERENCE: NO_DIFFERENCE}
    count = tables.format_counts(pd.Series([row.n]), row.over)
    return f"{format_difference(row.difference, row.low, row.high)}, n = {count}: {words[verdict(row.low, row.high)]}"


def phrase_shots(shots: int) -> str:
    """A number of references within a sentence: ``without good pictures``, ``with 1 good picture``."""
    if shots == config.FULL:
        return "with all good pictures"
    return f"with {tables.format_count(shots, 'good picture', 'good pictures')}" if shots else "without good pictures"


def pair_differences(
    after: pd.DataFrame, before: pd.DataFrame, over: str, comparisons: int = 1, **facts: object
) -> pd.DataFrame:
    """The mean of ``after`` less ``before`` by measure, with its interval over paired units.

    Args:
        after: One row a unit (its index), one column a measure. Over draws a side with a single row stands for every
            draw, since zero-shot draws nothing; categories and images are always matched by name.
        before: The other side, likewise.
        over: What the units are: a key of ``tables.NOUNS``.
        comparisons: The intervals hold at 95 % for so many comparisons together (Bonferroni).
        facts: Columns that stand before ``COLUMNS``, the same in each row.

    Returns:
        One row a measure: the facts and ``COLUMNS``; *n* counts the units that have both sides.
    """
    if over == "draws" and (len(after) == 1 or len(before) == 1):
        sides = [side.iloc[0] if len(side) == 1 else side for side in (after, before)]
        differences = sides[0] - sides[1] if len(before) == 1 else -(sides[1] - sides[0])
        differences = differences.to_frame().T if isinstance(differences, pd.Series) else differences
    else:
        differences = after - before
    rows = []
    for measure in after.columns:
        values = differences[measure].dropna()
        mean, low, high = statistics.difference(values, statistics.together(max(comparisons, 1)))
        ends = {"difference": mean, "low": low, "high": high, "n": len(values)}
        rows.append(facts | {"measure": measure, "over": over} | ends)
    return pd.DataFrame(rows, columns=[*facts, *COLUMNS])


def pivot_differences(differences: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """A table of differences for people: a row for each of ``keys``, the measures side by side.

    A cell reads ``+0.012 (-0.003 to +0.027), no difference shown``; *n* is that of each measure where they differ.
    """
    measures = list(dict.fromkeys(differences.measure))
    if differences.empty:
        return pd.DataFrame(columns=[*keys, "n", *measures])
    cells = [
        f"{format_difference(row.difference, row.low, row.high)}, {verdict(row.low, row.high)}"
        for row in differences.itertuples()
    ]
    cells = pd.Series(cells, differences.index).where(differences.difference.notna(), "none")
    wide = differences.assign(cell=cells).pivot(index=keys, columns="measure", values="cell")[measures]
    counts = differences.groupby(keys, sort=False).n.agg(tables.format_each_count)
    wide = wide.reindex(counts.index)
    wide.insert(0, "n", counts)
    return wide.reset_index().rename_axis(columns=None)


def describe_together(count: int) -> str:
    """What an interval holds for: ``, 95 % for all 12 together``; empty for one comparison."""
    return f", 95 % for {'both' if count == 2 else f'all {count}'} together" if count > 1 else ""


def describe_verdicts(
    differences: pd.DataFrame, name: str, higher: str = "higher", lower: str = "lower", most: int = 3
) -> str:
    """The clauses of one sentence on a table of differences; empty where none is known.

    Such as ``higher for A (+0.101, +0.020 to +0.182) and B (...), no difference shown for 3 others (n = 12 products,
    95 % for all 5 together)``. Where none of more than ``most`` rows is decided, only the largest is named.

    Args:
        differences: One row a difference, with ``COLUMNS``.
        name: The column that names a row.
        higher: What an interval above zero means; likewise ``lower`` below zero.
        most: So many rows of a verdict are named, those that differ most first; the others are counted.
    """
    measured = differences.dropna(subset="difference")
    if measured.empty:
        return ""
    verdicts, clauses = np.array([judge_row(row) for row in measured.itertuples()], object), []
    for verdict_of_rows, words in {"higher": higher, "lower": lower, NO_DIFFERENCE: NO_DIFFERENCE}.items():
        rows = measured[verdicts == verdict_of_rows].sort_values("difference", key=abs, ascending=False)
        named = [f"{row[name]} ({_give_ends(row)})" for _, row in rows.head(most).iterrows()]
        if len(rows) > most:
            named.append(f"{len(rows) - most} more")
        if verdict_of_rows == NO_DIFFERENCE and clauses and len(rows) > 1:
            named = [f"{len(rows)} others"]
        elif verdict_of_rows == NO_DIFFERENCE and len(rows) > most:
            named = [f"any of {len(rows)}, the largest being {named[0]}"]
        if named:
            clauses.append(f"{words} for {tables.join_words(named)}")
    count = tables.format_counts(measured.n, measured.over.iloc[0])
    return f"{', '.join(clauses)} (n = {count}{describe_together(len(measured))})"


def _give_ends(row: pd.Series) -> str:
    return format_difference(row.difference, row.low, row.high).replace(" (", ", ").rstrip(")")


# ---------------------------------------------------------------- methods against one of them, over categories


def compare_with_base(metrics: pd.DataFrame, base: str, column: str = "pixel_auroc") -> pd.DataFrame:
    """Macro means by method, and the paired difference of ``column`` to the method ``base`` over *n* categories.

    ``low`` and ``high`` are the ends of its interval, at 95 % for all methods together (Bonferroni); nan for the base
    itself.
    """
    cells = metrics.groupby(["method", "category"], sort=False)[tables.MAIN].mean()
    others, rows = max(metrics.method.nunique() - 1, 1), []
    for method, values in cells.groupby("method", sort=False):
        row = {"method": method, "n": int(values[column].count())} | values.mean().to_dict()
        if method != base:
            sides = (cells.loc[name][[column]] for name in (method, base))
            row |= pair_differences(*sides, "categories", others).iloc[0][["difference", "low", "high", "n"]].to_dict()
        rows.append(row)
    return pd.DataFrame(rows, columns=["method", "n", *tables.MAIN, "difference", "low", "high"])


# ---------------------------------------------------------------- every two methods


def compare_images_of_all_pairs(scores: pd.DataFrame, shots: int = 0) -> pd.DataFrame:
    """Every two methods at a number of shots: difference of their macro image AUROC, paired by image, and its interval.

    The interval speaks of other images of the same categories, *n* of these, and holds at 95 % for all pairs together
    (Bonferroni). ``better in`` and ``worse in`` count those of its ``categories`` in which DeLong's test shows a
    difference at 5 %, Holm's correction over the categories of all pairs; first reference draw.
    """
    rows, tests, chosen = [], [], tables.select_first_draw(scores, shots)
    pairs = list(combinations(dict.fromkeys(chosen.method), 2))
    level = statistics.together(max(len(pairs), 1))
    for method, against in pairs:
        first, second = (chosen[chosen.method == name] for name in (method, against))
        shared = first.merge(second[["image", "score"]], on="image", suffixes=("", "_other"))
        both = shared.groupby("category").filter(lambda images: images.label.nunique() == 2)
        tests.append(
            [
                statistics.delong(images.label.to_numpy(), images.score.to_numpy(), images.score_other.to_numpy())
                for _, images in both.groupby("category")
            ]
        )
        ends = statistics.macro_difference(first, second, statistics.resamples_at(level), level=level)
        rows.append((method, against, "image_auroc", "images", *ends, len(both)))
    table = pd.DataFrame(rows, columns=["method", "against", *COLUMNS])
    decided = iter(statistics.holm([p for pair in tests for *_, p in pair]))
    signs = [[difference * next(decided) for difference, *_ in pair] for pair in tests]
    table["better in"] = [sum(sign > 0 for sign in pair) for pair in signs]
    table["categories"] = [len(pair) for pair in tests]
    table["worse in"] = [sum(sign < 0 for sign in pair) for pair in signs]
    return table


def compare_pixels_of_all_pairs(metrics: pd.DataFrame, shots: int = 0) -> pd.DataFrame:
    """Every two methods at a number of shots, by pixel AUROC and AUPRO: the paired difference over *n* categories.

    Intervals hold at 95 % for all pairs and both measures together (Bonferroni).
    """
    chosen, measures = metrics[metrics.shots == shots], tables.MAIN[1:]
    cells = chosen.groupby(["method", "category"], sort=False)[measures].mean()
    pairs = list(combinations(dict.fromkeys(chosen.method), 2))
    frames = [pd.DataFrame(columns=["method", "against", *COLUMNS])]
    for method, against in pairs:
        facts = {"method": method, "against": against}
        sides = (cells.loc[name] for name in (method, against))
        frames.append(pair_differences(*sides, "categories", len(pairs) * len(measures), **facts))
    rows = pd.concat(frames[1:] or frames, ignore_index=True)
    return rows[rows.n > 0]


# ---------------------------------------------------------------- a method against all others, by number of references


def compare_with_others(metrics: pd.DataFrame, own: str, own_shots: int | None = None) -> pd.DataFrame:
    """The method ``own`` less each other method, by number of references.

    Both sides have the same references, unless ``own_shots`` names those of ``own``: with 0, words without references
    against references without words. Over categories, of each ``group`` and of ``all``, and over reference draws, each
    the macro mean over categories. Columns: shots, against, group and ``COLUMNS``.
    """
    frames = []
    for (shots, name), second in metrics[metrics.method != own].groupby(["shots", "method"], sort=False):
        first = metrics[(metrics.method == own) & (metrics.shots == (shots if own_shots is None else own_shots))]
        groups = [group for group in config.GROUPS if group in set(second.group)]
        facts = {"shots": shots, "against": name}
        for group in [*(groups if len(groups) > 1 else []), "all"]:
            sides = [side if group == "all" else side[side.group == group] for side in (first, second)]
            after, before = (side.groupby("category")[tables.MAIN].mean() for side in sides)
            frames.append(pair_differences(after, before, "categories", **facts, group=group))
        if shots < config.FULL:  # of all references there is a single draw
            after, before = (side.groupby("seed")[tables.MAIN].mean() for side in (first, second))
            frames.append(pair_differences(after, before, "draws", **facts, group="all"))
    if not frames:
        return pd.DataFrame(columns=["shots", "against", "group", *COLUMNS])
    return pd.concat(frames).sort_values("shots", kind="stable", ignore_index=True)


def compare_steps(
    metrics: pd.DataFrame,
    keys: Sequence[str] = ("method",),
    over: str = "draws",
    measures: Sequence[str] = ("image_auroc", "pixel_auroc"),
    together: bool = False,
    whole: bool = False,
) -> pd.DataFrame:
    """Gain from each number of references to the next, by ``keys``, paired over reference draws or over categories.

    With ``whole`` the gain from the fewest to the most follows the steps, where there is more than one.

    Over draws (seeds), macro means over categories unless ``category`` is a key; zero-shot and full-shot draw nothing
    and are the same for every draw. Over categories, each the mean of its draws. Intervals hold at 95 % each, or for
    all steps of a key and measure ``together`` (Bonferroni). Columns: the keys, step (such as "0 to 1"), fewer, more
    and ``COLUMNS``.
    """
    unit = {"draws": "seed", "categories": "category"}[over]
    cells, frames = metrics.groupby([*keys, "shots", unit], sort=False)[list(measures)].mean(), []
    for key, values in cells.groupby(list(keys), sort=False):
        values = values.droplevel(list(keys))
        counts = sorted(values.index.unique("shots"))
        steps = [*pairwise(counts), *([(counts[0], counts[-1])] if whole and len(counts) > 2 else [])]
        for fewer, more in steps:
            step = f"{tables.format_shots(fewer)} to {tables.format_shots(more)}"
            facts = dict(zip(keys, key, strict=True)) | {"step": step, "fewer": fewer, "more": more}
            count = len(steps) if together else 1
            frames.append(pair_differences(values.loc[more], values.loc[fewer], over, count, **facts))
    if not frames:
        return pd.DataFrame(columns=[*keys, "step", "fewer", "more", *COLUMNS])
    return pd.concat(frames, ignore_index=True)


# ---------------------------------------------------------------- groups of categories


def compare_groups(metrics: pd.DataFrame, column: str = "image_auroc") -> pd.DataFrame:
    """The groups of highest and of lowest mean over their categories, by method, and the difference of the two means.

    One row a method that has values in two groups or more, at its fewest references: ``highest`` and ``lowest`` name
    the groups, ``highest_mean`` and ``lowest_mean`` are their means over ``highest_n`` and ``lowest_n`` categories.
    Both were picked by these means, so the interval of their ``difference`` is Welch's at 95 % for all ``pairs`` of
    groups together (Bonferroni); (-1, 1) where a group has no spread.
    """
    cells = metrics[metrics.shots == metrics.groupby("method").shots.transform("min")]
    cells = cells.groupby(["method", "group", "category"], sort=False)[column].mean().dropna().reset_index()
    rows = []
    for method, own in cells.groupby("method", sort=False):
        values = dict(iter(own.groupby("group")[column]))
        if len(values) > 1:
            lowest, *_, highest = sorted(values, key=lambda group: values[group].mean())
            pairs = len(values) * (len(values) - 1) // 2
            low, high = _welch(values[highest], values[lowest], statistics.together(pairs))
            means = values[highest].mean(), values[lowest].mean()
            counts = len(values[highest]), len(values[lowest])
            rows.append((method, highest, lowest, *means, *counts, means[0] - means[1], low, high, pairs))
    names = [f"{end}{what}" for what in ("", "_mean", "_n") for end in ("highest", "lowest")]
    return pd.DataFrame(rows, columns=["method", *names, "difference", "low", "high", "pairs"])


def _welch(first: pd.Series, second: pd.Series, level: float) -> tuple[float, float]:
    """Welch's interval of the difference of two means, within [-1, 1]; all of it where either has no spread."""
    from scipy.stats import ttest_ind

    if min(first.nunique(), second.nunique()) < 2:
        return -1.0, 1.0
    low, high = ttest_ind(first, second, equal_var=False).confidence_interval(level)
    return max(float(low), -1.0), min(float(high), 1.0)
