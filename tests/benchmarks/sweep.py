"""The study's whole grid on kept features against one encoding pass: ``python tests/benchmarks/sweep.py``.

ViT-B-16-plus-240 with random weights and images made here. What a grid costs does not depend on what the features hold,
so all but a few images are given random ones of the right shape, where encoding would take an hour; the grid itself is
the run that a user makes.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from common import row, seconds, show

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import paint, small_profile

from vlmad_lib import methods
from vlmad_lib.analysis import prompt_variants, variants
from vlmad_lib.config import Method, Profile
from vlmad_lib.methods import winclip
from vlmad_lib.pipeline import run

GOOD, BAD, TRAIN = 20, 40, 20  # images of the category that is timed, about a category of MVTec AD
MVTEC = {"images": 1725, "categories": 15}  # its test images
ENCODED = 3
SIZE = (240, 240)


def made(root: Path) -> Path:
    """One category in MVTec AD's layout."""
    base = root / "plate"
    for i in range(TRAIN):
        paint(base / "train" / "good" / f"{i:03}.png", i, SIZE)
    for i in range(GOOD):
        paint(base / "test" / "good" / f"{i:03}.png", 100 + i, SIZE)
    for i in range(BAD):
        mask = base / "ground_truth" / "spot" / f"{i:03}_mask.png"
        paint(base / "test" / "spot" / f"{i:03}.png", 200 + i, SIZE, True, mask)
    return root


def pretended(backbone, images: torch.Tensor, wanted: list[str]) -> dict[str, torch.Tensor]:
    """Random features of the shapes that ``winclip.encode`` gives."""
    stream, grid, width = np.random.default_rng(int(images.abs().sum() * 100)), backbone.grid, 896
    shapes = {"class": (backbone.visual.output_dim,)}
    for name in wanted:
        if name.startswith("window_"):
            count = (grid - int(name.removeprefix("window_")) + 1) ** 2
            shapes[name] = (count, backbone.visual.output_dim)
        elif name.startswith("patch"):
            shapes[name] = (grid**2, width)
    drawn = {name: stream.standard_normal((len(images), *shapes[name]), np.float32) for name in wanted}
    return {name: torch.from_numpy(value) for name, value in drawn.items()}


pretended.__module__ = winclip.encode.__module__  # kept where the run looks for its own


# What the prompt sets change, as in notebook 09.
WORDINGS = {
    "one pair": {"states": "one", "templates": "none"},
    "states only": {"templates": "none"},
    "templates only": {"states": "one"},
    "21 templates": {"templates": "21"},
    "no full stops": {"templates": "22 no stop"},
    "folder names": {"names": "folder"},
    "the word object": {"names": "object"},
}


def runs(profile: Profile, spec: Method) -> dict[str, dict]:
    """The grid, one part varied at a time as in the study: what each part changes in the profile."""
    windows = variants.list_window_variants(spec, range(1, 8))[1:]
    words = prompt_variants.vary_settings(spec, WORDINGS)
    return {
        "0, 1, 2, 4 shots x 5 draws": {"shots": [0, 1, 2, 4], "seeds": [0, 1, 2, 3, 4]},
        f"k = 1 to 7, {len(windows)} variants": {"methods": windows},
        f"{len(words)} prompt sets": {"methods": words},
        "k = 1 to 7, 4 shots x 5 draws": {
            "methods": variants.list_window_variants(spec, range(1, 8), 4)[1:],
            "shots": [4],
            "seeds": [0, 1, 2, 3, 4],
        },
    }


def measure() -> list[dict]:
    """All rows; about two minutes on two cores."""
    spec = Method(weights="random:0")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        profile = small_profile(made(folder / "data"), folder / "cache", evaluation_size=240, shots=[0])
        profile = profile.model_copy(update={"methods": [spec]})
        table, _ = run.build_run_index(profile)
        chosen, backbone = methods.choose(spec, profile), run._backbone(spec, profile)
        usual = chosen.method.array_names(chosen.settings, 4)
        timed = list(table.image[:ENCODED])
        store = chosen.store(folder / "timed", backbone)
        store.fill(timed[:1], usual)
        encode = seconds(lambda: store.fill(timed[1:], usual))[0] / (ENCODED - 1)
        everything = [*usual, *(f"window_{size}" for size in (1, 4, 5, 6, 7))]
        with mock.patch.object(winclip, "encode", pretended):
            chosen.store(folder / "cache", backbone).fill(list(table.image), everything)
        return [*_rows(profile, spec, backbone, encode, folder)]


def _rows(profile: Profile, spec: Method, backbone, encode: float, folder: Path) -> list[dict]:
    images, rows = GOOD + BAD, [row("encode an image, windows 2 and 3 and patches", encode, "s")]
    text = total = 0.0
    for name, changes in runs(profile, spec).items():
        changed = profile.model_copy(update=changes)
        text += seconds(lambda changed=changed: _texts(changed, backbone))[0]
        taken = seconds(lambda changed=changed: run.run(changed))[0]
        rows.append(row(f"{name}: scores, maps and metrics", taken / images * 1e3, "ms an image"))
        total += taken
    rows.append(row("all prompts of the grid, once a category", text, "s"))
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows.append(row("peak memory of this process, weights included", held, "MB"))
    kept = sum(file.stat().st_size for file in (folder / "cache" / "features").rglob("*.npy")) / (images + TRAIN)
    rows.append(row("kept features, all seven window sizes", kept / 1e6, "MB an image"))
    grid = total / images * MVTEC["images"] + text * MVTEC["categories"]
    share = grid / (encode * MVTEC["images"])
    rows.append(row("the grid on MVTec AD over one encoding pass of its test images", share, "times", most=0.5))
    return rows


def _texts(profile: Profile, backbone) -> None:
    """Encode and keep what the methods of a profile ask."""
    table, _ = run.build_run_index(profile)
    for spec in profile.methods:
        chosen = methods.choose(spec, profile)
        chosen.text(profile.path(profile.cache), backbone, chosen.method.prompt_wording(chosen.settings, table.iloc[0]))


if __name__ == "__main__":
    sys.exit(show(measure()))
