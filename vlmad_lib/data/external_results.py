"""Results of other tools: anomaly maps and image scores become rows of the scores table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path, PureWindowsPath
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from PIL import Image

from vlmad_lib import InputError
from vlmad_lib.data import csv_files, image_files

Key = tuple[str, str, str]  # category, defect, stem of the image's file name
# Kinds of files that hold one map each.
MAPS = (".npy", ".tif", ".tiff", ".png")
LEVELS = 256  # that a map of 8 bits has at most
_COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")  # a number as it is written where commas are decimal


def read_results(path: Path, test: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray, np.ndarray | None, list[str]]:
    """The test rows of one category that an outside result covers, their scores, maps and what to note.

    ``path`` is a folder of ``<category>.npz`` with keys ``<defect>-<stem>`` or ``<defect>/<stem>``, a folder of
    ``<category>/<defect>/<stem>`` with a suffix of ``MAPS`` (a ``test`` folder between is fine), or a CSV with the
    columns category, defect, image (file name, path or stem) and score. Beside maps, a ``scores.csv`` of that form
    gives the image scores; without it a map's maximum is the score. Maps are (N, h, w) float32; None where there are
    only scores. Raises InputError for unreadable files, values that are not finite, and two maps of one image.
    """
    if not path.exists():
        raise InputError(f"The outside results {path} do not exist; correct 'path' in 'imports'.")
    category = test.category.iloc[0]
    scores = {
        key: value
        for key, value in _scores(path if path.is_file() else path / "scores.csv").items()
        if key[0] == category
    }
    keys = [(category, row.defect, Path(row.image).stem) for row in test.itertuples()]
    if (place := _again(keys)) is not None:
        name = "/".join(keys[place])
        raise InputError(f"Two test images are {name} but for their suffix; rename one to import {path}.")
    maps, notes = ({}, []) if path.is_file() else _maps(path, category, keys, test.image)
    values_by_key = scores or maps
    covered = np.array([key in values_by_key for key in keys], bool)
    keys = [key for key, is_covered in zip(keys, covered, strict=True) if is_covered]
    if maps and any(key not in maps for key in keys):
        absent = next(key for key in keys if key not in maps)
        raise InputError(f"{path} has a score but no map for {'/'.join(absent)}; add the map or remove the score.")
    if others := [key for key in values_by_key if key not in keys]:
        notes.append(
            f"{path.name}: {len(others)} results of {category} have no test image of their name, such as "
            f"{'/'.join(filter(None, others[0][1:]))}."
        )
    if keys and not covered.all():
        notes.append(f"{path.name}: {category} lacks results for {(~covered).sum()} test images, which are left out.")
    values = np.array([scores[key] if scores else maps[key].max() for key in keys], float)
    shapes = {maps[key].shape for key in keys} if maps else set()
    if len(shapes) > 1:
        raise InputError(f"{path}: the maps of {category} have the sizes {sorted(shapes)}; export them at one size.")
    return test[covered], values, np.stack([maps[key] for key in keys]) if shapes else None, notes


# ---------------------------------------------------------------- scores


def _scores(file: Path) -> dict[Key, float]:
    if not file.is_file():
        return {}
    if file.suffix.lower() in (".xls", ".xlsx", ".ods", ".npz", ".zip", ".json", *MAPS):
        raise InputError(f"{file} is no CSV of image scores; save it as CSV, or give the folder that maps lie in.")
    columns = ("category", "defect", "image", "score")
    table = csv_files.read_text_table(file, columns, f"write one with {', '.join(columns)}")
    values = _numbers(table.score, table.attrs["separator"])
    if not np.isfinite(values).all():
        line = int(np.flatnonzero(~np.isfinite(values))[0]) + 2
        raise InputError(f"{file}, line {line}: the score is no finite number; correct or remove that line.")
    keys = list(zip(table.category, table.defect, map(_stem, table.image), strict=True))
    if (place := _again(keys)) is not None:
        raise InputError(f"{file}, line {place + 2}: {'/'.join(keys[place])} has a score already; remove one of them.")
    return dict(zip(keys, values, strict=True))


def _numbers(written: pd.Series, separator: str) -> pd.Series:
    """Numbers as they are written, with decimal commas where no comma separates columns and no point is used."""
    commas = written.str.contains(",", regex=False)
    if separator != "," and commas.any() and not written.str.contains(".", regex=False).any():
        whole = written[commas].map(lambda text: _COMMA.fullmatch(text) is not None)
        written = written.str.replace(",", ".", regex=False) if whole.all() else written
    return pd.to_numeric(written, errors="coerce")


def _again(keys: list[Key]) -> int | None:
    """The place of the first key that stands before it too."""
    again = pd.Series(keys, dtype=object).duplicated()
    return int(again.argmax()) if again.any() else None


def _stem(name: str) -> str:
    """The stem of an image's file name or path, of Windows too; a name without its suffix may have dots."""
    path = PureWindowsPath(name) if "\\" in name else Path(name)
    return path.stem if path.suffix.lower() in image_files.SUFFIXES else path.name


# ---------------------------------------------------------------- maps


