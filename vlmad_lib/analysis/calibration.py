"""Scores as probabilities: reliability, the expected calibration error, and curves fitted on other categories.

A score in [0, 1] is calibrated where, of the images that get 0.7, 70 % are defective. That holds for one share of
defective images, here the test set's; on a line with fewer defects the same score means less.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from vlmad_lib import tables
from vlmad_lib.evaluation import statistics

BINS, FULL = 10, 10  # bins, fewer where one would hold fewer images than this
RESAMPLES = 500
ENDS = (1 - statistics.LEVEL) / 2, (1 + statistics.LEVEL) / 2
AS_RUN = "as run"
CURVES = ("logistic", "isotonic")
"""Platt's logistic curve of the score, and the best rising step function."""


def _places(scores: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each of the scores (..., N); bins of about equal count, ties in one; as many as allowed for 0.

    A bin that ties left without a score has no place: places may skip numbers.
    """
    scores = np.asarray(scores)
    bins = bins or max(2, min(BINS, scores.shape[-1] // FULL))
    edges = np.quantile(scores, np.linspace(0, 1, bins + 1)[1:-1], axis=-1)
    return (scores >= edges[..., None]).sum(0)


def reliability(labels: np.ndarray, scores: np.ndarray, bins: int = 0) -> pd.DataFrame:
    """Mean score and share of defective images by bin, with Wilson's 95 % interval of the share."""
    cells = pd.DataFrame({"score": scores, "share": labels}).groupby(_places(scores, bins))
    table = cells.mean().assign(n=cells.size()).reset_index(drop=True)
    ends = [statistics.wilson(*pair) for pair in zip(table.share * table.n, table.n, strict=True)]
    return table.assign(low=[low for low, _ in ends], high=[high for _, high in ends])


def error(labels: np.ndarray, scores: np.ndarray, bins: int = 0) -> np.ndarray:
    """Expected calibration errors (...) of labels (..., N) and scores (..., N).

    The mean gap of mean score and share over bins, weighted by their counts.
    """
    places, gaps = _places(scores, bins), labels - scores
    sums = [np.where(places == place, gaps, 0).sum(-1) for place in range(places.max() + 1)]
    return np.abs(sums).sum(0) / scores.shape[-1]


def brier(labels: np.ndarray, scores: np.ndarray) -> float:
    """Mean squared difference of score and label, 0 to 1; a constant score of the base rate p has p (1 - p)."""
    return float(np.mean((scores - labels) ** 2))


def interval(
    labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, bins: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95 % interval of ``error``: images resampled within their group (N,), percentiles.

    Resampling adds to the error as few images do, so the lower end may be too high; it is kept below the estimate.
    """
    drawn = _drawn(groups, resamples)
    low, high = np.quantile(error(labels[drawn], scores[drawn], bins), ENDS)
    here = float(error(labels, scores, bins))
    return min(float(low), here), max(float(high), here)


def _drawn(groups: np.ndarray, resamples: int) -> np.ndarray:
    """(resamples, N) places of images resampled within their group (N,)."""
    stream = np.random.default_rng(0)
    members = [np.flatnonzero(groups == one) for one in pd.unique(groups)]
    return np.concatenate([stream.choice(some, (resamples, len(some))) for some in members], 1)


def against_constant(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, resamples: int = RESAMPLES) -> str:
    """Whether the Brier score is ``better`` or ``worse`` than that of the labels' own share, or ``not told from`` it.

    By the 95 % interval of their difference, image by image: resampled within their group (N,), percentiles.
    """
    lost = (scores - labels) ** 2 - (labels.mean() - labels) ** 2
    low, high = np.quantile(lost[_drawn(groups, resamples)].mean(1), ENDS)
    return "better than" if high < 0 else "worse than" if low > 0 else "not told from"


def chance(scores: np.ndarray, bins: int = 0, resamples: int = RESAMPLES) -> float:
    """The error that perfectly calibrated scores stay below with probability 0.95: few images alone make some."""
    labels = np.random.default_rng(0).random((resamples, len(scores))) < scores
    return float(np.quantile(error(labels, scores, bins), statistics.LEVEL))


# ---------------------------------------------------------------- curves fitted on other categories


def fitted(labels: np.ndarray, scores: np.ndarray, new: np.ndarray, curve: str) -> np.ndarray:
    """Probabilities (M,) of new scores by a rising curve fitted on labels (N,) and scores (N,)."""
    if curve == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        return IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, labels).predict(new)
    from sklearn.linear_model import LogisticRegression

    centre, width = scores.mean(), scores.std() or 1.0
    model = LogisticRegression(C=1e3).fit((scores[:, None] - centre) / width, labels)
    return model.predict_proba((new[:, None] - centre) / width)[:, 1]


def elsewhere(part: pd.DataFrame, curve: str) -> np.ndarray | None:
    """Each category's scores through the curve of all other categories; None where those lack one of the labels."""
    found = pd.Series(np.nan, part.index)
    for category, own in part.groupby("category"):
        others = part[part.category != category]
        if others.label.nunique() < 2:
            return None
        found[own.index] = fitted(others.label.to_numpy(), others.score.to_numpy(), own.score.to_numpy(), curve)
    return found.to_numpy()


def versions(scores: pd.DataFrame, shots: int = 0) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Each method (first reference draw) as run, if its scores lie in [0, 1], and by the curves."""
    for name, part in tables.select_first_draw(scores, shots).groupby("method", sort=False):
        part = part.reset_index(drop=True)
        if part.label.nunique() < 2:
            continue
        if part.score.between(0, 1).all():
            yield name, AS_RUN, part
        for curve in CURVES:
            values = elsewhere(part, curve)
            if values is not None:
                yield name, curve, part.assign(score=values)


def table(scores: pd.DataFrame, shots: int = 0, bins: int = 0) -> pd.DataFrame:
    """Expected calibration error with its 95 % interval and Brier score by method and version.

    ``chance`` is what calibrated scores would stay below with probability 0.95, ``constant`` the Brier score of the
    test set's own share of defective images, *against it* what ``against_constant`` says.
    """
    rows = []
    for name, version, part in versions(scores, shots):
        labels, values = part.label.to_numpy(), part.score.to_numpy()
        groups = part.category.to_numpy()
        low, high = interval(labels, values, groups, bins)
        found = {"error": error(labels, values, bins), "low": low, "high": high, "chance": chance(values, bins)}
        share = labels.mean()
        found |= {"brier": brier(labels, values), "constant": share * (1 - share)}
        found |= {"against it": against_constant(labels, values, groups), "n": len(part)}
        rows.append({"method": name, "version": version} | found)
    columns = ["method", "version", "error", "low", "high", "chance", "brier", "constant", "against it", "n"]
    return pd.DataFrame(rows, columns=columns)


def findings(found: pd.DataFrame, methods: list[str]) -> str:
    """Whether scores can be read as probabilities, and whether a borrowed curve helps, as a Markdown list."""
    lines = []
    for name in methods:
        part = found[found.method == name]
        if part.empty:
            lines.append(f"**{name}**: no calibration without both labels and, outside [0, 1], a second category.")
            continue
        told = []
        for row, against in zip(part.itertuples(), part["against it"], strict=True):
            word = "not calibrated" if row.error > row.chance else "not told from calibrated"
            told.append(
                f"{row.version}: error {row.error:.3f} ({row.low:.3f} to {row.high:.3f}), {word}; Brier "
                f"{row.brier:.3f}, {against} a constant's {row.constant:.3f}"
            )
        outside = "" if AS_RUN in set(part.version) else " Its scores leave [0, 1] and are no probabilities as such."
        lines.append(f"**{name}**, n = {tables.format_counts(part.n, 'images')}: {'; '.join(told)}.{outside}")
    return "\n".join(f"- {line}" for line in lines)
