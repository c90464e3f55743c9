"""Good or defective for a folder of new pictures: ``python -m vlmad_lib.decide PROFILE FOLDER --out OUT``.

Normal pictures are those in FOLDER/good (or FOLDER/train/good), else those of the profile's own data. Some become
references, the others set the threshold: split-conformal, so that a new good picture is rejected with probability at
most alpha. OUT gets decisions.csv, an overlay for each decision, and decisions.json with what they rest on.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from PIL import Image

from vlmad_lib import InputError, commands, data, files, methods, plots, run, thresholds
from vlmad_lib import profile as profiles
from vlmad_lib.methods import METHODS
from vlmad_lib.profile import FULL, Method, Profile
from vlmad_lib.results import Results
from vlmad_lib.statistics import percent

NEW = "new"  # the defect and label of pictures nobody has judged: their metrics mean nothing and are not shown
KEPT = ("good", "train", "ground_truth")  # folders that hold no new pictures
COLUMNS = ["image", "decision", "score", "threshold", "p", "overlay", "reason", "warning"]
SCALE = (
    "{} scores each picture by itself here, on a fixed scale (image_score: fixed); in a report its scores are "
    "stretched over a category's test images, as published."
)
WIDTH = 480  # pixels of a picture in an overlay
INK = 0.55  # how much of an overlay is its map


@dataclass(frozen=True)
class Decisions:
    """A row per picture (``COLUMNS``), what they rest on, and the run behind them with the index of the pictures."""

    table: pd.DataFrame
    facts: dict
    results: Results | None

    def told(self) -> str:
        """One sentence for the person who asked."""
        counts = self.table.decision.value_counts()
        parts = ", ".join(f"{counts[name]} {name}" for name in counts.index)
        said = self.facts["promise"], self.facts.get("scale", "")
        return " ".join(filter(None, [f"{len(self.table)} pictures: {parts}.", *said]))


def decide(profile: Profile, folder: Path, alpha: float = 0.1, category: str = "", method: str = "") -> Decisions:
    """Decisions on the pictures of a folder by a profile's method (its first, if none is named).

    Pictures that cannot be read are listed with the reason; where the normal pictures are too few for alpha, all are
    ``undecided`` but have their scores. InputError where there is no picture, or no normal one. Each picture is scored
    by itself (``methods.alone``), whatever else is in the folder.
    """
    spec = methods.alone(_method(profile, method))
    if not folder.is_dir():
        raise InputError(f"The folder of new pictures {folder} does not exist; correct its path.")
    new = data.below(folder, KEPT)
    if not new:
        raise InputError(f"{folder} holds no picture to judge beside {', '.join(KEPT)}; add some.")
    category, normal = _normal(profile, folder, category, set(new))
    faults = {image: fault for image in new if (fault := _fault(image))}
    shots = _shots(len(normal), profile, spec, alpha)
    table = data.listed(profile, category, {("train", "good"): normal})
    table = thresholds.calibration_index(table, shots, profile.seeds[0])
    if (readable := [image for image in new if image not in faults]) and len(table):
        table = pd.concat([table, data.listed(profile, category, {("test", NEW): readable})], ignore_index=True)
    keys = {"methods": [spec], "imports": [], "shots": [shots], "seeds": profile.seeds[:1], "categories": []}
    results = run.run(profile.model_copy(update=keys), table=table) if readable else None
    return _judged(results, folder, new, faults, alpha, len(normal), shots)


def _method(profile: Profile, name: str) -> Method:
    if not profile.methods:
        raise InputError("The profile names no methods, so nothing can score new pictures; add one to 'methods'.")
    found = [spec for spec in profile.methods if not name or spec.name == name]
    if not found:
        known = ", ".join(spec.name for spec in profile.methods)
        raise InputError(f"--method {name}: the profile has no such method; it has {known}.")
    methods.choose(found[0], profile)
    return found[0]


def _normal(profile: Profile, folder: Path, category: str, new: set[str]) -> tuple[str, list[str]]:
    """The category, and its normal pictures: beside the new ones, or from the profile's data."""
    for place in (folder / "good", folder / "train" / "good"):
        if place.is_dir() and (found := data.below(place)):
            return category or folder.resolve().name, found
    index, _ = run.index(profile.model_copy(update={"shots": [0]}))
    known = list(index.category.unique())
    name = category or (folder.resolve().name if folder.resolve().name in known else known[0])
    if name not in known or not (category or name == folder.resolve().name or len(known) == 1):
        raise InputError(f"{folder} has no good/ folder; add one, or name its --category, one of {', '.join(known)}.")
    rows = index[(index.category == name) & (index.label == 0)]
    judged = {Path(one).resolve() for one in new}  # however they are spelt
    found = [image for image in rows.image if Path(image).resolve() not in judged]
    if not found:
        raise InputError(f"{name} has no normal pictures in {profile.path(profile.root)}; add {folder / 'good'}.")
    return name, found


