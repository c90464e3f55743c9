"""What several tests share: tiny data sets made on the spot, the real images where they are, a small backbone."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from vlmad_lib import ROOT, config
from vlmad_lib.encoders import backbones

sys.modules["rfc3987_syntax"] = None  # 3 s to import, for a format of links that no notebook has; it is optional
import nbformat  # noqa: E402, F401

del sys.modules["rfc3987_syntax"]

# a shell starts what runs in its background with Ctrl-C ignored, and tests of interrupts would wait in vain
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)  # beside another process one is faster

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))  # some tests try what benchmarks are made of

TINY = {"backbone": str(Path(__file__).parent / "tiny.json"), "weights": "random:0"}  # 5x5 tokens, milliseconds
SHARED = Path(os.environ.get("VLMAD_SHARED", ROOT.parent / "shared"))


def shared(part: str) -> Path:
    """A path in the folder of real images and oracles; the test skips where it is absent."""
    path = SHARED / part
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    return path


@pytest.fixture(scope="session")
def tiny_backbone() -> backbones.Backbone:
    """5x5 tokens on seeded random weights: a forward pass in a millisecond."""
    return backbones.load_backbone(TINY["backbone"], TINY["weights"])


@pytest.fixture(scope="session")
def demo_backbone() -> backbones.Backbone:
    """The demo geometry (240 px, 15x15 tokens) on seeded random weights."""
    return backbones.load_backbone("demo", "random:0")


def paint(
    path: Path, seed: int, size: tuple[int, int] = (60, 60), spot: bool = False, mask: Path | None = None
) -> None:
    """A speckled picture of (width, height), with a bright spot and its mask where asked."""
    pixels = np.random.default_rng(seed).integers(60, 120, (size[1], size[0], 3), dtype=np.uint8)
    region = np.zeros((size[1], size[0]), np.uint8)
    if spot:
        region[20:40, 10:40] = 255
        pixels[region > 0] = 230
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    if mask is not None:
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(region).save(mask)


def make_mvtec(root: Path, categories: tuple[str, ...] = ("plate", "cloth"), train: int = 4, size=(60, 60)) -> Path:
    """MVTec AD's layout: 4 train, 4 good and 4 spotted test images a category."""
    for number, category in enumerate(categories):
        base = root / category
        for i in range(4):
            paint(base / "test" / "good" / f"{i:03}.png", 1000 * number + i, size)
            mask = base / "ground_truth" / "spot" / f"{i:03}_mask.png"
            paint(base / "test" / "spot" / f"{i:03}.png", 1000 * number + 100 + i, size, True, mask)
        for i in range(train):
            paint(base / "train" / "good" / f"{i:03}.png", 1000 * number + 200 + i, size)
    return root


def make_mvtec_ad2(root: Path, categories: tuple[str, ...] = ("can",), count: int = 4) -> Path:
    """MVTec AD 2's layout, with the folders of its private images, which have no labels."""
    for number, category in enumerate(categories):
        base, start = root / category, 1000 * number
        for i in range(count):
            for place, seed in (("train/good", 0), ("validation/good", 100), ("test_public/good", 200)):
                paint(base / place / f"{i:03}_regular.png", start + seed + i)
            mask = base / "test_public/ground_truth/bad" / f"{i:03}_regular_mask.png"
            paint(base / "test_public/bad" / f"{i:03}_regular.png", start + 300 + i, spot=True, mask=mask)
        for place in ("test_private/000_regular.png", "test_private_mixed/000_mixed.png"):
            paint(base / place, start + 400)
    return root


SATURATIONS = [
    {"defect_name": "missing", "pixel_value": 40, "saturation_threshold": 150, "relative_saturation": False},
    {"defect_name": "scratch", "pixel_value": 90, "saturation_threshold": 1.0, "relative_saturation": True},
]


def make_loco(root: Path, categories: tuple[str, ...] = ("box",), count: int = 4) -> Path:
    """MVTec LOCO AD's layout: a logical defect saturates at 150 of its 600 pixels, a structural one has two masks."""
    for number, category in enumerate(categories):
        base, start = root / category, 1000 * number
        for i in range(count):
            for place, seed in (("train/good", 0), ("validation/good", 100), ("test/good", 200)):
                paint(base / place / f"{i:03}.png", start + seed + i)
            for kind, seed, values in (("logical_anomalies", 300, (40,)), ("structural_anomalies", 400, (90, 90))):
                paint(base / "test" / kind / f"{i:03}.png", start + seed + i, spot=True)
                for place, value in enumerate(values):
                    region = np.zeros((60, 60), np.uint8)
                    region[20:40, 10 + 15 * place : 25 if len(values) > 1 and not place else 40] = value
                    file = base / "ground_truth" / kind / f"{i:03}" / f"{place:03}.png"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(region).save(file)
        (base / "defects_config.json").write_text(json.dumps(SATURATIONS))
    return root


def small_profile(root: Path, cache: Path, **changes) -> config.Profile:
    """A profile on a tiny data set with the small backbone."""
    values = {
        "title": "test",
        "dataset": "folder",
        "root": str(root),
        "cache": str(cache),
        "methods": [TINY],
        "shots": [0, 1],
        "evaluation_size": 60,
    }
    return config.check_record(config.Profile, values | changes, "test")


def write_profile(folder: Path, **values) -> Path:
    """A profile file on the small backbone."""
    base = {"title": "Test", "cache": str(folder / "cache"), "evaluation_size": 60, "methods": [TINY], "shots": [0, 1]}
    path = folder / "test.yml"
    path.write_text(yaml.safe_dump(base | values))
    return path


@pytest.fixture
def one_thread():
    """Networks so small are no faster with two, and much slower where something else runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    return make_mvtec(tmp_path / "data")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """One cache for the tests of a module: the words of a category are read once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    """A folder of new pictures for decisions: twelve good ones, and three new ones of which the first has a spot."""
    folder = tmp_path / "drop_2026_11_27"
    for i in range(12):
        paint(folder / "good" / f"{i}.png", i)
    for i in range(3):
        paint(folder / f"n{i}.png", 100 + i, spot=i == 0)
    return folder


@pytest.fixture(autouse=True)
def _tried(request, record_property):
    """What a fault test tries is told at the end of the session, with what came of it."""
    if request.node.get_closest_marker("fault"):
        record_property("tried", " ".join((request.function.__doc__ or request.node.name).split()))


def pytest_configure(config):
    """The CPU is what tests compare with: only those for a GPU see one."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        torch.backends.mps.is_available = functools.cache(lambda: False)  # cached, as PyTorch expects of it


LONGEST = ("test_other_profiles.py", "test_notebooks.py", "test_run.py")


def pytest_collection_modifyitems(items):
    """Files whose single tests take longest first, so that two workers end together."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_terminal_summary(terminalreporter):
    ends = {"passed": "survived", "failed": "LOST", "skipped": "not tried"}
    rows = [
        (told, dict(one.user_properties).get("tried"))
        for state, told in ends.items()
        for one in terminalreporter.stats.get(state, [])
    ]
    rows = [f"{told}: {tried}" for told, tried in rows if tried]
    if rows:
        terminalreporter.section("what was tried on the runs")
        for row in rows:
            terminalreporter.write_line(row)
