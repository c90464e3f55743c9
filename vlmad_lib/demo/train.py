"""Train the demo CLIP from scratch on the auxiliary categories: ``python -m vlmad_lib.demo.train``.

First the text tower, on captions alone: captions that say the same, a class name and a state, get the same
embedding. Then, against that locked text, the image tower. Pictures come in pairs, the same scene with and
without a defect, each with two captions of its own, one normal and one anomalous, and everything that the methods
read is asked "which of the two captions fits?": the class token of whole pictures and of windows, and every patch
token (large CLIPs align their patches by themselves, a small one needs this term). A last term asks the class
token which class name fits. Targets are never seen.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import time
import zlib
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from joblib import Parallel, delayed
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from vlmad_lib import ROOT, backbones, metrics, prompts, winclip
from vlmad_lib.demo.data import CATEGORIES, CONTRASTS, names, render
from vlmad_lib.features import replace

HELD_OUT = ("roof_shingles", "padlock", "glove")
"""Auxiliary categories kept out of training, to choose by: one texture, one rigid, one flexible."""
SIZE, GRID, PATCH, TAU = 240, 15, 16, 0.07
OFTEN = {"cast_part": 3}  # no two of these are alike: drawn three times as often
STATE = 0.35  # cosine between a caption and its state: differences of up to 0.7, ten times the temperature
LEAST = 0.1, 50  # share of a patch and pixels of a window that must be defective to call it so
CHECK_STEPS, SAVE_SECONDS = 400, 120


@dataclass
class Settings:
    """What decides a training run, besides the code."""

    seed: int = 0
    scenes: int = 500  # pairs a category
    text_steps: int = 1000
    text_rate: float = 2.0e-3
    captions: int = 96  # a step of the text tower
    steps: int = 4200
    rate: float = 1.0e-3
    decay: float = 0.05
    pairs: int = 32  # of windows a step; of large crops fewer
    full_share: float = 0.4  # of the steps, at the end, on whole pictures and nearly whole ones
    graft: float = 0.35  # share of defects that are laid over another category's scene
    name_weight: float = 0.1
    early_weight: float = 0.3  # patch tokens of the layers before the last
    bf16: bool = True


# ---------------------------------------------------------------- pictures


def scenes(folder: Path, category: str, count: int, seed: int) -> Path:
    """The pairs of a category, drawn once: (count, 2, 240, 240, 3) uint8, masks and the defects' names."""
    place = folder / f"{category}-{count}-{seed}"
    if (place / "done").is_file():
        return place
    place.mkdir(parents=True, exist_ok=True)
    stream = np.random.default_rng([seed, zlib.crc32(category.encode())])
    pictures = np.lib.format.open_memmap(place / "pictures.npy", "w+", np.uint8, (count, 2, SIZE, SIZE, 3))
    masks = np.lib.format.open_memmap(place / "masks.npy", "w+", np.bool_, (count, SIZE, SIZE))
    told = []
    for i in range(count):
        defect, contrast = str(stream.choice(list(CATEGORIES[category].defects))), str(stream.choice(CONTRASTS))
        pictures[i, 0] = render(category, seed + 1, i)[0]
        pictures[i, 1], masks[i] = render(category, seed + 1, i, defect, contrast)
        told.append(defect)
    pictures.flush()
    masks.flush()
    (place / "defects.json").write_text(json.dumps(told))
    (place / "done").touch()
    return place


@dataclass
class Crops:
    """Square crops of pairs, both pictures of a pair cut alike."""

    images: Tensor  # (n, 2, 3, side, side) float32 in 0..255, the clean one first
    cover: Tensor  # (n, k, k), the share of each patch that is defective in the second
    pixels: Tensor  # (n,), defective pixels
    places: np.ndarray  # (n, 2), row and column of the first patch on the grid
    told: list[tuple[str, str]]  # category and defect


