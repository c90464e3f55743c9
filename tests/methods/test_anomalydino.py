"""AnomalyDINO: rotated copies, masks, distances and scores by hand, its oracle, and a run with rotated references."""

from __future__ import annotations

import json
from functools import partial

import dino_oracles
import numpy as np
import parity
import pytest
import torch
from conftest import TINY, make_mvtec, shared, small_profile
from PIL import Image

from vlmad_lib import InputError
from vlmad_lib.data import datasets
from vlmad_lib.data.image_files import Rotation, views
from vlmad_lib.encoders import image_towers
from vlmad_lib.methods import anomalydino
from vlmad_lib.pipeline import run

ANOMALYDINO = anomalydino.ANOMALYDINO
ORACLE = "golden/anomalydino_small.json"
DINO = {"backbone": "timm/vit_small_patch14_dinov2", "weights": "random:0"}


def at(*degrees: float) -> torch.Tensor:
    """(P, 2) tokens of length two at angles."""
    angles = torch.tensor(degrees) / 180 * np.pi
    return 2 * torch.stack([angles.cos(), angles.sin()], -1)


def distance(degrees: float) -> float:
    """The cosine distance of an angle."""
    return 1 - np.cos(degrees / 180 * np.pi)


def exceeding(rows: list[dino_oracles.Row]) -> list[dino_oracles.Row]:
    """Those beyond their tolerance; all where there are none to compare."""
    assert rows
    return [row for row in rows if not row[1] <= row[2]]


# ---------------------------------------------------------------- rotated copies


