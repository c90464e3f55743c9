"""The baselines of AnomalyCLIP's paper on the unchanged image tower: CLIP, CLIP-AC and CoOp.

No attention is replaced and no window is cut: the class token scores the image, the patch tokens its map. Preset
``paper`` of CLIP has two single prompts; ``ac`` is CLIP-AC, an ensemble of prompts (appendix on baselines). CoOp (Zhou
et al., IJCV 2022) learns sixteen vectors that stand before "normal <class>." and "anomalous <class>." and are the same
in both prompts, by cross entropy of whole images; ``python -m vlmad_lib train coop`` trains them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vlmad_lib import PACKAGE, InputError
from vlmad_lib.encoders import prompts
from vlmad_lib.encoders.backbones import Backbone
from vlmad_lib.files import replace_file
from vlmad_lib.methods import anomalyclip, checkpoints, winclip
from vlmad_lib.methods.base import LANGUAGE, ImageSize, Method, MethodSettings, Names, Sigma, Temperature
from vlmad_lib.methods.prompt_learner import PromptLearner, refuse_other_clip

DEMO = PACKAGE / "demo" / "coop-demo.pth"


class ReadingSettings(MethodSettings):
    """What plain CLIP and CoOp share: how an image is read.

    ``temperature`` is CLIP's own, 1 / 100; no AUROC of images depends on it. Maps are smoothed as AnomalyCLIP's are,
    which its paper does not say of its baselines.
    """

    image_size: ImageSize | None = None  # none: as AnomalyCLIP, 518 for 336
    temperature: Temperature = 0.01
    sigma: Sigma = 4.0
    fit: Literal["squash"] = "squash"
    channels: Literal["rgb"] = "rgb"


class ClipSettings(ReadingSettings):
    """``states`` and ``templates`` are sets of prompts.json.

    CLIP-AC is described as the words *normal* and *anomalous* in many templates (``states: words``); its preset here
    has WinCLIP's whole ensemble, so that it is WinCLIP without windows on a backbone that may be another.
    """

    states: str = "photo"
    templates: str = "none"
    names: Names = "cleaned"


class CoOpSettings(ReadingSettings):
    """How an image is read, and what the class is called."""

    learned: ClassVar[bool] = True
    names: Names = "cleaned"


# ---------------------------------------------------------------- what both share


class PlainClip(Method):
    """A method that reads the class token and the patch tokens of the unchanged image tower."""

    needs = LANGUAGE
    encoder_version = anomalyclip.ENCODER_VERSION
    image_side = staticmethod(anomalyclip.side)
    encode = staticmethod(anomalyclip.encode)

    def array_names(self, settings: ReadingSettings, shots: int = 0) -> list[str]:
        """Names of the arrays of ``encode`` that a score needs."""
        return ["image", "none_last"]

    def score(
        self, features: dict[str, Tensor], text: Tensor, settings: ReadingSettings, grid: int, references: None = None
    ) -> tuple[Tensor, Tensor]:
        """P(anomalous) of whole images (N,) and of their patches (N, grid, grid), not smoothed."""
        names = self.array_names(settings)
        whole, patches = (winclip.probability(features[name], text, settings.temperature) for name in names)
        return whole, patches.unflatten(1, (grid, grid))

    def partial_maps(
        self, features: dict[str, Tensor], text: Tensor, settings: ReadingSettings, grid: int
    ) -> dict[str, np.ndarray]:
        """The map of the first image, (grid, grid)."""
        return {"plain attention, last layer": self.score(features, text, settings, grid)[1][0].cpu().numpy()}


class Clip(PlainClip):
    """CLIP and CLIP-AC: hand-written prompts."""

    key = "clip"
    Settings = ClipSettings
    presets: ClassVar = {"paper": {}, "ac": {"states": "all", "templates": "22"}}
    encode_text = staticmethod(winclip.text)

    def refuse_contradictions(self, settings: ClipSettings) -> None:
        """Raise InputError for an unknown set of prompts."""
        prompts.ensemble("object", settings.states, settings.templates)

    def prompt_wording(self, settings: ClipSettings, row: pd.Series) -> list:
        """What decides the text features of an index row, besides the backbone."""
        return [*prompts.ensemble(prompts.named(settings.names, row), settings.states, settings.templates), True]


# ---------------------------------------------------------------- what CoOp learns


class Context(PromptLearner):
    """The learned context (1, 16, width) of both prompts; nothing deep."""

    WORDS = "normal {}.", "anomalous {}."
    CONTEXTS = 1

    def __init__(self, backbone: Backbone, seed: int = 0, context: int = 16):
        super().__init__(backbone, seed, context, depth=1)


def write(learner: Context, path: Path, trained_on: str, root: str = "", categories: Sequence[str] = ()) -> None:
    """Write a context under the names of CoOp's own checkpoints, with the data set it was trained on."""
    state = {"ctx": learner.context.detach()[0].cpu().clone(), "token_prefix": learner.prefix.cpu().clone()}
    content = {"state_dict": state, "trained_on": trained_on, "root": root, "categories": list(categories)}
    replace_file(path, lambda file: torch.save(content, file))


def _parse(content: dict) -> dict[str, Tensor]:
    state = content["state_dict"]
    if state["ctx"].ndim == 3:
        raise ValueError("it has a context of its own for each class; only one shared by all can be read")
    if state["ctx"].ndim != 2:
        raise ValueError("its context has a wrong shape")
    # the official code leaves the prefix out where it saves for other classes, and has a row of it for each class
    return {"context": state["ctx"].float(), "prefix": list(state.get("token_prefix", ())[:1])}


CHECKPOINT = checkpoints.Kind(
    title="CoOp",
    noun="prompts",
    demo=DEMO,
    parse=_parse,
    without="or take method 'clip' for hand-written ones",
    where=lambda trained_on: "",
    command="python -m vlmad_lib train coop",
)


def read(backbone: Backbone, path: Path) -> tuple[Context, str]:
    """The context of a checkpoint and the data set it was trained on; InputError where it is of other CLIP weights."""
    content = checkpoints.read(path, CHECKPOINT)
    learner = Context(backbone, 0, len(content["context"]))
    if learner.context.shape[1:] != content["context"].shape:
        raise InputError(
            f"The prompts in {path} have {content['context'].shape[1]} numbers a token, {backbone.label} has "
            f"{learner.context.shape[2]}; name the backbone they were trained on."
        )
    for prefix in content["prefix"]:
        refuse_other_clip(backbone, path, "prefix", learner.prefix[0], prefix)
    with torch.no_grad():
        learner.context.copy_(content["context"])
    return learner, content["trained_on"]


class CoOp(PlainClip):
    """CoOp as a detector: one learned context."""

    key = "coop"
    Settings = CoOpSettings
    checkpoint_kind = CHECKPOINT
    read_checkpoint = staticmethod(read)

    def prompt_wording(self, settings: CoOpSettings, row: pd.Series) -> list:
        """What decides the text features of an index row, besides backbone and checkpoint."""
        return [prompts.named(settings.names, row)]

    @torch.no_grad()
    def encode_text(self, backbone: Backbone, wording: list, checkpoint: Path | None = None) -> Tensor:
        """(2, D) text features of a class name, normal first."""
        return read(backbone, checkpoint)[0](backbone, *wording)


CLIP, COOP = Clip(), CoOp()
