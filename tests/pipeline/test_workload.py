"""What encoding takes: operations and bytes counted, rates of a clock made up, the sentence before a run."""

from __future__ import annotations

import re

import pandas as pd
import pytest
import torch
from conftest import TINY, make_mvtec, small_profile

from vlmad_lib import methods
from vlmad_lib.config import Method
from vlmad_lib.data import datasets
from vlmad_lib.encoders import devices
from vlmad_lib.pipeline import run, workload

HEAD = 512  # bytes of a kept file besides its numbers, at most


def counted(kind: str, overrides: dict | None = None, shots: int = 0) -> float:
    spec = Method(method=kind)
    chosen = methods.ChosenMethod(spec, methods.METHODS[kind].settings("paper", overrides))
    return workload.count_gflop(chosen, spec.backbone, shots)


def test_operations_are_those_of_the_specification():
    """Section 8 of the WinCLIP specification: 619 GFLOP, 49.6 of them for the whole image (without attention)."""
    whole = counted("winclip")
    assert whole == pytest.approx(619, rel=0.01)
    assert counted("winclip", {"windows": [2]}) + counted("winclip", {"windows": [3]}) - whole == pytest.approx(
        49.6, rel=0.04
    )
    assert counted("winclip", shots=1) - whole == pytest.approx(53.2 - 49.6, rel=0.08)


def test_what_nobody_reads_is_not_computed():
    """A forward pass and 19 blocks of V-V attention, less what the last block does for patches alone."""
    width, length, blocks = 1024, 1 + 37**2, 24
    attention, square = 4 * length**2 * width, 2 * length * width**2
    forward = blocks * (12 * square + attention)
    local = 19 * (attention + square)
    spared = attention + 9 * square  # attention, output projection and MLP of the last block's patches
    ends = 2 * 37**2 * width * (3 * 14**2 + 768)
    assert counted("anomalyclip") * 1e9 == pytest.approx(forward + local - spared + ends, rel=0.002)


def test_a_peak_is_that_of_the_faster_way(monkeypatch):
    times = iter([3.0, 2.0, 1.0, 0.5] + [9.0] * 100)
    monkeypatch.setattr(workload, "time_call", lambda call, device: next(times))
    assert workload.measure_peak("fp32", repeats=2, shapes=[(10, 10, 10)] * 2) == pytest.approx(2 * 1000 / 0.5 / 1e9)


def test_products_are_those_of_their_shape_and_precision():
    for work, call in workload.list_products("bf16", 4, 8, 6):
        found = call()
        assert work == 2 * 4 * 8 * 6 / 1e9 and found.shape == (4, 6) and found.dtype == torch.bfloat16
        assert (found == 9).all()
    assert workload.time_call(lambda: None) < 1


def planned(profile) -> list[workload.Part]:
    """The work before a run, as the run plans it."""
    table, _ = run.build_run_index(profile)
    wanted = run.list_variants(profile)
    _, jobs = run._plan(profile, wanted, dict(list(table.groupby("category", sort=False))))
    stores = [
        (one.store(profile.path(profile.cache), run._backbone(one.spec, profile), channels), names, paths)
        for one, _, channels, names, paths in run._encoding(profile, wanted, jobs, 3)
    ]
    return workload.plan_encoding(stores, table)


OBJECT = TINY | {"method": "anomalyclip", "name": "Tokens", "settings": {"prompts": "object", "image_size": 80}}


@pytest.mark.parametrize("methods_", [[TINY], [TINY | {"settings": {"fit": "tiles"}}, OBJECT]], ids=["one", "two"])
def test_what_a_run_writes_is_what_was_planned(tmp_path, methods_):
    """Long pictures too, which are several tiles."""
    root = make_mvtec(tmp_path / "data", size=(100, 60))
    profile = small_profile(root, tmp_path / "cache", methods=methods_)
    parts = planned(profile)
    run.run(profile)
    written = [file.stat().st_size for file in (tmp_path / "cache" / "features").rglob("*.npy")]
    least = sum(part.bytes for part in parts)
    assert least <= sum(written) <= least + HEAD * len(written)
    assert {len(part.paths) for part in parts} == {18 if part.store.encode.__module__.endswith("winclip") else 16
                                                  for part in parts}  # fmt: skip
    assert planned(profile) == []


