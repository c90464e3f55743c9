"""Make the README's table and picture from a demo report: ``python tests/readme.py RUN_FOLDER``."""

import re
import sys
from pathlib import Path

import pandas as pd

from vlmad_lib import ROOT, tables
from vlmad_lib.evaluation import metrics, statistics
from vlmad_lib.reporting import compare, figures

RATE = 0.1
MARKS = "<!-- demo table: make readme -->\n", "<!-- end of the demo table -->"


def tabulate_demo(results) -> str:
    """The demo's figures as Markdown: a row a method and number of good pictures, means over categories."""
    rows = []
    for (method, shots), own in results.metrics.groupby(["method", "shots"], sort=False):
        scores = results.scores[(results.scores.method == method) & (results.scores.shots == shots)]
        low, high = statistics.macro_interval(scores)
        image, pixel, aupro = own.groupby("category")[tables.MAIN].mean().mean()
        missed = []
        for _, images in scores.groupby(["category", "seed"]):
            limit = metrics.limit_at(images.score[images.label == 0].to_numpy(), RATE)
            missed.append((images.score[images.label == 1] <= limit).mean())
        escapes = f"{pd.Series(missed).mean():.0%}"
        rows.append((method, shots, f"{image:.3f} ({low:.3f} to {high:.3f})", f"{pixel:.3f}", f"{aupro:.3f}", escapes))
    heads = ["method", "good pictures", "image AUROC (95 % interval)", "pixel AUROC", "AUPRO", "defects that escape"]
    lines = [heads, ["---"] * len(heads), *rows]
    images, count = results.scores.image.nunique(), results.scores.category.nunique()
    about = (
        f"*Demo data: means over n = {count} categories, {images} pictures; the interval is over pictures.\nEscapes: "
        f"where at most {statistics.percent(RATE)} of each category's good test pictures are rejected.*"
    )
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + f"\n\n{about}\n"


def draw_picture(results) -> bytes:
    """AnomalyCLIP's maps of the defective images that it scores highest, one a category."""
    scores = results.scores[(results.scores.method == "AnomalyCLIP") & (results.scores.label == 1)]
    rows = scores.sort_values("score").drop_duplicates("category", keep="last").tail(6)
    figures.use_style()
    return figures.encode_figure(figures.maps(results, rows), photo=True)[1]


def write(folder: Path) -> None:
    """Put the table into the README and the picture beside the profiles."""
    results = compare.read_report(folder).results
    file = ROOT / "README.md"
    text = file.read_text(encoding="utf-8")
    inner = MARKS[0] + tabulate_demo(results) + MARKS[1]
    file.write_text(
        re.sub(re.escape(MARKS[0]) + ".*?" + re.escape(MARKS[1]), inner, text, flags=re.S), encoding="utf-8"
    )
    (ROOT / "reports" / "example.jpg").write_bytes(draw_picture(results))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
