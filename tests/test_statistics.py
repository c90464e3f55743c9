"""Intervals against known cases, and the sentences made from tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import roc_auc_score

from vlmad_lib import breakdown, statistics


def sample(seed: int, normal: int = 30, anomalous: int = 40, shift: float = 1.0):
    stream = np.random.default_rng(seed)
    labels = np.r_[np.zeros(normal, int), np.ones(anomalous, int)]
    return labels, stream.normal(size=normal + anomalous) + shift * labels


def test_wilson_by_hand():
    low, high = statistics.wilson(8, 10)  # textbook value
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert statistics.wilson(0, 0) == (0.0, 1.0)
    assert statistics.wilson(5, 5)[1] == 1.0 and 0.5 < statistics.wilson(5, 5)[0] < 0.6


def test_interval_agrees_with_scipy():
    labels, scores = sample(0)

    def auroc(normal, anomalous):
        return np.mean(anomalous[:, None] > normal[None, :])

    rng = np.random.default_rng(1)
    found = statistics.auroc_interval(labels, scores, 5000)
    parts = (scores[labels == 0], scores[labels == 1])
    expected = bootstrap(parts, auroc, n_resamples=5000, method="percentile", vectorized=False, rng=rng)
    assert found == pytest.approx(tuple(expected.confidence_interval), abs=0.01)


def test_interval_holds_the_truth_about_as_often_as_it_says():
    from scipy.stats import norm

    truth = norm.cdf(1 / np.sqrt(2))
    inside = [low <= truth <= high for low, high in (statistics.auroc_interval(*sample(s), 400) for s in range(200))]
    assert 0.90 <= np.mean(inside) <= 0.99


@pytest.mark.parametrize(("shift", "value"), [(100.0, 1.0), (-100.0, 0.0)])
def test_perfect_separation_is_not_certainty(shift, value):
    labels, scores = sample(0, 5, 30, shift)
    low, high = statistics.auroc_interval(labels, scores)
    assert roc_auc_score(labels, scores) == value
    assert high - low > 0.3  # five normal images do not prove perfection
    assert value in (pytest.approx(low), pytest.approx(high))


def test_one_class_has_no_interval():
    assert np.isnan(statistics.auroc_interval(np.zeros(4, int), np.arange(4))).all()


def table(seed: int = 0, categories: int = 4, seeds: int = 2, shift: float = 1.0) -> pd.DataFrame:
    frames = []
    for number in range(categories):
        for draw in range(seeds):
            labels, scores = sample(seed + 10 * number + draw, 10, 12, shift)
            images = [f"{number}-{i}" for i in range(len(labels))]
            frames.append(
                pd.DataFrame({"category": str(number), "seed": draw, "image": images, "label": labels, "score": scores})
            )
    return pd.concat(frames)


def test_macro_interval_brackets_the_macro_mean_and_narrows_with_categories():
    widths = []
    for count in (2, 16):
        rows = table(categories=count)
        mean = rows.groupby(["category", "seed"]).apply(lambda part: roc_auc_score(part.label, part.score)).mean()
        low, high = statistics.macro_interval(rows)
        assert low < mean < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 1.8


def metrics(values: dict[str, tuple[str, float]], shots: int = 0, method: str = "WinCLIP") -> pd.DataFrame:
    rows = [
        {
            "method": method, "shots": shots, "seed": 0, "category": name, "group": group, "backbone": "b",
            **dict.fromkeys(breakdown.TITLES, value), "image_auroc_low": value - 0.1, "image_auroc_high": value + 0.1,
        }
        for name, (group, value) in values.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


GOOD_TEXTURES = {"linen": ("texture", 0.9), "cork": ("texture", 0.8), "gear": ("rigid", 0.6)}
GOOD_OBJECTS = {"linen": ("texture", 0.55), "cork": ("texture", 0.6), "gear": ("rigid", 0.95)}


def test_group_means_are_macro_means_with_n():
    found = breakdown.by_group(metrics(GOOD_TEXTURES)).set_index("group")
    assert found.image_auroc.to_dict() == pytest.approx({"texture": 0.85, "rigid": 0.6, "all": 2.3 / 3})
    assert found.n.to_dict() == {"texture": 2, "rigid": 1, "all": 3}
    assert list(found.index) == ["texture", "rigid", "all"]


def test_categories_have_one_order():
    assert breakdown.ordered(metrics(GOOD_TEXTURES)) == ["cork", "linen", "gear"]
    assert list(breakdown.per_category(metrics(GOOD_TEXTURES)).category) == ["cork", "linen", "gear"]


def test_findings_change_with_the_data():
    one, other = (breakdown.category_findings(metrics(values)) for values in (GOOD_TEXTURES, GOOD_OBJECTS))
    assert "Strongest on texture categories (0.850, n = 2), weakest on rigid ones (0.600, n = 1)" in one
    assert "Strongest on rigid categories (0.950, n = 1), weakest on texture ones (0.575, n = 2)" in other
    assert "above chance (0.5) for 2 of 3" in one and "above chance (0.5) for 1 of 3" in other


def test_shot_findings_count_the_categories_that_gain():
    rows = pd.concat([metrics(GOOD_TEXTURES), metrics(GOOD_OBJECTS, shots=4)])
    found = breakdown.shot_findings(rows)
    assert "0.767 zero-shot, 0.700 4-shot (-0.067, one draw)" in found and "help in 1 of 3 categories" in found


def test_nothing_to_rank_is_said():
    empty = metrics({"part": ("unknown", np.nan)})
    assert breakdown.category_findings(empty) == breakdown.shot_findings(empty) == breakdown.NO_AUROC


def test_consistency_names_worst_and_best():
    row = breakdown.consistency(metrics(GOOD_TEXTURES)).iloc[0]
    assert (row.worst, row.best, row.categories) == ("gear (0.600)", "linen (0.900)", 3)


def test_paired_interval_is_students():
    from scipy.stats import ttest_1samp

    values = np.array([0.02, -0.01, 0.05, 0.03, 0.00])
    mean, low, high = statistics.paired(values)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((values.mean(), expected.low, expected.high))
    assert statistics.paired(values[:1]) == (0.02, float("-inf"), float("inf"))


def ablated(**pixel: list[float]) -> pd.DataFrame:
    rows = [
        {"method": method, "category": f"c{i}", "image_auroc": 0.5, "pixel_auroc": value, "aupro": 0.4}
        for method, values in pixel.items()
        for i, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_differences_are_paired_over_categories():
    table = ablated(base=[0.9, 0.8, 0.7], worse=[0.8, 0.71, 0.6], other=[0.8, 0.9, 0.7])
    found = breakdown.against(table, "base").set_index("method")
    assert found.pixel_auroc.tolist() == pytest.approx([0.8, 0.7033, 0.8], abs=1e-4)
    assert np.isnan(found.difference["base"]) and found.n.tolist() == [3, 3, 3]
    expected = statistics.paired([-0.1, -0.09, -0.1])
    assert tuple(found.loc["worse", ["difference", "low", "high"]]) == pytest.approx(expected)
    told = breakdown.against_findings(breakdown.against(table, "base"), "base").splitlines()
    assert told[1].endswith("lower.") and told[2].endswith("no difference these categories can show.")
    assert "n = 3" in told[1] and "0.800 (n = 3 categories)" in told[0]


# ---------------------------------------------------------------- subsets, differences, ranks


def test_wins_average_to_the_auroc():
    labels, scores = sample(3)
    scores = scores.round(1)  # ties
    assert statistics.wins(labels, scores).mean() == pytest.approx(roc_auc_score(labels, scores))
    assert np.isnan(statistics.wins(np.ones(3, int), np.arange(3.0))).all()


def test_few_images_get_wilsons_interval():
    labels, scores = np.r_[np.zeros(30, int), 1, 1], np.r_[np.arange(30.0), 50, 12.5]
    assert statistics.auroc_interval(labels, scores) == pytest.approx(statistics.wilson(1 + 13 / 30, 2))


def test_subset_interval_holds_the_truth_about_as_often_as_it_says():
    from scipy.stats import norm

    truth, inside = norm.cdf(1 / np.sqrt(2)), []
    for seed in range(150):
        stream = np.random.default_rng(seed)
        parts = [(stream.normal(size=16), stream.normal(1, size=size)) for size in (1, 3, 6, 10)]
        low, high = statistics.subset_interval(parts, 400)
        inside.append(low <= truth <= high)
    assert 0.88 <= np.mean(inside) <= 0.99


def test_subset_interval_of_almost_nothing():
    one = [(np.arange(10.0), np.array([4.5]))]
    assert statistics.subset_interval(one) == pytest.approx(statistics.wilson(0.5, 1))
    low, high = statistics.subset_interval([(np.arange(10.0), np.full(20, 99.0))])
    assert (low, high) == pytest.approx(statistics.wilson(10, 10))  # ten normal images do not prove perfection
    assert np.isnan(statistics.subset_interval([(np.empty(0), np.arange(3.0))])).all()


def test_delong_against_its_formula_and_a_permutation():
    labels, first = sample(5, 40, 40, 1.5)
    second = first + np.random.default_rng(6).normal(0, 0.8, 80)
    difference, low, high, p = statistics.delong(labels, first, second)
    assert difference == pytest.approx(roc_auc_score(labels, first) - roc_auc_score(labels, second))
    # structural components straight from the paper's definition
    psi = [
        (s[labels == 1][:, None] > s[labels == 0]) + 0.5 * (s[labels == 1][:, None] == s[labels == 0])
        for s in (first, second)
    ]
    by_bad, by_good = np.cov([one.mean(1) for one in psi]), np.cov([one.mean(0) for one in psi])
    spread = by_bad / 40 + by_good / 40
    variance = spread[0, 0] + spread[1, 1] - 2 * spread[0, 1]
    assert high - low == pytest.approx(2 * 1.959964 * np.sqrt(variance), rel=1e-5)
    stream, larger = np.random.default_rng(7), 0
    for _ in range(400):  # both are on one scale here, so their scores may change places
        swap = stream.random(80) < 0.5
        a, b = np.where(swap, second, first), np.where(swap, first, second)
        larger += abs(roc_auc_score(labels, a) - roc_auc_score(labels, b)) >= abs(difference)
    assert p == pytest.approx(larger / 400, abs=0.08)


def test_delong_where_images_cannot_tell():
    labels, scores = sample(0, 5, 30, 100.0)
    difference, low, high, p = statistics.delong(labels, scores, scores * 2)
    assert difference == 0 and p == 1 and high > 0.3 and low < -0.3
    assert statistics.delong([0, 1, 1], np.arange(3.0), np.arange(3.0))[1:] == (-1.0, 1.0, 1.0)


def scored(labels: np.ndarray, scores: np.ndarray, category: str, seed: int = 0) -> pd.DataFrame:
    images = [f"{category}{i}" for i in range(len(labels))]
    return pd.DataFrame({"category": category, "image": images, "label": labels, "seed": seed, "score": scores})


def test_macro_difference_agrees_with_delong_on_one_category():
    labels, first = sample(8, 60, 60, 1.2)
    second = first + np.random.default_rng(9).normal(0, 1, 120)
    found = statistics.macro_difference(scored(labels, first, "a"), scored(labels, second, "a"))
    assert found == pytest.approx(statistics.delong(labels, first, second)[:3], abs=0.012)
    weights = (0.25, 0.5)  # two categories count the same, whatever their size
    small = sample(1, 10, 10, 5.0)
    parts = [pd.concat([scored(labels, one, "a"), scored(*small, "b")]) for one in (first, second)]
    assert statistics.macro_difference(*parts)[0] == pytest.approx(found[0] * weights[1])


def test_macro_difference_of_the_same_scores_is_not_certain():
    labels, scores = sample(0, 6, 20)
    same = scored(labels, scores, "a")
    difference, low, high = statistics.macro_difference(same, same)
    assert difference == 0 and low == -high and high > 0.3
    assert np.isnan(statistics.macro_difference(same, scored(labels, scores, "b"))[0])


def test_rank_correlation_against_scipy_and_its_limits():
    from scipy.stats import spearmanr

    stream = np.random.default_rng(0)
    x = stream.normal(size=60)
    y = x + stream.normal(size=60)
    found, low, high = statistics.rank_correlation(x, y)
    assert found == pytest.approx(spearmanr(x, y).statistic) and low < found < high
    again = [stream.choice(60, 60) for _ in range(800)]
    spread = np.quantile([spearmanr(x[i], y[i]).statistic for i in again], [0.025, 0.975])
    assert (low, high) == pytest.approx(tuple(spread), abs=0.06)
    assert statistics.rank_correlation(x[:3], y[:3])[1:] == (-1.0, 1.0)
    perfect = statistics.rank_correlation(np.arange(6), np.arange(6))
    assert perfect[0] == perfect[2] == 1 and perfect[1] < 0.8
    assert statistics.rank_correlation([1, 2, np.nan, 4, 5], [1, 2, 9, 4, 5])[0] == 1


def test_spread_has_every_measured_metric_with_its_range():
    found = breakdown.spread(metrics(GOOD_TEXTURES).assign(aupro=np.nan)).set_index("metric")
    assert list(found.index) == [title for title in breakdown.TITLES.values() if title != "AUPRO"]
    row = found.loc["pixel F1-max"]
    assert (row["range"], row["worst"]) == (pytest.approx(0.3), "gear (0.600)")
    empty = breakdown.spread(metrics({"part": ("unknown", np.nan)}))
    assert empty.empty and "metric" in empty


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]  # 0.03 > 0.05 / 2 stops it
    assert statistics.holm([]) == []


def test_methods_are_told_apart_by_images_and_by_category():
    rows = []
    for category in ("a", "b", "c"):
        labels, scores = sample(3, 40, 40, 0.0)
        better = scores + (3.0 if category != "c" else 0.0) * labels
        for method, values in (("one", better), ("other", scores)):
            rows.append(scored(labels, values, category).assign(method=method, shots=0))
    table = pd.concat(rows)
    row = breakdown.apart(table).iloc[0]
    assert (row.method, row.against, row["better in"], row["worse in"], row.n) == ("one", "other", 2, 0, 3)
    assert row.low > 0 and "ahead" in breakdown.apart_findings(breakdown.apart(table))
    turned = breakdown.apart(table.assign(score=-table.score))
    assert turned["worse in"].iloc[0] == 2 and "behind" in breakdown.apart_findings(turned)
    same = breakdown.apart(table[table.category == "c"])
    assert same.difference.iloc[0] == 0 and "not told apart" in breakdown.apart_findings(same)
    alone = breakdown.apart(table[table.method == "one"])
    assert alone.empty and breakdown.apart_findings(alone) == ""
