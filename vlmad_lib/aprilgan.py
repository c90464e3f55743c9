"""APRIL-GAN (Chen, Han, Zhang, arXiv 2305.17382): patch tokens of four layers, each projected into the joint space.

Follows the official code (github.com/ByChelsea/VAND-APRIL-GAN) where it says more than the paper, and differs from it
in this: probabilities are upsampled, not logits, so that maps stay at the grid's size; pictures that are not square are
squashed; and the few-shot image score has a fixed scale (``score``). The paper was known here by its abstract alone.
``python -m vlmad_lib.aprilgan train`` trains.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn

from vlmad_lib import InputError, anomalyclip, checkpoints, prompts, winclip
from vlmad_lib.backbones import Backbone
from vlmad_lib.files import replace
from vlmad_lib.profile import Strict, check

ZERO_SHOT = True
FEW_SHOT = True
DEMO = Path(__file__).parent / "demo" / "aprilgan-demo.pth"
QUARTERS = ("q1", "q2", "q3", "q4")  # blocks 6, 12, 18 and 24 of 24 (``anomalyclip.quarter``)


class Settings(Strict):
    """The defaults are the published protocol, but for ``names``: the official code takes the ``folder``'s.

    ``layers``: blocks from 1, as many as the checkpoint projects; none: the ends of the four quarters of the depth.
    ``states`` and ``templates``: sets of prompts.json.
    """

    learned: ClassVar[bool] = True
    image_size: Annotated[int, Field(ge=16, le=4096)] | None = None  # none: 37/24 of the backbone's own, 518 for 336
    layers: Annotated[list[int], Field(min_length=1)] | None = None
    states: str = "broken"
    templates: str = "35"
    names: Literal["cleaned", "folder", "object"] = "cleaned"
    temperature: Annotated[float, Field(gt=0)] = 0.01  # CLIP's logit scale of 100
    sigma: Annotated[float, Field(ge=0, le=518)] = 0.0  # of the Gaussian over maps, in pixels of a frame of 518
    fit: Literal["squash"] = "squash"
    channels: Literal["rgb"] = "rgb"


def settings(preset: str = "paper", overrides: dict[str, Any] | None = None) -> Settings:
    """The defaults with single fields changed; InputError names an unknown preset, field, value or set of prompts."""
    if preset != "paper":
        raise InputError(f"APRIL-GAN has no preset {preset!r}; use paper.")
    chosen = check(Settings, overrides or {}, "APRIL-GAN settings")
    prompts.ensemble("object", chosen.states, chosen.templates)
    return chosen


# ---------------------------------------------------------------- image side

side = anomalyclip.side


def layers(chosen: Settings) -> list[str]:
    """Names of the arrays whose tokens are projected, one a layer."""
    return [f"raw_{layer}" for layer in chosen.layers or QUARTERS]


def arrays(chosen: Settings, shots: int = 0) -> list[str]:
    """Names of the arrays of ``encode`` that a score needs."""
    return ["image", *dict.fromkeys(layers(chosen))]


def encode(backbone: Backbone, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
    """AnomalyCLIP's arrays, positions resized as the official code does: bicubically, with antialias."""
    return anomalyclip.encode(backbone, images, wanted, "bicubic")


ENCODING = (encode, *anomalyclip.ENCODING)
"""The code whose change makes kept features stale."""


def shares(chosen: Settings, backbone: Backbone) -> ModuleType:
    """The module that keeps the features: AnomalyCLIP where no position is resized, the arrays then being the same."""
    return anomalyclip if side(chosen, backbone) == backbone.image_size else sys.modules[__name__]


# ---------------------------------------------------------------- what is learned


