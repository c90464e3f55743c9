"""Masks: which files are masks, and of which picture; their pixels; and those that say nothing or the contrary."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from vlmad_lib import InputError, digests, files
from vlmad_lib.data.image_files import SUFFIXES, frame, list_files_below, list_images, open_image, subfolders

# Folders that others keep masks in, letters alone.
MASKS = ("mask", "masks", "gt", "groundtruth")
# Folders that others keep masks in, or the pictures of a defect: their pixels tell.
PERHAPS = ("label", "labels", "annotation", "annotations", "segmentation", "segmentations")
_WORD = "(?:mask|gt|labels?|seg|segmentation|ground_?truth|annotation)"
_AFFIX = re.compile(rf"^{_WORD}[ _.-]+|[ _.-]+{_WORD}$", re.IGNORECASE)
GREYS = 8  # a mask with that many grey levels in its darker half was saved as JPEG, or resized with smoothing
FAINT = 16  # a lossy file with no brighter level holds no mask: 0 and 1 do not survive as JPEG
MOST = 0.5  # a mask of more of its picture than that is perhaps inverted


# ---------------------------------------------------------------- names


def picture_stems(name: str) -> list[str]:
    """Stems that the picture of a mask file may have, likeliest first.

    The mask's own (001.png of 001.jpg), that of 001.png.png, then without a word for mask before or behind it.
    """
    plain = _plain_stem(name)
    return list(dict.fromkeys([Path(name).stem, plain, _AFFIX.sub("", plain)]))


def _plain_stem(name: str) -> str:
    """The stem of a file name without the suffixes of pictures, of which there may be two."""
    stem = Path(name).stem
    while Path(stem).suffix.lower() in SUFFIXES:
        stem = Path(stem).stem
    return stem


def is_mask_name(name: str) -> bool:
    """Whether a file's name has a word for mask before or behind its stem: mask_001.png, 001_GT.bmp."""
    return _AFFIX.search(_plain_stem(name)) is not None


def find_masks(pictures: Sequence[Path]) -> Iterator[tuple[Path, Path | None]]:
    """The masks among the pictures of one folder, each with its picture (None where it is not there).

    A name with a word for mask beside the name without it is a mask. Of files that differ in their suffix alone, and
    of a name with such a word and no picture beside it, the pixels tell.
    """
    by_stem: dict[str, list[Path]] = {}
    for file in pictures:
        by_stem.setdefault(file.stem, []).append(file)
    for file in pictures:
        _, *others = picture_stems(file.name)
        partner = next((by_stem[stem][0] for stem in others if stem in by_stem), None)
        twins = [twin for twin in by_stem[file.stem] if twin != file]
        if partner:
            yield file, partner
        elif twins and looks_like_mask(file) and not all(map(looks_like_mask, twins)):
            yield file, twins[0]
        elif is_mask_name(file.name) and looks_like_mask(file):
            yield file, None


def is_mask_folder(folder: Path, name: str = "") -> bool:
    """Whether a folder holds masks, by its name; where the name may be that of a defect, by its first pictures.

    ``name``: what it is called, where that is not its own name.
    """
    name = re.sub("[^a-z]", "", (name or folder.name).casefold())
    if name in MASKS:
        return True
    return name in PERHAPS and bool(first := list_files_below(folder)[:3]) and all(map(looks_like_mask, first))


# ---------------------------------------------------------------- pairs


def pair_masks(folder: Path, stems: Collection[str], cache: Path) -> tuple[dict[str, Path], int]:
    """The masks of one kind of defect by the stem of their picture, and how many were merged from several files.

    Pairs are made by name, never by order. A folder named as a picture holds several masks of it, which are merged
    into a file in the cache. InputError for a mask without its picture, and for two masks of one picture.
    """
    pairs: dict[str, Path] = {}
    for mask in list_images(folder):
        stem = next((stem for stem in picture_stems(mask.name) if stem in stems), None)
        if stem is None:
            raise InputError(
                f"The mask {mask} has no image of its name; remove it or add it, or name the mask as its image is "
                "named: that of 000.jpg is 000.png or 000_mask.png."
            )
        if (other := pairs.setdefault(stem, mask)) != mask:
            raise InputError(f"{other} and {mask} are masks of one image; remove one of them.")
    merged = 0
    for inner in subfolders(folder):
        parts = list_files_below(inner)
        if not parts:
            continue
        if inner.name not in stems:
            raise InputError(f"The masks in {inner} have no image named {inner.name}; rename or remove that folder.")
        if inner.name in pairs:
            raise InputError(f"{pairs[inner.name]} and {inner} are masks of one image; remove one of them.")
        pairs[inner.name] = Path(parts[0]) if len(parts) == 1 else _merge(parts, cache)
        merged += len(parts) > 1
    return pairs, merged


