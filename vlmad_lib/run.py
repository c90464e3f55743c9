"""A run: from a profile to the scores table, its metrics and the maps beside it.

A unit is one variant of one method on one category. Units are kept under a digest of everything that
decides their numbers (images, weights, parameters, code), so a run goes on where it was interrupted,
recomputes nothing finished, and two runs that share a unit share its result.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from vlmad_lib import InputError, backbones, data, features, imports, metrics, prompts, statistics, winclip
from vlmad_lib.profile import Import, Method, Profile
from vlmad_lib.results import KEYS, METRICS, SCORES, SETTINGS, SHARES, Results

_DECIDING = ("backbones", "data", "features", "imports", "metrics", "prompts", "run", "statistics", "winclip")
CODE = [*(Path(__file__).parent / f"{name}.py" for name in _DECIDING), prompts.FILE]
"""The files whose change makes kept units stale; kept features depend on less (see features.Store)."""


@dataclass(frozen=True)
class Variant:
    """One method with all parameters fixed."""

    spec: Method
    chosen: winclip.Settings
    shots: int
    seed: int

    def columns(self, backbone: backbones.Backbone) -> dict:
        """The variant as columns of the scores table."""
        plain = {
            name: "+".join(map(str, value)) if isinstance(value, list) else str(value)
            for name, value in self.chosen.model_dump().items()
        }
        facts = {
            "method": self.spec.name,
            "backbone": backbone.label,
            "weights": backbone.fingerprint[:12],
            "preset": self.spec.preset,
            "shots": self.shots,
            "seed": self.seed,
        }
        return facts | plain | {"variant": features.digest(facts, plain)[:10]}


def variants(profile: Profile) -> list[list[Variant]]:
    """The variants of each method; zero-shot draws nothing and has one seed. InputError for wrong settings."""
    found, named = [], [spec.name for spec in [*profile.methods, *profile.imports]]
    for name in named:
        if named.count(name) > 1:
            raise InputError(f"Two methods or imports are named {name!r}; give each its own 'name'.")
    for spec in profile.methods:
        chosen = winclip.settings(spec.preset, spec.settings)
        draws = [(shots, seed) for shots in profile.shots for seed in (profile.seeds if shots else [0])]
        found.append([Variant(spec, chosen, shots, seed) for shots, seed in dict.fromkeys(draws)])
    return found


# ---------------------------------------------------------------- the run


def run(profile: Profile, progress: bool = False) -> Results:
    """Everything a profile asks for, from the cache where it is kept. Raises InputError for wrong input."""
    planned = variants(profile)
    if not planned and not profile.imports:
        raise InputError("The profile names no methods and no imports; add one of them.")
    table, notes = data.index(profile)
    cache = profile.path(profile.cache)
    folder = cache / "runs" / _digest(profile, table)
    if not (folder / "run.json").is_file():
        _compute(profile, planned, table, notes, folder, progress)
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    scores, found = (pd.read_parquet(folder / f"{name}.parquet") for name in ("scores", "metrics"))
    return Results(profile, table, scores, found, facts, cache)


def _digest(profile: Profile, table: pd.DataFrame) -> str:
    """What decides a run's tables: parameters, images, masks, weight files, outside results and code."""
    weights = [_weights_file(spec) for spec in profile.methods]
    outside = [path for spec in profile.imports for path in _files(profile.path(spec.path))]
    deciding = profile.model_dump(exclude={"title", "notice", "notebooks", "workers", "batch", "cache", "download"})
    stamps = [features.stamp(path) for path in [*table.image, *table["mask"], *weights, *outside]]
    return features.digest(deciding, table.to_csv(), stamps, _code())


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
    started = time.perf_counter()
    categories = list(table.category.unique())
    jobs = [(job, category) for job in [*planned, *profile.imports] for category in categories]
    work = (joblib.delayed(_category)(profile, job, table[table.category == category]) for job, category in jobs)
    # One worker stays in this process: the backbone is loaded once and its matrix products use every core.
    done = joblib.Parallel(n_jobs=profile.workers, return_as="generator")(work)
    units, remarks = [], list(notes)
    for found, said in tqdm(done, "categories", total=len(jobs), disable=not progress, leave=False):
        units += found
        remarks += said
    scores, measured = _gather(profile, units)
    remarks += _uncovered(profile, scores, categories)
    facts = {
        "warnings": _warnings(profile),
        "notes": list(dict.fromkeys(remarks)),
        "backbones": [_backbone(spec, profile).facts() for spec in profile.methods],
        "data": data.counts(table),
        "seconds": {"compute": round(time.perf_counter() - started, 1)},
    }
    for name, frame in (("scores", scores), ("metrics", measured)):
        features.replace(folder / f"{name}.parquet", lambda path, frame=frame: frame.to_parquet(path, index=False))
    features.replace(folder / "run.json", lambda path: path.write_text(json.dumps(facts, indent=1), encoding="utf-8"))


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


