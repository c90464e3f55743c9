"""Intervals and tests: images are the unit, resampled within normal and anomalous (stratified percentile bootstrap).

Where there is little to resample (near-perfect separation, a handful of images) Wilson's interval takes the place of
the bootstrap or widens it: no interval is narrower than the data allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

RESAMPLES = 2000
MOST_RESAMPLES = 4000  # put five beyond each end of the intervals of twenty comparisons together
LEVEL = 0.95
FEW = 8  # with fewer images on either side a bootstrap is too sure
ENOUGH = 5  # categories from which on they are the unit of an interval; of fewer the images are
RARE = 3  # with fewer images than this on the wrong side one more or less would move the bootstrap's ends much


def percent(level: float) -> str:
    """A level that was set, for people, not rounded: ``2.5%``."""
    return f"{100 * level:g}%"


def wilson(hits: float, n: float, level: float = LEVEL) -> tuple[float, float]:
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
    sums = []
    for good, bad in zip(normal, anomalous, strict=True):
        wins = (bad[:, None] > good) + 0.5 * (bad[:, None] == good)
        sums.append(((counts[1] @ wins.astype(np.float32)) * counts[0]).sum(1))
    return np.stack(sums) / (normal.shape[1] * anomalous.shape[1])


def auroc_interval(
    labels: np.ndarray, scores: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the AUROC of labels (N,) and scores (N,), or of the mean over runs of scores (runs, N).

    Where a class has fewer than ``FEW`` images the interval is Wilson's for the smaller class; where separation is
    near perfect, either way, it is the wider of both. (nan, nan) with one class only.
    """
    labels, scores = np.asarray(labels), np.atleast_2d(np.asarray(scores, float))
    n = min((labels == 0).sum(), (labels == 1).sum())
    if not n:
        return float("nan"), float("nan")
    if n < FEW:
        return wilson(n * _auroc(labels, scores), n)
    resampled = _resampled(labels, scores, resamples, seed).mean(0)
    return _ends(resampled, n)


def _auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """The mean over runs of the AUROC of scores (runs, N)."""
    return float(np.mean([win.mean() for win in map(partial(wins, labels), scores)]))


