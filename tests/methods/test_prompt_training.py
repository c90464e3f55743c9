"""Training prompts: the objective by hand, kept features against encoding on the fly, interruption, odd batches."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from conftest import TINY, make_mvtec, paint, small_profile

from vlmad_lib import InputError
from vlmad_lib.data import image_files
from vlmad_lib.encoders import feature_store
from vlmad_lib.methods import anomalyclip, objectives, prompt_learner, training
from vlmad_lib.methods.objectives import PROMPTS, Plan, dice_loss, focal_loss
from vlmad_lib.methods.objectives import prompt_loss as loss
from vlmad_lib.methods.training import train


def test_losses_by_hand():
    masks = torch.zeros(1, 2, 2)
    masks[0, 0, 0] = 1
    chances = torch.stack([1 - masks, masks], 1)
    assert focal_loss(chances, masks).item() == pytest.approx(0, abs=1e-6)
    assert focal_loss(torch.full((1, 2, 2, 2), 0.5), masks).item() == pytest.approx(0.25 * 0.6931, abs=1e-4)
    assert dice_loss(masks, masks).item() == 0
    assert dice_loss(1 - masks, masks).item() == pytest.approx(1 - 1 / 5)


def test_images_without_a_mask_count_for_the_cross_entropy_alone():
    stream = torch.Generator().manual_seed(0)
    arrays = {name: torch.randn(3, *shape, generator=stream) for name, shape in {"class": (8,), "vv_1": (4, 8)}.items()}
    text, labels = torch.randn(2, 8, generator=stream), torch.tensor([0, 1, 1])
    masks = torch.zeros(3, 4, 4)
    masks[1, :2] = 1
    known = torch.tensor([True, True, False])
    found = loss(arrays, text, labels, masks, known)
    two = loss({name: value[:2] for name, value in arrays.items()}, text, labels[:2], masks[:2])
    assert found.focal == two.focal and found.dice_anomalous == two.dice_anomalous
    assert found.cross_entropy == loss(arrays, text, labels, masks).cross_entropy != two.cross_entropy
    none = loss(arrays, text, labels, masks, torch.zeros(3, dtype=torch.bool))
    assert none.total == none.cross_entropy
    own = loss(arrays, text.expand(3, -1, -1), labels, masks, known)  # prompts of their own, here all the same
    torch.testing.assert_close(own.total, found.total)


@pytest.fixture
def profile(tmp_path):
    """Two categories of four good and four spotted images, on the small backbone."""
    method = TINY | {"method": "anomalyclip"}
    return small_profile(make_mvtec(tmp_path / "data"), tmp_path / "cache", methods=[method], shots=[0])


def test_kept_features_train_as_encoding_on_the_fly_does(profile, tmp_path, tiny_backbone, monkeypatch):
    """The same losses to 1e-5, the same prompts; kept as fp16 they are near, and we say how near."""
    plan = Plan(epochs=3, batch=5)
    kept = train(PROMPTS, profile, tmp_path / "kept.pth", plan)
    half = train(PROMPTS, profile, tmp_path / "half.pth", Plan(epochs=3, batch=5, exact=False))

    def encode(store, paths, names):
        pixels = np.concatenate([image_files.views(path, "squash", 128) for path in paths])
        found = anomalyclip.encode(tiny_backbone, tiny_backbone.normalise(pixels), names)
        return {name: found[name] for name in names}, np.ones(len(paths), int)

    monkeypatch.setattr(feature_store.Store, "load", encode)
    fresh = train(PROMPTS, profile, tmp_path / "fresh.pth", plan)
    for one, other, rough in zip(kept, fresh, half, strict=True):
        for name in objectives.TERMS:
            assert one[name] == pytest.approx(other[name], abs=1e-5)
            assert rough[name] == pytest.approx(other[name], abs=2e-3)
    one, other = (anomalyclip.read(tiny_backbone, tmp_path / f"{name}.pth")[0] for name in ("kept", "fresh"))
    torch.testing.assert_close(one.context, other.context, atol=1e-4, rtol=0)
    assert fresh[-1]["total"] < fresh[0]["total"]


def test_every_image_is_encoded_once(profile, tmp_path, monkeypatch):
    seen, original = [], feature_store.Store._encode
    monkeypatch.setattr(
        feature_store.Store, "_encode", lambda store, paths, *rest: seen.extend(paths) or original(store, paths, *rest)
    )
    train(PROMPTS, profile, tmp_path / "one.pth", Plan(epochs=4))
    assert len(seen) == len(set(seen)) == 16
    train(PROMPTS, profile, tmp_path / "two.pth", Plan(epochs=2, seed=1))
    assert len(seen) == 16


def states(path):
    return torch.load(path, weights_only=True)["prompt_learner"]


def test_an_interrupted_training_goes_on_and_ends_the_same(profile, tmp_path, monkeypatch):
    plan = Plan(epochs=3, batch=4)
    whole = train(PROMPTS, profile, tmp_path / "whole.pth", plan)
    calls, original = {"n": 0}, objectives.prompt_loss

    def broken(*args):
        calls["n"] += 1
        if calls["n"] == 7:  # in the middle of the second epoch
            raise KeyboardInterrupt
        return original(*args)

    broken.__wrapped__ = original  # the key of a training holds the source of its loss
    with monkeypatch.context() as patch:
        patch.setattr(objectives, "prompt_loss", broken)
        patch.setattr(training, "_key", lambda *_: "same")
        with pytest.raises(KeyboardInterrupt):
            train(PROMPTS, profile, tmp_path / "part.pth", plan)
    assert not (tmp_path / "part.pth").exists()
    monkeypatch.setattr(training, "_key", lambda *_: "same")
    again = train(PROMPTS, profile, tmp_path / "part.pth", plan)
    assert again == whole
    one, other = states(tmp_path / "whole.pth"), states(tmp_path / "part.pth")
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_training_can_go_on_to_more_epochs(profile, tmp_path):
    path = tmp_path / "prompts.pth"
    first = train(PROMPTS, profile, path, Plan(epochs=1))
    more = train(PROMPTS, profile, path, Plan(epochs=3))
    assert more[:1] == first and [epoch["epoch"] for epoch in more] == [1, 2, 3]
    assert train(PROMPTS, profile, tmp_path / "other.pth", Plan(epochs=3)) == more
    lines = path.with_suffix(".curve.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == more
    card = path.with_suffix(".md").read_text()
    assert hashlib.sha256(path.read_bytes()).hexdigest() in card and "3 epochs, batch 8" in card
    assert f"| total | {more[0]['total']:.3f} | {more[-1]['total']:.3f} |" in card
    with pytest.raises(InputError, match="has done 3 epochs, more than 2"):
        train(PROMPTS, profile, path, Plan(epochs=2))
    with pytest.raises(InputError, match="other data, settings or code; remove it"):
        train(PROMPTS, profile, path, Plan(epochs=3, rate=1e-4))
    path.with_suffix(".state.pt").write_bytes(b"broken")
    with pytest.raises(InputError, match="prompts.state.pt is damaged; remove it"):
        train(PROMPTS, profile, path, Plan(epochs=3))


@pytest.mark.parametrize("batch", [1, 5, 15, 16, 100])
def test_a_last_batch_of_any_size(profile, tmp_path, batch):
    found = train(PROMPTS, profile, tmp_path / "prompts.pth", Plan(epochs=1, batch=batch))
    assert np.isfinite(found[0]["total"])


@pytest.mark.parametrize(
    "settings", [{"prompts": "class"}, {"layers": [1, 2]}, {"attention": "none"}, {"image_size": 80}]
)
def test_variants_are_trained_too(profile, tmp_path, tiny_backbone, settings):
    method = TINY | {"method": "anomalyclip", "settings": settings}
    changed = profile.model_copy(update={"methods": [type(profile.methods[0])(**method)]})
    train(PROMPTS, changed, tmp_path / "prompts.pth", Plan(epochs=1))
    train(PROMPTS, profile, tmp_path / "usual.pth", Plan(epochs=1))
    one, other = states(tmp_path / "prompts.pth"), states(tmp_path / "usual.pth")
    assert not torch.equal(one["ctx_pos"], other["ctx_pos"])
    anomalyclip.read(tiny_backbone, tmp_path / "prompts.pth")


def test_deep_prompts_that_are_off_stay_as_they_were_drawn(profile, tmp_path, demo_backbone):
    method = {"method": "anomalyclip", "backbone": "demo", "weights": "random:0", "settings": {"deep": False}}
    train(
        PROMPTS,
        profile.model_copy(update={"methods": [type(profile.methods[0])(**method)]}),
        tmp_path / "p.pth",
        Plan(epochs=1),
    )
    found, drawn = states(tmp_path / "p.pth"), prompt_learner.PromptLearner(demo_backbone, Plan().seed)
    assert torch.equal(found["compound_prompts_text.0"], drawn.deep[0])
    assert not torch.equal(found["ctx_pos"][0], drawn.context[:1])


def test_own_pictures_without_masks_are_learned_from(tmp_path):
    for i in range(3):
        paint(tmp_path / "parts/bolt/good" / f"{i}.png", i)
        paint(tmp_path / "parts/bolt/bad" / f"{i}.png", 10 + i, spot=True)
    method = TINY | {"method": "anomalyclip"}
    own = small_profile(tmp_path / "parts", tmp_path / "cache", methods=[method], shots=[2])  # too few to hold out
    found = train(PROMPTS, own, tmp_path / "prompts.pth", Plan(epochs=2, batch=4))
    assert found[-1]["cross_entropy"] < found[0]["cross_entropy"]
    kept = torch.load(tmp_path / "prompts.pth", weights_only=True)
    assert kept["trained_on"] == "folder parts" and kept["root"] == str((tmp_path / "parts").resolve())


def test_normal_images_alone_teach_nothing(tmp_path):
    for i in range(3):
        paint(tmp_path / "parts/bolt/good" / f"{i}.png", i)
    own = small_profile(tmp_path / "parts", tmp_path / "cache", methods=[TINY | {"method": "anomalyclip"}])
    with pytest.raises(InputError, match="only normal test images; prompts are learned from both"):
        train(PROMPTS, own, tmp_path / "prompts.pth")


def test_a_profile_without_anything_to_train_is_refused(profile, tmp_path):
    none = profile.model_copy(update={"methods": []})
    with pytest.raises(InputError, match="no AnomalyCLIP method; add one"):
        train(PROMPTS, none, tmp_path / "prompts.pth")
    with pytest.raises(InputError, match="named 'Mine'"):
        train(PROMPTS, profile, tmp_path / "prompts.pth", method="Mine")
    hand = type(profile.methods[0])(**TINY, method="anomalyclip", settings={"prompts": "object"})
    with pytest.raises(InputError, match="nothing to learn"):
        train(PROMPTS, profile.model_copy(update={"methods": [hand]}), tmp_path / "prompts.pth")


def test_the_command_line(profile, tmp_path, capsys):
    import yaml

    file, out = tmp_path / "mine.yml", tmp_path / "prompts.pth"
    file.write_text(yaml.safe_dump(profile.model_dump()))
    command = [str(file), "--out", str(out), "--epochs", "2", "--half"]
    assert training.main(["anomalyclip", *command]) == 0
    assert "2 epochs, loss" in capsys.readouterr().out and out.is_file()
    assert training.main(["anomalyclip", *command, "-p", "rooot=x"]) == 2
    assert "did you mean 'root'" in capsys.readouterr().err
    assert training.main(["anomalyclip", *command, "--batch", "0"]) == 2
    assert "'batch'" in capsys.readouterr().err
    assert prompt_learner.DEMO.parent.is_dir()
