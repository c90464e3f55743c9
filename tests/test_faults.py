"""The faults of the study's WinCLIP: the variants, their differences, and what is told of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, small_profile

from vlmad_lib import config, tables
from vlmad_lib.analysis import faults
from vlmad_lib.methods import winclip
from vlmad_lib.pipeline import run
from vlmad_lib.reporting import figures

SPEC = config.Method(**TINY, settings={"windows": [2], "states": "one", "temperature": 0.5})


def settings(spec: config.Method) -> dict:
    return winclip.settings(spec.preset, spec.settings).model_dump()


def test_every_difference_of_the_presets_is_a_fault():
    differing = {name for name, value in winclip.PRESETS["study"].items() if settings(SPEC)[name] != value}
    assert {fault.setting for fault in faults.FAULTS} == differing - {"fit"}
    assert list(faults.faults().setting) == [fault.setting for fault in faults.FAULTS]


def test_own_words_stay_the_methods_own():
    words = {"states": "own", "own_normal": ["{} in order"], "own_anomalous": ["broken {}"]}
    found = faults.variants(SPEC.model_copy(update={"settings": SPEC.settings | words}))
    assert len(found) > 2 and all(words.items() <= settings(spec).items() for spec in found)


@pytest.mark.parametrize("shots", [0, 1])
def test_each_variant_changes_one_setting_of_its_base(shots):
    found = faults.variants(SPEC, shots)
    assert len({spec.name for spec in found}) == len(found)
    paper, study = settings(found[0]), settings(found[1])
    assert paper == settings(SPEC) | {"temperature": 0.07}  # the windows stay the method's own
    for spec in found[2:]:
        base = paper if spec.name.startswith(faults.ADDED) else study
        changes = [name for name, value in settings(spec).items() if value != base[name]]
        assert len(changes) == 1, spec.name
    only_references = {"patch_tokens", "window_association", "fusion"}
    names = {fault.setting for fault in faults.FAULTS if any(fault.name in spec.name for spec in found)}
    assert names & only_references == (only_references if shots else set())


def test_the_sweep_runs_and_faults_of_the_map_leave_the_papers_score_alone(mvtec, tmp_path):
    method = SPEC.model_dump()
    chosen = small_profile(mvtec, tmp_path / "cache", methods=[method], shots=[0, 1, 2], seeds=[3, 4])
    assert faults.shots_swept(chosen) == [1, 0]
    swept = faults.sweep(chosen, chosen.methods[0], 1)
    assert (swept.shots, swept.seeds, swept.imports) == ([1], [3], [])
    found = faults.changes(run.run(faults.sweep(chosen, chosen.methods[0])).metrics)
    added = found[(found.direction == faults.ADDED) & (found.metric == "image_auroc")].set_index("fault")
    assert (added.difference[["no whole-image scale", "harmonic of normal", "temperature 0.01"]] == 0).all()
    assert set(found.n) == {2} and len(found) == 2 * 2 * 8


def swept(costs: dict[str, list[float]], gain: float = 0.1) -> pd.DataFrame:
    rows = []
    for category in range(3):
        values = {faults.PAPER: 0.9, faults.STUDY: 0.6}
        values |= {f"{faults.ADDED}: {name}": 0.9 - cost[category] for name, cost in costs.items()}
        values |= {
            f"{faults.REMOVED}: {name}": 0.6 + gain * number * (0.9 + 0.1 * category)
            for number, name in enumerate(costs)
        }
        for method, value in values.items():
            row = {"method": method, "category": f"c{category}", "shots": 0, "aupro": 0.5}
            rows.append(row | {"image_auroc": value, "pixel_auroc": value})
    return pd.DataFrame(rows)


ONE, OTHER = {"a": [0.3, 0.31, 0.3], "b": [0, 0, 0]}, {"a": [0, 0, 0], "b": [-0.1, 0.2, 0.2]}


def test_differences_are_to_the_variants_own_base():
    found = faults.changes(swept(ONE)).set_index(["metric", "direction", "fault"])
    row = found.loc["image_auroc", faults.ADDED, "a"]
    assert row.difference == pytest.approx(-0.3033, abs=1e-4) and (row.base, row.n) == (pytest.approx(0.9), 3)
    assert row.low < row.difference < row.high < 0
    assert found.loc["pixel_auroc", faults.REMOVED, "b"].difference == pytest.approx(0.1)


def test_findings_change_with_the_table():
    one, other = (faults.findings(faults.changes(swept(costs))) for costs in (ONE, OTHER))
    assert "Added alone, *a* costs most (-0.303" in one and "Added alone, *b* costs most (-0.100" in other
    assert "n = 3 categories" in one and "2 change nothing" in one and "cannot decide 0" in one
    assert "cannot decide 1" in other


def test_all_faults_together_are_told_with_their_share_of_the_studys_gap():
    table = swept(ONE)
    table.loc[table.method == faults.STUDY, "image_auroc"] = [0.82, 0.84, 0.83]
    whole = faults.together(table).set_index("metric")
    row = whole.loc["image_auroc"]
    assert row.difference == pytest.approx(-0.07) and row.n == 3 and row.low < -0.07 < row.high < 0
    told = faults.together_findings(whole.reset_index(), {"image_auroc": -0.7, "pixel_auroc": -0.1}).splitlines()
    assert "0.830 as in the study, 0.900 as in the paper: -0.070" in told[0] and "n = 3 categories, lower." in told[0]
    share = f"10% of that ({row.high / -0.7:.0%} to {row.low / -0.7:.0%} by the interval), so alone they do not"
    assert "lies 0.700 below" in told[0] and share in told[0] and "do not reproduce" not in told[1]
    unsure = faults.together(table.assign(image_auroc=[0.9, 0.1] * (len(table) // 2)))
    assert "not decided" in faults.together_findings(unsure, {})
    assert "by the interval" not in faults.together_findings(
        faults.together(table.assign(shots=1)), {"image_auroc": -1}
    )


def test_nothing_ranked_leaves_an_empty_table():
    found = faults.changes(swept(ONE).assign(image_auroc=np.nan, pixel_auroc=np.nan))
    assert faults.together(swept(ONE).assign(image_auroc=np.nan, pixel_auroc=np.nan)).empty
    assert found.empty and list(found.columns) == faults.COLUMNS and faults.findings(found) == tables.NO_AUROC


def drawn(found):
    found = found.rename(columns={"metric": "measure"}).sort_values(["measure", "difference"])
    return figures.differences(found, "fault", "direction")


def test_the_figure_puts_the_costliest_first_and_shows_one_category_as_unknown():
    found = faults.changes(swept(ONE))
    figure = drawn(found)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]
    assert len(figure.axes) == 2
    alone = faults.changes(swept(ONE).query("category == 'c0'"))
    assert (alone.low == -1).all() and (alone.high == 1).all()
    assert drawn(alone).axes[0].get_xlim()[0] <= -1
    figures.plt.close("all")
