"""AnomalyCLIP against what the official code computed on seeded random weights, and its ten easy mistakes.

The mistakes are those of the specification, section 0: each has a test that fails when it is made.
"""

from __future__ import annotations

import json

import parity
import pytest
import torch
import torch.nn.functional as F
from conftest import shared

from vlmad_lib import ROOT, InputError
from vlmad_lib.encoders import backbones, image_towers
from vlmad_lib.evaluation import metrics
from vlmad_lib.methods import anomalyclip
from vlmad_lib.methods.anomalyclip import arrays, encode, settings

ORACLE = ROOT / "tests" / "anomalyclip_small.json"


@pytest.fixture(scope="module")
def net():
    return backbones.load_backbone("demo", "random:0")


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 240, 240, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def small():
    """The oracles' small model with its picture, prompts and what comes of them."""
    model = parity.backbone(parity.SMALL, 0)
    picture, text = parity.view(model, 0, 518), parity.learner(model)(model).detach()
    found = encode(model, picture, ["class", "vv_6", "vv_last"])
    return model, picture, text, found


def grid_map(small, features, **overrides):
    return anomalyclip.score(features, small[2], settings("paper", overrides), 37)[1]


# ---------------------------------------------------------------- parity


def test_parity_with_the_official_code():
    compared = parity.compare(ORACLE)
    assert len(compared) > 40
    for name, found, tolerance in compared:
        assert found <= tolerance, name


def test_our_copy_of_the_oracle_is_the_original():
    own, original = json.loads(ORACLE.read_text()), json.loads(shared("golden/anomalyclip_small.json").read_text())
    assert all(own[key] == original[key] for key in own.keys() - {"_about"})


@pytest.mark.parametrize(
    ("args", "width", "seed"),
    [
        ({}, 128, 0),
        ({"args": {"config": "full", "seed": 3}}, 1024, 3),
        ({"args": {"cfg": "small", "seed": 2, "out": "x"}}, 128, 2),
        ({"args": ["--config", "full", "--seed", "5"]}, 1024, 5),
        ({"args": "full 7"}, 1024, 7),
        ({"args": ["--seed=4"]}, 128, 4),
    ],
)
def test_oracle_files_name_their_arguments(args, width, seed):
    config, found, _ = parity.arguments(args)
    assert (config["v_width"], found) == (width, seed)


def test_parity_notices_other_seeds(tmp_path):
    """The same figures claimed for another seed must fail: every draw depends on it."""
    oracle = json.loads(ORACLE.read_text()) | {"args": {"config": "small", "seed": 1}}
    (tmp_path / "wrong.json").write_text(json.dumps(oracle))
    found = {name: value > tolerance for name, value, tolerance in parity.compare(tmp_path / "wrong.json")}
    assert found["global_raw"] and found["text_features"] and found["map_last"] and found["grad.ctx_pos"]


# ---------------------------------------------------------------- the ten easy mistakes


def test_mistake_1_class_token_has_no_ln_post(net, images):
    visual = net.visual
    with torch.inference_mode():
        tokens = visual.transformer(visual._embeds(images))
    found = encode(net, images, ["class"])["class"]
    torch.testing.assert_close(found, tokens[:, 0] @ visual.proj, atol=1e-5, rtol=0)
    assert (found - visual.ln_post(tokens[:, 0]) @ visual.proj).abs().max() > 0.01


def test_mistake_2_only_the_last_layer_makes_the_map(net, images, small):
    assert arrays(settings()) == ["class", "vv_last"]
    found = encode(net, images[:1], ["vv_last", "vv_6", "vv_3"])
    assert torch.equal(found["vv_last"], found["vv_6"])
    assert not torch.allclose(found["vv_3"], found["vv_6"], atol=0.01)
    names = small[3] | {"vv_24": small[3]["vv_last"]}
    both = grid_map(small, names, layers=[6, 24])
    torch.testing.assert_close(both, grid_map(small, names, layers=[6]) + grid_map(small, names))
    assert (both - grid_map(small, names)).max() > 0.1


