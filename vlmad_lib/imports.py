"""Results of other tools: anomaly maps and image scores become rows of the scores table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from vlmad_lib import InputError, data

Key = tuple[str, str, str]  # category, defect, stem of the image's file name


def read(path: Path, test: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray, np.ndarray | None, list[str]]:
    """The test rows of one category that an outside result covers, their scores, maps and what to note.

    ``path`` is a folder of ``<category>.npz`` with keys ``<defect>-<stem>``, a folder of
    ``<category>/<defect>/<stem>.npy`` (a ``test`` folder between is fine), or a CSV with the columns
    category, defect, image (file name or stem) and score. Beside maps, a ``scores.csv`` of that form
    gives the image scores; without it a map's maximum is the score. Maps are (N, h, w) float32;
    None where there are only scores. Raises InputError for unreadable files and values that are not finite.
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
        said = "/".join(keys[place])
        raise InputError(f"Two test images are {said} but for their suffix; rename one to import {path}.")
    maps = {} if path.is_file() else dict(_maps(path, category, keys))
    known = scores or maps
    covered = np.array([key in known for key in keys], bool)
    keys = [key for key, found in zip(keys, covered, strict=True) if found]
    if maps and any(key not in maps for key in keys):
        absent = next(key for key in keys if key not in maps)
        raise InputError(f"{path} has a score but no map for {'/'.join(absent)}; add the map or remove the score.")
    notes = []
    if len(known) > len(keys):
        notes.append(f"{path.name}: {len(known) - len(keys)} results of {category} have no test image of their name.")
    if keys and not covered.all():
        notes.append(f"{path.name}: {category} lacks results for {(~covered).sum()} test images, which are left out.")
    values = np.array([scores[key] if scores else maps[key].max() for key in keys], float)
    shapes = {maps[key].shape for key in keys} if maps else set()
    if len(shapes) > 1:
        raise InputError(f"{path}: the maps of {category} have the sizes {sorted(shapes)}; export them at one size.")
    return test[covered], values, np.stack([maps[key] for key in keys]) if shapes else None, notes


def _scores(file: Path) -> dict[Key, float]:
    if not file.is_file():
        return {}
    columns = ("category", "defect", "image", "score")
    table = data.texts(file, columns, f"write one with {', '.join(columns)}")
    values = pd.to_numeric(table.score, errors="coerce")
    if not np.isfinite(values).all():
        line = int(np.flatnonzero(~np.isfinite(values))[0]) + 2
        raise InputError(f"{file}, line {line}: the score is no finite number; correct or remove that line.")
    keys = list(zip(table.category, table.defect, map(_stem, table.image), strict=True))
    if (place := _again(keys)) is not None:
        raise InputError(f"{file}, line {place + 2}: {'/'.join(keys[place])} has a score already; remove one of them.")
    return dict(zip(keys, values, strict=True))


def _again(keys: list[Key]) -> int | None:
    """The place of the first key that stands before it too."""
    again = pd.Series(keys, dtype=object).duplicated()
    return int(again.argmax()) if again.any() else None


def _stem(name: str) -> str:
    """The stem of an image's file name; a name without its suffix may have dots."""
    path = Path(name)
    return path.stem if path.suffix.lower() in data.SUFFIXES else path.name


def _maps(folder: Path, category: str, keys: list[Key]) -> Iterator[tuple[Key, np.ndarray]]:
    named = {f"{defect}-{stem}": (category, defect, stem) for _, defect, stem in keys}  # either may have hyphens
    archive_file = folder / f"{category}.npz"
    if archive_file.is_file():
        with _read(archive_file) as archive:
            for name in archive.files:
                yield (
                    named.get(name, (category, "", name)),
                    _checked(_member(archive_file, archive, name), f"{archive_file}[{name}]"),
                )
    for file in sorted((folder / category).glob("**/*.npy")):
        yield (category, file.parent.name, file.stem), _checked(_read(file), str(file))


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
    if values.ndim == 2 and values.size and np.issubdtype(values.dtype, np.number):
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
        if np.isfinite(values).all():
            return values
    raise InputError(f"{where} is no anomaly map of finite numbers with shape (height, width); export it again.")
