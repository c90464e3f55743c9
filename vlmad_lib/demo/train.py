"""Train the demo CLIP from scratch on the auxiliary categories: ``python -m vlmad_lib.demo.train``.

Pictures come in pairs, the same scene with and without a defect, each with two captions of its own, one
normal and one anomalous. Every part of the image tower that the methods read is asked the same question,
"which of the two captions fits?": the class token of the whole image, the class token of a window of few
tokens, and each patch token (large CLIPs align their patches by themselves, a small one needs this term).
A contrastive term over the batch ties pictures and captions of a category together. Targets are never seen.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
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
SIZE, GRID, TAU = 240, 15, 0.07
OFTEN = {"cast_part": 3}  # no two of these are alike: drawn three times as often
CHECK_STEPS, SAVE_SECONDS = 250, 120
WEIGHTS = Path(__file__).parent / "vlmad-demo.safetensors"


@dataclass
class Settings:
    """What decides a training run, besides the code."""

    seed: int = 0
    scenes: int = 1200  # pairs a category
    pairs: int = 16  # a step
    windows: int = 2  # a picture and step
    steps: int = 6000
    rate: float = 4.0e-4
    decay: float = 0.05
    full_share: float = 0.3  # of the steps, at the end, without patch dropout
    kept_tokens: int = 48  # of 225, before that
    contrast_weight: float = 0.5


# ---------------------------------------------------------------- pictures


def scenes(folder: Path, category: str, count: int, seed: int) -> Path:
    """The pairs of a category as one file of (count, 2, 240, 240, 3) uint8, drawn once, and what is in them.

    Beside it: the share of each token's pixels that is defective, (count, 15, 15), and the defects' names.
    """
    place = folder / f"{category}-{count}-{seed}"
    if (place / "done").is_file():
        return place
    place.mkdir(parents=True, exist_ok=True)
    stream = np.random.default_rng([seed, len(category)])
    pictures = np.lib.format.open_memmap(place / "pictures.npy", "w+", np.uint8, (count, 2, SIZE, SIZE, 3))
    cover, told = np.zeros((count, GRID, GRID), np.float32), []
    for i in range(count):
        defect, contrast = str(stream.choice(list(CATEGORIES[category].defects))), str(stream.choice(CONTRASTS))
        pictures[i, 0] = render(category, seed + 1, i)[0]
        pictures[i, 1], mask = render(category, seed + 1, i, defect, contrast)
        cover[i] = mask.reshape(GRID, SIZE // GRID, GRID, SIZE // GRID).mean((1, 3))
        told.append(defect)
    pictures.flush()
    np.save(place / "cover.npy", cover)
    (place / "defects.json").write_text(json.dumps(told))
    (place / "done").touch()
    return place


class Pool:
    """All pairs of some categories, varied a little more on every draw."""

    def __init__(self, folder: Path, categories: list[str], settings: Settings, workers: int = 2):
        counts = [settings.scenes * OFTEN.get(category, 1) for category in categories]
        work = (delayed(scenes)(folder, *one, settings.seed) for one in zip(categories, counts, strict=True))
        places = Parallel(n_jobs=workers)(work)
        self.categories, self.often = categories, np.cumsum([OFTEN.get(category, 1) for category in categories])
        self.pictures = [np.load(place / "pictures.npy", mmap_mode="r") for place in places]
        self.cover = [np.load(place / "cover.npy") for place in places]
        self.defects = [json.loads((place / "defects.json").read_text()) for place in places]

    def draw(self, stream: np.random.Generator, pairs: int) -> tuple[np.ndarray, np.ndarray, list[tuple[str, str]]]:
        """(2 pairs, 240, 240, 3) uint8, token cover (2 pairs, 15, 15), and (category, defect) of each pair."""
        images, covers, told = [], [], []
        for _ in range(pairs):
            place = int(np.searchsorted(self.often, stream.integers(self.often[-1]), "right"))
            i = int(stream.integers(len(self.pictures[place])))
            pair, cover = self.pictures[place][i], self.cover[place][i]
            turns, flip = int(stream.integers(4)), bool(stream.integers(2))
            pair, cover = np.rot90(pair, turns, (1, 2)), np.rot90(cover, turns)
            if flip:
                pair, cover = pair[:, :, ::-1], cover[:, ::-1]
            images.append(_recolour(stream, pair))
            covers += [np.zeros_like(cover), cover]
            told.append((self.categories[place], self.defects[place][i]))
        return np.concatenate(images), np.stack(covers), told


def _recolour(stream: np.random.Generator, pair: np.ndarray) -> np.ndarray:
    """Both pictures of a pair under one other light: channels mixed, brightness and contrast changed."""
    mix = np.eye(3) * stream.uniform(0.8, 1.2, 3) + stream.uniform(-0.12, 0.12, (3, 3))
    if stream.random() < 0.3:
        mix = mix[stream.permutation(3)]
    changed = (pair.astype(np.float32) - 128) @ mix.astype(np.float32) * np.float32(stream.uniform(0.75, 1.15))
    return np.clip(changed + np.float32(128 + stream.uniform(-20, 20)), 0, 255).astype(np.uint8)


# ---------------------------------------------------------------- captions


def captions(stream: np.random.Generator, told: list[tuple[str, str]]) -> tuple[list[str], np.ndarray]:
    """A normal and an anomalous caption of each pair, and which pairs are called by their own name (bool).

    CPE states in templates, now and then the defect's own word.

    The class name is left out for "object" or a random word in part of the captions, so that the difference of
    the two comes from the state and holds for names never seen.
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


