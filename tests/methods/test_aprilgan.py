"""APRIL-GAN: hand-computed scores, its files and refusals, training, and a run through the usual contract."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import parity
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, make_mvtec, paint, small_profile
from PIL import Image

from vlmad_lib import ROOT, InputError, methods
from vlmad_lib.analysis import thresholds
from vlmad_lib.config import Method
from vlmad_lib.data import image_files, mask_files
from vlmad_lib.encoders import feature_store, image_towers, prompts
from vlmad_lib.evaluation import metrics
from vlmad_lib.methods import anomalyclip, aprilgan, training
from vlmad_lib.methods.aprilgan import Projections, score
from vlmad_lib.methods.objectives import APRILGAN
from vlmad_lib.methods.objectives import projection_loss as loss
from vlmad_lib.methods.training import Plan, train
from vlmad_lib.pipeline import run
from vlmad_lib.reporting import decide

OWN = TINY | {"method": "aprilgan", "settings": {"image_size": 80, "states": "one", "templates": "none"}}
TEXT = torch.eye(2)  # the joint space: normal is the first axis, anomalous the second


def turned() -> Projections:
    """Two layers of two numbers: the first as it is, the second with its axes changed over."""
    learner = Projections(2, 2, 2)
    learner.load_state_dict(
        {"fc.0.weight": torch.eye(2), "fc.0.bias": torch.zeros(2)}
        | {"fc.1.weight": torch.eye(2).flip(0), "fc.1.bias": torch.tensor([0.0, 1.0])}
    )
    return learner.requires_grad_(False)


def at(*degrees: float) -> torch.Tensor:
    """(1, P, 2) tokens of length one at angles from the normal axis."""
    angles = torch.tensor(degrees) / 180 * np.pi
    return torch.stack([angles.cos(), angles.sin()], -1)[None]


CHOSEN = aprilgan.settings("paper", {"layers": [1, 2]})


def sigmoid(value: float) -> float:
    return float(1 / (1 + np.exp(-value)))


# ---------------------------------------------------------------- scores by hand


def test_maps_are_summed_over_projected_layers():
    tokens = at(0, 45, 44, 90)
    found = {"image": at(46)[0], "raw_1": tokens, "raw_2": tokens}
    whole, maps = score(found, TEXT, CHOSEN, 2, learned=turned())
    gap = np.cos(np.pi * 44 / 180) - np.sin(np.pi * 44 / 180)
    assert whole.item() == pytest.approx(sigmoid(100 * gap), rel=1e-4)  # 46 degrees are 44 from the anomalous axis
    second = []
    for angle in (0, 45, 44, 90):  # changed over, plus (0, 1), then of length one
        x, y = np.sin(np.pi * angle / 180), np.cos(np.pi * angle / 180) + 1
        second.append(sigmoid(100 * (y - x) / np.hypot(x, y)))
    first = [0.0, 0.5, sigmoid(-100 * gap), 1.0]
    np.testing.assert_allclose(metrics.grid_maps(maps.numpy()).flatten(), np.array(first) + second, atol=1e-5)


def test_references_add_the_distance_before_projection_and_the_maximum_to_the_score():
    found = {"image": at(45)[0], "raw_1": at(0, 0, 0, 60), "raw_2": at(0, 0, 0, 0)}
    references = {"raw_1": torch.cat([at(0, 10, 0, 0), at(0, 0, 0, -90)]), "raw_2": torch.cat([at(90, 90, 90, 60)] * 2)}
    bare = score(found, TEXT, CHOSEN, 2, learned=turned())[1]
    whole, maps = score(found, TEXT, CHOSEN, 2, references, learned=turned())
    apart = metrics.grid_maps(maps.numpy()) - metrics.grid_maps(bare.numpy())
    # layer 2: 60 degrees everywhere, one half; layer 1: nothing, and 60 less 10 degrees at the last patch
    np.testing.assert_allclose(apart.flatten(), [0.5, 0.5, 0.5, 1.5 - np.cos(np.pi * 50 / 180)], atol=1e-5)
    largest = metrics.upsample(maps[0].numpy(), 518, 518).max()
    np.testing.assert_allclose(whole, [[0.5, largest]], atol=1e-5)  # what ``over_category`` makes scores of
    fixed = CHOSEN.model_copy(update={"image_score": "fixed"})
    whole, again = score(found, TEXT, fixed, 2, references, learned=turned())
    assert whole.item() == pytest.approx((0.5 + largest / 4) / 2, abs=1e-5) and torch.equal(again, maps)


def test_logits_are_enlarged_corner_on_corner_before_the_softmax():
    """Halfway between a certain and an even patch lies the sigmoid of half the logit, not the mean of both chances."""
    stack = np.zeros((2, 3, 2, 2), np.float32)
    stack[0, 0], stack[0, 1], stack[0, 2] = [[8, 0], [8, 0]], [[-4, 4], [-4, 4]], [[0.5, 1.5], [0.5, 1.5]]
    stack[1] = 9  # another image
    found = metrics.framed_map(stack[:1], 30, 30, "squash", 5)
    across = np.array([0, 0.25, 0.5, 0.75, 1])
    expected = 1 / (1 + np.exp(-(8 - 8 * across))) + 1 / (1 + np.exp(4 - 8 * across)) + 0.5 + across
    np.testing.assert_allclose(found, expected[None].repeat(5, 0), atol=1e-6)
    np.testing.assert_allclose(metrics.grid_maps(stack)[0], found[::4, ::4], atol=1e-6)  # corners are the patches
    plain = np.array([[[0.0, 1.0], [0.0, 1.0]]])
    assert metrics.grid_maps(plain) is plain and metrics.framed_map(plain, 30, 30, "squash", 4)[0, 1] == 0.25


def test_maxima_are_stretched_over_a_categorys_images():
    found = aprilgan.score_category(np.array([[0.2, 1.5], [0.6, 3.5], [0.9, 2.0]]))
    np.testing.assert_allclose(found, [0.1, (0.6 + 1) / 2, (0.9 + 0.25) / 2])
    np.testing.assert_allclose(
        aprilgan.score_category(np.array([[0.4, 2.0]])), [0.2]
    )  # of one image: nothing to stretch


@pytest.mark.slow
def test_parity_with_the_official_code():
    compared = parity.compare(ROOT / "tests" / "aprilgan_small.json")
    assert len(compared) > 50 and {name.endswith(parity.KEPT) for name, *_ in compared} == {True, False}
    for name, found, tolerance in compared:
        assert found <= tolerance, name


def test_the_zero_shot_image_score_never_looks_at_the_map():
    found = {"image": at(45)[0], "raw_1": at(0, 0, 0, 90), "raw_2": at(0, 0, 0, 0)}
    assert score(found, TEXT, CHOSEN, 2, learned=turned())[0].item() == pytest.approx(0.5)


def test_the_losses_by_hand():
    """Two equal layers on four patches and a mask of four pixels: corner on corner, upsampling changes nothing."""
    masks = torch.tensor([[[0.0, 0], [0, 1]]])
    right = [at(0, 0, 0, 90)] * 2
    found = loss(right, TEXT[None], masks)
    assert found["focal"].item() == pytest.approx(0, abs=1e-4) and found["dice"].item() == pytest.approx(0, abs=1e-4)
    even = loss([at(45, 45, 45, 45)] * 2, TEXT[None], masks)
    assert even["focal"].item() == pytest.approx(2 * 0.25 * np.log(2), abs=1e-4)
    assert even["dice"].item() == pytest.approx(2 * (1 - (2 * 0.5 + 1) / (2 + 1 + 1)), abs=1e-5)
    assert even["total"] == even["focal"] + even["dice"]


# ---------------------------------------------------------------- the image side


def test_arrays_are_plain_clips(tiny_backbone):
    """Raw tokens, normed and projected, are those of the original path; ``image`` is CLIP's own embedding."""
    stream = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 80, 80, generator=stream)
    net = tiny_backbone.visual
    found = anomalyclip.encode(tiny_backbone, images, ["class", "image", "raw_1", "raw_q4", "none_1", "none_last"])
    for raw, plain in (("raw_1", "none_1"), ("raw_q4", "none_last")):
        torch.testing.assert_close(net.ln_post(found[raw]) @ net.proj, found[plain])
    with torch.inference_mode():
        torch.testing.assert_close(found["image"], tiny_backbone.model.encode_image(images), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found["image"], found["class"], atol=1e-3)
    both = aprilgan.encode(tiny_backbone, images, ["raw_1"])["raw_1"]
    torch.testing.assert_close(both, found["raw_1"])  # no position is resized at the size of the backbone


