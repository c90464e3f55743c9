"""Files that are kept: written whole or not at all, known by a checksum when they are read, refused in a sentence.

An array (.npy) carries the CRC-32 of its file behind its last value, where NumPy does not look. A folder of results
carries those of its files in ``sums.json`` and is moved into place when it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import shutil
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from filelock import FileLock, Timeout

from vlmad_lib import InputError

SUMS = "sums.json"
_TAIL = struct.Struct("<4sI")
_MARK = b"crc1"


class Damaged(Exception):
    """A kept file is not what was written: cut off, changed or gone. Its message names the file."""


def warn(text: str) -> None:
    """A warning for the person at the keyboard, on stderr or in a notebook; the work goes on."""
    warnings.warn(text, stacklevel=3)


def _name_temporary(path: Path) -> Path:
    """A hidden name beside a path that no thread, process or machine on the same storage takes as well."""
    return path.with_name(f".{path.name}.{uuid4().hex[:12]}")


# What only writing can meet: a full disk, a used-up quota, storage that is read-only, a file too large for it.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


@contextlib.contextmanager
def name_write_errors(path: Path) -> Iterator[None]:
    """A full disk or a folder that is not ours ends in an InputError that names the path.

    Only what was met in writing this path is said so: errors of other files and of the network pass as they are.
    """
    try:
        yield
    except OSError as error:
        if not _concerns(error, path):
            raise
        raise InputError(explain_unwritable(path, error.strerror or str(error))) from error


def explain_unwritable(path: Path | str, reason: str) -> str:
    """The sentence for a path that could not be written."""
    return (
        f"{path} could not be written ({reason.lower()}); make room there or name another folder ('cache' in the "
        "profile, or --out), then start again: what was finished is kept."
    )


def _concerns(error: OSError, path: Path) -> bool:
    """Whether an error is one of writing a path: of the disk's room, or of that path, what is in it, or above it."""
    if error.errno in FULL:
        return True
    if error.errno is None:  # NumPy's "8 requested and 0 written", Pillow's "when writing image file"
        return type(error) is OSError and "writ" in str(error)
    paths = [Path(name) for name in (error.filename, error.filename2) if isinstance(name, str)]
    return any(
        other.is_relative_to(path) or path.is_relative_to(other) or other.name.startswith(f".{path.name}.")
        for other in paths
    )


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path`` and move it into place in one step; InputError where it cannot."""
    temporary = _name_temporary(path)
    with name_write_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


class Claim:
    """The right to make a path, which one process has at a time, so that several share work instead of repeating it.

    A lock on a hidden file beside the path, which the system releases when a process ends however it does. Where a
    storage has no locks every claim is granted: work may then be done twice, and is right all the same.
    """

    def __init__(self, path: Path):
        self._file = path.with_name(f".{path.name}.lock")
        self._lock = FileLock(self._file, thread_local=False)

    def take(self, wait: bool = False) -> bool:
        """Whether the claim is ours now; with ``wait`` once whoever has it gives it back."""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=wait)
        except Timeout:
            return False
        except (OSError, NotImplementedError):
            pass  # no locks here, or nothing can be written: then what writes the path says why
        return True

    def give_back(self) -> None:
        """Let others have it."""
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)  # while it is held: a process that waits takes a new file
            self._lock.release()


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """While one process makes a path, others that want to make it wait."""
    claim = Claim(path)
    claim.take(wait=True)
    try:
        yield
    finally:
        claim.give_back()


# ---------------------------------------------------------------- reading


@contextlib.contextmanager
def name_read_errors(path: Path) -> Iterator[None]:
    """A disk or network that fails while a kept result is read ends in an InputError that names it.

    The result is no less whole for it, so nothing is removed. A file that is missing passes as FileNotFoundError.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise InputError(
            f"The kept result {error.filename or path} cannot be read ({reason}); look at that disk and start again: "
            "nothing was deleted."
        ) from None


def read_json(file: Path) -> Any:
    """What a kept JSON file holds; Damaged where it is missing or no JSON, InputError where it cannot be read."""
    with name_read_errors(file):
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            raise Damaged(str(file)) from None


def write_json(file: Path, content: Any) -> None:
    """Keep JSON-ready content in a file."""
    replace_file(file, lambda path: path.write_text(json.dumps(content), encoding="utf-8"))


# ---------------------------------------------------------------- arrays


def write_array(file: Path, values: np.ndarray) -> None:
    """An array as .npy with its checksum behind it."""
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    content = stream.getbuffer()
    with file.open("wb") as out:
        out.write(content)
        out.write(_TAIL.pack(_MARK, zlib.crc32(content)))


def read_array(file: Path) -> np.ndarray:
    """The array of a file, read-only; Damaged where its checksum does not fit or it is gone.

    InputError where it cannot be read for now, as when a disk or a network fails: then it is no less whole.
    """
    with name_read_errors(file):
        try:
            content = file.read_bytes()
            mark, checksum = _TAIL.unpack_from(content, len(content) - _TAIL.size)
            if mark != _MARK or zlib.crc32(memoryview(content)[: -_TAIL.size]) != checksum:
                raise ValueError("checksum")
            start = 10 + int.from_bytes(content[8:10], "little")
            shape, order, kind = _read_header(content[:start])
            return np.frombuffer(content, kind, int(np.prod(shape)), start).reshape(shape, order=order)
        except (FileNotFoundError, ValueError, struct.error):
            raise Damaged(str(file)) from None


@lru_cache(maxsize=1024)
def _read_header(content: bytes) -> tuple[tuple[int, ...], str, np.dtype]:
    """Shape, order and type of values by the start of a .npy file (version 1.0, as ``write_array`` has it)."""
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("version")
    shape, columns_first, kind = np.lib.format.read_array_header_1_0(stream)
    return shape, "F" if columns_first else "C", kind


# ---------------------------------------------------------------- folders


def _checksum(file: Path) -> int:
    total = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            total = zlib.crc32(block, total)
    return total


def write_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Let ``fill`` write files into a folder beside ``folder``, and move it into place with their checksums.

    Where another process finished the same folder first, its files stay. InputError where nothing can be written.
    """
    partial = _name_temporary(folder)
    with name_write_errors(folder):
        try:
            partial.mkdir(parents=True)
            fill(partial)
            checksums = {file.name: _checksum(file) for file in sorted(partial.iterdir())}
            (partial / SUMS).write_text(json.dumps(checksums), encoding="utf-8")
            try:
                partial.replace(folder)
            except OSError:
                if not (folder / SUMS).is_file():
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def is_intact(folder: Path) -> bool:
    """Whether a folder is there with all its files as they were written; a damaged one is removed and warned of.

    InputError where it cannot be read for now: nothing is removed then.
    """
    with name_read_errors(folder):
        if not folder.is_dir():
            return False
        try:
            checksums = json.loads((folder / SUMS).read_text(encoding="utf-8"))
            intact = all(_checksum(folder / name) == checksum for name, checksum in checksums.items())
        except (FileNotFoundError, ValueError, AttributeError):
            intact = False
    if not intact:
        warn(f"The kept results {folder} were damaged and are computed again.")
        shutil.rmtree(folder, ignore_errors=True)
    return intact
