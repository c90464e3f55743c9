"""Plain CLIP as a detector: hand-written prompts, the class token, and the patch tokens of the unchanged image tower.

The baselines CLIP and CLIP-AC of AnomalyCLIP's paper (its appendix on baselines): nothing is learned, no attention is
replaced, no window is cut. Preset ``paper`` is CLIP, two single prompts; ``ac`` is CLIP-AC, an ensemble of prompts.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pandas as pd
from pydantic import Field
from torch import Tensor

from vlmad_lib import InputError
from vlmad_lib.config import Strict, check_record
from vlmad_lib.encoders import prompts
from vlmad_lib.methods import anomalyclip, winclip

ZERO_SHOT = True
FEW_SHOT = False
side, encode, ENCODING = anomalyclip.side, anomalyclip.encode, anomalyclip.ENCODING
text, TEXT = winclip.text, winclip.TEXT


class Read(Strict):
    """What plain CLIP and CoOp share: how an image is read.

    ``temperature`` is CLIP's own, 1 / 100; no AUROC of images depends on it. Maps are smoothed as AnomalyCLIP's are,
    which its paper does not say of its baselines.
    """

    image_size: Annotated[int, Field(ge=16, le=4096)] | None = None  # none: as AnomalyCLIP, 518 for 336
    temperature: Annotated[float, Field(gt=0)] = 0.01
    sigma: Annotated[float, Field(ge=0, le=518)] = 4.0  # of the Gaussian over maps, in pixels of a frame of 518
    fit: Literal["squash"] = "squash"
    channels: Literal["rgb"] = "rgb"


class Settings(Read):
    """``states`` and ``templates`` are sets of prompts.json.

    CLIP-AC is described as the words *normal* and *anomalous* in many templates (``states: words``); its preset here
    has WinCLIP's whole ensemble, so that it is WinCLIP without windows on a backbone that may be another.
    """

    learned: ClassVar[bool] = False
    states: str = "photo"
    templates: str = "none"
    names: Literal["cleaned", "folder", "object"] = "cleaned"


PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "ac": {"states": "all", "templates": "22"}}


def settings(preset: str = "paper", overrides: dict[str, Any] | None = None) -> Settings:
    """A preset with single fields changed; InputError names an unknown preset, field, value or set of prompts."""
    if preset not in PRESETS:
        raise InputError(f"CLIP has no preset {preset!r}; use {', '.join(PRESETS)}.")
    chosen = check_record(Settings, PRESETS[preset] | (overrides or {}), "CLIP settings")
    prompts.ensemble("object", chosen.states, chosen.templates)
    return chosen


def arrays(chosen: Read, shots: int = 0) -> list[str]:
    """Names of the arrays of ``encode`` that a score needs."""
    return ["image", "none_last"]


def wording(chosen: Settings, row: pd.Series) -> list:
    """What decides the text features of an index row, besides the backbone."""
    return [*prompts.ensemble(prompts.named(chosen.names, row), chosen.states, chosen.templates), True]


def score(
    features: dict[str, Tensor], text: Tensor, chosen: Read, grid: int, references: None = None
) -> tuple[Tensor, Tensor]:
    """P(anomalous) of whole images (N,) and of their patches (N, grid, grid), not smoothed."""
    whole, patches = (winclip.probability(features[name], text, chosen.temperature) for name in arrays(chosen))
    return whole, patches.unflatten(1, (grid, grid))


def parts(features: dict[str, Tensor], text: Tensor, chosen: Read, grid: int) -> dict[str, np.ndarray]:
    """The map of the first image, (grid, grid)."""
    return {"plain attention, last layer": score(features, text, chosen, grid)[1][0].cpu().numpy()}
