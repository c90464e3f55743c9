"""WinCLIP against hand-made cases, loops and an oracle; and the layout faults that went unseen elsewhere."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import parity
import pytest
import torch
from conftest import shared

from vlmad_lib import InputError, methods
from vlmad_lib.encoders import backbones, prompts
from vlmad_lib.methods import winclip


@pytest.fixture(scope="module")
def pictures(demo_backbone):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 240, 240, 3), dtype=np.uint8)
    return demo_backbone.normalise(pixels)


# ------------------------------------------------------------ prompts


def test_prompt_counts():
    for name, counts in {"22": (154, 88), "21": (147, 84), "none": (7, 4)}.items():
        assert tuple(map(len, prompts.ensemble("screw", "all", name))) == counts
    normal, anomalous = prompts.ensemble("metal nut")
    assert len(set(normal)) == 154 and len(set(anomalous)) == 88
    assert "a photo of a flawless metal nut for visual inspection." in normal
    assert "a cropped photo of the metal nut with damage." in anomalous
    assert prompts.templates("21").count("a jpeg corrupted photo of the {}.") == 2
    assert not any(text.endswith(".") for text in prompts.templates("22 no stop"))


OWN = {"states": "own", "own_normal": ["a {} in order", "all good"], "own_anomalous": ["a broken {}"]}


def test_own_prompts_take_the_place_of_the_states():
    row = pd.Series({"class_name": "metal nut", "category": "metal_nut"})
    alone, framed = (winclip.settings("paper", OWN | {"templates": name}) for name in ("none", "one"))
    assert winclip.wording(alone, row) == [["a metal nut in order", "all good"], ["a broken metal nut"], True]
    assert winclip.wording(framed, row)[1] == ["a photo of a a broken metal nut."]
    assert winclip.wording(winclip.settings(), row)[:2] == list(prompts.ensemble("metal nut"))


def test_unknown_prompt_set_is_refused():
    with pytest.raises(InputError, match="no set of templates '23'"):
        prompts.templates("23")


def test_cutting_the_padding_changes_nothing(demo_backbone):
    texts = ["a photo of a screw.", "flawless printed circuit board"]
    full = demo_backbone.model.encode_text(backbones.open_clip.tokenize(texts))
    torch.testing.assert_close(demo_backbone.encode_text(texts), full, atol=1e-5, rtol=0)


# ------------------------------------------------------------ windows


@pytest.mark.parametrize("size", range(1, 8))
def test_window_counts(size):
    members = winclip.window_tokens(15, size)
    assert members.shape == ((16 - size) ** 2, size * size)
    assert members[0].tolist() == [15 * row + column for row in range(size) for column in range(size)]
    assert members.max() == 224


def test_a_window_larger_than_the_grid_is_refused():
    with pytest.raises(InputError, match="does not fit a grid of 15x15"):
        winclip.window_tokens(15, 16)


def test_windows_differ_and_follow_their_image(demo_backbone, pictures):
    """Code that mistakes the batch axis for the token axis gives every window the same embedding."""
    wanted = ["class", "window_2", "patch"]
    found = winclip.encode(demo_backbone, pictures, wanted)
    order = torch.tensor([2, 0, 1])
    shuffled = winclip.encode(demo_backbone, pictures[order], wanted)
    for name in wanted:
        torch.testing.assert_close(shuffled[name], found[name][order], atol=2e-5, rtol=0)
    assert found["window_2"].std(dim=1).mean() > 0.01  # windows of one image differ
    assert found["window_2"].std(dim=0).mean() > 0.01  # images differ
    alone = winclip.encode(demo_backbone, pictures[:1], wanted)
    torch.testing.assert_close(alone["window_2"][0], found["window_2"][0], atol=2e-5, rtol=0)


def test_a_window_sees_its_own_tokens_only(demo_backbone, pictures):
    changed = pictures.clone()
    changed[:, :, :16, :16] += 1  # the patch in the upper left corner
    before, after = (winclip.encode(demo_backbone, x, ["window_3"])["window_3"] for x in (pictures, changed))
    moved = (before - after).abs().amax((0, 2)) > 1e-4
    covering = (winclip.window_tokens(15, 3) == 0).any(1)
    assert torch.equal(moved, covering)


def test_window_of_the_whole_grid_is_the_whole_image(demo_backbone, pictures):
    found = winclip.encode(demo_backbone, pictures, ["class", "window_15"])
    torch.testing.assert_close(found["window_15"][:, 0], found["class"], atol=2e-5, rtol=0)
    torch.testing.assert_close(found["class"], demo_backbone.model.encode_image(pictures), atol=2e-5, rtol=0)


def test_tokens_that_nobody_reads_can_be_left_out(demo_backbone, pictures):
    """The last block for the class token alone gives what all blocks on all tokens of a window give."""
    visual, members = demo_backbone.visual, winclip.window_tokens(15, 3)
    with torch.inference_mode():
        tokens = visual._embeds(pictures[:1])
        part = tokens[0, torch.cat([torch.zeros(len(members), 1, dtype=torch.long), members + 1], 1)]
        for block in visual.transformer.resblocks:
            part = block(part)
        plain = visual.ln_post(part[:, 0]) @ visual.proj
    found = winclip.encode(demo_backbone, pictures[:1], ["window_3"])["window_3"][0]
    torch.testing.assert_close(found, plain, atol=2e-6, rtol=1e-5)


def test_chunks_of_windows_change_nothing(demo_backbone, pictures, monkeypatch):
    whole = winclip.encode(demo_backbone, pictures, ["window_2"])["window_2"]
    monkeypatch.setitem(vars(demo_backbone), "window_tokens_at_once", 37)
    torch.testing.assert_close(
        winclip.encode(demo_backbone, pictures, ["window_2"])["window_2"], whole, atol=2e-5, rtol=0
    )


def test_patch_tokens_by_layer(demo_backbone, pictures):
    visual = demo_backbone.visual
    x = visual._embeds(pictures)
    outputs = [x := block(x) for block in visual.transformer.resblocks]
    found = winclip.encode(demo_backbone, pictures, ["patch", "patch_ln_post", "patch_penultimate"])
    torch.testing.assert_close(found["patch"], outputs[-1][:, 1:])
    torch.testing.assert_close(found["patch_penultimate"], outputs[-2][:, 1:])
    torch.testing.assert_close(found["patch_ln_post"], visual.ln_post(outputs[-1])[:, 1:])


def test_other_grids_work():
    """ViT-B-32 has 7x7 tokens: nothing may assume 15x15."""
    short = {
        "embed": 64,
        "res": 224,
        "patch": 32,
        "v_layers": 2,
        "v_width": 64,
        "ctx": 77,
        "vocab": 49408,
        "t_width": 64,
        "t_layers": 1,
    }
    net = parity.backbone(short, seed=1)
    chosen = winclip.settings("paper", {"windows": [2, 3, 7]})
    images = net.normalise(np.zeros((1, 224, 224, 3), np.uint8))
    found = winclip.encode(net, images, winclip.arrays(chosen, 1))
    text = prompts.prototypes(net, *prompts.ensemble("cup"))
    score, maps = winclip.score(found, text, chosen, net.grid, found)
    assert maps.shape == (1, 7, 7) and 0 < score < 1


def test_bf16_stays_close(demo_backbone, pictures):
    half = backbones.load_backbone("demo", "random:0", precision="bf16")
    exact, rough = (winclip.encode(net, pictures, ["class"])["class"] for net in (demo_backbone, half))
    assert rough.dtype == torch.float32
    similarity = torch.nn.functional.cosine_similarity(exact, rough)
    assert (similarity > 0.99).all() and (exact - rough).abs().max() > 0


# ------------------------------------------------------------ maps


def looped(scores: np.ndarray, grid: int, size: int) -> np.ndarray:
    """Harmonic mean over the windows that cover each patch, one patch after the other."""
    members = winclip.window_tokens(grid, size).numpy()
    covering = [(members == patch).any(1) for patch in range(grid * grid)]
    return np.array([mask.sum() / (1 / scores[mask]).sum() for mask in covering]).reshape(grid, grid)


@pytest.mark.parametrize("size", range(1, 8))
def test_fold_equals_the_loop(size):
    scores = np.random.default_rng(size).uniform(0.01, 1, (2, (16 - size) ** 2))
    found = winclip.spread(torch.tensor(scores), 15, size)
    np.testing.assert_allclose(found, [looped(one, 15, size) for one in scores], rtol=1e-9)


def test_harmonic_fusion_by_hand_on_a_3x3_grid():
    scores = torch.tensor([[0.5, 0.25, 0.2, 1.0]], dtype=torch.float64)  # the four 2x2 windows
    found = winclip.spread(scores, 3, 2)[0]
    half = lambda a, b: 2 / (1 / a + 1 / b)  # noqa: E731
    expected = [
        [0.5, half(0.5, 0.25), 0.25],
        [half(0.5, 0.2), 4 / (2 + 4 + 5 + 1), half(0.25, 1.0)],
        [0.2, half(0.2, 1.0), 1.0],
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    fused = winclip.fuse([found, torch.full((3, 3), 0.5)])
    assert fused[0, 0] == pytest.approx(0.5) and fused[2, 2] == pytest.approx(2 / (1 + 2))


def aligned(value: float) -> torch.Tensor:
    """A unit vector whose cosine with (1, 0) is ``value``."""
    return torch.tensor([value, (1 - value**2) ** 0.5])


def test_probability_by_hand():
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = winclip.probability(aligned(0.6)[None] * 7, text, 0.07)  # length does not matter
    assert found[0] == pytest.approx(1 / (1 + np.exp(-(0.8 - 0.6) / 0.07)))


def test_association_by_hand_and_its_range():
    features = {"window_1": torch.stack([aligned(1.0), aligned(0.0), aligned(-1.0), aligned(0.6)])[None]}
    memory = {"window_1": aligned(1.0)[None, None]}
    chosen = winclip.settings("paper", {"windows": [1], "patch_tokens": "none"})
    found = winclip.associate(features, memory, chosen, 2)
    torch.testing.assert_close(found, torch.tensor([[[1e-6, 0.5], [1.0, 0.2]]]), atol=2e-6, rtol=0)


def test_a_reference_compared_with_itself_is_normal(demo_backbone, pictures):
    chosen = winclip.settings()
    found = winclip.encode(demo_backbone, pictures, winclip.arrays(chosen, 1))
    assert winclip.associate(found, found, chosen, 15).max() < 1e-5


def test_more_references_never_raise_the_association(demo_backbone, pictures):
    chosen = winclip.settings()
    found = winclip.encode(demo_backbone, pictures, winclip.arrays(chosen, 1))
    test, one, two = ({name: array[rows] for name, array in found.items()} for rows in ([0], [1], [1, 2]))
    assert (winclip.associate(test, two, chosen, 15) <= winclip.associate(test, one, chosen, 15) + 1e-6).all()


def test_zero_shot_image_score_ignores_temperature_in_rank_and_the_map(demo_backbone, pictures):
    text = prompts.prototypes(demo_backbone, *prompts.ensemble("screw"))
    found = winclip.encode(demo_backbone, pictures, ["class", "window_2", "window_3"])
    whole = winclip.probability(found["class"], text, 0.07)
    score, maps = winclip.score(found, text, winclip.settings(), 15)
    torch.testing.assert_close(score, whole)
    assert maps.shape == (3, 15, 15) and ((maps > 0) & (maps < 1)).all()
    cold, _ = winclip.score(found, text, winclip.settings("paper", {"temperature": 0.01}), 15)
    assert torch.equal(cold.argsort(), score.argsort())


def test_study_preset_turns_the_polarity(demo_backbone, pictures):
    """Its map is 1 - HM(P(normal)), its score the map's maximum, and no full image is fused."""
    text = prompts.prototypes(demo_backbone, *prompts.ensemble("screw"))
    found = winclip.encode(demo_backbone, pictures, ["class", "window_2", "window_3"])
    chosen = winclip.settings("study")
    score, maps = winclip.score(found, text, chosen, 15)
    normal = [1 - winclip.probability(found[f"window_{size}"], text, 0.01) for size in (2, 3)]
    expected = 1 - winclip.fuse([winclip.spread(one, 15, size) for one, size in zip(normal, (2, 3), strict=True)])
    torch.testing.assert_close(maps, expected)
    torch.testing.assert_close(score, expected.amax((1, 2)))


