"""What a method costs on this machine: arithmetic, time, memory and disk; and what bf16 changes (notebook 10)."""

from __future__ import annotations

import multiprocessing
import re
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from vlmad_lib import digests, files, methods, within
from vlmad_lib.analysis import comparison
from vlmad_lib.config import FULL, Method, Profile
from vlmad_lib.data import datasets, image_files
from vlmad_lib.encoders import backbones, devices, feature_store
from vlmad_lib.encoders.backbones import Backbone
from vlmad_lib.encoders.vit_blocks import packs
from vlmad_lib.evaluation import metrics
from vlmad_lib.methods import ChosenMethod
from vlmad_lib.pipeline.results import Results
from vlmad_lib.pipeline.workload import count_gflop, measure_peak, time_call

PUBLISHED = datasets.REFERENCE / "efficiency_published.csv"
STEPS = ["decode", "encode", "score", "upsample"]
"""The columns of ``measure_costs`` that an image costs every time, in ms."""
LEAST_REPEATS = 2
KEPT_FOR = 3600.0
"""Seconds for which timings are kept, so that all pages of a report have the same."""


def list_precisions(device: torch.device = devices.CPU) -> list[str]:
    """Those that a device has instructions for: emulated, as on many CPUs, bf16 is many times slower than fp32."""
    if device.type == "cpu":
        return ["fp32", *(["bf16"] if packs(torch.bfloat16) else [])]
    if device.type == "cuda":
        return [name for name in devices.TYPES if name != "bf16" or torch.cuda.is_bf16_supported(False)]
    return ["fp32", "bf16", "fp16"]


def list_devices(profile: Profile) -> list[torch.device]:
    """The devices to measure: that of a profile, and the CPU beside an accelerator."""
    return list(dict.fromkeys([devices.choose_device(profile.device), devices.CPU]))


def measure_peaks(device: torch.device) -> dict[str, float]:
    """GFLOP/s of a device's matrix products by precision, of those it has."""
    return {precision: measure_peak(precision, device) for precision in list_precisions(device)}


def measure_memory(profile: Profile, spec: Method, image: str, backbone: Backbone) -> float:
    """MB that a process of its own takes at its peak, from its start to one encoded batch of an image.

    The memory of the backbone's device: of a GPU its own; of a CPU the process's, nan except on Linux. Kept: it takes
    seconds and, unlike a timing, does not change with what else the machine does.
    """
    chosen, versions = methods.choose(spec, profile), (torch.__version__, pd.__version__)
    arrays, size = chosen.method.array_names(chosen.settings), chosen.method.image_side(chosen.settings, backbone)
    place = torch.get_num_threads()
    if backbone.device.type != "cpu":
        place = devices.describe_device(backbone.device), _count_images(profile, chosen, backbone)
    key = digests.digest(backbone.key, arrays, size, chosen.method.encoder_version, versions, place)
    file = profile.path(profile.cache) / "memory" / f"{key}.npy"
    return float(feature_store.load_or_compute(file, lambda: _peak(profile, spec, image, backbone.device.type)))


def _peak(profile: Profile, spec: Method, image: str, device: str) -> torch.Tensor:
    """In a process of its own, a copy of one that has imported everything once, where the system can copy processes."""
    copied = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if copied else "spawn")
    if copied:
        context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return torch.tensor(pool.submit(_encode_once, profile, spec, image, device).result())


def _encode_once(profile: Profile, spec: Method, image: str, device: str) -> float:
    chosen, backbone = methods.choose(spec, profile), methods.load_backbone(spec, device=device)
    pixels = image_files.views(image, chosen.settings.fit, chosen.method.image_side(chosen.settings, backbone))[:1]
    pixels = pixels.repeat(_count_images(profile, chosen, backbone), 0)
    with devices.multiply_in(spec.precision, backbone.device):
        chosen.method.encode(backbone, backbone.normalise(pixels), chosen.method.array_names(chosen.settings))
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if device == "mps":
        return torch.mps.driver_allocated_memory() / 2**20  # PyTorch keeps what it once took
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024
    except (OSError, TypeError):
        return float("nan")


