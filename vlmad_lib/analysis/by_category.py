"""Results by category and by group of categories, and what the tables say in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from vlmad_lib import tables
from vlmad_lib.evaluation import statistics


def describe_categories(metrics: pd.DataFrame) -> str:
    """What the table by category says, as a Markdown list; every sentence states its n."""
    metrics = metrics.dropna(subset="image_auroc")
    if metrics.empty:
        return tables.NO_AUROC
    lines, told = [], set()
    cells = tables.average_by_category(metrics)
    methods = metrics.assign(name=tables.name_rows(metrics)).drop_duplicates("name").set_index("name").method
    for name, part in cells.groupby("name", sort=False):
        lines.append(f"- **{name}**: macro mean {_means(part)}.")
        if methods[name] not in told:  # references change the order of the groups little: once a method
            told.add(methods[name])
            lines[-1] += _compare_groups(part)
    certain = describe_chance(metrics)
    return "\n".join([*lines, f"- {certain}"] if certain else lines)


def _means(part: pd.DataFrame) -> str:
    """The macro means of rows of ``per_category`` with intervals over categories and n, once if it is the same."""
    counts = part[tables.MAIN].count()
    known = [column for column in tables.MAIN if counts[column]]
    alike = counts[known].nunique() == 1
    told = []
    for name in known:
        n = "" if alike else f"n = {tables.format_categories(counts[name])}"
        inside = "; ".join(filter(None, [statistics.format_category_interval(part[name]), n]))
        told.append(f"{tables.TITLES[name]} {part[name].mean():.3f}" + (f" ({inside})" if inside else ""))
    return ", ".join(told) + (f" over {tables.format_categories(counts[known[0]])}" if alike else "")


def _compare_groups(part: pd.DataFrame) -> str:
    """By image AUROC the highest and the lowest group of rows of ``per_category``, and whether they are told apart.

    Both were picked by their means, so the interval is Welch's at 95 % for all pairs of groups together (Bonferroni).
    """
    groups = {group: rows.image_auroc.dropna() for group, rows in part.groupby("group", sort=False)}
    means = pd.Series({group: values.mean() for group, values in groups.items() if len(values)}).sort_values()
    if len(means) < 2:
        return ""
    low, high, pairs = means.index[0], means.index[-1], len(means) * (len(means) - 1) // 2
    ends = _welch(groups[high], groups[low], statistics.together(pairs))
    verdict = "no difference shown" if ends[0] <= 0 <= ends[1] else "told apart"
    together = f", 95 % for all {pairs} pairs of groups together" if pairs > 1 else ""
    told = (
        f" By image AUROC highest on {high} categories ({means[high]:.3f}, n = {len(groups[high])}), lowest on {low} "
        f"ones ({means[low]:.3f}, n = {len(groups[low])}): {means[high] - means[low]:+.3f} "
        f"({ends[0]:+.3f} to {ends[1]:+.3f}{together}), {verdict}."
    )
    pixel = part.groupby("group").pixel_auroc.mean().dropna().sort_values()
    if len(pixel) > 1 and (pixel.index[0], pixel.index[-1]) != (low, high):
        told += f" By pixel AUROC {pixel.index[-1]} ones are highest ({pixel.iloc[-1]:.3f}) and {pixel.index[0]} ones "
        told += f"lowest ({pixel.iloc[0]:.3f})."
    return told


def _welch(first: pd.Series, second: pd.Series, level: float) -> tuple[float, float]:
    """Welch's interval of the difference of two means, within [-1, 1]; all of it where either has no spread."""
    from scipy.stats import ttest_ind

    if min(first.nunique(), second.nunique()) < 2:
        return -1.0, 1.0
    low, high = ttest_ind(first, second, equal_var=False).confidence_interval(level)
    return max(float(low), -1.0), min(float(high), 1.0)


def describe_chance(metrics: pd.DataFrame) -> str:
    """How many categories are told from chance: those whose 95 % interval of the image AUROC excludes 0.5."""
    known = metrics.dropna(subset=["image_auroc_low", "image_auroc_high"])
    zero = known[known.shots == 0]
    if zero.empty:
        return ""
    above, below = int((zero.image_auroc_low > 0.5).sum()), int((zero.image_auroc_high < 0.5).sum())
    worse = f", below it for {below}" if below else ""
    return (
        f"Zero-shot, the 95 % interval of the image AUROC lies above chance (0.5) for {above} of {len(zero)} "
        f"category results{worse}; for {len(zero) - above - below} it holds chance: too few images or too mixed scores."
    )


def describe_shots(metrics: pd.DataFrame) -> str:
    """What references change in the macro image AUROC, as a Markdown list, one line a method."""
    metrics = metrics.dropna(subset="image_auroc")
    if metrics.empty:
        return tables.NO_AUROC
    draws = metrics.groupby(["method", "shots", "seed"]).image_auroc.mean()
    lines = []
    for method in draws.index.unique("method"):
        means, counts = draws[method].groupby("shots").mean(), draws[method].groupby("shots").size()
        low, high = means.index.min(), means.index.max()
        sentence = f"**{method}**: macro image AUROC {means[low]:.3f} {tables.name_shots(low)}"
        if low == high:
            lines.append(f"- {sentence}; no other number of references was run.")
            continue
        spread = draws[method][high].std(ddof=1) if counts[high] > 1 else float("nan")
        told = f", standard deviation {spread:.3f} over {counts[high]} draws" if counts[high] > 1 else ", one draw"
        sentence += f", {means[high]:.3f} {tables.name_shots(high)} ({means[high] - means[low]:+.3f}{told})."
        gains = metrics[metrics.method == method].pivot_table(index="category", columns="shots", values="image_auroc")
        better = int((gains[high] > gains[low]).sum())
        lines.append(f"- {sentence} References help in {better} of {tables.format_categories(len(gains))}.")
    return "\n".join(lines)


def explain_temperature(scores: pd.DataFrame, backbones: Sequence[dict]) -> str:
    """What is said of temperatures where a backbone's factor multiplies them; empty where all are as published.

    ``backbones`` are those of the run's facts, ``scores`` its table, which has the temperatures used.
    """
    wide = {one["name"]: one["temperature_factor"] for one in backbones if one.get("temperature_factor", 1) != 1}
    if not wide:
        return ""
    factors = ", ".join(f"`{Path(name).name}` ({factor:g})" for name, factor in wide.items())
    used = scores[scores.temperature != ""].groupby("method", sort=False).temperature.first().astype(float)
    named = ", ".join(f"{name} {value:g}" for name, value in used.items())
    return (
        "**Temperatures are not the published ones here**: they are multiplied by the factor of the backbone, "
        f"{factors}, whose cosines spread wider than those of the CLIPs that the methods were published with. At the "
        "published temperatures many scores would lie near 0 or 1, and words would swamp the references. The factor "
        f"was chosen on categories that are not tested here. In use: {named}."
    )