def _warnings(profile: Profile) -> list[str]:
    """What makes every number of this run meaningless or unfair, said in red."""
    return [
        f"{spec.name}: the weights of {spec.backbone} are random ({spec.weights}), "
        "so its numbers say nothing about the method."
        for spec in profile.methods
        if spec.weights.startswith("random:")
    ]


# ---------------------------------------------------------------- one image


@dataclass(frozen=True)
class View:
    """What a method sees of one image: its kept features (first tile), its prompts' prototypes and settings."""

    backbone: backbones.Backbone
    chosen: winclip.Settings
    features: dict[str, torch.Tensor]
    text: torch.Tensor

    def parts(self) -> dict[str, np.ndarray]:
        """The zero-shot map of every scale and their fusion, (grid, grid) each, by name."""
        grid, size = self.backbone.grid, "{0}x{0} windows"
        alone = self.chosen.model_copy(update={"full_image": False})
        found = {}
        for window in self.chosen.windows:
            one = alone.model_copy(update={"windows": [window]})
            found[size.format(window)] = winclip.zero_shot(self.features, self.text, one, grid)[1][0].numpy()
        whole, fused = winclip.zero_shot(self.features, self.text, self.chosen, grid)
        return found | {"whole image": np.full((grid, grid), float(whole[0])), "fused": fused[0].numpy()}


def view(profile: Profile, row: pd.Series, spec: Method | None = None) -> View:
    """The view of an index row by a method of the profile (its first; the demo's where it has none)."""
    spec = spec or (profile.methods or [Method(backbone="demo", weights="demo")])[0]
    backbone, chosen, cache = (
        _backbone(spec, profile),
        winclip.settings(spec.preset, spec.settings),
        profile.path(profile.cache),
    )
    store, names = _store(cache, backbone, chosen, chosen.channels), winclip.arrays(chosen)
    store.fill([row.image], names)
    values, _ = store.load([row.image], names)
    text = _prototypes(cache, backbone, _texts(chosen, row), chosen.normalise_prompts)
    return View(backbone, chosen, {name: array[:1] for name, array in values.items()}, text)


# ---------------------------------------------------------------- one category


@lru_cache(maxsize=2)
def _loaded(name: str, weights: str, precision: str, download: bool) -> backbones.Backbone:
    return backbones.load(name, weights, precision, download)


def _backbone(spec: Method, profile: Profile) -> backbones.Backbone:
    """The backbone of a method, loaded once per process."""
    return _loaded(spec.backbone, spec.weights, spec.precision, profile.download)


def _category(profile: Profile, job: list[Variant] | Import, table: pd.DataFrame) -> tuple[list[Path], list[str]]:
    """The units of one method on one category, and notes; computes the units that are not kept."""
    return _import(profile, job, table) if isinstance(job, Import) else (_score(profile, job, table), [])


def _score(profile: Profile, wanted: list[Variant], table: pd.DataFrame) -> list[Path]:
    """The units of a method's variants on one category; images are encoded once for all of them."""
    chosen, backbone = wanted[0].chosen, _backbone(wanted[0].spec, profile)
    category, texts = table.category.iloc[0], _texts(chosen, table.iloc[0])
    units, todo = [], []
    for one in wanted:
        rows, drawn = data.tested(table, one.shots), data.references(table, category, one.shots, one.seed)
        unit = _unit(profile, one.columns(backbone), rows, [texts, *map(features.stamp, drawn.image)])
        units.append(unit)
        if not unit.is_dir():
            todo.append((one, unit, rows, drawn))
    if todo:
        _score_missing(profile, backbone, texts, todo)
    return units


def _texts(chosen: winclip.Settings, row: pd.Series) -> tuple[list[str], list[str]]:
    """The normal and anomalous prompts of a row's category."""
    name = {"cleaned": row.class_name, "folder": row.category, "object": "object"}[chosen.names]
    return prompts.ensemble(name, chosen.states, chosen.templates)


def _score_missing(profile: Profile, backbone: backbones.Backbone, texts: tuple, todo: list[tuple]) -> None:
    cache, chosen = profile.path(profile.cache), todo[0][0].chosen
    shots = max(one.shots for one, *_ in todo)
    store, memory = _store(cache, backbone, chosen, chosen.channels), _store(cache, backbone, chosen, "rgb")
    store.fill([path for *_, rows, _ in todo for path in rows.image], winclip.arrays(chosen, shots), profile.batch)
    memory.fill([path for *_, drawn in todo for path in drawn.image], winclip.arrays(chosen, shots), profile.batch)
    text = _prototypes(cache, backbone, texts, chosen.normalise_prompts)
    masks: dict[str, np.ndarray | None] = {}
    for one, unit, rows, drawn in todo:
        names = winclip.arrays(chosen, one.shots)
        values, tiles = store.load(list(rows.image), names)
        references = memory.load(list(drawn.image), names) if one.shots else None
        scores, maps = _tiled(values, tiles, text, chosen, backbone.grid, references)
        named = rows.assign(references=";".join(map(_short, drawn.image)), tiles=tiles)
        _write(unit, profile, named, one.columns(backbone), scores, maps, masks)


