"""The methods by name, and what a run asks of each of them: the one place that knows which there are.

A method is a module, or an object, with ``Settings``, ``settings``, ``ZERO_SHOT``, ``FEW_SHOT`` (whether it runs
without references, and with them); ``side``, ``arrays``, ``encode``, ``ENCODING`` for images; ``wording`` and, unless
that is empty, ``text``, ``TEXT`` for prompts; ``remember`` for references, called once for all images; ``score`` and
``parts`` for what is read off all, with ``DRAWS`` where ``score`` can share work between draws of references, and
``over_category`` where an image's score takes those of its category. One that
learns has ``CHECKPOINT``, and ``learned`` where ``score`` and ``parts`` read more of its checkpoint than text. One that
reads what others keep names them as ``sides`` and encodes with them. One whose official code computes plain GELU
on weights trained with QuickGELU says so by ``PLAIN_GELU``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from vlmad_lib import InputError, digests
from vlmad_lib.config import Method, Profile, Strict
from vlmad_lib.data import datasets
from vlmad_lib.encoders import backbones, feature_store
from vlmad_lib.encoders.backbones import Backbone, Facts
from vlmad_lib.methods import anomalyclip, aprilgan, clip, coop, hybrid, memory_bank, winclip
from vlmad_lib.methods.checkpoints import Checkpoint, checkpoint

METHODS = {"winclip": winclip, "anomalyclip": anomalyclip, "aprilgan": aprilgan, "coop": coop, "clip": clip}
METHODS |= {"hybrid": hybrid, **memory_bank.METHODS}
SETTINGS = list(dict.fromkeys(name for method in METHODS.values() for name in method.Settings.model_fields))
"""The settings of all methods, in the order of their columns in the scores table."""


@dataclass(frozen=True)
class Chosen:
    """A method of a profile with its checked settings and the file of what it learned, prompts or projections."""

    spec: Method
    settings: Strict
    prompts: Checkpoint | None = None

    @property
    def module(self) -> ModuleType | memory_bank.Embedding:
        """The code of the method."""
        return METHODS[self.spec.method]

    @property
    def source(self) -> ModuleType:
        """The module that holds the code of the method."""
        code = self.module
        return code if isinstance(code, ModuleType) else sys.modules[code.score.__module__]

    @property
    def name(self) -> str:
        """What tables call it; tested on what it was trained on, it says so everywhere."""
        return f"{self.spec.name} LEAKED" if self.prompts and self.prompts.leaked else self.spec.name

    def columns(self, backbone: Backbone | Facts) -> dict[str, str]:
        """What names the method in the scores table, and all settings, empty where it has no such one."""
        weights = [backbone.fingerprint, *([self.prompts.digest] if self.prompts else [])]
        facts = {
            "method": self.name,
            "backbone": backbone.label,
            "weights": "+".join(one[:12] for one in weights),
            "preset": self.spec.preset,
        }
        return facts | dict.fromkeys(SETTINGS, "") | {k: _plain(v) for k, v in self.settings.model_dump().items()}

    def grid(self, backbone: Backbone | Facts) -> int:
        """Cells of the map along one side."""
        return self.module.side(self.settings, backbone) // backbone.patch_size

    def store(
        self, cache: Path, backbone: Backbone | Facts, channels: str = "", exact: bool = False
    ) -> feature_store.AnyStore:
        """The kept features of the method's encoder, or of those it reads."""
        code, found = self.module, {}
        sides = code.sides(self.settings) if hasattr(code, "sides") else {"": (code, self.settings)}
        for prefix, (one, chosen) in sides.items():
            place = (one.side(chosen, backbone), chosen.fit, channels or chosen.channels, exact)
            owner = one.shares(chosen, backbone) if hasattr(one, "shares") else one  # who keeps the same arrays
            found[prefix] = feature_store.Store(cache, backbone, owner.encode, owner.ENCODING, *place)
        return feature_store.Joint(found) if len(found) > 1 else found[""]

    def references(self, table: pd.DataFrame, category: str, shots: int, seed: int) -> pd.DataFrame:
        """The reference images of a draw, rows of an index: the same for all methods but one that draws otherwise."""
        return datasets.draw_references(table, category, shots, seed, getattr(self.settings, "draws", "") == "repeated")

    def score(self, features: dict[str, Tensor], *more: Any) -> tuple[Tensor, Tensor]:
        """The module's ``score``, with what it reads of the checkpoint besides text."""
        return self.module.score(features, *more, **self._learned(features))

    def parts(self, features: dict[str, Tensor], *more: Any) -> dict[str, np.ndarray]:
        """The module's ``parts``, likewise."""
        return self.module.parts(features, *more, **self._learned(features))

    def _learned(self, features: dict[str, Tensor]) -> dict[str, Any]:
        load = getattr(self.module, "learned", None)
        device = next(iter(features.values())).device
        return {"learned": load(self.prompts.path, self.prompts.digest, device)} if load else {}

    def names_product(self, row: pd.Series) -> bool:
        """Whether its prompts for an index row change with what the product is called."""
        other = row.copy()
        other["class_name"] = f"other {row.class_name}"
        return self.module.wording(self.settings, row) != self.module.wording(self.settings, other)

    def text(self, cache: Path, backbone: Backbone | Facts, words: list) -> Tensor | None:
        """(2, D) text features of a wording, kept by wording, backbone and prompts; none of an empty one."""
        if not words:
            return None
        digest, file = (self.prompts.digest, self.prompts.path) if self.prompts else ("", None)
        versions = digests.list_versions(digests.ENCODING_LIBRARIES)
        code = *backbones.TEXT, *self.module.TEXT
        key = digests.digest(backbone.key, self.spec.method, words, digest, *code, versions)
        return feature_store.load_or_compute(
            cache / "text" / f"{key}.npy", lambda: self.module.text(backbone.loaded, words, file)
        )


