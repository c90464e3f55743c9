"""Data sets as one index: a DataFrame with a row per image, and the pixels behind a row.

The index has the columns of ``COLUMNS``: dataset, category, group (texture, rigid, flexible, unknown),
class_name (what the prompts call it), split (train, test, or ``reference``: a good test image held out where
there is no train split), defect (``good`` for normal), labels (all defect names of an image, ``;`` between
them), label (0 normal, 1 anomalous), image and mask (absolute paths; mask empty where there is none), width
and height in pixels.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from vlmad_lib import ROOT, InputError, within
from vlmad_lib.profile import FULL, Profile

REFERENCE = ROOT / "data" / "reference"
NAMES = {"mvtec": "MVTec AD", "visa": "VisA", "demo": "demo"}
SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
UNREAD = {".heic", ".heif", ".avif", ".gif", ".jp2", ".jxl", ".tga", ".svg", ".psd"}
UNREAD |= {".dng", ".raw", ".nef", ".cr2", ".cr3", ".arw"}
"""Pictures too, which the workbook does not read: left out in silence they would be missed."""
NAMED = ("good", "train", "test", "ground_truth")  # folders of the layouts
MASKS = ("mask", "masks", "gt", "groundtruth")  # folders that others keep masks in
COLUMNS = [
    *["dataset", "category", "group", "class_name", "split", "defect", "labels", "label"],
    *["image", "mask", "width", "height"],
]


# ---------------------------------------------------------------- the index


def index(profile: Profile) -> tuple[pd.DataFrame, list[str]]:
    """The checked index of a profile's data set, and notes on what a reader should know about it.

    Raises InputError for a missing root or category, an unreadable image, a mask without its image or
    an image without its mask, and a mask of another size than its image.
    """
    root = profile.path(profile.root)
    if profile.dataset == "demo":
        from vlmad_lib.demo import data as demo

        demo.write(root, profile.subset)
    elif profile.subset != "target":
        raise InputError(f"'subset' belongs to the demo data; {profile.dataset} has none, leave it out.")
    if not root.is_dir():
        raise InputError(
            f"The data folder {root} does not exist; set 'root' in the profile "
            "(data/README.md says where to get each data set)."
        )
    rows, notes = _visa(root, profile) if profile.dataset == "visa" else _folders(root, profile)
    table = pd.DataFrame(rows, columns=["category", "split", "defect", "labels", "image", "mask"])
    if table.empty:
        loose = profile.dataset == "folder" and _images(root)
        told = "its pictures lie loose; move the normal ones to good/ and those of each defect to a folder of its own"
        told = told if loose else "see data/README.md"
        raise InputError(f"{root} holds no images in the layout of its data set: {told}.")
    untested = sorted(set(table.category) - set(table[table.split == "test"].category))
    if untested:
        raise InputError(f"{root / untested[0]} has no test images; add test/good and test/<defect>.")
    table = _described(table, profile, root)
    notes += _count_notes(table, profile)
    drawn = max((shots for shots in profile.shots if shots < FULL), default=0)
    table, held = _hold_out(table, drawn if profile.methods else 0)
    return table, notes + held


def _described(table: pd.DataFrame, profile: Profile, root: Path) -> pd.DataFrame:
    """All columns of an index from the six that its layout gives, sorted."""
    shown = "demo auxiliary" if profile.subset == "auxiliary" else NAMES.get(profile.dataset, root.name)
    table.insert(0, "dataset", shown)
    table["label"] = (table.defect != "good").astype(int)
    table["group"], table["class_name"] = _descriptions(table.category, profile, root)
    return _sizes(table)[COLUMNS].sort_values(["category", "split", "defect", "image"], ignore_index=True)


def listed(profile: Profile, category: str, parts: dict[tuple[str, str], list[str]]) -> pd.DataFrame:
    """The index of one category's pictures that lie in no layout: lists of paths by (split, defect), without masks."""
    rows = [
        (category, split, defect, _labels(defect), image, "")
        for (split, defect), images in parts.items()
        for image in images
    ]
    table = pd.DataFrame(rows, columns=["category", "split", "defect", "labels", "image", "mask"])
    return _described(table, profile, profile.path(profile.root))


