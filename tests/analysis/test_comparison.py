"""The one table of paired differences: numbers, pairing, correction for their number, pivot and words."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from vlmad_lib import config
from vlmad_lib.analysis import comparison

CATEGORIES = ["bottle", "cable", "carpet", "grid"]
BEFORE = pd.DataFrame({"image_auroc": [0.5, 0.6, 0.7, 0.8], "pixel_auroc": [0.9, 0.8, 0.7, 0.6]}, CATEGORIES)
GAINS = np.array([0.10, 0.12, 0.11, 0.09])


@pytest.mark.parametrize("comparisons", [1, 5])
def test_intervals_are_students_of_the_paired_differences_corrected_for_their_number(comparisons):
    after = BEFORE.assign(image_auroc=BEFORE.image_auroc + GAINS)
    table = comparison.pair_differences(after, BEFORE, "categories", comparisons, name="A", against="B")
    assert list(table.columns) == ["name", "against", *comparison.COLUMNS[-6:]]
    assert list(table.measure) == ["image_auroc", "pixel_auroc"] and set(table.over) == {"categories"}
    row = table.iloc[0]
    wanted = stats.ttest_1samp(GAINS, 0).confidence_interval(1 - 0.05 / comparisons)
    assert (row.difference, row.low, row.high) == pytest.approx((GAINS.mean(), wanted.low, wanted.high))
    assert row.n == 4 and row["name"] == "A" and row.against == "B"


def test_units_are_paired_by_name_and_those_that_one_side_lacks_are_left_out():
    after = (BEFORE + 0.1).iloc[::-1].drop(index="cable")
    after.loc["carpet", "image_auroc"] = np.nan
    table = comparison.pair_differences(after, BEFORE, "categories").set_index("measure")
    assert table.n.to_dict() == {"image_auroc": 2, "pixel_auroc": 3}
    assert table.difference.to_numpy() == pytest.approx([0.1, 0.1])


def test_a_side_of_one_row_stands_for_every_unit_whichever_side_it_is():
    single = pd.DataFrame({"image_auroc": [0.5], "pixel_auroc": [0.5]}, ["all"])
    forth = comparison.pair_differences(BEFORE, single, "draws")
    back = comparison.pair_differences(single, BEFORE, "draws")
    assert list(forth.n) == list(back.n) == [4, 4]
    assert forth.difference.to_numpy() == pytest.approx([0.15, 0.25])
    assert back.difference.to_numpy() == pytest.approx(-forth.difference)
    assert back.low.to_numpy() == pytest.approx(-forth.high)


def test_a_side_with_one_category_stands_for_no_other():
    table = comparison.pair_differences(BEFORE[:1] + 0.1, BEFORE, "categories")
    assert list(table.n) == [1, 1] and table.difference.to_numpy() == pytest.approx([0.1, 0.1])


def test_one_unit_decides_nothing():
    row = comparison.pair_differences(BEFORE[:1] + 0.1, BEFORE[:1], "categories").iloc[0]
    assert row.n == 1 and row.difference == pytest.approx(0.1)
    assert comparison.verdict(row.low, row.high) == "no difference shown"


@pytest.mark.parametrize(
    ("ends", "word"), [((0.1, 0.3), "helps"), ((-0.3, -0.1), "costs"), ((-0.1, 0.3), "no difference shown")]
)
def test_a_sentence_states_the_interval_n_and_what_is_decided(ends, word):
    row = SimpleNamespace(difference=sum(ends) / 2, low=ends[0], high=ends[1], n=12, over="categories")
    interval = comparison.format_difference(row.difference, *ends)
    sentence = comparison.describe_difference(row, "helps", "costs")
    assert sentence == f"{interval}, n = 12 products: {word}"


def test_the_pivot_has_a_row_for_each_key_and_the_measures_side_by_side():
    tables = [
        comparison.pair_differences(BEFORE + gain + 0.01 * BEFORE, BEFORE, "categories", method=name)
        for name, gain in (("second", 0.1), ("first", -0.1))
    ]
    wide = comparison.pivot_differences(pd.concat(tables, ignore_index=True), ["method"])
    assert list(wide.method) == ["second", "first"]
    assert wide.image_auroc[0].endswith("higher") and wide.image_auroc[1].endswith("lower")
    assert list(wide.columns) == ["method", "n", "image_auroc", "pixel_auroc"]
    row = tables[0].iloc[0]
    assert wide.image_auroc[0].startswith(comparison.format_difference(row.difference, row.low, row.high))


def test_verdicts_are_clauses_of_one_sentence_the_largest_first():
    rows = [("A", 0.1, 0.05, 0.15), ("B", 0.3, 0.1, 0.5), ("C", -0.2, -0.3, -0.1), ("D", 0.0, -0.1, 0.1)]
    table = pd.DataFrame(rows, columns=["method", "difference", "low", "high"]).assign(over="categories", n=12)
    assert comparison.describe_verdicts(table, "method") == (
        "higher for B (+0.300, +0.100 to +0.500) and A (+0.100, +0.050 to +0.150), lower for C (-0.200, -0.300 to "
        "-0.100), no difference shown for D (+0.000, -0.100 to +0.100) (n = 12 products, 95 % for all 4 together)"
    )
    assert "B (+0.300, +0.100 to +0.500) and 1 more" in comparison.describe_verdicts(table, "method", most=1)
    assert comparison.describe_verdicts(table.assign(difference=float("nan")), "method") == ""
    undecided = comparison.describe_verdicts(table.assign(low=-1.0, high=0.5), "method")
    assert undecided.startswith("no difference shown for any of 4, the largest being B (+0.300, -1.000 to +0.500)")


def test_numbers_of_references_within_a_sentence():
    said = [comparison.phrase_shots(shots) for shots in (0, 1, 4, config.FULL)]
    assert said == ["without good pictures", "with 1 good picture", "with 4 good pictures", "with all good pictures"]
