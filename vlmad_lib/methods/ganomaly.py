"""GANomaly (Akcay et al., ACCV 2018, arXiv 1805.06725): encoder, decoder, encoder, and a discriminator against them.

A picture is encoded, redrawn from that code and encoded again by a second encoder; it is as anomalous as the two codes
are apart (section 3). Layers, code, weights of the three losses, rate and Adam's moments are those of the paper and of
its official code (github.com/samet-akcay/ganomaly).

What differs: the adversarial loss compares features of the discriminator, as the paper has it, and scores are sums of
absolute differences, as there; the official code has a cross-entropy in the place of the first and the mean of squares
in that of the second, scales scores by the smallest and largest of the test set, which ranks nothing otherwise, draws
the discriminator anew where it wins, and keeps the epoch that is best on the test set, which no method here may do.
Their data have thousands of pictures and 15 epochs, a category here some hundred, so there are 200 epochs in batches
of 16. The paper has no maps: here a map is the squared difference of picture and reconstruction, which the score is
not read from. The preset ``demo`` has a quarter of the channels, a smaller code and side, and a higher rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmad_lib import InputError
from vlmad_lib.methods.base import ImageSize
from vlmad_lib.methods.trained_networks import Positive, TrainedMethod, TrainingSettings, Weight, measure_error

SLOPE = 0.2  # of the leaky ReLU below zero
MOMENTS = (0.5, 0.999)  # of Adam
LAST = 4  # the side of the encoder's last map


class Settings(TrainingSettings):
    """``bottleneck``: numbers of a code. The weights are those of the three losses of encoders and decoder."""

    image_size: ImageSize = 64
    network_width: Positive = 64
    bottleneck: Positive = 100
    adversarial_weight: Weight = 1.0
    reconstruction_weight: Weight = 50.0
    code_weight: Weight = 1.0


# ---------------------------------------------------------------- layers


def build_encoder(side: int, width: int, outputs: int) -> nn.Sequential:
    """DCGAN's: images (N, 3, side, side) -> (N, outputs, 1, 1); every layer halves the side and doubles the width."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(SLOPE)]
    while (side := side // 2) > LAST:
        layers += [nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.LeakyReLU(SLOPE)]
        width *= 2
    return nn.Sequential(*layers, nn.Conv2d(width, outputs, LAST, bias=False))


def build_decoder(side: int, width: int, inputs: int) -> nn.Sequential:
    """DCGAN's: (N, inputs, 1, 1) -> images (N, 3, side, side) in -1..1."""
    width *= side // (2 * LAST)
    layers: list[nn.Module] = [nn.ConvTranspose2d(inputs, width, LAST, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    while (side := side // 2) > LAST:
        layers += [nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False), nn.BatchNorm2d(width // 2), nn.ReLU()]
        width //= 2
    return nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh())


class Generator(nn.Module):
    """Two encoders and the decoder between them."""

    def __init__(self, settings: Settings):
        super().__init__()
        shape = settings.image_size, settings.network_width, settings.bottleneck
        self.encoder, self.decoder, self.second_encoder = (
            build(*shape) for build in (build_encoder, build_decoder, build_encoder)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstructions of images in -1..1, the images' codes (N, D) and the reconstructions' codes (N, D)."""
        codes = self.encoder(images)
        reconstructions = self.decoder(codes)
        return reconstructions, codes.flatten(1), self.second_encoder(reconstructions).flatten(1)


class Discriminator(nn.Module):
    """Tells pictures from reconstructions."""

    def __init__(self, settings: Settings):
        super().__init__()
        *features, last = build_encoder(settings.image_size, settings.network_width, 1)
        self.features, self.last = nn.Sequential(*features), last

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features of images, and the logits (N,) of their being pictures."""
        features = self.features(images)
        return features, self.last(features).flatten()


class Networks(nn.Module):
    """Generator and discriminator, which learn in turn."""

    def __init__(self, settings: Settings):
        super().__init__()
        self.generator, self.discriminator = Generator(settings), Discriminator(settings)


def draw_weights(module: nn.Module) -> None:
    """Give a layer the first weights of DCGAN."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


# ---------------------------------------------------------------- the method


class GANomaly(TrainedMethod):
    """Scores a picture by how far the codes of it and of its reconstruction are apart."""

    key = "ganomaly"
    Settings = Settings
    presets = {
        "paper": {},
        "demo": {
            "image_size": 32, "network_width": 16, "bottleneck": 32, "epochs": 100, "batch": 4, "rate": 1e-3,
        },
    }  # fmt: skip
    trained_parts = ("discriminator", "generator")

    def refuse_contradictions(self, settings: Any) -> None:
        """InputError for a side that cannot be halved down to 4."""
        if settings.image_size & (settings.image_size - 1):
            raise InputError(
                f"{self.title} settings: 'image_size' is {settings.image_size}; its networks halve the side down to "
                f"{LAST}, so write a power of two, such as 64."
            )

    def build_network(self, settings: Any) -> nn.Module:
        """Generator and discriminator."""
        return Networks(settings).apply(draw_weights)

    def make_optimiser(self, part: nn.Module, settings: Any) -> torch.optim.Optimizer:
        """Adam with a small first moment."""
        return torch.optim.Adam(part.parameters(), settings.rate, MOMENTS)

    def list_losses(
        self, network: Any, images: Tensor, settings: Any, stream: torch.Generator
    ) -> Iterator[tuple[str, Tensor]]:
        """The discriminator's loss, then that of encoders and decoder (equations 1 to 4)."""
        images = images * 2 - 1
        reconstructions, codes, codes_again = network.generator(images)
        _, real = network.discriminator(images)
        _, redrawn = network.discriminator(reconstructions.detach())
        # by softplus: the cross-entropy of logits with ones for pictures and zeros for reconstructions
        yield "discriminator", F.softplus(-real).mean() + F.softplus(redrawn).mean()
        (features, _), (features_again, _) = network.discriminator(images), network.discriminator(reconstructions)
        yield (
            "generator",
            settings.adversarial_weight * F.mse_loss(features_again, features)
            + settings.reconstruction_weight * F.l1_loss(reconstructions, images)
            + settings.code_weight * F.mse_loss(codes_again, codes),
        )

    def judge_images(self, network: Any, images: Tensor, settings: Any) -> tuple[Tensor, Tensor]:
        """The sum of absolute differences of the two codes (section 3.2), and the squared errors of the redrawing."""
        reconstructions, codes, codes_again = network.generator(images * 2 - 1)
        return (codes - codes_again).abs().sum(1), measure_error(images, (reconstructions + 1) / 2, "l2")


GANOMALY = GANomaly()