def test_resized_positions_are_open_clips(tiny_backbone):
    from open_clip.model import resize_pos_embed

    class Larger:
        class visual:  # noqa: N801  (the name it is looked up by)
            grid_size = (8, 8)

    state = {"visual.positional_embedding": tiny_backbone.visual.positional_embedding.clone()}
    resize_pos_embed(state, Larger)
    own = image_towers.resize_positions(tiny_backbone.visual, (8, 8), "bicubic")
    torch.testing.assert_close(own, state["visual.positional_embedding"])
    assert not torch.allclose(own, image_towers.resize_positions(tiny_backbone.visual, (8, 8)), atol=1e-3)


@pytest.mark.parametrize(("blocks", "ends"), [(24, [6, 12, 18, 24]), (12, [3, 6, 9, 12]), (6, [2, 3, 4, 6])])
def test_layers_are_the_ends_of_the_quarters(blocks, ends):
    assert [anomalyclip.quarter(blocks, part) for part in (1, 2, 3, 4)] == ends


def test_the_official_preset_takes_folder_names_and_draws_with_replacement():
    chosen = aprilgan.settings("official")
    assert (chosen.names, chosen.draws, chosen.image_score) == ("folder", "repeated", "stretched")
    assert aprilgan.settings("official", {"names": "cleaned"}).names == "cleaned"
    table = pd.DataFrame({"image": list("abcdef"), "category": "nut", "split": "train", "label": 0})
    own, other = (methods.ChosenMethod(Method(**OWN), aprilgan.settings(preset)) for preset in ("official", "paper"))
    drawn = [list(own.references(table, "nut", 4, seed).image) for seed in range(20)]
    assert any(len(set(names)) < 4 for names in drawn) and {len(names) for names in drawn} == {4}
    assert all(other.references(table, "nut", 4, seed).image.is_unique for seed in range(20))


