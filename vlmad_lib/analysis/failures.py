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
from scipy.special import expit
from scipy.stats import fisher_exact, ttest_1samp

from vlmad_lib import tables, within
from vlmad_lib.analysis import by_defect, comparison, thresholds
from vlmad_lib.analysis.thresholds import TRAIN, CategoryScores
from vlmad_lib.evaluation import metrics, statistics
from vlmad_lib.pipeline.results import Results

ALARM, ESCAPE = "false alarm", "escape"
TEST = "good test images"
# How many interquartile ranges above the upper quartile a score is far out (Tukey 1977).
FAR_OUT = 3.0
# The measures of a defect that the model reads, each less the mean of its category.
MEASURED = {"contrast": "log contrast", "area": "log area"}
# A contrast of nothing has no logarithm.
SMALLEST = 1e-4
RESAMPLES = 500
# Steps of Newton's method at most.
STEPS = 50
# Penalty of a category's intercept: enough to end where all its images agree.
FREE = 0.01


# ---------------------------------------------------------------- what went wrong


def set_thresholds(categories: Sequence[CategoryScores], alpha: float) -> pd.DataFrame:
    """The threshold of each method and category, and the *k* normal images that set it.

    Conformal at ``alpha`` from training images. Where none were scored, or too few for a promise, the lowest score that
    at most the share ``alpha`` of the good test images exceeds, as in ``by_defect.detect_images``: it judges its own
    images. Categories without good images have none.

    ``next`` is the score below the threshold, to which it would fall without the image that set it. ``outlier`` says
    whether that image lies far out among the k: more than ``FAR_OUT`` interquartile ranges above the upper quartile.
    """
    rows = []
    for scores in categories:
        limit, source, normal = thresholds.conformal(scores.train, alpha), TRAIN, scores.train
        if np.isinf(limit) and len(scores.good):
            limit, source, normal = metrics.limit_at(scores.good, alpha), TEST, scores.good
        if np.isfinite(limit):
            below, (lower, upper) = normal[normal < limit], np.quantile(normal, [0.25, 0.75])
            outlier = source == TRAIN and limit > upper + FAR_OUT * (upper - lower)
            following = below.max() if len(below) else np.nan
            rows.append((scores.method, scores.category, limit, source, len(normal), following, outlier))
    return pd.DataFrame(rows, columns=["method", "category", "threshold", "source", "k", "next", "outlier"])


def judge_images(scores: pd.DataFrame, limits: pd.DataFrame, shots: int = 0) -> pd.DataFrame:
    """The rows of a scores table, first reference draw, with ``threshold``, ``margin`` and ``failure``.

    ``failure`` is empty where the decision is right. Categories without a threshold are left out.
    """
    rows = tables.select_first_draw(scores, shots).merge(limits, on=["method", "category"])
    keys = ["method", "category"]
    spread = rows[rows.label == 0].groupby(keys).score.std(ddof=1).rename("spread").reset_index()
    whole = rows.groupby(keys).score.transform("std", ddof=1)  # a single good image has no spread of its own
    spread = rows[keys].merge(spread, on=keys, how="left").spread.to_numpy()
    spread = np.where(spread > 0, spread, np.where(whole > 0, whole, 1.0))
    over = rows.score > rows.threshold
    wrong = over != (rows.label == 1)
    kind = np.where(wrong, np.where(over, ALARM, ESCAPE), "")
    return rows.assign(margin=(rows.score - rows.threshold) / spread, failure=kind)


def add_defect_measures(cases: pd.DataFrame, results: Results) -> pd.DataFrame:
    """Judged rows with ``defect_class`` and, where there is a mask, contrast, area and sharpness of the defect."""
    measured = by_defect.measure_defects(results)[["image", *by_defect.MEASURES]]
    cases = cases.merge(measured, on="image", how="left")
    return cases.assign(defect_class=by_defect.classify_defects(cases, results.profile))


