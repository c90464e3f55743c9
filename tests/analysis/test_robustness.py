"""What shifts do to scores and maps: cells by hand, and the sweeps on a tiny data set."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, make_mvtec, small_profile

from vlmad_lib.analysis import robustness
from vlmad_lib.config import Method, check_record
from vlmad_lib.data import corruptions, datasets
from vlmad_lib.evaluation import statistics
from vlmad_lib.pipeline import run

SPEC = check_record(Method, TINY | {"settings": {"windows": [2], "states": "one"}}, "test")


def scores(values: dict[tuple[str, str, int], list[float]], labels=(0, 0, 1, 1)) -> pd.DataFrame:
    """A scores table from {(method, shift, severity): scores of a category's images}, the same in two categories."""
    rows = []
    for (method, shift, severity), found in values.items():
        facts = {"method": method, "name": f"{method}, zero-shot", "shots": 0, "shift": shift, "severity": severity}
        facts["image_score"] = "class_token"
        for category in ("a", "b"):
            for number, (label, score) in enumerate(zip(labels, found, strict=True)):
                place = {"category": category, "group": "rigid", "label": label, "source": f"{category}{number}"}
                rows.append(facts | place | {"score": score})
    return pd.DataFrame(rows)


TABLE = scores(
    {
        ("A", "none", 0): [0.1, 0.2, 0.3, 0.4],
        ("A", "blur", 1): [0.1, 0.35, 0.3, 0.4],
        ("A", "blur", 2): [0.5, 0.6, 0.1, 0.2],
        ("A", "light", 1): [0.2, 0.3, 0.4, 0.5],
        ("B", "none", 0): [0.1, 0.2, 0.3, 0.4],
        ("B", "blur", 1): [0.1, 0.2, 0.3, 0.4],
        ("B", "blur", 2): [0.1, 0.2, 0.3, 0.4],
        ("B", "light", 1): [0.1, 0.2, 0.3, 0.4],
    }
)


def value(found: pd.DataFrame, name: str, shift: str) -> pd.Series:
    return found[(found.name == name) & (found["shift"] == shift)].iloc[0]


def test_auroc_is_set_against_the_same_categories_before():
    cells = robustness.measure_auroc_changes(TABLE)
    one = cells[(cells.name == "A, zero-shot") & (cells.category == "a")].set_index(["shift", "severity"]).change
    assert one.to_dict() == pytest.approx({("blur", 1): -0.25, ("blur", 2): -1.0, ("light", 1): 0.0})
    found = robustness.summarise(cells, "change", "category")
    blur, whole = (value(found, "A, zero-shot", name) for name in ("blur", robustness.ALL))
    assert (blur.difference, blur.n) == (pytest.approx(-0.625), 2)
    assert whole.difference == pytest.approx((-0.25 - 1 + 0) / 3)
    assert (blur.low, blur.high) == (-1, 1)  # two equal categories say nothing of a third
    by_severity = robustness.summarise(cells, "change", "category", ("name", "shift", "severity"))
    assert set(by_severity.severity) == {1, 2} and robustness.ALL not in set(by_severity["shift"])


def test_one_class_has_no_auroc():
    assert robustness.measure_auroc_changes(TABLE[TABLE.label == 0]).empty
    assert robustness.measure_auroc_changes(TABLE[TABLE.label == 1]).empty


def test_drift_is_in_standard_deviations_of_the_whole_run():
    whole = TABLE[(TABLE["shift"] == "none")].drop(columns=["name"])
    whole = whole.assign(score=whole.score * 2)
    cells = robustness.measure_score_changes(TABLE, whole)
    spread = np.std([0.2, 0.4, 0.6, 0.8], ddof=1)
    light = cells[(cells.name == "A, zero-shot") & (cells["shift"] == "light")]
    assert light.drift.tolist() == pytest.approx([0.1 / spread] * 8)
    found = robustness.summarise(cells[cells.label == 0], "drift", "source")
    blur = value(found, "A, zero-shot", "blur")
    apart = np.array([(0 + 0.4) / 2, (0.15 + 0.4) / 2] * 2) / spread
    assert blur[["difference", "low", "high"]].tolist() == pytest.approx(statistics.paired(apart)) and blur.n == 4
    assert (
        robustness.measure_score_changes(TABLE, whole[whole.method == "B"])
        .query("name == 'A, zero-shot'")
        .drift.isna()
        .all()
    )


def test_two_methods_are_compared_where_both_are_known():
    cells = robustness.measure_auroc_changes(TABLE)
    cells = cells[~((cells.name == "B, zero-shot") & (cells.severity == 2))]
    found = robustness.compare_methods(cells, "change", "category")
    assert set(found.name) == {"A, zero-shot minus B, zero-shot"}
    assert value(found, found.name[0], "blur").difference == pytest.approx(-0.25)
    assert robustness.compare_methods(cells[cells.name == "A, zero-shot"], "change", "category").empty


def test_intervals_hold_for_all_comparisons_together_and_say_over_what():
    cells = robustness.measure_auroc_changes(TABLE)
    cells.loc[cells.category == "b", "change"] /= 2  # the two categories are the same otherwise
    one, several = (robustness.summarise(cells, "change", "category", comparisons=count) for count in (1, 5))
    assert (one.difference == several.difference).all() and set(one.over) == {"categories"}
    assert several.low.le(one.low).all() and value(several, "A, zero-shot", "blur").low == -1


def test_each_image_is_set_against_itself_as_it_was():
    found = robustness.compare_with_clean(TABLE, "score", ["name", "source"], "moved")
    assert set(found["shift"]) == {"blur", "light"} and (found.score - found.before).equals(found.moved)
    light = found[(found.name == "A, zero-shot") & (found["shift"] == "light")]
    assert light.moved.tolist() == pytest.approx([0.1] * 8)


# ---------------------------------------------------------------- sweeps


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A profile on a tiny data set, its index and the images that are shifted."""
    folder = tmp_path_factory.mktemp("robustness")
    chosen = small_profile(make_mvtec(folder / "data"), folder / "cache", methods=[SPEC.model_dump()], shots=[0, 1, 2])
    table, _ = datasets.build_index(chosen)
    return chosen, table, datasets.sample_images(table, 4)


def test_the_subset_is_half_defective_and_takes_defects_in_turn(tiny):
    _, table, rows = tiny
    assert rows.groupby(["category", "label"]).size().tolist() == [2, 2, 2, 2]
    assert len(datasets.sample_images(table, 0)) == (table.split == "test").sum()
    two = table.assign(defect=[f"d{i % 3}" if label else "good" for i, label in enumerate(table.label)])
    found = datasets.sample_images(two, 6)
    assert (found[found.label == 1].groupby("category").defect.nunique() == 3).all()
    assert list(datasets.sample_images(table, 4, seed=1).image) != list(rows.image)


def test_the_quick_plan_has_the_same_image_scores(tiny):
    chosen, table, _ = tiny
    quick, slow = robustness.plan_runs(chosen)
    assert (quick.shots, slow.shots, slow.methods) == ([0], [0, 1], [SPEC])
    assert quick.methods[0].settings["windows"] == []
    first, second = (run.run(one.model_copy(update={"shots": [0]}), table=table).scores for one in (quick, slow))
    assert first.score.tolist() == second.score.tolist()
    study = SPEC.model_copy(update={"preset": "study"})
    assert robustness.thin_windows(study) == study  # its image score is the maximum of a map that needs windows
    assert robustness.thin_windows(check_record(Method, TINY | {"method": "patchcore"}, "test")) is None


def test_a_sweep_pairs_every_image_with_itself_and_leaves_references_alone(tiny):
    chosen, table, rows = tiny
    slow = robustness.plan_runs(chosen)[1]
    places = [("rotation", 2), ("noise", 4)]
    found = robustness.run_shifts(slow, table, rows, places)
    assert found.scores.groupby(["name", "shift", "severity"]).size().tolist() == [len(rows)] * 6
    assert set(found.scores.source) == set(rows.image) and found.metrics.empty
    drawn = datasets.draw_references(table, "plate", 1, slow.seeds[0]).image.iloc[0]
    few = found.scores[(found.scores.shots == 1) & (found.scores.category == "plate")]
    assert set(few.references) == {"/".join(drawn.split("/")[-3:])}
    clean = run.run(slow).scores.set_index(["variant", "image"]).score
    same = found.scores[found.scores["shift"] == corruptions.NONE].set_index(["variant", "source"]).score
    assert same.to_dict() == pytest.approx(clean.loc[same.index].to_dict())
    cells = robustness.compare_maps([found])
    assert len(cells) == 2 * 2 * len(rows) and cells.correlation.between(-1, 1).all()
    assert cells.pixel_change.notna().sum() == 2 * 2 * (rows.label == 1).sum()


def test_nothing_runs_without_methods_or_images(tiny):
    chosen, table, rows = tiny
    assert robustness.run_shifts(chosen.model_copy(update={"methods": []}), table, rows, []) is None
    assert robustness.run_shifts(chosen, table, rows.iloc[:0], []) is None
    assert robustness.compare_maps([]).empty
    empty = robustness.measure_auroc_changes(TABLE.iloc[:0])
    assert empty.empty and robustness.summarise(empty, "change", "category").empty
    assert robustness.compare_methods(empty, "change", "category").empty


def test_a_map_that_turns_with_its_image_is_the_same_map():
    grid = np.random.default_rng(0).random((5, 5)).astype(np.float32)
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    moved = corruptions.warp_pixels(grid, turn, (50, 50), robustness.Image.Resampling.BILINEAR)
    assert robustness._alike(grid, moved, turn, (50, 50)) == pytest.approx(1)
    assert robustness._alike(grid, grid, turn, (50, 50)) < 0.9
    assert robustness._alike(grid, grid**3, None, (50, 50)) == pytest.approx(1)
    assert np.isnan(robustness._alike(grid, np.ones_like(grid), None, (50, 50)))
