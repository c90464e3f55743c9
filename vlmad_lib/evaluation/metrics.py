"""Image and pixel metrics, exact or in bins, over a category's test images: AUROC, AP, F1-max, AUPRO, AUPIMO and more.

All follow from how many normal scores lie above each anomalous one (module ``pixel_ranking``; specification of metrics:
WinCLIP 6.5, AnomalyCLIP 6).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from vlmad_lib.data import image_files
from vlmad_lib.evaluation import pixel_ranking

NAN = float("nan")
FRAME = 518  # pixels of the frame in which a sigma of smoothing is given
COUNTED = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro", "aupimo")
PIXEL = (*COUNTED, "aupro_200")
BOUNDS = tuple(f"{name}_bound" for name in COUNTED)
BINS = 2**16
FEW_ALARMS = ("image_pauroc", "recall_at_1pct", "recall_at_0_1pct")
IMAGE = ("image_auroc", "image_ap", "image_f1_max", *FEW_ALARMS)
SATURATED = "spro"
SATURATED_LIMIT = 0.05  # the false positive rate up to which MVTec LOCO's authors count the saturated overlap
PARTIAL = 0.1  # the false-alarm rate up to which the partial AUROC is counted


def ranking(normal: np.ndarray, anomalous: np.ndarray) -> dict[str, float]:
    """AUROC, average precision and F1-max of two samples of scores, ties as in scikit-learn.

    All in [0, 1]; nan where a sample is empty.
    """
    return dict(zip(("auroc", "ap", "f1_max"), pixel_ranking.rank_scores(normal, anomalous).ranking(), strict=True))


def image_metrics(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Image metrics (``IMAGE``) of labels (0 normal, 1 anomalous) and scores, both (N,); all in [0, 1].

    ``image_pauroc``: the partial AUROC up to a false-alarm rate of ``PARTIAL``, standardised so that chance has 0.5
    (McClish 1989). ``recall_at_1pct`` and ``recall_at_0_1pct``: the share of the anomalous images above the lowest
    threshold that rejects no more than this share of the normal ones. nan where the share is less than one normal
    image, and where a class is missing.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    normal, anomalous = scores[labels == 0], scores[labels == 1]
    values = {f"image_{name}": value for name, value in ranking(normal, anomalous).items()}
    values["image_pauroc"] = _partial_auroc(normal, anomalous)
    rates = {"recall_at_1pct": 0.01, "recall_at_0_1pct": 0.001}
    return values | {name: recall_at(normal, anomalous, rate) for name, rate in rates.items()}


def _partial_auroc(normal: np.ndarray, anomalous: np.ndarray) -> float:
    """The standardised partial AUROC; nan where a class is missing or ``PARTIAL`` less than one normal image."""
    if len(normal) * PARTIAL < 1 - 1e-9:
        return NAN
    area, chance = PARTIAL * pixel_ranking.rank_scores(normal, anomalous).aupro(PARTIAL), PARTIAL**2 / 2
    return (1 + (area - chance) / (PARTIAL - chance)) / 2


def limit_at(normal: np.ndarray, rate: float) -> float:
    """The lowest threshold that at most the share ``rate`` of normal scores (k,) exceed; -inf where all may."""
    allowed = int(np.floor(rate * len(normal) + 1e-9))
    return float(np.sort(normal)[-allowed - 1]) if allowed < len(normal) else float("-inf")


def recall_at(normal: np.ndarray, anomalous: np.ndarray, rate: float) -> float:
    """The share of anomalous scores above the lowest threshold that at most ``rate`` of the normal ones exceed.

    Normal scores (k,) and anomalous ones (m,); in [0, 1], nan where m is 0 or the rate is less than one of k.
    """
    if rate * len(normal) + 1e-9 < 1 or not len(anomalous):
        return NAN
    return float((anomalous > limit_at(normal, rate)).mean())


def pixel_metrics(
    pairs: Iterable[tuple[np.ndarray, np.ndarray | pixel_ranking.Regions]],
    fpr_limit: float = 0.3,
    coarse: bool = True,
    bins: int = 0,
) -> dict[str, float]:
    """Pixel metrics (``PIXEL``) of (map, mask) pairs, float32 and bool of one shape (H, W) each, read once.

    A mask may be given as its ``pixel_ranking.find_regions``, which are found once for many maps.

    ``aupro``: mean overlap of the 8-connected regions against the false positive rate over all normal
    pixels, integrated exactly to ``fpr_limit`` and divided by it. ``aupro_200``: the same idea as the
    official AnomalyCLIP code computes it, for comparison with published figures only (``coarse=False``
    leaves it out). ``aupimo``: see ``pixel_ranking.Levels.aupimo``; nan also where the normal images have
    too few pixels.
    nan without normal or without anomalous pixels.

    With ``bins`` scores of one bin count as tied: memory does not grow with the number of pairs, and the metrics of
    ``BOUNDS`` say how far each value can be from the exact one (0 without bins). ``aupro_200`` is then nan.
    """
    images = pixel_ranking.split_pixels(pairs)
    if bins:
        levels, rough = pixel_ranking.count_in_bins(images, bins), NAN
    else:
        levels, rates, overlaps = pixel_ranking.count_exactly(images, 200 if coarse else 0)
        rough = NAN if levels.empty else _aupro_200(rates, overlaps)
    aupimo, off = levels.aupimo()
    values = (*levels.ranking(), levels.aupro(fpr_limit), aupimo, rough)
    bounds = (*(levels.bounds(fpr_limit) if bins else [NAN if levels.empty else 0.0] * 4), off)
    return dict(zip((*PIXEL, *BOUNDS), (*values, *bounds), strict=True))


def saturated_overlap(
    pairs: Iterable[tuple[np.ndarray, pixel_ranking.Regions]], limit: float = SATURATED_LIMIT, bins: int = 0
) -> float:
    """AU-sPRO (Bergmann et al. 2022) of (map, regions) pairs: saturated per-region overlap, integrated to ``limit``.

    The overlap of an annotated region of saturation area s is min(marked pixels / s, 1), where AUPRO has s = its area;
    its mean over all regions against the false positive rate over all pixels that no region marks is integrated
    exactly and divided by the limit. In [0, 1]; nan without annotated regions or without normal pixels. ``bins`` as in
    ``pixel_metrics``.
    """
    images = pixel_ranking.split_pixels(pairs, saturated=True)
    levels = pixel_ranking.count_in_bins(images, bins) if bins else pixel_ranking.count_exactly(images)[0]
    return levels.aupro(limit) if levels.weights.any() else NAN


def pixel_f1(pairs: Iterable[tuple[np.ndarray, np.ndarray]], threshold: float) -> float:
    """F1 of all pixels of (map, mask) pairs, arrays of one shape (H, W) each, that are marked above one threshold.

    With a threshold from normal images alone this is SegF1 (MVTec AD 2, Heckler-Kram et al. 2025). Pixels of all images
    are counted together; in [0, 1], 0 where nothing is marked, nan without an anomalous pixel.
    """
    hits = marked = anomalous = 0
    for scores, mask in pairs:
        above = scores > threshold
        hits, marked = hits + int((above & mask).sum()), marked + int(above.sum())
        anomalous += int(mask.sum())
    return 2 * hits / (marked + anomalous) if anomalous else NAN


def _aupro_200(rates: np.ndarray, overlaps: np.ndarray, limit: float = 0.3) -> float:
    """The area over thresholds spread evenly over the scores, kept below the limit and stretched to it: too low."""
    rates, overlaps = rates[rates < limit], overlaps[rates < limit]
    if rates.size < 2 or np.ptp(rates) == 0:
        return NAN
    area = float(-np.trapezoid(overlaps, (rates - rates.min()) / np.ptp(rates)))
    return min(1.0, max(0.0, area))  # none may be less than nothing by rounding


# ---------------------------------------------------------------- maps at the evaluation frame
# A kept map is (h, w), the anomaly score of each patch, or a stack (L + 1, h, w) where the method enlarges logits and
# not probabilities: L maps of logits, anomalous less normal, each enlarged before its sigmoid, and one of distances.
# The anomaly map of a stack is the sum of them all.


def grid_maps(kept: np.ndarray) -> np.ndarray:
    """Kept maps (T, h, w), or stacks of them (T, L + 1, h, w), as anomaly scores of patches (T, h, w)."""
    return kept if kept.ndim == 3 else _summed(torch.from_numpy(np.ascontiguousarray(kept, np.float32))).numpy()


def upsample(kept: np.ndarray, width: int, height: int) -> np.ndarray:
    """A kept map (h, w) or stack (L + 1, h, w) -> (height, width) float32, bilinear.

    A map is enlarged between cell centres (align_corners=False); each map of a stack corner on corner, as the official
    code of APRIL-GAN does, before its sigmoid.
    """
    values = torch.from_numpy(np.ascontiguousarray(kept, np.float32))
    if values.ndim == 2:
        return F.interpolate(values[None, None], (height, width), mode="bilinear", align_corners=False)[0, 0].numpy()
    return enlarge_stacks(values[None], width, height)[0].numpy()


def enlarge_stacks(stacks: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """The anomaly maps (T, height, width) of stacks (T, L + 1, h, w), each map enlarged corner on corner."""
    return _summed(F.interpolate(stacks, (height, width), mode="bilinear", align_corners=True))


def _summed(stacks: torch.Tensor) -> torch.Tensor:
    """The anomaly maps (T, h, w) of stacks (T, L + 1, h, w)."""
    return stacks[:, :-1].sigmoid().sum(1) + stacks[:, -1]


def framed_map(
    tiles: np.ndarray, width: int, height: int, fit: str, size: int, sigma: str | float = 0, seamless: bool = False
) -> np.ndarray:
    """The kept maps (or stacks) of an image's T boxes as one map at the evaluation frame, the mean where they overlap.

    Smoothed where ``sigma``, as the scores table has it ("" is none), says so: that of a Gaussian in pixels of a
    frame of 518, where AnomalyCLIP is evaluated; it scales with ``size``. ``seamless``, to be looked at and not to be
    measured: where boxes overlap one map passes into the next, so none begins or ends with a step.
    """
    framed = _framed(tiles, width, height, fit, size, seamless)
    sigma = float(sigma or 0) * size / FRAME
    return ndimage.gaussian_filter(framed, sigma) if sigma else framed


def _framed(tiles: np.ndarray, width: int, height: int, fit: str, size: int, seamless: bool) -> np.ndarray:
    columns, rows = image_files.frame(width, height, fit, size)
    tile_boxes = image_files.list_boxes(width, height, fit)
    if len(tile_boxes) == 1:
        return upsample(tiles[0], columns, rows)
    total, weights = np.zeros((rows, columns), np.float32), np.zeros((rows, columns), np.float32)
    for tile, (left, top, right, bottom) in zip(tiles, tile_boxes, strict=True):
        x0, x1 = round(left * columns / width), round(right * columns / width)
        y0, y1 = round(top * rows / height), round(bottom * rows / height)
        weight = _taper(x0, x1, columns) * _taper(y0, y1, rows)[:, None] if seamless else np.float32(1)
        total[y0:y1, x0:x1] += weight * upsample(tile, x1 - x0, y1 - y0)
        weights[y0:y1, x0:x1] += weight
    return total / weights


def _taper(start: int, end: int, length: int) -> np.ndarray:
    """Weights of a box's pixels along one axis: they vanish at its ends, but not at those of the image."""
    places = np.arange(start, end, dtype=np.float32) + 0.5
    before = places - start if start else np.full_like(places, np.inf)
    behind = end - places if end < length else np.full_like(places, np.inf)
    return np.minimum(np.minimum(before, behind), length)