def select_worst(cases: pd.DataFrame, failure: str, most: int = 6) -> pd.DataFrame:
    """The failures of one kind, each method's most confident first: the farthest on the wrong side of the threshold."""
    rows, most = cases[cases.failure == failure], within("shown", most, 0)
    rows = rows.assign(confidence=rows.margin.abs()).sort_values("confidence", ascending=False, kind="stable")
    return tables.order_by_method(rows, cases.method).groupby("method").head(most)


def count_failures(cases: pd.DataFrame) -> pd.DataFrame:
    """Judged rows by method and category: false alarms and escapes with their rates (``thresholds.rated``)."""
    wrong = cases.assign(wrong=cases.failure != "").groupby(["method", "category", "label"], sort=False).wrong
    counts = wrong.agg(["sum", "size"]).unstack("label", fill_value=0).reindex(
        columns=pd.MultiIndex.from_product([["sum", "size"], [0, 1]]), fill_value=0
    )  # fmt: skip
    counts.columns = ["alarms", "escapes", "n_good", "n_bad"]
    return thresholds.rated(counts.reset_index())


# ---------------------------------------------------------------- what failures have in common


def summarise_shares(cases: pd.DataFrame, column: str) -> pd.DataFrame:
    """How many of the images of each value of a column fail, by method; ``cases`` of one label.

    Wilson's 95 % interval speaks of other images of these categories. *than the rest* compares with the method's other
    images, Holm's correction over the values: within each category that has both (``within``, how many), by a t test
    over these, for images of a category are alike. Where there is but one category it is Fisher's exact test, and
    speaks of this product alone.
    """
    rows = []
    for method, images in cases.groupby("method", sort=False):
        wrong, values = images.failure != "", images[column]
        facts, tests = [], []
        for value in sorted(values.dropna().unique()):
            inside, rest = values == value, values.notna() & (values != value)
            difference, p, both = _compare_with_rest(wrong, inside, rest, images.category)
            tests.append((difference > 0, p))
            hits, n = int(wrong[inside].sum()), int(inside.sum())
            facts.append((method, value, hits, n, wrong[inside].mean(), *statistics.wilson(hits, n), both))
        rows += [(*row, verdict) for row, verdict in zip(facts, _decide(tests), strict=True)]
    columns = ["method", column, "failures", "images", "share", "low", "high", "within", "than the rest"]
    table = pd.DataFrame(rows, columns=columns)
    return tables.order_by_method(table.sort_values("share", ascending=False, kind="stable"), table.method)


def _decide(tests: list[tuple[bool, float]]) -> list[str]:
    """The verdicts of tests (more, p), Holm's correction over all of them."""
    decided = statistics.holm([p for _, p in tests])
    words = [("more often" if more else "less often") for more, _ in tests]
    return [word if sure else comparison.NO_DIFFERENCE for word, sure in zip(words, decided, strict=True)]


def _compare_with_rest(
    wrong: pd.Series, inside: pd.Series, rest: pd.Series, categories: pd.Series
) -> tuple[float, float, int]:
    """Share of failures inside less that of the rest, its p, and in how many categories both stand."""
    if not rest.any():
        return 0.0, 1.0, 0
    means = pd.DataFrame(
        {"inside": wrong[inside].groupby(categories).mean(), "rest": wrong[rest].groupby(categories).mean()}
    )
    both = means.dropna()
    if categories.nunique() == 1:
        counts = [[wrong[side].sum(), (~wrong[side]).sum()] for side in (inside, rest)]
        return wrong[inside].mean() - wrong[rest].mean(), float(fisher_exact(counts).pvalue), len(both)
    differences = both.inside - both.rest
    if len(differences) < 2 or np.ptp(differences) < 1e-12:
        return 0.0, 1.0, len(both)
    return float(differences.mean()), float(ttest_1samp(differences, 0).pvalue), len(both)


