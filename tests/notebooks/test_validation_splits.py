"""Notebooks with the demo's weights on small folders in the layouts of MVTec AD 2 and MVTec LOCO AD."""

from __future__ import annotations

import pytest
from conftest import make_loco, make_mvtec_ad2, write_profile
from test_other_profiles import run_cells, unrendered

from vlmad_lib import config

MAKERS = {
    "mvtec2": lambda root: make_mvtec_ad2(root, ("can", "fabric"), 6),
    "loco": lambda root: make_loco(root, ("pushpins", "screw_bag"), 6),
}


def read_text(shown: list) -> str:
    return " ".join(one.to_html() if hasattr(one, "to_html") else str(getattr(one, "data", one)) for one in shown)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MAKERS))
def test_notebooks_on_small_folders_in_a_public_layout(name, tmp_path, monkeypatch):
    monkeypatch.setattr("vlmad_lib.reporting.figures.encode_figure", unrendered)
    root = MAKERS[name](tmp_path / "data")
    methods = [spec.model_dump(exclude_defaults=True) for spec in config.load_profile("demo").methods]
    path = write_profile(tmp_path, dataset=name, root=str(root), methods=methods, shots=[0, 1], seeds=[0])
    texts = {
        notebook: read_text(run_cells(notebook, path, monkeypatch))
        for notebook in ("00_start_here", "01_the_data", "04_category_type", "12_thresholds", "17_which_method")
    }
    assert all(texts.values())
    assert ("sPRO" in texts["04_category_type"]) == (name == "loco")
    assert "the data set's own validation pictures" in texts["12_thresholds"].replace("&#x27;", "'")
    assert "mean + 3 deviations" in texts["12_thresholds"]
    assert " images where MVTec" in texts["01_the_data"]  # the known counts
