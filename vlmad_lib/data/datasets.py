"""Data sets as one index: a DataFrame with a row per image, and the pixels behind a row.

The index has the columns of ``COLUMNS``: dataset, category, group (texture, rigid, flexible, unknown),
class_name (what the prompts call it), split (train, test, or ``published``: a good test image held out where
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
from PIL import Image

from vlmad_lib import ROOT, InputError, within
from vlmad_lib.config import FULL, Profile
from vlmad_lib.data import layouts
from vlmad_lib.data.csv_files import read_text_table
from vlmad_lib.data.image_files import (
    is_folder,
    list_files_below,
    list_images,
    read_size,
    require_folder,
    subfolders,
)
from vlmad_lib.data.layouts import NAMED, explain_name, is_good_name, label_names  # noqa: F401
from vlmad_lib.data.mask_files import (
    check_masks,
    framed_mask,
    is_mask_folder,
    load_mask,
)

REFERENCE = ROOT / "data" / "reference"
NAMES = {"mvtec": "MVTec AD", "visa": "VisA", "demo": "demo"}
COLUMNS = [
    *["dataset", "category", "group", "class_name", "split", "defect", "labels", "label"],
    *["image", "mask", "width", "height"],
]


# ---------------------------------------------------------------- the index


def build_index(profile: Profile) -> tuple[pd.DataFrame, list[str]]:
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
    require_folder(root, "set 'root' in the profile (data/README.md says where to get each data set)")
    rows, notes = _visa(root, profile) if profile.dataset == "visa" else _folders(root, profile)
    table = pd.DataFrame(rows, columns=["category", "split", "defect", "labels", "image", "mask"])
    if table.empty:
        remedy = "see data/README.md"
        if profile.dataset == "folder" and list_images(root):
            loose = "its pictures lie loose"
            remedy = f"{loose}; move the normal ones to good/ and those of each defect to a folder of its own"
        said = layouts.explain(root) if profile.dataset != "visa" else ""
        raise InputError(said or f"{root} holds no images in the layout of its data set: {remedy}.")
    untested = sorted(set(table.category) - set(table[table.split == "test"].category))
    if untested:
        place = root if profile.dataset == "folder" and untested[0] == root.name else root / untested[0]
        lacking = f"{place} has no test images; add test/good and test/<defect>."
        raise InputError(layouts.explain_misnamed(place) or lacking)
    table = _described(table, profile, root)
    if profile.dataset == "folder":
        table, said = check_masks(table, profile.path(profile.cache))
        notes += said
    notes += _count_notes(table, profile)
    table, held = _hold_out(table, max(profile.shots) if profile.methods else 0)
    return table, notes + held


def _described(table: pd.DataFrame, profile: Profile, root: Path) -> pd.DataFrame:
    """All columns of an index from the six that its layout gives, sorted."""
    shown = "demo auxiliary" if profile.subset == "auxiliary" else NAMES.get(profile.dataset, root.name)
    table.insert(0, "dataset", shown)
    table["label"] = (table.defect != "good").astype(int)
    table["group"], table["class_name"] = _descriptions(table.category, profile, root)
    return _sizes(table)[COLUMNS].sort_values(["category", "split", "defect", "image"], ignore_index=True)


def index_images(profile: Profile, category: str, parts: dict[tuple[str, str], list[str]]) -> pd.DataFrame:
    """The index of one category's pictures that lie in no layout: lists of paths by (split, defect), without masks."""
    rows = [
        (category, split, defect, label_names(defect), image, "")
        for (split, defect), images in parts.items()
        for image in images
    ]
    table = pd.DataFrame(rows, columns=["category", "split", "defect", "labels", "image", "mask"])
    return _described(table, profile, profile.path(profile.root))


def category_names(profile: Profile) -> list[str]:
    """The categories that a profile's data set is known to have, or else its folder has; none without it."""
    known = pd.read_csv(REFERENCE / "categories.csv", keep_default_na=False)
    root = profile.path(profile.root)
    found = list(known[known.dataset == NAMES.get(profile.dataset)].category)
    return found or ([path.name for path in layouts.find_categories(root)] if is_folder(root) else [])


