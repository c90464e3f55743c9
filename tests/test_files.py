"""Kept files: whole or not at all, one process at a time where it matters, a sentence where nothing can be written."""

from __future__ import annotations

import errno
import io
import os
import select
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock, Timeout
from test_wrong_input import refused

from vlmad_lib import ROOT, files
from vlmad_lib.encoders import feature_store


def fill(partial):
    (partial / "a.txt").write_text("one")
    np.save(partial / "b.npy", np.arange(3))


def test_a_folder_comes_into_place_with_its_checksums(tmp_path):
    files.write_folder(tmp_path / "unit", fill)
    with warnings.catch_warnings(action="error"):
        assert files.is_intact(tmp_path / "unit") and not files.is_intact(tmp_path / "none")
    assert [path.name for path in tmp_path.iterdir()] == ["unit"]


@pytest.mark.parametrize("harm", ["change", "cut", "remove", "sums", "no sums"])
def test_a_damaged_folder_is_removed_and_it_is_said(tmp_path, harm):
    files.write_folder(tmp_path / "unit", fill)
    file, sums = tmp_path / "unit/a.txt", tmp_path / "unit/sums.json"
    work = {
        "change": lambda: file.write_text("two"),
        "cut": lambda: file.write_text("on"),
        "remove": file.unlink,
        "sums": lambda: sums.write_text("[1]"),
        "no sums": sums.unlink,
    }
    work[harm]()
    with pytest.warns(UserWarning, match="unit were damaged and are computed again"):
        assert not files.is_intact(tmp_path / "unit")
    assert not list(tmp_path.iterdir())


def test_what_another_process_finished_first_stays(tmp_path):
    files.write_folder(tmp_path / "unit", fill)
    before = (tmp_path / "unit/a.txt").stat().st_mtime_ns
    files.write_folder(tmp_path / "unit", lambda partial: (partial / "a.txt").write_text("late"))
    assert (tmp_path / "unit/a.txt").stat().st_mtime_ns == before and len(list(tmp_path.iterdir())) == 1


def test_what_fails_half_way_leaves_nothing(tmp_path):
    def broken(place):
        (place if place.is_dir() else place.parent).joinpath("a.txt").touch()
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        files.write_folder(tmp_path / "unit", broken)
    with pytest.raises(RuntimeError):
        files.replace_file(tmp_path / "b.txt", lambda path: (path.write_text("half"), broken(tmp_path / "x"))[0])
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_where_nothing_can_be_written_one_sentence_says_so(tmp_path):
    (tmp_path / "file").touch()
    for work in (files.replace_file, files.write_folder):
        refused(lambda work=work: work(tmp_path / "file/inside", fill), "file/inside could not be written", "is kept")


def test_only_one_process_makes_a_path(tmp_path):
    """The second waits for the first, and for no longer: a lock of a killed process is none."""
    code = "import sys, time; from pathlib import Path; from vlmad_lib import files\n"
    code += "with files.hold_lock(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "demo")], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout.readline().strip() == b"in"
    waiting = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "demo")], stdout=subprocess.PIPE, cwd=ROOT)
    assert not select.select([waiting.stdout], [], [], 1)[0]
    process.kill()
    process.wait()
    assert waiting.stdout.readline().strip() == b"in"
    with pytest.raises(Timeout):
        FileLock(tmp_path / ".demo.lock").acquire(blocking=False)
    waiting.kill()
    waiting.wait()
    with files.hold_lock(tmp_path / "demo"):
        pass


def test_of_two_claims_one_is_granted_and_no_file_stays(tmp_path):
    first, second = files.Claim(tmp_path / "unit"), files.Claim(tmp_path / "unit")
    assert first.take() and first.take() and not second.take()
    first.give_back()
    assert second.take()
    second.give_back()
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    assert files.Claim(tmp_path / "file/unit").take()  # where nothing can be written, whoever writes says so


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE])
def test_a_disk_that_fails_for_now_costs_no_kept_result(tmp_path, monkeypatch, number):
    files.write_folder(tmp_path / "unit", fill)
    files.write_array(tmp_path / "a.npy", np.arange(3))
    files.write_json(tmp_path / "a.json", [1])
    before = sorted(tmp_path.rglob("*"))

    def fail(file, *_, **__):
        raise OSError(number, os.strerror(number), str(file))

    computed = []
    reads = {
        "unit": lambda: files.is_intact(tmp_path / "unit"),
        "a.npy": lambda: feature_store.load_or_compute(tmp_path / "a.npy", lambda: computed.append(1)),
        "a.json": lambda: files.read_json(tmp_path / "a.json"),
    }
    for target in (io, Path):  # Path.read_bytes and read_text open by the one, our own code by the other
        for name, read in reads.items():
            with monkeypatch.context() as broken:
                broken.setattr(target, "open", fail)
                refused(read, name, os.strerror(number).lower(), "nothing was deleted")
    assert sorted(tmp_path.rglob("*")) == before and not computed and files.is_intact(tmp_path / "unit")


def test_what_is_missing_or_no_json_is_damaged(tmp_path):
    (tmp_path / "a.json").write_text("[1")
    for name in ("a.json", "none.json"):
        with pytest.raises(files.Damaged, match=name):
            files.read_json(tmp_path / name)
