"""The written formulas point at code that is there, and become maths that a browser shows by itself."""

from __future__ import annotations

import re

import nbformat
import pytest
from conftest import ROOT

from vlmad_lib.encoders import prompts
from vlmad_lib.reporting import formulas, pages

CODE = re.compile(r"^`(.+?)`, line (\d+): `(.+)`$", re.MULTILINE)


@pytest.fixture(scope="module", params=["02_winclip", "03_anomalyclip"])
def text(request) -> str:
    """What the cell of formulas of a notebook shows."""
    cells = nbformat.read(ROOT / "notebooks" / f"{request.param}.ipynb", as_version=4).cells
    (imports,) = [cell.source for cell in cells if "import figures, formulas" in cell.source]
    (formula_cell,) = [cell.source for cell in cells if "maths" in cell.metadata.get("tags", [])]
    names, shown = {}, []
    exec(imports, names)
    exec(formula_cell, names | {"display": lambda markdown: shown.append(markdown.data)})
    return shown[0]


def test_the_line_of_a_formula_is_that_of_its_file(text):
    lines = CODE.findall(text)
    assert len(lines) == text.count("$$") / 2 >= 11
    for file, number, code in lines:
        assert (ROOT / "vlmad_lib" / file).read_text().splitlines()[int(number) - 1].strip() == code


def test_what_becomes_of_a_map_of_patches_is_written(text):
    assert "return F.interpolate" in text
    if "V-V attention" in text:
        assert "Gaussian of 4 pixels in a frame of 518" in text


def test_a_line_that_has_gone_or_is_not_alone_is_refused():
    for words in ("no such line", "normal"):
        with pytest.raises(ValueError, match="lines of prototypes"):
            formulas.find_line(prompts.prototypes, words)


@pytest.mark.parametrize("kind", ["cell", "output"])
def test_maths_needs_no_script(kind, text, tmp_path):
    cell = nbformat.v4.new_markdown_cell(text)
    if kind == "output":
        output = nbformat.v4.new_output("display_data", {"text/markdown": text})
        cell = nbformat.v4.new_code_cell("", outputs=[output], metadata={"tags": ["maths"]})
    soup = pages.body([cell], tmp_path / "x.ipynb")
    assert len(soup.select("math[display=block]")) == text.count("$$") / 2
    assert "$" not in soup.get_text() and "\\frac" not in soup.get_text()
    assert soup.find("mfrac") and soup.find("msub")


def test_maths_from_data_is_harmless(tmp_path):
    texts = [r"$\href{javascript:alert(1)}{x}$", r"$\frac{$", r"$<img src=x onerror=alert(1)>$"]
    outputs = [nbformat.v4.new_output("display_data", {"text/markdown": text}) for text in texts]
    cell = nbformat.v4.new_code_cell("", outputs=outputs, metadata={"tags": ["maths"]})
    soup = pages.body([cell], tmp_path / "x.ipynb")
    assert not soup("img") and not soup.select("[href]") and "javascript" not in str(soup)
    assert "frac{" in soup.get_text()
    cell.metadata.tags = []  # as every cell that shows data
    soup = pages.body([cell], tmp_path / "x.ipynb")
    assert not soup("math") and all(text in soup.get_text() for text in texts)
