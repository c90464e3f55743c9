"""APRIL-GAN (Chen, Han, Zhang, arXiv 2305.17382): patch tokens of four layers, each projected into the joint space.

Follows the official code (github.com/ByChelsea/VAND-APRIL-GAN) where it says more than the paper, which was known here
by its abstract alone. Maps, the few-shot image score, losses and steps of training are the official ones, as
tests/parity.py shows. What differs is this: pictures that are not square are squashed; numbers are fp32, where the
official code has mixed precision; and references are drawn as for every method here, from ``seeds``. The official draws
depend on all that used PyTorch's random numbers before, and cannot be had again; preset ``official`` draws with
replacement, as that code does, and takes its class names. ``python -m vlmad_lib train aprilgan`` trains, with
``--official`` for as many epochs and on as large a share of stitched pictures as that code.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn

from vlmad_lib import PACKAGE, InputError
from vlmad_lib.encoders import devices, prompts
from vlmad_lib.encoders.backbones import Backbone, Facts
from vlmad_lib.evaluation import metrics
from vlmad_lib.files import replace_file
from vlmad_lib.methods import anomalyclip, checkpoints, winclip
from vlmad_lib.methods.base import (
    LANGUAGE,
    ImageSize,
    Method,
    MethodSettings,
    Names,
    Sigma,
    Temperature,
    enlarge_inside,
    values_inside,
)

ENCODER_VERSION = 1  # of ``encode`` and the prompt ensemble
DEMO = PACKAGE / "demo" / "aprilgan-demo.pth"
QUARTERS = ("q1", "q2", "q3", "q4")  # blocks 6, 12, 18 and 24 of 24 (``anomalyclip.quarter``)


class Settings(MethodSettings):
    """The defaults are the published protocol, with the class names and the draws of references of the other methods.

    ``layers``: blocks from 1, as many as the checkpoint projects; none: the ends of the four quarters of the depth.
    ``states`` and ``templates``: sets of prompts.json. ``names`` and ``draws``: official are the ``folder``'s name, and
    references ``repeated``, drawn with replacement (preset ``official``).
    ``image_score``: with references, the mean of P(anomalous) and of the map's maximum; that is ``stretched`` to [0, 1]
    over the category's test images, as published, or divided by its upper end (``fixed``), which needs no other image.
    """

    learned: ClassVar[bool] = True
    image_size: ImageSize | None = None  # none: 37/24 of the backbone's own, 518 for 336
    layers: Annotated[list[int], Field(min_length=1)] | None = None
    states: str = "broken"
    templates: str = "35"
    names: Names = "cleaned"
    image_score: Literal["stretched", "fixed"] = "stretched"
    draws: Literal["distinct", "repeated"] = "distinct"
    temperature: Temperature = 0.01  # CLIP's logit scale of 100
    sigma: Sigma = 0.0
    fit: Literal["squash"] = "squash"
    channels: Literal["rgb"] = "rgb"


# ---------------------------------------------------------------- image side


def layers(settings: Settings) -> list[str]:
    """Names of the arrays whose tokens are projected, one a layer."""
    return [f"raw_{layer}" for layer in settings.layers or QUARTERS]


def arrays(settings: Settings, shots: int = 0) -> list[str]:
    """Names of the arrays of ``encode`` that a score needs."""
    return ["image", *dict.fromkeys(layers(settings))]


def encode(backbone: Backbone, images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """AnomalyCLIP's arrays, positions resized as the official code does: bicubically, with antialias."""
    return anomalyclip.encode(backbone, images, names, "bicubic")


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
    activation: str = "",
) -> None:
    """Write projections in the official format, with what they were trained on, fingerprint and activation of their
    CLIP: the activation is in no weights, and so in no fingerprint of them."""
    state = {name: value.detach().cpu().clone() for name, value in learner.state_dict().items()}
    content = {"trainable_linearlayer": state, "trained_on": trained_on, "root": root, "fingerprint": fingerprint}
    content |= {"categories": list(categories), "activation": activation}
    replace_file(path, lambda file: torch.save(content, file))


def _parse(content: dict) -> dict[str, list[Tensor]]:
    state = content["trainable_linearlayer"]
    count = sum(name.endswith(".weight") for name in state)
    tensors = {kind: [state[f"fc.{i}.{kind}"].float() for i in range(count)] for kind in ("weight", "bias")}
    shapes = {weight.shape for weight in tensors["weight"]} | {bias.shape for bias in tensors["bias"]}
    joint, width = tensors["weight"][0].shape
    if shapes != {(joint, width), (joint,)}:
        raise ValueError("layers of several shapes: those of a ResNet, which is no backbone here")
    return tensors


