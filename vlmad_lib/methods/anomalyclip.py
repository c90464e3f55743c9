"""AnomalyCLIP (Zhou et al., ICLR 2024): learned prompts, read against patch tokens of a V-V attention path.

Follows the official code where it differs from the paper. An image is encoded once; scoring and training its
prompts are matrix products on what was kept. ``python -m vlmad_lib train anomalyclip`` trains prompts.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from vlmad_lib import InputError
from vlmad_lib.encoders.backbones import Backbone
from vlmad_lib.encoders.image_towers import resize_positions
from vlmad_lib.encoders.vit_blocks import attend
from vlmad_lib.methods.base import LANGUAGE, ImageSize, Method, MethodSettings, Sigma, Temperature
from vlmad_lib.methods.prompt_learner import CHECKPOINT, PromptLearner, read, write  # noqa: F401  (for others)
from vlmad_lib.methods.winclip import WHOLE, probability

ENCODER_VERSION = 1  # of ``encode`` and the learned prompts
ATTENTION = {"vv": (2, 2), "qq": (0, 0), "kk": (1, 1), "diagonal_boost": (0, 1)}
"""Which of query, key and value stand in for query and key in the local path (section 3.3 of the paper)."""
PLAIN = ("none", "raw")  # patch tokens of the original path
BOOST = 10.0  # of "diagonal_boost"; the study names no value
HAND_WRITTEN = "object", "damaged object"


class Settings(MethodSettings):
    """What an ablation varies; the defaults are the published protocol.

    ``attention``: "vv" is the method; "qq" and "kk" are in the paper only; "none" is plain CLIP. "diagonal_boost" is
    the wording of the study this workbook analyses, neither paper nor official code: plain attention whose diagonal
    is multiplied by a fixed factor. ``prompts``: "learned", "class" (learned, with the class name in the place of
    "object"), or "object" (the hand-written "object" and "damaged object"; ``word`` stands for "damaged").
    """

    image_size: ImageSize | None = None  # none: 37/24 of the backbone's own, 518 for 336
    layers: Annotated[list[int], Field(min_length=1)] | None = None  # from 1, maps summed; none: the last alone
    attention: Literal["vv", "qq", "kk", "none", "diagonal_boost"] = "vv"
    prompts: Literal["learned", "class", "object"] = "learned"
    word: Annotated[str, Field(min_length=1)] = "damaged"  # of the hand-written prompts alone
    deep: bool = True
    temperature: Temperature = 0.07
    sigma: Sigma = 4.0
    fit: Literal["squash"] = "squash"
    channels: Literal["rgb"] = "rgb"

    @property
    def learned(self) -> bool:
        """Whether its prompts come from a checkpoint."""
        return self.prompts != "object"


# ---------------------------------------------------------------- image side


def side(settings: Settings, backbone: Backbone) -> int:
    """Side of the square input in pixels: whole patches, by default as many more than in training as officially."""
    patch = backbone.patch_size
    size = settings.image_size or round(backbone.grid * 37 / 24) * patch
    if size % patch:
        raise InputError(f"Settings: 'image_size' {size} is no multiple of the patches of {patch} pixels.")
    return size


def arrays(settings: Settings, shots: int = 0) -> list[str]:
    """Names of the arrays of ``encode`` that a score needs."""
    return ["class", *(f"{settings.attention}_{layer}" for layer in settings.layers or ["last"])]


def refined_from(layers: int) -> int:
    """The first refined block, counted from 1: 6 of 24 as in the official code, the same share of other depths."""
    return round(layers * 5 / 24) + 1


def quarter(blocks: int, part: int) -> int:
    """The block, from 1, at which a quarter of the depth ends: 6, 12, 18, 24 of 24; the same share of other depths."""
    return max(1, round(blocks * part / 4))


def _start(visual: torch.nn.Module, images: Tensor, resize: str = "bilinear") -> Tensor:
    """(N, 1 + grid^2, width) tokens before the first block, the class token first."""
    patches = visual.conv1(images)
    first = visual.class_embedding.expand(len(images), 1, -1)
    tokens = torch.cat([first, patches.flatten(2).mT.to(first.dtype)], 1)
    return visual.ln_pre(tokens + resize_positions(visual, patches.shape[-2:], resize))


@torch.inference_mode()
def encode(backbone: Backbone, images: Tensor, names: Collection[str], resize: str = "bilinear") -> dict[str, Tensor]:
    """Features of normalised images (N, 3, S, S), fp32, none of them L2-normalised.

    ``class`` (N, D) is the class token of plain CLIP, projected without ``ln_post``; ``image`` with it, as CLIP has it.
    ``vv_l`` (N, P, D), and so for the other attentions, are the patch tokens of the local path after block l, counted
    from 1, ``q1`` to ``q4`` (``quarter``), or ``last``: from the first refined block on it adds each block's attention,
    with one of Q, K, V in the place of both Q and K, and no MLP; it reads the original path and never feeds back.
    ``none_l`` are those of the original path, ``raw_l`` (N, P, width) the same before ``ln_post`` and projection.
    ``resize``: how positions are (``image_towers.resize_positions``).
    """
    visual, blocks = backbone.visual, backbone.blocks
    places = {name: _place(name, len(blocks), backbone) for name in names if name not in WHOLE}
    plain_to_end = any(kind in PLAIN and layer == len(blocks) for kind, layer in places.values())
    kinds, start, arrays = {kind for kind, _ in places.values()}, refined_from(len(blocks)), {}
    original = _start(visual, images, resize)
    local = dict.fromkeys(kinds, original)
    for number, block in enumerate(blocks, 1):
        heads = block.heads(block.project(original))
        for kind in kinds:
            if kind not in PLAIN and number >= start:
                local[kind] = block.add(local[kind], mix(heads, kind))
        if number < len(blocks) or plain_to_end:
            original = block.finish(original, attend(*heads))
        elif not WHOLE.isdisjoint(names):  # nobody reads the last patches of the original path
            original = block.finish(original[:, :1].contiguous(), attend(heads[0][:, :, :1], *heads[1:]))
        local |= {kind: original for kind in kinds if kind in PLAIN or number < start}
        for name, (kind, layer) in places.items():
            if layer == number:
                patches = local[kind][:, 1:]
                arrays[name] = patches if kind == "raw" else visual.ln_post(patches) @ visual.proj
    arrays["class"], arrays["image"] = original[:, 0] @ visual.proj, visual.ln_post(original[:, 0]) @ visual.proj
    return {name: arrays[name] for name in names}


def _place(name: str, blocks: int, backbone: Backbone) -> tuple[str, int]:
    """Attention and layer of an array's name."""
    kind, _, layer = name.rpartition("_")
    if kind not in (*ATTENTION, *PLAIN):
        raise InputError(f"Unknown attention {kind!r}: {', '.join(ATTENTION)}, or none.")
    named = {"last": blocks} | {f"q{part}": quarter(blocks, part) for part in (1, 2, 3, 4)}
    number = named[layer] if layer in named else int(layer)
    if not 1 <= number <= blocks:
        raise InputError(f"Settings: there is no layer {layer}; {backbone.name} has blocks 1 to {blocks}.")
    return kind, number


