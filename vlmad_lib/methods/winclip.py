"""WinCLIP and WinCLIP+ (Jeong et al., CVPR 2023): windows of tokens, harmonic maps, normal references.

``encode`` costs seconds and needs only image and backbone; ``zero_shot``, ``associate`` and ``score``
are a few matrix products on what it returns. Maps stay at the patch grid's own size.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vlmad_lib import InputError
from vlmad_lib.encoders import devices, prompts
from vlmad_lib.encoders.backbones import Backbone, cosine
from vlmad_lib.encoders.vit_blocks import Block
from vlmad_lib.methods.base import LANGUAGE, Method, MethodSettings, Names, Sigma, Temperature, values_inside

ENCODER_VERSION = 1  # of ``encode`` and the prompt ensemble
SMALLEST = 1e-6  # a score of zero has no harmonic mean

WHOLE = frozenset({"class", "image"})  # arrays of whole images, read off the class token
PATCHES = {"last": "patch", "last_ln_post": "patch_ln_post", "penultimate": "patch_penultimate", "none": None}


class Settings(MethodSettings):
    """What the public implementations of WinCLIP differ in; the defaults are the preset ``paper``."""

    windows: list[Annotated[int, Field(ge=1)]] = [2, 3]
    full_image: bool = True  # the whole image is one more scale of the map
    temperature: Temperature = 0.07
    states: str = "all"  # a set of prompts.json, or "own": the two lists below, put into the templates like any state
    own_normal: list[str] = []
    own_anomalous: list[str] = []
    templates: str = "22"
    names: Names = "cleaned"
    normalise_prompts: bool = True
    harmonic_of: Literal["anomaly", "normal"] = "anomaly"
    image_score: Literal["class_token", "map_max"] = "class_token"
    patch_tokens: Literal["last", "last_ln_post", "penultimate", "none"] = "last"
    window_association: Literal["harmonic", "mean"] = "harmonic"
    fusion: Literal["mean", "harmonic"] = "mean"
    sigma: Sigma = 0.0
    fit: Literal["tiles", "squash"] = "tiles"
    channels: Literal["rgb", "bgr"] = "rgb"  # bgr: the test images of the faulty preset, never the references


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    # zqhang/Accurate-WinCLIP-pytorch, whose table others reproduced
    "accurate": {"templates": "21", "names": "folder", "normalise_prompts": False, "fit": "squash"},
    # caoyunkang/WinClip, which the study used: kept to explain its numbers, not to be trusted
    "study": {
        "full_image": False,
        "temperature": 0.01,
        "templates": "22 no stop",
        "names": "folder",
        "normalise_prompts": False,
        "harmonic_of": "normal",
        "image_score": "map_max",
        "patch_tokens": "none",
        "window_association": "mean",
        "fusion": "harmonic",
        "fit": "squash",
        "channels": "bgr",
    },
}


# ---------------------------------------------------------------- encode (section 4.2 of the paper)


def arrays(settings: Settings, shots: int = 0) -> list[str]:
    """Names of the arrays of ``encode`` that a score needs; InputError where references have none to be met by."""
    needed = ["class", *(f"window_{size}" for size in settings.windows)]
    patches = PATCHES[settings.patch_tokens]
    if shots and not settings.windows and not patches:
        raise InputError("WinCLIP settings: 'windows' is empty and 'patch_tokens' is none; references need one.")
    return needed + ([patches] if shots and patches else [])


def window_tokens(grid: int, size: int) -> Tensor:
    """(n, size^2) indices into the grid's tokens of every size x size window, step 1, raster order."""
    if not 1 <= size <= grid:
        raise InputError(f"A window of {size} tokens does not fit a grid of {grid}x{grid}; choose 1 to {grid}.")
    return torch.arange(grid * grid).reshape(grid, grid).unfold(0, size, 1).unfold(1, size, 1).reshape(-1, size * size)


