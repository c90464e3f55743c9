"""Formulas with the line of code that computes each, looked up in the source."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

from vlmad_lib import PACKAGE


def find_line(source: Callable | ModuleType, words: str) -> tuple[str, int, str]:
    """File in vlmad_lib, number and text of the one line of a function or module that holds the words.

    ValueError where no line holds them, or more than one.
    """
    lines, first = inspect.getsourcelines(source)
    places = [place for place, line in enumerate(lines) if words in line]
    if len(places) != 1:
        raise ValueError(f"{words!r} is in {len(places)} lines of {source.__name__}.")
    file = Path(inspect.getsourcefile(inspect.unwrap(source))).relative_to(PACKAGE)
    return file.as_posix(), max(first, 1) + places[0], lines[places[0]].strip()


def write_formulas(rows: Iterable[tuple[str, str, Callable | ModuleType, str]]) -> str:
    """Markdown of rows (what is computed, LaTeX, function or module, words): the formula and its line of code."""
    parts = []
    for what, latex, source, words in rows:
        file, number, code = find_line(source, words)
        parts.append(f"{what}:\n\n$${latex}$$\n\n`{file}`, line {number}: `{code}`")
    return "\n\n".join(parts)
