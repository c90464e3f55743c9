"""Good or defective for a folder of new pictures: ``python -m vlmad_lib decide PROFILE FOLDER --out OUT``.

Normal pictures are those in FOLDER/good (or FOLDER/train/good), else those of the profile's own data. Some become
references, the others set the threshold: split-conformal, so that a new good picture is rejected with probability at
most alpha. With groups, which say what part each picture shows, both are by part: a new good part has any of its
pictures rejected with probability at most alpha. OUT gets decisions.csv, an overlay and a mask of marked pixels for
each decision, and decisions.json with what they rest on. Masks among the new pictures are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from PIL import Image, PngImagePlugin

from vlmad_lib import InputError, commands, config, files, methods
from vlmad_lib.analysis import thresholds
from vlmad_lib.config import FULL, Method, Profile
from vlmad_lib.data import datasets, folder_roles, image_files, mask_files
from vlmad_lib.evaluation.statistics import percent
from vlmad_lib.methods import METHODS
from vlmad_lib.pipeline import part_groups, run
from vlmad_lib.pipeline.results import Results
from vlmad_lib.reporting import figures

# The defect and label of pictures nobody has judged: their metrics mean nothing and are not shown.
NEW = "new"
# Folders that hold no new pictures.
KEPT = ("good", "train", "ground_truth")
COLUMNS = ["image", "decision", "score", "threshold", "p", "area", "overlay", "mask", "reason", "warning"]
SCALE = (
    "{} scores each picture by itself here, on a fixed scale (image_score: fixed); in a report its scores are "
    "stretched over a category's test images, as published."
)
# Pixels of a picture's width in an overlay.
WIDTH = 480
# What prompts call a product that nothing names.
PRODUCT = "object"
# By which the ratio of two sides may differ.
ALIKE = 0.02
# The comment in overlays and masks, by which those of an earlier call are recognised.
MADE = b"vlmad decide"
# How much of an overlay is its map.
INK = 0.55


@dataclass(frozen=True)
class Decisions:
    """A row per picture (``COLUMNS``), what they rest on, and the run behind them with the index of the pictures."""

    table: pd.DataFrame
    facts: dict
    results: Results | None

    def describe(self) -> str:
        """How many pictures have which decision, and the promise behind them, in a sentence or two."""
        counts = self.table.decision.value_counts()
        counted = ", ".join(f"{counts[name]} {name}" for name in counts.index)
        texts = f"{len(self.table)} pictures: {counted}.", self.facts["promise"], self.facts.get("scale", "")
        return " ".join(filter(None, texts))


def decide(
    profile: Profile, folder: Path, alpha: float = 0.1, category: str = "", method: str = "", groups: str = ""
) -> Decisions:
    """Decisions on the pictures of a folder by a profile's method.

    If none is named it is the first that can score a picture by itself.

    ``groups`` says which part each normal picture shows (``part_groups.read_parts``); without it each is taken as a
    part of its own, and near-duplicates among them are warned of.

    Pictures that cannot be read are listed with the reason; where the normal pictures are too few for alpha, all are
    ``undecided`` but have their scores. InputError where there is no picture, or no normal one. Each picture is scored
    by itself (``methods.without_category_context``), whatever else is in the folder.
    """
    spec = methods.without_category_context(_method(profile, method))
    thresholds.rank(1, alpha)  # a wrong one is refused before anything is read
    image_files.require_folder(folder, "correct its path")
    roles = _roles(profile, folder)
    _refuse_misnamed(profile, folder, roles)
    new, faults, notes = _pictures(folder, roles)
    if not new:
        raise InputError(f"{folder} holds no picture to judge beside {', '.join(KEPT)} and masks; add some.")
    category, normal = _normal(profile, folder, category, set(new), roles)
    parts = part_groups.read_parts(normal, groups) if groups else {}
    if groups and len(set(parts.values())) < 2:
        raise InputError(
            f"--groups {groups}: all normal pictures are of one part, {next(iter(parts.values()))!r}; add others."
        )
    notes += part_groups.warn_of_near_duplicates(normal, parts)
    shots = _shots(len(set(parts.values())) if groups else len(normal), profile, spec, alpha)
    table = datasets.index_images(profile, category, {("train", "good"): normal})
    if groups:
        table = part_groups.calibration_index(table, parts, shots, profile.seeds[0])
    else:
        table = thresholds.calibration_index(table, shots, profile.seeds[0])
    if (readable := [image for image in new if image not in faults]) and len(table):
        table = pd.concat(
            [table, datasets.index_images(profile, category, {("test", NEW): readable})], ignore_index=True
        )
    notes += _other_shapes(table)
    if profile.regions and category not in profile.regions:
        notes.append(
            f"No region of interest is named {category} ('regions' has {', '.join(profile.regions)}), so pictures are "
            "judged whole; name the product with --category."
        )
    keys = {"methods": [spec], "imports": [], "shots": [shots], "seeds": profile.seeds[:1], "categories": []}
    results = run.run(profile.model_copy(update=keys), table=table) if readable else None
    notes += _words(profile, spec, table) if results else []
    return _judged(results, folder, new, faults, notes, alpha, len(normal), shots, parts)


def _method(profile: Profile, name: str) -> Method:
    if not profile.methods:
        raise InputError("The profile names no methods, so nothing can score new pictures; add one to 'methods'.")
    alone = methods.list_scoring_alone(profile.methods) or profile.methods
    spec = next((spec for spec in (profile.methods if name else alone) if not name or spec.name == name), None)
    if spec is None:
        available = ", ".join(spec.name for spec in profile.methods)
        raise InputError(f"--method {name}: the profile has no such method; it has {available}.")
    methods.choose(spec, profile)
    return spec


def _roles(profile: Profile, folder: Path) -> dict[Path, str]:
    """What the profile's ``folders`` say of those in a folder of new pictures, and of those in its train/."""
    roles: dict[Path, str] = {}
    for place in (folder, folder / "train"):
        for path in image_files.subfolders(place) if image_files.is_folder(place) else []:
            for role, _ in profile.folders.match(path.relative_to(folder).as_posix()):
                roles.setdefault(path, role)
    return roles


