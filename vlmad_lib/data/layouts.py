"""Layouts of folders: MVTec AD's, and a person's own, which may be laid out otherwise (``folder_roles``).

What each folder of a category holds is recognised first; then its pictures and masks become rows of an index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vlmad_lib import InputError, tables
from vlmad_lib.config import Folders
from vlmad_lib.data.folder_roles import (
    DEPTH,
    ROLES,
    SPLITS,
    Misplaced,
    Place,
    explain_name,
    is_category,
    list_children,
    list_places,
    map_folders,
    name_loose,
    recognise,
    write_key,
)
from vlmad_lib.data.image_files import is_folder, list_files_below, list_images, subfolders
from vlmad_lib.data.mask_files import find_masks, is_mask_folder, looks_like_mask, pair_masks

# How notes say what a folder is read as.
READ_AS = {
    "normal": "read as the normal pictures",
    "defects": "read as defects",
    "masks": "read as masks",
    "train": "read as train",
    "test": "read as test",
    "ignore": "left out, as 'folders' says",
}
LINES = 12  # of a tree that is shown
NAMES = 4  # that a note lists


# ---------------------------------------------------------------- categories


def find_categories(root: Path, folders: Folders | None = None) -> list[Path]:
    """The categories of a data folder: itself, or those in it.

    Where the splits lie above the categories (own pictures alone), the path is the one that each would have in the
    root; Misplaced for other data.
    """
    inner = subfolders(root)
    if not is_category(root, folders):
        ignored = [path for path in inner if folders and ("ignore" in dict(folders.match(path.name)))]
        return [path for path in inner if path not in ignored and is_category(path, folders)]
    splits = [place for place in list_places(map_folders(root), folders) if place.role in SPLITS]
    below = {p: place for place in splits for p in subfolders(place.path)}
    lower = [p for p in below if p.name != "good" and _has_normal(p, folders)]
    if not lower:
        return [root]
    loose = any(list_images(path, unread=True) for path in [*below, *(place.path for place in splits)])
    names = sorted({path.name for path in below})
    if folders is None or loose or set(names) & {path.name for path in inner} or any(map(is_mask_folder, below)):
        category, split = lower[0], below[lower[0]]
        raise Misplaced(
            f"{category / 'good'} lies below the split; the category comes first: move it to "
            f"{root / category.name / split.name / 'good'}, and all of {split.name}/ likewise."
        )
    return [root / name for name in names]


def _has_normal(folder: Path, folders: Folders | None) -> bool:
    if folders is None:
        return is_folder(folder / "good")
    return any(place.role == "normal" for place in list_places(map_folders(folder), folders))


def refuse_unmatched(root: Path, categories: Sequence[Path], folders: Folders) -> None:
    """Misplaced for an entry of the profile's ``folders`` that names no folder of any category."""
    if folders == Folders():
        return
    matched = {entry for path in subfolders(root) for entry in folders.match(path.name) if entry[0] == "ignore"}
    for category in categories or [root, *subfolders(root)]:
        paths = list(_list_paths(list_children(category)))
        matched |= {entry for path in paths for entry in folders.match(path)}
    for role, patterns in folders:
        for pattern in patterns:
            if (role, pattern) not in matched:
                raise Misplaced(
                    f"'folders' has {pattern!r} in {role}, which names no folder in {root}; correct it.", None
                )


def _list_paths(children: Mapping[str, Path], above: str = "", depth: int = DEPTH) -> Iterator[str]:
    for name, path in children.items():
        yield above + name
        if depth:
            yield from _list_paths(map_folders(path), f"{above}{name}/", depth - 1)


# ---------------------------------------------------------------- rows


def read_categories(
    categories: Sequence[Path], cache: Path, all_masked: bool, folders: Folders | None = None
) -> tuple[list[tuple], list[str]]:
    """Rows of an index (category, split, defect, labels, image, mask) from folders of categories, and notes.

    ``folders``: of own pictures, what the profile says of them; folders of other names are read too. InputError for a
    mask without its image, for images without a mask where the data set has them all, and for what lies where it would
    be missed or taken for something else.
    """
    rows, notes, readings = [], [], {}
    for category in categories:
        places = recognise(category, folders)
        category_rows, more = _read_places(category, places, cache, folders)
        rows += category_rows
        notes += more
        for role in READ_AS:
            named = tuple(f"{p.relative}/" for p in places if p.role == role and p.known_by in ("key", "other name"))
            if folders is not None and named:
                readings.setdefault((named, role), []).append(category.name)
        if folders is not None and category_rows and not any(row[1] == "test" for row in category_rows):
            raise Misplaced(f"{category} has no test images; add test/good and test/<defect>.")
        notes += _note_bare(category, category_rows, "ground_truth", all_masked)
    read = [
        f"{_shorten(names)}: {_shorten(named)} {'is' if len(named) == 1 else 'are'} {_say_reading(named, role)}."
        for (named, role), names in readings.items()
    ]
    return rows, read + notes


