"""Data sets, a small class each: how its folder lists images and masks, what is known of its categories and counts.

A subclass of ``DataSet`` registers itself by its name in profiles.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vlmad_lib import REFERENCE, InputError
from vlmad_lib.config import Folders, Profile
from vlmad_lib.data import layouts
from vlmad_lib.data.csv_files import read_text_table
from vlmad_lib.data.folder_roles import Misplaced, holds_pictures, list_children
from vlmad_lib.data.image_files import is_folder, list_files_below, list_images, subfolders
from vlmad_lib.data.mask_files import is_mask_folder, load_mask, read_mask_values


class DataSet:
    """A data set: its name in profiles, and how its folder lists images and masks. A subclass registers itself."""

    # As profiles name it; in ``config.DATASETS`` too.
    name: str
    # As the tables and those of data/reference name it; "" for the name of its folder.
    title = ""
    # Whether every anomalous test image has a mask.
    all_masked = True
    # The columns by which data/reference counts its images, or ``condition``: good or defective. Without category: over
    # all categories.
    counted_by = ("category", "split", "defect")
    # Its folders in one line, as sentences on what cannot be read show them.
    tree = ""

    def __init_subclass__(cls):
        if "name" in vars(cls):  # what several data sets share has none
            DATASETS[cls.name] = cls()

    def list_rows(self, root: Path, profile: Profile) -> tuple[list[tuple], list[str]]:
        """Rows (category, split, defect, labels, image, mask) of what a folder holds, and notes on it."""
        raise NotImplementedError

    def name_folder(self, root: Path, profile: Profile) -> str:
        """What tables call the data in a folder."""
        return self.title or root.name

    def identify(self, profile: Profile) -> str:
        """What the data are called where prompts say what they were trained on."""
        return self.name

    def explain_empty(self, root: Path) -> str:
        """A sentence on a folder without images in the data set's layout: the layout, and what is there."""
        if not self.tree:
            return f"{root} holds no images in the layout of its data set: see data/README.md."
        names = [f"{path.name}/" for path in subfolders(root)] + [path.name for path in list_images(root, unread=True)]
        there = f"{', '.join(names[:5])}{' and others' * (len(names) > 5)}" or "nothing that is read"
        return (
            f"{root} holds no images in the layout of {self.title}, which is {self.tree}, but {there}: "
            "set 'root' to the folder where that begins."
        )

    def describe_categories(self, root: Path) -> pd.DataFrame:
        """What is known of its categories: a table with the columns category, group and class_name."""
        return read_known_categories(self.title)

    def list_region_files(self, image: str) -> list[str]:
        """The files that decide what ``read_regions`` gives for a test image."""
        return []

    def read_regions(self, image: str) -> list[tuple[np.ndarray, float]]:
        """The annotated defect regions of a test image, in a data set that says of each when it counts as found.

        Each is a bool mask (H, W) and its saturation: the share of its area, in (0, 1], that is to be marked. Regions
        may overlap. Data sets without such annotations have none, and no sPRO.
        """
        return []


def read_known_categories(title: str) -> pd.DataFrame:
    """Category, group and class name of the categories of a data set by its title in ``data/reference``."""
    table = pd.read_csv(REFERENCE / "categories.csv", keep_default_na=False)
    return table[table.dataset == title]


DATASETS: dict[str, DataSet] = {}


class MVTec(DataSet):
    """MVTec AD: <category>/{train,test}/<defect>, and ground_truth/<defect> with a mask for each anomalous image."""

    name, title = "mvtec", "MVTec AD"
    tree = "<category>/{train/good, test/good, test/<defect>, ground_truth/<defect>}"

    def list_rows(self, root: Path, profile: Profile) -> tuple[list[tuple], list[str]]:
        """As ``DataSet.list_rows``."""
        folders = profile.folders if profile.own else None
        categories = layouts.find_categories(root, folders)
        if folders:
            layouts.refuse_unmatched(root, categories, folders)
        chosen_names = choose_categories([path.name for path in categories], profile, root) if categories else []
        notes = _note_no_categories(root, categories, folders) if categories and not profile.categories else []
        chosen = [path for path in categories if path.name in chosen_names]
        rows, more = layouts.read_categories(chosen, profile.path(profile.cache), self.all_masked, folders)
        return rows, notes + more

    def explain_empty(self, root: Path) -> str:
        """As ``DataSet.explain_empty``; what is misnamed is named first."""
        sentence = layouts.explain(root)
        shown = f" ({self.title} is {self.tree})." if self.tree else "."
        return f"{sentence.removesuffix('.')}{shown}" if sentence else super().explain_empty(root)


