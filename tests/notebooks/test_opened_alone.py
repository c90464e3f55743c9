"""A notebook opened without the rest of the repository, as in Colab, fetches it where it is given an address."""

from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell

from vlmad_lib import ROOT

ALONE = ("00_start_here", "01_the_data", "02_winclip", "03_anomalyclip", "17_which_method")


def _first_code(name: str) -> nbformat.NotebookNode:
    book = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    return next(cell for cell in book.cells if cell.cell_type == "code")


def test_each_begins_with_the_same_cell_which_names_no_address_and_stands_in_no_report():
    cells = [_first_code(name) for name in ALONE]
    assert len({cell.source for cell in cells}) == 1 and 'repository = ""' in cells[0].source
    assert all({"remove", "skip-execution"} <= set(cell.metadata.tags) for cell in cells)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no repository to fetch")
@pytest.mark.parametrize("given", [True, False])
def test_it_fetches_and_installs_what_the_address_names_and_nothing_without_one(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shell, installed = InteractiveShell(), []
    shell.register_magic_function(installed.append, magic_name="pip")
    address = str(ROOT) if given else ""
    source = _first_code("00_start_here").source.replace('repository = ""', f'repository = "{address}"')
    shell.run_cell(source).raise_error()
    fetched = tmp_path / "vlmad"
    assert Path.cwd() == (fetched if given else tmp_path)
    assert (fetched / "notebooks" / "00_start_here.ipynb").is_file() == given
    assert installed == (["install --quiet --editable ."] if given else [])
