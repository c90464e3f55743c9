"""SubspaceAD (Lendering et al., CVPR 2026): what a subspace of normal patches leaves of each patch, without words.

The subspace is that of the references and of rotated copies of them. The official code draws other angles for the mean
than for the covariance and for each reference; here one set of angles serves both and every reference (the oracle calls
it ``rotated_once``), since features are kept by angle. Its published figures are DINOv2 giant's with registers at 672
pixels and 30 copies: 31 passes for each reference, of some 6 TFLOP each, out of reach of a CPU. A small or base DINOv2
with registers costs seconds a picture there; the preset ``few_rotations`` takes 7 copies, ``no_rotation`` none. Scores
have no upper end and rank; they are no probabilities.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vlmad_lib.data.image_files import Rotation
from vlmad_lib.encoders import image_towers
from vlmad_lib.encoders.backbones import Backbone, Facts
from vlmad_lib.methods import anomalydino
from vlmad_lib.methods.base import ImageSize, Method, MethodSettings, Sigma, enlarge_inside, values_inside

SIDE, GIANT_SIDE = 448, 672  # pixels along the side of DINO's input, and of the giant's
PATCH = 14  # pixels along the side of DINOv2's patches
BLOCKS = {40: range(23, 30), 24: range(14, 19), 12: range(8, 10)}  # numbered from 1, by depth: those of the scripts
MIDDLE = (0.55, 0.7)  # of the depth, elsewhere
LARGEST_ANGLE = 345  # degrees
UNROTATED = ("transistor",)  # categories that the official code does not rotate, in any data set
BLUR = float(np.exp(-1 / 32))  # the neighbours' weight in a Gaussian of 4 that is cut to 3 x 3


class Settings(MethodSettings):
    """``variance_share``: of the variance that the subspace holds at least. ``rotations``: copies of each reference.

    ``rotation_seed`` draws their angles, the same for all references. ``blocks``: those averaged, numbered from 1; by
    default the published ones of the backbone's depth, for other depths those from 55 % to 70 % of it. ``image_size``:
    448 for DINO, 672 for its giant, and the backbone's own otherwise. ``sigma``: none, since the original's blur, of
    0.6 pixels in a frame of 518, is below what that frame resolves; image scores are read off the blurred map.
    """

    variance_share: Annotated[float, Field(gt=0, lt=1)] = 0.99
    rotations: Annotated[int, Field(ge=0, le=100)] = 30
    rotation_seed: Annotated[int, Field(ge=0)] = 0
    blocks: list[Annotated[int, Field(ge=1)]] = []
    image_size: ImageSize | None = None
    sigma: Sigma = 0.0
    fit: Literal["squash", "tiles"] = "squash"
    channels: Literal["rgb"] = "rgb"


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "few_rotations": {"rotations": 7},
    "no_rotation": {"rotations": 0},
}


# ---------------------------------------------------------------- features


def choose_blocks(depth: int) -> list[int]:
    """The blocks, numbered from 1, whose tokens are averaged in a backbone of so many blocks."""
    first, last = (round(share * depth) for share in MIDDLE)
    return [*BLOCKS.get(depth, range(max(1, first), max(1, first, last) + 1))]


def encode(backbone: Backbone, images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """(N, P, width) means over blocks of the raw patch tokens of normalised images.

    ``middle``: of ``choose_blocks``; ``blocks_8_9``: of those numbers.
    """
    wanted = {name: [int(number) for number in name.split("_")[1:]] or choose_blocks(backbone.depth) for name in names}
    kept = image_towers.encode_tokens(backbone, images, {number for numbers in wanted.values() for number in numbers})
    return {name: sum(kept.blocks[number] for number in numbers) / len(numbers) for name, numbers in wanted.items()}


def draw_angles(count: int, seed: int) -> list[float]:
    """Angles in degrees, to a hundredth."""
    return np.random.default_rng(seed).uniform(0, LARGEST_ANGLE, count).round(2).tolist()


# ---------------------------------------------------------------- the subspace (section 3)


@dataclass(frozen=True)
class Subspace:
    """Principal components of tokens, in float64: their mean (D,), variances (D,) in descending order, and axes (D, D).

    ``held`` (D,): whether a component, a column of the axes, is of the subspace.
    """

    mean: Tensor
    variances: Tensor
    axes: Tensor
    held: Tensor


def find_subspace(pictures: list[Tensor], share: float) -> Subspace:
    """The subspace of tokens (P, D) of pictures: as few components as hold the share of the variance."""
    pictures = [(tokens.cpu() if tokens.device.type == "mps" else tokens) for tokens in pictures]
    count = sum(map(len, pictures))
    mean = torch.stack([tokens.double().sum(0) for tokens in pictures]).sum(0) / count
    products = torch.zeros(len(mean), len(mean), dtype=mean.dtype, device=mean.device)
    for tokens in pictures:
        apart = tokens.double() - mean
        products += apart.T @ apart
    values, vectors = torch.linalg.eigh(products / (count - 1))
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    before = (values.cumsum(0) - values) / values.sum()
    return Subspace(mean, values, vectors, before < share)


def remember(references: dict[str, Tensor], settings: Settings, grid: int) -> tuple[Tensor, Tensor]:
    """Mean (D,) of all patches of the references and their copies, and axes (D, D) of what their subspace leaves, fp32.

    Axes of the subspace itself are zero there: how many there are need not be known, for which a GPU would be waited.
    """
    tokens = [picture for pictures in references.values() for picture in pictures]
    subspace = find_subspace(tokens, settings.variance_share)
    left = subspace.axes * ~subspace.held
    return subspace.mean.float().to(tokens[0].device), left.float().to(tokens[0].device)


def measure_residuals(tokens: Tensor, mean: Tensor, left: Tensor) -> Tensor:
    """(...) squared lengths of what the subspace leaves of tokens (..., D), by what ``remember`` returns."""
    return ((tokens - mean) @ left).square().sum(-1)


def enlarge(maps: Tensor, side: int) -> Tensor:
    """(N, side, side) of maps (N, rows, columns): bilinear, then blurred over 3 x 3 pixels, the rim mirrored."""
    large = F.interpolate(maps[:, None], (side, side), mode="bilinear", align_corners=False)
    large = F.pad(large, (1, 1, 1, 1), mode="reflect")[:, 0]
    for axis in (1, 2):
        before, here, behind = (large.narrow(axis, start, side) for start in range(3))
        large = (BLUR * (before + behind) + here) / (1 + 2 * BLUR)
    return large


def score(
    features: dict[str, Tensor],
    text: None,
    settings: Settings,
    grid: int,
    references: tuple[Tensor, Tensor],
    inside: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores (N,) and maps (N, grid, grid) of squared residuals.

    The image score is the mean of the top percent of pixels of the map as large as the input, blurred.
    """
    maps = measure_residuals(next(iter(features.values())), *references).unflatten(1, (grid, grid))
    side = settings.image_size or PATCH * grid
    pixels = values_inside(enlarge(maps, side), enlarge_inside(inside, side))
    return anomalydino.average_top_percent(pixels), maps


