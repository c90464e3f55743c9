"""How visible a defect is, measured from its image and mask: contrast, area and sharpness of its outline.

Measured at a frame of 240 pixels, WinCLIP's own input, so that a picture's resolution does not matter. Colours are
CIELAB, their differences Delta-E 76.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2lab

from vlmad_lib import contents, data, features, within
from vlmad_lib.levels import EIGHT
from vlmad_lib.results import Results

FRAME = 240  # pixels of the short edge
RING = 1.5, 8.0  # pixels from the defect: past the soft edge, before the surroundings change
MEASURES = {
    "contrast": "contrast (Delta-E 76 to a ring around it)",
    "area": "area (share of the image)",
    "sharpness": "sharpness of the outline (Delta-E per pixel)",
}
"""The columns of ``measure`` and what they are, with units."""
LEVELS = ("low", "medium", "high")


def defect(image: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Contrast, area and sharpness of the defect in an image (H, W, 3) uint8 RGB, mask (H, W) bool, at the frame.

    Contrast is the distance between the mean colours of a region and of the ring around it, the mean over regions by
    area; a mark whose own colours average to that of its surroundings has none. Sharpness is the mean colour
    gradient along the outline. nan where the mask is empty or leaves no ring.
    """
    if not mask.any():
        return dict.fromkeys(MEASURES, float("nan"))
    lab = rgb2lab(image)
    regions, count = ndimage.label(mask, EIGHT)
    apart, areas = [], []
    for number, (rows, columns) in enumerate(ndimage.find_objects(regions, count), 1):
        near = tuple(slice(max(0, int(one.start - RING[1])), int(one.stop + RING[1])) for one in (rows, columns))
        inside = regions[near] == number
        away = ndimage.distance_transform_edt(~inside)
        ring = (away > RING[0]) & (away <= RING[1]) & ~mask[near]
        if ring.any():
            apart.append(np.linalg.norm(lab[near][inside].mean(0) - lab[near][ring].mean(0)))
            areas.append(inside.sum())
    slopes = np.sqrt(sum(np.square(np.stack(np.gradient(lab[..., k]))).sum(0) for k in range(3)))
    outline = mask & ~ndimage.binary_erosion(mask, EIGHT, border_value=1)
    outline |= ndimage.binary_dilation(outline, EIGHT) & ~mask
    return {
        "contrast": float(np.average(apart, weights=areas)) if areas else float("nan"),
        "area": float(mask.mean()),
        "sharpness": float(slopes[outline].mean()) if outline.any() else float("nan"),
    }


def measure(results: Results) -> pd.DataFrame:
    """One row per masked test image of a run: image, category, group, defect and the ``MEASURES``, kept on disk."""
    rows = results.scores[results.scores["mask"] != ""].drop_duplicates("image")
    cache = results.cache / "contrast"
    asked = [(row.image, row.mask, row.width, row.height, cache) for row in rows.itertuples()]
    missing = [one for one in asked if not _file(one[0], one[1], cache).is_file()]  # to start workers takes longer
    Parallel(n_jobs=results.profile.processes if missing else 1)(delayed(_kept)(*one) for one in missing)
    found = [_kept(*one) for one in asked]
    table = pd.DataFrame(found, columns=list(MEASURES), index=rows.index)
    return pd.concat([rows[["image", "category", "group", "defect"]], table], axis=1).reset_index(drop=True)


def _kept(image: str, mask: str, width: int, height: int, cache: Path) -> list[float]:
    return features.kept(_file(image, mask, cache), lambda: _read(image, mask, width, height)).tolist()


def _file(image: str, mask: str, cache: Path) -> Path:
    pixels = [contents.digest_file(path, cache.parent) for path in (image, mask)]
    versions = contents.list_versions(contents.MEASURING_LIBRARIES)
    key = contents.digest(pixels, defect, FRAME, RING, versions)
    return cache / f"{key}.npy"


def _read(image: str, mask: str, width: int, height: int) -> torch.Tensor:
    shown = data.load_image(image).resize(data.frame(width, height, "tiles", FRAME), Image.Resampling.BOX)
    found = defect(np.asarray(shown), data.framed_mask(mask, width, height, "tiles", FRAME))
    return torch.tensor([found[name] for name in MEASURES], dtype=torch.float64)


def levels(measures: pd.DataFrame, cuts: tuple[float, float] = (1 / 3, 2 / 3), column: str = "contrast") -> pd.Series:
    """low, medium or high for each row, cut at two quantiles of the run's own defects; missing where not measured."""
    low = within("low_cut", cuts[0], 0, 1)
    low, high = measures[column].quantile([low, within("high_cut", cuts[1], low, 1)])
    found = pd.Series(np.select([measures[column] <= low, measures[column] <= high], LEVELS[:2], LEVELS[2]))
    return found.set_axis(measures.index).where(measures[column].notna())
