"""The factor of a backbone on temperatures: read from its config, applied once, chosen without labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, make_mvtec, small_profile

from vlmad_lib import InputError, methods, tables
from vlmad_lib.analysis import prompt_variants, published
from vlmad_lib.config import Method
from vlmad_lib.demo.data import CATEGORIES
from vlmad_lib.demo.training import card, temperature
from vlmad_lib.encoders import backbones
from vlmad_lib.encoders.backbones import cosine
from vlmad_lib.methods import METHODS, ChosenMethod, clip_baselines, objectives, training, winclip
from vlmad_lib.pipeline import run

PUBLISHED = {"winclip": 0.07, "anomalyclip": 0.07, "hybrid": 0.07, "aprilgan": 0.01, "coop": 0.01, "clip": 0.01}


@pytest.fixture
def scaled(tmp_path):
    """The path of the small backbone's config with a factor of 3."""
    path = tmp_path / "scaled.json"
    path.write_text(Path(TINY["backbone"]).read_text(encoding="utf-8"))
    rescale(path, 3)
    return str(path)


def rescale(path: str | Path, factor) -> None:
    """Put a factor into a config."""
    config = json.loads(Path(path).read_text(encoding="utf-8"))
    Path(path).write_text(json.dumps(config | {"temperature_factor": factor}))


def test_a_factor_is_of_the_config_alone(scaled, tiny_backbone):
    assert backbones.temperature_factor(scaled) == 3
    names = [TINY["backbone"], "ViT-B-16-plus-240", "ViT-L-14-336-quickgelu"]
    assert [backbones.temperature_factor(name) for name in names] == [1, 1, 1]
    loaded = backbones.load_backbone(scaled, TINY["weights"])
    assert loaded.temperature_factor == 3 and loaded.facts()["temperature_factor"] == 3
    assert loaded.key == tiny_backbone.key  # kept features serve both


@pytest.mark.parametrize("value", [0, -1, "15", True, None])
def test_a_wrong_factor_is_named(scaled, value):
    rescale(scaled, value)
    with pytest.raises(InputError, match="'temperature_factor'.*write a number above 0"):
        backbones.temperature_factor(scaled)


def test_every_method_that_divides_by_a_temperature_has_the_factor(scaled):
    known = {name for name, module in METHODS.items() if "temperature" in module.Settings.model_fields}
    assert known == set(PUBLISHED) == {name for name, module in METHODS.items() if module.reads_words}
    for name, expected in PUBLISHED.items():
        plain, wide = (
            methods.settings(Method(**TINY | {"method": name, "backbone": one})) for one in (TINY["backbone"], scaled)
        )
        assert plain == METHODS[name].settings() and plain.temperature == expected
        assert wide == plain.model_copy(update={"temperature": 3 * expected})
    own = Method(**TINY | {"backbone": scaled}, settings={"temperature": 0.5})
    assert methods.settings(own).temperature == 1.5  # a temperature of a profile is one for a large CLIP


def test_the_hybrid_hands_its_temperature_to_both_maps():
    chosen = METHODS["hybrid"].Settings(temperature=0.3)
    assert chosen.windowed.temperature == chosen.local.temperature == 0.3


def test_probability_is_the_sigmoid_of_the_difference_by_the_product(scaled, tiny_backbone):
    """Through what a run calls, with the right value written out; without a factor not a bit changes."""
    stream = torch.Generator().manual_seed(0)
    text = torch.randn(2, 8, generator=stream)
    features = {name: torch.randn(2, 25, 8, generator=stream) for name in ("vv_last", "none_last")}
    features |= {name: torch.randn(2, 8, generator=stream) for name in ("class", "image")}
    for name, array in {"winclip": "class", "anomalyclip": "class", "clip": "image", "coop": "image"}.items():
        for backbone, factor in ((scaled, 3), (TINY["backbone"], 1)):
            spec = Method(**TINY | {"method": name, "backbone": backbone})
            spec = spec.model_copy(update={"settings": {"windows": []}}) if name == "winclip" else spec
            chosen = ChosenMethod(spec, methods.settings(spec))
            whole, maps = chosen.score(features, text, chosen.settings, 5)
            cosines = cosine(features[array], text)
            right = torch.sigmoid((cosines[:, 1] - cosines[:, 0]) / (factor * PUBLISHED[name]))
            torch.testing.assert_close(whole, right, atol=1e-6, rtol=0)
            if factor == 1:
                plain = METHODS[name].score(features, text, METHODS[name].settings(overrides=spec.settings), 5)
                assert torch.equal(whole, plain[0]) and torch.equal(maps, plain[1])


