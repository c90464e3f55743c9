"""The saturated per-region overlap: cases counted by hand, and what it shares with the AUPRO."""

from __future__ import annotations

import numpy as np
import pytest

from vlmad_lib.evaluation import metrics, pixel_ranking

SCORES = np.array([[9, 7, 5, 3], [8, 6, 4, 2]], np.float32)  # the right half is normal
LEFT = np.array([[1, 1, 0, 0], [1, 1, 0, 0]], bool)


def overlap(regions, scores=SCORES, limit=1.0, bins=0, good=()):
    """AU-sPRO of one image with annotated regions (mask, share) beside normal images."""
    union = np.any([mask for mask, _ in regions], axis=0)
    found = pixel_ranking.find_regions(union, annotated=regions)
    pairs = [(scores, found), *((image, pixel_ranking.find_regions(np.zeros(image.shape, bool))) for image in good)]
    return metrics.saturated_overlap(pairs, limit, bins)


def test_a_region_that_saturates_early_is_found_by_its_highest_pixels():
    # normal pixels score 4.5, so that only 9 and 8 of the region lie above all of them: half of it
    scores = np.where(LEFT, np.array([[9, 1, 0, 0], [8, 2, 0, 0]]), 4.5).astype(np.float32)
    assert overlap([(LEFT, 0.5)], scores, 0.05) == pytest.approx(1)
    # the linear piece from (0, 1/2) to (1, 1/2): both low pixels lie below every normal one
    assert overlap([(LEFT, 1.0)], scores, 0.05) == pytest.approx(0.5)
    # three pixels are needed, of which two are found: 2/3
    assert overlap([(LEFT, 0.75)], scores, 1.0) == pytest.approx(2 / 3)


def test_regions_weigh_alike_whatever_their_size():
    small, large = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
    small[0, 0], large[:, 1] = True, True
    scores = np.array([[0, 9, 5, 5], [1, 9, 5, 5]], np.float32)  # the large one is found, the small one never
    assert overlap([(small, 1.0), (large, 1.0)], scores, 0.5) == pytest.approx(0.5)


def test_overlapping_regions_count_their_pixels_twice_and_normal_pixels_once():
    left, top = LEFT, np.array([[1, 1, 1, 0], [0, 0, 0, 0]], bool)
    scores = np.array([[9, 8, 1, 4], [0, 0, 4, 4]], np.float32)
    # three normal pixels of score 4; left has 2 of 4 above them, top 2 of 3
    assert overlap([(left, 1.0), (top, 1.0)], scores, 0.5) == pytest.approx((2 / 4 + 2 / 3) / 2)
    assert overlap([(left, 0.5), (top, 0.5)], scores, 0.5) == pytest.approx(1)


@pytest.mark.parametrize("bins", [0, 2**16])
def test_it_is_the_aupro_where_every_region_saturates_at_its_area(bins):
    draw = np.random.default_rng(0)
    pairs, whole = [], []
    for _ in range(3):
        mask = np.zeros((12, 12), bool)
        mask[1:4, 1:5], mask[7:11, 6:8] = True, True
        scores = (draw.normal(size=mask.shape) + mask).astype(np.float32).round(1)  # with ties
        parts = [mask & (np.arange(12) < 6)[:, None], mask & (np.arange(12) >= 6)[:, None]]
        pairs.append((scores, pixel_ranking.find_regions(mask, annotated=[(part, 1.0) for part in parts])))
        whole.append((scores, mask))
    for limit in (0.05, 0.3, 1.0):
        aupro = metrics.pixel_metrics(whole, limit, coarse=False, bins=bins)["aupro"]
        assert metrics.saturated_overlap(pairs, limit, bins) == pytest.approx(aupro, abs=1e-12)


def test_it_is_the_official_curve_threshold_by_threshold():
    """Mean of min(marked / s, 1) at every threshold, by trapezoids over the rate of the pixels that no region marks."""
    draw = np.random.default_rng(1)
    regions = [draw.random((15, 15)) < 0.1 for _ in range(3)]
    areas = [max(1, int(share * region.sum())) for share, region in zip((0.3, 0.6, 1), regions, strict=True)]
    scores = (draw.normal(size=(15, 15)) + np.any(regions, axis=0)).astype(np.float32)
    normal = ~np.any(regions, axis=0)
    points = [(0.0, 0.0)]
    for limit in np.unique(scores)[::-1]:
        marked = scores >= limit
        kept = [min((marked & region).sum() / area, 1) for region, area in zip(regions, areas, strict=True)]
        points.append(((marked & normal).sum() / normal.sum(), np.mean(kept)))
    rates, overlaps = np.array(points).T
    shares = [(region, area / region.sum()) for region, area in zip(regions, areas, strict=True)]
    assert overlap(shares, scores) == pytest.approx(np.trapezoid(overlaps, rates), abs=1e-6)


def test_without_annotated_regions_there_is_none():
    bare = pixel_ranking.find_regions(LEFT)
    assert np.isnan(metrics.saturated_overlap([(SCORES, bare)]))
    empty = pixel_ranking.find_regions(LEFT, annotated=[(np.zeros_like(LEFT), 1.0)])  # one that vanished
    assert np.isnan(metrics.saturated_overlap([(SCORES, empty)]))
    assert np.isnan(metrics.saturated_overlap([(SCORES, pixel_ranking.find_regions(~LEFT & LEFT))]))
