"""Seeded shifts of images: what changes on a line although the parts do not, at five severities (notebook 15).

A shift of an image is decided by the seed, its own name and that of the image: at every severity it goes the same way,
only further. An ageing lamp alone goes one way for all images, which then drift together. Rotation and scale move masks
and maps as well. Shifted images are kept as lossless copies, so that whatever reads images reads them.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage

from vlmad_lib import InputError
from vlmad_lib.data import image_files, mask_files
from vlmad_lib.digests import digest, digest_file
from vlmad_lib.files import replace_file

NONE = "none"
SEVERITIES = (1, 2, 3, 4, 5)
EDGE = 240  # a sigma of blur is given in pixels of an image whose short edge has so many

Stream = np.random.Generator


@dataclass(frozen=True)
class Corruption:
    """One kind of change: its strength at each severity, and what it does to pixels or to places.

    ``pixels`` takes (H, W, 3) float32 in [0, 255]; ``matrix`` gives the (2, 2) matrix that takes a place in the shifted
    image to its place in the image as it was, both as offsets (x, y) from the middle in pixels.
    """

    levels: tuple[float, float, float, float, float]
    unit: str
    does: str
    pixels: Callable[[np.ndarray, float, Stream], np.ndarray] | None = None
    matrix: Callable[[float, Stream], np.ndarray] | None = None


def _sign(stream: Stream) -> int:
    return int(stream.choice([-1, 1]))


def _light(pixels: np.ndarray, level: float, stream: Stream) -> np.ndarray:
    return pixels * 2 ** (_sign(stream) * level / 2.2)  # stops are of linear light, pixels have a gamma of about 2.2


def _ageing(pixels: np.ndarray, level: float, stream: Stream) -> np.ndarray:
    warmer = np.exp(-level * np.array([0, 0.1, 0.25], np.float32))  # less green, and least blue
    return pixels * 2 ** (-level / 2.2) * warmer


def _contrast(pixels: np.ndarray, level: float, stream: Stream) -> np.ndarray:
    middle = pixels.mean()
    return middle + (1 - level) * (pixels - middle)


def _cast(pixels: np.ndarray, level: float, stream: Stream) -> np.ndarray:
    hue = stream.uniform(0, 2 * np.pi) + 2 * np.pi / 3 * np.arange(3)
    return pixels * np.exp(level * np.cos(hue)).astype(np.float32)


def _blur(pixels: np.ndarray, level: float, stream: Stream) -> np.ndarray:
    sigma = level * min(pixels.shape[:2]) / EDGE
    return ndimage.gaussian_filter(pixels, (sigma, sigma, 0), mode="mirror")


def _noise(pixels: np.ndarray, level: float, stream: Stream) -> np.ndarray:
    return pixels + level * stream.standard_normal(pixels.shape, np.float32)


def _jpeg(pixels: np.ndarray, level: float, stream: Stream) -> np.ndarray:
    packed = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(packed, "JPEG", quality=int(level))
    return np.asarray(Image.open(packed), np.float32)


def _rotation(level: float, stream: Stream) -> np.ndarray:
    angle = _sign(stream) * np.deg2rad(level)
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _scale(level: float, stream: Stream) -> np.ndarray:
    return np.eye(2) * (1 + level / 100) ** _sign(stream)


CORRUPTIONS = {
    "light": Corruption((0.2, 0.4, 0.7, 1.0, 1.4), "stops", "brighter or darker", _light),
    "ageing lamp": Corruption((0.2, 0.4, 0.7, 1.0, 1.4), "stops", "darker and warmer, every image alike", _ageing),
    "contrast": Corruption((0.15, 0.3, 0.45, 0.6, 0.75), "share lost", "flatter, as by stray light", _contrast),
    "colour cast": Corruption((0.04, 0.08, 0.14, 0.21, 0.3), "log gain", "towards a hue drawn for the image", _cast),
    "blur": Corruption((0.5, 0.9, 1.4, 2.0, 3.0), f"sigma, px of {EDGE}", "out of focus (Gaussian)", _blur),
    "noise": Corruption((3, 6, 10, 16, 24), "sigma of 255", "grain, independent by pixel and channel", _noise),
    "JPEG": Corruption((70, 45, 25, 15, 8), "quality", "compressed and unpacked again", _jpeg),
    "rotation": Corruption((2, 4, 8, 15, 25), "degrees", "turned about its middle, either way", matrix=_rotation),
    "scale": Corruption((3, 6, 10, 15, 22), "%", "nearer or farther", matrix=_scale),
}


def list_corruptions() -> pd.DataFrame:
    """The shifts for people: what each does, in which unit, how strongly at each severity."""
    rows = []
    for name, shift in CORRUPTIONS.items():
        strengths = {str(severity): f"{level:g}" for severity, level in zip(SEVERITIES, shift.levels, strict=True)}
        rows.append({"shift": name, "does": shift.does, "unit": shift.unit} | strengths)
    return pd.DataFrame(rows)


def check_corruptions(names: Sequence[str], severities: Sequence[int]) -> tuple[list[str], list[int]]:
    """The shifts asked for (all for none) and their severities in rising order; InputError names one there is not."""
    if unknown := [name for name in names if name not in CORRUPTIONS]:
        raise InputError(f"There is no shift {unknown[0]!r}; use {', '.join(CORRUPTIONS)}.")
    if wrong := [severity for severity in severities if severity not in SEVERITIES]:
        raise InputError(f"There is no severity {wrong[0]!r}; use whole numbers from 1 to 5.")
    return list(dict.fromkeys(names)) or list(CORRUPTIONS), sorted(set(severities))


def _chance(shift: str, source: str, seed: int) -> Stream:
    """The stream of an image and shift: its file and two folders name it, so that it is the same on every machine."""
    name = "/".join(Path(source).parts[-3:])
    return np.random.default_rng([seed, *(zlib.crc32(word.encode()) for word in (shift, name))])


def apply_corruption(pixels: np.ndarray, shift: str, severity: int, source: str, seed: int = 0) -> np.ndarray:
    """An image (H, W, 3) uint8 shifted; ``source`` is its file, which decides the direction together with the seed."""
    chosen, moved = CORRUPTIONS[shift], affine_matrix(shift, severity, source, seed)
    if moved is not None:
        return warp_pixels(pixels, moved, pixels.shape[1::-1], Image.Resampling.BICUBIC)
    level, stream = chosen.levels[severity - 1], _chance(shift, source, seed)
    return np.clip(np.rint(chosen.pixels(pixels.astype(np.float32), level, stream)), 0, 255).astype(np.uint8)


def affine_matrix(shift: str, severity: int, source: str, seed: int = 0) -> np.ndarray | None:
    """The (2, 2) matrix of a shift that moves places; none of another."""
    chosen = CORRUPTIONS.get(shift)
    if chosen is None or chosen.matrix is None:
        return None
    return chosen.matrix(chosen.levels[severity - 1], _chance(shift, source, seed))


def warp_pixels(
    values: np.ndarray, moved: np.ndarray, size: tuple[int, int], resample: Image.Resampling, mirror: bool = True
) -> np.ndarray:
    """Values (h, w) or (h, w, 3) of an image of ``size`` (width, height) pixels, moved as a matrix moves that image.

    What comes in from outside is mirrored at the border, as in the images, or 0.
    """
    height, width = values.shape[:2]
    unit = np.array([width / size[0], height / size[1]])
    moved = unit[:, None] * moved / unit
    half = np.array([width, height]) / 2
    margin = np.ceil(np.abs(moved) @ half - half).clip(0).astype(int) + 2 if mirror else np.zeros(2, int)
    around = [(margin[1],) * 2, (margin[0],) * 2, (0, 0)][: values.ndim]
    source = Image.fromarray(np.pad(values, around, "symmetric"))
    shift = half + margin - moved @ half
    places = (*moved[0], shift[0], *moved[1], shift[1])
    return np.asarray(source.transform((width, height), Image.Transform.AFFINE, places, resample))


def measure_changes(row: pd.Series, seed: int = 0) -> pd.DataFrame:
    """How far an image's pixels move: mean absolute difference in grey levels (0 to 255) by shift and severity."""
    before = np.asarray(image_files.load_image(row.image))
    rows = []
    for name in CORRUPTIONS:
        after = {str(severity): apply_corruption(before, name, severity, row.image, seed) for severity in SEVERITIES}
        rows.append(
            {"shift": name}
            | {severity: np.abs(pixels - before.astype(float)).mean() for severity, pixels in after.items()}
        )
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- copies


