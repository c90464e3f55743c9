"""Scores by level: how many normal samples lie above each anomalous score, without sorting millions of pixels.

Pixels are counted by the bits of their scores, which is exact and takes four bytes a pixel, or in bins, which takes the
same memory for any number of images and says how far every value can be from the exact one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

EIGHT = np.ones((3, 3), bool)  # regions touch at corners too
NAN = float("nan")
WINDOW = 2**25  # neighbouring float32 values that are counted one by one: four powers of two, 128 MiB
FEW = 2**22  # so many scores are sorted as fast as a window is counted
BEND = np.float32(2**-10)  # bins are of one width for scores below it and grow with the score above
SHARED = 1e-5, 1e-4  # the shared false positive rates between which AUPIMO is integrated


class Shared(NamedTuple):
    """The pixels of the normal images alone, for AUPIMO, beside the levels they belong to, (L,) each.

    ``above`` and ``through``: the mean over normal images of the share of their pixels above the level, and above or at
    it; exact up to the end of ``SHARED``. ``weights``: what the anomalous pixels at the level are of their images'
    masks, summed. ``step``: the rate that one pixel makes, infinite without normal images.
    """

    above: np.ndarray
    through: np.ndarray
    weights: np.ndarray
    step: float


@dataclass(frozen=True)
class Levels:
    """The distinct scores of the anomalous samples from the highest down, (L,) each, beside all normal samples.

    ``above`` and ``through``: normal samples above the level, and above or at it. ``hits``: anomalous samples at it.
    ``weights``: what these are of their regions, summed (a region has 1 in all). ``normal``: all normal samples.
    """

    above: np.ndarray
    through: np.ndarray
    hits: np.ndarray
    weights: np.ndarray
    normal: int
    shared: Shared | None = None

    @property
    def empty(self) -> bool:
        """Whether a class is missing, so that nothing can be ranked."""
        return not (self.normal and self.hits.size)

    def ranking(self) -> tuple[float, float, float]:
        """AUROC, average precision and F1-max, ties as in scikit-learn; nan where a class is missing."""
        if self.empty:
            return NAN, NAN, NAN
        hits_so_far = self.hits.cumsum()
        auroc = 1 - (self.hits * (self.above + self.through)).sum() / (2.0 * self.normal * hits_so_far[-1])
        ap = (self.hits * (hits_so_far / (hits_so_far + self.through))).sum() / hits_so_far[-1]
        # Recall only rises, and F1 is only best, at the score of an anomalous sample: those are the thresholds.
        f1_max = (2 * hits_so_far / (hits_so_far + self.through + hits_so_far[-1])).max()
        return float(auroc), float(ap), float(f1_max)

    def aupro(self, limit: float) -> float:
        """Exact area to the limit: a level's weights rise evenly between the false positive rates above and at it."""
        if self.empty:
            return NAN
        start, end = self.above / self.normal, self.through / self.normal
        width = end - start
        ramp = np.clip(limit - start, 0, width)
        rising = np.divide(ramp**2, 2 * width, out=np.zeros_like(ramp), where=width > 0)
        return self._area(rising + np.maximum(limit - end, 0), limit)

    def aupimo(self) -> tuple[float, float]:
        """AUPIMO (Bertoldo et al. 2024, section 3) and how far it can be from the exact one.

        The mean over anomalous images of the share of their mask that is found, integrated over the logarithm of the
        shared false positive rate in ``SHARED`` and divided by its length. At a rate F the threshold is the lowest that
        gives no more than F: a pixel is found from the rate on that all normal pixels as high or higher make.
        (nan, nan) where a class is missing, or one normal pixel is more than the lowest rate.
        """
        low, high = SHARED
        if self.shared is None or not self.shared.weights.size or self.shared.step > low * (1 + 1e-9):
            return NAN, NAN
        lengths = [
            np.log(high / np.clip(rates, low, high)) / np.log(high / low)
            for rates in (self.shared.through, self.shared.above)
        ]
        value, most = (float((self.shared.weights * length).sum() / self.shared.weights.sum()) for length in lengths)
        return min(1.0, value), max(0.0, most - value)

    def _area(self, lengths: np.ndarray, limit: float) -> float:
        return min(1.0, float((self.weights * lengths).sum() / self.weights.sum() / limit))

    def bounds(self, limit: float) -> tuple[float, float, float, float]:
        """How far AUROC, AP, F1-max and AUPRO can be from the truth where a level holds different scores.

        The truth lies between all anomalous samples of a level above its normal ones and all of them below.
        """
        if self.empty:
            return NAN, NAN, NAN, NAN
        hits_so_far = self.hits.cumsum()
        total, first = hits_so_far[-1], hits_so_far - self.hits + 1
        auroc = (self.hits * (self.through - self.above)).sum() / (2.0 * self.normal * total)
        _, ap, f1_max = self.ranking()
        ap_high = (self.hits * (hits_so_far / (hits_so_far + self.above))).sum() / total
        ap_low = (self.hits * (first / (first + self.through))).sum() / total
        f1_high = (2 * hits_so_far / (hits_so_far + self.above + total)).max()
        aupro = self.aupro(limit)
        high, low = (self._area(np.maximum(limit - x / self.normal, 0), limit) for x in (self.above, self.through))
        return (
            float(auroc),
            float(max(ap_high - ap, ap - ap_low)),
            float(f1_high - f1_max),  # every level's end is a true threshold: the value can only be too low
            max(high - aupro, aupro - low),
        )


