"""Group-bys of the metrics table, and sentences made from them: no number in a report is typed by hand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown
from pandas.io.formats.style import Styler

from vlmad_lib import InputError
from vlmad_lib.evaluation import statistics
from vlmad_lib.profile import FULL, GROUPS

TITLES = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max": "image F1-max",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_f1_max": "pixel F1-max",
    "aupro": "AUPRO",
    "aupimo": "AUPIMO",
}
"""The metrics of the tables, in their order."""
FEW_ALARMS = {
    "image_pauroc": "image pAUROC",
    "recall_at_1pct": "recall at 1 % false alarms",
    "recall_at_0_1pct": "recall at 0.1 % false alarms",
}
"""Image metrics at few false alarms, which take many normal images."""
MAIN = ["image_auroc", "pixel_auroc", "aupro"]
"""Those of every summary."""
SMALL = 20  # images below which a figure is shown as resting on few
UNBROKEN = re.compile(r"\(\S+ to \S+\)|n = \d+")
NO_AUROC = "No category has both normal and anomalous test images, so nothing can be ranked: scores only, no AUROC."


def count(n: int, one: str, many: str) -> str:
    """A number with its noun."""
    return f"{n} {one if n == 1 else many}"


def spanned(counts: pd.Series) -> str:
    """One count, or the smallest and the largest: ``24``, ``8 to 30``."""
    low, high = int(counts.min()), int(counts.max())
    return f"{low}" if low == high else f"{low} to {high}"


SINGULAR = {"categories": "category", "images": "image", "draws": "draw"}


def counted(counts: pd.Series, noun: str) -> str:
    """``spanned`` with its noun, a key of ``SINGULAR``: ``1 category``, ``2 to 3 categories``."""
    return f"{spanned(counts)} {SINGULAR[noun] if counts.max() == 1 else noun}"


def behind(values: pd.DataFrame) -> str:
    """On how many rows the means of some columns rest, for a column *n*: ``3``, or ``1 to 3`` where they differ.

    A row without a value is in no mean, as the pixel metrics of a category without masks. Columns without any value
    have no mean, so they do not count.
    """
    counts = values.count()
    return spanned(counts[counts > 0]) if counts.any() else "0"


def count_each(counts: pd.Series) -> str:
    """The counts behind some figures in their order, once where all are the same: ``12``, or ``12, 8 and 8``."""
    numbers = [f"{number:.0f}" for number in counts]
    return numbers[0] if len(set(numbers)) == 1 else f"{', '.join(numbers[:-1])} and {numbers[-1]}"


def by_name(table: pd.DataFrame) -> pd.Series:
    """One name per row of a scores or metrics table: method (unique in a run) and number of shots."""
    return table.method + ", " + table.shots.map(shots_name)


def shots_name(shots: int) -> str:
    """``zero-shot``, ``1-shot`` and so on, ``full-shot``."""
    return {0: "zero-shot", FULL: "full-shot"}.get(shots, f"{shots}-shot")


def shots_number(shots: int) -> str:
    """A number of references for people: ``all`` where it is the whole train split."""
    return "all" if shots == FULL else str(shots)


def ordered(table: pd.DataFrame) -> list[str]:
    """Categories in the one order of every table and figure: by group, then by name."""
    first = table.drop_duplicates("category")
    rank = first.group.map(_places(GROUPS))
    return list(first.assign(rank=rank).sort_values(["rank", "category"]).category)


def per_category(metrics: pd.DataFrame, columns: list[str] | None = None) -> pd.DataFrame:
    """Metrics by (name) and category, averaged over reference draws; nan where a metric has no value."""
    columns = columns or list(TITLES)
    named = metrics.assign(name=by_name(metrics))
    found = named.groupby(["name", "group", "category"], sort=False)[columns].mean().reset_index()
    places = _places(ordered(metrics))
    found = found.sort_values("category", key=lambda values: values.map(places), kind="stable")
    names = _places(named.name)
    return found.sort_values("name", key=lambda values: values.map(names), kind="stable", ignore_index=True)


def _places(names: Iterable[str]) -> dict[str, int]:
    return {name: place for place, name in enumerate(dict.fromkeys(names))}


def by_group(metrics: pd.DataFrame, columns: list[str] | None = None) -> pd.DataFrame:
    """Macro means over the categories of each group, then of all; ``n`` is what ``behind`` says of them."""
    columns = columns or list(TITLES)
    cells = per_category(metrics, columns)
    parts = pd.concat([cells, cells.assign(group="all")], ignore_index=True).groupby(["name", "group"], sort=False)
    counts = pd.Series({key: behind(rows[columns]) for key, rows in parts}, name="n")
    found = parts[columns].mean().reset_index()
    found["n"] = [counts[key] for key in zip(found.name, found.group, strict=True)]
    places = _places(cells.name) | _places([*GROUPS, "all"])
    return found.sort_values(["name", "group"], key=lambda values: values.map(places), ignore_index=True)


def consistency(metrics: pd.DataFrame, column: str = "image_auroc") -> pd.DataFrame:
    """Spread over categories by name: mean, standard deviation, worst and best category with their values."""
    rows = []
    for name, part in per_category(metrics, [column]).dropna().groupby("name", sort=False):
        worst, best = part.loc[part[column].idxmin()], part.loc[part[column].idxmax()]
        rows.append(
            {
                "name": name,
                "categories": len(part),
                "mean": part[column].mean(),
                "standard deviation": part[column].std(ddof=1),
                "worst": f"{worst.category} ({worst[column]:.3f})",
                "best": f"{best.category} ({best[column]:.3f})",
            }
        )
    return pd.DataFrame(rows)


NOT_RUN = "- Not run here (n = 0), so there is nothing to see."
NO_ROWS = "There is nothing here to put into this table."


def table(found: pd.DataFrame, digits: int = 3, without: str = NO_ROWS) -> Styler | Markdown:
    """A frame for display: the metrics' titles, ``digits`` decimals, no row numbers.

    A frame without rows is the sentence ``without``. Columns without any value are left out and named in the caption.
    """
    if not len(found):
        return Markdown(without)
    if "shots" in found:
        found = found.assign(shots=found.shots.map(shots_number))
    blank = [name for name in found if found[name].isna().all()]
    found = found.drop(columns=blank)
    styled = (
        found.rename(columns=TITLES | FEW_ALARMS)
        .map(_unbroken)
        .style.format(precision=digits, na_rep="none", escape="html")
    )
    styled = styled.format_index(_unbroken, escape="html", axis="columns").hide(axis="index")
    named = ", ".join((TITLES | FEW_ALARMS).get(name, str(name)) for name in blank)
    return styled.set_caption(escape(f"No row has a value for: {named}.")) if blank else styled


def _unbroken(value: Any) -> Any:
    """A value; a text as one in which no line ends within an interval, nor between *n* and its number."""
    if not isinstance(value, str):
        return value
    return UNBROKEN.sub(lambda part: part[0].replace(" ", "\N{NO-BREAK SPACE}"), value)


# ---------------------------------------------------------------- sentences


def category_findings(metrics: pd.DataFrame) -> str:
    """What the table by category says, as a Markdown list; every sentence states its n."""
    metrics = metrics.dropna(subset="image_auroc")
    if metrics.empty:
        return NO_AUROC
    lines, told = [], set()
    cells = per_category(metrics)
    methods = metrics.assign(name=by_name(metrics)).drop_duplicates("name").set_index("name").method
    for name, part in cells.groupby("name", sort=False):
        lines.append(f"- **{name}**: macro mean {_means(part)}.")
        if methods[name] not in told:  # references change the order of the groups little: once a method
            told.add(methods[name])
            lines[-1] += _groups_told(part)
    certain = chance_findings(metrics)
    return "\n".join([*lines, f"- {certain}"] if certain else lines)


def _means(part: pd.DataFrame) -> str:
    """The macro means of rows of ``per_category`` with intervals over categories and n, once if it is the same."""
    counts = part[MAIN].count()
    known = [column for column in MAIN if counts[column]]
    alike = counts[known].nunique() == 1
    told = []
    for name in known:
        n = "" if alike else f"n = {categories(counts[name])}"
        inside = "; ".join(filter(None, [over_categories(part[name]), n]))
        told.append(f"{TITLES[name]} {part[name].mean():.3f}" + (f" ({inside})" if inside else ""))
    return ", ".join(told) + (f" over {categories(counts[known[0]])}" if alike else "")


def over_categories(values: pd.Series) -> str:
    """Student's 95 % interval of a mean over categories, within [0, 1]: ``0.701 to 0.895``; empty of one category."""
    _, low, high = statistics.paired(values.dropna())
    return f"{max(low, 0):.3f} to {min(high, 1):.3f}" if np.isfinite(low) else ""


