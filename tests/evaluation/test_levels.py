"""Counting pixels by level: exact whatever the scores, binned within its own bounds, in memory that does not grow."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from parity import metric_case
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from vlmad_lib.evaluation import metrics, pixel_ranking

_, _, MASKS, MAPS = metric_case(1)
SMOOTH = ndimage.gaussian_filter(MAPS, (0, 3, 3))
NOISE = np.random.default_rng(0).normal(size=MAPS.shape).astype(np.float32)


def outlier(maps: np.ndarray, value: float) -> np.ndarray:
    found = maps.copy()
    found[1, 3, 4] = value
    return found


SCORES = {
    "ordinary": SMOOTH,
    "ties": np.round(SMOOTH, 1),
    "two values": MASKS ^ (NOISE > 1),
    "constant": np.full_like(MAPS, 0.3),
    "an outlier above": outlier(SMOOTH, 1e6),
    "an outlier below": outlier(SMOOTH, -1e6),
    "a tiny range": 1 + SMOOTH * 1e-3,
    "a few steps of float32": 1 + SMOOTH * 1e-6,
    "tiny scores": SMOOTH * 1e-12,
    "negative": SMOOTH - 5,
    "both signs": NOISE + MASKS,
    "signed zeros": np.where(NOISE > 0, -0.0, 0.0) + np.where(NOISE > 1, SMOOTH, -0.0),
    "above one": SMOOTH * 1e4 + 10,
    "many magnitudes": np.exp(8 * NOISE + 2 * MASKS),
    "inverted": -SMOOTH,
    "a range that grows": SMOOTH * 2.0 ** np.arange(len(MAPS))[:, None, None],
}


def pairs(maps: np.ndarray):
    """A stream: it can be read once."""
    return ((one.astype(np.float32), mask) for one, mask in zip(maps, MASKS, strict=True))


@pytest.mark.parametrize(("few", "window"), [(0, 2**22), (1000, 2**20), (0, pixel_ranking.WINDOW)])
@pytest.mark.parametrize("name", SCORES)
def test_exact_whatever_the_scores(name, few, window, monkeypatch):
    """Sorted, as so few pixels are, or counted in one window or several."""
    monkeypatch.setattr(pixel_ranking, "SHARED", (1e-3, 1e-1))  # one normal image of 9 thousand pixels
    by_sorting = metrics.pixel_metrics(pairs(SCORES[name]))
    monkeypatch.setattr(pixel_ranking, "FEW", few)
    monkeypatch.setattr(pixel_ranking, "WINDOW", window)
    found = metrics.pixel_metrics(pairs(SCORES[name]))
    assert found == pytest.approx(by_sorting, abs=1e-12, nan_ok=True)
    known = ((one, pixel_ranking.find_regions(mask)) for one, mask in pairs(SCORES[name]))
    assert metrics.pixel_metrics(known) == pytest.approx(found, abs=1e-15, nan_ok=True)
    flat, scores = MASKS.ravel(), SCORES[name].astype(np.float32).ravel()
    assert found["pixel_auroc"] == pytest.approx(roc_auc_score(flat, scores), abs=1e-9)
    assert found["pixel_ap"] == pytest.approx(average_precision_score(flat, scores), abs=1e-9)
    assert [found[bound] for bound in metrics.BOUNDS] == [0] * 5


@pytest.mark.parametrize("bins", [2, 64, metrics.BINS])
@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("limit", [0.05, 0.3])
def test_binned_values_stay_within_their_bounds(name, bins, limit, monkeypatch):
    monkeypatch.setattr(pixel_ranking, "SHARED", (1e-3, 1e-1))
    exact = metrics.pixel_metrics(pairs(SCORES[name]), limit)
    found = metrics.pixel_metrics(pairs(SCORES[name]), limit, bins=bins)
    for value, bound in zip(metrics.COUNTED, metrics.BOUNDS, strict=True):
        assert abs(found[value] - exact[value]) <= found[bound] + 1e-12, value
        assert 0 <= found[bound] <= 1


ORDINARY = ["ordinary", "an outlier above", "an outlier below", "a tiny range", "negative", "both signs", "above one"]


@pytest.mark.parametrize("name", [*ORDINARY, "inverted", "a range that grows"])
def test_bounds_are_small_where_scores_differ(name):
    """74 thousand pixels: one of the 3 thousand anomalous ones is 3e-4 of the average precision."""
    found = metrics.pixel_metrics(pairs(SCORES[name]), bins=metrics.BINS)
    assert max(found["pixel_auroc_bound"], found["aupro_bound"]) < 2e-4
    assert max(found["pixel_ap_bound"], found["pixel_f1_max_bound"]) < 2e-3


def test_bounds_of_one_anomalous_pixel_tied_with_one_of_two_normal_ones():
    """0.8 and 0.9 share the upper of two bins: first or second of three, by hand."""
    scores, mask = np.array([[0.9, 0.8, 0.0]], np.float32), np.array([[True, False, False]])
    found = metrics.pixel_metrics([(scores, mask)], 1.0, bins=2)
    assert [found[name] for name in metrics.COUNTED] == pytest.approx([0.75, 1 / 2, 2 / 3, 0.75, np.nan], nan_ok=True)
    assert [found[name] for name in metrics.BOUNDS] == pytest.approx([0.25, 1 / 2, 1 / 3, 0.25, np.nan], nan_ok=True)


def test_bins_do_not_depend_on_the_order_of_the_images():
    maps = SCORES["a range that grows"] - 1
    tables = []
    for order in (slice(None), slice(None, None, -1)):
        table = pixel_ranking.Bins(100)
        for part in pixel_ranking.split_pixels(zip(maps[order], MASKS[order], strict=True)):
            table.add(part)
        tables.append(table)
    assert tables[0].shift == tables[1].shift > 0
    np.testing.assert_allclose(tables[0].counts, tables[1].counts, rtol=1e-12)
    assert tables[0].counts[0].sum() == MAPS.size and tables[0].counts[1].sum() == MASKS.sum()


def peak(images: int, bins: int) -> int:
    """Bytes at most in use while so many images made on the fly are measured."""
    mask = np.zeros((128, 128), bool)
    mask[40:60, 50:90] = True
    draws = (np.random.default_rng(i).random(mask.shape, np.float32) + mask for i in range(images))
    tracemalloc.start()
    try:
        metrics.pixel_metrics(((one, mask) for one in draws), bins=bins)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_of_bins_does_not_grow_with_the_images():
    one = 4 * 128 * 128
    few, many = peak(8, 4096), peak(32, 4096)
    assert many < few + one / 4
    assert peak(32, 0) > peak(8, 0) + 20 * one  # what is measured would show it


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_must_be_finite(value):
    with pytest.raises(ValueError, match="finite"):
        metrics.pixel_metrics(pairs(outlier(SMOOTH, value)))


def test_one_bin_counts_nothing():
    with pytest.raises(ValueError, match="at least 2"):
        metrics.pixel_metrics(pairs(SMOOTH), bins=1)
