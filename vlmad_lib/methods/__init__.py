"""The registry of methods, and a method of a profile with its checked settings and checkpoint.

A new method is one file with a subclass of ``base.Method`` and one line in ``METHODS``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from vlmad_lib import InputError, config, digests
from vlmad_lib.config import Profile
from vlmad_lib.data import datasets
from vlmad_lib.encoders import backbones, feature_store
from vlmad_lib.encoders.backbones import Backbone, Facts
from vlmad_lib.methods import (
    anomalyclip,
    anomalydino,
    aprilgan,
    autoencoder,
    clip_baselines,
    cutpaste,
    ganomaly,
    hybrid,
    memory_bank,
    musc,
    subspacead,
    winclip,
)
from vlmad_lib.methods.base import Method, MethodSettings
from vlmad_lib.methods.checkpoints import Checkpoint, find_checkpoint


class Registry(dict[str, Method]):
    """Methods by their names in profiles; InputError for an unknown name."""

    def __init__(self, methods: Iterable[Method]):
        super().__init__({method.key: method for method in methods})

    def __missing__(self, key: str) -> Method:
        raise InputError(f"There is no method {key!r}; choose one of {', '.join(self)}.")


METHODS = Registry(
    [
        winclip.WINCLIP,
        anomalyclip.ANOMALYCLIP,
        aprilgan.APRILGAN,
        clip_baselines.COOP,
        clip_baselines.CLIP,
        hybrid.HYBRID,
        musc.MUSC,
        *memory_bank.METHODS.values(),
        anomalydino.ANOMALYDINO,
        subspacead.SUBSPACEAD,
        autoencoder.AUTOENCODER,
        autoencoder.VAE,
        ganomaly.GANOMALY,
        cutpaste.CUTPASTE,
    ]
)
SETTINGS = list(dict.fromkeys(name for method in METHODS.values() for name in method.Settings.model_fields))
"""The settings of all methods, in the order of their columns in the scores table."""


@dataclass(frozen=True)
class ChosenMethod:
    """A method of a profile with its checked settings and the file of what it learned, prompts or projections."""

    spec: config.Method
    settings: MethodSettings
    prompts: Checkpoint | None = None

    @property
    def method(self) -> Method:
        """What it computes."""
        return METHODS[self.spec.method]

    @property
    def source(self) -> ModuleType:
        """The module that holds the code of the method."""
        return sys.modules[type(self.method).__module__]

    @property
    def name(self) -> str:
        """What tables call it; tested on what it was trained on, it says so everywhere."""
        return f"{self.spec.name} LEAKED" if self.prompts and self.prompts.leaked else self.spec.name

    @property
    def fit(self) -> str:
        """How an image is cut into what the model sees: the setting, unless the method has a grid of tiles."""
        return self.spec.tiles.framing if self.spec.tiles else self.settings.fit

    def columns(self, backbone: Backbone | Facts) -> dict[str, str]:
        """What names the method in the scores table, and all settings, empty where it has no such one."""
        weights = [backbone.fingerprint, *([self.prompts.digest] if self.prompts else [])]
        facts = {
            "method": self.name,
            "backbone": backbone.label,
            "weights": "+".join(digest[:12] for digest in weights),
            "preset": self.spec.preset,
        }
        facts |= dict.fromkeys(SETTINGS, "") | {k: _plain(v) for k, v in self.settings.model_dump().items()}
        return facts | ({"fit": self.spec.tiles.label} if self.spec.tiles else {})

    def grid(self, backbone: Backbone | Facts) -> int:
        """Cells of the map along one side."""
        return self.method.image_side(self.settings, backbone) // backbone.patch_size

    def settled(self, backbone: Backbone | Facts, category: str) -> ChosenMethod:
        """The method with its settings as they hold for a category on its backbone."""
        return replace(self, settings=self.method.settle(self.settings, backbone, category))

    def refuse_backbone(self, backbone: Backbone | Facts) -> None:
        """Raise InputError where a backbone lacks what the method needs, naming some that have it."""
        method = self.method
        lacking = [need for need in backbones.NEEDS if need in method.list_needs(self.settings) - backbone.offers]
        if lacking:
            spared = "" if method.needs else ", or set what needs less: 'settings: {windows: []}'"
            raise InputError(
                f"{self.spec.name} needs {', '.join(lacking)}, which {backbone.name} does not have; choose a "
                f"backbone that has, such as {', '.join(backbones.HAVING_ALL)}{spared}."
            )

    def store(
        self, cache: Path, backbone: Backbone | Facts, channels: str = "", exact: bool = False
    ) -> feature_store.AnyStore:
        """The kept features of the method's encoder, or of those it reads."""
        stores = {}
        for prefix, (method, settings) in self.method.feature_sources(self.settings, backbone).items():
            fit = self.fit if self.spec.tiles else settings.fit
            place = method.image_side(settings, backbone), fit, channels or settings.channels, exact
            stores[prefix] = feature_store.Store(cache, backbone, method.encode, method.encoder_version, *place)
        for prefix, rotation in self.method.reference_rotations(self.settings).items():
            stores[prefix] = feature_store.Store(
                cache, backbone, self.method.encode, self.method.encoder_version,
                self.method.image_side(self.settings, backbone), self.fit, "rgb", exact, rotation,
            )  # fmt: skip
        return feature_store.Joint(stores) if len(stores) > 1 else stores[""]

    def references(self, table: pd.DataFrame, category: str, shots: int, seed: int) -> pd.DataFrame:
        """The reference images of a draw, rows of an index: the same for all methods but one that draws otherwise."""
        repeated = self.method.draws_with_replacement(self.settings)
        return datasets.draw_references(table, category, shots, seed, repeated)

    def score(self, features: Mapping[str, Tensor], *more: Any, **named: Any) -> tuple[Tensor, Tensor | None]:
        """The method's ``score``, with what it reads of the checkpoint besides text."""
        return self.method.score(features, *more, **named, **self._load_learned(features))

    def partial_maps(self, features: dict[str, Tensor], *more: Any) -> dict[str, np.ndarray]:
        """The method's ``partial_maps``, likewise."""
        return self.method.partial_maps(features, *more, **self._load_learned(features))

    def _load_learned(self, features: Mapping[str, Tensor]) -> dict[str, Any]:
        if self.prompts is None:
            return {}
        device = next(iter(features.values())).device
        return self.method.load_learned(self.prompts.path, self.prompts.digest, device)

    def names_product(self, row: pd.Series) -> bool:
        """Whether its prompts for an index row change with what the product is called."""
        other = row.copy()
        other["class_name"] = f"other {row.class_name}"
        wording = self.method.prompt_wording
        return wording(self.settings, row) != wording(self.settings, other)

    def text(self, cache: Path, backbone: Backbone | Facts, wording: list) -> Tensor | None:
        """(2, D) text features of a wording, kept by wording, backbone and prompts; none of an empty one."""
        if not wording:
            return None
        digest, file = (self.prompts.digest, self.prompts.path) if self.prompts else ("", None)
        versions = digests.list_versions(digests.ENCODING_LIBRARIES)
        key = digests.digest(backbone.key, self.spec.method, wording, digest, self.method.encoder_version, versions)
        encode = self.method.encode_text
        return feature_store.load_or_compute(
            cache / "text" / f"{key}.npy", lambda: encode(backbone.loaded, wording, file)
        )


