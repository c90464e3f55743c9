"""MuSc (Li et al., ICLR 2024, arXiv 2401.16753): a patch is anomalous where few other test images hold one like it.

Batched zero-shot, that is transductive: no words, no training and no references, but before the first score it sees all
test images of the category, without their labels, and each score depends on all of them. Follows the official code
(github.com/xrli-U/MuSc) as it has been since March 2024, when it began to treat all neighbourhoods alike; of the paper
the abstract alone was known here. What differs is this: numbers are fp32, where that code has mixed precision on a GPU;
images of equal similarity are taken in their order, where that code leaves it to the device; and subsets are dealt out
without labels. The published figures at 518 pixels are OpenAI's weights read by plain GELU, as backbone ViT-L-14-336
does; at a backbone's own size the official code computes QuickGELU, so name ViT-L-14-336-quickgelu there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vlmad_lib import InputError
from vlmad_lib.encoders.backbones import Backbone, Facts
from vlmad_lib.encoders.image_towers import encode_tokens
from vlmad_lib.evaluation import metrics
from vlmad_lib.methods import anomalyclip, memory_bank
from vlmad_lib.methods.base import ImageSize, Method, MethodSettings, Sigma
from vlmad_lib.methods.memory_bank import Positive

ENCODER_VERSION = 1  # of ``encode``
LAYERS = ("raw_q1", "raw_q2", "raw_q3", "raw_q4")  # blocks 6, 12, 18 and 24 of 24 (``anomalyclip.quarter``)
OFFICIAL_SIZE, OFFICIAL_PATCH = 518, 14  # pixels of the input, with patches of this side
NEAREST_BYTES = 2**31  # of the similarities of a block of images, each patch to the nearest one of every image
# Of the products between one image and several others: on a CPU what its caches hold, elsewhere what keeps it busy.
PRODUCT_BYTES = {"cpu": 2**23}
PRODUCT_BYTES_ELSEWHERE = 2**28
# A patch and its copy in another image are up to this far apart, not 0: the root enlarges what fp32 rounds.
ROUNDING = 1e-3
Share = Annotated[float, Field(ge=0, le=1)]


class Settings(MethodSettings):
    """The defaults are the published protocol on MVTec AD; preset ``visa`` has VisA's, chosen there by its name.

    ``neighbourhoods``: sides in patches of the windows over which patches are averaged. ``interval``: from which to
    which share of the other images, nearest first, distances are averaged. ``rescoring``: how many images, itself among
    them, an image shares its score with, one number a term of a mean; none (preset ``mutual_scoring``): scores stay as
    mutual scoring leaves them. The lists are tuned by data set and live on test sets that show each kind of defect many
    times; report the score without them too.
    ``subsets``: images are compared within as many parts of the category, which costs as many times less. They are
    dealt out at random by ``random_seed`` in the order of the images; the official draw keeps the share of each defect
    type in every part, which needs the labels.
    """

    image_size: ImageSize | None = None  # none: 518 for CLIPs with patches of 14 pixels, otherwise the backbone's own
    neighbourhoods: Annotated[list[Literal[1, 3, 5, 7, 9]], Field(min_length=1)] = [1, 3, 5]
    interval: Annotated[list[Share], Field(min_length=2, max_length=2)] = [0.0, 0.3]
    rescoring: list[Positive] = [1, 2, 3]
    subsets: Positive = 1
    random_seed: Annotated[int, Field(ge=0)] = 0
    sigma: Sigma = 0.0
    fit: Literal["squash"] = "squash"
    channels: Literal["rgb"] = "rgb"


# ---------------------------------------------------------------- image side


def side(settings: Settings, backbone: Backbone | Facts) -> int:
    """Side of the square input in pixels: 518 for CLIPs of 14-pixel patches, as officially, else the backbone's."""
    official = backbone.is_clip_vit and backbone.patch_size == OFFICIAL_PATCH
    size = settings.image_size or (OFFICIAL_SIZE if official else backbone.image_size)
    if size == backbone.image_size:  # which is no whole number of patches for some
        return size
    return anomalyclip.side(settings.model_copy(update={"image_size": size}), backbone)


def arrays(settings: Settings, shots: int = 0) -> list[str]:
    """Names of the arrays of ``encode`` that a score needs."""
    return [*LAYERS, *(["image"] if settings.rescoring else [])]


