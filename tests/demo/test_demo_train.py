"""The demo CLIP's training: what it may see, what it is asked, and that it goes on where it stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch

from vlmad_lib import config
from vlmad_lib.analysis import prompt_transfer
from vlmad_lib.demo.data import CATEGORIES, names
from vlmad_lib.demo.training import captions, card, train
from vlmad_lib.encoders import backbones

SMALL = train.Settings(
    scenes=3, text_steps=2, captions=8, tokens=600, windows=8, crop_steps=2, steps=4, warm=2, bf16=False
)


@pytest.fixture
def one_thread():
    """Sums in the same order, so that two runs agree to the last digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return train.Pool(tmp_path_factory.mktemp("pool"), ["dice", "mosaic"], SMALL, workers=1)


def test_targets_are_never_seen(tmp_path, monkeypatch):
    """Neither their pictures nor the nouns of their names reach the model."""
    asked = []

    def stop(folder, categories, *_):
        asked.extend(categories)
        raise Interrupted

    monkeypatch.setattr(train, "Pool", stop)
    with pytest.raises(Interrupted):
        train.train(tmp_path, SMALL, hold_out=False, progress=False)
    targets = names("target")
    assert asked == names("auxiliary") and not set(asked) & set(targets)
    nouns = {word for name in targets for word in CATEGORIES[name].class_name.split()}
    told = [(name, defect) for name in asked for defect in CATEGORIES[name].defects]
    stream = np.random.default_rng(0)
    spoken = {
        word.strip(".") for _ in range(20) for text in captions.captions(stream, told)[0] for word in text.split()
    }
    assert not nouns & spoken
    assert set(card.HELD_OUT) < set(asked) and len({CATEGORIES[name].group for name in card.HELD_OUT}) == 3


@pytest.fixture
def draw(pool, monkeypatch):
    """Draws crops with some settings of the pool changed, under an unchanged light."""
    same = np.concatenate([np.eye(3), np.full((3, 1), 128)], 1).astype(np.float32)
    monkeypatch.setattr(train, "_light", lambda stream: same)

    def drawn(seed: int, count: int, k: int, **changes) -> train.Crops:
        monkeypatch.setattr(pool, "settings", dataclasses.replace(SMALL, **changes))
        return pool.draw(np.random.default_rng(seed), count, k)

    return drawn


def test_pairs_of_one_scene_differ_in_their_defect_only(draw):
    crops = draw(1, 6, 15, graft=0, same_scene=1)
    assert crops.images.shape == (6, 2, 3, 240, 240) and crops.cover.shape == (6, 15, 15)
    assert (crops.pixels > 0).sum() >= 4 and crops.alike.all()
    changed = (crops.images[:, 1] - crops.images[:, 0]).abs().mean(1)
    patches = torch.nn.functional.avg_pool2d(changed[:, None], 16)[:, 0]
    assert (patches[crops.cover > 0.25] > 0).all()
    far = torch.nn.functional.max_pool2d(crops.cover[:, None], 5, 1, 2)[:, 0] == 0  # far from it nothing differs
    assert far.any() and patches[far].max() < 1e-5


def test_other_scenes_are_references_only_where_they_show_the_same_thing(draw):
    whole, part = (draw(2, 12, k, graft=0, same_scene=0) for k in (15, 5))
    same = (whole.images[:, 0] - whole.images[:, 1]).abs().mean((1, 2, 3)) < 0.02
    assert whole.alike.all() and same.sum() < 6
    assert part.alike.sum() < 8  # a part of another scene may show another part; by chance it is the same scene


@pytest.mark.parametrize("k", [4, 7])
def test_half_the_crops_lie_over_the_defect(draw, k):
    crops = draw(0, 60, k)
    assert 0.4 < (crops.pixels > 0).float().mean() < 0.95
    assert crops.places.min() >= 0 and crops.places.max() <= 15 - k
    assert crops.images.min() > -0.01 and crops.images.max() < 1.01 and crops.cover.max() < 1.01


def test_a_graft_lays_the_defect_over_another_scene(draw):
    own, grafted = (draw(3, 20, 15, graft=graft, same_scene=1) for graft in (0, 1))
    changed = (grafted.images[:, 1] - grafted.images[:, 0]).abs().mean(1)
    assert changed[grafted.cover.repeat_interleave(16, 1).repeat_interleave(16, 2) > 0.5].mean() > 0.01
    assert len(set(grafted.category.tolist())) == 2 and not torch.equal(own.images, grafted.images)


def test_a_batch_is_keyed_by_its_step_and_half(pool):
    first, again, other = pool.batch(0, 0), pool.batch(0, 0), pool.batch(0, 1)
    assert torch.equal(first.images, again.images)
    assert first.images.shape == other.images.shape and not torch.equal(first.images, other.images)
    assert pool.batch(SMALL.crop_steps, 0).cover.shape[1:] == (15, 15)


