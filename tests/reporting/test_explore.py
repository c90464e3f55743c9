"""The panel's logic, without a browser (``tests/lab.py`` has one)."""

from __future__ import annotations

import re

import numpy as np
import pytest
from conftest import TINY, make_mvtec, paint, small_profile

from vlmad_lib import InputError
from vlmad_lib.analysis import prompt_variants, thresholds
from vlmad_lib.pipeline import run
from vlmad_lib.reporting import explorer

WORD = TINY | {"method": "anomalyclip", "settings": {"prompts": "object", "image_size": 80}}
SPECS = [TINY | {"settings": {"windows": [1, 2]}}, WORD, TINY | {"method": "patchcore"}]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A run of three methods on pictures that are not square, of two tiles each."""
    folder = tmp_path_factory.mktemp("explore")
    make_mvtec(folder / "data", size=(90, 60))
    return run.run(small_profile(folder / "data", folder / "cache", methods=SPECS, seeds=[0]))


def names(panel) -> list[str]:
    """What stands above each picture."""
    return re.findall(r"<div>([^<]+)<br>", panel.pictures.value)


def hidden(*boxes) -> list[bool]:
    return [box.layout.display == "none" for box in boxes]


def test_a_method_asked_again_gives_its_own_score_and_map(results):
    specs = {spec.name: spec for spec in results.profile.methods}
    for _, rows in results.scores.groupby("variant"):
        row = rows.iloc[-1]
        score, found = explorer.score_by_method(results, row, specs[row.method])
        assert score == pytest.approx(row.score, abs=1e-6)
        assert np.allclose(found, results.framed(rows.iloc[[-1]])[0], atol=1e-6)


def test_begins_with_the_kind_asked_for_and_offers_what_the_run_has(results):
    panel = explorer.Panel(results, kind="patchcore")
    chosen = panel.choices
    assert (chosen["method"].value, chosen["shots"].value) == ("PatchCore", 1)  # it has no zero-shot
    assert hidden(panel.window, panel.good, panel.bad) == [True] * 3
    assert names(panel) == ["image", "mask", "map, as run", "overlay, as run"]
    chosen["method"].value = "WinCLIP"
    assert [value for _, value in chosen["shots"].options] == [0, 1] and chosen["shots"].value == 1
    assert hidden(panel.window, panel.good, panel.bad) == [False] * 3
    chosen["image"].value = chosen["image"].options[-1][1]
    assert names(panel)[1] == "mask of a good part: empty"
    chosen["category"].value = "plate"
    assert panel.row.category == "plate" and panel.row.method == "WinCLIP"


def test_words_and_windows_change_the_map_on_one_scale(results):
    panel = explorer.Panel(results)
    before = panel.pictures.value
    panel.good.value = "a {}"
    assert "both prompts" in panel.message.value and panel.pictures.value == before
    panel.bad.value = "a broken {}"
    assert names(panel)[2:] == ["map, as run", "map, as asked", "overlay, as asked"]
    assert panel.pictures.value.count("all maps:") == 1
    worded = panel.pictures.value
    panel.window.value = 2
    assert panel.pictures.value != worded
    panel.bad.value = "a {brace}"
    assert "is no prompt" in panel.message.value and names(panel)[-1] == "overlay, as run"
    panel.choices["method"].value = "AnomalyCLIP"
    assert panel.bad.value == "" and names(panel)[-1] == "overlay, as run"  # no word for it, nor windows
    panel.bad.value = "<b>dirty</b>"
    assert names(panel)[-1] == "overlay, as asked" and "<b>" not in panel.message.value
    assert panel.bad.layout.display != "none" and panel.good.layout.display == "none"


def test_own_words_are_the_ones_of_the_sweep(results):
    spec = results.profile.methods[0]
    pair = {"states": "own", "templates": "none", "own_normal": ["a {}"], "own_anomalous": ["a bad {}"]}
    swept = prompt_variants.vary_settings(spec, {"own pair": pair})[-1]
    assert prompt_variants.set_own_prompts(spec, "a {}", "a bad {}").settings == swept.settings


def test_threshold_counts_what_the_table_has(results):
    panel = explorer.Panel(results)
    rows = results.scores[(results.scores.variant == panel.row.variant) & (results.scores.category == "cloth")]
    good, bad = (rows[rows.label == label].score.to_numpy() for label in (0, 1))
    assert panel.limit.value == pytest.approx(np.quantile(good, 0.9))
    for limit in (panel.limit.min, float(np.median(rows.score)), panel.limit.max):
        panel.limit.value = limit
        cells = re.findall(r"<td[^>]*>([^<]*)</td>", panel.judgement.value)
        wanted = [(good <= limit).sum(), (good > limit).sum(), (bad <= limit).sum(), (bad > limit).sum()]
        assert [int(cells[place]) for place in (1, 2, 5, 6)] == wanted
        assert f"is {'rejected' if panel.row.score > limit else 'accepted'}" in panel.judgement.value
    panel.choices["image"].value = panel.choices["image"].options[-1][1]
    assert panel.limit.value == panel.limit.max  # another image of the category keeps it


def test_threshold_begins_at_training_images_where_they_were_scored(results):
    panel = explorer.Panel(
        results, ["threshold"], normal=thresholds.score_normal_images(run.run, results).scores, alpha=0.2
    )
    assert panel.limit.value == pytest.approx(np.quantile(panel.scores.train, 0.8))
    assert "80% quantile of 4 normal training images" in panel.judgement.value and not panel.pictures.value


def test_unknown_part_is_refused(results):
    with pytest.raises(InputError, match="image, window, words, threshold"):
        explorer.Panel(results, ["windows"])


@pytest.mark.parametrize("kind", ["maps", "scores"])
def test_imports_only(mvtec, tmp_path, kind):
    rows = [(category, defect) for category in ("plate", "cloth") for defect in ("good", "spot")]
    outside = tmp_path / "outside"
    outside.mkdir()
    lines = [f"{category},{defect},00{i},0.{i}" for category, defect in rows for i in range(4)]
    if kind == "scores":
        (outside / "scores.csv").write_text("\n".join(["category,defect,image,score", *lines]))
    for category, defect in rows if kind == "maps" else ():
        for i in range(4):
            (outside / category / defect).mkdir(parents=True, exist_ok=True)
            np.save(outside / category / defect / f"00{i}.npy", np.eye(4) * i)
    imports = [{"name": "other", "path": str(outside)}]
    panel = explorer.Panel(run.run(small_profile(mvtec, tmp_path / "cache", methods=[], imports=imports)))
    assert hidden(panel.window, panel.good, panel.bad) == [True] * 3
    assert names(panel)[2:] == (["map, as run", "overlay, as run"] if kind == "maps" else [])
    assert ("no maps" in panel.message.value) == (kind == "scores")


def test_one_category_without_masks_or_defects(tmp_path):
    for i in range(6):
        paint(tmp_path / "data" / "bracket" / "good" / f"{i}.png", i)
    profile = small_profile(tmp_path / "data", tmp_path / "cache", shots=[0])
    assert "no image" in explorer.Panel(run.run(profile)).judgement.value
    paint(tmp_path / "data" / "bracket" / "dent" / "a.png", 50, spot=True)
    panel = explorer.Panel(run.run(profile))
    panel.choices["image"].value = next(value for label, value in panel.choices["image"].options if "dent" in label)
    assert names(panel)[0] == "image, which has no mask"