class Folder(MVTec):
    """A person's own pictures: MVTec AD's layout, or only ``good`` and folders of defects; masks may be missing.

    Folders of other names are read where there is no doubt, or the profile's ``folders`` say it (``layouts``).
    """

    name, title, all_masked, tree = "folder", "", False, ""

    def list_rows(self, root: Path, profile: Profile) -> tuple[list[tuple], list[str]]:
        """As ``DataSet.list_rows``."""
        for folder in [root, *subfolders(root)] if profile.folders == Folders() else []:
            if all(is_folder(folder / name) for name in ("test_public", "test_private")):
                raise InputError(
                    f"{folder} is laid out as MVTec AD 2 is, with test_public: write 'dataset: mvtec2', which has its "
                    "counts and validation split, or rename that folder to test, to have test/good and test/<defect>."
                )
        try:
            return super().list_rows(root, profile)
        except Misplaced as error:
            raise InputError(layouts.describe_layout(error, root)) from None

    def identify(self, profile: Profile) -> str:
        """As ``DataSet.identify``."""
        return f"folder {profile.path(profile.root).name}".strip()

    def explain_empty(self, root: Path) -> str:
        """As ``DataSet.explain_empty``."""
        loose = "its pictures lie loose; move the normal ones to good/ and those of each defect to a folder of its own"
        sentence = super().explain_empty(root)
        if not holds_pictures(root):
            return sentence
        sentence = sentence.replace("see data/README.md", loose) if list_images(root) else sentence
        deeper = layouts.explain_depth(root)
        return layouts.describe_layout(Misplaced(deeper, None) if deeper else Misplaced(sentence), root)


class Demo(MVTec):
    """The drawn pictures, written where they are missing."""

    name, title = "demo", "demo"

    def list_rows(self, root: Path, profile: Profile) -> tuple[list[tuple], list[str]]:
        """As ``DataSet.list_rows``."""
        from vlmad_lib.demo import data as demo

        demo.write(root, profile.subset)
        return super().list_rows(root, profile)

    def name_folder(self, root: Path, profile: Profile) -> str:
        """As ``DataSet.name_folder``."""
        return "demo auxiliary" if profile.subset == "auxiliary" else self.title

    def identify(self, profile: Profile) -> str:
        """As ``DataSet.identify``."""
        return f"demo {profile.subset}"

    def describe_categories(self, root: Path) -> pd.DataFrame:
        """As ``DataSet.describe_categories``."""
        file = root / "demo.csv"
        table = pd.read_csv(file) if file.is_file() else super().describe_categories(root)
        return table.drop_duplicates("category")


class VisA(DataSet):
    """VisA's official one-class split; defect names from each object's image_anno.csv."""

    name, title = "visa", "VisA"
    # Its known counts do not name defect types, and several labels may share an image.
    counted_by = ("category", "split")
    tree = "{split_csv/1cls.csv, <object>/image_anno.csv, <object>/Data/Images/{Normal, Anomaly}, <object>/Data/Masks}"

    def list_rows(self, root: Path, profile: Profile) -> tuple[list[tuple], list[str]]:
        """As ``DataSet.list_rows``."""
        split_file = root / "split_csv" / "1cls.csv"
        if not split_file.is_file():
            raise InputError(
                f"The split file {split_file} does not exist; it comes with the VisA archive, which is {self.tree}."
            )
        split = read_text_table(split_file, ("object", "split", "label", "image", "mask"), "fetch it again")
        for column, allowed in {"split": ["train", "test"], "label": ["normal", "anomaly"]}.items():
            if other := set(split[column]) - set(allowed):
                raise InputError(
                    f"{split_file}: {column} {sorted(other)[0]!r} is none of {', '.join(allowed)}; correct it."
                )
        if len(again := split[split.image.duplicated()]):
            raise InputError(f"{split_file} names {again.image.iloc[0]} twice; fetch the file again.")
        rows, notes = [], []
        refuse_outside([*split.object.unique(), *split.image, *split["mask"]], split_file, root)
        chosen_names = choose_categories(list(split.object.unique()), profile, root)
        for category, entries in split[split.object.isin(chosen_names)].groupby("object"):
            labels = _read_visa_labels(root / category / "image_anno.csv")
            if labels is None:
                notes.append(f"{category}: image_anno.csv is missing; its defects are named 'anomaly'.")
            for row in entries.itertuples():
                names = [] if row.label == "normal" else (labels or {}).get(row.image, ["anomaly"])
                defect = "good" if row.label == "normal" else names[0] if len(names) == 1 else "combined"
                mask = str(root / row.mask) if row.mask else ""
                rows.append((category, row.split, defect, ";".join(names), str(root / row.image), mask))
        return rows, notes