def wins(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The share of normal images that each anomalous image outscores, ties as half: their mean is the AUROC.

    labels (N,) in {0, 1}, scores (N,); returns (anomalous,) in [0, 1], nan without normal images.
    """
    normal, anomalous = np.sort(scores[labels == 0]), scores[labels == 1]
    if not len(normal):
        return np.full(len(anomalous), np.nan)
    below, upto = (np.searchsorted(normal, anomalous, side) for side in ("left", "right"))
    return (below + upto) / 2 / len(normal)


def _ends(resampled: np.ndarray, n: float) -> tuple[float, float]:
    """The interval of resampled AUROCs; not narrower than Wilson's where nearly all of the n images agree."""
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    middle = resampled.mean()
    if n * min(middle, 1 - middle) < RARE:
        least, most = wilson(np.clip(middle, 0, 1) * n, n)
        low, high = min(low, least), max(high, most)
    return float(low), float(high)


def _combined(estimates: list[tuple[float, float, float, int]]) -> tuple[float, float]:
    """Interval of the mean of independent figures: (figure, low, high, how many categories it stands for) each.

    Squared distances to the ends add up, each side for itself (Zou and Donner 2008); of one figure its own interval.
    """
    figures, lows, highs, weights = np.array(estimates).T
    weights = weights / weights.sum()
    mean = weights @ figures
    below, above = (np.sqrt(np.sum((weights * (figures - ends)) ** 2)) for ends in (lows, highs))
    return float(mean - below), float(mean + above)


def macro_interval(scores: pd.DataFrame, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the macro mean image AUROC over the categories of a scores table.

    Rows of several seeds are averaged within their category. The categories are taken as given: the
    interval speaks of other images of the same categories. Those with a class of fewer than ``FEW`` images have
    Wilson's interval each; of one category it is ``auroc_interval``.
    """
    estimates, means, smallest = [], [], 0
    for number, (_, rows) in enumerate(scores.groupby("category")):
        runs = _runs(rows)
        labels = _labels(rows, runs.index)
        n, values = np.bincount(labels, minlength=2).min(), runs.to_numpy().T
        if n == 0:
            continue
        if n < FEW:
            auroc = _auroc(labels, values)
            estimates.append((auroc, *wilson(n * auroc, n), 1))
            continue
        means.append(_resampled(labels, values, resamples, seed + number).mean(0))
        smallest += n
    if means:
        resampled = np.mean(means, axis=0)
        estimates.append((resampled.mean(), *_ends(resampled, smallest), len(means)))
    return _combined(estimates) if estimates else (float("nan"), float("nan"))


def _runs(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores by image and reference draw, of the draws that scored every image."""
    rows, images = pd.factorize(scores.image, sort=True)
    columns, seeds = pd.factorize(scores.seed, sort=True)
    values = np.full((len(images), len(seeds)), np.nan)
    values[rows, columns] = scores.score
    return pd.DataFrame(values, images, seeds).dropna(axis=1)


def _labels(scores: pd.DataFrame, images: pd.Index) -> np.ndarray:
    rows, names = pd.factorize(scores.image)
    labels = np.zeros(len(names), int)
    labels[rows] = scores.label
    return labels[names.get_indexer(images)]


def macro_difference(
    first: pd.DataFrame, second: pd.DataFrame, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> tuple[float, float, float]:
    """Difference of the macro mean image AUROCs of two scores tables and its interval at ``level``, paired by image.

    Both are resampled alike, over the images that both scored. Categories with a class of fewer than ``FEW`` images
    have the interval of two Wilson intervals (Newcombe 1998). (nan, -1, 1) where no category can be compared.
    """
    estimates, drawn, plain, smallest = [], [], [], 0
    for number, (category, rows) in enumerate(first.groupby("category")):
        sides = [_runs(rows), _runs(second[second.category == category])]
        shared = sides[0].index.intersection(sides[1].index)
        labels = _labels(rows, shared)
        n = np.bincount(labels, minlength=2).min()
        if n == 0:
            continue
        runs = [side.loc[shared].to_numpy().T for side in sides]
        aurocs = [_auroc(labels, side) for side in runs]
        plain.append(aurocs[0] - aurocs[1])
        if n < FEW:
            estimates.append((plain[-1], *_apart(aurocs, (n, n), level), 1))
            continue
        resampled = _resampled(labels, np.concatenate(runs), resamples, seed + number)
        drawn.append(resampled[: len(runs[0])].mean(0) - resampled[len(runs[0]) :].mean(0))
        smallest += n
    if not plain:
        return float("nan"), -1.0, 1.0
    if drawn:
        resampled = np.mean(drawn, axis=0)
        low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
        least = _blind(smallest, level) if low == high else 0.0
        estimates.append((resampled.mean(), low - least, high + least, len(drawn)))
    low, high = _combined(estimates)
    return float(np.mean(plain)), max(-1.0, low), min(1.0, high)


def _apart(aurocs: Sequence[float], counts: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Interval of the first of two AUROCs less the second, from Wilson's of each with its count of images."""
    first, second = aurocs
    ends = [wilson(auroc * n, n, level) for auroc, n in zip(aurocs, counts, strict=True)]
    below = np.hypot(first - ends[0][0], ends[1][1] - second)
    above = np.hypot(ends[0][1] - first, second - ends[1][0])
    return first - second - below, first - second + above


def _blind(n: int, level: float = LEVEL) -> float:
    """How far a difference can be from zero although n images show none."""
    return 1 - wilson(n, n, level)[0]


def resamples_at(level: float) -> int:
    """How many resamples put at least five beyond each end of an interval at ``level``."""
    return max(RESAMPLES, int(np.ceil(10 / (1 - level))))


def resample_images(labels: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """(resamples, N) how often each image of labels (N,) is drawn, normal and anomalous ones each among themselves."""
    stream, times = np.random.default_rng(seed), np.zeros((resamples, len(labels)), int)
    for label in (0, 1):
        side = labels == label
        times[:, side] = stream.multinomial(side.sum(), np.full(side.sum(), 1 / max(side.sum(), 1)), resamples)
    return times


def bootstrap_ends(differences: np.ndarray, level: float = LEVEL) -> tuple[float, float, float]:
    """The interval of a difference at ``level`` and the two-sided p that it is none, from its resampled values (R,)."""
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(low), float(high), min(1.0, 2 * (tail + 1) / (len(differences) + 1))


def together(count: int) -> float:
    """The level of each of some intervals that hold at 95 % all together (Bonferroni)."""
    return 1 - (1 - LEVEL) / count


def paired(differences: np.ndarray, level: float = LEVEL) -> tuple[float, float, float]:
    """Mean of paired differences (n,) and its interval by Student's t; an infinite one where n is below 2.

    Infinite too where they do not vary but are not zero: they say nothing of how much they could. Where all are zero
    both ends are: what was measured is the same, which decides nothing.
    """
    from scipy.stats import t

    differences = np.asarray(differences, float)
    n, mean = len(differences), float(differences.mean()) if len(differences) else float("nan")
    if n < 2:
        return mean, float("-inf"), float("inf")
    if np.ptp(differences) < 1e-12:  # what rounding leaves of equal differences is no spread
        return (0.0, 0.0, 0.0) if abs(mean) < 1e-12 else (mean, float("-inf"), float("inf"))
    half = float(t.ppf((1 + level) / 2, n - 1) * differences.std(ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half


def paired_test(differences: np.ndarray, level: float = LEVEL) -> tuple[float, float, float]:
    """The ends of ``difference``'s interval at ``level`` and the two-sided p of the paired t test.

    p is 1 where the differences do not vary, which tells nothing; the ends are nan with fewer than two differences.
    """
    from scipy.stats import ttest_1samp

    differences = np.asarray(differences, float)
    _, low, high = difference(differences, level)
    if len(differences) < 2:
        return float("nan"), float("nan"), 1.0
    flat = np.ptp(differences) < 1e-12
    return low, high, 1.0 if flat else float(ttest_1samp(differences, 0).pvalue)


def difference(values: np.ndarray, level: float = LEVEL) -> tuple[float, float, float]:
    """``paired`` of the known differences of AUROCs (n,), its interval kept within [-1, 1]."""
    values = np.asarray(values, float)
    mean, low, high = paired(values[np.isfinite(values)], level)
    return mean, max(low, -1.0), min(high, 1.0)


# ---------------------------------------------------------------- kinds of defects, by category


def subset_difference(
    normal: np.ndarray, first: np.ndarray, second: np.ndarray, level: float = LEVEL, seed: int = 0
) -> tuple[float, float, float]:
    """AUROC of some anomalous images of one category less that of others, and its interval at ``level`` over images.

    Scores of the category's normal images (n,) and of the two kinds (m,), (k,), which the same resampled normal images
    judge. Where there are few images, or both kinds are near perfect, the interval is not narrower than that of two
    Wilson intervals. (nan, -1, 1) where any of the three is empty.
    """
    if not min(map(len, (normal, first, second))):
        return float("nan"), -1.0, 1.0
    labels = np.repeat([0, 1], [len(normal), len(first) + len(second)])
    over = np.split(wins(labels, np.r_[normal, first, second]), [len(first)])
    aurocs = [float(side.mean()) for side in over]
    counts = [min(len(normal), len(side)) for side in over]
    low, high = _apart(aurocs, counts, level)
    if min(counts) >= FEW:
        resamples = resamples_at(level)
        judges = np.random.default_rng(seed).multinomial(len(normal), np.full(len(normal), 1 / len(normal)), resamples)
        drawn = []
        for number, side in enumerate((first, second)):
            stream = np.random.default_rng([seed, number])
            counted = stream.multinomial(len(side), np.full(len(side), 1 / len(side)), resamples)
            outscored = (side[:, None] > normal) + 0.5 * (side[:, None] == normal)
            drawn.append(((counted @ outscored) * judges).sum(1) / (len(side) * len(normal)))
        ends = np.quantile(drawn[0] - drawn[1], [(1 - level) / 2, (1 + level) / 2])
        rare = all(n * min(auroc, 1 - auroc) < RARE for n, auroc in zip(counts, aurocs, strict=True))
        low, high = (min(low, ends[0]), max(high, ends[1])) if rare else ends
    return aurocs[0] - aurocs[1], max(-1.0, float(low)), min(1.0, float(high))


def category_mean(
    estimates: Sequence[tuple[float, float, float]], over_images: bool, level: float = LEVEL, least: float = 0.0
) -> tuple[float, float, float]:
    """Mean over categories of a figure in [``least``, 1], and its interval at ``level``.

    ``estimates``: each category's figure and the ends of its own interval over images. Images of one category are not
    independent, so the categories are the unit: Student's t over them. Shares (``least`` 0) of one category, or that
    are all the same, have Wilson's interval for as many categories. ``over_images``: the categories are taken as
    given, their own intervals combine, and the result speaks of no other category. (nan, least, 1) of no category.
    """
    if not len(estimates):
        return float("nan"), least, 1.0
    figures = np.array(estimates, float)[:, 0]
    mean, low, high = paired(figures, level)
    if over_images:
        low, high = _combined([(*estimate, 1) for estimate in estimates])
    elif least == 0 and (len(estimates) == 1 or np.ptp(figures) < 1e-12):
        low, high = wilson(mean * len(estimates), len(estimates), level)
    return mean, max(least, low), min(1.0, high)


def local_share(
    values: np.ndarray,
    hits: np.ndarray,
    clusters: np.ndarray,
    weights: np.ndarray,
    at: np.ndarray,
    level: float = LEVEL,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The share of ``hits`` (n,) near each value of ``at`` (m,), and the two ends of its band: three arrays (m,).

    ``values`` (n,) weigh by a Gaussian of their distance (Nadaraya and Watson; Silverman's bandwidth) and by
    ``weights`` (n,). The band holds at ``level`` for each point by itself: Student's t on the jackknife that leaves out
    one of the ``clusters`` (n,) at a time, and never narrower than Wilson's interval for as many independent images as
    count at that point. (nan, 0, 1) everywhere with fewer than two clusters or without spread.
    """
    from scipy.stats import t

    values, hits, weights, at = (np.asarray(array, float) for array in (values, hits, weights, at))
    codes, names = pd.factorize(np.asarray(clusters))
    n, spread = len(names), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    if n < 2 or spread == 0:
        return tuple(np.full(len(at), value) for value in (np.nan, 0.0, 1.0))
    near = np.exp(-0.5 * ((at[:, None] - values) / (1.06 * spread * len(values) ** -0.2)) ** 2) * weights
    belongs = np.eye(n)[codes]
    total, hit = near @ belongs, (near * hits) @ belongs  # (m, clusters)
    share = hit.sum(1) / total.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        without = (hit.sum(1, keepdims=True) - hit) / (total.sum(1, keepdims=True) - total)
    variance = (n - 1) / n * np.square(without - without.mean(1, keepdims=True)).sum(1)
    half = t.ppf((1 + level) / 2, n - 1) * np.sqrt(np.nan_to_num(variance, nan=np.inf))
    counts = np.square(near.sum(1)) / np.square(near).sum(1)
    ends = np.array([wilson(mean * count, count, level) for mean, count in zip(share, counts, strict=True)])
    low, high = np.minimum(share - half, ends[:, 0]), np.maximum(share + half, ends[:, 1])
    return share, np.clip(low, 0, 1), np.clip(high, 0, 1)


# ---------------------------------------------------------------- two methods, two measures


def delong(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[float, float, float, float]:
    """Difference of two AUROCs on the same images, its 95 % interval and two-sided p (DeLong et al. 1988).

    labels (N,) in {0, 1}, scores (N,) of two methods, which need not share a scale. The interval is (-1, 1) and p is
    1 where the images cannot tell: a class has fewer than ``FEW``. Where no image counts for one method more than for
    the other p is 1 too.
    """
    from scipy.stats import norm

    difference, variance, n = _delong_variance(np.asarray(labels), np.atleast_2d(first), np.atleast_2d(second))
    if n < FEW:
        return difference, -1.0, 1.0, 1.0
    if variance == 0:
        least = _blind(n)
        return difference, difference - least, difference + least, 1.0
    half = norm.ppf((1 + LEVEL) / 2) * np.sqrt(variance)
    p = 2 * norm.sf(abs(difference) / np.sqrt(variance))
    return difference, max(-1.0, float(difference - half)), min(1.0, float(difference + half)), float(p)


def _delong_variance(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[float, float, int]:
    """Difference of two mean AUROCs over runs of scores (runs, N), its variance, and the images of the smaller class.

    The variance is nan with fewer than two images of a class.
    """
    n = int(np.bincount(labels, minlength=2).min())
    over, under = [], []
    for runs in (np.asarray(first, float), np.asarray(second, float)):
        over.append(np.mean([wins(labels, run) for run in runs], axis=0))
        # a normal image is outscored by anomalous ones where its own negative outscores theirs
        under.append(np.mean([wins(1 - labels, -run) for run in runs], axis=0))
    difference = float(np.mean(over[0]) - np.mean(over[1])) if len(over[0]) else float("nan")
    if n < 2:
        return difference, float("nan"), n
    return difference, sum(np.var(a - b, ddof=1) / len(a) for a, b in (over, under)), n


def macro_delong(first: pd.DataFrame, second: pd.DataFrame) -> float:
    """DeLong's two-sided p of two macro mean image AUROCs, of scores tables as in ``macro_difference``.

    Categories are taken as given. 1 where one of them has a class of fewer than ``FEW`` images, or nothing varies.
    """
    from scipy.stats import norm

    estimates = []
    for category, rows in first.groupby("category"):
        sides = [_runs(rows), _runs(second[second.category == category])]
        shared = sides[0].index.intersection(sides[1].index)
        labels = _labels(rows, shared)
        if labels.size and labels.min() != labels.max():
            estimates.append(_delong_variance(labels, *(side.loc[shared].to_numpy().T for side in sides)))
    if not estimates or min(n for *_, n in estimates) < FEW:
        return 1.0
    differences, variances, _ = np.array(estimates).T
    spread = np.sqrt(variances.sum())
    return float(2 * norm.sf(abs(differences.sum()) / spread)) if spread else 1.0


def rank_correlation(first: np.ndarray, second: np.ndarray, level: float = LEVEL) -> tuple[float, float, float]:
    """Spearman's rank correlation of (n,) and (n,), and its interval (Fisher's z, Bonett and Wright 2000).

    (nan, -1, 1) with fewer than four pairs or a constant side; pairs with a nan are left out.
    """
    from scipy.stats import norm, spearmanr

    pairs = np.stack([np.asarray(first, float), np.asarray(second, float)], 1)
    pairs = pairs[np.isfinite(pairs).all(1)]
    n = len(pairs)
    if n < 4 or np.ptp(pairs, axis=0).min() == 0:
        return float("nan"), -1.0, 1.0
    correlation = float(spearmanr(*pairs.T).statistic)
    z = np.arctanh(np.clip(correlation, -1 + 1 / n, 1 - 1 / n))  # a perfect order of n pairs is no certainty
    half = norm.ppf((1 + level) / 2) * np.sqrt((1 + correlation**2 / 2) / (n - 3))
    low, high = np.tanh(z - half), np.tanh(z + half)
    return correlation, min(correlation, float(low)), max(correlation, float(high))


def holm(probabilities: list[float], level: float = 1 - LEVEL) -> list[bool]:
    """Which of several tests decide at ``level`` all together (Holm 1979)."""
    order, decided = np.argsort(probabilities, kind="stable"), [False] * len(probabilities)
    for rank, place in enumerate(order):
        if probabilities[place] > level / (len(order) - rank):
            break
        decided[place] = True
    return decided


def holm_levels(probabilities: list[float], level: float = 1 - LEVEL) -> list[float]:
    """The level of each test's interval that agrees with ``holm``: without zero just where the test decides.

    That of a test which decides is the level of its step; those of all others are the level of the first that failed.
    """
    decided, count = holm(probabilities, level), len(probabilities)
    order = np.argsort(probabilities, kind="stable")
    steps, rejected = [0.0] * count, sum(decided)
    for rank, place in enumerate(order):
        steps[place] = 1 - level / (count - min(rank, rejected))
    return steps


def format_category_interval(values: pd.Series) -> str:
    """Student's 95 % interval of a mean over categories, within [0, 1]: ``0.701 to 0.895``; empty of one category."""
    _, low, high = paired(values.dropna())
    return f"{max(low, 0):.3f} to {min(high, 1):.3f}" if np.isfinite(low) else ""