def test_a_mirrored_rotation_is_about_half_the_size_in_pixel_indices():
    """So half a turn takes pixel i to n - i, and what lies beyond the rim is mirrored: n - 1 to n - 1 behind n."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    turned = np.asarray(Rotation(180, "mirror").turn(Image.fromarray(pixels)))
    rows, columns = [2, 3, 2, 1], [4, 5, 4, 3, 2, 1]  # index 4 of 4 rows mirrored is 2, then 3, 2, 1
    np.testing.assert_array_equal(turned, pixels[rows][:, columns])
    assert Rotation(45, "mirror").turn(Image.fromarray(pixels)).size == (6, 4)


def test_a_black_rotation_is_that_of_pillow():
    image = Image.new("RGB", (40, 20), "white")
    turned = np.asarray(Rotation(30, "black").turn(image))
    assert turned.shape == (20, 40, 3) and turned[0, 0].tolist() == [0, 0, 0] and turned[10, 20].tolist() == [255] * 3
    np.testing.assert_array_equal(turned, np.asarray(image.rotate(30)))


def test_views_are_rotated_before_they_are_cut(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    whole = Rotation(45, "mirror").turn(image)
    seen = views(tmp_path / "a.png", "tiles", 20, Rotation(45, "mirror"))
    np.testing.assert_array_equal(seen[0], np.asarray(whole)[:, :20])


# ---------------------------------------------------------------- the mask


def show(tokens: torch.Tensor, columns: int) -> list[str]:
    """A picture's mask as rows of characters."""
    kept = anomalydino.find_foreground(tokens, len(tokens) // columns, columns).unflatten(0, (-1, columns))
    return ["".join(".#"[int(value)] for value in row) for row in kept]


def part(rows: list[str], strength: float) -> torch.Tensor:
    """Tokens along the first axis where rows of characters have a cross, with a little of another axis elsewhere."""
    tokens = torch.zeros(sum(map(len, rows)), 3)
    for place, character in enumerate("".join(rows)):
        tokens[place, 0 if character == "x" else 1] = strength if character == "x" else 0.01 * place
    return tokens


SHAPE = [".........", ".........", "...xxx...", "...xxx...", "...xxx...", "........x", "........."]


def test_the_mask_grows_along_rows_alone_and_across_their_ends():
    """One dilation, to the left and right; the last patch of a row reaches the first of the next."""
    expected = [".........", ".........", "..#####..", "..#####..", "..#####..", ".......##", "#........"]
    assert show(part(SHAPE, 40), 9) == expected


def test_small_gaps_in_a_row_are_closed():
    gap = ["........", "........", "xx....xx", "..xxxx..", "..xxxx..", "..xxxx..", "........", "........"]
    assert show(part(gap, 60), 8)[2] == "########"  # two of the four between them by dilation, the others by closing


def test_the_object_may_lie_on_the_other_side_of_the_component():
    """With the largest loading positive an object of negative tokens has negative scores; it fills the centre."""
    rows = [".....", ".xxx.", ".xxx.", ".xxx.", "....."]
    assert anomalydino.first_component(part(rows, -40))[12] < -10
    assert show(part(rows, -40), 5)[1:4] == ["#####"] * 3
    assert show(part(rows, 40), 5)[1:4] == ["#####"] * 3


# ---------------------------------------------------------------- distances and scores


@pytest.mark.parametrize("count", [1, 2, 5])
def test_distances_are_means_over_the_nearest_patches(count):
    """Of patches of both references together; of all three where more are asked for."""
    settings = ANOMALYDINO.settings(overrides={"nearest_patches": count, "rotation": False})
    references = {"patches": torch.stack([at(0, 90), at(30, 90)])}
    memories = anomalydino.remember(references, settings, 1)
    found = anomalydino.measure_distances(at(10), memories, settings)
    near = sorted(map(distance, (10, 80, 20, 80)))[:count]
    assert found.flatten().tolist() == pytest.approx([np.mean(near)], abs=1e-6)


def test_distances_may_be_euclidean():
    settings = ANOMALYDINO.settings(overrides={"distance": "L2", "nearest_patches": 2})
    memories = anomalydino.remember({"patches": torch.tensor([[[0.0, 0], [3, 4]]])}, settings, 1)
    found = anomalydino.measure_distances(torch.tensor([[0.0, 0]]), memories, settings)
    assert found.item() == pytest.approx((25 / 2) ** 0.5)


def test_rotated_copies_belong_to_their_reference():
    settings = ANOMALYDINO.settings()
    references = {"patches": torch.stack([at(0), at(90)]), "rotated_45_patches": torch.stack([at(45), at(135)])}
    memories = anomalydino.remember(references, settings, 1)
    first, second = anomalydino.measure_distances(at(45), memories, settings, [torch.tensor([0]), torch.tensor([1])])
    assert [first.item(), second.item()] == pytest.approx([0, distance(45)], abs=1e-6)


def test_draws_together_score_as_each_alone():
    stream = torch.Generator().manual_seed(0)
    settings = ANOMALYDINO.settings(overrides={"nearest_patches": 2})
    references = {"patches": torch.randn(3, 9, 8, generator=stream)}
    features = {"patches": torch.randn(1, 9, 8, generator=stream)}
    draws = [torch.tensor(draw) for draw in ([0], [2, 1], [0, 1, 2])]
    together = anomalydino.score(features, None, settings, 3, anomalydino.remember(references, settings, 3), draws)
    for place, draw in enumerate(draws):
        memory = anomalydino.remember({"patches": references["patches"][draw]}, settings, 3)
        alone = anomalydino.score(features, None, settings, 3, memory)
        assert torch.equal(together[0][place], alone[0][0]) and torch.equal(together[1][place], alone[1][0])


def test_masked_patches_are_zero_and_count():
    """A map of 14 x 14 patches has a top percent of one patch; masked ones are none of the largest."""
    tokens = torch.zeros(14, 14, 3)
    tokens[4:10, 4:10, 0], tokens[..., 1] = 40, torch.arange(14) * 0.01
    tokens[6, 6, 2], tokens[0, 0, 2] = 20, 9  # a defect on the object, and a stranger one beside it
    references = {"patches": torch.tensor([[[40.0, 0.05, 0], [0, 0.05, 0]]])}
    features = {"patches": tokens.flatten(0, 1)[None]}
    found = {}
    for masking in (True, False):
        settings = ANOMALYDINO.settings(overrides={"masking": masking})
        memory = anomalydino.remember(references, settings, 14)
        found[masking] = anomalydino.score(features, None, settings, 14, memory)
    assert found[True][0].item() == pytest.approx(1 - 2 / 5**0.5, abs=1e-4)  # 40 and 20 at right angles
    assert found[False][0].item() > 0.9
    assert found[True][1][0, 0].count_nonzero() == 0 and found[False][1][0, 0, 0] > 0.9


def test_references_are_masked_where_asked():
    rows = [".....", ".xxx.", ".xxx.", ".xxx.", "....."]
    references = {"patches": torch.stack([part(rows, 40)] * 2)}
    whole = ANOMALYDINO.settings(overrides={"masking": True})
    masked = ANOMALYDINO.settings(overrides={"masking": True, "mask_references": True})
    assert [len(memory) for memory in anomalydino.remember(references, whole, 5)] == [25, 25]
    assert [len(memory) for memory in anomalydino.remember(references, masked, 5)] == [15, 15]


# ---------------------------------------------------------------- settings by category and backbone


def settled(category: str, name: str = DINO["backbone"], preset: str = "paper", **overrides):
    chosen = ANOMALYDINO.settings(preset, overrides)
    facts = type("Facts", (), {"name": name, "image_size": 240})()
    found = ANOMALYDINO.settle(chosen, facts, category)
    return found.masking, found.rotation, ANOMALYDINO.image_side(found, facts)


def test_masking_and_rotation_hold_for_the_categories_of_the_paper():
    assert settled("screw") == (True, True, 448)
    assert settled("transistor") == (False, True, 448)
    assert settled("pill", preset="informed") == (True, False, 448)
    assert settled("screw", preset="informed_no_mask") == (False, True, 448)
    assert settled("candle", preset="masking_only") == (True, False, 448)
    assert settled("my part", masking=True, rotation=["other"]) == (True, False, 448)


@pytest.mark.parametrize("name", ["timm/vit_small_patch16_dinov3", "ViT-B-16-plus-240", "/home/dinov2/config.json"])
def test_masks_are_of_dinov2_alone(name):
    side = 448 if name.startswith("timm") else 240
    assert settled("screw", name) == (False, True, side)  # as in the official code
    for masking in (True, ["screw"]):
        with pytest.raises(InputError, match=f"DINOv2's tokens, which {name} does not have; set 'masking: false'"):
            settled("bottle", name, masking=masking)


def test_only_references_have_rotated_copies():
    chosen, plain = (ANOMALYDINO.settings(overrides={"rotation": rotation}) for rotation in (True, False))
    names = [f"rotated_{angle}_patches" for angle in (45, 90, 135, 180, 225, 270, 315)]
    assert ANOMALYDINO.array_names(chosen, 4) == ["patches"]
    assert ANOMALYDINO.reference_array_names(chosen, 4) == ["patches", *names]
    assert ANOMALYDINO.reference_array_names(plain, 4) == ["patches"]


# ---------------------------------------------------------------- the oracle


def test_rotations_and_a_small_run_are_those_of_the_official_code():
    oracle = json.loads(shared(ORACLE).read_text())
    compared = dino_oracles.DinoOracle(oracle)
    number = next(place for place, values in enumerate(oracle["runs"]) if values["resolution"] == 112)
    rows = [*compared.compare_rotations(), *dino_oracles.compare_top_percents(oracle), *compared.compare_run(number)]
    assert not exceeding(rows)


@pytest.mark.slow
def test_parity_with_the_official_code():
    rows = parity.compare(shared(ORACLE))
    assert len(rows) > 90 and not exceeding(rows)


# ---------------------------------------------------------------- a run


@pytest.fixture
def narrow(monkeypatch):
    """timm's DINOv2 with four narrow blocks, so that a pass takes milliseconds."""
    build = partial(image_towers.build_timm, embed_dim=24, depth=4, num_heads=2)
    monkeypatch.setattr(image_towers, "build_timm", build)


@pytest.mark.slow
def test_a_run_encodes_rotated_copies_of_references_alone(narrow, tmp_path):
    """In own folders, with masks and without; two seeds draw of the same kept features."""
    root, cache = make_mvtec(tmp_path / "data", ("screw",), size=(28, 28)), tmp_path / "cache"
    small = {"image_size": 28}
    specs = [
        {"method": "anomalydino", **DINO, "settings": small},
        {"method": "anomalydino", "name": "whole", **DINO, "preset": "agnostic_no_mask", "settings": small},
        {"method": "subspacead", **DINO, "settings": small | {"rotations": 2}},
        {"method": "subspacead", "name": "on CLIP", **TINY, "preset": "no_rotation"},
    ]
    results = run.run(small_profile(root, cache, methods=specs, seeds=[0, 1]))
    assert set(results.scores.method) == {"AnomalyDINO", "whole", "SubspaceAD", "on CLIP"}
    assert results.scores.score.notna().all() and set(results.scores.shots) == {1}
    draws = [datasets.draw_references(results.index, "screw", 1, seed) for seed in (0, 1)]
    drawn = {image for draw in draws for image in draw.image}
    kept = {folder.name: len([*folder.glob("*/*.npy")]) for folder in (cache / "features").glob("*/*")}
    rotated = [count for name, count in kept.items() if "mirror" in name or "black" in name]
    assert rotated == [len(drawn)] * (7 + 2)
    tested = [count for name, count in kept.items() if "mirror" not in name and "black" not in name]
    assert tested == [len(drawn) + 8] * 3


def test_masking_that_a_backbone_does_not_have_is_refused_before_anything_is_encoded(mvtec, tmp_path):
    specs = [{"method": "anomalydino", **TINY, "settings": {"masking": True}}]
    with pytest.raises(InputError, match="AnomalyDINO: the mask reads DINOv2's tokens"):
        run.run(small_profile(mvtec, tmp_path / "cache", methods=specs))
    assert not (tmp_path / "cache" / "features").exists()
