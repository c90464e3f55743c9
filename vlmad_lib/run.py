"""A run: from a profile to the scores table, its metrics and the maps beside it.

A unit is one variant of one method on one category. Units are kept under a digest of everything that
decides their numbers (images, weights, parameters, code), so a run goes on where it was interrupted,
recomputes nothing finished, and two runs that share a unit share its result.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from vlmad_lib import (
    InputError,
    anomalyclip,
    backbones,
    data,
    features,
    files,
    imports,
    methods,
    metrics,
    prompts,
    statistics,
)
from vlmad_lib.breakdown import TITLES
from vlmad_lib.methods import METHODS, SETTINGS, Chosen
from vlmad_lib.profile import FULL, Import, Method, Profile, Strict, load
from vlmad_lib.results import KEYS, METRICS, SCORES, SHARES, Results

_DECIDING = ["backbones", "blocks", "data", "features", "imports", "levels", "methods", "metrics", "prompt_learner"]
_DECIDING += ["prompts", "run", "statistics", "winclip", "anomalyclip", "aprilgan", "checkpoints", "clip", "coop"]
_DECIDING += ["hybrid", "embedding"]
CODE = [*(Path(__file__).parent / f"{name}.py" for name in _DECIDING), prompts.FILE]
"""The files whose change makes kept units stale; kept features depend on less (see features.Store)."""
PART = 8  # images a worker encodes before it takes others


@dataclass(frozen=True)
class Variant:
    """One method with all parameters fixed."""

    chosen: Chosen
    shots: int
    seed: int

    def columns(self, backbone: backbones.Backbone) -> dict:
        """The variant as columns of the scores table."""
        facts = self.chosen.columns(backbone) | {"shots": self.shots, "seed": self.seed}
        return facts | {"variant": features.digest(facts)[:10]}


def variants(profile: Profile) -> list[list[Variant]]:
    """The variants of each method; zero-shot and full-shot draw nothing and have one seed.

    A method that uses no references has its zero-shot variant, whatever shots the profile asks for; one that needs
    them has none, and is left out where the profile asks for zero-shot alone. InputError for wrong settings.
    """
    found, named = [], [spec.name for spec in [*profile.methods, *profile.imports]]
    for name in named:
        if named.count(name) > 1:
            raise InputError(f"Two methods or imports are named {name!r}; give each its own 'name'.")
    for spec in profile.methods:
        chosen = methods.choose(spec, profile)
        counts = profile.shots if chosen.module.FEW_SHOT else [0]
        counts = [shots for shots in counts if shots or chosen.module.ZERO_SHOT]
        draws = [(shots, seed) for shots in counts for seed in (profile.seeds if 0 < shots < FULL else [0])]
        found.append([Variant(chosen, shots, seed) for shots, seed in dict.fromkeys(draws)])
    return list(filter(None, found))


# ---------------------------------------------------------------- the run


def index(profile: Profile) -> tuple[pd.DataFrame, list[str]]:
    """The index of a profile's data as its run uses it, and notes: no images are held out if no method needs them."""
    few_shot = any(METHODS[spec.method].FEW_SHOT for spec in profile.methods)
    return data.index(profile if few_shot else profile.model_copy(update={"shots": [0]}))


def run(profile: Profile, progress: bool = False, table: pd.DataFrame | None = None) -> Results:
    """Everything a profile asks for, from the cache where it is kept. Raises InputError for wrong input.

    ``table``: an index to run on in place of the profile's own, for instance its training images as those tested.
    """
    planned = variants(profile)
    if not planned and not profile.imports:
        if profile.methods:
            names = ", ".join(spec.name for spec in profile.methods)
            raise InputError(f"'shots' asks for no references, and without them {names} cannot run; add 1 to 'shots'.")
        raise InputError("The profile names no methods and no imports; add one of them.")
    table, notes = index(profile) if table is None else (table, [])
    cache = profile.path(profile.cache)
    folder = cache / "runs" / _digest(profile, planned, table)
    found = _kept(folder, cache)
    if found is None:
        _compute(profile, planned, table, notes, folder, progress)
        found = _kept(folder, cache)
    if found is None:
        raise InputError(f"What was just written to {folder} is damaged; check that disk, or set another 'cache'.")
    return Results(profile, table, *found, cache)