@torch.inference_mode()
def encode(backbone: Backbone, images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """Features of normalised images (N, 3, H, W), fp32, none of them L2-normalised.

    ``class`` (N, D) is the whole image's embedding, ``window_k`` (N, n_k, D) those of all windows of k x k
    tokens: each is the class token together with the window's patch tokens, every token at its position
    in the whole image, the other tokens left out. ``patch``, ``patch_ln_post`` and ``patch_penultimate``
    are (N, grid^2, width) patch tokens of the full forward pass before the projection.
    """
    visual, blocks = backbone.visual, backbone.blocks
    tokens = visual._embeds(images)  # class token first, all positions added, after ln_pre
    projected = blocks[0].project(tokens)  # by the first block, which is the same for a token in every window
    arrays = _full_image(visual, blocks, tokens, projected, names)
    for name in names:
        if name.startswith("window_"):
            members = window_tokens(backbone.grid, int(name.removeprefix("window_")))
            arrays[name] = _windows(backbone, tokens, projected, members)
    return {name: arrays[name].float() for name in names}


def _full_image(
    visual: nn.Module, blocks: list[Block], tokens: Tensor, projected: Tensor, names: Collection[str]
) -> dict[str, Tensor]:
    whole_names = [name for name in names if not name.startswith("window_")]
    if not whole_names:
        return {}
    before = _before_last(blocks, tokens, projected)
    arrays = {"patch_penultimate": before[:, 1:]}
    if {"patch", "patch_ln_post"}.isdisjoint(whole_names):
        return arrays | {"class": _embed(visual, blocks[-1].class_token(before))}
    last = blocks[-1](before)
    return arrays | {
        "class": _embed(visual, last[:, 0]),
        "patch": last[:, 1:],
        "patch_ln_post": visual.ln_post(last[:, 1:]),
    }


def _windows(backbone: Backbone, tokens: Tensor, projected: Tensor, members: Tensor) -> Tensor:
    """(N, n, D) embeddings of token subsets; windows are a batch of their own and never see each other."""
    visual, blocks = backbone.visual, backbone.blocks
    members = F.pad(members.to(tokens.device) + 1, (1, 0))  # the class token, index 0, goes first
    images, length = tokens.shape[:2]
    rows = (torch.arange(images, device=tokens.device)[:, None, None] * length + members).flatten(0, 1)
    tokens, projected = tokens.flatten(0, 1), projected.flatten(0, 1)
    size, embeddings = max(1, backbone.window_tokens_at_once // members.shape[1]), []
    for chunk, count in devices.split_padded(rows, size, devices.is_accelerator(backbone.device)):
        before = _before_last(blocks, tokens[chunk], projected[chunk])
        embeddings.append(_embed(visual, blocks[-1].class_token(before))[:count])
    return torch.cat(embeddings).unflatten(0, (images, -1))


def _before_last(blocks: list[Block], tokens: Tensor, projected: Tensor) -> Tensor:
    """(n, L, width) tokens as the last block meets them, from those at the start and their first projection."""
    for block in blocks[:-1]:
        tokens, projected = block(tokens, projected), None
    return tokens


def _embed(visual: nn.Module, class_token: Tensor) -> Tensor:
    embedded = visual.ln_post(class_token)
    return embedded if visual.proj is None else embedded @ visual.proj


# ---------------------------------------------------------------- text side (section 4.1)


def wording(settings: Settings, row: pd.Series) -> list:
    """What decides the text features of an index row, besides the backbone: prompts, and how they are averaged."""
    own = {"normal": settings.own_normal, "anomalous": settings.own_anomalous}
    states = own if settings.states == "own" else settings.states
    return [
        *prompts.ensemble(prompts.named(settings.names, row), states, settings.templates),
        settings.normalise_prompts,
    ]


def text(backbone: Backbone, words: list, checkpoint: Path | None = None) -> Tensor:
    """(2, D) prototypes of a wording, normal first."""
    return prompts.prototypes(backbone, *words)


# ---------------------------------------------------------------- score


def probability(features: Tensor, text: Tensor, temperature: float) -> Tensor:
    """P(anomalous) in [0, 1] of features (..., D) against the (2, D) prototypes, normal first."""
    similarity = cosine(features, text)
    return torch.sigmoid((similarity[..., 1] - similarity[..., 0]) / temperature)


def spread(scores: Tensor, grid: int, size: int, mean: str = "harmonic") -> Tensor:
    """(N, n) window scores -> (N, grid, grid): at each patch the mean over all windows that cover it."""
    harmonic = mean == "harmonic"
    values = 1 / scores.clamp_min(SMALLEST) if harmonic else scores
    patches = values[:, None, :].expand(-1, size * size, -1)
    total = F.fold(patches, (grid, grid), size)[:, 0]
    count = F.fold(torch.ones_like(patches[:1]), (grid, grid), size)[:, 0]
    return count / total if harmonic else total / count


def fuse(maps: list[Tensor]) -> Tensor:
    """Harmonic mean of maps of anomaly_map shape."""
    return len(maps) / sum(1 / anomaly_map.clamp_min(SMALLEST) for anomaly_map in maps)


def zero_shot(features: dict[str, Tensor], text: Tensor, settings: Settings, grid: int) -> tuple[Tensor, Tensor]:
    """P(anomalous) of the whole images (N,), and the language-driven maps (N, grid, grid) in [0, 1]."""
    inverted = settings.harmonic_of == "normal"
    if inverted:
        text = text.flip(0)
    whole = probability(features["class"], text, settings.temperature)
    maps = [
        spread(probability(features[f"window_{size}"], text, settings.temperature), grid, size)
        for size in settings.windows
    ]
    if settings.full_image:
        maps.append(whole[:, None, None].expand(-1, grid, grid))
    fused = fuse(maps)
    return (1 - whole, 1 - fused) if inverted else (whole, fused)


def associate(
    features: dict[str, Tensor], references: dict[str, Tensor], settings: Settings, grid: int, draws: list | None = None
) -> Tensor:
    """(N, grid, grid) in [0, 1]: distance to the nearest reference token, mean over scales (equations 2-4).

    Windows are compared with all reference windows of their size, patches with all reference patches,
    wherever they lie. ``references`` are best what ``remember`` made of them, once for all images. With ``draws``, see
    ``score``, one map a draw.
    """
    maps, references = [], remember(references, settings, grid)
    for size in settings.windows:
        name = f"window_{size}"
        far = distance(features[name], references[name], draws)
        maps.append(spread(far, grid, size, settings.window_association))
    patches = PATCHES[settings.patch_tokens]
    if patches:
        maps.append(distance(features[patches], references[patches], draws).unflatten(1, (grid, grid)))
    return torch.stack(maps).mean(0)


class Remembered(dict[str, Tensor]):
    """Arrays of references by name, their rows of length one: what ``remember`` returns."""


def remember(references: dict[str, Tensor], settings: MethodSettings, grid: int) -> Remembered:
    """The arrays of references that ``score`` compares with, their rows brought to length one, once for all images."""
    if isinstance(references, Remembered):
        return references
    compared = [name for name in references if name not in WHOLE]
    return Remembered({name: F.normalize(references[name].float(), dim=-1) for name in compared})


def distance(features: Tensor, memory: Tensor, draws: list[Tensor] | None = None) -> Tensor:
    """(N, n) half cosine distance in [0, 1] of features (N, n, D) to the nearest row of references (R, m, D).

    Rows of references have length one (``remember``). With ``draws``, each some of the references, those of a single
    image: (draws, n).
    """
    # one by one: all products at once would need gigabytes, and their last digits depend on how many there are
    near = [
        torch.stack([(image @ rows.T).amax(1) for rows in memory]) for image in F.normalize(features.float(), dim=-1)
    ]
    if draws is not None:
        near = [near[0][draw] for draw in draws]
    nearest = torch.stack([similarity.amax(0) for similarity in near])
    return (1 - nearest) / 2


def score(
    features: dict[str, Tensor],
    text: Tensor,
    settings: Settings,
    grid: int,
    references: dict[str, Tensor] | None = None,
    draws: list[Tensor] | None = None,
    inside: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Image scores (N,) and maps (N, grid, grid); with references WinCLIP+, without them zero-shot.

    The zero-shot image score is P(anomalous) of the whole image and never looks at the map. With
    references it is the mean of that and of the largest association, the map the mean of both maps.
    With ``draws``, each the places of some references, a single image is scored by each of them. Maxima are those of
    the cells ``inside`` (grid, grid) where they are given.
    """
    whole, fused = zero_shot(features, text, settings, grid)
    if references is not None:
        near = associate(features, references, settings, grid, draws)
        whole = (whole + values_inside(near, inside).amax(1)) / 2
        fused = (fused + near) / 2 if settings.fusion == "mean" else fuse([fused, near]) / 2
    return (values_inside(fused, inside).amax(1) if settings.image_score == "map_max" else whole), fused


def parts(features: dict[str, Tensor], text: Tensor, settings: Settings, grid: int) -> dict[str, np.ndarray]:
    """The zero-shot map of every scale of the first image and their fusion, (grid, grid) each, by name."""
    without_image = settings.model_copy(update={"full_image": False})
    maps = {}
    for size in settings.windows:
        scale = without_image.model_copy(update={"windows": [size]})
        maps[f"{size}x{size} windows"] = zero_shot(features, text, scale, grid)[1][0].cpu().numpy()
    whole, fused = zero_shot(features, text, settings, grid)
    return maps | {"whole image": np.full((grid, grid), float(whole[0])), "fused": fused[0].cpu().numpy()}


class WinCLIP(Method):
    """WinCLIP without references, WinCLIP+ with them."""

    key = "winclip"
    needs = LANGUAGE
    Settings = Settings
    presets = PRESETS
    few_shot = True
    scores_draws_together = True
    encoder_version = ENCODER_VERSION
    array_names = staticmethod(arrays)
    encode = staticmethod(encode)
    prompt_wording = staticmethod(wording)
    encode_text = staticmethod(text)
    remember = staticmethod(remember)
    score = staticmethod(score)
    partial_maps = staticmethod(parts)

    def rests_on_map(self, settings: Any, shots: int) -> bool:
        """With references in part, by their maximum; without them only as the maximum of the map."""
        return shots > 0 or settings.image_score == "map_max"

    def refuse_contradictions(self, settings: Any) -> None:
        """Raise InputError where no scale is left, and for own prompts that are missing, unused or unfit."""
        if not settings.windows and not settings.full_image:
            raise InputError("WinCLIP settings: 'windows' is empty and 'full_image' is off; keep at least one scale.")
        own = {"own_normal": settings.own_normal, "own_anomalous": settings.own_anomalous}
        if [bool(texts) for texts in own.values()] != [settings.states == "own"] * 2:
            raise InputError(
                "WinCLIP settings: 'own_normal' and 'own_anomalous' go together with 'states: own'; give all."
            )
        for name, texts in own.items():
            prompts.refuse_unfit(texts, f"WinCLIP settings: '{name}'")


WINCLIP = WinCLIP()
settings = WINCLIP.settings
