"""Data sets, a small class each: how its folder lists images and masks, what is known of its categories and counts.

A subclass of ``DataSet`` registers itself by its name in profiles.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from vlmad_lib import REFERENCE, InputError
from vlmad_lib.config import Profile
from vlmad_lib.data import layouts
from vlmad_lib.data.csv_files import read_text_table
from vlmad_lib.data.image_files import list_files_below, list_images, subfolders
from vlmad_lib.data.mask_files import is_mask_folder


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
        categories, notes = layouts.find_categories(root), []
        chosen_names = choose_categories([path.name for path in categories], profile, root) if categories else []
        for path in [] if root in categories or not categories else subfolders(root):
            if path in categories or profile.categories or not list_files_below(path):
                continue
            if path.name == "ground_truth" or is_mask_folder(path):
                raise InputError(f"{path} seems to hold masks; move them to <category>/ground_truth/<defect> of each.")
            note = f"{path.name}: no category, having no folder good or test; its pictures are left out."
            notes.append(f"{note} {layouts.explain(path)}".strip())
        chosen = [path for path in categories if path.name in chosen_names]
        rows, more = layouts.read_categories(chosen, profile.path(profile.cache), self.all_masked)
        return rows, notes + more

    def explain_empty(self, root: Path) -> str:
        """As ``DataSet.explain_empty``; what is misnamed is named first."""
        sentence = layouts.explain(root)
        shown = f" ({self.title} is {self.tree})." if self.tree else "."
        return f"{sentence.removesuffix('.')}{shown}" if sentence else super().explain_empty(root)


class Folder(MVTec):
    """A person's own pictures: MVTec AD's layout, or only ``good`` and folders of defects; masks may be missing."""

    name, title, all_masked, tree = "folder", "", False, ""

    def identify(self, profile: Profile) -> str:
        """As ``DataSet.identify``."""
        return f"folder {profile.path(profile.root).name}".strip()

    def explain_empty(self, root: Path) -> str:
        """As ``DataSet.explain_empty``."""
        loose = "its pictures lie loose; move the normal ones to good/ and those of each defect to a folder of its own"
        sentence = super().explain_empty(root)
        return sentence.replace("see data/README.md", loose) if list_images(root) else sentence


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
