"""Regions of interest: where in the pictures of a category defects are looked for, by a mask picture or a polygon.

A profile's ``regions`` names them by category. What lies outside counts for no pixel metric, nor for an image score
that is made from a map. Categories without a region are looked at as a whole.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from skimage.draw import polygon

from vlmad_lib import InputError, digests
from vlmad_lib.config import Profile
from vlmad_lib.data import image_files, mask_files

ALIKE = 0.02  # by which the ratio of sides of a mask and of a picture may differ
Polygon = tuple[tuple[float, float], ...]


def check_regions(profile: Profile, table: pd.DataFrame, known: list[str]) -> None:
    """InputError for a region that no category has, whose mask has another shape than a picture, or that is empty.

    ``table``: an index. ``known``: categories of the data set that it may lack.
    """
    for category in profile.regions:
        rows = table[table.category == category].drop_duplicates(["width", "height"])
        if rows.empty and category not in known:
            names = ", ".join(dict.fromkeys(table.category))
            raise InputError(f"'regions' names {category}, which is no category of the data; it has {names}.")
        for row in rows.itertuples():
            fill(profile, category, row.width, row.height)


def describe_region(profile: Profile, category: str) -> list:
    """What decides a category's region, ready for JSON: its polygon, or its mask's content; empty without one."""
    region = profile.regions.get(category)
    if isinstance(region, str):
        return digests.digest_files([str(profile.path(region))], profile.path(profile.cache))
    return region or []


def fill(profile: Profile, category: str, width: int, height: int) -> np.ndarray:
    """Which pixels of a picture of this size lie in its category's region, bool (height, width); all without one.

    InputError where there is none, and for a mask of another shape.
    """
    region = profile.regions.get(category)
    if region is None:
        return np.ones((height, width), bool)
    if isinstance(region, str):
        inside = _fill_mask(str(profile.path(region)), category, width, height)
    else:
        inside = _fill_polygon(tuple((x, y) for x, y in region), width, height)
    if not inside.any():
        raise InputError(f"The region of {category} holds no pixel of a picture of {width}x{height}; enlarge it.")
    return inside


@lru_cache(maxsize=32)
def _fill_mask(path: str, category: str, width: int, height: int) -> np.ndarray:
    mask = mask_files.load_mask(path)
    rows, columns = mask.shape
    if abs(columns / rows / (width / height) - 1) > ALIKE:
        raise InputError(
            f"The region {path} has {columns}x{rows} pixels, a picture of {category} {width}x{height}; give it the "
            "shape of the pictures."
        )
    return _resize(mask, width, height) >= 0.5


@lru_cache(maxsize=32)
def _fill_polygon(points: Polygon, width: int, height: int) -> np.ndarray:
    """The pixels whose centres lie in a polygon of shares of width and height."""
    x, y = np.array(points).T
    inside = np.zeros((height, width), bool)
    inside[polygon(y * height - 0.5, x * width - 0.5, inside.shape)] = True
    return inside


def _resize(mask: np.ndarray, width: int, height: int) -> np.ndarray:
    """The share of each cell of (height, width) that a mask covers."""
    return np.asarray(Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BOX))


def frame_region(profile: Profile, category: str, width: int, height: int, fit: str) -> np.ndarray | None:
    """A category's region at the evaluation frame of a picture, bool (H, W); None without one."""
    if category not in profile.regions:
        return None
    columns, rows = image_files.frame(width, height, fit, profile.evaluation_size)
    share = _resize(fill(profile, category, width, height), columns, rows)
    return share >= min(0.5, share.max())


def tile_regions(profile: Profile, category: str, width: int, height: int, fit: str, grid: int) -> np.ndarray | None:
    """Which cells of each tile's map lie in a category's region, bool (tiles, grid, grid); None without one.

    A cell does where at least half of it does, or, where a tile has no such cell, the most of it of all its cells.
    A tile without any pixel of the region has no cell.
    """
    if category not in profile.regions:
        return None
    inside = fill(profile, category, width, height)
    boxes = image_files.list_boxes(width, height, fit)
    shares = [_resize(inside[top:bottom, left:right], grid, grid) for left, top, right, bottom in boxes]
    return np.stack([(share > 0) & (share >= min(0.5, share.max())) for share in shares])


def count_outside(profile: Profile, table: pd.DataFrame) -> list[str]:
    """Notes on masked defects of tested rows of an index that lie wholly outside their category's region."""
    notes = []
    for category, rows in table[table["mask"] != ""].groupby("category", sort=False):
        if category not in profile.regions:
            continue
        outside = [
            row.image
            for row in rows.itertuples()
            if not (mask_files.load_mask(row.mask) & fill(profile, category, row.width, row.height)).any()
        ]
        if outside:
            notes.append(
                f"{category}: the defect lies wholly outside the region of interest in {len(outside)} of {len(rows)} "
                f"masked pictures, such as {Path(outside[0]).name}; they still count as defective pictures, but no "
                "pixel metric has their defects."
            )
    return notes
