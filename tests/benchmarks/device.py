"""The device of a run, encoding and a whole grid on it: ``python tests/benchmarks/device.py``.

On an accelerator: the networks as published, and as many made-up pictures as MVTec AD tests. On a CPU a small network
and a few pictures, from which figures for the published ones are scaled; ``encode.py`` has those networks on a CPU.
Weights are random: neither times nor shapes depend on what a network has learned.
"""

from __future__ import annotations

import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import encode
import joblib
import numpy as np
import torch
from common import row, seconds, show

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import paint, small_profile

from vlmad_lib import methods
from vlmad_lib.analysis import efficiency
from vlmad_lib.config import Method, Profile
from vlmad_lib.data import datasets, image_files
from vlmad_lib.encoders import devices, feature_store
from vlmad_lib.pipeline import run, workload

SIZE = (1024, 1024)  # of MVTec AD's pictures
MVTEC = {"categories": 15, "images": 1725}  # what it tests
GRID = {"shots": [0, 1, 2, 4], "seeds": [0, 1, 2, 3, 4]}
KINDS = ("winclip", "anomalyclip")
PLAIN = {"winclip": lambda net, image: encode.plain_winclip(net, image, 1), "anomalyclip": encode.plain_anomalyclip}
GOALS = {"winclip": 300, "anomalyclip": 120}  # images a second in bf16 on one H100 or H200
GOAL = 180  # seconds of the grid there, with 16 cores
REPEATS = 3


def spec(kind: str, device: torch.device, precision: str = "fp32", **changes) -> Method:
    """A method with random weights: as published, or on a CPU on the demo's small network."""
    small = {"backbone": "demo"} if device.type == "cpu" else {}
    settings = {"prompts": "object"} if kind == "anomalyclip" else {}  # needs no checkpoint, costs the same
    values = {"method": kind, "weights": "random:0", "precision": precision, "settings": settings}
    return Method.model_validate(values | small | changes)


def named(device: torch.device) -> bool:
    """Whether the goals are those of this device."""
    return device.type == "cuda" and any(name in torch.cuda.get_device_name(device) for name in ("H100", "H200"))


def encoder(kind: str, device: torch.device, peaks: dict[str, float], **changes) -> list[dict]:
    """Rows of one method: images a second by the plain way and by ours in each precision of ``peaks``."""
    rows: list[dict] = []
    slow = wanted = None
    for precision, before in peaks.items():
        one = spec(kind, device, precision, **changes)
        chosen = methods.ChosenMethod(one, methods.settings(one))
        backbone, code = methods.load_backbone(one, device=device.type), chosen.method
        side, names = code.image_side(chosen.settings, backbone), code.array_names(chosen.settings)
        batch = 1 if device.type == "cpu" else devices.plan_images(device, backbone.width, chosen.grid(backbone) ** 2)
        pixels = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
        name, work = f"{one.name} on {one.backbone}, {side} px", workload.count_gflop(chosen, one.backbone)
        if slow is None:
            image = backbone.normalise(pixels[:1])
            if device.type != "cpu":
                PLAIN[kind](backbone, image)
            slow, plain = seconds(lambda image=image, net=backbone: _fetched(PLAIN[kind](net, image)))
            wanted = {key: torch.from_numpy(values) for key, values in plain.items()}
            rows += [row(f"{name}: arithmetic", work, "GFLOP"), row(f"{name}: plain, fp32", 1 / slow, "images/s")]

        def ours(net=backbone, code=code, pixels=pixels, names=names, batch=batch):
            return feature_store.encode_pixels(net, code.encode, pixels, names, batch)[0]

        ours()  # weights are prepared once
        fast, found = seconds(ours, REPEATS)
        peak = max(before, workload.measure_peak(precision, device, 2))  # a machine that others share changes its pace
        rate, told = batch / fast, f"{name}: ours, {precision}"
        goal = GOALS[kind] if named(device) and precision == "bf16" else None
        rows += [
            row(f"{told}, {batch} at once", rate, "images/s", least=goal),
            row(f"{told}, over plain", rate * slow, "times"),
            row(f"{told}, of the device's matrix peak", rate * work / peak, "share"),
        ]
        first = {key: torch.from_numpy(values[:1]) for key, values in found.items()}
        rows.append(row(f"{told}, difference", encode.apart(first, wanted), most=1e-3 if precision == "fp32" else None))
        if device.type == "cpu":
            usual = spec(kind, device, precision, backbone=Method(method=kind).backbone)
            whole = workload.count_gflop(methods.ChosenMethod(usual, methods.settings(usual)), usual.backbone)
            rows.append(
                row(f"{one.name} as published: scaled by its {whole:.0f} GFLOP", rate * work / whole, "images/s")
            )
    return rows


