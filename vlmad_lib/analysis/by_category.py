"""Groups of categories against each other, and what the temperatures of a run mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from vlmad_lib.evaluation import statistics


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


def explain_temperature(scores: pd.DataFrame, backbones: Sequence[dict]) -> str:
    """A paragraph on temperatures where a backbone's factor multiplies them; empty where all are as published.

    ``backbones`` are those of the run's facts, ``scores`` its table, which has the temperatures used.
    """
    factors = {facts["name"]: facts.get("temperature_factor", 1) for facts in backbones}
    factors = ", ".join(f"`{Path(name).name}` ({factor:g})" for name, factor in factors.items() if factor != 1)
    if not factors:
        return ""
    used = scores[scores.temperature != ""].groupby("method", sort=False).temperature.first().astype(float)
    named = ", ".join(f"{name} {value:g}" for name, value in used.items())
    return (
        "**Temperatures are not the published ones here**: they are multiplied by the factor of the backbone, "
        f"{factors}, whose cosines spread wider than those of the CLIPs that the methods were published with. At the "
        "published temperatures many scores would lie near 0 or 1, and words would swamp the references. The factor "
        f"was chosen on categories that are not tested here. In use: {named}."
    )
