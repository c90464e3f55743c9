"""Sentences on wordings whose differences are too small to print; the rest is in test_sweeps."""

from __future__ import annotations

import pandas as pd

from vlmad_lib.analysis import prompt_variants


def test_a_difference_that_prints_as_nothing_is_not_told():
    base = {"base": "A", "measure": "pixel_auroc", "auroc": 0.8, "n": 3}
    rows = [
        {"variant": "A"},
        {"variant": "less", "difference": 0.0004, "low": 0.0003, "high": 0.0005},
        {"variant": "more", "difference": 0.01, "low": 0.005, "high": 0.015},
    ]
    told = prompt_variants.describe_prompt_differences(pd.DataFrame([base | row for row in rows]))
    assert "higher with more +0.010" in told and "less" not in told and "no difference shown for 1 of 2" in told
