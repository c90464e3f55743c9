"""What may happen to a run: it is killed, the disk is full, two run at once, names are hostile. Nothing is lost."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from conftest import make_mvtec, paint, small_profile, write_profile
from test_other_profiles import NOTEBOOKS, run_cells

from vlmad_lib import ROOT, config, files, tables
from vlmad_lib.evaluation import statistics
from vlmad_lib.methods import SETTINGS
from vlmad_lib.pipeline import results, run

pytestmark = pytest.mark.fault
BOOKS = ["00_start_here", "01_the_data"]


def command(file: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "vlmad_lib", "report", str(file), "--out", str(out)]


def start(file: Path, out: Path, before: Callable | None = None, prefix: tuple[str, ...] = ()) -> subprocess.Popen:
    """A report in a process and a session of its own; what it says goes to a file beside its profile."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with log_of(file, out).open("w") as log:
        how = {"env": environment, "preexec_fn": before, "start_new_session": True, "stdout": log, "stderr": log}
        return subprocess.Popen([*prefix, *command(file, out)], **how)


def log_of(file: Path, out: Path) -> Path:
    return file.with_name(f"{out.name}.log")


def finish(process: subprocess.Popen, file: Path, out: Path) -> tuple[int, str]:
    """Exit code and what a process said."""
    return process.wait(timeout=1800), log_of(file, out).read_text()


def report(file: Path, out: Path, **how) -> tuple[int, str]:
    return finish(start(file, out, **how), file, out)


def read_tables(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    return tuple(pd.read_parquet(folder / f"{name}.parquet") for name in ("scores", "metrics"))


def equal(folder: Path, other: Path) -> None:
    """Two reports rest on the same numbers, to the last bit, and all their pages are whole."""
    for one, same in zip(read_tables(folder), read_tables(other), strict=True):
        pd.testing.assert_frame_equal(one, same, check_exact=True)
    for place in (folder, other):
        assert all(page.read_text().rstrip().endswith("</html>") for page in place.glob("*.html"))


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """A data set, and the report of it that nothing happened to."""
    folder = tmp_path_factory.mktemp("calm")
    make_mvtec(folder / "data")
    file = write_profile(folder, dataset="folder", root=str(folder / "data"), notebooks=BOOKS, workers=2)
    code, said = report(file, folder / "out")
    assert code == 0, said
    return folder


def beside(calm: Path, folder: Path) -> Path:
    """The same profile with a cache of its own."""
    values = config.yaml.safe_load((calm / "test.yml").read_text())
    return write_profile(folder, **values | {"cache": str(folder / "cache")})


def test_killed_at_ten_moments(calm, tmp_path):
    """kill -9 at ten moments from the first encoded picture to the last page, one after the other on one cache."""
    file, cache, chance = beside(calm, tmp_path), tmp_path / "cache", np.random.default_rng(0)
    whole = {kind: len(list((calm / "cache").glob(kind))) for kind in ("features/*/*/*/*.npy", "units/[!.]*")}
    moments = [("cache/text/*.npy", 1)]  # (what there is when the process is killed, how many of them)
    for kind, total in whole.items():
        moments += [(f"cache/{kind}", int(total * share)) for share in sorted(chance.uniform(0.05, 0.95, 3))]
    moments += [("out{}/*/profile.yml", 1), ("out{}/*/notebooks/*.ipynb", 1), ("out{}/*/00_start_here.html", 1)]
    for number, (kind, count) in enumerate(moments):
        process = start(file, tmp_path / f"out{number}")
        while process.poll() is None and len(list(tmp_path.glob(kind.format(number)))) < max(1, count):
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        code, said = finish(process, file, tmp_path / f"out{number}")
        time.sleep(0.2)  # its workers go on a moment
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        assert code == -signal.SIGKILL, (kind, said)
    kept = {path: path.stat().st_mtime_ns for path in cache.glob("features/*/*/*/[!.]*.npy")}
    for path in kept:
        files.read_array(path)  # nothing half-written under its own name
    assert all(files.is_intact(unit) for unit in cache.glob("units/[!.]*"))
    code, said = report(file, tmp_path / "out")
    assert code == 0 and "damaged" not in said, said
    assert kept == {path: path.stat().st_mtime_ns for path in kept}  # nothing was encoded twice
    equal(tmp_path / "out/latest", calm / "out/latest")
    mine, theirs = read_tables(tmp_path / "out/latest")[0], read_tables(calm / "out/latest")[0]
    for one, other in zip(mine.map_file.unique(), theirs.map_file.unique(), strict=True):
        assert (cache / one).read_bytes() == (calm / "cache" / other).read_bytes()


@pytest.mark.parametrize("limit", [600, 6_000, 60_000])
def test_disk_full(calm, tmp_path, limit):
    """The disk takes no file longer than a limit: features, then results, then pages end in one sentence."""
    file = beside(calm, tmp_path)
    small = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    code, said = report(file, tmp_path / "full", before=small)
    assert code in (1, 2) and "Traceback" not in said and "could not be written" in said, said
    assert "too large" in said and str(tmp_path) in said and "what was finished is kept" in said, said
    assert all(files.is_intact(unit) for unit in (tmp_path / "cache/units").glob("[!.]*"))
    assert not list((tmp_path / "cache").rglob(".*"))  # no half-written file is left to fill the disk further
    code, said = report(file, tmp_path / "out")
    assert code == 0, said
    equal(tmp_path / "out/latest", calm / "out/latest")


@pytest.mark.parametrize("place", ["out", "cache"])
def test_folder_that_cannot_be_written(calm, tmp_path, place):
    """Reports' folder, or the cache, is read-only: one sentence names it, before anything is computed for a report."""
    prefix = ()
    if os.getuid() == 0:  # whom permissions do not stop, unless it gives up that right
        if not shutil.which("setpriv"):
            pytest.skip("as root this needs setpriv")
        prefix = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    file = beside(calm, tmp_path)
    (tmp_path / place).mkdir()
    (tmp_path / place).chmod(0o555)
    code, said = report(file, tmp_path / "out", prefix=prefix)
    assert code == 2 and "Traceback" not in said, said
    assert str(tmp_path / place) in said and "permission denied" in said and "name another folder" in said, said
    (tmp_path / place).chmod(0o755)


def test_two_at_once(calm, tmp_path):
    """Two reports at once on one cache and one folder of reports, from nothing."""
    file = beside(calm, tmp_path)
    (tmp_path / "other").symlink_to("out", target_is_directory=True)  # the same folder, so that each has its own log
    (tmp_path / "out").mkdir()
    places = [tmp_path / "out", tmp_path / "other"]
    both = [start(file, place) for place in places]
    ends = [finish(process, file, place) for process, place in zip(both, places, strict=True)]
    assert [code for code, _ in ends] == [0, 0] and not any("damaged" in said for _, said in ends), ends
    folders = [path for path in (tmp_path / "out").iterdir() if not path.is_symlink()]
    assert len(folders) == 2
    for folder in folders:
        equal(folder, calm / "out/latest")


HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "a \"b\" 'c' & $x^$ `d` {e} %s",
    "ä 部品 🙂; [l](javascript:alert(1))",
]