def categories(n: int) -> str:
    """``1 category``, ``2 categories``."""
    return count(n, "category", "categories")


def _groups_told(part: pd.DataFrame) -> str:
    """By image AUROC the highest and the lowest group of rows of ``per_category``, and whether they are told apart.

    Both were picked by their means, so the interval is Welch's at 95 % for all pairs of groups together (Bonferroni).
    """
    groups = {group: rows.image_auroc.dropna() for group, rows in part.groupby("group", sort=False)}
    means = pd.Series({group: values.mean() for group, values in groups.items() if len(values)}).sort_values()
    if len(means) < 2:
        return ""
    low, high, pairs = means.index[0], means.index[-1], len(means) * (len(means) - 1) // 2
    ends = _welch(groups[high], groups[low], statistics.together(pairs))
    verdict = "not decided" if ends[0] <= 0 <= ends[1] else "told apart"
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


def chance_findings(metrics: pd.DataFrame) -> str:
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


def data_findings(test: pd.DataFrame, areas: pd.Series) -> str:
    """What the test images and their defects' areas (shares of the image) mean for the metrics, as a Markdown list."""
    share = test.label.mean()
    lines = [
        f"- {count(len(test), 'test image', 'test images')} in {categories(test.category.nunique())}, {share:.0%} of "
        f"them anomalous: calling everything anomalous already has an average precision of {share:.2f}, so read AP "
        "against that."
    ]
    if len(areas):
        small = (areas < 1 / 225).mean()
        n = count(len(areas), "mask", "masks")
        lines.append(
            f"- The median defect covers {areas.median():.2%} of its image (n = {n}); {small:.0%} cover less than "
            "one patch token of a 15 x 15 grid."
        )
    counts = test[test.label == 1].groupby(["category", "defect"]).size()
    if len(counts):
        has, each = ("has", "") if len(counts) == 1 else ("have", f" each (median {counts.median():.0f})")
        noun = "image" if counts.max() == 1 else "images"
        lines.append(
            f"- {count(len(counts), 'defect type', 'defect types')} {has} {spanned(counts)} {noun}{each}: a figure for "
            "a single type rests on few images."
        )
    return "\n".join(lines)