class SubspaceAD(Method):
    """SubspaceAD on the middle blocks of DINOv2, or of any other backbone that has patch tokens."""

    key = "subspacead"
    Settings = Settings
    presets = PRESETS
    zero_shot = False
    few_shot = True
    encode = staticmethod(encode)
    remember = staticmethod(remember)
    score = staticmethod(score)

    def image_side(self, settings: Any, backbone: Backbone | Facts) -> int:
        """The side of the input in pixels."""
        return anomalydino.image_side(settings, backbone, GIANT_SIDE if "giant" in backbone.name else SIDE)

    def array_names(self, settings: Any, shots: int = 0) -> list[str]:
        """Names of the arrays of ``encode`` that a score needs."""
        return ["_".join(["blocks", *map(str, settings.blocks)]) if settings.blocks else "middle"]

    def reference_rotations(self, settings: Any) -> dict[str, Rotation]:
        """Copies at random angles."""
        angles = draw_angles(settings.rotations, settings.rotation_seed)
        return {f"rotated_{angle:g}_": Rotation(angle, "black") for angle in angles}

    def rests_on_map(self, settings: Any, shots: int) -> bool:
        """Wholly, by the top percent of its pixels."""
        return True

    def settle(self, settings: Any, backbone: Backbone | Facts, category: str) -> Any:
        """The size of the input on the backbone, and no rotations where the category has none."""
        rotations = 0 if category in UNROTATED else settings.rotations
        side = self.image_side(settings, backbone)
        return settings.model_copy(update={"image_size": side, "rotations": rotations})


SUBSPACEAD = SubspaceAD()
