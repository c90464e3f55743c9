"""What the folders of a data set's categories hold: their roles, by name, by content or by the profile.

A data set of a known layout must have its names to the letter. Of own pictures (where ``folders``, the profile's key,
is given) a folder of another name is read where there is no doubt; what is doubtful is refused as ``Misplaced``. A
folder of normal pictures that was taken for a defect would turn every figure round.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vlmad_lib import InputError
from vlmad_lib.config import Folders
from vlmad_lib.data.image_files import is_folder, list_images, subfolders
from vlmad_lib.data.mask_files import is_mask_folder

# What the folders of the layouts hold, in the words of the profile's key.
ROLES = {"good": "normal", "train": "train", "test": "test", "ground_truth": "masks"}
SPLITS = ("train", "test")
# What others call the splits, letters alone.
OTHER_SPLITS = {"training": "train", "testing": "test", "testpublic": "test"}
# What others call the folder of normal pictures, letters alone and without the words of ``_FILLING``.
GOOD_NAMES = {
    *("good", "goods", "ok", "okay", "normal", "normals", "free", "defectfree", "faultless", "healthy", "intact"),
    *("nodefect", "nodefects", "nondefective", "notdefective", "nonanomalous", "undamaged", "pass", "passed"),
    *("gut", "io", "bon", "bueno", "buono", "正常", "良品"),
}
_FILLING = {"parts", "part", "images", "image", "pictures", "imgs", "img", "samples", "front", "side", "top", "mt"}
DEPTH = 4  # folders below a category that are looked at


class Misplaced(InputError):
    """Folders that are laid out in no way that is read.

    ``key`` is what the profile's ``folders`` may say of them; "" where that is open, None where they cannot help.
    """

    def __init__(self, sentence: str, key: str | None = ""):
        super().__init__(sentence)
        self.key = key


@dataclass(frozen=True)
class Place:
    """A folder of a category: its path there, its role (a key of ``Folders``, or "unread") and its split.

    ``known_by``: "name" of the layout, "other name", "key" of the profile, or "" for what is a defect by default.
    """

    path: Path
    relative: str
    role: str
    known_by: str
    split: str

    @property
    def name(self) -> str:
        """Its own name."""
        return self.relative.rpartition("/")[2]

    @property
    def defect(self) -> str:
        """What its pictures are called in an index."""
        return "good" if self.role == "normal" else self.name


def write_key(role: str, *names: str) -> str:
    """What the profile's ``folders`` may say of some folders, as YAML."""
    plain = re.compile(r"\w[\w./-]*( [\w./-]+)*")
    return f"{role}: [{', '.join(name if plain.fullmatch(name) else json.dumps(name) for name in names)}]"


# ---------------------------------------------------------------- what a folder is


def is_good_name(name: str) -> bool:
    """Whether a folder's name says beyond doubt that its pictures are normal: ok, Normal, defect-free, ok_front."""
    words = re.findall(r"[^\W\d_]+", name.casefold())
    return "".join(word for word in words if word not in _FILLING) in GOOD_NAMES


def holds_pictures(folder: Path, depth: int = DEPTH) -> bool:
    """Whether a folder or those in it hold pictures."""
    if list_images(folder, unread=True):
        return True
    return depth > 0 and any(holds_pictures(inner, depth - 1) for inner in subfolders(folder))


def _role_of(name: str, path: Path, own: bool) -> tuple[str, str]:
    """The role of a folder by its name and what it is known by (``Place``); other names are those of no empty folder.

    ``own``: normal pictures under another name lie in the folder itself, and splits may have other names too.
    """
    usual = name.casefold()
    if name in ROLES:
        return ROLES[name], "name"
    if usual in ROLES and (not own or holds_pictures(path)):
        return ROLES[usual], "other name"
    if is_good_name(name) and (list_images(path, unread=True) if own else holds_pictures(path)):
        return "normal", "other name"
    split = OTHER_SPLITS.get(re.sub("[^a-z]", "", usual), "") if own else ""
    if split and holds_pictures(path):
        return split, "other name"
    if is_mask_folder(path, name) and (not own or holds_pictures(path)):
        return "masks", "other name"
    return "defects", ""


def list_places(
    children: Mapping[str, Path], folders: Folders | None, above: str = "", split: str = "test"
) -> list[Place]:
    """What the folders in a category, or in one of its folders (``above``), are."""
    places = []
    for name, path in children.items():
        relative = above + name
        roles = list(dict.fromkeys(role for role, _ in folders.match(relative))) if folders else []
        if len(roles) > 1:
            raise InputError(f"'folders' has {relative} as {roles[0]} and as {roles[1]}; name it in one of them.")
        role, known_by = (roles[0], "key") if roles else _role_of(name, path, folders is not None)
        places.append(Place(path, relative, role, known_by, split))
    return places


def map_folders(folder: Path) -> dict[str, Path]:
    """The folders in a folder by name."""
    return {path.name: path for path in subfolders(folder)}


def list_children(category: Path) -> dict[str, Path]:
    """The folders of a category; where the splits lie above the categories, those of its name in the folders there."""
    if is_folder(category):
        return map_folders(category)
    return {top.name: top / category.name for top in subfolders(category.parent) if is_folder(top / category.name)}


def is_category(folder: Path, folders: Folders | None = None) -> bool:
    """Whether a folder has one of those that make a category."""
    if folders is None:
        return any(is_folder(folder / name) for name in ("test", "train", "good"))
    places = list_places(map_folders(folder), folders)
    return any(p.role in ("normal", *SPLITS) or (p.role == "defects" and p.known_by == "key") for p in places)


