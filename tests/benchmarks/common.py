"""What all benchmarks share: a row of the table, its bar, a clock."""

from __future__ import annotations

import time
from collections.abc import Callable

import pandas as pd


def row(name: str, value: float, unit: str = "", least: float | None = None, most: float | None = None) -> dict:
    """A figure with its bar in words, and whether it is kept."""
    bar = f"at least {least:.3g}" if least is not None else f"at most {most:.3g}" if most is not None else ""
    ok = (least is None or value >= least) and (most is None or value <= most)
    return {"name": name, "value": float(value), "unit": unit, "bar": bar, "ok": bool(ok)}


def seconds(work: Callable[[], object], repeats: int = 1) -> tuple[float, object]:
    """The least wall-clock seconds of some repeats, and what the work gave."""
    least, found = float("inf"), None
    for _ in range(repeats):
        began = time.perf_counter()
        found = work()
        least = min(least, time.perf_counter() - began)
    return least, found


def show(rows: list[dict]) -> int:
    """Print the rows; 1 where a bar is missed."""
    table = pd.DataFrame(rows)
    table["value"] = table["value"].map("{:.4g}".format)
    table["ok"] = ["" if not bar else "yes" if ok else "MISSED" for bar, ok in zip(table.bar, table.ok, strict=True)]
    print(table.to_string(index=False))
    return 0 if all(one["ok"] for one in rows) else 1
