"""Devices: which one is chosen, and that every method encodes and scores wholly on it, checked without having it."""

from __future__ import annotations

import functools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import fakes
import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, make_mvtec, small_profile
from PIL import Image

from vlmad_lib import InputError, config, files
from vlmad_lib.encoders import backbones, devices, feature_store
from vlmad_lib.encoders.backbones import Backbone
from vlmad_lib.methods import METHODS, aprilgan, winclip
from vlmad_lib.pipeline import run, scoring

OTHERS = ("cuda", "mps")
HALVED = [("winclip", "bf16"), ("anomalyclip", "bf16")]  # whose encoders are those of all


def moved(backbone: Backbone, device: str, precision: str = "fp32") -> Backbone:
    """A backbone of fake weights on a device."""
    model = fakes.move_to_fake(backbone.model, device)
    return replace(backbone, model=model, device=torch.device(device), precision=precision)


# ---------------------------------------------------------------- which device


@pytest.mark.parametrize(
    ("cuda", "mps", "name"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu"), (True, False, "cuda")]
)
def test_auto_takes_the_first_device_there_is(monkeypatch, cuda, mps, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", functools.cache(lambda: mps))
    assert devices.choose_device("auto").type == name
    assert devices.choose_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", OTHERS)
def test_a_device_that_is_not_there_is_refused_in_a_sentence(monkeypatch, mvtec, tmp_path, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", functools.cache(lambda: False))
    with pytest.raises(InputError, match=f"'device: {name}' asks for a device that PyTorch .* has cpu; write"):
        run.run(small_profile(mvtec, tmp_path, device=name))


def test_tf32_is_refused_off_an_nvidia_gpu(mvtec, tmp_path):
    with pytest.raises(InputError, match="'precision: tf32' is for NVIDIA GPUs, and this run uses cpu"):
        run.run(small_profile(mvtec, tmp_path, device="cpu", methods=[TINY | {"precision": "tf32"}]))


@pytest.mark.parametrize(("precision", "short"), [("fp32", False), ("bf16", False), ("tf32", True)])
def test_products_of_an_nvidia_gpu_are_as_the_precision_says(precision, short):
    def flags() -> tuple:
        cudnn = torch.backends.cudnn
        return torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.enabled

    before = flags()
    with devices.multiply_in(precision, torch.device("cuda")):
        assert flags() == (short, short, True)
    assert flags() == before


def test_fp16_on_the_cpu_is_near_fp32(tiny_backbone):
    half = backbones.load_backbone(TINY["backbone"], TINY["weights"], "fp16")
    images = torch.randn(2, 3, half.image_size, half.image_size, generator=torch.Generator().manual_seed(0))
    near, exact = (winclip.encode(net, images, ["class", "window_2"]) for net in (half, tiny_backbone))
    for name, values in exact.items():
        assert torch.cosine_similarity(near[name], values, dim=-1).min() > 1 - 1e-4
        assert not torch.equal(near[name], values)


def test_the_device_is_in_no_key(mvtec, tmp_path, monkeypatch):
    """A run that another device computed is found again, and the file says on which it was."""
    first = run.run(small_profile(mvtec, tmp_path, device="cpu"))
    assert first.facts["devices"] == {name: [devices.describe_device(devices.CPU)] for name in ("encoding", "scoring")}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(run, "_compute", lambda *_: pytest.fail("computed again"))
    assert run.run(small_profile(mvtec, tmp_path, device="cuda")).scores.equals(first.scores)


# ---------------------------------------------------------------- nothing is left on another device


@pytest.mark.parametrize("device", OTHERS)
@pytest.mark.parametrize(("name", "precision"), [*((name, "fp32") for name in METHODS), *HALVED])
def test_a_method_encodes_and_scores_on_its_device(tiny_backbone, name, device, precision):
    module = METHODS[name]
    brief = {"epochs": 1, "image_size": 32} if module.keeps_networks else {}
    chosen, joint = module.settings(overrides=brief), tiny_backbone.visual.proj.shape[1]
    network = module.build_network(chosen).eval() if module.keeps_networks else None
    projections = aprilgan.Projections(4, *aprilgan.widths(tiny_backbone)).requires_grad_(False)
    with fakes.pretend(device):
        net = moved(tiny_backbone, device, precision)
        side = module.image_side(chosen, net)
        pixels = torch.empty(3, side, side, 3, dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
        arrays = module.encode(net, net.standardise(pixels.float() / 255), module.array_names(chosen, 2))
        text = torch.empty(2, joint, device=device)
        if module.scores_whole_category:
            arrays = {key: value.repeat(2, *[1] * (value.ndim - 1)).half() for key, value in arrays.items()}
            found = module.score(arrays, None, chosen, side // net.patch_size, side=side)
            assert {value.device.type for value in found} == {device}
            assert {value.dtype for value in found} == {torch.float32}
            return
        more = {"learned": fakes.move_to_fake(projections, device)} if name == "aprilgan" else {}
        one, two = ({key: value[rows] for key, value in arrays.items()} for rows in (slice(1), slice(1, 3)))
        fixed = one, text, chosen, side // net.patch_size
        found = [module.score(*fixed, None, **more)] if module.zero_shot else []
        if module.few_shot:
            # a training needs gradients, which fake tensors do not have on every device
            memory = fakes.move_to_fake(network, device) if network else module.remember(two, chosen, fixed[-1])
            found.append(module.score(*fixed, memory, **more))
        if module.scores_draws_together:
            found.append(module.score(*fixed, memory, [torch.tensor([0, 1]), torch.tensor([1])]))
        everything = [*arrays.values(), *(part for pair in found for part in pair)]
        # MPS has no float64, so PaDiM's memory and scores are the CPU's there
        own = {"cpu"} if (name, device) == ("padim", "mps") else {device}
        assert {value.device.type for value in arrays.values()} == {device}
        assert {value.device.type for pair in found for value in pair} == own
        assert {value.dtype for value in everything} == {torch.float32}


@pytest.mark.parametrize("device", OTHERS)
def test_a_forgotten_move_raises(tiny_backbone, device):
    with fakes.pretend(device):
        net = moved(tiny_backbone, device)
        pixels = torch.empty(1, 3, net.image_size, net.image_size, device=device)
        arrays = winclip.encode(net, pixels, ["class", "window_2", "window_3"])
        with pytest.raises(RuntimeError, match="same device"):
            winclip.score(arrays, torch.empty(2, tiny_backbone.visual.proj.shape[1]), winclip.settings(), 5)


@pytest.mark.parametrize("device", OTHERS)
def test_texts_are_read_on_the_device(tiny_backbone, device, monkeypatch):
    """Where a text ends is looked up in the tokens on the CPU; everything after that is the device's."""
    with fakes.pretend(device):
        monkeypatch.setattr(torch.Tensor, "argmax", lambda tokens, dim: looked.append(tokens.device.type) or end)
        looked, end = [], torch.tensor(6)
        monkeypatch.setattr(backbones.open_clip.transformer, "text_global_pool", lambda x, *_: x[:, -1])
        found = moved(tiny_backbone, device)._text(torch.empty(3, 77, dtype=torch.long))
    assert (found.device.type, tuple(found.shape), looked) == (device, (3, 32), ["cpu"])


# ---------------------------------------------------------------- batches of one shape


@pytest.fixture
def as_accelerator(monkeypatch):
    """The CPU is used as an accelerator is: batches of one shape, threads that read, scores in this process."""
    monkeypatch.setattr(devices, "is_accelerator", lambda device: True)


@pytest.fixture
def pictures(tmp_path) -> list[str]:
    """Eight pictures, of which the last two are long and have several tiles."""
    root = make_mvtec(tmp_path / "data", ("plate",))
    paths = sorted(str(path) for path in (root / "plate" / "test").rglob("*.png"))
    for seed, path in enumerate(paths[-2:]):
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (60, 150, 3), dtype=np.uint8)).save(path)
    return paths


NAMES = ["class", "window_2", "window_3", "patch"]


def fill(folder, backbone, paths, batch=None, encode=winclip.encode) -> dict[str, torch.Tensor]:
    """The arrays of pictures from a store of their own."""
    store = feature_store.Store(
        folder, backbone, encode, winclip.ENCODER_VERSION, backbone.image_size, "tiles", "rgb", True
    )
    assert store.fill(paths, NAMES, batch) == len(paths)
    assert store.missing(paths, NAMES) == []
    return store.load(paths, NAMES)[0]


@pytest.mark.parametrize("batch", [3, 4, 16])
def test_batches_with_threads_give_what_one_by_one_gives(tiny_backbone, pictures, tmp_path, monkeypatch, batch):
    plain = fill(tmp_path / "plain", tiny_backbone, pictures)
    monkeypatch.setattr(devices, "is_accelerator", lambda device: True)
    monkeypatch.setitem(vars(tiny_backbone), "window_tokens_at_once", 70)  # parts of windows that are filled up too
    found = fill(tmp_path / "batches", tiny_backbone, pictures, batch)
    for name, values in plain.items():
        torch.testing.assert_close(found[name], values, atol=2e-5, rtol=1e-5)


def test_every_batch_has_one_shape_whatever_is_left_to_encode(tiny_backbone, pictures, tmp_path, as_accelerator):
    shapes = set()

    def encode(backbone, images, names):
        shapes.add(tuple(images.shape))
        return winclip.encode(backbone, images, names)

    whole = fill(tmp_path / "whole", tiny_backbone, pictures, 4, encode)
    alone = fill(tmp_path / "alone", tiny_backbone, pictures[-1:], 4, encode)
    assert shapes == {(4, 3, tiny_backbone.image_size, tiny_backbone.image_size)}
    for name, values in alone.items():
        torch.testing.assert_close(values, whole[name][-len(values) :], atol=1e-5, rtol=1e-5)


def test_too_little_memory_halves_the_batch(tiny_backbone, pictures, tmp_path, as_accelerator):
    sizes = []

    def encode(backbone, images, names):
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("too much")
        return winclip.encode(backbone, images, names)

    found = fill(tmp_path / "small", tiny_backbone, pictures, 8, encode)
    assert sizes[:3] == [8, 4, 2] and set(sizes[3:]) == {2}
    place = (winclip.ENCODER_VERSION, tiny_backbone.image_size, "squash", "rgb")
    store = feature_store.Store(tmp_path / "again", tiny_backbone, encode, *place)
    sizes.clear()
    store.fill(pictures[:4], NAMES, 4)
    store.fill(pictures[4:], NAMES, 4)
    assert sizes == [4, 2, 2, 2, 2]  # what fits is remembered
    for name, values in fill(tmp_path / "large", tiny_backbone, pictures, 2).items():
        assert torch.equal(values, found[name])

    def never(backbone, images, names):
        raise torch.OutOfMemoryError("too much")

    with pytest.raises(InputError, match="too small for one picture of .* set 'device: cpu'"):
        fill(tmp_path / "none", tiny_backbone, pictures, 8, never)


def test_a_run_on_an_accelerator_gives_the_scores_of_the_cpu(mvtec, tmp_path, monkeypatch):
    methods_of_run = [TINY, *({"method": name} | TINY for name in ("association", "patchcore", "padim", "spade"))]
    profile = small_profile(mvtec, tmp_path / "cpu", methods=methods_of_run, shots=[0, 1, 2], seeds=[0, 1])
    plain = run.run(profile)
    monkeypatch.setattr(devices, "is_accelerator", lambda device: True)
    changes = {"cache": str(tmp_path / "other"), "workers": 2, "batch": 3}
    with joblib.parallel_config("threading"):  # as processes do, but for the seconds that those take to start
        found = run.run(profile.model_copy(update=changes))
    for table in ("scores", "metrics"):
        pair = [getattr(one, table).drop(columns="map_file", errors="ignore") for one in (plain, found)]
        pd.testing.assert_frame_equal(*pair, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(plain.framed(plain.scores), found.framed(found.scores), rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------- work is shared by claims


def test_every_precision_of_a_profile_has_a_type():
    assert tuple(devices.TYPES) == config.PRECISIONS


def test_two_stores_share_the_work(tiny_backbone, pictures, tmp_path):
    """Each image is encoded by one of them, and both go on when all are there."""
    done = {0: [], 1: []}

    def fill_as(number: int) -> int:
        def encode(backbone, images, names):
            time.sleep(0.02)
            done[number].append(len(images))
            return winclip.encode(backbone, images, names)

        place = (winclip.ENCODER_VERSION, tiny_backbone.image_size, "squash", "rgb")
        encode.__module__ = winclip.__name__  # they keep the same features
        store = feature_store.Store(tmp_path / "cache", tiny_backbone, encode, *place)
        store.fill(pictures, NAMES)
        return len(store.missing(pictures, NAMES))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(fill_as, (0, 1))) == [0, 0]
    assert sum(done[0]) + sum(done[1]) == len(pictures) and done[0] and done[1]
    assert not list((tmp_path / "cache").rglob(".*.lock"))


def test_what_another_process_claims_and_leaves_undone_is_done_here(tiny_backbone, pictures, tmp_path):
    place = (winclip.encode, winclip.ENCODER_VERSION, tiny_backbone.image_size, "squash", "rgb")
    store = feature_store.Store(tmp_path / "cache", tiny_backbone, *place)
    claim = files.Claim(store._folder(pictures[0]))
    assert claim.take() and not files.Claim(store._folder(pictures[0])).take()
    with ThreadPoolExecutor(1) as pool:
        filling = pool.submit(store.fill, pictures, NAMES)
        while store.missing(pictures[1:], NAMES):
            time.sleep(0.01)
        assert not filling.done() and store.missing(pictures, NAMES) == pictures[:1]
        claim.give_back()
        assert filling.result() == len(pictures)
    assert store.missing(pictures, NAMES) == []


def test_two_runs_at_once_share_their_units(mvtec, tmp_path, monkeypatch):
    scored, add = [], scoring.Scorer.add

    def add_slowly(scorer, image, *more):
        scored.append((image, scorer.references is not None))
        time.sleep(0.01)
        return add(scorer, image, *more)

    monkeypatch.setattr(scoring.Scorer, "add", add_slowly)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: run.run(small_profile(mvtec, tmp_path / "cache")), range(2))
    assert one.scores.equals(other.scores)
    assert len(scored) == len(set(scored)) == 2 * one.scores.image.nunique()


def test_scoring_reads_no_weights_again(mvtec, tmp_path, monkeypatch):
    """Another temperature on kept features: the grid and the key of the backbone are known, so nothing is loaded."""
    first = run.run(small_profile(mvtec, tmp_path / "cache"))
    run._loaded.cache_clear()
    monkeypatch.setattr(backbones, "load_backbone", lambda *_: pytest.fail("weights were read"))
    warmer = TINY | {"settings": {"temperature": 0.5}}
    found = run.run(small_profile(mvtec, tmp_path / "cache", methods=[warmer]))
    assert not np.allclose(found.scores.score, first.scores.score)
