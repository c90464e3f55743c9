"""What encoding takes, said before it starts: arithmetic, about how long, and disk. Nothing is encoded to know it.

Operations and sizes come from a forward pass on PyTorch's meta device, the time from the rate of matrix products here.
``python -m vlmad_lib workload`` says it of MVTec AD and VisA.
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from vlmad_lib import InputError, commands, methods, tables
from vlmad_lib.config import Method
from vlmad_lib.data import datasets, image_files
from vlmad_lib.encoders import backbones, devices
from vlmad_lib.encoders.feature_store import AnyStore, Joint, Store
from vlmad_lib.encoders.vit_blocks import Linear, works
from vlmad_lib.evaluation import metrics, pixel_ranking
from vlmad_lib.methods import ChosenMethod

# The share of its matrix products that encoding is supposed to reach: on a CPU about what ``make bench`` shows.
REACHED = {"cpu": 0.8}
ELSEWHERE = 0.4  # on an accelerator, where what stands between the products weighs more; supposed, not measured
TRAINED = 0.3  # by the steps of a training of small networks, on any device; supposed
SHAPES = [(1690, 896, 3584), (1370, 4096, 1024), (2048, 2048, 2048)]  # rows, inner, columns: as in large ViTs
NOTEWORTHY = 1000.0  # GFLOP of comparisons that may take a minute: no CPU has less than 15 GFLOP/s
MORE_ROWS = 16  # times as many on an accelerator, which small products leave idle
# By name, the shape of the pictures: VisA's is one of several, and none of them makes more tiles than it.
BENCHMARKS = {"MVTec AD": (1024, 1024), "VisA": (1500, 1000)}
CORES = 16  # what a workstation has, beside this machine's own


# ---------------------------------------------------------------- operations and sizes


def count_operations(encode: Callable, backbone: str, size: int, names: Sequence[str]) -> tuple[float, int]:
    """GFLOP to encode one square picture of ``size`` pixels into some arrays, and how many numbers they hold."""
    network = backbones.build_skeleton(backbone)
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        arrays = encode(network, torch.empty(1, 3, size, size), names)
    return counter.get_total_flops() / 1e9, sum(arrays[name].numel() for name in names)


def count_gflop(chosen: ChosenMethod, name: str, shots: int = 0) -> float:
    """Billions of floating point operations to encode one image, as our code does it; counted, not run."""
    return _count_method(chosen, name, shots)[0]


def _count_method(chosen: ChosenMethod, name: str, shots: int) -> tuple[float, int]:
    code, settings = chosen.method, chosen.settings
    size = code.image_side(settings, backbones.build_skeleton(name))
    return count_operations(code.encode, name, size, code.array_names(settings, shots))


# ---------------------------------------------------------------- the rate of matrix products


def measure_peak(
    precision: str = "fp32", device: torch.device = devices.CPU, repeats: int = 5, shapes: Sequence[tuple] = SHAPES
) -> float:
    """GFLOP/s of the fastest large matrix product that PyTorch offers on a device: the measure of encoding there."""
    tried = [product for shape in shapes for product in list_products(precision, *shape, device)]
    with devices.multiply_in(precision, device):
        first = [work / time_call(call, device) for work, call in tried]
        best = np.argsort(first)[-2:]  # all of them several times would take seconds
        again = [tried[place][0] / time_call(tried[place][1], device) for place in best for _ in range(repeats - 1)]
    return max(first + again)


def list_products(
    precision: str, rows: int, inner: int, columns: int, device: torch.device = devices.CPU
) -> list[tuple[float, Callable]]:
    """A matrix product by each way that PyTorch offers there: its billions of operations, and what computes it."""
    on_cpu, kind = device.type == "cpu", devices.TYPES[precision]
    rows *= 1 if on_cpu else MORE_ROWS
    with device:
        x, weight, bias = torch.ones(rows, inner, dtype=kind), torch.ones(columns, inner), torch.ones(columns)
    ways = {False, on_cpu and works(kind)}
    return [(2 * rows * inner * columns / 1e9, partial(Linear(weight, bias, kind, packed), x)) for packed in ways]


def time_call(call: Callable, device: torch.device = devices.CPU) -> float:
    """Seconds until a device has done what a call gives it."""
    devices.synchronise(device)
    began = time.perf_counter()
    with torch.inference_mode():
        call()
    devices.synchronise(device)
    return time.perf_counter() - began


# ---------------------------------------------------------------- a run


@dataclass(frozen=True)
class Part:
    """Images that one encoder turns into the same arrays; a view is what it sees at once, an image or a tile of it."""

    store: Store
    paths: tuple[str, ...]
    views: int
    gflop: float  # of all views
    bytes: int  # that the arrays take on disk, but for the head of each file


def plan_encoding(wanted: Iterable[tuple[AnyStore, Sequence[str], Sequence[str]]], table: pd.DataFrame) -> list[Part]:
    """The work behind stores, each with the arrays and images asked of it; what is kept, or told twice, is left out.

    ``table``: an index that has the images, with ``width`` and ``height``.
    """
    shapes = {row.image: (row.width, row.height) for row in table.itertuples()}
    lacking: dict[tuple[Path, str], tuple[Store, dict]] = {}
    for kept, names, paths in wanted:
        for _, store, own_names in kept._shared(names) if isinstance(kept, Joint) else [("", kept, names)]:
            for path in paths:
                todo = {name: None for name in own_names if store.missing([path], [name])}
                lacking.setdefault((store.folder, path), (store, {}))[1].update(todo)
    alike: dict[tuple, tuple[Store, list[str]]] = {}
    for (folder, path), (store, names) in lacking.items():
        if names:
            alike.setdefault((folder, tuple(sorted(names))), (store, []))[1].append(path)
    planned = []
    for (_, names), (store, paths) in alike.items():
        views = sum(len(image_files.list_boxes(*shapes[path], store.fit)) for path in paths)
        work, numbers = count_operations(store.encode, store.backbone.name, store.size, names)
        size = numbers * (4 if store.exact else 2)
        planned.append(Part(store, tuple(paths), views, work * views, size * views))
    return planned


def share_work(
    parts: Iterable[Part], wanted: Sequence[tuple[AnyStore, Sequence[str], Sequence[str]]], table: pd.DataFrame
) -> list[float]:
    """GFLOP of each of the requests that ``plan_encoding`` made parts of; an image wanted twice counts at its first."""
    shapes = {row.image: (row.width, row.height) for row in table.itertuples()}
    work_of_image = {
        (part.store.folder, path): part.gflop / part.views * len(image_files.list_boxes(*shapes[path], part.store.fit))
        for part in parts
        for path in part.paths
    }
    return [
        sum(work_of_image.pop((folder, path), 0.0) for folder in kept.folders for path in paths)
        for kept, _, paths in wanted
    ]


def describe_encoding(parts: list[Part], cache: Path, others: bool = False) -> str:
    """A sentence on what is still to encode: images, operations, about how long here, and room on the cache's disk.

    It measures the rate of matrix products on the stores' device, about a second for each precision. ``others``:
    whether other machines will do the work, whose devices are not known here.
    """
    device = parts[0].store.backbone.device
    seconds, rates = 0.0, []
    for precision in dict.fromkeys(part.store.backbone.precision for part in parts):
        rate = measure_peak(precision, device, 2, SHAPES[1:2])
        rates.append(f"{_round(rate)} GFLOP/s in {precision}")
        work = sum(part.gflop for part in parts if part.store.backbone.precision == precision)
        seconds += work / (rate * _reached(device))
    where = devices.describe_device(device, True) + (", were it to work alone" if others else "")
    images = len({path for part in parts for path in part.paths})
    size, free = sum(part.bytes for part in parts), _free_bytes(cache)
    disk = f"their features will take {_size(size)} of the {_size(free)} that are free on the disk of {cache}."
    if size > free:
        disk = (
            f"their features will take {_size(size)}, and the disk of {cache} has {_size(free)} free, which is too "
            "little: free some of it, or set another 'cache'."
        )
    return (
        f"{images:,} {'image' if images == 1 else 'images'} to encode, {_operations(sum(p.gflop for p in parts))}: "
        f"about {_duration(seconds)} on {where}, if encoding reaches {_reached(device):.0%} "
        f"of its matrix products ({', '.join(rates)}); {disk}"
    )


def read_peak_memory() -> float:
    """The most bytes of memory that this process has held so far; nan on systems that do not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024
    except (OSError, TypeError):
        return float("nan")