def _plain(value: object) -> str:
    if isinstance(value, list):
        return "+".join(map(str, value))
    return "default" if value is None else str(value)


def without_category_context(spec: config.Method) -> config.Method:
    """A method as it judges pictures one by one: no score of it depends on what else is in the category.

    InputError for a method that has no such scores.
    """
    method = METHODS[spec.method]
    if method.scores_whole_category:
        raise InputError(
            f"{spec.name} scores all test images of a category together, so no picture has a score of its own; choose "
            "a method that scores pictures one by one."
        )
    changes = method.without_category_context(method.settings(spec.preset, spec.settings))
    return spec.model_copy(update={"settings": spec.settings | changes})


def list_scoring_alone(specs: Iterable[config.Method]) -> list[config.Method]:
    """The methods that can score a picture by itself (``without_category_context``)."""
    return [spec for spec in specs if not METHODS[spec.method].scores_whole_category]


def locate_weights(spec: config.Method, download: bool = False) -> Path | None:
    """``backbones.locate_weights`` of a method's weights, read as the method reads them."""
    return backbones.locate_weights(spec.backbone, spec.weights, download, plain_gelu(spec))


def load_backbone(spec: config.Method, download: bool = False, device: str = "cpu") -> Backbone:
    """``backbones.load_backbone`` of a method's backbone, read as the method reads it and fit for it."""
    plain = plain_gelu(spec)
    backbone = backbones.load_backbone(spec.backbone, spec.weights, spec.precision, download, plain, device)
    ChosenMethod(spec, settings(spec)).refuse_backbone(backbone)
    return backbone