def mix(heads: list[Tensor], kind: str) -> Tensor:
    """(N, L, width) a block's attention with settings ones of its own queries, keys and values as query and key."""
    query, key = ATTENTION[kind]
    mixed = attend(heads[query], heads[key], heads[2])
    if kind == "diagonal_boost":
        weights = (heads[query] @ heads[key].mT / heads[0].shape[-1] ** 0.5).softmax(-1)
        boosted = (BOOST - 1) * weights.diagonal(dim1=-2, dim2=-1)[..., None] * heads[2]
        mixed = mixed + boosted.transpose(1, 2).flatten(2)
    return mixed


@torch.inference_mode()
def attention(backbone: Backbone, images: Tensor, kind: str, cell: tuple[int, int]) -> Tensor:
    """(N, grid, grid): how a patch (row, column) attends to all patches in the last block, mean over its heads.

    ``kind`` as in the settings, "none" being CLIP's own Q-K attention; what goes to the class token is left out.
    """
    tokens, grid = _start(backbone.visual, images), images.shape[-1] // backbone.patch_size
    *before, last = backbone.blocks
    for block in before:
        tokens = block(tokens)
    query, key = ATTENTION.get(kind, (0, 1))
    heads = last.heads(last.project(tokens).float())
    asking = heads[query][:, :, 1 + cell[0] * grid + cell[1]]
    weights = (heads[key] @ asking[..., None] / asking.shape[-1] ** 0.5).softmax(2)
    return weights.mean(1)[:, 1:, 0].unflatten(1, (grid, grid))


