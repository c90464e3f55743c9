"""Speed, memory and error of the pixel metrics: ``python tests/benchmarks/metrics.py`` exits 1 where a bar is missed.

Maps of 37x37 upsampled to 518 px, discs as defects on three images of four, 3 % of the pixels. Bars are ratios within
one run, on one core and in processor time, so that other work on the machine counts for little. Memory is what Python
and NumPy allocate beside the given maps and masks (tracemalloc).
"""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import torch
from common import row, show
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from vlmad_lib.evaluation import metrics

SIZE, GRID, SIGMA, THRESHOLDS, FEW = 518, 37, 4, 200, 10


def case(images: int) -> tuple[np.ndarray, np.ndarray]:
    """Grid maps (N, 37, 37) in (0, 1) and masks (N, 518, 518), seeded; defects are found more or less well."""
    stream = np.random.default_rng(0)
    grids, masks = np.empty((images, GRID, GRID), np.float32), np.zeros((images, SIZE, SIZE), bool)
    rows, columns = np.ogrid[:SIZE, :SIZE]
    for i, mask in enumerate(masks):
        for _ in range(stream.integers(1, 5) if i % 4 else 0):
            y, x, radius = stream.uniform((0, 0, 15), (SIZE, SIZE, 55))
            mask |= (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        noise = ndimage.gaussian_filter(stream.normal(size=(GRID, GRID)), 1)
        seen = metrics.upsample(mask, GRID, GRID) * stream.uniform(0, 1)
        grids[i] = 1 / (1 + np.exp(-noise / 2 - seen))
    return grids, masks


def timed(work: Callable[[], object], repeats: int = 3) -> tuple[float, object]:
    """The least processor seconds of some repeats, and what the work gave."""
    seconds, found = [], None
    for _ in range(repeats):
        started = time.process_time()
        found = work()
        seconds.append(time.process_time() - started)
    return min(seconds), found


def peak(work: Callable[[], object]) -> float:
    """MB allocated at most during the work."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def by_thresholds(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The usual loop: at each of 200 thresholds the pixels found right and wrong and the mean overlap, (200, 3)."""
    regions = np.zeros(masks.shape, np.int32)
    for region, mask in zip(regions, masks, strict=True):
        labelled, _ = ndimage.label(mask, np.ones((3, 3)))
        region[mask] = labelled[mask] + regions.max()
    areas, found = np.bincount(regions.ravel()), []
    for threshold in np.linspace(maps.min(), maps.max(), THRESHOLDS):
        hit = maps > threshold
        overlap = np.bincount(regions[hit], minlength=areas.size)[1:] / areas[1:]
        found.append(((hit & masks).sum(), (hit & ~masks).sum(), overlap.mean()))
    return np.array(found)


def measure(images: int = 160) -> list[dict]:
    """One row a figure: name, value, unit, bar (empty where there is none) and ok."""
    was = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return list(_rows(*case(images)))
    finally:
        torch.set_num_threads(was)


def _rows(grids: np.ndarray, masks: np.ndarray) -> Iterator[dict]:
    def framed() -> Iterator[np.ndarray]:
        return (metrics.framed_map(grid[None], SIZE, SIZE, "squash", SIZE, SIGMA) for grid in grids)

    def counted(bins: int, images: int | None = None) -> dict[str, float]:
        return metrics.pixel_metrics(zip(maps[:images], masks[:images], strict=True), coarse=False, bins=bins)

    def scikit() -> tuple[float, float]:
        flat, scores = masks.ravel(), maps.ravel()
        return roc_auc_score(flat, scores), average_precision_score(flat, scores)

    maps = np.stack([metrics.upsample(grid, SIZE, SIZE) for grid in grids])
    framing, _ = timed(lambda: sum(one.size for one in framed()))
    exact_time, exact = timed(lambda: counted(0))
    binned_time, binned = timed(lambda: counted(metrics.BINS))
    coarse_time, _ = timed(lambda: by_thresholds(maps[:FEW], masks[:FEW]), 1)
    coarse_time *= len(maps) / FEW
    plain_time, plain = timed(scikit, 1)
    exact_memory, plain_memory = peak(lambda: counted(0)), peak(scikit)
    binned_memory = peak(lambda: counted(metrics.BINS))
    quarter_memory = peak(lambda: counted(metrics.BINS, len(maps) // 4))
    stream_memory = peak(lambda: metrics.pixel_metrics(zip(framed(), masks, strict=True), bins=metrics.BINS))
    wide = ((maps - maps.min()) / np.ptp(maps)) ** 6  # from 1e-4 to 0.1 and beyond, as WinCLIP's maps can be
    wide_time, _ = timed(lambda: metrics.pixel_metrics(zip(wide, masks, strict=True), coarse=False))
    off = np.abs(np.subtract(plain, [exact["pixel_auroc"], exact["pixel_ap"]])).max()

    million = maps.size / 1e6
    yield row("pixels", million, "Mpx")
    yield row("upsampling and smoothing alone", million / framing, "Mpx/s")
    yield row("scikit-learn, AUROC and AP alone", million / plain_time, "Mpx/s")
    yield row(f"{THRESHOLDS} thresholds in a loop, from {FEW} images", million / coarse_time, "Mpx/s")
    yield row("exact, all metrics", million / exact_time, "Mpx/s")
    yield row("exact, scores of many magnitudes", million / wide_time, "Mpx/s")
    yield row("binned, all metrics", million / binned_time, "Mpx/s")
    yield row("scikit-learn, extra memory", plain_memory, "MB")
    yield row("exact, extra memory", exact_memory, "MB")
    yield row("binned, extra memory", binned_memory, "MB")
    yield row("binned stream of grid maps, extra memory", stream_memory, "MB")
    yield row("exact, speed over scikit-learn", plain_time / exact_time, "times", least=30)
    yield row("exact, memory over scikit-learn", exact_memory / plain_memory, "share", most=0.25)
    yield row("exact, largest difference to scikit-learn", off, "", most=1e-9)
    yield row("binned, speed over exact", exact_time / binned_time, "times", least=2)
    yield row("binned, memory of all images over that of a quarter", binned_memory / quarter_memory, "times", most=1.05)
    for name, bound in zip(metrics.COUNTED, metrics.BOUNDS, strict=True):
        yield row(f"binned, bound of {name}", binned[bound], "")
        yield row(f"binned, error of {name}", abs(binned[name] - exact[name]), "", most=binned[bound])


if __name__ == "__main__":
    sys.exit(show(measure()))