def read_splits(category: Path, splits: Mapping[str, str], masks: str, cache: Path) -> tuple[list[tuple], list[str]]:
    """Rows of a category as ``read_categories`` gives them, where its splits lie in folders of known other names.

    ``splits`` has the folder of each split, ``masks`` is that of the masks; both are below the category, and the masks'
    may be in a split's. InputError for defective test images without a mask and for masks without their image.
    """
    places = [
        Place(path, f"{folder}/{path.name}", "normal" if path.name == "good" else "defects", "name", split)
        for split, folder in splits.items()
        for path in (subfolders(category / folder) if is_folder(category / folder) else [])
        if path != category / masks
    ]
    if is_folder(category / masks):
        places.append(Place(category / masks, masks, "masks", "name", "test"))
    rows, notes = _read_places(category, places, cache, None)
    return rows, notes + _note_bare(category, rows, masks, all_masked=True)


def _note_bare(category: Path, rows: Sequence[tuple], masks: str, all_masked: bool) -> list[str]:
    """A note on a category's defective test images without a mask; InputError where all have one."""
    bare = [row for row in rows if row[1] == "test" and row[2] != "good" and not row[5]]
    if bare and all_masked:
        raise InputError(f"The image {bare[0][4]} has no mask in {category / masks}; add it.")
    return [f"{category.name}: {len(bare)} anomalous images have no mask; pixel metrics leave them out."] * bool(bare)


def _say_reading(named: Sequence[str], role: str) -> str:
    """What folders are read as; of the normal pictures with the names that stand for ``good``."""
    if role != "normal":
        return READ_AS[role]
    own = dict.fromkeys(repr(path.rstrip("/").rpartition("/")[2]) for path in named)
    return f"{READ_AS[role]}: {tables.join_words(list(own))} {'stands' if len(own) == 1 else 'stand'} for 'good'"


def _shorten(names: Sequence[str]) -> str:
    """A list of names in a sentence, the first of them where they are many."""
    return tables.join_words(names if len(names) <= NAMES else [*names[:NAMES], f"{len(names) - NAMES} more"])


def label_names(defect: str) -> str:
    """The defect names of an image in the folder of one kind; none for good ones."""
    return "" if defect == "good" else defect


def _read_places(
    category: Path, places: Sequence[Place], cache: Path, folders: Folders | None
) -> tuple[list[tuple], list[str]]:
    """The rows of a category whose folders are recognised, and notes on its masks."""
    notes, masks, merged, inner, beside = [], {}, 0, {}, 0
    images: dict[Place, list[Path]] = {}
    for place in places:
        if place.role in ("normal", "defects"):
            images[place], paired, inner[place] = _read_pictures(place, folders)
            masks |= paired
            beside += len(paired)
    if beside:
        first = next(iter(masks.values()))
        count = f"{beside} masks lie" if beside > 1 else "1 mask lies"
        notes.append(f"{category.name}: {count} beside the pictures, such as {first.parent.name}/{first.name}.")
    for place in places:
        of = {p: listed for p, listed in images.items() if p.split == place.split}
        if place.role == "masks":
            found = [_pair_folder(place, of, cache, folders)]
        else:
            found = [_pair_flat(lower, {place: images[place]}, cache) for lower in inner.get(place, [])]
            notes += [f"{category.name}: {lower.relative}/ is {READ_AS['masks']}." for lower in inner.get(place, [])]
        for pairs, several, remarks in found:
            for image, mask in pairs.items():
                if (other := masks.setdefault(image, mask)) != mask:
                    raise InputError(f"{other} and {mask} are masks of one image; remove one of them.")
            merged += several
            notes += [f"{category.name}: {remark}" for remark in remarks]
    if merged:
        notes.append(f"{category.name}: images with several masks: {merged}; what any of them marks is defect.")
    rows = [
        (category.name, place.split, place.defect, label_names(place.defect), str(image), str(masks.get(image, "")))
        for place, listed in images.items()
        for image in listed
    ]
    return rows, _left_out(category, places) + notes


