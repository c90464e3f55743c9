"""Folders of pictures: MVTec AD's layout, and a person's own; what lies elsewhere is refused or told, never guessed.

Only a folder named ``good`` holds normal pictures. One that has another name for them is refused with the remedy: as
the name of a defect it would turn every figure round.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vlmad_lib import InputError
from vlmad_lib.data.image_files import is_folder, list_files_below, list_images, subfolders
from vlmad_lib.data.mask_files import find_masks, is_mask_folder, pair_masks

NAMED = ("good", "train", "test", "ground_truth")  # folders of the layouts
# What others call the folder of normal pictures, letters alone and without the words of ``_FILLING``.
GOOD_NAMES = {
    *("good", "goods", "ok", "okay", "normal", "normals", "free", "defectfree", "faultless", "healthy", "intact"),
    *("nodefect", "nodefects", "nondefective", "notdefective", "nonanomalous", "undamaged", "pass", "passed"),
    *("gut", "io", "bon", "bueno", "buono", "正常", "良品"),
}
_FILLING = {"parts", "part", "images", "image", "pictures", "imgs", "img", "samples", "front", "side", "top", "mt"}


def is_good_name(name: str) -> bool:
    """Whether a folder's name says beyond doubt that its pictures are normal: ok, Normal, defect-free, ok_front."""
    words = re.findall(r"[^\W\d_]+", name.casefold())
    return "".join(word for word in words if word not in _FILLING) in GOOD_NAMES


def is_category(folder: Path) -> bool:
    """Whether a folder has one of those that make a category."""
    return any(is_folder(folder / name) for name in ("test", "train", "good"))


def find_categories(root: Path) -> list[Path]:
    """The categories of a data folder: itself, or those in it; InputError where the split lies above them."""
    inner = subfolders(root)
    if not is_category(root):
        return [path for path in inner if is_category(path)]
    for split in (path for path in inner if path.name in ("train", "test")):
        for category in subfolders(split):
            if category.name != "good" and is_folder(category / "good"):
                raise InputError(
                    f"{category / 'good'} lies below the split; the category comes first: move it to "
                    f"{root / category.name / split.name / 'good'}, and all of {split.name}/ likewise."
                )
    return [root]


def read_categories(categories: Sequence[Path], cache: Path, all_masked: bool) -> tuple[list[tuple], list[str]]:
    """Rows of an index (category, split, defect, labels, image, mask) from folders of categories, and notes.

    InputError for a mask without its image, for images without a mask where the data set has them all, and for what
    lies where it would be missed or taken for something else.
    """
    rows, notes = [], []
    for category in categories:
        splits = [path for path in subfolders(category) if path.name in ("train", "test")]
        splits.sort(key=lambda path: path.name, reverse=True)  # train first
        _refuse_misplaced(category, splits)
        notes += _left_out(category, splits)
        defects = [("test", path) for path in subfolders(category) if path.name != "ground_truth"]
        if splits:
            defects = [(split.name, path) for split in splits for path in subfolders(split)]
        images = {(split, path.name): _defect_images(path) for split, path in defects}
        category_rows, more = _list_rows(category, images, category / "ground_truth", cache, all_masked)
        rows += category_rows
        notes += more
    return rows, notes


def read_splits(category: Path, splits: dict[str, str], masks: str, cache: Path) -> tuple[list[tuple], list[str]]:
    """Rows of a category as ``read_categories`` gives them, where its splits lie in folders of other names.

    ``splits`` has the folder of each split, ``masks`` is that of the masks; both are below the category, and the masks'
    may be in a split's. InputError for defective test images without a mask and for masks without their image.
    """
    images = {
        (split, path.name): _defect_images(path)
        for split, folder in splits.items()
        for path in (subfolders(category / folder) if is_folder(category / folder) else [])
        if path != category / masks
    }
    return _list_rows(category, images, category / masks, cache, all_masked=True)