def _plain(value: object) -> str:
    if isinstance(value, list):
        return "+".join(map(str, value))
    return "default" if value is None else str(value)


def alone(spec: Method) -> Method:
    """A method as it judges pictures one by one: no score of it depends on what else is in the category."""
    chosen = METHODS[spec.method].settings(spec.preset, spec.settings)
    fixed = {"image_score": "fixed"} if getattr(chosen, "image_score", "") == "stretched" else {}
    return spec.model_copy(update={"settings": spec.settings | fixed})


def locate_weights(spec: Method, download: bool = False) -> Path:
    """``backbones.locate_weights`` of a method's weights, read as the method reads them."""
    return backbones.locate_weights(spec.backbone, spec.weights, download, plain_gelu(spec))


def load_backbone(spec: Method, download: bool = False, device: str = "cpu") -> Backbone:
    """``backbones.load_backbone`` of a method's backbone, read as the method reads it."""
    return backbones.load_backbone(spec.backbone, spec.weights, spec.precision, download, plain_gelu(spec), device)


def plain_gelu(spec: Method) -> bool:
    """Whether a method's official code reads weights trained with QuickGELU by plain GELU."""
    return getattr(METHODS[spec.method], "PLAIN_GELU", False)


def settings(spec: Method) -> Strict:
    """The checked settings that a method of a profile runs with; InputError says what is wrong.

    A temperature, published or of the profile, is multiplied by the factor of the backbone
    (``backbones.temperature_factor``): here, for scores, training and the scores table alike.
    """
    chosen = METHODS[spec.method].settings(spec.preset, spec.settings)
    factor = backbones.temperature_factor(spec.backbone)
    if factor == 1 or "temperature" not in type(chosen).model_fields:
        return chosen
    return chosen.model_copy(update={"temperature": chosen.temperature * factor})


def choose(spec: Method, profile: Profile) -> Chosen:
    """A method of a profile, its settings and checkpoint checked; InputError says what is wrong."""
    chosen = settings(spec)
    if chosen.learned:
        return Chosen(spec, chosen, checkpoint(spec, profile, METHODS[spec.method].CHECKPOINT))
    given = [key for key in ("checkpoint", "trained_on", "force_leak") if getattr(spec, key)]
    if given:
        raise InputError(
            f"{spec.name}: {given[0]!r} belongs to learned prompts or projections, which it does not use; leave it out."
        )
    return Chosen(spec, chosen)
