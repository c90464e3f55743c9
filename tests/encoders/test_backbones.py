"""One door to every backbone: files of both formats, seeds, fingerprints, and what is remembered of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from safetensors.torch import save_file

from vlmad_lib import InputError
from vlmad_lib.encoders import backbones


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
def test_weights_by_path(tiny_backbone, tmp_path, suffix, half):
    """The same weights have one fingerprint, whatever file and precision hold them (they fit fp16 exactly)."""
    path = tmp_path / f"weights{suffix}"
    state = {name: value.clone() for name, value in tiny_backbone.model.state_dict().items()}
    if half:
        state = {name: value if name == "logit_scale" else value.half() for name, value in state.items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    found = backbones.load_backbone(TINY["backbone"], str(path))
    assert found.fingerprint == tiny_backbone.fingerprint and not found.is_random
    torch.testing.assert_close(found.encode_text(["a cup"]), tiny_backbone.encode_text(["a cup"]))


def test_openai_archives_carry_three_counters_more(tiny_backbone, tmp_path):
    state = dict(tiny_backbone.model.state_dict())
    state |= {
        "input_resolution": torch.tensor(80),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
    }
    torch.save(state, tmp_path / "w.pt")
    assert backbones.load_backbone(TINY["backbone"], str(tmp_path / "w.pt")).fingerprint == tiny_backbone.fingerprint


def test_a_tag_is_found_in_the_weights_folder(tiny_backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(backbones, "WEIGHTS", tmp_path)
    (tmp_path / "ViT-B-16-plus-240-laion400m_e31.safetensors").touch()
    assert backbones.locate_weights("ViT-B-16-plus-240", "laion400m_e31").parent == tmp_path


def test_seeds_and_fingerprints():
    first, again, other = (backbones.load_backbone(TINY["backbone"], f"random:{seed}") for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint != other.fingerprint and len(first.fingerprint) == 64
    assert first.is_random and first.facts()["random"] and first.label == "tiny (random:0, fp32)"


def test_random_weights_of_a_separate_text_tower():
    """CustomTextCLIP names its text weights otherwise; the draw is the same."""
    import copy

    plain = backbones.load_backbone(TINY["backbone"], "random:3")
    custom = json.loads(Path(TINY["backbone"]).read_text()) | {"custom_text": True}
    model = backbones.open_clip.CustomTextCLIP(**{k: v for k, v in copy.deepcopy(custom).items() if k != "custom_text"})
    model.load_state_dict(backbones.random_state(model, 3))
    tokens = backbones.open_clip.tokenize(["a cup"])
    torch.testing.assert_close(model.eval().encode_text(tokens), plain.model.encode_text(tokens))


def test_normalise_by_hand(tiny_backbone):
    pixels = np.zeros((1, 4, 4, 3), np.uint8)
    pixels[..., 0] = 255
    found = tiny_backbone.normalise(pixels)
    assert found.shape == (1, 3, 4, 4) and found.dtype == torch.float32
    assert found[0, :, 0, 0].tolist() == pytest.approx(
        [(1 - 0.48145466) / 0.26862954, -0.4578275 / 0.26130258, -0.40821073 / 0.27577711]
    )


def test_nothing_is_trained_and_dropped(tiny_backbone):
    assert not any(parameter.requires_grad for parameter in tiny_backbone.model.parameters())
    assert not tiny_backbone.model.training


def test_what_has_no_weights_is_in_the_key(tmp_path):
    """QuickGELU and the number of heads change every feature and no tensor; a file's place and name change nothing."""
    config, keys = json.loads(Path(TINY["backbone"]).read_text()), []
    quick = config | {"quick_gelu": True}
    heads = config | {"vision_cfg": config["vision_cfg"] | {"head_width": 16}}
    for place, content in {"a/m": config, "b/other": config, "c/m": quick, "d/m": heads}.items():
        file = tmp_path / f"{place}.json"
        file.parent.mkdir()
        file.write_text(json.dumps(content))
        found = backbones.load_backbone(str(file), "random:0")
        keys.append(found.key)
        assert found.fingerprint == backbones.load_backbone(TINY["backbone"], "random:0").fingerprint
    assert keys[0] == keys[1] == backbones.load_backbone(TINY["backbone"], "random:0").key
    assert len(set(keys)) == 3


def test_pixels_are_standardised_as_the_weights_were_trained(tmp_path):
    """One tag of open_clip's own ViTs was trained with another mean and deviation."""
    half = [0.5, 0.5, 0.5]
    for weights in ("laion2b_s32b_b82k", "data/weights/ViT-L-14-laion2b_s32b_b82k.safetensors"):
        assert backbones._standard("ViT-L-14", weights) == (half, half)
    mean, std = backbones._standard("ViT-B-16-plus-240", "laion400m_e32")
    assert (mean, std) == backbones._standard("demo", "demo") and mean[0] == 0.48145466


def test_blocks_with_parts_of_their_own_are_refused(tmp_path):
    config = json.loads(Path(TINY["backbone"]).read_text())
    file = tmp_path / "own.json"
    file.write_text(json.dumps(config | {"vision_cfg": config["vision_cfg"] | {"scale_heads": True}}))
    with pytest.raises(InputError, match="own.json has attention blocks with parts of their own"):
        backbones.load_backbone(str(file), "random:0")
