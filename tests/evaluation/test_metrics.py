"""Metrics against scikit-learn, a brute-force AUPRO and detectors whose values are known."""

from __future__ import annotations

import numpy as np
import pytest
from parity import metric_case
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from vlmad_lib.data import image_files
from vlmad_lib.evaluation import metrics, pixel_ranking


def brute_force_aupro(masks, maps, limit: float) -> float:
    """Every distinct value as a threshold; overlap per region, trapezoids cut at the limit."""
    regions = [
        (image, labelled == region)
        for image, (labelled, count) in enumerate(ndimage.label(mask, np.ones((3, 3))) for mask in masks)
        for region in range(1, count + 1)
    ]
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        hit = maps >= threshold
        rates.append(hit[~masks].mean())
        overlaps.append(np.mean([hit[image][region].mean() for image, region in regions]))
    rates, overlaps = np.array(rates), np.array(overlaps)
    inside = rates <= limit
    at_limit = np.interp(limit, rates, overlaps)
    return np.trapezoid(np.r_[overlaps[inside], at_limit], np.r_[rates[inside], limit]) / limit


def plain_aupimo(maps, masks, low: float = 1e-5, high: float = 1e-4, steps: int = 4000) -> float:
    """As the paper writes it: each image's recall at the threshold of a shared rate, meaned over log-spaced rates."""
    normal = [scores for scores, mask in zip(maps, masks, strict=True) if not mask.any()]
    thresholds = np.unique(np.concatenate([scores.ravel() for scores in normal]))[::-1][:200]
    rates = np.array([np.mean([(scores > threshold).mean() for scores in normal]) for threshold in thresholds])
    logs = np.log10(low) + (np.arange(steps) + 0.5) / steps * (np.log10(high) - np.log10(low))
    chosen = thresholds[np.searchsorted(rates, 10**logs, "right") - 1]  # the lowest whose rate is no higher
    anomalous = [scores[mask] for scores, mask in zip(maps, masks, strict=True) if mask.any()]
    return float(np.mean([np.mean([(scores > threshold).mean() for threshold in chosen]) for scores in anomalous]))


# Computed by the official AnomalyCLIP code on the same seeded cases.
OFFICIAL = {
    0: (0.6875, 0.8125, 0.8232078447, 0.5142599138),
    1: (0.8125, 0.8928571429, 0.8434634220, 0.6257855741),
    2: (0.9375, 0.95, 0.7994580631, 0.5211533309),
}


@pytest.mark.parametrize("seed", OFFICIAL)
def test_official_values(seed):
    labels, scores, masks, maps = metric_case(seed)
    image = metrics.image_metrics(labels, scores)
    pixel = metrics.pixel_metrics(zip(maps, masks, strict=True))
    found = (image["image_auroc"], image["image_ap"], pixel["pixel_auroc"], pixel["aupro_200"])
    np.testing.assert_allclose(found, OFFICIAL[seed], atol=1e-9)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_against_scikit_learn(seed, ties):
    _, _, masks, maps = metric_case(seed)
    if ties:
        maps = np.round(maps, 1)
    found = metrics.pixel_metrics(zip(maps, masks, strict=True))
    flat, scores = masks.ravel(), maps.ravel()
    precision, recall, _ = precision_recall_curve(flat, scores)
    expected = {
        "pixel_auroc": roc_auc_score(flat, scores),
        "pixel_ap": average_precision_score(flat, scores),
        "pixel_f1_max": np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12)),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_aupro_against_brute_force(limit, ties):
    _, _, masks, maps = metric_case(3, n=4, size=40)
    maps = np.round(maps, 1 if ties else 3)
    found = metrics.pixel_metrics(zip(maps, masks, strict=True), fpr_limit=limit)["aupro"]
    assert found == pytest.approx(brute_force_aupro(masks, maps, limit), abs=1e-9)


def low_tolerance(rounded: int, shapes: list[tuple[int, int]]) -> tuple[list, list]:
    """Maps of noise with defects that stand out by more and more, on images of these shapes; the first half normal."""
    stream, maps, masks = np.random.default_rng(0), [], []
    for number, shape in enumerate(shapes):
        mask = np.zeros(shape, bool)
        if number >= len(shapes) // 2:
            mask[20:40, 30:60] = True
        maps.append(np.round(stream.normal(size=shape) + mask * number, rounded).astype(np.float32))
        masks.append(mask)
    return maps, masks


