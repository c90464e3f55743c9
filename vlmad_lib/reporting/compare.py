"""Two reports side by side: ``python -m vlmad_lib compare BEFORE AFTER`` writes a page on what changed.

What differs in the profile, the data, the weights and the versions; the metrics with paired intervals; and the
pictures that a threshold now judges otherwise, with both maps. Pictures are paired by product, defect and file name,
so that the same parts photographed anew are compared too.
"""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vlmad_lib import InputError, commands, config, files, tables, within
from vlmad_lib.analysis import comparison
from vlmad_lib.evaluation import metrics, statistics
from vlmad_lib.pipeline.results import Results
from vlmad_lib.reporting import figures, pages

# So many pictures a method are shown with their maps; the table holds all.
MOST_PICTURES = 6
JUDGED = {(0, False): "good, passed", (0, True): "false alarm", (1, False): "escape", (1, True): "defect found"}
# What of a profile decides no number, or only says where things lie.
PLACES = ("cache", "workers", "device", "batch", "notebooks", "title", "notice")


@dataclass(frozen=True)
class OldReport:
    """A report read from its folder."""

    folder: Path
    record: dict[str, Any]
    results: Results


def read_report(folder: Path) -> OldReport:
    """The report in a run folder; InputError where one of its files is missing or cannot be read."""
    folder = folder.resolve()
    for name in ("run.json", "profile.yml", "scores.parquet", "metrics.parquet"):
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} does not exist; give the folder of a finished report.")
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        profile = config.load_profile(folder / "profile.yml")
        scores, measured = (pd.read_parquet(folder / f"{name}.parquet") for name in ("scores", "metrics"))
    except InputError:  # of the profile: it names the file
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} cannot be read as a report ({error}); make the report again.") from None
    cache = profile.path(profile.cache)
    return OldReport(folder, record, Results(profile, pd.DataFrame(), scores, measured, record["facts"], cache))


# ---------------------------------------------------------------- what changed


def list_changes(before: dict[str, Any], after: dict[str, Any]) -> pd.DataFrame:
    """What two records (``run.json``) differ in: a row a fact, with the columns what, before and after."""
    sides = [_describe_inputs(record) for record in (before, after)]
    names = dict.fromkeys([*sides[0], *sides[1]])
    rows = [(name, sides[0].get(name, "–"), sides[1].get(name, "–")) for name in names]
    return pd.DataFrame([row for row in rows if row[1] != row[2]], columns=["what", "before", "after"])


def _describe_inputs(record: dict[str, Any]) -> dict[str, str]:
    """The facts of a record that may move its numbers, by name, as text."""
    facts, values = record["facts"], record["profile"]["values"]
    inputs = {"commit of the workbook": record["commit"]}
    inputs |= {f"profile: {key}": _flatten(values[key]) for key in values if key not in (*PLACES, "methods")}
    for method in values.get("methods", []):
        inputs |= {f"method {_name(method)}: {key}": _flatten(value) for key, value in method.items() if key != "name"}
    for row in facts.get("data", []):
        inputs[f"data: {row['category']}"] = f"{row['train']} train, {row['good']} good, {row['defective']} defective"
    for row in facts.get("backbones", []):
        inputs[f"weights of {row['name']}"] = f"{row['weights']}, {str(row['sha256'])[:12]}, {row.get('precision')}"
    for row in facts.get("prompts", []):
        inputs[f"learned by {row['method']}"] = f"{row['checkpoint']}, {row['sha256'][:12]}"
    inputs |= {f"version of {name}": version for name, version in facts.get("packages", {}).items()}
    return inputs


def _name(method: Mapping[str, Any]) -> str:
    return method.get("name") or method["method"]


