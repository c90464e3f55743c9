"""Results of other tools: anomaly maps and image scores become rows of the scores table."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path, PureWindowsPath
from typing import Any
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
DEEPEST = 65535  # level of a PNG
# A table of image scores: by category, kind of defect and file name, or as anomalib names what it predicts.
COLUMNS, PREDICTED = ("category", "defect", "image", "score"), ("image_path", "pred_score")
# What a pickle of arrays is made of; Python would call whatever else one names.
_ARRAYS = {("numpy", "ndarray"), ("numpy", "dtype")} | {
    (f"numpy.{core}.{module}", name)
    for core in ("core", "_core")
    for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
}
_COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")  # a number as it is written where commas are decimal


def read_results(
    path: Path, test: pd.DataFrame, scale: int | None = None
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray | None, list[str]]:
    """The test rows of one category that an outside result covers, their scores, maps and what to note.

    ``path`` is a folder of ``<category>.npz`` with keys ``<defect>-<stem>`` or ``<defect>/<stem>``, a folder of
    ``<category>/<defect>/<stem>`` with a suffix of ``MAPS`` (a ``test`` folder between is fine), or a CSV with the
    columns category, defect, image (file name, path or stem) and score. Beside maps, a ``scores.csv`` of that form
    gives the image scores; without it a map's maximum is the score. Maps are (N, h, w) float32; None where there are
    only scores. PNG maps are divided by ``scale``, what their tool multiplied by. A CSV may have ``image_path`` and
    ``pred_score`` instead, as anomalib predicts; and ``path``, or a folder's ``<category>.pkl``, may be the pickle
    that ADEval evaluates, maps and scores by the images' paths. Raises InputError for unreadable files, values that
    are not finite, PNG without their scale, and two maps of one image.
    """
    if not path.exists():
        raise InputError(f"The outside results {path} do not exist; correct 'path' in 'imports'.")
    category = test.category.iloc[0]
    keys = [(category, row.defect, Path(row.image).stem) for row in test.itertuples()]
    by_place = {(Path(image).parent.name, key[2]): key for image, key in zip(test.image, keys, strict=True)}
    evaluated = _evaluated(path if path.suffix.lower() == ".pkl" else path / f"{category}.pkl", category, by_place)
    scored = {key: score for key, (_, score) in evaluated.items()}
    if path.suffix.lower() != ".pkl":
        scored |= _scores(path if path.is_file() else path / "scores.csv", category, by_place)
    scores = {key: value for key, value in scored.items() if key[0] == category}
    if (place := _again(keys)) is not None:
        name = "/".join(keys[place])
        raise InputError(f"Two test images are {name} but for their suffix; rename one to import {path}.")
    computed = {key: values for key, (values, _) in evaluated.items()}
    maps, notes = (computed, []) if path.is_file() else _maps(path, category, keys, test.image, scale, computed)
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


def _scores(file: Path, category: str = "", by_place: dict[tuple[str, str], Key] | None = None) -> dict[Key, float]:
    """The scores of a table; of one that names paths, those of a category, whose images are ``by_place``."""
    if not file.is_file():
        return {}
    if file.suffix.lower() in (".xls", ".xlsx", ".ods", ".npz", ".zip", ".json", *MAPS):
        raise InputError(f"{file} is no CSV of image scores; save it as CSV, or give the folder that maps lie in.")
    with file.open("rb") as opened:
        header = opened.readline().lower()
    columns = PREDICTED if all(name.encode() in header for name in PREDICTED) else COLUMNS
    table = csv_files.read_text_table(file, columns, f"write one with {', '.join(COLUMNS)}")
    separator = table.attrs["separator"]
    if columns == PREDICTED:
        places = [_key_of_path(name, category, by_place or {}) for name in table.image_path]
        table = table.assign(score=table.pred_score, key=places).dropna(subset="key")
    else:
        table = table.assign(key=list(zip(table.category, table.defect, map(_stem, table.image), strict=True)))
    values = _numbers(table.score, separator)
    if not np.isfinite(values).all():
        line = int(table.index[~np.isfinite(values)][0]) + 2
        raise InputError(f"{file}, line {line}: the score is no finite number; correct or remove that line.")
    keys = table.key.tolist()
    if (place := _again(keys)) is not None:
        raise InputError(
            f"{file}, line {table.index[place] + 2}: {'/'.join(keys[place])} has a score already; remove one of them."
        )
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


def _key_of_path(name: str, category: str, by_place: dict[tuple[str, str], Key]) -> Key | None:
    """The key of an image's path on any machine, by the folder it lies in; None for another category's."""
    folders, stem = name.replace("\\", "/").split("/")[:-1], _stem(name)
    if len(folders) > 1 and category not in folders:
        return None
    folder = folders[-1] if folders else ""
    return by_place.get((folder, stem), (category, folder, stem))


# ---------------------------------------------------------------- maps and scores of ADEval


class _Arrays(pickle.Unpickler):
    """Reads dictionaries, text, numbers and arrays; nothing that a pickle names besides is executed."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ARRAYS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


