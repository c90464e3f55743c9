"""A run: from a profile to the scores table, its metrics and the maps beside it.

It is made of units (module ``units``), kept under what decides their numbers, so a run goes on where it was
interrupted, recomputes nothing finished, and two runs that share a unit share its result.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from uuid import uuid4

import joblib
import joblib.parallel
import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from vlmad_lib import InputError, digests, files, methods, tables
from vlmad_lib.config import FULL, Import, Method, Profile, load_profile
from vlmad_lib.data import datasets, external_results, image_files
from vlmad_lib.encoders import backbones, devices, feature_store, prompts
from vlmad_lib.evaluation import metrics
from vlmad_lib.methods import METHODS, SETTINGS, ChosenMethod, anomalyclip
from vlmad_lib.methods.base import MethodSettings
from vlmad_lib.pipeline import scoring, units, workload
from vlmad_lib.pipeline.cache import NEEDS
from vlmad_lib.pipeline.results import Results
from vlmad_lib.pipeline.scoring import Scorer
from vlmad_lib.pipeline.units import Unit
from vlmad_lib.tables import TITLES

# joblib replaces a worker whose memory grew, and loses nothing by it: no news for people
warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)
PART = 8  # images that a worker of this machine encodes before it takes others
CLUSTER_PART = 64  # likewise on a cluster, whose workers may have accelerators that take many at once
STRIPS = ": long strips: "  # by which a note on them is known
# What is said of methods that score a category as a whole.
BATCHED = (
    "Batched zero-shot: {}. Before an image is scored all test images of its category are seen, without labels, so the "
    "figures are not those of a method that sees one image alone; decisions on new pictures, changed pictures and "
    "thresholds from training images leave it out."
)
# Keys of a profile that change no number of a run.
PLACES = {"device", "workers", "batch", "cache", "download"}
NOT_DECIDING = {"title", "notice", "notebooks", "figures", "taxonomy"} | PLACES
TOGETHER = 64  # references of the units that are computed together: those of all are in memory


@dataclass(frozen=True)
class Variant:
    """One method with all parameters fixed."""

    chosen: ChosenMethod
    shots: int
    seed: int

    def columns(self, backbone: backbones.Facts) -> dict:
        """The variant as columns of the scores table."""
        facts = self.chosen.columns(backbone) | {"shots": self.shots, "seed": self.seed}
        return facts | {"variant": digests.digest(facts)[:10]}


def list_variants(profile: Profile) -> list[list[Variant]]:
    """The variants of each method; zero-shot and full-shot draw nothing and have one seed.

    A method that uses no references has its zero-shot variant, whatever shots the profile asks for; one that needs
    them has none, and is left out where the profile asks for zero-shot alone. InputError for wrong settings.
    """
    specs: list[Method | Import] = [*profile.methods, *profile.imports]
    planned, names = [], [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"Two methods or imports are named {name!r}; give each its own 'name'.")
    for spec in profile.methods:
        chosen = methods.choose(spec, profile)
        counts = profile.shots if chosen.method.few_shot else [0]
        counts = [shots for shots in counts if shots or chosen.method.zero_shot]
        draws = [(shots, seed) for shots in counts for seed in (profile.seeds if 0 < shots < FULL else [0])]
        planned.append([Variant(chosen, shots, seed) for shots, seed in dict.fromkeys(draws)])
    return list(filter(None, planned))


# ---------------------------------------------------------------- the run


def build_run_index(profile: Profile) -> tuple[pd.DataFrame, list[str]]:
    """The index of a profile's data as its run uses it, and notes: no images are held out if no method needs them."""
    few_shot = any(METHODS[spec.method].few_shot for spec in profile.methods)
    table, notes = datasets.build_index(profile if few_shot else profile.model_copy(update={"shots": [0]}))
    return table, notes + _name_strips(profile, table)


def _name_strips(profile: Profile, table: pd.DataFrame) -> list[str]:
    """Notes on pictures so long that a method which cuts them into square tiles works many times as much."""
    sizes = zip(table.width, table.height, strict=True)
    rows = table.assign(tiles=[len(image_files.boxes(width, height, "tiles")) for width, height in sizes])
    rows = rows[rows.tiles > image_files.MANY_TILES]
    if rows.empty:
        return []
    tiled = [spec.name for spec in profile.methods if methods.choose(spec, profile).settings.fit == "tiles"]
    notes = []
    for category, strips in rows.groupby("category") if tiled else []:
        longest, total = strips.loc[strips.tiles.idxmax()], f"{strips.tiles.sum():,}"
        notes.append(
            f"{category}{STRIPS}{len(strips)} of {(table.category == category).sum()} pictures, such as "
            f"{Path(longest.image).name} with {longest.width}x{longest.height} pixels, which {', '.join(tiled)} cuts "
            f"into {longest.tiles} square tiles. Together they make {total} tiles, as much work as {total} square "
            "pictures; with the setting 'fit: squash' each is one."
        )
    return notes