def compare_with_promise(cases: pd.DataFrame, alpha: float) -> pd.DataFrame:
    """Whether a category's false alarms are more or fewer than its threshold promises; good ``cases``.

    A threshold from k training images is as random as they are, so that the number of rejected images is beta-binomial
    (``thresholds.alarm_chances``); two-sided tests, Holm's correction over the categories of a method. Thresholds from
    the test images themselves, or too few images for a promise, have no test.
    """
    rows = []
    for method, images in cases[cases.source == TRAIN].groupby("method", sort=False):
        by_category = images.assign(failures=images.failure == ALARM).groupby("category")
        counts = by_category.agg(failures=("failures", "sum"), n_good=("failure", "size"), k=("k", "first"))
        tests = []
        for place, rejected in enumerate(counts.failures):
            chances = thresholds.alarm_chances(counts.iloc[[place]], alpha)
            more, fewer = chances[rejected:].sum(), chances[: rejected + 1].sum()
            tests.append((more < fewer, min(1.0, 2 * min(more, fewer))))
        rows.append(counts.reset_index().assign(method=method, **{"than promised": _decide(tests)}))
    columns = ["method", "category", "failures", "images", "k", "than promised"]
    if not rows:
        return pd.DataFrame(columns=columns)
    return pd.concat(rows, ignore_index=True).rename(columns={"n_good": "images"})[columns]


def select_measured(cases: pd.DataFrame) -> pd.DataFrame:
    """The cases whose contrast and area are known; all cases, and neither measure, where most have none."""
    if not set(MEASURED) <= set(cases) or (complete := cases[list(MEASURED)].notna().all(axis=1)).mean() <= 0.5:
        return cases.drop(columns=list(MEASURED), errors="ignore")
    return cases[complete]


def build_inputs(cases: pd.DataFrame) -> pd.DataFrame:
    """What the model reads of each case: log contrast, log area, and defect classes as 1 or 0.

    The measures are less the mean of their category, of which other things differ too, and then standardised. Left out
    is what does not vary within any category, such as a class that is the only one of each category it is in: no data
    can tell it from the category itself.
    """
    columns = {}
    for name, title in MEASURED.items():
        logs = np.log(cases[name].clip(lower=SMALLEST)) if name in cases else pd.Series(0.0, cases.index)
        logs = logs - logs.groupby(cases.category).transform("mean")
        if np.ptp(logs) > 1e-9:
            columns[title] = logs / logs.std(ddof=0)
    kinds = sorted(kind for kind in cases.defect_class.unique() if kind)
    for kind in kinds[:1] if len(kinds) == 2 else kinds:  # of two, one says all
        column = (cases.defect_class == kind).astype(float)
        if _varying(column, cases.category).any():
            columns[kind] = column
    return pd.DataFrame(columns, index=cases.index)


def _varying(column: pd.Series, categories: pd.Series) -> pd.Series:
    """By category, whether an input differs between its images."""
    groups = column.groupby(categories)
    return groups.max() - groups.min() > 1e-9


def fit_models(values: np.ndarray, wrong: np.ndarray, weights: np.ndarray, categories: np.ndarray) -> np.ndarray:
    """Ridge logistic regressions of ``wrong`` (N,) on values (N, inputs), one for each row of weights (runs, N).

    Each of the categories (N,), numbered from 0, has an intercept of its own, which is all but free: what differs
    between categories is no effect of an input. Coefficients (runs, inputs), penalised as scikit-learn's
    ``LogisticRegression`` does by default; by Newton's method for all runs at once. Zeros where all weighted cases
    agree.
    """
    both = ((weights @ wrong > 0) & (weights @ ~wrong > 0))[:, None]
    weights = weights * both
    intercepts = np.eye(categories.max() + 1)[categories]
    x = np.column_stack([intercepts, values])
    products = (x[:, :, None] * x[:, None]).reshape(len(x), -1)
    penalty = np.r_[np.full(intercepts.shape[1], FREE), np.ones(values.shape[1])]
    coefficients = np.zeros((len(weights), x.shape[1]))
    for _ in range(STEPS):
        chance = expit(coefficients @ x.T)
        slope = (weights * (wrong - chance)) @ x - penalty * coefficients
        curve = ((weights * chance * (1 - chance)) @ products).reshape(len(weights), x.shape[1], -1)
        step = np.linalg.solve(curve + np.diag(penalty), slope[..., None])[..., 0]
        coefficients += step
        if np.abs(step).max() < 1e-8:
            break
    return coefficients[:, intercepts.shape[1] :]