@pytest.mark.parametrize(
    ("preset", "override", "message"),
    [
        ("papper", {}, "no preset 'papper'"),
        ("paper", {"temprature": 0.1}, "did you mean 'temperature'"),
        ("paper", {"temperature": 0.0}, "greater than 0"),
        ("paper", {"windows": [], "full_image": False}, "keep at least one scale"),
        ("paper", {"fit": "crop"}, "'tiles' or 'squash'"),
        ("paper", {"states": "own", "own_normal": ["a {}"]}, "go together with 'states: own'"),
        ("paper", {"own_normal": ["a {}"], "own_anomalous": ["a bad {}"]}, "go together with 'states: own'"),
        (
            "paper",
            OWN | {"own_normal": ["a {name}"]},
            "'own_normal': 'a {name}' is no prompt; write words, {} at most once",
        ),
        ("paper", OWN | {"own_anomalous": ["a {} like {}"]}, "'own_anomalous': 'a {} like {}' is no prompt"),
        ("paper", OWN | {"own_anomalous": ["fine", "a broken {"]}, "'a broken {' is no prompt"),
        ("paper", OWN | {"own_normal": [" "]}, "' ' is no prompt"),
    ],
)
def test_wrong_settings_are_refused(preset, override, message):
    with pytest.raises(InputError, match=re.escape(message)):
        winclip.settings(preset, override)


