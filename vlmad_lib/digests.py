"""What decides a kept result, as digests: the content of files, the source of code, the versions of libraries.

A result is found again wherever its files lie and whenever they were touched; it is not found once an image, the code
or a library has changed.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import inspect
import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from vlmad_lib import PACKAGE, InputError, files

# Seconds: a file that changed later than this ago may change again without a new time, so it is read again.
SETTLED = 2.0
READERS = 8  # threads that read files; the digest itself runs without Python's lock
# Libraries whose versions change features: they decode and resize images and compute the towers.
ENCODING_LIBRARIES = ("torch", "open_clip_torch", "timm", "Pillow")
# Libraries whose versions change scores, maps, metrics and measures of images.
MEASURING_LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "scikit-image", "pandas", "Pillow")

_remembered: dict[str, tuple[list[int], str]] = {}
_folders_read: set[Path] = set()


def digest(*facts: Any) -> str:
    """24 hexadecimal digits of JSON-ready facts; functions and classes count by their source."""

    def plain(value: Any) -> str:
        return _function_source(value) if callable(value) else str(value)

    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=plain).encode()).hexdigest()[:24]


@cache
def _function_source(code: Callable) -> str:
    return inspect.getsource(code)  # which reads and parses the file each time


# ---------------------------------------------------------------- files


def digest_file(path: str, cache: Path) -> str:
    """64 hexadecimal digits of what a file holds, wherever it lies; "" for no path.

    ``cache`` is the folder of kept results, where ``digest_files`` remembers digests from run to run. Raises
    InputError for a file that is missing or cannot be read.
    """
    if not path:
        return ""
    state = _read_state(path)
    if path not in _remembered:
        _recall(_memory_file(Path(path).parent, cache))
    before, content = _remembered.get(path, ([], ""))
    if before == state:
        return content
    try:
        with Path(path).open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _refuse_unreadable(path, error) from None
    if state == _read_state(path) and time.time() - max(state[1:3]) / 1e9 > SETTLED:
        _remembered[path] = state, content
    return content


def digest_files(paths: Iterable[str], cache: Path) -> list[str]:
    """The digests of several files in their order, read side by side and remembered on disk for the next process."""
    paths = list(paths)
    before = {path: _remembered.get(path) for path in paths}
    with ThreadPoolExecutor(READERS) as readers:
        contents = list(readers.map(lambda path: digest_file(path, cache), paths))
    changed = {path for path in paths if path in _remembered and _remembered[path] != before[path]}
    for folder in {Path(path).parent for path in changed}:
        _remember(folder, cache)
    return contents


def _read_state(path: str) -> list[int]:
    """What changes when a file does: size, time of change, time of its entry's change (nobody sets it back), inode."""
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        raise InputError(f"The file {path} does not exist; restore it or leave its row out.") from None
    except OSError as error:
        raise _refuse_unreadable(path, error) from None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _refuse_unreadable(path: str, error: OSError) -> InputError:
    reason = (error.strerror or type(error).__name__).lower()
    return InputError(f"{path} cannot be read ({reason}); make it readable, then start again: nothing kept is lost.")


def _memory_file(folder: Path, cache: Path) -> Path:
    return cache / "contents" / f"{digest(str(folder))}.json"


def _recall(memory: Path) -> None:
    """Take up what was remembered of the files of a folder; a damaged memory only costs their reading."""
    if memory in _folders_read:
        return
    _folders_read.add(memory)
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        kept = json.loads(memory.read_text(encoding="utf-8"))
        for name, (*state, content) in kept["files"].items():
            _remembered.setdefault(str(Path(kept["folder"], name)), (state, content))


def _remember(folder: Path, cache: Path) -> None:
    """Write what is known of the files of a folder; where that cannot be written they are read again next time."""
    memory = _memory_file(folder, cache)
    _recall(memory)
    with contextlib.suppress(OSError, InputError):
        paths = [path for path in sorted(folder.iterdir()) if str(path) in _remembered]
        states = {path.name: _remembered[str(path)] for path in paths}
        content = {"folder": str(folder), "files": {name: [*state, text] for name, (state, text) in states.items()}}
        files.write_json(memory, content)


# ---------------------------------------------------------------- code and libraries


def digest_code(*modules: ModuleType) -> str:
    """A digest of modules and of all modules of this package that they import, without comments and docstrings.

    No list of files is kept by hand: a module that decides a number is imported by what computes it.
    """
    return _digest_sources(frozenset(Path(inspect.getfile(module)) for module in modules))


@cache
def _digest_sources(modules: frozenset[Path]) -> str:
    sources: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        file = waiting.pop()
        if str(file) not in sources:
            sources[str(file)], imported = _read_module(file)
            waiting += imported
    return digest(sorted(sources.values()))


@cache
def _read_module(file: Path) -> tuple[str, list[Path]]:
    """What a module computes, as text without comments and docstrings, and the files of this package it imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imported = _imported(tree)
    return _without_docstrings(tree), imported


def _imported(tree: ast.Module) -> list[Path]:
    """The files of this package that a module imports, at its top or in a function."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    inside = [name.split(".")[1:] for name in names if name.split(".")[0] == PACKAGE.name]
    places = [place for names_inside in inside if names_inside for place in _files_of(PACKAGE.joinpath(*names_inside))]
    return [place for place in places if place.is_file()]


def _files_of(place: Path) -> tuple[Path, Path]:
    """The file of a module, and that of a package, at a place."""
    return place.with_suffix(".py"), place / "__init__.py"


def _without_docstrings(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            texts = [
                isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) for statement in body
            ]
            node.body = [  # type: ignore[attr-defined]
                statement for statement, is_text in zip(body, texts, strict=True) if not is_text
            ]
    return ast.dump(tree)


@cache
def list_versions(libraries: tuple[str, ...]) -> dict[str, str]:
    """Version of each library by its name, without what tells builds of one version apart."""
    return {name: metadata.version(name).split("+")[0] for name in libraries}