def _refuse_misnamed(profile: Profile, folder: Path, roles: dict[Path, str]) -> None:
    """InputError for a folder of normal pictures under another name than good/: they would be judged as new ones.

    Not where the profile says what it holds.
    """
    places = [place for place in (folder, folder / "train") if image_files.is_folder(place)]
    for path in [path for place in places for path in image_files.subfolders(place)]:
        wanted = path.name.casefold() in ("good", "train") or folder_roles.is_good_name(path.name)
        reason = folder_roles.explain_name(path).rstrip(".") if wanted else ""
        if path in roles or not (reason and image_files.list_files_below(path, unread=True)):
            continue
        place = path.with_name("good")
        if image_files.is_folder(place) and not place.samefile(path):
            reason = f"{path} seems to hold normal pictures, as {place} does: move them there"
        key = f", say it in the profile, 'folders: {{{folder_roles.write_key('normal', path.name)}}}'" * profile.own
        raise InputError(f"{reason}{key}, or give it another name if its pictures are to be judged.")


def _pictures(folder: Path, roles: dict[Path, str]) -> tuple[list[str], dict[str, str], list[str]]:
    """The pictures of a folder to judge, why some of them cannot be read, and notes on masks, which are left out."""
    inner, new, masks, faults = [folder], [], [], {}
    ignored = [path.relative_to(folder).as_posix() for path, role in roles.items() if role == "ignore"]
    notes = [f"{name}/ is left out, as 'folders' says." for name in ignored]
    while inner:
        place = inner.pop(0)
        for path in reversed(image_files.subfolders(place)):
            if (place == folder and path.name in KEPT) or path.is_symlink():
                continue
            if roles.get(path) in ("normal", "ignore"):
                continue
            if roles.get(path) == "masks" or (path not in roles and mask_files.is_mask_folder(path)):
                masks += image_files.list_files_below(path, unread=True)
            else:
                inner.insert(0, path)
        files_here = image_files.list_images(place, unread=True)
        faults |= {str(file): fault for file in files_here if (fault := _fault(file))}
        readable = [file for file in files_here if str(file) not in faults]
        left = {str(mask) for mask, _ in mask_files.find_masks(readable)}
        masks += sorted(left)
        new += [str(file) for file in files_here if str(file) not in left]
    shown = Path(masks[0]).relative_to(folder) if masks else ""
    return new, faults, [*notes, *([f"{len(masks)} masks are left out, such as {shown}."] if masks else [])]