def describe_memory(names: Iterable[str], tested: dict[str, pd.DataFrame], size: int, exact: bool, workers: int) -> str:
    """A sentence on the memory of each of a run's processes: the program, its weights, and the pixels it ranks.

    Exact pixel metrics hold the scores of all pixels of one category, and once more those that are far from most.

    Args:
        names: The methods' backbones, of which a process holds two at a time.
        tested: By category the index rows that are scored.
        size: The evaluation size.
        exact: Whether pixel metrics are exact, or counted in bins.
        workers: How many processes work.
    """
    models = [backbones.build_skeleton(name).model for name in dict.fromkeys(names)]
    weights = sum(sorted(4 * sum(values.numel() for values in model.parameters()) for model in models)[-2:])
    pixels = {
        category: sum(math.prod(image_files.frame(row.width, row.height, "tiles", size)) for row in rows.itertuples())
        for category, rows in tested.items()
    }
    largest = max(pixels, key=pixels.__getitem__)
    ranked = 8 * pixels[largest] + 4 * pixel_ranking.WINDOW if exact else 8 * 5 * metrics.BINS
    program = read_peak_memory()
    known = [] if math.isnan(program) else [f"{_size(program)} for the program"]
    count = tables.format_count(len(tested[largest]), "picture", "pictures")
    shares = [*known, f"{_size(weights)} of weights", f"up to {_size(ranked)} for the pixels of {largest} ({count})"]
    total = f"about {_size(sum([weights, ranked, *([program] if known else [])]))}"
    total += "" if known else " besides the program"
    where = "this process" if workers == 1 else f"each of {workers} processes"
    hint = ", which 'pixel_metrics: binned' does without" if exact and ranked > 2e9 else ""
    return f"Memory of {where}: {total}, {tables.join_words(shares)}{hint}."


