"""Names, titles, order and formatting of the columns of the results tables, and their macro means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from IPython.display import Markdown
from pandas.io.formats.style import Styler

from vlmad_lib import InputError
from vlmad_lib.config import FULL, GROUPS

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
"""The titles of the metrics, in the order of the tables' columns."""
FEW_ALARMS = {
    "image_pauroc": "image pAUROC",
    "recall_at_1pct": "recall at 1 % false alarms",
    "recall_at_0_1pct": "recall at 0.1 % false alarms",
}
"""Titles of the image metrics at few false alarms, which need many normal images."""
SATURATED = {"spro": "sPRO"}
"""The title of the metric of data sets whose defects are annotated region by region."""
MAIN = ["image_auroc", "pixel_auroc", "aupro"]
"""The metrics of every summary."""
# A figure that rests on fewer images is shown as resting on few.
SMALL = 20
# No line ends within an interval, nor between *n* and its number.
UNBROKEN = re.compile(r"\(\S+ to \S+\)|[-+]\d[\d.]* to [-+]\d[\d.]*|n = \d+(?: products?\b)?")
NO_AUROC = "No product has both good and defective test images, so nothing can be ranked: scores only, no AUROC."


def format_count(n: int, singular: str, plural: str) -> str:
    """A number with its noun."""
    return f"{n} {singular if n == 1 else plural}"


