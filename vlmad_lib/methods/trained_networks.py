"""What methods share that train a network of their own for each category, on its normal train pictures alone.

Such a method reads pictures as they are (backbone ``pixels``) at a small side and learns from the references of a draw:
``shots: full`` are all normal train pictures, fewer are fewer. No test picture is ever shown to a training. It is
decided by the settings, the pictures in their order, the code and PyTorch's version: on one CPU it gives the same
numbers again, bit for bit, interrupted or not. Finished networks are kept below ``networks`` in the cache, and what an
unfinished training has reached beside them.
"""

from __future__ import annotations

import hashlib
import sys
import time
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vlmad_lib import digests, files
from vlmad_lib.encoders import devices
from vlmad_lib.encoders.backbones import Backbone, Facts
from vlmad_lib.methods.base import ImageSize, Method, MethodSettings, Sigma

ENCODER_VERSION = 1  # of ``encode``
KEPT_EVERY = 20.0  # seconds between two states that an unfinished training keeps
NETWORK = "network.pt"  # the file in the folder of a finished network
WINDOW, WINDOW_SIGMA = 11, 1.5  # pixels of SSIM's Gaussian window, and its deviation
C1, C2 = 0.01**2, 0.03**2  # SSIM's constants for pixels in 0..1

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


class TrainingSettings(MethodSettings):
    """Settings of every training.

    ``image_size``: side of the network's input and of the map, pixels. ``epochs``: passes over the pictures, ``batch``
    of them a step, at the learning rate ``rate``. ``training_seed`` decides first weights, order and noise.
    ``network_width``: channels of the network's first layer, of which the others have multiples. Pictures are squashed
    to a square.
    """

    image_size: ImageSize = 128
    epochs: Positive = 200
    batch: Positive = 16
    rate: Rate = 2e-4
    network_width: Positive = 32
    training_seed: Annotated[int, Field(ge=0)] = 0
    sigma: Sigma = 0.0
    fit: Literal["squash"] = "squash"
    channels: Literal["rgb"] = "rgb"


