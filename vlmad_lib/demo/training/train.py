"""Train the demo CLIP from scratch on the auxiliary categories: ``python -m vlmad_lib.demo.training.train``.

First the text tower, on captions alone: captions that say the same, a class name and a state, get the same
embedding. Then, against that locked text, the image tower. Pictures come in twos, one with a defect and a clean one
of the same category, often of the same scene, with two captions, one normal and one anomalous, and everything that
the methods read is asked "which of the two captions fits?": the class token of whole pictures and of windows, and
every patch token (large CLIPs align their patches by themselves, a small one needs this term). Two more terms ask
which class name fits, and that a patch be near some patch of the clean picture unless it is defective. Targets are
never seen. The shipped weights were made in parts, each with other settings: their card tells them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from joblib import Parallel, delayed
from safetensors.torch import save_file
from torch import Tensor, multiprocessing
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from vlmad_lib import ROOT
from vlmad_lib.demo.data import CATEGORIES, CONTRASTS, names, render
from vlmad_lib.demo.training.captions import CAPTIONS, caption_bank, learn_text, schedule
from vlmad_lib.demo.training.card import HELD_OUT, card, validate
from vlmad_lib.demo.training.muon import Muon
from vlmad_lib.encoders import backbones
from vlmad_lib.encoders.vit_blocks import Block
from vlmad_lib.files import replace_file
from vlmad_lib.methods import anomalyclip, winclip

SIZE, GRID, PATCH, TAU = 240, 15, 16, 0.07
ANY = {"surface": 5, "panel": 5, "pad": 4, "cast_part": 4}
"""Categories of which no two pictures are alike, drawn that many times as often as the others."""
LEAST = 0.1, 50  # share of a patch and pixels of a window that must be defective to call it so
NEAR = 0.15, 0.04  # half cosine distances to the clean picture: where normal ends, and how sharply
NOTE_STEPS, CHECK_STEPS, SAVE_SECONDS = 100, 1500, 120


@dataclass
class Settings:
    """What decides a training run, besides the code."""

    seed: int = 0
    scenes: int = 500  # pairs a category
    text_steps: int = 1000
    text_rate: float = 2.0e-3
    captions: int = 96  # a step of the text tower
    crop_steps: int = 3000  # first steps, on crops; the others are on whole pictures
    steps: int = 15500
    warm: int = 300
    rate: float = 4.0e-4
    decay: float = 0.05
    tokens: int = 1812  # of pictures in half a step
    windows: int = 32  # of each size in half a step
    objects: int = 2  # times as often as textures: the class token finds their defects harder
    graft: float = 0.3  # share of defects that are laid over another category's scene
    same_scene: float = 0.3  # share of clean pictures that show the defect's own scene
    class_weight: float = 2.0
    near_weight: float = 0.5
    window_weight: float = 0.5
    name_weight: float = 0.1
    early_weight: float = 0.3  # patch tokens of the layers before the last
    local_weight: float = 0.5  # patch tokens of AnomalyCLIP's V-V path, in the first local_steps
    local_steps: int = 8500
    muon: bool = True  # AdamW otherwise
    bf16: bool = True


# ---------------------------------------------------------------- pictures


def scenes(folder: Path, category: str, count: int, seed: int) -> Path:
    """The pairs of a category, drawn once: (count, 2, 240, 240, 3) uint8, and the defects' masks."""
    place = folder / f"{category}-{count}-{seed}"
    if (place / "done").is_file():
        return place
    place.mkdir(parents=True, exist_ok=True)
    stream = np.random.default_rng([seed, zlib.crc32(category.encode())])
    pictures = np.lib.format.open_memmap(place / "pictures.npy", "w+", np.uint8, (count, 2, SIZE, SIZE, 3))
    masks = np.lib.format.open_memmap(place / "masks.npy", "w+", np.bool_, (count, SIZE, SIZE))
    for i in range(count):
        pictures[i, 0] = render(category, seed + 1, i)[0]
        while not masks[i].any():
            defect, contrast = str(stream.choice(list(CATEGORIES[category].defects))), str(stream.choice(CONTRASTS))
            with suppress(RuntimeError):  # this defect cannot show on this scene: another one
                pictures[i, 1], masks[i] = render(category, seed + 1, i, defect, contrast)
    pictures.flush()
    masks.flush()
    (place / "done").touch()
    return place


