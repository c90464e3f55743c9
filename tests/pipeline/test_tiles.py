"""Pictures cut into a grid of overlapping squares: boxes, maps joined, the rule of the score, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import TINY, make_mvtec, small_profile
from PIL import Image

from vlmad_lib import InputError, methods
from vlmad_lib.config import Method, Tiles, check_record
from vlmad_lib.data import image_files
from vlmad_lib.evaluation import metrics
from vlmad_lib.methods import winclip
from vlmad_lib.pipeline import run, scoring


@pytest.fixture(scope="module")
def tiled(tmp_path_factory):
    """A run of one method with whole pictures and with two grids, and of a memory of references with one of them."""
    base = tmp_path_factory.mktemp("tiled")
    grid = {"per_edge": 2, "overlap": 0.25}
    specs = [
        TINY | {"name": "whole"},
        TINY | {"name": "highest", "tiles": grid},
        TINY | {"name": "mean", "tiles": grid | {"score": "mean"}},
        TINY | {"name": "memory", "method": "padim", "tiles": grid, "settings": {"dimensions": 8}},
    ]
    root = make_mvtec(base / "data", ("plate",), size=(90, 60))
    return run.run(small_profile(root, base / "cache", shots=[0, 1], methods=specs))


def test_boxes_of_a_grid_are_those_computed_by_hand():
    """An edge of 100 / 1.75 = 57.1, so 58; along 160 three steps of at most 43.5 are needed."""
    square = [(0, 0, 58, 58), (42, 0, 100, 58), (0, 42, 58, 100), (42, 42, 100, 100)]
    assert image_files.list_boxes(100, 100, "grid-2-0.25") == square
    wide = [(left, top, left + 58, top + 58) for top in (0, 42) for left in (0, 34, 68, 102)]
    assert image_files.list_boxes(160, 100, "grid-2-0.25-max") == wide
    assert image_files.list_boxes(100, 160, "grid-2-0.25") == [
        (top, left, top + 58, left + 58) for left in (0, 34, 68, 102) for top in (0, 42)
    ]
    assert [box[:2] for box in image_files.list_boxes(90, 90, "grid-3-0")] == [
        (left, top) for top in (0, 30, 60) for left in (0, 30, 60)
    ]
    assert image_files.list_boxes(50, 50, "grid-1-0.25") == [(0, 0, 50, 50)]


@pytest.mark.parametrize("fit", ["grid-2-0", "grid-3-0.25", "grid-5-0.1", "grid-7-0.75"])
def test_grids_cover_pictures_and_share_what_they_say(fit):
    for width, height in [(101, 67), (67, 101), (240, 240), (511, 97)]:
        boxes, covered = image_files.list_boxes(width, height, fit), np.zeros((height, width), int)
        for left, top, right, bottom in boxes:
            assert right - left == bottom - top and 0 <= left < right <= width and 0 <= top < bottom <= height
            covered[top:bottom, left:right] += 1
        starts, edge = sorted({left for left, *_ in boxes}), boxes[0][2] - boxes[0][0]
        share = float(fit.rsplit("-", 1)[1])
        assert covered.min() >= 1 and max(np.diff(starts)) <= edge * (1 - share) + 1


def test_maps_of_a_grid_are_joined_by_their_mean_where_they_overlap():
    maps = np.stack([np.full((3, 3), value, np.float32) for value in (1, 2, 3, 6)])
    whole = metrics.framed_map(maps, 100, 100, "grid-2-0.25", 100)
    assert whole[0, 0] == 1 and whole[0, 99] == 2 and whole[99, 0] == 3 and whole[99, 99] == 6
    assert whole[0, 50] == 1.5 and whole[50, 0] == 2 and whole[50, 50] == 3
    looked_at = metrics.framed_map(maps, 100, 100, "grid-2-0.25", 100, seamless=True)
    assert np.abs(np.diff(looked_at, axis=0)).max() < 0.5


def test_scores_of_tiles_are_combined_by_the_rule():
    scores = np.float32([0.1, 0.4, 0.2, 0.3])
    assert scoring.combine_tiles(scores, "max") == np.float32(0.4)
    assert scoring.combine_tiles(scores, "mean") == pytest.approx(0.25)
    assert scoring.combine_tiles(scores, 0.5) == pytest.approx(0.25)
    pairs = np.float32([[0.1, 5], [0.4, 3]])  # what a method completes over the category is combined by column
    assert scoring.combine_tiles(pairs, "max").tolist() == [np.float32(0.4), 5]


def test_a_run_cuts_pictures_and_names_the_grid(tiled, tiny_backbone):
    scores = tiled.scores.set_index(["method", "shots", "image"])
    assert tiled.scores.groupby("method").fit.first().to_dict() == {
        "whole": "tiles", "highest": "grid-2-0.25-max", "mean": "grid-2-0.25-mean", "memory": "grid-2-0.25-max",
    }  # fmt: skip
    assert set(scores.loc["highest"].tiles) == {8} and set(scores.loc["whole"].tiles) == {2}
    image = tiled.scores.image.iloc[0]
    pixels = image_files.cut_image(image, "grid-2-0.25", 80)
    first = Image.open(image).crop((0, 0, 35, 35)).resize((80, 80), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(pixels[0], np.asarray(first.convert("RGB")))
    encoded = winclip.encode(tiny_backbone, tiny_backbone.normalise(pixels), ["class", "window_2", "window_3"])
    settings = winclip.settings()
    text = winclip.text(tiny_backbone, winclip.wording(settings, tiled.scores.iloc[0]))
    values, maps = winclip.score(encoded, text, settings, 5)
    assert scores.score["highest", 0, image] == pytest.approx(float(values.max()), abs=2e-3)
    assert scores.score["mean", 0, image] == pytest.approx(float(values.mean()), abs=2e-3)
    rows = tiled.scores[(tiled.scores.method == "highest") & (tiled.scores.shots == 0)]
    np.testing.assert_allclose(tiled.maps(rows)[0], maps, atol=2e-3)
    assert tiled.framed(rows)[0].shape == (60, 90)
    assert sum("cuts every picture into squares, 2 along" in note for note in tiled.facts["notes"]) == 3
    assert any("highest cuts" in note and "64 for 8 test" in note for note in tiled.facts["notes"])


def test_a_tile_of_a_grid_meets_the_same_tile_of_the_references(tiled):
    """A picture that is its own reference is at distance zero in every tile."""
    spec = next(spec for spec in tiled.profile.methods if spec.name == "memory")
    chosen = methods.choose(spec, tiled.profile)
    tokens = {"patch": torch.randn(6, 25, 16, generator=torch.Generator().manual_seed(0))}
    scorer = scoring.Scorer(chosen, None, 5, (tokens, np.array([6])))
    scorer.add("same", tokens)
    scorer.add("turned", {"patch": tokens["patch"].flip(0)})
    values, _, counts = scorer.of(["same", "turned"])
    assert values[0] == 0 and values[1] > 1 and counts.tolist() == [6, 6]


def test_what_is_kept_of_whole_pictures_is_found_again_and_grids_lie_apart(tiled):
    names = sorted(path.name for path in (tiled.cache / "features").glob("*/*"))
    assert [name.rsplit("-", 1)[0] for name in names] == ["winclip-grid-2-0.25-rgb-80", "winclip-tiles-rgb-80"]
    plain, gridded = (check_record(Method, TINY | more, "a") for more in ({}, {"tiles": {"per_edge": 2}}))
    assert set(gridded.network) - set(plain.network) == {"tiles"}
    assert (
        Tiles(per_edge=3, overlap=0.2).label == "grid-3-0.2-max" and Tiles(per_edge=3, overlap=0).framing == "grid-3-0"
    )


@pytest.mark.parametrize(
    "tiles, words",
    [
        ({"per_edge": 0}, "tiles.per_edge"),
        ({"per_edge": 2, "overlap": 0.9}, "tiles.overlap"),
        ({"per_edge": 2, "score": "median"}, "use max, mean, or a quantile"),
        ({"per_edge": 2, "score": 1.5}, "use max, mean, or a quantile"),
        ({"per_edge": 2, "overlaps": 0.1}, "did you mean 'overlap'"),
        ({"overlap": 0.1}, "tiles.per_edge' is missing"),
    ],
)
def test_wrong_tiles_are_refused(tmp_path, tiles, words):
    with pytest.raises(InputError, match=words):
        small_profile(tmp_path, tmp_path, methods=[TINY | {"tiles": tiles}])


def test_methods_that_compare_whole_pictures_refuse_tiles(tmp_path):
    profile = small_profile(tmp_path, tmp_path, methods=[TINY | {"method": "musc", "tiles": {"per_edge": 2}}])
    with pytest.raises(InputError, match="MuSc compares the whole pictures .* leave 'tiles' out"):
        methods.choose(profile.methods[0], profile)
