"""Intervals against known cases, and the sentences made from tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import roc_auc_score

from vlmad_lib import InputError, tables
from vlmad_lib.analysis import comparison
from vlmad_lib.evaluation import statistics


def sample(seed: int, normal: int = 30, anomalous: int = 40, shift: float = 1.0):
    stream = np.random.default_rng(seed)
    labels = np.r_[np.zeros(normal, int), np.ones(anomalous, int)]
    return labels, stream.normal(size=normal + anomalous) + shift * labels


def test_levels_are_not_rounded():
    assert [statistics.percent(level) for level in (0.025, 0.005, 0.07, 0.1)] == ["2.5%", "0.5%", "7%", "10%"]


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


@pytest.mark.parametrize("swapped", [False, True])
def test_near_perfect_separation_is_no_more_certain_than_perfect(swapped):
    labels, scores = np.repeat([0, 1], 40), np.arange(80.0)
    if swapped:  # one pair of 1600
        scores[[39, 40]] = scores[[40, 39]]
    low, high = statistics.auroc_interval(labels, scores)
    assert low == pytest.approx(statistics.wilson(40, 40)[0], abs=0.005) and high == pytest.approx(1, abs=1e-6)


def test_interval_holds_the_truth_where_few_defects_are_invisible():
    inside, truth = [], 0.95 + 0.05 / 2
    for seed in range(150):
        labels, scores = sample(seed, 40, 40, 8.0)
        stream = np.random.default_rng(1000 + seed)
        unseen = np.flatnonzero(labels)[stream.random(40) < 0.05]
        scores[unseen] -= 8.0
        low, high = statistics.auroc_interval(labels, scores, 400)
        inside.append(low <= truth <= high)
    assert np.mean(inside) >= 0.95  # the bootstrap alone: 0.91


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


def drawn(seed: int, sizes: list[tuple[int, int]]) -> list[pd.DataFrame]:
    """Scores of two equally good methods on categories of so many normal and anomalous images."""
    found = []
    for method in range(2):
        parts = []
        for number, (normal, anomalous) in enumerate(sizes):
            labels, scores = sample(100 * seed + 10 * number, normal, anomalous)
            noise = np.random.default_rng(100 * seed + 10 * number + 5 + method).normal(size=len(scores))
            parts.append(scored(labels, scores + noise, str(number)))
        found.append(pd.concat(parts))
    return found


@pytest.mark.parametrize("sizes", [[(1, 20)], [(3, 20)] * 2, [(1, 20), (30, 30)]])
def test_macro_intervals_are_not_too_sure_of_few_images(sizes):
    from scipy.stats import norm

    truth, inside, same = norm.cdf(1 / np.sqrt(4)), [], []
    for seed in range(40):
        first, second = drawn(seed, sizes)
        low, high = statistics.macro_interval(first, 200)
        inside.append(low <= truth <= high)
        _, low, high = statistics.macro_difference(first, second, 200)
        same.append(low <= 0 <= high)
    assert np.mean(inside) >= 0.9 and np.mean(same) >= 0.95


@pytest.mark.parametrize("size", [(1, 20), (7, 30), (8, 30)])
def test_one_categorys_macro_interval_is_its_own(size):
    labels, scores = sample(1, *size)
    found = statistics.macro_interval(scored(labels, scores, "a"))
    assert found == pytest.approx(statistics.auroc_interval(labels, scores), abs=0.005)  # images in another order


def test_one_good_picture_sets_no_methods_apart():
    labels = np.r_[0, np.ones(20, int)]
    first, second = np.r_[5.5, np.arange(20)], np.r_[20.5, np.arange(20)]
    difference, low, high = statistics.macro_difference(scored(labels, first, "a"), scored(labels, second, "a"))
    assert difference == pytest.approx(0.7) and low < 0 < high <= 1
    assert statistics.delong(labels, first, second) == (pytest.approx(0.7), -1.0, 1.0, 1.0)


def metrics(values: dict[str, tuple[str, float]], shots: int = 0, method: str = "WinCLIP") -> pd.DataFrame:
    rows = [
        {
            "method": method, "shots": shots, "seed": 0, "category": name, "group": group, "backbone": "b",
            **dict.fromkeys(tables.TITLES, value), "image_auroc_low": value - 0.1, "image_auroc_high": value + 0.1,
        }
        for name, (group, value) in values.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


GOOD_TEXTURES = {"linen": ("texture", 0.9), "cork": ("texture", 0.8), "gear": ("rigid", 0.6)}


def test_group_means_are_macro_means_with_n():
    found = tables.average_by_group(metrics(GOOD_TEXTURES)).set_index("group")
    assert found.image_auroc.to_dict() == pytest.approx({"texture": 0.85, "rigid": 0.6, "all": 2.3 / 3})
    assert found.n.to_dict() == {"texture": "2", "rigid": "1", "all": "3"}
    assert list(found.index) == ["texture", "rigid", "all"]


def test_n_beside_a_mean_counts_what_is_in_it():
    """Categories without masks are in no pixel mean; where none has masks, the image means' count is all there is."""
    table = metrics(GOOD_TEXTURES)
    pixels = [name for name in tables.TITLES if name.startswith("pixel")] + ["aupro"]
    table.loc[table.category == "cork", pixels] = np.nan
    found = tables.average_by_group(table).set_index("group")
    assert found.n.to_dict() == {"texture": "1 to 2", "rigid": "1", "all": "2 to 3"}
    assert found.pixel_auroc["texture"] == 0.9 and found.image_auroc["texture"] == pytest.approx(0.85)
    assert tables.average_by_group(table.assign(**dict.fromkeys(pixels, np.nan))).n.tolist() == ["2", "1", "3"]
    assert tables.count_values(pd.DataFrame({"a": [np.nan]})) == "0"
    beside = comparison.compare_with_base(pd.concat([table, table.assign(method="other")]), table.method.iloc[0])
    assert beside.n.tolist() == [2, 2]


