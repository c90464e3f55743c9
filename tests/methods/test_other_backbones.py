"""Methods on backbones that are no CLIP: what they need, what is refused, and memory banks on patch tokens alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import TINY, small_profile

from vlmad_lib import InputError, methods
from vlmad_lib.analysis import efficiency
from vlmad_lib.config import Method
from vlmad_lib.data import datasets
from vlmad_lib.encoders import backbones, image_towers
from vlmad_lib.methods import METHODS, memory_bank, winclip
from vlmad_lib.pipeline import run, workload

VIT = {"backbone": "timm/test_vit.r160_in1k", "weights": "random:0"}  # 160 pixels, 10x10 tokens, six narrow blocks
PLAIN = {"association": {"windows": []}}


def banks(**network) -> list[dict]:
    """The memory banks of a profile, without windows."""
    return [{"method": key, "settings": PLAIN.get(key, {}), **network} for key in memory_bank.METHODS]


@pytest.mark.parametrize("key", [key for key in METHODS if METHODS[key].needs])
def test_methods_with_words_are_refused_before_anything_is_encoded(key, mvtec, tmp_path, monkeypatch):
    chosen = methods.ChosenMethod(Method(method=key, **VIT), METHODS[key].settings())
    with pytest.raises(InputError, match="needs a text tower"):
        methods.load_backbone(chosen.spec)
    monkeypatch.setattr(methods, "choose", lambda spec, profile: chosen)
    monkeypatch.setattr(backbones, "load_backbone", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(InputError) as caught:
        run.run(small_profile(mvtec, tmp_path / "cache", methods=[chosen.spec.model_dump()]))
    sentence = str(caught.value)
    assert sentence == (
        f"{chosen.spec.name} needs a text tower, the blocks of CLIP's own ViT, which {VIT['backbone']} does not have; "
        "choose a backbone that has, such as ViT-B-16-plus-240, ViT-L-14-336-quickgelu, demo."
    )


def test_windows_are_refused_and_how_to_do_without():
    spec = Method(method="association", **VIT)
    with pytest.raises(InputError, match=r"needs the blocks of CLIP's own ViT, .* or set what .*windows: \[\]"):
        methods.load_backbone(spec)
    assert methods.load_backbone(spec.model_copy(update={"settings": {"windows": []}})).name == VIT["backbone"]


@pytest.mark.parametrize("name", backbones.HAVING_ALL)
def test_backbones_that_are_named_have_everything(name):
    assert backbones.build_skeleton(name).offers == set(backbones.NEEDS)


def test_what_a_backbone_lacks_is_said_where_it_is_asked_for():
    net = backbones.load_backbone(VIT["backbone"], "random:0")
    with pytest.raises(InputError, match="has not a text tower"):
        net.encode_text(["a cup"])
    with pytest.raises(InputError, match="has not the blocks of CLIP's own ViT"):
        winclip.encode(net, torch.zeros(1, 3, 160, 160), ["class"])


def test_memory_banks_run_on_own_pictures(mvtec, tmp_path):
    """All of them share one store; what CLIPs keep lies in WinCLIP's."""
    specs = [*banks(**VIT), {"method": "patchcore", "name": "PatchCore on CLIP", **TINY}]
    found = run.run(small_profile(mvtec, tmp_path / "cache", methods=specs, shots=[2], categories=["plate"]))
    assert len(found.metrics) == len(specs) and np.isfinite(found.scores.score).all()
    assert found.metrics.image_auroc.between(0, 1).all() and (found.scores.map_file != "").all()
    assert [fact["name"] for fact in found.facts["backbones"]] == [VIT["backbone"], TINY["backbone"]]
    stores = {place.parent.name.split("-")[0]: place.name for place in (tmp_path / "cache/features").glob("*/*")}
    assert stores.keys() == {"test_vit", "tiny"}
    assert stores["test_vit"].startswith("memory_bank-tiles-rgb-160") and stores["tiny"].startswith("winclip-tiles")


def test_arrays_of_a_tower_are_its_tokens():
    net = backbones.load_backbone(VIT["backbone"], "random:0")
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    names = ["class", "patch", "patch_ln_post", "patch_penultimate"]
    arrays, tokens = memory_bank.encode(net, images, names), image_towers.encode_tokens(net, images, [5, 6])
    expected = [tokens.image, tokens.blocks[6], tokens.patches, tokens.blocks[5]]
    for name, values in zip(names, expected, strict=True):
        assert torch.equal(arrays[name], values)
    assert memory_bank.encode(net, images, ["patch"]).keys() == {"patch"}


def test_work_and_costs_are_known_on_such_a_backbone(mvtec, tmp_path):
    """What one block computes is counted in full: projections, attention and MLP of 101 tokens of width 64."""
    profile = small_profile(mvtec, tmp_path / "cache", methods=banks(**VIT), shots=[1])
    spec = profile.methods[1]
    chosen = methods.choose(spec, profile)
    tokens, width, blocks = 101, 64, 6
    hidden = image_towers.build_timm(VIT["backbone"]).trunk.blocks[0].mlp.fc1.out_features
    block = 2 * tokens * width * (4 * width + 2 * hidden) + 4 * tokens**2 * width
    least = (blocks * block + 2 * 100 * width * 3 * 16**2) / 1e9
    assert workload.count_gflop(chosen, spec.backbone, 1) == pytest.approx(least, rel=0.01)
    rows = datasets.build_index(profile)[0]
    cost = efficiency.measure_costs(profile, spec, rows.iloc[:1], repeats=1, memory=1.0)
    assert cost["encode"] > 0 and cost["gflop"] == pytest.approx(least, rel=0.01)


@pytest.mark.parametrize(
    "name", ["timm/test_vit3", "timm/test_vit2", "timm/vit_small_patch16_dinov3", "ViT-B-16-SigLIP"]
)
def test_work_is_counted_for_every_kind_of_tower(name):
    """Attention in the place of a mean, registers, rotary positions, a trunk within open_clip: on the meta device."""
    net = backbones.build_skeleton(name)
    names = ["class", "patch", "patch_ln_post", "patch_penultimate"]
    work, numbers = workload.count_operations(memory_bank.encode, name, net.image_size, names)
    block = 2 * (net.grid**2 + net.prefix_tokens) * 12 * net.width**2 / 1e9
    assert net.depth * block * 0.7 < work < net.depth * block * 3
    assert numbers == (3 * net.grid**2 + 1) * net.width
