"""Learner copies of the notebooks, and the check of an answer.

``python -m vlmad_lib exercises`` writes the copies without their solutions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
from IPython import get_ipython
from IPython.utils.capture import capture_output
from nbformat import NotebookNode

from vlmad_lib import ROOT, commands
from vlmad_lib.files import replace_file

NOTEBOOKS = ROOT / "notebooks"
ANSWER = "# your answer\nanswer = ...\n"
# Two numbers that differ by less, relatively, are the same answer.
TOLERANCE = 1e-3


def check_answer(notebook: str, exercise: int, names: Mapping[str, object] | None = None) -> None:
    """Print whether the variable ``answer`` holds what the solution computes from the same data, and a hint if not.

    The solution is the ``exercise``-th cell tagged ``solution`` (from 1) of the notebook whose file begins with
    ``notebook``, such as "05". It runs on a copy of the names that the learner's notebook defines (``names``; those of
    the running kernel where they are not given) and must define ``answer`` too. Its hint is in the cell's metadata.
    """
    names = dict(get_ipython().user_ns if names is None else names)
    book = nbformat.read(next(NOTEBOOKS.glob(f"{notebook}_*.ipynb")), as_version=4)
    solution = [cell for cell in book.cells if "solution" in cell.metadata.get("tags", [])][exercise - 1]
    answer = names.pop("answer", ...)
    if answer is ...:
        print("Not answered yet: give the variable 'answer' your result in the cell above, and run both cells.")
        return
    with capture_output():
        exec(solution.source, names)
    if is_same(answer, names["answer"]):
        print("Right.")
    else:
        print(f"Not right yet. Hint: {solution.metadata['vlmad']['hint']}")


def is_same(answer: object, expected: object) -> bool:
    """Whether two answers agree: numbers to ``TOLERANCE``, text without case, tables whatever the order of columns."""
    if isinstance(expected, pd.DataFrame):
        if not isinstance(answer, pd.DataFrame) or set(answer) != set(expected) or len(answer) != len(expected):
            return False
        return all(is_same(list(answer[name]), list(expected[name])) for name in expected)
    if isinstance(expected, str):
        return isinstance(answer, str) and answer.strip().casefold() == expected.strip().casefold()
    if isinstance(expected, set | frozenset):
        return isinstance(answer, set | frozenset | list | tuple) and set(answer) == expected
    if isinstance(expected, Mapping):
        same_keys = isinstance(answer, Mapping | pd.Series) and set(answer.keys()) == set(expected)
        return same_keys and all(is_same(answer[key], value) for key, value in expected.items())
    if isinstance(expected, list | tuple | np.ndarray | pd.Series):
        if not isinstance(answer, list | tuple | np.ndarray | pd.Series) or len(answer) != len(expected):
            return False
        return all(map(is_same, list(answer), list(expected)))
    try:
        answer, expected = float(answer), float(expected)
    except (TypeError, ValueError):
        return answer == expected
    return math.isclose(answer, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE / 2) or (
        math.isnan(answer) and math.isnan(expected)
    )


def learner_copy(book: NotebookNode) -> NotebookNode:
    """The notebook with an empty cell, tagged ``exercise``, in the place of each cell tagged ``solution``."""
    cells = []
    for cell in book.cells:
        if "solution" in cell.metadata.get("tags", []):
            cell = nbformat.v4.new_code_cell(ANSWER, id=cell.id, metadata={"tags": ["exercise"]})
        cells.append(cell)
    return nbformat.v4.new_notebook(cells=cells, metadata=book.metadata)


def write(folder: Path = NOTEBOOKS / "exercises") -> list[Path]:
    """Write a copy of every notebook and return their files; a copy that exists, with its answers, is left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for source in sorted(NOTEBOOKS.glob("*.ipynb")):
        if not (copy := folder / source.name).exists():
            text = nbformat.writes(learner_copy(nbformat.read(source, as_version=4)))
            replace_file(copy, lambda path, text=text: path.write_text(text, encoding="utf-8"))
            written.append(copy)
    return written


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 done, 2 nothing could be written."""
    return commands.run_command(_write_and_show)


def _write_and_show() -> int:
    """Write the copies and say which."""
    written = write()
    print(*written, sep="\n")
    print(f"{len(written)} written; copies that were there, and answers in them, are left as they were.")
    return 0
