"""Plain CLIP, CLIP-AC and CoOp: hand-computed scores, CoOp's context and files, training, and the ablation's rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import TINY, make_mvtec, paint, small_profile

from vlmad_lib import InputError, config
from vlmad_lib.__main__ import main
from vlmad_lib.analysis import prompt_variants, variants
from vlmad_lib.config import Method
from vlmad_lib.data import image_files
from vlmad_lib.encoders import feature_store
from vlmad_lib.methods import clip_baselines, training
from vlmad_lib.methods.objectives import COOP
from vlmad_lib.methods.training import Plan, train
from vlmad_lib.pipeline import run

SIZE = {"settings": {"image_size": 80}}
ROW = type("Row", (), {"class_name": "metal nut", "category": "metal_nut"})


# ---------------------------------------------------------------- plain CLIP


def test_scores_by_hand():
    half = 0.5**0.5
    features = {
        "image": torch.tensor([[half, half]]),
        "none_last": torch.tensor([[[1.0, 0], [0, 2], [3, 3], [0.6, 0.8]]]),
    }
    whole, maps = clip_baselines.CLIP.score(
        features, torch.eye(2), clip_baselines.CLIP.settings("paper", {"temperature": 0.2}), 2
    )
    assert whole.item() == pytest.approx(0.5)
    low, tilted = 1 / (1 + np.exp(5)), 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(maps[0], [[low, 1 - low], [0.5, tilted]], rtol=1e-5)


def test_prompts_of_the_baselines():
    pair = clip_baselines.CLIP.prompt_wording(clip_baselines.CLIP.settings(), ROW)[:2]
    assert pair == [["a photo of a normal metal nut."], ["a photo of an anomalous metal nut."]]
    many = clip_baselines.CLIP.prompt_wording(clip_baselines.CLIP.settings("ac"), ROW)[:2]
    assert [len(side) for side in many] == [154, 88]
    words = clip_baselines.CLIP.prompt_wording(
        clip_baselines.CLIP.settings("paper", {"states": "words", "templates": "35", "names": "folder"}), ROW
    )[:2]
    assert [len(side) for side in words] == [35, 35] and "a photo of a anomalous metal_nut." in words[1]


@pytest.mark.parametrize(
    ("preset", "settings", "said"),
    [
        ("study", {}, "CLIP has no preset 'study'; use paper, ac"),
        ("paper", {"states": "none"}, "no set of states 'none'"),
        ("paper", {"deep": False}, "CLIP settings: unknown key 'deep'"),
    ],
)
def test_wrong_settings_are_named(preset, settings, said):
    with pytest.raises(InputError, match=said):
        clip_baselines.CLIP.settings(preset, settings)


# ---------------------------------------------------------------- CoOp


def test_one_context_stands_before_both_words(tiny_backbone):
    """The features are those of the text tower on prompts whose first sixteen embeddings are the context."""
    import open_clip

    learner, model = clip_baselines.Context(tiny_backbone, seed=2), tiny_backbone.model
    assert learner.context.shape[:2] == (1, 16) and not len(learner.deep)
    found = learner(tiny_backbone, "metal nut")
    blanks = " ".join(["X"] * 16)
    tokens = open_clip.tokenize([f"{blanks} normal metal nut.", f"{blanks} anomalous metal nut."])
    with torch.no_grad():
        x = model.token_embedding(tokens)
        x[:, 1:17] = learner.context[0]
        x = model.transformer(x + model.positional_embedding, attn_mask=model.attn_mask)
        plain = model.ln_final(x)[torch.arange(2), tokens.argmax(-1)] @ model.text_projection
    torch.testing.assert_close(found.detach(), plain, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, learner(tiny_backbone, "cable"))


def test_files_are_written_read_and_refused(tmp_path, tiny_backbone):
    path, learner = tmp_path / "coop.pth", clip_baselines.Context(tiny_backbone, seed=2)
    clip_baselines.write(learner, path, "visa")
    found, trained_on = clip_baselines.read(tiny_backbone, path)
    assert trained_on == "visa" and torch.equal(found.context, learner.context)
    good = torch.load(path, weights_only=True)
    for change in ({"ctx": torch.zeros(3)}, {"ctx": torch.full((16, 8), float("nan"))}, {"ctx": 3}):
        torch.save(good | {"state_dict": good["state_dict"] | change}, path)
        with pytest.raises(InputError, match="coop.pth is no CoOp checkpoint"):
            clip_baselines.read(tiny_backbone, path)
    torch.save(good | {"state_dict": good["state_dict"] | {"token_prefix": learner.prefix + 1}}, path)
    with pytest.raises(InputError, match="prefix.*other CLIP weights"):
        clip_baselines.read(tiny_backbone, path)


@pytest.fixture
def own(tmp_path):
    return small_profile(
        make_mvtec(tmp_path / "data"), tmp_path / "cache", methods=[TINY | {"method": "coop"} | SIZE], shots=[0]
    )


def test_kept_features_train_as_encoding_on_the_fly_does(own, tmp_path, tiny_backbone, monkeypatch):
    plan = Plan(epochs=4, batch=16)
    kept = train(COOP, own, tmp_path / "kept.pth", plan)

    def encode(store, paths, names):
        pixels = [tiny_backbone.normalise(image_files.views(path, "squash", 80)) for path in paths]
        found = [clip_baselines.COOP.encode(tiny_backbone, one, names) for one in pixels]
        return {name: torch.cat([one[name] for one in found]) for name in names}, np.ones(len(paths), int)

    monkeypatch.setattr(feature_store.Store, "load", encode)
    fresh = train(COOP, own, tmp_path / "fresh.pth", plan)
    assert [one["total"] for one in kept] == pytest.approx([one["total"] for one in fresh], abs=1e-5)
    assert fresh[-1]["total"] < fresh[0]["total"]
    one, other = (clip_baselines.read(tiny_backbone, tmp_path / f"{name}.pth")[0] for name in ("kept", "fresh"))
    torch.testing.assert_close(one.context, other.context, atol=1e-4, rtol=0)
    assert not torch.equal(one.context, clip_baselines.Context(tiny_backbone, plan.seed).context)


def test_whole_images_teach_without_masks(tmp_path):
    for i in range(3):
        paint(tmp_path / "parts/bolt/good" / f"{i}.png", i)
        paint(tmp_path / "parts/bolt/bad" / f"{i}.png", 10 + i, spot=True)
    spec = TINY | {"method": "coop"} | SIZE
    found = train(COOP, small_profile(tmp_path / "parts", tmp_path / "cache", methods=[spec]), tmp_path / "c.pth")
    assert len(found) == COOP.plan.epochs == 50 and found[-1]["total"] < found[0]["total"]


def test_the_cross_entropy_is_that_of_the_image_score(own, tmp_path, tiny_backbone):
    """The loss of an epoch that learns nothing is -log of the score, or of one minus it, as a run gives it."""
    train(COOP, own, tmp_path / "coop.pth", Plan(epochs=1, batch=100, rate=1e-12))
    curve = (tmp_path / "coop.curve.jsonl").read_text()
    spec = own.methods[0].model_copy(update={"checkpoint": str(tmp_path / "coop.pth"), "force_leak": True})
    scores = run.run(own.model_copy(update={"methods": [spec]})).scores
    assert set(scores.method) == {"CoOp LEAKED"}
    right = np.where(scores.label == 1, scores.score, 1 - scores.score)
    assert float(curve.split('"total": ')[1].rstrip("}\n")) == pytest.approx(-np.log(right).mean(), rel=0.02)


# ---------------------------------------------------------------- the contract


def test_they_appear_wherever_methods_do(mvtec, tmp_path, tiny_backbone):
    clip_baselines.write(clip_baselines.Context(tiny_backbone), tmp_path / "coop.pth", "visa")
    specs = [
        TINY | {"method": "clip"} | SIZE,
        TINY | {"method": "clip", "preset": "ac", "name": "CLIP-AC"} | SIZE,
        TINY | {"method": "coop", "checkpoint": str(tmp_path / "coop.pth")} | SIZE,
    ]
    found = run.run(small_profile(mvtec, tmp_path / "cache", methods=specs, shots=[0, 1]))
    assert list(found.headline().method) == ["CLIP, zero-shot", "CLIP-AC, zero-shot", "CoOp, zero-shot"]
    assert found.metrics.pixel_auroc.notna().all() and set(found.scores.shots) == {0}
    folders = {path.name.rsplit("-", 1)[0] for path in (tmp_path / "cache" / "features").glob("*/*")}
    assert folders == {"anomalyclip-squash-rgb-80"}  # one pass for all three
    assert "CLIP-AC uses no reference images: zero-shot only." in found.facts["notes"]
    row = found.index[found.index.split == "test"].iloc[0]
    assert list(run.view_image(found.profile, row, found.profile.methods[0]).parts()) == ["plain attention, last layer"]


def test_settings_are_varied_where_a_method_has_them():
    no_pair = {"own_normal": [], "own_anomalous": []}
    changes = {
        "full ensemble": {"states": "all", "templates": "22"} | no_pair,
        "temperature 0.2": {"temperature": 0.2},
        "own pair": {"states": "own", "own_normal": ["a {}"], "own_anomalous": ["a bad {}"]},
    }
    names = [spec.name for spec in prompt_variants.vary_settings(Method(**TINY, method="clip"), changes)]
    assert names == ["CLIP", "CLIP, full ensemble", "CLIP, temperature 0.2"]  # it has no pair of one's own
    learned = Method(**TINY, method="coop", checkpoint="x.pth")
    found = prompt_variants.vary_settings(learned, changes)
    assert [spec.name for spec in found] == ["CoOp", "CoOp, temperature 0.2"]
    assert all(spec.checkpoint for spec in found)  # it still learns


def test_relatives_stand_on_the_backbone_of_an_anomalyclip():
    demo = config.load_profile("demo")
    spec = next(one for one in demo.methods if one.method == "anomalyclip")
    found = variants.list_relatives(spec, demo)
    assert [one.name for one in found] == ["CLIP", "CLIP-AC", "CoOp", "APRIL-GAN"]
    assert {(one.backbone, one.settings["image_size"]) for one in found} == {("demo", 240)}
    assert variants.name_missing_relatives(found) == ""
    other = spec.model_copy(update={"checkpoint": "mine.pth", "settings": {}})
    found = variants.list_relatives(other, demo)
    assert [one.name for one in found] == ["CLIP", "CLIP-AC"]
    assert variants.name_missing_relatives(found).startswith("CoOp and APRIL-GAN: left out")
    own = Method(method="coop", backbone="demo", weights="demo", checkpoint="c.pth", name="Ours")
    found = variants.list_relatives(other, demo.model_copy(update={"methods": [own]}))
    assert [one.name for one in found] == [
        "CLIP",
        "CLIP-AC",
        "Ours",
    ] and "APRIL-GAN: left" in variants.name_missing_relatives(found)
    found = variants.list_relatives(spec, demo.model_copy(update={"methods": [own]}))
    assert {one.settings["image_size"] for one in found} == {240}  # the profile's own ones too


@pytest.mark.parametrize("name", ["anomalyclip", "coop", "aprilgan"])
def test_each_method_that_learns_is_trained_by_name(capsys, name):
    with pytest.raises(SystemExit):  # argparse's, with 0
        main(["train", name, "--help"])
    found = capsys.readouterr().out
    assert "--epochs" in found and f"vlmad_lib train {name}" in found


def test_a_training_that_cannot_be_says_why(capsys):
    assert main(["train", "padim"]) == main(["tain"]) == 2
    assert training.main(["coop", "nowhere", "--out", "x.pth"]) == 2