def _list_rows(
    category: Path, images: dict[tuple[str, str], list[Path]], masks: Path, cache: Path, all_masked: bool
) -> tuple[list[tuple], list[str]]:
    """Rows of a category's images by split and defect, with the masks of a folder, and notes."""
    paired, notes = _masks(category, images, masks, cache)
    rows = [
        (category.name, split, defect, label_names(defect), str(image), str(paired.get((split, defect, image), "")))
        for (split, defect), pictures in images.items()
        for image in pictures
    ]
    bare = [row for row in rows if row[1] == "test" and row[2] != "good" and not row[5]]
    if bare and all_masked:
        raise InputError(f"The image {bare[0][4]} has no mask in {masks}; add it.")
    if bare:
        notes.append(f"{category.name}: {len(bare)} anomalous images have no mask; pixel metrics leave them out.")
    return rows, notes


def label_names(defect: str) -> str:
    """The defect names of an image in the folder of one kind; none for good ones."""
    return "" if defect == "good" else defect


# ---------------------------------------------------------------- what is left out, or out of place


def explain(folder: Path) -> str:
    """One sentence on what a folder without a category has in its place: the folder that is there and that wanted.

    Empty where there is nothing to say.
    """
    misnamed = filter(None, map(explain_misnamed, [folder, *subfolders(folder)]))
    return next(misnamed, "") or _explain_depth(folder)


def explain_misnamed(folder: Path) -> str:
    """A sentence on the first folder in another that has another name for one of the layout's; empty for none."""
    inner = [path for path in subfolders(folder) if path.name not in NAMED and list_files_below(path)]
    tests = [path for path in inner if path.name.casefold().startswith("test")]
    if sentence := next(filter(None, map(explain_name, inner)), ""):
        return sentence
    if tests and not is_folder(folder / "test"):
        whole = next((path for path in tests if is_folder(path / "good")), tests[0])
        masks = f", and move {whole.name}/ground_truth out to ground_truth" * is_folder(whole / "ground_truth")
        return f"{whole} is there, but test/good and test/<defect> are wanted: rename it to test{masks}."
    return ""


def explain_name(folder: Path) -> str:
    """A sentence on a folder whose name is another for one of the layout's; empty where it is not."""
    usual = folder.name.casefold()
    if usual in NAMED and folder.name != usual:
        normal = "" if usual == "good" else "; normal pictures belong in train/good and test/good"
        return f"{folder} is not spelt {usual!r}: rename it{normal}."
    if folder.name not in NAMED and is_good_name(folder.name):
        return f"{folder} seems to hold normal pictures: rename it to good/."
    return ""


def _explain_depth(folder: Path) -> str:
    """A sentence on a folder that has no normal pictures under any name known: set the root lower, or say which."""
    for path in subfolders(folder):
        if (lower := [one.name for one in subfolders(path) if is_category(one)]) and not is_category(path):
            return f"{path} holds the categories ({', '.join(lower[:3])}, with good/ in them): set 'root' to it."
    for path in [folder, *subfolders(folder)]:
        names = [f"{one.name}/" for one in subfolders(path) if list_files_below(one)]
        if names and not is_category(path):
            shown = " and ".join(names) if len(names) < 4 else f"{', '.join(names[:3])} and others"
            return f"{path} has no good/, but {shown}: rename the folder of normal pictures to good/."
    return ""


def _left_out(category: Path, splits: Sequence[Path]) -> list[str]:
    """Notes on pictures of a category that nothing reads."""
    notes, loose = [], list_images(category)
    if loose and not splits:
        notes.append(f"{category.name}: {len(loose)} pictures lie loose beside good/; they are left out.")
    for path in subfolders(category) if splits else []:
        if path.name not in NAMED and (pictures := list_files_below(path)):
            notes.append(f"{category.name}: {path.name}/ is not read; pictures left out: {len(pictures)}.")
    for split in splits:
        defects = [path for path in subfolders(split) if path.name != "good"] if split.name == "train" else []
        if defects and (pictures := [image for path in defects for image in list_files_below(path)]):
            shown = ", ".join(f"train/{path.name}/" for path in defects[:3])
            notes.append(f"{category.name}: defective train images, which are not tested: {len(pictures)} ({shown}).")
    return notes


