"""What a run and its report cost besides the encoder: ``python tests/benchmarks/report_speed.py [--second-run]``.

Exits 1 where a bar is missed. Images are painted and weights are the demo's, so that every machine measures the same
work.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from common import row, seconds, show

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import make_mvtec, paint, small_profile

from vlmad_lib import ROOT, config, methods
from vlmad_lib.pipeline import run
from vlmad_lib.reporting import notebook_runner

SECOND_RUN = 90  # seconds of a demo report when everything is kept
CATEGORIES = ("plate", "cloth", "bolt", "cable")


def start_up(repeats: int = 3) -> list[dict]:
    """The fastest of a few fresh processes that import the library, and PyTorch alone."""
    rows = []
    for module in ("torch", "open_clip", "vlmad_lib.pipeline.run"):
        command = [sys.executable, "-c", f"import {module}"]
        taken = seconds(lambda command=command: subprocess.run(command, check=True), repeats)[0]
        rows.append(row(f"start Python and import {module}", taken, "s"))
    return rows


def notebook(folder: Path) -> list[dict]:
    """A notebook that does nothing, and one that imports what all notebooks do, through the report's own path."""
    rows = []
    for name, source in {"does nothing": "1", "imports run and plots": "from vlmad_lib import plots, run"}.items():
        book = folder / "book.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), book)
        taken = seconds(lambda book=book: notebook_runner.execute_notebook(book, folder / "out.ipynb", {}, folder))[0]
        rows.append(row(f"a notebook that {name}", taken, "s"))
    return rows


def kept(folder: Path, specs: list[config.Method]) -> list[dict]:
    """Bytes that each method keeps on disk of a square image, without and with references."""
    rows = []
    for spec in specs:
        settings = small_profile(folder, folder / f"kept {spec.name}", methods=[spec.model_dump()])
        chosen, backbone = methods.choose(settings.methods[0], settings), run._backbone(spec, settings)
        paint(folder / "one.png", 0, (240, 240))
        for shots in (0, 1) if chosen.method.few_shot else (0,):
            store = chosen.store(settings.path(settings.cache), backbone)
            store.fill([str(folder / "one.png")], chosen.method.array_names(chosen.settings, shots))
            size = sum(file.stat().st_size for file in store.folder.rglob("*.npy"))
            name = f"{spec.name}, {'with' if shots else 'without'} references: kept features of an image"
            rows.append(row(name, size / 1000, "kB"))
    return rows


def growth(folder: Path, specs: list[config.Method]) -> list[dict]:
    """Seconds of runs over categories, shots and images: the first encodes, the others score kept features."""
    root = make_mvtec(folder / "data", CATEGORIES, size=(240, 240))
    whole = {"methods": [spec.model_dump() for spec in specs], "evaluation_size": 240}
    base = small_profile(root, folder / "cache", **whole, categories=list(CATEGORIES), shots=[0, 4])

    def timed(name: str, **changes) -> dict:
        for part in ("units", "runs"):
            shutil.rmtree(folder / "cache" / part, ignore_errors=True)
        return row(name, seconds(lambda: run.run(base.model_copy(update=changes)))[0], "s")

    run._backbone(specs[0], base)  # its weights are read outside the clock
    rows = [timed("encode and score 4 categories of 8 + 4 images, 0 and 4 shots")]
    for count in (1, 2, 4):
        rows.append(timed(f"score {count} of them, 1 shot", categories=list(CATEGORIES[:count]), shots=[1]))
    rows += [timed(f"score 4 categories, {shots} shots", shots=[shots]) for shots in (0, 1, 4)]
    rows.append(row("the same run again", seconds(lambda: run.run(base.model_copy(update={"shots": [4]})))[0], "s"))
    return rows


def second_run(folder: Path) -> list[dict]:
    """A demo report when everything is kept: the first one, not timed, sees to that."""
    command = [sys.executable, "-m", "vlmad_lib", "report", "demo", "--out", str(folder / "out")]
    taken = [seconds(lambda: subprocess.run(command, check=True, cwd=ROOT, capture_output=True))[0] for _ in range(2)]
    return [row("the demo report, everything kept", taken[1], "s", most=SECOND_RUN)]


def measure(long: bool = False) -> list[dict]:
    """All rows; ``long`` adds the demo report's second run, which takes minutes where its first has not been made."""
    specs = config.load_profile("demo").methods
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [*start_up(), *notebook(folder), *kept(folder, specs), *growth(folder, specs)]
        return rows + (second_run(folder) if long else [])


def main() -> int:
    """Print the table; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--second-run", action="store_true", help="time a demo report whose first run has been made")
    return show(measure(parser.parse_args().second_run))


if __name__ == "__main__":
    sys.exit(main())
