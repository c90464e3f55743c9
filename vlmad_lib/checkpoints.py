"""Files of what methods learned, and the guard against testing it on the data it was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from vlmad_lib import InputError, contents, data
from vlmad_lib.profile import Method, Profile


@dataclass(frozen=True)
class Kind:
    """What a method's checkpoints are: ``title`` names the file, ``noun`` what is learned, ``demo`` the shipped one.

    ``parse`` turns what the file holds into tensors by name (or lists of them) and raises where it cannot;
    ``without`` says how to do without one; ``where`` says where a missing official one, by the data set it was
    trained on, is to be had ("" where it is not).
    """

    title: str
    noun: str
    demo: Path
    parse: Callable[[dict], dict[str, Any]]
    without: str
    where: Callable[[str], str]
    command: str


@dataclass(frozen=True)
class Checkpoint:
    """A file a profile names; ``leaked`` where what it holds was trained on the data of the profile."""

    path: Path
    digest: str
    trained_on: str
    leaked: bool
    noun: str
    alike: tuple[str, ...] = ()  # categories of own pictures that bear names of those it was trained on


def read(path: Path, kind: Kind) -> dict[str, Any]:
    """What a checkpoint holds, and ``trained_on``, ``root``, ``fingerprint`` and ``categories``, empty where not said.

    Plain tensors and text only, nothing in it is executed; InputError for any other file, and for values that are
    not finite.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        parts = kind.parse(found)
        flat = [one for value in parts.values() for one in (value if isinstance(value, list) else [value])]
        whole = all(bool(torch.isfinite(one).all()) for one in flat)
    except Exception as error:  # an unpickler that meets garbage raises anything
        raise _refusal(path, kind, error) from None
    if not whole:
        raise _refusal(path, kind, "values that are not finite")
    said = {key: found.get(key, "") for key in ("trained_on", "root", "fingerprint")}
    named = found.get("categories", [])
    known = isinstance(named, list) and all(isinstance(name, str) for name in named)
    said = {key: value if isinstance(value, str) else "" for key, value in said.items()}
    return parts | said | {"categories": named if known else []}


def _refusal(path: Path, kind: Kind, error: Exception | str) -> InputError:
    reason = " ".join(str(error).split())[:120]
    return InputError(f"{path} is no {kind.title} checkpoint ({reason}); fetch it again.")


# ---------------------------------------------------------------- leakage


def checkpoint(spec: Method, profile: Profile, kind: Kind) -> Checkpoint:
    """The checkpoint a method of a profile names, checked before anything is computed.

    Raises InputError for none, a missing or broken file, one that does not say what it was trained on (nor the
    profile), and one trained on the profile's own data, unless ``force_leak`` is set.
    """
    if not spec.checkpoint:
        raise InputError(f"{spec.name}: its {kind.noun} are missing; set 'checkpoint' to a file, {kind.without}.")
    path = kind.demo if spec.checkpoint == "demo" else profile.path(spec.checkpoint)
    if not path.is_file():
        raise InputError(_missing(path, spec, kind))
    found, digest = _kept(path, contents.digest_file(str(path), profile.path(profile.cache)), kind)
    own, given = data.known_name(found["trained_on"]), data.known_name(spec.trained_on)
    if own and given and own != given:
        raise InputError(f"{spec.name}: {path} says it was trained on {own}, the profile {given}; drop 'trained_on'.")
    if not own and not given:
        raise InputError(
            f"{spec.name}: {path} does not say which data set its {kind.noun} were trained on; set 'trained_on' of "
            "the method, such as visa or mvtec."
        )
    leaked = data.overlaps(own or given, found["root"], profile, found["categories"])
    if leaked and not spec.force_leak:
        raise InputError(
            f"{spec.name}: the {kind.noun} in {path} were trained on {own or given}, the data they would be tested "
            f"on; use {kind.noun} of another data set, or set 'force_leak: true' to get results marked LEAKED."
        )
    alike = () if leaked else tuple(data.alike(own or given, found["categories"], profile))
    return Checkpoint(path, digest, own or given, leaked, kind.noun, alike)


@lru_cache(maxsize=8)
def _kept(path: Path, _: str, kind: Kind) -> tuple[dict, str]:
    return read(path, kind), hashlib.sha256(path.read_bytes()).hexdigest()


def _missing(path: Path, spec: Method, kind: Kind) -> str:
    sentence = f"{spec.name}: the {kind.title} checkpoint {path} does not exist; "
    official = kind.where(data.known_name(spec.trained_on))
    if official:
        return (
            sentence
            + f"its authors publish it at {official}: put it there, or leave the method out, as "
            + ("-p 'methods=[{}]' does (WinCLIP alone).")
        )
    return sentence + f"correct its path, or train one by {kind.command}."
