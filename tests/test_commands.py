"""Command lines end in one sentence that says what happened, whatever refuses."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest
from test_wrong_input import refused

from vlmad_lib import InputError, commands, files
from vlmad_lib.reporting import decide, exercises, report


class Refused(OSError):
    """As the HTTP client that the hub is asked by raises: an error of the system without a number."""


Refused.__module__ = "requests.exceptions"


class OutOfMemoryError(RuntimeError):
    """As PyTorch raises."""


def hub() -> Exception:
    """What the hub's client makes of a network that is away: an error of a file, without its name."""
    try:
        try:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        except OSError:
            raise FileNotFoundError("Failed to download file (model.bin). " + "Please check. " * 40) from None
    except OSError as error:
        return error


CASES = {
    "no network for the hub": (hub(), 2, ["network does not answer (failed to download file (model.bin)"]),
    "nothing named": (OSError("something is odd"), 2, ["The system refuses (something is odd); correct that"]),
    "a wrong key": (InputError("'root' is wrong; correct it."), 2, ["'root' is wrong; correct it."]),
    "no network": (Refused("Max retries exceeded\nwith url: /"), 2, ["network does not answer", "max retries"]),
    "no name server": (socket.gaierror(-2, "Name or service not known"), 2, ["network does not answer", "name or"]),
    "a refused connection": (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), 2, ["network does not"]),
    "a folder of others": (
        PermissionError(errno.EACCES, "Permission denied", "/x/good"),
        2,
        ["/x/good cannot be used"],
    ),
    "a full disk": (OSError(errno.ENOSPC, "No space left on device", "/x/a"), 2, ["/x/a could not be written", "room"]),
    "a lost disk": (OSError(errno.EIO, "Input/output error", "/x/a.png"), 2, ["/x/a.png cannot be used", "that disk"]),
    "memory": (MemoryError(), 2, ["memory does not suffice", "'workers'"]),
    "memory of PyTorch": (OutOfMemoryError("CUDA"), 2, ["memory does not suffice", "cuda"]),
    "memory of a CPU": (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, ["memory does not suffice"]),
    "Ctrl-C": (KeyboardInterrupt(), 130, ["Interrupted"]),
}


@pytest.mark.parametrize("name", CASES)
def test_every_refusal_is_one_sentence_with_its_cause(name, capsys):
    error, code, parts = CASES[name]

    def work():
        raise error

    assert commands.run_command(work) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.endswith(".\n") and "Traceback" not in said
    assert all(part in said for part in parts), said
    assert name == "a full disk" or "could not be written" not in said


def test_a_fault_of_the_program_is_said_and_its_traceback_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands.tempfile, "tempdir", str(tmp_path))
    assert commands.run_command(lambda: {}["lost"]) == 3
    said = capsys.readouterr().err
    [place] = tmp_path.iterdir()
    assert "a fault of vlmad, not of your input (KeyError: 'lost')" in said and str(place) in said
    assert "Traceback" not in said and "KeyError: 'lost'" in place.read_text()
    monkeypatch.setattr(commands.tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert commands.run_command(lambda: {}["lost"]) == 3 and "report it" in capsys.readouterr().err


def test_exit_codes_of_work_pass():
    assert [commands.run_command(lambda code=code: code) for code in (0, 1)] == [0, 1]


@pytest.mark.parametrize("work", [decide.main, report.main])
def test_both_command_lines_end_so(work, monkeypatch, tmp_path, capsys):
    def broken(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "/x/mine.yml")

    monkeypatch.setattr("vlmad_lib.config.load_profile", broken)
    more = [str(tmp_path / "new")] if work is decide.main else []
    assert work(["own_images", *more, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("/x/mine.yml cannot be used (permission denied)")


def test_copies_that_cannot_be_written_are_said(monkeypatch, capsys):
    def broken(*_):
        raise PermissionError(errno.EACCES, "Permission denied", "/x/exercises")

    monkeypatch.setattr(exercises, "write", broken)
    assert exercises.main() == 2 and "/x/exercises cannot be used" in capsys.readouterr().err


def test_only_what_writing_a_path_meets_is_said_of_it(tmp_path):
    """A picture that may not be read and a network that is away are no full disk."""
    out, denied = tmp_path / "out", "Permission denied"
    own = [out, out / "a/b", tmp_path, tmp_path / ".out.1234", None]
    errors = [PermissionError(errno.EACCES, denied, str(name)) for name in own if name]
    errors += [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EROFS, "Read-only", "/elsewhere")]
    for error in errors:
        refused(lambda error=error: _raise_within(out, error), f"{out} could not be written", "is kept")
    foreign = [PermissionError(errno.EACCES, denied, "/data/good/000.png"), ConnectionError("away"), Refused("away")]
    foreign += [
        PermissionError(errno.EACCES, denied, str(tmp_path / "other")),
        OSError(errno.EIO, "Input/output error"),
    ]
    for error in foreign:
        with pytest.raises(type(error)):
            _raise_within(out, error)


def _raise_within(path: Path, error: OSError) -> None:
    with files.name_write_errors(path):
        raise error
