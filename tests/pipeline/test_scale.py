"""A run beyond one process: a dask cluster and joblib's workers give what one process gives."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from functools import wraps

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import make_mvtec, small_profile
from distributed import Client, LocalCluster
from test_wrong_input import refused

from vlmad_lib import ROOT
from vlmad_lib.encoders import feature_store
from vlmad_lib.methods import winclip
from vlmad_lib.pipeline import run


@pytest.fixture(scope="module")
def address():
    """A cluster of two processes on this machine, as the README asks for: one thread each."""
    with LocalCluster(n_workers=2, processes=True, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


def equal(first: run.Results, second: run.Results) -> None:
    """The same tables in the same order, and the same maps."""
    pd.testing.assert_frame_equal(first.scores.drop(columns="map_file"), second.scores.drop(columns="map_file"))
    pd.testing.assert_frame_equal(first.metrics, second.metrics)
    np.testing.assert_allclose(first.framed(first.scores), second.framed(second.scores), atol=1e-6)


def _elsewhere(work):
    """The same function by name, so that it can be sent to a worker, and a failure where it is called here."""

    @wraps(work)
    def fail(*args, **kwargs):
        pytest.fail(f"{work.__qualname__} ran in this process")

    return fail


def test_workers_share_the_cores(tmp_path, monkeypatch):
    """PyTorch heeds what joblib tells a worker process."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    processes = small_profile(tmp_path, tmp_path, workers=2).processes
    assert processes == min(2, joblib.cpu_count())
    found = joblib.Parallel(processes)(joblib.delayed(torch.get_num_threads)() for _ in range(4))
    assert processes == 1 or set(found) == {joblib.cpu_count() // 2}


def test_no_more_workers_than_cores(tmp_path, monkeypatch):
    """As in a report's kernels, which are told how many cores are theirs."""
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert small_profile(tmp_path, tmp_path, workers=8).processes == 1


@pytest.mark.slow
def test_the_manuals_run_on_a_cluster_equals_a_serial_run(tmp_path, address, monkeypatch):
    """Its lines as they stand, with this cluster's address and a profile on tiny data; nothing is computed here."""
    profile = small_profile(make_mvtec(tmp_path / "data"), tmp_path / "cluster", shots=[0, 1], seeds=[0, 1])
    (tmp_path / "tiny.yml").write_text(yaml.safe_dump(profile.model_dump()))
    section = (ROOT / "reports" / "README.md").read_text(encoding="utf-8").partition("## Beyond one machine")[2]
    lines = re.search(r"```python\n(.+?)```", section, re.DOTALL)[1]
    assert "tcp://scheduler:8786" in lines and '"mvtec"' in lines
    lines = lines.replace("tcp://scheduler:8786", address).replace('"mvtec"', repr(str(tmp_path / "tiny.yml")))
    found = {}
    with monkeypatch.context() as patch:
        for target, name in ((run, "_score"), (feature_store.Store, "fill"), (winclip.WINCLIP, "score")):
            patch.setattr(target, name, _elsewhere(getattr(target, name)))
        exec(lines, found)
    serial = run.run(profile.model_copy(update={"cache": str(tmp_path / "serial")}))
    equal(found["results"], serial)


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(tmp_path):
    """kill -9 of one of two workers while it encodes: the other goes on, and the numbers are those of a serial run."""
    profile = small_profile(make_mvtec(tmp_path / "data"), tmp_path / "cluster", shots=[0, 1])
    serial = run.run(profile.model_copy(update={"cache": str(tmp_path / "serial")}))
    kept = "features/*/*/*/[!.]*.npy"
    with LocalCluster(n_workers=2, processes=True, threads_per_worker=1, dashboard_address=None) as cluster:
        first = {worker.pid for worker in cluster.workers.values()}

        def kill() -> None:
            while not any((tmp_path / "cluster").glob(kept)):
                time.sleep(0.002)
            os.kill(min(first), signal.SIGKILL)

        killer = threading.Thread(target=kill)
        with Client(cluster), joblib.parallel_config("dask"):
            killer.start()
            found = run.run(profile)
        killer.join()
        assert {worker.pid for worker in cluster.workers.values()} != first
    equal(found, serial)
    assert len(list((tmp_path / "cluster").glob(kept))) == len(list((tmp_path / "serial").glob(kept)))
    assert not list((tmp_path / "cluster").rglob(".*.lock"))


def test_a_cluster_that_gives_up_is_one_sentence(tmp_path):
    """Errors of dask itself say what to do; those of the work pass as they are."""
    profile = small_profile(tmp_path, tmp_path)
    lost = type("KilledWorker", (Exception,), {"__module__": "distributed.scheduler"})

    refused(lambda: list(run._parallel(profile, fail_with, [(lost("task\n7"),)])), "KilledWorker: task 7", "is kept")
    with pytest.raises(ZeroDivisionError):
        list(run._parallel(profile, fail_with, [(ZeroDivisionError(),)]))
    assert list(run._parallel(profile, lambda _, *given: given, [(1, 2), (3,)])) == [(1, 2), (3,)]


def fail_with(_, error: Exception) -> None:
    raise error


def test_the_benchmark_counts_what_is_kept_of_an_image(tmp_path):
    """fp16 rows of 32 and 64 numbers, 136 bytes of header and checksum an array; patch tokens come with references."""
    import report_speed as benchmark

    rows = benchmark.kept(tmp_path, small_profile(tmp_path, tmp_path).methods)
    zero = 3 * 136 + 2 * 32 * (1 + 16 + 9)
    assert [one["value"] for one in rows] == [zero / 1000, (zero + 136 + 2 * 64 * 25) / 1000]
    missed = benchmark.row("slow", 91, "s", most=90)
    assert not missed["ok"] and missed["bar"] == "at most 90"