# ---------------------------------------------------------------- one step


def embed_text(model: torch.nn.Module, texts: list[str]) -> Tensor:
    """(n, D), L2-normalised, gradients kept."""
    net = backbones.Backbone("demo", "", model, "")
    return F.normalize(net._text(open_clip.tokenize(texts)), dim=-1)


def run_blocks(model: torch.nn.Module, tokens: Tensor) -> Tensor:
    """Projected tokens (n, L, D), L2-normalised: ln_post and projection on every token, the class token first."""
    visual = model.visual
    for block in visual.transformer.resblocks:
        tokens = block(tokens)
    return F.normalize(visual.ln_post(tokens) @ visual.proj, dim=-1)


def answer(features: Tensor, text: Tensor) -> Tensor:
    """Logits (2 pairs, ...) of "anomalous": each picture's features (2 pairs, ..., D) against its pair's captions."""
    towards = text.unflatten(0, (-1, 2))  # (pairs, 2, D)
    direction = (towards[:, 1] - towards[:, 0]).repeat_interleave(2, 0)
    return torch.einsum("n...d,nd->n...", features, direction) / TAU


def balanced(logits: Tensor, share: Tensor) -> Tensor:
    """Cross-entropy with normal and anomalous weighing the same; a share between 0 and a quarter is not asked."""
    loss = F.binary_cross_entropy_with_logits(logits, (share > 0).float(), reduction="none")
    sides = [loss[share >= 0.25], loss[share == 0]]
    return sum(side.mean() for side in sides if side.numel()) / 2