def describe_identity(profile: Profile) -> str:
    """What a profile's data set is called where prompts say what they were trained on."""
    parts = {"demo": profile.subset, "folder": profile.path(profile.root).name}
    return f"{profile.dataset} {parts.get(profile.dataset, '')}".strip()


def find_same_categories(name: str, categories: Sequence[str], profile: Profile) -> list[str]:
    """Categories of a profile of own pictures that bear the names of a data set's: perhaps a copy of it.

    ``categories`` are those of the data set, those that are known of ``name`` for none.
    """
    if profile.dataset != "folder":
        return []
    known = pd.read_csv(REFERENCE / "categories.csv", keep_default_na=False)
    named = set(categories) or set(known[known.dataset == NAMES.get(name)].category)
    root = profile.path(profile.root)
    own = profile.categories or ([one.name for one in subfolders(root)] if root.is_dir() else [])
    return sorted(named.intersection([*own, root.name]))


def normalise_dataset_name(text: str) -> str:
    """``mvtec`` and ``visa`` for any spelling of them; other names as they are."""
    spelt = re.sub("[^a-z0-9]", "", text.casefold())
    return {"mvtec": "mvtec", "mvtecad": "mvtec", "visa": "visa"}.get(spelt, text.strip())


def overlaps_training_data(name: str, root: str, profile: Profile, categories: Sequence[str] = ()) -> bool:
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
    return name == describe_identity(profile) and not (root and profile.dataset == "folder")


def _wanted(known: list[str], profile: Profile, root: Path) -> list[str]:
    """The categories to read: those the profile names, or all."""
    missing = [name for name in profile.categories if name not in known]
    if missing:
        raise InputError(f"{root} has no category {missing[0]!r}; it has {', '.join(sorted(known)) or 'none'}.")
    for key in ("class_names", "groups"):
        unknown = [name for name in getattr(profile, key) if name not in known]
        if unknown:
            raise InputError(f"{key!r} has {unknown[0]!r}, which is no category of {root}: {', '.join(sorted(known))}.")
    return profile.categories or known


def _folders(root: Path, profile: Profile) -> tuple[list[tuple], list[str]]:
    """Rows of MVTec AD's layout, and of a person's folder that only has ``good`` and defects."""
    categories, notes = layouts.find_categories(root), []
    wanted = _wanted([path.name for path in categories], profile, root) if categories else []
    for path in [] if root in categories or not categories else subfolders(root):
        if path in categories or profile.categories or not list_files_below(path):
            continue
        if path.name == "ground_truth" or is_mask_folder(path):
            raise InputError(f"{path} seems to hold masks; move them to <category>/ground_truth/<defect> of each.")
        said = f"{path.name}: no category, having no folder good or test; its pictures are left out."
        notes.append(f"{said} {layouts.explain(path)}".strip())
    rows, more = layouts.read_categories([path for path in categories if path.name in wanted], profile)
    return rows, notes + more


def _visa(root: Path, profile: Profile) -> tuple[list[tuple], list[str]]:
    """Rows of VisA's official one-class split; defect names from each object's image_anno.csv."""
    split_file = root / "split_csv" / "1cls.csv"
    if not split_file.is_file():
        raise InputError(f"The split file {split_file} does not exist; it comes with the VisA archive.")
    split = read_text_table(split_file, ("object", "split", "label", "image", "mask"), "fetch it again")
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


def _visa_labels(file: Path) -> dict[str, list[str]] | None:
    """Defect names of each image path; one image can have several."""
    if not file.is_file():
        return None
    table = read_text_table(file, ("image", "label"), "fetch it again")
    return {row.image: [name.strip() for name in row.label.split(",")] for row in table.itertuples()}


def _descriptions(categories: pd.Series, profile: Profile, root: Path) -> tuple[pd.Series, pd.Series]:
    """Group and class name of each category; what the profile says of them goes first."""
    known = pd.read_csv(REFERENCE / "categories.csv", keep_default_na=False)
    known = known[known.dataset == NAMES.get(profile.dataset, "")]
    if profile.dataset == "demo" and (root / "demo.csv").is_file():
        known = pd.read_csv(root / "demo.csv").drop_duplicates("category")
    groups = dict(zip(known.category, known.group, strict=True)) | profile.groups
    names = dict(zip(known.category, known.class_name, strict=True)) | profile.class_names
    return (
        categories.map(lambda name: groups.get(name, "unknown")),
        categories.map(lambda name: names.get(name, name.replace("_", " "))),
    )