def test_the_table_shows_the_temperature_that_was_used(scaled, tmp_path):
    """One run with both backbones: equal ranks, probabilities nearer one half, another key for another factor."""
    root = make_mvtec(tmp_path / "data", ("plate",))
    wide = TINY | {"backbone": scaled, "name": "wide"}
    profile = small_profile(root, tmp_path / "cache", methods=[TINY, wide], shots=[0])
    scores = run.run(profile).scores
    assert scores.groupby("method").temperature.unique().map(list).to_dict() == {
        "WinCLIP": ["0.07"],
        "wide": [str(0.07 * 3)],
    }
    plain, other = (scores[scores.method == name].score.to_numpy() for name in ("WinCLIP", "wide"))
    odds = [np.log(one / (1 - one)) for one in (plain.astype(float), other.astype(float))]
    np.testing.assert_allclose(odds[0], 3 * odds[1], atol=1e-4)
    rescale(scaled, 10)
    again = run.run(profile).scores
    assert set(again[again.method == "wide"].temperature) == {str(0.07 * 10)}


def test_training_learns_at_the_multiplied_temperature(scaled, tmp_path):
    profile = small_profile(tmp_path, tmp_path, methods=[TINY | {"method": "coop", "backbone": scaled}])
    assert training._method(objectives.COOP, profile, "").settings == clip_baselines.CoOpSettings(temperature=0.03)
    features = {"class": torch.eye(2), "vv_last": torch.eye(2)[None].expand(2, -1, -1).repeat(1, 2, 1)}
    text, labels, masks = torch.eye(2), torch.tensor([0, 1]), torch.zeros(2, 4, 4)
    wide = objectives.prompt_loss(features, text, labels, masks, temperature=0.5)
    assert wide.cross_entropy.item() == pytest.approx(np.log1p(np.exp(-2)))  # cosines 1 and 0, by a half
    plain = objectives.prompt_loss(features, text, labels, masks)
    assert plain.total == objectives.prompt_loss(features, text, labels, masks, temperature=0.07).total != wide.total


def test_a_config_that_changes_is_in_the_key_of_a_run():
    files = run._network_files(Method(backbone="demo", weights="demo", name="WinCLIP"))
    assert files == [str(backbones.DEMO_WEIGHTS), str(backbones.DEMO_CONFIG)]
    assert run._network_files(Method(backbone="ViT-B-16", weights="random:0", name="WinCLIP")) == ["", ""]


# ------------------------------------------------------------ the demo's own


@pytest.fixture(scope="module")
def demo():
    return backbones.load_backbone("demo")


def test_zero_shot_scores_of_the_demo_are_not_saturated(demo):
    """Twelve fresh scenes of a category never trained on: at the published temperature some lie above 0.9, now none."""
    images, masks = card.sample("roof_shingles", 3, 6, 6)
    features = winclip.encode(demo, demo.normalise(images), ["class"])
    text = winclip.text(
        demo, winclip.wording(winclip.settings(), pd.Series({"class_name": "roof shingles", "category": ""}))
    )
    spec = Method(backbone="demo", weights="demo", name="WinCLIP", settings={"windows": []})
    scores = [
        winclip.score(features, text, chosen, demo.grid)[0]
        for chosen in (winclip.settings(overrides=spec.settings), methods.settings(spec))
    ]
    assert (scores[0] > 0.9).any() and not ((scores[1] > 0.9) | (scores[1] < 0.1)).any()
    assert torch.equal(*(one.argsort() for one in scores)) and masks[6:].any((1, 2)).all()


def test_the_factor_of_the_demo_is_what_was_chosen():
    facts = json.loads(card.scale_file(backbones.DEMO_WEIGHTS).read_text(encoding="utf-8"))
    assert temperature.best(pd.DataFrame(facts["balance"])) == facts["factor"] == backbones.temperature_factor("demo")
    text = card.scale_section(backbones.DEMO_WEIGHTS)
    assert f"multiplied by {facts['factor']}**" in text and all(name in text for name in card.HELD_OUT)
    assert {CATEGORIES[name].group for name in facts["balance"]["category"]} == {"texture", "rigid", "flexible"}
    assert set(facts["balance"]["category"]) == set(facts["effect"]["category"]) == set(card.HELD_OUT)


def test_the_choice_is_where_words_and_references_vary_alike():
    rows = [(1, "a", 8.0), (1, "b", 2.0), (4, "a", 2.0), (4, "b", 0.5), (9, "a", 1.0), (9, "b", 0.2)]
    measured = pd.DataFrame(rows, columns=["factor", "category", "words"]).assign(references=1.0)
    assert card.words_to_references(measured).round(6).to_dict() == {1: 4.0, 4: 1.0, 9: round(0.2**0.5, 6)}
    assert temperature.best(measured) == 4


