"""The faults of the study's WinCLIP: the variants, and their differences."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, small_profile

from vlmad_lib import ROOT, config
from vlmad_lib.analysis import study_claims
from vlmad_lib.methods import winclip
from vlmad_lib.pipeline import run
from vlmad_lib.reporting import figures

SPEC = config.Method(**TINY, settings={"windows": [2], "states": "one", "temperature": 0.5})


def settings(spec: config.Method) -> dict:
    return winclip.settings(spec.preset, spec.settings).model_dump()


FAULTS = {
    "maximum": "image_score", "no whole image": "full_image", "normal": "harmonic_of", "sharp": "temperature",
    "bgr": "channels", "templates": "templates", "names": "names", "lengths": "normalise_prompts",
}  # fmt: skip


def test_every_difference_of_the_presets_is_a_fault_of_the_notebook():
    differing = {name for name, value in winclip.PRESETS["study"].items() if settings(SPEC)[name] != value}
    text = (ROOT / "notebooks" / "16_the_study_rechecked.ipynb").read_text(encoding="utf-8")
    assert {name for name in settings(SPEC) if f'\\"{name}\\", \\"' in text} == differing - {"fit"}


def test_own_words_stay_the_methods_own():
    words = {"states": "own", "own_normal": ["{} in order"], "own_anomalous": ["broken {}"]}
    found = study_claims.list_variants(SPEC.model_copy(update={"settings": SPEC.settings | words}), FAULTS)
    assert len(found) > 2 and all(words.items() <= settings(spec).items() for spec in found)


def test_each_variant_changes_one_setting_of_its_base():
    found = study_claims.list_variants(SPEC, FAULTS)
    assert len({spec.name for spec in found}) == len(found) == 2 + 2 * len(FAULTS)
    paper, study = settings(found[0]), settings(found[1])
    assert paper == settings(SPEC) | {"temperature": 0.07}  # the windows stay the method's own
    for spec in found[2:]:
        base = paper if spec.name.startswith(study_claims.ADDED) else study
        changes = [name for name, value in settings(spec).items() if value != base[name]]
        assert changes == [FAULTS[spec.name.partition(": ")[2]]]


def test_the_sweep_runs_and_faults_of_the_map_leave_the_papers_score_alone(mvtec, tmp_path):
    variants = study_claims.list_variants(SPEC, FAULTS)
    chosen = small_profile(mvtec, tmp_path / "cache", methods=[SPEC.model_dump()], shots=[0])
    found = study_claims.compare_variants(run.run(chosen.model_copy(update={"methods": variants})).metrics)
    added = found[(found.direction == study_claims.ADDED) & (found.measure == "image_auroc")].set_index("fault")
    assert (added.difference[["no whole image", "normal", "sharp"]] == 0).all()
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


ONE = {"a": [0.3, 0.31, 0.3], "b": [0, 0, 0]}


def test_differences_are_to_the_variants_own_base():
    found = study_claims.compare_variants(swept(ONE)).set_index(["measure", "direction", "fault"])
    row = found.loc["image_auroc", study_claims.ADDED, "a"]
    assert row.difference == pytest.approx(-0.3033, abs=1e-4) and (row.base, row.n) == (pytest.approx(0.9), 3)
    assert row.low < row.difference < row.high < 0
    assert found.loc["pixel_auroc", study_claims.REMOVED, "b"].difference == pytest.approx(0.1)


def test_all_faults_together_are_the_study_against_the_paper():
    table = swept(ONE)
    table.loc[table.method == study_claims.STUDY, "image_auroc"] = [0.82, 0.84, 0.83]
    changes = study_claims.compare_variants(table)
    row = changes[changes.direction == study_claims.ALL].set_index("measure").loc["image_auroc"]
    assert row.difference == pytest.approx(-0.07) and row.n == 3 and row.low < -0.07 < row.high < 0


def test_nothing_ranked_leaves_an_empty_table():
    changes = study_claims.compare_variants(swept(ONE).assign(image_auroc=np.nan, pixel_auroc=np.nan))
    assert changes.empty and list(changes.columns) == study_claims.COLUMNS


def drawn(found):
    found = found[found.fault != study_claims.ALL].sort_values(["measure", "difference"])
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
