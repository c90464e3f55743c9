"""Every notebook on other kinds of profile than the demo's, in this process."""

from __future__ import annotations

import ast
import json
import re

import matplotlib as mpl
import numpy as np
import pytest
from conftest import TINY, make_mvtec, paint, write_profile

from vlmad_lib import ROOT, config
from vlmad_lib.data import datasets
from vlmad_lib.methods import aprilgan, clip_baselines

NOTEBOOKS = config.load_profile("demo").notebooks


def unrendered(figure, photo=False):
    """A figure's picture without its pixels, which take most of the time; its parts were drawn."""
    mpl.pyplot.close(figure)
    return "png", b"\x89PNG\r\n\x1a\n" + bytes(32)


def run_cells(name: str, path, monkeypatch) -> list:
    """A notebook's cells in this process, without those a report leaves out; what they displayed."""
    shown = []
    for place in ("IPython.display.display", "vlmad_lib.reporting.figures.display"):
        monkeypatch.setattr(place, lambda *found, **_: shown.extend(found))
    # what this machine can do takes seconds to measure, and is the same on every profile
    monkeypatch.setattr("vlmad_lib.analysis.efficiency.measure_memory", lambda *_: 100.0)
    monkeypatch.setattr("vlmad_lib.analysis.efficiency.measure_peak", lambda *_, **__: 100.0)
    monkeypatch.setattr("vlmad_lib.pipeline.workload.measure_peak", lambda *_, **__: 100.0)
    monkeypatch.setattr("vlmad_lib.analysis.efficiency.count_gflop", lambda *_: 100.0)
    mpl.use("Agg")
    space = {}
    for cell in json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]:
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] == "code" and "skip-execution" not in tags:
            tree = ast.parse("".join(cell["source"]))
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None  # Jupyter displays its value
            exec(compile(tree, name, "exec"), space)
            value = eval(compile(ast.Expression(last.value), name, "eval"), space) if last else None
            shown.extend([] if value is None else [value])
            if "parameters" in tags:
                space["profile"] = str(path)
    return shown


@pytest.fixture(
    params=[
        *("imported maps", "only normal images"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("no words", "one picture", "imported scores", "own folder", "tiles")
        ),
    ]
)
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
    if request.param == "one picture":
        paint(root / "good" / "only.png", 0)
        return write_profile(tmp_path, dataset="folder", root=str(root), shots=[0])
    make_mvtec(root, size=(90, 60) if request.param == "tiles" else (60, 60))
    values = {"dataset": "folder", "root": str(root)}
    if request.param == "tiles":
        return write_profile(tmp_path, **values)
    if request.param == "no words":
        specs = [TINY | {"method": name} for name in ("patchcore", "winclip", "spade")]
        return write_profile(tmp_path, **values, methods=specs, shots=[0, 1, "full"], seeds=[0, 1])
    table, _ = datasets.build_index(config.check_record(config.Profile, values | {"title": "x"}, "x"))
    rows = datasets.select_tested(table)
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


BREAKDOWNS = ("04_category_type", "05_defect_contrast", "06_defect_type", "08_shot_count", "12_thresholds")


@pytest.mark.slow
def test_what_learned_otherwise_is_in_every_breakdown(tmp_path, tiny_backbone, monkeypatch):
    """APRIL-GAN, CoOp and CLIP alone: each breakdown shows them by name, and 09 varies their prompts."""
    make_mvtec(tmp_path / "data")
    aprilgan.write(aprilgan.Projections(4, *aprilgan.widths(tiny_backbone)), tmp_path / "a.pth", "visa")
    clip_baselines.write(clip_baselines.Context(tiny_backbone), tmp_path / "c.pth", "visa")
    monkeypatch.setattr("vlmad_lib.reporting.figures.encode_figure", unrendered)
    small = {"image_size": 80}
    specs = [
        {"method": "aprilgan", "checkpoint": str(tmp_path / "a.pth"), "settings": small | {"templates": "none"}},
        {"method": "coop", "checkpoint": str(tmp_path / "c.pth"), "settings": small},
        {"method": "clip", "settings": small},
    ]
    specs = [TINY | one for one in specs]
    path = write_profile(tmp_path, dataset="folder", root=str(tmp_path / "data"), methods=specs, shots=[0, 1])
    for name in (*BREAKDOWNS, "09_prompts"):
        shown = run_cells(name, path, monkeypatch)
        said = " ".join(one.to_html() if hasattr(one, "to_html") else str(getattr(one, "data", "")) for one in shown)
        named = {"APRIL-GAN"} if name == "08_shot_count" else {"APRIL-GAN", "CoOp", "CLIP"}  # it alone takes references
        assert name not in BREAKDOWNS or named <= set(re.findall(r"[\w-]+", said)), name


def test_notebooks_on_other_profiles(other_profile, request, monkeypatch):
    """Figures are rendered where they differ most from the demo's: of nothing but normal images."""
    if request.node.callspec.params["other_profile"] != "only normal images":
        monkeypatch.setattr("vlmad_lib.reporting.figures.encode_figure", unrendered)
    for name in NOTEBOOKS:
        assert run_cells(name, other_profile, monkeypatch), name