def _fault(image: str) -> str:
    """Why a picture cannot be read; empty where it can."""
    try:
        data.load_image(image)
    except InputError as error:
        return str(error)
    return ""


def _shots(normal: int, profile: Profile, spec: Method, alpha: float) -> int:
    """The most references of the profile's ``shots`` that leave enough normal pictures for a threshold at alpha."""
    module = METHODS[spec.method]
    counts = sorted(shots for shots in profile.shots if shots < FULL and (shots if module.FEW_SHOT else not shots))
    counts = [0, *counts] if module.ZERO_SHOT else counts
    able = [shots for shots in counts if thresholds.rank(normal - shots, alpha) <= normal - shots]
    if not counts or (not able and counts[0] >= normal):
        raise InputError(f"{spec.name} needs references: give more than {normal} normal pictures, or 1 in 'shots'.")
    return max(able, default=counts[0])


def _judged(
    results: Results | None, folder: Path, new: list[str], faults: dict[str, str], alpha: float, normal: int, shots: int
) -> Decisions:
    scores = results.scores.set_index("image") if results else pd.DataFrame(columns=["defect", "score", "method"])
    known = np.sort(scores[scores.defect != NEW].score.to_numpy(float))
    limit = thresholds.conformal(known, alpha)
    rows = []
    for image in new:
        name = str(Path(image).relative_to(folder))
        name = f"./{name}" if name[0] in "=+-@" else name  # a spreadsheet would take it for a formula
        row = {"image": name, "decision": "unreadable", "reason": faults.get(image, "")}
        if image not in faults:
            score = float(scores.score[image])
            decision = "undecided" if np.isinf(limit) else "defective" if score > limit else "good"
            chance = (1 + (known >= score).sum()) / (len(known) + 1)
            row |= {"decision": decision, "score": score, "threshold": limit, "p": chance}
        rows.append(row)
    promise = _promise(len(known), alpha)
    facts = {"folder": folder.resolve().name, "alpha": alpha, "normal": normal, "references": shots}
    facts |= {"calibration": len(known), "threshold": limit if np.isfinite(limit) else None, "promise": promise}
    if results:
        first = results.scores.iloc[0]
        facts |= {key: first[key] for key in ("category", "class_name", "method", "backbone", "weights", "preset")}
        facts["warnings"] = results.facts["warnings"]
        if shots and first.image_score == "fixed":
            facts["scale"] = SCALE.format(first.method)
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"overlay": object})
    table["warning"] = " ".join(facts.get("warnings", []))  # in every row: a table goes on without what was printed
    return Decisions(table, facts, results)


def _promise(k: int, alpha: float) -> str:
    """What the threshold promises, or why there is none."""
    if thresholds.rank(k, alpha) > k:
        least = int(np.ceil(1 / alpha - 1 - 1e-9))
        return (
            f"No threshold at alpha {alpha:g}: it takes {least} normal pictures beside the references, there are {k}."
        )
    low, high = thresholds.conditional(k, alpha)
    return (
        f"At most {percent(alpha)} of new good pictures are rejected on average; with this threshold, from {k} "
        f"normal pictures, it is {low:.1%} to {high:.1%} (95 %), if they are taken alike."
    )