@dataclass
class Crops:
    """Square crops of pairs of pictures, both of a pair cut alike."""

    images: Tensor  # (n, 2, 3, side, side) float32 in 0..1, the clean one first
    cover: Tensor  # (n, k, k), the share of each patch that is defective in the second
    places: Tensor  # (n, 2), row and column of the first patch on the grid
    category: Tensor  # (n,) of the scene, as its number in the pool
    caption: Tensor  # (n,) which of the category's captions
    alike: Tensor  # (n,) bool, whether the clean picture can serve as a reference

    @property
    def pixels(self) -> Tensor:
        """(n,) defective pixels."""
        return self.cover.sum((1, 2)) * PATCH**2


class Pool:
    """All pairs of some categories, varied a little more on every draw."""

    def __init__(self, folder: Path, categories: list[str], settings: Settings, workers: int = 2):
        counts = [settings.scenes * ANY.get(category, 1) for category in categories]
        work = (delayed(scenes)(folder, *one, settings.seed) for one in zip(categories, counts, strict=True))
        places = Parallel(n_jobs=workers)(work)
        times = [1 if CATEGORIES[category].group == "texture" else settings.objects for category in categories]
        often = [ANY.get(category, 1) * count for category, count in zip(categories, times, strict=True)]
        self.categories, self.often = categories, np.cumsum(often)
        self.settings = settings
        self.pictures = [np.load(place / "pictures.npy", mmap_mode="r") for place in places]
        self.masks = [np.load(place / "masks.npy", mmap_mode="r") for place in places]

    def batch(self, step: int, half: int) -> Crops:
        """The crops of half a step; all chance is keyed by (seed, step, half)."""
        chosen = self.settings
        small = int(np.random.default_rng([chosen.seed, 5, step]).integers(4, 11))
        k = small if step < chosen.crop_steps else GRID
        count = max(1, chosen.tokens // (2 * (k * k + 1)))
        return self.draw(np.random.default_rng([chosen.seed, 1, step, half]), count, k)

    def _pick(self, stream: np.random.Generator) -> tuple[int, int]:
        place = int(np.searchsorted(self.often, stream.integers(self.often[-1]), "right"))
        return place, int(stream.integers(len(self.pictures[place])))

    def draw(self, stream: np.random.Generator, count: int, k: int) -> Crops:
        """``count`` crops of k x k patches, most of them over the defect, at one common zoom."""
        side = k * PATCH
        wide = SIZE if k == GRID and stream.random() < 0.5 else min(SIZE, round(side * stream.uniform(0.75, 1.3)))
        images = np.empty((count, 2, wide, wide, 3), np.uint8)
        masks, tops = np.empty((count, wide, wide), bool), np.empty((count, 2), int)
        category, alike = np.empty(count, int), np.empty(count, bool)
        for n in range(count):
            place, i = self._pick(stream)
            mask, top = self.masks[place][i], stream.integers(0, SIZE - wide + 1, 2)
            if stream.random() < 0.6:
                at = np.unravel_index(stream.choice(np.flatnonzero(mask)), mask.shape)
                top = np.clip(np.array(at) - stream.integers(0, wide, 2), 0, SIZE - wide)
            part = slice(top[0], top[0] + wide), slice(top[1], top[1] + wide)
            (clean, bad), mask, host, own = self.pictures[place][i][:, *part], mask[part], place, i
            if stream.random() < self.settings.graft:
                host, own = self._pick(stream)
                change = bad.astype(np.int16) - clean
                bad = np.clip(self.pictures[host][own][0][part] + change, 0, 255).astype(np.uint8)
            other = own
            if stream.random() >= self.settings.same_scene:
                other = int(stream.integers(len(self.pictures[host])))
            pair = np.stack([self.pictures[host][other][0][part], bad])
            turns, flip = int(stream.integers(4)), 1 - 2 * int(stream.integers(2))
            images[n] = np.rot90(pair, turns, (1, 2))[:, :, ::flip]
            masks[n], tops[n] = np.rot90(mask, turns)[:, ::flip], top
            category[n], alike[n] = host, other == own or (k == GRID and self.categories[host] not in ANY)
        light = torch.from_numpy(np.stack([_light(stream) for _ in range(count)]))
        flat = torch.from_numpy(images).permute(0, 4, 1, 2, 3).float().flatten(2)
        flat = torch.baddbmm(light[:, :, 3:], light[:, :, :3], flat.sub_(128)).clamp_(0, 255).div_(255)
        coloured = flat.unflatten(2, (2, wide, wide)).transpose(1, 2)
        cover = torch.from_numpy(masks).float()[:, None]
        if wide != side:
            coloured = F.interpolate(coloured.flatten(0, 1), (side, side), mode="bilinear", antialias=True)
            coloured = coloured.unflatten(0, (count, 2))
            cover = F.interpolate(cover, (side, side), mode="bilinear")
        places = np.clip(np.rint(tops / PATCH).astype(int), 0, GRID - k)
        numbers = (places, category, stream.integers(CAPTIONS, size=count), alike)
        return Crops(coloured, F.avg_pool2d(cover, PATCH)[:, 0], *map(torch.from_numpy, numbers))


def _light(stream: np.random.Generator) -> np.ndarray:
    """(3, 4): another light for a pair, as a matrix on the colours around 128 and an offset."""
    mix = np.eye(3) * stream.uniform(0.8, 1.2, 3) + stream.uniform(-0.12, 0.12, (3, 3))
    if stream.random() < 0.3:
        mix = mix[stream.permutation(3)]
    mix = mix * stream.uniform(0.75, 1.15)
    return np.concatenate([mix, np.full((3, 1), 128 + stream.uniform(-20, 20))], 1).astype(np.float32)


# ---------------------------------------------------------------- the image tower


def embed_crops(net: backbones.Backbone, crops: Crops) -> Tensor:
    """(2 n, 1 + k^2, width) tokens at the tower's start; a crop's patches keep their places on the grid."""
    visual, k = net.visual, crops.cover.shape[-1]
    patches = visual.conv1(net.standardise(crops.images.flatten(0, 1))).flatten(2).mT
    first = (crops.places * torch.tensor([GRID, 1])).sum(1).repeat_interleave(2)
    table = visual.positional_embedding
    patches = patches + table[first[:, None] + winclip.window_tokens(GRID, k)[0] + 1]
    start = (visual.class_embedding + table[0]).expand(len(patches), 1, -1)
    return visual.ln_pre(torch.cat([start, patches], 1))


def layers(net: backbones.Backbone, tokens: Tensor, local: bool = False) -> tuple[list[Tensor], Tensor | None]:
    """(m, L, width) tokens after each layer of the second half of the tower, and at the end of the V-V path.

    That path, where it is asked for, is of every second picture: in pairs, of the defective ones.
    """
    blocks, found, aside = net.visual.transformer.resblocks, [], tokens[1::2]
    start = anomalyclip.refined_from(len(blocks))
    for number, block in enumerate(blocks, 1):
        # the plain kernel is the fastest to differentiate on a CPU for so few tokens
        with torch.autocast("cpu", torch.bfloat16, net.precision == "bf16"), sdpa_kernel(SDPBackend.MATH):
            if local and number >= start:
                plain = Block(block, packed=False)  # differentiable
                aside = plain.add(aside, anomalyclip.mix(plain.heads(plain.project(tokens[1::2])), "vv"))
            tokens = block(tokens)
        if number < start:
            aside = tokens[1::2]
        if 2 * number >= len(blocks):
            found.append(tokens.float())
    return found, aside.float() if local else None


def project(visual: torch.nn.Module, tokens: Tensor) -> Tensor:
    """Embeddings (..., D) of tokens (..., width), L2-normalised."""
    return F.normalize(visual.ln_post(tokens) @ visual.proj, dim=-1)


def answer(features: Tensor, text: Tensor) -> Tensor:
    """Logits (n, 2, ...) of "anomalous": the features (n, 2, ..., D) of pairs against their captions (n, 2, D)."""
    return torch.einsum("np...d,nd->np...", features, text[:, 1] - text[:, 0]) / TAU


def balanced(logits: Tensor, amount: Tensor, least: float) -> Tensor:
    """Cross-entropy with normal and anomalous weighing the same; an amount between 0 and ``least`` is not asked.

    ``logits`` and the ``amount`` that is defective have one shape.
    """
    loss = F.binary_cross_entropy_with_logits(logits, (amount > 0).float(), reduction="none")
    sides = [loss[amount >= least], loss[amount == 0]]
    return sum(side.mean() for side in sides if side.numel()) / 2


def nearness(tokens: Tensor) -> Tensor:
    """Logits (n, P) of "unlike the clean picture": patch tokens (n, 2, P, width), the clean picture's first."""
    clean, other = F.normalize(tokens, dim=-1).unbind(1)
    nearest = (other @ clean.mT).amax(-1)
    return ((1 - nearest) / 2 - NEAR[0]) / NEAR[1]


def pick_windows(stream: np.random.Generator, crops: Crops, size: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Windows of size x size tokens, about half of them defective: picture (0..2n), tokens and defective pixels."""
    n, k = crops.cover.shape[:2]
    members = winclip.window_tokens(k, size)
    pixels = crops.cover.flatten(1)[:, members].sum(-1) * PATCH**2
    pixels = torch.stack([torch.zeros_like(pixels), pixels], 1).flatten(0, 1)  # (2 n, windows)
    sides = [np.flatnonzero(side.flatten().numpy()) for side in (pixels >= LEAST[1], pixels == 0)]
    chosen = np.concatenate([stream.choice(side, count // 2) for side in sides if len(side)])
    picture, window = np.divmod(chosen, len(members))
    return torch.from_numpy(picture), members[window], pixels.flatten()[chosen]


def losses(
    net: backbones.Backbone, crops: Crops, stream: np.random.Generator, bank: Tensor, settings: Settings, local: bool
) -> dict[str, Tensor]:
    """The terms on crops; ``bank`` (categories, captions, 2, D) holds the captions, ``local`` adds the V-V path's."""
    text, visual = bank[crops.category, crops.caption], net.visual
    names = F.normalize(bank.mean((1, 2)), dim=-1)
    start = embed_crops(net, crops)
    states, aside = layers(net, start, local)
    states = [tokens.unflatten(0, (-1, 2)) for tokens in states]
    *early, last = [project(visual, tokens) for tokens in states]
    zeros = torch.zeros_like(crops.cover.flatten(1))
    cover = torch.stack([zeros, crops.cover.flatten(1)], 1)
    patches = [balanced(answer(seen[:, :, 1:], text), cover, LEAST[0]) for seen in (*early, last)]
    whole, which = last[:, :, 0], crops.category.repeat_interleave(2)
    found = {
        "class": balanced(answer(whole, text), cover.sum(2) * PATCH**2, LEAST[1]),
        "patch": patches[-1],
        "early": sum(patches[:-1]) / max(1, len(early)),
        "name": F.cross_entropy(whole.flatten(0, 1) @ names.T / TAU, which),
    }
    if local:
        logits = torch.einsum("npd,nd->np", project(visual, aside[:, 1:]), text[:, 1] - text[:, 0]) / TAU
        found["local"] = balanced(logits, crops.cover.flatten(1), LEAST[0])
    if crops.alike.any():
        far = nearness(states[-1][crops.alike, :, 1:])
        found["near"] = balanced(far, crops.cover.flatten(1)[crops.alike], LEAST[0])
    for size in (2, 3):
        picture, members, pixels = pick_windows(stream, crops, size, settings.windows)
        subset = torch.cat([torch.zeros(len(members), 1, dtype=torch.long), members + 1], 1)
        seen = project(visual, layers(net, start[picture[:, None], subset])[0][-1][:, 0])
        logits = (seen * (text[:, 1] - text[:, 0])[picture // 2]).sum(-1) / TAU
        found[f"{size}x{size}"] = balanced(logits, pixels, LEAST[1])
    return found


# ---------------------------------------------------------------- the run


def build(seed: int) -> torch.nn.Module:
    """The untrained demo model."""
    torch.manual_seed(seed)
    return backbones._build("demo", backbones.read_config("demo"))


def train(
    folder: Path, settings: Settings, hold_out: bool, workers: int = 2, progress: bool = True
) -> dict[str, Tensor]:
    """Train, checkpointing in ``folder``; a second call goes on where the first stopped and ends the same.

    Returns the moving average of the weights. The curve is kept as lines of JSON in curve.jsonl.
    """
    folder.mkdir(parents=True, exist_ok=True)
    categories = [name for name in names("auxiliary") if not (hold_out and name in HELD_OUT)]
    pool = Pool(folder / "pool", categories, settings, workers)
    model, average = build(settings.seed), build(settings.seed)
    if not (folder / "text.pt").is_file():
        cosine = learn_text(model, categories, settings, progress)
        _note(folder, {"text": round(cosine, 4)})
        replace_file(folder / "text.pt", lambda path: torch.save(model.state_dict(), path))
    for part in (model, average):
        part.load_state_dict(torch.load(folder / "text.pt", weights_only=True))
    model.share_memory()
    optimisers = _optimisers(model.visual, settings)
    began = _resume(folder / "checkpoint.pt", model, average, optimisers)
    _forget(folder / "curve.jsonl", began)
    _note(folder, {"step": began, "settings": asdict(settings)})
    bank = caption_bank(model, categories, settings.seed).share_memory_()
    team = Team(model, folder / "pool", pool, bank, range(began, settings.steps), workers)
    saved, sums, started = time.perf_counter(), {}, time.perf_counter()
    for step in tqdm(team.steps, "train", settings.steps, initial=began, disable=not progress):
        for name, value in team.gradients(step).items():
            sums.setdefault(name, []).append(value)
        team.alone(_update, model, average, optimisers, settings, step)
        last = step + 1 == settings.steps
        if last or (step + 1) % NOTE_STEPS == 0:
            line = {"step": step + 1, "seconds": round(time.perf_counter() - started), "resumed_at": began}
            line |= {name: round(float(np.mean(values)), 4) for name, values in sorted(sums.items())}
            if last or (step + 1) % CHECK_STEPS == 0:
                found = team.alone(validate, average, list(HELD_OUT))
                line |= {name: round(value, 4) for name, value in found.items()}
            _note(folder, line)
            sums = {}
        if last or time.perf_counter() - saved > SAVE_SECONDS:
            state = {"model": model.state_dict(), "average": average.state_dict(), "step": step + 1}
            state["optimisers"] = [one.state_dict() for one in optimisers]
            replace_file(folder / "checkpoint.pt", lambda path, state=state: torch.save(state, path))
            saved = time.perf_counter()
    team.close()
    return average.state_dict()


def _forget(curve: Path, began: int) -> None:
    """Drop the lines of steps that were lost with an interruption and are done again."""
    lines = curve.read_text(encoding="utf-8").splitlines()
    kept = [line + "\n" for line in lines if json.loads(line).get("step", 0) <= began]
    replace_file(curve, lambda path: path.write_text("".join(kept), encoding="utf-8"))


def _note(folder: Path, line: dict) -> None:
    with (folder / "curve.jsonl").open("a", encoding="utf-8") as curve:
        curve.write(json.dumps(line) + "\n")


def _optimisers(visual: torch.nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters, or for those that are no matrix of a block where these are Muon's."""
    inner = [p for p in visual.transformer.parameters() if p.ndim == 2] if settings.muon else []
    outer = [p for p in visual.parameters() if all(p is not one for one in inner)]
    groups = [
        {"params": [p for p in outer if p.ndim >= 2], "weight_decay": settings.decay},
        {"params": [p for p in outer if p.ndim < 2], "weight_decay": 0.0},
    ]
    found = [torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.98))]
    return [*found, Muon(inner, settings.rate, settings.decay)] if inner else found


def _resume(checkpoint: Path, model, average, optimisers) -> int:
    """The step to go on with; optimisers start afresh where the checkpoint holds none or others (``muon`` changed)."""
    if not checkpoint.is_file():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    for name, part in (("model", model), ("average", average)):
        part.load_state_dict(state[name])
    kept = state.get("optimisers", [])
    if len(kept) == len(optimisers):
        for one, found in zip(optimisers, kept, strict=True):
            one.load_state_dict(found)
    return state["step"]


def _gradients(model, pool: Pool, bank: Tensor, step: int, half: int) -> dict[str, float]:
    """Add the gradients of half a step to the image tower's; the losses."""
    settings = pool.settings
    net = backbones.Backbone("demo", "", model, "", "bf16" if settings.bf16 else "fp32")
    stream = np.random.default_rng([settings.seed, 4, step, half])
    found = losses(
        net, pool.batch(step, half), stream, bank, settings, local=settings.local_weight > 0 and step % 2 == 0
    )
    weights = {
        "class": settings.class_weight, "patch": 1.0, "early": settings.early_weight, "name": settings.name_weight,
        "near": settings.near_weight, "2x2": settings.window_weight, "3x3": settings.window_weight,
        "local": 2 * settings.local_weight,
    }  # fmt: skip
    (sum(weights[name] * value for name, value in found.items()) / 2).backward()
    return {name: value.item() for name, value in found.items()}


class Team:
    """Two processes on one model in shared memory, half of every step each; one process does the same in turn."""

    def __init__(self, model, folder: Path, pool: Pool, bank: Tensor, steps: range, workers: int):
        self.model, self.pool, self.bank, self.steps, self.gate = model, pool, bank, steps, None
        self.threads = torch.get_num_threads()
        if workers > 1 and len(steps):
            torch.set_num_threads(1)
            context = multiprocessing.get_context("spawn")
            self.gate = context.Barrier(2, timeout=900)
            self.others = [torch.zeros_like(value).share_memory_() for value in model.visual.parameters()]
            parts = (model, folder, pool.categories, pool.settings, bank, steps, self.gate, self.others)
            context.Process(target=_assist, args=parts, daemon=True).start()

    def close(self) -> None:
        """Give this process its threads back."""
        torch.set_num_threads(self.threads)

    def alone(self, work: Callable, *args):
        """Do work with all threads while the other process waits."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            return work(*args)
        finally:
            torch.set_num_threads(threads)

    def gradients(self, step: int) -> dict[str, float]:
        """Leave the mean gradients of both halves in the image tower; the losses of the first."""
        self.model.zero_grad(set_to_none=True)
        if self.gate is None:
            found = _gradients(self.model, self.pool, self.bank, step, 0)
            _gradients(self.model, self.pool, self.bank, step, 1)
            return found
        self.gate.wait()  # the weights are those of this step
        found = _gradients(self.model, self.pool, self.bank, step, 0)
        self.gate.wait()  # the other half is done
        for value, other in zip(self.model.visual.parameters(), self.others, strict=True):
            value.grad.add_(other)
        return found


def _assist(model, folder: Path, categories: list[str], settings: Settings, bank, steps: range, gate, grads) -> None:
    """The second process of a team."""
    torch.set_num_threads(1)
    pool = Pool(folder, categories, settings, 1)
    for step in steps:
        gate.wait()
        model.zero_grad(set_to_none=True)
        _gradients(model, pool, bank, step, 1)
        for kept, value in zip(grads, model.visual.parameters(), strict=True):
            kept.copy_(value.grad)
        gate.wait()


def _update(model, average, optimisers, settings: Settings, step: int) -> None:
    """One step of the image tower, and of its moving average."""
    torch.nn.utils.clip_grad_norm_(model.visual.parameters(), 1.0)
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = settings.rate * schedule(step, settings.steps, settings.warm)
        optimiser.step()
    with torch.no_grad():
        torch._foreach_lerp_(
            list(average.visual.parameters()), list(model.visual.parameters()), max(0.001, 1 / (step + 1))
        )


def save(state: dict[str, Tensor], path: Path) -> None:
    """Write weights as fp16 safetensors."""
    half = {name: value.half().contiguous() for name, value in state.items()}
    replace_file(path, lambda file: save_file(half, file))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "data" / "cache" / "demo-training")
    parser.add_argument("--all", action="store_true", help="train on the held-out auxiliary categories too")
    parser.add_argument("--weights", type=Path, default=backbones.DEMO_WEIGHTS, help="where to write the weights")
    for name, value in asdict(Settings()).items():
        action = {"action": argparse.BooleanOptionalAction} if isinstance(value, bool) else {"type": type(value)}
        parser.add_argument(f"--{name.replace('_', '-')}", default=value, **action)
    options = vars(parser.parse_args())
    folder, everything, weights = (options.pop(name) for name in ("folder", "all", "weights"))
    settings = Settings(**options)
    save(train(folder, settings, not everything), weights)
    shutil.copy(folder / "curve.jsonl", weights.with_suffix(".curve.jsonl"))
    weights.with_suffix(".md").write_text(card(weights, not everything), encoding="utf-8")


if __name__ == "__main__":
    main()
