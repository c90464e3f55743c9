"""Every notebook through papermill as a report."""

from __future__ import annotations

import json
import os
import re
from itertools import pairwise

import nbformat
import pytest
import torch
from bs4 import BeautifulSoup
from conftest import write_profile

from vlmad_lib import ROOT, config
from vlmad_lib.analysis import efficiency
from vlmad_lib.demo.data import write
from vlmad_lib.demo.training import card
from vlmad_lib.encoders import backbones
from vlmad_lib.methods import memory_bank
from vlmad_lib.reporting import report

NOTEBOOKS = config.load_profile("demo").notebooks


def test_the_demo_backbones_card_is_what_its_program_writes():
    """What page 00 shows of it: change vlmad_lib/demo/training/card.py, not the card."""
    weights = backbones.DEMO_WEIGHTS
    told = weights.with_suffix(".md").read_text(encoding="utf-8")
    assert told == card.card(weights, hold_out=True) and "Watched on" in told and "Chosen by" not in told


def test_every_page_leads_to_the_next():
    for name, following in pairwise(NOTEBOOKS):
        last = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells[-1].source
        assert last.startswith("## Next") and last.partition("(")[2].startswith(f"{following}.ipynb)"), name


def _keep_peak_memory(path, patch):
    """A figure in the place of what takes a process of its own, and has a test of its own."""
    patch.setattr(efficiency, "_peak", lambda *_: torch.tensor(100.0))
    chosen = config.load_profile(str(path))
    measured = [
        one for method in chosen.methods for one in (method, efficiency.halve(method), *memory_bank.twins(method))
    ]
    for spec in measured:
        backbone = backbones.load_backbone(spec.backbone, spec.weights, spec.precision)
        efficiency.measure_memory(chosen, spec, "", backbone)


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A report of all notebooks on two demo categories."""
    folder = tmp_path_factory.mktemp("report")
    write(folder / "demo", categories=["gear", "linen"], train=2, good=4, per_defect=3)
    path = write_profile(folder, dataset="mvtec", root=str(folder / "demo"), notice="Only a test.")
    pairs = ["sweep=true", "calibrate=true", "shift=true", "images=2", "sampled=2", "severities=[5]"]
    pairs += ["repeats=1", "workers=2"]
    with pytest.MonkeyPatch.context() as patch:
        if "PYTEST_XDIST_WORKER" in os.environ:  # threads that wait for a core that others have are slow
            patch.setenv("OMP_NUM_THREADS", "1")
            _keep_peak_memory(path, patch)
        code = report.main([str(path), "--out", str(folder / "out"), *(word for one in pairs for word in ("-p", one))])
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
    assert page("img") and page("table") or "Not run here" in text or "Not compared here" in text
    answer = page.select_one(".answer").get_text()
    assert any(digit in answer for digit in "0123456789")


@pytest.mark.parametrize("name", ["02_winclip", "03_anomalyclip"])
def test_what_is_computed_by_hand_is_what_the_library_computes(reported, name):
    cells = nbformat.read(reported[1] / "notebooks" / f"{name}.ipynb", as_version=4).cells
    texts = [output.get("text", "") for cell in cells for output in cell.get("outputs", [])]
    differences = re.findall(r"largest difference to the .*: (\S+)", "\n".join(texts))
    assert differences and all(float(difference) < 1e-4 for difference in differences)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_solutions_ran(reported, name):
    """An executed cell has a number; one that papermill left out has none."""
    cells = nbformat.read(reported[1] / "notebooks" / f"{name}.ipynb", as_version=4).cells
    solutions = [cell for cell in cells if "solution" in cell.metadata.get("tags", [])]
    assert len(solutions) > 1 and all(cell.execution_count for cell in solutions)
