"""Tokens of every kind of image tower: against the originals of DINOv2 and DINOv3, and against open_clip itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import shared

from vlmad_lib import InputError
from vlmad_lib.encoders import backbones, image_towers
from vlmad_lib.encoders.image_towers import encode_tokens

TOKEN = 2e-5  # the oracles' own tolerance


def draw_oracle_weights(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """The oracles' draw of one of timm's tensors, by name and shape alone."""
    parent, leaf = ["", *name.split(".")][-2:]
    fan_in, mean = float(np.prod(shape[1:])) if len(shape) > 1 else 1.0, 0.0
    if name == "norm.weight":
        mean, deviation = 3.0, 0.4
    elif leaf.startswith("gamma"):
        mean, deviation = 0.8, 0.2
    elif parent.startswith("norm"):
        mean, deviation = float(leaf == "weight"), 0.1
    elif leaf in ("cls_token", "reg_token", "pos_embed"):
        deviation = 0.2 if leaf == "pos_embed" else 0.5
    elif leaf.endswith("bias"):
        deviation = 0.1 if parent == "qkv" or leaf in ("q_bias", "v_bias") else 0.05
    else:
        deviation = (0.5 if parent in ("proj", "fc2") and "blocks" in name else 1.0) * fan_in**-0.5
    return backbones.draw_named(seed, name, shape, mean, deviation)


def oracle_backbone(case: dict) -> backbones.Backbone:
    """The seeded timm model of an oracle."""
    architecture, overrides = case["timm"]
    visual = image_towers.build_timm(f"timm/{architecture}", **overrides)
    shapes = {name: list(value.shape) for name, value in visual.trunk.state_dict().items()}
    assert case["shapes"] in (shapes, "as timm's state_dict() lists them")
    drawn = {name: draw_oracle_weights(name, tuple(shape), case["seed"]) for name, shape in shapes.items()}
    visual.trunk.load_state_dict(drawn)
    visual.eval().requires_grad_(False)
    return backbones.Backbone(f"timm/{architecture}", "random:0", backbones.ImageModel(visual), "")


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_reg4", "dinov2_giant_reg4", "dinov3", "dinov3_qkvb"])
def test_tokens_are_those_of_the_originals(kind):
    """At the native size and at others, with the residual stream of a block in between, and the class token."""
    case = json.loads(shared("golden/anomalydino_small.json").read_text())["backbone"][kind]
    net = oracle_backbone(case)
    if "dinov3" in kind:  # the oracle's periods are fp32, published ones are rounded
        rope = net.visual.trunk.rope
        exact = rope._compute_periods()
        assert 0 < (rope.periods - exact).abs().max() < 0.01 * exact.max()
        rope.periods = exact
    for size, values in case["sizes"].items():
        height, width = map(int, size.split("x"))
        pixels = np.random.default_rng(5).standard_normal((1, 3, height, width), dtype=np.float32)
        number = values["block"]["index"] + 1
        tokens = encode_tokens(net, torch.from_numpy(pixels), [number])
        for found, expected in ((tokens.patches, values), (tokens.blocks[number], values["block"])):
            first = found[0, expected["at"], :6].numpy()
            assert list(found[0].shape) == expected["shape"]
            np.testing.assert_allclose(first, expected["first_six"], rtol=0, atol=TOKEN)
            assert float(found.double().square().mean()) == pytest.approx(expected["mean_square"], rel=1e-5)
        assert tokens.class_token[0, :6].tolist() == pytest.approx(values["class_token"], abs=TOKEN)
        torch.testing.assert_close(tokens.image, tokens.class_token)


def test_rounded_periods_move_the_tokens_of_dinov3():
    """What is computed without the rounding of published weights is another model."""
    net = backbones.load_backbone("timm/vit_small_patch16_dinov3", "random:0")
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    rounded = encode_tokens(net, images).patches
    periods = net.visual.trunk.rope.periods
    assert rounded.shape == (1, 24, 384) and torch.equal(periods, periods.bfloat16().float())
    net.visual.trunk.rope.periods = net.visual.trunk.rope._compute_periods()
    assert 1e-4 < (encode_tokens(net, images).patches - rounded).abs().max() < 0.1


def test_tokens_of_clip_are_those_of_open_clip(tiny_backbone):
    images = torch.randn(2, 3, 80, 80, generator=torch.Generator().manual_seed(0))
    tokens, visual = encode_tokens(tiny_backbone, images, [1, 2]), tiny_backbone.visual
    with torch.inference_mode():
        expected = visual.forward_intermediates(images, output_fmt="NLC")
    torch.testing.assert_close(tokens.image, expected["image_features"], atol=1e-5, rtol=1e-5)
    for number, values in enumerate(expected["image_intermediates"], 1):
        torch.testing.assert_close(tokens.blocks[number], values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokens.patches, visual.ln_post(tokens.blocks[2]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokens.class_token @ visual.proj, tokens.image)
    assert encode_tokens(tiny_backbone, torch.zeros(1, 3, 96, 64)).patches.shape == (1, 24, 64)


def test_what_a_tower_cannot_read_is_refused(tiny_backbone):
    with pytest.raises(InputError, match="no block 3; .*tiny.json has blocks 1 to 2"):
        encode_tokens(tiny_backbone, torch.zeros(1, 3, 80, 80), [3])
    with pytest.raises(InputError, match="90x80 pixels are no whole patches of 16"):
        encode_tokens(tiny_backbone, torch.zeros(1, 3, 80, 90))