def test_prompts_are_the_official_numbers():
    row = type("Row", (), {"class_name": "metal nut", "category": "metal_nut"})
    normal, anomalous, layers = aprilgan.wording(aprilgan.settings(), row)
    assert (len(set(normal)), len(set(anomalous)), layers) == (245, 175, 4)
    assert "there is the broken metal nut in the scene." in anomalous
    folder = aprilgan.wording(aprilgan.settings("paper", {"names": "folder", "layers": [2]}), row)
    assert "a photo of one flawless metal_nut." in folder[0] and folder[2] == 1


# ---------------------------------------------------------------- files


@pytest.fixture
def file(tmp_path, tiny_backbone):
    path = tmp_path / "projections.pth"
    learner = Projections(4, *aprilgan.widths(tiny_backbone), seed=3)
    aprilgan.write(learner, path, "visa", "", tiny_backbone.fingerprint)
    return path


def test_the_official_format_is_written_and_read(file, tiny_backbone):
    width, joint = aprilgan.widths(tiny_backbone)
    state = torch.load(file, weights_only=True)["trainable_linearlayer"]
    assert list(state) == [f"fc.{i}.{part}" for i in range(4) for part in ("weight", "bias")]
    assert state["fc.0.weight"].shape == (joint, width) and state["fc.3.bias"].shape == (joint,)
    torch.save({"trainable_linearlayer": state}, file)  # as the authors' files are
    learner, trained_on = aprilgan.read(tiny_backbone, file)
    assert trained_on == "" and torch.equal(learner.fc[2].weight, state["fc.2.weight"])


def refused(call, *said: str) -> None:
    with pytest.raises(InputError) as error:
        call()
    message = str(error.value)
    assert all(part in message for part in said) and "\n" not in message, message


