"""Advice comes from the table alone: the other method ahead flips it, and what few categories show is no evidence."""

import numpy as np
import pandas as pd
import pytest
from conftest import make_mvtec, small_profile

from vlmad_lib import advice, run
from vlmad_lib.advice import Situation

GROUPS = {f"{group}{number}": group for group in ("texture", "rigid") for number in range(4)}
EXTRA = np.array([0.00, 0.02, 0.01, 0.03])  # categories differ, and by how much differs little


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("advice")
    return run.run(small_profile(make_mvtec(folder / "data"), folder / "cache"))


def table(values: dict[str, float]) -> pd.DataFrame:
    """Made-up cells: each method's level, the same ups and downs in every category, a little noise of its own."""
    rows = []
    for place, (name, value) in enumerate(values.items()):
        for number, (category, group) in enumerate(GROUPS.items()):
            level = value + EXTRA[number % 4] + 0.001 * ((number + place) % 3)
            method, shots = name.split(", ")
            known = dict.fromkeys([*advice.MEASURED, advice.FAINT], level)
            rows.append(
                {"name": name, "method": method, "shots": int(shots[0]), "group": group, "category": category} | known
            )
    return pd.DataFrame(rows)


def asked(found: pd.DataFrame, learned: tuple[str, ...] = (), **ms: float) -> pd.DataFrame:
    first = found.drop_duplicates("name")[["name", "method", "shots"]].reset_index(drop=True)
    first["learned"] = first.method.isin(learned)
    return first.assign(words=True, known=True, ms=first.method.map(ms).fillna(10.0), memory=100.0)


def one(values: dict[str, float], situation: Situation, learned: tuple[str, ...] = (), **ms: float):
    found = table(values)
    advised = advice.advise(found, asked(found, learned, **ms), [situation])
    return advised.iloc[0], advice.sentences(advised)


@pytest.mark.parametrize("situation", advice.SITUATIONS)
def test_the_advice_flips_with_the_table(situation):
    for ahead, behind in (("One", "Other"), ("Other", "One")):
        row, told = one({f"{ahead}, 0-shot": 0.8, f"{behind}, 0-shot": 0.6}, situation)
        if set(situation.groups) <= {"flexible", "unknown"}:
            assert row.n == 0 and "not enough evidence" in told and "n = 0" in told
            continue
        assert row["take"] == f"{ahead}, 0-shot" and row.rivals == ""
        assert f"take **{ahead}, 0-shot**" in told and f"**{behind}" not in told


def test_every_number_of_a_sentence_is_in_its_row():
    row, told = one({"One, 0-shot": 0.8, "Other, 0-shot": 0.6}, Situation("Line", "image_auroc"))
    for value in (row.taken, row.other):
        assert f"{value:.3f}" in told
    for value in (row.difference, row.low, row.high):
        assert f"{value:+.3f}" in told
    assert "n = 8 categories" in told and row.low < row.difference < row.high
    wide = table({"One, 0-shot": 0.8, "Other, 0-shot": 0.6}).pivot(
        index="category", columns="name", values="image_auroc"
    )
    assert row.difference == pytest.approx((wide["One, 0-shot"] - wide["Other, 0-shot"]).mean())


def test_what_is_not_told_apart_is_no_evidence_and_the_least_demanding_is_named():
    values = {"Learned, 0-shot": 0.8, "Few, 4-shot": 0.8001, "Plain, 0-shot": 0.7999}
    row, told = one(values, Situation("Line", "image_auroc"), learned=("Learned",))
    assert row.best == "Few, 4-shot" and row["take"] == "Plain, 0-shot"
    assert "not enough evidence" in told and "Start with **Plain, 0-shot**" in told and "the product's name" in told
    row, told = one(values, Situation("Line", "image_auroc", fast=True), Few=2.0, Learned=50.0)
    assert row["take"] == "Few, 4-shot" and "start with: 2 ms" in told


def test_situations_exclude_what_they_cannot_give():
    values = {"Learned, 0-shot": 0.9, "Few, 0-shot": 0.5, "Few, 1-shot": 0.7, "Few, 4-shot": 0.8}
    untrained = Situation("Line", "image_auroc", trained=False)
    assert one(values, untrained, learned=("Learned",))[0]["take"] == "Few, 4-shot"
    few = Situation("Line", "image_auroc", shots=2, trained=False)
    assert one(values, few, learned=("Learned",))[0]["take"] == "Few, 1-shot"
    none = Situation("Line", "image_auroc", shots=0, trained=False)
    row, told = one(values, none, learned=("Learned",))
    assert row["take"] == "Few, 0-shot" and "nothing to compare it with" in told


def test_one_category_is_no_evidence():
    found = table({"One, 0-shot": 0.9, "Other, 0-shot": 0.5})
    found = found[found.category == "rigid0"]
    told = advice.sentences(advice.advise(found, asked(found), [Situation("Line", "image_auroc")]))
    assert "not enough evidence" in told and "n = 1 category" in told


def test_faint_defects_are_ranked_against_the_good_images_of_their_category(results):
    """By hand: of the least visible third, the share of good images that each outscores, averaged."""
    measures = results.scores[results.scores["mask"] != ""].drop_duplicates("image").reset_index(drop=True)
    measures["contrast"] = np.arange(len(measures), dtype=float)
    found = advice.cells(results, measures)
    faint = set(measures.image[measures.contrast <= measures.contrast.quantile(1 / 3)])
    for row in found[found.shots == 0].itertuples():
        scores = results.scores
        part = scores[(scores.method == row.method) & (scores.shots == 0) & (scores.category == row.category)]
        good, bad = part[part.label == 0].score.to_numpy(), part[part.image.isin(faint)].score.to_numpy()
        expected = np.mean([(good < one).mean() + 0.5 * (good == one).mean() for one in bad]) if len(bad) else np.nan
        assert row.faint_auroc == pytest.approx(expected, nan_ok=True)


def test_the_shown_rows_say_none_where_there_is_nothing():
    found = table({"One, 0-shot": 0.8, "Other, 0-shot": 0.6})
    shown = advice.shown(advice.advise(found, asked(found), [advice.SITUATIONS[0], advice.SITUATIONS[2]]))
    assert list(shown.best) == ["One, 0-shot (0.816)", "none"] and list(shown["take"]) == ["One, 0-shot", "none"]
    assert shown["best less"][0].startswith("Other, 0-shot (0.616): +0.2") and shown["best less"][1] == "none"
    assert list(shown.rivals) == ["none", "none"]