def run(profile: Profile, progress: bool = False, table: pd.DataFrame | None = None, announce: bool = False) -> Results:
    """Everything a profile asks for, from the cache where it is kept. Raises InputError for wrong input.

    ``progress``: bars on stderr, and before them, as with ``announce`` alone, what there is to encode and how long that
    takes.
    ``table``: an index to run on in place of the profile's own, for instance its training images as those tested.
    """
    planned = list_variants(profile)
    if not planned and not profile.imports:
        if profile.methods:
            names = ", ".join(spec.name for spec in profile.methods)
            raise InputError(f"'shots' asks for no references, and without them {names} cannot run; add 1 to 'shots'.")
        raise InputError("The profile names no methods and no imports; add one of them.")
    table, notes = build_run_index(profile) if table is None else (table, _name_strips(profile, table))
    cache = profile.path(profile.cache)
    folder = cache / "runs" / _digest(profile, planned, table)
    kept = _kept(folder, cache)
    if kept is None:
        with files.hold_lock(folder.with_name(f"{folder.name}-{uuid4().hex[:8]}")):  # ``cache.prune`` waits for it
            _compute(profile, planned, table, notes, folder, progress, progress or announce)
        kept = _kept(folder, cache)
    if kept is None:
        raise InputError(f"What was just written to {folder} is damaged; check that disk, or set another 'cache'.")
    return Results(profile, table, *kept, cache)


def _kept(folder: Path, cache: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict] | None:
    """A run's tables and facts where they and all its maps are as they were written."""
    if not files.is_intact(folder):
        return None
    with files.name_read_errors(folder):
        scores, measured = (pd.read_parquet(folder / f"{name}.parquet") for name in ("scores", "metrics"))
    units = {Path(file).parent for file in scores.map_file.unique() if file}
    if not all([files.is_intact(cache / unit) for unit in units]):  # all are looked at: each damaged one is said
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return scores, measured, files.read_json(folder / "run.json")


def _digest(profile: Profile, planned: list[list[Variant]], table: pd.DataFrame) -> str:
    """What decides a run's tables: parameters, images, masks, weight files, outside results and code."""
    weights = [path for spec in profile.methods for path in _network_files(spec)]
    weights += [str(chosen.prompts.path) for chosen in _chosen(planned) if chosen.prompts]
    outside = [path for spec in profile.imports for path in _files(profile.path(spec.path))]
    deciding = profile.model_dump(exclude=NOT_DECIDING)
    read = digests.digest_files([*table.image, *table["mask"], *weights, *outside], profile.path(profile.cache))
    return digests.digest(deciding, table.to_csv(), read, _code(*_chosen(planned)))


def _chosen(planned: list[list[Variant]]) -> list[ChosenMethod]:
    return [one[0].chosen for one in planned if one]


def _network_files(spec: Method) -> list[str]:
    """The files of a method's weights and model config, "" for none: random ones, a name, one that has gone since."""
    drawn = spec.weights.startswith("random:")
    try:
        weights = "" if drawn else str(methods.locate_weights(spec))
    except InputError:
        weights = ""
    config = backbones.config_file(spec.backbone)
    # of a folder in a file's place the reader says what is in it
    return [str(path) if path and Path(path).is_file() else "" for path in (weights, config)]


def _files(path: Path) -> list[str]:
    return [str(path)] if path.is_file() else sorted(str(file) for file in path.rglob("*") if file.is_file())


def _code(*chosen: ChosenMethod) -> str:
    """What computes the units of some methods, or, with none, those of outside results; features depend on less."""
    code = digests.digest_code(
        units, scoring, external_results, sys.modules[__name__], *(method.source for method in chosen)
    )
    words = prompts.FILE.read_text(encoding="utf-8")
    return digests.digest(code, words, digests.list_versions(digests.MEASURING_LIBRARIES))