def plain_gelu(spec: config.Method) -> bool:
    """Whether a method's official code reads weights trained with QuickGELU by plain GELU."""
    return METHODS[spec.method].plain_gelu


def settings(spec: config.Method) -> MethodSettings:
    """The checked settings that a method of a profile runs with; InputError says what is wrong.

    A temperature, published or of the profile, is multiplied by the factor of the backbone
    (``backbones.temperature_factor``): here, for scores, training and the scores table alike.
    """
    checked = METHODS[spec.method].settings(spec.preset, spec.settings)
    factor = backbones.temperature_factor(spec.backbone)
    if factor == 1 or "temperature" not in type(checked).model_fields:
        return checked
    scaled = checked.temperature * factor  # type: ignore[attr-defined]
    return checked.model_copy(update={"temperature": scaled})


def guard_against_leakage(spec: config.Method, checkpoint: Checkpoint, profile: Profile) -> Checkpoint:
    """The checkpoint with what it shares with the tested data.

    InputError where it was trained on them, unless ``force_leak`` is set.
    """
    origin, categories = checkpoint.trained_on, checkpoint.categories
    leaked = datasets.overlaps_training_data(origin, checkpoint.root, profile, categories)
    if leaked and not spec.force_leak:
        raise InputError(
            f"{spec.name}: the {checkpoint.noun} in {checkpoint.path} were trained on {origin}, the data "
            f"they would be tested on; use {checkpoint.noun} of another data set, or set 'force_leak: true' to get "
            "results marked LEAKED."
        )
    alike = () if leaked else tuple(datasets.find_same_categories(origin, categories, profile))
    return replace(checkpoint, leaked=leaked, alike=alike)


def choose(spec: config.Method, profile: Profile) -> ChosenMethod:
    """A method of a profile, its settings and checkpoint checked; InputError says what is wrong."""
    checked = settings(spec)
    if spec.tiles and METHODS[spec.method].scores_whole_category:
        raise InputError(
            f"{spec.name} compares the whole pictures of a category with each other and cannot cut them into tiles; "
            "leave 'tiles' out of it."
        )
    if METHODS[spec.method].reads_pixels and spec.backbone != backbones.PIXELS:
        raise InputError(
            f"{spec.name} trains a network of its own on pictures as they are, and reads no {spec.backbone}; leave "
            f"'backbone' and 'weights' out, or write 'backbone: {backbones.PIXELS}'."
        )
    if checked.learned:
        checkpoint = find_checkpoint(spec, profile, METHODS[spec.method].checkpoint_kind)
        return ChosenMethod(spec, checked, guard_against_leakage(spec, checkpoint, profile))
    given = [key for key in ("checkpoint", "trained_on", "force_leak") if getattr(spec, key)]
    if given:
        raise InputError(
            f"{spec.name}: {given[0]!r} belongs to learned prompts or projections, which it does not use; leave it out."
        )
    return ChosenMethod(spec, checked)