def below(folder: Path, leave: tuple[str, ...] = ()) -> list[str]:
    """All pictures of a folder and those in it, but for subfolders of some names; links to folders are not followed."""
    inner = [one for one in _subfolders(folder) if one.name not in leave and not one.is_symlink()]
    return [*map(str, _images(folder)), *(image for one in inner for image in below(one))]


def identity(profile: Profile) -> str:
    """What a profile's data set is called where prompts say what they were trained on."""
    parts = {"demo": profile.subset, "folder": profile.path(profile.root).name}
    return f"{profile.dataset} {parts.get(profile.dataset, '')}".strip()


def alike(name: str, categories: Sequence[str], profile: Profile) -> list[str]:
    """Categories of a profile of own pictures that bear the names of a data set's: perhaps a copy of it.

    ``categories`` are those of the data set, those that are known of ``name`` for none.
    """
    if profile.dataset != "folder":
        return []
    known = pd.read_csv(REFERENCE / "categories.csv", keep_default_na=False)
    named = set(categories) or set(known[known.dataset == NAMES.get(name)].category)
    root = profile.path(profile.root)
    own = profile.categories or ([one.name for one in _subfolders(root)] if root.is_dir() else [])
    return sorted(named.intersection([*own, root.name]))


def known_name(text: str) -> str:
    """``mvtec`` and ``visa`` for any spelling of them; other names as they are."""
    spelt = re.sub("[^a-z0-9]", "", text.casefold())
    return {"mvtec": "mvtec", "mvtecad": "mvtec", "visa": "visa"}.get(spelt, text.strip())


def overlaps(name: str, root: str, profile: Profile, categories: Sequence[str] = ()) -> bool:
    """Whether data of a name (and of a folder, for own pictures) are among those of a profile.

    ``categories`` are those of the data, all for none: a profile that names only others of them shares nothing. Own
    pictures are known by their folder where it is given: others may lie in a folder of the same name.
    """
    if categories and profile.categories and set(categories).isdisjoint(profile.categories):
        return False
    if root:
        own, other = profile.path(profile.root).resolve(), Path(root).resolve()
        if own.is_relative_to(other) or other.is_relative_to(own):
            return True
    return name == identity(profile) and not (root and profile.dataset == "folder")


def _wanted(known: list[str], profile: Profile, root: Path) -> list[str]:
    """The categories to read: those the profile names, or all."""
    missing = [name for name in profile.categories if name not in known]
    if missing:
        raise InputError(f"{root} has no category {missing[0]!r}; it has {', '.join(sorted(known)) or 'none'}.")
    unknown = [name for name in profile.class_names if name not in known]
    if unknown:
        raise InputError(
            f"'class_names' has {unknown[0]!r}, which is no category of {root}: {', '.join(sorted(known))}."
        )
    return profile.categories or known


def _images(folder: Path) -> list[Path]:
    """The images of one folder, sorted by name. InputError for pictures of a kind that is not read."""
    found = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    for file in found:
        if file.suffix.lower() in UNREAD:
            raise InputError(f"{file} is of a kind that is not read; save it as PNG or JPEG, or remove it.")
        try:
            file.name.encode()
        except UnicodeEncodeError:
            raise InputError(f"The file name {str(file)!r} is not valid UTF-8; rename the file.") from None
    return [file for file in found if file.suffix.lower() in SUFFIXES]


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _is_category(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in ("test", "train", "good"))


def _folders(root: Path, profile: Profile) -> tuple[list[tuple], list[str]]:
    """Rows of MVTec AD's layout, and of a person's folder that only has ``good`` and defects."""
    rows, notes = [], []
    categories = [root] if _is_category(root) else [path for path in _subfolders(root) if _is_category(path)]
    wanted = _wanted([path.name for path in categories], profile, root)
    left = [] if root in categories else [path for path in _subfolders(root) if path not in categories]
    for path in [path for path in left if not profile.categories and below(path)]:
        notes.append(f"{path.name}: no category, having no folder good or test; its pictures are left out.")
    for category in (path for path in categories if path.name in wanted):
        masks = _masks(category / "ground_truth")
        splits = [(name, category / name) for name in ("train", "test") if (category / name).is_dir()]
        _refuse_misplaced(category, [folder for _, folder in splits])
        if not splits and (loose := _images(category)):
            notes.append(f"{category.name}: {len(loose)} pictures lie loose beside good/; they are left out.")
        for split, folder in splits or [("test", category)]:
            for defect in _subfolders(folder):
                if defect.name in ("ground_truth", "train", "test"):
                    continue
                for image in _defect_images(defect):
                    mask = masks.pop((defect.name, image.stem), "") if split == "test" else ""
                    rows.append((category.name, split, defect.name, _labels(defect.name), str(image), str(mask)))
        if masks:
            raise InputError(f"The mask {next(iter(masks.values()))} has no image of its name; remove it or add it.")
        bare = [row for row in rows if row[0] == category.name and row[2] != "good" and not row[5]]
        if bare and profile.dataset != "folder":
            raise InputError(f"The image {bare[0][4]} has no mask in {category / 'ground_truth'}; add it.")
        if bare:
            notes.append(f"{category.name}: {len(bare)} anomalous images have no mask; pixel metrics leave them out.")
    return rows, notes


