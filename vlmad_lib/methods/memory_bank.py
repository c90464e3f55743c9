"""Methods that only compare with normal references, without words: association, PatchCore, PaDiM and SPADE.

On CLIP's own ViT they read the arrays that WinCLIP keeps, so nothing is encoded for them; on other towers the same
arrays but for windows (``encode``). They differ from their papers in that: one layer of a ViT stands for several of a
CNN. Distances are Euclidean, as in the papers, but for the association, which is
WinCLIP+'s own (cosine). Scores have no upper end: they rank, and are no probabilities.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vlmad_lib import InputError, config
from vlmad_lib.encoders.backbones import CLIP_BLOCKS, Backbone, Facts
from vlmad_lib.encoders.image_towers import encode_tokens
from vlmad_lib.evaluation.metrics import FRAME
from vlmad_lib.methods import winclip
from vlmad_lib.methods.base import Method, MethodSettings, Sigma, values_inside

ENCODER_VERSION = 1  # of ``encode`` where it is not WinCLIP's
SIGMA = 4 * FRAME / 224  # the originals smooth maps of 224 pixels by a Gaussian of 4
PROJECTED = 128  # dimensions in which a coreset is picked; points keep their distances there but for a few per cent
Positive = Annotated[int, Field(ge=1)]


class Settings(MethodSettings):
    """What all of them share."""

    patch_tokens: Literal["last", "last_ln_post", "penultimate"] = "last"
    sigma: Sigma = 0.0
    fit: Literal["tiles", "squash"] = "tiles"
    channels: Literal["rgb"] = "rgb"

    def arrays(self) -> list[str]:
        """Names of the kept arrays that a score needs."""
        return [winclip.PATCHES[self.patch_tokens]]


class Euclidean(Settings):
    """``normalise``: distances between tokens of length one, so that only directions count.

    ``sigma``: the originals'. It smooths maps only: image scores are read off the patches.
    """

    normalise: bool = False
    sigma: Sigma = SIGMA

    def of(self, values: Tensor) -> Tensor:
        """(..., D) features as they are compared."""
        return F.normalize(values, dim=-1) if self.normalise else values

    def patches(self, features: dict[str, Tensor]) -> Tensor:
        """(N, P, D) patch tokens as they are compared."""
        return self.of(features[winclip.PATCHES[self.patch_tokens]])


# ---------------------------------------------------------------- association alone: WinCLIP+ without its words


class Association(Settings):
    """As in WinCLIP's settings, whose defaults these are; WinCLIP's maps are not smoothed."""

    windows: list[Positive] = [2, 3]
    patch_tokens: Literal["last", "last_ln_post", "penultimate", "none"] = "last"
    window_association: Literal["harmonic", "mean"] = "harmonic"

    def arrays(self) -> list[str]:
        """Names of the kept arrays that a score needs."""
        patches = winclip.PATCHES[self.patch_tokens]
        names = [*(f"window_{size}" for size in self.windows), *([patches] if patches else [])]
        if not names:
            raise InputError("Association settings: 'windows' is empty and 'patch_tokens' is none; keep one of them.")
        return names


def association_score(
    features: dict[str, Tensor],
    text: None,
    settings: Association,
    grid: int,
    references: dict[str, Tensor],
    draws: list[Tensor] | None = None,
    inside: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores (N,) and maps (N, grid, grid) in [0, 1]: WinCLIP+'s association and its largest value (section 4.3).

    With ``draws``, each the places of some references, a single image is scored by each of them.
    """
    maps = winclip.associate(features, references, settings, grid, draws)
    return values_inside(maps, inside).amax(1), maps


# ---------------------------------------------------------------- PatchCore (Roth et al., CVPR 2022)


class PatchCore(Euclidean):
    """``coreset``: the share of the memory that is kept where there are more than ``coreset_above`` references.

    ``reweighted_by``: patches of the memory against which the image score is weighed, b in equation 7; 1 for none.
    """

    neighbourhood: Literal[1, 3, 5] = 3
    coreset: Annotated[float, Field(gt=0, le=1)] = 0.1
    coreset_above: Annotated[int, Field(ge=0)] = 8  # few-shot memories are small and kept whole
    reweighted_by: Positive = 9
    random_seed: Annotated[int, Field(ge=0)] = 0


