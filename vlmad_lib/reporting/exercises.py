"""Learner copies of the notebooks: ``python -m vlmad_lib exercises`` writes them without their solutions."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat import NotebookNode

from vlmad_lib import ROOT, commands
from vlmad_lib.files import replace_file

NOTEBOOKS = ROOT / "notebooks"
ANSWER = "# your answer\n"


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
