"""MuSc: the official code's numbers, scores by hand, what must not matter, refusals, and runs of whole categories."""

from __future__ import annotations

import json
import shutil

import numpy as np
import parity
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, make_mvtec, paint, small_profile

from vlmad_lib import ROOT, InputError, methods
from vlmad_lib.analysis import efficiency, prompt_variants, robustness, thresholds
from vlmad_lib.config import Method
from vlmad_lib.encoders import backbones, image_towers
from vlmad_lib.methods import anomalyclip, musc
from vlmad_lib.methods.musc import MUSC
from vlmad_lib.pipeline import run, scoring, workload
from vlmad_lib.reporting import decide, explorer

OWN = TINY | {"method": "musc", "settings": {"rescoring": [1, 2]}}
RESIZED = TINY | {"method": "musc", "name": "Larger", "settings": {"image_size": 96, "neighbourhoods": [3]}}
ORACLE = ROOT / "tests" / "musc_small.json"


def drawn(images: int = 7, grid: int = 4, width: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    """The arrays of a category of alike images, each with noise of its own."""
    stream = torch.Generator().manual_seed(seed)
    shape = {name: (grid**2, width) for name in musc.LAYERS} | {"image": (5,)}
    return {
        name: torch.randn(1, *size, generator=stream) + 0.5 * torch.randn(images, *size, generator=stream)
        for name, size in shape.items()
    }


def scored(features: dict[str, torch.Tensor], **changes) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and maps (N, grid, grid) of the arrays of a category of 4 x 4 patches."""
    scores, stacks = MUSC.score(features, None, MUSC.settings("paper", changes), 4, side=16)
    return scores, stacks[:, 0]


# ---------------------------------------------------------------- the official code


def test_neighbourhoods_mutual_scores_and_rescoring_are_the_official_ones():
    oracle = json.loads(ORACLE.read_text())
    computed = parity._musc_functions(oracle["functions"], oracle["tolerances"]["functions"])
    expected = parity.musc_oracle(oracle)
    assert len(computed) == 6 + 12 + 2 + 7
    for name, (values, tolerance) in computed.items():
        assert parity.difference(values, expected[name]) <= tolerance, name


@pytest.mark.slow
def test_parity_with_the_official_code():
    compared = parity.compare(ORACLE)
    assert len(compared) > 140 and {name.endswith(parity.KEPT) for name, *_ in compared} == {True, False}
    for name, difference, tolerance in compared:
        assert difference <= tolerance, name


# ---------------------------------------------------------------- by hand


def test_a_patch_is_compared_with_the_nearest_patch_of_the_nearest_images():
    """Five images of one patch at angles: of four others, 0.3 of them is the nearest one alone."""
    angles = torch.tensor([0.0, 10, 40, 41, 90]) / 180 * np.pi
    units = torch.stack([angles.cos(), angles.sin()], -1)[:, None]
    found = musc.score_mutually(units, [0, 0.3])[:, 0]
    chord = [2 * np.sin(degrees / 360 * np.pi) for degrees in (10, 10, 1, 1, 49)]
    np.testing.assert_allclose(found, chord, atol=1e-5)
    later = musc.score_mutually(units, [0.25, 0.75])[:, 0]  # the second and the third nearest
    assert later[0].item() == pytest.approx(np.sin(20 / 180 * np.pi) + np.sin(20.5 / 180 * np.pi), abs=1e-5)
    anywhere = torch.stack([units[:, 0], units[:, 0].roll(1, 0)], 1)  # the place of a patch does not matter
    assert (musc.score_mutually(anywhere, [0, 0.3]) < 1e-3).all()


def test_a_window_is_the_direction_of_its_mean_after_the_mean_of_all_numbers_is_taken_off():
    tokens = torch.zeros(1, 9, 2)
    tokens[0, 4] = torch.tensor([9.0, 0])  # in the middle of 3 x 3: the mean of all 18 numbers is one half
    alone, wide = (musc.aggregate(tokens.half(), 3, size)[0] for size in (1, 3))
    corner = torch.tensor([9.0 - 4 * 0.5, -4 * 0.5])  # of four patches inside the image
    torch.testing.assert_close(wide[0], corner / corner.norm())
    torch.testing.assert_close(alone[0], torch.tensor([-1.0, -1]) / 2**0.5)
    assert alone.dtype == torch.float32


def test_rescoring_is_the_weighed_mean_of_the_most_alike():
    scores = torch.tensor([1.0, 2, 5])
    embeddings = torch.tensor([[1.0, 0], [0.8, 0.6], [0, 1]])  # cosines 0.8, 0 and 0.6
    found = musc.rescore(scores, embeddings, [2])
    np.testing.assert_allclose(found, [0.8 * 0.25 / 1.8, 0.25 / 1.8, (1 + 0.6 * 0.25) / 1.6], atol=1e-6)
    torch.testing.assert_close(musc.rescore(scores, embeddings, [1]), torch.tensor([0, 0.25, 1]))
    torch.testing.assert_close(
        musc.rescore(scores, embeddings, [1, 2]), (musc.rescore(scores, embeddings, [1]) + found) / 2
    )


# ---------------------------------------------------------------- what must not matter, and what must


def test_the_order_of_images_does_not_matter():
    features, order = drawn(), torch.tensor([3, 0, 6, 1, 5, 2, 4])
    scores, maps = scored(features)
    again, others = scored({name: values[order] for name, values in features.items()})
    torch.testing.assert_close(again, scores[order], atol=1e-5, rtol=0)
    torch.testing.assert_close(others, maps[order], atol=1e-5, rtol=0)


def test_images_that_are_all_alike_score_nothing():
    features = {name: values[:1].expand(7, *values.shape[1:]) for name, values in drawn(width=64).items()}
    scores, maps = scored(features)
    assert (scores == 0).all() and (maps < musc.ROUNDING).all()
    assert (scored(features, rescoring=[])[0] < musc.ROUNDING).all()


def test_another_image_changes_the_scores_and_a_rare_patch_stands_out():
    features = drawn(11)
    fewer = {name: values[:10] for name, values in features.items()}
    assert not torch.allclose(scored(features)[1][:10], scored(fewer)[1], atol=1e-3)
    odd = {name: values.clone() for name, values in features.items()}
    for name in musc.LAYERS:
        odd[name][2, 5] = -4 * odd[name][2, 5]
    scores, maps = scored(odd, rescoring=[], neighbourhoods=[1])
    assert scores.argmax() == 2 and maps[2].flatten().argmax() == 5


@pytest.mark.parametrize("rows", [1, 3, 11])
def test_blocks_of_images_change_no_score(monkeypatch, rows):
    features = drawn(11)
    scores, maps = scored(features)
    monkeypatch.setattr(musc, "NEAREST_BYTES", 4 * 11 * 16 * rows)
    monkeypatch.setitem(musc.PRODUCT_BYTES, "cpu", 4 * 16**2 * 2)
    found = scored(features)
    torch.testing.assert_close(found, (scores, maps), atol=1e-5, rtol=0)


def test_products_are_counted_as_they_are_computed(monkeypatch):
    """Half of all pairs where all similarities fit, and those between blocks twice."""
    computed, multiply = [], torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: computed.append(len(a) * 2 * a.shape[1] * b.shape[1]) or multiply(a, b)
    )
    for rows, subsets in ((11, 1), (3, 1), (11, 2)):
        monkeypatch.setattr(musc, "NEAREST_BYTES", 4 * 11 * 16 * rows)
        computed.clear()
        settings = MUSC.settings("mutual_scoring", {"subsets": subsets, "interval": [0, 0.5]})
        MUSC.score(drawn(11), None, settings, 4, side=16)
        assert sum(computed) / 1e9 == pytest.approx(MUSC.comparison_gflop(settings, 11, 4, 6))


def test_subsets_are_dealt_out_by_a_seed_and_compared_within():
    features = drawn(12)
    parts = musc.deal_out(12, 2, 0)
    assert sorted(torch.cat(parts).tolist()) == list(range(12)) and [len(part) for part in parts] == [6, 6]
    assert [part.tolist() for part in musc.deal_out(12, 2, 1)] != [part.tolist() for part in parts]
    scores, maps = scored(features, subsets=2, rescoring=[])
    for part in parts:
        alone = scored({name: values[part] for name, values in features.items()}, rescoring=[])
        torch.testing.assert_close((scores[part], maps[part]), alone)


# ---------------------------------------------------------------- settings, sizes and the encoder


def test_settings_and_what_they_need():
    paper, visa, alone = (MUSC.settings(name) for name in ("paper", "visa", "mutual_scoring"))
    assert (paper.rescoring, visa.rescoring, alone.rescoring) == ([1, 2, 3], [1, 8, 9], [])
    assert [MUSC.least_images(chosen) for chosen in (paper, visa, alone)] == [5, 9, 5]
    assert MUSC.least_images(MUSC.settings("paper", {"subsets": 3})) == 15
    assert "image" in MUSC.array_names(paper) and "image" not in MUSC.array_names(alone)
    with pytest.raises(InputError, match="'interval' is from 0.3 to 0.3; give two shares, the lower one first"):
        MUSC.settings("paper", {"interval": [0.3, 0.3]})
    with pytest.raises(InputError, match="key 'fit' has the value 'tiles'; input should be 'squash'"):
        MUSC.settings("paper", {"fit": "tiles"})
    with pytest.raises(InputError, match="neighbourhoods"):
        MUSC.settings("paper", {"neighbourhoods": [2]})


def test_the_neighbours_counted_are_those_of_the_oracle():
    """k of N as section 3 of the specification has it; none for fewer than five images."""
    counts = {2: 0, 4: 0, 5: 1, 7: 1, 8: 2, 10: 2, 11: 3, 20: 5, 42: 12, 83: 24, 167: 49, 200: 59}
    assert {n: musc._count_neighbours(0.3, n) for n in counts} == counts


@pytest.mark.parametrize(
    ("name", "size"), [("ViT-L-14-336", 518), ("ViT-L-14", 518), ("ViT-B-16-plus-240", 240), ("ViT-B-32", 224)]
)
def test_the_size_is_the_official_one_for_patches_of_14_pixels(name, size):
    assert musc.side(MUSC.settings(), backbones.build_skeleton(name)) == size


def test_positions_are_resized_without_antialias_and_shared_only_where_they_are_not(tiny_backbone, tmp_path):
    images = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    own, other = musc.encode(tiny_backbone, images, ["raw_1"]), anomalyclip.encode(
        tiny_backbone, images, ["raw_1"], "bicubic"
    )  # fmt: skip
    assert not torch.allclose(own["raw_1"], other["raw_1"], atol=1e-3)  # smaller: antialias blurs the table
    table = image_towers.resize_positions(tiny_backbone.visual, (3, 3), "cubic")
    patches = tiny_backbone.visual.positional_embedding[1:].unflatten(0, (5, 5)).permute(2, 0, 1)[None]
    right = F.interpolate(patches, (3, 3), mode="bicubic", align_corners=False)[0].flatten(1).T
    torch.testing.assert_close(table[1:], right)
    native, resized = (
        methods.ChosenMethod(Method(**spec), methods.settings(Method(**spec))) for spec in (OWN, RESIZED)
    )
    assert native.store(tmp_path, tiny_backbone).encode is anomalyclip.ANOMALYCLIP.encode
    assert native.store(tmp_path, tiny_backbone).size == 80 and resized.store(tmp_path, tiny_backbone).size == 96
    assert resized.store(tmp_path, tiny_backbone).encode is MUSC.encode


@pytest.mark.parametrize("name", ["timm/test_vit.r160_in1k", "timm/test_vit3.r160_in1k"])
def test_it_reads_other_towers_after_their_final_norm(name, tmp_path):
    net = backbones.load_backbone(name, "random:0")
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    found, tokens = musc.encode(net, images, [*musc.LAYERS, "image"]), image_towers.encode_tokens(net, images)
    torch.testing.assert_close(found["raw_q4"], tokens.patches)
    assert torch.equal(found["image"], tokens.image) and list(found) == [*musc.LAYERS, "image"]
    spec = Method(method="musc", backbone=name, weights="random:0")
    store = methods.ChosenMethod(spec, methods.settings(spec)).store(tmp_path, net)
    assert store.encode is MUSC.encode and store.size == 160


# ---------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> run.Results:
    folder = tmp_path_factory.mktemp("musc")
    root = make_mvtec(folder / "data", ("plate",), size=(70, 60))
    return run.run(small_profile(root, folder / "cache", methods=[TINY, OWN, RESIZED]))


def test_a_run_scores_the_category_from_kept_features(done):
    """Pictures that are not square are squashed; scores and maps are those of the arrays of all images together."""
    rows = done.scores[done.scores.method == "MuSc"]
    assert set(rows.shots) == {0} and set(rows.tiles) == {1} and set(rows.fit) == {"squash"} and len(rows) == 8
    spec = next(spec for spec in done.profile.methods if spec.name == "MuSc")
    chosen = methods.choose(spec, done.profile)
    store = chosen.store(done.cache, run._backbone(spec, done.profile))
    arrays, _ = store.load(list(rows.image), chosen.method.array_names(chosen.settings))
    scores, stacks = chosen.score(arrays, None, chosen.settings, 5, side=80)
    np.testing.assert_allclose(rows.score, scores, atol=1e-6)
    kept = np.load(done.cache / rows.map_file.iloc[0])
    np.testing.assert_allclose(kept, stacks, atol=1e-6)
    assert done.metrics.pixel_auroc.notna().all() and set(done.metrics.method) == {"WinCLIP", "MuSc", "Larger"}


def test_arrays_are_read_when_asked_for_and_by_name_alone(done):
    spec = next(spec for spec in done.profile.methods if spec.name == "MuSc")
    chosen = methods.choose(spec, done.profile)
    store = chosen.store(done.cache, run._backbone(spec, done.profile))
    images = list(done.scores[done.scores.method == "MuSc"].image)
    features = scoring.CategoryFeatures(store, images, ["image", "raw_q1"])
    assert list(features) == ["image", "raw_q1"] and features["raw_q1"].shape == (8, 25, 64)
    assert features["raw_q1"].dtype == torch.float16 and features["raw_q1"] is not features["raw_q1"]
    with pytest.raises(KeyError):
        features["raw_q2"]


def test_it_says_that_it_sees_the_unlabelled_test_set(done):
    (note,) = [note for note in done.facts["notes"] if "Batched zero-shot" in note]
    assert note.startswith("Batched zero-shot: MuSc, Larger. Before an image is scored all test images of its category")


def test_another_image_is_another_unit(tmp_path):
    root = make_mvtec(tmp_path / "data", ("plate",))
    profile = small_profile(root, tmp_path / "cache", methods=[OWN], shots=[0])
    first = run.run(profile).scores
    paint(root / "plate" / "test" / "good" / "004.png", 77)
    second = run.run(profile).scores
    assert len(second) == len(first) + 1 and not set(second.map_file) & set(first.map_file)
    both = first.merge(second, on="image")
    assert len(both) == len(first) and (both.score_x - both.score_y).abs().max() > 1e-4
    (root / "plate" / "test" / "good" / "004.png").unlink()
    assert run.run(profile).scores.equals(first)  # found again


def test_too_few_images_are_refused_before_anything_is_encoded(tmp_path, monkeypatch):
    root = make_mvtec(tmp_path / "data")
    for part in ("test", "ground_truth"):
        shutil.rmtree(root / "cloth" / part / "spot")
    monkeypatch.setattr(run, "_encode", lambda *_: pytest.fail("encoded"))
    with pytest.raises(
        InputError, match="MuSc: cloth has 4 test images, and MuSc .* compares at least 5 of a category"
    ):
        run.run(small_profile(root, tmp_path / "cache", methods=[OWN], shots=[0]))


def test_a_run_says_how_long_the_comparison_takes_where_that_is_minutes(mvtec, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(workload, "measure_peak", lambda *_: 1e-9)
    profile = small_profile(mvtec, tmp_path / "cache", methods=[OWN], shots=[0])
    monkeypatch.setattr(workload, "NOTEWORTHY", 0.0)
    run.run(profile, announce=True)
    told = capsys.readouterr().err
    assert "MuSc: 2 categories of 8 images to compare, each image with all others, " in told
    work = 2 * 28 * 12 * 2 * 25**2 * 64 / 1e9
    assert MUSC.comparison_gflop(MUSC.settings(), 8, 5, 64) * 2 == pytest.approx(work)
    assert workload._duration(work / 0.8e-9) in told and "the square of the images" in told
    fast = [workload.Comparison("MuSc", 8, 10.0, torch.device("cpu"))]
    monkeypatch.setattr(workload, "measure_peak", lambda *_: 50.0)
    assert workload.describe_comparison(fast) == "" == workload.describe_comparison([])


# ---------------------------------------------------------------- where the score of one image is asked for


def test_no_picture_has_a_score_of_its_own(done, drop):
    spec = next(spec for spec in done.profile.methods if spec.name == "MuSc")
    sentence = "MuSc scores all test images of a category together, so no picture has a score of its own"
    with pytest.raises(InputError, match=sentence):
        methods.without_category_context(spec)
    with pytest.raises(InputError, match=sentence):
        explorer.score_by_method(done, done.scores[done.scores.method == "MuSc"].iloc[0], spec)
    with pytest.raises(InputError, match=sentence):
        decide.decide(done.profile, drop, method="MuSc")
    with pytest.raises(InputError, match=sentence):
        decide.decide(done.profile.model_copy(update={"methods": [spec]}), drop)
    first = done.profile.model_copy(update={"methods": done.profile.methods[::-1]})
    assert decide.decide(first, drop).facts["method"] == "WinCLIP"  # the first that can


def test_analyses_of_single_images_leave_it_out(done):
    others = {"WinCLIP"}
    assert {spec.name for plan in robustness.plan_runs(done.profile) for spec in plan.methods} == others
    assert {spec.name for spec in prompt_variants.list_worded_methods(done.profile)} == others
    ran = []
    thresholds.score_normal_images(lambda profile, table: ran.append(profile), done)
    assert [spec.name for spec in ran[0].methods] == ["WinCLIP"]
    alone = done.profile.model_copy(update={"methods": done.profile.methods[1:]})
    assert robustness.run_shifts(robustness.plan_runs(alone)[0], done.index, done.index.head(1), []) is None


def test_its_cost_is_that_of_an_image_in_a_category_of_mean_size(done, monkeypatch):
    """Timed on five images, of which each has four others; in the data it has seven."""
    spec = next(spec for spec in done.profile.methods if spec.name == "MuSc")
    rows = done.index[done.index.split == "test"].head(2)
    monkeypatch.setattr(efficiency, "time_call", lambda call, *_: (call(), 1.0)[1])
    costs = efficiency.measure_costs(done.profile, spec, rows, repeats=1, memory=1.0)
    assert costs["score"] == pytest.approx(1e3 / 5 * 7 / 4) and costs["bare"] == costs["score"]
    assert costs["shots"] == 0 and costs["encode"] > 0
