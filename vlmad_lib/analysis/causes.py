"""What failures have in common: a small logistic regression that can be read (notebook 11).

It is fitted on the judged images of one label (``failures.judged``), the outcome being whether they fail.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import expit

from vlmad_lib.evaluation import statistics

MEASURED = {"contrast": "log contrast", "area": "log area"}  # less the mean of the category
SMALLEST = 1e-4  # a contrast of nothing has no logarithm
RESAMPLES = 500
STEPS = 50  # of Newton's method at most
FREE = 0.01  # penalty of a category's intercept: enough to end where all its images agree


def measured(cases: pd.DataFrame) -> pd.DataFrame:
    """The cases whose contrast and area are known; all cases, and neither measure, where most have none."""
    if not set(MEASURED) <= set(cases) or (known := cases[list(MEASURED)].notna().all(axis=1)).mean() <= 0.5:
        return cases.drop(columns=list(MEASURED), errors="ignore")
    return cases[known]


def inputs(cases: pd.DataFrame) -> pd.DataFrame:
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


def fitted(values: np.ndarray, wrong: np.ndarray, weights: np.ndarray, categories: np.ndarray) -> np.ndarray:
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


def explained(cases: pd.DataFrame, resamples: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
    """By method, the odds ratio of a failure for each of ``inputs`` within a category; ``cases`` of one label.

    Per standard deviation of a measure, the other one the same; of a class against the other images of its categories
    of the same measures. Logistic regressions with an intercept for every category and a ridge penalty, which draws
    ratios towards 1. The intervals hold at 95 %
    for all inputs of a method together (Bonferroni): Student's, with the standard error of a bootstrap over
    categories, for images of one category are alike. One that varies in fewer *categories* than ``ENOUGH`` has none
    (nan). Where the cases are of fewer categories than that, images are drawn within each, and the interval speaks of
    these products alone; ``unit`` says which it is. Without any failure, or without any other image, there is none.
    """
    from scipy.stats import t

    rows = []
    for method, part in measured(cases).groupby("method", sort=False):
        table = inputs(part)
        values, wrong = table.to_numpy(), (part.failure != "").to_numpy()
        names, places = np.unique(part.category, return_inverse=True)
        unit = "category" if len(names) >= statistics.ENOUGH else "image"
        stream, level = np.random.default_rng(seed), statistics.together(max(table.shape[1], 1))
        if unit == "category":
            n = len(names)
            weights = stream.multinomial(n, np.full(n, 1 / n), resamples)[:, places]
        else:
            n, weights = len(part), np.zeros((resamples, len(part)))
            for place, size in enumerate(np.bincount(places)):
                weights[:, places == place] = stream.multinomial(size, np.full(size, 1 / size), resamples)
        weights = np.concatenate([np.ones((1, len(part))), weights])
        measures = np.isin(table.columns, list(MEASURED.values()))
        own, error = np.zeros((2, table.shape[1]))
        # classes beside each other would share one effect: each has a model of its own, against all other images
        for read in [measures, *(np.arange(table.shape[1]) == place for place in np.flatnonzero(~measures))]:
            if read.any():
                drawn = fitted(values[:, measures | read], wrong, weights, places)[:, read[measures | read]]
                # resampling n units understates their variance by (n - 1) / n
                own[read], error[read] = drawn[0], drawn[1:].std(axis=0, ddof=1) * np.sqrt(n / max(n - 1, 1))
        for place, name in enumerate(table):
            varying = int(_varying(table[name], part.category).sum())
            known = wrong.any() and not wrong.all() and (unit == "image" or varying >= statistics.ENOUGH)
            freedom = (varying if unit == "category" else n) - 1
            half = t.ppf((1 + level) / 2, max(freedom, 1)) * error[place] if known else np.nan
            ends = np.exp([own[place], own[place] - half, own[place] + half])
            images = len(part) if name in MEASURED.values() else int(table[name].sum())
            facts = dict(zip(("odds ratio", "low", "high"), map(float, ends), strict=True))
            facts |= {"images": images, "categories": varying, "unit": unit}
            rows.append({"method": method, "input": name} | facts)
    columns = ["method", "input", "odds ratio", "low", "high", "images", "categories", "unit"]
    return pd.DataFrame(rows, columns=columns)


def foreseen(cases: pd.DataFrame) -> pd.DataFrame:
    """Can the model tell, inside a category it was not fitted on, which images fail? AUROC less 0.5, by method.

    Mean and 95 % interval over the *n* categories that have failures and images decided rightly.
    """
    rows = []
    for method, part in measured(cases).groupby("method", sort=False):
        values, wrong = inputs(part).to_numpy(), (part.failure != "").to_numpy()
        names, places = np.unique(part.category, return_inverse=True)
        known = fitted(values, wrong, (places != np.arange(len(names))[:, None]).astype(float), places)
        risks = (known[places] * values).sum(1)  # by the model that never saw the category
        told = [
            statistics.wins(wrong[places == place].astype(int), risks[places == place]).mean() - 0.5
            for place in range(len(names))
            if 0 < wrong[places == place].sum() < (places == place).sum() and known[place].any()
        ]
        ends = dict(zip(("difference", "low", "high"), statistics.difference(np.array(told)), strict=True))
        rows.append({"method": method} | ends | {"n": len(told)})
    return pd.DataFrame(rows, columns=["method", "difference", "low", "high", "n"])