def test_other_files_are_refused(file, tmp_path, tiny_backbone):
    good = torch.load(file, weights_only=True)

    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    width, joint = aprilgan.widths(tiny_backbone)
    state = good["trainable_linearlayer"]
    for content in (
        {"prompt_learner": state},
        {"trainable_linearlayer": {}},
        {"trainable_linearlayer": state | {"fc.1.weight": torch.zeros(joint, width + 1)}},
        {"trainable_linearlayer": state | {"fc.1.bias": torch.full((joint,), float("nan"))}},
        {"trainable_linearlayer": {key: value for key, value in state.items() if key != "fc.2.bias"}},
        {"trainable_linearlayer": Hostile()},
    ):
        torch.save(content, file)
        refused(lambda: aprilgan.read(tiny_backbone, file), "projections.pth is no APRIL-GAN checkpoint")
    file.write_bytes(b"no archive")
    refused(lambda: aprilgan.read(tiny_backbone, file), "projections.pth is no APRIL-GAN checkpoint")
    assert not (tmp_path / "ran").exists()


def test_projections_of_another_clip_are_refused(file, tiny_backbone):
    aprilgan.write(Projections(4, 5, 6), file, "visa")
    refused(lambda: aprilgan.read(tiny_backbone, file), "map 5 numbers to 6", "name the backbone")
    aprilgan.write(Projections(4, *aprilgan.widths(tiny_backbone)), file, "visa", "", "another")
    refused(lambda: aprilgan.read(tiny_backbone, file), "its weights are others", "name the backbone")


# ---------------------------------------------------------------- a run


@pytest.fixture
def job(mvtec, tmp_path, file):
    """Runs on tiny data, the method's keys and the profile's changed where asked."""

    def start(change: dict | None = None, **more):
        spec = OWN | {"checkpoint": str(file)} | (change or {})
        return run.run(small_profile(mvtec, tmp_path / "cache", **({"methods": [TINY, spec]} | more)))

    return start


def test_it_appears_wherever_methods_do(job):
    """Zero-shot and with references, beside WinCLIP, with maps and all metrics."""
    found = job(shots=[0, 2], seeds=[0, 1])
    rows = found.metrics[found.metrics.method == "APRIL-GAN"]
    assert sorted(map(tuple, rows[["shots", "seed"]].drop_duplicates().to_numpy())) == [(0, 0), (2, 0), (2, 1)]
    assert rows.pixel_auroc.notna().all() and found.scores.score.notna().all()
    assert {"APRIL-GAN, zero-shot", "APRIL-GAN, 2-shot"} <= set(found.headline().method)
    few = found.scores[found.scores.shots == 2].groupby(["category", "seed"])
    assert few.references.nunique().eq(1).all()  # the same draws as WinCLIP's
    few = found.scores[(found.scores.method == "APRIL-GAN") & (found.scores.shots == 2)]
    for _, part in few.groupby(["category", "seed"]):  # the greatest maximum of a category counts 1, the least 0
        assert part.score.between(0, 1).all() and part.score.max() >= 0.5
    weights = set(found.scores[found.scores.method == "APRIL-GAN"].weights)
    assert len(weights) == 1 and "+" in weights.pop()
    row, spec = found.index[found.index.split == "test"].iloc[0], found.profile.methods[1]
    parts = run.view_image(found.profile, row, spec).parts()
    assert list(parts)[-1] == "sum" and len(parts) == 5
    own = found.scores[(found.scores.image == row.image) & (found.scores.shots == 0)]
    own = own[own.method == "APRIL-GAN"]
    np.testing.assert_allclose(parts["sum"], found.maps(own)[0][0], atol=5e-3)
    assert found.kept(own)[0].shape == (1, 5, 5, 5)  # four layers' logits and the distances of a grid of 5 x 5
    framed = metrics.upsample(found.kept(own)[0][0], 60, 60)
    np.testing.assert_array_equal(found.framed(own)[0], framed)
    part = found.scores[(found.scores.variant == own.variant.iloc[0]) & (found.scores.category == own.category.iloc[0])]
    masks = [mask_files.framed_mask(one.mask, 60, 60, "squash", 60) for one in part.itertuples()]
    value = metrics.pixel_metrics(zip(found.framed(part), masks, strict=True))["pixel_auroc"]
    table = found.metrics[(found.metrics.variant == own.variant.iloc[0]) & (found.metrics.category == row.category)]
    assert value == pytest.approx(table.pixel_auroc.iloc[0])