# ---------------------------------------------------------------- files


def write(found: Decisions, folder: Path, out: Path) -> None:
    """decisions.csv, decisions.json and the overlays, which share one colour scale; InputError where it cannot."""
    table, colours = found.table.copy(), mpl.colormaps[plots.MAP]
    if found.results is not None:
        rows = found.results.scores
        low, high = plots.map_limits(found.results, rows.variant.iloc[0], rows.category.iloc[0])
        frames = rows[rows.defect == NEW].set_index("image", drop=False)
        for place, name in enumerate(table.image):
            image = str(folder / name)
            if image not in frames.index:
                continue
            [frame] = found.results.framed(frames.loc[[image]])
            shown = colours(np.clip((frame - low) / (high - low), 0, 1), bytes=True)[..., :3]
            kept = f"{place + 1:05}-{re.sub(r'[^0-9A-Za-z_-]+', '_', Path(name).stem)[:60]}.jpg"
            picture = _beside(image, Image.fromarray(shown))
            files.replace(out / "overlays" / kept, lambda path, one=picture: one.save(path, "JPEG", quality=88))
            table.loc[place, "overlay"] = f"overlays/{kept}"
    files.replace(out / "decisions.csv", lambda path: table.to_csv(path, index=False))
    facts = json.dumps(found.facts, indent=1)
    files.replace(out / "decisions.json", lambda path: path.write_text(facts + "\n", encoding="utf-8"))


def _beside(image: str, heat: Image.Image) -> Image.Image:
    """A picture, and the same picture under its map."""
    shown = Image.fromarray(plots.picture(image, WIDTH))
    both = Image.new("RGB", (2 * shown.width, shown.height))
    both.paste(shown, (0, 0))
    both.paste(Image.blend(shown, heat.resize(shown.size, Image.Resampling.BILINEAR), INK), (shown.width, 0))
    return both


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 decided, 1 some pictures unreadable or none decided, 2 wrong input, 3 a fault of vlmad."""
    parser = argparse.ArgumentParser(prog="python -m vlmad_lib.decide", description=__doc__.splitlines()[0])
    parser.add_argument("profile", help="a profile in reports/, or the path of a YAML file: the method and its weights")
    parser.add_argument("folder", type=Path, help="new pictures, and normal ones in good/")
    parser.add_argument("--out", type=Path, required=True, help="folder of decisions.csv and overlays/")
    parser.add_argument("--alpha", type=float, default=0.1, help="share of good pictures that may be rejected")
    parser.add_argument("--category", default="", help="whose normal pictures, where the folder has no good/")
    parser.add_argument("--method", default="", help="name of a method of the profile; its first if none is given")
    parser.add_argument("-p", dest="pairs", action="append", default=[], metavar="KEY=VALUE", help="changes a key")
    options = parser.parse_args(arguments)
    return commands.run_command(lambda: _decide_and_show(options), "Interrupted; what was encoded is kept.")


def _decide_and_show(options: argparse.Namespace) -> int:
    """Decide as a command line asks and print what came of it; the exit code."""
    if options.out.resolve().is_relative_to(options.folder.resolve()):
        raise InputError(f"--out {options.out} lies in {options.folder}: overlays would be judged next time.")
    profile = profiles.load(options.profile, dict(profiles.override(pair) for pair in options.pairs))
    found = decide(profile, options.folder, options.alpha, options.category, options.method)
    write(found, options.folder, options.out)
    for warning in found.facts.get("warnings", []):
        print(f"Warning: {warning}", file=sys.stderr)
    print(options.out / "decisions.csv")
    print(found.told())
    return int(bool({"unreadable", "undecided"} & set(found.table.decision)))


if __name__ == "__main__":
    sys.exit(main())
