"""The written formulas point at code that is there, and become maths that a browser shows by itself."""

from __future__ import annotations

from dataclasses import replace

import nbformat
import pytest
from conftest import ROOT

from vlmad_lib.evaluation import metrics
from vlmad_lib.reporting import formulas, pages


@pytest.mark.parametrize("one", [*formulas.WINCLIP, *formulas.ANOMALYCLIP], ids=lambda one: one.what[:30])
def test_the_line_of_a_formula_is_that_of_its_file(one):
    file, number, code = one.line()
    assert (ROOT / "vlmad_lib" / file).read_text().splitlines()[number - 1].strip() == code
    assert one.words in code


def test_what_becomes_of_a_map_of_patches_is_written():
    for formula, function in ((formulas.WINCLIP, metrics.upsample), (formulas.ANOMALYCLIP, metrics.framed_map)):
        assert function in [one.function for one in formula]
    assert "Gaussian of 4 pixels in a frame of 518" in formulas.written(formulas.ANOMALYCLIP)


def test_a_line_that_has_gone_or_is_not_alone_is_refused():
    for words in ("no such line", "normal"):
        with pytest.raises(ValueError, match="lines of prototypes"):
            replace(formulas.WINCLIP[0], words=words).line()


@pytest.mark.parametrize("kind", ["cell", "output"])
def test_maths_needs_no_script(kind, tmp_path):
    text = formulas.written(formulas.WINCLIP)
    cell = nbformat.v4.new_markdown_cell(text)
    if kind == "output":
        output = nbformat.v4.new_output("display_data", {"text/markdown": text})
        cell = nbformat.v4.new_code_cell("", outputs=[output], metadata={"tags": ["maths"]})
    soup = pages.body([cell], tmp_path / "x.ipynb")
    assert len(soup.select("math[display=block]")) == len(formulas.WINCLIP)
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