def _sizes(table: pd.DataFrame) -> pd.DataFrame:
    """The index with each image's size, read from the headers; masks must have the same."""
    sizes = [read_size(path) for path in table.image]
    for image, mask, size in zip(table.image, table["mask"], sizes, strict=True):
        if mask and read_size(mask) != size:
            raise InputError(
                f"The mask {mask} has {'x'.join(map(str, read_size(mask)))} pixels, its image {image} "
                f"{'x'.join(map(str, size))}; give both the same size."
            )
    return table.assign(width=[size[0] for size in sizes], height=[size[1] for size in sizes])


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
    """Where a category has no train split, some good test images become references: half of them for ``FULL``."""
    held = []
    for category, part in table.groupby("category"):
        good = part[(part.split == "test") & (part.label == 0)]
        if not shots or (part.split == "train").any():
            continue
        count, least = min(2 * shots, len(good) // 2), 1 if shots == FULL else shots
        if count < least:
            raise InputError(
                f"{category} has no train/good folder and only {len(good)} good test images, too few to hold out "
                f"{least} as references; add train/good images or lower 'shots'."
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


def select_tested(table: pd.DataFrame) -> pd.DataFrame:
    """The rows a run is tested on, with references or without: the test images that are nobody's reference."""
    return table[table.split == "test"]


def sample_images(table: pd.DataFrame, most: int, seed: int = 0) -> pd.DataFrame:
    """Up to ``most`` test images of each category of an index, half of them defective, defect types in turn.

    All for 0. Drawn by the seed; images held out as references are left out.
    """
    rows = select_tested(table)
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


def draw_references(table: pd.DataFrame, category: str, shots: int, seed: int, repeated: bool = False) -> pd.DataFrame:
    """``shots`` normal train rows of a category, drawn without replacement; a smaller draw is part of a larger.

    ``repeated``: drawn with replacement, so that one may come twice. ``FULL``: all of the train split, or all that were
    held out where there is none. InputError where there are too few.
    """
    pool = table[(table.category == category) & table.split.isin(["train", "reference"]) & (table.label == 0)]
    if shots == FULL:
        if pool.empty:
            raise InputError(f"{category} has no train/good images for full shots; add them, or leave 'full' out.")
        return pool
    if len(pool) < shots:
        raise InputError(f"{category} has {len(pool)} normal train images, fewer than {shots} shots; lower 'shots'.")
    stream = _generator(seed, category)
    return pool.iloc[stream.integers(len(pool), size=shots) if repeated else stream.permutation(len(pool))[:shots]]


# ---------------------------------------------------------------- pixels


def choose_example(table: pd.DataFrame) -> pd.Series:
    """An index row good for showing: of the first category with masks, the image with the largest defect."""
    masked = table[table["mask"] != ""]
    first = masked[masked.category == masked.category.min()] if len(masked) else select_tested(table)
    areas = [load_mask(path).mean() if path else 0.0 for path in first["mask"]]
    return first.iloc[int(np.argmax(areas))]


def find_central_cell(row: pd.Series, grid: int) -> tuple[int, int]:
    """Row and column of the patch with most of an index row's defect; the middle where it has no mask."""
    if not row["mask"]:
        return grid // 2, grid // 2
    cover = Image.fromarray(framed_mask(row["mask"], row.width, row.height, "squash", 8 * grid).astype(np.uint8) * 255)
    place = int(np.asarray(cover.resize((grid, grid), Image.Resampling.BOX)).argmax())
    return divmod(place, grid)


def count_images(table: pd.DataFrame) -> list[dict]:
    """Images per category: train, good, defective and masks, ready for JSON."""
    rows = []
    for (dataset, category), part in table.groupby(["dataset", "category"]):
        test = select_tested(part)
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