def _refuse_misplaced(category: Path, splits: list[Path]) -> None:
    """InputError for what lies where it would be missed, or taken for something else."""
    for folder in [*_subfolders(category), *(one for split in splits for one in _subfolders(split))]:
        usual = folder.name.casefold()
        if usual in NAMED and folder.name != usual:
            raise InputError(f"{folder} is not spelt {usual!r}; rename it.")
        if usual in MASKS:
            raise InputError(f"{folder} seems to hold masks; move them to {category / 'ground_truth'}/<defect>.")
    if splits and (category / "good").is_dir():
        raise InputError(
            f"{category / 'good'} lies beside {splits[0].name}/; move it to {category / 'train' / 'good'}."
        )
    for folder in [*splits, category / "ground_truth"]:
        if folder.is_dir() and (loose := _images(folder)):
            raise InputError(
                f"{loose[0]} lies loose in {folder.name}/; move it to the folder of its kind, or remove it."
            )


def _defect_images(folder: Path) -> list[Path]:
    """The images of one kind of defect; InputError for masks among them, and for pictures in folders below."""
    found = _images(folder)
    stems = {image.stem for image in found}
    for image in found:
        if image.stem.endswith("_mask") and image.stem.removesuffix("_mask") in stems:
            raise InputError(f"{image} seems to be a mask; move it to ground_truth/{folder.name}.")
    deeper = next((path for inner in _subfolders(folder) for path in below(inner)), None)
    if deeper:
        raise InputError(f"{deeper} lies in a folder below {folder}; move it up, or out.")
    return found


def _labels(defect: str) -> str:
    return "" if defect == "good" else defect


def _masks(folder: Path) -> dict[tuple[str, str], Path]:
    """Masks by (defect, stem of their image): pairs are made by name, never by order."""
    if not folder.is_dir():
        return {}
    found: dict[tuple[str, str], Path] = {}
    for mask in (mask for defect in _subfolders(folder) for mask in _images(defect)):
        other = found.setdefault((mask.parent.name, mask.stem.removesuffix("_mask")), mask)
        if other != mask:
            raise InputError(f"{other} and {mask} are masks of one image; remove one of them.")
    return found


def _visa(root: Path, profile: Profile) -> tuple[list[tuple], list[str]]:
    """Rows of VisA's official one-class split; defect names from each object's image_anno.csv."""
    split_file = root / "split_csv" / "1cls.csv"
    if not split_file.is_file():
        raise InputError(f"The split file {split_file} does not exist; it comes with the VisA archive.")
    split = texts(split_file, ("object", "split", "label", "image", "mask"), "fetch it again")
    for column, known in {"split": ["train", "test"], "label": ["normal", "anomaly"]}.items():
        if other := set(split[column]) - set(known):
            raise InputError(f"{split_file}: {column} {sorted(other)[0]!r} is none of {', '.join(known)}; correct it.")
    if len(again := split[split.image.duplicated()]):
        raise InputError(f"{split_file} names {again.image.iloc[0]} twice; fetch the file again.")
    rows, notes = [], []
    for name in [*split.object.unique(), *split.image, *split["mask"]]:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"{split_file} names {name!r}, which leads out of {root}; fetch the file again.")
    wanted = _wanted(list(split.object.unique()), profile, root)
    for category, part in split[split.object.isin(wanted)].groupby("object"):
        known = _visa_labels(root / category / "image_anno.csv")
        if known is None:
            notes.append(f"{category}: image_anno.csv is missing; its defects are named 'anomaly'.")
        for row in part.itertuples():
            names = [] if row.label == "normal" else (known or {}).get(row.image, ["anomaly"])
            defect = "good" if row.label == "normal" else names[0] if len(names) == 1 else "combined"
            mask = str(root / row.mask) if row.mask else ""
            rows.append((category, row.split, defect, ";".join(names), str(root / row.image), mask))
    return rows, notes


