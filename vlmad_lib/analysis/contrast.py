"""How visible a defect is, measured from its image and mask: contrast, area and sharpness of its outline.

Measured at a frame whose short edge is 240 pixels, WinCLIP's own input, so that a picture's resolution does not matter;
or at that of another method's input. Colours are CIELAB, their differences Delta-E 76.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2lab

from vlmad_lib import digests, within
from vlmad_lib.data import image_files, mask_files
from vlmad_lib.encoders import feature_store
from vlmad_lib.evaluation.pixel_ranking import EIGHT
from vlmad_lib.pipeline.results import Results

FRAME = 240  # pixels of the short edge
RING = 1.5, 8.0  # pixels of the frame from the defect: past the soft edge, before the surroundings change
LEAST_NOISE = 0.5  # Delta-E: about what a step of 8 bits makes; a flatter surface has no measurable spread
MEASURES = {
    "contrast": "contrast (Delta-E 76 to a ring around it)",
    "contrast_to_noise": "contrast-to-noise (contrast over the ring's own spread)",
    "area": "area (share of the image)",
    "sharpness": "sharpness of the outline (Delta-E per pixel)",
}
"""The columns of ``measure`` and what they are, with units."""
LEVELS = ("low", "medium", "high")


def defect(image: np.ndarray, mask: np.ndarray, size: int = FRAME) -> dict[str, float]:
    """The ``MEASURES`` of the defect in an image (H, W, 3) uint8 RGB, mask (H, W) bool, at a frame of ``size``.

    Contrast is the distance between the mean colours of a region and of the ring around it, the mean over regions by
    area; a mark whose own colours average to that of its surroundings has none. Contrast-to-noise is that distance
    over the spread of the ring's colours (root mean square distance from their mean), likewise. Sharpness is the mean
    colour gradient along the outline. nan where the mask is empty or leaves no ring.
    """
    if not mask.any():
        return dict.fromkeys(MEASURES, float("nan"))
    near, far = (edge * size / FRAME for edge in RING)
    lab = rgb2lab(image)
    regions, count = ndimage.label(mask, EIGHT)
    distances, ratios, areas = [], [], []
    for number, (rows, columns) in enumerate(ndimage.find_objects(regions, count), 1):
        box = tuple(slice(max(0, int(side.start - far)), int(side.stop + far)) for side in (rows, columns))
        inside = regions[box] == number
        away = ndimage.distance_transform_edt(~inside)
        ring = lab[box][(away > near) & (away <= far) & ~mask[box]]
        if len(ring):
            distances.append(np.linalg.norm(lab[box][inside].mean(0) - ring.mean(0)))
            ratios.append(distances[-1] / max(np.sqrt(ring.var(0).sum()), LEAST_NOISE))
            areas.append(inside.sum())
    slopes = np.sqrt(sum(np.square(np.stack(np.gradient(lab[..., k]))).sum(0) for k in range(3)))
    outline = mask & ~ndimage.binary_erosion(mask, EIGHT, border_value=1)
    outline |= ndimage.binary_dilation(outline, EIGHT) & ~mask
    contrasts = np.average([distances, ratios], axis=1, weights=areas) if areas else (float("nan"), float("nan"))
    return {
        "contrast": float(contrasts[0]),
        "contrast_to_noise": float(contrasts[1]),
        "area": float(mask.mean()),
        "sharpness": float(slopes[outline].mean()) if outline.any() else float("nan"),
    }


def measure(results: Results, size: int = FRAME) -> pd.DataFrame:
    """One row per masked test image of a run: image, category, group, defect and the ``MEASURES``, kept on disk.

    ``size``: pixels of the short edge at which images and masks are measured.
    """
    rows = results.scores[results.scores["mask"] != ""].drop_duplicates("image")
    cache = results.cache / "contrast"
    jobs = [(row.image, row.mask, row.width, row.height, size, cache) for row in rows.itertuples()]
    missing = [job for job in jobs if not _file(job[0], job[1], size, cache).is_file()]  # to start workers takes longer
    Parallel(n_jobs=results.profile.processes if missing else 1)(delayed(_kept)(*job) for job in missing)
    table = pd.DataFrame([_kept(*job) for job in jobs], columns=list(MEASURES), index=rows.index)
    return pd.concat([rows[["image", "category", "group", "defect"]], table], axis=1).reset_index(drop=True)


def _kept(image: str, mask: str, width: int, height: int, size: int, cache: Path) -> list[float]:
    file = _file(image, mask, size, cache)
    return feature_store.load_or_compute(file, lambda: _read(image, mask, width, height, size)).tolist()


def _file(image: str, mask: str, size: int, cache: Path) -> Path:
    pixels = [digests.digest_file(path, cache.parent) for path in (image, mask)]
    versions = digests.list_versions(digests.MEASURING_LIBRARIES)
    key = digests.digest(pixels, defect, size, RING, LEAST_NOISE, versions)
    return cache / f"{key}.npy"


def _read(image: str, mask: str, width: int, height: int, size: int = FRAME) -> torch.Tensor:
    shown = image_files.load_image(image).resize(image_files.frame(width, height, "tiles", size), Image.Resampling.BOX)
    measures = defect(np.asarray(shown), mask_files.framed_mask(mask, width, height, "tiles", size), size)
    return torch.tensor([measures[name] for name in MEASURES], dtype=torch.float64)


def levels(
    measures: pd.DataFrame,
    cuts: tuple[float, float] = (1 / 3, 2 / 3),
    column: str = "contrast",
    limits: Sequence[float] = (),
) -> pd.Series:
    """low, medium or high for each row: up to the first limit, up to the second, above; missing where not measured.

    The limits are two quantiles of the run's own defects, or fixed values of the column, which other runs can share.
    """
    low = within("low_cut", cuts[0], 0, 1)
    low, high = limits or measures[column].quantile([low, within("high_cut", cuts[1], low, 1)])
    names = pd.Series(np.select([measures[column] <= low, measures[column] <= high], LEVELS[:2], LEVELS[2]))
    return names.set_axis(measures.index).where(measures[column].notna())
