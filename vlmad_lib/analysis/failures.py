"""Failures: the images a method gets wrong at a stated threshold, how far, and what they have in common (notebook 11).

A false alarm is a good image rejected, an escape a defective one accepted, as in ``thresholds``. The margin of a score
is its distance from its category's threshold in standard deviations of the category's good scores, positive where it is
rejected: scores of different categories share no scale, margins do.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import fisher_exact, ttest_1samp

from vlmad_lib import tables, within
from vlmad_lib.analysis import by_defect, comparison, decisions, thresholds
from vlmad_lib.analysis.thresholds import TRAIN, Part
from vlmad_lib.evaluation import statistics
from vlmad_lib.evaluation.statistics import percent
from vlmad_lib.pipeline.results import Results

ALARM, ESCAPE = "false alarm", "escape"
TEST = "good test images"


# ---------------------------------------------------------------- what went wrong


def limits(found: Sequence[Part], alpha: float) -> pd.DataFrame:
    """The threshold of each method and category, and the *k* normal images that set it.

    Conformal at ``alpha`` from training images. Where none were scored, or too few for a promise, the quantile of the
    good test images themselves, which then judges its own images. Categories without good images have none.
    """
    rows = []
    for part in found:
        limit, source, k = thresholds.conformal(part.train, alpha), TRAIN, len(part.train)
        if np.isinf(limit) and len(part.good):
            limit, source, k = thresholds.quantile(part.good, alpha), TEST, len(part.good)
        if np.isfinite(limit):
            rows.append((part.method, part.category, limit, source, k))
    return pd.DataFrame(rows, columns=["method", "category", "threshold", "source", "k"])


def judged(scores: pd.DataFrame, limit: pd.DataFrame, shots: int = 0) -> pd.DataFrame:
    """The rows of a scores table, first reference draw, with ``threshold``, ``margin`` and ``failure``.

    ``failure`` is empty where the decision is right. Categories without a threshold are left out.
    """
    rows = tables.select_first_draw(scores, shots).merge(limit, on=["method", "category"])
    keys = ["method", "category"]
    spread = rows[rows.label == 0].groupby(keys).score.std(ddof=1).rename("spread").reset_index()
    whole = rows.groupby(keys).score.transform("std", ddof=1)  # a single good image has no spread of its own
    spread = rows[keys].merge(spread, on=keys, how="left").spread.to_numpy()
    spread = np.where(spread > 0, spread, np.where(whole > 0, whole, 1.0))
    over = rows.score > rows.threshold
    wrong = over != (rows.label == 1)
    kind = np.where(wrong, np.where(over, ALARM, ESCAPE), "")
    return rows.assign(margin=(rows.score - rows.threshold) / spread, failure=kind)


def described(cases: pd.DataFrame, results: Results) -> pd.DataFrame:
    """Judged rows with ``defect_class`` and, where there is a mask, contrast, area and sharpness of the defect."""
    measured = by_defect.measure_defects(results)[["image", *by_defect.MEASURES]]
    found = cases.merge(measured, on="image", how="left")
    return found.assign(defect_class=by_defect.classify_defects(found, results.profile))


def worst(cases: pd.DataFrame, failure: str, most: int = 6) -> pd.DataFrame:
    """The failures of one kind, each method's most confident first: the farthest on the wrong side of the threshold."""
    rows, most = cases[cases.failure == failure], within("shown", most, 0)
    rows = rows.assign(confidence=rows.margin.abs()).sort_values("confidence", ascending=False, kind="stable")
    places = {name: place for place, name in enumerate(dict.fromkeys(cases.method))}
    return rows.sort_values("method", key=lambda names: names.map(places), kind="stable").groupby("method").head(most)


def totals(cases: pd.DataFrame) -> pd.DataFrame:
    """Failures of each kind by method, with Wilson's 95 % interval, and the categories they lie in."""
    rows = []
    for method, part in cases.groupby("method", sort=False):
        for label, kind in ((0, ALARM), (1, ESCAPE)):
            some = part[part.label == label]
            wrong = some[some.failure == kind]
            facts = {"method": method, "failure": kind, "failures": len(wrong), "images": len(some)}
            share = len(wrong) / len(some) if len(some) else float("nan")
            low, high = statistics.wilson(len(wrong), len(some))
            facts |= {"share": share, "low": low, "high": high}
            rows.append(facts | {"in categories": wrong.category.nunique(), "of": some.category.nunique()})
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- what failures have in common