def explain_name(folder: Path) -> str:
    """A sentence on a folder whose name is another for one of the layout's; empty where it is not."""
    usual, good = folder.name.casefold(), folder.with_name("good")
    if usual in ROLES and folder.name != usual:
        normal = "" if usual == "good" else "; normal pictures belong in train/good and test/good"
        return f"{folder} is not spelt {usual!r}: rename it{normal}."
    if folder.name not in ROLES and is_good_name(folder.name):
        to = f"move them to {good}" if is_folder(good) else "rename it to good/"
        return f"{folder} seems to hold normal pictures: {to}."
    return ""


# ---------------------------------------------------------------- what is in its place, and what is not


def recognise(category: Path, folders: Folders | None) -> list[Place]:
    """The folders of a category with their roles, those of train first; Misplaced where there is doubt.

    Beside splits only masks are read; what else there is has the role "unread".
    """
    top = list_places(list_children(category), folders)
    splits = sorted((place for place in top if place.role in SPLITS), key=lambda place: place.role, reverse=True)
    inner = [
        place
        for split in splits
        for place in list_places(map_folders(split.path), folders, f"{split.relative}/", split.role)
    ]
    if folders is None:
        _refuse_other_names(category, top, inner)
    _refuse_misplaced(category, splits, top, inner)
    if folders is not None:
        _refuse_doubt(splits, inner if splits else top)
    if splits:
        top = [replace(place, role="unread") if place.role == "defects" else place for place in top]
    return top + inner


def _refuse_other_names(category: Path, top: Sequence[Place], inner: Sequence[Place]) -> None:
    """Misplaced for a folder of a known layout that has another name, or lies in a split."""
    for place in [*top, *inner]:
        if place.known_by == "other name":
            masks = f"{place.path} seems to hold masks; move them to {category / 'ground_truth'}/<defect>."
            raise Misplaced(explain_name(place.path) or masks)
    for place in inner:
        if place.role == "masks" and holds_pictures(place.path):
            raise Misplaced(f"{place.path} lies in {place.path.parent.name}/; move it to {category / 'ground_truth'}.")


def _refuse_misplaced(category: Path, splits: Sequence[Place], top: Sequence[Place], inner: Sequence[Place]) -> None:
    """Misplaced for what lies where it would be missed, or taken for something else, in any layout."""
    for place in inner:
        if place.role in SPLITS and holds_pictures(place.path):
            raise Misplaced(f"{place.path} lies in {place.path.parent.name}/; move it to {category / place.role}.")
    for place in top if splits else []:
        if place.role == "normal" or (place.role == "defects" and place.known_by == "key"):
            raise Misplaced(
                f"{place.path} lies beside {splits[0].name}/; move it to {splits[0].path / place.defect}.",
                write_key("ignore", place.relative),
            )
    for split in splits:
        if loose := list_images(split.path):
            raise name_loose(loose[0], split)
    train = [place for place in inner if place.split == "train" and place.role in ("normal", "defects")]
    names = [place.name for place in train if holds_pictures(place.path)]
    if names and not any(place.role == "normal" for place in train):
        raise Misplaced(
            f"{train[0].path.parent} has no good/, but {', '.join(names)}; rename the folder of normal pictures to "
            "good.",
            write_key("normal", train[0].name) if len(train) == 1 else "",
        )


def name_loose(image: Path, place: Place) -> Misplaced:
    """The error for a picture that lies where only folders should."""
    return Misplaced(
        f"{image} lies loose in {place.name}/; move it to the folder of its kind, or remove it (normal pictures belong "
        "in good/).",
        write_key("normal", place.relative) if place.role == "train" else "",
    )


def _refuse_doubt(splits: Sequence[Place], places: Sequence[Place]) -> None:
    """Misplaced where own pictures have two folders for one thing, or one of normal pictures is not known for sure."""
    filled = [place for place in places if place.role in ("normal", "defects") and holds_pictures(place.path)]
    normal = [place for place in filled if place.role == "normal"]
    for role in SPLITS:
        _refuse_second([place for place in splits if place.role == role], f"be {role}/", "ignore")
        _refuse_second([place for place in normal if place.split == role], "hold normal pictures", "normal")
    for place in filled:
        same = next((other for other in normal if other.name == place.name), None)
        if same and place.role == "defects" and place.known_by != "key":
            raise Misplaced(
                f"{same.path} is said to hold normal pictures, but nothing says what {place.path} holds; name both.",
                write_key("normal", place.name),
            )
    unsure = next((place for place in normal if place.known_by == "other name"), None)
    if unsure and len(filled) == len(normal):
        raise Misplaced(
            f"{unsure.path} seems to hold normal pictures, but without defects beside it that is not sure: rename it "
            "to good/.",
            write_key("normal", unsure.name),
        )


def _refuse_second(places: Sequence[Place], what: str, role: str) -> None:
    """Misplaced for two folders of one kind where the profile does not name both; ``role`` is what it may say."""
    if len(places) > 1 and any(place.known_by != "key" for place in places):
        first, second = places[:2]
        raise Misplaced(
            f"{first.path} and {second.path} both seem to {what}; move the pictures of one to the other.",
            write_key(role, *[place.name for place in ([second] if role == "ignore" else places)]),
        )
