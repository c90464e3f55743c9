"""The demo data: two disjoint sets of drawn categories, rendered image by image or written in MVTec AD layout."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import tempfile
import zlib
from functools import lru_cache
from itertools import chain
from pathlib import Path

import joblib
import numpy as np
from PIL import Image

from vlmad_lib import InputError, files

from . import auxiliary  # noqa: F401  (registers its categories)
from .categories import CATEGORIES, RECIPES, SCENES, Category
from .defects import AREA, LEVELS, apply, around, to_lab, window
from .draw import Canvas, F

__all__ = ["CATEGORIES", "CONTRASTS", "Category", "delta_e", "names", "render", "write"]

CONTRASTS = tuple(LEVELS)
FIELDS = ("category", "class_name", "group", "defect", "defect_class", "contrast", "image", "area_fraction", "delta_e")
TRIES = 40  # draws of a defect before giving up
FEW = 3  # categories that one process draws


def names(subset: str) -> list[str]:
    """The categories of a subset, "target" or "auxiliary", in their fixed order."""
    if subset not in ("target", "auxiliary"):
        raise InputError(f"Unknown subset {subset!r}: use 'target' or 'auxiliary'.")
    return [n for n, c in CATEGORIES.items() if c.subset == subset]


def _stream(seed: int, index: int, *words: object) -> np.random.Generator:
    key = [seed, index, *(zlib.crc32(str(w).encode()) for w in words)]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def _check(category: str, defect: str | None, contrast: str | None) -> None:
    if category not in CATEGORIES:
        raise InputError(f"Unknown category {category!r}: one of {', '.join(CATEGORIES)}.")
    if defect is None:
        if contrast is not None:
            raise InputError("A contrast needs a defect.")
        return
    if defect not in CATEGORIES[category].defects:
        raise InputError(f"Category {category!r} has no defect {defect!r}: {', '.join(CATEGORIES[category].defects)}.")
    if contrast not in LEVELS:
        raise InputError(f"Unknown contrast {contrast!r}: one of {', '.join(LEVELS)}.")


def _camera(image: np.ndarray, rng: np.random.Generator, wide: bool) -> np.ndarray:
    """Slight blur and sensor noise: (3, H, W) in 0..1 to (H, W, 3) uint8."""
    b = F(rng.uniform(0.02, 0.24 if wide else 0.14))
    p = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
    p = p[:, 1:-1] * (1 - 2 * b) + (p[:, :-2] + p[:, 2:]) * b
    p = p[:, :, 1:-1] * (1 - 2 * b) + (p[:, :, :-2] + p[:, :, 2:]) * b
    noise = rng.standard_normal(image.shape[1:], dtype=F) * F(rng.uniform(1.2, 4.0 if wide else 2.8))
    p *= 255
    p += F(0.75) * noise + F(0.5)
    noise *= F(0.45)
    out = np.empty((*noise.shape, 3), np.uint8)
    for k, roll in enumerate(rng.integers(40, 9000, 3)):  # shifted copies: cheap colour noise
        out[..., k] = np.clip(p[k] + np.roll(noise.ravel(), roll).reshape(noise.shape), 0, 255)
    return out


def render(
    category: str, seed: int, index: int, defect: str | None = None, contrast: str | None = None, size: int = 240
) -> tuple[np.ndarray, np.ndarray]:
    """One image (size, size, 3) uint8 RGB and its defect mask (size, size) bool.

    The scene (pose, colours, light, noise) depends on (category, seed, index) only, so that images with and
    without a defect are a pair; seed and index are not negative; contrast is "low", "medium" or "high". Raises
    InputError on an unknown name, RuntimeError if no draw of the defect has an admissible area.
    """
    _check(category, defect, contrast)
    if min(seed, index) < 0 or size < 64:
        raise InputError("seed and index must not be negative, and size must be at least 64.")
    wide = CATEGORIES[category].subset == "auxiliary"

    def draw(**fault) -> Canvas:
        canvas = Canvas(size, _stream(seed, index, category), wide, **fault)
        SCENES[category](canvas)
        return canvas

    canvas = draw()
    image, mask = canvas.shade(), np.zeros((size, size), bool)
    if defect is not None:
        recipe = RECIPES[category, defect]
        for attempt in range(TRIES):
            rng = _stream(seed, index, category, defect, contrast, attempt)
            found = apply(recipe, defect, canvas, image, lambda **f: draw(**f).shade(), rng, contrast)
            if found is None or not AREA[0] <= found[1].mean() <= AREA[1]:
                continue
            if abs(np.log(found[2])) < (0.3 if attempt < 3 else 0.8 if attempt < 8 else 9):  # may be out of reach
                image, mask = found[:2]
                break
        else:
            raise RuntimeError(
                f"No admissible {defect!r} on {category!r} in {TRIES} draws (seed {seed}, index {index})."
            )
    return _camera(image, _stream(seed, index, category, "camera"), wide), mask


def delta_e(image: np.ndarray, mask: np.ndarray, ring: tuple[float, float] = (1.5, 8)) -> float:
    """CIELAB distance (Delta-E 76) of the mean colours of a mask and of the ring around it.

    image (H, W, 3) uint8 RGB, mask (H, W) bool, ring in pixels from the mask. Raises InputError on an empty mask
    or ring.
    """
    if not mask.any():
        raise InputError("The mask is empty.")
    win = window(mask, ring[1] + 1)
    lab, inside = to_lab(image[win].astype(F).transpose(2, 0, 1).reshape(3, -1) / 255), mask[win].ravel()
    outside = around(mask[win], ring).ravel()
    if not outside.any():
        raise InputError("The mask leaves no ring within the image.")
    return float(np.linalg.norm(lab[:, inside].mean(1) - lab[:, outside].mean(1)))


@lru_cache(maxsize=1)
def _source() -> str:
    digest = hashlib.sha256()
    for name in ("draw", "categories", "auxiliary", "defects", "data"):
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return digest.hexdigest()


def _category(root: Path, c: Category, seed: int, train: int, good: int, per_defect: int) -> list[dict]:
    """Write one category below root; its rows of demo.csv. Every image has a scene index of its own."""
    jobs = [("train", None, i, i) for i in range(train)] + [("test", None, i, 100_000 + i) for i in range(good)]
    for k, defect in enumerate(c.defects, 2):
        jobs += [("test", defect, i, 100_000 * k + i) for i in range(per_defect)]
    rows = []
    for split, defect, i, index in jobs:
        contrast = CONTRASTS[i % 3] if defect else None
        image, mask = render(c.name, seed, index, defect, contrast)
        path = root / c.name / split / (defect or "good") / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, compress_level=3)
        if defect:
            truth = root / c.name / "ground_truth" / defect / f"{i:03d}_mask.png"
            truth.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * 255).save(truth, compress_level=3)
        rows.append(dict(zip(FIELDS, (
            c.name, c.class_name, c.group, defect or "good", c.defects.get(defect, ""), contrast or "",
            path.relative_to(root).as_posix(), round(float(mask.mean()), 6),
            round(delta_e(image, mask), 3) if defect else "",
        ), strict=True)))  # fmt: skip
    return rows


def write(
    root: Path, subset: str = "target", seed: int = 0, train: int = 12, good: int = 16, per_defect: int = 6,
    categories: list[str] | None = None,
) -> Path:  # fmt: skip
    """Write a data set of a subset (or of some of its categories) in MVTec AD layout, and return root.

    train and good are normal images per category, per_defect images per defect (contrasts in turn). The set is
    built beside root and moved into place when complete, by one process while others wait; a root made by the same
    parameters and code is left as it is. Raises InputError on an unknown name, or if root holds something else than
    demo data.
    """
    root, known = Path(root), names(subset)
    chosen = known if categories is None else list(categories)
    for name in chosen:
        if name not in known:
            raise InputError(f"Unknown category {name!r} in subset {subset!r}: one of {', '.join(known)}.")
    counts = {"seed": seed, "train": train, "good": good, "per_defect": per_defect}
    with files.hold_lock(root):
        _write(root, {"parameters": {"subset": subset, **counts, "categories": chosen}, "source": _source()}, counts)
    return root


def _write(root: Path, made_by: dict, counts: dict[str, int]) -> None:
    record = root / "demo.json"
    if record.is_file() and json.loads(record.read_text("utf-8")) == made_by:
        return
    if root.exists() and not record.is_file() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root} exists and is not demo data: choose another folder.")
    root.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        new, old = work / "new", work / "old"
        new.mkdir()
        chosen = made_by["parameters"]["categories"]
        at_once = joblib.cpu_count() if len(chosen) > FEW else 1  # processes take longer to start than a few to draw
        work_on = joblib.delayed(_category)
        parts = joblib.Parallel(at_once)(work_on(new, CATEGORIES[name], **counts) for name in chosen)
        with (new / "demo.csv").open("w", newline="", encoding="utf-8") as f:
            table = csv.DictWriter(f, FIELDS, lineterminator="\n")
            table.writeheader()
            table.writerows(chain.from_iterable(parts))
        (new / record.name).write_text(json.dumps(made_by, indent=1) + "\n", "utf-8")
        if root.exists():
            root.replace(old)
        new.replace(root)
    finally:
        shutil.rmtree(work, ignore_errors=True)