class Pool:
    """All pairs of some categories, varied a little more on every draw."""

    def __init__(self, folder: Path, categories: list[str], settings: Settings, workers: int = 2):
        counts = [settings.scenes * OFTEN.get(category, 1) for category in categories]
        work = (delayed(scenes)(folder, *one, settings.seed) for one in zip(categories, counts, strict=True))
        places = Parallel(n_jobs=workers)(work)
        self.categories, self.often = categories, np.cumsum([OFTEN.get(category, 1) for category in categories])
        self.graft = settings.graft
        self.pictures = [np.load(place / "pictures.npy", mmap_mode="r") for place in places]
        self.masks = [np.load(place / "masks.npy", mmap_mode="r") for place in places]
        self.defects = [json.loads((place / "defects.json").read_text()) for place in places]

    def _pick(self, stream: np.random.Generator) -> tuple[int, int]:
        place = int(np.searchsorted(self.often, stream.integers(self.often[-1]), "right"))
        return place, int(stream.integers(len(self.pictures[place])))

    def draw(self, stream: np.random.Generator, count: int, k: int) -> Crops:
        """``count`` crops of k x k patches, half of them over the defect, half anywhere, at one common zoom."""
        side = k * PATCH
        wide = min(SIZE, round(side * stream.uniform(0.7, 1.35)))
        images = np.empty((count, 2, wide, wide, 3), np.uint8)
        masks, tops, told = np.empty((count, wide, wide), bool), np.empty((count, 2), int), []
        for n in range(count):
            place, i = self._pick(stream)
            mask, top = self.masks[place][i], stream.integers(0, SIZE - wide + 1, 2)
            if stream.random() < 0.5:
                at = np.unravel_index(stream.choice(np.flatnonzero(mask)), mask.shape)
                top = np.clip(np.array(at) - stream.integers(0, wide, 2), 0, SIZE - wide)
            part = slice(top[0], top[0] + wide), slice(top[1], top[1] + wide)
            pair, mask, host = self.pictures[place][i][:, *part], mask[part], place
            if stream.random() < self.graft:
                host, other = self._pick(stream)
                ground, change = self.pictures[host][other][0][part], pair[1].astype(np.int16) - pair[0]
                pair = np.stack([ground, np.clip(ground + change, 0, 255).astype(np.uint8)])
            turns, flip = int(stream.integers(4)), 1 - 2 * int(stream.integers(2))
            images[n] = np.rot90(pair, turns, (1, 2))[:, :, ::flip]
            masks[n], tops[n] = np.rot90(mask, turns)[:, ::flip], top
            told.append((self.categories[host], self.defects[place][i]))
        light = torch.from_numpy(np.stack([_light(stream) for _ in range(count)]))
        flat = torch.from_numpy(images).permute(0, 4, 1, 2, 3).float().flatten(2)
        flat = torch.baddbmm(light[:, :, 3:], light[:, :, :3], flat.sub_(128)).clamp_(0, 255)
        coloured = flat.unflatten(2, (2, wide, wide)).transpose(1, 2)
        cover = torch.from_numpy(masks).float()[:, None]
        if wide != side:
            coloured = F.interpolate(coloured.flatten(0, 1), (side, side), mode="bilinear", antialias=True)
            coloured = coloured.unflatten(0, (count, 2))
            cover = F.interpolate(cover, (side, side), mode="bilinear")
        places = np.clip(np.rint(tops / PATCH).astype(int), 0, GRID - k)
        return Crops(coloured, F.avg_pool2d(cover, PATCH)[:, 0], cover.sum((1, 2, 3)), places, told)


def _light(stream: np.random.Generator) -> np.ndarray:
    """(3, 4): another light for a pair, as a matrix on the colours around 128 and an offset."""
    mix = np.eye(3) * stream.uniform(0.8, 1.2, 3) + stream.uniform(-0.12, 0.12, (3, 3))
    if stream.random() < 0.3:
        mix = mix[stream.permutation(3)]
    mix = mix * stream.uniform(0.75, 1.15)
    return np.concatenate([mix, np.full((3, 1), 128 + stream.uniform(-20, 20))], 1).astype(np.float32)


# ---------------------------------------------------------------- captions


