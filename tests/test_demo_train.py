"""The demo CLIP's training: what it may see, what it is asked, and that it goes on where it stopped."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch

from vlmad_lib import backbones
from vlmad_lib.demo import train
from vlmad_lib.demo.data import CATEGORIES, names

SMALL = train.Settings(scenes=3, text_steps=2, captions=8, pairs=2, full_share=0.5, steps=4, bf16=False)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return train.Pool(tmp_path_factory.mktemp("pool"), ["dice", "mosaic"], SMALL, workers=1)


def test_targets_are_never_seen(tmp_path, monkeypatch):
    """Neither their pictures nor the nouns of their names reach the model."""
    asked = []
    monkeypatch.setattr(train, "Pool", lambda folder, categories, *_: asked.extend(categories) or pytest.skip)
    with pytest.raises(AttributeError):
        train.train(tmp_path, SMALL, hold_out=False, progress=False)
    targets = names("target")
    assert asked == names("auxiliary") and not set(asked) & set(targets)
    nouns = {word for name in targets for word in CATEGORIES[name].class_name.split()}
    told = [(name, defect) for name in asked for defect in CATEGORIES[name].defects]
    stream = np.random.default_rng(0)
    spoken = {word.strip(".") for _ in range(20) for text in train.captions(stream, told)[0] for word in text.split()}
    assert not nouns & spoken
    assert set(train.HELD_OUT) < set(asked) and len({CATEGORIES[name].group for name in train.HELD_OUT}) == 3


def test_pairs_share_their_scene_and_cover_their_defect(pool, monkeypatch):
    same = np.concatenate([np.eye(3), np.full((3, 1), 128)], 1).astype(np.float32)
    monkeypatch.setattr(train, "_light", lambda stream: same)
    monkeypatch.setattr(pool, "graft", 0.0)
    crops = pool.draw(np.random.default_rng(1), 6, 15)
    assert crops.images.shape == (6, 2, 3, 240, 240) and crops.cover.shape == (6, 15, 15)
    assert (crops.pixels > 0).all() and {name for name, _ in crops.told} <= {"dice", "mosaic"}
    changed = (crops.images[:, 1] - crops.images[:, 0]).abs().mean(1)
    patches = torch.nn.functional.avg_pool2d(changed[:, None], 16)[:, 0]
    assert (patches[crops.cover > 0.25] > 0).all()
    far = torch.nn.functional.max_pool2d(crops.cover[:, None], 5, 1, 2)[:, 0] == 0  # far from it nothing differs
    assert far.any() and patches[far].max() < 1e-3


@pytest.mark.parametrize("k", [2, 7])
def test_half_the_crops_lie_over_the_defect(pool, k):
    crops = pool.draw(np.random.default_rng(0), 60, k)
    assert 0.4 < (crops.pixels > 0).float().mean() < 0.95
    assert crops.places.min() >= 0 and crops.places.max() <= 15 - k
    assert crops.images.min() > -0.01 and crops.images.max() < 255.01 and crops.cover.max() < 1.01


def test_a_graft_lays_the_defect_over_another_scene(pool, monkeypatch):
    monkeypatch.setattr(pool, "graft", 1.0)
    crops = pool.draw(np.random.default_rng(3), 20, 15)
    known = set(CATEGORIES["dice"].defects) ^ set(CATEGORIES["mosaic"].defects)
    crossed = [1 for name, defect in crops.told if defect in known and defect not in CATEGORIES[name].defects]
    assert crossed


def test_crops_are_embedded_as_winclip_embeds_windows():
    """A crop at a place of the grid gives what the window there gives in the whole picture."""
    model = train.build(0).eval()
    net = train.backbones.Backbone("demo", "", model, "")
    image = torch.rand(1, 3, 240, 240) * 255
    crop = torch.stack([image[0, :, 32:80, 64:112]] * 2)[None]
    crops = train.Crops(crop, torch.zeros(1, 3, 3), torch.zeros(1), np.array([[2, 4]]), [])
    with torch.no_grad():
        found = train.embed_crops(net, crops, 3)[-1][0, 0, 0]
        windows = train.winclip.encode(net, net.standardise(image / 255), ["window_3"])["window_3"]
    expected = torch.nn.functional.normalize(windows[0, 2 * 13 + 4], dim=-1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_captions_come_in_pairs_of_states():
    found, named = train.captions(np.random.default_rng(0), [("dice", "chip")] * 200)
    normal, anomalous = found[::2], found[1::2]
    assert [own for text, own in zip(normal, named, strict=True) if "dice" in text] == [True] * int(named.sum())
    bad = ("damage", "flaw", "defect", "chip")
    assert all(any(word in text for word in bad) for text in anomalous)
    assert not any("damaged" in text or "with chip" in text for text in normal)
    assert 0.3 < np.mean(["object" in text or "dice" in text for text in normal]) < 0.9  # other names are random words


def test_meanings_share_the_state_and_differ_in_the_name():
    told, named = [("dice", "chip"), ("mosaic", "chip"), ("dice", "chip")], np.array([True, True, False])
    found = train.meanings(told, named, 128, 0)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(6))
    difference = found[1::2] - found[::2]
    torch.testing.assert_close(difference[0], difference[1])
    assert difference[0].norm().item() == pytest.approx(2 * train.STATE)
    assert found[0] @ found[2] < found[0] @ found[4] < 1


def test_text_learns_and_unheard_words_are_blank():
    model = train.build(0)
    settings = train.Settings(text_steps=12, captions=16)
    assert train.learn_text(model, ["dice", "mosaic"], settings, progress=False) > 0.2
    table = model.token_embedding.weight
    ids = train.open_clip.tokenize(["damaged", "coin"])[:, 1]
    assert table[ids[0]].any() and not table[ids[1]].any()


def test_answer_by_hand():
    text = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])  # two pairs, the second turned round
    features = torch.tensor([1.0, 0.0]).expand(2, 2, 1, 2)
    found = train.answer(features, text)[..., 0] * train.TAU
    assert found.flatten().tolist() == pytest.approx([-1, -1, 1, 1])


def test_balanced_loss_by_hand():
    logits, amount = torch.tensor([[[0.0, 0.0], [0.0, 100.0]]]), torch.tensor([[0.5, 0.05]])
    found = train.balanced(logits, amount, 0.1)  # the last is neither: too little to call it defective
    assert found.item() == pytest.approx(np.log(2))
    found = train.balanced(torch.tensor([[[5.0], [0.0]]]), torch.tensor([[0.5]]), 0.1)
    assert found.item() == pytest.approx((5.0067 + 0.6931) / 2, abs=1e-3)


class Interrupted(Exception):
    pass


def test_interrupted_training_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "names", lambda subset: ["dice"])
    told = {f"{name} {kind}": 0.5 for name in train.HELD_OUT for kind in ("image", "pixel")}
    monkeypatch.setattr(train, "validate", lambda model, categories: told | {"image_auroc": 0.5, "pixel_auroc": 0.5})
    monkeypatch.setattr(train, "SAVE_SECONDS", -1)
    run = lambda folder: train.train(folder, SMALL, hold_out=False, workers=1, progress=False)  # noqa: E731
    whole = run(tmp_path / "whole")
    step = train._step

    def broken(*args):
        if args[-1] == 2:
            raise Interrupted
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(train, "_step", broken)
        with pytest.raises(Interrupted):
            run(tmp_path / "parts")
    assert torch.load(tmp_path / "parts/checkpoint.pt", weights_only=True)["step"] == 2
    resumed = run(tmp_path / "parts")
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-6, rtol=0)
    line = json.loads((tmp_path / "parts/curve.jsonl").read_text().splitlines()[-1])
    assert line["step"] == 4 and line["resumed_at"] == 2 and line["large patch"] > 0
    train.save(resumed, tmp_path / "weights.safetensors")
    found = train.backbones.load("demo", str(tmp_path / "weights.safetensors"))
    assert not found.is_random
    (tmp_path / "weights.curve.jsonl").write_text((tmp_path / "parts/curve.jsonl").read_text())
    text = train.card(tmp_path / "weights.safetensors", SMALL, hold_out=False)
    digest = hashlib.sha256((tmp_path / "weights.safetensors").read_bytes()).hexdigest()
    assert digest in text and "| macro mean | 0.500 | 0.500 |" in text


# ---------------------------------------------------------------- what is shipped


def test_the_shipped_weights_are_those_of_the_model_card():
    weights = backbones.DEMO_WEIGHTS
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in weights.with_suffix(".md").read_text()
    assert weights.stat().st_size < 25e6
    assert not backbones.load("demo").is_random


def test_the_shipped_weights_see():
    """Zero-shot WinCLIP on a fixed small sample of targets stays above a floor well below what it reaches."""
    found = train.validate(backbones.load("demo").model, ["cork", "coin", "leaf"], seed=11, good=8, bad=12)
    assert found["pixel_auroc"] > 0.65
