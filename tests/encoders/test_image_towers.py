"""Tokens of every kind of image tower: against the originals of DINOv2 and DINOv3, and against open_clip itself."""

from __future__ import annotations

import json
from pathlib import Path

import dino_oracles
import numpy as np
import open_clip
import pytest
import timm
import torch
from conftest import shared
from safetensors.torch import save_file

from vlmad_lib import InputError
from vlmad_lib.config import Method
from vlmad_lib.encoders import backbones, image_towers
from vlmad_lib.encoders.image_towers import encode_tokens

TOKEN = 2e-5  # the oracles' own tolerance


def oracle_backbone(case: dict) -> backbones.Backbone:
    """The seeded timm model of an oracle."""
    architecture, overrides = case["timm"]
    net = dino_oracles.draw_backbone(architecture, overrides, case["seed"])
    shapes = {name: list(value.shape) for name, value in net.visual.trunk.state_dict().items()}
    assert case["shapes"] in (shapes, "as timm's state_dict() lists them")
    return net


SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3}
BLOCKS = SMALL | {"depth": 4}


def small_backbone(architecture: str, precision: str = "fp32", **overrides) -> backbones.Backbone:
    """A narrow timm model on the seeded weights of ``random:0``."""
    model = backbones.ImageModel(image_towers.build_timm(f"timm/{architecture}", **(SMALL | overrides)))
    model.load_state_dict(backbones.random_state(model, 0))
    return backbones.Backbone(f"timm/{architecture}", "random:0", model.eval().requires_grad_(False), "", precision)


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
    net = small_backbone("vit_small_patch16_dinov3")
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    rounded = encode_tokens(net, images).patches
    periods = net.visual.trunk.rope.periods
    assert rounded.shape == (1, 24, 48) and torch.equal(periods, periods.bfloat16().float())
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


@pytest.mark.parametrize("architecture", ["test_vit", "test_vit2", "test_vit3", "vit_tiny_patch16_224"])
def test_tokens_of_timm_are_those_of_its_own_forward_pass(architecture):
    """Of small networks, with and without a class token, registers and attention in the place of a mean."""
    net = small_backbone(architecture, **BLOCKS)
    plain = timm.create_model(architecture, num_classes=0, **BLOCKS).eval()
    plain.load_state_dict(net.visual.trunk.state_dict())
    images = torch.randn(2, 3, net.image_size, net.image_size, generator=torch.Generator().manual_seed(0))
    tokens = encode_tokens(net, images, [2, net.depth])
    with torch.inference_mode():
        last, kept = plain.forward_intermediates(images, indices=[1, net.depth - 1], output_fmt="NLC")
        torch.testing.assert_close(tokens.image, plain(images), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tokens.patches, last[:, net.prefix_tokens :], atol=1e-5, rtol=1e-4)
    for number, values in zip([2, net.depth], kept, strict=True):
        torch.testing.assert_close(tokens.blocks[number], values, atol=1e-5, rtol=1e-4)
    assert (tokens.class_token is None) == (not net.has_class_token) == (architecture in ("test_vit2", "test_vit3"))
    assert net.tower._inside(torch.float32)[1]  # its blocks are computed by ``vit_blocks``


@pytest.mark.parametrize("architecture", ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
def test_bf16_is_near_fp32(architecture):
    """Whether the blocks are those of ``vit_blocks`` or timm's own within an autocast."""
    images = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    exact, half = (encode_tokens(small_backbone(architecture, kind), images, [1]) for kind in ("fp32", "bf16"))
    for first, second in ((exact.patches, half.patches), (exact.blocks[1], half.blocks[1]), (exact.image, half.image)):
        assert second.dtype == torch.float32 and 0 < (first - second).abs().max() < 0.2
        assert torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), 0) > 0.999


