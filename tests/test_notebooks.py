"""Every notebook through papermill as a report, and its cells on the profiles that are not the demo's."""

from __future__ import annotations

import json

import IPython.display
import matplotlib as mpl
import numpy as np
import pytest
import yaml
from bs4 import BeautifulSoup
from conftest import TINY, make_mvtec, paint

from vlmad_lib import ROOT, data, profile, report
from vlmad_lib.demo.data import write

NOTEBOOKS = profile.load("demo").notebooks


def write_profile(folder, **values):
    base = {"title": "Test", "cache": str(folder / "cache"), "evaluation_size": 60, "methods": [TINY], "shots": [0, 1]}
    path = folder / "test.yml"
    path.write_text(yaml.safe_dump(base | values))
    return path


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A report of all notebooks on two demo categories."""
    folder = tmp_path_factory.mktemp("report")
    write(folder / "demo", categories=["gear", "linen"], train=2, good=4, per_defect=3)
    path = write_profile(folder, dataset="mvtec", root=str(folder / "demo"), notice="Only a test.")
    code = report.main([str(path), "--out", str(folder / "out"), "-p", "sweep=true", "-p", "calibrate=true"])
    return code, folder / "out" / "latest"


def test_every_notebook_is_green(reported):
    code, folder = reported
    record = json.loads((folder / "run.json").read_text())
    assert {one["page"]: one["status"] for one in record["notebooks"]} == {f"{name}.html": "ok" for name in NOTEBOOKS}
    assert code == 0 and record["facts"]["backbones"][0]["random"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_pages_say_what_they_must(reported, name):
    page = BeautifulSoup((reported[1] / f"{name}.html").read_text(), "html.parser")
    text = page.get_text()
    assert "are random (random:0)" in text and "Only a test." in text
    assert all(len(picture["alt"]) > 20 and "without description" not in picture["alt"] for picture in page("img"))
    assert page("img") and page("table")
    findings = page.find(id="What-we-see").find_next("li").get_text()
    assert any(digit in findings for digit in "0123456789")


def run_cells(name: str, path, monkeypatch) -> list:
    """A notebook's cells in this process, without those a report leaves out; what they displayed."""
    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    for module in ("plots",):
        monkeypatch.setattr(f"vlmad_lib.{module}.display", shown.append)
    mpl.use("Agg")
    space = {}
    for cell in json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]:
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] == "code" and "skip-execution" not in tags:
            exec("".join(cell["source"]), space)
            if "parameters" in tags:
                space["profile"] = str(path)
    return shown


@pytest.fixture(params=["imported maps", "imported scores", "own folder", "only normal images", "tiles", "no words"])
def other_profile(request, tmp_path):
    """Profiles of other kinds than the demo's."""
    root = tmp_path / "data"
    if request.param == "own folder":
        for i in range(6):
            paint(root / "bracket" / "good" / f"{i}.png", i)
            paint(root / "bracket" / "dent" / f"{i}.png", 50 + i, spot=True)
        return write_profile(tmp_path, dataset="folder", root=str(root))
    if request.param == "only normal images":
        for i in range(6):
            paint(root / "good" / f"{i}.png", i)
        return write_profile(tmp_path, dataset="folder", root=str(root))
    make_mvtec(root, size=(90, 60) if request.param == "tiles" else (60, 60))
    values = {"dataset": "folder", "root": str(root)}
    if request.param == "tiles":
        return write_profile(tmp_path, **values)
    if request.param == "no words":
        specs = [TINY | {"method": name} for name in ("patchcore", "winclip", "spade")]
        return write_profile(tmp_path, **values, methods=specs, shots=[0, 1, "full"], seeds=[0, 1])
    table, _ = data.index(profile.check(profile.Profile, values | {"title": "x"}, "x"))
    rows = data.tested(table)
    outside = tmp_path / "outside"
    outside.mkdir()
    if request.param == "imported scores":
        lines = [f"{row.category},{row.defect},{row.image},{row.label}" for row in rows.itertuples()]
        (outside / "scores.csv").write_text("\n".join(["category,defect,image,score", *lines]))
    for category, part in rows.groupby("category"):
        if request.param == "imported maps":
            maps = {f"{row.defect}-{row.image[-7:-4]}": np.full((8, 8), row.label + 0.1) for row in part.itertuples()}
            np.savez(outside / f"{category}.npz", **maps)
    return write_profile(tmp_path, **values, methods=[], imports=[{"name": "other tool", "path": str(outside)}])


def test_notebooks_on_other_profiles(other_profile, monkeypatch):
    for name in NOTEBOOKS:
        assert run_cells(name, other_profile, monkeypatch), name