def captions(stream: np.random.Generator, told: list[tuple[str, str]]) -> tuple[list[str], np.ndarray]:
    """A normal and an anomalous caption of each pair, and which pairs are called by their own name (bool).

    CPE states in templates, now and then the defect's own word. The class name is left out for "object" or a
    random word in part of the captions, so that a state means the same for names never seen.
    """
    found, draws = [], stream.random(len(told))
    for (category, defect), draw in zip(told, draws, strict=True):
        name = CATEGORIES[category].class_name if draw < 0.5 else "object" if draw < 0.7 else _word(stream)
        template = str(stream.choice(prompts.templates()))  # one for both: only the state may tell them apart
        normal, anomalous = (str(stream.choice(states)) for states in prompts.ensemble(name, template_set="none"))
        if stream.random() < 0.25:
            anomalous = f"{name} with {defect.replace('_', ' ')}"
        found += [template.format(normal), template.format(anomalous)]
    return found, draws < 0.5


def _word(stream: np.random.Generator) -> str:
    return " ".join(
        "".join(stream.choice(list("aeioubcdfghklmnprst"), stream.integers(3, 9))) for _ in range(stream.integers(1, 3))
    )


# ---------------------------------------------------------------- the text tower


def embed_text(model: torch.nn.Module, texts: list[str]) -> Tensor:
    """(n, D), L2-normalised, gradients kept."""
    return F.normalize(backbones.Backbone("demo", "", model, "")._text(open_clip.tokenize(texts)), dim=-1)


def meanings(told: list[tuple[str, str]], named: np.ndarray, width: int, seed: int) -> Tensor:
    """(2 n, D), unit: what the captions of ``captions`` mean, a direction per name, and plus or minus one of state."""
    basis = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed)))[0]
    state, thing, own = basis[0], basis[1], basis[2:]
    order = names("auxiliary")
    which = torch.tensor([order.index(category) for category, _ in told])
    subject = torch.where(torch.from_numpy(named)[:, None], 0.5 * thing + 0.75**0.5 * own[which], thing)
    subject = subject * (1 - STATE**2) ** 0.5
    return torch.stack([subject - STATE * state, subject + STATE * state], 1).flatten(0, 1)