def test_arrays_that_are_kept_are_not_counted(mvtec, tmp_path):
    profile = small_profile(mvtec, tmp_path / "cache", shots=[0])
    run.run(profile)
    more = small_profile(mvtec, tmp_path / "cache", shots=[0, 1])
    tested, drawn = sorted(planned(more), key=lambda part: -len(part.paths))
    assert (len(tested.paths), len(drawn.paths)) == (16, 2)  # these lack only what references are compared by
    assert tested.bytes / 16 < drawn.bytes / 2 and tested.gflop / 16 < drawn.gflop / 2


def sentence(profile, monkeypatch, rate: float, free: float = 1e15) -> str:
    monkeypatch.setattr(workload, "measure_peak", lambda *_: rate)
    monkeypatch.setattr(workload, "_free_bytes", lambda _: free)
    return workload.describe_encoding(planned(profile), profile.path(profile.cache))


def test_the_sentence_says_work_time_and_disk(mvtec, tmp_path, monkeypatch):
    profile = small_profile(mvtec, tmp_path / "cache")
    work = sum(part.gflop for part in planned(profile))
    told = sentence(profile, monkeypatch, work / 0.8 / 7200)  # GFLOP/s that take two hours
    assert "18 images to encode, " in told and "about 2 h on cpu (" in told and "reaches 80% of its" in told
    assert " TFLOP: " in told and "GFLOP/s in fp32" in told and "GB that are free" in told and "too little" not in told
    assert "alone" not in told and "alone" in workload.describe_encoding(planned(profile), tmp_path, others=True)
    assert "too little: free some of it, or set another 'cache'" in sentence(profile, monkeypatch, 1.0, free=1000)


def test_a_run_says_it_only_where_it_shows_progress_and_encodes(tmp_path, monkeypatch, capsys):
    measured = []
    monkeypatch.setattr(workload, "measure_peak", lambda *_: measured.append(1) or 50.0)
    profile = small_profile(make_mvtec(tmp_path / "data", ("plate",)), tmp_path / "cache")
    run.run(profile.model_copy(update={"cache": str(tmp_path / "silent")}))
    assert not measured and "to encode" not in capsys.readouterr().err
    run.run(profile, progress=True)
    said = capsys.readouterr().err
    assert len(measured) == 1 and "9 images to encode" in said and "for the pixels of plate (8 pictures)" in said
    run.run(profile.model_copy(update={"seeds": [0], "fpr_limit": 0.2}), progress=True)  # other units, same features
    assert len(measured) == 1 and "to encode" not in capsys.readouterr().err


def test_memory_is_said_of_the_largest_category(monkeypatch):
    """Two frames of 100 x 100 and 100 x 200 pixels at 8 bytes each, beside a window of counts and 60 MB of program."""
    rows = {"small": pd.DataFrame({"width": [50], "height": [50]}),
            "large": pd.DataFrame({"width": [50, 10], "height": [50, 20]})}  # fmt: skip
    monkeypatch.setattr(workload, "read_peak_memory", lambda: 6e7)
    monkeypatch.setattr(workload.pixel_ranking, "WINDOW", 10**7)
    told = workload.describe_memory([TINY["backbone"]] * 2, rows, 100, True, 2)
    weights = re.search(r" ([\d.]+) MB of weights", told)[1]
    assert told == (
        f"Memory of each of 2 processes: about 0.11 GB, 60 MB for the program, {weights} MB of weights and up to 40 MB "
        "for the pixels of large (2 pictures)."
    )
    many = {"large": pd.concat([rows["large"]] * 20_000)}
    assert "does without" in workload.describe_memory([TINY["backbone"]], many, 100, True, 1)
    assert "up to 2.6 MB for the pixels" in workload.describe_memory([TINY["backbone"]], many, 100, False, 1)
    monkeypatch.setattr(workload, "read_peak_memory", lambda: float("nan"))
    assert "besides the program" in workload.describe_memory([TINY["backbone"]], rows, 100, True, 1)
    monkeypatch.undo()
    assert 1e7 < workload.read_peak_memory() < 1e12