def test_methods_without_maps_are_not_set_against_others_by_pixel():
    table = metrics(GOOD_TEXTURES)
    scores = table.assign(method="scores alone", pixel_auroc=np.nan, aupro=np.nan)
    assert comparison.compare_pixels_of_all_pairs(pd.concat([table, scores])).empty


def test_a_table_without_rows_is_a_sentence_and_empty_columns_are_left_out():
    assert tables.show_table(pd.DataFrame({"a": []})).data == tables.NO_ROWS
    assert tables.show_table(pd.DataFrame({"a": []}), without="No mask.").data == "No mask."
    found = tables.show_table(pd.DataFrame({"a": [1, 2], "aupro": [None, None], "b": [0.5, None]})).to_html()
    assert "No row has a value for: AUPRO." in found and "none" in found and "nan" not in found.casefold()
    assert "No row" not in tables.show_table(pd.DataFrame({"a": [1]})).to_html()


def test_one_of_a_kind_is_singular():
    assert tables.format_categories(1) == "1 product" and tables.format_categories(0) == "0 products"
    assert tables.format_counts(pd.Series([1, 1]), "images") == "1 image"
    assert tables.format_counts(pd.Series([1, 3]), "draws") == "1 to 3 draws"


def test_categories_have_one_order():
    assert tables.order_categories(metrics(GOOD_TEXTURES)) == ["cork", "linen", "gear"]
    assert list(tables.average_by_category(metrics(GOOD_TEXTURES)).category) == ["cork", "linen", "gear"]


def test_the_best_and_the_worst_group_are_set_apart_by_welchs_interval_for_all_pairs():
    from scipy.stats import ttest_ind

    level = {"texture": 0.9, "rigid": 0.6, "flexible": 0.7}
    values = {f"{name}{i}": (name, base + 0.01 * i) for name, base in level.items() for i in range(4)}
    rows = metrics(values)
    few = metrics(
        {name: (group, 0.1) for name, (group, _) in values.items()}, shots=4
    )  # of references the fewest count
    row = comparison.compare_groups(pd.concat([rows, few])).iloc[0]
    groups = [rows.image_auroc[rows.group == name] for name in ("texture", "rigid")]
    ends = ttest_ind(*groups, equal_var=False).confidence_interval(1 - 0.05 / 3)
    assert (row.highest, row.lowest, row.highest_n, row.lowest_n, row.pairs) == ("texture", "rigid", 4, 4, 3)
    assert tuple(row[["difference", "low", "high"]]) == pytest.approx((0.3, ends.low, ends.high))
    turned = comparison.compare_groups(rows.assign(pixel_auroc=1 - rows.image_auroc), "pixel_auroc").iloc[0]
    assert (turned.highest, turned.lowest, turned.highest_mean) == ("rigid", "texture", pytest.approx(0.385))


def test_a_group_of_one_category_has_no_spread_and_one_group_nothing_to_be_set_against():
    row = comparison.compare_groups(metrics(GOOD_TEXTURES)).iloc[0]
    assert (row.highest, row.low, row.high) == ("texture", -1, 1)
    assert comparison.compare_groups(metrics({"a": ("rigid", 0.8), "b": ("rigid", 0.9)})).empty
    assert comparison.compare_groups(metrics({"part": ("unknown", np.nan)})).empty


