"""What a method is: the one class that every method derives from, and the settings they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn

from vlmad_lib import InputError, config
from vlmad_lib.config import Strict, check_record
from vlmad_lib.data.image_files import Rotation
from vlmad_lib.encoders.backbones import CLASS_TOKEN, CLIP_BLOCKS, TEXT, Backbone, Facts

if TYPE_CHECKING:
    from vlmad_lib.methods.checkpoints import Kind

ImageSize = Annotated[int, Field(ge=16, le=4096)]  # pixels along the side of an input
Temperature = Annotated[float, Field(gt=0)]
Sigma = Annotated[float, Field(ge=0, le=518)]  # of the Gaussian over maps, in pixels of a frame of 518
LANGUAGE = frozenset({TEXT, CLASS_TOKEN, CLIP_BLOCKS})  # what methods need that read a CLIP's image against words
Names = Literal["cleaned", "folder", "object"]  # what prompts call the product


class MethodSettings(Strict):
    """The settings of a method; every one has ``sigma``, ``fit`` and ``channels`` besides its own."""

    if TYPE_CHECKING:  # declared by each method's own settings, in their order
        sigma: float
        fit: str
        channels: str
    learned: ClassVar[bool] = False  # whether the method reads a checkpoint; a property where that depends on settings


class Settings(MethodSettings):
    """The three settings that every method has."""

    sigma: Sigma = 0.0
    fit: Literal["tiles", "squash"] = "tiles"
    channels: Literal["rgb"] = "rgb"


class Method(ABC):
    """A method of anomaly detection: what it needs of images, prompts and references, and how it scores.

    A subclass states its facts as class attributes and implements ``array_names``, ``encode`` and ``score``; a method
    that reads prompts, references or a checkpoint overrides those members too. An instance has no state: everything
    that varies is in ``settings``.
    """

    key: ClassVar[str]  # its name in profiles
    Settings: ClassVar[type[MethodSettings]] = Settings
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}}  # named changes of the default settings
    zero_shot: ClassVar[bool] = True  # whether it runs without reference images
    few_shot: ClassVar[bool] = False  # whether it uses reference images
    plain_gelu: ClassVar[bool] = False  # whether its official code computes plain GELU on weights of QuickGELU
    scores_draws_together: ClassVar[bool] = False  # whether ``score`` takes ``draws``, several draws at once
    scores_whole_category: ClassVar[bool] = False
    """Whether it is batched: ``score`` gets all test images of a category at once, unlabelled, since a score depends on
    all of them. No image has a score of its own then. Pictures are squashed, so that an image is one row, and ``score``
    is called with ``side`` too, pixels of the input; its ``features`` are read when they are asked for and not held, in
    the type they are kept in, so that one array of all images is in memory."""
    reads_pixels: ClassVar[bool] = False  # whether it needs pictures as they are: ``backbones.PIXELS`` and no network
    keeps_networks: ClassVar[bool] = False
    """Whether ``remember`` trains a network: it is called with ``kept`` too, the folder where networks are kept."""
    checkpoint_kind: ClassVar[Kind | None] = None  # the files of what it learns
    needs: ClassVar[frozenset[str]] = frozenset()  # of a backbone besides patch tokens, in the words of ``backbones``
    encoder_version: ClassVar[int] = 1
    """Raised with every change of what ``encode`` or ``encode_text`` returns, so that kept features are not reused."""

    @property
    def title(self) -> str:
        """Its usual name in tables and messages."""
        return config.USUAL.get(self.key, {"name": self.key})["name"]

    def settings(self, preset: str = "paper", overrides: dict[str, Any] | None = None) -> MethodSettings:
        """A preset with single fields changed; InputError names an unknown preset, field or value."""
        if preset not in self.presets:
            raise InputError(f"{self.title} has no preset {preset!r}; use {', '.join(self.presets)}.")
        values = self.presets[preset] | (overrides or {})
        checked = check_record(self.Settings, values, f"{self.title} settings")
        self.refuse_contradictions(checked)
        return checked

    def refuse_contradictions(self, settings: Any) -> None:
        """Raise InputError for settings that do not go together; by default all do."""
        return

    def list_needs(self, settings: Any) -> frozenset[str]:
        """What it needs of a backbone besides patch tokens, in the words of ``backbones``, such as ``TEXT``."""
        return self.needs

    def draws_with_replacement(self, settings: Any) -> bool:
        """Whether references are drawn with replacement."""
        return False

    def without_category_context(self, settings: Any) -> dict[str, Any]:
        """Changes of the settings by which the score of an image depends on no other image of its category."""
        return {}

    def settle(self, settings: Any, backbone: Backbone | Facts, category: str) -> Any:
        """The settings as they hold for a category on a backbone, by default as they are.

        InputError where the backbone lacks what they ask for.
        """
        return settings

    # ---------------------------------------------------------------- images

    def image_side(self, settings: Any, backbone: Backbone | Facts) -> int:
        """The side of the square input in pixels, by default the backbone's own."""
        return backbone.image_size

    @abstractmethod
    def array_names(self, settings: Any, shots: int = 0) -> list[str]:
        """Names of the arrays of ``encode`` that a score needs, with ``shots`` references or without them."""

    @abstractmethod
    def encode(self, backbone: Backbone, images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        """The named arrays, a row an image and fp32, of normalised images (N, 3, side, side)."""

    def reference_rotations(self, settings: Any) -> dict[str, Rotation]:
        """The rotated copies of references that are encoded beside them, by what their arrays' names begin with."""
        return {}

    def reference_array_names(self, settings: Any, shots: int) -> list[str]:
        """Names of the arrays of references that a score needs: those of tested images, and of rotated copies."""
        names = self.array_names(settings, shots)
        return [*names, *(prefix + name for prefix in self.reference_rotations(settings) for name in names)]

    def feature_sources(self, settings: Any, backbone: Backbone | Facts) -> dict[str, tuple[Method, Any]]:
        """The methods whose kept arrays it reads, with their settings, by what the arrays' names begin with here."""
        return {"": (self, settings)}

    # ---------------------------------------------------------------- whole categories

    def least_images(self, settings: Any) -> int:
        """The fewest test images of a category that it can score."""
        return 1

    def comparison_gflop(self, settings: Any, images: int, grid: int, width: int) -> float:
        """Billions of operations by which it compares the images of a category with each other.

        ``width``: numbers of a patch token.
        """
        return 0.0

    # ---------------------------------------------------------------- training

    def training_gflop(self, settings: Any, images: int) -> float:
        """Billions of operations by which it trains a network on so many images, 0 where it trains none."""
        return 0.0

    # ---------------------------------------------------------------- prompts

    @property
    def reads_words(self) -> bool:
        """Whether it reads prompts."""
        return type(self).prompt_wording is not Method.prompt_wording

    def prompt_wording(self, settings: Any, row: pd.Series) -> list:
        """What decides the text features of an index row besides backbone and checkpoint; empty: it reads none."""
        return []

    def encode_text(self, backbone: Backbone, wording: list, checkpoint: Path | None = None) -> Tensor:
        """(2, D) text features of a wording, normal first."""
        raise NotImplementedError(f"{self.title} reads no prompts")

    # ---------------------------------------------------------------- what is learned

    def read_checkpoint(self, backbone: Backbone, path: Path) -> tuple[nn.Module, str]:
        """What was learned and the data set it was trained on; InputError where it does not fit the backbone."""
        raise NotImplementedError(f"{self.title} learns nothing")

    def load_learned(self, path: Path, digest: str, device: torch.device) -> dict[str, Any]:
        """What ``score`` and ``partial_maps`` read of a checkpoint besides text, as their keyword arguments."""
        return {}

    # ---------------------------------------------------------------- scores

    def remember(self, references: dict[str, Tensor], settings: Any, grid: int) -> Any:
        """What ``score`` compares with: made of the arrays of the references once for all images."""
        return references

    @abstractmethod
    def score(
        self, features: Mapping[str, Tensor], text: Tensor | None, settings: Any, grid: int, references: Any = None,
        **more: Any,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Image scores (N,), higher for anomalous, and maps (N, grid, grid), or None where the method has none.

        ``references`` are what ``remember`` returned. Scores (N, k) are completed by ``score_category``.
        """

    def score_category(self, values: np.ndarray) -> np.ndarray:
        """Scores (N,) of all images of a category, from what ``score`` left of each as (N, k)."""
        raise NotImplementedError(f"{self.title} scores every image by itself")

    def partial_maps(
        self, features: dict[str, Tensor], text: Tensor, settings: Any, grid: int
    ) -> dict[str, np.ndarray]:
        """The zero-shot maps that the first image's map is made of, and it, (grid, grid) each, by name."""
        return {}
