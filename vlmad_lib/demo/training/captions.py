"""Captions, and the demo CLIP's text tower, which learns from them alone what a name and a state are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from vlmad_lib.demo.data import CATEGORIES, names
from vlmad_lib.encoders import backbones, prompts

if TYPE_CHECKING:
    from vlmad_lib.demo.training.train import Settings

STATE = 0.35  # cosine between a caption and its state: differences of up to 0.7, ten times the temperature
CAPTIONS = 48  # pairs of captions kept for each category


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
        optimiser.param_groups[0]["lr"] = settings.text_rate * schedule(
            step, settings.text_steps, settings.text_steps / 10, 0.9
        )
        optimiser.zero_grad(set_to_none=True)
        (1 - cosines).mean().backward()
        torch.nn.utils.clip_grad_norm_(text, 1.0)
        optimiser.step()
        found.append(cosines.mean().item())
    with torch.no_grad():
        table[~heard] = 0
    return float(np.mean(found[-50:]))


def schedule(step: int, steps: int, warm: int, decay: float = 0.4) -> float:
    """Linear warm-up, a plateau, and a cosine down to 2 % in the last share: a run can be cut short on the plateau."""
    down = max(0.0, 1 - (steps - step) / (decay * steps))
    return min(1, (step + 1) / warm) * (0.02 + 0.49 * (1 + math.cos(math.pi * down)))


@torch.no_grad()
def caption_bank(model: torch.nn.Module, categories: list[str], seed: int) -> Tensor:
    """(categories, CAPTIONS, 2, D) embeddings of caption pairs of each category, normal first: the text is locked."""
    found = []
    for number, category in enumerate(categories):
        stream = np.random.default_rng([seed, 3, number])
        defects = stream.choice(list(CATEGORIES[category].defects), CAPTIONS)
        texts, _ = captions(stream, [(category, str(defect)) for defect in defects])
        found.append(embed_text(model, texts).unflatten(0, (-1, 2)))
    return torch.stack(found)