@pytest.mark.parametrize("rounded", [6, 1])
@pytest.mark.parametrize(
    "shapes", [[(200, 200)] * 6, [(150, 300), (200, 260), (260, 200), (90, 120), (100, 99), (70, 90)]]
)
def test_aupimo_against_the_papers_formula(shapes, rounded):
    maps, masks = low_tolerance(rounded, shapes)
    found = metrics.pixel_metrics(zip(maps, masks, strict=True))["aupimo"]
    assert 0.1 < found < 0.9 and found == pytest.approx(plain_aupimo(maps, masks), abs=2e-4)
    binned = metrics.pixel_metrics(zip(maps, masks, strict=True), bins=metrics.BINS)
    assert abs(binned["aupimo"] - found) <= binned["aupimo_bound"] + 1e-12
    assert rounded == 1 or binned["aupimo_bound"] < 0.02


def test_aupimo_by_hand():
    """Of 1000 x 100 normal pixels one is a rate of 1e-5: what lies above all of them is found at every rate."""
    normal, mask = np.zeros((1000, 100), np.float32), np.zeros((10, 10), bool)
    normal[0, :5] = [5, 4, 4, 3, 2]
    scores, mask[0, :4] = np.zeros((10, 10), np.float32), True
    scores[0, :4] = [6, 4.5, 3.5, 1]
    found = metrics.pixel_metrics([(normal, np.zeros_like(normal, bool)), (scores, mask)])["aupimo"]
    # from rates of 0, 1e-5, 3e-5 and 5e-5 on; the first two at all of those between 1e-5 and 1e-4
    assert found == pytest.approx((1 + 1 + np.log10(1e-4 / 3e-5) + np.log10(1e-4 / 5e-5)) / 4)
    tied = scores.copy()
    tied[0, 1] = 4
    higher = metrics.pixel_metrics([(normal, np.zeros_like(normal, bool)), (tied, mask)])["aupimo"]
    assert higher == pytest.approx(found - (1 - np.log10(1e-4 / 3e-5)) / 4)


def test_aupimo_takes_normal_images_and_enough_of_their_pixels():
    """An anomalous image whose mask was lost is no normal one."""
    normal, (scores, mask) = np.zeros((1000, 100), np.float32), (np.ones((9, 9), np.float32), np.ones((9, 9), bool))
    empty = np.zeros_like(normal, bool)
    assert metrics.pixel_metrics([(normal, empty), (scores, mask)])["aupimo"] == 1
    assert np.isnan(metrics.pixel_metrics([(normal[1:], empty[1:]), (scores, mask)])["aupimo"])
    lost = pixel_ranking.find_regions(empty, normal=False)
    assert np.isnan(metrics.pixel_metrics([(normal, lost), (scores, mask)])["aupimo"])
    beside = [(normal, empty), (normal + 2, lost), (scores, mask)]
    assert metrics.pixel_metrics(beside)["aupimo"] == metrics.pixel_metrics(beside, bins=99)["aupimo"] == 1
    assert np.isnan(metrics.pixel_metrics([(normal, empty)])["aupimo"])


def test_recall_at_few_false_alarms():
    stream = np.random.default_rng(0)
    labels, scores = np.repeat([0, 1], [1000, 50]), np.r_[stream.normal(size=1000), stream.normal(2, 1, 50)]
    found, normal = metrics.image_metrics(labels, scores), np.sort(scores[labels == 0])
    assert found["recall_at_1pct"] == np.mean(scores[labels == 1] > normal[-11])  # 10 of 1000 lie above it
    assert found["recall_at_0_1pct"] == np.mean(scores[labels == 1] > normal[-2])
    assert found["image_pauroc"] == pytest.approx(roc_auc_score(labels, scores, max_fpr=0.1))
    few = metrics.image_metrics(labels[1:], scores[1:])
    assert np.isnan(few["recall_at_0_1pct"]) and np.isfinite(few["recall_at_1pct"])
    least = metrics.image_metrics(np.repeat([0, 1], [9, 5]), np.arange(14.0))
    assert all(np.isnan(least[name]) for name in metrics.FEW_ALARMS)
    tied = metrics.image_metrics(np.repeat([0, 1], [100, 4]), np.r_[np.zeros(98), 1, 1, 1, 1, 2, 2])
    assert tied["recall_at_1pct"] == 0.5  # both that tie would be rejected, which is more than one of a hundred


def test_aupro_ignores_monotone_rescaling_and_the_coarse_one_does_not():
    _, _, masks, maps = metric_case(0)
    plain = metrics.pixel_metrics(zip(maps, masks, strict=True))
    bent = metrics.pixel_metrics(zip(np.exp(6 * maps), masks, strict=True))
    assert bent["aupro"] == pytest.approx(plain["aupro"], abs=1e-6)
    assert abs(bent["aupro_200"] - plain["aupro_200"]) > 1e-3


