"""Formulas of the notebooks become maths that a browser shows by itself."""

from __future__ import annotations

import nbformat
import pytest
from conftest import ROOT

from vlmad_lib.reporting import pages


@pytest.mark.parametrize("name", ["02_winclip", "03_anomalyclip"])
def test_maths_needs_no_script(name, tmp_path):
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    cells = [nbformat.v4.new_markdown_cell(cell.source) for cell in cells if "$$" in cell.source]
    soup = pages.body(cells, tmp_path / "x.ipynb")
    blocks = sum(cell.source.count("$$") for cell in cells) / 2
    assert len(soup.select("math[display=block]")) == blocks > 2
    assert "$" not in soup.get_text() and "\\frac" not in soup.get_text()
    assert soup.find("mfrac") and soup.find("msub")


def test_maths_of_an_output_tagged_maths(tmp_path):
    output = nbformat.v4.new_output("display_data", {"text/markdown": r"$$t_a = \frac{1}{2}$$"})
    cell = nbformat.v4.new_code_cell("", outputs=[output], metadata={"tags": ["maths"]})
    soup = pages.body([cell], tmp_path / "x.ipynb")
    assert soup.select("math[display=block]") and soup.find("mfrac") and soup.find("msub")


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
