"""Differences with and without words: paired over categories and over draws, by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, small_profile

from vlmad_lib import InputError, tables
from vlmad_lib.analysis import comparison, variants
from vlmad_lib.config import FULL, Method, check_record
from vlmad_lib.evaluation import statistics
from vlmad_lib.methods import memory_bank
from vlmad_lib.pipeline import run

MEASURES = tables.MAIN
KEYS = ["shots", "against", "group", "over"]


def table(values: dict[tuple[str, int], list[list[float]]]) -> pd.DataFrame:
    """A metrics table from {(method, shots): a list by draw of values by category}, alike in all measures."""
    groups = dict(zip("abcd", ("texture", "texture", "rigid", "rigid"), strict=True))
    rows = [
        {
            "method": method,
            "shots": shots,
            "seed": seed,
            "category": name,
            "group": group,
            **dict.fromkeys(MEASURES, value),
        }
        for (method, shots), drawn in values.items()
        for seed, values in enumerate(drawn)
        for (name, group), value in zip(groups.items(), values, strict=True)
    ]
    return pd.DataFrame(rows)


METRICS = table(
    {
        ("words", 0): [[0.5, 0.6, 0.7, 0.8]],
        ("words", 1): [[0.8, 0.7, 0.9, 0.8], [0.8, 0.9, 0.9, 0.8]],
        ("none", 1): [[0.6, 0.6, 0.8, 0.6], [0.5, 0.7, 0.7, 0.8]],
        ("words", FULL): [[0.9, 0.9, 0.9, 0.9]],
        ("none", FULL): [[0.9, 0.9, 0.9, 0.9]],
    }
)


def row(found: pd.DataFrame, shots: int, over: str, group: str = "all") -> pd.Series:
    part = found[(found.shots == shots) & (found.over == over) & (found.group == group)]
    return part.set_index("measure").loc["image_auroc"]


def test_differences_are_paired_over_categories_and_over_draws():
    found = comparison.compare_with_others(METRICS, "words")
    by_category = row(found, 1, "categories")
    apart = np.array([0.25, 0.15, 0.15, 0.1])
    assert by_category[["difference", "low", "high"]].tolist() == pytest.approx(statistics.paired(apart))
    assert by_category.n == 4 and row(found, 1, "categories", "rigid").difference == pytest.approx(0.125)
    by_draw = row(found, 1, "draws")
    low, high = max(-1, statistics.paired([0.15, 0.175])[1]), statistics.paired([0.15, 0.175])[2]
    assert by_draw[["difference", "low", "high", "n"]].tolist() == pytest.approx([0.1625, low, high, 2])
    assert row(found, FULL, "categories").difference == 0
    assert "draws" not in set(found[found.shots == FULL].over)


def test_words_alone_are_set_against_every_number_of_references():
    found = comparison.compare_with_others(METRICS, "words", own_shots=0)
    assert row(found, 1, "categories").difference == pytest.approx(0.65 - 0.6625)
    assert row(found, FULL, "categories").difference == pytest.approx(0.65 - 0.9)
    # zero-shot draws nothing, so each draw of references meets the same value
    assert row(found, 1, "draws").n == 2


def test_without_values_nothing_is_claimed():
    empty = METRICS.assign(**dict.fromkeys(MEASURES, float("nan")))
    differences = comparison.compare_with_others(empty, "words")
    wide = comparison.pivot_differences(differences, KEYS)
    assert set(wide["image_auroc"]) == {"none"} and comparison.pivot_differences(differences.iloc[:0], KEYS).empty


def test_the_table_has_a_row_a_comparison():
    found = comparison.compare_with_others(METRICS, "words")
    shown = comparison.pivot_differences(found, KEYS)
    assert len(shown) == len(found) / 3
    assert shown.image_auroc[0].endswith(comparison.verdict(found.low[0], found.high[0]))


def test_the_plan_runs_all_methods_on_the_same_draws(mvtec, tmp_path):
    profile = small_profile(mvtec, tmp_path, shots=[0, 1, 2, 3, "full"], seeds=[4, 5, 6])
    assert variants.choose_reference_counts(profile, full=False) == [1, 3]
    assert variants.choose_reference_counts(profile, full=True) == [1, 3, "full"]
    assert variants.choose_reference_counts(small_profile(mvtec, tmp_path, shots=[0]), full=True) == []
    spec = check_record(Method, TINY, "test")
    plan = variants.plan_without_words(profile, spec, [1, "full"], 2, ["plate"])
    assert plan.shots == [0, 1, FULL] and plan.seeds == [4, 5] and plan.categories == ["plate"]
    assert [one.method for one in plan.methods] == ["winclip", "association", "patchcore", "padim", "spade"]
    assert {one.settings["sigma"] for one in plan.methods} == {memory_bank.SIGMA}  # smoothed with smoothed
    with pytest.raises(InputError, match="shots of notebook 18: key 'shots.1' has the value 'few'"):
        variants.plan_without_words(profile, spec, ["few"], 0, [])


def test_steps_to_all_references_are_paired_with_every_draw():
    found = comparison.compare_steps(METRICS[METRICS.method == "words"])
    last = found[(found.more == FULL) & (found.measure == "image_auroc")].iloc[0]
    assert last.n == 2 and last.difference == pytest.approx(0.9 - 0.825)
    assert "1 to all" in set(found.step)


def test_references_are_weighed_between_words_alone_and_references_alone(mvtec, tmp_path):
    profile = small_profile(mvtec, tmp_path, shots=[0, 1])
    spec = check_record(Method, TINY, "test")
    plan = variants.plan_without_words(profile, spec, [1], 1, [])
    compared = run.run(plan.model_copy(update={"methods": plan.methods[:2]}))
    name, twin = compared.metrics.method.unique()
    found = variants.weigh_references(compared, name, twin, 1, [0, 0.5, 1]).set_index(["category", "share"])
    measured = compared.metrics.set_index(["method", "shots", "category"]).sort_index()
    columns = ["image_auroc", "pixel_auroc"]
    for share, key in {0: (name, 0), 0.5: (name, 1), 1: (twin, 1)}.items():
        for category in measured.loc[key].index:
            assert found.loc[(category, share), columns].tolist() == pytest.approx(
                measured.loc[(*key, category), columns].tolist(), abs=1e-4
            )
