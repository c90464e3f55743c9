"""Exercises of every notebook, and the copies of them that learners get."""

from __future__ import annotations

import ast
import re

import nbformat
import pandas as pd
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from vlmad_lib.reporting import exercises

BOOKS = sorted(exercises.NOTEBOOKS.glob("*.ipynb"))


def tagged(book: nbformat.NotebookNode, tag: str) -> list[nbformat.NotebookNode]:
    return tagged_cells(book.cells, tag)


def tagged_cells(cells: list[nbformat.NotebookNode], tag: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in cells if tag in cell.metadata.get("tags", [])]


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_every_notebook_has_exercises_with_folded_solutions(path):
    cells = nbformat.read(path, as_version=4).cells
    begin = next(place for place, cell in enumerate(cells) if cell.source.startswith("## Exercises"))
    kinds = ""
    for cell in cells[begin:]:
        tasks = re.findall(r"^(\d)\. ", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else []
        tags = set(cell.metadata.get("tags", [])) & {"exercise", "solution", "check"}
        kinds += "".join(tasks) + "".join(tag[0] for tag in tags)
    assert re.fullmatch(r"1esc2e?sc(3e?sc)?", kinds), f"tasks, exercise, solution and check cells: {kinds}"
    for number, cell in enumerate(tagged_cells(cells, "solution"), 1):
        assert cell.metadata.get("jupyter") == {"source_hidden": True}, "JupyterLab shows this solution at once"
        assert re.search(r"^answer = ", cell.source, re.MULTILINE), "a solution defines 'answer'"
        assert cell.metadata["vlmad"]["hint"].endswith(".")
        check = cells[cells.index(cell) + 1].source
        assert f'exercises.check_answer("{path.stem[:2]}", {number})' in check


@pytest.mark.parametrize(
    ("answer", "expected", "same"),
    [
        (0.7501, 0.75, True),
        (0.76, 0.75, False),
        (float("nan"), float("nan"), True),
        ("Gear ", "gear", True),
        ("linen", "gear", False),
        (["gear", 0.5], ("gear", 0.5), True),
        (["gear"], ["gear", "linen"], False),
        ({"linen", "gear"}, {"gear", "linen"}, True),
        (pd.DataFrame({"b": [1.0], "a": ["x"]}), pd.DataFrame({"a": ["x"], "b": [1.0]}), True),
        (pd.DataFrame({"a": ["y"]}), pd.DataFrame({"a": ["x"]}), False),
        (pd.Series([0.5], ["gear"]), {"gear": 0.5}, True),
        (None, 0.5, False),
    ],
)
def test_an_answer_is_compared_with_what_the_solution_computes(answer, expected, same):
    assert exercises.is_same(answer, expected) is same


def test_a_check_says_right_or_gives_the_hint(tmp_path, monkeypatch, capsys):
    tags = {"tags": ["solution"], "vlmad": {"hint": "Take the mean."}}
    cells = [nbformat.v4.new_code_cell("print('no')\nanswer = sum(values) / len(values)", metadata=tags)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "42_means.ipynb")
    monkeypatch.setattr(exercises, "NOTEBOOKS", tmp_path)
    for names in ({"answer": 2.0}, {"answer": 3.0}, {"answer": ...}, {}):
        exercises.check_answer("42", 1, {"values": [1, 2, 3], **names})
    right, wrong, *none = capsys.readouterr().out.splitlines()
    assert right == "Right." and wrong.endswith("Hint: Take the mean.")
    assert all(line.startswith("Not answered yet") for line in none)


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