def _maps(folder: Path, category: str, keys: list[Key], images: pd.Series) -> tuple[dict[Key, np.ndarray], list[str]]:
    """The maps of a category by key, and notes on how they were read."""
    maps, places, notes, highest = {}, {}, [], []
    archive, inner = _entry(folder, f"{category}.npz", notes), _entry(folder, category, notes)
    named = {name: key for key in keys for name in ("-".join(key[1:]), "/".join(key[1:]))}  # either may have hyphens
    for key, where, values in chain(_archived(archive, category, named), _single(inner, category, images)):
        if key in places:
            raise InputError(f"{places[key]} and {where} are maps of one image; remove one of them.")
        places[key], maps[key] = where, _checked(values, where)
        if values.dtype == np.uint8 and key in keys:
            highest.append(int(values.max()))
    if highest:
        alike = f"all reach {highest[0]}, so each was stretched to itself and maxima cannot rank images; "
        notes.append(
            f"{folder.name}: the maps of {category} have 8 bits: {LEVELS} levels at most, so pixels tie; "
            f"{alike * (len(highest) > 1 and len(set(highest)) == 1)}floating point (.npy, .tiff) keeps what was "
            "computed."
        )
    return maps, notes


def _entry(folder: Path, name: str, notes: list[str]) -> Path | None:
    """What a folder holds under a name, else under the only one that differs from it in capitals, which is noted."""
    if (folder / name).exists():
        return folder / name
    near = [path for path in folder.iterdir() if path.name.casefold() == name.casefold()]
    if len(near) > 1:
        raise InputError(f"{near[0]} and {near[1]} differ in capitals only; name the one that is meant {name}.")
    if near:
        notes.append(f"{folder.name}: {near[0].name} is read as {name}.")
    return near[0] if near else None


def _archived(file: Path | None, category: str, named: dict[str, Key]) -> Iterator[tuple[Key, str, np.ndarray]]:
    if file is None or not file.is_file():
        return
    with _read(file) as archive:
        for name in archive.files:
            plain = name.replace("\\", "/")
            pieces = [*plain.split("/")[:-1], _stem(plain.rpartition("/")[2])]
            key = named.get(name) or named.get("/".join(pieces[-2:])) or (category, "", name)
            yield key, f"{file}[{name}]", _member(file, archive, name)


def _single(folder: Path | None, category: str, images: pd.Series) -> Iterator[tuple[Key, str, np.ndarray]]:
    """Maps that are a file each, in folders named as their defects."""
    if folder is None or not folder.is_dir():
        return
    files = sorted(file for file in folder.glob("**/*") if file.is_file() and not file.name.startswith("."))
    maps = [file for file in files if file.suffix.lower() in MAPS]
    if files and not maps:
        raise InputError(f"{files[0]} is no anomaly map that is read; save maps as {', '.join(MAPS)}.")
    tested = {Path(image).resolve() for image in images} if any(file.suffix != ".npy" for file in maps) else set()
    if image := next((file for file in maps if file.resolve() in tested), None):
        raise InputError(f"{image} is the test image, not its anomaly map; correct 'path' in 'imports'.")
    for file in maps:
        yield (category, file.parent.name, file.stem), str(file), _file(file)


def _file(file: Path) -> np.ndarray:
    if file.suffix.lower() == ".npy":
        return _read(file)
    try:
        if file.suffix.lower() == ".png":
            with Image.open(file) as image:
                grey, values = image.mode in ("L", "I", "F") or image.mode.startswith("I;16"), np.asarray(image)
        else:
            # Pillow reads no TIFF of 16-bit or 64-bit floating point
            from skimage import io  # type: ignore[attr-defined]

            values = np.asarray(io.imread(file))
            grey = values.squeeze().ndim == 2
    except Exception as error:  # decoders raise anything
        reason = " ".join(str(error).split())
        raise InputError(f"{file} cannot be read as an anomaly map ({reason}); save it as .npy.") from None
    if not grey:
        raise InputError(f"{file} is a picture in colours, not an anomaly map; save the numbers as .npy or .tiff.")
    if file.suffix.lower() == ".png" and values.dtype == np.uint8:  # most were stretched one by one to be looked at
        raise InputError(
            f"{file} is a picture of a map, with {LEVELS} levels that say nothing of other images where it was "
            "stretched to its own; save the numbers as .npy or .tiff."
        )
    return values


def _read(file: Path):
    try:
        return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, BadZipFile, MemoryError) as error:
        raise InputError(f"{file} is not a plain NumPy file ({error}); save it with numpy.save or savez.") from None


def _member(file: Path, archive, name: str) -> np.ndarray:
    try:
        return archive[name]
    except (OSError, ValueError, EOFError, BadZipFile, MemoryError) as error:
        raise InputError(f"{file}[{name}] cannot be read ({error}); save the archive again.") from None


def _checked(values: np.ndarray, where: str) -> np.ndarray:
    """A map as float32 (h, w); axes of one entry, as PyTorch's channel, are dropped."""
    if values.ndim > 2 and values.squeeze().ndim == 2:
        values = values.squeeze()
    if values.ndim == 2 and values.size and values.dtype.kind in "fiu":
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
        if np.isfinite(values).all():
            return values
    raise InputError(f"{where} is no anomaly map of finite numbers with shape (height, width); export it again.")