def _read_pictures(place: Place, folders: Folders | None) -> tuple[list[Path], dict[Path, Path], list[Place]]:
    """The images of one kind, the masks that lie beside them by image, and folders of masks below.

    Misplaced for what may be a mask or not, or has no image, and for pictures in other folders below. Only of own
    pictures masks may lie here.
    """
    images, beside, lower = list_images(place.path), {}, []
    for mask, picture in find_masks(images):
        if folders is None or picture is None or not looks_like_mask(mask):
            whose = f" of {picture.name}" if picture else ""
            raise Misplaced(f"{mask} seems to be a mask{whose}; move it to ground_truth/{place.name}.")
        if picture in beside:
            raise InputError(f"{beside[picture]} and {mask} are masks of one image; remove one of them.")
        beside[picture] = mask
    for inner in list_places(map_folders(place.path), folders, f"{place.relative}/", place.split):
        if folders is not None and inner.role == "masks":
            lower.append(inner)
        elif inner.role != "ignore" and (deeper := list_files_below(inner.path, unread=True)):
            raise Misplaced(
                f"{deeper[0]} lies in a folder below {place.path}; move it up, or out.",
                write_key("ignore", inner.relative),
            )
    taken = set(beside.values())
    return [image for image in images if image not in taken], beside, lower


Pairs = tuple[dict[Path, Path], int, list[str]]


def _pair_folder(place: Place, images: Mapping[Place, Sequence[Path]], cache: Path, folders: Folders | None) -> Pairs:
    """The masks of a folder by image, how many were merged, and remarks: in a folder for each defect, or in itself."""
    kinds: dict[str, list[Path]] = {}
    for kind, listed in images.items():
        for name in {kind.name, kind.defect}:
            kinds[name] = [*kinds.get(name, []), *listed]
    if folders is not None and not any(folder.name in kinds for folder in subfolders(place.path)):
        return _pair_flat(place, images, cache)
    if loose := list_images(place.path):
        raise name_loose(loose[0], place)
    _refuse_no_masks(place)
    pairs, merged, remarks = {}, 0, []
    for folder in subfolders(place.path):
        by_stem = {image.stem: image for image in reversed(kinds.get(folder.name, []))}
        paired, several = pair_masks(folder, by_stem, cache)
        pairs |= {by_stem[stem]: mask for stem, mask in paired.items()}
        merged += several
        remarks += _note_no_masks(folder, f"{place.relative}/{folder.name}/") if by_stem and not paired else []
    return pairs, merged, remarks


def _note_no_masks(folder: Path, shown: str) -> list[str]:
    """A note on what a folder of masks holds in their place."""
    others = [path.name for path in folder.iterdir() if path.name[0] != "."]
    return [f"{shown} has no pictures, but {min(others)}; save masks as PNG."] if others else []


def _pair_flat(place: Place, images: Mapping[Place, Sequence[Path]], cache: Path) -> Pairs:
    """As ``_pair_folder``, of masks that lie in one folder for all kinds: a name may be that of one image alone.

    Of a normal and a defective image of one name the mask is the defective one's.
    """
    _refuse_no_masks(place)
    by_stem: dict[str, list[Path]] = {}
    for kind in sorted(images, key=lambda kind: kind.role == "normal"):
        for image in images[kind]:
            others = by_stem.setdefault(image.stem, [])
            if kind.role != "normal" or not others:
                others.append(image)
    paired, merged = pair_masks(place.path, by_stem, cache)
    for stem, mask in paired.items():
        if len(several := by_stem[stem]) > 1:
            raise Misplaced(
                f"{mask} may be the mask of {several[0]} or of {several[1]}; move masks to a folder for each defect, "
                f"{place.relative}/<defect>."
            )
    remarks = _note_no_masks(place.path, f"{place.relative}/") if by_stem and not paired else []
    return {by_stem[stem][0]: mask for stem, mask in paired.items()}, merged, remarks


def _refuse_no_masks(place: Place) -> None:
    """Misplaced where a folder that has another name for masks holds what looks like pictures."""
    if place.known_by == "other name":
        for file in list_files_below(place.path)[:3]:
            if not looks_like_mask(file):
                raise Misplaced(
                    f"{place.path} seems to hold masks, but {file} looks like a picture; rename that folder, to "
                    "ground_truth if these are masks.",
                    write_key("defects", place.relative),
                )


