"""Intervals: images are the unit, resampled within normal and anomalous (stratified percentile bootstrap)."""

from __future__ import annotations

import numpy as np
import pandas as pd

RESAMPLES = 2000
LEVEL = 0.95


def wilson(hits: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson score interval of a share ``hits / n``, both ends in [0, 1]; (0, 1) where n is 0."""
    from scipy.stats import norm

    if n == 0:
        return 0.0, 1.0
    z = norm.ppf((1 + level) / 2)
    share = hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def _resampled(labels: np.ndarray, scores: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(runs, resamples) AUROCs of scores (runs, N); every run sees the same resampled images."""
    normal, anomalous = scores[:, labels == 0], scores[:, labels == 1]
    stream = np.random.default_rng(seed)
    counts = [
        stream.multinomial(side.shape[1], np.full(side.shape[1], 1 / side.shape[1]), resamples).astype(np.float32)
        for side in (normal, anomalous)
    ]
    found = []
    for good, bad in zip(normal, anomalous, strict=True):
        wins = (bad[:, None] > good) + 0.5 * (bad[:, None] == good)
        found.append(((counts[1] @ wins.astype(np.float32)) * counts[0]).sum(1))
    return np.stack(found) / (normal.shape[1] * anomalous.shape[1])


def auroc_interval(
    labels: np.ndarray, scores: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the AUROC of labels (N,) and scores (N,), or of the mean over runs of scores (runs, N).

    Where every resample agrees (perfect separation) the bootstrap is blind; the interval is then Wilson's
    for the smaller class, which is no narrower than the data allow. (nan, nan) with one class only.
    """
    labels, scores = np.asarray(labels), np.atleast_2d(np.asarray(scores, float))
    n = min((labels == 0).sum(), (labels == 1).sum())
    if not n:
        return float("nan"), float("nan")
    found = _resampled(labels, scores, resamples, seed).mean(0)
    return _ends(found, n)


def _ends(found: np.ndarray, n: int) -> tuple[float, float]:
    if np.ptp(found) == 0:
        return wilson(found[0] * n, n)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def macro_interval(scores: pd.DataFrame, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the macro mean image AUROC over the categories of a scores table.

    Rows of several seeds are averaged within their category. The categories are taken as given: the
    interval speaks of other images of the same categories.
    """
    means, smallest = [], []
    for number, (_, part) in enumerate(scores.groupby("category")):
        runs = part.pivot_table(index="image", columns="seed", values="score")
        labels = part.drop_duplicates("image").set_index("image").label.loc[runs.index].to_numpy()
        counts = np.bincount(labels, minlength=2)
        if counts.min() == 0:
            continue
        complete = runs.dropna(axis=1).to_numpy().T
        means.append(_resampled(labels, complete, resamples, seed + number).mean(0))
        smallest.append(counts.min())
    if not means:
        return float("nan"), float("nan")
    return _ends(np.mean(means, axis=0), int(np.sum(smallest)))


def paired(differences: np.ndarray) -> tuple[float, float, float]:
    """Mean of paired differences (n,) and its 95 % interval by Student's t; an infinite one where n is below 2."""
    from scipy.stats import t

    differences = np.asarray(differences, float)
    n, mean = len(differences), float(differences.mean()) if len(differences) else float("nan")
    if n < 2:
        return mean, float("-inf"), float("inf")
    half = float(t.ppf((1 + LEVEL) / 2, n - 1) * differences.std(ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half