# ---------------------------------------------------------------- text side and score


def wording(settings: Settings, row: pd.Series) -> list:
    """What decides the text features of an index row, besides backbone and checkpoint."""
    if settings.prompts == "object":
        return [HAND_WRITTEN[0], f"{settings.word} {HAND_WRITTEN[0]}"]
    return [row.class_name if settings.prompts == "class" else "object", settings.deep]


@torch.no_grad()
def text(backbone: Backbone, words: list, checkpoint: Path | None) -> Tensor:
    """(2, D) text features of a wording, normal first; hand-written prompts need no checkpoint."""
    if checkpoint is None:
        return backbone.encode_text(words)
    return read(backbone, checkpoint)[0](backbone, *words)


def score(
    features: dict[str, Tensor], text: Tensor, settings: Settings, grid: int, references: None = None
) -> tuple[Tensor, Tensor]:
    """P(anomalous) of whole images (N,) and maps (N, grid, grid), the sum over layers, not smoothed.

    The image score never looks at the map (appendix of the paper; the official code agrees).
    """
    whole = probability(features["class"], text, settings.temperature)
    return whole, sum(_maps(features, text, settings, grid).values())


def _maps(features: dict[str, Tensor], text: Tensor, settings: Settings, grid: int) -> dict[str, Tensor]:
    """The map (N, grid, grid) in [0, 1] of every layer."""
    names = arrays(settings)[1:]
    return {name: probability(features[name], text, settings.temperature).unflatten(1, (grid, grid)) for name in names}


def parts(features: dict[str, Tensor], text: Tensor, settings: Settings, grid: int) -> dict[str, np.ndarray]:
    """The map of every layer of the first image, and their sum where there are several, (grid, grid) each."""
    maps = _maps(features, text, settings, grid)
    layer_maps = {
        f"{settings.attention}, layer {name.rpartition('_')[2]}": values[0].cpu().numpy()
        for name, values in maps.items()
    }
    return layer_maps | ({"sum": sum(layer_maps.values())} if len(layer_maps) > 1 else {})


class AnomalyCLIP(Method):
    """AnomalyCLIP with learned or hand-written prompts."""

    key = "anomalyclip"
    needs = LANGUAGE
    Settings = Settings
    checkpoint_kind = CHECKPOINT
    encoder_version = ENCODER_VERSION
    image_side = staticmethod(side)
    array_names = staticmethod(arrays)
    encode = staticmethod(encode)
    prompt_wording = staticmethod(wording)
    encode_text = staticmethod(text)
    read_checkpoint = staticmethod(read)
    score = staticmethod(score)
    partial_maps = staticmethod(parts)

    def refuse_contradictions(self, settings: Any) -> None:
        """Raise InputError where learned prompts are given a word."""
        if settings.learned and settings.word != Settings().word:
            raise InputError(
                "AnomalyCLIP settings: 'word' belongs to hand-written prompts; set 'prompts: object' with it."
            )


ANOMALYCLIP = AnomalyCLIP()
settings = ANOMALYCLIP.settings
