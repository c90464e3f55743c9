"""Training on a device that this machine need not have: a forgotten move raises, and what is read ahead is the same."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, make_mvtec, small_profile
from fakes import move_to_fake, pretend
from torch._subclasses.fake_tensor import unset_fake_temporarily

from vlmad_lib import InputError, files, methods
from vlmad_lib.config import Method
from vlmad_lib.encoders import backbones
from vlmad_lib.methods import aprilgan, prompt_learner, training
from vlmad_lib.methods.objectives import APRILGAN, COOP, PROMPTS, _prototype
from vlmad_lib.methods.training import Batch, Plan, Task, train

DEVICES = ["cpu", "cuda", "mps"]
CASES = {
    "deep": (PROMPTS, {}),
    "no deep prompts": (PROMPTS, {"deep": False}),
    "class-aware": (PROMPTS, {"prompts": "class"}),
    "coop": (COOP, {}),
    "aprilgan": (APRILGAN, {"layers": [1, 2]}),
}


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> backbones.Backbone:
    """The tiny backbone with three blocks of text, so that there are deep prompts."""
    path = tmp_path_factory.mktemp("net") / "three.json"
    config = json.loads(Path(TINY["backbone"]).read_text(encoding="utf-8"))
    config["text_cfg"]["layers"] = 3
    path.write_text(json.dumps(config), encoding="utf-8")
    return backbones.load_backbone(str(path), "random:0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two categories of four good and four spotted pictures, and what is kept of them."""
    path = tmp_path_factory.mktemp("training")
    make_mvtec(path / "data")
    return path


def profile(folder: Path, task: Task, **changes):
    """The profile of a training on them."""
    method = TINY | {"method": task.method}
    return small_profile(folder / "data", folder / "cache", methods=[method], shots=[0], **changes)


def case(folder: Path, net: backbones.Backbone, name: str) -> tuple[Task, methods.ChosenMethod, torch.nn.Module, Batch]:
    """A task with its settings, a learner and a batch of four pictures, one of which has no mask."""
    task, settings = CASES[name]
    spec = Method(**TINY | {"method": task.method, "settings": settings})
    chosen = methods.ChosenMethod(spec, methods.settings(spec))
    found = training.examples(profile(folder, task), chosen, net, Plan(), False, task)
    batch = found.batch(np.array([0, 5, 9, 14]))
    assert batch.labels.tolist() == [0, 1, 0, 1] and batch.known == [True] * 4
    if not task.masks:
        batch = dataclasses.replace(batch, known=[True, True, True, False])
    learner = task.start(net, chosen.settings, 0)
    return task, chosen, learner, batch


def step(
    task: Task, chosen: methods.ChosenMethod, learner: torch.nn.Module, net: backbones.Backbone, batch: Batch
) -> None:
    """One step of training; gradients are made where this build of PyTorch cannot compute them on a fake device."""
    optimiser = torch.optim.Adam(learner.parameters(), 1e-3, (0.5, 0.999))
    terms = task.terms(learner, net, chosen.settings, batch)
    if terms["total"].requires_grad:
        terms["total"].backward()
    else:
        for value in learner.parameters():
            value.grad = fake(value, value.device)
    optimiser.step()
    assert {value.device.type for value in terms.values()} == {net.device.type}
    assert all(value.grad is None or value.grad.device == value.device for value in learner.parameters())
    assert any(value.grad is not None for value in learner.parameters())


def moved(net: backbones.Backbone, device: str) -> backbones.Backbone:
    """The backbone on a fake device."""
    return dataclasses.replace(net, model=move_to_fake(net.model, device), device=torch.device(device))


def fake(value: torch.Tensor, device: str | torch.device = "cpu") -> torch.Tensor:
    """A tensor of this shape and type without values."""
    return torch.empty(value.shape, dtype=value.dtype, device=device)


def can_go_back(device: str) -> bool:
    """Whether this build of PyTorch runs ``backward`` on tensors that only say they are on a device.

    A build for CUDA asks a GPU for its streams, and one without MPS ends the whole process.
    """
    return {
        "cpu": True,
        "cuda": torch.cuda.is_available() or not torch.backends.cuda.is_built(),
        "mps": torch.backends.mps.is_built(),
    }[device]