@lru_cache(maxsize=1)
def _code() -> str:
    """What the code of the shifts is known by: copies made by another are not used."""
    return digest(
        _light,
        _ageing,
        _contrast,
        _cast,
        _blur,
        _noise,
        _jpeg,
        _rotation,
        _scale,
        _sign,
        _chance,
        apply_corruption,
        warp_pixels,
    )


def write_corrupted_copies(rows: pd.DataFrame, shift: str, severity: int, folder: Path, seed: int = 0) -> pd.DataFrame:
    """Index rows whose images, and masks where places move, are shifted copies, written where they are not kept.

    The rows as they are for the shift ``none``.
    """
    if shift == NONE:
        return rows
    place = folder / f"{shift.replace(' ', '_')}-{severity}"
    copies = [_copy(row, shift, severity, place, seed) for row in rows.itertuples()]
    return rows.assign(image=[image for image, _ in copies], mask=[mask for _, mask in copies])


def _copy(row, shift: str, severity: int, folder: Path, seed: int) -> tuple[str, str]:
    """Paths of an index row's shifted image and of its mask."""
    pixels = [digest_file(path, folder) for path in (row.image, row.mask)]
    facts = shift, CORRUPTIONS[shift].levels[severity - 1], seed, pixels
    name = f"{row.category}-{row.defect}-{Path(row.image).stem}-{digest(*facts, _code())[:12]}"
    image, mask = folder / f"{name}.bmp", folder / f"{name}_mask.bmp"
    moved = affine_matrix(shift, severity, row.image, seed)
    if not image.is_file():
        shifted = apply_corruption(np.asarray(image_files.load_image(row.image)), shift, severity, row.image, seed)
        _save(image, shifted)
    if moved is None or not row.mask:
        return str(image), row.mask
    if not mask.is_file():
        values = mask_files.load_mask(row.mask).astype(np.uint8) * 255
        _save(mask, warp_pixels(values, moved, (row.width, row.height), Image.Resampling.NEAREST))
    return str(image), str(mask)


def _save(path: Path, pixels: np.ndarray) -> None:
    replace_file(
        path, lambda file: Image.fromarray(pixels).save(file, "BMP")
    )  # packing as PNG takes longer than shifting