@dataclass(frozen=True)
class Comparison:
    """The images of a category that a method compares with each other, and the work of that."""

    method: str
    images: int
    gflop: float
    device: torch.device


def describe_comparison(comparisons: Sequence[Comparison], others: bool = False) -> str:
    """A sentence on what methods that score whole categories will compare: operations, and about how long here.

    Empty where that is less than a minute. It measures the rate of matrix products, about a second, where there is
    enough to compare. ``others``: as in ``describe_encoding``.
    """
    work = sum(part.gflop for part in comparisons)
    if not comparisons or work < NOTEWORTHY:
        return ""
    device = comparisons[0].device
    rate = measure_peak("fp32", device, 2, SHAPES[1:2])
    seconds = work / (rate * _reached(device))
    if seconds < 60:
        return ""
    where = devices.describe_device(device, True) + (", were it to work alone" if others else "")
    images = {(part.method, part.images): None for part in comparisons}
    span = tables.format_range(pd.Series([part.images for part in comparisons]))
    return (
        f"{', '.join(dict.fromkeys(name for name, _ in images))}: {len(comparisons)} categories of {span} images to "
        f"compare, each image with all others, {_operations(work)}: about {_duration(seconds)} on {where}, if that "
        f"reaches {_reached(device):.0%} of its matrix products ({_round(rate)} GFLOP/s in fp32); the work grows with "
        "the square of the images, 'subsets' divides it."
    )


@dataclass(frozen=True)
class Training:
    """A network that a method trains on the references of a draw, and the work of that."""

    method: str
    images: int
    gflop: float
    device: torch.device


def estimate_training_seconds(gflop: float, device: torch.device) -> float:
    """About how long trainings of so many billions of operations take on a device, if they reach ``TRAINED``."""
    return gflop / (measure_peak("fp32", device, 2, SHAPES[1:2]) * TRAINED)


def describe_training(trainings: Sequence[Training], others: bool = False) -> str:
    """A sentence on the networks that methods will train: how many, operations, and about how long here.

    Empty where that is less than a minute; otherwise as ``describe_comparison``.
    """
    work = sum(part.gflop for part in trainings)
    if not trainings or work < NOTEWORTHY:
        return ""
    device = trainings[0].device
    seconds = estimate_training_seconds(work, device)
    if seconds < 60:
        return ""
    rate = work / seconds / TRAINED
    where = devices.describe_device(device, True) + (", were it to work alone" if others else "")
    networks = "1 network" if len(trainings) == 1 else f"{len(trainings)} networks"
    span = tables.format_range(pd.Series([part.images for part in trainings]))
    return (
        f"{', '.join(dict.fromkeys(part.method for part in trainings))}: {networks} to train on {span} normal images "
        f"each, {_operations(work)}: about {_duration(seconds)} on {where}, if that reaches {TRAINED:.0%} of its "
        f"matrix products ({_round(rate)} GFLOP/s in fp32); networks that are kept are not trained again."
    )


def _reached(device: torch.device) -> float:
    return REACHED.get(device.type, ELSEWHERE)


def _free_bytes(place: Path) -> int:
    """Bytes free on the disk where a folder is, or will be made."""
    return shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free