def _note_no_categories(root: Path, categories: Sequence[Path], folders: Folders | None) -> list[str]:
    """Notes on pictures in a data folder that are in no category; Misplaced for masks there."""
    if root in categories:
        return []
    notes, loose = [], list_images(root, unread=True)
    if loose:
        notes.append(f"{len(loose)} pictures lie loose in {root}; they are left out.")
    # Folders that hold a part of each category, where the splits lie above the categories.
    above = {name for category in categories if not is_folder(category) for name in list_children(category)}
    if above:
        first = f"{max(above)}/{categories[0].name}/"
        notes.append(f"The splits lie above the categories: {first} is read as {categories[0].name}/{max(above)}/.")
    for path in subfolders(root):
        if path in categories or path.name in above or not list_files_below(path):
            continue
        if folders and "ignore" in dict(folders.match(path.name)):
            notes.append(f"{path.name}/ is {layouts.READ_AS['ignore']}.")
            continue
        if path.name == "ground_truth" or is_mask_folder(path):
            raise Misplaced(f"{path} seems to hold masks; move them to <category>/ground_truth/<defect> of each.")
        note = f"{path.name}: no category, having no folder good or test; its pictures are left out."
        notes.append(f"{note} {layouts.explain(path, folders)}".strip())
    return notes


# MVTec LOCO's file of pixel values and saturations, in each category.
CONFIG = "defects_config.json"


class MVTecAD2(DataSet):
    """MVTec AD 2: its public test images under all its lightings; validation images are kept to set thresholds."""

    name, title = "mvtec2", "MVTec AD 2 (test_public)"
    tree = (
        "<category>/{train,validation}/good/000_regular.png, <category>/test_public/{good,bad}/000_regular.png and "
        "<category>/test_public/ground_truth/bad/000_regular_mask.png"
    )
    # Their masks are at MVTec's evaluation server alone.
    private = ("test_private", "test_private_mixed")

    def list_rows(self, root: Path, profile: Profile) -> tuple[list[tuple], list[str]]:
        """As ``DataSet.list_rows``."""
        splits = {"train": "train", "validation": "validation", "test": "test_public"}
        rows, notes = _read_split_folders(root, profile, splits, "test_public/ground_truth")
        categories = dict.fromkeys(row[0] for row in rows)
        places = [(root if name == root.name else root / name) / split for name in categories for split in self.private]
        if hidden := sum(len(list_files_below(place)) for place in places if is_folder(place)):
            notes.append(f"{' and '.join(self.private)} have no public masks or labels; pictures left out: {hidden}.")
        return rows, notes


