"""What decides a kept result: the content of files, the source of code, the versions of libraries."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import types
from pathlib import Path

import pytest
from conftest import TINY, make_mvtec, small_profile
from test_wrong_input import refused

from vlmad_lib import config, digests, files, methods
from vlmad_lib.encoders import feature_store
from vlmad_lib.methods import winclip
from vlmad_lib.pipeline import run


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    """Each test begins as a new process does."""
    monkeypatch.setattr(digests, "_remembered", {})
    monkeypatch.setattr(digests, "_folders_read", set())


def test_a_digest_is_of_the_content_and_not_of_place_or_time(tmp_path):
    first, moved, other = (tmp_path / name for name in ("a.bmp", "b.bmp", "c.bmp"))
    first.write_bytes(b"one")
    moved.write_bytes(b"one")
    other.write_bytes(b"two")
    for path in (first, moved, other):
        os.utime(path, (1_600_000_000, 1_600_000_000))
    three = digests.digest_files(map(str, (first, moved, other)), tmp_path / "cache")
    assert three[0] == three[1] != three[2] and digests.digest_file("", tmp_path) == ""
    assert "does not exist" in refused(lambda: digests.digest_file(str(tmp_path / "none.bmp"), tmp_path))


def test_another_content_of_the_same_size_and_time_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED", -1.0)  # as if the file were old, so that its digest is remembered
    path = tmp_path / "a.bmp"
    path.write_bytes(b"one")
    os.utime(path, (1_600_000_000, 1_600_000_000))
    before = digests.digest_file(str(path), tmp_path)
    state = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == state:  # the clock of the file system ticks in milliseconds
        path.write_bytes(b"two")
        os.utime(path, (1_600_000_000, 1_600_000_000))
    assert digests.digest_file(str(path), tmp_path) != before


def test_a_digest_is_remembered_by_the_next_process_and_a_fresh_file_is_not(tmp_path, monkeypatch):
    path, cache, reads = tmp_path / "a.png", tmp_path / "cache", []
    path.write_bytes(b"one")
    digests.digest_files([str(path)], cache)
    assert not (cache / "contents").exists()  # it may change again within one tick of the clock
    monkeypatch.setattr(digests, "SETTLED", -1.0)
    kept = digests.digest_files([str(path)], cache)
    digests._remembered.clear()
    digests._folders_read.clear()
    read = digests.hashlib.file_digest
    monkeypatch.setattr(digests.hashlib, "file_digest", lambda *asked: reads.append(asked) or read(*asked))
    assert digests.digest_files([str(path)], cache) == kept and not reads
    next((cache / "contents").iterdir()).write_text("damaged")
    digests._remembered.clear()
    digests._folders_read.clear()
    assert digests.digest_files([str(path)], cache) == kept and len(reads) == 1


def test_a_move_or_a_touch_encodes_nothing_and_scores_nothing_again(tmp_path, monkeypatch):
    root, moved = make_mvtec(tmp_path / "data", ("plate",)), tmp_path / "elsewhere" / "data"
    before = run.run(small_profile(root, tmp_path / "cache")).scores
    shutil.copytree(root, moved, copy_function=shutil.copyfile)
    monkeypatch.setattr(winclip.WINCLIP, "score", None)
    monkeypatch.setattr(feature_store.Store, "_encode", None)
    after = run.run(small_profile(moved, tmp_path / "cache"))
    assert (after.scores.score == before.score).all() and str(moved) in after.scores.image[0]
    plates = after.framed(after.scores.iloc[:2])
    assert len(list(plates)) == 2


def test_an_exchanged_picture_of_equal_size_and_time_is_scored_again(tmp_path):
    root = make_mvtec(tmp_path / "data", ("plate",))
    images = sorted((root / "plate/test/good").iterdir())
    for path in images:
        os.utime(path, (1_600_000_000, 1_600_000_000))
    asked = small_profile(root, tmp_path / "cache", shots=[0])
    before = run.run(asked).scores.set_index("image").score
    first, second = images[0].read_bytes(), images[1].read_bytes()
    images[0].write_bytes(second)
    images[1].write_bytes(first)
    for path in images:
        os.utime(path, (1_600_000_000, 1_600_000_000))
    after = run.run(asked).scores.set_index("image").score
    assert after[str(images[0])] == before[str(images[1])] != before[str(images[0])]


def test_a_read_error_deletes_nothing(tmp_path, monkeypatch):
    root = make_mvtec(tmp_path / "data", ("plate",))
    asked = small_profile(root, tmp_path / "cache", shots=[0])
    before = run.run(asked).scores
    kept = sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    read_text, read_bytes = Path.read_text, Path.read_bytes

    def fail(read):
        def raising(path, *more, **how):
            if path.name == files.SUMS or path.suffix == ".npy":
                raise OSError(errno.EIO, "Input/output error")
            return read(path, *more, **how)

        return raising

    with monkeypatch.context() as broken:
        broken.setattr(Path, "read_text", fail(read_text))
        broken.setattr(Path, "read_bytes", fail(read_bytes))
        assert "cannot be read (input/output error)" in refused(lambda: run.run(asked))
        array = next(path for path in kept if path.parent.parent.parent.parent.name == "features")
        assert "nothing was deleted" in refused(lambda: files.read_array(array))
    assert all(path.is_file() for path in kept)
    assert run.run(asked).scores.equals(before)


def test_library_versions_are_in_the_keys_of_features_and_scores(tmp_path, monkeypatch, tiny_backbone):
    assert set(digests.list_versions(digests.ENCODING_LIBRARIES)) == set(digests.ENCODING_LIBRARIES)

    def places() -> list[Path]:
        chosen = methods.choose(config.Method(**TINY), small_profile(tmp_path, tmp_path))
        return [chosen.store(tmp_path, tiny_backbone).folder, run._code(chosen)]

    before = places()
    versions = digests.list_versions
    monkeypatch.setattr(digests, "list_versions", lambda names: versions(names) | {names[0]: "0"})
    assert all(new != old for new, old in zip(places(), before, strict=True))


def test_a_folder_in_the_place_of_a_file_is_called_one(tmp_path):
    root, folder = make_mvtec(tmp_path / "data", ("plate",)), tmp_path / "weights.pt"
    folder.mkdir()
    for spec in (TINY | {"weights": str(folder)}, TINY | {"method": "coop", "checkpoint": str(folder)}):
        asked = small_profile(root, tmp_path / "cache", methods=[spec], shots=[0])
        assert "it is a folder" in refused(lambda asked=asked: run.run(asked))


METHOD = """
from vlmad_lib.methods.winclip import WinCLIP