def estimate_odds(cases: pd.DataFrame, resamples: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
    """By method, the odds ratio of a failure for each of ``build_inputs`` within a category; ``cases`` of one label.

    Per standard deviation of a measure, the other one the same; of a class against the other images of its categories
    of the same measures. Logistic regressions with an intercept for every category and a ridge penalty, which draws
    ratios towards 1. The intervals hold at 95 % for all inputs of a method together (Bonferroni): Student's, with the
    standard error of a bootstrap over categories, for images of one category are alike. An input that varies in fewer
    *categories* than ``ENOUGH`` has none (nan). Where the cases are of fewer categories than that, images are drawn
    within each, and the interval speaks of these products alone; ``unit`` says which it is. Without any failure, or
    without any other image, there is none.
    """
    from scipy.stats import t

    rows = []
    for method, images in select_measured(cases).groupby("method", sort=False):
        table = build_inputs(images)
        values, wrong = table.to_numpy(), (images.failure != "").to_numpy()
        names, places = np.unique(images.category, return_inverse=True)
        unit = "category" if len(names) >= statistics.ENOUGH else "image"
        n = len(names) if unit == "category" else len(images)
        level = statistics.together(max(table.shape[1], 1))
        weights = np.concatenate([np.ones((1, len(images))), _resample(places, unit, resamples, seed)])
        measures = np.isin(table.columns, list(MEASURED.values()))
        logs, error = np.zeros((2, table.shape[1]))
        # classes beside each other would share one effect: each has a model of its own, against all other images
        for read in [measures, *(np.arange(table.shape[1]) == place for place in np.flatnonzero(~measures))]:
            if read.any():
                drawn = fit_models(values[:, measures | read], wrong, weights, places)[:, read[measures | read]]
                # resampling n units understates their variance by (n - 1) / n
                logs[read], error[read] = drawn[0], drawn[1:].std(axis=0, ddof=1) * np.sqrt(n / max(n - 1, 1))
        for place, name in enumerate(table):
            varying = int(_varying(table[name], images.category).sum())
            enough = wrong.any() and not wrong.all() and (unit == "image" or varying >= statistics.ENOUGH)
            freedom = (varying if unit == "category" else n) - 1
            half = t.ppf((1 + level) / 2, max(freedom, 1)) * error[place] if enough else np.nan
            ends = map(float, np.exp([logs[place], logs[place] - half, logs[place] + half]))
            count = len(images) if measures[place] else int(table[name].sum())
            rows.append((method, name, *ends, count, varying, unit))
    columns = ["method", "input", "odds ratio", "low", "high", "images", "categories", "unit"]
    return pd.DataFrame(rows, columns=columns)


def _resample(places: np.ndarray, unit: str, resamples: int, seed: int) -> np.ndarray:
    """How often each image is drawn (resamples, N): with its category, or from within it."""
    stream, sizes = np.random.default_rng(seed), np.bincount(places)
    if unit == "category":
        return stream.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), resamples)[:, places]
    weights = np.zeros((resamples, len(places)))
    for place, size in enumerate(sizes):
        weights[:, places == place] = stream.multinomial(size, np.full(size, 1 / size), resamples)
    return weights