def _normal(
    profile: Profile, folder: Path, category: str, new: set[str], roles: dict[Path, str]
) -> tuple[str, list[str]]:
    """The category, and its normal pictures: beside the new ones, or from the profile's data."""
    named = [path for path, role in roles.items() if role == "normal"]
    for places in ([*named, folder / "good"], [folder / "train" / "good"]):
        there = [place for place in dict.fromkeys(places) if image_files.is_folder(place)]
        if pictures := [image for place in there for image in image_files.list_files_below(place)]:
            for mask, _ in mask_files.find_masks([Path(image) for image in pictures]):
                raise InputError(f"{mask} seems to be a mask; move it out of {mask.parent}.")
            return category or _product(profile, folder), pictures
    try:
        index, _ = run.build_run_index(profile.model_copy(update={"shots": [0]}))
    except InputError as error:
        if category:
            raise
        lacking = f"{folder} has no good/ folder with normal pictures; add it"
        reason = str(error).partition("\n")[0].rstrip(".")  # without the trees of folders laid out otherwise
        raise InputError(f"{lacking} (the profile's own data cannot serve: {reason}).") from None
    categories = list(index.category.unique())
    own = folder.resolve().name
    name = category or (own if own in categories else categories[0])
    if name not in categories or not (category or name == own or len(categories) == 1):
        raise InputError(
            f"{folder} has no good/ folder; add one, or name its --category, one of {', '.join(categories)}."
        )
    rows = index[(index.category == name) & (index.label == 0)]
    judged = {Path(image).resolve() for image in new}  # however they are spelt
    pictures = [image for image in rows.image if Path(image).resolve() not in judged]
    if not pictures:
        raise InputError(f"{name} has no normal pictures in {profile.path(profile.root)}; add {folder / 'good'}.")
    return name, pictures


def _product(profile: Profile, folder: Path) -> str:
    """The category that pictures with normal ones of their own belong to.

    The folder's name where it is one of the profile's categories, else the only one in ``class_names``, else a neutral
    word: folders that are filled anew each day are named by the day, which is no word for prompts.
    """
    name = folder.resolve().name
    with contextlib.suppress(InputError):  # the profile's own data need not be there
        if name in {*profile.class_names, *profile.categories, *datasets.category_names(profile)}:
            return name
    return next(iter(profile.class_names)) if len(profile.class_names) == 1 else PRODUCT


def _words(profile: Profile, spec: Method, table: pd.DataFrame) -> list[str]:
    """What prompts call the product, where a method's prompts name it."""
    row = table.iloc[0]
    if not methods.choose(spec, profile).names_product(row):
        return []
    hint = "; say what it is with 'class_names' in the profile, or with --category" * (row.category == PRODUCT)
    return [f"Prompts call the product {row.class_name!r}{hint}."]