def crops_of(images: torch.Tensor, cover: torch.Tensor, place: tuple[int, int] = (0, 0)) -> train.Crops:
    count = len(images)
    zeros = torch.zeros(count, dtype=torch.long)
    return train.Crops(images, cover, torch.tensor([place] * count), zeros, zeros, zeros == 0)


def test_crops_are_embedded_as_winclip_embeds_windows():
    """A crop at a place of the grid gives what the window there gives in the whole picture."""
    model = train.build(0).eval()
    net = train.backbones.Backbone("demo", "", model, "")
    image = torch.rand(1, 3, 240, 240)
    crop = torch.stack([image[0, :, 32:80, 64:112]] * 2)[None]
    with torch.no_grad():
        tokens = train.embed_crops(net, crops_of(crop, torch.zeros(1, 3, 3), (2, 4)))
        found = train.project(model.visual, train.layers(net, tokens)[0][-1])[0, 0]
        windows = train.winclip.encode(net, net.standardise(image), ["window_3"])["window_3"]
    expected = torch.nn.functional.normalize(windows[0, 2 * 13 + 4], dim=-1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_aside_path_is_that_of_anomalyclip():
    model = train.build(0).eval()
    net = train.backbones.Backbone("demo", "", model, "")
    images = torch.rand(1, 2, 3, 240, 240)
    with torch.no_grad():
        tokens = train.embed_crops(net, crops_of(images, torch.zeros(1, 15, 15)))
        found = train.project(model.visual, train.layers(net, tokens, local=True)[1][:, 1:])
        expected = train.anomalyclip.encode(net, net.standardise(images[0, 1:]), ["vv_last"])["vv_last"]
    torch.testing.assert_close(found, torch.nn.functional.normalize(expected, dim=-1), atol=1e-5, rtol=0)


def test_windows_are_picked_from_both_sides_with_their_defective_pixels():
    cover = torch.zeros(2, 5, 5)
    cover[1, 4, 4] = 0.5
    crops = crops_of(torch.zeros(2, 2, 3, 80, 80), cover)
    picture, members, pixels = train.pick_windows(np.random.default_rng(0), crops, 2, 40)
    assert picture.tolist()[:20] == [3] * 20 and members[:20].tolist() == [[18, 19, 23, 24]] * 20
    assert pixels[:20].tolist() == [128.0] * 20 and not pixels[20:].any() and len(pixels) == 40
    assert set(picture[20:].tolist()) == {0, 1, 2, 3}


def test_nearness_by_hand():
    clean = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    other = torch.tensor([[0.0, 3.0], [-1.0, 0.0]])
    found = train.nearness(torch.stack([clean, other])[None])[0]
    expected = [(0 - train.NEAR[0]) / train.NEAR[1], (0.5 - train.NEAR[0]) / train.NEAR[1]]
    assert found.tolist() == pytest.approx(expected)


def test_captions_come_in_pairs_of_states():
    found, named = captions.captions(np.random.default_rng(0), [("dice", "chip")] * 200)
    normal, anomalous = found[::2], found[1::2]
    assert [own for text, own in zip(normal, named, strict=True) if "dice" in text] == [True] * int(named.sum())
    bad = ("damage", "flaw", "defect", "chip")
    assert all(any(word in text for word in bad) for text in anomalous)
    assert not any("damaged" in text or "with chip" in text for text in normal)
    assert 0.3 < np.mean(["object" in text or "dice" in text for text in normal]) < 0.9  # other names are random words


def test_meanings_share_the_state_and_differ_in_the_name():
    told, named = [("dice", "chip"), ("mosaic", "chip"), ("dice", "chip")], np.array([True, True, False])
    found = captions.meanings(told, named, 128, 0)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(6))
    difference = found[1::2] - found[::2]
    torch.testing.assert_close(difference[0], difference[1])
    assert difference[0].norm().item() == pytest.approx(2 * captions.STATE)
    assert found[0] @ found[2] < found[0] @ found[4] < 1


def test_text_learns_and_unheard_words_are_blank():
    model = train.build(0)
    settings = train.Settings(text_steps=12, captions=16)
    assert captions.learn_text(model, ["dice", "mosaic"], settings, progress=False) > 0.2
    table = model.token_embedding.weight
    ids = captions.open_clip.tokenize(["damaged", "coin"])[:, 1]
    assert table[ids[0]].any() and not table[ids[1]].any()


def test_answer_by_hand():
    text = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])  # two pairs, the second turned round
    features = torch.tensor([1.0, 0.0]).expand(2, 2, 1, 2)
    found = train.answer(features, text)[..., 0] * train.TAU
    assert found.flatten().tolist() == pytest.approx([-1, -1, 1, 1])


def test_balanced_loss_by_hand():
    logits, amount = torch.tensor([[0.0, 0.0], [0.0, 100.0]]), torch.tensor([[0.0, 0.0], [0.5, 0.05]])
    found = train.balanced(logits, amount, 0.1)  # the last is neither: too little to call it defective
    assert found.item() == pytest.approx(np.log(2))
    found = train.balanced(torch.tensor([5.0, 0.0]), torch.tensor([0.0, 0.5]), 0.1)
    assert found.item() == pytest.approx((5.0067 + 0.6931) / 2, abs=1e-3)


