"""Regions of interest: what lies outside counts for no map-made score, no pixel metric, no threshold; refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, make_mvtec, paint, small_profile
from PIL import Image

from vlmad_lib import InputError, load_profile, methods
from vlmad_lib.config import Method
from vlmad_lib.data import regions
from vlmad_lib.evaluation import metrics, pixel_ranking
from vlmad_lib.pipeline import run, scoring
from vlmad_lib.reporting import decide

LEFT = [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]
RIGHT = [[0.75, 0], [1, 0], [1, 1], [0.75, 1]]  # without the spot of the pictures, which ends at 40 of 60
MEMORY = TINY | {"method": "padim", "settings": {"dimensions": 8}}


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory):
    """Runs of a memory of references and of WinCLIP: whole pictures, the left half, and a region without defects."""
    base = tmp_path_factory.mktemp("regions")
    root, specs = make_mvtec(base / "data", ("plate",)), [MEMORY, TINY]
    Image.fromarray(np.repeat(np.uint8([[255, 0]]), 30, 1).repeat(60, 0)).save(base / "left.png")
    chosen = {
        "whole": {},
        "left": {"plate": LEFT},
        "mask": {"plate": str(base / "left.png")},
        "right": {"plate": RIGHT},
    }
    return {
        name: run.run(small_profile(root, base / "cache", methods=specs, shots=[0, 1], regions=places))
        for name, places in chosen.items()
    }


def test_polygons_and_masks_are_filled_as_computed_by_hand(tmp_path):
    profile = small_profile(tmp_path, tmp_path, regions={"plate": LEFT, "cloth": str(tmp_path / "a.png")})
    inside = np.zeros((4, 10), bool)
    inside[:, :5] = True
    np.testing.assert_array_equal(regions.fill(profile, "plate", 10, 4), inside)
    Image.fromarray(inside.repeat(2, 0).repeat(2, 1)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(regions.fill(profile, "cloth", 10, 4), inside)
    assert regions.fill(profile, "other", 3, 2).all() and regions.frame_region(profile, "other", 3, 2, "tiles") is None
    (cells,) = regions.tile_regions(profile, "plate", 60, 60, "squash", 5)
    assert cells[:, :3].all() and not cells[:, 3:].any()  # half of the third column lies inside
    tiles = regions.tile_regions(profile, "plate", 60, 60, "grid-2-0", 3)
    assert tiles[0].all() and tiles[2].all() and not tiles[1].any() and not tiles[3].any()
    thin = small_profile(tmp_path, tmp_path, regions={"plate": [[0.4, 0.4], [0.45, 0.4], [0.45, 0.45], [0.4, 0.45]]})
    assert regions.tile_regions(thin, "plate", 60, 60, "squash", 5).sum() == 1  # the cell that holds most of it


def test_a_false_alarm_outside_counts_for_no_pixel_metric():
    """The normal picture's highest pixel lies outside; half of the defect does, which is missed there."""
    place, defect = np.zeros((6, 6), bool), np.zeros((6, 6), bool)
    place[:, :3] = defect[2, 2:4] = True
    alarm, found = np.zeros((6, 6), np.float32), np.zeros((6, 6), np.float32)
    alarm[0, 5], found[2, 2] = 9, 1
    pairs = [(alarm, np.zeros((6, 6), bool)), (found, defect)]
    assert metrics.pixel_metrics(pairs)["pixel_auroc"] < 0.8
    within = [
        (values[place][None], pixel_ranking.find_regions_inside(mask, place, not mask.any())) for values, mask in pairs
    ]
    assert within[1][1].place.tolist() == [2 * 3 + 2] and within[1][1].weights.tolist() == [1]
    measured = metrics.pixel_metrics(within)
    assert [measured[name] for name in ("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro")] == [1, 1, 1, 1]


@pytest.mark.parametrize("method, settings", [
    ("association", {"windows": []}), ("patchcore", {"reweighted_by": 1}), ("padim", {"dimensions": 8}),
    ("anomalydino", {"masking": False, "rotation": False}), ("subspacead", {"rotations": 0, "image_size": 80}),
])  # fmt: skip
def test_scores_that_rest_on_maps_look_inside_alone(method, settings):
    stream = torch.Generator().manual_seed(0)
    spec = Method(method=method, backbone="x", weights="y", settings=settings)
    chosen = methods.ChosenMethod(spec, methods.settings(spec))
    names = chosen.method.array_names(chosen.settings, 1)
    tokens = {name: torch.randn(2, 25, 64, generator=stream) for name in names}
    image = {name: values[:1].clone() for name, values in tokens.items()}
    for values in image.values():
        values[:, 24] = 9 * torch.randn(64, generator=stream)  # the last cell is strange, the others are a reference's
    inside = np.zeros((1, 5, 5), bool)
    inside[0, :2] = True
    scorer = scoring.Scorer(chosen, None, 5, (tokens, np.array([1, 1])))
    scorer.add("whole", image)
    scorer.add("inside", image, inside)
    scorer.add("all of it", image, np.ones((1, 5, 5), bool))
    scores, maps, _ = scorer.of(["whole", "inside", "all of it"])
    assert scores[0] == scores[2] > scores[1]
    np.testing.assert_array_equal(maps[0], maps[1])
    if method in ("association", "patchcore", "padim"):
        assert scores[1] == pytest.approx(maps[1][:2].max(), abs=0.01)


