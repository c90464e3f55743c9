"""What failures have in common: a small logistic regression that can be read (notebook 11).

It is fitted on the judged images of one label (``failures.judged``), the outcome being whether they fail.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import expit

from vlmad_lib import statistics

MEASURED = {"contrast": "log contrast", "area": "log area"}  # less the mean of the category
SMALLEST = 1e-4  # a contrast of nothing has no logarithm
RESAMPLES = 500
STEPS = 50  # of Newton's method at most
FEW = 4  # categories below which resampling them says nothing


def measured(cases: pd.DataFrame) -> pd.DataFrame:
    """The cases whose contrast and area are known; all cases, and neither measure, where most have none."""
    if not set(MEASURED) <= set(cases) or (known := cases[list(MEASURED)].notna().all(axis=1)).mean() <= 0.5:
        return cases.drop(columns=list(MEASURED), errors="ignore")
    return cases[known]


def inputs(cases: pd.DataFrame) -> pd.DataFrame:
    """What the model reads of each case: log contrast and log area, and groups and classes as 1 or 0.

    The measures are less the mean of their category, of which other things differ too, and then standardised. A
    measure that is missing or the same for all, and a group or class that is the only one, are left out.
    """
    found = {}
    for name, title in MEASURED.items():
        logs = np.log(cases[name].clip(lower=SMALLEST)) if name in cases else pd.Series(0.0, cases.index)
        logs = logs - logs.groupby(cases.category).transform("mean")
        if np.ptp(logs) > 1e-9:
            found[title] = logs / logs.std(ddof=0)
    for column in ("group", "defect_class"):
        kinds = [kind for kind in sorted(cases[column].unique()) if kind]
        if len(kinds) > 1:
            found |= {kind: (cases[column] == kind).astype(float) for kind in kinds}
    return pd.DataFrame(found, index=cases.index)


def fitted(values: np.ndarray, wrong: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ridge logistic regressions of ``wrong`` (N,) on values (N, inputs), one for each row of weights (runs, N).

    Coefficients (runs, 1 + inputs), the unpenalised intercept first, those of scikit-learn's ``LogisticRegression``; by
    Newton's method for all runs at once. Zeros where all weighted cases agree.
    """
    both = ((weights @ wrong > 0) & (weights @ ~wrong > 0))[:, None]
    weights = weights * both
    x = np.column_stack([np.ones(len(values)), values])
    products = (x[:, :, None] * x[:, None]).reshape(len(x), -1)
    penalty = np.r_[1e-9, np.ones(values.shape[1])]
    found = np.zeros((len(weights), x.shape[1]))
    for _ in range(STEPS):
        chance = expit(found @ x.T)
        slope = (weights * (wrong - chance)) @ x - penalty * found
        curve = ((weights * chance * (1 - chance)) @ products).reshape(len(weights), x.shape[1], -1)
        step = np.linalg.solve(curve + np.diag(penalty), slope[..., None])[..., 0]
        found += step
        if np.abs(step).max() < 1e-8:
            break
    return found


def explained(cases: pd.DataFrame, resamples: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
    """By method, the odds ratio of a failure for each of ``inputs``, all others the same; ``cases`` of one label.

    Per standard deviation of a measure; of a group or class against all images. A logistic regression with a ridge
    penalty, which draws ratios towards 1. The 95 % interval is Student's, its standard error a bootstrap over *n*
    categories, for images of one category are alike; from 0 to infinity with fewer than ``FEW`` categories.
    """
    from scipy.stats import t

    rows = []
    for method, part in measured(cases).groupby("method", sort=False):
        found = inputs(part)
        values, wrong = found.to_numpy(), (part.failure != "").to_numpy()
        names, places = np.unique(part.category, return_inverse=True)
        own, n = fitted(values, wrong, np.ones((1, len(part))))[0, 1:], len(names)
        half = np.full(len(own), np.inf)
        if n >= FEW:
            taken = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples)
            drawn = fitted(values, wrong, taken[:, places])[:, 1:]
            # resampling n categories understates their variance by (n - 1) / n
            half = t.ppf((1 + statistics.LEVEL) / 2, n - 1) * drawn.std(axis=0, ddof=1) * np.sqrt(n / (n - 1))
        ratios = zip(*map(np.exp, (own, own - half, own + half)), strict=True)
        for name, ends in zip(found, ratios, strict=True):
            images = len(part) if name in MEASURED.values() else int(found[name].sum())
            known = dict(zip(("odds ratio", "low", "high"), map(float, ends), strict=True))
            rows.append({"method": method, "input": name} | known | {"images": images, "categories": n})
    return pd.DataFrame(rows, columns=["method", "input", "odds ratio", "low", "high", "images", "categories"])


def foreseen(cases: pd.DataFrame) -> pd.DataFrame:
    """Can the model tell, inside a category it was not fitted on, which images fail? AUROC less 0.5, by method.

    Mean and 95 % interval over the *n* categories that have failures and images decided rightly.
    """
    rows = []
    for method, part in measured(cases).groupby("method", sort=False):
        values, wrong = inputs(part).to_numpy(), (part.failure != "").to_numpy()
        names, places = np.unique(part.category, return_inverse=True)
        known = fitted(values, wrong, (places != np.arange(len(names))[:, None]).astype(float))
        risks = (known[places, 1:] * values).sum(1)  # by the model that never saw the category
        told = [
            statistics.wins(wrong[places == place].astype(int), risks[places == place]).mean() - 0.5
            for place in range(len(names))
            if 0 < wrong[places == place].sum() < (places == place).sum() and known[place].any()
        ]
        ends = dict(zip(("difference", "low", "high"), statistics.difference(np.array(told)), strict=True))
        rows.append({"method": method} | ends | {"n": len(told)})
    return pd.DataFrame(rows, columns=["method", "difference", "low", "high", "n"])