def _refuse_misplaced(category: Path, splits: Sequence[Path]) -> None:
    """InputError for what lies where it would be missed, or taken for something else."""
    for folder in [*subfolders(category), *(path for split in splits for path in subfolders(split))]:
        usual = folder.name.casefold()
        if usual in NAMED and folder.name != usual:
            raise InputError(f"{folder} is not spelt {usual!r}; rename it.")
        if folder.parent != category and usual in NAMED[1:] and list_files_below(folder):
            raise InputError(f"{folder} lies in {folder.parent.name}/; move it to {category / usual}.")
        if folder.name not in NAMED and is_good_name(folder.name) and list_files_below(folder):
            place = category / "train" / "good" if splits and folder.parent == category else folder.parent / "good"
            to = "move them to" if is_folder(place) or place.parent != folder.parent else "rename it to"
            raise InputError(
                f"{folder} seems to hold normal pictures: {to} {place}, or, if they show a defect, name the folder so."
            )
        if folder.name not in NAMED and is_mask_folder(folder):
            raise InputError(f"{folder} seems to hold masks; move them to {category / 'ground_truth'}/<defect>.")
    if splits and is_folder(category / "good"):
        raise InputError(
            f"{category / 'good'} lies beside {splits[0].name}/; move it to {category / 'train' / 'good'}."
        )
    for folder in [*splits, category / "ground_truth"]:
        if is_folder(folder) and (loose := list_images(folder)):
            raise InputError(
                f"{loose[0]} lies loose in {folder.name}/; move it to the folder of its kind, or remove it "
                "(normal pictures belong in good/)."
            )
    train = next((split for split in splits if split.name == "train"), None)
    if (
        train
        and not is_folder(train / "good")
        and (names := [path.name for path in subfolders(train) if list_files_below(path)])
    ):
        raise InputError(f"{train} has no good/, but {', '.join(names)}; rename the folder of normal pictures to good.")


def _defect_images(folder: Path) -> list[Path]:
    """The images of one kind of defect; InputError for masks among them, and for pictures in folders below."""
    images = list_images(folder)
    for mask, picture in find_masks(images):
        whose = f" of {picture.name}" if picture else ""
        raise InputError(f"{mask} seems to be a mask{whose}; move it to ground_truth/{folder.name}.")
    deeper = next((path for inner in subfolders(folder) for path in list_files_below(inner)), None)
    if deeper:
        raise InputError(f"{deeper} lies in a folder below {folder}; move it up, or out.")
    return images


def _masks(
    category: Path, images: dict[tuple[str, str], list[Path]], folder: Path, cache: Path
) -> tuple[dict[tuple[str, str, Path], Path], list[str]]:
    """The masks of a category's test images in a folder by split, defect and image, and notes on them."""
    masks, notes, merged = {}, [], 0
    for kind in subfolders(folder) if is_folder(folder) else []:
        by_stem = {image.stem: image for image in reversed(images.get(("test", kind.name), []))}
        pairs, several = pair_masks(kind, by_stem, cache)
        masks |= {("test", kind.name, by_stem[stem]): mask for stem, mask in pairs.items()}
        merged += several
        if by_stem and not pairs and (others := [path.name for path in kind.iterdir() if path.name[0] != "."]):
            place = f"{folder.relative_to(category)}/{kind.name}/"
            notes.append(f"{category.name}: {place} has no pictures, but {min(others)}; save masks as PNG.")
    if merged:
        notes.append(f"{category.name}: images with several masks: {merged}; what any of them marks is defect.")
    return masks, notes
