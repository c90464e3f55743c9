"""Paired differences between methods: computed, corrected for their number, formatted and put into sentences."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from vlmad_lib import tables
from vlmad_lib.evaluation import statistics


def verdict(low: float, high: float) -> str:
    """``higher``, ``lower`` or ``not decided``: what an interval of a difference says."""
    return "higher" if low > 0 else "lower" if high < 0 else "not decided"


def format_difference(mean: float, low: float, high: float) -> str:
    """A difference and its interval for people: ``+0.012 (-0.003 to +0.027)``, or ``none`` where it is unknown.

    Differences that are all zero have no interval: that these are the same says little of others. Nor has a single
    one, of which the ends are nan, infinite or all that is possible.
    """
    if np.isnan(mean):
        return "none"
    if not (low > -1 or high < 1):
        return f"{mean:+.3f} (too few for an interval)"
    return f"{mean:+.3f} (the same in each)" if low == high == 0 else f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def compare_with_base(metrics: pd.DataFrame, base: str, column: str = "pixel_auroc") -> pd.DataFrame:
    """Macro means by method, and the paired difference of ``column`` to the method ``base`` over *n* categories.

    ``low`` and ``high`` are the ends of its interval (``statistics.difference``), at 95 % for all methods together
    (Bonferroni); nan for the base itself.
    """
    cells = metrics.groupby(["method", "category"], sort=False)[tables.MAIN].mean()
    level, rows = statistics.together(max(metrics.method.nunique() - 1, 1)), []
    for method, part in cells.groupby("method", sort=False):
        row = {"method": method, "n": int(part[column].count())} | part.mean().to_dict()
        if method != base:
            apart = (part.loc[method][column] - cells.loc[base][column]).dropna()
            found = statistics.difference(apart, level)
            row |= dict(zip(("difference", "low", "high"), found, strict=True), n=len(apart))
        rows.append(row)
    return pd.DataFrame(rows, columns=["method", "n", *tables.MAIN, "difference", "low", "high"])


def describe_comparison(compared: pd.DataFrame, base: str, column: str = "pixel_auroc") -> str:
    """Which changes of ``against`` cost or gain, and which the categories cannot decide, as a Markdown list."""
    reference, others = compared.set_index("method").loc[base], compared[compared.method != base]
    lines = [
        f"- **{base}**: {tables.TITLES[column]} {reference[column]:.3f} (n = "
        f"{tables.format_categories(int(reference.n))})."
    ]
    together = f", 95 % for all {len(others)} together" if len(others) > 1 else ""
    for row in others.itertuples():
        verdict = "lower" if row.high < 0 else "higher" if row.low > 0 else "not decided"
        interval = f"{row.low:+.3f} to {row.high:+.3f}{together}, n = {row.n}"
        lines.append(f"- **{row.method}**: {getattr(row, column):.3f}, {row.difference:+.3f} ({interval}): {verdict}.")
    return "\n".join(lines)


def compare_images_of_all_pairs(scores: pd.DataFrame, shots: int = 0) -> pd.DataFrame:
    """Every two methods at a number of shots: difference of their macro image AUROC, paired by image, and its interval.

    The interval speaks of other images of the same categories and holds at 95 % for all pairs together (Bonferroni).
    ``better in`` and ``worse in`` count the categories that DeLong's test tells apart at 5 %, Holm's correction over
    the *n* categories of all pairs; first reference draw.
    """
    rows, tests, chosen = [], [], tables.select_first_draw(scores, shots)
    pairs = list(combinations(dict.fromkeys(chosen.method), 2))
    level = statistics.together(max(len(pairs), 1))
    for one, other in pairs:
        first, second = (chosen[chosen.method == name] for name in (one, other))
        shared = first.merge(second[["image", "score"]], on="image", suffixes=("", "_other"))
        both = shared.groupby("category").filter(lambda part: part.label.nunique() == 2)
        tests.append(
            [
                statistics.delong(part.label.to_numpy(), part.score.to_numpy(), part.score_other.to_numpy())
                for _, part in both.groupby("category")
            ]
        )
        ends = statistics.macro_difference(first, second, statistics.resamples_at(level), level=level)
        rows.append({"method": one, "against": other} | dict(zip(("difference", "low", "high"), ends, strict=True)))
    decided = iter(statistics.holm([p for pair in tests for *_, p in pair]))
    for row, pair in zip(rows, tests, strict=True):
        signs = [difference * next(decided) for difference, *_ in pair]
        row |= {"better in": sum(sign > 0 for sign in signs), "worse in": sum(sign < 0 for sign in signs)}
        row["n"] = len(pair)
    return pd.DataFrame(rows, columns=["method", "against", "difference", "low", "high", "better in", "worse in", "n"])


def compare_pixels_of_all_pairs(metrics: pd.DataFrame, shots: int = 0) -> pd.DataFrame:
    """Every two methods at a number of shots, by pixel AUROC and AUPRO: the paired difference over *n* categories.

    Intervals hold at 95 % for all pairs and both measures together (Bonferroni); nan where one category has values.
    """
    rows, chosen = [], metrics[metrics.shots == shots]
    cells = chosen.groupby(["method", "category"], sort=False)[tables.MAIN[1:]].mean()
    pairs = list(combinations(dict.fromkeys(chosen.method), 2))
    level = statistics.together(max(len(pairs) * len(tables.MAIN[1:]), 1))
    for one, other in pairs:
        for column in tables.MAIN[1:]:
            values = (cells.loc[one][column] - cells.loc[other][column]).dropna()
            ends = statistics.difference(values, level) if len(values) > 1 else (values.mean(), np.nan, np.nan)
            facts = {"method": one, "against": other, "metric": column}
            rows.append(facts | dict(zip(("difference", "low", "high"), ends, strict=True)) | {"n": len(values)})
    table = pd.DataFrame(rows, columns=["method", "against", "metric", "difference", "low", "high", "n"])
    return table[table.n > 0].astype({"n": int})


def describe_pixel_pairs(found: pd.DataFrame) -> str:
    """Which of two methods localises better, as a Markdown list; empty with one method, or without masks."""
    together = f", 95 % for all {len(found)} together" if len(found) > 1 else ""
    lines = []
    for row in found.itertuples():
        known = f" ({row.low:+.3f} to {row.high:+.3f}{together}), {_verdict(row)}"
        known = known if row.n > 1 else " (notebook 17 compares one product picture by picture)"
        lines.append(
            f"- **{row.method}** against **{row.against}**, {tables.TITLES[row.metric]}: {row.difference:+.3f}{known}; "
            f"n = {tables.format_categories(row.n)}."
        )
    return "\n".join(lines)


def _verdict(row) -> str:
    return "ahead" if row.low > 0 else "behind" if row.high < 0 else "not decided"


def describe_image_pairs(found: pd.DataFrame) -> str:
    """Whether two methods can be told apart, as a Markdown list; empty with one method."""
    together = f", 95 % for all {len(found)} pairs together" if len(found) > 1 else ""
    lines = []
    for row in found.dropna(subset="difference").itertuples():
        lines.append(
            f"- **{row.method}** against **{row.against}**, image AUROC: {row.difference:+.3f} ({row.low:+.3f} to "
            f"{row.high:+.3f}{together}), {_verdict(row)} on other images of these categories; category by category "
            f"better in {row[6]}, worse in {row[7]} of n = {row.n}."
        )
    return "\n".join(lines)