def rank_scores(normal: np.ndarray, anomalous: np.ndarray) -> Levels:
    """The levels of two samples of scores of any shape and type; each anomalous sample is a region of its own."""
    normal = np.sort(normal, axis=None)
    values, hits = np.unique(anomalous, return_counts=True)
    above, through = (normal.size - np.searchsorted(normal, values[::-1], side) for side in ("right", "left"))
    return Levels(above, through, hits[::-1], hits[::-1], normal.size)


class Part(NamedTuple):
    """One image: the scores of all its pixels (P,), those of anomalous ones (A,), 1 / (area of its region) of each.

    ``normal``: whether the image is a normal one, and not an anomalous one whose mask was lost.
    """

    scores: np.ndarray
    anomalous: np.ndarray
    weights: np.ndarray
    low: np.float32
    high: np.float32
    normal: bool = False


class Regions(NamedTuple):
    """A mask (H, W) as the places (A,) of its anomalous pixels in raster order, and 1 / (area of its region) of each.

    Regions touch at corners too. ``normal``: whether the image is a normal one. ``annotated``: regions that the data
    set itself tells apart, which may overlap, each as places among the A and its saturation area in pixels.
    """

    shape: tuple[int, int]
    place: np.ndarray
    weights: np.ndarray
    normal: bool
    annotated: tuple[tuple[np.ndarray, float], ...] = ()


def find_regions(
    mask: np.ndarray, normal: bool | None = None, annotated: Iterable[tuple[np.ndarray, float]] = ()
) -> Regions:
    """The 8-connected regions of a bool mask (H, W), found once where many maps meet it.

    ``normal``: whether the image is a normal one; by default one with an empty mask is. ``annotated``: regions that the
    data set tells apart, bool masks (H, W) inside ``mask``, each with the share of its area at which it saturates;
    those that mark nothing are left out.
    """
    rows = np.flatnonzero(mask.any(1))
    crop = slice(rows[0], rows[-1] + 1) if rows.size else slice(0)
    region = ndimage.label(mask[crop], EIGHT)[0][mask[crop]]
    normal = not rows.size if normal is None else normal
    place = np.flatnonzero(mask)
    inside = [(np.searchsorted(place, np.flatnonzero(part & mask)), share) for part, share in annotated]
    apart = tuple((places, share * places.size) for places, share in inside if places.size)
    return Regions(mask.shape, place, 1 / np.bincount(region)[region], normal, apart)


def find_regions_inside(
    mask: np.ndarray,
    inside: np.ndarray | None,
    normal: bool | None = None,
    annotated: Iterable[tuple[np.ndarray, float]] = (),
) -> Regions:
    """``find_regions`` of what of a mask lies ``inside`` (H, W) bool, for scores of those k pixels alone as (1, k).

    Of the whole mask where there is no ``inside``.
    """
    if inside is None:
        return find_regions(mask, normal, annotated)
    regions, order = find_regions(mask & inside, normal, annotated), inside.cumsum() - 1
    return regions._replace(shape=(1, int(inside.sum())), place=order[regions.place])