def test_hostile_names(tmp_path):
    """Categories, defects and files named in HTML, quotes, TeX, Markdown and every script; pages show them as text."""
    root = tmp_path / "da ta"
    for number, (name, defect) in enumerate(zip(HOSTILE[:2], HOSTILE[1:], strict=True)):
        for i in range(3):
            paint(root / name / "test/good" / f"{name}{i}.png", 100 * number + i)
            mask = root / name / "ground_truth" / defect / f"{defect}{i}.png"
            paint(root / name / "test" / defect / f"{defect}{i}.png", 100 * number + 50 + i, spot=True, mask=mask)
            paint(root / name / "train/good" / f"{i}.png", 100 * number + 80 + i)
    file = write_profile(tmp_path, dataset="folder", root=str(root), title=HOSTILE[0], notice=HOSTILE[0], workers=2)
    code, said = report(file, tmp_path / "out")
    assert code == 0, said
    pages = list((tmp_path / "out/latest").glob("*.html"))
    assert len(pages) == len(NOTEBOOKS)  # and the index, without the notebook on the study
    search = (ROOT / "reports/template/search.js").read_text().strip()
    for page in pages:
        soup = BeautifulSoup(page.read_text(), "html.parser")
        assert {one.text for one in soup("script")} <= {search}, page
        assert not soup.select("img:not([src^='data:']), [onerror], a[href^='javascript']"), page
        assert HOSTILE[0] in soup.get_text(), page