class Projections(nn.Module):
    """One linear layer, with bias, from tokens (..., width) to the joint space (..., D) for each layer (section 2)."""

    def __init__(self, count: int, width: int, joint: int, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.fc = nn.ModuleList(nn.Linear(width, joint) for _ in range(count))


def widths(backbone: Backbone) -> tuple[int, int]:
    """Numbers of a patch token, and of the joint space."""
    return tuple(backbone.visual.proj.shape)


def write(
    learner: Projections,
    path: Path,
    trained_on: str,
    root: str = "",
    fingerprint: str = "",
    categories: Sequence[str] = (),
) -> None:
    """Write projections in the official format, with what they were trained on and the fingerprint of their CLIP."""
    state = {name: value.detach().clone() for name, value in learner.state_dict().items()}
    content = {"trainable_linearlayer": state, "trained_on": trained_on, "root": root, "fingerprint": fingerprint}
    content["categories"] = list(categories)
    replace(path, lambda file: torch.save(content, file))


def _parse(found: dict) -> dict[str, list[Tensor]]:
    state = found["trainable_linearlayer"]
    count = sum(name.endswith(".weight") for name in state)
    parts = {part: [state[f"fc.{i}.{part}"].float() for i in range(count)] for part in ("weight", "bias")}
    shapes = {weight.shape for weight in parts["weight"]} | {bias.shape for bias in parts["bias"]}
    joint, width = parts["weight"][0].shape
    if shapes != {(joint, width), (joint,)}:
        raise ValueError("layers of several shapes: those of a ResNet, which is no backbone here")
    return parts


def _where(trained_on: str) -> str:
    known = trained_on in ("mvtec", "visa")
    return f"github.com/ByChelsea/VAND-APRIL-GAN as exps/pretrained/{trained_on}_pretrained.pth" if known else ""


CHECKPOINT = checkpoints.Kind(
    title="APRIL-GAN",
    noun="projections",
    demo=DEMO,
    parse=_parse,
    without="which the method cannot do without",
    where=_where,
    command="python -m vlmad_lib.aprilgan train",
)


@lru_cache(maxsize=8)
def learned(path: Path, digest: str) -> Projections:
    """The projections of a checkpoint of this digest, as ``score`` and ``parts`` read them."""
    return _filled(checkpoints.read(path, CHECKPOINT))


def _filled(found: dict) -> Projections:
    learner = Projections(len(found["weight"]), *found["weight"][0].T.shape)
    state = {f"fc.{i}.{part}": one for part in ("weight", "bias") for i, one in enumerate(found[part])}
    learner.load_state_dict(state)
    return learner.requires_grad_(False)


def read(backbone: Backbone, path: Path) -> tuple[Projections, str]:
    """The projections of a checkpoint and the data set they were trained on, "" where it does not say.

    Raises InputError where they are of another CLIP: by its fingerprint, or, as official files have none, its widths.
    """
    found = checkpoints.read(path, CHECKPOINT)
    learner, own = _filled(found), widths(backbone)
    theirs = tuple(learner.fc[0].weight.T.shape)
    if theirs != own or found["fingerprint"] not in ("", backbone.fingerprint):
        why = f"they map {theirs[0]} numbers to {theirs[1]}, it has {own[0]} and {own[1]}" if theirs != own else ""
        raise InputError(
            f"The projections in {path} were not trained for {backbone.label} ({why or 'its weights are others'}); "
            "name the backbone they were trained on."
        )
    return learner, found["trained_on"]


# ---------------------------------------------------------------- text side and score


def wording(chosen: Settings, row: pd.Series) -> list:
    """What decides the text features of an index row, besides the backbone; and how many layers are projected."""
    words = prompts.ensemble(prompts.named(chosen.names, row), chosen.states, chosen.templates)
    return [*words, len(layers(chosen))]


def text(backbone: Backbone, words: list, checkpoint: Path) -> Tensor:
    """(2, D) prototypes of a wording, normal first (section 2); refuses a checkpoint that does not fit."""
    learner, _ = read(backbone, checkpoint)
    if len(learner.fc) != words[2]:
        raise InputError(
            f"{checkpoint} projects {len(learner.fc)} layers, the settings name {words[2]}; correct 'layers'."
        )
    return prompts.prototypes(backbone, *words[:2])


TEXT = (text, prompts.prototypes)
"""The code whose change makes kept text features stale."""

remember = winclip.remember


def score(
    features: dict[str, Tensor],
    text: Tensor,
    chosen: Settings,
    grid: int,
    references: dict[str, Tensor] | None = None,
    *,
    learned: Projections,
) -> tuple[Tensor, Tensor]:
    """Image scores (N,) and maps (N, grid, grid), both summed over layers.

    Zero-shot: the class token's P(anomalous), which never looks at the map; the maps of the projected
    tokens, each in [0, 1]. With references: one minus the cosine to the nearest reference token, wherever
    it lies, of the tokens before projection, is added to the map; the image score is the mean of the class token's and
    of the map's maximum. The official code stretches these maxima to [0, 1] by the least and the greatest over the
    category's test images; a score of one image cannot know them, so here they are divided by twice the layers.
    """
    whole = winclip.probability(features["image"], text, chosen.temperature)
    found = sum(_maps(features, text, chosen, grid, learned))
    if references is not None:
        names = layers(chosen)
        near = sum(2 * winclip.distance(features[name], references[name]) for name in names)
        found = found + near.unflatten(1, (grid, grid))
        whole = (whole + found.amax((1, 2)) / (2 * len(names))) / 2
    return whole, found


def _maps(features: dict[str, Tensor], text: Tensor, chosen: Settings, grid: int, learned: Projections) -> list[Tensor]:
    """The zero-shot map (N, grid, grid) in [0, 1] of every layer."""
    projected = [one(features[name]) for one, name in zip(learned.fc, layers(chosen), strict=True)]
    return [winclip.probability(tokens, text, chosen.temperature).unflatten(1, (grid, grid)) for tokens in projected]


def parts(
    features: dict[str, Tensor], text: Tensor, chosen: Settings, grid: int, *, learned: Projections
) -> dict[str, np.ndarray]:
    """The zero-shot map of every layer of the first image, and their sum, (grid, grid) each."""
    maps = _maps(features, text, chosen, grid, learned)
    names = [name.removeprefix("raw_").replace("q", "of quarter ") for name in layers(chosen)]
    found = {f"layer {name}": one[0].numpy() for name, one in zip(names, maps, strict=True)}
    return found | {"sum": sum(found.values())}


if __name__ == "__main__":
    from vlmad_lib.projection_training import APRILGAN  # it needs this module, complete
    from vlmad_lib.training import main

    sys.exit(main(APRILGAN))
