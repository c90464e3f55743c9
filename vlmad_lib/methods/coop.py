"""CoOp (Zhou et al., IJCV 2022) as a detector, a baseline of AnomalyCLIP's paper: one learned context.

Sixteen vectors stand before "normal <class>." and "anomalous <class>." and are the same in both prompts; they learn
from whole images, with cross entropy, and read plain CLIP. ``python -m vlmad_lib train coop`` trains them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd
import torch
from torch import Tensor

from vlmad_lib import PACKAGE, InputError
from vlmad_lib.config import check_record
from vlmad_lib.encoders import prompts
from vlmad_lib.encoders.backbones import Backbone
from vlmad_lib.files import replace_file
from vlmad_lib.methods import checkpoints, clip
from vlmad_lib.methods.prompt_learner import PromptLearner, refuse_other_clip

ZERO_SHOT, FEW_SHOT = clip.ZERO_SHOT, clip.FEW_SHOT
side, encode, ENCODING = clip.side, clip.encode, clip.ENCODING
arrays, score, parts = clip.arrays, clip.score, clip.parts
DEMO = PACKAGE / "demo" / "coop-demo.pth"


class Settings(clip.Read):
    """How an image is read, and what the class is called."""

    learned: ClassVar[bool] = True
    names: Literal["cleaned", "folder", "object"] = "cleaned"


def settings(preset: str = "paper", overrides: dict[str, Any] | None = None) -> Settings:
    """The defaults with single fields changed; InputError names an unknown preset, field or value."""
    if preset != "paper":
        raise InputError(f"CoOp has no preset {preset!r}; use paper.")
    return check_record(Settings, overrides or {}, "CoOp settings")


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


def _parse(found: dict) -> dict[str, Tensor]:
    state = found["state_dict"]
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
    found = checkpoints.read(path, CHECKPOINT)
    learner = Context(backbone, 0, len(found["context"]))
    if learner.context.shape[1:] != found["context"].shape:
        raise InputError(
            f"The prompts in {path} have {found['context'].shape[1]} numbers a token, {backbone.label} has "
            f"{learner.context.shape[2]}; name the backbone they were trained on."
        )
    for prefix in found["prefix"]:
        refuse_other_clip(backbone, path, "prefix", learner.prefix[0], prefix)
    with torch.no_grad():
        learner.context.copy_(found["context"])
    return learner, found["trained_on"]


def wording(chosen: Settings, row: pd.Series) -> list:
    """What decides the text features of an index row, besides backbone and checkpoint."""
    return [prompts.named(chosen.names, row)]


@torch.no_grad()
def text(backbone: Backbone, words: list, checkpoint: Path) -> Tensor:
    """(2, D) text features of a class name, normal first."""
    return read(backbone, checkpoint)[0](backbone, *words)


TEXT = (text, Context, PromptLearner)