def shot_findings(metrics: pd.DataFrame) -> str:
    """What references change in the macro image AUROC, as a Markdown list, one line a method."""
    metrics = metrics.dropna(subset="image_auroc")
    if metrics.empty:
        return NO_AUROC
    draws = metrics.groupby(["method", "shots", "seed"]).image_auroc.mean()
    lines = []
    for method in draws.index.unique("method"):
        means, counts = draws[method].groupby("shots").mean(), draws[method].groupby("shots").size()
        low, high = means.index.min(), means.index.max()
        sentence = f"**{method}**: macro image AUROC {means[low]:.3f} {shots_name(low)}"
        if low == high:
            lines.append(f"- {sentence}; no other number of references was run.")
            continue
        spread = draws[method][high].std(ddof=1) if counts[high] > 1 else float("nan")
        told = f", standard deviation {spread:.3f} over {counts[high]} draws" if counts[high] > 1 else ", one draw"
        sentence += f", {means[high]:.3f} {shots_name(high)} ({means[high] - means[low]:+.3f}{told})."
        gains = metrics[metrics.method == method].pivot_table(index="category", columns="shots", values="image_auroc")
        better = int((gains[high] > gains[low]).sum())
        lines.append(f"- {sentence} References help in {better} of {categories(len(gains))}.")
    return "\n".join(lines)


def temperature_note(scores: pd.DataFrame, backbones: Sequence[dict]) -> str:
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


def against(metrics: pd.DataFrame, base: str, column: str = "pixel_auroc") -> pd.DataFrame:
    """Macro means by method, and the paired difference of ``column`` to the method ``base`` over *n* categories.

    ``low`` and ``high`` are the ends of its interval (``statistics.difference``), at 95 % for all methods together
    (Bonferroni); nan for the base itself.
    """
    cells = metrics.groupby(["method", "category"], sort=False)[MAIN].mean()
    level, rows = statistics.together(max(metrics.method.nunique() - 1, 1)), []
    for method, part in cells.groupby("method", sort=False):
        row = {"method": method, "n": int(part[column].count())} | part.mean().to_dict()
        if method != base:
            apart = (part.loc[method][column] - cells.loc[base][column]).dropna()
            found = statistics.difference(apart, level)
            row |= dict(zip(("difference", "low", "high"), found, strict=True), n=len(apart))
        rows.append(row)
    return pd.DataFrame(rows, columns=["method", "n", *MAIN, "difference", "low", "high"])


