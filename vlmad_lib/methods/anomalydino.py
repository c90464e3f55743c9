"""AnomalyDINO (Damm et al., WACV 2025): distances of DINOv2's patches to those of normal references, without words.

It differs from the official code in this: pictures are squashed to a square (the same for square ones, such as all of
MVTec AD; others keep their aspect there); references are the workbook's seeded draws, not the first files by name; maps
are smoothed in a frame of 518 pixels, not in the picture's own (``Settings``); and the rotated copies of a reference
belong to it whatever else is drawn. Scores lie in [0, 2] and rank; they are no probabilities.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vlmad_lib import InputError
from vlmad_lib.data.image_files import Rotation
from vlmad_lib.encoders import image_towers
from vlmad_lib.encoders.backbones import Backbone, Facts
from vlmad_lib.evaluation.metrics import FRAME
from vlmad_lib.methods.base import ImageSize, Method, MethodSettings, Sigma, values_inside

SIDE = 448  # pixels along the side of DINO's input; the paper has 672 besides
SIGMA = 4 * FRAME / 1024  # the original smooths by a Gaussian of 4 in pixels of the picture, here one 1024 wide
THRESHOLD = 10.0  # of the first component, on the scale of DINOv2's tokens
CENTRE, COVERED = (0.2, 0.8), 0.35  # of the picture, and the share of it that the object covers at least
ROTATIONS = {f"rotated_{angle}_": Rotation(angle, "mirror") for angle in range(45, 360, 45)}
# The categories that the official code masks, and those whose references it rotates in its preset "informed".
VISA = [
    *("candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2"),
    *("pcb1", "pcb2", "pcb3", "pcb4", "pipe_fryum"),
]
MASKED = ["capsule", "hazelnut", "pill", "screw", "toothbrush", *VISA]
TURNED = ["hazelnut", "screw"]


class Settings(MethodSettings):
    """``masking``: leave the background out, for all categories, none, or those named; DINOv2 only.

    The default names those that the official code masks, and masks nothing on another backbone, as that code does.
    ``mask_references``: the background of references too. ``rotation``: add seven rotated copies of each reference,
    for all categories, none, or those named. ``nearest_patches``: patches of the memory whose distances are averaged.
    ``image_size``: 448 for DINO and the backbone's own otherwise. ``sigma``: the original's for pictures 1024 pixels
    wide; for others it would be 4 * 518 / width.
    """

    masking: bool | list[str] = MASKED
    mask_references: bool = False
    rotation: bool | list[str] = True
    nearest_patches: Annotated[int, Field(ge=1)] = 1
    distance: Literal["cosine", "L2"] = "cosine"
    image_size: ImageSize | None = None
    sigma: Sigma = SIGMA
    fit: Literal["squash", "tiles"] = "squash"
    channels: Literal["rgb"] = "rgb"


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},  # "agnostic" in the official code
    "informed": {"rotation": TURNED},
    "masking_only": {"rotation": False},
    "agnostic_no_mask": {"masking": False},
    "informed_no_mask": {"masking": False, "rotation": TURNED},
}


def is_dino(backbone: Backbone | Facts, version: str = "") -> bool:
    """Whether a backbone is a DINO of timm, of a version where one is named: "v2" or "v3"."""
    return backbone.name.startswith(image_towers.TIMM) and f"dino{version}" in backbone.name


def image_side(settings: Any, backbone: Backbone | Facts, side: int = SIDE) -> int:
    """The side of the input in pixels: that of the settings, ``side`` for DINO, else the backbone's own."""
    return settings.image_size or (side if is_dino(backbone) else backbone.image_size)