def test_pictures_are_judged_one_by_one_on_a_fixed_scale(job, file):
    """A stretched score depends on the category's other images: thresholds and single pictures do without it."""
    found = job(shots=[0, 1])
    assert thresholds.score_normal_images(run.run, found, 0) is not None
    normal = thresholds.score_normal_images(run.run, found, 1).scores
    assert set(normal.method) == {"WinCLIP"}
    [spec] = [one for one in found.profile.methods if one.method == "aprilgan"]
    judged = methods.without_category_context(spec)
    assert judged.settings["image_score"] == "fixed" and methods.without_category_context(judged) == judged
    again = job({"settings": judged.settings}, shots=[0, 1])
    some = again.index[again.index.label == 0].image
    part = run.run(again.profile, table=again.index[again.index.image.isin(some)])

    def scores(results):
        few = results.scores[(results.scores.method == "APRIL-GAN") & (results.scores.shots == 1)]
        return few[few.image.isin(part.scores.image)].set_index("image").score

    pd.testing.assert_series_equal(scores(again).sort_index(), scores(part).sort_index())


def test_decide_scores_pictures_by_themselves_and_says_so(job, file, tmp_path):
    """Another picture in the folder moves no score of the first ones, as a stretched scale would."""
    found = job(shots=[0, 1])
    for i in range(12):
        paint(tmp_path / "new" / "good" / f"{i}.png", 500 + i)
    paint(tmp_path / "new" / "first.png", 1)
    alone = decide.decide(found.profile, tmp_path / "new", 0.1, "plate", "APRIL-GAN")
    assert "image_score: fixed" in alone.facts["scale"] and alone.describe().endswith("as published.")
    paint(tmp_path / "new" / "second.png", 2, spot=True)
    both = decide.decide(found.profile, tmp_path / "new", 0.1, "plate", "APRIL-GAN")
    assert both.facts["references"] == 1 and both.table.score.iloc[0] == alone.table.score.iloc[0]
    other = decide.decide(found.profile, tmp_path / "new", 0.1, "plate", "WinCLIP")
    assert "scale" not in other.facts


def test_features_are_anomalyclips_where_they_are_the_same(job, tmp_path):
    job(methods=[TINY | {"method": "clip", "settings": {"image_size": 80}}], shots=[0])
    job(methods=[OWN | {"checkpoint": str(tmp_path / "projections.pth")}], shots=[0])
    job({"settings": OWN["settings"] | {"image_size": 128}}, shots=[0])
    folders = sorted(path.name.rsplit("-", 1)[0] for path in (tmp_path / "cache" / "features").glob("*/*"))
    assert folders == ["anomalyclip-squash-rgb-80", "aprilgan-squash-rgb-128", "winclip-tiles-rgb-80"]


def test_wrong_input_is_named(job, tmp_path):
    refused(lambda: job({"checkpoint": ""}), "APRIL-GAN: its projections are missing", "set 'checkpoint'")
    refused(lambda: job({"checkpoint": "none.pth"}), "none.pth does not exist", "vlmad_lib train aprilgan")
    official = {"checkpoint": "none.pth", "trained_on": "visa"}
    refused(lambda: job(official), "ByChelsea/VAND-APRIL-GAN as exps/pretrained/visa_pretrained.pth")
    refused(lambda: job({"settings": OWN["settings"] | {"layers": [1, 2]}}), "projects 4 layers, the settings name 2")
    refused(lambda: job({"settings": OWN["settings"] | {"layers": [1, 1, 1, 9]}}), "there is no layer 9")
    refused(lambda: job({"settings": {"templates": "36"}}), "no set of templates '36'")
    refused(lambda: job({"settings": {"temprature": 1.0}}), "APRIL-GAN settings: unknown key 'temprature'")
    refused(lambda: job({"preset": "study"}), "no preset 'study'; use paper, official")


def test_it_is_not_tested_on_what_it_learned_from(job):
    refused(lambda: job({"trained_on": "mvtec"}), "says it was trained on visa")
    refused(lambda: job(dataset="visa"), "visa")
    torch_file = {"force_leak": True}
    assert job(torch_file).metrics.method.isin(["WinCLIP", "APRIL-GAN"]).all()  # another data set: no leak


