"""What prompts learn from: AnomalyCLIP's objective (section 3.4 of the paper, as the official code has it), CoOp's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from vlmad_lib.config import Profile, Strict
from vlmad_lib.encoders.backbones import Backbone
from vlmad_lib.methods import anomalyclip, coop, training
from vlmad_lib.methods.prompt_learner import PromptLearner, write
from vlmad_lib.methods.training import Batch, Plan, Task

TERMS = ("cross_entropy", "focal", "dice_anomalous", "dice_normal", "total")


@dataclass(frozen=True)
class Loss:
    """The terms of the objective; ``total`` = CE + 4 (focal + both dice), these summed over layers."""

    cross_entropy: Tensor
    focal: Tensor
    dice_anomalous: Tensor
    dice_normal: Tensor

    @property
    def total(self) -> Tensor:
        """What is minimised."""
        return self.cross_entropy + 4 * (self.focal + self.dice_anomalous + self.dice_normal)


def loss(
    features: dict[str, Tensor],
    text: Tensor,
    labels: Tensor,
    masks: Tensor,
    known: Sequence[bool] | None = None,
    temperature: float = anomalyclip.Settings().temperature,
) -> Loss:
    """Terms on the arrays of ``encode``, labels (B,) in {0, 1} and masks (B, side, side) in {0, 1}.

    ``text`` is (2, D), or (B, 2, D) where every image has prompts of its own. Images without a mask, those not
    ``known`` (B,), count for the cross entropy alone: ``known`` is on the CPU, for its values decide the shapes of what
    is computed. Cosines are divided by ``temperature``.
    """
    text = F.normalize(text, dim=-1).expand(len(labels), -1, -1)
    entropy = cross_entropy(features["class"], text, labels, temperature)
    focal = anomalous = normal = torch.zeros((), device=text.device)
    rows = slice(None)
    if known is not None and not all(known):
        rows = torch.tensor([row for row, one in enumerate(known) if one], dtype=torch.long, device=text.device)
    masks = masks[rows]
    for name, value in features.items():
        if name == "class" or not len(masks):
            continue
        logits = F.normalize(value[rows], dim=-1) @ text[rows].mT / temperature
        grid = round(value.shape[1] ** 0.5)
        chances = logits.softmax(-1).mT.unflatten(2, (grid, grid))
        chances = F.interpolate(chances, masks.shape[-2:], mode="bilinear", align_corners=False)
        focal = focal + focal_loss(chances, masks)
        anomalous = anomalous + dice_loss(chances[:, 1], masks)
        normal = normal + dice_loss(chances[:, 0], 1 - masks)
    return Loss(entropy, focal, anomalous, normal)


def cross_entropy(images: Tensor, text: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Of whole images (B, D) against their pairs of text features (B, 2, D), by cosine over a temperature."""
    cosines = (F.normalize(text, dim=-1) @ F.normalize(images, dim=-1)[..., None])[..., 0]
    return F.cross_entropy(cosines / temperature, labels.long())


def focal_loss(chances: Tensor, masks: Tensor, small: float = 1e-5) -> Tensor:
    """Mean focal loss, gamma 2, of chances (B, 2, H, W) against masks (B, H, W)."""
    truth = torch.stack([1 - masks, masks], 1).clamp(small, 1 - small)
    right = (truth * chances).sum(1) + small
    return -((1 - right) ** 2 * right.log()).mean()


def dice_loss(chance: Tensor, mask: Tensor) -> Tensor:
    """One minus the mean over a batch of the smoothed Dice overlap of (B, H, W) and (B, H, W)."""
    chance, mask = chance.flatten(1), mask.flatten(1)
    return 1 - ((2 * (chance * mask).sum(1) + 1) / (chance.sum(1) + mask.sum(1) + 1)).mean()


def texts(module, learner: PromptLearner, backbone: Backbone, chosen: Strict, rows: pd.DataFrame) -> Tensor:
    """Text features (B, 2, D) of every row by a method's ``wording``, each wording computed once."""
    words = [tuple(module.wording(chosen, row)) for _, row in rows.iterrows()]
    features = {one: learner(backbone, *one) for one in dict.fromkeys(words)}
    return torch.stack([features[one] for one in words])


# ---------------------------------------------------------------- AnomalyCLIP


def _terms(learner: PromptLearner, backbone: Backbone, chosen: anomalyclip.Settings, batch: Batch) -> dict[str, Tensor]:
    text = texts(anomalyclip, learner, backbone, chosen, batch.rows)
    found = loss(batch.arrays, text, batch.labels, batch.masks, batch.known, chosen.temperature)
    return {name: getattr(found, name) for name in TERMS}


PROMPTS = Task(
    method="anomalyclip",
    plan=Plan(),
    objective="cross entropy + 4 (focal + Dice + Dice)",
    names=TERMS,
    start=lambda backbone, chosen, seed: PromptLearner(backbone, seed),
    terms=_terms,
    write=lambda learner, out, origin, backbone: write(learner, out, **origin),
    code=(loss, cross_entropy, focal_loss, dice_loss, PromptLearner),
)


def train(
    profile: Profile, out: Path, plan: Plan | None = None, method: str = "", progress: bool = False
) -> list[dict]:
    """``training.train`` of AnomalyCLIP's prompts."""
    return training.train(PROMPTS, profile, out, plan, method, progress)


# ---------------------------------------------------------------- CoOp


def _coop_terms(learner: coop.Context, backbone: Backbone, chosen: coop.Settings, batch: Batch) -> dict[str, Tensor]:
    text = texts(coop, learner, backbone, chosen, batch.rows)
    return {"total": cross_entropy(batch.arrays["image"], text, batch.labels, chosen.temperature)}


COOP = Task(
    method="coop",
    plan=Plan(epochs=50, batch=32, rate=2e-3),  # as in its paper, which has SGD with a cosine schedule
    objective="cross entropy of whole images",
    names=("total",),
    start=lambda backbone, chosen, seed: coop.Context(backbone, seed),
    terms=_coop_terms,
    write=lambda learner, out, origin, backbone: coop.write(learner, out, **origin),
    code=(_coop_terms, cross_entropy, PromptLearner, coop.Context),
)