SIGN = {sign}  # {comment}


class Turned(WinCLIP):
    scores_draws_together = False

    def score(self, features, text, settings, grid, references=None):
        "{comment}"
        whole, anomaly_map = WinCLIP.score(features, text, settings, grid, references)
        return SIGN * whole, anomaly_map
"""


def test_a_changed_method_in_a_module_of_any_name_is_scored_again(tmp_path, monkeypatch):
    """Its score's sign is flipped in its own file, which no list of files names; a comment changes nothing."""
    asked = small_profile(make_mvtec(tmp_path / "data", ("plate",)), tmp_path / "cache", shots=[0])

    def auroc(sign: int, comment: str = "") -> float:
        file = tmp_path / "a_method_of_my_own.py"
        file.write_text(METHOD.format(sign=sign, comment=comment))
        module = types.ModuleType("a_method_of_my_own")
        module.__file__ = str(file)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(file.read_text(), str(file), "exec"), module.__dict__)
        monkeypatch.setitem(methods.METHODS, "winclip", module.Turned())
        for kept in (digests._digest_sources, digests._read_module):
            kept.cache_clear()
        return run.run(asked).metrics.image_auroc[0]

    first = auroc(1)
    assert auroc(-1) == pytest.approx(1 - first) and first != 0.5
    key = run._code(methods.choose(asked.methods[0], asked))
    auroc(-1, "another comment")
    assert run._code(methods.choose(asked.methods[0], asked)) == key