def test_free_bytes_are_known_before_the_cache_is_made(tmp_path):
    assert workload._free_bytes(tmp_path / "not" / "there") > 0


def test_benchmarks_are_counted_by_their_images(monkeypatch):
    monkeypatch.setattr(workload, "_count_method", lambda chosen, *_: (1000.0, 5 * 10**5))
    found = workload.estimate_benchmarks({"here": (1000.0, 0.5)}).set_index("images")
    counts = pd.read_csv(datasets.REFERENCE / "dataset_counts.csv")
    for name, part in counts.groupby("dataset"):
        if name in workload.BENCHMARKS:
            row = found.loc[f"{part.n_images.sum():,} (all)"]
            views = part.n_images.sum() * (3 if name == "VisA" else 2)  # WinCLIP cuts VisA's into two tiles
            assert row["data set"] == name and row.work == workload._operations(views * 1000.0)
            assert row.here == workload._duration(views * 2) and row["kept features"] == workload._size(views * 1e6)
    assert found["data set"].value_counts().to_dict() == dict.fromkeys(workload.BENCHMARKS, 2)


def test_machines_are_scaled_and_said_so(monkeypatch):
    monkeypatch.setattr(devices, "describe_device", lambda *_: "cuda (X)")
    peaks = {torch.device("cuda"): {"fp32": 6e4, "bf16": 9e5}, devices.CPU: {"fp32": 60.0}}
    here, scaled, gpu, told = workload.list_machines(peaks, 500.0).items()
    cores = torch.get_num_threads()
    assert here[1] == (60.0, 0.8) and here[0].startswith(f"{cores} core")
    assert scaled == ("16 cores, scaled, not measured", (60.0 / cores * 16, 0.8))
    assert gpu == ("cuda (X) in bf16, measured", (9e5, workload.ELSEWHERE)) and told[1][0] == 5e5
    assert len(workload.list_machines({devices.CPU: {"fp32": 1.0}})) == 2


def test_the_command_prints_a_table_and_refuses_what_is_no_rate(monkeypatch, capsys):
    monkeypatch.setattr(workload, "measure_peak", lambda *_: 100.0)
    monkeypatch.setattr(workload, "_count_method", lambda chosen, *_: (1000.0, 10**6))
    assert workload.main(["--gpu", "500"]) == 0
    told = capsys.readouterr().out
    assert "5,354 (all)" in told and "500 TFLOP/s, as told" in told
    assert workload.main(["--gpu", "-1"]) == 2 and "--gpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.3, "1 s"), (12.34, "12 s"), (89, "89 s"), (91, "1.5 min"), (39600, "11 h")]
)
def test_durations(seconds, told):
    assert workload._duration(seconds) == told


@pytest.mark.slow
def test_the_benchmark_of_a_device_times_every_stage_and_way(tmp_path):
    import device

    small = {"backbone": TINY["backbone"]}
    found = device.grid(devices.CPU, tmp_path, 1, 2, {"shots": [0, 1]}, (60, 60), **small)
    assert list(found) == ["decode", "encode", "score", "metrics"] and min(found.values()) > 0
    rows = {one["name"]: one for one in device.encoder("winclip", devices.CPU, {"fp32": 50.0}, **small)}
    told = next(name for name in rows if name.endswith("difference"))
    assert rows[told]["ok"] and rows[told]["value"] < 1e-5
    assert rows[told.replace(", difference", ", over plain")]["value"] > 0
    scaled = device.mvtec(devices.CPU, found, 2)
    assert scaled[0]["value"] == pytest.approx(found["decode"] * 1725 / 2)