def _compute(
    profile: Profile, planned: list[list[Variant]], table: pd.DataFrame, notes: list[str], folder: Path,
    progress: bool, announce: bool,
) -> None:  # fmt: skip
    """Compute the units that are not kept, gather all of them and write the run's tables and facts."""
    here = _planning(profile)
    for chosen in _chosen(planned):  # what is missing is said before the first method has worked for hours
        _refuse_unfit(chosen, here)
    for spec in profile.methods:
        if not spec.weights.startswith("random:"):
            methods.locate_weights(spec, profile.download)
    started = time.perf_counter()
    of = dict(list(table.groupby("category", sort=False)))
    all_units, jobs = _plan(here, planned, of)
    least = CLUSTER_PART if _on_cluster() else PART
    size = sys.maxsize if _on_accelerator(here) else max(least, profile.batch or 1)
    encoding = _encoding(here, planned, jobs, size)
    total = sum(len(paths) for *_, paths in encoding)
    for note in notes if total else []:
        if STRIPS in note:
            files.warn(note)
    if announce and total:
        stores = ((chosen.store(here.path(here.cache), _backbone(chosen.spec, here), channels), names, paths)
                  for chosen, _, channels, names, paths in encoding)  # fmt: skip
        parts = workload.plan_encoding(stores, table)
        tqdm.write(workload.describe_encoding(parts, here.path(here.cache), _on_cluster()), file=sys.stderr)
    if announce and (compared := workload.describe_comparison(_comparisons(here, jobs), _on_cluster())):
        tqdm.write(compared, file=sys.stderr)
    if announce and (trained := workload.describe_training(_trainings(here, jobs), _on_cluster())):
        tqdm.write(trained, file=sys.stderr)
    with tqdm(total=total, desc="encode", unit="image", disable=not (progress and total), leave=False) as bar:
        if _on_accelerator(here):  # one process feeds it
            for job in encoding:
                _encode(profile, *job, bar)
        else:
            for count in _parallel(profile, _encode, encoding):
                bar.update(count)
    shown = {"total": len(jobs), "unit": "category", "disable": not (progress and jobs), "leave": False}
    with tqdm(desc="score", **shown) as bar:
        _score_all(profile, jobs, bar, _on_accelerator(here))  # the units are on disk now
    remarks = list(notes)
    outside = [(spec, rows) for spec in profile.imports for rows in of.values()]
    for imported, more in _parallel(profile, _import, outside):
        all_units += imported
        remarks += more
    if not all_units:
        last = f" ({remarks[-1].rstrip('.')})" if len(remarks) > len(notes) else ""
        raise InputError(
            f"No outside result matches a test image{last}; name them <category>, <defect>, <image file stem>."
        )
    scores, measured, scored_on = units.gather_units(profile.path(profile.cache), all_units)
    remarks += (
        _one_class(measured)
        + _uncovered(profile, scores, list(of))
        + _one_sided(profile, planned)
        + _in_bins(profile, measured)
    )
    used = [_backbone(spec, here) for spec in profile.methods]
    remarks += [backbone.note for backbone in used if backbone.note] + _by_word(planned)
    facts = {
        "warnings": _warnings(profile, planned, used),
        "notes": list(dict.fromkeys(remarks)),
        "backbones": list({backbone.label: backbone.facts() for backbone in used}.values()),
        "prompts": [_prompt_facts(chosen) for chosen in _chosen(planned) if chosen.prompts],
        "data": datasets.count_images(table),
        "packages": digests.list_versions(digests.ENCODING_LIBRARIES + digests.MEASURING_LIBRARIES),
        "devices": {"encoding": _encoded_on(here, planned), "scoring": scored_on},
        "seconds": {"compute": round(time.perf_counter() - started, 1)},
    }

    def fill(partial: Path) -> None:
        scores.to_parquet(partial / "scores.parquet", index=False)
        measured.to_parquet(partial / "metrics.parquet", index=False)
        (partial / "run.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        (partial / NEEDS).write_text(json.dumps(_list_needs(here, planned, all_units)), encoding="utf-8")

    files.write_folder(folder, fill)


def _list_needs(profile: Profile, planned: list[list[Variant]], all_units: list[Unit]) -> dict:
    """What a run needs of the cache, for ``cache.list_entries``: its units and the folders of its features."""
    cache = profile.path(profile.cache)
    stores = [
        chosen.store(cache, _backbone(chosen.spec, profile), channels)
        for chosen in _chosen(planned)
        for channels in ("", "rgb")
    ]
    folders = {folder for store in stores for folder in store.folders}
    return {
        "title": profile.title,
        "units": [str(unit.place.relative_to(cache)) for unit in all_units],
        "features": sorted(str(folder.relative_to(cache)) for folder in folders),
    }


def _parallel(profile: Profile, work: Callable, jobs: list[tuple]) -> Iterator:
    """What ``work(profile, *job)`` returns for each job, in order, by the profile's workers or a joblib backend's.

    One worker stays in this process: the backbone is loaded once and its matrix products use every core.
    """
    tasks = (joblib.delayed(work)(profile, *job) for job in jobs)
    return joblib.Parallel(n_jobs=profile.processes, return_as="generator")(tasks)


def _on_cluster() -> bool:
    """Whether joblib was told to send work to other machines or to processes that it did not start."""
    backend, _ = joblib.parallel.get_active_backend()
    return type(backend).__module__ != "joblib._parallel_backends"


def _planning(profile: Profile) -> Profile:
    """The profile that this process plans by: one that sends its work to a cluster needs none of the workers' devices.

    InputError for a device or a precision that is not there.
    """
    if _on_cluster():
        return profile.model_copy(update={"device": "cpu"})
    for spec in profile.methods:
        devices.refuse_precision(spec.precision, devices.choose_device(profile.device))
    return profile


def _on_accelerator(profile: Profile) -> bool:
    """Whether this process itself encodes and scores, on a device that others would only have to wait for."""
    return devices.is_accelerator(devices.choose_device(profile.device))


def _encoded_on(profile: Profile, planned: list[list[Variant]]) -> list[str]:
    """The devices that encoded the features which a run reads, in words."""
    cache = profile.path(profile.cache)
    stores = [chosen.store(cache, _backbone(chosen.spec, profile)) for chosen in _chosen(planned)]
    return sorted({name for store in stores for name in store.encoded_on()})


def _one_class(measured: pd.DataFrame) -> list[str]:
    """Notes on categories of which no image AUROC can be had."""
    lacking = measured.drop_duplicates("category")
    lacks = {"good": lacking.n_good == 0, "defective": lacking.n_defective == 0}
    return [
        f"{name}: no {kind} test images, so no image AUROC; the means leave it out."
        for kind, none in lacks.items()
        for name in lacking[none].category
    ]


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


def _by_word(planned: list[list[Variant]]) -> list[str]:
    """Notes on checkpoints of which only the profile says what they were trained on."""
    return [
        f"{chosen.name}: that its {chosen.prompts.noun} in {chosen.prompts.path.name} were trained on "
        f"{chosen.prompts.trained_on} is the profile's word; neither the file nor the list of known SHA-256 says so."
        for chosen in _chosen(planned)
        if chosen.prompts and chosen.prompts.by_word
    ]


def _warnings(profile: Profile, planned: list[list[Variant]], used: list[backbones.Facts]) -> list[str]:
    """What makes every number of this run meaningless or unfair, said in red; ``used``: the backbone of each method."""
    random = [
        f"{spec.name}: the weights of {spec.backbone} are random ({spec.weights}), "
        "so its numbers say nothing about the method."
        for spec in profile.methods
        if spec.weights.startswith("random:")
    ]
    drawn = [
        f"{spec.name} runs on the demo's weights, which were trained on drawn pictures alone, so its numbers "
        "and decisions say nothing about these parts; name real weights."
        for spec, backbone in zip(profile.methods, used, strict=True)
        if profile.dataset != "demo" and backbone.is_demo
    ]
    leaked = [
        f"{chosen.name}: its {chosen.prompts.noun} were trained on the very data they are tested on "
        f"({chosen.prompts.trained_on}), so its numbers are no zero-shot result and compare with nothing."
        for chosen in _chosen(planned)
        if chosen.prompts and chosen.prompts.leaked
    ]
    copies = [
        f"{chosen.name}: its {chosen.prompts.noun} were trained on {chosen.prompts.trained_on}, which has categories "
        f"named {', '.join(chosen.prompts.alike)} too; if these images are copies of those, its numbers are no "
        "zero-shot result."
        for chosen in _chosen(planned)
        if chosen.prompts and chosen.prompts.alike
    ]
    return random + drawn + [backbone.warning for backbone in used if backbone.warning] + leaked + copies


def _one_sided(profile: Profile, planned: list[list[Variant]]) -> list[str]:
    """Notes on methods that leave the profile's references unused, or have no zero-shot result beside the others'."""
    alone = [chosen.name for chosen in _chosen(planned) if any(profile.shots) and not chosen.method.few_shot]
    lacking = [spec.name for spec in profile.methods if 0 in profile.shots and not METHODS[spec.method].zero_shot]
    notes = [f"{name} uses no reference images: zero-shot only." for name in alone]
    batched = [chosen.name for chosen in _chosen(planned) if chosen.method.scores_whole_category]
    notes += [BATCHED.format(", ".join(batched))] if batched else []
    return notes + [f"{name} only compares with reference images: no zero-shot result." for name in lacking]


def _in_bins(profile: Profile, measured: pd.DataFrame) -> list[str]:
    """A note on how far binned pixel metrics can be from the exact ones, over all categories and variants."""
    bounds = measured[list(metrics.BOUNDS)].max()
    if profile.pixel_metrics == "exact" or bounds.isna().all():
        return []
    pairs = zip(metrics.COUNTED, metrics.BOUNDS, strict=True)
    known_bounds = [(TITLES[name], bounds[bound]) for name, bound in pairs if bounds[bound] == bounds[bound]]
    largest = ", ".join(f"{title} {most:.1e}" for title, most in known_bounds)
    return [f"Pixel metrics were counted in bins; no exact value differs by more than: {largest}."]


def _prompt_facts(chosen: ChosenMethod) -> dict:
    """What a report says of learned prompts, ready for JSON."""
    prompts = chosen.prompts
    return {"method": chosen.name, "checkpoint": prompts.path.name, "sha256": prompts.digest,
            "trained_on": prompts.trained_on, "leaked": prompts.leaked, "by_word": prompts.by_word}  # fmt: skip


# ---------------------------------------------------------------- one image


@dataclass(frozen=True)
class View:
    """What a method sees of one image: its kept features (first tile), its text features and settings."""

    facts: backbones.Facts
    method: str
    chosen: MethodSettings
    grid: int
    features: dict[str, torch.Tensor]
    text: torch.Tensor | None
    image: str
    draw: Callable  # the method's maps from features, text, settings and grid
    checkpoint: Path | None = None

    @property
    def backbone(self) -> backbones.Backbone:
        """The backbone itself, whose weights are read when it is first asked for."""
        return self.facts.loaded

    def attention(self, kind: str, cell: tuple[int, int]) -> np.ndarray:
        """(grid, grid) log10 of AnomalyCLIP's attention of one patch to all, over what even attention gives."""
        backbone = self.backbone
        pixels = image_files.views(self.image, self.chosen.fit, self.grid * backbone.patch_size)
        weights = anomalyclip.attention(backbone, backbone.normalise(pixels), kind, cell)[0]
        return (weights * weights.numel()).clamp_min(1e-3).log10().cpu().numpy()

    def parts(self) -> dict[str, np.ndarray]:
        """The zero-shot maps the method's own map is made of, and it, (grid, grid) each, by name."""
        return self.draw(self.features, self.text, self.chosen, self.grid)


def view_image(profile: Profile, row: pd.Series, spec: Method | None = None, method: str = "winclip") -> View:
    """The view of an index row by a method (the profile's first of its kind; the demo's where it has none)."""
    candidates = [*profile.methods, *load_profile("demo").methods]
    spec = spec or next(candidate for candidate in candidates if candidate.method == method)
    cache, backbone = profile.path(profile.cache), _backbone(spec, profile)
    chosen = methods.choose(spec, profile).settled(backbone, row.category)
    store, names = chosen.store(cache, backbone), chosen.method.array_names(chosen.settings)
    store.fill([row.image], names)
    values, _ = store.load([row.image], names)
    text = chosen.text(cache, backbone, chosen.method.prompt_wording(chosen.settings, row))
    first = {name: array[:1] for name, array in values.items()}
    place = chosen.prompts.path if chosen.prompts else None
    of_image = chosen.grid(backbone), first, text, row.image, chosen.partial_maps
    return View(backbone, spec.method, chosen.settings, *of_image, place)


# ---------------------------------------------------------------- one category


@lru_cache(maxsize=2)
def _loaded(
    name: str, weights: str, precision: str, download: bool, plain_gelu: bool, device: str, _: tuple
) -> backbones.Backbone:
    return backbones.load_backbone(name, weights, precision, download, plain_gelu, device)


def _backbone(spec: Method, profile: Profile) -> backbones.Facts:
    """The facts of a method's backbone; its weights are read where no run has before, or files have changed.

    ``loaded`` gives the backbone itself, of which a process holds two at a time.
    """
    device, plain_gelu = devices.choose_device(profile.device), methods.plain_gelu(spec)
    file, read = _locate_facts(spec, profile)
    planned = spec.precision == "tf32" and device.type != "cuda"  # for the GPUs of a cluster
    precision = "fp32" if planned else spec.precision
    load = partial(_loaded, spec.backbone, spec.weights, precision, profile.download, plain_gelu, device.type, read)
    return backbones.Facts(**_facts(file, load), precision=spec.precision, device=device, load=load)


def _locate_facts(spec: Method, profile: Profile) -> tuple[Path, tuple]:
    """The file of what is known of a method's backbone, and the digests of the files that it was read from."""
    cache = profile.path(profile.cache)
    read = tuple(digests.digest_files(_network_files(spec), cache))
    key = digests.digest(spec.backbone, spec.weights, methods.plain_gelu(spec), read, digests.digest_code(backbones))
    return cache / "backbones" / f"{key}.json", read


def _refuse_unfit(chosen: ChosenMethod, profile: Profile) -> None:
    """InputError where a method needs what its backbone lacks, before weights are looked for or read."""
    if chosen.method.list_needs(chosen.settings):
        known = _locate_facts(chosen.spec, profile)[0].is_file()  # a network without weights takes longer to make
        chosen.refuse_backbone(
            _backbone(chosen.spec, profile) if known else backbones.build_skeleton(chosen.spec.backbone)
        )


_read_facts = lru_cache(maxsize=64)(files.read_json)


def _facts(file: Path, load: Callable[[], backbones.Backbone]) -> dict:
    """What is the same of a backbone on every device, from its file, which is written where there is none."""
    try:
        return _read_facts(file)
    except files.Damaged:
        facts = json.loads(load().known().as_json())
        files.write_json(file, facts)
        return facts


@dataclass(frozen=True)
class Job:
    """A unit to compute: its variant, an index row of its category, and the unit."""

    one: Variant
    row: pd.Series
    unit: Unit


def _plan(
    profile: Profile, planned: list[list[Variant]], of: dict[str, pd.DataFrame]
) -> tuple[list[Unit], list[list[Job]]]:
    """All units of a run, and those that are not kept, together where they read the same features.

    ``of``: the index by category.
    """
    cache, all_units, jobs = profile.path(profile.cache), [], {}
    on = {name: units.describe_tested(datasets.select_tested(rows), cache) for name, rows in of.items()}
    for method_variants in planned:
        chosen = method_variants[0].chosen
        backbone = _backbone(chosen.spec, profile)
        _refuse_small_categories(chosen, on)
        named = [variant.columns(backbone) for variant in method_variants]
        code = _code(chosen)
        for category, rows in of.items():
            row = rows.iloc[0]
            settled = chosen.settled(backbone, category)
            places = tuple(settled.store(cache, backbone, channels).folder for channels in ("", "rgb"))
            words = chosen.method.prompt_wording(chosen.settings, row)
            for variant, columns in zip(method_variants, named, strict=True):
                drawn = (
                    list(chosen.references(rows, category, variant.shots, variant.seed).image) if variant.shots else []
                )
                unit = units.locate_unit(profile, code, on[category], columns, drawn, [words, backbone.key])
                all_units.append(unit)
                if not files.is_intact(unit.place):
                    job = Job(replace(variant, chosen=settled), row, unit)
                    jobs.setdefault((places, category), []).append(job)
    # backbone by backbone, not category by category: more of them than are held would be loaded again and again
    return all_units, [rows for together in jobs.values() for rows in _parts(together)]


def _refuse_small_categories(chosen: ChosenMethod, on: dict[str, units.Tested]) -> None:
    """InputError for a category with fewer test images than a method needs."""
    least = chosen.method.least_images(chosen.settings)
    for category, tested in on.items():
        if len(tested.rows) < least:
            raise InputError(
                f"{chosen.name}: {category} has {tables.format_count(len(tested.rows), 'test image', 'test images')}, "
                f"and {chosen.method.title} with these settings compares at least {least} of a category with each "
                "other; add pictures, or leave the category out of 'categories' or the method out of 'methods'."
            )


def _parts(jobs: list[Job]) -> Iterator[list[Job]]:
    """Jobs in parts of up to ``TOGETHER`` different references, rotated copies counted, or one that has more."""
    jobs_of_part, drawn = [], set()
    for job in jobs:
        more = drawn.union(job.unit.references)
        copies = 1 + len(job.one.chosen.method.reference_rotations(job.one.chosen.settings))
        if jobs_of_part and len(more) * copies > TOGETHER:
            yield jobs_of_part
            jobs_of_part, more = [], set(job.unit.references)
        jobs_of_part.append(job)
        drawn = more
    yield jobs_of_part


def _encoding(profile: Profile, planned: list[list[Variant]], jobs: list[list[Job]], size: int) -> list[tuple]:
    """The images that the units to compute need encoded, ``size`` by ``size``, as arguments of ``_encode``.

    Parts are smaller than categories: workers share them evenly, and how long they take can be told from the first.
    """
    encoding, taken, cache = [], set(), profile.path(profile.cache)
    shots = max((job.one.shots for together in jobs for job in together), default=0)
    for together in jobs:
        chosen = together[0].one.chosen
        backbone, channels_tested = _backbone(chosen.spec, profile), chosen.settings.channels
        tested = [path for job in together for path in job.unit.rows.image]
        drawn = [path for job in together for path in job.unit.references]
        for channels, paths, as_references in ((channels_tested, tested, False), ("rgb", drawn, True)):
            store = chosen.store(cache, backbone, channels)
            names = _arrays(profile, planned, store, together[0].row.category, shots, as_references)
            # an image that another part encodes, with the arrays of both, is left to it
            paths = [path for path in dict.fromkeys(paths) if (store.folder, path, *names) not in taken]
            paths = store.missing(paths, names)
            taken |= {(store.folder, path, *names) for path in paths}
            parts = [paths[start : start + size] for start in range(0, len(paths), size)]
            encoding += [(chosen, together[0].row, channels, names, part) for part in parts]
    return encoding


def _comparisons(profile: Profile, jobs: list[list[Job]]) -> list[workload.Comparison]:
    """What methods that score whole categories will compare in the units to compute."""
    comparisons = []
    for job in [job for together in jobs for job in together]:
        chosen = job.one.chosen
        backbone = _backbone(chosen.spec, profile)
        images = chosen.settings, len(job.unit.rows), chosen.grid(backbone), backbone.width
        if gflop := chosen.method.comparison_gflop(*images):
            comparisons.append(workload.Comparison(chosen.name, len(job.unit.rows), gflop, backbone.device))
    return comparisons


def _trainings(profile: Profile, jobs: list[list[Job]]) -> list[workload.Training]:
    """The networks that methods will train for the units to compute, unless they are kept."""
    trainings, of_an_image = [], {}
    for job in [job for together in jobs for job in together if job.one.chosen.method.keeps_networks]:
        chosen, images = job.one.chosen, len(job.unit.references)
        if chosen.name not in of_an_image:
            of_an_image[chosen.name] = chosen.method.training_gflop(chosen.settings, 1)
        device = _backbone(chosen.spec, profile).device
        trainings.append(workload.Training(chosen.name, images, images * of_an_image[chosen.name], device))
    return trainings


def _arrays(
    profile: Profile, planned: list[list[Variant]], store: feature_store.AnyStore, category: str, shots: int,
    as_references: bool,
) -> list[str]:  # fmt: skip
    """The arrays of all methods of a run that share a store: an image is encoded once for all of them.

    References are read with their colours as they are, so with them a method may share a store of others; they alone
    have rotated copies.
    """
    cache, names = profile.path(profile.cache), {}
    for chosen in _chosen(planned):
        backbone, few = _backbone(chosen.spec, profile), shots if chosen.method.few_shot else 0
        chosen = chosen.settled(backbone, category)
        of = chosen.method.reference_array_names if as_references and few else chosen.method.array_names
        for channels in ("", "rgb") if few else ("",):
            if chosen.store(cache, backbone, channels).folder == store.folder:
                names |= dict.fromkeys(of(chosen.settings, few))
    return list(names)


def _encode(
    profile: Profile, chosen: ChosenMethod, row: pd.Series, channels: str, names: list[str], paths: list[str],
    bar: tqdm | None = None,
) -> int:  # fmt: skip
    """Encode images for a method; returns how many."""
    cache, backbone = profile.path(profile.cache), _backbone(chosen.spec, profile)
    chosen.text(cache, backbone, chosen.method.prompt_wording(chosen.settings, row))  # unfit prompts are refused first
    chosen.store(cache, backbone, channels).fill(paths, names, profile.batch, bar or False)
    return len(paths)


def _score_all(profile: Profile, jobs: list[list[Job]], bar: tqdm, in_this_process: bool) -> None:
    """Compute units; those that another process is at come last, and are computed only if it leaves them undone.

    ``in_this_process``, for an accelerator: it scores them here, and workers measure what was scored meanwhile.
    """
    waiting = jobs
    for wait in (False, True):
        claims = [(together, files.Claim(together[0].unit.place)) for together in waiting]
        if in_this_process:
            done = _parallel(profile, _measure, _scored_here(profile, claims, wait))
        else:
            done = _parallel(profile, _score, [(together, wait) for together in waiting])
        left = []
        for (together, claim), finished in zip(claims, done, strict=True):
            claim.give_back()
            if finished:
                bar.update()
            else:
                left.append(together)
        waiting = left


def _scored_here(profile: Profile, claims: list[tuple[list[Job], files.Claim]], wait: bool) -> Iterator[tuple]:
    """The arguments of ``_measure`` for units scored in this process; none of a unit that another one is at."""
    for together, claim in claims:
        yield (list(_scores(profile, _open(together))) if claim.take(wait) else None,)


def _measure(profile: Profile, scored: list[tuple] | None) -> bool:
    """Keep units with their scores, maps and metrics; False where there is nothing to keep yet."""
    masks: units.Masks = {}
    for unit, *values, device in scored or []:
        units.write_unit(profile, unit, *values, masks, device)
    return scored is not None


def _score(profile: Profile, jobs: list[Job], wait: bool) -> bool:
    """Compute units and keep them; False where another process is at them, unless told to ``wait`` for it."""
    claim = files.Claim(jobs[0].unit.place)
    if not claim.take(wait):
        return False
    try:
        return _measure(profile, _scores(profile, _open(jobs)))
    finally:
        claim.give_back()


def _open(jobs: list[Job]) -> list[Job]:
    """The jobs whose units are not kept by now."""
    return [job for job in jobs if not job.unit.place.is_dir()]


def _scores(profile: Profile, jobs: list[Job]) -> Iterator[tuple]:
    """Units with their scores, maps, tiles and device, from kept features that they share.

    Every image is read once for all of them.
    """
    if not jobs:
        return
    cache, chosen = profile.path(profile.cache), jobs[0].one.chosen
    backbone = _backbone(chosen.spec, profile)
    store, memory = chosen.store(cache, backbone), chosen.store(cache, backbone, "rgb")
    device = devices.describe_device(backbone.device)
    tested = list(jobs[0].unit.rows.image)  # those of one category, the same for all
    for job in [job for job in jobs if job.one.chosen.method.scores_whole_category]:
        yield job.unit, *_score_together(job.one.chosen, store, backbone, tested), device
    jobs = [job for job in jobs if not job.one.chosen.method.scores_whole_category]
    alike: dict[tuple, list[Job]] = {}  # a method's draws of references
    for job in jobs:
        alike.setdefault((job.one.chosen.name, job.one.shots > 0), []).append(job)
    scorers = [_scorer(group, cache, backbone, memory) for group in alike.values()]
    used = [job.one.chosen.method.array_names(job.one.chosen.settings, job.one.shots) for job in jobs]
    names = list(dict.fromkeys(name for one in used for name in one))
    for path, values in zip(tested, store.each(tested, names, as_kept=True), strict=True) if jobs else ():
        values = {name: array.to(backbone.device).float() for name, array in values.items()}  # once for all scorers
        for scorer in scorers:
            scorer.add(path, values)
    for scorer, group in zip(scorers, alike.values(), strict=True):
        for draw, job in enumerate(group):
            yield job.unit, *scorer.of(tested, draw), device


def _score_together(
    chosen: ChosenMethod, store: feature_store.AnyStore, backbone: backbones.Facts, tested: list[str]
) -> tuple:
    """``scoring.score_together`` of a category's test images."""
    names = chosen.method.array_names(chosen.settings)
    features = scoring.CategoryFeatures(store, tested, names)
    side = chosen.method.image_side(chosen.settings, backbone)
    return scoring.score_together(chosen, features, chosen.grid(backbone), side, backbone.device)


def _scorer(group: list[Job], cache: Path, backbone: backbones.Facts, memory: feature_store.AnyStore) -> Scorer:
    """What scores images by a method with each of the draws of references of its jobs."""
    variant = group[0].one
    code, settings = variant.chosen.method, variant.chosen.settings
    text = variant.chosen.text(cache, backbone, code.prompt_wording(settings, group[0].row))
    if not variant.shots:
        return Scorer(variant.chosen, text, variant.chosen.grid(backbone), device=backbone.device)
    drawn = {path: place for place, path in enumerate(dict.fromkeys(p for job in group for p in job.unit.references))}
    draws = [[drawn[path] for path in job.unit.references] for job in group]
    references = memory.load(list(drawn), code.reference_array_names(settings, variant.shots))
    return Scorer(variant.chosen, text, variant.chosen.grid(backbone), references, draws, backbone.device, cache)


def _import(profile: Profile, spec: Import, table: pd.DataFrame) -> tuple[list[Unit], list[str]]:
    """The unit of an outside result on one category (none where it covers no image), and notes."""
    path = profile.path(spec.path)
    rows, scores, maps, notes = external_results.read_results(path, datasets.select_tested(table), spec.scale)
    if rows.empty:
        return [], notes
    facts = {"method": spec.name, "backbone": "imported", "weights": "", "preset": "", "shots": spec.shots, "seed": 0}
    settings = dict.fromkeys(SETTINGS, "") | {"fit": "squash"}  # an outside map covers the whole image
    columns = facts | settings | {"variant": digests.digest(facts)[:10]}
    measured = units.describe_tested(rows, profile.path(profile.cache))
    unit = units.locate_unit(profile, _code(), measured, columns, more=joblib.hash((scores, maps)))
    if not files.is_intact(unit.place):
        units.write_unit(profile, unit, scores, maps, [1] * len(rows), {})
    return [unit], notes