def by_hand(model: backbones.Backbone, images: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Class token (N, width) and local path (N, P, D), written out plainly (specification, section 2.1).

    Attention is explicit, a head a time. ``first`` is the first refined block, from 1.
    """
    visual, width = model.visual, model.visual.proj.shape[0]
    grid, old = images.shape[-1] // visual.patch_size[0], visual.grid_size[0]
    x = F.conv2d(images, visual.conv1.weight, stride=visual.patch_size).flatten(2).mT
    table = visual.positional_embedding
    square = table[1:].T.reshape(1, width, old, old)
    where = ((torch.arange(grid) + 0.5) * old / grid - 0.5).clamp(0, old - 1)  # half-pixel centres
    low = where.floor().long()
    part, high = where - low, (low + 1).clamp(max=old - 1)
    square = square[:, :, low] * (1 - part)[:, None] + square[:, :, high] * part[:, None]
    square = square[..., low] * (1 - part) + square[..., high] * part
    x = torch.cat([(visual.class_embedding + table[0]).expand(len(x), 1, -1), x + square.flatten(2).mT], 1)
    o = n = F.layer_norm(x, (width,), visual.ln_pre.weight, visual.ln_pre.bias)
    for number, block in enumerate(visual.transformer.resblocks, 1):
        attn, y = block.attn, F.layer_norm(o, (width,), block.ln_1.weight, block.ln_1.bias)
        q, k, v = (y @ attn.in_proj_weight.T + attn.in_proj_bias).split(width, -1)
        plain, local = torch.empty_like(v), torch.empty_like(v)
        for head in range(width // 64):
            at = slice(64 * head, 64 * head + 64)
            plain[..., at] = (q[..., at] @ k[..., at].mT / 8).softmax(-1) @ v[..., at]
            local[..., at] = (v[..., at] @ v[..., at].mT / 8).softmax(-1) @ v[..., at]
        out = lambda value: value @ attn.out_proj.weight.T + attn.out_proj.bias  # noqa: B023, E731
        if number >= first:
            n = n + out(local)
        u = o + out(plain)
        hidden = block.mlp.c_fc(F.layer_norm(u, (width,), block.ln_2.weight, block.ln_2.bias))
        gelu = hidden * torch.sigmoid(1.702 * hidden) if "Quick" in type(block.mlp.gelu).__name__ else F.gelu(hidden)
        o = u + block.mlp.c_proj(gelu)
        n = n if number >= first else o
    local = F.layer_norm(n[:, 1:], (width,), visual.ln_post.weight, visual.ln_post.bias) @ visual.proj
    return o[:, 0], local


def test_mistake_3_local_path_has_no_mlp_and_reads_the_original_path(net, images):
    with torch.inference_mode():
        whole, local = by_hand(net, images, first=2)
    found = encode(net, images, ["class", "vv_last"])
    torch.testing.assert_close(found["class"], whole @ net.visual.proj, atol=1e-4, rtol=0)
    torch.testing.assert_close(found["vv_last"], local, atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_other_seeds_against_a_plain_restatement(seed):
    """In double precision, so that what is left is this code's own rounding."""
    model, exact = (parity.backbone(parity.SMALL, seed) for _ in range(2))
    picture, learner = parity.view(model, seed, 518), parity.learner(model, seed)
    with torch.inference_mode():
        text = learner(model)
        exact.model.double()
        whole, local = by_hand(exact, picture.double(), first=6)
        expected_text = text_by_hand(learner.double(), exact)
    torch.testing.assert_close(
        F.normalize(text.double(), dim=-1), F.normalize(expected_text, dim=-1), atol=1e-6, rtol=0
    )
    found = {name: value.double() for name, value in encode(model, picture, ["class", "vv_last"]).items()}
    expected = {"class": whole @ exact.visual.proj, "vv_last": local}
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    pairs = ((found, text), (expected, expected_text))
    torch.testing.assert_close(*(anomalyclip.score(*pair, settings(), 37) for pair in pairs), atol=2e-6, rtol=0)


@pytest.mark.parametrize(("layers", "first"), [(24, 6), (12, 3), (6, 2), (1, 1)])
def test_mistake_4_the_same_share_of_blocks_is_refined(layers, first):
    assert anomalyclip.refined_from(layers) == first


def test_mistake_4_twenty_blocks_would_show(small, monkeypatch):
    monkeypatch.setattr(anomalyclip, "refined_from", lambda layers: 5)
    wrong = encode(small[0], small[1], ["class", "vv_last"])
    assert (grid_map(small, wrong) - grid_map(small, small[3])).abs().max() > 0.1


def test_mistake_5_positions_are_resized_bilinearly(net, small, monkeypatch):
    found = image_towers.resize_positions(net.visual, (15, 15))
    torch.testing.assert_close(found, net.visual.positional_embedding)
    larger = image_towers.resize_positions(net.visual, (30, 30))
    assert torch.equal(larger[0], found[0]) and len(larger) == 901
    torch.testing.assert_close(larger[1], found[1])  # half-pixel centres: the corner is beyond the first centre
    expected = 0.75 * (0.75 * found[1] + 0.25 * found[2]) + 0.25 * (0.75 * found[16] + 0.25 * found[17])
    torch.testing.assert_close(larger[1 + 31], expected)

    def bicubic(visual, grid, _):
        table = visual.positional_embedding
        patches = table[1:].unflatten(0, visual.grid_size).permute(2, 0, 1)[None]
        resized = F.interpolate(patches, tuple(grid), mode="bicubic", antialias=True, align_corners=False)
        return torch.cat([table[:1], resized[0].flatten(1).T])

    monkeypatch.setattr(anomalyclip, "resize_positions", bicubic)
    wrong = encode(small[0], small[1], ["class", "vv_last"])
    assert (grid_map(small, wrong) - grid_map(small, small[3])).abs().max() > 0.02


def text_by_hand(learner, model, rounded: bool = True) -> torch.Tensor:
    """Both prompts through the text tower, written out (specification, section 3.2)."""
    clip = model.model
    x = torch.cat([learner.prefix, learner.context, learner.suffix], 1) + clip.positional_embedding
    for number, block in enumerate(clip.transformer.resblocks):
        if 1 <= number <= len(learner.deep):
            row = learner.deep[number - 1]
            x[:, 1:5] = row.half().float() if rounded else row
        x = block(x, attn_mask=clip.attn_mask)
    return torch.stack([clip.ln_final(x)[i, end] @ clip.text_projection for i, end in enumerate((15, 16))])


@torch.no_grad()
def test_mistake_6_deep_prompts_are_rounded_to_half(small):
    learner = parity.learner(small[0])
    normal = lambda text: F.normalize(text, dim=-1)  # noqa: E731
    found = normal(learner(small[0]))
    torch.testing.assert_close(found, normal(text_by_hand(learner, small[0])), atol=1e-6, rtol=0)
    assert (found - normal(text_by_hand(learner, small[0], rounded=False))).abs().max() > 1e-5
    for row in learner.deep:
        row.copy_(row.half().float())
    assert torch.equal(found, normal(learner(small[0])))  # only what fp16 holds was ever used


@torch.no_grad()
def test_mistake_7_deep_prompts_overwrite_four_positions(net):
    learner = anomalyclip.PromptLearner(net)
    before = learner(net)
    torch.testing.assert_close(before, text_by_hand(learner, net), atol=1e-5, rtol=0)
    learner.deep[0].add_(0.5)
    assert not torch.allclose(before, learner(net), atol=1e-3)
    off = learner(net, deep=False)
    learner.deep[0].add_(0.5)
    assert torch.equal(off, learner(net, deep=False))


def test_mistake_8_score_never_looks_at_the_map():
    text = F.normalize(torch.randn(2, 8, generator=torch.Generator().manual_seed(1)), dim=-1)
    features = {"class": text[1:] * 3, "vv_1": text[None, [0, 1, 0, 0]], "vv_2": text[None, [0, 1, 0, 0]]}
    chosen = settings("paper", {"layers": [1, 2]})
    whole, maps = anomalyclip.score(features, text, chosen, 2)
    alike = float(text[0] @ text[1])
    sure = torch.sigmoid(torch.tensor((1 - alike) / 0.07))
    assert whole.item() == pytest.approx(sure.item())
    expected = 2 * torch.stack([1 - sure, sure, 1 - sure, 1 - sure]).view(1, 2, 2)  # summed over two layers
    torch.testing.assert_close(maps, expected)
    assert anomalyclip.score(features | {"vv_2": text[None, [0, 0, 0, 0]]}, text, chosen, 2)[0] == whole


def test_mistake_9_softmax_comes_before_upsampling(small):
    """Probabilities are upsampled, not cosines; the temperature is 0.07, CLIP's own scale plays no part."""
    chance = grid_map(small, small[3])
    cosines = F.normalize(small[3]["vv_last"], dim=-1) @ F.normalize(small[2], dim=-1).T
    torch.testing.assert_close((cosines / 0.07).softmax(-1)[..., 1].view(1, 37, 37), chance, atol=1e-5, rtol=0)
    large = lambda one: F.interpolate(one[:, None], (518, 518), mode="bilinear", align_corners=False)  # noqa: E731
    late = torch.sigmoid(large((cosines[..., 1] - cosines[..., 0]).view(1, 37, 37) / 0.07))
    found = metrics.framed_map(chance.numpy(), 518, 518, "squash", 518)
    torch.testing.assert_close(torch.from_numpy(found)[None, None], large(chance))
    assert (late - large(chance)).abs().max() > 1e-3
    with torch.no_grad():
        scale = small[0].model.logit_scale
        before = scale.clone()
        scale.fill_(0.0)
        assert torch.equal(encode(small[0], small[1], ["class"])["class"], small[3]["class"])
        assert torch.equal(parity.learner(small[0])(small[0]), small[2])
        scale.copy_(before)


@pytest.mark.parametrize(("seed", "official", "exact"), [(0, 0.51426, 0.51792), (1, 0.62579, 0.63295)])
def test_mistake_10_the_official_aupro_is_biased_down(seed, official, exact):
    _, _, masks, maps = parity.metric_case(seed)
    found = metrics.pixel_metrics(zip(maps, masks, strict=True))
    assert found["aupro_200"] == pytest.approx(official, abs=1e-5)
    assert found["aupro"] == pytest.approx(exact, abs=1e-3) and found["aupro"] > found["aupro_200"]


# ---------------------------------------------------------------- the full shape


@pytest.mark.slow
def test_full_shape_against_a_plain_restatement():
    """ViT-L/14 at 518 px, 1369 patches: gigabytes and minutes."""
    model = parity.backbone(parity.CONFIGS["full"], 0)
    assert anomalyclip.side(settings(), model) == 518 and len(model.visual.transformer.resblocks) == 24
    picture = parity.view(model, 0, 518)
    found = encode(model, picture, ["class", "vv_last"])
    with torch.inference_mode():
        whole, local = by_hand(model, picture, first=6)
    projected = whole @ model.visual.proj
    torch.testing.assert_close(found["class"], projected, atol=2e-5, rtol=0)
    torch.testing.assert_close(found["vv_last"], local, atol=2e-5, rtol=0)
    learner = parity.learner(model)
    with torch.no_grad():
        text, expected = (F.normalize(one, dim=-1) for one in (learner(model), text_by_hand(learner, model)))
    torch.testing.assert_close(text, expected, atol=1e-6, rtol=0)
    found = anomalyclip.score(found, text, settings(), 37)
    again = anomalyclip.score({"class": projected, "vv_last": local}, expected, settings(), 37)
    torch.testing.assert_close(found, again, atol=2e-6, rtol=0)
    # The specification measured 5e-3 for a class token that had been through ln_post.
    normed = {"class": model.visual.ln_post(whole) @ model.visual.proj, "vv_last": local}
    moved = (anomalyclip.score(normed, text, settings(), 37)[0] - found[0]).abs().item()
    assert moved == pytest.approx(5e-3, rel=0.5)


# ---------------------------------------------------------------- variants


@pytest.mark.parametrize(("model", "size"), [("demo", 368), ("ViT-L-14-336-quickgelu", 518), ("ViT-B-16", 352)])
def test_input_size_follows_one_rule(model, size, net):
    shape = backbones.read_config(model)["vision_cfg"]
    patch = shape["patch_size"]
    fake = type("Backbone", (), {"patch_size": patch, "grid": shape["image_size"] // patch})
    assert anomalyclip.side(settings(), fake) == size


def test_attentions_differ_and_none_is_the_plain_path(net, images):
    kinds = ["vv", "qq", "kk", "none", "diagonal_boost"]
    found = encode(net, images[:1], [f"{kind}_last" for kind in kinds])
    for i, one in enumerate(kinds):
        for other in kinds[:i]:
            assert not torch.allclose(found[f"{one}_last"], found[f"{other}_last"], atol=0.01), (one, other)
    alone = encode(net, images[:1], ["qq_last"])["qq_last"]
    torch.testing.assert_close(alone, found["qq_last"], atol=1e-5, rtol=0)
    with torch.inference_mode():
        tokens = net.visual.transformer(net.visual._embeds(images[:1]))
        plain = net.visual.ln_post(tokens[:, 1:]) @ net.visual.proj
    torch.testing.assert_close(found["none_last"], plain, atol=1e-5, rtol=0)


def test_diagonal_boost_is_plain_attention_with_a_factor(net, images, monkeypatch):
    monkeypatch.setattr(anomalyclip, "BOOST", 1.0)
    monkeypatch.setitem(anomalyclip.ATTENTION, "vv", (0, 1))  # what a factor of one must give
    found = encode(net, images[:1], ["diagonal_boost_last", "vv_last"])
    torch.testing.assert_close(found["diagonal_boost_last"], found["vv_last"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_prompts_can_be_hand_written_or_name_the_class(net, tmp_path):
    row = type("Row", (), {"class_name": "steel bracket"})
    assert anomalyclip.wording(settings("paper", {"prompts": "object"}), row) == ["object", "damaged object"]
    broken = settings("paper", {"prompts": "object", "word": "broken"})
    assert anomalyclip.wording(broken, row) == ["object", "broken object"]
    assert anomalyclip.wording(settings("paper", {"prompts": "class"}), row) == ["steel bracket", True]
    assert anomalyclip.wording(settings("paper", {"deep": False}), row) == ["object", False]
    learner, path = anomalyclip.PromptLearner(net), tmp_path / "prompts.pth"
    anomalyclip.write(learner, path, "visa")
    torch.testing.assert_close(anomalyclip.text(net, ["object", True], path), learner(net))
    assert not torch.allclose(learner(net, "steel bracket"), learner(net), atol=1e-3)
    torch.testing.assert_close(
        anomalyclip.text(net, ["object", "damaged object"], None), net.encode_text(["object", "damaged object"])
    )


def test_wrong_settings_are_refused(net, images):
    with pytest.raises(InputError, match="blocks 1 to 6"):
        encode(net, images, ["vv_7"])
    with pytest.raises(InputError, match="'vq'.*vv, qq, kk"):
        encode(net, images, ["vq_last"])
    with pytest.raises(InputError, match="no preset 'accurate'"):
        settings("accurate")
    with pytest.raises(InputError, match="'attention'"):
        settings("paper", {"attention": "qk"})
    with pytest.raises(InputError, match="'word' belongs to hand-written prompts"):
        settings("paper", {"word": "broken"})
    with pytest.raises(InputError, match="250 is no multiple"):
        anomalyclip.side(settings("paper", {"image_size": 250}), net)


def test_map_is_smoothed_in_proportion_to_the_frame():
    maps = torch.zeros(1, 37, 37)
    maps[0, 18, 18] = 1
    found = parity.official_map(maps)
    assert found.shape == (1, 518, 518) and found.argmax() // 518 in (258, 259)
    assert found.sum().item() == pytest.approx(14 * 14, rel=1e-3) and found.max() < 0.8
    half = metrics.framed_map(maps.numpy(), 518, 518, "squash", 259, "4.0")
    assert half.sum() == pytest.approx(7 * 7, rel=1e-3)
    assert half.max() == pytest.approx(float(found.max()), rel=0.02)
    plain = metrics.framed_map(maps.numpy(), 518, 518, "squash", 259, "")
    assert plain.max() > 0.9


# ---------------------------------------------------------------- the text side


def test_prompts_are_the_official_tokens(net):
    learner = anomalyclip.PromptLearner(net)
    normal, anomalous = learner.tokens.tolist()
    assert normal[:16] == [49406, *[343] * 12, 14115, 269, 49407] and not any(normal[16:])
    assert anomalous[:17] == [49406, *[343] * 12, 13568, 14115, 269, 49407] and not any(anomalous[17:])
    assert learner.context.shape == (2, 12, 64) and len(learner.deep) == 2  # three text blocks, the first takes none


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
    torch.save({"prompt_learner": state}, path)
    assert anomalyclip.read(net, path)[1] == ""
    bare = {key: value for key, value in state.items() if "projections" not in key}
    torch.save({"prompt_learner": bare}, path)
    assert anomalyclip.read(net, path)[1] == ""


def test_the_official_code_could_load_our_files(tmp_path):
    """Strictly, into a module with the names and shapes of its constructor: 32 tensors of them learned or dead."""
    model = parity.backbone(parity.SMALL, 0)
    path = tmp_path / "ours.pth"
    anomalyclip.write(anomalyclip.PromptLearner(model), path, "visa")
    official, width = torch.nn.Module(), 128
    for sign in ("pos", "neg"):
        official.register_parameter(f"ctx_{sign}", torch.nn.Parameter(torch.zeros(1, 1, 12, width)))
        official.register_buffer(f"token_prefix_{sign}", torch.zeros(1, 1, 1, width))
        official.register_buffer(f"token_suffix_{sign}", torch.zeros(1, 1, 64, width))
        official.register_buffer(f"tokenized_prompts_{sign}", torch.zeros(1, 1, 77, dtype=torch.int32))
    official.compound_prompts_text = torch.nn.ParameterList(torch.zeros(4, width) for _ in range(8))
    official.compound_prompt_projections = torch.nn.ModuleList(torch.nn.Linear(width, 896) for _ in range(8))
    state = torch.load(path, weights_only=True)["prompt_learner"]
    assert len(state) == 32
    official.load_state_dict(state, strict=True)
    assert path.stat().st_size < 300_000  # the dead projections take no room


def test_prompts_of_other_weights_are_refused(net, tmp_path):
    path = tmp_path / "prompts.pth"
    anomalyclip.write(anomalyclip.PromptLearner(backbones.load_backbone("demo", "random:1")), path, "visa")
    with pytest.raises(InputError, match="prefix.*other CLIP weights"):
        anomalyclip.read(net, path)


def test_prompts_of_other_shapes_are_refused(net, tmp_path):
    path = tmp_path / "prompts.pth"
    for change in (
        {"compound_prompts_text.0": torch.zeros(5, 64)},
        {"compound_prompts_text.7": torch.zeros(4, 64)},
        {"ctx_pos": torch.full((1, 1, 12, 64), float("nan"))},
        {"ctx_pos": torch.zeros(1, 12, 64)},
        {"tokenized_prompts_pos": torch.zeros(1, 1, 77, dtype=torch.int32)},
        {"token_prefix_pos": 3},
        {"compound_prompts_text.0": "text"},
    ):
        anomalyclip.write(anomalyclip.PromptLearner(net), path, "visa")
        found = torch.load(path, weights_only=True)
        found["prompt_learner"] |= change
        torch.save(found, path)
        with pytest.raises(InputError, match="prompts.pth"):
            anomalyclip.read(net, path)


def test_truncated_checkpoints_are_refused(net, tmp_path):
    path = tmp_path / "prompts.pth"
    anomalyclip.write(anomalyclip.PromptLearner(net), path, "visa")
    content = path.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(InputError, match="prompts.pth.*no AnomalyCLIP prompt checkpoint"):
            anomalyclip.read(net, path)


@pytest.mark.parametrize("content", [b"", b"no archive", b"broken", None])
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


# ---------------------------------------------------------------- what a notebook looks at


def test_attention_of_a_patch_by_hand(net, images):
    """The last block's weights of one patch; V-V attends most to the patch itself where values differ."""
    visual = net.visual
    with torch.inference_mode():
        tokens = visual._embeds(images[:1])
        *before, last = visual.transformer.resblocks
        for block in before:
            tokens = block(tokens)
        _, weights = last.attn(*[last.ln_1(tokens)] * 3, need_weights=True)
    found = anomalyclip.attention(net, images[:1], "none", (3, 5))
    torch.testing.assert_close(found, weights[:, 1 + 3 * 15 + 5, 1:].unflatten(1, (15, 15)), atol=1e-6, rtol=1e-4)
    alike = anomalyclip.attention(net, images[:1], "vv", (3, 5))
    assert alike.argmax() == 3 * 15 + 5 and alike.sum() < 1 and not torch.allclose(alike, found)
