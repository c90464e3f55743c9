"""Intervals and tests: images are the unit, resampled within normal and anomalous (stratified percentile bootstrap).

Where there is nothing to resample (perfect separation, a handful of images) Wilson's interval takes the place of the
bootstrap: no interval is narrower than the data allow.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

RESAMPLES = 2000
LEVEL = 0.95
FEW = 8  # with fewer images on either side a bootstrap is too sure


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

    Where every resample agrees (perfect separation) or a class has fewer than ``FEW`` images, the interval is
    Wilson's for the smaller class. (nan, nan) with one class only.
    """
    labels, scores = np.asarray(labels), np.atleast_2d(np.asarray(scores, float))
    n = min((labels == 0).sum(), (labels == 1).sum())
    if not n:
        return float("nan"), float("nan")
    if n < FEW:
        return wilson(n * np.mean([win.mean() for win in map(partial(wins, labels), scores)]), n)
    found = _resampled(labels, scores, resamples, seed).mean(0)
    return _ends(found, n)


def wins(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The share of normal images that each anomalous image outscores, ties as half: their mean is the AUROC.

    labels (N,) in {0, 1}, scores (N,); returns (anomalous,) in [0, 1], nan without normal images.
    """
    normal, anomalous = np.sort(scores[labels == 0]), scores[labels == 1]
    if not len(normal):
        return np.full(len(anomalous), np.nan)
    below, upto = (np.searchsorted(normal, anomalous, side) for side in ("left", "right"))
    return (below + upto) / 2 / len(normal)


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
        runs = _runs(part)
        labels = _labels(part, runs.index)
        counts = np.bincount(labels, minlength=2)
        if counts.min() == 0:
            continue
        means.append(_resampled(labels, runs.to_numpy().T, resamples, seed + number).mean(0))
        smallest.append(counts.min())
    if not means:
        return float("nan"), float("nan")
    return _ends(np.mean(means, axis=0), int(np.sum(smallest)))


def _runs(part: pd.DataFrame) -> pd.DataFrame:
    """Scores by image and reference draw, of the draws that scored every image."""
    rows, images = pd.factorize(part.image, sort=True)
    columns, seeds = pd.factorize(part.seed, sort=True)
    found = np.full((len(images), len(seeds)), np.nan)
    found[rows, columns] = part.score
    return pd.DataFrame(found, images, seeds).dropna(axis=1)


def _labels(part: pd.DataFrame, images: pd.Index) -> np.ndarray:
    rows, known = pd.factorize(part.image)
    found = np.zeros(len(known), int)
    found[rows] = part.label
    return found[known.get_indexer(images)]


def macro_difference(
    first: pd.DataFrame, second: pd.DataFrame, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """Difference of the macro mean image AUROCs of two scores tables and its 95 % interval, paired by image.

    Both are resampled alike, over the images that both scored. (nan, -1, 1) where no category can be compared.
    """
    drawn, plain, smallest = [], [], 0
    for number, (category, part) in enumerate(first.groupby("category")):
        sides = [_runs(part), _runs(second[second.category == category])]
        shared = sides[0].index.intersection(sides[1].index)
        labels = _labels(part, shared)
        if not len(shared) or np.bincount(labels, minlength=2).min() == 0:
            continue
        runs = [side.loc[shared].to_numpy().T for side in sides]
        found = _resampled(labels, np.concatenate(runs), resamples, seed + number)
        drawn.append(found[: len(runs[0])].mean(0) - found[len(runs[0]) :].mean(0))
        plain.append(np.subtract(*[np.mean([wins(labels, one).mean() for one in side]) for side in runs]))
        smallest += int(np.bincount(labels).min())
    if not drawn:
        return float("nan"), -1.0, 1.0
    found, difference = np.mean(drawn, axis=0), float(np.mean(plain))
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if np.ptp(found) else (difference, difference)
    least = _blind(smallest) if low == high else 0.0
    return difference, float(low) - least, float(high) + least


def _blind(n: int) -> float:
    """How far a difference can be from zero although n images show none."""
    return 1 - wilson(n, n)[0]


def paired(differences: np.ndarray) -> tuple[float, float, float]:
    """Mean of paired differences (n,) and its 95 % interval by Student's t; an infinite one where n is below 2."""
    from scipy.stats import t

    differences = np.asarray(differences, float)
    n, mean = len(differences), float(differences.mean()) if len(differences) else float("nan")
    if n < 2:
        return mean, float("-inf"), float("inf")
    half = float(t.ppf((1 + LEVEL) / 2, n - 1) * differences.std(ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half


# ---------------------------------------------------------------- subsets of the anomalous images


def subset_interval(parts: list[tuple[np.ndarray, np.ndarray]], resamples: int = RESAMPLES, seed: int = 0):
    """95 % interval of the AUROC of some anomalous images, each against the normal images of its own category.

    ``parts``: scores of the normal (n_c,) and of the anomalous images (m_c,) of each category. The AUROC is the mean
    over all anomalous images of the share of normal ones they outscore. Normal images are resampled within their
    category, anomalous ones over all. Wilson's interval where fewer than ``FEW`` are anomalous or all resamples agree.
    """
    parts = [(normal, anomalous) for normal, anomalous in parts if len(normal) and len(anomalous)]
    n = sum(len(anomalous) for _, anomalous in parts)
    if not n:
        return float("nan"), float("nan")
    outscored = [(bad[:, None] > good) + 0.5 * (bad[:, None] == good) for good, bad in parts]
    if n < FEW:
        return wilson(sum(one.mean(1).sum() for one in outscored), n)
    stream = np.random.default_rng(seed)
    counts = stream.multinomial(n, np.full(n, 1 / n), resamples).astype(np.float32)
    found, place = np.zeros(resamples), 0
    for one in outscored:
        size, normals = one.shape
        weights = stream.multinomial(normals, np.full(normals, 1 / normals), resamples).astype(np.float32) / normals
        found += ((counts[:, place : place + size] @ one.astype(np.float32)) * weights).sum(1)
        place += size
    return _ends(found / n, min(n, sum(one.shape[1] for one in outscored)))


# ---------------------------------------------------------------- two methods, two measures


def delong(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[float, float, float, float]:
    """Difference of two AUROCs on the same images, its 95 % interval and two-sided p (DeLong et al. 1988).

    labels (N,) in {0, 1}, scores (N,) of two methods, which need not share a scale. The interval is (-1, 1) and p is
    1 where the images cannot tell: a class has fewer than two images, or the method's variance is zero.
    """
    from scipy.stats import norm

    labels = np.asarray(labels)
    normal, anomalous = (labels == 0).sum(), (labels == 1).sum()
    over = [wins(labels, np.asarray(scores, float)) for scores in (first, second)]
    # a normal image is outscored by anomalous ones where its own negative outscores theirs
    under = [wins(1 - labels, -np.asarray(scores, float)) for scores in (first, second)]
    difference = float(np.mean(over[0]) - np.mean(over[1])) if len(over[0]) else float("nan")
    if min(normal, anomalous) < 2:
        return difference, -1.0, 1.0, 1.0
    variance = np.var(over[0] - over[1], ddof=1) / anomalous + np.var(under[0] - under[1], ddof=1) / normal
    if variance == 0:
        least = _blind(min(normal, anomalous))
        return difference, difference - least, difference + least, 1.0
    half = norm.ppf((1 + LEVEL) / 2) * np.sqrt(variance)
    p = 2 * norm.sf(abs(difference) / np.sqrt(variance))
    return difference, max(-1.0, float(difference - half)), min(1.0, float(difference + half)), float(p)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Spearman's rank correlation of (n,) and (n,), and its 95 % interval (Fisher's z, Bonett and Wright 2000).

    (nan, -1, 1) with fewer than four pairs or a constant side; pairs with a nan are left out.
    """
    from scipy.stats import norm, spearmanr

    pairs = np.stack([np.asarray(first, float), np.asarray(second, float)], 1)
    pairs = pairs[np.isfinite(pairs).all(1)]
    n = len(pairs)
    if n < 4 or np.ptp(pairs, axis=0).min() == 0:
        return float("nan"), -1.0, 1.0
    found = float(spearmanr(*pairs.T).statistic)
    z = np.arctanh(np.clip(found, -1 + 1 / n, 1 - 1 / n))  # a perfect order of n pairs is no certainty
    half = norm.ppf((1 + LEVEL) / 2) * np.sqrt((1 + found**2 / 2) / (n - 3))
    low, high = np.tanh(z - half), np.tanh(z + half)
    return found, min(found, float(low)), max(found, float(high))


def holm(probabilities: list[float], level: float = 1 - LEVEL) -> list[bool]:
    """Which of several tests decide at ``level`` all together (Holm 1979)."""
    order, decided = np.argsort(probabilities, kind="stable"), [False] * len(probabilities)
    for rank, place in enumerate(order):
        if probabilities[place] > level / (len(order) - rank):
            break
        decided[place] = True
    return decided
