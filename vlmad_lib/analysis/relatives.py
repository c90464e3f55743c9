"""The methods around AnomalyCLIP on its own backbone: CLIP, CLIP-AC, CoOp and APRIL-GAN (table 1 of its paper)."""

from __future__ import annotations

from vlmad_lib.config import Method, Profile

PLAIN = {"CLIP": "paper", "CLIP-AC": "ac"}
"""Presets of plain CLIP by the names of the paper."""


def relatives(spec: Method, profile: Profile) -> list[Method]:
    """What stands beside an AnomalyCLIP, on its backbone and at its size: nothing learned, then learned otherwise.

    CoOp and APRIL-GAN are those of the profile on this backbone, else the demo's where the AnomalyCLIP is the demo's;
    they are left out where neither is at hand, since they must have learned.
    """
    size = {"settings": {key: spec.settings[key] for key in ("image_size",) if key in spec.settings}}
    found = [Method(method="clip", name=name, preset=preset, **spec.network, **size) for name, preset in PLAIN.items()]
    for method in ("coop", "aprilgan"):
        own = [one for one in profile.methods if one.method == method]
        own = [one for one in own if one.network == spec.network]
        own = [one.model_copy(update={"settings": one.settings | size["settings"]}) for one in own]
        if not own and spec.checkpoint == "demo":
            own = [Method(method=method, checkpoint="demo", force_leak=spec.force_leak, **spec.network, **size)]
        found += own[:1]
    return found


def lacking(found: list[Method]) -> str:
    """A sentence on the methods that could not be had, empty where none is missing."""
    missing = [name for method, name in {"coop": "CoOp", "aprilgan": "APRIL-GAN"}.items()
               if method not in {one.method for one in found}]  # fmt: skip
    if not missing:
        return ""
    return f"{' and '.join(missing)}: left out, since the profile names no checkpoint for this backbone."