TEXT = {"context_length": 77, "vocab_size": 512, "width": 64, "heads": 1, "layers": 1}
PLAIN = {"image_size": 80, "layers": 2, "width": 64, "head_width": 64, "patch_size": 16}
OF_TIMM = {"image_size": 160, "timm_model_pretrained": False}
OF_OPEN_CLIP = {  # the kinds of towers in its list, narrowed
    "mean": ({"vision_cfg": PLAIN | {"pool_type": "avg", "no_ln_pre": True, "final_ln_after_pool": True}}, True),
    "attention": ({"vision_cfg": PLAIN | {"attentional_pool": True, "attn_pooler_heads": 1}}, True),
    "timm, token": (
        {"vision_cfg": OF_TIMM | {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"}}, True
    ),
    "timm, map": (
        {"vision_cfg": OF_TIMM | {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"},
         "init_logit_bias": -10}, True
    ),
    "text of a hub": ({"vision_cfg": PLAIN, "text_cfg": {"hf_model_name": "roberta-base"}}, False),
    "decoder": (
        {"vision_cfg": PLAIN | {"attentional_pool": True, "attn_pooler_heads": 1}, "multimodal_cfg": TEXT}, False
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OF_OPEN_CLIP)
def test_every_kind_of_tower_of_open_clip(kind, tmp_path):
    """The image's embedding is the model's own; a text tower of a hub or a decoder is left out, and nothing fetched."""
    settings, has_text = OF_OPEN_CLIP[kind]
    width = 96 if "map" in kind else 32
    file = tmp_path / "model.json"
    file.write_text(json.dumps({"embed_dim": width, "text_cfg": TEXT, "custom_text": True} | settings))
    net = backbones.load_backbone(str(file), "random:0")
    images = torch.randn(2, 3, net.image_size, net.image_size, generator=torch.Generator().manual_seed(0))
    tokens = encode_tokens(net, images, [1])
    with torch.inference_mode():
        torch.testing.assert_close(tokens.image, net.visual(images), atol=1e-5, rtol=1e-4)
    assert net.has_text == has_text and tokens.image.shape == (2, width)
    assert tokens.patches.shape == tokens.blocks[1].shape == (2, net.grid**2, net.width)
    assert net.has_class_token == (tokens.class_token is not None) == (kind in ("timm, token", "text of a hub"))
    if net.tower.fixed:
        with pytest.raises(InputError, match="reads pictures of 160 pixels only, not 96x96"):
            encode_tokens(net, torch.zeros(1, 3, 96, 96))


def test_an_image_tower_alone_reads_its_part_of_a_file(tiny_backbone, tmp_path):
    """Of a file with both towers, under open_clip's names."""
    torch.save(tiny_backbone.model.state_dict(), tmp_path / "both.pt")
    settings = json.loads(Path(tiny_backbone.name).read_text())
    file = tmp_path / "model.json"
    file.write_text(json.dumps(settings | {"text_cfg": {"hf_model_name": "roberta-base"}}))
    net = backbones.load_backbone(str(file), str(tmp_path / "both.pt"))
    assert not net.has_text and net.is_clip_vit and not net.tokenizer
    assert torch.equal(net.visual.proj, tiny_backbone.visual.proj)


REFUSED = (
    "RN",
    "convnext",
    "swin",
    "MobileCLIP-S",
    "MobileCLIP2-S",
)  # no ViTs: what they end with is no grid of tokens


@pytest.mark.slow
def test_every_vit_of_open_clips_list_is_accepted():
    """On the meta device: all but the networks whose names begin so, which are refused for what they are."""
    accepted = []
    for name in open_clip.list_models():
        if name.startswith(REFUSED):
            with pytest.raises(InputError, match=f"{name} is no ViT and has no patch tokens"):
                backbones.build_skeleton(name)
            continue
        net = backbones.build_skeleton(name)
        assert net.depth >= 6 and net.grid * net.patch_size <= net.image_size and net.width % 8 == 0
        accepted.append(net)
    assert len(accepted) > 100 and sum(net.is_clip_vit for net in accepted) < len(accepted) / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["ViT-B-16-SigLIP", "EVA02-B-16", "PE-Core-T-16-384", "MobileCLIP-B", "ViTamin-S", "vit_medium_patch16_gap_256",
     "vit_relpos_medium_patch16_cls_224", "coca_ViT-B-32"],
)  # fmt: skip
def test_a_tower_of_each_family_of_open_clip_in_full_size(name):
    """Its embedding of the whole image, on random weights, is that of its own forward pass."""
    net = backbones.load_backbone(name, "random:0")
    images = torch.randn(1, 3, net.image_size, net.image_size, generator=torch.Generator().manual_seed(0))
    tokens = encode_tokens(net, images, [net.depth])
    with torch.inference_mode():
        expected = net.visual(images)
    expected = expected[0] if isinstance(expected, tuple) else expected
    assert tokens.patches.isfinite().all() and tokens.blocks[net.depth].isfinite().all()
    torch.testing.assert_close(tokens.image, expected, atol=1e-4, rtol=1e-4)


def test_what_a_tower_cannot_read_is_refused(tiny_backbone):
    with pytest.raises(InputError, match="no block 3; .*tiny.json has blocks 1 to 2"):
        encode_tokens(tiny_backbone, torch.zeros(1, 3, 80, 80), [3])
    with pytest.raises(InputError, match="90x80 pixels are no whole patches of 16"):
        encode_tokens(tiny_backbone, torch.zeros(1, 3, 80, 90))


# ---------------------------------------------------------------- weights of timm's models

META = {
    "vit_small_patch14_dinov2": {"img_size": 56},
    "vit_small_patch14_reg4_dinov2": {"img_size": 56},
    "vit_giant_patch14_reg4_dinov2": {"img_size": 56},
    "vit_small_patch16_dinov3": {},
    "vit_small_patch16_dinov3_qkvb": {},
}


def name_as_meta(state: dict[str, torch.Tensor], architecture: str) -> dict[str, torch.Tensor]:
    """Tensors of timm's DINOv2 and DINOv3 under the names of the original files."""
    state = {name: value.clone() for name, value in state.items()}
    meta = {"mask_token": torch.zeros(1, state["cls_token"].shape[-1])}
    if "dinov3" in architecture:
        width = state["cls_token"].shape[-1]
        meta |= {"storage_tokens": state.pop("reg_token"), "rope_embed.periods": torch.ones(4)}
        for block in range(SMALL["depth"]):
            ours = [state.pop(f"blocks.{block}.attn.{letter}_bias", torch.zeros(width)) for letter in "qv"]
            masked = torch.full((width,), 7.0)  # what stands there is multiplied by 0
            meta[f"blocks.{block}.attn.qkv.bias"] = torch.cat([ours[0], masked, ours[1]])
            meta[f"blocks.{block}.attn.qkv.bias_mask"] = torch.ones(3 * width)
            for number in (1, 2):
                meta[f"blocks.{block}.ls{number}.gamma"] = state.pop(f"blocks.{block}.gamma_{number}")
        return meta | state
    if "reg4" in architecture:  # the class token's position is a row of the table there
        table = torch.cat([torch.ones_like(state["cls_token"]), state.pop("pos_embed")], 1)
        meta |= {"register_tokens": state.pop("reg_token"), "pos_embed": table}
        meta["cls_token"] = state.pop("cls_token") - 1
    renamed = {"fc1": "w12", "fc2": "w3"} if "giant" in architecture else {}
    for old, new in renamed.items():
        state = {name.replace(old, new): value for name, value in state.items()}
    return meta | state


@pytest.mark.parametrize("architecture", META)
def test_weights_under_the_names_of_their_authors(architecture, tmp_path):
    """And under timm's own, with a classifier beside them: the same tensors come out."""
    visual = image_towers.build_timm(f"timm/{architecture}", **SMALL, **META[architecture])
    model = backbones.ImageModel(visual)
    drawn = backbones.random_state(model, 0)
    own = {name.removeprefix("visual.trunk."): value for name, value in drawn.items()}
    for held in (name_as_meta(own, architecture), own | {"head.weight": torch.ones(5, 48)}):
        found = backbones._convert(held, model, tmp_path)
        assert found.keys() == drawn.keys() and not backbones._misfit(found, model.state_dict())
        for name, value in drawn.items():
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0)


def test_weights_of_another_model_are_refused(tmp_path):
    """No table is resampled at load, and no bias is dropped that is not zero."""
    plain, larger = (
        image_towers.build_timm("timm/vit_small_patch14_dinov2", **SMALL, img_size=side).trunk for side in (56, 70)
    )
    with pytest.raises(
        InputError, match="of another input size: its pos_embed is 1 x 26 x 48, the model's 1 x 17 x 48"
    ):
        image_towers.convert_timm(larger.state_dict(), plain, tmp_path)
    biased = image_towers.build_timm("timm/vit_small_patch16_dinov3_qkvb", **SMALL)
    state = backbones.random_state(backbones.ImageModel(biased), 0)
    state = {name.removeprefix("visual.trunk."): value for name, value in state.items()}
    unbiased = image_towers.build_timm("timm/vit_small_patch16_dinov3", **SMALL).trunk
    with pytest.raises(InputError, match="biases of queries and values; .* _qkvb"):
        image_towers.convert_timm(name_as_meta(state, "dinov3"), unbiased, tmp_path)


VIT = "timm/vit_tiny_patch16_224"


def test_a_file_of_timm_weights(tmp_path, monkeypatch):
    """By path and by tag, in both kinds of file: one fingerprint, and one key as pixels are standardised alike."""
    drawn = backbones.load_backbone(VIT, "random:0")
    state = {name.removeprefix("visual.trunk."): value.half() for name, value in drawn.model.state_dict().items()}
    monkeypatch.setattr(backbones, "WEIGHTS", tmp_path)
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "any.safetensors")
    torch.save({"model": state}, tmp_path / "vit_tiny_patch16_224.augreg_in21k.pth")
    by_path = backbones.load_backbone(VIT, str(tmp_path / "any.safetensors"))
    by_tag = backbones.load_backbone(VIT, "augreg_in21k")
    assert by_path.fingerprint == by_tag.fingerprint == drawn.fingerprint and by_path.key == by_tag.key == drawn.key
    assert by_tag.label == "vit_tiny_patch16_224 (augreg_in21k, fp32)" and not by_tag.note and not by_tag.has_text
    facts = by_tag.known()
    assert (facts.depth, facts.width, facts.grid, facts.prefix_tokens, facts.has_class_token) == (12, 192, 14, 1, True)


def test_names_of_timm_models():
    with pytest.raises(InputError, match="timm has no model 'vit_none'"):
        backbones.load_backbone("timm/vit_none", "random:0")
    with pytest.raises(InputError, match="no vit_small_patch14_dinov2 with the tag 'laion'; tags: lvd142m"):
        backbones.load_backbone("timm/vit_small_patch14_dinov2.laion", "random:0")
    with pytest.raises(InputError, match="timm/resnet18 is no ViT and has no patch tokens"):
        backbones.load_backbone("timm/resnet18", "random:0")
    with pytest.raises(InputError, match="has no weights 'laion400m_e31'; tags: .*augreg_in21k"):
        backbones.locate_weights(VIT, "laion400m_e31")
    spec = Method(method="patchcore", backbone="timm/vit_small_patch14_dinov2.lvd142m")
    assert spec.weights == "lvd142m"


def test_timm_weights_are_asked_for_by_name(tmp_path, monkeypatch):
    """Nothing is fetched unless told; the authors' own file serves under its own name too."""
    monkeypatch.setattr(backbones, "WEIGHTS", tmp_path)
    monkeypatch.setattr(backbones, "_cached", lambda hub: None)
    name = "timm/vit_small_patch14_dinov2.lvd142m"
    with pytest.raises(
        InputError, match="fetch model.safetensors of the hub repository timm/vit_small_patch14_dinov2.lvd142m"
    ):
        backbones.locate_weights(name, "lvd142m")
    fetched = []
    monkeypatch.setattr(backbones, "_download", lambda *asked: fetched.append(asked) or str(tmp_path / "file"))
    assert backbones.locate_weights(name, "lvd142m", download=True) == tmp_path / "file"
    assert fetched == [("timm/vit_small_patch14_dinov2.lvd142m", "model.safetensors")]
    for file in ("dinov2_vits14_pretrain.pth", "vit_small_patch14_dinov2.lvd142m.safetensors"):
        (tmp_path / file).touch()
        assert backbones.locate_weights(name, "lvd142m").name == file


@pytest.mark.parametrize(
    ("name", "weights", "mean"),
    [
        ("timm/vit_small_patch14_dinov2", "random:0", 0.485),
        ("timm/vit_large_patch16_dinov3", "random:0", 0.485),
        ("timm/vit_large_patch16_dinov3", "sat493m", 0.43),
        ("timm/vit_large_patch16_dinov3", "dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth", 0.43),
        ("timm/vit_large_patch16_dinov3.sat493m", "some.pth", 0.43),
        ("timm/vit_base_patch16_clip_224", "openai", 0.48145466),
    ],
)
def test_pixels_are_standardised_as_timm_says(name, weights, mean):
    assert backbones._standard(name, weights)[0][0] == mean