def _round(value: float) -> str:
    """Two digits, and no exponent."""
    return f"{float(f'{value:.2g}'):,.12g}"


def _operations(work: float) -> str:
    return f"{_round(work / 1e6)} PFLOP" if work >= 1e6 else f"{_round(work / 1e3)} TFLOP"


def _size(number: float) -> str:
    return f"{_round(number / 1e9)} GB" if number >= 1e8 else f"{_round(number / 1e6)} MB"


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{_round(seconds / length)} {unit}"
    return f"{_round(max(seconds, 1))} s"


# ---------------------------------------------------------------- the benchmarks


def estimate_benchmarks(
    machines: dict[str, tuple[float, float]], kinds: Sequence[str] = ("winclip", "anomalyclip")
) -> pd.DataFrame:
    """What encoding MVTec AD and VisA by methods as published takes: a row a data set, its test images and all.

    ``machines``: by name the GFLOP/s of matrix products and the share of them that encoding reaches. Arrays are those
    of few-shot runs. Reading pictures and scores are not in it.
    """
    counts = pd.read_csv(datasets.REFERENCE / "dataset_counts.csv")
    chosen = [ChosenMethod(Method(method=kind), methods.METHODS[kind].settings()) for kind in kinds]
    costs = [(method, *_count_method(method, method.spec.backbone, int(method.method.few_shot))) for method in chosen]
    rows = []
    for name, shape in BENCHMARKS.items():
        counted = counts[counts.dataset == name]
        for which, images in (
            ("tested", counted[counted.split == "test"].n_images.sum()),
            ("all", counted.n_images.sum()),
        ):
            views = [images * len(image_files.list_boxes(*shape, method.fit)) for method, *_ in costs]
            work = sum(number * cost for number, (_, cost, _) in zip(views, costs, strict=True))
            size = sum(number * kept * 2 for number, (*_, kept) in zip(views, costs, strict=True))
            row = {"data set": name, "images": f"{images:,} ({which})", "work": _operations(work)}
            row |= {title: _duration(work / (rate * share)) for title, (rate, share) in machines.items()}
            rows.append(row | {"kept features": _size(size)})
    return pd.DataFrame(rows)


def list_machines(
    peaks: dict[torch.device, dict[str, float]], stated: float | None = None
) -> dict[str, tuple[float, float]]:
    """For ``estimate``: this CPU in fp32, the same with ``CORES``, an accelerator in bf16, and one told in TFLOP/s.

    ``peaks``: GFLOP/s by device and precision, the CPU's among them.
    """
    machines, cores = {}, torch.get_num_threads()
    for device, rates in sorted(peaks.items(), key=lambda pair: pair[0].type != "cpu"):
        if device.type == "cpu":
            machines[f"{cores} {'core' if cores == 1 else 'cores'}, measured"] = (rates["fp32"], REACHED["cpu"])
            machines[f"{CORES} cores, scaled, not measured"] = (rates["fp32"] / cores * CORES, REACHED["cpu"])
        else:
            precision = "bf16" if "bf16" in rates else max(rates, key=rates.get)
            machines[f"{devices.describe_device(device)} in {precision}, measured"] = (rates[precision], ELSEWHERE)
    if stated:
        machines[f"an accelerator of {stated:g} TFLOP/s, as told"] = (stated * 1e3, ELSEWHERE)
    return machines


def main(arguments: list[str] | None = None) -> int:
    """The command line: a table of MVTec AD and VisA."""
    parser = argparse.ArgumentParser(prog="python -m vlmad_lib workload", description=main.__doc__)
    parser.add_argument("--gpu", type=float, metavar="TFLOPS", help="the matrix products of a GPU, as its maker has it")
    options = parser.parse_args(arguments)

    def work() -> int:
        if options.gpu is not None and not 0 < options.gpu < float("inf"):
            raise InputError(f"--gpu is {options.gpu}; give a number of TFLOP/s above 0.")
        shares = f"{REACHED['cpu']:.0%} of its matrix products on a CPU, {ELSEWHERE:.0%} elsewhere"
        print(f"WinCLIP and AnomalyCLIP as published, if encoding reaches {shares}; reading pictures is not in it.")
        peaks = {devices.CPU: {"fp32": measure_peak()}}
        if (device := devices.choose_device()) != devices.CPU:
            peaks[device] = {"bf16": measure_peak("bf16", device)}
        print(estimate_benchmarks(list_machines(peaks, options.gpu)).T.to_string(header=False))
        return 0

    return commands.run_command(work)