def evaluate_foresight(cases: pd.DataFrame) -> pd.DataFrame:
    """Can the model tell, inside a category it was not fitted on, which images fail? AUROC less 0.5, by method.

    Mean and 95 % interval over the *n* categories that have failures and images decided rightly.
    """
    rows = []
    for method, images in select_measured(cases).groupby("method", sort=False):
        values, wrong = build_inputs(images).to_numpy(), (images.failure != "").to_numpy()
        names, places = np.unique(images.category, return_inverse=True)
        without = fit_models(values, wrong, (places != np.arange(len(names))[:, None]).astype(float), places)
        risks = (without[places] * values).sum(1)  # by the model that never saw the category
        aurocs = [
            statistics.wins(wrong[places == place].astype(int), risks[places == place]).mean()
            for place in range(len(names))
            if 0 < wrong[places == place].sum() < (places == place).sum() and without[place].any()
        ]
        rows.append((method, *statistics.difference(np.array(aurocs) - 0.5), len(aurocs)))
    return pd.DataFrame(rows, columns=["method", "difference", "low", "high", "n"])


# ---------------------------------------------------------------- where methods disagree


def compare_failures(cases: pd.DataFrame) -> pd.DataFrame:
    """Every two methods on the images of each kind: how many both, one or neither decides rightly.

    ``difference``: share of failures of the first less that of the second, the mean over *n* categories, paired, with
    its interval, at 95 % for all rows together (Bonferroni). Of one category it is over its *n* images (``unit``), and
    speaks of this product alone.
    """
    rows, pairs = [], list(combinations(dict.fromkeys(cases.method), 2))
    level = statistics.together(max(2 * len(pairs), 1))
    for first, second in pairs:
        for label, kind in ((0, ALARM), (1, ESCAPE)):
            images = _pair_images(cases, first, second, label)
            wrong, wrong_other = images.failure != "", images.failure_other != ""
            counts = [(~wrong & ~wrong_other), (~wrong & wrong_other), (wrong & ~wrong_other), (wrong & wrong_other)]
            values, unit = wrong.astype(float) - wrong_other, "image"
            if images.category.nunique() > 1:
                values, unit = values.groupby(images.category).mean(), "category"
            ends = statistics.difference(values.to_numpy(), level)
            rows.append((first, second, kind, *(int(count.sum()) for count in counts), *ends, len(values), unit))
    counted = ["both right", "first alone", "second alone", "neither"]
    columns = ["first", "second", "failure", *counted, "difference", "low", "high", "n", "unit"]
    return pd.DataFrame(rows, columns=columns)


def _pair_images(cases: pd.DataFrame, first: str, second: str, label: int) -> pd.DataFrame:
    """The rows of ``first`` of a label, with margin and failure of ``second`` on the same image (``_other``)."""
    rows, others = (cases[(cases.method == name) & (cases.label == label)] for name in (first, second))
    return rows.merge(others[["image", "margin", "failure"]], on="image", suffixes=("", "_other"))


def select_disagreements(cases: pd.DataFrame, first: str, second: str, most: int = 3) -> pd.DataFrame:
    """Images that ``first`` decides rightly and ``second`` wrongly, margins farthest apart first, ``most`` of a kind.

    Two rows an image, that of ``first`` above that of ``second``: as ``figures.maps`` shows them side by side.
    """
    images = []
    for label in (1, 0):
        pairs = _pair_images(cases, first, second, label)
        pairs = pairs[(pairs.failure == "") & (pairs.failure_other != "")]
        gap = (pairs.margin - pairs.margin_other).abs().sort_values(ascending=False, kind="stable")
        images += list(pairs.image.loc[gap.index[:most]])
    rows = cases[cases.image.isin(images) & cases.method.isin([first, second])]
    order = rows.image.map(images.index).astype(float) * 2 + (rows.method == second)
    return rows.loc[order.sort_values(kind="stable").index]
