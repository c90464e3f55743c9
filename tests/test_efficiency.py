"""What methods cost: operations counted, sentences from made-up timings, the effect of bf16."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, small_profile

from vlmad_lib import data, efficiency, methods, run
from vlmad_lib.profile import Method


def counted(kind: str, overrides: dict | None = None, shots: int = 0) -> float:
    spec = Method(method=kind)
    chosen = methods.Chosen(spec, methods.METHODS[kind].settings("paper", overrides))
    return efficiency.gflop(chosen, spec.backbone, shots)


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
    monkeypatch.setattr(efficiency, "SHAPES", [(10, 10, 10)])
    monkeypatch.setattr(efficiency, "_seconds", lambda call: next(times))
    assert efficiency.peak("fp32", repeats=2) == pytest.approx(2 * 1000 / 0.5 / 1e9)


def made(**changes) -> pd.DataFrame:
    base = {"method": "A", "backbone": "net", "precision": "fp32", "shots": 2, "n": 9, "decode": 2.0, "score": 3.0}
    base |= {"upsample": 1.0, "encode": 94.0, "low": 90.0, "high": 99.0}
    half = base | {"method": "A, bf16", "precision": "bf16", "encode": 47.0, "low": 45.0, "high": 50.0}
    return pd.DataFrame([base, half | changes])


def test_sentences_follow_the_timings():
    told = efficiency.findings(made(), pd.DataFrame())
    assert "encoding is 94% of an image's 100 ms" in told and "3.0 ms with 2 shots (n = 9 timings)" in told
    assert "2.0 times as fast" in told and "busy" not in told
    slower = efficiency.findings(made(low=180.0, encode=190.0, high=400.0), pd.DataFrame())
    assert "0.5 times as fast" in slower and "imings of A, bf16 spread more than twofold" in slower


@pytest.mark.parametrize(("shift", "word"), [(0.2, "better"), (-0.2, "worse"), (0.0, "not decided")])
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
    effect = efficiency.precision_effect(results, [Method(name="A")])
    row = effect.iloc[0]
    assert row.largest == pytest.approx(0.003) and row.order == pytest.approx(1) and (row.n, row.images) == (4, 20)
    told = efficiency.findings(made(), effect)
    assert f": {word}" in told and "n = 20 images" in told and "n = 4" in told and "pixel" not in told


def test_a_method_is_measured_on_images_of_a_run(mvtec, tmp_path):
    profile = small_profile(mvtec, tmp_path / "cache")
    table, _ = run.index(profile)
    rows = data.tested(table).head(2)
    found = efficiency.measure(profile, profile.methods[0], rows, {"fp32": 100.0, "bf16": 200.0}, repeats=2)
    assert found["n"] == 4 and found["low"] <= found["encode"] <= found["high"]
    assert found["bare"] > 0
    assert found["share"] == pytest.approx(found["rate"] / 100)
    assert found["memory"] > 50 or np.isnan(found["memory"])
    features = run.view(profile, rows.iloc[0]).features
    names = methods.choose(profile.methods[0], profile).module.arrays(methods.winclip.settings(), 1)
    assert found["disk"] >= sum(features[name].numel() * 2 for name in names if name in features) / 1e3
    table = efficiency.cost_table(pd.DataFrame([found]))
    assert "n = 4" in table["encode, ms per image"].iloc[0] and float(table["GFLOP per image"].iloc[0]) >= 0
    assert float(efficiency.space_table(pd.DataFrame([found]))["kept, kB per image"].iloc[0]) > 0
    assert float(efficiency.time_table(pd.DataFrame([found]))["score"].iloc[0]) >= 0


def test_published_figures_name_their_hardware():
    known = efficiency.published()
    assert (known["ms per image"] > 0).all() and known.hardware.str.contains("RTX 3090").any()
    rate = known[(known.method == "AnomalyCLIP") & (known.hardware == "RTX 3090")]["ms per image"].iloc[0]
    assert rate == pytest.approx(1000 / 8.92, abs=0.1)


def test_bf16_is_another_method_of_the_same_run():
    spec = Method.model_validate(TINY)
    assert efficiency.halved(spec).precision == "bf16" and efficiency.halved(spec).name == "WinCLIP, bf16"


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