def split_pixels(pairs: Iterable[tuple[np.ndarray, np.ndarray | Regions]], saturated: bool = False) -> Iterator[Part]:
    """The images of (map, mask) pairs of one shape (H, W) each; a mask may be given as its regions.

    ``saturated``: pixels weigh what they add to the saturated overlap of annotated regions (``_saturated_weights``).
    ValueError where the shapes differ or a score is not finite.
    """
    for scores, mask in pairs:
        scores = np.asarray(scores, np.float32)
        regions = mask if isinstance(mask, Regions) else find_regions(mask)
        if scores.shape != regions.shape:
            raise ValueError(f"A map has shape {scores.shape}, its mask {regions.shape}; give both the same frame.")
        low, high = scores.min(), scores.max()
        if not np.isfinite([low, high]).all():
            raise ValueError("A map holds a score that is no finite number; correct what made it.")
        scores = scores.ravel()
        anomalous = scores[regions.place]
        weights = _saturated_weights(anomalous, regions) if saturated else regions.weights
        yield Part(scores, anomalous, weights, low, high, regions.normal)


def _saturated_weights(scores: np.ndarray, regions: Regions) -> np.ndarray:
    """What each anomalous pixel (A,) adds to the saturated overlaps of its annotated regions, as scores (A,) fall.

    The overlap of a region is min(marked pixels / saturation area, 1): its highest pixels add an equal share each until
    it is full, the others nothing, so a region has 1 in all. Which of its tied pixels come first does not matter.
    """
    weights = np.zeros(scores.size)
    for places, area in regions.annotated:
        falling = places[np.argsort(-scores[places], kind="stable")]
        weights[falling] += np.diff(np.minimum(np.arange(falling.size + 1) / area, 1))
    return weights


# ---------------------------------------------------------------- exact


def count_exactly(images: Iterable[Part], thresholds: int = 0) -> tuple[Levels, np.ndarray, np.ndarray]:
    """The levels of all images; and the false positive rate and the mean overlap above so many even thresholds.

    The thresholds start at the lowest score; there are none where all scores are equal.
    """
    keys, anomalous, weighed = [], [np.empty(0, np.float32)], [np.empty(0)]
    good, covered = [], [np.empty(0)]
    low, high = np.float32(np.inf), np.float32(-np.inf)
    for image in images:
        keys.append(_keys(image.scores))
        good += [keys[-1]] if image.normal else []
        anomalous.append(image.anomalous)
        weighed.append(image.weights)
        covered.append(np.full(image.anomalous.size, 1 / max(image.anomalous.size, 1)))
        low, high = min(low, image.low), max(high, image.high)
    values, place, hits = np.unique(np.concatenate(anomalous), return_inverse=True, return_counts=True)
    weights = np.bincount(place, np.concatenate(weighed), values.size)
    evenly = np.arange(low, high, (high - low) / np.float32(thresholds)) if thresholds and high > low else np.empty(0)
    evenly = _down(evenly)
    total, sums = sum(map(len, keys)), np.r_[0, hits.cumsum()]
    shared = _shared(good, _keys(values), np.bincount(place, np.concatenate(covered), values.size))
    below, upto = _ranks(keys, _keys(np.r_[values, evenly]))
    # All pixels were counted, without a look at their masks: the normal ones are what the anomalous ones leave.
    normal, at = total - int(sums[-1]), np.searchsorted(values, evenly, "right")
    through, above = normal - (below[: values.size] - sums[:-1]), normal - (upto[: values.size] - sums[1:])
    rates = 1 - (upto[values.size :] - sums[at]) / max(normal, 1)
    overlaps = 1 - np.r_[0, weights.cumsum()][at] / max(weights.sum(), 1)
    return Levels(above[::-1], through[::-1], hits[::-1], weights[::-1], normal, shared), rates, overlaps


def _shared(good: list[np.ndarray], at: np.ndarray, weights: np.ndarray) -> Shared:
    """The levels ``at`` (K,), rising, among the normal images' keys, from the highest down; ties are level with it."""
    tops, parts = [np.empty(0, np.int32)], [np.empty(0)]
    for keys in good:  # further down no image but this one is needed to pass the highest rate
        most = min(keys.size, int(np.ceil(SHARED[1] * len(good) * keys.size)) + 1)
        tops.append(np.partition(keys, keys.size - most)[keys.size - most :])
        parts.append(np.full(most, 1 / keys.size / len(good)))
    highest, shares = np.concatenate(tops), np.concatenate(parts)
    order = np.argsort(-highest.astype(np.int64), kind="stable")
    sums = np.r_[0, shares[order].cumsum()]
    through = sums[np.searchsorted(-highest[order].astype(np.int64), -at[::-1].astype(np.int64), "right")]
    return Shared(through, through, weights[::-1], _step([keys.size for keys in good]))


