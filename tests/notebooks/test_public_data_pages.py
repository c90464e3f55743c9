"""Notebooks on a small folder in the layout of each public data set, with the demo's weights."""

from __future__ import annotations

import pytest
from conftest import write_profile
from test_kinds_of_data import check_notebooks
from test_public_datasets import FINDINGS_ALONE, MAKERS

NOTEBOOKS = ["00_start_here", "01_the_data", "04_category_type", "17_which_method"]
METHODS = [{"method": "winclip", "backbone": "demo", "weights": "demo"}]


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_notebooks_on_each_layout(name, tmp_path, monkeypatch):
    """Zero-shot and, where normal images can be held out, with references."""
    MAKERS[name](tmp_path / "data")
    shots = [0] if name in FINDINGS_ALONE else [0, 1]
    values = {"dataset": name, "root": str(tmp_path / "data"), "methods": METHODS, "shots": shots}
    check_notebooks(write_profile(tmp_path, **values), NOTEBOOKS, monkeypatch)