class MVTecLOCO(DataSet):
    """MVTec LOCO AD: structural and logical anomalies, with a mask a defect and when each counts as found (sPRO)."""

    name, title = "loco", "MVTec LOCO"
    tree = (
        "<category>/{train,validation}/good/000.png, <category>/test/{good,logical_anomalies,structural_anomalies}/"
        "000.png, <category>/ground_truth/{logical_anomalies,structural_anomalies}/000/000.png and "
        "<category>/defects_config.json"
    )

    def list_rows(self, root: Path, profile: Profile) -> tuple[list[tuple], list[str]]:
        """As ``DataSet.list_rows``."""
        splits = {"train": "train", "validation": "validation", "test": "test"}
        rows, notes = _read_split_folders(root, profile, splits, "ground_truth")
        for category in dict.fromkeys(Path(row[4]).parents[2] for row in rows):
            if not (category / CONFIG).is_file():
                notes.append(f"{category.name}: {CONFIG} is missing, so there is no sPRO; fetch it again.")
        return rows, notes

    def list_region_files(self, image: str) -> list[str]:
        """As ``DataSet.list_region_files``: the file of saturations, then a mask a region."""
        path = Path(image)
        if len(path.parts) < 4 or path.parts[-3] != "test":  # a picture that was changed lies elsewhere
            return []
        category = path.parents[2]
        config, masks = category / CONFIG, category / "ground_truth" / path.parent.name / path.stem
        return [str(config), *list_files_below(masks)] if config.is_file() and is_folder(masks) else []

    def read_regions(self, image: str) -> list[tuple[np.ndarray, float]]:
        """As ``DataSet.read_regions``: a saturation area is absolute, in pixels, or relative to the region's area.

        Areas are counted as the official evaluation does (Bergmann et al. 2022): no region saturates above its own
        area, and a relative area is cut to whole pixels.
        """
        config, *masks = self.list_region_files(image) or [""]
        saturations, regions = _read_saturations(Path(config)) if config else {}, []
        for file in masks:
            values, mask = read_mask_values(file), load_mask(file)
            if len(values) != 1 or values[0] not in saturations:
                raise InputError(
                    f"The mask {file} has the values {', '.join(map(str, values)) or 'of no defect'}, where one of "
                    f"{config} is wanted ({', '.join(map(str, saturations))}); fetch both again."
                )
            threshold, relative = saturations[values[0]]
            area = int(mask.sum())
            needed = int(threshold * area) if relative else min(threshold, area)
            regions.append((mask, max(needed, 1) / area))
        return regions


def _read_saturations(file: Path) -> dict[int, tuple[float, bool]]:
    """The saturation threshold of each pixel value of MVTec LOCO's masks, and whether it is relative to the area."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        return {
            int(entry["pixel_value"]): (float(entry["saturation_threshold"]), bool(entry["relative_saturation"]))
            for entry in entries
        }
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{file} is no list of pixel_value, saturation_threshold and relative_saturation ({error}); fetch it again."
        ) from None


def _read_split_folders(
    root: Path, profile: Profile, splits: dict[str, str], masks: str
) -> tuple[list[tuple], list[str]]:
    """Rows and notes of the chosen categories of a data set with folders for its splits (``layouts.read_splits``)."""
    categories, rows, notes = layouts.find_categories(root), [], []
    names = choose_categories([path.name for path in categories], profile, root) if categories else []
    for category in [path for path in categories if path.name in names]:
        if not is_folder(category / splits["test"]):
            raise InputError(
                f"{category} has no folder {splits['test']}; set 'root' to the data set as it is published."
            )
        more_rows, more = layouts.read_splits(category, splits, masks, profile.path(profile.cache))
        rows += more_rows
        notes += more
    return rows, notes


def choose_categories(present: list[str], profile: Profile, root: Path) -> list[str]:
    """The categories to read: those the profile names, or all."""
    missing = [name for name in profile.categories if name not in present]
    if missing:
        raise InputError(f"{root} has no category {missing[0]!r}; it has {', '.join(sorted(present)) or 'none'}.")
    for key in ("class_names", "groups"):
        unknown = [name for name in getattr(profile, key) if name not in present]
        if unknown:
            raise InputError(
                f"{key!r} has {unknown[0]!r}, which is no category of {root}: {', '.join(sorted(present))}."
            )
    return profile.categories or present


def refuse_outside(names: Iterable[str], file: Path, root: Path) -> None:
    """InputError for a path in a file that leads out of the folder it starts at."""
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"{file} names {name!r}, which leads out of {root}; fetch the file again.")


def _read_visa_labels(file: Path) -> dict[str, list[str]] | None:
    """Defect names of each image path; one image can have several."""
    if not file.is_file():
        return None
    table = read_text_table(file, ("image", "label"), "fetch it again")
    return {row.image: [name.strip() for name in row.label.split(",")] for row in table.itertuples()}