def shares(cases: pd.DataFrame, column: str) -> pd.DataFrame:
    """How many of the images of each value of a column fail, by method; ``cases`` of one label.

    Wilson's 95 % interval speaks of other images of these categories. *than the rest* compares with the method's other
    images, Holm's correction over the values: of categories by Fisher's exact test, of other values within each
    category that has both (``within``, how many), by a t test over these, for images of a category are alike. Where
    there is but one category it is Fisher's test too, and speaks of this product alone.
    """
    rows = []
    for method, part in cases.groupby("method", sort=False):
        wrong, values = part.failure != "", part[column]
        counted, chances = [], []
        for value in sorted(values.dropna().unique()):
            inside, rest = values == value, values.notna() & (values != value)
            difference, p, both = _against_rest(wrong, inside, rest, part.category, column)
            chances.append(p)
            low, high = statistics.wilson(wrong[inside].sum(), inside.sum())
            facts = {"method": method, column: value, "failures": int(wrong[inside].sum()), "images": int(inside.sum())}
            facts |= {"share": wrong[inside].mean(), "low": low, "high": high, "within": both}
            counted.append(facts | {"more": difference > 0})
        decided = zip(counted, statistics.holm(chances), strict=True)
        rows += [facts | {"than the rest": _than(facts.pop("more"), sure)} for facts, sure in decided]
    columns = ["method", column, "failures", "images", "share", "low", "high", "within", "than the rest"]
    table = pd.DataFrame(rows, columns=columns)
    if column == "category":
        table = table.drop(columns="within")
    places = {name: place for place, name in enumerate(dict.fromkeys(table.method))}
    table = table.sort_values("share", ascending=False, kind="stable")
    return table.sort_values("method", key=lambda names: names.map(places), kind="stable", ignore_index=True)


def _against_rest(
    wrong: pd.Series, inside: pd.Series, rest: pd.Series, categories: pd.Series, column: str
) -> tuple[float, float, int]:
    """Share of failures inside less that of the rest, its p, and in how many categories both stand."""
    if not rest.any():
        return 0.0, 1.0, 0
    means = pd.DataFrame(
        {"inside": wrong[inside].groupby(categories).mean(), "rest": wrong[rest].groupby(categories).mean()}
    )
    both = means.dropna()
    if column == "category" or categories.nunique() == 1:
        counts = [[wrong[side].sum(), (~wrong[side]).sum()] for side in (inside, rest)]
        return wrong[inside].mean() - wrong[rest].mean(), float(fisher_exact(counts).pvalue), len(both)
    differences = both.inside - both.rest
    if len(differences) < 2 or np.ptp(differences) < 1e-12:
        return 0.0, 1.0, len(both)
    return float(differences.mean()), float(ttest_1samp(differences, 0).pvalue), len(both)


def alarms(cases: pd.DataFrame, alpha: float) -> pd.DataFrame:
    """Whether a category's false alarms are more or fewer than its threshold promises; good ``cases``.

    A threshold from k training images is as random as they are, so that the number of rejected images is beta-binomial
    (``statistics.rejection_tail``); two-sided tests, Holm's correction over the categories of a method. Thresholds from
    the test images themselves, or too few images for a promise, have no test.
    """
    rows = []
    for method, part in cases[cases.source == TRAIN].groupby("method", sort=False):
        counted, chances = [], []
        for category, images in part.groupby("category"):
            k, n, rejected = int(images.k.iloc[0]), len(images), int((images.failure == ALARM).sum())
            place = thresholds.rank(k, alpha)
            more = statistics.rejection_tail(rejected, n, k, place)
            fewer = 1 - statistics.rejection_tail(rejected + 1, n, k, place)
            chances.append(min(1.0, 2 * min(more, fewer)))
            facts = {"method": method, "category": category, "failures": rejected, "images": n, "k": k}
            counted.append(facts | {"more": more < fewer})
        decided = zip(counted, statistics.holm(chances), strict=True)
        rows += [facts | {"than promised": _than(facts.pop("more"), sure)} for facts, sure in decided]
    return pd.DataFrame(rows, columns=["method", "category", "failures", "images", "k", "than promised"])


def _than(more: bool, sure: bool) -> str:
    return ("more often" if more else "less often") if sure else "not decided"


# ---------------------------------------------------------------- where methods disagree