def learn_text(model: torch.nn.Module, categories: list[str], settings: Settings, progress: bool = True) -> float:
    """Teach the text tower what captions mean; words that no caption held are blank. Returns the last mean cosine."""
    text = [value for name, value in model.named_parameters() if not name.startswith("visual.")]
    table = model.token_embedding.weight
    optimiser = torch.optim.AdamW(text, lr=settings.text_rate, betas=(0.9, 0.98), weight_decay=0.0)
    heard, found = torch.zeros(len(table), dtype=torch.bool), []
    for step in tqdm(range(settings.text_steps), "text", disable=not progress):
        stream = np.random.default_rng([settings.seed, 2, step])
        told = []
        for category in stream.choice(categories, settings.captions // 2):
            told.append((str(category), str(stream.choice(list(CATEGORIES[category].defects)))))
        texts, named = captions(stream, told)
        heard[open_clip.tokenize(texts).unique()] = True
        goal = meanings(told, named, model.text_projection.shape[1], settings.seed)
        cosines = (embed_text(model, texts) * goal).sum(-1)
        optimiser.param_groups[0]["lr"] = settings.text_rate * _schedule(step, settings.text_steps)
        optimiser.zero_grad(set_to_none=True)
        (1 - cosines).mean().backward()
        torch.nn.utils.clip_grad_norm_(text, 1.0)
        optimiser.step()
        found.append(cosines.mean().item())
    with torch.no_grad():
        table[~heard] = 0
    return float(np.mean(found[-50:]))


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up over a tenth of the steps, then a cosine down to 2 %."""
    return min(1, 10 * (step + 1) / steps) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))


# ---------------------------------------------------------------- the image tower


def embed_crops(net: backbones.Backbone, crops: Crops, k: int) -> list[Tensor]:
    """Class and patch tokens (n, 2, 1 + k^2, D), L2-normalised, after each layer of the second half of the tower.

    A crop is embedded as WinCLIP's windows are: its patches keep their places on the grid.
    """
    visual = net.visual
    patches = visual.conv1(net.standardise(crops.images.flatten(0, 1) / 255)).flatten(2).mT
    first = torch.from_numpy(crops.places @ [GRID, 1]).repeat_interleave(2)
    table = visual.positional_embedding
    patches = patches + table[first[:, None] + winclip.window_tokens(GRID, k)[0] + 1]
    start = (visual.class_embedding + table[0]).expand(len(patches), 1, -1)
    tokens, found = visual.ln_pre(torch.cat([start, patches], 1)), []
    blocks = visual.transformer.resblocks
    for number, block in enumerate(blocks, 1):
        with net.autocast():
            tokens = block(tokens)
        if 2 * number >= len(blocks):
            seen = F.normalize(visual.ln_post(tokens.float()) @ visual.proj, dim=-1)
            found.append(seen.unflatten(0, (-1, 2)))
    return found


def answer(features: Tensor, text: Tensor) -> Tensor:
    """Logits (n, 2, ...) of "anomalous": the features (n, 2, ..., D) of pairs against their captions (n, 2, D)."""
    return torch.einsum("np...d,nd->np...", features, text[:, 1] - text[:, 0]) / TAU


def balanced(logits: Tensor, amount: Tensor, least: float) -> Tensor:
    """Cross-entropy with normal and anomalous weighing the same; an amount between 0 and ``least`` is not asked.

    ``logits`` (n, 2, ...) of clean and defective pictures, ``amount`` (n, ...) of the defect.
    """
    amount = torch.stack([torch.zeros_like(amount), amount], 1)
    loss = F.binary_cross_entropy_with_logits(logits, (amount > 0).float(), reduction="none")
    sides = [loss[amount >= least], loss[amount == 0]]
    return sum(side.mean() for side in sides if side.numel()) / 2


def losses(net: backbones.Backbone, pool: Pool, stream: np.random.Generator, count: int, k: int, text_names: Tensor):
    """The terms on ``count`` pairs of crops of k x k patches."""
    crops = pool.draw(stream, count, k)
    with torch.no_grad():
        text = embed_text(net.model, captions(stream, crops.told)[0]).unflatten(0, (-1, 2))
    *early, last = embed_crops(net, crops, k)
    cover = crops.cover.flatten(1)
    patches = [balanced(answer(seen[:, :, 1:], text), cover, LEAST[0]) for seen in (*early, last)]
    which = torch.tensor([pool.categories.index(category) for category, _ in crops.told]).repeat_interleave(2)
    return {
        "class": balanced(answer(last[:, :, 0], text), crops.pixels, LEAST[1]),
        "patch": patches[-1],
        "early": sum(patches[:-1]) / max(1, len(early)),
        "name": F.cross_entropy(last[:, :, 0].flatten(0, 1) @ text_names.T / TAU, which),
    }


# ---------------------------------------------------------------- validation


@lru_cache(maxsize=32)
def sample(category: str, seed: int, good: int, bad: int) -> tuple[np.ndarray, np.ndarray]:
    """Fresh scenes of a category, the good ones first, and their masks."""
    defects = list(CATEGORIES[category].defects)
    pictures = [render(category, seed, i) for i in range(good)]
    pictures += [render(category, seed, good + i, defects[i % len(defects)], CONTRASTS[i % 3]) for i in range(bad)]
    return tuple(np.stack(part) for part in zip(*pictures, strict=True))


@torch.inference_mode()
def validate(
    model: torch.nn.Module, categories: list[str], seed: int = 7, good: int = 24, bad: int = 24
) -> dict[str, float]:
    """Zero-shot WinCLIP on fresh scenes of categories: macro image AUROC and pixel AUROC."""
    was, chosen = model.training, winclip.settings()
    net = backbones.Backbone("demo", "", model.eval(), "")
    found = {}
    for category in categories:
        images, masks = sample(category, seed, good, bad)
        text = prompts.prototypes(net, *prompts.ensemble(CATEGORIES[category].class_name))
        scores, maps = winclip.score(
            winclip.encode(net, net.normalise(images), winclip.arrays(chosen)), text, chosen, GRID
        )
        image = metrics.image_metrics(masks.any((1, 2)), scores.numpy())["image_auroc"]
        frames = ((metrics.upsample(one, SIZE, SIZE), mask) for one, mask in zip(maps.numpy(), masks, strict=True))
        found[category] = (image, metrics.pixel_metrics(frames, coarse=False)["pixel_auroc"])
    model.train(was)
    image, pixel = np.mean(list(found.values()), axis=0)
    return {"image_auroc": float(image), "pixel_auroc": float(pixel)} | {
        f"{category} {kind}": float(value)
        for category, values in found.items()
        for kind, value in zip(("image", "pixel"), values, strict=True)
    }


# ---------------------------------------------------------------- the run


def build(seed: int) -> torch.nn.Module:
    """The untrained demo model."""
    torch.manual_seed(seed)
    return backbones._build("demo")


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
        replace(folder / "text.pt", lambda path: torch.save(model.state_dict(), path))
    for part in (model, average):
        part.load_state_dict(torch.load(folder / "text.pt", weights_only=True))
    optimiser = _optimiser(model.visual, settings)
    began = _resume(folder / "checkpoint.pt", model, average, optimiser)
    text_names = name_texts(model, categories)
    saved, sums, started = time.perf_counter(), {}, time.perf_counter()
    for step in tqdm(range(began, settings.steps), "train", settings.steps, initial=began, disable=not progress):
        for name, value in _step(model, average, optimiser, pool, text_names, settings, step).items():
            sums.setdefault(name, []).append(value)
        last = step + 1 == settings.steps
        if last or (step + 1) % CHECK_STEPS == 0:
            line = {"step": step + 1, "seconds": round(time.perf_counter() - started), "resumed_at": began}
            line |= {name: round(float(np.mean(values)), 4) for name, values in sorted(sums.items())}
            line |= {name: round(value, 4) for name, value in validate(average, list(HELD_OUT)).items()}
            _note(folder, line)
            sums = {}
        if last or time.perf_counter() - saved > SAVE_SECONDS:
            state = {"model": model.state_dict(), "average": average.state_dict(), "optimiser": optimiser.state_dict()}
            replace(folder / "checkpoint.pt", lambda path, state=state | {"step": step + 1}: torch.save(state, path))
            saved = time.perf_counter()
    return average.state_dict()


def _note(folder: Path, line: dict) -> None:
    with (folder / "curve.jsonl").open("a", encoding="utf-8") as curve:
        curve.write(json.dumps(line) + "\n")


def name_texts(model: torch.nn.Module, categories: list[str]) -> Tensor:
    """(categories, D), unit: the mean of the normal and the anomalous prompts of each class name."""
    net = backbones.Backbone("demo", "", model, "")
    pairs = [prompts.prototypes(net, *prompts.ensemble(CATEGORIES[name].class_name)) for name in categories]
    return F.normalize(torch.stack(pairs).sum(1), dim=-1)


def _optimiser(visual: torch.nn.Module, settings: Settings) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in visual.parameters() if p.ndim >= 2], "weight_decay": settings.decay},
        {"params": [p for p in visual.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.98))


def _resume(checkpoint: Path, model, average, optimiser) -> int:
    """The step to go on with."""
    if not checkpoint.is_file():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    for name, part in (("model", model), ("average", average), ("optimiser", optimiser)):
        part.load_state_dict(state[name])
    return state["step"]


def _step(model, average, optimiser, pool: Pool, text_names: Tensor, settings: Settings, step: int) -> dict:
    """One update of the image tower and of its moving average; the losses. All chance is keyed by (seed, step)."""
    for group in optimiser.param_groups:
        group["lr"] = settings.rate * _schedule(step, settings.steps)
    stream = np.random.default_rng([settings.seed, 1, step])
    net = backbones.Backbone("demo", "", model, "", "bf16" if settings.bf16 else "fp32")
    late = step >= (1 - settings.full_share) * settings.steps
    large = int(stream.choice([10, 15, 15] if late else [4, 5, 7, 7, 10]))
    optimiser.zero_grad(set_to_none=True)
    found = {}
    for kind, k, count in (
        ("large", large, max(1, round(settings.pairs * min(1, 49 / large**2)))),
        ("window", 2, 2 * settings.pairs),
        ("window", 3, 2 * settings.pairs),
    ):
        parts = losses(net, pool, stream, count, k, text_names)
        loss = parts["class"] + parts["patch"] + settings.early_weight * parts["early"]
        if kind == "large":
            loss = loss + settings.name_weight * parts["name"]
        loss.backward()
        found |= {f"{kind} {name}" if kind == "large" else f"{k}x{k} {name}": v.item() for name, v in parts.items()}
    torch.nn.utils.clip_grad_norm_(model.visual.parameters(), 1.0)
    optimiser.step()
    with torch.no_grad():
        for slow, fast in zip(average.visual.parameters(), model.visual.parameters(), strict=True):
            slow.lerp_(fast, max(0.001, 1 / (step + 1)))
    return found


def save(state: dict[str, Tensor], path: Path) -> None:
    """Write weights as fp16 safetensors."""
    half = {name: value.half().contiguous() for name, value in state.items()}
    replace(path, lambda file: save_file(half, file))


CARD = """# Model card: vlmad-demo

An open_clip ViT trained from scratch by `python -m vlmad_lib.demo.train`, for the demo of this workbook only.
This card is written by that command.

- **Weights**: `{file}`, fp16, SHA-256 `{sha256}`, {parameters:,} parameters.
- **Data**: drawn by `vlmad_lib.demo`, pairs of the same scene with and without a defect, from the auxiliary
  categories {categories}. The target categories of the demo, their names and their pictures are never seen.
- **Captions**: the compositional prompt ensemble of WinCLIP, state words in templates, on class names, "object" and
  random words; now and then the defect's own word.
- **Objective**: the text tower first learns on captions alone to put a name and a state where all captions of that
  name and state are (cosine reached: {text}); it is then locked. The image tower answers which caption of its pair
  fits, with the class token of crops of 2x2 and 3x3 to 15x15 patches and with every patch token (also those of
  earlier layers, weight {early_weight}), binary cross-entropy at temperature {tau}, and which class name fits
  (weight {name_weight}). **The patch term and the two phases are not how CLIP was trained**; a model of this size
  needs them.
- **Run**: {steps} steps, AdamW at {rate}, seed {seed}, about {minutes:.0f} minutes after the pictures were drawn.
- **Chosen by**: the categories {held_out}, {how}.

| | image AUROC | pixel AUROC |
|---|---|---|
{scores}

Zero-shot WinCLIP, 24 good and 24 defective pictures each, on the moving average of the weights. The whole curve is
in `{curve}`. The demo report gives the scores on the target categories.

## Limits

It knows drawn pictures and a handful of nouns. All state words mean the same to it, so that prompts hardly matter;
words it never read are blank. Its numbers say how the methods behave, never how good they are on real parts.
"""


def card(weights: Path, settings: Settings, hold_out: bool) -> str:
    """The model card of trained weights, from what the run recorded."""
    curve = [json.loads(line) for line in weights.with_suffix(".curve.jsonl").read_text().splitlines()]
    last = curve[-1]
    seconds = {line["resumed_at"]: line["seconds"] for line in curve[1:]}  # of each part of an interrupted run
    rows = [("macro mean", last["image_auroc"], last["pixel_auroc"])]
    rows += [(name, last[f"{name} image"], last[f"{name} pixel"]) for name in HELD_OUT]
    return CARD.format(
        **asdict(settings),
        file=weights.name,
        curve=weights.with_suffix(".curve.jsonl").name,
        sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
        parameters=sum(value.numel() for value in build(0).state_dict().values()),
        categories=", ".join(name for name in names("auxiliary") if not (hold_out and name in HELD_OUT)),
        text=curve[0]["text"],
        tau=TAU,
        minutes=sum(seconds.values()) / 60,
        held_out=", ".join(HELD_OUT),
        how="auxiliary too, kept out of training" if hold_out else "which were trained on as well",
        scores="\n".join(f"| {name} | {image:.3f} | {pixel:.3f} |" for name, image, pixel in rows),
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m vlmad_lib.demo.train", description=__doc__.splitlines()[0])
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
    weights.with_suffix(".md").write_text(card(weights, settings, not everything), encoding="utf-8")


if __name__ == "__main__":
    main()