def _fetched(arrays: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """In this machine's memory, which waits for the device, as ours does."""
    return {name: values.cpu().numpy() for name, values in arrays.items()}


def made(root: Path, categories: int, images: int, size: tuple[int, int] = SIZE, train: int = 4) -> Path:
    """Made-up pictures in MVTec AD's layout: so many test images a category, half of them with a spot."""
    jobs = []
    for number in range(categories):
        base = root / f"part_{number:02}"
        for i in range(images):
            bad, name = i % 2 == 1, f"{i:03}.png"
            mask = base / "ground_truth" / "spot" / f"{i:03}_mask.png" if bad else None
            jobs.append((base / "test" / ("spot" if bad else "good") / name, 1000 * number + i, size, bad, mask))
        jobs += [(base / "train" / "good" / f"{i:03}.png", 1000 * number + 500 + i, size) for i in range(train)]
    joblib.Parallel(n_jobs=joblib.cpu_count())(joblib.delayed(paint)(*job) for job in jobs)
    return root


def stages(profile: Profile) -> dict[str, float]:
    """Seconds of each stage of a run that finds nothing kept; a run reads pictures while others are encoded."""
    table, _ = run.build_run_index(profile)
    planned, here = run.list_variants(profile), run._planning(profile)
    _, jobs = run._plan(here, planned, dict(list(table.groupby("category", sort=False))))
    device = devices.choose_device(profile.device)
    threads = 1 if device.type == "cpu" else joblib.cpu_count()
    marks = [time.perf_counter()]
    paths = list(datasets.select_tested(table).image)
    with ThreadPoolExecutor(threads) as readers:
        list(readers.map(lambda path: image_files.views(path, "squash", 240).shape, paths))
    marks.append(time.perf_counter())
    for job in run._encoding(here, planned, jobs, sys.maxsize):
        run._encode(profile, *job)
    marks.append(time.perf_counter())
    scored = [list(run._scores(profile, together)) for together in jobs]
    marks.append(time.perf_counter())
    done = list(run._parallel(profile, run._measure, [(one,) for one in scored]))
    marks.append(time.perf_counter())
    if not all(done):
        raise RuntimeError("A unit was left undone, so its time is not that of a run.")
    return dict(zip(("decode", "encode", "score", "metrics"), np.diff(marks).tolist(), strict=True))


def grid(
    device: torch.device, folder: Path, categories: int, images: int, changes: dict, size: tuple = SIZE, **network
) -> dict[str, float]:
    """``stages`` of both methods on so many pictures."""
    precision = "fp32" if device.type == "cpu" else "bf16"
    used = [spec(kind, device, precision, **network) for kind in KINDS]
    workers = 1 if device.type == "cpu" else joblib.cpu_count()
    root = made(folder / "data", categories, images, size)
    profile = small_profile(root, folder / "cache", evaluation_size=240, methods=used, workers=workers, **changes)
    return stages(profile)


def growth(device: torch.device, images: int, **more) -> tuple[list[dict], dict[str, float]]:
    """Rows of how each stage grows with images, categories and shots; and the seconds of one category, zero-shot."""
    one = {"shots": [0], "seeds": [0]}
    cases = {
        f"{images} pictures": (1, images, one),
        f"{2 * images} pictures": (1, 2 * images, one),
        f"2 categories of {images}": (2, images, one),
        f"{images} pictures, 0/1/2/4 shots x 5 draws": (1, images, GRID),
    }
    rows, first = [], {}
    for name, case in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            found = grid(device, Path(folder), *case, **more)
        for stage, spent in found.items():
            rows.append(row(f"{stage}: {name}", spent, "s"))
            if first:
                rows.append(row(f"{stage}: {name}, over {images} pictures zero-shot", spent / first[stage], "times"))
        first = first or found
    return rows, first


def mvtec(device: torch.device, found: dict[str, float], images: int) -> list[dict]:
    """Rows of a data set of MVTec AD's size: run on an accelerator; on a CPU the stages of few pictures, scaled."""
    if device.type == "cpu":
        ratio = MVTEC["images"] / images
        told = "MVTec AD's size, zero-shot, on the small network, scaled by pictures"
        return [row(f"{stage}: {told}", spent * ratio, "s") for stage, spent in found.items()]
    with tempfile.TemporaryDirectory() as folder:
        each = MVTEC["images"] // MVTEC["categories"]
        found = grid(device, Path(folder), MVTEC["categories"], each, GRID)
    told = f"MVTec AD's size, 0/1/2/4 shots x 5 draws, {joblib.cpu_count()} cores"
    rows = [row(f"{stage}: {told}", spent, "s") for stage, spent in found.items()]
    whole = sum(spent for stage, spent in found.items() if stage != "decode")
    goal = GOAL if named(device) and joblib.cpu_count() >= 16 else None
    return [*rows, row(f"encode (pictures read meanwhile), score, metrics: {told}", whole, "s", most=goal)]


def measure() -> list[dict]:
    """All rows; about a minute on two cores that do nothing else."""
    device = devices.choose_device()
    peaks = efficiency.measure_peaks(device)
    where = devices.describe_device(device, True)
    rows = [row(f"matrix product on {where}, {kind}", rate, "GFLOP/s") for kind, rate in peaks.items()]
    for kind in KINDS:
        rows += encoder(kind, device, peaks)
    images = 4 if device.type == "cpu" else 64
    grown, found = growth(device, images)
    return rows + grown + mvtec(device, found, images)


if __name__ == "__main__":
    sys.exit(show(measure()))