def _where(trained_on: str) -> str:
    published = trained_on in ("mvtec", "visa")
    return f"github.com/ByChelsea/VAND-APRIL-GAN as exps/pretrained/{trained_on}_pretrained.pth" if published else ""


CHECKPOINT = checkpoints.Kind(
    title="APRIL-GAN",
    noun="projections",
    demo=DEMO,
    parse=_parse,
    without="which the method cannot do without",
    where=_where,
    command="python -m vlmad_lib train aprilgan",
)


@lru_cache(maxsize=8)
def learned(path: Path, digest: str, device: torch.device = devices.CPU) -> Projections:
    """The projections of a checkpoint of this digest, as ``score`` and ``parts`` read them, on a device."""
    return _fill_projections(checkpoints.read(path, CHECKPOINT)).to(device)


def _fill_projections(content: dict) -> Projections:
    learner = Projections(len(content["weight"]), *content["weight"][0].T.shape)
    state = {f"fc.{i}.{kind}": values for kind in ("weight", "bias") for i, values in enumerate(content[kind])}
    learner.load_state_dict(state)
    return learner.requires_grad_(False)


def read(backbone: Backbone, path: Path) -> tuple[Projections, str]:
    """The projections of a checkpoint and the data set they were trained on, "" where it does not say.

    Raises InputError where they are of another CLIP: by its fingerprint and activation, or, as official files have
    none, its widths and the activation of the official code.
    """
    content = checkpoints.read(path, CHECKPOINT)
    learner, expected = _fill_projections(content), widths(backbone)
    actual = tuple(learner.fc[0].weight.T.shape)
    if actual != expected or content["fingerprint"] not in ("", backbone.fingerprint):
        reason = (
            f"they map {actual[0]} numbers to {actual[1]}, it has {expected[0]} and {expected[1]}"
            if actual != expected
            else ""
        )
        raise InputError(
            f"The projections in {path} were not trained for {backbone.label} ({reason or 'its weights are others'}); "
            "name the backbone they were trained on."
        )
    official = "" if content["fingerprint"] else "GELU"
    activation = content["activation"] or official  # older files of ours tell the fingerprint alone
    if activation not in ("", backbone.activation):
        reason = "the official code computes it, whatever CLIP was trained with" if official else "they say so"
        raise InputError(
            f"The projections in {path} were trained on {activation} ({reason}), {backbone.label} computes "
            f"{backbone.activation}; name the backbone of the same weights with {activation}, such as "
            f"ViT-L-14-336{'' if activation == 'GELU' else '-quickgelu'}."
        )
    return learner.to(backbone.device), content["trained_on"]


# ---------------------------------------------------------------- text side and score


def wording(settings: Settings, row: pd.Series) -> list:
    """What decides the text features of an index row, besides the backbone; and how many layers are projected."""
    ensemble = prompts.ensemble(prompts.named(settings.names, row), settings.states, settings.templates)
    return [*ensemble, len(layers(settings))]


def text(backbone: Backbone, ensemble: list, checkpoint: Path) -> Tensor:
    """(2, D) prototypes of a wording, normal first (section 2); refuses a checkpoint that does not fit."""
    learner, _ = read(backbone, checkpoint)
    if len(learner.fc) != ensemble[2]:
        raise InputError(
            f"{checkpoint} projects {len(learner.fc)} layers, the settings name {ensemble[2]}; correct 'layers'."
        )
    return prompts.prototypes(backbone, *ensemble[:2])


def score(
    features: dict[str, Tensor],
    text: Tensor,
    settings: Settings,
    grid: int,
    references: dict[str, Tensor] | None = None,
    inside: Tensor | None = None,
    *,
    learned: Projections,
) -> tuple[Tensor, Tensor]:
    """Image scores and kept maps, stacks (N, layers + 1, grid, grid) as ``metrics.upsample`` enlarges them.

    A stack has the logits of the projected tokens, a map a layer, and one of distances: of the tokens before projection
    one minus the cosine to the nearest reference token, wherever it lies, summed over layers; 0 without references.
    Scores are (N,), in [0, 1]: zero-shot the class token's P(anomalous), which never looks at the map. With references
    the mean of that and of the map's maximum, which ``fixed`` divides by twice the layers, its upper end; ``stretched``
    leaves both, (N, 2), to ``score_category``.
    """
    whole = winclip.probability(features["image"], text, settings.temperature)
    logits = _logits(features, text, settings, grid, learned)
    near = torch.zeros_like(logits[:, 0])
    if references is not None:
        references = winclip.remember(references, settings, grid)
        distances = sum(2 * winclip.distance(features[name], references[name]) for name in layers(settings))
        near = distances.unflatten(1, (grid, grid))
    stacks = torch.cat([logits, near[:, None]], 1)
    if references is None:
        return whole, stacks
    frame = metrics.FRAME, metrics.FRAME  # the official code's, whatever size a run is evaluated at
    # one by one: the enlarged stacks of many images would need gigabytes
    within = enlarge_inside(inside, metrics.FRAME)
    enlarged = (metrics.enlarge_stacks(stack[None], *frame) for stack in stacks)
    largest = torch.cat([values_inside(maps, within).amax(1) for maps in enlarged])
    if settings.image_score == "stretched":
        return torch.stack([whole, largest], 1), stacks
    return (whole + largest / (2 * logits.shape[1])) / 2, stacks