@pytest.fixture
def words(monkeypatch):
    """What values decide, on a device whose tensors have none: tokens, and embeddings of hand-written prompts."""
    tokenise = prompt_learner._tokenise

    def tokens(*about) -> tuple[torch.Tensor, tuple[int, ...]]:
        with unset_fake_temporarily():
            found, ends = tokenise(*about)
        return fake(found), ends

    def encode(backbone: backbones.Backbone, texts: list[str]) -> torch.Tensor:
        return torch.empty(len(texts), aprilgan.widths(backbone)[1], device=backbone.device)

    def enlarge(maps: torch.Tensor, size: torch.Size, **_) -> torch.Tensor:
        return maps.mean((2, 3), keepdim=True).expand(-1, -1, *size)

    def patch(device: str) -> None:
        monkeypatch.setattr(prompt_learner, "_tokenise", tokens)
        monkeypatch.setattr(backbones.Backbone, "encode_text", encode)
        if device == "mps" and not torch.backends.mps.is_built():  # without its kernel there is no fake one either
            monkeypatch.setattr(F, "interpolate", enlarge)

    yield patch
    _prototype.cache_clear()  # it must not keep fake ones


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_a_step_moves_all_it_needs(folder, net, name, device, words):
    task, chosen, learner, batch = case(folder, net, name)
    words(device)
    with pretend(device), torch.set_grad_enabled(can_go_back(device)):
        there = moved(net, device)
        on_device = batch._each(fake).to(there.device)
        step(task, chosen, move_to_fake(learner, device), there, on_device)


@pytest.mark.parametrize("device", DEVICES[1:])
@pytest.mark.parametrize("left", ["learner", "arrays", "masks"])
@pytest.mark.parametrize("name", ["deep", "aprilgan"])
def test_what_stays_behind_is_seen(folder, net, name, left, device, words):
    """The test above can fail: learner, arrays or masks that stay on the CPU."""
    task, chosen, learner, batch = case(folder, net, name)
    words(device)
    with pretend(device), torch.set_grad_enabled(can_go_back(device)):
        behind = batch._each(fake)
        on_device = behind.to(torch.device(device))
        if left != "learner":
            on_device = dataclasses.replace(on_device, **{left: getattr(behind, left)})
        own = move_to_fake(learner, "cpu" if left == "learner" else device)
        with pytest.raises(RuntimeError, match="two different devices|found two different|same device|expected device"):
            step(task, chosen, own, moved(net, device), on_device)


# ---------------------------------------------------------------- read ahead


def found(folder: Path, net: backbones.Backbone) -> training.Examples:
    """Sixteen pictures whose features are kept."""
    task, spec = PROMPTS, Method(**TINY | {"method": "anomalyclip"})
    chosen = methods.ChosenMethod(spec, methods.settings(spec))
    return training.examples(profile(folder, task), chosen, net, Plan(), False, task)


def test_what_is_read_ahead_is_what_is_read(folder, tiny_backbone):
    """The same batches in the same order, bit by bit, the last one shorter; and never many of them at once."""
    examples = found(folder, tiny_backbone)
    parts = np.array_split(np.random.default_rng(0).permutation(len(examples.table)), 7)
    asked = []
    coming = (asked.append(places) or places for places in parts)
    for number, (batch, places) in enumerate(zip(examples.each(coming, Plan(), 0), parts, strict=True), 1):
        alone = examples.batch(places)
        assert batch.rows.equals(alone.rows) and batch.known == alone.known and not batch.sheets
        assert all(torch.equal(batch.arrays[name], alone.arrays[name]) for name in examples.names)
        assert torch.equal(batch.masks, alone.masks) and batch.masks.any() == bool(batch.labels.any())
        assert len(asked) <= number + training.AHEAD
    assert number == len(asked) == 7
    assert all(mask.dtype == np.uint8 and mask.ndim == 1 for mask in examples.masks.values())


def test_reading_goes_on_while_a_step_computes(folder, tiny_backbone, monkeypatch):
    """Before the second batch is asked for, the third is read."""
    examples, read, third = found(folder, tiny_backbone), training.Examples.batch, threading.Event()
    monkeypatch.setattr(
        training.Examples, "batch", lambda self, places: (read(self, places), places[0] == 2 and third.set())[0]
    )
    batches = examples.each([np.array([place]) for place in range(5)], Plan(), 0)
    next(batches)
    assert third.wait(10)
    batches.close()


def test_what_a_reading_thread_raises_reaches_the_caller(folder, tmp_path, monkeypatch):
    read, before = files.read_array, set(threading.enumerate())

    def broken(file: Path) -> np.ndarray:
        if threading.current_thread() is not threading.main_thread():
            raise InputError("the disk is gone")
        return read(file)

    monkeypatch.setattr(files, "read_array", broken)
    with pytest.raises(InputError, match="the disk is gone"):
        train(PROMPTS, profile(folder, PROMPTS), tmp_path / "prompts.pth", Plan(epochs=1, batch=4))
    assert not [one for one in threading.enumerate() if one not in before and not one.daemon]
    assert not (tmp_path / "prompts.pth").exists()