def _merge(paths: Sequence[str], cache: Path) -> Path:
    """One file for the masks of one picture, kept under their content: defect is what any of them marks."""
    place = cache / "masks" / f"{digests.digest(digests.digest_files(paths, cache), load_mask, _read_mask)}.png"
    if not place.is_file():
        marked = [load_mask(path) for path in paths]
        for path, mask in zip(paths, marked, strict=True):
            if mask.shape != marked[0].shape:
                raise InputError(f"{paths[0]} and {path} are masks of one image, but differ in size; correct them.")
        whole = Image.fromarray(np.any(marked, axis=0).astype(np.uint8) * 255)
        files.replace_file(place, lambda path: whole.save(path, "PNG"))
    return place


# ---------------------------------------------------------------- pixels


def load_mask(path: str | Path) -> np.ndarray:
    """A mask as bool of shape (H, W): every colour but black is defect.

    Above half of the brightest level where the file is lossy, or has the many grey levels of one that was.
    Of a palette without black every index but 0; of a picture with transparency what is neither transparent nor black,
    or, where all is black, what is not transparent.
    """
    return _read_mask(path)[0]


def _read_mask(path: str | Path) -> tuple[np.ndarray, bool]:
    """A mask, and whether grey levels were cut at half."""
    with open_image(path) as image:
        lossy = image.format in ("JPEG", "WEBP")
        try:
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode == "F":
                raise ValueError("a mask has whole numbers")
            if image.mode.startswith("I"):
                return np.asarray(image) > 0, False
            if image.has_transparency_data:
                *colours, alpha = np.moveaxis(np.asarray(image.convert("RGBA")), -1, 0)
                least = 127 if lossy else 0
                visible = np.max(colours, axis=0) * (alpha > least)
                cut = visible > least if (visible > least).any() else (alpha > least) & (alpha.min() < alpha.max())
                return cut, False
            values = np.asarray(image) if image.mode == "L" else np.asarray(image.convert("RGB")).max(-1)
            if image.mode == "P":
                return np.asarray(image) > 0 if values.min() > 0 else values > 0, False
        except Exception as error:  # decoders raise anything
            raise InputError(f"{path} cannot be decoded ({error}); replace or remove it.") from None
    counts = np.array(Image.fromarray(values).histogram())
    brightest = int(np.flatnonzero(counts).max(initial=0))
    greys = _has_noise(counts, brightest)
    cut = max(brightest // 2, FAINT) if lossy or greys else 0
    return values > cut, greys


def _has_noise(counts: np.ndarray, brightest: int) -> bool:
    """Whether a mask's 256 counts of grey levels are black and one bright level with what JPEG makes of their edges.

    The classes of a mask are few, or dark, or, numbered throughout, as many in the brighter half as in the darker.
    """
    half = brightest // 2
    near = counts[brightest - brightest // 4 :].sum()  # the uppermost quarter
    return bool(
        brightest >= 128 and np.count_nonzero(counts[1 : half + 1]) >= GREYS and near >= 0.6 * counts[half + 1 :].sum()
    )


def looks_like_mask(path: str | Path) -> bool:
    """Whether a picture has few levels, or is grey and nearly all of it about as dark or as bright as its extremes."""
    with open_image(path) as image:
        try:
            pixels = np.asarray(image.convert("RGB"))
        except Exception:  # what cannot be decoded is said where it is read
            return False
    counts = np.array(Image.fromarray(pixels.max(-1)).histogram())
    if np.count_nonzero(counts) <= GREYS:
        return True
    low, high = np.flatnonzero(counts)[[0, -1]]
    ends = counts[low : low + FAINT].sum() + counts[high - FAINT + 1 : high + 1].sum()
    grey = (np.ptp(pixels, axis=-1) <= FAINT).mean()
    return bool(high - low >= 128 and ends >= 0.9 * counts.sum() and grey > 0.99)


def read_mask_values(path: str | Path) -> list[int]:
    """The grey levels of a mask that are not black, rising: what data sets tell kinds of defects apart by."""
    with open_image(path) as image:
        try:
            return [int(value) for value in np.unique(np.asarray(image.convert("L"))) if value]
        except Exception as error:  # decoders raise anything
            raise InputError(f"{path} cannot be decoded ({error}); replace or remove it.") from None


def framed_mask(path: str, width: int, height: int, fit: str, size: int) -> np.ndarray:
    """A mask at the evaluation frame: bilinear on 0/255, then above one half; no path means no defect."""
    if not path:
        return np.zeros(frame(width, height, fit, size)[::-1], bool)
    return frame_mask(load_mask(path), fit, size)


def frame_mask(mask: np.ndarray, fit: str, size: int) -> np.ndarray:
    """A bool mask (H, W) of an image at the evaluation frame, as ``framed_mask`` has it."""
    height, width = mask.shape
    framed = Image.fromarray(mask.astype(np.uint8) * 255).resize(
        frame(width, height, fit, size), Image.Resampling.BILINEAR
    )
    return np.asarray(framed) > 127


# ---------------------------------------------------------------- what masks say


def measure_masks(paths: Sequence[str], cache: Path) -> list[tuple[float, bool]]:
    """The share of each mask that is defect, and whether grey levels were cut.

    Kept in the cache, for each notebook of a report asks: under the masks' contents and the code of this module.
    """
    key = digests.digest(digests.digest_files(paths, cache), digests.digest_code(sys.modules[__name__]))
    place = cache / "masks" / f"{key}.json"
    with contextlib.suppress(files.Damaged, TypeError):
        if len(kept := files.read_json(place)) == len(paths):
            return kept
    measured = [(float(mask.mean()), greys) for mask, greys in map(_read_mask, paths)]
    with contextlib.suppress(InputError):  # where nothing can be kept, masks are read again
        files.write_json(place, measured)
    return measured


def check_masks(table: pd.DataFrame, cache: Path) -> tuple[pd.DataFrame, list[str]]:
    """An index without the masks that mark nothing, and notes on those, on inverted ones and on grey ones.

    A defective picture whose mask marks nothing counts as one without a mask. InputError where the mask of a good
    picture marks a defect. Reads every mask, once.
    """
    rows = table[table["mask"] != ""]
    facts = measure_masks(list(rows["mask"]), cache) if len(rows) else []
    rows = rows.assign(
        share=np.array([share for share, _ in facts], float), greys=np.array([greys for _, greys in facts], bool)
    )
    wrong = rows[(rows.label == 0) & (rows.share > 0)]
    if len(wrong):
        first = wrong.iloc[0]
        raise InputError(
            f"The mask {first['mask']} marks {first.share:.0%} of {first.image} as defect, which lies among the normal "
            "pictures; remove the mask, invert it, or move the picture to the folder of its defect."
        )
    notes, rows = [], rows[rows.label == 1]
    for category, masked in rows.groupby("category"):
        blank, over, grey = (
            masked[masked.share == 0],
            masked[masked.share > MOST],
            masked[masked.greys],
        )
        if len(blank):
            lossy = blank["mask"].map(lambda path: Path(path).suffix.lower().startswith((".j", ".webp")))
            hint = " JPEG and WebP files lose the values 0 and 1: save masks as PNG." if lossy.any() else ""
            notes.append(
                f"{category}: no pixel is marked as defect in {_count(blank, masked)}; such images count as having no "
                f"mask, and pixel metrics leave them out.{hint}"
            )
        if len(over):
            notes.append(
                f"{category}: more than half of the image is marked as defect in {_count(over, masked)} "
                f"({over.share.iloc[0]:.0%}); if defects are black in these masks, invert them."
            )
        if len(grey):
            notes.append(
                f"{category}: there are grey edges, as after saving as JPEG, in {_count(grey, masked)}; what is "
                "brighter than half is taken as defect."
            )
    lost = rows.index[rows.share == 0].union(table.index[(table["mask"] != "") & (table.label == 0)])
    return table.assign(mask=table["mask"].mask(table.index.isin(lost), "")), notes


def _count(rows: pd.DataFrame, masked: pd.DataFrame) -> str:
    """How many of a category's masks, with the first of them and the last of its folders."""
    return f"{len(rows)} of its {len(masked)} masks, such as {'/'.join(Path(rows['mask'].iloc[0]).parts[-3:])}"
