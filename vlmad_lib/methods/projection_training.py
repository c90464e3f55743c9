"""What APRIL-GAN's projections learn from (section 2 of the paper, as the official code has it): masks alone."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmad_lib.encoders import prompts
from vlmad_lib.encoders.backbones import Backbone
from vlmad_lib.methods import aprilgan
from vlmad_lib.methods.prompt_training import dice_loss, focal_loss
from vlmad_lib.methods.training import Batch, Plan, Task

TERMS = ("focal", "dice", "total")


def loss(
    projected: list[Tensor], text: Tensor, masks: Tensor, temperature: float = aprilgan.Settings().temperature
) -> dict[str, Tensor]:
    """Focal and Dice loss, summed over layers, of tokens in the joint space (B, P, D) and masks (B, side, side).

    ``text`` (B, 2, D) are the prototypes of each image. Logits, not probabilities, are upsampled, corner on corner, and
    Dice is that of the anomalous side alone, both as officially.
    """
    focal = dice = torch.zeros((), device=text.device)
    text = F.normalize(text, dim=-1)
    for tokens in projected:
        logits = F.normalize(tokens, dim=-1) @ text.mT / temperature
        grid = round(tokens.shape[1] ** 0.5)
        logits = logits.mT.unflatten(2, (grid, grid))
        chances = F.interpolate(logits, masks.shape[-2:], mode="bilinear", align_corners=True).softmax(1)
        focal = focal + focal_loss(chances, masks)
        dice = dice + dice_loss(chances[:, 1], masks)
    return {"focal": focal, "dice": dice, "total": focal + dice}


def _prototypes(backbone: Backbone, chosen: aprilgan.Settings, batch: Batch) -> Tensor:
    """(B, 2, D) prototypes of every row."""
    words = [aprilgan.wording(chosen, row)[:2] for _, row in batch.rows.iterrows()]
    return torch.stack([_prototype(backbone, tuple(normal), tuple(anomalous)) for normal, anomalous in words])


@lru_cache(maxsize=64)
def _prototype(backbone: Backbone, normal: tuple[str, ...], anomalous: tuple[str, ...]) -> Tensor:
    """(2, D): each wording is encoded once for a whole training."""
    return prompts.prototypes(backbone, list(normal), list(anomalous))


def _terms(
    learner: aprilgan.Projections, backbone: Backbone, chosen: aprilgan.Settings, batch: Batch
) -> dict[str, Tensor]:
    tokens = [batch.arrays[name] for name in aprilgan.layers(chosen)]
    projected = [one(value) for one, value in zip(learner.fc, tokens, strict=True)]
    return loss(projected, _prototypes(backbone, chosen, batch), batch.masks, chosen.temperature)


def _start(backbone: Backbone, chosen: aprilgan.Settings, seed: int) -> aprilgan.Projections:
    return aprilgan.Projections(len(aprilgan.layers(chosen)), *aprilgan.widths(backbone), seed).to(backbone.device)


def _write(learner: aprilgan.Projections, out: Path, origin: dict, backbone: Backbone) -> None:
    aprilgan.write(learner, out, **origin, fingerprint=backbone.fingerprint, activation=backbone.activation)


APRILGAN = Task(
    method="aprilgan",
    plan=Plan(),  # the official code: Adam at 0.001, batch 8, seed 111
    official={"mvtec": {"epochs": 3, "stitched": 0.2}, "visa": {"epochs": 15, "stitched": 0.0}},
    objective="focal + Dice, summed over layers",
    names=TERMS,
    start=_start,
    terms=_terms,
    write=_write,
    code=(loss, focal_loss, dice_loss, aprilgan.Projections),
    masks=True,
)