def against_findings(compared: pd.DataFrame, base: str, column: str = "pixel_auroc") -> str:
    """Which changes of ``against`` cost or gain, and which the categories cannot decide, as a Markdown list."""
    reference, others = compared.set_index("method").loc[base], compared[compared.method != base]
    lines = [f"- **{base}**: {TITLES[column]} {reference[column]:.3f} (n = {categories(int(reference.n))})."]
    together = f", 95 % for all {len(others)} together" if len(others) > 1 else ""
    for row in others.itertuples():
        verdict = "lower" if row.high < 0 else "higher" if row.low > 0 else "not decided"
        interval = f"{row.low:+.3f} to {row.high:+.3f}{together}, n = {row.n}"
        lines.append(f"- **{row.method}**: {getattr(row, column):.3f}, {row.difference:+.3f} ({interval}): {verdict}.")
    return "\n".join(lines)


def spread(metrics: pd.DataFrame) -> pd.DataFrame:
    """``consistency`` of every metric that has values, with the range between the worst and the best category."""
    parts = []
    for column, title in TITLES.items():
        if metrics[column].notna().any():
            values = per_category(metrics, [column]).dropna().groupby("name", sort=False)[column]
            found = consistency(metrics, column)
            found.insert(1, "metric", title)
            found.insert(5, "range", (values.max() - values.min()).to_numpy())
            parts.append(found)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["name", "metric"])


def titled(found: pd.DataFrame) -> pd.DataFrame:
    """A long table with the metrics' titles in its column ``metric``."""
    return found.assign(metric=found.metric.map(TITLES))


def shots_run(scores: pd.DataFrame, shots: int) -> int:
    """A number of references that was run: that which is asked for, or the smallest where zero-shot was not run.

    InputError for any other that was not.
    """
    known = sorted(scores.shots.unique())
    if shots in known:
        return shots
    if shots:
        told = ", ".join(map(shots_number, known))
        raise InputError(f"'shots' is {shots}, which was not run; choose one of {told}, or add it to the profile.")
    return int(known[0])


def first_draws(scores: pd.DataFrame, shots: int = 0) -> pd.DataFrame:
    """The rows of a scores table at a number of shots, of each method's first reference draw."""
    chosen = scores[scores.shots == shots]
    return chosen[chosen.seed == chosen.groupby("method").seed.transform("min")]


def apart(scores: pd.DataFrame, shots: int = 0) -> pd.DataFrame:
    """Every two methods at a number of shots: difference of their macro image AUROC, paired by image, and its interval.

    The interval speaks of other images of the same categories and holds at 95 % for all pairs together (Bonferroni).
    ``better in`` and ``worse in`` count the categories that DeLong's test tells apart at 5 %, Holm's correction over
    the *n* categories of all pairs; first reference draw.
    """
    rows, tests, chosen = [], [], first_draws(scores, shots)
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


def apart_by_pixel(metrics: pd.DataFrame, shots: int = 0) -> pd.DataFrame:
    """Every two methods at a number of shots, by pixel AUROC and AUPRO: the paired difference over *n* categories.

    Intervals hold at 95 % for all pairs and both measures together (Bonferroni); nan where one category has values.
    """
    rows, chosen = [], metrics[metrics.shots == shots]
    cells = chosen.groupby(["method", "category"], sort=False)[MAIN[1:]].mean()
    pairs = list(combinations(dict.fromkeys(chosen.method), 2))
    level = statistics.together(max(len(pairs) * len(MAIN[1:]), 1))
    for one, other in pairs:
        for column in MAIN[1:]:
            values = (cells.loc[one][column] - cells.loc[other][column]).dropna()
            ends = statistics.difference(values, level) if len(values) > 1 else (values.mean(), np.nan, np.nan)
            facts = {"method": one, "against": other, "metric": column}
            rows.append(facts | dict(zip(("difference", "low", "high"), ends, strict=True)) | {"n": len(values)})
    table = pd.DataFrame(rows, columns=["method", "against", "metric", "difference", "low", "high", "n"])
    return table[table.n > 0].astype({"n": int})


def apart_by_pixel_findings(found: pd.DataFrame) -> str:
    """Which of two methods localises better, as a Markdown list; empty with one method, or without masks."""
    together = f", 95 % for all {len(found)} together" if len(found) > 1 else ""
    lines = []
    for row in found.itertuples():
        known = f" ({row.low:+.3f} to {row.high:+.3f}{together}), {_verdict(row)}"
        known = known if row.n > 1 else " (notebook 17 compares one product picture by picture)"
        lines.append(
            f"- **{row.method}** against **{row.against}**, {TITLES[row.metric]}: {row.difference:+.3f}{known}; "
            f"n = {categories(row.n)}."
        )
    return "\n".join(lines)


def _verdict(row) -> str:
    return "ahead" if row.low > 0 else "behind" if row.high < 0 else "not decided"


def apart_findings(found: pd.DataFrame) -> str:
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
