"""AnomalyCLIP against what the official code computed on seeded random weights, and its easy mistakes one by one."""

from __future__ import annotations

import parity
import pytest
import torch
import torch.nn.functional as F
from conftest import shared

from vlmad_lib import InputError, anomalyclip, backbones


@pytest.fixture(scope="module")
def net():
    return backbones.load("demo", "random:0")


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 240, 240, generator=torch.Generator().manual_seed(0))


def test_parity_with_the_official_code():
    for name, found, tolerance in parity.compare(shared("golden/anomalyclip_small.json")):
        assert found <= tolerance, name


# ---------------------------------------------------------------- the image side


@pytest.mark.parametrize(("layers", "first"), [(24, 6), (12, 3), (6, 2), (1, 1)])
def test_the_same_share_of_blocks_is_refined(layers, first):
    assert anomalyclip.refined_from(layers) == first


def test_class_token_has_no_ln_post(net, images):
    visual = net.visual
    with torch.inference_mode():
        tokens = visual.transformer(visual._embeds(images))
    found = anomalyclip.encode(net, images)["class"]
    torch.testing.assert_close(found, tokens[:, 0] @ visual.proj, atol=1e-5, rtol=0)
    assert (found - visual.ln_post(tokens[:, 0]) @ visual.proj).abs().max() > 0.01


def test_local_path_by_hand(net, images):
    """The sum of V-V attention outputs over the original path's tokens, no MLP, nothing fed back."""
    visual, blocks = net.visual, net.visual.transformer.resblocks
    with torch.inference_mode():
        tokens = visual._embeds(images)
        local = None
        for number, block in enumerate(blocks, 1):
            if number >= 2:
                y = block.ln_1(tokens)
                value = (y @ block.attn.in_proj_weight.T + block.attn.in_proj_bias)[..., -128:]
                heads = value.unflatten(-1, (2, 64)).transpose(1, 2)
                weights = (heads @ heads.mT / 8).softmax(-1)
                local = local + block.attn.out_proj((weights @ heads).transpose(1, 2).flatten(2))
            tokens = block(tokens)
            local = tokens if number == 1 else local
        expected = visual.ln_post(local[:, 1:]) @ visual.proj
    torch.testing.assert_close(anomalyclip.encode(net, images)["local_6"], expected, atol=1e-4, rtol=0)


def test_layers_and_attentions_differ(net, images):
    found = anomalyclip.encode(net, images[:1], (3, 6))
    assert not torch.allclose(found["local_3"], found["local_6"], atol=0.01)
    others = [anomalyclip.encode(net, images[:1], attention=kind)["local_6"] for kind in ("vv", "qq", "kk", None)]
    for i, one in enumerate(others):
        assert all(not torch.allclose(one, other, atol=0.01) for other in others[:i])


def test_positions_are_resized_bilinearly(net):
    found = anomalyclip.positions(net.visual, 15)
    torch.testing.assert_close(found, net.visual.positional_embedding)
    larger = anomalyclip.positions(net.visual, 30)
    assert torch.equal(larger[0], found[0]) and len(larger) == 901
    torch.testing.assert_close(larger[1], found[1])  # half-pixel centres: the corner is beyond the first centre
    expected = 0.75 * (0.75 * found[1] + 0.25 * found[2]) + 0.25 * (0.75 * found[16] + 0.25 * found[17])
    torch.testing.assert_close(larger[1 + 31], expected)


def test_unknown_layers_and_attention_are_refused(net, images):
    with pytest.raises(InputError, match="blocks 1 to 6"):
        anomalyclip.encode(net, images, (7,))
    with pytest.raises(InputError, match="'vq'.*vv, qq, kk"):
        anomalyclip.encode(net, images, attention="vq")


# ---------------------------------------------------------------- the text side


def test_prompts_are_the_official_tokens(net):
    learner = anomalyclip.PromptLearner(net)
    normal, anomalous = learner.tokens.tolist()
    assert normal[:16] == [49406, *[343] * 12, 14115, 269, 49407] and not any(normal[16:])
    assert anomalous[:17] == [49406, *[343] * 12, 13568, 14115, 269, 49407] and not any(anomalous[17:])
    assert learner.context.shape == (2, 12, 64) and len(learner.deep) == 2  # three text blocks, the first takes none