def _store(cache: Path, backbone: backbones.Backbone, chosen: winclip.Settings, channels: str) -> features.Store:
    return features.Store(cache, backbone, winclip.encode, winclip.ENCODING, chosen.fit, channels)


def _prototypes(cache: Path, backbone: backbones.Backbone, texts: tuple, normalise: bool) -> torch.Tensor:
    """The (2, D) prompt means of a class name, kept by prompts and weights."""
    key = features.digest(backbone.fingerprint, texts, normalise, prompts.prototypes)
    return features.kept(cache / "text" / f"{key}.npy", lambda: prompts.prototypes(backbone, *texts, normalise))


def _tiled(
    values: dict, tiles: np.ndarray, text: torch.Tensor, chosen: winclip.Settings, grid: int, references
) -> tuple:
    """Image scores (N,) and maps (tiles, grid, grid); tile t meets tile t of the references, scores are averaged."""
    position = np.concatenate([np.arange(count) for count in tiles])
    scores, maps = torch.empty(len(position)), torch.empty(len(position), grid, grid)
    for place in np.unique(position):
        at = torch.from_numpy(np.flatnonzero(position == place))
        memory = None
        if references is not None:
            arrays, counts = references
            same = np.concatenate([np.arange(count) for count in counts]) == place
            # references of another shape may have fewer tiles: then all of theirs serve
            kept = torch.from_numpy(same if same.any() else ~same)
            memory = {name: array[kept] for name, array in arrays.items()}
        part = {name: array[at] for name, array in values.items()}
        scores[at], maps[at] = winclip.score(part, text, chosen, grid, memory)
    starts = np.r_[0, tiles.cumsum()[:-1]]
    return np.add.reduceat(scores.double().numpy(), starts) / tiles, maps.numpy()


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
    if not unit.is_dir():
        _write(unit, profile, rows.assign(references="", tiles=1), columns, scores, maps, {})
    return [unit], notes


# ---------------------------------------------------------------- one unit


def _unit(profile: Profile, columns: dict, rows: pd.DataFrame, more: list) -> Path:
    """The folder of a unit: its name is a digest of all that decides its numbers."""
    stamps = [features.stamp(path) for path in [*rows.image, *rows["mask"]]]
    facts = rows.to_csv(index=False)
    key = features.digest(columns, stamps, facts, more, profile.evaluation_size, profile.fpr_limit, _code())
    return profile.path(profile.cache) / "units" / key


def _short(path: str) -> str:
    """A file with its last two folders: enough to find it, and no home folder in a table that is shared."""
    return "/".join(Path(path).parts[-3:])


def _write(unit: Path, profile: Profile, rows: pd.DataFrame, columns: dict, scores, maps, masks: dict) -> None:
    """A unit's scores, maps and metrics, complete or not at all; masks by path are read once."""
    measured = _measure(profile, rows, columns["fit"], scores, maps, masks)
    table = rows.drop(columns="split").assign(score=scores, map_row=rows.tiles.cumsum() - rows.tiles, **columns)
    named = {key: columns[key] for key in KEYS} | {key: rows[key].iloc[0] for key in ("dataset", "category", "group")}
    partial = unit.with_name(f".{unit.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    table.to_parquet(partial / "scores.parquet", index=False)
    if maps is not None:
        np.save(partial / "maps.npy", np.asarray(maps, np.float32), allow_pickle=False)
    (partial / "metrics.json").write_text(json.dumps(named | measured), encoding="utf-8")
    try:
        partial.replace(unit)
    except OSError:  # another run finished the same unit first
        shutil.rmtree(partial, ignore_errors=True)


def _measure(profile: Profile, rows: pd.DataFrame, fit: str, scores: np.ndarray, maps, masks: dict) -> dict:
    """Image and pixel metrics of one unit, and the counts they rest on."""
    labels, size = rows.label.to_numpy(), profile.evaluation_size
    for row in rows.itertuples():
        if row.image not in masks:  # an anomalous image without a mask has no pixels to count
            bare = row.label and not row.mask
            masks[row.image] = None if bare else data.framed_mask(row.mask, row.width, row.height, fit, size)
    found = metrics.image_metrics(labels, scores)
    found["image_auroc_low"], found["image_auroc_high"] = statistics.auroc_interval(labels, scores)
    found |= dict.fromkeys(metrics.PIXEL, float("nan"))
    if maps is not None:
        parts = np.split(np.asarray(maps), rows.tiles.cumsum()[:-1])
        pairs = (
            (metrics.framed_map(part, row.width, row.height, fit, size), masks[row.image])
            for row, part in zip(rows.itertuples(), parts, strict=True)
            if masks[row.image] is not None
        )
        found |= metrics.pixel_metrics(pairs, profile.fpr_limit)
    lost = [row.mask and not masks[row.image].any() for row in rows.itertuples()]
    counts = {"n_good": (labels == 0).sum(), "n_defective": (labels == 1).sum(), "n_masks": (rows["mask"] != "").sum()}
    counts |= {"n_lost_masks": sum(map(bool, lost)), "evaluation_size": size}
    return found | {name: int(value) for name, value in counts.items()}