def _step(sizes: list[int]) -> float:
    """The shared false positive rate that one pixel of normal images of these sizes makes at most."""
    return 1 / min(sizes) / len(sizes) if sizes else float("inf")


def _down(values: np.ndarray) -> np.ndarray:
    """The next float32 values that are not higher."""
    near = values.astype(np.float32)
    return np.where(near > values, np.nextafter(near, np.float32(-np.inf)), near)


def _keys(scores: np.ndarray) -> np.ndarray:
    """The bits of float32 scores as int32 in the order of the scores; 0 and -0 are one."""
    bits = (scores + np.float32(0)).view(np.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _ranks(chunks: list[np.ndarray], at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many of the keys in chunks are below each key of ``at`` (K,), and how many not above it; empties the list.

    Keys are counted in one window after the other, where most are first, until the few that are left are sorted.
    """
    below, upto = np.zeros((2, at.size), np.int64)
    while (left := sum(map(len, chunks))) > FEW:
        start, size = _window(chunks)
        table = np.zeros(size + 1, np.int32 if left < 2**31 else np.int64)
        outside = []
        while chunks:
            keys = chunks.pop()
            place = np.subtract(keys, start - 1, dtype=np.intp)
            inside = (place > 0) & (place <= size)
            if not inside.all():
                outside.append(keys[~inside])
                place = place[inside]
            np.add.at(table, place, table.dtype.type(1))
        table.cumsum(out=table)
        place = np.subtract(at, start, dtype=np.intp)
        below += table[place.clip(0, size)]
        upto += table[(place + 1).clip(0, size)]
        chunks = outside
    rest = np.sort(np.concatenate([np.empty(0, np.int32), *chunks]))
    return below + np.searchsorted(rest, at, "left"), upto + np.searchsorted(rest, at, "right")


def _window(chunks: list[np.ndarray]) -> tuple[int, int]:
    """First key and length of the window that holds most keys; of all keys where they fit into one."""
    low, high = int(min(keys.min() for keys in chunks)), int(max(keys.max() for keys in chunks))
    if high - low < WINDOW:
        return low, high - low + 1
    pages = sum(np.bincount((keys >> 16) + 2**15, minlength=2**16) for keys in chunks)
    sums, width = np.r_[0, pages.cumsum()], WINDOW >> 16
    return (int(np.argmax(sums[width:] - sums[:-width])) - 2**15) << 16, WINDOW


# ---------------------------------------------------------------- binned


def count_in_bins(images: Iterable[Part], bins: int) -> Levels:
    """The levels of all images where scores of one bin count as tied; memory is that of one image and the bins."""
    table = Bins(bins)
    for image in images:
        table.add(image)
    return table.levels()


class Bins:
    """Counts of scores in at most ``size`` bins, which double their width where the range of scores needs it.

    A bin is a range of bent scores (see ``_bent``) that starts at a multiple of its width, so that two bins make
    exactly one of the next width: the bins follow from the range of all scores, in whatever order these come.
    """

    def __init__(self, size: int):
        if size < 2:
            raise ValueError(f"There are {size} bins; give at least 2.")
        self.size, self.shift, self.low, self.high = size, 0, 2**31, -(2**31)
        # all pixels, anomalous ones, what these are of their regions and of their masks, shares of normal images
        self.counts, self.good = np.zeros((5, size)), []

    def add(self, image: Part) -> None:
        """Count one image."""
        self._cover(int(_bent(image.low)), int(_bent(image.high)))
        pixels = np.bincount(self._places(image.scores), minlength=self.size)
        places = self._places(image.anomalous)
        hits = np.bincount(places, minlength=self.size)
        self.counts[0] += pixels
        self.counts[1] += hits
        self.counts[2] += np.bincount(places, image.weights, self.size)
        self.counts[3] += hits / max(image.anomalous.size, 1)
        if image.normal:
            self.counts[4] += pixels / image.scores.size
            self.good.append(image.scores.size)

    def _places(self, scores: np.ndarray) -> np.ndarray:
        return (_bent(scores) >> self.shift) - (self.low >> self.shift)

    def _cover(self, low: int, high: int) -> None:
        """Widen and move the bins until these bent scores have a place too."""
        used = np.arange(self.low >> self.shift, (self.high >> self.shift) + 1)
        low, high, shift = min(low, self.low), max(high, self.high), self.shift
        while (high >> shift) - (low >> shift) >= self.size:
            shift += 1
        if used.size and (shift, low >> shift) != (self.shift, self.low >> self.shift):
            places = (used >> (shift - self.shift)) - (low >> shift)
            self.counts = np.stack([np.bincount(places, row[: used.size], self.size) for row in self.counts])
        self.low, self.high, self.shift = low, high, shift

    def levels(self) -> Levels:
        """The bins that hold anomalous pixels as levels."""
        pixels, hits, weights, covered, shares = self.counts[:, ::-1]
        through = (pixels - hits).cumsum()
        above, at = through - (pixels - hits), hits > 0
        rates = np.r_[0, shares.cumsum() / max(len(self.good), 1)]
        shared = Shared(rates[:-1][at], rates[1:][at], covered[at], _step(self.good))
        return Levels(above[at], through[at], hits[at], weights[at], int(through[-1]), shared)


def _bent(scores: np.ndarray) -> np.ndarray:
    """Scores as int32 in their order: the bits of a score plus ``BEND``, mirrored for negative ones.

    Steps are even near zero (1e-10) and in proportion to the score beyond, so that an outlier costs few bins.
    """
    bits = (np.abs(scores) + BEND).view(np.int32) - BEND.view(np.int32)
    return np.where(scores < 0, -bits, bits)


# ---------------------------------------------------------------- resampled images


class CountsByImage:
    """Pixels of each image counted in common bins of their scores, so that resampled images are sums of counts.

    ``edges`` (B,) rise; scores between two edges count as tied. ``normal``, ``hits`` and ``weights`` are (images,
    B + 1): normal pixels, anomalous pixels, and what the latter are of their regions (a region has 1 in all).
    """

    def __init__(self, edges: np.ndarray, images: Iterable[Part]):
        self.edges, rows = np.unique(edges).astype(np.float32), []
        size = len(self.edges) + 1
        for image in images:
            anomalous = np.searchsorted(self.edges, image.anomalous)
            hits = np.bincount(anomalous, minlength=size)
            pixels = np.bincount(np.searchsorted(self.edges, image.scores), minlength=size)
            rows.append((pixels - hits, hits, np.bincount(anomalous, image.weights, size)))
        counts = np.array(rows, np.float32).reshape(-1, 3, size)
        self.normal, self.hits, self.weights = counts.transpose(1, 0, 2)

    def resampled(self, times: np.ndarray, limit: float) -> np.ndarray:
        """Pixel AUROC and AUPRO to ``limit``, (2, R), where each image comes ``times`` (R, images) often.

        nan where no normal or no anomalous pixel is left.
        """
        times = times.astype(np.float32)
        normal, hits, weights = (times @ counts[:, ::-1] for counts in (self.normal, self.hits, self.weights))
        with np.errstate(invalid="ignore", divide="ignore"):
            through = normal.cumsum(1, dtype=float) / normal.sum(1, keepdims=True, dtype=float)
            above = np.concatenate([np.zeros((len(times), 1)), through[:, :-1]], 1)
            auroc = 1 - (hits * (above + through)).sum(1) / 2 / hits.sum(1)
            width = through - above
            ramp = np.clip(limit - above, 0, width)
            rising = np.divide(ramp**2, 2 * width, out=np.zeros_like(ramp), where=width > 0)
            area = rising + np.maximum(limit - through, 0)
            return np.stack([auroc, (weights * area).sum(1) / weights.sum(1) / limit])


def spread_edges(scores: np.ndarray) -> np.ndarray:
    """Edges for ``CountsByImage`` from a sample of normal scores: close together where false positives are few."""
    shares = np.concatenate([np.geomspace(1e-5, 0.3, 150), np.linspace(0.3, 1, 50)])
    return np.quantile(scores, 1 - shares)