def test_a_forced_leak_is_marked(mvtec, tmp_path, file, tiny_backbone):
    aprilgan.write(Projections(4, *aprilgan.widths(tiny_backbone)), file, "mvtec", "", tiny_backbone.fingerprint)
    own = OWN | {"checkpoint": str(file)}
    made = {"dataset": "mvtec", "shots": [0]}
    refused(
        lambda: run.run(small_profile(mvtec, tmp_path / "c", methods=[own], **made)),
        "the projections in", "trained on mvtec", "force_leak: true",
    )  # fmt: skip
    found = run.run(small_profile(mvtec, tmp_path / "c", methods=[own | {"force_leak": True}], **made))
    assert set(found.scores.method) == {"APRIL-GAN LEAKED"}
    assert any("its projections were trained on the very data" in one for one in found.facts["warnings"])


# ---------------------------------------------------------------- training


@pytest.fixture
def profile(tmp_path):
    return small_profile(make_mvtec(tmp_path / "data", ("plate",)), tmp_path / "cache", methods=[OWN], shots=[0])


def test_kept_features_train_as_encoding_on_the_fly_does(profile, tmp_path, tiny_backbone, monkeypatch):
    plan = Plan(epochs=3, batch=3)
    kept = train(APRILGAN, profile, tmp_path / "kept.pth", plan)

    def encode(store, paths, names):
        pixels = [tiny_backbone.normalise(image_files.views(path, "squash", 80)) for path in paths]
        found = [aprilgan.encode(tiny_backbone, one, names) for one in pixels]
        return {name: torch.cat([one[name] for one in found]) for name in names}, np.ones(len(paths), int)

    monkeypatch.setattr(feature_store.Store, "load", encode)
    fresh = train(APRILGAN, profile, tmp_path / "fresh.pth", plan)
    for one, other in zip(kept, fresh, strict=True):
        for name in APRILGAN.names:
            assert one[name] == pytest.approx(other[name], abs=1e-5)
    assert fresh[-1]["total"] < fresh[0]["total"]
    one, other = (aprilgan.read(tiny_backbone, tmp_path / f"{name}.pth")[0] for name in ("kept", "fresh"))
    torch.testing.assert_close(one.fc[0].weight, other.fc[0].weight, atol=1e-4, rtol=0)


def test_one_step_is_adams_on_the_published_losses(profile, tmp_path, tiny_backbone):
    """All images in one batch: the written projections are the drawn ones less one step."""
    train(APRILGAN, profile, tmp_path / "one.pth", Plan(epochs=1, batch=100, seed=5))
    found, _ = aprilgan.read(tiny_backbone, tmp_path / "one.pth")
    chosen = methods.ChosenMethod(Method(**OWN), aprilgan.settings("paper", OWN["settings"]))
    examples = training.examples(profile, chosen, tiny_backbone, Plan(), False, APRILGAN)
    batch = examples.batch(np.arange(8))
    learner = Projections(4, *aprilgan.widths(tiny_backbone), seed=5)
    words = aprilgan.wording(chosen.settings, batch.rows.iloc[0])
    text = F.normalize(prompts.prototypes(tiny_backbone, *words[:2]), dim=-1).expand(8, -1, -1)
    projected = [
        one(batch.arrays[name]) for one, name in zip(learner.fc, aprilgan.layers(chosen.settings), strict=True)
    ]
    loss(projected, text, batch.masks)["total"].backward()
    gradient, drawn = learner.fc[1].weight.grad, learner.fc[1].weight
    moved = found.fc[1].weight - drawn.detach()
    clear = gradient.abs() > 1e-5
    assert clear.any()
    torch.testing.assert_close(moved[clear], -1e-3 * gradient[clear].sign(), atol=2e-6, rtol=0)


def test_an_interrupted_training_goes_on_and_ends_the_same(profile, tmp_path):
    whole = train(APRILGAN, profile, tmp_path / "whole.pth", Plan(epochs=2, batch=4))
    train(APRILGAN, profile, tmp_path / "part.pth", Plan(epochs=1, batch=4))
    assert train(APRILGAN, profile, tmp_path / "part.pth", Plan(epochs=2, batch=4)) == whole
    one, other = (
        torch.load(tmp_path / f"{name}.pth", weights_only=True)["trainable_linearlayer"] for name in ("whole", "part")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)
    card = (tmp_path / "part.md").read_text()
    assert "Learned projections of APRIL-GAN" in card and "2 epochs, batch 4" in card and "focal + Dice" in card