def pooled(tokens: Tensor, grid: int, size: int) -> Tensor:
    """(N, P, D) tokens, each the mean of its size x size neighbourhood (section 3.1).

    Beyond the image lie zeros, which count as in the official code.
    """
    maps = tokens.mT.unflatten(2, (grid, grid))
    return F.avg_pool2d(maps, size, 1, size // 2).flatten(2).mT


def coreset(points: Tensor, count: int, seed: int = 0) -> Tensor:
    """Indices (count,) of the points (n, D) that greedily cover the rest (algorithm 1), after a random first one.

    Each next one is the farthest from all those picked; distances are those of a random projection.
    """
    generator = torch.Generator().manual_seed(seed)  # the CPU's on every device, so that all draw alike
    if points.shape[1] > PROJECTED:
        projection = torch.randn(points.shape[1], PROJECTED, generator=generator).to(points.device)
        points = points @ projection / PROJECTED**0.5
    lengths, far = points.square().sum(1), torch.full_like(points[:, 0], torch.inf)
    last = torch.randint(len(points), (1,), generator=generator).to(points.device)
    picked = [last]
    while len(picked) < count:
        apart = lengths + lengths[last] - 2 * points @ points[last][0]
        far = torch.minimum(far, apart).index_fill_(0, last, -torch.inf)  # rounding must not bring it back
        last = far.argmax()[None]  # it stays on the device, which need not be waited for
        picked.append(last)
    return torch.cat(picked)


def patchcore_memory(references: dict[str, Tensor], settings: PatchCore, grid: int) -> Tensor:
    """(M, D) locally aware patches of all references, or a coreset of them."""
    patches = pooled(settings.patches(references), grid, settings.neighbourhood)
    few, patches = len(patches) <= settings.coreset_above, patches.flatten(0, 1)
    count = len(patches) if few else max(1, round(settings.coreset * len(patches)))
    return patches if count == len(patches) else patches[coreset(patches, count, settings.random_seed)]


def patchcore_score(
    features: dict[str, Tensor],
    text: None,
    settings: PatchCore,
    grid: int,
    memory: Tensor,
    inside: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores (N,) and maps (N, grid, grid): the distance of each patch to the memory, its maximum reweighted."""
    scores, maps = [], []
    for patches in pooled(settings.patches(features), grid, settings.neighbourhood):
        distances, nearest = torch.cdist(patches, memory).min(1)
        among = distances if inside is None else distances.masked_fill(~inside.flatten(), -torch.inf)
        strangest = among.argmax()[None]
        scores.append(reweighted(patches[strangest][0], nearest[strangest], memory, settings.reweighted_by))
        maps.append(distances.unflatten(0, (grid, grid)))
    return torch.stack(scores), torch.stack(maps)


def reweighted(patch: Tensor, nearest: Tensor, memory: Tensor, count: int) -> Tensor:
    """The distance of a patch (D,) to its nearest one in the memory (M, D), weighed (equation 7); a scalar.

    ``nearest`` (1,) is the place of that one. The ``count`` patches of the memory around it, itself among them: the
    nearer they are to the patch as well, the less it counts.
    """
    apart = torch.cdist(memory[nearest], memory)[0].index_fill_(0, nearest, -1)  # itself first, where others equal it
    around = apart.topk(min(count, len(memory)), largest=False).indices
    distances = torch.cdist(patch[None], memory[around])[0]
    return distances[0] if len(around) == 1 else (1 - distances.softmax(0)[0]) * distances[0]


# ---------------------------------------------------------------- PaDiM (Defard et al., ICPR 2020 workshops)


class PaDiM(Euclidean):
    """``dimensions``: channels picked at random, all where there are fewer (section III-B: 100 for a small network).

    ``regularisation`` is added to the diagonal of each covariance. Fewer than ``dimensions`` + 1 references leave the
    covariance without full rank: it alone then measures the directions in which they do not differ.
    """

    dimensions: Positive = 100
    regularisation: Annotated[float, Field(gt=0)] = 0.01
    random_seed: Annotated[int, Field(ge=0)] = 0

    def subset(self, tokens: Tensor) -> Tensor:
        """The picked channels of tokens (N, P, D), in float64: a covariance of CLIP tokens spans many orders.

        They are on the CPU where the tokens' device has no such numbers.
        """
        generator = torch.Generator().manual_seed(self.random_seed)
        picked = torch.randperm(tokens.shape[-1], generator=generator)[: self.dimensions].to(tokens.device)
        tokens = tokens[..., picked]
        return (tokens.cpu() if tokens.device.type == "mps" else tokens).double()


def padim_memory(references: dict[str, Tensor], settings: PaDiM, grid: int) -> tuple[Tensor, Tensor]:
    """Mean (P, d) and Cholesky factor of the covariance (P, d, d) of the references at each position (equation 1)."""
    values = settings.subset(settings.patches(references)).transpose(0, 1)
    mean = values.mean(1)
    apart = values - mean[:, None]
    covariance = apart.mT @ apart / max(1, values.shape[1] - 1)
    more = settings.regularisation * torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device)
    return mean, torch.linalg.cholesky(covariance + more)


def padim_score(
    features: dict[str, Tensor],
    text: None,
    settings: PaDiM,
    grid: int,
    memory: tuple[Tensor, Tensor],
    inside: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores (N,) and maps (N, grid, grid): the Mahalanobis distance at each position, and its maximum (equation 2)."""
    mean, factor = memory
    apart = (settings.subset(settings.patches(features)) - mean).permute(1, 2, 0)
    distances = torch.linalg.solve_triangular(factor, apart, upper=False).norm(dim=1).T.float()
    maps = distances.unflatten(1, (grid, grid))
    return values_inside(maps, inside).amax(1), maps


# ---------------------------------------------------------------- SPADE (Cohen and Hoshen, arXiv 2005.02357)


class Spade(Euclidean):
    """``nearest_images``: K of section 3.2, all where there are fewer; ``nearest_patches``: kappa of section 3.3."""

    nearest_images: Positive = 50
    nearest_patches: Positive = 1

    def arrays(self) -> list[str]:
        """Names of the kept arrays that a score needs."""
        return ["class", *super().arrays()]


def spade_memory(references: dict[str, Tensor], settings: Spade, grid: int) -> tuple[Tensor, Tensor]:
    """Whole-image embeddings (K, D) and patches (K, P, width) of the references."""
    return settings.of(references["class"]), settings.patches(references)


def spade_score(
    features: dict[str, Tensor], text: None, settings: Spade, grid: int, memory: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Scores (N,): mean distance to the nearest reference images; maps (N, grid, grid): to their nearest patches.

    The image score never looks at the map.
    """
    images, patches = memory
    count = min(settings.nearest_images, len(images))
    distances, nearest = torch.cdist(settings.of(features["class"]), images).topk(count, largest=False)
    maps = []
    for own, which in zip(settings.patches(features), nearest, strict=True):
        gallery = patches[which].flatten(0, 1)
        close = torch.cdist(own, gallery).topk(min(settings.nearest_patches, len(gallery)), largest=False).values
        maps.append(close.mean(1).unflatten(0, (grid, grid)))
    return distances.mean(1), torch.stack(maps)


# ---------------------------------------------------------------- the methods


def encode(backbone: Backbone, images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """WinCLIP's arrays of normalised images (N, 3, S, S), and on towers that are no CLIP ViT those of the same names.

    There ``class`` (N, D) is the whole image by the tower's own pooling, ``patch`` (N, P, width) the residual stream
    after the last block, ``patch_penultimate`` after the one before, ``patch_ln_post`` the last after the final norm.
    """
    if backbone.is_clip_vit:
        return winclip.encode(backbone, images, names)
    after = {"patch": backbone.depth, "patch_penultimate": backbone.depth - 1}
    tokens = encode_tokens(backbone, images, [after[name] for name in names if name in after])
    arrays = {"class": tokens.image, "patch_ln_post": tokens.patches}
    return {name: arrays[name] if name in arrays else tokens.blocks[after[name]] for name in names}


class MemoryBank(Method):
    """A method without words or zero-shot variant, on the features that WinCLIP keeps or on patch tokens."""

    zero_shot = False
    few_shot = True
    encoder_version = ENCODER_VERSION
    encode = staticmethod(encode)

    def feature_sources(self, settings: Any, backbone: Backbone | Facts) -> dict[str, tuple[Method, Any]]:
        """WinCLIP's arrays on a CLIP's own ViT, else its own."""
        return {"": (winclip.WINCLIP if backbone.is_clip_vit else self, settings)}

    def list_needs(self, settings: Settings) -> frozenset[str]:
        """CLIP's blocks where it compares windows, else nothing."""
        return frozenset({CLIP_BLOCKS} if getattr(settings, "windows", []) else ())

    def array_names(self, settings: Settings, shots: int = 0) -> list[str]:
        """Names of the arrays of ``encode`` that a score needs."""
        return settings.arrays()

    def rests_on_map(self, settings: Any, shots: int) -> bool:
        """Wholly, unless the image's own embedding is compared."""
        return not isinstance(settings, Spade)

    def refuse_contradictions(self, settings: Settings) -> None:
        """Raise InputError where nothing is left to compare."""
        settings.arrays()


class AssociationMethod(MemoryBank):
    """WinCLIP+ without its words."""

    key, Settings = "association", Association
    scores_draws_together = True
    remember, score = staticmethod(winclip.remember), staticmethod(association_score)


class PatchCoreMethod(MemoryBank):
    """PatchCore on one layer of a ViT."""

    key, Settings = "patchcore", PatchCore
    remember, score = staticmethod(patchcore_memory), staticmethod(patchcore_score)


class PaDiMMethod(MemoryBank):
    """PaDiM on one layer of a ViT."""

    key, Settings = "padim", PaDiM
    remember, score = staticmethod(padim_memory), staticmethod(padim_score)


class SpadeMethod(MemoryBank):
    """SPADE on one layer of a ViT."""

    key, Settings = "spade", Spade
    remember, score = staticmethod(spade_memory), staticmethod(spade_score)


METHODS = {method.key: method for method in (AssociationMethod(), PatchCoreMethod(), PaDiMMethod(), SpadeMethod())}


def twins(spec: config.Method) -> list[config.Method]:
    """All of them on the backbone of a WinCLIP, with those of its settings that they share."""
    winclip_settings = winclip.settings(spec.preset, spec.settings).model_dump()
    variants = []
    for name, method in METHODS.items():
        shared = ["fit", "sigma", "windows", "window_association"] + (
            ["patch_tokens"] if winclip_settings["patch_tokens"] != "none" else []
        )
        settings = {key: winclip_settings[key] for key in shared if key in method.Settings.model_fields}
        variants.append(config.Method(method=name, settings=settings, **spec.network))
    return variants