def test_two_methods_are_compared_by_what_they_localise():
    one, other = (metrics({f"{i}": ("rigid", 0.7 + 0.01 * i) for i in range(4)}, 0, name) for name in ("One", "Other"))
    other["aupro"] += [0.2, 0.21, 0.22, 0.2]
    other.loc[3, "pixel_auroc"] = np.nan
    found = comparison.compare_pixels_of_all_pairs(pd.concat([one, other])).set_index("measure")
    assert found.n.to_dict() == {"pixel_auroc": 3, "aupro": 4} and found.difference["aupro"] == pytest.approx(-0.2075)
    expected = statistics.difference([-0.2, -0.21, -0.22, -0.2], 0.975)
    assert tuple(found.loc["aupro", ["difference", "low", "high"]]) == pytest.approx(expected)
    single = comparison.compare_pixels_of_all_pairs(pd.concat([one[:1], other[:1]]))
    assert set(single.n) == {1} and (single.low == -1).all() and (single.high == 1).all()
    assert comparison.compare_pixels_of_all_pairs(one).empty


def test_paired_interval_is_students():
    from scipy.stats import ttest_1samp

    values = np.array([0.02, -0.01, 0.05, 0.03, 0.00])
    mean, low, high = statistics.paired(values)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((values.mean(), expected.low, expected.high))
    assert statistics.paired(values[:1]) == (0.02, float("-inf"), float("inf"))


def test_differences_that_do_not_vary_decide_nothing():
    assert statistics.paired([0.95 - 0.9, 0.9 - 0.85]) == (pytest.approx(0.05), float("-inf"), float("inf"))
    assert statistics.paired([0.1 + 0.2 - 0.3] * 3) == (0, 0, 0)  # what rounding leaves is no difference