def join_words(words: Sequence[str]) -> str:
    """Words as a list in a sentence: ``A``, ``A and B``, ``A, B and C``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def format_range(counts: pd.Series) -> str:
    """One count, or the smallest and the largest: ``24``, ``8 to 30``."""
    low, high = int(counts.min()), int(counts.max())
    return f"{low}" if low == high else f"{low} to {high}"


# What a count of units is called for people, one and several: a category of the data is a product of the reader's.
NOUNS = {"categories": ("product", "products"), "images": ("image", "images"), "draws": ("draw", "draws")}


def format_counts(counts: pd.Series, noun: str) -> str:
    """``format_range`` with what people call ``noun``, a key of ``NOUNS``: ``1 product``, ``2 to 3 images``."""
    return f"{format_range(counts)} {NOUNS[noun][bool(counts.max() != 1)]}"


def count_values(values: pd.DataFrame) -> str:
    """On how many rows the means of some columns rest, for a column *n*: ``3``, or ``1 to 3`` where they differ.

    A row without a value is in no mean, as the pixel metrics of a category without masks. Columns without any value
    have no mean, so they do not count.
    """
    counts = values.count()
    return format_range(counts[counts > 0]) if counts.any() else "0"


def format_each_count(counts: pd.Series) -> str:
    """The counts behind some figures in their order, once where all are the same: ``12``, or ``12, 8 and 8``."""
    numbers = [f"{number:.0f}" for number in counts]
    return numbers[0] if len(set(numbers)) == 1 else f"{', '.join(numbers[:-1])} and {numbers[-1]}"


def name_rows(table: pd.DataFrame) -> pd.Series:
    """One name per row of a scores or metrics table: method (unique in a run) and number of shots."""
    return table.method + ", " + table.shots.map(name_shots).astype(str)  # of no rows too


def name_shots(shots: int) -> str:
    """``zero-shot``, ``1-shot`` and so on, ``full-shot``."""
    return {0: "zero-shot", FULL: "full-shot"}.get(shots, f"{shots}-shot")


def format_shots(shots: int) -> str:
    """A number of references for people: ``all`` where it is the whole train split."""
    return "all" if shots == FULL else str(shots)


def order_categories(table: pd.DataFrame) -> list[str]:
    """Categories in the one order of every table and figure: by group, then by name."""
    first = table.drop_duplicates("category")
    rank = first.group.map(_places(GROUPS))
    return list(first.assign(rank=rank).sort_values(["rank", "category"]).category)


def list_metrics(metrics: pd.DataFrame) -> list[str]:
    """The metrics to show of a metrics table: those of ``TITLES``, and sPRO where some category has it."""
    return [*TITLES, *(name for name in SATURATED if name in metrics and metrics[name].notna().any())]


def average_by_category(metrics: pd.DataFrame, columns: list[str] | None = None) -> pd.DataFrame:
    """Metrics by (name) and category, averaged over reference draws; nan where a metric has no value."""
    columns = columns or list_metrics(metrics)
    named = metrics.assign(name=name_rows(metrics))
    averages = named.groupby(["name", "group", "category"], sort=False)[columns].mean().reset_index()
    places = _places(order_categories(metrics))
    averages = averages.sort_values("category", key=lambda values: values.map(places), kind="stable")
    names = _places(named.name)
    return averages.sort_values("name", key=lambda values: values.map(names), kind="stable", ignore_index=True)


def _places(names: Iterable[str]) -> dict[str, int]:
    return {name: place for place, name in enumerate(dict.fromkeys(names))}


def order_by_method(table: pd.DataFrame, methods: Iterable[str]) -> pd.DataFrame:
    """A table's rows in the order in which ``methods`` names their methods; each method's own rows keep theirs."""
    places = _places(methods)
    return table.sort_values("method", key=lambda names: names.map(places), kind="stable", ignore_index=True)


def average_by_group(metrics: pd.DataFrame, columns: list[str] | None = None) -> pd.DataFrame:
    """Macro means over the categories of each group, then of all; ``n``: their categories (``count_values``)."""
    columns = columns or list_metrics(metrics)
    cells = average_by_category(metrics, columns)
    groups = pd.concat([cells, cells.assign(group="all")], ignore_index=True).groupby(["name", "group"], sort=False)
    counts = pd.Series({key: count_values(rows[columns]) for key, rows in groups}, name="n")
    averages = groups[columns].mean().reset_index()
    averages["n"] = [counts[key] for key in zip(averages.name, averages.group, strict=True)]
    places = _places(cells.name) | _places([*GROUPS, "all"])
    return averages.sort_values(["name", "group"], key=lambda values: values.map(places), ignore_index=True)


NO_ROWS = "There is nothing here to put into this table."


def show_table(frame: pd.DataFrame, digits: int = 3, without: str = NO_ROWS) -> Styler | Markdown:
    """A frame for display: the metrics' titles, ``digits`` decimals, no row numbers.

    A frame without rows is the sentence ``without``. Columns without any value are left out and named in the caption.
    """
    if not len(frame):
        return Markdown(without)
    blank = [name for name in frame if frame[name].isna().all()]
    styled = (
        _title_columns(frame.drop(columns=blank))
        .map(_unbroken)
        .style.format(precision=digits, na_rep="none", escape="html")
    )
    styled = styled.format_index(_unbroken, escape="html", axis="columns").hide(axis="index")
    named = ", ".join((TITLES | FEW_ALARMS | SATURATED).get(name, str(name)) for name in blank)
    return styled.set_caption(escape(f"No row has a value for: {named}.")) if blank else styled


def _title_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame with the metrics' titles above its columns, and the numbers of references as people say them."""
    if "shots" in frame:
        frame = frame.assign(shots=frame.shots.map(format_shots))
    return frame.rename(columns=TITLES | FEW_ALARMS | SATURATED)