# ------------------------------------------------------------ parity


def test_parity_with_the_oracle():
    for name, found, tolerance in parity.compare(shared("golden/winclip_small.json")):
        assert found <= tolerance, name


def test_parity_notices_a_wrong_number(tmp_path):
    oracle = shared("golden/winclip_small.json").read_text()
    (tmp_path / "wrong.json").write_text(oracle.replace("0.5179146528244019", "0.5179246528244019"))
    assert parity.main([str(tmp_path / "wrong.json")]) == 1


def test_references_need_something_to_be_met_by():
    chosen = winclip.settings("paper", {"windows": [], "patch_tokens": "none"})
    assert winclip.arrays(chosen) == ["class"]
    with pytest.raises(InputError, match="'windows' is empty and 'patch_tokens' is none"):
        winclip.arrays(chosen, 1)


@pytest.mark.parametrize(
    "kind",
    [
        name
        for name, one in methods.METHODS.items()
        if one.scores_draws_together and "windows" in one.Settings.model_fields
    ],
)
def test_draws_together_are_each_draw_alone(kind):
    """Bit for bit: an image's score must not depend on which other draws are computed with it."""
    generator, method = torch.Generator().manual_seed(1), methods.METHODS[kind]
    grid, chosen = 5, method.settings("paper", {"windows": [2, 3]})
    shapes = {"class": (8,), "window_2": (16, 8), "window_3": (9, 8), "patch": (25, 8)}
    image, references = (
        {name: torch.randn(count, *shape, generator=generator) for name, shape in shapes.items()} for count in (1, 4)
    )
    text, draws = torch.randn(2, 8, generator=generator), [torch.tensor(one) for one in ([0], [2, 0], [3, 1, 2, 0])]
    scores, maps = method.score(image, text, chosen, grid, references, draws)
    for draw, score, found in zip(draws, scores, maps, strict=True):
        alone = {name: values[draw] for name, values in references.items()}
        expected, expected_map = method.score(image, text, chosen, grid, alone)
        assert torch.equal(expected[0], score) and torch.equal(expected_map[0], found)
