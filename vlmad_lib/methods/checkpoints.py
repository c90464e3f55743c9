"""Files of what methods learned, and on which data they were trained.

``methods.guard_against_leakage`` compares those data with the tested ones.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from vlmad_lib import REFERENCE, InputError, config, digests
from vlmad_lib.config import Method, Profile
from vlmad_lib.encoders import weight_files

LIST = REFERENCE / "checkpoints.csv"

SAID = ("trained_on", "root", "fingerprint", "activation")
"""What files written here say of themselves; official ones do not."""


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
    """A file that a profile names, and what it was trained on."""

    path: Path
    digest: str
    trained_on: str
    noun: str
    root: str = ""  # the folder of own pictures that it was trained on
    categories: tuple[str, ...] = ()  # that it was trained on, where it says so
    by_word: bool = False  # whether only the profile says what it was trained on
    leaked: bool = False  # whether it was trained on the tested data
    alike: tuple[str, ...] = ()  # categories of own pictures that bear names of those it was trained on


def read(path: Path, kind: Kind) -> dict[str, Any]:
    """What a checkpoint holds, and what it says of itself (``SAID``) and its ``categories``, empty where it does not.

    Plain tensors and text only, nothing in it is executed; InputError for any other file, and for values that are
    not finite.
    """
    content = weight_files.read_tensors(path, f"{kind.title} checkpoint")
    try:
        tensors = kind.parse(content)
        flat = [tensor for value in tensors.values() for tensor in (value if isinstance(value, list) else [value])]
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in flat)
    except KeyError as error:
        held = ", ".join(map(str, list(content)[:3])) or "nothing by name"
        raise _refusal(
            path, kind, f"it lacks {error.args[0]!r} and holds {held}; name the file of this method"
        ) from None
    except ValueError as error:  # our own
        raise _refusal(path, kind, f"{error}; name another file") from None
    except Exception:  # whatever stands in the place of tensors raises anything
        raise _refusal(path, kind, "its tensors are not those of one; fetch it again") from None
    if not finite:
        raise _refusal(path, kind, "it holds values that are not finite; fetch it again, or train it again")
    facts = {key: content.get(key, "") for key in SAID}
    categories = content.get("categories", [])
    are_names = isinstance(categories, list) and all(isinstance(name, str) for name in categories)
    facts = {key: value if isinstance(value, str) else "" for key, value in facts.items()}
    return tensors | facts | {"categories": categories if are_names else []}


def _refusal(path: Path, kind: Kind, reason: str) -> InputError:
    return InputError(f"{path} is no {kind.title} checkpoint: {reason}.")


# ---------------------------------------------------------------- the checkpoint of a profile


def find_checkpoint(spec: Method, profile: Profile, kind: Kind) -> Checkpoint:
    """The checkpoint a method of a profile names, checked before anything is computed.

    Raises InputError for none, a missing or broken file, and one that does not say what it was trained on (nor the
    profile).
    """
    if not spec.checkpoint:
        raise InputError(f"{spec.name}: its {kind.noun} are missing; set 'checkpoint' to a file, {kind.without}.")
    path = kind.demo if spec.checkpoint == "demo" else profile.path(spec.checkpoint)
    if not path.exists():
        raise InputError(_missing(path, spec, kind))
    file_digest = digests.digest_file(str(path), profile.path(profile.cache)) if path.is_file() else ""
    content, digest = _read_once(path, file_digest, kind)
    own, given = (
        config.normalise_dataset_name(content["trained_on"]),
        config.normalise_dataset_name(spec.trained_on),
    )
    source = read_list(profile)
    official = source.get(digest, "")
    for name, word in ((given, "the profile"), (own, "the file")):
        if official and name and name != official:
            raise InputError(
                f"{spec.name}: by its SHA-256, {_list(profile)} lists {path} as trained on {official}, {word} says "
                f"{name}; {'drop' if word == 'the profile' else 'correct the list or'} 'trained_on'."
            )
    if own and given and own != given:
        raise InputError(f"{spec.name}: {path} says it was trained on {own}, the profile {given}; drop 'trained_on'.")
    origin = official or own or given
    if not origin:
        raise InputError(
            f"{spec.name}: {path} does not say which data set its {kind.noun} were trained on, and its SHA-256 is not "
            f"in {_list(profile)}; set 'trained_on' of the method, such as visa or mvtec."
        )
    categories = tuple(content["categories"])
    return Checkpoint(path, digest, origin, kind.noun, content["root"], categories, by_word=not (official or own))


def _list(profile: Profile) -> Path:
    return profile.path(profile.checkpoints) if profile.checkpoints else LIST


def read_list(profile: Profile) -> dict[str, str]:
    """What checkpoints were trained on by their SHA-256, as the profile's list or the project's own says.

    Rows without a SHA-256 are left out. InputError for a list that cannot be read, and for two answers on one file.
    """
    path, origins = _list(profile), {}
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, comment="#", index_col=False)
        rows = list(
            zip(table.sha256.str.strip().str.lower(), table.trained_on.map(config.normalise_dataset_name), strict=True)
        )
    except (OSError, ValueError, AttributeError):
        raise InputError(
            f"{path} is no list of checkpoints; write a CSV with columns file, sha256, trained_on."
        ) from None
    for digest, origin in rows:
        if digest and not re.fullmatch("[0-9a-f]{64}", digest):
            raise InputError(f"{path}: {digest!r} is no SHA-256; write 64 hexadecimal digits, or leave it empty.")
        if digest and (not origin or origins.setdefault(digest, origin) != origin):
            raise InputError(f"{path}: {digest} must have one 'trained_on'; correct its rows.")
    return origins


@lru_cache(maxsize=8)
def _read_once(path: Path, _: str, kind: Kind) -> tuple[dict, str]:
    return read(path, kind), hashlib.sha256(path.read_bytes()).hexdigest()


def _missing(path: Path, spec: Method, kind: Kind) -> str:
    sentence = f"{spec.name}: the {kind.title} checkpoint {path} does not exist; "
    official = kind.where(config.normalise_dataset_name(spec.trained_on))
    if official:
        return (
            sentence
            + f"its authors publish it at {official}: put it there, or leave the method out, as "
            + ("-p 'methods=[{}]' does (WinCLIP alone).")
        )
    return sentence + f"correct its path, or train one by {kind.command}."