def test_what_is_measured_is_what_a_run_computes(monkeypatch):
    """A few-shot map and score of ``balance`` are those of ``winclip.score``; words and references by hand."""
    monkeypatch.setattr(temperature, "FACTORS", (2,))
    stream = torch.Generator().manual_seed(1)
    count = temperature.POOL + 8
    shapes = {"class": (count, 8), "window_2": (count, 16, 8), "window_3": (count, 9, 8), "patch": (count, 25, 8)}
    arrays = {name: torch.randn(*shape, generator=stream) for name, shape in shapes.items()}
    masks = np.zeros((count, 240, 240), bool)
    masks[-4:, 50:90, 60:100] = True
    text = torch.randn(2, 8, generator=stream)
    measured = temperature.balance({"x": (arrays, masks)}, {"x": text}, 5)
    chosen = winclip.settings(overrides={"temperature": 0.14})
    normal = {name: value[temperature.POOL : temperature.POOL + 4] for name, value in arrays.items()}
    row = measured.iloc[0]
    whole, words = winclip.zero_shot(normal, text, chosen, 5)
    assert row.words == pytest.approx(words.std().item(), abs=1e-6)
    draws = np.random.default_rng(temperature.SEED)
    draws = [draws.permutation(temperature.POOL)[:shots] for shots in temperature.SHOTS for _ in range(3)]
    tested = {name: value[temperature.POOL :] for name, value in arrays.items()}
    found = []
    for draw in draws[:3]:
        score, maps = winclip.score(tested, text, chosen, 5, {name: value[draw] for name, value in arrays.items()})
        found.append(temperature._measured(np.repeat([0, 1], 4), list(masks[-8:]), score, maps))
    mean = pd.DataFrame(found).mean()
    assert [row[f"{name}_1"] for name in temperature.MEASURES] == pytest.approx(list(mean[list(temperature.MEASURES)]))


def test_words_that_the_demo_never_read_are_known(demo, tiny_backbone):
    texts = ["damaged object", "a flawed Object", "zzz", "anomalous"]
    assert demo.unread_words(texts) == ["flawed", "zzz", "anomalous"] and tiny_backbone.unread_words(texts) == []
    embedded = demo.encode_text(["flawed object", "zzz object", "faulty object", "damaged object"])
    assert torch.equal(embedded[0], embedded[1]) and torch.equal(embedded[0], embedded[2])
    assert not torch.allclose(embedded[0], embedded[3], atol=0.1)


def test_variants_of_unread_words_are_left_out(demo, tiny_backbone):
    row = pd.Series({"class_name": "gear", "category": "gear"})
    spec = Method(method="anomalyclip", name="A", backbone="demo", weights="demo", settings={"image_size": 240})
    words = ("damaged", "defective", "flawed")
    family = prompt_variants.vary_settings(spec, {word: {"prompts": "object", "word": word} for word in words})
    brought = prompt_variants.find_unread_words(family, demo, row)
    assert brought == {f"A, {word}": [word] for word in ("defective", "flawed")}
    assert prompt_variants.find_unread_words(family, tiny_backbone, row) == {}
    pair = {"states": "own", "own_normal": ["a zzz {}"], "own_anomalous": ["a {} with damage"]}
    own = prompt_variants.vary_settings(Method(backbone="demo", weights="demo", name="W"), {"own pair": pair})
    assert prompt_variants.find_unread_words(own, demo, row) == {"W, own pair": ["zzz"]}


# ------------------------------------------------------------ what is said, and the published figures beside


def test_temperatures_are_told_where_they_are_not_the_published_ones():
    scores = pd.DataFrame({"method": ["WinCLIP", "A", "SPADE"], "temperature": ["1.05", "0.15", ""]})
    plain, wide = {"name": "ViT-B-16", "temperature_factor": 1.0}, {"name": "demo", "temperature_factor": 15.0}
    told = tables.explain_temperature(scores, [plain, wide])
    assert "`demo` (15)" in told and told.endswith("In use: WinCLIP 1.05, A 0.15.") and "ViT-B-16" not in told
    assert tables.explain_temperature(scores, [plain]) == tables.explain_temperature(scores, []) == ""


def test_published_means_are_read_as_printed():
    found = published.read_means(["WinCLIP+", "WinCLIP", "PatchCore"])
    assert list(found.method.unique()) == ["WinCLIP+", "WinCLIP", "PatchCore"]
    rows = found.set_index(["method", "shots"])
    assert rows.loc[("WinCLIP+", 4)].tolist() == pytest.approx([0.952, 0.962, 0.890])
    assert rows.loc[("PatchCore", 1)].tolist() == pytest.approx([0.834, 0.920, 0.797])
    assert published.read_means(["nobody"]).empty


def test_gains_from_references_stand_beside_the_papers():
    rows = [("WinCLIP", name, 0, 0, image, 0.8) for name, image in (("a", 0.6), ("b", 0.8))]
    rows += [("WinCLIP", name, 4, seed, 0.75 + 0.01 * seed, 0.85 + 0.001 * seed) for name in "ab" for seed in range(3)]
    table = pd.DataFrame(rows, columns=["method", "category", "shots", "seed", "image_auroc", "pixel_auroc"])
    found = published.compare_shot_gains(table).set_index("measure")
    assert list(found.shots) == [4, 4] and list(found.n) == [3, 3]
    assert found.published.tolist() == pytest.approx([0.952 - 0.9181, 0.962 - 0.8512])
    assert found.difference.tolist() == pytest.approx([0.06, 0.051])
    assert published.compare_shot_gains(table[table.shots > 0]).empty