def disagreements(cases: pd.DataFrame) -> pd.DataFrame:
    """Every two methods on the images of each kind: how many both, one or neither decides rightly.

    ``difference``: share of failures of the first less that of the second, the mean over *n* categories, paired, with
    its interval, at 95 % for all rows together (Bonferroni). Of one category it is over its *n* images (``unit``), and
    speaks of this product alone.
    """
    rows, pairs = [], list(combinations(dict.fromkeys(cases.method), 2))
    level = statistics.together(max(2 * len(pairs), 1))
    for first, second in pairs:
        for label, kind in ((0, ALARM), (1, ESCAPE)):
            pair = _pair(cases, first, second, label)
            wrong = [pair.failure != "", pair.failure_other != ""]
            share = pd.DataFrame({"apart": wrong[0].astype(float) - wrong[1], "category": pair.category})
            unit = "category" if share.category.nunique() > 1 else "image"
            apart = share.groupby("category").apart.mean() if unit == "category" else share.apart
            counts = {
                "both right": int((~wrong[0] & ~wrong[1]).sum()),
                "first alone": int((~wrong[0] & wrong[1]).sum()),
                "second alone": int((wrong[0] & ~wrong[1]).sum()),
                "neither": int((wrong[0] & wrong[1]).sum()),
            }
            ends = dict(zip(("difference", "low", "high"), statistics.difference(apart.to_numpy(), level), strict=True))
            rows.append(
                {"first": first, "second": second, "failure": kind} | counts | ends | {"n": len(apart), "unit": unit}
            )
    counted = ["both right", "first alone", "second alone", "neither"]
    return pd.DataFrame(
        rows, columns=["first", "second", "failure", *counted, "difference", "low", "high", "n", "unit"]
    )


def _pair(cases: pd.DataFrame, first: str, second: str, label: int) -> pd.DataFrame:
    """The rows of ``first`` of a label, with margin and failure of ``second`` on the same image (``_other``)."""
    one, other = (cases[(cases.method == name) & (cases.label == label)] for name in (first, second))
    return one.merge(other[["image", "margin", "failure"]], on="image", suffixes=("", "_other"))


def alone_right(cases: pd.DataFrame, first: str, second: str, most: int = 3) -> pd.DataFrame:
    """Images that ``first`` decides rightly and ``second`` wrongly, margins farthest apart first, ``most`` of a kind.

    Two rows an image, that of ``first`` above that of ``second``: as ``figures.maps`` shows them side by side.
    """
    found = []
    for label in (1, 0):
        pair = _pair(cases, first, second, label)
        pair = pair[(pair.failure == "") & (pair.failure_other != "")]
        gap = (pair.margin - pair.margin_other).abs().sort_values(ascending=False, kind="stable")
        found += list(pair.image.loc[gap.index[:most]])
    order = {(image, name): place for place, (image, name) in enumerate((i, n) for i in found for n in (first, second))}
    rows = cases[cases.image.isin(found) & cases.method.isin([first, second])]
    return rows.iloc[np.argsort([order[key] for key in zip(rows.image, rows.method, strict=True)], kind="stable")]


# ---------------------------------------------------------------- sentences


def findings(
    cases: pd.DataFrame, found: pd.DataFrame, foretold: pd.DataFrame, apart: pd.DataFrame, alpha: float
) -> str:
    """What fails, what failures have in common and where methods differ, as a Markdown list.

    ``found`` and ``foretold``: ``causes.explained`` and ``causes.foreseen`` of the defective images; ``apart``:
    ``disagreements``.
    """
    if cases.empty:
        return "- No category has a good image to set a threshold from (n = 0), so nothing can be called a failure."
    lines = [_threshold_line(cases, alpha)]
    for method, part in cases.groupby("method", sort=False):
        sides = [part[part.label == label] for label in (0, 1)]
        told = [
            f"{kind}s {decisions.share_of((side.failure != '').sum(), len(side))}"
            for kind, side in zip((ALARM, ESCAPE), sides, strict=True)
        ]
        lines.append(f"**{method}**: {', '.join(told)}.{_uneven(sides[1])}{_beyond_promise(sides[0], alpha)}")
        lines += _common_line(method, found[found.method == method], foretold[foretold.method == method])
    lines += [_apart_line(row) for row in apart.itertuples() if row.n]
    return "\n".join(f"- {line}" for line in lines)


def _threshold_line(cases: pd.DataFrame, alpha: float) -> str:
    kept = cases.drop_duplicates(["method", "category"]).groupby("source", sort=False)
    told = [
        f"from {tables.format_range(part.k)} {source} a category in {part.category.nunique()} of "
        f"{tables.format_categories(cases.category.nunique())}"
        for source, part in kept
    ]
    own = f" Those from {TEST} judge the images that set them." if TEST in set(cases.source) else ""
    return f"Thresholds that let {percent(alpha)} of the good parts be rejected, set {' and '.join(told)}.{own}"