@pytest.mark.parametrize(("detector", "value"), [("perfect", 1.0), ("constant", 0.5), ("inverted", 0.0)])
def test_known_detectors(detector, value):
    _, _, masks, _ = metric_case(0)
    maps = {"perfect": masks, "constant": np.zeros_like(masks), "inverted": ~masks}[detector].astype(np.float32)
    found = metrics.pixel_metrics(zip(maps, masks, strict=True))
    assert found["pixel_auroc"] == pytest.approx(value)
    if detector == "constant":  # one ramp from (0, 0) to (1, 1): half the limit on average
        assert found["aupro"] == pytest.approx(0.15)
        assert found["pixel_ap"] == pytest.approx(masks.mean())
    else:
        assert found["aupro"] == pytest.approx(value)


def test_regions_weigh_the_same_whatever_their_size():
    mask, scores = np.zeros((40, 40), bool), np.zeros((40, 40), np.float32)
    mask[:20, :20] = mask[30, 30] = True
    scores[:20, :20] = 1  # the large region is found, the single pixel is not
    found = metrics.pixel_metrics([(scores, mask)])
    tied = 0.3 / 2  # the missed pixel ties with every normal one: its ramp has mean 0.15 up to the limit
    assert found["aupro"] == pytest.approx((1 + tied) / 2)


def test_corner_touching_pixels_are_one_region():
    mask = np.eye(3, dtype=bool)
    scores = np.zeros((3, 3), np.float32)
    scores[0, 0] = 1
    assert metrics.pixel_metrics([(scores, mask)], fpr_limit=1)["aupro"] == pytest.approx((1 + 0.5 + 0.5) / 3)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_only_has_no_value(label):
    assert all(np.isnan(value) for value in metrics.image_metrics(np.full(3, label), np.arange(3)).values())
    masks = np.full((2, 4, 4), bool(label))
    assert all(np.isnan(v) for v in metrics.pixel_metrics(zip(masks.astype(np.float32), masks, strict=True)).values())


def test_frames_must_agree():
    with pytest.raises(ValueError, match="same frame"):
        metrics.pixel_metrics([(np.zeros((2, 2), np.float32), np.zeros((3, 3), bool))])


def test_tiles_are_pasted_where_they_were_cut():
    tiles = np.stack([np.full((5, 5), 1, np.float32), np.full((5, 5), 3, np.float32)])
    found = metrics.framed_map(tiles, width=150, height=100, fit="tiles", size=50)
    assert found.shape == (50, 75)
    assert found[0, 10] == 1 and found[0, 70] == 3 and found[0, 40] == 2  # the overlap is a mean


def test_the_coarse_aupro_of_no_overlap_is_not_below_zero():
    """A saturated map, all of whose regions lie at its floor: sums of weights differ by rounding alone."""
    rates = np.array([0.25, 0.1, 0.0])
    assert metrics._aupro_200(rates, np.full(3, -1e-13)) == 0
    assert metrics._aupro_200(rates, np.full(3, 1 + 1e-13)) == 1


@pytest.mark.parametrize(("width", "height"), [(400, 100), (100, 400), (170, 100)])
def test_what_is_looked_at_has_no_seams_and_what_is_measured_is_the_mean(width, height):
    """Each box has a level of its own: the mean jumps where one begins, what is looked at never does."""
    boxes = image_files.boxes(width, height, "tiles")
    tiles = np.stack([np.full((5, 5), float(place % 3)) for place in range(len(boxes))])
    long = int(height > width)
    maps = [metrics.framed_map(tiles, width, height, "tiles", 100, 0, seamless) for seamless in (False, True)]
    steps = [np.abs(np.diff(one, axis=1 - long)).max() for one in maps]
    assert steps[0] >= 0.5 and steps[1] <= 2 / 9  # the shortest overlap takes 20 pixels from one level to the next
    alone = [
        place for place in range(max(width, height)) if sum(box[long] <= place < box[long + 2] for box in boxes) == 1
    ]
    assert alone and np.array_equal(*(one.take(alone, 1 - long) for one in maps))
    assert all(one.min() == 0 and one.max() <= tiles.max() for one in maps)


def test_a_seamless_map_of_one_level_has_it_everywhere():
    tiles = np.full((5, 4, 4), 0.25, np.float32)
    found = metrics.framed_map(tiles, 400, 100, "tiles", 50, seamless=True)
    assert found.shape == (50, 200) and np.allclose(found, 0.25)
    one = np.arange(16.0).reshape(1, 4, 4)
    square = [metrics.framed_map(one, 90, 90, "tiles", 50, seamless=seamless) for seamless in (False, True)]
    assert np.array_equal(*square)
