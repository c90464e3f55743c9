"""WinCLIP's compositional prompt ensemble: states inside templates (Jeong et al. 2023, section 4.1)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from string import Formatter

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from vlmad_lib import InputError
from vlmad_lib.encoders.backbones import Backbone

FILE = Path(__file__).parent / "prompts.json"


@cache
def _lists() -> dict:
    return json.loads(FILE.read_text(encoding="utf-8"))


def _choose(kind: str, key: str) -> dict | list:
    names = _lists()[kind]
    if key not in names:
        raise InputError(f"There is no set of {kind} {key!r}; {FILE.name} has {', '.join(map(repr, names))}.")
    return names[key]


def templates(key: str = "22") -> list[str]:
    """The templates of a set; ``21`` is the list two public re-implementations have by mistake."""
    template_list = _choose("templates", key)
    if isinstance(template_list, list):
        return template_list
    base = [text for text in templates(template_list["like"]) if text not in template_list.get("without", [])]
    return [text.rstrip(template_list.get("strip", "")) for text in base] + template_list.get("and", [])


def refuse_unfit(texts: Sequence[str], setting: str) -> None:
    """InputError for an empty prompt of one's own, and for a placeholder other than ``{}``, the class name."""
    for text in texts:
        try:
            fields = [field for _, *field in Formatter().parse(text) if field[0] is not None]
        except ValueError:  # a single brace
            fields = [None]
        if not text.strip() or fields not in ([], [["", "", None]]):
            raise InputError(f"{setting}: {text!r} is no prompt; write words, {{}} at most once for the class name.")


def ensemble(
    class_name: str, states: str | dict[str, list[str]] = "all", template_set: str = "22"
) -> tuple[list[str], list[str]]:
    """Normal and anomalous prompts of a class name: 154 and 88 for the full ensemble.

    ``states`` is the name of a set, or one's own: lists under ``normal`` and ``anomalous``.
    """
    chosen = states if isinstance(states, dict) else _choose("states", states)
    described = [[state.format(class_name) for state in chosen[side]] for side in ("normal", "anomalous")]
    normal, anomalous = (
        [text.format(state) for state in side for text in templates(template_set)] for side in described
    )
    return normal, anomalous


def named(choice: str, row: pd.Series) -> str:
    """What prompts call the thing of an index row: its ``cleaned`` class name, its ``folder``, or ``object``."""
    return {"cleaned": row.class_name, "folder": row.category, "object": "object"}[choice]


def prototypes(backbone: Backbone, normal: list[str], anomalous: list[str], normalise_each: bool = True) -> Tensor:
    """(2, D): mean embedding of the normal and of the anomalous prompts, not normalised at the end."""
    embedded = backbone.encode_text([*normal, *anomalous])
    if normalise_each:
        embedded = F.normalize(embedded, dim=-1)
    return torch.stack([embedded[: len(normal)].mean(0), embedded[len(normal) :].mean(0)])