def score_category(scores: np.ndarray) -> np.ndarray:
    """Few-shot image scores (N,) of a category's images, from P(anomalous) and the map's maximum of each (N, 2).

    The mean of both, the maxima stretched to [0, 1] by the least and the greatest of them; 0 where all are equal.
    """
    whole, largest = scores.T
    return (whole + (largest - largest.min()) / (np.ptp(largest) or 1)) / 2


def _logits(features: dict[str, Tensor], text: Tensor, settings: Settings, grid: int, learned: Projections) -> Tensor:
    """(N, layers, grid, grid): the logit of each projected token, anomalous less normal."""
    projected = [project(features[name]) for project, name in zip(learned.fc, layers(settings), strict=True)]
    similarity = torch.stack([winclip.cosine(tokens, text) for tokens in projected], 1)  # (N, layers, patches, 2)
    return ((similarity[..., 1] - similarity[..., 0]) / settings.temperature).unflatten(2, (grid, grid))


def parts(
    features: dict[str, Tensor], text: Tensor, settings: Settings, grid: int, *, learned: Projections
) -> dict[str, np.ndarray]:
    """The zero-shot map of every layer of the first image, and their sum, (grid, grid) each."""
    maps = _logits(features, text, settings, grid, learned)[0].sigmoid()
    names = [name.removeprefix("raw_").replace("q", "of quarter ") for name in layers(settings)]
    layer_maps = {f"layer {name}": values.cpu().numpy() for name, values in zip(names, maps, strict=True)}
    return layer_maps | {"sum": sum(layer_maps.values())}


class AprilGAN(Method):
    """APRIL-GAN; its default backbone computes plain GELU, as the official code does though CLIP learned QuickGELU."""

    key = "aprilgan"
    needs = LANGUAGE
    Settings = Settings
    presets: ClassVar = {"paper": {}, "official": {"names": "folder", "draws": "repeated"}}
    few_shot = True
    plain_gelu = True
    checkpoint_kind = CHECKPOINT
    encoder_version = ENCODER_VERSION
    image_side = staticmethod(anomalyclip.side)
    array_names = staticmethod(arrays)
    encode = staticmethod(encode)
    prompt_wording = staticmethod(wording)
    encode_text = staticmethod(text)
    read_checkpoint = staticmethod(read)
    remember = staticmethod(winclip.remember)
    score = staticmethod(score)
    score_category = staticmethod(score_category)
    partial_maps = staticmethod(parts)

    def refuse_contradictions(self, settings: Any) -> None:
        """Raise InputError for an unknown set of prompts."""
        prompts.ensemble("object", settings.states, settings.templates)

    def rests_on_map(self, settings: Any, shots: int) -> bool:
        """With references in part, by its maximum."""
        return shots > 0

    def draws_with_replacement(self, settings: Any) -> bool:
        """Whether references are drawn with replacement."""
        return settings.draws == "repeated"

    def without_category_context(self, settings: Any) -> dict[str, Any]:
        """The map's maximum is divided by its upper end, not stretched over the category."""
        return {"image_score": "fixed"} if settings.image_score == "stretched" else {}

    def feature_sources(self, settings: Any, backbone: Backbone | Facts) -> dict[str, tuple[Method, Any]]:
        """AnomalyCLIP's where no position is resized: the arrays are the same then."""
        same = anomalyclip.side(settings, backbone) == backbone.image_size
        return {"": (anomalyclip.ANOMALYCLIP if same else self, settings)}

    def load_learned(self, path: Path, digest: str, device: torch.device) -> dict[str, Any]:
        """The projections of a checkpoint."""
        return {"learned": learned(path, digest, device)}


APRILGAN = AprilGAN()
settings = APRILGAN.settings