def _other_shapes(table: pd.DataFrame) -> list[str]:
    """A note on new pictures whose sides have another ratio than those of every normal one."""
    ratios, new = table.width / table.height, table.defect == NEW
    usual = ratios[~new].to_numpy()
    apart = [not np.isclose(usual, ratio, rtol=ALIKE).any() for ratio in ratios[new]] if len(usual) else []
    if not any(apart):
        return []
    first, normal = table[new][apart].iloc[0], table[~new].iloc[0]
    return [
        f"{sum(apart)} of {new.sum()} new pictures have another shape than the normal ones, such as "
        f"{Path(first.image).name} with {first.width}x{first.height} pixels against {normal.width}x{normal.height}; "
        "the threshold promises nothing for them."
    ]


def _fault(image: Path) -> str:
    """Why a picture cannot be read; empty where it can."""
    if image.suffix.lower() in image_files.UNREAD:
        return image_files.explain_unread(image)
    try:
        image_files.load_image(image)
    except InputError as error:
        return str(error)
    return ""


def _shots(normal: int, profile: Profile, spec: Method, alpha: float) -> int:
    """The most references of the profile's ``shots`` that leave enough normal pictures, or parts, for a threshold."""
    module = METHODS[spec.method]
    counts = sorted(shots for shots in profile.shots if shots < FULL and (shots if module.few_shot else not shots))
    counts = [0, *counts] if module.zero_shot else counts
    able = [shots for shots in counts if thresholds.rank(normal - shots, alpha) <= normal - shots]
    if not counts or (not able and counts[0] >= normal):
        raise InputError(f"{spec.name} needs references: give more than {normal} normal pictures, or 1 in 'shots'.")
    return max(able, default=counts[0])


def _judged(
    results: Results | None, folder: Path, new: list[str], faults: dict[str, str], notes: list[str], alpha: float,
    normal: int, shots: int, parts: dict[str, str],
) -> Decisions:  # fmt: skip
    scores = results.scores.set_index("image") if results else pd.DataFrame(columns=["defect", "score", "method"])
    calibrating = scores[scores.defect != NEW]
    owners = [parts.get(image, image) for image in calibrating.index]
    normal_scores = np.sort(part_groups.largest_by_part(calibrating.score.to_numpy(float), owners))
    limit = thresholds.conformal(normal_scores, alpha)
    areas, pixel_limit = _mark(results, owners, alpha) if results else ({}, np.inf)
    rows = []
    for image in new:
        name = str(Path(image).relative_to(folder))
        name = f"./{name}" if name[0] in "=+-@" else name  # a spreadsheet would take it for a formula
        row = {"image": name, "decision": "unreadable", "reason": faults.get(image, "")}
        if image not in faults:
            score = float(scores.score[image])
            decision = "undecided" if np.isinf(limit) else "defective" if score > limit else "good"
            chance = (1 + (normal_scores >= score).sum()) / (len(normal_scores) + 1)
            row |= {"decision": decision, "score": score, "threshold": limit, "p": chance}
            row["area"] = areas.get(image, np.nan)
        rows.append(row)
    promise = _promise(len(normal_scores), alpha, "parts" if parts else "pictures")
    facts = {"folder": folder.resolve().name, "alpha": alpha, "normal": normal, "references": shots}
    facts |= {"calibration": len(normal_scores), "threshold": limit if np.isfinite(limit) else None, "promise": promise}
    if parts:
        facts |= {"parts": len(set(parts.values())), "calibration_pictures": len(calibrating)}
    facts |= {"pixel_threshold": pixel_limit if np.isfinite(pixel_limit) else None}
    facts["pixel_promise"] = _pixel_promise(pixel_limit, alpha, "part" if parts else "picture")
    facts["notes"] = notes
    if results:
        first = results.scores.iloc[0]
        facts |= {key: first[key] for key in ("category", "class_name", "method", "backbone", "weights", "preset")}
        facts |= {key: results.facts[key] for key in ("devices", "warnings")}
        if shots and first.image_score == "fixed":
            facts["scale"] = SCALE.format(first.method)
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"overlay": object, "mask": object})
    table["warning"] = " ".join(facts.get("warnings", []))  # in every row: a table goes on without what was printed
    return Decisions(table, facts, results)