def test_the_schedule_is_the_same_on_its_plateau_however_long_the_run():
    pace = [[captions.schedule(step, steps, 10) for step in range(steps)] for steps in (60, 100)]
    assert pace[0][:36] == pace[1][:36] and pace[0][20] == 1 and pace[0][0] == 0.1
    assert pace[0][-1] < 0.03 and pace[1][59] == 1


@pytest.mark.slow
def test_interrupted_training_goes_on_and_ends_the_same(tmp_path, monkeypatch, one_thread):
    monkeypatch.setattr(train, "names", lambda subset: ["dice"])
    kinds = ("image", "pixel", "image 4-shot", "pixel 4-shot")
    told = {f"{name} {kind}": 0.5 for name in ("mean", *card.HELD_OUT) for kind in kinds}
    monkeypatch.setattr(train, "validate", lambda model, categories: told)
    monkeypatch.setattr(train, "SAVE_SECONDS", -1)
    run = lambda folder: train.train(folder, SMALL, hold_out=False, workers=1, progress=False)  # noqa: E731
    whole = run(tmp_path / "whole")
    update = train._update

    def broken(*args):
        if args[-1] == 2:
            raise Interrupted
        return update(*args)

    with monkeypatch.context() as patch:
        patch.setattr(train, "_update", broken)
        with pytest.raises(Interrupted):
            run(tmp_path / "parts")
    assert torch.load(tmp_path / "parts/checkpoint.pt", weights_only=True)["step"] == 2
    resumed = run(tmp_path / "parts")
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-6, rtol=0)
    line = json.loads((tmp_path / "parts/curve.jsonl").read_text().splitlines()[-1])
    assert line["step"] == 4 and line["resumed_at"] == 2 and line["patch"] > 0
    train.save(resumed, tmp_path / "weights.safetensors")
    found = train.backbones.load_backbone("demo", str(tmp_path / "weights.safetensors"))
    assert not found.is_random
    (tmp_path / "weights.curve.jsonl").write_text((tmp_path / "parts/curve.jsonl").read_text())
    text = card.card(tmp_path / "weights.safetensors", hold_out=False)
    digest = hashlib.sha256((tmp_path / "weights.safetensors").read_bytes()).hexdigest()
    assert digest in text and "| mean | 0.500 | 0.500 | 0.500 | 0.500 |" in text


def test_all_who_know_what_stays_unseen_agree():
    """The backbone's held-out categories, those of notebook 13, and what the demo's prompts are learned from."""
    assert set(prompt_transfer.UNSEEN.values()) == set(card.HELD_OUT)
    known = config.load_profile("demo_auxiliary").categories
    assert sorted([*known, *card.HELD_OUT]) == sorted(names("auxiliary"))


def test_the_card_tells_what_changed_on_the_way():
    runs = [{"step": step, "settings": {"steps": steps, "rate": 0.1}} for step, steps in ((0, 5), (2, 5), (5, 9))]
    assert card._parts(runs) == ["  - from step 0: steps 5, rate 0.1.", "  - from step 5: steps 9."]


def test_steps_done_again_are_noted_once(tmp_path):
    curve = tmp_path / "curve.jsonl"
    curve.write_text("".join(json.dumps(line) + "\n" for line in ({"text": 1.0}, {"step": 100}, {"step": 200})))
    train._forget(curve, 150)
    assert [json.loads(line) for line in curve.read_text().splitlines()] == [{"text": 1.0}, {"step": 100}]


@pytest.mark.slow
def test_two_processes_find_the_gradients_of_one(pool, tmp_path, one_thread):
    alone, shared = train.build(0), train.build(0)
    bank = captions.caption_bank(alone, pool.categories, 0)
    shared.share_memory()
    folder = tmp_path / "pool"
    train.Pool(folder, pool.categories, SMALL, workers=1)
    one = train.Team(alone, folder, pool, bank, range(2), workers=1)
    two = train.Team(shared, folder, pool, bank, range(2), workers=2)
    for step in range(2):
        assert one.gradients(step) == pytest.approx(two.gradients(step), rel=1e-4)
        for first, second in zip(alone.visual.parameters(), shared.visual.parameters(), strict=True):
            torch.testing.assert_close(first.grad, second.grad, atol=1e-5, rtol=1e-3)


# ---------------------------------------------------------------- what is shipped


def test_the_shipped_weights_are_those_of_the_model_card():
    weights = backbones.DEMO_WEIGHTS
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in weights.with_suffix(".md").read_text()
    assert weights.stat().st_size < 25e6
    assert not backbones.load_backbone("demo").is_random


@pytest.mark.slow
def test_the_shipped_weights_see():
    """Zero-shot WinCLIP on a fixed small sample of targets stays above a floor well below what it reaches."""
    found = card.validate(backbones.load_backbone("demo").model, ["cork", "coin"], seed=11, good=5, bad=6, shots=1)
    assert found["mean image"] > 0.65 and found["mean pixel"] > 0.8
