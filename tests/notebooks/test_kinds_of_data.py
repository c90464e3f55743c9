"""Every legal kind of profile gives green notebooks: results with or without maps, masks or none, any categories.

The whole grid takes the better part of an hour and is marked slow; a few kinds that differ most run always.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from conftest import TINY, paint, write_profile
from test_other_profiles import NOTEBOOKS, run_cells

from vlmad_lib import config
from vlmad_lib.data import datasets

RESULTS = ("methods", "scores", "maps", "methods and scores", "methods and maps")
MASKS = ("all", "some", "none")
CATEGORIES = {
    "one": [{}],
    "two": [{}, {}],
    "one of two without masks": [{}, {"masks": "none"}],
    "one of two without good test images": [{}, {"good": 0}],
    "no good test images": [{"good": 0}],
    "one of two with defects alone": [{}, {"good": 0, "train": 0}],
    "defects alone": [{"good": 0, "train": 0}],
    "only normal images": [{"bad": 0}],
}
"""What each category of a kind lacks of three good train images, five good and four defective test images."""
OFTEN = [  # a kind of each sort that failed, on notebooks that need no encoding of their own
    ("defects alone", "all", "methods"),
    ("one of two with defects alone", "none", "scores"),
    ("one of two without masks", "all", "maps"),
]
QUICK = ["01_the_data", "04_category_type", "05_defect_contrast", "06_defect_type", "11_failures"]


def draw(root: Path, kind: str, masks: str) -> None:
    """The pictures of a kind of data, in MVTec AD's layout."""
    for number, changes in enumerate(CATEGORIES[kind]):
        what = {"train": 3, "good": 5, "bad": 4, "masks": masks} | changes
        base, seed = root / f"part_{number}", 1000 * number
        for split, count in (("train", what["train"]), ("test", what["good"])):
            for i in range(count):
                paint(base / split / "good" / f"{i:03}.png", seed + i + 200 * (split == "train"))
        for i in range(what["bad"]):
            masked = what["masks"] == "all" or what["masks"] == "some" and i % 2
            mask = base / "ground_truth/spot" / f"{i:03}_mask.png" if masked else None
            paint(base / "test/spot" / f"{i:03}.png", seed + 100 + i, spot=True, mask=mask)


def write_kind(folder: Path, kind: str, masks: str, results: str) -> Path:
    """A profile file of a kind of data and results; imports are random maps or scores."""
    draw(folder / "data", kind, masks)
    shots = [0] if "defects alone" in kind else [0, 1]
    values = {"dataset": "folder", "root": str(folder / "data"), "shots": shots}
    values["methods"] = [TINY] if "methods" in results else []
    index, _ = datasets.build_index(config.check_record(config.Profile, values | {"title": "x"}, "x"))
    rows, outside, stream = datasets.select_tested(index), folder / "outside", np.random.default_rng(0)
    outside.mkdir()
    if "scores" in results:
        lines = [f"{row.category},{row.defect},{row.image},{row.label + stream.random()}" for row in rows.itertuples()]
        (outside / "scores.csv").write_text("\n".join(["category,defect,image,score", *lines]))
    if "maps" in results:
        for category, part in rows.groupby("category"):
            maps = {
                f"{row.defect}-{Path(row.image).stem}": row.label + stream.random((8, 8)) for row in part.itertuples()
            }
            np.savez(outside / f"{category}.npz", **maps)
    if results != "methods":
        values["imports"] = [{"name": "other tool", "path": str(outside)}]
    return write_profile(folder, **values)


def drawn(figure, photo=False):
    """A figure laid out, which is where empty data fail, but not turned into pixels, which takes most of the time."""
    figure.draw_without_rendering()
    mpl.pyplot.close(figure)
    return "png", b"\x89PNG\r\n\x1a\n" + bytes(32)


def check(kind: str, masks: str, results: str, notebooks: list[str], folder: Path, monkeypatch) -> None:
    """As ``check_notebooks``, on data and results of one kind."""
    check_notebooks(write_kind(folder, kind, masks, results), notebooks, monkeypatch)


def check_notebooks(path: Path, notebooks: list[str], monkeypatch) -> None:
    """Every notebook ends on a profile, and shows no table of a header alone, no NaN and no *1 products*."""
    monkeypatch.setattr("vlmad_lib.reporting.figures.encode_figure", drawn)
    for name in notebooks:
        for one in run_cells(name, path, monkeypatch):
            if hasattr(one, "to_html"):
                html = one.to_html()
                assert "<td" in html and ">nan<" not in html.casefold(), f"{name}: {html[-500:]}"
            else:
                told = str(getattr(one, "data", ""))
                assert " 1 products" not in told and " 1 images" not in told and " nan" not in told, f"{name}: {told}"


@pytest.mark.parametrize(("kind", "masks", "results"), OFTEN)
def test_breakdowns_of_data_that_lack_something(kind, masks, results, tmp_path, monkeypatch):
    check(kind, masks, results, QUICK, tmp_path, monkeypatch)


GRID = [
    one
    for one in product(CATEGORIES, MASKS, RESULTS)
    if one[1] == "all" or one[0] not in ("one of two without masks", "only normal images")
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "masks", "results"), GRID)
def test_every_notebook_on_every_kind_of_data(kind, masks, results, tmp_path, monkeypatch):
    check(kind, masks, results, NOTEBOOKS, tmp_path, monkeypatch)
