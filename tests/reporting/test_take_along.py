"""What a reader takes along: figures as vector files, tables as text."""

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest

from vlmad_lib import InputError, tables
from vlmad_lib.reporting import figures, pages


@pytest.fixture
def shown(monkeypatch):
    """What notebooks display, in their order."""
    outputs = []
    monkeypatch.setattr(figures, "display", lambda data, **how: outputs.append((data, how["metadata"])))
    yield outputs
    figures.use_style()


def _profile(folder, **keys):
    file = folder / "own.yml"
    lines = {"title": "Own", "dataset": "folder", "root": str(folder)} | keys
    file.write_text("".join(f"{key}: {value}\n" for key, value in lines.items()), encoding="utf-8")
    return file


@pytest.mark.parametrize(("kind", "begins"), [("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_figures_are_attached_in_the_profiles_format_and_written_as_files(kind, begins, shown, tmp_path):
    figures.use_style(_profile(tmp_path, figures=kind))
    for number in range(2):
        figure, axes = plt.subplots()
        axes.plot([0, number])
        figures.show(figure, f"line {number}")
    outputs = [nbformat.v4.new_output("display_data", data, metadata=metadata) for data, metadata in shown]
    cells = [nbformat.v4.new_code_cell(outputs=outputs)]
    taken = pages.take_figures(cells, tmp_path / "figures", "05_contrast")
    assert taken == [
        {"file": f"figures/05_contrast-{number + 1}.{kind}", "alt": f"line {number}"} for number in range(2)
    ]
    contents = [(tmp_path / row["file"]).read_bytes() for row in taken]
    assert all(content.startswith(begins) for content in contents) and contents[0] != contents[1]
    assert all(set(output.data) == {"image/png", "text/plain"} for output in cells[0].outputs)


def test_without_a_format_pages_have_pictures_alone(shown, tmp_path):
    figures.use_style(_profile(tmp_path))
    figures.show(plt.figure(), "nothing")
    ((data, metadata),) = shown
    assert set(data) == {"image/png", "text/plain"} and metadata == {"image/png": {"alt": "nothing"}}
    assert pages.take_figures([], tmp_path, "05") == []


def test_a_table_as_text():
    frame = pd.DataFrame({"a|b": ["x|y", "50 %"], "shots": [0, 4], "image_auroc": [0.12345, float("nan")]})
    assert tables.format_table(frame.rename(columns={"a|b": "name"}), digits=2) == (
        "| name | shots | image AUROC |\n| --- | --- | --- |\n| x\\|y | 0 | 0.12 |\n| 50 % | 4 |  |\n"
    )
    latex = tables.format_table(frame, "latex")
    assert r"\toprule" in latex and "image AUROC" in latex and r"50 \% & 4 &  \\" in latex and "0.123" in latex
    with pytest.raises(InputError, match="'html'.*'markdown' or 'latex'"):
        tables.format_table(frame, "html")
