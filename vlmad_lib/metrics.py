"""Image and pixel metrics, exact: AUROC, AP, F1-max and AUPRO, over a category's test images.

Only the normal scores are sorted; every anomalous one is then looked up among them, which gives all
curves at once (specification of metrics: WinCLIP 6.5, AnomalyCLIP 6).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from vlmad_lib import data

EIGHT = np.ones((3, 3), bool)  # regions touch at corners too
NAN = float("nan")
FRAME = 518  # pixels of the frame in which a sigma of smoothing is given
PIXEL = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro", "aupro_200")
IMAGE = ("image_auroc", "image_ap", "image_f1_max")


def ranking(normal: np.ndarray, anomalous: np.ndarray) -> dict[str, float]:
    """AUROC, average precision and F1-max of two samples of scores, ties as in scikit-learn.

    All in [0, 1]; nan where a sample is empty.
    """
    normal, anomalous = np.sort(normal, axis=None), np.sort(anomalous, axis=None)
    return _ranking(normal, anomalous)


def _ranking(normal: np.ndarray, anomalous: np.ndarray) -> dict[str, float]:
    """The same of sorted samples."""
    if not normal.size or not anomalous.size:
        return dict.fromkeys(("auroc", "ap", "f1_max"), NAN)
    below = np.searchsorted(normal, anomalous, "left")
    below_or_tied = np.searchsorted(normal, anomalous, "right")
    auroc = (below.sum(dtype=np.float64) + below_or_tied.sum(dtype=np.float64)) / (2 * normal.size * anomalous.size)
    # Recall only rises, and F1 is only best, at the score of an anomalous sample: those are the thresholds.
    first = np.r_[True, anomalous[1:] != anomalous[:-1]]
    hits = anomalous.size - np.flatnonzero(first)
    alarms = hits + normal.size - below[first]
    steps = -np.diff(np.r_[hits, 0])
    ap = float((hits / alarms * steps).sum() / anomalous.size)
    f1_max = float((2 * hits / (alarms + anomalous.size)).max())
    return {"auroc": float(auroc), "ap": ap, "f1_max": f1_max}


def image_metrics(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Image AUROC, AP and F1-max of labels (0 normal, 1 anomalous) and scores, both (N,)."""
    labels, scores = np.asarray(labels), np.asarray(scores)
    found = ranking(scores[labels == 0], scores[labels == 1])
    return {f"image_{name}": value for name, value in found.items()}


def pixel_metrics(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], fpr_limit: float = 0.3, coarse: bool = True
) -> dict[str, float]:
    """Pixel AUROC, AP, F1-max and AUPRO of (map, mask) pairs, float32 and bool of one shape (H, W) each.

    ``aupro``: mean overlap of the 8-connected regions against the false positive rate over all normal
    pixels, integrated exactly to ``fpr_limit`` and divided by it. ``aupro_200``: the same idea as the
    official AnomalyCLIP code computes it, for comparison with published figures only (``coarse=False``
    leaves it out). nan without normal or without anomalous pixels.
    """
    normal, anomalous, regions = [], [], []
    low, high = np.inf, -np.inf
    for scores, mask in pairs:
        scores = np.asarray(scores, np.float32)
        if scores.shape != mask.shape:
            raise ValueError(f"A map has shape {scores.shape}, its mask {mask.shape}; give both the same frame.")
        low, high = min(low, scores.min()), max(high, scores.max())
        normal.append(scores[~mask])
        if mask.any():
            labelled, count = ndimage.label(mask, EIGHT)
            order = labelled[mask]
            regions += np.split(scores[mask][np.argsort(order, kind="stable")], np.bincount(order)[1:].cumsum()[:-1])
    normal = np.sort(np.concatenate(normal)) if normal else np.empty(0, np.float32)
    regions = [np.sort(region) for region in regions]
    anomalous = np.concatenate(regions) if regions else np.empty(0, np.float32)
    found = {f"pixel_{name}": value for name, value in _ranking(normal, np.sort(anomalous)).items()}
    found["aupro"] = _aupro(normal, regions, fpr_limit)
    found["aupro_200"] = _aupro_200(normal, regions, low, high) if coarse else NAN
    return found


def _aupro(normal: np.ndarray, regions: list[np.ndarray], limit: float) -> float:
    """Exact area: each anomalous pixel adds a ramp between the false positive rates above and at its score."""
    if not normal.size or not regions:
        return NAN
    scores = np.concatenate(regions)
    weights = np.repeat([1 / region.size for region in regions], [region.size for region in regions])
    start = 1 - np.searchsorted(normal, scores, "right") / normal.size
    end = 1 - np.searchsorted(normal, scores, "left") / normal.size
    width = np.maximum(end - start, 0)
    ramp = np.clip(limit - start, 0, width)
    rising = np.divide(ramp**2, 2 * width, out=np.zeros_like(ramp), where=width > 0)
    flat = np.maximum(limit - end, 0)
    return min(1.0, float((weights * (rising + flat)).sum() / len(regions) / limit))


def _aupro_200(normal: np.ndarray, regions: list[np.ndarray], low: float, high: float, limit: float = 0.3) -> float:
    """200 even thresholds over the score range, kept below the limit and stretched to it: biased downwards."""
    if not normal.size or not regions or not high > low:
        return NAN
    low, high = np.float32(low), np.float32(high)
    thresholds = np.arange(low, high, (high - low) / 200)
    overlap = np.mean([1 - np.searchsorted(region, thresholds, "right") / region.size for region in regions], axis=0)
    rate = 1 - np.searchsorted(normal, thresholds, "right") / normal.size
    kept = rate < limit
    rate, overlap = rate[kept], overlap[kept]
    if rate.size < 2 or rate.max() == rate.min():
        return NAN
    rate = (rate - rate.min()) / (rate.max() - rate.min())
    return float(-np.trapezoid(overlap, rate))


# ---------------------------------------------------------------- maps at the evaluation frame


def upsample(grid_map: np.ndarray, width: int, height: int) -> np.ndarray:
    """(h, w) -> (height, width) float32, bilinear between cell centres (align_corners=False)."""
    values = torch.from_numpy(np.ascontiguousarray(grid_map, np.float32))[None, None]
    return F.interpolate(values, (height, width), mode="bilinear", align_corners=False)[0, 0].numpy()


def framed_map(tiles: np.ndarray, width: int, height: int, fit: str, size: int, sigma: str | float = 0) -> np.ndarray:
    """The maps (T, h, w) of an image's boxes as one map at the evaluation frame, the mean where they overlap.

    Smoothed where ``sigma``, as the scores table has it ("" is none), says so: that of a Gaussian in pixels of a
    frame of 518, where AnomalyCLIP is evaluated; it scales with ``size``.
    """
    found = _framed(tiles, width, height, fit, size)
    sigma = float(sigma or 0) * size / FRAME
    return ndimage.gaussian_filter(found, sigma) if sigma else found


def _framed(tiles: np.ndarray, width: int, height: int, fit: str, size: int) -> np.ndarray:
    columns, rows = data.frame(width, height, fit, size)
    found = data.boxes(width, height, fit)
    if len(found) == 1:
        return upsample(tiles[0], columns, rows)
    total, count = np.zeros((rows, columns), np.float32), np.zeros((rows, columns), np.float32)
    for tile, (left, top, right, bottom) in zip(tiles, found, strict=True):
        x0, x1 = round(left * columns / width), round(right * columns / width)
        y0, y1 = round(top * rows / height), round(bottom * rows / height)
        total[y0:y1, x0:x1] += upsample(tile, x1 - x0, y1 - y0)
        count[y0:y1, x0:x1] += 1
    return total / count