def _mark(results: Results, owners: list[str], alpha: float) -> tuple[dict[str, float], float]:
    """The share of each new picture's pixels above the pixel threshold, by path, and that threshold."""
    rows = results.scores
    if "" in set(rows.map_file):
        return {}, np.inf
    maxima = [results.framed(rows.loc[[place]])[0].max() for place in rows.index[rows.defect != NEW]]
    limit = thresholds.pixel_threshold(list(part_groups.largest_by_part(np.array(maxima), owners)), alpha)
    new, areas = rows[rows.defect == NEW], {}
    for place, image in zip(new.index, new.image, strict=True):
        row = new.loc[[place]]
        (values,), (inside,) = results.framed(row), results.inside(row)
        areas[image] = float(thresholds.marked_areas([values if inside is None else values[inside]], limit)[0])
    return areas, limit


def _promise(k: int, alpha: float, noun: str) -> str:
    """What the threshold from k normal pictures, or parts (``noun``), promises, or why there is none."""
    if thresholds.rank(k, alpha) > k:
        least = thresholds.images_needed(alpha)
        return (
            f"No threshold at alpha {alpha:g}: it takes {least} normal {noun} beside the references, there are {k}; "
            "add some, or raise --alpha."
        )
    low, high = thresholds.rate_interval(k, alpha)
    rejected = "rejected" if noun == "pictures" else "rejected by any of their pictures"
    alike = "if they are taken alike" + ("" if noun == "pictures" else ", with no more pictures of each")
    return (
        f"At most {percent(alpha)} of new good {noun} are {rejected} on average; with this threshold, from {k} "
        f"normal {noun}, it is {low:.1%} to {high:.1%} (95 %), {alike}."
    )


def _pixel_promise(limit: float, alpha: float, noun: str) -> str:
    """What the pixel threshold promises of good parts, and that it promises nothing of defects."""
    if np.isinf(limit):
        return "No pixel is marked: there is no threshold for pixels."
    return (
        f"A new good {noun} has any marked pixel with probability at most {percent(alpha)}, if it is taken like the "
        "normal ones. Nothing is promised of defects: marked pixels may miss one, or exceed its outline."
    )


# ---------------------------------------------------------------- files


def write(decisions: Decisions, folder: Path, out: Path) -> None:
    """decisions.csv, decisions.json and the overlays, which share one colour scale; InputError where it cannot.

    Overlays of an earlier call are removed; whatever else lies there stays.
    """
    table, colours = decisions.table.copy(), mpl.colormaps[figures.MAP]
    if decisions.results is not None:
        rows = decisions.results.scores
        low, high = figures.map_limits(decisions.results, rows.variant.iloc[0], rows.category.iloc[0])
        frames = rows[rows.defect == NEW].set_index("image", drop=False)
        for place, name in enumerate(table.image):
            image = str(folder / name)
            if image not in frames.index:
                continue
            [frame] = decisions.results.framed(frames.loc[[image]], seamless=True)
            shown = colours(np.clip((frame - low) / (high - low), 0, 1), bytes=True)[..., :3]
            kept = f"{place + 1:05}-{re.sub(r'[^0-9A-Za-z_-]+', '_', Path(name).stem)[:60]}.jpg"
            picture = _beside(image, Image.fromarray(shown))
            how = {"format": "JPEG", "quality": 88, "comment": MADE}
            files.replace_file(
                out / "overlays" / kept, lambda path, picture=picture, how=how: picture.save(path, **how)
            )
            table.loc[place, "overlay"] = f"overlays/{kept}"
            if (limit := decisions.facts["pixel_threshold"]) is not None:
                [inside] = decisions.results.inside(frames.loc[[image]])
                above = frame > limit if inside is None else (frame > limit) & inside
                marked = Image.fromarray(above.astype(np.uint8) * 255).resize(
                    image_files.read_size(image), Image.Resampling.NEAREST
                )
                drawn = f"{kept.removesuffix('.jpg')}.png"
                how = {"format": "PNG", "pnginfo": _comment()}
                files.replace_file(out / "masks" / drawn, lambda path, marked=marked, how=how: marked.save(path, **how))
                table.loc[place, "mask"] = f"masks/{drawn}"
    files.replace_file(out / "decisions.csv", lambda path: table.to_csv(path, index=False))
    facts = json.dumps(decisions.facts, indent=1)
    files.replace_file(out / "decisions.json", lambda path: path.write_text(facts + "\n", encoding="utf-8"))
    _remove_earlier(out, {*table.overlay.dropna(), *table["mask"].dropna()})