def _left_out(category: Path, places: Sequence[Place]) -> list[str]:
    """Notes on pictures of a category that nothing reads."""
    notes, loose = [], list_images(category) if is_folder(category) else []
    if loose:
        beside = "test/" if any(place.role in SPLITS for place in places) else "good/"
        notes.append(f"{category.name}: {len(loose)} pictures lie loose beside {beside}; they are left out.")
    for place in places:
        if place.role == "unread" and (pictures := list_files_below(place.path, unread=True)):
            notes.append(f"{category.name}: {place.relative}/ is not read; pictures left out: {len(pictures)}.")
    train = [place for place in places if place.split == "train" and place.role == "defects"]
    if train and (pictures := [image for place in train for image in list_images(place.path)]):
        shown = ", ".join(f"{place.relative}/" for place in train[:3])
        notes.append(f"{category.name}: defective train images, which are not tested: {len(pictures)} ({shown}).")
    return notes


# ---------------------------------------------------------------- what is said of other layouts


def explain(folder: Path, folders: Folders | None = None) -> str:
    """One sentence on what a folder without a category has in its place: the folder that is there and that wanted.

    Empty where there is nothing to say.
    """
    misnamed = filter(None, map(explain_misnamed, [folder, *subfolders(folder)]))
    return next(misnamed, "") or explain_depth(folder, folders) or _explain_no_good(folder, folders)


def explain_misnamed(folder: Path) -> str:
    """A sentence on the first folder in another that has another name for one of the layout's; empty for none."""
    inner = [path for path in subfolders(folder) if path.name not in ROLES and list_files_below(path)]
    tests = [path for path in inner if path.name.casefold().startswith("test")]
    if sentence := next(filter(None, map(explain_name, inner)), ""):
        return sentence
    if tests and not is_folder(folder / "test"):
        whole = next((path for path in tests if is_folder(path / "good")), tests[0])
        masks = f", and move {whole.name}/ground_truth out to ground_truth" * is_folder(whole / "ground_truth")
        return f"{whole} is there, but test/good and test/<defect> are wanted: rename it to test{masks}."
    return ""


def explain_depth(folder: Path, folders: Folders | None = None) -> str:
    """A sentence on a folder that lies above the one of the categories; empty where it does not."""
    for path in subfolders(folder):
        lower = [inner.name for inner in subfolders(path) if is_category(inner, folders)]
        if lower and not is_category(path, folders):
            return f"{path} holds the categories ({', '.join(lower[:3])}, with good/ in them): set 'root' to it."
    return ""


def _explain_no_good(folder: Path, folders: Folders | None) -> str:
    """A sentence on a folder that has no normal pictures under any name known."""
    for path in [folder, *subfolders(folder)]:
        names = [f"{inner.name}/" for inner in subfolders(path) if list_images(inner, unread=True)]
        if names and not is_category(path, folders):
            shown = " and ".join(names) if len(names) < 4 else f"{', '.join(names[:3])} and others"
            return f"{path} has no good/, but {shown}: rename the folder of normal pictures to good/."
    return ""


def describe_layout(error: Misplaced, root: Path) -> str:
    """A sentence on own pictures that are laid out in no way that is read, the key that may say it, and two trees.

    The tree that is there, with the number of pictures in each folder, and the one that is wanted.
    """
    key = error.key or "normal: [...], defects: [...], masks: [...], ignore: [...]"
    hint = "" if error.key is None else f" Or say in the profile which folder is what, 'folders: {{{key}}}'."
    lines = list(_draw_tree(root)) or ["  no folder"]
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], f"  ... and {len(lines) - LINES + 1} more folders"]
    wanted = [
        "Wanted, there or in a folder for each category:",
        "  good/ (or train/good/ and test/good/): normal pictures",
        "  <defect>/ (or test/<defect>/): those of one kind of defect",
        "  ground_truth/<defect>/: masks, if any, under the names of the pictures",
    ]
    return "\n".join([f"{error}{hint}", f"There is, in {root}:", *lines, *wanted])


def _draw_tree(folder: Path, depth: int = 1) -> Iterator[str]:
    """A line for each folder below another, with the number of its pictures."""
    for path in subfolders(folder):
        count = len(list_images(path, unread=True))
        counted = f": {tables.format_count(count, 'picture', 'pictures')}" if count else ""
        yield f"{'  ' * depth}{path.name}/{counted}"
        if depth <= DEPTH and not path.is_symlink():
            yield from _draw_tree(path, depth + 1)