def _kept(folder: Path, cache: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict] | None:
    """A run's tables and facts where they and all its maps are as they were written."""
    if not files.whole(folder):
        return None
    scores, found = (pd.read_parquet(folder / f"{name}.parquet") for name in ("scores", "metrics"))
    units = {Path(file).parent for file in scores.map_file.unique() if file}
    if not all([files.whole(cache / unit) for unit in units]):  # all are looked at: each damaged one is said
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return scores, found, json.loads((folder / "run.json").read_text(encoding="utf-8"))


def _digest(profile: Profile, planned: list[list[Variant]], table: pd.DataFrame) -> str:
    """What decides a run's tables: parameters, images, masks, weight files, outside results and code."""
    weights = [_weights_file(spec) for spec in profile.methods]
    weights += [str(one.prompts.path) for one in _chosen(planned) if one.prompts]
    outside = [path for spec in profile.imports for path in _files(profile.path(spec.path))]
    deciding = profile.model_dump(
        exclude={"title", "notice", "notebooks", "taxonomy", "workers", "batch", "cache", "download"}
    )
    stamps = [features.stamp(path) for path in [*table.image, *table["mask"], *weights, *outside]]
    return features.digest(deciding, table.to_csv(), stamps, _code())


def _chosen(planned: list[list[Variant]]) -> list[Chosen]:
    return [one[0].chosen for one in planned if one]


def _weights_file(spec: Method) -> str:
    """The file of a method's weights; none for random ones, nor where it has gone since they were used."""
    try:
        return "" if spec.weights.startswith("random:") else str(backbones.locate(spec.backbone, spec.weights))
    except InputError:
        return ""


def _files(path: Path) -> list[str]:
    return [str(path)] if path.is_file() else sorted(str(file) for file in path.rglob("*") if file.is_file())


@lru_cache(maxsize=1)
def _code() -> str:
    return features.digest([path.read_text(encoding="utf-8") for path in CODE])


def _compute(
    profile: Profile, planned: list[list[Variant]], table: pd.DataFrame, notes: list[str], folder: Path, progress: bool
) -> None:
    """Compute the units that are not kept, gather all of them and write the run's tables and facts."""
    for spec in profile.methods:  # what is missing is said before the first method has worked for hours
        if not spec.weights.startswith("random:"):
            backbones.locate(spec.backbone, spec.weights, profile.download)
    started = time.perf_counter()
    categories = list(table.category.unique())
    of = dict(list(table.groupby("category", sort=False)))
    plans = [_plan(profile, wanted, of[category]) for wanted in planned for category in categories]
    encoding = _encoding(profile, plans)
    total = sum(len(paths) for *_, paths in encoding)
    with tqdm(total=total, desc="encode", unit="image", disable=not (progress and total), leave=False) as bar:
        for count in _parallel(profile, _encode, encoding):
            bar.update(count)
    jobs = [(plan.chosen, plan.row, plan.todo) for plan in plans if plan.todo]
    shown = {"total": len(jobs), "unit": "category", "disable": not (progress and jobs), "leave": False}
    units, remarks = [unit for plan in plans for unit in plan.units], list(notes)
    for _ in tqdm(_parallel(profile, _score, jobs), "score", **shown):
        pass  # the units are on disk now
    outside = [(spec, of[category]) for spec in profile.imports for category in categories]
    for found, said in _parallel(profile, _import, outside):
        units += found
        remarks += said
    scores, measured = _gather(profile, units)
    remarks += _uncovered(profile, scores, categories) + _one_sided(profile, planned) + _in_bins(profile, measured)
    used = [_backbone(spec, profile) for spec in profile.methods]
    facts = {
        "warnings": _warnings(profile, planned),
        "notes": list(dict.fromkeys(remarks)),
        "backbones": list({one.label: one.facts() for one in used}.values()),
        "prompts": [_prompt_facts(one) for one in _chosen(planned) if one.prompts],
        "data": data.counts(table),
        "seconds": {"compute": round(time.perf_counter() - started, 1)},
    }

    def fill(partial: Path) -> None:
        scores.to_parquet(partial / "scores.parquet", index=False)
        measured.to_parquet(partial / "metrics.parquet", index=False)
        (partial / "run.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")

    files.place(folder, fill)


def _parallel(profile: Profile, work: Callable, jobs: list[tuple]) -> Iterator:
    """What ``work(profile, *job)`` returns for each job, in order, by the profile's workers or a joblib backend's.

    One worker stays in this process: the backbone is loaded once and its matrix products use every core.
    """
    tasks = (joblib.delayed(work)(profile, *job) for job in jobs)
    return joblib.Parallel(n_jobs=profile.processes, return_as="generator")(tasks)