def _count_images(profile: Profile, chosen: ChosenMethod, backbone: Backbone) -> int:
    """Images that are encoded together to time them: on a CPU one, elsewhere as many as a run would take."""
    if backbone.device.type == "cpu":
        return 1
    kept = chosen.store(profile.path(profile.cache), backbone)
    stores = kept.stores.values() if isinstance(kept, feature_store.Joint) else [kept]
    return min(store.images_at_once(profile.batch) for store in stores)


# ---------------------------------------------------------------- one method


def measure_costs(
    profile: Profile, spec: Method, rows: pd.DataFrame, peaks: dict[str, float] | None = None,
    repeats: int = LEAST_REPEATS, memory: float | None = None, device: torch.device | None = None,
) -> dict:  # fmt: skip
    """What the images of some index rows (one tile each is taken) cost with a method: a row of the cost table.

    ``encode``, ``decode`` and the rest are medians in ms per image, on the cores that PyTorch was given and on
    ``device``, that of the profile where none is named, on an accelerator in batches; ``threads`` decode there at once.
    With references the score is that with as many as the profile's largest number of shots, and ``bare`` that without.
    A method that scores a category as a whole is timed on the fewest images it takes; an image's share grows with the
    others, so it is that in a category of the profile's mean number of test images.
    ``share`` is that of the device's ``peaks``, nan without them. ``memory``: the peak in MB where it is known.

    Each image is timed ``repeats`` times, at least ``LEAST_REPEATS``. What this machine measured within ``KEPT_FOR``
    is read, so that two notebooks of a report name the same times; while one measures, another that wants the same
    waits.
    """
    repeats = max(within("repeats", repeats, 1), LEAST_REPEATS)
    device = device or devices.choose_device(profile.device)
    machine = devices.describe_device(device, True), torch.get_num_threads(), torch.__version__
    facts = spec.model_dump_json(), methods.METHODS[spec.method].encoder_version, list(rows.image), profile.shots
    facts += profile.evaluation_size, profile.batch, repeats
    file = profile.path(profile.cache) / "timings" / f"{digests.digest(machine, facts)}.json"
    with files.hold_lock(file):
        try:
            costs = files.read_json(file) if time.time() - file.stat().st_mtime < KEPT_FOR else None
        except (OSError, files.Damaged):
            costs = None
        if costs is None:
            costs = _time_steps(profile, spec, rows, repeats, memory, device)
            files.write_json(file, costs)
    return costs | {"share": costs["rate"] / (peaks or {}).get(spec.precision, float("nan"))}