def format_table(frame: pd.DataFrame, kind: Literal["markdown", "latex"] = "markdown", digits: int = 3) -> str:
    """A frame as the text of a Markdown or LaTeX table, titled and rounded as ``show_table`` does; no row numbers.

    LaTeX needs the package booktabs. Raises InputError for another ``kind``.
    """
    frame = _title_columns(frame)
    if kind == "latex":
        styled = frame.style.format(precision=digits, na_rep="", escape="latex").hide(axis="index")
        return styled.format_index(escape="latex", axis="columns").to_latex(hrules=True)
    if kind != "markdown":
        raise InputError(f"There is no kind of table {kind!r}; write 'markdown' or 'latex'.")

    def format_cell(value: Any) -> str:
        text = f"{value:.{digits}f}" if isinstance(value, float) else str(value)
        return "" if pd.isna(value) else text.replace("|", "\\|")

    head, rows = [str(name) for name in frame], frame.astype(object).itertuples(index=False, name=None)
    lines = [head, ["---"] * len(head), *([format_cell(value) for value in row] for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _unbroken(value: Any) -> Any:
    """A value; ``keep_together`` of a text."""
    return keep_together(value) if isinstance(value, str) else value


def keep_together(text: str) -> str:
    """A text in which no line ends within an interval, nor between *n* and its number."""
    return UNBROKEN.sub(lambda match: match[0].replace(" ", "\N{NO-BREAK SPACE}"), text)


def title_metrics(table: pd.DataFrame) -> pd.DataFrame:
    """A long table with the metrics' titles in its column ``metric``."""
    return table.assign(metric=table.metric.map(TITLES))


def format_categories(n: int) -> str:
    """A number of categories for people: ``1 product``, ``2 products``."""
    return format_count(n, *NOUNS["categories"])


def choose_shots(scores: pd.DataFrame, shots: int) -> int:
    """A number of references that was run: that which is asked for, or the smallest where zero-shot was not run.

    InputError for any other that was not.
    """
    available = sorted(scores.shots.unique())
    if shots in available:
        return shots
    if shots:
        listed = ", ".join(map(format_shots, available))
        raise InputError(f"'shots' is {shots}, which was not run; choose one of {listed}, or add it to the profile.")
    return int(available[0])


def select_first_draw(scores: pd.DataFrame, shots: int = 0) -> pd.DataFrame:
    """The rows of a scores table at a number of shots, of each method's first reference draw."""
    chosen = scores[scores.shots == shots]
    return chosen[chosen.seed == chosen.groupby("method").seed.transform("min")]


def select_first_draws(scores: pd.DataFrame) -> pd.DataFrame:
    """``select_first_draw`` at every number of shots that was run, the fewest first."""
    return pd.concat([select_first_draw(scores, shots) for shots in sorted(scores.shots.unique())])


def average_over_draws(metrics: pd.DataFrame) -> pd.DataFrame:
    """Macro means by method and shots over reference draws, with their standard deviations over *n* draws."""
    draws = metrics.groupby(["method", "shots", "seed"], sort=False)[MAIN].mean()
    grouped = draws.groupby(["method", "shots"], sort=False)
    deviations = grouped[MAIN].std(ddof=1).rename(columns=TITLES).rename(columns="{}, deviation".format)
    return pd.concat([grouped.size().rename("draws"), grouped.mean(), deviations], axis=1).reset_index()


def explain_temperature(scores: pd.DataFrame, backbones: Sequence[dict]) -> str:
    """A paragraph on temperatures where a backbone's factor multiplies them; empty where all are as published.

    ``backbones`` are those of the run's facts, ``scores`` its table, which has the temperatures used.
    """
    factors = {facts["name"]: facts.get("temperature_factor", 1) for facts in backbones}
    changed = ", ".join(f"`{Path(name).name}` ({factor:g})" for name, factor in factors.items() if factor != 1)
    if not changed:
        return ""
    used = scores[scores.temperature != ""].groupby("method", sort=False).temperature.first().astype(float)
    named = ", ".join(f"{name} {value:g}" for name, value in used.items())
    return (
        "**Temperatures are not the published ones here**: they are multiplied by the factor of the backbone, "
        f"{changed}, whose cosines spread wider than those of the CLIPs that the methods were published with. At the "
        "published temperatures many scores would lie near 0 or 1, and words would swamp the references. The factor "
        f"was chosen on categories that are not tested here. In use: {named}."
    )