def test_tiles_without_the_region_count_for_no_score():
    spec = Method(method="padim", backbone="x", weights="y", settings={"dimensions": 8}, tiles={"per_edge": 2})
    chosen = methods.ChosenMethod(spec, methods.settings(spec))
    tokens = {"patch": torch.randn(8, 25, 16, generator=torch.Generator().manual_seed(0))}
    image = {"patch": tokens["patch"][:4].clone()}
    image["patch"][3] += 30
    inside = np.zeros((4, 5, 5), bool)
    inside[:3] = True
    scorer = scoring.Scorer(chosen, None, 5, (tokens, np.array([4, 4])))
    scorer.add("whole", image)
    scorer.add("inside", image, inside)
    (whole, within), maps, _ = scorer.of(["whole", "inside"])
    assert whole == maps[3].max() and within == maps[4:7].max() < whole


def test_a_run_honours_regions_in_scores_metrics_and_maps(looked_at):
    whole, left, right = (looked_at[name] for name in ("whole", "left", "right"))
    rows = {name: results.scores[results.scores.method == "PaDiM"] for name, results in looked_at.items()}
    for name, columns in (("left", slice(0, 3)), ("right", slice(4, 5))):  # of 5 cells: half of 15, and the last
        maps = looked_at[name].maps(rows[name])
        expected = [values[0][:, columns].max() for values in maps]
        np.testing.assert_allclose(rows[name].score, expected, rtol=1e-6)
    np.testing.assert_array_equal(rows["mask"].score, rows["left"].score)
    zero = [results.scores[(results.scores.shots == 0)].score.to_numpy() for results in (whole, left)]
    np.testing.assert_array_equal(*zero)  # P(anomalous) of the whole picture
    assert looked_at["mask"].metrics.pixel_auroc.tolist() == left.metrics.pixel_auroc.tolist()
    assert (left.metrics.pixel_auroc != whole.metrics.pixel_auroc).all() and right.metrics.pixel_auroc.isna().all()
    frame = right.framed(rows["right"])[0]
    assert (frame[:, :45] == frame[:, 45:].min()).all()


def test_notes_say_whose_scores_look_beyond_and_which_defects_lie_outside(looked_at):
    notes = " ".join(looked_at["right"].facts["notes"])
    assert "Regions of interest: plate. What lies outside" in notes
    assert "image scores of WinCLIP, zero-shot are of whole pictures" in notes and "PaDiM," not in notes
    assert "outside the region of interest in 4 of 4 masked pictures" in notes
    assert "of interest" not in " ".join(looked_at["whole"].facts["notes"])
    assert set(looked_at["right"].metrics.n_lost_masks) == {0}


def test_decisions_honour_regions(tmp_path, cache, drop):
    nowhere, grid = tmp_path / "nowhere", {"per_edge": 2, "overlap": 0}
    profile = small_profile(
        nowhere, cache, methods=[MEMORY | {"tiles": grid}], class_names={"plate": "plate"}, regions={"plate": RIGHT}
    )
    within = decide.decide(profile, drop)
    scores = within.results.scores
    expected = [values[1::2, :, 2:].max() for values in within.results.maps(scores)]
    np.testing.assert_allclose(scores.score, expected, rtol=1e-6)  # squares of 30 pixels, cells of 6, from 45 on
    assert within.table.area.max() <= 1
    decide.write(within, drop, tmp_path / "out")
    for file in (tmp_path / "out/masks").glob("*.png"):
        assert not np.asarray(Image.open(file))[:, :45].any()
    other = decide.decide(small_profile(nowhere, cache, methods=[MEMORY], regions={"plate": RIGHT}), drop)
    assert "No region of interest is named object" in " ".join(other.facts["notes"])


@pytest.mark.parametrize(
    "places, words",
    [
        ({"plate": [[0, 0], [1, 1]]}, "at least 3 points"),
        ({"plate": [[0, 0], [1, 0], [40, 40]]}, "shares of width and height from 0 to 1"),
        ({"plate": 3}, "the path of a mask"),
        ({"bowl": LEFT}, "names bowl, which is no category of the data; it has plate"),
        ({"plate": [[0.5, 0.5], [0.501, 0.5], [0.5, 0.501]]}, "holds no pixel of a picture of 60x60"),
        ({"plate": "{wide}"}, "wide.png has 90x60 pixels, a picture of plate 60x60"),
        ({"plate": "nowhere.png"}, "nowhere.png does not exist"),
    ],
)
def test_wrong_regions_are_refused(tmp_path, places, words):
    root = make_mvtec(tmp_path / "data", ("plate",))
    paint(tmp_path / "wide.png", 0, (90, 60))
    places = {
        name: value.format(wide=tmp_path / "wide.png") if isinstance(value, str) else value
        for name, value in places.items()
    }
    with pytest.raises(InputError, match=words):
        run.build_run_index(small_profile(root, tmp_path / "cache", regions=places))


def test_names_of_categories_are_kept_as_they_are_written(tmp_path):
    values = {"title": "a", "dataset": "folder", "root": "b"}
    (tmp_path / "a.yml").write_text(yaml.safe_dump(values) + "regions: {01: [[0, 0], [1, 0], [1, 1]]}\n")
    assert load_profile(tmp_path / "a.yml").regions == {"01": [[0, 0], [1, 0], [1, 1]]}