def texts(file: Path, columns: Sequence[str], remedy: str, named: Sequence[str] = ()) -> pd.DataFrame:
    """A CSV of text that has these columns, and one of those ``named``; InputError otherwise."""
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is not a readable CSV ({error}); {remedy}.") from None
    wanted = [*columns, *([] if set(named) & set(table) else named[:1])]
    if absent := [name for name in wanted if name not in table]:
        raise InputError(f"{file} lacks the column {absent[0]!r}; it needs {', '.join(wanted)}.")
    return table


def _visa_labels(file: Path) -> dict[str, list[str]] | None:
    """Defect names of each image path; one image can have several."""
    if not file.is_file():
        return None
    table = texts(file, ("image", "label"), "fetch it again")
    return {row.image: [name.strip() for name in row.label.split(",")] for row in table.itertuples()}


def _descriptions(categories: pd.Series, profile: Profile, root: Path) -> tuple[pd.Series, pd.Series]:
    """Group and class name of each category; what the profile says of a class name goes first."""
    known = pd.read_csv(REFERENCE / "categories.csv", keep_default_na=False)
    known = known[known.dataset == NAMES.get(profile.dataset, "")]
    if profile.dataset == "demo" and (root / "demo.csv").is_file():
        known = pd.read_csv(root / "demo.csv").drop_duplicates("category")
    groups = dict(zip(known.category, known.group, strict=True))
    names = dict(zip(known.category, known.class_name, strict=True)) | profile.class_names
    return (
        categories.map(lambda name: groups.get(name, "unknown")),
        categories.map(lambda name: names.get(name, name.replace("_", " "))),
    )


def _sizes(table: pd.DataFrame) -> pd.DataFrame:
    """The index with each image's size, read from the headers; masks must have the same."""
    sizes = [_size(path) for path in table.image]
    for image, mask, size in zip(table.image, table["mask"], sizes, strict=True):
        if mask and _size(mask) != size:
            raise InputError(
                f"The mask {mask} has {'x'.join(map(str, _size(mask)))} pixels, its image {image} "
                f"{'x'.join(map(str, size))}; give both the same size."
            )
    return table.assign(width=[size[0] for size in sizes], height=[size[1] for size in sizes])


def _size(path: str) -> tuple[int, int]:
    """Width and height as shown: a camera held upright writes the picture lying and says so."""
    with _open(path) as image:
        # PNG's getexif would decode the picture; TIFF swaps its sides itself
        try:
            turned = "exif" in image.info and image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1) >= 5
        except Exception as error:  # decoders raise anything
            raise InputError(f"{path} cannot be read as an image ({error}); replace or remove it.") from None
        return image.size[::-1] if turned else image.size


def _open(path: str | Path) -> Image.Image:
    try:
        image = Image.open(path)
        if image.format in ("TIFF", "WEBP", "PNG", "GIF") and getattr(image, "n_frames", 1) > 1:
            raise OSError(f"it holds {image.n_frames} pictures, save each as a file of its own")
        return image
    except FileNotFoundError:
        raise InputError(f"The file {path} does not exist; restore it or leave its row out.") from None
    except Exception as error:  # decoders raise anything
        raise InputError(f"{path} cannot be read as an image ({error}); replace or remove it.") from None


def _count_notes(table: pd.DataFrame, profile: Profile) -> list[str]:
    """Sentences on categories whose number of images differs from the data set's known one."""
    known = pd.read_csv(REFERENCE / "dataset_counts.csv")
    known = known[known.dataset == NAMES.get(profile.dataset, "")]
    # VisA's known counts do not name defect types, and several labels may share an image.
    keys = ["category", "split"] if profile.dataset == "visa" else ["category", "split", "defect"]
    expected = known.rename(columns={"defect_type": "defect"}).groupby(keys).n_images.sum()
    found = table.groupby(keys).size()
    notes = []
    for key, count in expected.items():
        if key[0] in set(table.category) and found.get(key, 0) != count:
            notes.append(f"{'/'.join(key)}: {found.get(key, 0)} images where {table.dataset.iloc[0]} has {count}.")
    return notes