def _uneven(side: pd.DataFrame) -> str:
    """In which categories escapes are more or less frequent than in the rest."""
    table = shares(side, "category")
    if len(table) < 2 or not table.failures.sum():
        return ""
    named = _ways(table, "than the rest")
    n = tables.format_categories(len(table))
    return f" Of the {ESCAPE}s, {named or 'no category is told from the rest'} (n = {n})."


def _beyond_promise(side: pd.DataFrame, alpha: float) -> str:
    """In which categories false alarms are more or fewer than thresholds as random as theirs give."""
    table = alarms(side, alpha)
    if table.empty:
        return ""
    named = _ways(table, "than promised")
    none = f"no category has more or fewer than thresholds from {tables.format_range(table.k)} images may give"
    return (
        f" Of the {ALARM}s, {named + ' than promised' if named else none} (n = {tables.format_categories(len(table))})."
    )


def _ways(table: pd.DataFrame, column: str) -> str:
    """Categories by a column of verdicts: ``more often in cork (3 of 9)``; empty where none is decided."""
    rows = {way: table[table[column] == way] for way in ("more often", "less often")}
    return " and ".join(
        f"{way} in {', '.join(f'{row.category} ({row.failures} of {row.images})' for row in part.itertuples())}"
        for way, part in rows.items()
        if len(part)
    )


def _common_line(method: str, found: pd.DataFrame, foretold: pd.DataFrame) -> list[str]:
    """What makes an escape more or less likely within a category, and whether escapes can be foreseen."""
    if found.empty:
        return []
    ways = {"higher": "more", "lower": "less"}
    known = found[found.low.notna()]
    verdicts = [ways.get(comparison.verdict(row.low - 1, row.high - 1), "") for row in known.itertuples()]
    decided = [
        f"{verdict} likely with {row.input} (odds x {row[3]:.2f}, {row.low:.2f} to {row.high:.2f}, {_counted(row)})"
        for row, verdict in zip(known.itertuples(), verdicts, strict=True)
        if verdict
    ]
    undecided = [name for name, verdict in zip(known.input, verdicts, strict=True) if not verdict]
    rest = f"; not decided: {', '.join(undecided)}" if undecided else ""
    few = list(found[found.low.isna()].input)
    rest += f"; in too few categories to say: {', '.join(few)}" if few and len(known) else ""
    together = f", 95 % for all {len(found)} inputs together" if len(found) > 1 else ""
    unit = " These intervals are over images and speak of these products alone." if "image" in set(found.unit) else ""
    said = "; ".join(decided) or "tied to nothing for sure"
    line = (
        f"**{method}**, within a category, an escape is {said} (n = {_counted(_largest(found))}{together}){rest}.{unit}"
    )
    for row in foretold[foretold.n > 0].itertuples():
        word = {"higher": "can be foreseen", "lower": "is foreseen wrongly"}.get(comparison.verdict(row.low, row.high))
        ends = f"{max(0.5 + row.low, 0):.3f} to {min(0.5 + row.high, 1):.3f}, " if row.n > 1 else ""
        line += (
            f" Which image of a new category escapes {word or 'is not told from chance'}: AUROC "
            f"{0.5 + row.difference:.3f} ({ends}n = {tables.format_categories(row.n)})."
        )
    return [line]


def _largest(found: pd.DataFrame):
    """The row of the input with the most images."""
    return next(found.sort_values("images", ascending=False, kind="stable").itertuples())


def _counted(row) -> str:
    """The images and categories that an odds ratio rests on."""
    return f"{tables.format_count(row.images, 'image', 'images')} in {tables.format_categories(row.categories)}"


def _apart_line(row) -> str:
    word = {"higher": f"{row.second} has fewer", "lower": f"{row.first} has fewer"}
    n = tables.format_count(sum(row[4:8]), "image", "images")
    named = f"**{row.failure.capitalize()}s of {row.first} and {row.second}** (n = {n})"
    counts = f"both right {row[4]}, {row.first} alone {row[5]}, {row.second} alone {row[6]}, neither {row[7]}"
    over = tables.format_categories(row.n) if row.unit == "category" else f"{row.n} images of one category"
    apart = f"{comparison.format_difference(row.difference, row.low, row.high)}, n = {over}"
    told = word.get(comparison.verdict(row.low, row.high), "not decided")
    return f"{named}: {counts}; shares of failures apart by {apart}: {told}."
