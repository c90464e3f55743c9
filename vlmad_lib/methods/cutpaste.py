"""CutPaste (Li et al., CVPR 2021): a network learns to tell normal pictures from pasted ones, and a density judges.

A rectangle of a picture is pasted elsewhere in it, whole (CutPaste) or as a thin, turned strip (CutPaste-Scar), and a
classifier learns the three kinds apart (section 2.2, "3-way"). What it has learned before its last layers is its
embedding; a Gaussian of the embeddings of normal pictures gives the image score, one of patches the map (section 2.4).

It differs from the paper in this: the network is a small one of our own (four convolutions), not ResNet-18; pictures
have 128 pixels, not 256; Adam makes fewer and smaller steps than the paper's stochastic gradient descent, so that a
training costs minutes on two cores. Images and maps share one network, whose cells stand for patches (a cell
sees a quarter of the side of a picture of 128, as the paper's patches of 64 in 256 do); the paper trains another one on
patches. One Gaussian serves the patches of all positions. Covariances are shrunk (Ledoit and Wolf 2004), since a
product may have fewer normal pictures than an embedding has numbers. The preset ``demo`` has half the side and width
and 100 steps, for seconds on one core. Scores are negative log densities: they rank, and are no probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmad_lib import Later
from vlmad_lib.evaluation.metrics import FRAME
from vlmad_lib.methods.base import Sigma
from vlmad_lib.methods.trained_networks import Positive, Rate, TrainedMethod, TrainingSettings

transforms = Later("torchvision.transforms.v2.functional")

KINDS = ("normal", "patch", "scar")  # the classes, in the order of their labels
# Of a patch: its share of the picture's area, and its height over its width, wide or tall (appendix A).
AREA, WIDE, TALL = (0.02, 0.15), (0.3, 1.0), (1.0, 3.3)
# Of a scar: width and height in pixels of a picture of 256, and the angle in degrees.
SCAR_WIDTH, SCAR_HEIGHT, ANGLE, SIDE = (2, 16), (10, 25), (-45.0, 45.0), 256
JITTER = 0.1  # the most by which brightness, contrast, saturation and hue of what is pasted change
SHIFT = 1 / 32  # of the side: the most by which a picture is moved before it is learned from
LEAST_VARIANCE = 1e-6  # of an embedding's numbers, some of which may be zero in every picture


# ---------------------------------------------------------------- pictures with pastes (section 2.2)


def _draw_between(limits: tuple[float, float], stream: torch.Generator) -> float:
    """A number between two limits."""
    low, high = limits
    return low + (high - low) * float(torch.rand((), generator=stream))


def jitter_colours(images: Tensor, stream: torch.Generator) -> Tensor:
    """Images (..., 3, H, W) in [0, 1] of slightly other brightness, contrast, saturation and hue."""
    images = transforms.adjust_brightness(images, _draw_between((1 - JITTER, 1 + JITTER), stream))
    images = transforms.adjust_contrast(images, _draw_between((1 - JITTER, 1 + JITTER), stream))
    images = transforms.adjust_saturation(images, _draw_between((1 - JITTER, 1 + JITTER), stream))
    return transforms.adjust_hue(images, _draw_between((-JITTER, JITTER), stream))


def _cut(image: Tensor, height: int, width: int, stream: torch.Generator) -> Tensor:
    """A rectangle (3, height, width) of an image (3, H, W) from a random place."""
    top, left = _draw_corner(image.shape[1] - height, image.shape[2] - width, stream)
    return image[:, top : top + height, left : left + width]


def _draw_corner(most_rows: int, most_columns: int, stream: torch.Generator) -> tuple[int, int]:
    """The upper left corner of a rectangle that has so much room."""
    top, left = (int(torch.randint(max(most, 0) + 1, (), generator=stream)) for most in (most_rows, most_columns))
    return top, left


def paste_patch(image: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
    """An image (3, H, W) in [0, 1] with a rectangle of it pasted elsewhere, and where (H, W) bool."""
    high, wide = image.shape[1:]
    area = _draw_between(AREA, stream) * high * wide
    ratio = _draw_between(WIDE if torch.rand((), generator=stream) < 0.5 else TALL, stream)
    height, width = (max(1, round(edge)) for edge in ((area * ratio) ** 0.5, (area / ratio) ** 0.5))
    patch = jitter_colours(_cut(image, min(height, high), min(width, wide), stream), stream)
    return _paste(image, patch, torch.ones(patch.shape[1:], dtype=torch.bool, device=image.device), stream)


def paste_scar(image: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
    """An image (3, H, W) in [0, 1] with a thin strip of it turned and pasted elsewhere, and where (H, W) bool."""
    high, wide = image.shape[1:]
    scale = min(high, wide) / SIDE
    width, height = (max(1, round(scale * _draw_between(limits, stream))) for limits in (SCAR_WIDTH, SCAR_HEIGHT))
    strip = jitter_colours(_cut(image, height, width, stream), stream)
    angle = _draw_between(ANGLE, stream)
    turned = transforms.rotate(torch.cat([strip, torch.ones_like(strip[:1])]), angle, expand=True)
    return _paste(image, turned[:3], turned[3] > 0.5, stream)


def _paste(image: Tensor, patch: Tensor, shape: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
    """An image with the pixels of a patch (3, h, w) where ``shape`` (h, w) is true, at a random place, and where."""
    height, width = shape.shape
    top, left = _draw_corner(image.shape[1] - height, image.shape[2] - width, stream)
    where = torch.zeros(image.shape[1:], dtype=torch.bool, device=image.device)
    where[top : top + height, left : left + width] = shape
    pasted = image.clone()
    pasted[:, where] = patch[:, shape]
    return pasted, where


def paste_into_batch(images: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
    """(3 N, 3, H, W) of images (N, 3, H, W) in [0, 1]: as they are, with a patch, with a scar; labels (3 N,).

    Each is moved a little before, and the colours of all are changed a little, all alike.
    """
    images = jitter_colours(torch.stack([_move(image, stream) for image in images]), stream)
    pasted = [torch.stack([paste(image, stream)[0] for image in images]) for paste in (paste_patch, paste_scar)]
    labels = torch.arange(len(KINDS), device=images.device).repeat_interleave(len(images))
    return torch.cat([images, *pasted]), labels


def _move(image: Tensor, stream: torch.Generator) -> Tensor:
    """An image (3, H, W) moved by a few pixels, its rim mirrored."""
    most = max(1, round(SHIFT * min(image.shape[1:])))
    top, left = _draw_corner(2 * most, 2 * most, stream)
    padded = F.pad(image[None], (most,) * 4, mode="reflect")[0]
    return padded[:, top : top + image.shape[1], left : left + image.shape[2]]


# ---------------------------------------------------------------- network and densities (section 2.4)


class Network(nn.Module):
    """Four convolutions, the mean over cells as embedding, a head that tells the kinds apart, and two Gaussians.

    ``width``: channels of the first convolution; embeddings have four times as many numbers.
    """

    def __init__(self, width: int):
        super().__init__()
        size = 4 * width
        layers: list[nn.Module] = []
        for before, after, stride in ((3, width, 2), (width, 2 * width, 2), (2 * width, size, 2), (size, size, 1)):
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.cells = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, len(KINDS)))
        self.images, self.patches = Gaussian(size), Gaussian(size)

    def embed_patches(self, images: Tensor) -> Tensor:
        """(N, side / 8, side / 8, D) embeddings of the patches of images (N, 3, side, side) in [0, 1]."""
        return self.cells(2 * images - 1).permute(0, 2, 3, 1)

    def embed_images(self, images: Tensor) -> Tensor:
        """(N, D) embeddings of images (N, 3, side, side) in [0, 1]: the means of those of their patches."""
        return self.embed_patches(images).mean((1, 2))

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3) logits of the kinds."""
        return self.head(self.embed_images(images))