def _hold_out(table: pd.DataFrame, shots: int) -> tuple[pd.DataFrame, list[str]]:
    """Where a category has no train split, some good test images become references for few-shot runs."""
    held = []
    for category, part in table.groupby("category"):
        good = part[(part.split == "test") & (part.label == 0)]
        if not shots or (part.split == "train").any():
            continue
        count = min(2 * shots, len(good) // 2)
        if count < shots:
            raise InputError(
                f"{category} has no train/good folder and only {len(good)} good test images, too few to hold out "
                f"{shots} references; add train/good images or lower 'shots'."
            )
        chosen = good.index[_generator(0, category).permutation(len(good))[:count]]
        table.loc[chosen, "split"] = "reference"
        held.append(f"{category} {count} of {len(good)}")
    if not held:
        return table, []
    return table, [
        f"Without a train split, good test images are held out as references ({', '.join(held)}). They leave the test, "
        "that of zero-shot too, so that all is tested on the same images."
    ]


def tested(table: pd.DataFrame) -> pd.DataFrame:
    """The rows a run is tested on, with references or without: the test images that are nobody's reference."""
    return table[table.split == "test"]


def subset(table: pd.DataFrame, most: int, seed: int = 0) -> pd.DataFrame:
    """Up to ``most`` test images of each category of an index, half of them defective, defect types in turn.

    All for 0. Drawn by the seed; images held out as references are left out.
    """
    rows = tested(table)
    within("images", most, 0)
    rows = rows.iloc[np.random.default_rng(within("seed", seed, 0)).permutation(len(rows))]
    turn = rows.groupby(["category", "defect"]).cumcount()
    rows = rows.assign(turn=turn).sort_values("turn", kind="stable").drop(columns="turn")
    place = rows.groupby(["category", "label"]).cumcount()
    halves = rows.label.map({0: (most + 1) // 2, 1: most // 2})
    kept = rows[place < halves] if most else rows
    return kept.sort_values(["category", "label", "image"], ignore_index=True)


# ---------------------------------------------------------------- references


def _generator(seed: int, category: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(category.encode())])


def references(table: pd.DataFrame, category: str, shots: int, seed: int) -> pd.DataFrame:
    """``shots`` normal train rows of a category, drawn without replacement; a smaller draw is part of a larger.

    ``FULL``: all of the train split. InputError where there are too few.
    """
    if shots == FULL:
        pool = table[(table.category == category) & (table.split == "train") & (table.label == 0)]
        if pool.empty:
            raise InputError(f"{category} has no train/good images for full shots; add them, or leave 'full' out.")
        return pool
    pool = table[(table.category == category) & table.split.isin(["train", "reference"]) & (table.label == 0)]
    if len(pool) < shots:
        raise InputError(f"{category} has {len(pool)} normal train images, fewer than {shots} shots; lower 'shots'.")
    return pool.iloc[_generator(seed, category).permutation(len(pool))[:shots]]


# ---------------------------------------------------------------- pixels

_ORIENTATION = 0x0112
DEEP = 4096  # a 16-bit picture with no value above, of a 12-bit camera, would be nearly black in 8 bits


def load_image(path: str | Path) -> Image.Image:
    """An image as 8-bit RGB, upright, transparent parts white; 16-bit grey keeps its upper byte.

    Raises InputError where it cannot be decoded, holds several pictures or has pixels of no known range.
    """
    with _open(path) as image:
        try:
            ImageOps.exif_transpose(image, in_place=True)
            return _plain(image)
        except Exception as error:  # decoders raise anything
            raise InputError(f"{path} cannot be decoded ({error}); replace or remove it.") from None


def _plain(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.max() < DEEP:
            raise ValueError(f"16 bits, but none above {values.max()}: nearly black; stretch all your pictures alike")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixel type {image.mode} has no known range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


LOADING = (load_image, _plain)
"""The code whose change gives an image other pixels."""


def load_mask(path: str | Path) -> np.ndarray:
    """A mask as bool of shape (H, W): every colour but black is defect (above half in a lossy file).

    Of a palette without black every index but 0; of a picture with transparency what is neither transparent nor black,
    or, where all is black, what is not transparent.
    """
    with _open(path) as image:
        least = 127 if image.format in ("JPEG", "WEBP") else 0
        try:
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode == "F":
                raise ValueError("a mask has whole numbers")
            if image.mode.startswith("I"):
                return np.asarray(image) > 0
            if image.has_transparency_data:
                *colours, alpha = np.moveaxis(np.asarray(image.convert("RGBA")), -1, 0)
                seen = np.max(colours, axis=0) * (alpha > least)
                return seen > least if (seen > least).any() else (alpha > least) & (alpha.min() < alpha.max())
            values = np.asarray(image.convert("RGB")).max(-1)
            if image.mode == "P" and values.min() > 0:
                return np.asarray(image) > 0
        except Exception as error:  # decoders raise anything
            raise InputError(f"{path} cannot be decoded ({error}); replace or remove it.") from None
        return values > least


def boxes(width: int, height: int, fit: str) -> list[tuple[int, int, int, int]]:
    """The (left, top, right, bottom) boxes of an image that a model sees, in pixels.

    ``squash``: the whole image. ``tiles``: squares of the short edge along the long one, a step of 0.8
    edges, the last at the far end (specification, section 1); one box where the image is square.
    """
    if fit == "squash":
        return [(0, 0, width, height)]
    if fit != "tiles":
        raise InputError(f"Setting 'fit' is {fit!r}; use tiles or squash.")
    edge = min(width, height)
    last = max(width, height) - edge
    starts = [*range(0, last, max(1, int(0.8 * edge))), last]
    if width >= height:
        return [(start, 0, start + edge, edge) for start in starts]
    return [(0, start, edge, start + edge) for start in starts]


def frame(width: int, height: int, fit: str, size: int) -> tuple[int, int]:
    """Width and height at which maps and masks are compared: short edge ``size``, or squashed to a square."""
    if fit == "squash":
        return size, size
    scale = size / min(width, height)
    return round(width * scale), round(height * scale)


def views(path: str | Path, fit: str, size: int) -> np.ndarray:
    """What the model sees of an image: (tiles, size, size, 3) uint8, each box resized by PIL's bicubic."""
    image = load_image(path)
    tiles = (image.crop(box) for box in boxes(*image.size, fit))  # one at a time: they may be large
    return np.stack([np.asarray(tile.resize((size, size), Image.Resampling.BICUBIC)) for tile in tiles])


def framed_mask(path: str, width: int, height: int, fit: str, size: int) -> np.ndarray:
    """A mask at the evaluation frame: bilinear on 0/255, then above one half; no path means no defect."""
    if not path:
        return np.zeros(frame(width, height, fit, size)[::-1], bool)
    mask = Image.fromarray(load_mask(path).astype(np.uint8) * 255)
    return np.asarray(mask.resize(frame(width, height, fit, size), Image.Resampling.BILINEAR)) > 127


def example(table: pd.DataFrame) -> pd.Series:
    """An index row good for showing: of the first category with masks, the image with the largest defect."""
    masked = table[table["mask"] != ""]
    first = masked[masked.category == masked.category.min()] if len(masked) else tested(table)
    areas = [load_mask(path).mean() if path else 0.0 for path in first["mask"]]
    return first.iloc[int(np.argmax(areas))]


def central_cell(row: pd.Series, grid: int) -> tuple[int, int]:
    """Row and column of the patch with most of an index row's defect; the middle where it has no mask."""
    if not row["mask"]:
        return grid // 2, grid // 2
    cover = Image.fromarray(framed_mask(row["mask"], row.width, row.height, "squash", 8 * grid).astype(np.uint8) * 255)
    place = int(np.asarray(cover.resize((grid, grid), Image.Resampling.BOX)).argmax())
    return divmod(place, grid)


def counts(table: pd.DataFrame) -> list[dict]:
    """Images per category: train, good, defective and masks, ready for JSON."""
    rows = []
    for (dataset, category), part in table.groupby(["dataset", "category"]):
        test = tested(part)
        rows.append(
            {
                "dataset": dataset,
                "category": category,
                "group": part.group.iloc[0],
                "train": int((part.split == "train").sum()),
                "good": int((test.label == 0).sum()),
                "defective": int((test.label == 1).sum()),
                "defects": int(test[test.label == 1].defect.nunique()),
                "masks": int((test["mask"] != "").sum()),
            }
        )
    return json.loads(json.dumps(rows))
