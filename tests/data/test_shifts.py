"""Shifts of images: seeded, one way at every severity, masks and maps moved as the image is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from conftest import make_mvtec, small_profile
from PIL import Image

from vlmad_lib import InputError
from vlmad_lib.data import corruptions, datasets, image_files, mask_files

GREY = np.random.default_rng(0).integers(80, 140, (240, 300, 3), dtype=np.uint8)
TURN = np.array([[0.0, 1.0], [-1.0, 0.0]])


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    root = make_mvtec(tmp_path_factory.mktemp("shifts") / "data", ("plate",), train=1)
    table, _ = datasets.build_index(small_profile(root, root.parent / "cache"))
    return datasets.select_tested(table)


@pytest.mark.parametrize("name", ["light", "ageing lamp", "contrast", "colour cast", "blur", "noise", "JPEG"])
def test_a_higher_severity_goes_the_same_way_and_further(name):
    moved = [
        corruptions.apply_corruption(GREY, name, severity, "a/b/c.png").astype(float) - GREY
        for severity in corruptions.SEVERITIES
    ]
    sizes = [np.abs(one).mean() for one in moved]
    assert sizes == sorted(sizes) and sizes[0] > 0
    if name in ("light", "colour cast"):
        assert len({tuple(np.sign(one.mean((0, 1)).round(3))) for one in moved}) == 1


def test_the_seed_and_the_file_decide_the_way_and_its_folder_above_does_not():
    def signs(source, seeds):
        return {corruptions.apply_corruption(GREY, "light", 3, source, seed).mean() > GREY.mean() for seed in seeds}

    assert signs("a/b/c.png", range(8)) == {True, False}
    assert (
        len(
            {corruptions.apply_corruption(GREY, "noise", 2, f"{top}/x/a/b.png").tobytes() for top in ("/home", "/data")}
        )
        == 1
    )
    one, other = (corruptions.apply_corruption(GREY, "noise", 2, f"x/a/{name}.png") for name in "bc")
    assert (one != other).any()


def test_a_lamp_ages_one_way_for_every_image():
    """The images of light go either way, whose mean moves little; those of an ageing lamp move together."""
    means = {
        name: np.array(
            [corruptions.apply_corruption(GREY, name, 3, f"a/b/{one}.png", one).mean((0, 1)) for one in range(12)]
        )
        for name in ("light", "ageing lamp")
    }
    before = GREY.mean((0, 1))
    assert {True, False} == set(means["light"].mean(1) > before.mean())
    assert np.ptp(means["ageing lamp"], axis=0).max() == 0 and (means["ageing lamp"][0] < before).all()
    red, green, blue = means["ageing lamp"][0] / before
    assert red > green > blue and red == pytest.approx(2 ** (-0.7 / 2.2), abs=0.01)


def test_strengths_are_what_the_table_says():
    assert np.allclose(
        corruptions.apply_corruption(GREY, "contrast", 2, "x").astype(float).std(), 0.7 * GREY.std(), rtol=0.02
    )
    dark = np.full((8, 8, 3), 40, np.uint8)
    factors = {corruptions.apply_corruption(dark, "light", 4, "x", seed)[0, 0, 0] / 40 for seed in range(8)}
    assert sorted(factors) == pytest.approx([2 ** (-1 / 2.2), 2 ** (1 / 2.2)], abs=0.02)
    moved = corruptions.affine_matrix("rotation", 5, "x")
    assert np.allclose(moved @ moved.T, np.eye(2)) and np.isclose(moved[0, 0], np.cos(np.deg2rad(25)))
    assert {round(corruptions.affine_matrix("scale", 3, "x", seed)[0, 0], 6) for seed in range(8)} == {
        1.1,
        round(1 / 1.1, 6),
    }
    assert (
        corruptions.affine_matrix("noise", 3, "x") is None
        and corruptions.affine_matrix(corruptions.NONE, 0, "x") is None
    )


def test_a_quarter_turn_is_a_quarter_turn_of_image_and_map():
    square = GREY[:30, :30]
    turned = corruptions.warp_pixels(square, TURN, (30, 30), Image.Resampling.BICUBIC)
    assert (turned == np.rot90(square)).all() or (turned == np.rot90(square, -1)).all()
    grid = np.arange(25, dtype=np.float32).reshape(5, 5)
    moved = corruptions.warp_pixels(grid, TURN, (30, 30), Image.Resampling.BILINEAR)
    way = 1 if (turned == np.rot90(square)).all() else -1
    assert np.allclose(moved, np.rot90(grid, way))


def test_what_comes_in_is_mirrored_or_marked():
    small = np.ones((20, 20), np.float32)
    farther = 2 * np.eye(2)
    assert (corruptions.warp_pixels(small, farther, (20, 20), Image.Resampling.BILINEAR) == 1).all()
    inside = corruptions.warp_pixels(small, farther, (20, 20), Image.Resampling.BILINEAR, mirror=False) > 0.5
    assert inside[5:15, 5:15].all() and inside.sum() == 100


def test_a_map_of_an_image_that_is_not_square_turns_in_the_images_own_pixels():
    spot = np.zeros((30, 60), np.float32)
    spot[10:20, 10:20] = 1
    moved = corruptions.affine_matrix("rotation", 5, "x")
    big = corruptions.warp_pixels(spot, moved, (60, 30), Image.Resampling.BILINEAR)
    squashed = np.asarray(Image.fromarray(spot).resize((30, 30), Image.Resampling.BOX))
    small = corruptions.warp_pixels(squashed, moved, (60, 30), Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(Image.fromarray(big).resize((30, 30), Image.Resampling.BOX)) - small).mean() < 0.02


def test_copies_are_kept_and_masks_move_with_what_they_mark(rows, tmp_path):
    assert corruptions.write_corrupted_copies(rows, corruptions.NONE, 0, tmp_path) is rows
    grain, turned = (corruptions.write_corrupted_copies(rows, name, 3, tmp_path) for name in ("noise", "rotation"))
    assert (grain["mask"] == rows["mask"]).all() and not set(grain.image) & set(rows.image)
    bad = turned[turned.label == 1].iloc[0]
    assert (turned[turned.label == 0]["mask"] == "").all() and bad["mask"] not in set(rows["mask"])
    bright = np.asarray(image_files.load_image(bad.image)).mean(-1) > 180
    mask = mask_files.load_mask(bad["mask"])
    assert (bright & mask).sum() / (bright | mask).sum() > 0.9
    before = [Path(path).stat().st_mtime_ns for path in turned.image]
    again = corruptions.write_corrupted_copies(rows, "rotation", 3, tmp_path)
    assert list(again.image) == list(turned.image) and [Path(path).stat().st_mtime_ns for path in again.image] == before
    other = corruptions.write_corrupted_copies(rows, "rotation", 3, tmp_path, seed=1)
    assert not set(other.image) & set(turned.image)


def test_wrong_names_and_severities_are_named():
    assert corruptions.check_corruptions([], [3, 1, 3]) == (list(corruptions.CORRUPTIONS), [1, 3])
    with pytest.raises(InputError, match="There is no shift 'fog'; use light, ageing lamp, contrast"):
        corruptions.check_corruptions(["fog"], [1])
    with pytest.raises(InputError, match="There is no severity 6"):
        corruptions.check_corruptions(["blur"], [6])


def test_the_change_of_an_image_is_measured_in_grey_levels(rows, monkeypatch):
    row = rows.iloc[0]
    plus = dataclasses.replace(
        corruptions.CORRUPTIONS["light"], pixels=lambda pixels, level, stream: pixels + 10 * level
    )
    monkeypatch.setattr(corruptions, "CORRUPTIONS", {"light": plus})
    found = corruptions.measure_changes(row)
    assert found.loc[0, ["1", "5"]].tolist() == pytest.approx([2, 14])