def choose_windows(stream: np.random.Generator, cover: np.ndarray, size: int, count: int) -> np.ndarray:
    """(n, count) window numbers: half anywhere, half over the picture's own (or its pair's) defect."""
    side = GRID - size + 1
    rows, columns = (stream.integers(0, side, (len(cover), count)) for _ in range(2))
    for i in range(len(cover)):
        at = np.argwhere(cover[i | 1] >= 0.25)
        if len(at):
            spots = at[stream.integers(0, len(at), count // 2)] - stream.integers(0, size, (count // 2, 2))
            rows[i, : count // 2], columns[i, : count // 2] = np.clip(spots, 0, side - 1).T
    return rows * side + columns


def losses(
    model: torch.nn.Module, stream: np.random.Generator, batch: tuple, settings: Settings, kept: int
) -> dict[str, Tensor]:
    """The four terms on one batch; ``kept`` tokens of the whole image are seen, the class token answers for those."""
    images, cover, told = batch
    net = backbones.Backbone("demo", "", model, "")
    texts, named = captions(stream, told)
    text = embed_text(model, texts)
    tokens = model.visual._embeds(net.normalise(images))
    share = torch.from_numpy(cover).flatten(1)
    seen = tokens
    if kept < GRID * GRID:
        order = torch.from_numpy(stream.random(share.shape, dtype=np.float32)).argsort(1)[:, :kept]
        seen = torch.cat([tokens[:, :1], tokens.gather(1, order[..., None].add(1).expand(-1, -1, tokens.shape[-1]))], 1)
        share = share.gather(1, order)
    whole = run_blocks(model, seen)
    size = int(stream.choice([1, 2, 2, 2, 3, 3, 3, 4, 5, 7]))
    members = winclip.window_tokens(GRID, size)
    chosen = torch.from_numpy(choose_windows(stream, cover, size, settings.windows))
    places = F.pad(members[chosen] + 1, (1, 0))  # (n, windows, 1 + size^2)
    rows = torch.arange(len(tokens))[:, None, None]
    window = run_blocks(model, tokens[rows, places].flatten(0, 1))[:, 0].unflatten(0, (len(tokens), -1))
    window_share = torch.from_numpy(cover).flatten(1)[rows, members[chosen]].amax(-1)
    return {
        "class": balanced(answer(whole[:, 0], text), share.amax(1)),
        "patch": balanced(answer(whole[:, 1:], text), share),
        "window": balanced(answer(window, text), window_share),
        "contrast": contrast(model, whole[:, 0], text, told, named),
    }


def contrast(
    model: torch.nn.Module, image: Tensor, text: Tensor, told: list[tuple[str, str]], named: np.ndarray
) -> Tensor:
    """Contrastive loss over the pairs that are called by name: all captions of a picture's category fit it."""
    kind = torch.tensor([place(category) for category, _ in told])[torch.from_numpy(named)].repeat_interleave(2)
    if kind.unique().numel() < 2:
        return image.sum() * 0
    kept = torch.from_numpy(named).repeat_interleave(2)
    positive = (kind[:, None] == kind).float()
    logits = model.logit_scale.exp().clamp(max=100) * image[kept] @ text[kept].T
    target = positive / positive.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def place(category: str) -> int:
    """A category's place in the fixed order of all."""
    return list(CATEGORIES).index(category)


# ---------------------------------------------------------------- validation


@torch.inference_mode()
def validate(
    model: torch.nn.Module, categories: list[str], seed: int = 7, good: int = 24, bad: int = 24
) -> dict[str, float]:
    """Zero-shot WinCLIP on fresh scenes of categories: macro image AUROC and pixel AUROC at token level."""
    was, chosen = model.training, winclip.settings()
    net = backbones.Backbone("demo", "", model.eval(), "")
    found = {}
    for category in categories:
        defects = list(CATEGORIES[category].defects)
        pictures = [render(category, seed, i) for i in range(good)]
        pictures += [render(category, seed, good + i, defects[i % len(defects)], CONTRASTS[i % 3]) for i in range(bad)]
        text = prompts.prototypes(net, *prompts.ensemble(CATEGORIES[category].class_name))
        encoded = winclip.encode(
            net, net.normalise(np.stack([picture for picture, _ in pictures])), winclip.arrays(chosen)
        )
        scores, maps = winclip.score(encoded, text, chosen, GRID)
        labels = np.arange(good + bad) >= good
        image = metrics.image_metrics(labels, scores.numpy())["image_auroc"]
        frames = (
            (metrics.upsample(one, SIZE, SIZE), mask) for one, (_, mask) in zip(maps.numpy(), pictures, strict=True)
        )
        pixel = metrics.pixel_metrics(frames, coarse=False)["pixel_auroc"]
        found[category] = (image, pixel)
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
    torch.set_float32_matmul_precision("medium")  # the faster matrix path of most CPUs
    folder.mkdir(parents=True, exist_ok=True)
    categories = [name for name in names("auxiliary") if not (hold_out and name in HELD_OUT)]
    pool = Pool(folder / "pool", categories, settings, workers)
    model, average = build(settings.seed), build(settings.seed)
    optimiser = _optimiser(model, settings)
    began = _resume(folder / "checkpoint.pt", model, average, optimiser)
    saved, sums, started = time.perf_counter(), {}, time.perf_counter()
    for step in tqdm(range(began, settings.steps), "train", settings.steps, initial=began, disable=not progress):
        for name, value in _step(model, average, optimiser, pool, settings, step).items():
            sums.setdefault(name, []).append(value)
        last = step + 1 == settings.steps
        if last or (step + 1) % CHECK_STEPS == 0:
            line = {"step": step + 1, "seconds": round(time.perf_counter() - started), "resumed_at": began}
            line |= {name: round(float(np.mean(values)), 4) for name, values in sums.items()}
            line |= {name: round(value, 4) for name, value in validate(average, list(HELD_OUT)).items()}
            with (folder / "curve.jsonl").open("a", encoding="utf-8") as curve:
                curve.write(json.dumps(line) + "\n")
            sums = {}
        if last or time.perf_counter() - saved > SAVE_SECONDS:
            state = {"model": model.state_dict(), "average": average.state_dict(), "optimiser": optimiser.state_dict()}
            replace(folder / "checkpoint.pt", lambda path, state=state | {"step": step + 1}: torch.save(state, path))
            saved = time.perf_counter()
    return average.state_dict()


def _optimiser(model: torch.nn.Module, settings: Settings) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": settings.decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
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


def _step(model, average, optimiser, pool: Pool, settings: Settings, step: int) -> dict[str, float]:
    """One update of the model and of its moving average; the losses. All chance is keyed by (seed, step)."""
    done = step / settings.steps
    rate = settings.rate * min(1, (step + 1) / 300) * (0.02 + 0.49 * (1 + math.cos(math.pi * done)))
    for group in optimiser.param_groups:
        group["lr"] = rate
    stream = np.random.default_rng([settings.seed, 1, step])
    full = done >= 1 - settings.full_share  # whole pictures are dearer: half as many
    batch = pool.draw(stream, settings.pairs if full else 2 * settings.pairs)
    parts = losses(model, stream, batch, settings, GRID * GRID if full else settings.kept_tokens)
    loss = parts["class"] + parts["patch"] + parts["window"] + settings.contrast_weight * parts["contrast"]
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    with torch.no_grad():
        for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
            slow.lerp_(fast, max(0.002, 1 / (step + 1)))
    return {name: value.item() for name, value in parts.items()}


def save(state: dict[str, Tensor], path: Path) -> None:
    """Write weights as fp16 safetensors."""
    half = {name: value.half().contiguous() for name, value in state.items()}
    replace(path, lambda file: save_file(half, file))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m vlmad_lib.demo.train", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "data" / "cache" / "demo-training")
    parser.add_argument("--all", action="store_true", help="train on the held-out auxiliary categories too")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="where to write the trained weights")
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = vars(parser.parse_args())
    folder, everything, weights = (options.pop(name) for name in ("folder", "all", "weights"))
    save(train(folder, Settings(**options), not everything), weights)


if __name__ == "__main__":
    main()
