"""A bar's estimate by a made-up clock, and the lines that stand in its place where nobody watches."""

from __future__ import annotations

import io

import pytest
from conftest import small_profile

from vlmad_lib.pipeline import progress, run, workload


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets, in place of the time."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_rest_is_estimated_from_work_since_the_first_result(clock):
    """Workers take 100 s to start; 10 images that are 9 each, then 10 that are 1 each, at 1 a second."""
    with progress.Bar(20, 100.0, desc="encode", unit="images", file=io.StringIO()) as bar:
        bar.work_of_one = 9.0
        assert bar.estimate_rest() is None and bar.format_dict["left"] == "?"
        clock[0] = 109
        bar.update()
        assert bar.estimate_rest() is None  # from one result nothing is known
        clock[0] = 109 + 4 * 9
        bar.update(4)
        assert bar.estimate_rest() == pytest.approx(100 - 45) and "5/20 images" in str(bar) and "<00:55" in str(bar)
        clock[0] = 190
        bar.update(5)
        bar.work_of_one = 1.0
        bar.update(10)
        assert bar.estimate_rest() == 0 and bar.work_done == bar.work


def test_lines_in_place_of_a_bar(monkeypatch, capsys):
    """The first after a minute, one a minute, none at the end."""
    now = [1000.0]
    monkeypatch.setattr(progress.Bar, "_time", lambda _: now[0], raising=False)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = progress.Bar(1000, lines=True, desc="encode", unit="images")
    bar._time = bar.__class__._time.__get__(bar)
    bar.start_t = bar.last_print_t = now[0]
    for _ in range(18):
        now[0] += 10
        bar.update(10)
    bar.close()
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" images")[0].split()[-1] for line in said] == ["60/1000", "120/1000", "180/1000"]
    assert "encode:" in said[0] and "<15:40]" in said[0] and "\r" not in "".join(said)


def test_work_is_shared_by_what_is_encoded(mvtec, tmp_path, monkeypatch):
    """The shares of all requests are the whole work, and an image that two methods want alike counts once."""
    shared = []
    share = workload.share_work
    monkeypatch.setattr(workload, "measure_peak", lambda *_: 50.0)
    monkeypatch.setattr(workload, "share_work", lambda *given: shared.append((given, share(*given))) or shared[-1][1])
    run.run(small_profile(mvtec, tmp_path / "cache", shots=[0, 1]), announce=True)
    (((parts, wanted, table), works),) = shared
    assert sum(works) == pytest.approx(sum(part.gflop for part in parts)) and len(works) == len(wanted) > 1
    assert share(parts, [*wanted, *wanted], table)[len(wanted) :] == [0.0] * len(wanted)
