"""The hybrid that the study proposes and never tries (section 5.3): AnomalyCLIP's learned prompts on WinCLIP's windows.

Windows are embedded as in WinCLIP and read against the two learned prompts; that map stands alone or is fused with
AnomalyCLIP's V-V map. One backbone serves both, with two inputs where AnomalyCLIP's is larger. It reads what both keep,
so where both have run nothing is encoded.
"""

from __future__ import annotations

from collections.abc import Collection
from math import isqrt
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vlmad_lib.encoders.backbones import Backbone, Facts
from vlmad_lib.methods import anomalyclip, winclip
from vlmad_lib.methods.base import LANGUAGE, ImageSize, Method, MethodSettings, Sigma, Temperature, values_inside

LOCAL = "local_"  # what names of AnomalyCLIP's arrays begin with beside those of WinCLIP


class Settings(MethodSettings):
    """``local_weight``: the share of the V-V map in the fused one, fixed in advance; 0 is windows alone.

    ``image_score``: AnomalyCLIP's own, which never looks at a map, or the mean of it and the map's maximum, as in
    WinCLIP+. ``fit``: "tiles" reads the windows WinCLIP keeps, for square images only; it is the same for them.
    """

    learned: ClassVar[bool] = True
    windows: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = [2, 3]
    full_image: bool = True  # the whole image is one more scale of the windows' map
    temperature: Temperature = 0.07  # of both maps and of the image score
    local_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    fusion: Literal["mean", "harmonic"] = "mean"
    image_score: Literal["class_token", "with_map"] = "class_token"
    image_size: ImageSize | None = None  # of AnomalyCLIP's input, as there
    sigma: Sigma = 4.0  # as AnomalyCLIP's, so that smoothing tells no two maps apart
    fit: Literal["squash", "tiles"] = "squash"
    channels: Literal["rgb"] = "rgb"

    @property
    def windowed(self) -> winclip.Settings:
        """The settings of its windows."""
        return winclip.Settings(
            windows=self.windows, full_image=self.full_image, temperature=self.temperature, fit=self.fit
        )

    @property
    def local(self) -> anomalyclip.Settings:
        """The settings of its V-V map and image score."""
        return anomalyclip.Settings(image_size=self.image_size, temperature=self.temperature, sigma=self.sigma)


# ---------------------------------------------------------------- image side: two encoders, each with its own store


def side(settings: Settings, backbone: Backbone) -> int:
    """Side of the larger input in pixels: AnomalyCLIP's, whose grid the maps have."""
    return anomalyclip.side(settings.local, backbone)


def arrays(settings: Settings, shots: int = 0) -> list[str]:
    """Names of the arrays a score needs."""
    local = [LOCAL + name for name in anomalyclip.arrays(settings.local)]
    return [*local, *(f"window_{size}" for size in settings.windows)]


def encode(backbone: Backbone, images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """The arrays of normalised images (N, 3, S, S) at ``side``, by both encoders; only costs are measured by it."""
    local = [name.removeprefix(LOCAL) for name in names if name.startswith(LOCAL)]
    arrays = {LOCAL + name: values for name, values in anomalyclip.encode(backbone, images, local).items()}
    small = F.interpolate(images, (backbone.image_size,) * 2, mode="bilinear", antialias=True)
    return arrays | winclip.encode(backbone, small, [name for name in names if not name.startswith(LOCAL)])


# ---------------------------------------------------------------- score


def maps(features: dict[str, Tensor], text: Tensor, settings: Settings, grid: int) -> tuple[Tensor, Tensor, Tensor]:
    """P(anomalous) of whole images (N,), the map of windows and the V-V map (N, grid, grid), all in [0, 1].

    The whole image is AnomalyCLIP's class token, which the prompts were trained on, also as a scale of the windows.
    """
    local = {name.removeprefix(LOCAL): values for name, values in features.items() if name.startswith(LOCAL)}
    whole, local_map = anomalyclip.score(local, text, settings.local, grid)
    size = settings.windows[0]
    window_grid = isqrt(features[f"window_{size}"].shape[1]) + size - 1  # tokens along the side of the windows' input
    _, window_map = winclip.zero_shot(features | {"class": local["class"]}, text, settings.windowed, window_grid)
    if window_grid != grid:
        window_map = F.interpolate(window_map[:, None], (grid, grid), mode="bilinear", align_corners=False)[:, 0]
    return whole, window_map, local_map


def score(
    features: dict[str, Tensor],
    text: Tensor,
    settings: Settings,
    grid: int,
    references: None = None,
    inside: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Image scores (N,) and fused maps (N, grid, grid), both in [0, 1]."""
    whole, window_map, local_map = maps(features, text, settings, grid)
    fused = fuse(window_map, local_map, settings.local_weight, settings.fusion)
    largest = values_inside(fused, inside).amax(1)
    return (whole + largest) / 2 if settings.image_score == "with_map" else whole, fused


def fuse(window_map: Tensor, local_map: Tensor, weight: float, fusion: str) -> Tensor:
    """The arithmetic or harmonic mean of two maps, the second with this weight and the first with the rest."""
    if fusion == "mean":
        return (1 - weight) * window_map + weight * local_map
    window_map, local_map = (values.clamp_min(winclip.SMALLEST) for values in (window_map, local_map))
    return 1 / ((1 - weight) / window_map + weight / local_map)


def parts(features: dict[str, Tensor], text: Tensor, settings: Settings, grid: int) -> dict[str, np.ndarray]:
    """The maps of windows and of V-V of the first image, and their fusion, (grid, grid) each, by name."""
    _, window_map, local_map = maps(features, text, settings, grid)
    partial = {
        "windows": window_map,
        "V-V": local_map,
        "fused": fuse(window_map, local_map, settings.local_weight, settings.fusion),
    }
    return {name: values[0].cpu().numpy() for name, values in partial.items()}


class Hybrid(Method):
    """AnomalyCLIP's learned prompts on WinCLIP's windows."""

    key = "hybrid"
    needs = LANGUAGE
    Settings = Settings
    checkpoint_kind = anomalyclip.CHECKPOINT
    encoder_version = anomalyclip.ENCODER_VERSION  # of its text features; each store of arrays has its method's own
    image_side = staticmethod(side)
    array_names = staticmethod(arrays)
    encode = staticmethod(encode)
    encode_text = staticmethod(anomalyclip.text)
    read_checkpoint = staticmethod(anomalyclip.read)
    score = staticmethod(score)
    partial_maps = staticmethod(parts)

    def feature_sources(self, settings: Any, backbone: Backbone | Facts) -> dict[str, tuple[Method, MethodSettings]]:
        """The arrays that AnomalyCLIP and WinCLIP keep."""
        return {LOCAL: (anomalyclip.ANOMALYCLIP, settings.local), "": (winclip.WINCLIP, settings.windowed)}

    def rests_on_map(self, settings: Any, shots: int) -> bool:
        """In part, where it is asked for."""
        return settings.image_score == "with_map"

    def prompt_wording(self, settings: Any, row: pd.Series) -> list:
        """AnomalyCLIP's wording, the same for every category."""
        return anomalyclip.wording(settings.local, row)


HYBRID = Hybrid()
settings = HYBRID.settings