def encode(backbone: Backbone, images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """``pixels`` (N, 3, side, side): whole numbers in 0..255, which fp16 holds exactly, of images in 0..1."""
    return {name: (images * 255).round() for name in names}


class TrainedMethod(Method):
    """A method whose memory of a category is a network that was trained on the references.

    A subclass builds the network, says by which losses it learns and judges pictures with it. Where parts of the
    network learn by losses of their own, as in a GAN, ``trained_parts`` names these parts, submodules of it.
    """

    zero_shot, few_shot = False, True
    reads_pixels = keeps_networks = True
    trained_parts: ClassVar[tuple[str, ...]] = ("",)  # "" is the whole network
    encode, encoder_version = staticmethod(encode), ENCODER_VERSION

    def array_names(self, settings: Any, shots: int = 0) -> list[str]:
        """The pictures themselves."""
        return ["pixels"]

    def image_side(self, settings: Any, backbone: Backbone | Facts) -> int:
        """The side that the settings name."""
        return settings.image_size

    @abstractmethod
    def build_network(self, settings: Any) -> nn.Module:
        """The network with its first weights, drawn from PyTorch's own generator, which the caller has seeded."""

    @abstractmethod
    def list_losses(
        self, network: nn.Module, images: Tensor, settings: Any, stream: torch.Generator
    ) -> Iterator[tuple[str, Tensor]]:
        """For images (N, 3, side, side) in 0..1, each of ``trained_parts`` with the loss of its step, in order.

        A part has made its step when the next loss is asked for. Noise is drawn from ``stream``, a generator of the
        CPU that is new in every epoch.
        """

    def training_gflop(self, settings: Any, images: int) -> float:
        """Counted in a step on one image, which is made."""
        network, image = start_network(self, settings, devices.CPU), torch.rand(1, 3, *[settings.image_size] * 2)
        with FlopCounterMode(display=False) as counter:
            for _, loss in self.list_losses(network, image, settings, torch.Generator()):
                loss.backward()
        return counter.get_total_flops() / 1e9 * images * settings.epochs

    def make_optimiser(self, part: nn.Module, settings: Any) -> torch.optim.Optimizer:
        """The optimiser of one of ``trained_parts``, by default Adam at the settings' rate."""
        return torch.optim.Adam(part.parameters(), settings.rate)

    def finish_network(self, network: nn.Module, images: Tensor, settings: Any) -> None:
        """What is done once with the trained network, in evaluation mode, and its images before it is kept.

        Whatever it leaves in buffers of the network is kept with it, such as a density of its embeddings.
        """

    @abstractmethod
    def judge_images(self, network: nn.Module, images: Tensor, settings: Any) -> tuple[Tensor, Tensor | None]:
        """Scores (N,) and maps (N, side, side), or None, of images in 0..1 by the trained network."""

    def remember(self, references: dict[str, Tensor], settings: Any, grid: int, kept: Path | None = None) -> nn.Module:
        """The network trained on the references, from ``kept`` where it is there."""
        return train_network(self, references["pixels"], settings, kept)

    @torch.inference_mode()
    def score(
        self, features: Mapping[str, Tensor], text: Tensor | None, settings: Any, grid: int, references: Any = None,
        **more: Any,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """What ``judge_images`` says of the pictures; ``references`` is the network."""
        return self.judge_images(references, features["pixels"] / 255, settings)


# ---------------------------------------------------------------- training


def train_network(method: TrainedMethod, pixels: Tensor, settings: Any, kept: Path | None = None) -> nn.Module:
    """The network of a method in evaluation mode, trained on pixels (N, 3, side, side) in 0..255, on their device.

    With ``kept``, a folder, a network that was trained before is read there, and an interrupted training goes on after
    the last epoch whose state is kept.
    """
    network, images = start_network(method, settings, pixels.device), pixels / 255
    if kept is None:
        return _train(method, network, images, settings)
    place = kept / _name_training(method, pixels, settings)
    with files.hold_lock(place):
        if files.is_intact(place):
            weights = torch.load(place / NETWORK, map_location=pixels.device, weights_only=True)
            network.load_state_dict(weights)
            return network.eval()
        state = place.with_suffix(".state.pt")
        _train(method, network, images, settings, state)
        weights = {name: value.cpu() for name, value in network.state_dict().items()}
        files.write_folder(place, lambda folder: torch.save(weights, folder / NETWORK))
        state.unlink(missing_ok=True)
    return network


def start_network(method: TrainedMethod, settings: Any, device: torch.device) -> nn.Module:
    """A network on a device with first weights of its seed, drawn on the CPU; PyTorch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.training_seed)
        return method.build_network(settings).to(device)


def _name_training(method: TrainedMethod, pixels: Tensor, settings: Any) -> str:
    """A digest of all that decides a training, but for the device."""
    shown = hashlib.sha256(pixels.to(torch.uint8).cpu().contiguous().numpy().data).hexdigest()
    code = digests.digest_code(sys.modules[type(method).__module__])
    facts = settings.model_dump(exclude={"sigma"}), tuple(pixels.shape)
    return digests.digest(method.key, facts, shown, code, digests.list_versions(digests.ENCODING_LIBRARIES))


def _train(
    method: TrainedMethod, network: nn.Module, images: Tensor, settings: Any, state: Path | None = None
) -> nn.Module:
    """Train a network to the last epoch, from the one whose state is kept where there is one."""
    optimisers = {name: method.make_optimiser(network.get_submodule(name), settings) for name in method.trained_parts}
    done = _resume(state, network, optimisers) if state else 0
    kept_at = time.monotonic()
    with torch.inference_mode(False), torch.enable_grad(), devices.multiply_in("fp32", images.device):
        network.train()
        for epoch in range(done, settings.epochs):
            stream = torch.Generator().manual_seed(_mix(settings.training_seed, epoch))
            for places in torch.randperm(len(images), generator=stream).split(settings.batch):
                batch = images[places.to(images.device)]
                for name, loss in method.list_losses(network, batch, settings, stream):
                    optimisers[name].zero_grad()
                    loss.backward()
                    optimisers[name].step()
            if state and time.monotonic() - kept_at > KEPT_EVERY:
                _keep(state, epoch + 1, network, optimisers)
                kept_at = time.monotonic()
    with torch.no_grad():
        method.finish_network(network.eval(), images, settings)
    return network


def _mix(seed: int, epoch: int) -> int:
    """The seed of an epoch's generator, so that no state of a generator needs keeping."""
    return int(np.random.default_rng([seed, epoch]).integers(2**63))


def _keep(state: Path, epochs: int, network: nn.Module, optimisers: dict[str, torch.optim.Optimizer]) -> None:
    """Keep what a training has reached after some epochs."""
    steps = {name: optimiser.state_dict() for name, optimiser in optimisers.items()}
    reached = {"epochs": epochs, "network": network.state_dict(), "optimisers": steps}
    files.replace_file(state, lambda path: torch.save(reached, path))


def _resume(state: Path, network: nn.Module, optimisers: dict[str, torch.optim.Optimizer]) -> int:
    """Put network and optimisers where a training stopped; the number of epochs done, 0 where nothing is kept."""
    if not state.is_file():
        return 0
    try:
        reached = torch.load(state, map_location="cpu", weights_only=True)
    except Exception:  # an unpickler that meets garbage raises anything
        files.warn(f"The kept state {state} of a training was damaged; it starts again.")
        return 0
    network.load_state_dict(reached["network"])
    for name, optimiser in optimisers.items():
        optimiser.load_state_dict(reached["optimisers"][name])
    return reached["epochs"]


# ---------------------------------------------------------------- differences of images


def measure_ssim(first: Tensor, second: Tensor) -> Tensor:
    """(N, H, W): the structural similarity of images (N, C, H, W) in 0..1 around each pixel, mean over channels.

    1 for equal images, -1 at the least (Wang et al. 2004), by a Gaussian window of 11 pixels; beyond the rim images
    are mirrored.
    """
    terms = torch.stack([first, second, first * first, second * second, first * second])
    rows, columns = (_weigh_neighbours(length, first.device) for length in first.shape[2:])
    mean, other, square, other_square, product = rows @ terms @ columns.T
    covariance, variances = product - mean * other, square - mean**2 + other_square - other**2
    similarity = (2 * mean * other + C1) * (2 * covariance + C2)
    return (similarity / ((mean**2 + other**2 + C1) * (variances + C2))).mean(1)


def _weigh_neighbours(length: int, device: torch.device) -> Tensor:
    """(length, length): a row of SSIM's weights for each pixel of a line; products with it are faster than windows."""
    weights = torch.exp(-0.5 * ((torch.arange(WINDOW, device=device) - WINDOW // 2) / WINDOW_SIGMA) ** 2)
    single = F.pad(torch.eye(length, device=device)[:, None], [WINDOW // 2] * 2, mode="reflect")
    return F.conv1d(single, (weights / weights.sum())[None, None])[:, 0].T


def measure_error(images: Tensor, reconstructions: Tensor, measure: str) -> Tensor:
    """(N, H, W): how far reconstructions are from images around each pixel.

    ``ssim``: 1 less the similarity. ``l2``: the squared difference, mean over channels.
    """
    if measure == "ssim":
        return 1 - measure_ssim(images, reconstructions)
    return (images - reconstructions).square().mean(1)