def test_four_pictures_are_stitched_two_by_two(tmp_path):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    rows = []
    for number, colour in enumerate(colours):
        Image.new("RGB", (40, 20), colour).save(tmp_path / f"{number}.png")
        Image.new("L", (40, 20), 255).save(tmp_path / f"{number}_mask.png")
        mask = str(tmp_path / f"{number}_mask.png") if number == 2 else ""
        rows.append(pd.Series({"image": str(tmp_path / f"{number}.png"), "mask": mask, "width": 40, "height": 20}))
    pixels, mask = training._sheet(rows, 8)
    assert pixels.shape == (8, 8, 3) and mask.shape == (8, 8)
    corners = pixels[1, 1], pixels[1, 6], pixels[6, 1], pixels[6, 6]
    assert [tuple(map(int, one)) for one in corners] == colours
    assert mask[4:, :4].all() and not mask[:4].any() and not mask[:, 4:].any()


def test_kinds_are_drawn_before_pictures():
    """One good picture of a hundred and one is drawn as often as all the defective ones together."""
    table = pd.DataFrame({"category": "nut", "defect": ["good"] + ["dent"] * 100})
    stream = np.random.default_rng(0)
    drawn = [row.defect for _ in range(200) for row in training._four(table, "nut", stream)]
    assert 0.4 < drawn.count("good") / len(drawn) < 0.6


def test_stitched_examples_are_drawn_anew_each_epoch_and_alike_each_time(profile, tmp_path, tiny_backbone):
    chosen = methods.ChosenMethod(Method(**OWN), aprilgan.settings("paper", OWN["settings"]))
    plan = Plan(stitched=0.5)
    found = training.examples(profile, chosen, tiny_backbone, plan, False, APRILGAN)
    places = np.arange(len(found.table))

    def stitched(epoch: int) -> list[bool]:
        batch = found.batch(places)
        sheets = training._stitch(found.table, places, plan, epoch, found.store.size)
        training._encode_sheets(dataclasses.replace(batch, sheets=sheets), found, chosen)
        return [
            not torch.equal(*pair)
            for pair in zip(batch.arrays["raw_q1"], found.batch(places).arrays["raw_q1"], strict=True)
        ]

    assert stitched(0) == stitched(0) != stitched(1) and 0 < sum(stitched(0)) < len(places)
    train(APRILGAN, profile, tmp_path / "some.pth", Plan(epochs=1, stitched=0.5))
    assert "50% of the examples are four pictures stitched together" in (tmp_path / "some.md").read_text()


def test_pictures_without_masks_teach_nothing(tmp_path):
    for i in range(3):
        paint(tmp_path / "parts/bolt/good" / f"{i}.png", i)
        paint(tmp_path / "parts/bolt/bad" / f"{i}.png", 10 + i, spot=True)
    own = small_profile(tmp_path / "parts", tmp_path / "cache", methods=[OWN])
    refused(lambda: train(APRILGAN, own, tmp_path / "p.pth"), "has no masks; projections are learned from them")


def test_the_command_line(profile, tmp_path, capsys):
    import yaml

    file, out = tmp_path / "mine.yml", tmp_path / "mine.pth"
    file.write_text(yaml.safe_dump(profile.model_dump()))
    command = [str(file), "--out", str(out), "--epochs", "1"]
    assert training.main(["aprilgan", *command]) == 0 and out.is_file()
    assert "1 epochs, loss" in capsys.readouterr().out
    assert training.main(["aprilgan", *command, "--official"]) == 2
    assert "trains on mvtec or visa; leave --official out for other data" in capsys.readouterr().err
    own = [str(file), "--out", str(tmp_path / "o.pth"), "--official", "-p", "dataset=mvtec"]
    assert training.main(["aprilgan", *own]) == 0 and "3 epochs, loss" in capsys.readouterr().out
    assert "20% of the examples are four pictures" in (tmp_path / "o.md").read_text()
    assert training.main(["aprilgan", *command, "-p", "methods=[{}]"]) == 2
    assert "no APRIL-GAN method; add one" in capsys.readouterr().err
