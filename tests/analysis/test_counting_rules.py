"""The same maps under other rules of counting, against counts made by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import make_mvtec, small_profile
from PIL import Image

from vlmad_lib import methods
from vlmad_lib.analysis import counting_rules
from vlmad_lib.analysis.counting_rules import Rule
from vlmad_lib.encoders.backbones import load_backbone
from vlmad_lib.pipeline import run

OWN = Rule(size=4)


@pytest.fixture
def images(tmp_path):
    """Two pictures of 8 x 8 with maps of 4 x 4 cells: a good one, and one whose defect covers a quarter of a cell."""
    mask = np.zeros((8, 8), np.uint8)
    mask[2:4, 2:4], mask[7, 7] = 255, 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    facts = {"category": "plate", "width": 8, "height": 8, "fit": "squash", "sigma": 0.0}
    rows = pd.DataFrame([facts | {"label": 0, "mask": ""}, facts | {"label": 1, "mask": str(tmp_path / "mask.png")}])
    good, bad = np.full((1, 4, 4), 0.5, np.float32), np.zeros((1, 4, 4), np.float32)
    good[0, 0, 0], bad[0, 1, 1], bad[0, 3, 3] = 0.9, 0.8, 0.7
    return rows, [good, bad]


def measure(images, **change):
    return counting_rules.measure_under_rules(*images, {"": replace(OWN, **change)}).iloc[0]


def test_the_usual_rule_gives_the_usual_metrics(images):
    usual = measure(images)
    assert usual.pixel_auroc == pytest.approx(30 / 31)  # one defective cell at 0.8; only the good one at 0.9 is above
    assert usual.category == "plate"


def test_masks_shrunk_otherwise_have_other_defective_cells(images):
    """The second defect covers a quarter of its cell at 0.7, which ``nearest`` sees; ``any`` takes neighbours too."""
    assert measure(images, mask="nearest").pixel_auroc == pytest.approx(1 - 2 / (2 * 30))  # both below the good 0.9
    assert measure(images, mask="any").pixel_auroc < 0.5


def test_stretched_maps_lose_what_tells_images_apart(images):
    """Each image then has a pixel of 1, the good one too; before, its pixels of 0.5 lay below the defect as well."""
    assert measure(images, stretched=True).pixel_auroc == pytest.approx(30 / 31 + 1 / 62)  # 0.9 and 0.8 tie at 1
    assert measure(images, normal_images=False).pixel_auroc == 1
    assert measure(images, sigma=200.0).pixel_f1_max < 1


def test_the_limit_and_the_thresholds_change_aupro_alone(images):
    usual, less, rough = measure(images), measure(images, fpr_limit=0.05), measure(images, thresholds=True)
    assert usual.pixel_auroc == less.pixel_auroc == rough.pixel_auroc
    assert less.aupro < usual.aupro != rough.aupro


def test_a_defect_without_a_mask_is_left_out(images):
    rows, kept = images
    both = pd.concat([rows, rows.iloc[[1]].assign(mask="")], ignore_index=True)
    assert measure((both, [*kept, kept[0]])).equals(measure(images))


def test_scores_on_a_backbone_equal_those_of_a_run_and_the_other_activation_moves_them(tmp_path):
    profile = small_profile(make_mvtec(tmp_path / "data", ("plate",)), tmp_path / "cache", shots=[0])
    results = run.run(profile)
    spec = profile.methods[0]
    chosen, backbone = methods.choose(spec, profile), methods.load_backbone(spec)
    rows = results.scores.reset_index(drop=True)
    scores, maps = counting_rules.score_on(chosen, backbone, rows)
    np.testing.assert_allclose(scores, rows.score, atol=2e-3)  # the run's features were kept as fp16
    assert [values.shape for values in maps] == [values.shape for values in results.kept(rows)]
    swapped = counting_rules.swap_activation(backbone)
    assert {backbone.activation, swapped.activation} == {"GELU", "QuickGELU"} and swapped.key != backbone.key
    other, _ = counting_rules.score_on(chosen, swapped, rows)
    assert np.abs(other - scores).max() > 5 * np.abs(scores - rows.score).max()
    again, _ = counting_rules.score_on(chosen, counting_rules.swap_activation(swapped), rows)
    np.testing.assert_array_equal(again, scores)


def test_the_weights_of_a_copy_are_those_of_the_original():
    backbone = load_backbone("demo", "demo")
    swapped = counting_rules.swap_activation(backbone)
    assert swapped.fingerprint == backbone.fingerprint and swapped.model is not backbone.model
