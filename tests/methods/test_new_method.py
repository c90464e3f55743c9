"""The method that CONTRIBUTING.md adds as an example, run as it stands there."""

from __future__ import annotations

import importlib
import re
import sys

import numpy as np
import pytest
from conftest import TINY

from vlmad_lib import ROOT, InputError, config, methods
from vlmad_lib.pipeline import run


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The example's class, from a file of its own, registered."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n((?:(?!```).)*class MeanDistance.*?)```", text, re.DOTALL)
    (tmp_path / "mean_distance.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    mean_distance = importlib.import_module("mean_distance")
    monkeypatch.setitem(methods.METHODS, "mean_distance", mean_distance.MeanDistance())
    yield mean_distance.MeanDistance
    del sys.modules["mean_distance"]


def test_a_method_is_one_file_and_one_line(example, tmp_path):
    """It scores images of the demo, has no maps and is called by its key."""
    changes = {
        "methods": [TINY | {"method": "mean_distance"}],
        "categories": ["chip"],
        "shots": [0, 2],
        "seeds": [0],
        "workers": 1,
    }
    found = run.run(config.load_profile("demo", changes | {"cache": str(tmp_path / "cache")}))
    assert found.metrics.method.tolist() == ["mean_distance"] and found.metrics.shots.tolist() == [2]
    assert 0 <= found.metrics.image_auroc[0] <= 1 and np.isfinite(found.scores.score).all()
    assert found.metrics.pixel_auroc.isna().all() and set(found.scores.map_file) == {""}
    assert found.headline().method.tolist() == ["mean_distance, 2-shot"]
    with pytest.raises(InputError, match="no maps"):
        found.maps(found.scores)


def test_what_a_method_lacks_is_said(example):
    with pytest.raises(TypeError, match="abstract method"):
        type("Nothing", (example.__base__,), {"key": "nothing"})()
    method = example()
    with pytest.raises(InputError, match="mean_distance has no preset 'study'; use paper"):
        method.settings("study")
    with pytest.raises(InputError, match="mean_distance settings: unknown key 'windows'"):
        method.settings("paper", {"windows": [2]})
    with pytest.raises(InputError, match="no method 'none'; choose one of winclip, .*mean_distance"):
        methods.choose(config.Method(method="none"), None)
