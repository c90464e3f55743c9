"""Data sets as one index: a DataFrame with a row per image, in the columns of ``COLUMNS``.

dataset, category, group (texture, rigid, flexible, unknown), class_name (what prompts call it), split (train, test, or
``reference``: a normal test image held out where there is no train split), defect (``good`` for normal), labels (all
defect names of an image, ``;`` between them), label (0 normal, 1 anomalous), image and mask (absolute paths; mask empty
where there is none), width and height in pixels.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vlmad_lib import REFERENCE, InputError, within
from vlmad_lib.config import FULL, Profile
from vlmad_lib.data import layouts, public_datasets  # noqa: F401  its classes register themselves
from vlmad_lib.data.dataset_classes import DATASETS, DataSet, read_known_categories
from vlmad_lib.data.image_files import is_folder, read_size, require_folder, subfolders
from vlmad_lib.data.mask_files import check_masks, load_mask

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
    root, kind = profile.path(profile.root), DATASETS[profile.dataset]
    if profile.subset != "target" and profile.dataset != "demo":
        raise InputError(f"'subset' belongs to the demo data; {profile.dataset} has none, leave it out.")
    if profile.dataset != "demo":
        require_folder(root, "set 'root' in the profile (data/README.md says where to get each data set)")
    rows, notes = kind.list_rows(root, profile)
    if not rows:
        raise InputError(kind.explain_empty(root))
    table = pd.DataFrame(rows, columns=["category", "split", "defect", "labels", "image", "mask"])
    untested = sorted(set(table.category) - set(table[table.split == "test"].category))
    if untested:
        place = root if not kind.all_masked and untested[0] == root.name else root / untested[0]
        lacking = f"{place} has no test images; add test/good and test/<defect>."
        raise InputError(layouts.explain_misnamed(place) or lacking)
    table = complete_index(table, profile)
    if not kind.all_masked:
        table, more = check_masks(table, profile.path(profile.cache))
        notes += more
    notes += _note_other_counts(table, kind)
    table, held = _hold_out(table, max(profile.shots) if profile.methods else 0)
    return table, notes + held


def complete_index(table: pd.DataFrame, profile: Profile) -> pd.DataFrame:
    """An index with all ``COLUMNS``, sorted, from category, split, defect, image and mask (paths; "" for no mask).

    Group and class name are what the profile says, else what is known of the data set; sizes are read from the files.
    ``labels`` are the defect where they are not given. InputError for a mask of another size than its image.
    """
    root, kind = profile.path(profile.root), DATASETS[profile.dataset]
    described = kind.describe_categories(root).set_index("category")
    groups, names = dict(described.group) | profile.groups, dict(described.class_name) | profile.class_names
    table = table.assign(
        dataset=kind.name_folder(root, profile),
        label=(table.defect != "good").astype(int),
        labels=table.labels if "labels" in table else table.defect.map(layouts.label_names),
        group=table.category.map(lambda name: groups.get(name, "unknown")),
        class_name=table.category.map(lambda name: names.get(name, name.replace("_", " "))),
    )
    return _sizes(table)[COLUMNS].sort_values(["category", "split", "defect", "image"], ignore_index=True)


def index_images(profile: Profile, category: str, paths: dict[tuple[str, str], list[str]]) -> pd.DataFrame:
    """The index of one category's pictures that lie in no layout: lists of paths by (split, defect), without masks."""
    rows = [(category, split, defect, image, "") for (split, defect), images in paths.items() for image in images]
    return complete_index(pd.DataFrame(rows, columns=["category", "split", "defect", "image", "mask"]), profile)


def category_names(profile: Profile) -> list[str]:
    """The categories that a profile's data set is known to have, or else its folder has; none without it."""
    root = profile.path(profile.root)
    names = list(read_known_categories(DATASETS[profile.dataset].title).category)
    folders = profile.folders if profile.own else None
    return names or ([path.name for path in layouts.find_categories(root, folders)] if is_folder(root) else [])


def describe_identity(profile: Profile) -> str:
    """What a profile's data set is called where prompts say what they were trained on."""
    return DATASETS[profile.dataset].identify(profile)


def find_same_categories(name: str, categories: Sequence[str], profile: Profile) -> list[str]:
    """Categories of a profile of own pictures that bear the names of a data set's: perhaps a copy of it.

    ``categories`` are those of the data set, those that are known of ``name`` for none.
    """
    if not profile.own:
        return []
    root = profile.path(profile.root)
    names = set(categories) or set(read_known_categories(DATASETS[name].title).category if name in DATASETS else [])
    folders = profile.categories or ([path.name for path in subfolders(root)] if root.is_dir() else [])
    return sorted(names.intersection([*folders, root.name]))


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


def _note_other_counts(table: pd.DataFrame, kind: DataSet) -> list[str]:
    """Sentences on categories whose number of images differs from the data set's known one."""
    published = pd.read_csv(REFERENCE / "dataset_counts.csv").rename(columns={"defect_type": "defect"})
    columns, present = list(kind.counted_by), set(table.category)
    over_all = "category" not in columns
    if over_all and set(kind.describe_categories(Path()).category) - present:
        return []
    published, table = (
        part.assign(condition=part.defect.where(part.defect == "good", "defective")) for part in (published, table)
    )
    expected = published[published.dataset == kind.title].groupby(columns).n_images.sum()
    counts = table.groupby(columns).size()
    named = ((key if isinstance(key, tuple) else (key,), counts.get(key, 0), count) for key, count in expected.items())
    return [
        f"{'/'.join(key)}: {found} images where {table.dataset.iloc[0]} has {count}."
        for key, found, count in named
        if (over_all or key[0] in present) and found != count
    ]


def _hold_out(table: pd.DataFrame, shots: int) -> tuple[pd.DataFrame, list[str]]:
    """Where a category has no train split, some good test images become references: half of them for ``FULL``."""
    held = []
    for category, rows in table.groupby("category"):
        good = rows[(rows.split == "test") & (rows.label == 0)]
        if not shots or (rows.split == "train").any():
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


def count_images(table: pd.DataFrame) -> list[dict]:
    """Images per category: train, good, defective and masks, ready for JSON."""
    rows = []
    for (dataset, category), category_rows in table.groupby(["dataset", "category"]):
        test = select_tested(category_rows)
        rows.append(
            {
                "dataset": dataset,
                "category": category,
                "group": category_rows.group.iloc[0],
                "train": int((category_rows.split == "train").sum()),
                "good": int((test.label == 0).sum()),
                "defective": int((test.label == 1).sum()),
                "defects": int(test[test.label == 1].defect.nunique()),
                "masks": int((test["mask"] != "").sum()),
            }
        )
    return json.loads(json.dumps(rows))
