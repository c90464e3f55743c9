"""Autoencoders that learn to redraw normal pictures through a bottleneck; what they redraw badly is anomalous.

``autoencoder`` follows Bergmann et al. (VISAPP 2019, arXiv 1807.02011), who compare a picture and its reconstruction by
squared differences or by structural similarity (SSIM), in training and testing alike. Layers, bottleneck, learning
rate, decay of weights, epochs and SSIM's window are theirs (table 1, section 4.1). ``vae`` is the variational
autoencoder of Kingma and Welling (ICLR 2014) with the same layers, as in that comparison.

What differs: a picture is shown whole, in colour and squashed to the input's side, where they show 10,000 random
patches of grey textures of that side, so a training of as many epochs makes far fewer steps; batches of 16 and no
augmentation are ours. A defect smaller than a pixel of the input is lost. The image score is the largest value of the
map, which their evaluation of segmentation does not need. The VAE's test reconstruction is that of the mean code, where
they average several drawn ones. The preset ``demo`` has half the side and channels and fewer epochs, at a higher rate,
for seconds on one core.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlmad_lib import InputError
from vlmad_lib.methods.trained_networks import (
    Positive,
    TrainedMethod,
    TrainingSettings,
    Weight,
    measure_error,
)

SLOPE = 0.2  # of the leaky ReLU below zero
DECAY = 1e-5  # of weights, in Adam
HALVINGS = 16  # the input's side over that of the last map of the encoder
DEMO = {"image_size": 64, "network_width": 16, "bottleneck": 32, "epochs": 100, "batch": 4, "rate": 2e-3}


class Settings(TrainingSettings):
    """``bottleneck``: numbers of the code. ``error_measure``: ``ssim`` or ``l2``, the loss and the map alike."""

    bottleneck: Positive = 100
    error_measure: Literal["ssim", "l2"] = "ssim"


class VariationalSettings(TrainingSettings):
    """``bottleneck``: numbers of the code. ``kl_weight``: of the divergence from the prior, beside the squared error.

    ``error_measure``: that of the map; the loss is half the squared error, as of a Gaussian of deviation 1.
    """

    bottleneck: Positive = 100
    error_measure: Literal["ssim", "l2"] = "l2"
    kl_weight: Weight = 1.0


# ---------------------------------------------------------------- layers (table 1)


def build_encoder(side: int, width: int, outputs: int) -> nn.Sequential:
    """Images (N, 3, side, side) -> (N, outputs, 1, 1), by four layers that halve the side and more that do not."""
    steps = [(3, 1, 4), (1, 1, 4), (1, 1, 3), (1, 2, 4), (2, 2, 3), (2, 4, 4), (4, 2, 3), (2, 1, 3)]
    layers: list[nn.Module] = []
    for number, (before, after, kernel) in enumerate(steps):
        inputs = 3 if number == 0 else before * width
        layers += [nn.Conv2d(inputs, after * width, kernel, 2 if kernel == 4 else 1, 1), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers, nn.Conv2d(width, outputs, side // HALVINGS))


def build_decoder(side: int, width: int, inputs: int) -> nn.Sequential:
    """(N, inputs, 1, 1) -> images (N, 3, side, side): the encoder's layers the other way round."""
    layers: list[nn.Module] = [nn.ConvTranspose2d(inputs, width, side // HALVINGS), nn.LeakyReLU(SLOPE)]
    steps = [(1, 2, 3), (2, 4, 3), (4, 2, 4), (2, 2, 3), (2, 1, 4), (1, 1, 3), (1, 1, 4)]
    for before, after, kernel in steps:
        kind, stride = (nn.ConvTranspose2d, 2) if kernel == 4 else (nn.Conv2d, 1)
        layers += [kind(before * width, after * width, kernel, stride, 1), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1))


class Reconstructor(nn.Module):
    """An encoder and a decoder; ``outputs`` numbers leave the first, ``bottleneck`` of them enter the second."""

    def __init__(self, settings: Any, outputs: int):
        super().__init__()
        self.bottleneck = settings.bottleneck
        self.encoder = build_encoder(settings.image_size, settings.network_width, outputs)
        self.decoder = build_decoder(settings.image_size, settings.network_width, settings.bottleneck)

    def forward(self, images: Tensor) -> Tensor:
        """Reconstructions (N, 3, side, side): of a VAE those of the mean code, its encoder's first numbers."""
        return self.decoder(self.encoder(images)[:, : self.bottleneck])


# ---------------------------------------------------------------- methods


class Autoencoder(TrainedMethod):
    """Scores a picture by how far its reconstruction is from it."""

    key = "autoencoder"
    Settings = Settings
    presets = {"paper": {}, "l2": {"error_measure": "l2"}, "demo": DEMO, "demo_l2": DEMO | {"error_measure": "l2"}}

    def refuse_contradictions(self, settings: Any) -> None:
        """InputError for a side that cannot be halved four times."""
        if settings.image_size % HALVINGS:
            raise InputError(
                f"{self.title} settings: 'image_size' is {settings.image_size}; its network halves the side four "
                f"times, so write a multiple of {HALVINGS}."
            )

    def rests_on_map(self, settings: Any, shots: int) -> bool:
        """Wholly, by its largest value."""
        return True

    def build_network(self, settings: Any) -> nn.Module:
        """Encoder and decoder."""
        return Reconstructor(settings, settings.bottleneck)

    def make_optimiser(self, part: nn.Module, settings: Any) -> torch.optim.Optimizer:
        """Adam with a small decay of weights (section 4.1)."""
        return torch.optim.Adam(part.parameters(), settings.rate, weight_decay=DECAY)

    def list_losses(
        self, network: nn.Module, images: Tensor, settings: Any, stream: torch.Generator
    ) -> Iterator[tuple[str, Tensor]]:
        """The mean of the error map."""
        yield "", measure_error(images, network(images), settings.error_measure).mean()

    def judge_images(self, network: nn.Module, images: Tensor, settings: Any) -> tuple[Tensor, Tensor]:
        """The error map, and its largest value."""
        maps = measure_error(images, network(images), settings.error_measure)
        return maps.flatten(1).amax(1), maps


class VariationalAutoencoder(Autoencoder):
    """As the autoencoder; its encoder gives a distribution of codes, held near a standard normal one."""

    key = "vae"
    Settings = VariationalSettings
    presets = {"paper": {}, "demo": DEMO}

    def build_network(self, settings: Any) -> nn.Module:
        """An encoder of means and logarithms of variances, and a decoder."""
        return Reconstructor(settings, 2 * settings.bottleneck)

    def list_losses(
        self, network: nn.Module, images: Tensor, settings: Any, stream: torch.Generator
    ) -> Iterator[tuple[str, Tensor]]:
        """The negative evidence lower bound of an image, of one drawn code each, but for a constant."""
        means, logs = network.encoder(images).chunk(2, 1)
        noise = torch.randn(means.shape, generator=stream).to(images.device)
        codes = means + (logs / 2).exp() * noise
        squares = (network.decoder(codes) - images).square().flatten(1).sum(1) / 2
        divergence = measure_divergence(means.flatten(1), logs.flatten(1))
        yield "", (squares + settings.kl_weight * divergence).mean()


def measure_divergence(means: Tensor, logs: Tensor) -> Tensor:
    """(N,): the Kullback-Leibler divergence of normal distributions from the standard one.

    ``means`` and ``logs`` (N, D): of each number of a code, its mean and the logarithm of its variance.
    """
    return (means.square() + logs.exp() - 1 - logs).sum(1) / 2


AUTOENCODER, VAE = Autoencoder(), VariationalAutoencoder()