def _time_steps(
    profile: Profile, spec: Method, rows: pd.DataFrame, repeats: int, memory: float | None, device: torch.device
) -> dict:
    """The row of ``measure_costs`` but for its ``share``, measured now."""
    backbone = methods.load_backbone(spec, device=device.type)
    chosen = methods.choose(spec, profile).settled(backbone, rows.category.iloc[0])
    code, settings = chosen.method, chosen.settings
    size, grid = code.image_side(settings, backbone), chosen.grid(backbone)
    few = [shots for shots in profile.shots if shots < FULL]
    shots = max([int(not code.zero_shot), *few]) if code.few_shot else 0
    names, together = code.array_names(settings, shots), _count_images(profile, chosen, backbone)
    pictures = [image_files.views(path, settings.fit, size)[:1] for path in rows.image]
    inputs = [backbone.normalise(pixels.repeat(together, 0)) for pixels in pictures]
    packing = time_call(backbone.pack, device)
    arrays: list[dict] = [{}] * len(inputs)  # of the last repeat: nothing is encoded once more to have them

    def encode(at: int) -> None:
        with devices.multiply_in(spec.precision, device):
            features = code.encode(backbone, inputs[at], names)
        arrays[at] = {name: values[:1] for name, values in features.items()}

    order = [*range(len(inputs))] * repeats
    if device.type != "cpu":
        encode(0)  # the first call of a GPU loads what computes
    spent = [time_call(lambda at=at: encode(at), device) / together for at in order]
    words = code.prompt_wording(settings, rows.iloc[0])
    file = chosen.prompts.path if chosen.prompts else None
    texts: list[torch.Tensor | None] = [None]
    writing = time_call(lambda: texts.__setitem__(0, code.encode_text(backbone, words, file)), device) if words else 0.0
    text = texts[0] if texts[0] is None else texts[0].to(device)
    references = (
        {
            copy + name: torch.cat([features[name] for features in (arrays * shots)[:shots]])
            for copy in ("", *code.reference_rotations(settings))
            for name in names
        }
        if shots
        else None
    )
    references = code.remember(references, settings, grid) if shots else None

    def score(known: Any) -> list[float]:
        calls = [partial(chosen.score, features, text, settings, grid, known) for features in arrays]
        return [time_call(call, device) for call in calls]

    if code.scores_whole_category:
        maps, spent_scoring = _score_category(profile, chosen, arrays, grid, size, device)
        bare = spent_scoring
    else:
        maps = [chosen.score(features, text, settings, grid, references)[1].cpu() for features in arrays]
        spent_scoring, bare = score(references), score(None) if code.zero_shot else []
    place = [(row.width, row.height, settings.fit, profile.evaluation_size) for row in rows.itertuples()]
    maps = [
        np.repeat(grid_map.numpy(), len(image_files.boxes(*at[:3])), 0)
        for grid_map, at in zip(maps, place, strict=True)
    ]
    sigma = getattr(settings, "sigma", 0)
    spent_by_step = {
        "decode": [time_call(lambda path=path: image_files.views(path, settings.fit, size)) for path in rows.image],
        "encode": spent,
        "score": spent_scoring,
        "bare": bare,
        "upsample": [
            time_call(lambda tiles=tiles, at=at: metrics.framed_map(tiles, *at, sigma))
            for tiles, at in zip(maps, place, strict=True)
        ],
    }
    steps = {name: float(np.median(values)) * 1e3 if values else float("nan") for name, values in spent_by_step.items()}
    work = count_gflop(chosen, spec.backbone, shots)
    return {
        "method": chosen.name,
        "backbone": Path(spec.backbone).stem,
        "precision": spec.precision,
        "device": device.type,
        "pixels": size,
        "shots": shots,
        **steps,
        "low": min(spent) * 1e3,
        "high": max(spent) * 1e3,
        "n": len(spent),
        "gflop": work,
        "rate": work / steps["encode"] * 1e3,
        "text": writing * 1e3,
        "pack": packing * 1e3,
        "threads": devices.count_readers(device),
        "parameters": sum(value.numel() for value in backbone.model.parameters()) / 1e6,
        "learned": _learned(chosen, backbone),
        "memory": measure_memory(profile, spec, rows.image.iloc[0], backbone) if memory is None else memory,
        "disk": sum(value[0].numel() * 2 for value in arrays[0].values()) / 1e3,  # fp16
    }


def _score_category(
    profile: Profile, chosen: ChosenMethod, arrays: list[dict], grid: int, side: int, device: torch.device
) -> tuple[list[torch.Tensor], list[float]]:
    """The maps of images scored together, and the seconds an image takes in a category of the profile's mean size."""
    count = max(2, chosen.method.least_images(chosen.settings))
    repeated = (arrays * count)[:count]
    features = {name: torch.cat([values[name] for values in repeated]) for name in arrays[0]}
    scored: list[tuple] = []
    spent = time_call(lambda: scored.append(chosen.score(features, None, chosen.settings, grid, side=side)), device)
    sizes = datasets.select_tested(datasets.build_index(profile)[0]).groupby("category").size()
    each = spent / count * max(1.0, (sizes.mean() - 1) / (count - 1))
    return list(scored[0][1][: len(arrays)].cpu().split(1)), [each]