def encode(backbone: Backbone, images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """``patches`` (N, P, width) of normalised images: the last block's after the final norm, of no set length."""
    return {"patches": image_towers.encode_tokens(backbone, images).patches}


# ---------------------------------------------------------------- the mask (section 3.3, and the official code)


def first_component(tokens: Tensor) -> Tensor:
    """(P,) scores of the tokens (P, D) of a picture on their first principal component, about their mean.

    The loading of largest absolute value is positive, which is scikit-learn's rule.
    """
    values = (tokens.cpu() if tokens.device.type == "mps" else tokens).double()
    values = values - values.mean(0)
    loadings = torch.linalg.eigh(values.T @ values).eigenvectors[:, -1]
    return (values @ (loadings * loadings[loadings.abs().argmax()].sign())).float().to(tokens.device)


def find_foreground(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """(P,) whether each patch of a picture shows the object, from DINOv2's normed tokens (P, D), P = rows * columns.

    Where the object covers too little of the centre, it is on the other side of the component. Dilation and closing
    run along the flattened grid and across the ends of its rows, as in the official code.
    """
    component = first_component(tokens)
    kept = component > THRESHOLD
    top, bottom, left, right = (int(share * length) for length in (rows, columns) for share in CENTRE)
    if kept.unflatten(0, (rows, columns))[top:bottom, left:right].float().mean() <= COVERED:
        kept = -component > THRESHOLD
    grown = kept.float()[None]
    for _ in range(2):
        grown = F.max_pool1d(grown, 3, 1, 1)
    return -F.max_pool1d(-grown, 3, 1, 1)[0] > 0.5


# ---------------------------------------------------------------- score


def remember(references: dict[str, Tensor], settings: Settings, grid: int) -> list[Tensor]:
    """The memory of each reference: its patches and those of its rotated copies (M, D), of length one for cosines.

    A picture without any foreground is kept whole where references are masked.
    """
    memories = []
    for pictures in zip(*references.values(), strict=True):
        if settings.mask_references and settings.masking is True:
            masks = [find_foreground(tokens, grid, grid) for tokens in pictures]
            pictures = [tokens[mask] if mask.any() else tokens for tokens, mask in zip(pictures, masks, strict=True)]
        memories.append(as_compared(torch.cat(list(pictures)), settings))
    return memories


def as_compared(tokens: Tensor, settings: Settings) -> Tensor:
    """(..., D) tokens as they are compared: of length one for cosines."""
    return F.normalize(tokens, dim=-1) if settings.distance == "cosine" else tokens


def nearest_squares(patches: Tensor, memory: Tensor, count: int) -> Tensor:
    """(n, count) smallest squared distances of patches (n, D) to the rows of a memory (M, D); infinite behind all M."""
    apart = patches.square().sum(1)[:, None] + memory.square().sum(1) - 2 * patches @ memory.T
    if count == 1:
        return apart.amin(1, keepdim=True).clamp_min(0)
    nearest = apart.topk(min(count, len(memory)), largest=False).values.clamp_min(0)
    return F.pad(nearest, (0, count - nearest.shape[1]), value=torch.inf)


def measure_distances(
    tokens: Tensor, memories: list[Tensor], settings: Settings, draws: list[Tensor] | None = None
) -> Tensor:
    """(draws, P) distances of a picture's tokens (P, D) to the patches of all references, or of those of each draw.

    One memory after the other, so that what is held does not grow with the references.
    """
    patches = as_compared(tokens, settings)
    near = torch.stack([nearest_squares(patches, memory, settings.nearest_patches) for memory in memories])
    distances = []
    for references in [near] if draws is None else [near[draw] for draw in draws]:
        squares = references.transpose(0, 1).flatten(1).topk(settings.nearest_patches, largest=False).values
        there = squares.isfinite()
        squares = squares.where(there, 0).sum(1) / there.sum(1)
        distances.append(squares / 2 if settings.distance == "cosine" else squares.sqrt())
    return torch.stack(distances)


def average_top_percent(distances: Tensor) -> Tensor:
    """(...) mean of the floor(n / 100) largest of n values (..., n); the largest where there are fewer than 100."""
    return distances.topk(max(1, distances.shape[-1] // 100)).values.mean(-1)


def score(
    features: dict[str, Tensor],
    text: None,
    settings: Settings,
    grid: int,
    references: list[Tensor],
    draws: list[Tensor] | None = None,
    inside: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores (N,), the mean of the top percent of patches, and maps (N, grid, grid) of distances, 0 where masked.

    Masked patches count among those of which a percent is taken. With ``draws``, each the places of some references, a
    single image is scored by each of them.
    """
    maps = []
    for tokens in features["patches"]:
        distances = measure_distances(tokens, references, settings, draws)
        maps.append(distances * find_foreground(tokens, grid, grid) if settings.masking is True else distances)
    whole = torch.cat(maps).unflatten(1, (grid, grid))
    return average_top_percent(values_inside(whole, inside)), whole


class AnomalyDINO(Method):
    """AnomalyDINO on the patch tokens of DINO, or of any other backbone that has them."""

    key = "anomalydino"
    Settings = Settings
    presets = PRESETS
    zero_shot = False
    few_shot = True
    scores_draws_together = True
    image_side = staticmethod(image_side)
    encode = staticmethod(encode)
    remember = staticmethod(remember)
    score = staticmethod(score)

    def array_names(self, settings: Any, shots: int = 0) -> list[str]:
        """Names of the arrays of ``encode`` that a score needs."""
        return ["patches"]

    def reference_rotations(self, settings: Any) -> dict[str, Rotation]:
        """Seven copies at steps of 45 degrees."""
        return ROTATIONS if settings.rotation else {}

    def rests_on_map(self, settings: Any, shots: int) -> bool:
        """Wholly, by the top percent of its patches."""
        return True

    def settle(self, settings: Any, backbone: Backbone | Facts, category: str) -> Any:
        """Masking and rotation as they hold for a category; InputError for masking that the backbone does not have."""
        able = is_dino(backbone, "v2")
        if settings.masking and settings.masking != MASKED and not able:
            raise InputError(
                f"{self.title}: the mask reads DINOv2's tokens, which {backbone.name} does not have; set "
                f"'masking: false', or choose a DINOv2 such as {image_towers.EXAMPLE}."
            )
        chosen = {name: _holds(getattr(settings, name), category) for name in ("masking", "rotation")}
        return settings.model_copy(update={**chosen, "masking": chosen["masking"] and able})


def _holds(wanted: bool | list[str], category: str) -> bool:
    return wanted if isinstance(wanted, bool) else category in wanted


ANOMALYDINO = AnomalyDINO()
