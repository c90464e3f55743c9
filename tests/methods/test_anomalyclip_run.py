"""AnomalyCLIP in a run: beside WinCLIP in one table, its maps smoothed, its prompts never tested on their own data."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, make_mvtec, paint, small_profile
from sklearn.metrics import roc_auc_score
from test_wrong_input import Hostile, refused

from vlmad_lib import config
from vlmad_lib.data import datasets, image_files, mask_files
from vlmad_lib.encoders import backbones, feature_store
from vlmad_lib.evaluation import metrics
from vlmad_lib.methods import SETTINGS, anomalyclip
from vlmad_lib.pipeline import results, run

OWN = TINY | {"method": "anomalyclip"}


@pytest.fixture(scope="session")
def prompts(tmp_path_factory, tiny_backbone):
    """Random prompts of the small backbone in our format, said to be trained on VisA."""
    path = tmp_path_factory.mktemp("prompts") / "visa.pth"
    anomalyclip.write(anomalyclip.PromptLearner(tiny_backbone, seed=5), path, "visa")
    return path


@pytest.fixture
def job(tmp_path, mvtec, prompts):
    """Runs AnomalyCLIP with changes to its method on a tiny data set."""

    def start(method=None, **changes):
        values = {"methods": [OWN | {"checkpoint": str(prompts)} | (method or {})], "shots": [0]} | changes
        return run.run(small_profile(mvtec, tmp_path / "cache", **values))

    return start


@pytest.fixture(scope="module")
def done(tmp_path_factory, prompts):
    """Both methods on one backbone, zero-shot and with one reference."""
    base = tmp_path_factory.mktemp("both")
    both = [TINY, OWN | {"checkpoint": str(prompts)}]
    return run.run(small_profile(make_mvtec(base / "data"), base / "cache", methods=both, shots=[0, 1], seeds=[0, 1]))


# ---------------------------------------------------------------- one table


def test_both_methods_are_rows_of_one_table(done):
    results.describe_scores(SETTINGS).validate(done.scores)
    results.METRICS.validate(done.metrics)
    counts = done.scores.drop_duplicates("variant").groupby("method").shots.apply(sorted)
    assert counts.to_dict() == {"WinCLIP": [0, 1, 1], "AnomalyCLIP": [0]}
    assert "AnomalyCLIP uses no reference images: zero-shot only." in done.facts["notes"]
    assert list(done.headline().method) == ["WinCLIP, zero-shot", "WinCLIP, 1-shot", "AnomalyCLIP, zero-shot"]
    assert done.facts["prompts"][0]["trained_on"] == "visa" and not done.facts["prompts"][0]["leaked"]


def test_settings_of_the_other_method_are_empty(done):
    one = done.scores.groupby("method")[SETTINGS].first()
    assert one.loc["AnomalyCLIP", ["attention", "layers", "sigma", "fit"]].tolist() == [
        "vv",
        "default",
        "4.0",
        "squash",
    ]
    assert set(one.loc["AnomalyCLIP", ["windows", "templates"]]) == {""}
    assert set(one.temperature) == {"0.07"}  # both have one, and the small backbone keeps it
    assert set(one.loc["WinCLIP", ["attention", "layers", "prompts"]]) == {""}


def test_weights_name_backbone_and_prompts(done):
    found = done.scores.groupby("method").weights.first()
    assert found["AnomalyCLIP"].startswith(found["WinCLIP"] + "+")
    assert done.facts["prompts"][0]["sha256"].startswith(found["AnomalyCLIP"].partition("+")[2])


def test_scores_equal_a_direct_computation(done, tiny_backbone, prompts):
    """Through the cache (fp16 on disk) and straight from the encoder, squashed to 8 x 8 patches."""
    rows = done.scores[(done.scores.method == "AnomalyCLIP") & (done.scores.category == "plate")]
    pixels = np.concatenate([image_files.views(path, "squash", 128) for path in rows.image])
    chosen = anomalyclip.settings()
    found = anomalyclip.encode(tiny_backbone, tiny_backbone.normalise(pixels), anomalyclip.arrays(chosen))
    text = anomalyclip.read(tiny_backbone, prompts)[0](tiny_backbone).detach()
    scores, maps = anomalyclip.score(found, text, chosen, 8)
    np.testing.assert_allclose(rows.score, scores, atol=3e-3)
    kept = done.maps(rows)
    assert {one.shape for one in kept} == {(1, 8, 8)}
    np.testing.assert_allclose(np.concatenate(kept), maps, atol=3e-3)


def test_smoothing_is_the_same_in_frames_and_metrics(done):
    part = done.metrics[done.metrics.method == "AnomalyCLIP"].iloc[0]
    rows = done.scores[(done.scores.variant == part.variant) & (done.scores.category == part.category)]
    masks = [mask_files.framed_mask(row.mask, row.width, row.height, row.fit, 60) for row in rows.itertuples()]
    maps = done.framed(rows)
    assert part.pixel_auroc == pytest.approx(roc_auc_score(np.ravel(masks), np.ravel(maps)), abs=1e-9)
    plain = [metrics.upsample(one[0], 60, 60) for one in done.maps(rows)]
    assert 1e-5 < np.abs(np.subtract(maps, plain)).max() < 0.2
    windows = done.scores[done.scores.method == "WinCLIP"].head(1)
    np.testing.assert_array_equal(done.framed(windows)[0], metrics.upsample(done.maps(windows)[0][0], 60, 60))


def test_features_of_every_input_size_are_kept_apart(done, job):
    names = {path.name.rsplit("-", 1)[0] for path in (done.cache / "features").glob("*/*")}
    assert names == {"winclip-tiles-rgb-80", "anomalyclip-squash-rgb-128"}
    other = job({"settings": {"image_size": 80}})
    assert other.maps(other.scores)[0].shape == (1, 5, 5)


def test_nothing_is_held_out_for_a_method_without_references(tmp_path, prompts):
    for i in range(3):
        paint(tmp_path / "parts/bolt/good" / f"{i}.png", i)
        paint(tmp_path / "parts/bolt/bad" / f"{i}.png", 10 + i, spot=True)
    own = small_profile(tmp_path / "parts", tmp_path / "c", methods=[OWN | {"checkpoint": str(prompts)}], shots=[2])
    found = run.run(own)
    assert len(found.scores) == 6 and set(found.index.split) == {"test"}
    assert run.build_run_index(own)[0].equals(found.index)  # what notebook 01 shows


@pytest.mark.parametrize(
    "settings", [{"attention": "diagonal_boost"}, {"layers": [1, 2]}, {"prompts": "class"}, {"attention": "none"}]
)
def test_ablations_run_and_differ(job, settings):
    usual, other = job(), job({"settings": settings})
    assert usual.scores.variant.iloc[0] != other.scores.variant.iloc[0]
    found = [np.concatenate(one.maps(one.scores.sort_values("image"))) for one in (usual, other)]
    assert not np.allclose(*found, atol=1e-4)


def test_hand_written_prompts_need_no_checkpoint(job):
    found = job({"checkpoint": "", "settings": {"prompts": "object"}})
    assert set(found.scores.prompts) == {"object"} and "+" not in found.scores.weights.iloc[0]
    assert found.facts["prompts"] == []


def test_a_second_run_computes_nothing_and_other_prompts_are_scored_again(job, tmp_path, tiny_backbone, monkeypatch):
    path = tmp_path / "mine.pth"
    anomalyclip.write(anomalyclip.PromptLearner(tiny_backbone, seed=1), path, "visa")
    first = job({"checkpoint": str(path)})
    with monkeypatch.context() as patch:
        for target, name in [(feature_store.Store, "_encode"), (anomalyclip, "score"), (run, "_compute")]:
            patch.setattr(target, name, lambda *_: pytest.fail("computed again"))
        pd.testing.assert_frame_equal(job({"checkpoint": str(path)}).scores, first.scores)
    anomalyclip.write(anomalyclip.PromptLearner(tiny_backbone, seed=2), path, "visa")
    monkeypatch.setattr(feature_store.Store, "_encode", lambda *_: pytest.fail("encoded again"))
    again = job({"checkpoint": str(path)})
    assert again.scores.variant.iloc[0] != first.scores.variant.iloc[0]
    assert not np.allclose(again.scores.score, first.scores.score)


def test_a_view_shows_what_a_map_is_made_of(done):
    row = done.index.iloc[0]
    view = run.view_image(done.profile, row, method="anomalyclip")
    assert list(view.parts()) == ["vv, layer last"] and view.grid == 8
    spec = done.profile.methods[1].model_copy(update={"settings": {"layers": [1, 2], "attention": "qq"}})
    parts = run.view_image(done.profile, row, spec).parts()
    assert list(parts) == ["qq, layer 1", "qq, layer 2", "sum"]
    np.testing.assert_allclose(parts["sum"], parts["qq, layer 1"] + parts["qq, layer 2"])
    assert "fused" in run.view_image(done.profile, row).parts()


# ---------------------------------------------------------------- leakage


def test_prompts_are_not_tested_on_what_they_were_trained_on(job, tmp_path, mvtec, tiny_backbone):
    path = tmp_path / "mine.pth"
    anomalyclip.write(anomalyclip.PromptLearner(tiny_backbone), path, "mvtec")
    message = refused(lambda: job({"checkpoint": str(path)}, dataset="mvtec"), str(path), "trained on mvtec")
    assert "force_leak: true" in message
    assert len(job({"checkpoint": str(path)}).scores)  # another data set


def test_a_forced_leak_is_said_everywhere(job, tmp_path, tiny_backbone):
    path = tmp_path / "mine.pth"
    anomalyclip.write(anomalyclip.PromptLearner(tiny_backbone), path, "mvtec")
    found = job({"checkpoint": str(path), "force_leak": True}, dataset="mvtec")
    assert set(found.scores.method) == set(found.metrics.method) == {"AnomalyCLIP LEAKED"}
    assert list(found.headline().method) == ["AnomalyCLIP LEAKED, zero-shot"]
    assert [one for one in found.facts["warnings"] if "LEAKED" in one and "trained on the very data" in one]
    assert found.facts["prompts"][0]["leaked"]


def test_a_forced_leak_that_is_none_is_not_called_one(job):
    assert set(job({"force_leak": True}).scores.method) == {"AnomalyCLIP"}


def test_official_checkpoints_are_asked_what_they_were_trained_on(job, tmp_path, prompts):
    path = tmp_path / "epoch_15.pth"
    torch.save({"prompt_learner": torch.load(prompts, weights_only=True)["prompt_learner"]}, path)
    official = {"checkpoint": str(path)}
    refused(lambda: job(official), str(path), "does not say", "set 'trained_on'")
    refused(lambda: job(official | {"trained_on": "MVTec AD"}, dataset="mvtec"), "trained on mvtec")
    refused(lambda: job(official | {"trained_on": "mvtec_ad"}, dataset="mvtec"), "trained on mvtec")
    assert job(official | {"trained_on": "VisA"}, dataset="mvtec").facts["prompts"][0]["trained_on"] == "visa"
    refused(lambda: job({"trained_on": "mvtec"}), "says it was trained on visa", "drop 'trained_on'")


@pytest.mark.parametrize(("root", "leaks"), [("data", True), ("data/plate", True), (".", True), ("other", False)])
def test_own_folders_are_known_by_their_place(job, tmp_path, tiny_backbone, root, leaks):
    path = tmp_path / "mine.pth"
    anomalyclip.write(anomalyclip.PromptLearner(tiny_backbone), path, "folder parts", str(tmp_path / root))
    if leaks:
        refused(lambda: job({"checkpoint": str(path)}), "trained on folder parts")
        refused(lambda: job({"checkpoint": str(path)}, dataset="mvtec"), "trained on folder parts")
    else:
        assert len(job({"checkpoint": str(path)}).scores)


def test_a_copy_of_the_training_data_under_another_name_is_told(job, tmp_path, tiny_backbone):
    """Named data are known by their folder too; of a copy elsewhere only the names of categories can tell."""
    path = tmp_path / "mine.pth"
    learner = anomalyclip.PromptLearner(tiny_backbone)
    anomalyclip.write(learner, path, "mvtec", str(tmp_path / "data"))
    refused(lambda: job({"checkpoint": str(path)}), "trained on mvtec")
    anomalyclip.write(learner, path, "mvtec", str(tmp_path / "gone"), ["plate", "dial"])
    told = [one for one in job({"checkpoint": str(path)}).facts["warnings"] if "if these images are copies" in one]
    assert len(told) == 1 and "has categories named plate too" in told[0]
    anomalyclip.write(learner, path, "mvtec", str(tmp_path / "gone"))  # then those known of MVTec AD
    assert not [one for one in job({"checkpoint": str(path)}).facts["warnings"] if "copies" in one]


def test_demo_targets_are_not_the_auxiliary_set():
    demo, auxiliary = (config.load_profile("demo", {"subset": subset}) for subset in ("target", "auxiliary"))
    assert datasets.describe_identity(auxiliary) == "demo auxiliary" and datasets.overlaps_training_data(
        "demo auxiliary", "", auxiliary
    )
    assert not datasets.overlaps_training_data("demo auxiliary", "", demo) and datasets.overlaps_training_data(
        "demo target", "", demo
    )
    assert [datasets.describe_identity(config.load_profile(name)) for name in ("mvtec", "visa")] == ["mvtec", "visa"]


# ---------------------------------------------------------------- refusals


def test_what_belongs_to_learned_prompts_is_refused_elsewhere(job, prompts):
    refused(lambda: job({"checkpoint": ""}), "AnomalyCLIP", "set 'checkpoint'")
    refused(lambda: job({"settings": {"prompts": "object"}}), "'checkpoint' belongs to learned prompts")
    refused(lambda: job({"method": "winclip", "name": "WinCLIP"}), "WinCLIP", "'checkpoint'")
    refused(lambda: job({"settings": {"windows": [2]}}), "AnomalyCLIP settings", "'windows'", "known keys: image_size")
    refused(lambda: job({"settings": {"layers": [3]}}), "layer 3", "blocks 1 to 2")
    refused(lambda: job({"settings": {"image_size": 100}}), "100 is no multiple", "16")
    refused(lambda: job({"preset": "study"}), "no preset 'study'")
    refused(lambda: job(subset="auxiliary"), "'subset' belongs to the demo data")


def test_prompts_of_other_weights_end_a_run(job):
    refused(lambda: job({"weights": "random:1"}), "visa.pth", "other CLIP weights")


def test_hostile_checkpoints_run_nothing(job, tmp_path):
    path = tmp_path / "evil.pth"
    with path.open("wb") as stream:
        pickle.dump({"prompt_learner": Hostile(tmp_path / "ran")}, stream)
    refused(lambda: job({"checkpoint": str(path)}), "evil.pth", "no AnomalyCLIP prompt checkpoint")
    torch.save({"prompt_learner": Hostile(tmp_path / "ran")}, path)
    refused(lambda: job({"checkpoint": str(path)}), "evil.pth", "no AnomalyCLIP prompt checkpoint")
    assert not (tmp_path / "ran").exists()


def test_a_missing_official_checkpoint_is_said_before_anything_runs(job, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store.Store, "_encode", lambda *_: pytest.fail("worked for nothing"))
    methods = [TINY, OWN | {"checkpoint": str(tmp_path / "none.pth"), "trained_on": "visa"}]
    message = refused(lambda: job(methods=methods), "none.pth", "zqhang/AnomalyCLIP", "9_12_4_multiscale/epoch_15.pth")
    assert "-p 'methods=[{}]'" in message
    refused(lambda: job({"checkpoint": str(tmp_path / "own.pth")}), "own.pth", "python -m vlmad_lib train anomalyclip")


def test_missing_weights_of_the_second_method_are_said_before_the_first_works(job, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store.Store, "_encode", lambda *_: pytest.fail("worked for nothing"))
    monkeypatch.setattr(backbones, "_cached", lambda hub: None)
    monkeypatch.setattr(backbones, "WEIGHTS", tmp_path)
    second = {"method": "anomalyclip", "checkpoint": str(prompts)}
    refused(lambda: job(methods=[TINY, second]), "ViT-L-14-336-quickgelu", "fetch")


def test_methods_default_to_what_they_were_published_with():
    first, second = config.Method(), config.Method(method="anomalyclip")
    assert (first.name, first.backbone, first.weights) == ("WinCLIP", "ViT-B-16-plus-240", "laion400m_e31")
    assert (second.name, second.backbone, second.weights) == ("AnomalyCLIP", "ViT-L-14-336-quickgelu", "openai")
    unknown = config.load_profile("demo", {"methods": [{"method": "winklip"}]})
    refused(lambda: run.run(unknown), "no method 'winklip'", "choose one of winclip, anomalyclip")
    refused(lambda: config.load_profile("demo", {"methods": [{"method": 5}]}), "methods.0.method", "valid string")
