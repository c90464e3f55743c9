"""vlmad: vision-language anomaly detection, compared, broken down and explained in notebooks.

Packages, from the ground up: ``data``, ``encoders``, ``evaluation``, ``methods``, ``pipeline``, ``analysis``,
``reporting``. A notebook of one's own needs the names below: ``run(load_profile("demo"))`` gives ``Results``.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

PACKAGE = Path(__file__).resolve().parent
"""The library's own folder."""
ROOT = PACKAGE.parent
"""The workbook's own folder: notebooks, profiles, reference figures and caches are found from here."""
REFERENCE = ROOT / "data" / "reference"
"""Published results, counts, defect classes and the list of checkpoints."""


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

_PUBLIC = {
    "load_profile": ("vlmad_lib.config", "load_profile"),
    "load_backbone": ("vlmad_lib.encoders.backbones", "load_backbone"),
    "run": ("vlmad_lib.pipeline.run", "run"),
    "Results": ("vlmad_lib.pipeline.results", "Results"),
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used: PyTorch takes seconds."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(import_module(module), attribute)
