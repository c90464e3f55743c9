"""What methods cost: timings of a small run, the effect of bf16 from made-up scores."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, small_profile

from vlmad_lib import methods
from vlmad_lib.analysis import comparison, efficiency
from vlmad_lib.config import Method
from vlmad_lib.data import datasets
from vlmad_lib.pipeline import run


def test_precisions_and_peaks_are_a_device_s_own(monkeypatch):
    seen = []
    monkeypatch.setattr(efficiency, "measure_peak", lambda *told: seen.append(told) or 7.0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated: emulated)
    gpu = torch.device("cuda")
    assert efficiency.measure_peaks(gpu) == {"fp32": 7.0, "tf32": 7.0, "fp16": 7.0} and seen[0] == ("fp32", gpu)
    assert efficiency.list_precisions()[0] == "fp32" and "tf32" not in efficiency.list_precisions()


@pytest.mark.parametrize(("shift", "word"), [(0.2, "higher"), (-0.2, "lower"), (0.0, "no difference shown")])
def test_the_effect_of_bf16_is_read_off_the_tables(shift, word):
    rows, scores = [], []
    for number, category in enumerate("abcd"):
        for name, more in (("A", 0.0), ("A, bf16", shift + 0.01 * (number % 2) * (shift != 0))):
            rows.append({"method": name, "category": category, "image_auroc": 0.6 + more, "pixel_auroc": np.nan})
            for image in range(5):
                score = 0.1 * image + (0.003 if name != "A" and image == 2 else 0.0)
                one = {"method": name, "category": category, "image": f"{category}{image}", "shots": 0, "seed": 0}
                scores.append(one | {"score": score})
    results = SimpleNamespace(scores=pd.DataFrame(scores), metrics=pd.DataFrame(rows))
    effect = efficiency.compare_precisions(results, [Method(name="A")])
    row = effect.set_index("measure").loc["image_auroc"]
    assert row.largest == pytest.approx(0.003) and row.order == pytest.approx(1) and (row.n, row.images) == (4, 20)
    assert comparison.verdict(row.low, row.high) == word and effect.difference.isna().tolist() == [False, True]


def test_a_method_is_measured_on_images_of_a_run(mvtec, tmp_path, monkeypatch):
    profile = small_profile(mvtec, tmp_path / "cache")
    table, _ = run.build_run_index(profile)
    rows = datasets.select_tested(table).head(2)
    written = []
    monkeypatch.setattr(
        methods.winclip.WINCLIP,
        "encode_text",
        lambda *inputs, text=methods.winclip.text: written.append(1) or text(*inputs),
    )
    found = efficiency.measure_costs(profile, profile.methods[0], rows, {"fp32": 100.0, "bf16": 200.0}, repeats=2)
    assert found["n"] == 4 and found["low"] <= found["encode"] <= found["high"]
    assert found["bare"] > 0 and found["text"] > 0 and len(written) == 1  # prompts are encoded once
    assert (found["device"], found["threads"]) == ("cpu", 1)
    assert found["share"] == pytest.approx(found["rate"] / 100)
    assert found["memory"] > 50 or np.isnan(found["memory"])
    features = run.view_image(profile, rows.iloc[0]).features
    names = methods.choose(profile.methods[0], profile).method.array_names(methods.winclip.settings(), 1)
    assert found["disk"] >= sum(features[name].numel() * 2 for name in names if name in features) / 1e3


def test_timings_are_shared_by_pages_of_a_report_and_measured_anew_later(mvtec, tmp_path, monkeypatch):
    profile, measured = small_profile(mvtec, tmp_path / "cache"), iter(range(1, 9))
    monkeypatch.setattr(efficiency, "_time_steps", lambda *inputs: {"rate": 50.0 * next(measured), "memory": np.nan})
    rows, spec = pd.DataFrame({"image": ["a.png"]}), profile.methods[0]
    first = efficiency.measure_costs(profile, spec, rows, {"fp32": 100.0}, repeats=1)
    again = efficiency.measure_costs(profile, spec, rows, repeats=2)
    assert (first["share"], first["rate"], again["rate"]) == (0.5, 50.0, 50.0) and np.isnan(again["share"])
    assert efficiency.measure_costs(profile, spec, rows, repeats=3)["rate"] == 100.0  # more timings were asked for
    monkeypatch.setattr(efficiency, "KEPT_FOR", -1.0)
    assert efficiency.measure_costs(profile, spec, rows, repeats=2)["rate"] == 150.0


def test_published_figures_name_their_hardware():
    known = efficiency.read_published()
    assert (known["ms per image"] > 0).all() and known.hardware.str.contains("RTX 3090").any()
    rate = known[(known.method == "AnomalyCLIP") & (known.hardware == "RTX 3090")]["ms per image"].iloc[0]
    assert rate == pytest.approx(1000 / 8.92, abs=0.1)


def test_bf16_is_another_method_of_the_same_run():
    spec = Method.model_validate(TINY)
    assert efficiency.halve(spec).precision == "bf16" and efficiency.halve(spec).name == "WinCLIP, bf16"


def test_plain_restatements_of_the_benchmark_give_the_same_features(tiny_backbone):
    import encode

    image = torch.randn(1, 3, tiny_backbone.image_size, tiny_backbone.image_size)
    found = methods.winclip.encode(tiny_backbone, image, ["class", "window_2", "window_3"])
    for batch in (1, 100):
        assert encode.apart(found, encode.plain_winclip(tiny_backbone, image, batch)) < 1e-5
    found = methods.anomalyclip.encode(tiny_backbone, image, ["class", "vv_last"])
    assert encode.apart(found, encode.plain_anomalyclip(tiny_backbone, image)) < 1e-5
    moved = {name: value + 0.01 for name, value in found.items()}
    assert encode.apart(moved, found) > 1e-4


def test_benchmark_rows_know_their_bars():
    import common

    assert common.row("x", 3, least=2)["ok"] and not common.row("x", 3, most=2)["ok"] and common.row("x", 3)["ok"]
    assert common.show([common.row("x", 3, "s", least=4)]) == 1 and common.show([common.row("x", 3, "s")]) == 0