def _remove_earlier(out: Path, written: set[str]) -> None:
    """Remove the overlays and masks of earlier calls from a folder."""
    for file in [*(out / "overlays").glob("*.jpg"), *(out / "masks").glob("*.png")]:
        if f"{file.parent.name}/{file.name}" in written:
            continue
        with contextlib.suppress(OSError):  # what is no picture is not ours
            with Image.open(file) as image:
                ours = image.info.get("comment") in (MADE, MADE.decode())
            if ours:
                file.unlink()


def _comment() -> PngImagePlugin.PngInfo:
    """The comment by which a mask of an earlier call is known."""
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", MADE.decode())
    return info


def _beside(image: str, heat: Image.Image) -> Image.Image:
    """A picture, and the same picture under its map."""
    shown = Image.fromarray(figures.load_thumbnail(image, WIDTH))
    both = Image.new("RGB", (2 * shown.width, shown.height))
    both.paste(shown, (0, 0))
    both.paste(Image.blend(shown, heat.resize(shown.size, Image.Resampling.BILINEAR), INK), (shown.width, 0))
    return both


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 decided, 1 some pictures unreadable or none decided, 2 wrong input, 3 a fault of vlmad."""
    parser = argparse.ArgumentParser(prog="python -m vlmad_lib decide", description=__doc__.splitlines()[0])
    parser.add_argument("profile", help="a profile in reports/, or the path of a YAML file: the method and its weights")
    parser.add_argument("folder", type=Path, help="new pictures, and normal ones in good/")
    parser.add_argument("--out", type=Path, required=True, help="folder of decisions.csv and overlays/")
    parser.add_argument("--alpha", type=float, default=0.1, help="share of good pictures that may be rejected")
    parser.add_argument("--category", default="", help="whose normal pictures, where the folder has no good/")
    parser.add_argument("--method", default="", help="name of a method of the profile; its first if none is given")
    parser.add_argument(
        "--groups", default="", help="part of each normal picture: a regular expression on file names, or a CSV"
    )
    parser.add_argument("-p", dest="pairs", action="append", default=[], metavar="KEY=VALUE", help="changes a key")
    options = parser.parse_args(arguments)
    return commands.run_command(lambda: _decide_and_show(options), "Interrupted; what was encoded is kept.")


def _decide_and_show(options: argparse.Namespace) -> int:
    """Decide as a command line asks and print what came of it; the exit code."""
    if options.out.resolve().is_relative_to(options.folder.resolve()):
        raise InputError(f"--out {options.out} lies in {options.folder}: overlays would be judged next time.")
    profile = config.load_profile(options.profile, dict(config.parse_override(pair) for pair in options.pairs))
    decisions = decide(profile, options.folder, options.alpha, options.category, options.method, options.groups)
    write(decisions, options.folder, options.out)
    for warning in decisions.facts.get("warnings", []):
        print(f"Warning: {warning}", file=sys.stderr)
    for note in decisions.facts["notes"]:
        print(f"Note: {note}", file=sys.stderr)
    print(options.out / "decisions.csv")
    print(decisions.describe())
    return int(bool({"unreadable", "undecided"} & set(decisions.table.decision)))