def encode(backbone: Backbone, images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """Patch tokens (N, P, width) after the block at the end of each quarter of the depth, and embeddings (N, D).

    On CLIP's own ViT these are AnomalyCLIP's arrays, positions resized as the official code does: bicubically, without
    antialias. On other towers tokens have been through the final layer norm, as the official code reads DINOv2, and
    ``image`` is what the tower makes of the whole image.
    """
    if backbone.is_clip_vit:
        return anomalyclip.encode(backbone, images, names, "cubic")
    blocks = {name: anomalyclip.quarter(backbone.depth, part) for part, name in enumerate(LAYERS, 1) if name in names}
    tokens = encode_tokens(backbone, images, blocks.values())
    norm = getattr(getattr(backbone.visual, "trunk", None), "norm", torch.nn.Identity())
    with torch.inference_mode():
        arrays = {name: norm(tokens.blocks[number]) for name, number in blocks.items()} | {"image": tokens.image}
    return {name: arrays[name] for name in names}


# ---------------------------------------------------------------- local neighbourhoods (LNAMD)


def aggregate(tokens: Tensor, grid: int, size: int) -> Tensor:
    """Unit vectors (N, P, C), fp32, of tokens (N, P, C): the direction of their mean in a window of ``size`` patches.

    The mean of all numbers of an image is taken off before; beyond the image lie zeros.
    """
    units = torch.empty_like(tokens, dtype=torch.float32)
    for place, values in enumerate(tokens.split(1)):  # one by one: the tokens may be fp16, and fill the memory
        values = values.float()
        units[place] = F.normalize(memory_bank.pooled(values - values.mean(), grid, size), dim=-1)[0]
    return units


# ---------------------------------------------------------------- mutual scoring (MSM)


def score_mutually(units: Tensor, interval: Sequence[float]) -> Tensor:
    """(N, P): how far each patch of the unit vectors (N, P, C) is from those of the other images, in [0, 2].

    The distance to an image is that to its nearest patch, wherever it lies; those to the nearest images are averaged,
    from the first to the second share of ``interval``. One product serves both images, unless the similarities of all
    pairs take more than ``NEAREST_BYTES``: then images are compared block by block, and twice between blocks.
    """
    images, patches, _ = units.shape
    first, last = (_count_neighbours(share, images) for share in interval)
    rows = _rows_at_once(images, patches)
    scores = units.new_empty(images, patches)
    for start in range(0, images, rows):
        end = min(start + rows, images)
        similarities = _nearest(units, start, end)
        for place in range(start, end):
            nearest = similarities[place - start].topk(last, 0).values[first:]
            scores[place] = (2 - 2 * nearest).clamp_min(0).sqrt().mean(0)
    return scores


def _nearest(units: Tensor, start: int, end: int) -> Tensor:
    """(end - start, N, P): the cosine of each patch of a block of images to the nearest of every image.

    To the image itself it is minus infinity, so that it comes last.
    """
    images, patches, _ = units.shape
    similarities = units.new_empty(end - start, images, patches)
    at_once = max(1, PRODUCT_BYTES.get(units.device.type, PRODUCT_BYTES_ELSEWHERE) // (4 * patches**2))
    for image in range(start, end):
        own = units[image].T
        similarities[image - start, image] = -torch.inf
        for low, high, both in ((0, start, False), (image + 1, end, True), (end, images, False)):
            for at in range(low, high, at_once):
                others = slice(at, min(at + at_once, high))
                products = (units[others].flatten(0, 1) @ own).unflatten(0, (-1, patches))
                similarities[image - start, others] = products.amax(1)
                if both:
                    similarities[at - start : others.stop - start, image] = products.amax(2)
    return similarities


def _rows_at_once(images: int, patches: int) -> int:
    """Images of a block whose similarities to all others fit into ``NEAREST_BYTES``."""
    return min(images, max(1, NEAREST_BYTES // (4 * images * patches)))


def _count_neighbours(share: float, images: int) -> int:
    """How many of the other images a share of them is."""
    return int(share * (images - 1))


# ---------------------------------------------------------------- image scores and their neighbours (RsCIN)


def rescore(scores: Tensor, embeddings: Tensor, counts: Sequence[int]) -> Tensor:
    """Scores (N,) in [0, 1] of the images of a category, each shared with the images most like it.

    Scores are stretched to [0, 1] by the least and the greatest; 0 where all are equal. For every count the mean of
    those of as many nearest images, itself among them, weighed by the cosines of ``embeddings`` (N, D); the result is
    the mean over ``counts``.
    """
    low, high = scores.min(), scores.max()
    differ = (high > low) & (high > ROUNDING)
    stretched = torch.where(differ, (scores - low) / (high - low).clamp_min(1e-12), torch.zeros_like(scores))
    units = F.normalize(embeddings.float(), dim=-1)
    weights, order = (units @ units.T).sort(dim=1, descending=True, stable=True)
    weighed = weights * stretched[order]
    return torch.stack([weighed[:, :n].sum(1) / weights[:, :n].sum(1) for n in counts]).mean(0)


def average_maps(
    features: Mapping[str, Tensor], settings: Settings, grid: int, deal: Callable[[int], Sequence[Tensor]]
) -> Tensor:
    """(N, grid, grid) distances in [0, 2]: the mean over layers and neighbourhoods of mutual scoring within subsets.

    ``deal`` returns the places of each subset's images among N. A layer of ``features`` is read at a time.
    """
    maps: Tensor | None = None
    for name in LAYERS:
        tokens = features[name]
        maps = torch.zeros(tokens.shape[:2], device=tokens.device) if maps is None else maps
        for places in deal(len(tokens)):
            members = places.to(tokens.device)
            own = tokens if len(members) == len(tokens) else tokens[members]
            for size in settings.neighbourhoods:
                maps[members] += score_mutually(aggregate(own, grid, size), settings.interval)
        del tokens  # before the next ones are read
    return maps.unflatten(1, (grid, grid)) / (len(LAYERS) * len(settings.neighbourhoods))


def largest_pixels(stacks: Tensor, side: int) -> Tensor:
    """(N,) the largest pixel of each of the stacks (N, 1, grid, grid), enlarged corner on corner to ``side`` pixels."""
    # one by one: the enlarged maps of many images would need gigabytes
    return torch.cat([metrics.enlarge_stacks(stack[None], side, side).amax((1, 2)) for stack in stacks])


def score(
    features: Mapping[str, Tensor], text: None, settings: Settings, grid: int, references: None = None, *, side: int
) -> tuple[Tensor, Tensor]:
    """Scores (N,) and kept maps (N, 1, grid, grid) of all images of a category, from the arrays of them all.

    A map is kept as a stack, since the official code enlarges it corner on corner. An image's score is the largest
    pixel of its map at ``side`` pixels, then what rescoring makes of it.
    """
    deal = partial(deal_out, subsets=settings.subsets, seed=settings.random_seed)
    stacks = average_maps(features, settings, grid, deal)[:, None]
    largest = largest_pixels(stacks, side)
    return (rescore(largest, features["image"], settings.rescoring) if settings.rescoring else largest), stacks


def deal_out(images: int, subsets: int, seed: int) -> list[Tensor]:
    """The places of the images of each subset, in their order: all of them, or dealt out at random by a seed."""
    if subsets == 1:
        return [torch.arange(images)]
    order = torch.from_numpy(np.random.default_rng(seed).permutation(images))
    return [order[start::subsets].sort().values for start in range(subsets)]


class MuSc(Method):
    """MuSc on patch tokens; its default backbone computes plain GELU, as the official code does."""

    key = "musc"
    Settings = Settings
    presets: ClassVar = {"paper": {}, "visa": {"rescoring": [1, 8, 9]}, "mutual_scoring": {"rescoring": []}}
    plain_gelu = True
    scores_whole_category = True
    encoder_version = ENCODER_VERSION
    image_side = staticmethod(side)
    array_names = staticmethod(arrays)
    encode = staticmethod(encode)
    score = staticmethod(score)

    def refuse_contradictions(self, settings: Any) -> None:
        """Raise InputError for an interval without width."""
        low, high = settings.interval
        if low >= high:
            raise InputError(
                f"MuSc settings: 'interval' is from {low:g} to {high:g}; give two shares, the lower one first."
            )

    def feature_sources(self, settings: Any, backbone: Backbone | Facts) -> dict[str, tuple[Method, Any]]:
        """AnomalyCLIP's where no position is resized: the arrays are the same then."""
        size = side(settings, backbone)  # named, since AnomalyCLIP's default is another
        same = backbone.is_clip_vit and size == backbone.image_size
        return {"": (anomalyclip.ANOMALYCLIP if same else self, settings.model_copy(update={"image_size": size}))}

    def least_images(self, settings: Any) -> int:
        """So many that the interval holds a neighbour in every subset, and rescoring has as many images as it shares.

        Five for the published interval: of fewer it holds none, and the official scores are no numbers.
        """
        low, high = settings.interval
        least = next(n for n in count(2) if _count_neighbours(high, n) > _count_neighbours(low, n))
        return max(least * settings.subsets, *settings.rescoring, 1)

    def comparison_gflop(self, settings: Any, images: int, grid: int, width: int) -> float:
        """A product of all patches of two images a pair, layer and neighbourhood; two between blocks of images."""
        products, patches = 0, grid**2
        for members in deal_out(images, settings.subsets, settings.random_seed):
            own, rows = len(members), _rows_at_once(len(members), patches)
            blocks = [min(rows, own - start) for start in range(0, own, rows)]
            products += sum(block * (block - 1) // 2 + block * (own - block) for block in blocks)
        return products * len(LAYERS) * len(settings.neighbourhoods) * 2 * patches**2 * width / 1e9


MUSC = MuSc()