def test_links_out_of_the_data(tmp_path):
    """Links in the data: to a picture and a folder elsewhere they are followed, to nothing they are refused by name."""
    root, other = make_mvtec(tmp_path / "data", ("plate",)), tmp_path / "else where"
    chosen = small_profile(root, tmp_path / "cache", shots=[0])
    before = run.run(chosen).scores
    (root / "plate/test/good").rename(other)
    (root / "plate/test/good").symlink_to(other, target_is_directory=True)
    (root / "plate/loop").symlink_to(root, target_is_directory=True)
    again = run.run(chosen).scores
    assert again.score.tolist() == before.score.tolist()
    (other / "dangling.png").symlink_to(tmp_path / "nothing.png")
    with pytest.raises(run.InputError, match="dangling.png does not exist"):
        run.run(chosen)


# ---------------------------------------------------------------- a million rows

MILLION = 1_000_000
CATEGORIES, IMAGES = 20, 100


def million(folder: Path) -> results.Results:
    """Results of a million rows over two thousand real files: 500 variants, drawn scores, no maps."""
    small = make_mvtec(folder / "data", tuple(f"part{i:02}" for i in range(CATEGORIES)), train=1)
    for category in small.iterdir():
        for kind in ("good", "spot"):
            for i in range(4, IMAGES // 2):
                shutil.copy(category / "test" / kind / "000.png", category / "test" / kind / f"{i:03}.png")
        for i in range(4, IMAGES // 2):
            shutil.copy(
                category / "ground_truth/spot/000_mask.png", category / "ground_truth/spot" / f"{i:03}_mask.png"
            )
    one = run.run(small_profile(small, folder / "cache", shots=[0]))
    rows, draw = one.scores, np.random.default_rng(0)
    assert len(rows) == CATEGORIES * IMAGES
    count = MILLION // len(rows)
    scores = pd.concat([rows] * count, ignore_index=True)
    shots, seeds = np.divmod(np.arange(count), 100)
    for name, values in {"shots": shots, "seed": seeds, "variant": [f"v{i}" for i in range(count)]}.items():
        scores[name] = np.repeat(values, len(rows))
    scores = scores.assign(score=draw.normal(scores.label + scores.shots / 5).astype(float), map_file="")
    measured = pd.concat([one.metrics] * count, ignore_index=True)
    for name, values in {"shots": shots, "seed": seeds, "variant": [f"v{i}" for i in range(count)]}.items():
        measured[name] = np.repeat(values, CATEGORIES)
    aurocs = scores.groupby(["variant", "category"], sort=False)[["label", "score"]].apply(
        lambda part: results.metrics.image_metrics(part.label.to_numpy(), part.score.to_numpy())["image_auroc"]
    )
    keys = pd.MultiIndex.from_frame(measured[["variant", "category"]])
    measured["image_auroc"] = aurocs.reindex(keys).to_numpy()
    return results.Results(one.profile, one.index, scores, measured, one.facts, one.cache)


def test_a_million_rows(tmp_path, monkeypatch, record_property):
    """A scores table of a million rows: checked, summed up, and read by four notebooks."""
    found = million(tmp_path)
    assert len(found.scores) == MILLION
    taken = {}

    def timed(name: str, work: Callable):
        tracemalloc.start()
        began = time.perf_counter()
        value = work()
        taken[name] = time.perf_counter() - began, tracemalloc.get_traced_memory()[1] / 1e9
        tracemalloc.stop()
        return value

    timed("schema", lambda: results.describe_scores(SETTINGS).validate(found.scores))
    head = timed("headline", found.headline)
    assert len(head) == 5 and head["test images"].eq(CATEGORIES * IMAGES).all()
    groups = timed("by group", lambda: tables.average_by_group(found.metrics))
    assert set(groups.n) == {str(CATEGORIES)}
    low, high = timed("interval", lambda: statistics.macro_interval(found.scores[found.scores.shots == 0]))
    assert low < high
    monkeypatch.setattr(run, "run", lambda *_, **__: found)
    file = write_profile(tmp_path, dataset="folder", root=str(tmp_path / "data"), shots=[0, 1])
    for name in ("00_start_here", "04_category_type", "06_defect_type", "08_shot_count"):
        assert timed(name, partial(run_cells, name, file, monkeypatch))
    told = ", ".join(f"{name} {seconds:.1f} s {memory:.2f} GB" for name, (seconds, memory) in taken.items())
    record_property("tried", f"a scores table of {MILLION:,} rows: {told}")
    assert max(memory for _, memory in taken.values()) < 4
    assert max(seconds for seconds, _ in taken.values()) < 300