class Gaussian(nn.Module):
    """A normal distribution of embeddings of ``size`` numbers: its mean, a factor of its precision, its highest log."""

    mean: Tensor
    factor: Tensor
    peak: Tensor

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("factor", torch.eye(size))
        self.register_buffer("peak", torch.zeros(()))

    def fit(self, values: Tensor) -> None:
        """Fit it to embeddings (N, size), the covariance shrunk by Ledoit and Wolf's rule."""
        from sklearn.covariance import ledoit_wolf

        points = values.double().cpu().numpy()
        spread = ledoit_wolf(points)[0] if len(points) > 1 else 0.0  # of one picture no covariance is known
        covariance = spread + LEAST_VARIANCE * np.eye(points.shape[1])
        factor = np.linalg.inv(np.linalg.cholesky(covariance)).T
        peak = np.log(np.diag(factor)).sum() - len(factor) / 2 * np.log(2 * np.pi)
        for buffer, array in ((self.mean, points.mean(0)), (self.factor, factor), (self.peak, np.array(peak))):
            buffer.copy_(torch.from_numpy(array))

    def forward(self, values: Tensor) -> Tensor:
        """(...) negative log densities of embeddings (..., size): half the squared Mahalanobis distance and more."""
        return ((values - self.mean) @ self.factor).square().sum(-1) / 2 - self.peak


# ---------------------------------------------------------------- the method


class Settings(TrainingSettings):
    """``image_score``: of the embedding of the whole image, or the map's largest value, the paper's two readings.

    ``network_width``: a quarter of the numbers of an embedding. ``sigma`` smooths maps: 4 pixels of 64.
    """

    image_score: Literal["embedding", "map_max"] = "embedding"
    epochs: Positive = 100
    rate: Rate = 1e-3
    network_width: Positive = 16
    sigma: Sigma = 4 * FRAME / 64


class CutPaste(TrainedMethod):
    """The 3-way variant."""

    key = "cutpaste"
    Settings = Settings
    presets = {"paper": {}, "demo": {"image_size": 64, "network_width": 8, "epochs": 50, "batch": 6, "rate": 5e-3}}

    def build_network(self, settings: Any) -> nn.Module:
        """Convolutions, head and densities."""
        return Network(settings.network_width)

    def list_losses(
        self, network: nn.Module, images: Tensor, settings: Any, stream: torch.Generator
    ) -> Iterator[tuple[str, Tensor]]:
        """The cross-entropy of the three kinds."""
        pictures, labels = paste_into_batch(images, stream)
        yield "", F.cross_entropy(network(pictures), labels)

    def finish_network(self, network: nn.Module, images: Tensor, settings: Any) -> None:
        """Fit the Gaussians of normal images and of their patches."""
        patches = torch.cat([network.embed_patches(some) for some in images.split(settings.batch)])
        network.images.fit(patches.mean((1, 2)))
        network.patches.fit(patches.flatten(0, 2))

    def judge_images(self, network: nn.Module, images: Tensor, settings: Any) -> tuple[Tensor, Tensor]:
        """Negative log densities of images, and of their patches brought to the input's side."""
        patches = network.embed_patches(images)
        maps = F.interpolate(network.patches(patches)[:, None], images.shape[-2:], mode="bilinear")[:, 0]
        if settings.image_score == "map_max":
            return maps.flatten(1).amax(1), maps
        return network.images(patches.mean((1, 2))), maps


CUTPASTE = CutPaste()