def _flatten(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


# ---------------------------------------------------------------- metrics and decisions


def pair_scores(before: pd.DataFrame, after: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both scores tables with ``image`` replaced by what pairs it, ``file`` its path, and ``name`` of the row."""
    sides = []
    for scores in (before, after):
        keys = scores.category + "/" + scores.defect + "/" + scores.image.map(lambda path: Path(path).name)
        sides.append(scores.assign(file=scores.image, image=keys, name=tables.name_rows(scores)))
    return sides[0], sides[1]


def compare_metrics(before: OldReport, after: OldReport) -> pd.DataFrame:
    """A row a method (and number of references) and measure that both reports have: after less before.

    Image AUROC: paired by image, over other images of the same categories. Pixel AUROC and AUPRO: over categories.
    Columns: name, ``comparison.COLUMNS``, before and after; intervals at 95 % for all rows together.
    """
    sides = pair_scores(before.results.scores, after.results.scores)
    names = [name for name in dict.fromkeys(sides[0].name) if name in set(sides[1].name)]
    comparisons = max(1, len(names) * len(tables.MAIN))
    level = statistics.together(comparisons)
    cells = []
    for report in (before, after):
        named = report.results.metrics.assign(name=tables.name_rows(report.results.metrics))
        cells.append(named.groupby(["name", "category"])[tables.MAIN].mean())
    rows = []
    for name in names:
        old, new = (side[side.name == name] for side in sides)
        means = [side.loc[name].mean() for side in cells]
        for measure in tables.MAIN:
            facts: dict[str, Any]
            if measure == "image_auroc":
                ends = statistics.macro_difference(new, old, statistics.resamples_at(level), level=level)
                facts = dict(zip(("difference", "low", "high"), ends, strict=True))
                facts |= {"n": len(set(new.image) & set(old.image)), "over": "images"}
            else:
                before_cells, after_cells = (side.loc[name][[measure]] for side in cells)
                paired = comparison.pair_differences(after_cells, before_cells, "categories", comparisons)
                facts = paired.iloc[0].to_dict()
            rows.append(
                {"name": name, "measure": measure, "before": means[0][measure], "after": means[1][measure]} | facts
            )
    columns = ["name", *comparison.COLUMNS, "before", "after"]
    return pd.DataFrame(rows, columns=columns).dropna(subset="difference").query("n > 0").reset_index(drop=True)


def find_changed_pictures(before: OldReport, after: OldReport, rate: float) -> pd.DataFrame:
    """The pictures that both reports scored and judge differently, a row a method and picture.

    First reference draws. Each report's threshold of a category rejects at most the share ``rate`` of its own good
    test pictures. Columns: name, image, label, category, and of each report the score, the threshold and what it was
    judged.
    """
    judged = []
    for scores in pair_scores(*(tables.select_first_draws(report.results.scores) for report in (before, after))):
        keys = ["name", "category"]
        limits = scores[scores.label == 0].groupby(keys).score.agg(lambda good: metrics.limit_at(good.to_numpy(), rate))
        facts = scores.join(limits.rename("threshold"), on=keys).dropna(subset="threshold")
        pairs = zip(facts.label, facts.score > facts.threshold, strict=True)
        judged.append(facts.assign(judged=[JUDGED[pair] for pair in pairs]))
    shown = ["name", "image", "score", "threshold", "judged"]
    both = judged[0][[*shown, "label", "category"]].merge(
        judged[1][shown], on=["name", "image"], suffixes=(" before", " after")
    )
    return both[both["judged before"] != both["judged after"]].sort_values(["name", "image"], ignore_index=True)


# ---------------------------------------------------------------- the page


def describe_changes(compared: pd.DataFrame) -> list[str]:
    """One sentence on the table of ``compare_metrics`` for good or bad, and one for location."""
    sentences = []
    for over, subject in (("images", "Good or bad"), ("categories", "Where the defect is")):
        rows = compared[compared.over == over]
        if (rows.difference == 0).all() and len(rows):
            sentences.append(f"{subject}: every value of both reports is the same.")
        elif len(rows):
            named = rows.assign(row=rows.name + ", " + rows.measure.map(tables.TITLES))
            sentences.append(f"{subject}, after less before: {comparison.describe_verdicts(named, 'row')}.")
    return sentences


def write_comparison(before: OldReport, after: OldReport, rate: float, out: Path) -> Path:
    """Write the page on two reports and return its path."""
    figures.use_style()
    compared = compare_metrics(before, after)
    changed = find_changed_pictures(before, after, rate)
    pictures = [_draw_pictures(before, after, name, rows) for name, rows in changed.groupby("name", sort=False)]
    shown = compared.assign(
        measure=compared.measure.map(tables.TITLES),
        change=[comparison.describe_difference(row) for row in compared.itertuples()],
    )[["name", "measure", "before", "after", "change"]]
    values = {
        "sides": [before.record | {"folder": before.folder.name}, after.record | {"folder": after.folder.name}],
        "changes": list_changes(before.record, after.record).to_dict("records"),
        "metrics": shown.to_dict("records"),
        "sentences": describe_changes(compared),
        "changed": changed.to_dict("records"),
        "rate": statistics.percent(rate),
        "pictures": [picture for picture in pictures if picture],
    }
    text = pages.render_template(after.record, "compare.html.j2", "search.js", **values)
    files.replace_file(out, lambda path: path.write_text(text, encoding="utf-8"))
    return out


def _draw_pictures(before: OldReport, after: OldReport, name: str, rows: pd.DataFrame) -> dict[str, Any] | None:
    """The pictures of one method that changed most, with the maps of both reports, as ``data:`` URLs."""
    moves = (rows["score after"] - rows["threshold after"] - rows["score before"] + rows["threshold before"]).abs()
    wanted = rows.loc[moves.sort_values(ascending=False).index].head(MOST_PICTURES)
    urls = []
    for side, report, scores in zip(
        ("before", "after"),
        (before, after),
        pair_scores(*(tables.select_first_draws(report.results.scores) for report in (before, after))),
        strict=True,
    ):
        chosen = scores[scores.name == name].set_index("image").loc[wanted.image].reset_index()
        chosen = chosen.assign(image=chosen.file)
        titles = [
            f"{row.category}\n{row.judged}" for row in wanted.rename(columns={f"judged {side}": "judged"}).itertuples()
        ]
        try:
            figure = figures.maps(report.results, chosen, titles)
        except InputError:  # scores without maps, or maps that were pruned from the cache
            return None
        kind, content = figures.encode_figure(figure, photo=True)
        urls.append(f"data:image/{kind};base64,{base64.b64encode(content).decode()}")
    return {"name": name, "urls": urls, "images": ", ".join(wanted.image)}


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 done, 2 wrong input, 3 a fault of vlmad."""
    parser = argparse.ArgumentParser(prog="python -m vlmad_lib compare", description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="the folder of a report")
    parser.add_argument("after", type=Path, help="the folder of another report")
    parser.add_argument("--rate", type=float, default=0.1, help="share of good pictures that a threshold may reject")
    parser.add_argument("--out", type=Path, help="the page; compare-BEFORE.html beside the second report by default")
    return commands.run_command(lambda: _compare_and_show(parser.parse_args(arguments)))


def _compare_and_show(options: argparse.Namespace) -> int:
    within("--rate", options.rate, 0, 1)
    before, after = (read_report(folder) for folder in (options.before, options.after))
    out = options.out or after.folder / f"compare-{before.folder.name}.html"
    with files.name_write_errors(out):
        print(write_comparison(before, after, options.rate, out))
    return 0