def test_deep_prompts_overwrite_and_are_rounded_to_half(net):
    learner = anomalyclip.PromptLearner(net)
    before = learner(net)
    with torch.no_grad():
        rounded = [row.half().float() for row in learner.deep]
        for row, value in zip(learner.deep, rounded, strict=True):
            row.copy_(value)
    assert torch.equal(before, learner(net))  # only what fp16 holds was ever used
    with torch.no_grad():
        learner.deep[0].add_(0.5)
    assert not torch.allclose(before, learner(net), atol=1e-3)


# ---------------------------------------------------------------- score and objective


def test_score_never_looks_at_the_map():
    text = F.normalize(torch.randn(2, 8, generator=torch.Generator().manual_seed(1)), dim=-1)
    features = {"class": text[1:] * 3, "local_1": text[None, [0, 1, 0, 0]], "local_2": text[None, [0, 1, 0, 0]]}
    whole, maps = anomalyclip.score(features, text)
    alike = float(text[0] @ text[1])
    sure = torch.sigmoid(torch.tensor((1 - alike) / 0.07))
    assert whole.item() == pytest.approx(sure.item())
    expected = 2 * torch.stack([1 - sure, sure, 1 - sure, 1 - sure]).view(1, 2, 2)  # summed over two layers
    torch.testing.assert_close(maps, expected)
    assert anomalyclip.score(features | {"local_2": text[None, [0, 0, 0, 0]]}, text)[0] == whole


def test_map_is_upsampled_then_smoothed():
    maps = torch.zeros(1, 37, 37)
    maps[0, 18, 18] = 1
    found = anomalyclip.smooth(maps)
    assert found.shape == (1, 518, 518) and found.argmax() // 518 in (258, 259)
    assert found.sum().item() == pytest.approx(14 * 14, rel=1e-3) and found.max() < 0.8


def test_losses_by_hand():
    masks = torch.zeros(1, 2, 2)
    masks[0, 0, 0] = 1
    chances = torch.stack([1 - masks, masks], 1)
    assert anomalyclip.focal_loss(chances, masks).item() == pytest.approx(0, abs=1e-6)
    assert anomalyclip.focal_loss(torch.full((1, 2, 2, 2), 0.5), masks).item() == pytest.approx(0.25 * 0.6931, abs=1e-4)
    assert anomalyclip.dice_loss(masks, masks).item() == 0
    assert anomalyclip.dice_loss(1 - masks, masks).item() == pytest.approx(1 - 1 / 5)


# ---------------------------------------------------------------- checkpoints


def test_checkpoint_round_trip(net, tmp_path):
    learner = anomalyclip.PromptLearner(net, seed=3)
    path = tmp_path / "prompts.pth"
    anomalyclip.write(learner, path, "visa")
    state = torch.load(path, weights_only=True)["prompt_learner"]
    assert state["ctx_pos"].shape == (1, 1, 12, 64) and state["token_suffix_neg"].shape == (1, 1, 64, 64)
    assert state["tokenized_prompts_pos"].shape == (1, 1, 77) and state["tokenized_prompts_pos"].dtype == torch.int32
    found, trained_on = anomalyclip.read(net, path)
    assert trained_on == "visa" and torch.equal(found(net), learner(net))


def test_official_files_carry_dead_weights_and_no_data_set(net, tmp_path):
    path = tmp_path / "epoch_15.pth"
    anomalyclip.write(anomalyclip.PromptLearner(net), path, "visa")
    state = torch.load(path, weights_only=True)["prompt_learner"]
    state |= {f"compound_prompt_projections.{i}.weight": torch.zeros(896, 768) for i in range(2)}
    torch.save({"prompt_learner": state}, path)
    assert anomalyclip.read(net, path)[1] == ""


def test_prompts_of_other_weights_are_refused(net, tmp_path):
    path = tmp_path / "prompts.pth"
    anomalyclip.write(anomalyclip.PromptLearner(backbones.load("demo", "random:1")), path, "visa")
    with pytest.raises(InputError, match="prefix.*other CLIP weights"):
        anomalyclip.read(net, path)


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_broken_checkpoints_are_refused_by_name(net, tmp_path, content):
    path = tmp_path / "prompts.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="prompts.pth"):
        anomalyclip.read(net, path)


def test_a_checkpoint_without_prompts_is_refused(net, tmp_path):
    torch.save({"weights": torch.zeros(2)}, tmp_path / "prompts.pth")
    with pytest.raises(InputError, match="no AnomalyCLIP prompt checkpoint"):
        anomalyclip.read(net, tmp_path / "prompts.pth")
