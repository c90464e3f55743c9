"""vlmad: vision-language anomaly detection, compared, broken down and explained in notebooks.

Modules, left to right; none knows what stands to its right:
``profile  devices  files  commands  contents  tables  images  masks  layouts  data  tensors  backbones
prompts  winclip  features  checkpoints  prompt_learner  anomalyclip  clip  coop  aprilgan  hybrid  embedding
methods  levels  metrics  statistics  run  plots  report``, and ``training``,
``prompt_training``, ``projection_training`` beside ``run``.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

ROOT = Path(__file__).resolve().parent.parent
"""The workbook's own folder: notebooks, profiles, reference figures and caches are found from here."""


class InputError(ValueError):
    """The input is wrong: the message is one sentence that names the file or key and the remedy."""


def within(name: str, value: float, low: float, high: float = float("inf")) -> float:
    """A number that a person gave; InputError names it unless it lies from ``low`` to ``high``."""
    if not low <= value <= high:
        limits = f"of {low} or more" if high == float("inf") else f"from {low} to {high}"
        raise InputError(f"{name!r} is {value}; give a number {limits}.")
    return value


class Later:
    """A module that is imported when it is first used."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)


open_clip = Later("open_clip")  # takes seconds, and whoever only reads kept results never needs it