def _learned(chosen: ChosenMethod, backbone: Backbone) -> float:
    """Millions of learned parameters in the checkpoint."""
    if chosen.prompts is None:
        return 0.0
    learner, _ = chosen.method.read_checkpoint(backbone, chosen.prompts.path)
    return sum(value.numel() for value in learner.parameters()) / 1e6


def tabulate_full_size(kinds: list[str], peaks: dict[str, float]) -> pd.DataFrame:
    """What methods by kind (``winclip`` ...) would take here at least as published: their work at the matrix peaks.

    Those that read pictures as they are have no published encoder and no row.
    """
    rows, columns = [], ["method", "backbone", "pixels", "GFLOP per image", *(f"least s per image, {n}" for n in peaks)]
    for kind in [kind for kind in dict.fromkeys(kinds) if not methods.METHODS[kind].reads_pixels]:
        spec, code = Method(method=kind), methods.METHODS[kind]
        chosen = ChosenMethod(spec, code.settings())
        work, size = (
            count_gflop(chosen, spec.backbone),
            code.image_side(chosen.settings, backbones.build_skeleton(spec.backbone)),
        )
        least = {f"least s per image, {name}": f"{work / value:.1f}" for name, value in peaks.items()}
        row = {"method": spec.name, "backbone": spec.backbone, "pixels": size, "GFLOP per image": round(work)}
        rows.append(row | least)
    return pd.DataFrame(rows, columns=columns)


def read_published() -> pd.DataFrame:
    """Published latencies of the two methods and their kin, with the hardware where it is known."""
    table = pd.read_csv(PUBLISHED)
    seconds = 1 / pd.to_numeric(table.fps, errors="coerce")
    table["ms per image"] = table.ms_per_image.fillna(1e3 * seconds).round(1)
    timed = table[table.method.str.contains("WinCLIP|AnomalyCLIP")].dropna(subset="ms per image")
    kept = ["method", "backbone", "input_px", "shots", "ms per image", "hardware", "source"]
    return timed[kept].astype(object).fillna("").reset_index(drop=True)


# ---------------------------------------------------------------- what bf16 changes


def halve(spec: Method) -> Method:
    """A method with its image encoder's matrix products in bf16."""
    return spec.model_copy(update={"name": f"{spec.name}, bf16", "precision": "bf16"})


def compare_precisions(results: Results, specs: list[Method]) -> pd.DataFrame:
    """Per method and measure, results in bf16 less those in fp32 of the same run: zero-shot or the first draw.

    Columns: method, ``images``, ``largest`` (the largest difference of an image score), ``order`` (Spearman's
    correlation of the scores within a category, its smallest) and ``comparison.COLUMNS``: image and pixel AUROC, paired
    over categories, with intervals at 95 % for both of all methods together.
    """
    frames, measures = [], ["image_auroc", "pixel_auroc"]
    for spec in specs:
        names = halve(spec).name, spec.name
        half, plain = (results.scores[results.scores.method == name] for name in names)
        both = half.merge(plain, on=["category", "image", "shots", "seed"], suffixes=("_half", ""))
        order = both.groupby("category")[["score", "score_half"]].apply(
            lambda images: images.score.corr(images.score_half, method="spearman")
        )
        facts = {"images": both.image.nunique(), "largest": (both.score - both.score_half).abs().max()}
        sides = (results.metrics[results.metrics.method == name].groupby("category")[measures].mean() for name in names)
        facts = {"method": spec.name} | facts | {"order": order.min()}
        frames.append(comparison.pair_differences(*sides, "categories", 2 * len(specs), **facts))
    return pd.concat(frames, ignore_index=True)
