"""What methods learn and from which objective: prompts of AnomalyCLIP and CoOp, projections of APRIL-GAN.

The objectives are those of the papers as the official code has them (AnomalyCLIP, section 3.4; APRIL-GAN, section 2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vlmad_lib.config import Strict
from vlmad_lib.encoders import prompts
from vlmad_lib.encoders.backbones import Backbone
from vlmad_lib.methods import METHODS, anomalyclip, aprilgan, checkpoints, clip_baselines
from vlmad_lib.methods.base import Method, MethodSettings
from vlmad_lib.methods.prompt_learner import PromptLearner, write


class Plan(Strict):
    """What decides a training besides its profile; the defaults are those of AnomalyCLIP's official code."""

    epochs: Annotated[int, Field(ge=1)] = 15
    batch: Annotated[int, Field(ge=1)] = 8
    rate: Annotated[float, Field(gt=0)] = 1e-3
    seed: Annotated[int, Field(ge=0)] = 111
    stitched: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of examples that are four pictures of a category as one
    exact: bool = True  # features kept as fp32; fp16 halves their size and shares them with a run that scores


@dataclass(frozen=True)
class Batch:
    """What a step sees: rows of the index, kept arrays, masks (B, side, side), and which of them are known (B,).

    ``sheets`` are stitched pictures that still have to be encoded, with their masks, by the place they take.
    """

    rows: pd.DataFrame
    arrays: dict[str, Tensor]
    masks: Tensor
    known: list[bool]
    sheets: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    @property
    def labels(self) -> Tensor:
        """(B,) in {0, 1}, where the masks are."""
        return torch.from_numpy(self.rows.label.to_numpy(copy=True)).to(self.masks.device)

    def pinned(self) -> Batch:
        """The same in memory that an NVIDIA GPU copies from by itself."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> Batch:
        """The same with its tensors on a device."""
        return self._each(lambda value: value.to(device, non_blocking=device.type == "cuda"))

    def _each(self, do: Callable[[Tensor], Tensor]) -> Batch:
        return replace(self, arrays={name: do(value) for name, value in self.arrays.items()}, masks=do(self.masks))


@dataclass(frozen=True)
class Task:
    """What one method learns.

    ``start`` makes the learner of a backbone, settings and seed; ``terms`` are the objective's by name, the last being
    the ``total``, of learner, backbone, settings and batch; ``write`` takes learner, path, what the file says of the
    data (name, folder, categories) and backbone. ``masks``: whether images without a mask teach nothing. ``official``:
    the changes of the plan by which the official code trains on a data set.
    """

    method: str
    plan: Plan
    objective: str
    names: tuple[str, ...]
    start: Callable
    terms: Callable
    write: Callable
    masks: bool = False
    official: dict[str, dict] | None = None

    @property
    def title(self) -> str:
        """The method's name."""
        return METHODS[self.method].title

    @property
    def kind(self) -> checkpoints.Kind:
        """What its files are."""
        return METHODS[self.method].checkpoint_kind


# ---------------------------------------------------------------- losses

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


def prompt_loss(
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


def _encode_rows(
    method: Method, learner: PromptLearner, backbone: Backbone, settings: MethodSettings, rows: pd.DataFrame
) -> Tensor:
    """Text features (B, 2, D) of every row by a method's wording, each wording computed once."""
    wordings = [tuple(method.prompt_wording(settings, row)) for _, row in rows.iterrows()]
    features = {wording: learner(backbone, *wording) for wording in dict.fromkeys(wordings)}
    return torch.stack([features[wording] for wording in wordings])


# ---------------------------------------------------------------- AnomalyCLIP


def _terms(
    learner: PromptLearner, backbone: Backbone, settings: anomalyclip.Settings, batch: Batch
) -> dict[str, Tensor]:
    text = _encode_rows(anomalyclip.ANOMALYCLIP, learner, backbone, settings, batch.rows)
    terms = prompt_loss(batch.arrays, text, batch.labels, batch.masks, batch.known, settings.temperature)
    return {name: getattr(terms, name) for name in TERMS}


PROMPTS = Task(
    method="anomalyclip",
    plan=Plan(),
    objective="cross entropy + 4 (focal + Dice + Dice)",
    names=TERMS,
    start=lambda backbone, settings, seed: PromptLearner(backbone, seed),
    terms=_terms,
    write=lambda learner, out, origin, backbone: write(learner, out, **origin),
)


# ---------------------------------------------------------------- CoOp


def _coop_terms(
    learner: clip_baselines.Context, backbone: Backbone, settings: clip_baselines.CoOpSettings, batch: Batch
) -> dict[str, Tensor]:
    text = _encode_rows(clip_baselines.COOP, learner, backbone, settings, batch.rows)
    return {"total": cross_entropy(batch.arrays["image"], text, batch.labels, settings.temperature)}


COOP = Task(
    method="coop",
    plan=Plan(epochs=50, batch=32, rate=2e-3),  # as in its paper, which has SGD with a cosine schedule
    objective="cross entropy of whole images",
    names=("total",),
    start=lambda backbone, settings, seed: clip_baselines.Context(backbone, seed),
    terms=_coop_terms,
    write=lambda learner, out, origin, backbone: clip_baselines.write(learner, out, **origin),
)


# ---------------------------------------------------------------- APRIL-GAN


def projection_loss(
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


def _prototypes(backbone: Backbone, settings: aprilgan.Settings, batch: Batch) -> Tensor:
    """(B, 2, D) prototypes of every row."""
    words = [aprilgan.wording(settings, row)[:2] for _, row in batch.rows.iterrows()]
    return torch.stack([_prototype(backbone, tuple(normal), tuple(anomalous)) for normal, anomalous in words])


@lru_cache(maxsize=64)
def _prototype(backbone: Backbone, normal: tuple[str, ...], anomalous: tuple[str, ...]) -> Tensor:
    """(2, D): each wording is encoded once for a whole training."""
    return prompts.prototypes(backbone, list(normal), list(anomalous))


def _aprilgan_terms(
    learner: aprilgan.Projections, backbone: Backbone, settings: aprilgan.Settings, batch: Batch
) -> dict[str, Tensor]:
    tokens = [batch.arrays[name] for name in aprilgan.layers(settings)]
    projected = [one(value) for one, value in zip(learner.fc, tokens, strict=True)]
    return projection_loss(projected, _prototypes(backbone, settings, batch), batch.masks, settings.temperature)


def _start_projections(backbone: Backbone, settings: aprilgan.Settings, seed: int) -> aprilgan.Projections:
    return aprilgan.Projections(len(aprilgan.layers(settings)), *aprilgan.widths(backbone), seed).to(backbone.device)


def _write_projections(learner: aprilgan.Projections, out: Path, origin: dict, backbone: Backbone) -> None:
    aprilgan.write(learner, out, **origin, fingerprint=backbone.fingerprint, activation=backbone.activation)


APRILGAN = Task(
    method="aprilgan",
    plan=Plan(),  # the official code: Adam at 0.001, batch 8, seed 111
    official={"mvtec": {"epochs": 3, "stitched": 0.2}, "visa": {"epochs": 15, "stitched": 0.0}},
    objective="focal + Dice, summed over layers",
    names=("focal", "dice", "total"),
    start=_start_projections,
    terms=_aprilgan_terms,
    write=_write_projections,
    masks=True,
)


TASKS = {task.method: task for task in (PROMPTS, COOP, APRILGAN)}
