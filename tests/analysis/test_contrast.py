"""Contrast, area and sharpness of painted defects of known colours."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_mvtec, small_profile
from PIL import Image
from skimage.color import lab2rgb

from vlmad_lib.analysis import by_defect
from vlmad_lib.demo import delta_e, render
from vlmad_lib.pipeline import run


def square(inside: int = 200, size: int = 240) -> tuple[np.ndarray, np.ndarray]:
    image, mask = np.full((size, size, 3), 119, np.uint8), np.zeros((size, size), bool)
    mask[60:100, 60:90] = True
    image[mask] = inside
    return image, mask


def test_known_greys():
    found = by_defect.measure_defect(*square(255))
    assert found["contrast"] == pytest.approx(100 - 50.03, abs=0.1)  # L* of white and of grey 119
    assert found["area"] == pytest.approx(1200 / 240**2)
    assert by_defect.measure_defect(*square(119))["contrast"] == pytest.approx(0, abs=1e-4)
    assert by_defect.measure_defect(*square(119))["sharpness"] == pytest.approx(0, abs=1e-4)


def test_a_blurred_outline_is_less_sharp():
    image, mask = square(200)
    soft = np.asarray(Image.fromarray(image).resize((60, 60), Image.Resampling.BOX).resize((240, 240)))
    assert by_defect.measure_defect(soft, mask)["sharpness"] < 0.7 * by_defect.measure_defect(image, mask)["sharpness"]


def test_contrast_to_noise_is_the_distance_over_the_spread_of_the_ring():
    """A chequered surround of L* 40 and 60 spreads by 10 around its mean; the defect lies 30 above it."""
    lab = np.zeros((240, 240, 3))
    lab[..., 0] = np.where(np.indices((240, 240)).sum(0) % 2, 40.0, 60.0)
    mask = square()[1]
    lab[mask] = (80.0, 0, 0)
    image = np.round(lab2rgb(lab) * 255).astype(np.uint8)
    found = by_defect.measure_defect(image, mask)
    assert found["contrast"] == pytest.approx(30, abs=0.3)
    assert found["contrast_to_noise"] == pytest.approx(30 / 10, rel=0.02)
    flat = by_defect.measure_defect(*square(200))
    assert flat["contrast_to_noise"] == pytest.approx(flat["contrast"] / by_defect.LEAST_NOISE)


def test_fine_texture_is_noise_at_full_size_and_none_in_a_small_input(tmp_path):
    stream = np.random.default_rng(0)
    image = stream.normal(119, 20, (480, 480, 1)).clip(0, 255).astype(np.uint8).repeat(3, 2)
    mask = np.zeros((480, 480), np.uint8)
    mask[100:200, 100:200] = 255
    image[mask > 0] = np.minimum(image[mask > 0], 215) + 40
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    files = str(tmp_path / "image.png"), str(tmp_path / "mask.png")
    large, small = (
        dict(zip(by_defect.MEASURES, by_defect._read(*files, 480, 480, size).tolist(), strict=True))
        for size in (480, 240)
    )
    assert small["contrast"] == pytest.approx(large["contrast"], rel=0.05)
    assert small["contrast_to_noise"] == pytest.approx(2 * large["contrast_to_noise"], rel=0.15)


def test_regions_weigh_by_area_and_do_not_mix():
    image, mask = square(200)
    alone = by_defect.measure_defect(image, mask)["contrast"]
    image[150:160, 150:160], mask[150:160, 150:160] = 38, True  # dark where the first is bright: no cancelling out
    dark = by_defect.measure_defect(np.where(mask[..., None], 38, image).astype(np.uint8), mask)["contrast"]
    assert by_defect.measure_defect(image, mask)["contrast"] == pytest.approx((1200 * alone + 100 * dark) / 1300)


def test_resolution_does_not_matter(tmp_path):
    image, mask = square(200)
    found = []
    for times in (1, 2, 3):
        Image.fromarray(image.repeat(times, 0).repeat(times, 1)).save(tmp_path / "image.png")
        Image.fromarray(mask.astype(np.uint8).repeat(times, 0).repeat(times, 1)).save(tmp_path / "mask.png")
        found.append(by_defect._read(str(tmp_path / "image.png"), str(tmp_path / "mask.png"), 240 * times, 240 * times))
    for other in found[1:]:
        assert other.tolist() == pytest.approx(found[0].tolist(), rel=0.02)


def test_agrees_with_what_the_demo_data_were_drawn_to():
    for category, defect, level in (("linen", "stain", "low"), ("gear", "scratch", "high")):
        image, mask = render(category, 0, 3, defect, level)
        assert by_defect.measure_defect(image, mask)["contrast"] == pytest.approx(delta_e(image, mask), abs=1.5)


def test_nothing_to_measure():
    image, mask = square()
    assert np.isnan(list(by_defect.measure_defect(image, np.zeros_like(mask)).values())).all()
    whole = by_defect.measure_defect(image, np.ones_like(mask))
    assert np.isnan(whole["contrast"]) and whole["area"] == 1


def test_levels_are_thirds_and_leave_out_what_was_not_measured():
    table = pd.DataFrame({"contrast": [1.0, 2, 3, 4, 5, 6, np.nan]}, index=range(10, 17))
    found = by_defect.assign_levels(table)
    assert found[:-1].tolist() == ["low"] * 2 + ["medium"] * 2 + ["high"] * 2 and found.isna().iloc[-1]
    assert by_defect.assign_levels(table, (0.5, 0.9))[:3].tolist() == ["low"] * 3
    fixed = by_defect.assign_levels(table, limits=[1.5, 2])  # the same in every data set
    assert fixed[:-1].tolist() == ["low", "medium", *["high"] * 4] and fixed.isna().iloc[-1]


def test_measure_keeps_what_it_measured(tmp_path, monkeypatch):
    profile = small_profile(make_mvtec(tmp_path / "data"), tmp_path / "cache")
    results = run.run(profile)
    first = by_defect.measure_defects(results)
    assert len(first) == 8 and (first.contrast > 10).all() and set(first.defect) == {"spot"}
    monkeypatch.setattr(by_defect, "_read", lambda *a: pytest.fail("measured again"))
    pd.testing.assert_frame_equal(by_defect.measure_defects(results), first)
    monkeypatch.setattr(by_defect, "_read", lambda *job: torch.full((4,), float(job[-1]), dtype=torch.float64))
    assert (by_defect.measure_defects(results, 120).area == 120).all()  # another size is another file