def test_an_interruption_leaves_no_thread(folder, tmp_path, monkeypatch):
    before, own = set(threading.enumerate()), []

    def interrupted(*_):
        own.extend(one for one in threading.enumerate() if one not in before and not one.daemon)  # tqdm's is one
        raise KeyboardInterrupt

    task = dataclasses.replace(PROMPTS, terms=interrupted)
    with pytest.raises(KeyboardInterrupt) as held:  # what it holds keeps all frames, as a debugger would
        train(task, profile(folder, task), tmp_path / "prompts.pth", Plan(epochs=1, batch=2))
    assert held and own and not any(thread.is_alive() for thread in own)


def test_stitched_pictures_stand_where_they_were_drawn(folder, tiny_backbone):
    """Drawn and decoded ahead, encoded as they are alone; the other examples stay as they were."""
    task, settings = CASES["aprilgan"]
    spec = Method(**TINY | {"method": task.method, "settings": settings})
    chosen, plan = methods.ChosenMethod(spec, methods.settings(spec)), Plan(stitched=0.5)
    examples = training.examples(profile(folder, task), chosen, tiny_backbone, plan, False, task)
    (batch,) = examples.each([np.arange(8)], plan, 3)
    alone = examples.batch(np.arange(8))
    assert 0 < len(batch.sheets) < 8
    training._encode_sheets(batch, examples, chosen)
    for number in range(8):
        expected, mask = alone.arrays["raw_1"][number], alone.masks[number]
        if number in batch.sheets:
            pixels, cover = batch.sheets[number]
            images = tiny_backbone.normalise(pixels[None])
            expected, mask = chosen.method.encode(tiny_backbone, images, ["raw_1"])["raw_1"][0], torch.from_numpy(cover)
        assert torch.equal(batch.arrays["raw_1"][number], expected) and torch.equal(batch.masks[number], mask.float())


# ---------------------------------------------------------------- files


def test_a_state_is_kept_from_the_cpu():
    with pretend("cuda"):
        moments = {"step": torch.zeros(()), "exp_avg": torch.zeros(3, device="cuda")}
        kept = training._fetch({"optimiser": {"state": {0: moments}, "param_groups": [{"lr": 0.1}]}, "curve": [1]})
        assert {value.device.type for value in kept["optimiser"]["state"][0].values()} == {"cpu"}
        assert kept["optimiser"]["param_groups"] == [{"lr": 0.1}] and kept["curve"] == [1]


@pytest.mark.parametrize("write", ["anomalyclip", "coop", "aprilgan"])
def test_learners_are_written_from_the_cpu(tmp_path, net, write, monkeypatch):
    kept = []
    monkeypatch.setattr(torch, "save", lambda content, file: (kept.append(content), Path(file).touch()))
    task = {"anomalyclip": PROMPTS, "coop": COOP, "aprilgan": APRILGAN}[write]
    spec = Method(**TINY | {"method": write, "settings": CASES["aprilgan"][1] if write == "aprilgan" else {}})
    learner = task.start(net, methods.settings(spec), 0)
    with pretend("cuda"):
        there = move_to_fake(learner, "cuda")
        task.write(there, tmp_path / "x.pth", {"trained_on": "x", "root": "", "categories": []}, net)
    (content,) = kept
    tensors = [value for part in content.values() if isinstance(part, dict) for value in part.values()]
    assert tensors and {value.device.type for value in tensors} == {"cpu"}


def test_a_training_says_where_it_ran_and_its_key_does_not(folder, tmp_path, monkeypatch):
    """It goes on where another device stopped, and ends the same; the card names both."""
    whole = train(PROMPTS, profile(folder, PROMPTS), tmp_path / "whole.pth", Plan(epochs=2))
    with monkeypatch.context() as patch:
        patch.setattr(training.devices, "describe_device", lambda device: "another device")
        train(PROMPTS, profile(folder, PROMPTS, device="auto"), tmp_path / "part.pth", Plan(epochs=1))
    again = train(PROMPTS, profile(folder, PROMPTS, device="cpu"), tmp_path / "part.pth", Plan(epochs=2))
    assert again == whole
    own = training.devices.describe_device(torch.device("cpu"))
    assert f"**Computed on**: another device and {own}." in (tmp_path / "part.md").read_text(encoding="utf-8")


def test_a_device_that_is_not_there_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="'device: cuda' asks for a device"):
        train(PROMPTS, profile(folder, PROMPTS, device="cuda"), tmp_path / "x.pth", Plan(epochs=1))
