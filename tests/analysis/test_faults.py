"""The faults of the study's WinCLIP: the variants, their differences, and what is told of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, small_profile

from vlmad_lib import config, tables
from vlmad_lib.analysis import study_claims
from vlmad_lib.methods import winclip
from vlmad_lib.pipeline import run
from vlmad_lib.reporting import figures

SPEC = config.Method(**TINY, settings={"windows": [2], "states": "one", "temperature": 0.5})


def settings(spec: config.Method) -> dict:
    return winclip.settings(spec.preset, spec.settings).model_dump()


def test_every_difference_of_the_presets_is_a_fault():
    differing = {name for name, value in winclip.PRESETS["study"].items() if settings(SPEC)[name] != value}
    assert {setting for _, setting, *_ in study_claims.FAULTS} == differing - {"fit"}


def test_own_words_stay_the_methods_own():
    words = {"states": "own", "own_normal": ["{} in order"], "own_anomalous": ["broken {}"]}
    found = study_claims.list_variants(SPEC.model_copy(update={"settings": SPEC.settings | words}))
    assert len(found) > 2 and all(words.items() <= settings(spec).items() for spec in found)


@pytest.mark.parametrize("shots", [0, 1])
def test_each_variant_changes_one_setting_of_its_base(shots):
    found = study_claims.list_variants(SPEC, shots)
    assert len({spec.name for spec in found}) == len(found)
    paper, study = settings(found[0]), settings(found[1])
    assert paper == settings(SPEC) | {"temperature": 0.07}  # the windows stay the method's own
    for spec in found[2:]:
        base = paper if spec.name.startswith(study_claims.ADDED) else study
        changes = [name for name, value in settings(spec).items() if value != base[name]]
        assert len(changes) == 1, spec.name
    only_references = {"patch_tokens", "window_association", "fusion"}
    names = {setting for name, setting, *_ in study_claims.FAULTS if any(name in spec.name for spec in found)}
    assert names & only_references == (only_references if shots else set())


def test_the_sweep_runs_and_faults_of_the_map_leave_the_papers_score_alone(mvtec, tmp_path):
    method = SPEC.model_dump()
    chosen = small_profile(mvtec, tmp_path / "cache", methods=[method], shots=[0, 1, 2], seeds=[3, 4])
    few, zero_shot = study_claims.plan_faults(chosen, chosen.methods[0])
    assert (few.shots, few.seeds, few.imports, zero_shot.shots) == ([1], [3], [], [0])
    found = study_claims.compare_variants(run.run(zero_shot).metrics)
    added = found[(found.direction == study_claims.ADDED) & (found.metric == "image_auroc")].set_index("fault")
    assert (added.difference[["no whole-image scale", "harmonic of normal", "temperature 0.01"]] == 0).all()
    assert set(found.n) == {2} and len(found) == 2 * 2 * 8 + 2


def swept(costs: dict[str, list[float]], gain: float = 0.1) -> pd.DataFrame:
    rows = []
    for category in range(3):
        values = {study_claims.PAPER: 0.9, study_claims.STUDY: 0.6}
        values |= {f"{study_claims.ADDED}: {name}": 0.9 - cost[category] for name, cost in costs.items()}
        values |= {
            f"{study_claims.REMOVED}: {name}": 0.6 + gain * number * (0.9 + 0.1 * category)
            for number, name in enumerate(costs)
        }
        for method, value in values.items():
            row = {"method": method, "category": f"c{category}", "shots": 0, "aupro": 0.5}
            rows.append(row | {"image_auroc": value, "pixel_auroc": value})
    return pd.DataFrame(rows)


ONE, OTHER = {"a": [0.3, 0.31, 0.3], "b": [0, 0, 0]}, {"a": [0, 0, 0], "b": [-0.1, 0.2, 0.2]}


def test_differences_are_to_the_variants_own_base():
    found = study_claims.compare_variants(swept(ONE)).set_index(["metric", "direction", "fault"])
    row = found.loc["image_auroc", study_claims.ADDED, "a"]
    assert row.difference == pytest.approx(-0.3033, abs=1e-4) and (row.base, row.n) == (pytest.approx(0.9), 3)
    assert row.low < row.difference < row.high < 0
    assert found.loc["pixel_auroc", study_claims.REMOVED, "b"].difference == pytest.approx(0.1)


def test_sentences_state_the_whole_effect_and_what_is_not_decided():
    one, other = (study_claims.describe_faults(study_claims.compare_variants(swept(costs))) for costs in (ONE, OTHER))
    assert "n = 3 categories" in one and "2 change nothing and 0 are no difference shown" in one
    assert "1 are no difference shown" in other


def test_all_faults_together_are_the_study_against_the_paper():
    table = swept(ONE)
    table.loc[table.method == study_claims.STUDY, "image_auroc"] = [0.82, 0.84, 0.83]
    changes = study_claims.compare_variants(table)
    row = changes[changes.direction == study_claims.ALL].set_index("metric").loc["image_auroc"]
    assert row.difference == pytest.approx(-0.07) and row.n == 3 and row.low < -0.07 < row.high < 0
    assert "-0.070 (" in study_claims.describe_faults(changes) and "lower" in study_claims.describe_faults(changes)


def test_nothing_ranked_leaves_an_empty_table():
    changes = study_claims.compare_variants(swept(ONE).assign(image_auroc=np.nan, pixel_auroc=np.nan))
    assert changes.empty and list(changes.columns) == study_claims.COLUMNS
    assert study_claims.describe_faults(changes) == tables.NO_AUROC


def drawn(found):
    found = (
        found[found.fault != study_claims.ALL]
        .rename(columns={"metric": "measure"})
        .sort_values(["measure", "difference"])
    )
    return figures.differences(found, "fault", "direction")


def test_the_figure_puts_the_costliest_first_and_shows_one_category_as_unknown():
    found = study_claims.compare_variants(swept(ONE))
    figure = drawn(found)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]
    assert len(figure.axes) == 2
    alone = study_claims.compare_variants(swept(ONE).query("category == 'c0'"))
    assert (alone.low == -1).all() and (alone.high == 1).all()
    assert drawn(alone).axes[0].get_xlim()[0] <= -1
    figures.plt.close("all")
