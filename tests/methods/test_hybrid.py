"""The hybrid: maps by hand, two stores as one, its leakage guard, weights that never see the data under test."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, make_mvtec, small_profile

from vlmad_lib import InputError, methods
from vlmad_lib.analysis import variants
from vlmad_lib.config import Method, check_record
from vlmad_lib.data import datasets
from vlmad_lib.encoders import feature_store
from vlmad_lib.evaluation import statistics
from vlmad_lib.methods import anomalyclip, hybrid, prompt_learner, winclip
from vlmad_lib.pipeline import run

TEXT = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # normal along x, anomalous along y


def feature(*values: float) -> torch.Tensor:
    """Unit vectors (n, 2) that the two prompts at temperature 0.07 call anomalous with these probabilities."""
    apart = torch.logit(torch.tensor(values, dtype=torch.float64)) * 0.07  # cosine to y less cosine to x
    angle = torch.asin(apart / 2**0.5) + torch.pi / 4
    return torch.stack([angle.cos(), angle.sin()], -1).float()


FEATURES = {
    "local_class": feature(0.5),
    "local_vv_last": feature(0.8, 0.2, 0.6, 0.4)[None],
    "window_1": feature(0.1, 0.9, 0.5, 0.3)[None],
}


@pytest.fixture
def prompted(tmp_path, tiny_backbone):
    """An AnomalyCLIP and a hybrid on the small backbone, with prompts of other data."""
    path = tmp_path / "prompts.pth"
    anomalyclip.write(anomalyclip.PromptLearner(tiny_backbone), path, "visa")
    spec = check_record(Method, TINY | {"method": "anomalyclip", "checkpoint": str(path), "name": "A"}, "test")
    return [spec, variants.make_hybrid(spec, "H", "squash")]


def test_windows_alone_and_fused_by_hand():
    alone = hybrid.Settings(windows=[1], full_image=False, local_weight=0)
    whole, found = hybrid.score(FEATURES, TEXT, alone, 2)
    assert whole.item() == pytest.approx(0.5, abs=1e-5)
    assert found[0].flatten().tolist() == pytest.approx([0.1, 0.9, 0.5, 0.3], abs=1e-5)
    equal = alone.model_copy(update={"local_weight": 0.5})
    _, found = hybrid.score(FEATURES, TEXT, equal, 2)
    assert found[0].flatten().tolist() == pytest.approx([0.45, 0.55, 0.55, 0.35], abs=1e-5)
    # the whole image, 0.5, is a scale of the windows' harmonic mean: 2 / (1 / 0.1 + 1 / 0.5) = 1 / 6
    full = alone.model_copy(update={"full_image": True})
    assert hybrid.score(FEATURES, TEXT, full, 2)[1][0, 0, 0].item() == pytest.approx(1 / 6, abs=1e-5)
    harmonic = equal.model_copy(update={"fusion": "harmonic", "local_weight": 0.25})
    one = hybrid.score(FEATURES, TEXT, harmonic, 2)[1][0, 0, 0].item()
    assert one == pytest.approx(1 / (0.75 / 0.1 + 0.25 / 0.8), abs=1e-5)
    marked = equal.model_copy(update={"image_score": "with_map"})
    assert hybrid.score(FEATURES, TEXT, marked, 2)[0].item() == pytest.approx((0.5 + 0.55) / 2, abs=1e-5)


def test_the_ends_of_the_weight_are_both_methods(tiny_backbone):
    """With learned words: WinCLIP's map from windows, AnomalyCLIP's from V-V tokens; its image score in both."""
    text = torch.randn(2, tiny_backbone.visual.proj.shape[1], generator=torch.Generator().manual_seed(1))
    size = tiny_backbone.image_size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    grid, chosen = tiny_backbone.grid, hybrid.Settings(image_size=size)
    kept = hybrid.encode(tiny_backbone, images, hybrid.arrays(chosen))
    local = anomalyclip.encode(tiny_backbone, images, ["class", "vv_last"])
    whole, near = anomalyclip.score(local, text, chosen.local, grid)
    found = hybrid.score(kept, text, chosen.model_copy(update={"local_weight": 1.0}), grid)
    assert torch.allclose(found[0], whole) and torch.allclose(found[1], near)
    wide = winclip.encode(tiny_backbone, images, ["window_2", "window_3"]) | {"class": local["class"]}
    found = hybrid.score(kept, text, chosen.model_copy(update={"local_weight": 0.0}), grid)
    assert torch.allclose(found[1], winclip.zero_shot(wide, text, chosen.windowed, grid)[1], atol=1e-6)


def test_maps_have_the_larger_grid(tiny_backbone):
    chosen = hybrid.Settings()
    side = hybrid.side(chosen, tiny_backbone)
    assert side > tiny_backbone.image_size
    images, text = torch.randn(1, 3, side, side), torch.randn(2, tiny_backbone.visual.proj.shape[1])
    kept = hybrid.encode(tiny_backbone, images, hybrid.arrays(chosen))
    grid = side // tiny_backbone.visual.patch_size[0]
    assert hybrid.score(kept, text, chosen, grid)[1].shape == (1, grid, grid)
    assert set(hybrid.parts(kept, text, chosen, grid)) == {"windows", "V-V", "fused"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"windows": []}, "windows"), ({"local_weight": 1.2}, "local_weight"), ({"wieght": 1}, "wieght")],
)
def test_wrong_settings_are_named(settings, words):
    with pytest.raises(InputError, match=words):
        hybrid.settings("paper", settings)
    with pytest.raises(InputError, match="preset 'study'"):
        hybrid.settings("study")


# ---------------------------------------------------------------- two stores as one


def test_it_reads_what_both_methods_keep_and_encodes_nothing(mvtec, tmp_path, prompted, monkeypatch):
    profile = small_profile(mvtec, tmp_path / "cache", shots=[0], categories=["plate"], methods=[TINY])
    assert variants.make_hand_written(prompted[0], profile, "tiles") == profile.methods[0]
    words = variants.make_hand_written(prompted[0], profile, "squash")
    assert words.name == "WinCLIP, same backbone" and words.backbone == prompted[0].backbone
    backbone = run._backbone(prompted[1], profile)
    table, _ = run.build_run_index(profile)
    for spec in (prompted[0], words):
        chosen = methods.choose(spec, profile)
        store = chosen.store(profile.path(profile.cache), backbone)
        store.fill(list(table.image), chosen.method.array_names(chosen.settings))
    joint = methods.choose(prompted[1], profile).store(profile.path(profile.cache), backbone)
    assert joint.missing(list(table.image), hybrid.arrays(hybrid.Settings())) == []
    monkeypatch.setattr(feature_store.Store, "_encode", None)
    results = run.run(profile.model_copy(update={"methods": [prompted[1]]}))
    assert len(results.scores) == 8 and set(results.scores.local_weight) == {"0.5"}


def test_tiles_that_are_no_whole_image_are_refused(tmp_path, prompted):
    root = make_mvtec(tmp_path / "data", ("plate",), size=(90, 60))
    profile = small_profile(root, tmp_path / "cache", shots=[0])
    tiled = prompted[1].model_copy(update={"settings": {"fit": "tiles"}})
    with pytest.raises(InputError, match=r"not square.*fit: squash"):
        run.run(profile.model_copy(update={"methods": [tiled]}))
    table, _ = run.build_run_index(profile)
    assert variants.choose_fit(table) == "squash" and variants.choose_fit(table.assign(width=60)) == "tiles"


# ---------------------------------------------------------------- leakage


def test_prompts_are_not_tested_on_their_own_data(mvtec, tmp_path, tiny_backbone):
    path = tmp_path / "own.pth"
    learner = prompt_learner.PromptLearner(tiny_backbone)
    prompt_learner.write(learner, path, "folder data", str(mvtec))
    spec = check_record(Method, TINY | {"method": "hybrid", "checkpoint": str(path)}, "test")
    profile = small_profile(mvtec, tmp_path, shots=[0])
    with pytest.raises(InputError, match="Hybrid: the prompts in .* were trained on"):
        run.list_variants(profile.model_copy(update={"methods": [spec]}))
    forced = run.list_variants(profile.model_copy(update={"methods": [spec.model_copy(update={"force_leak": True})]}))
    assert forced[0][0].chosen.name.endswith("LEAKED")


def test_weights_are_never_chosen_on_the_data_under_test(mvtec, tmp_path, prompted):
    profile = small_profile(mvtec, tmp_path, shots=[0])
    with pytest.raises(InputError, match="the data under test"):
        variants.measure_weights(run.run, profile, profile, prompted[0])
    visa = profile.model_copy(update={"dataset": "visa", "root": str(tmp_path / "elsewhere")})
    with pytest.raises(InputError, match="the data under test"):
        variants.measure_weights(run.run, visa, visa.model_copy(update={"root": str(tmp_path / "copy")}), prompted[0])
    lost = profile.model_copy(update={"root": str(tmp_path / "lost")})
    with pytest.raises(InputError, match="Auxiliary data in .*lost, which only choose the hybrid's weight: "):
        variants.measure_weights(run.run, profile, lost, prompted[0])
    other = small_profile(make_mvtec(tmp_path / "other" / "data", ("rope",)), tmp_path / "cache", shots=[0])
    assert datasets.describe_identity(other) == datasets.describe_identity(
        profile
    )  # own folders of one name are not the same data
    found = variants.measure_weights(run.run, profile, other, prompted[0])
    assert sorted(found.weight) == list(variants.WEIGHTS) and set(found.category) == {"rope"}


def test_the_best_weight_and_its_ties():
    table = pd.DataFrame({"weight": [0.0, 0.25, 0.5, 1.0], "pixel_auroc": [0.7, 0.9, 0.8, 0.9]})
    assert variants.choose_weight(table) == 0.25
    assert variants.choose_weight(table.assign(pixel_auroc=np.nan)) == 0.5


# ---------------------------------------------------------------- where it gains


def made(gain: dict[str, float], noise: float = 0.0) -> pd.DataFrame:
    """Four images of each category; base levels 0.5, 0.6 ... with a luck of its own for each image."""
    stream, rows = np.random.default_rng(0), []
    for number, (category, more) in enumerate(gain.items()):
        for image in range(4):
            base = 0.5 + 0.1 * number + noise * stream.normal()
            same = 0.5 + 0.1 * number + noise * stream.normal() + more
            for method, value in (("A", base), ("H", same)):
                rows.append((f"{category}{image}", category, "rigid", method, value))
    return pd.DataFrame(rows, columns=["image", "category", "group", "method", "auroc"])


def test_gains_where_the_base_is_worse_by_hand():
    found = variants.compare_halves(made({"a": 0.2, "b": 0.1, "c": 0.0, "d": -0.1}), "A").set_index("where")
    assert found.difference["A worse"] == pytest.approx(0.15) and found.n["A worse"] == 2
    assert found.difference["A better"] == pytest.approx(-0.05) and found.difference["all"] == pytest.approx(0.05)
    assert found.low["all"] == pytest.approx(statistics.paired([0.2, 0.1, 0.0, -0.1])[1])


def test_luck_is_no_gain():
    names = dict.fromkeys([f"c{number:02}" for number in range(40)], 0.0)
    table = made(names, noise=0.2)
    table["auroc"] -= table.category.map({name: 0.1 * number for number, name in enumerate(names)})  # all alike
    found = variants.compare_halves(table, "A").set_index("where")
    assert found.low["A worse"] < 0 < found.high["A worse"]
    wide = table.pivot(index=["category", "image"], columns="method", values="auroc").groupby("category").mean()
    apart = (wide.H - wide.A)[wide.A.median() > wide.A]
    assert statistics.paired(apart)[1] > 0  # the same images for both would find a gain that is none


def test_the_intervals_of_several_hybrids_hold_together():
    table = made({"a": 0.2, "b": 0.1, "c": 0.0, "d": -0.1})
    both = pd.concat([table, table[table.method == "H"].assign(method="I")])
    found = variants.compare_halves(both, "A").set_index(["method", "where"])
    expected = statistics.paired([0.2, 0.1, 0.0, -0.1], statistics.together(2))
    assert found.low["I", "all"] == found.low["H", "all"] == pytest.approx(expected[1])
    assert variants.compare_halves(table[table.method == "A"], "A").empty