def _evaluated(file: Path, category: str, by_place: dict[tuple[str, str], Key]) -> dict[Key, tuple[np.ndarray, float]]:
    """The maps and scores of a category in a pickle of (map, score, path of the mask) by the path of the image."""
    if not file.is_file():
        return {}
    try:
        with file.open("rb") as opened:
            content = {str(name): (values, float(score)) for name, (values, score, _) in _Arrays(opened).load().items()}
    except Exception as error:  # a damaged pickle raises anything
        reason = " ".join(str(error).split())
        raise InputError(
            f"{file} is no pickle that is read ({reason}); write a dictionary of (map, score, path of the mask) by the "
            "path of the image, with NumPy arrays, numbers and text alone."
        ) from None
    results: dict[Key, tuple[np.ndarray, float]] = {}
    for name, (values, score) in content.items():
        if (key := _key_of_path(name, category, by_place)) is None:
            continue
        if key in results:
            raise InputError(f"{file} has two results of {'/'.join(key)}; remove one of them.")
        if not np.isfinite(score):
            raise InputError(f"{file}[{name}] has a score that is no finite number; export it again.")
        results[key] = _checked(np.asarray(values), f"{file}[{name}]"), score
    return results


# ---------------------------------------------------------------- maps


def _maps(
    folder: Path, category: str, keys: list[Key], images: pd.Series, scale: int | None, computed: dict[Key, np.ndarray]
) -> tuple[dict[Key, np.ndarray], list[str]]:
    """The maps of a category by key, those ``computed`` already among them, and notes on how they were read."""
    maps, places, notes, highest = {}, {}, [], []
    archive, inner = _entry(folder, f"{category}.npz", notes), _entry(folder, category, notes)
    named = {name: key for key in keys for name in ("-".join(key[1:]), "/".join(key[1:]))}  # either may have hyphens
    read = ((key, f"{folder / category}.pkl", values) for key, values in computed.items())
    for key, where, values in chain(read, _archived(archive, category, named), _single(inner, category, images, scale)):
        if key in places:
            raise InputError(f"{places[key]} and {where} are maps of one image; remove one of them.")
        places[key] = where
        maps[key] = _checked(values, where) / (scale if scale and where.lower().endswith(".png") else 1)
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


def _single(
    folder: Path | None, category: str, images: pd.Series, scale: int | None
) -> Iterator[tuple[Key, str, np.ndarray]]:
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
        yield (category, file.parent.name, file.stem), str(file), _file(file, scale)


def _file(file: Path, scale: int | None) -> np.ndarray:
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
    if file.suffix.lower() == ".png" and values.dtype.kind in "iu":
        depth = LEVELS - 1 if values.dtype == np.uint8 else DEEPEST
        if scale is None:  # most were stretched one by one to be looked at
            raise InputError(
                f"{file} is a picture of a map, whose levels say nothing of other images where it was stretched to "
                f"its own; where all were multiplied by {depth}, write 'scale: {depth}' in 'imports', else save the "
                "numbers as .npy or .tiff."
            )
        if scale != depth:
            raise InputError(f"{file} has levels up to {depth}; correct 'scale: {scale}' in 'imports'.")
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
