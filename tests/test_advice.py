"""Advice comes from the table alone: the other method ahead flips it, and what few categories show is no evidence."""

import numpy as np
import pandas as pd
import pytest
from conftest import make_mvtec, small_profile
from scipy import stats

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


def test_the_interval_is_that_of_the_test_that_picks_the_rivals():
    """Of all pairs together: 0 lies in it just where the best is not told from what it is set against."""
    for spread in (0.01, 0.05, 0.06, 0.07, 0.1):
        found = table({"One, 0-shot": 0.8, "Other, 0-shot": 0.75, "Third, 0-shot": 0.5})
        found.loc[found.method == "Other", "image_auroc"] += spread * np.linspace(-1, 1, 8)
        row = advice.advise(found, asked(found), [Situation("Line", "image_auroc")]).iloc[0]
        best, other = (found[found.method == name].image_auroc.to_numpy() for name in ("One", "Other"))
        ends = stats.ttest_1samp(best - other, 0).confidence_interval(1 - 0.05 / 3)
        assert (row.low, row.high) == pytest.approx((ends.low, ends.high)) and row.pairs == 3
        assert (row.low > 0) == ("Other" not in row.rivals)


def test_localisation_is_advised_on_and_times_are_said_to_be_of_this_backbone():
    values = {"One, 0-shot": 0.8, "Other, 0-shot": 0.6}
    assert {one.column for one in advice.SITUATIONS if len(one.groups) == 4} >= {"aupro", "image_auroc"}
    _, told = one(values | {"Other, 0-shot": 0.8}, Situation("Line", "image_auroc", fast=True))
    assert "10 ms an image, with this backbone and input size only" in told


def test_the_time_of_a_method_is_that_with_as_many_references(results):
    steps = dict.fromkeys(advice.STEPS, 1.0) | {"memory": 5.0}
    name = results.profile.methods[0].name
    costs = pd.DataFrame([{"method": name, "shots": shots} | steps | {"score": 10.0**shots} for shots in (0, 2)])
    needed = advice.needs(results, costs).set_index("shots")
    assert needed.ms.to_dict() == {0: 4.0, 1: 103.0} and set(needed.memory) == {5.0}
    assert advice.needs(results, costs[:1]).ms.tolist() == [4.0, 4.0]
    assert advice.needs(results, pd.DataFrame()).ms.isna().all()


def test_every_method_is_timed_without_references_and_with_the_most(results, monkeypatch):
    def measured(profile, spec, rows, repeats):
        shots = max(profile.shots)
        return {"method": spec.name, "shots": shots, "encode": 9.0, "score": 2.0 if shots else 1.0, "bare": 1.0}

    monkeypatch.setattr(advice.efficiency, "measure", measured)
    found = advice.costs(results.profile, None)
    assert found.shots.tolist() == [1, 0] and found.score.tolist() == [2, 1] and found.encode.tolist() == [9, 9]
    assert len(advice.costs(results.profile.model_copy(update={"shots": [0]}), None)) == 1


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


def test_nothing_measured_is_no_evidence():
    found = table({"One, 0-shot": 0.9, "Other, 0-shot": 0.5}).assign(image_auroc=np.nan)
    told = advice.sentences(advice.advise(found, asked(found), [Situation("Line", "image_auroc")]))
    assert "no category here has a value to compare (n = 0 categories)" in told and "nan" not in told


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
    lines = [Situation("Line", "aupro"), Situation("Other line", "image_auroc", ("flexible",))]
    shown = advice.shown(advice.advise(found, asked(found), lines))
    assert list(shown.best) == ["One, 0-shot (0.816)", "none"] and list(shown["take"]) == ["One, 0-shot", "none"]
    assert shown["best less"][0].startswith("Other, 0-shot (0.616): +0.2") and shown["best less"][1] == "none"
    assert list(shown.rivals) == ["none", "none"]