def _gather(profile: Profile, units: list[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of all units, checked against their schemas."""
    if not units:
        raise InputError("No outside result matches a test image; name them <category>, <defect>, <image file stem>.")
    cache = profile.path(profile.cache)
    frames = []
    for unit in units:
        maps = unit / "maps.npy"
        place = str(maps.relative_to(cache)) if maps.is_file() else ""
        frames.append(pd.read_parquet(unit / "scores.parquet").assign(map_file=place))
    found = pd.DataFrame([json.loads((unit / "metrics.json").read_text(encoding="utf-8")) for unit in units])
    found = found.astype(dict.fromkeys(SHARES, float))
    return SCORES.validate(pd.concat(frames, ignore_index=True)), METRICS.validate(found)


def _uncovered(profile: Profile, scores: pd.DataFrame, categories: list[str]) -> list[str]:
    """Sentences on categories an outside result does not cover; InputError where it covers none."""
    notes = []
    for spec in profile.imports:
        covered = set(scores[scores.method == spec.name].category)
        absent = [category for category in categories if category not in covered]
        if not covered:
            raise InputError(
                f"{profile.path(spec.path)} has no result for any test image; "
                "name its results <category>, <defect>, <image file stem>."
            )
        if absent:
            notes.append(f"{spec.name}: no results for {', '.join(absent)}.")
    return notes


def _warnings(profile: Profile, planned: list[list[Variant]]) -> list[str]:
    """What makes every number of this run meaningless or unfair, said in red."""
    random = [
        f"{spec.name}: the weights of {spec.backbone} are random ({spec.weights}), "
        "so its numbers say nothing about the method."
        for spec in profile.methods
        if spec.weights.startswith("random:")
    ]
    leaked = [
        f"{one.name}: its {one.prompts.noun} were trained on the very data they are tested on "
        f"({one.prompts.trained_on}), so its numbers are no zero-shot result and compare with nothing."
        for one in _chosen(planned)
        if one.prompts and one.prompts.leaked
    ]
    return random + leaked


def _one_sided(profile: Profile, planned: list[list[Variant]]) -> list[str]:
    """Notes on methods that leave the profile's references unused, or have no zero-shot result beside the others'."""
    alone = [one.name for one in _chosen(planned) if any(profile.shots) and not one.module.FEW_SHOT]
    lacking = [spec.name for spec in profile.methods if 0 in profile.shots and not METHODS[spec.method].ZERO_SHOT]
    notes = [f"{name} uses no reference images: zero-shot only." for name in alone]
    return notes + [f"{name} only compares with reference images: no zero-shot result." for name in lacking]


def _in_bins(profile: Profile, measured: pd.DataFrame) -> list[str]:
    """A note on how far binned pixel metrics can be from the exact ones, over all categories and variants."""
    bounds = measured[list(metrics.BOUNDS)].max()
    if profile.pixel_metrics == "exact" or bounds.isna().all():
        return []
    pairs = zip(metrics.COUNTED, metrics.BOUNDS, strict=True)
    largest = ", ".join(f"{TITLES[name]} {bounds[bound]:.1e}" for name, bound in pairs)
    return [f"Pixel metrics were counted in bins; no exact value differs by more than: {largest}."]


def _prompt_facts(chosen: Chosen) -> dict:
    """What a report says of learned prompts, ready for JSON."""
    prompts = chosen.prompts
    return {"method": chosen.name, "checkpoint": prompts.path.name, "sha256": prompts.digest,
            "trained_on": prompts.trained_on, "leaked": prompts.leaked}  # fmt: skip


# ---------------------------------------------------------------- one image


@dataclass(frozen=True)
class View:
    """What a method sees of one image: its kept features (first tile), its text features and settings."""

    backbone: backbones.Backbone
    method: str
    chosen: Strict
    grid: int
    features: dict[str, torch.Tensor]
    text: torch.Tensor | None
    image: str
    draw: Callable  # the method's maps from features, text, settings and grid
    checkpoint: Path | None = None

    def attention(self, kind: str, cell: tuple[int, int]) -> np.ndarray:
        """(grid, grid) log10 of AnomalyCLIP's attention of one patch to all, over what even attention gives."""
        pixels = data.views(self.image, self.chosen.fit, self.grid * self.backbone.visual.patch_size[0])
        weights = anomalyclip.attention(self.backbone, self.backbone.normalise(pixels), kind, cell)[0]
        return (weights * weights.numel()).clamp_min(1e-3).log10().numpy()

    def parts(self) -> dict[str, np.ndarray]:
        """The zero-shot maps the method's own map is made of, and it, (grid, grid) each, by name."""
        return self.draw(self.features, self.text, self.chosen, self.grid)


def view(profile: Profile, row: pd.Series, spec: Method | None = None, method: str = "winclip") -> View:
    """The view of an index row by a method (the profile's first of its kind; the demo's where it has none)."""
    known = [*profile.methods, *load("demo").methods]
    spec = spec or next(one for one in known if one.method == method)
    chosen, backbone, cache = methods.choose(spec, profile), _backbone(spec, profile), profile.path(profile.cache)
    store, names = chosen.store(cache, backbone), chosen.module.arrays(chosen.settings)
    store.fill([row.image], names)
    values, _ = store.load([row.image], names)
    text = chosen.text(cache, backbone, chosen.module.wording(chosen.settings, row))
    first = {name: array[:1] for name, array in values.items()}
    place = chosen.prompts.path if chosen.prompts else None
    seen = chosen.grid(backbone), first, text, row.image, chosen.parts
    return View(backbone, spec.method, chosen.settings, *seen, place)


# ---------------------------------------------------------------- one category


@lru_cache(maxsize=2)
def _loaded(name: str, weights: str, precision: str, download: bool) -> backbones.Backbone:
    return backbones.load(name, weights, precision, download)


def _backbone(spec: Method, profile: Profile) -> backbones.Backbone:
    """The backbone of a method, loaded once per process."""
    return _loaded(spec.backbone, spec.weights, spec.precision, profile.download)


@dataclass(frozen=True)
class Plan:
    """The units of a method's variants on one category, and what those that are not kept are computed from.

    That is the variant, its unit, the rows it tests and those of its references. ``row`` is one of the category.
    """

    chosen: Chosen
    row: pd.Series
    units: list[Path]
    todo: list[tuple[Variant, Path, pd.DataFrame, pd.DataFrame]]


def _plan(profile: Profile, wanted: list[Variant], table: pd.DataFrame) -> Plan:
    """What a run has to do for a method's variants on one category."""
    chosen = wanted[0].chosen
    category, backbone = table.category.iloc[0], _backbone(chosen.spec, profile)
    words = chosen.module.wording(chosen.settings, table.iloc[0])
    units, todo = [], []
    for one in wanted:
        rows, drawn = data.tested(table, one.shots), data.references(table, category, one.shots, one.seed)
        unit = _unit(profile, one.columns(backbone), rows, [words, *map(features.stamp, drawn.image)])
        units.append(unit)
        if not files.whole(unit):
            todo.append((one, unit, rows, drawn))
    return Plan(chosen, table.iloc[0], units, todo)


def _encoding(profile: Profile, plans: list[Plan]) -> list[tuple]:
    """The images that the units to compute need encoded, ``PART`` by ``PART``, as arguments of ``_encode``.

    Parts are smaller than categories: workers share them evenly, and how long they take can be told from the first.
    """
    found, taken = [], set()
    cache = profile.path(profile.cache)
    for plan in (plan for plan in plans if plan.todo):
        chosen, todo = plan.chosen, plan.todo
        backbone, own = _backbone(chosen.spec, profile), chosen.settings.channels
        store = chosen.store(cache, backbone)
        names = _arrays(profile, chosen.spec, backbone, store, max(one.shots for one, *_ in todo))
        tested = [path for *_, rows, _ in todo for path in rows.image]
        drawn = [path for *_, drawn in todo for path in drawn.image]
        for channels, paths in ((own, tested), ("rgb", drawn)):
            store = chosen.store(cache, backbone, channels)
            # an image that another method's part encodes, with the arrays of both, is left to it
            paths = [path for path in store.missing(dict.fromkeys(paths), names) if (store.folder, path) not in taken]
            taken |= {(store.folder, path) for path in paths}
            size = max(PART, profile.batch)
            parts = [paths[start : start + size] for start in range(0, len(paths), size)]
            found += [(chosen, plan.row, channels, names, part) for part in parts]
    return found


def _encode(profile: Profile, chosen: Chosen, row: pd.Series, channels: str, names: list[str], paths: list[str]) -> int:
    """Encode images for a method; returns how many."""
    cache, backbone = profile.path(profile.cache), _backbone(chosen.spec, profile)
    chosen.text(cache, backbone, chosen.module.wording(chosen.settings, row))  # unfit prompts are refused first
    chosen.store(cache, backbone, channels).fill(paths, names, profile.batch)
    return len(paths)


def _score(profile: Profile, chosen: Chosen, row: pd.Series, todo: list[tuple]) -> None:
    """Compute a plan's missing units from kept features; every image is read once for all of them."""
    cache, backbone = profile.path(profile.cache), _backbone(chosen.spec, profile)
    code, settings = chosen.module, chosen.settings
    text = chosen.text(cache, backbone, code.wording(settings, row))
    store, memory = chosen.store(cache, backbone), chosen.store(cache, backbone, "rgb")
    scorers = []
    for one, *_, drawn in todo:
        references = memory.load(list(drawn.image), code.arrays(settings, one.shots)) if one.shots else None
        remember = code.remember if one.shots else None
        scorers.append(Scorer(chosen.score, text, settings, chosen.grid(backbone), references, remember))
    asking: dict[str, list[Scorer]] = {}  # by image: few-shot variants may test fewer
    for scorer, (*_, rows, _) in zip(scorers, todo, strict=True):
        for path in rows.image:
            asking.setdefault(path, []).append(scorer)
    names = code.arrays(settings, max(one.shots for one, *_ in todo))
    for path, values in zip(asking, store.each(asking, names), strict=True):
        for scorer in asking[path]:
            scorer.add(path, values)
    masks: dict[str, np.ndarray | None] = {}
    for scorer, (one, unit, rows, drawn) in zip(scorers, todo, strict=True):
        scores, maps, tiles = scorer.of(rows.image)
        named = rows.assign(references=";".join(map(_short, drawn.image)), tiles=tiles)
        _write(unit, profile, named, one.columns(backbone), scores, maps, masks)


def _arrays(profile: Profile, spec: Method, backbone: backbones.Backbone, store: features.Store, shots: int) -> list:
    """The arrays of all methods of a profile that share one's store: an image is encoded once for all of them."""
    network = ("backbone", "weights", "precision")
    alike = [one for one in profile.methods if all(getattr(one, key) == getattr(spec, key) for key in network)]
    chosen = [methods.choose(one, profile) for one in alike]
    shared = [one for one in chosen if one.store(profile.path(profile.cache), backbone).folder == store.folder]
    return list(dict.fromkeys(name for one in shared for name in one.module.arrays(one.settings, shots)))


class Scorer:
    """Scores and maps of images by one variant, image by image.

    Tile t meets tile t of the references, or what ``remember`` makes of those, once; scores are averaged. Images are
    scored one by one: memory does not grow with their number, nor does a score depend, in its last digit, on the
    company it was computed in.
    """

    def __init__(
        self, score: Callable, text: torch.Tensor | None, chosen: Strict, grid: int,
        references: tuple | None = None, remember: Callable | None = None,
    ):  # fmt: skip
        self.score, self.text, self.chosen, self.grid = score, text, chosen, grid
        self.references, self.remember = references, remember
        self.memories, self.found = {}, {}

    def add(self, image: str, values: dict[str, torch.Tensor]) -> None:
        """Score an image by its arrays, a row a tile."""
        found = []
        for place in range(len(next(iter(values.values())))):
            tile = {name: array[place : place + 1] for name, array in values.items()}
            value, one = self.score(tile, self.text, self.chosen, self.grid, self._memory(place))
            found.append((float(value), one[0].numpy()))
        self.found[image] = found

    def _memory(self, place: int) -> Any:
        if place not in self.memories:
            same = self.references and _of_tile(*self.references, place)
            self.memories[place] = self.remember(same, self.chosen, self.grid) if self.remember else same
        return self.memories[place]

    def of(self, images: Iterable[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image scores (N,), maps (tiles, grid, grid) and the number of tiles of each image."""
        found = [self.found[image] for image in images]
        scores = [np.mean([value for value, _ in tiles]) for tiles in found]
        return np.array(scores), np.stack([one for tiles in found for _, one in tiles]), np.array(list(map(len, found)))


def _of_tile(arrays: dict[str, torch.Tensor], tiles: np.ndarray, place: int) -> dict[str, torch.Tensor]:
    """Tile ``place`` of every reference; all tiles where none has so many, being of another shape."""
    same = np.concatenate([np.arange(count) for count in tiles]) == place
    kept = torch.from_numpy(same if same.any() else ~same)
    return {name: array[kept] for name, array in arrays.items()}


def _import(profile: Profile, spec: Import, table: pd.DataFrame) -> tuple[list[Path], list[str]]:
    """The unit of an outside result on one category (none where it covers no image), and notes."""
    path = profile.path(spec.path)
    rows, scores, maps, notes = imports.read(path, data.tested(table, spec.shots))
    if rows.empty:
        return [], notes
    facts = {"method": spec.name, "backbone": "imported", "weights": "", "preset": "", "shots": spec.shots, "seed": 0}
    settings = dict.fromkeys(SETTINGS, "") | {"fit": "squash"}  # an outside map covers the whole image
    columns = facts | settings | {"variant": features.digest(facts)[:10]}
    unit = _unit(profile, columns, rows, [joblib.hash((scores, maps))])
    if not files.whole(unit):
        _write(unit, profile, rows.assign(references="", tiles=1), columns, scores, maps, {})
    return [unit], notes


# ---------------------------------------------------------------- one unit


def _unit(profile: Profile, columns: dict, rows: pd.DataFrame, more: list) -> Path:
    """The folder of a unit: its name is a digest of all that decides its numbers."""
    stamps = [features.stamp(path) for path in [*rows.image, *rows["mask"]]]
    facts = rows.to_csv(index=False)
    measures = profile.evaluation_size, profile.fpr_limit, profile.pixel_metrics
    key = features.digest(columns, stamps, facts, more, *measures, _code())
    return profile.path(profile.cache) / "units" / key


def _short(path: str) -> str:
    """A file with its last two folders: enough to find it, and no home folder in a table that is shared."""
    return "/".join(Path(path).parts[-3:])


def _write(unit: Path, profile: Profile, rows: pd.DataFrame, columns: dict, scores, maps, masks: dict) -> None:
    """A unit's scores, maps and metrics, complete or not at all; masks by path are read once."""
    measured = _measure(profile, rows, columns, scores, maps, masks)
    table = rows.drop(columns="split").assign(score=scores, map_row=rows.tiles.cumsum() - rows.tiles, **columns)
    named = {key: columns[key] for key in KEYS} | {key: rows[key].iloc[0] for key in ("dataset", "category", "group")}

    def fill(partial: Path) -> None:
        table.to_parquet(partial / "scores.parquet", index=False)
        if maps is not None:
            np.save(partial / "maps.npy", np.asarray(maps, np.float32), allow_pickle=False)
        (partial / "metrics.json").write_text(json.dumps(named | measured), encoding="utf-8")

    files.place(unit, fill)


def _measure(profile: Profile, rows: pd.DataFrame, columns: dict, scores: np.ndarray, maps, masks: dict) -> dict:
    """Image and pixel metrics of one unit, and the counts they rest on."""
    labels, size, fit = rows.label.to_numpy(), profile.evaluation_size, columns["fit"]
    for row in rows.itertuples():
        if row.image not in masks:  # an anomalous image without a mask has no pixels to count
            bare = row.label and not row.mask
            masks[row.image] = None if bare else data.framed_mask(row.mask, row.width, row.height, fit, size)
    found = metrics.image_metrics(labels, scores)
    found["image_auroc_low"], found["image_auroc_high"] = statistics.auroc_interval(labels, scores)
    found |= dict.fromkeys([*metrics.PIXEL, *metrics.BOUNDS], float("nan"))
    if maps is not None:
        parts = np.split(np.asarray(maps), rows.tiles.cumsum()[:-1])
        pairs = (
            (metrics.framed_map(part, row.width, row.height, fit, size, columns["sigma"]), masks[row.image])
            for row, part in zip(rows.itertuples(), parts, strict=True)
            if masks[row.image] is not None
        )
        bins = metrics.BINS if profile.pixel_metrics == "binned" else 0
        found |= metrics.pixel_metrics(pairs, profile.fpr_limit, bins=bins)
    lost = [row.mask and not masks[row.image].any() for row in rows.itertuples()]
    counts = {"n_good": (labels == 0).sum(), "n_defective": (labels == 1).sum(), "n_masks": (rows["mask"] != "").sum()}
    counts |= {"n_lost_masks": sum(map(bool, lost)), "evaluation_size": size}
    return found | {name: int(value) for name, value in counts.items()}
