"""Exercises of every notebook, and the copies of them that learners get."""

from __future__ import annotations

import ast
import re

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from vlmad_lib.reporting import exercises

BOOKS = sorted(exercises.NOTEBOOKS.glob("*.ipynb"))


def tagged(book: nbformat.NotebookNode, tag: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in book.cells if tag in cell.metadata.get("tags", [])]


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_every_notebook_has_exercises_with_folded_solutions(path):
    cells = nbformat.read(path, as_version=4).cells
    begin = next(place for place, cell in enumerate(cells) if cell.source.startswith("## Exercises"))
    kinds = ""
    for cell in cells[begin:]:
        tasks = re.findall(r"^(\d)\. ", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else []
        tags = cell.metadata.get("tags", []) if cell.cell_type == "code" else []
        kinds += "".join(tasks) + "".join(tag[0] for tag in tags)
    assert re.fullmatch(r"1es2e?s(3e?s)?", kinds), f"tasks, exercise and solution cells in the order {kinds}"
    for cell in cells:
        if "solution" in cell.metadata.get("tags", []):
            assert cell.metadata.get("jupyter") == {"source_hidden": True}, "JupyterLab shows this solution at once"


def test_learner_copies_hold_no_solution_and_are_notebooks(tmp_path):
    written = exercises.write(tmp_path / "copies")
    assert [path.name for path in written] == [path.name for path in BOOKS]
    for source, copy in zip(BOOKS, written, strict=True):
        book, original = nbformat.read(copy, as_version=4), nbformat.read(source, as_version=4)
        nbformat.validate(book)
        solutions = tagged(original, "solution")
        assert not tagged(book, "solution") and len(book.cells) == len(original.cells)
        for cell in solutions:
            assert not any(max(cell.source.splitlines(), key=len) in other.source for other in book.cells)
        places = [cell for cell in book.cells if cell.source == exercises.ANSWER]
        assert [cell.id for cell in places] == [cell.id for cell in solutions]
        for cell in book.cells:
            if cell.cell_type == "code":
                ast.parse(TransformerManager().transform_cell(cell.source))


def test_answers_are_not_overwritten(tmp_path):
    first = exercises.write(tmp_path)[0]
    first.write_text("an answer")
    assert exercises.write(tmp_path) == [] and first.read_text() == "an answer"
