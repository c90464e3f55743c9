"""The demo CLIP's training: what it may see, what it is asked, and that it goes on where it stopped."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from vlmad_lib.demo import train
from vlmad_lib.demo.data import CATEGORIES, names

SMALL = train.Settings(scenes=3, pairs=2, windows=2, kept_tokens=20, full_share=0.5, steps=4)


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


def test_pairs_share_their_scene_and_cover_their_defect(pool):
    images, cover, told = pool.draw(np.random.default_rng(1), 4)
    assert images.shape == (8, 240, 240, 3) and images.dtype == np.uint8 and cover.shape == (8, 15, 15)
    assert not cover[::2].any() and (cover[1::2].reshape(4, -1).max(1) > 0).all()
    for normal, defective, share in zip(images[::2], images[1::2], cover[1::2], strict=True):
        changed = np.abs(normal.astype(int) - defective).mean(-1).reshape(15, 16, 15, 16).mean((1, 3))
        assert changed[share > 0.25].min(initial=9) > 0
        untouched = np.kron(share, np.ones((3, 3)))  # far from the defect nothing differs
        far = ~torch.nn.functional.max_pool2d(torch.tensor(share)[None, None].float(), 5, 1, 2)[0, 0].bool().numpy()
        assert untouched.any() and changed[far].max(initial=0) == 0
    assert {name for name, _ in told} <= {"dice", "mosaic"}


def test_captions_come_in_pairs_of_states():
    found, named = train.captions(np.random.default_rng(0), [("dice", "chip")] * 200)
    normal, anomalous = found[::2], found[1::2]
    assert [own for text, own in zip(normal, named, strict=True) if "dice" in text] == [True] * int(named.sum())
    bad = ("damage", "flaw", "defect", "chip")
    assert all(any(word in text for word in bad) for text in anomalous)
    assert not any("damaged" in text or "with chip" in text for text in normal)
    assert 0.3 < np.mean(["object" in text or "dice" in text for text in normal]) < 0.9  # other names are random words


def test_answer_by_hand():
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])  # two pairs, the second turned round
    features = torch.tensor([[1.0, 0.0]] * 4)
    found = train.answer(features[:, None], text)[:, 0] * train.TAU
    assert found.tolist() == pytest.approx([-1, -1, 1, 1])


def test_balanced_loss_by_hand():
    logits = torch.tensor([0.0, 0.0, 0.0, 100.0])
    share = torch.tensor([0.0, 0.0, 1.0, 0.1])  # the last is neither
    assert train.balanced(logits, share).item() == pytest.approx(np.log(2))
    assert train.balanced(torch.tensor([5.0, 0.0]), torch.tensor([0.0, 0.5])).item() == pytest.approx(
        (5.0067 + 0.6931) / 2, abs=1e-3
    )


@pytest.mark.parametrize("size", [1, 3, 7])
def test_half_the_windows_lie_over_the_defect(size):
    cover = np.zeros((4, 15, 15))
    cover[1, 4, 5] = cover[3, 14, 14] = 1
    members = train.winclip.window_tokens(15, size).numpy()
    chosen = train.choose_windows(np.random.default_rng(0), cover, size, 6)
    for row, token in ((0, 65), (1, 65), (2, 224), (3, 224)):  # the normal picture's windows lie in the same place
        assert sum(token in members[number] for number in chosen[row, :3]) == 3


class Interrupted(Exception):
    pass


def test_interrupted_training_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "names", lambda subset: ["dice"])
    monkeypatch.setattr(train, "validate", lambda model, categories: {"image_auroc": 0.5})
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
    assert line["step"] == 4 and line["resumed_at"] == 2 and line["patch"] > 0
    train.save(resumed, tmp_path / "weights.safetensors")
    found = train.backbones.load("demo", str(tmp_path / "weights.safetensors"))
    assert not found.is_random and (tmp_path / "weights.safetensors").stat().st_size < 25e6
