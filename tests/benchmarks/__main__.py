"""All benchmarks one after the other, as a table, a JSON file and a page: ``make bench``.

``python tests/benchmarks [NAME...] [--out DIR] [--second-run]`` runs those named, or all. Bars are ratios within one
run; a bar that is missed is told and makes the command exit 1.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import torch
from common import show

from vlmad_lib import ROOT
from vlmad_lib.reporting import pages, report

NAMES = ("encode", "device", "sweep", "metrics", "report")


def main() -> int:
    """Run, print and write; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(prog="python tests/benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all where none is given")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "reports" / "out", help="folder of the JSON file and the page"
    )
    parser.add_argument("--second-run", action="store_true", help="also time a demo report with everything kept")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"there is no benchmark {unknown.pop()!r}; choose from {', '.join(NAMES)}")
    started, parts, missed = datetime.now(UTC), {}, 0
    for name in options.names or NAMES:
        print(f"\n{name}", flush=True)
        module = importlib.import_module(name if name != "report" else "report_speed")
        parts[name] = module.measure(options.second_run) if name == "report" else module.measure()
        missed |= show(parts[name])
    facts = {
        "machine": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": report._versions(),
        "commit": report._commit(),
        "started": f"{started:%Y-%m-%d %H:%M} UTC",
    }
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"bench-{started:%Y%m%d-%H%M%S}.json"
    file.write_text(json.dumps(facts | {"parts": parts}, indent=1), encoding="utf-8")
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(pages.TEMPLATE), autoescape=True)
    style = (pages.TEMPLATE / "style.css").read_text(encoding="utf-8")
    page = environment.get_template("bench.html.j2").render(**facts, parts=parts, style=style)
    file.with_suffix(".html").write_text(page, encoding="utf-8")
    print(f"\n{file.with_suffix('.html')}")
    return missed


def _processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        facts = dict(part for line in lines if len(part := [one.strip() for one in line.split(":")]) == 2)
        return f"{facts['model name']} (family {facts['cpu family']}, model {facts['model']})"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