def ablated(**pixel: list[float]) -> pd.DataFrame:
    rows = [
        {"method": method, "category": f"c{i}", "image_auroc": 0.5, "pixel_auroc": value, "aupro": 0.4}
        for method, values in pixel.items()
        for i, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_differences_are_paired_over_categories():
    table = ablated(base=[0.9, 0.8, 0.7], worse=[0.8, 0.71, 0.6], other=[0.8, 0.9, 0.7])
    found = comparison.compare_with_base(table, "base").set_index("method")
    assert found.pixel_auroc.tolist() == pytest.approx([0.8, 0.7033, 0.8], abs=1e-4)
    assert np.isnan(found.difference["base"]) and found.n.tolist() == [3, 3, 3]
    expected = statistics.paired([-0.1, -0.09, -0.1], 0.975)  # both comparisons with the base together
    assert tuple(found.loc["worse", ["difference", "low", "high"]]) == pytest.approx(expected)


# ---------------------------------------------------------------- subsets, differences, ranks


def test_wins_average_to_the_auroc():
    labels, scores = sample(3)
    scores = scores.round(1)  # ties
    assert statistics.wins(labels, scores).mean() == pytest.approx(roc_auc_score(labels, scores))
    assert np.isnan(statistics.wins(np.ones(3, int), np.arange(3.0))).all()


def test_few_images_get_wilsons_interval():
    labels, scores = np.r_[np.zeros(30, int), 1, 1], np.r_[np.arange(30.0), 50, 12.5]
    assert statistics.auroc_interval(labels, scores) == pytest.approx(statistics.wilson(1 + 13 / 30, 2))


def test_subset_differences_share_their_normal_images():
    stream = np.random.default_rng(0)
    normal, first, second = stream.normal(size=20), stream.normal(1, size=30), stream.normal(0.4, size=30)
    found, low, high = statistics.subset_difference(normal, first, second)
    labels = np.repeat([0, 1], [20, 30])
    aurocs = [roc_auc_score(labels, np.r_[normal, side]) for side in (first, second)]
    ends = [statistics.auroc_interval(labels, np.r_[normal, side]) for side in (first, second)]
    assert found == pytest.approx(aurocs[0] - aurocs[1]) and low < found < high
    assert high - low < 0.95 * np.hypot(*(end[1] - end[0] for end in ends))  # independent ones would be this wide
    wider = statistics.subset_difference(normal, first, second, level=0.99)
    assert wider[1] < low and wider[2] > high
    few = statistics.subset_difference(normal, first[:2], second)
    assert few[1] < 0 < few[2] and few[2] - few[1] > 0.6
    assert statistics.subset_difference(normal[:3], np.empty(0), second)[1:] == (-1.0, 1.0)
    perfect = statistics.subset_difference(np.arange(10.0), np.full(20, 99.0), np.full(20, 98.0))
    assert perfect[0] == 0 and perfect[2] > 0.2  # both perfect is no proof that they are alike


def test_subset_differences_hold_the_truth_about_as_often_as_they_say():
    from scipy.stats import norm

    truth, inside = norm.cdf(1 / np.sqrt(2)) - 0.5, []
    for seed in range(150):
        stream = np.random.default_rng(seed)
        sides = stream.normal(size=16), stream.normal(1, size=20), stream.normal(0, size=12)
        _, low, high = statistics.subset_difference(*sides)
        inside.append(low <= truth <= high)
    assert 0.88 <= np.mean(inside) <= 0.99


def test_a_mean_over_categories_is_students_or_that_of_its_images():
    parts = [(0.6, 0.5, 0.7), (0.8, 0.6, 0.9), (1.0, 0.8, 1.0)]
    assert statistics.category_mean(parts, False) == (pytest.approx(0.8), pytest.approx(0.303, abs=1e-3), 1.0)
    mean, low, high = statistics.category_mean(parts, True)
    assert (mean, low) == pytest.approx((0.8, 0.8 - np.sqrt(0.1**2 + 0.2**2 + 0.2**2) / 3))
    assert high == pytest.approx(0.8 + np.sqrt(0.1**2 + 0.1**2) / 3)
    alike = [(1.0, 0.9, 1.0)] * 6
    assert statistics.category_mean(alike, False)[1:] == pytest.approx(statistics.wilson(6, 6))
    assert statistics.category_mean(alike[:1], False)[1:] == pytest.approx(statistics.wilson(1, 1))
    assert statistics.category_mean(alike, False, least=-1.0)[1:] == (-1.0, 1.0)  # equal differences tell no spread
    assert statistics.category_mean([(0.5, 0.2, 0.7)], True) == pytest.approx((0.5, 0.2, 0.7))
    assert np.isnan(statistics.category_mean([], False)[0]) and statistics.category_mean([], True)[1:] == (0.0, 1.0)


def test_the_band_of_a_local_share_holds_the_truth_about_as_often_as_it_says():
    """Twelve categories of which some find nearly all defects and some few: images alone would be too sure."""
    inside, alone = [], []
    at = np.array([-1.0, 0.0, 1.0])
    for seed in range(200):
        stream = np.random.default_rng(seed)
        values, codes = stream.normal(size=288), np.repeat(np.arange(12), 24)
        hits = stream.random(288) < stream.beta(1.2, 0.8, 12)[codes]
        share, low, high = statistics.local_share(values, hits, codes, np.ones(288), at)
        inside.append((low <= 0.6) & (high >= 0.6))
        _, low, high = statistics.local_share(values, hits, np.arange(288), np.ones(288), at)
        alone.append((low <= 0.6) & (high >= 0.6))
    assert 0.9 < np.mean(inside) < 0.99 and np.mean(alone) < 0.8


def test_a_local_share_of_almost_nothing():
    share, low, high = statistics.local_share(np.arange(8.0), np.ones(8), np.arange(8), np.ones(8), [3.5])
    assert share == [1] and high == [1] and statistics.wilson(8, 8)[0] >= low > 0.4  # eight hits prove no certainty
    share, low, high = statistics.local_share(np.ones(8), np.ones(8), np.arange(8), np.ones(8), [1.0])
    assert np.isnan(share) and (low, high) == (0, 1)  # no spread, no curve
    assert np.isnan(statistics.local_share(np.arange(8.0), np.ones(8), np.zeros(8), np.ones(8), [1.0])[0])


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
    wider = statistics.rank_correlation(x, y, 0.99)
    assert wider[0] == found and wider[1] < low and wider[2] > high
    perfect = statistics.rank_correlation(np.arange(6), np.arange(6))
    assert perfect[0] == perfect[2] == 1 and perfect[1] < 0.8
    assert statistics.rank_correlation([1, 2, np.nan, 4, 5], [1, 2, 9, 4, 5])[0] == 1


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
    row = comparison.compare_images_of_all_pairs(table).iloc[0]
    assert (row.method, row.against, row["better in"], row["worse in"], row.n) == ("one", "other", 2, 0, 240)
    assert row.low > 0
    turned = comparison.compare_images_of_all_pairs(table.assign(score=-table.score))
    assert turned["worse in"].iloc[0] == 2 and turned.high.iloc[0] < 0
    same = comparison.compare_images_of_all_pairs(table[table.category == "c"])
    assert same.difference.iloc[0] == 0 and same["better in"].iloc[0] == same["worse in"].iloc[0] == 0
    assert comparison.compare_images_of_all_pairs(table[table.method == "one"]).empty


def test_zero_shot_gives_way_to_what_was_run():
    scores = pd.DataFrame({"shots": [2, 4]})
    assert tables.choose_shots(scores, 0) == 2 and tables.choose_shots(scores, 4) == 4
    assert tables.choose_shots(pd.DataFrame({"shots": [0, 2]}), 0) == 0
    with pytest.raises(InputError, match="'shots' is 7, which was not run; choose one of 2, 4"):
        tables.choose_shots(scores, 7)
