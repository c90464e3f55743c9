"""Parts and their pictures: pictures of one part, lot or day are alike, so parts and not pictures are exchangeable.

A promise from pictures counts each as evidence of its own. Where a part was photographed several times that is too
much: references are then drawn, and thresholds set, by part.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse.csgraph import connected_components

from vlmad_lib import InputError
from vlmad_lib.data import csv_files, image_files

COLUMNS = ("picture", "part")
SIDE = 64  # pixels of the square in which pictures are compared
CLOSE = 1 / 5  # of the median distance of two pictures; a second shot of one part lies far below
MOST = 2000  # pictures that are compared, each with each


def read_parts(pictures: Sequence[str], groups: str) -> dict[str, str]:
    """The part, lot or day that each picture shows, by its path.

    ``groups``: a regular expression that is searched in the file's name, of which the first bracketed group (or all
    that matches) names the part; or a CSV with the columns ``picture`` (file name, or the end of the path) and
    ``part``. InputError for one that leaves a picture without a part, by name, and for a wrong expression.
    """
    if Path(groups).suffix.casefold() in (".csv", ".tsv", ".txt"):
        return _from_table(pictures, Path(groups))
    try:
        pattern = re.compile(groups)
    except re.error as error:
        raise InputError(
            f"--groups {groups}: no regular expression ({error}); give one such as '(part\\d+)', or a CSV file with "
            f"the columns {' and '.join(COLUMNS)}."
        ) from None
    parts = {}
    for picture in pictures:
        match = pattern.search(Path(picture).name)
        name = match and match[1 if pattern.groups else 0]
        if not name:
            raise InputError(
                f"--groups {groups} finds no part in the name of {picture}; change it so that it matches every normal "
                f"picture, or give a CSV file with the columns {' and '.join(COLUMNS)}."
            )
        parts[picture] = name
    return parts


def _from_table(pictures: Sequence[str], file: Path) -> dict[str, str]:
    table = csv_files.read_text_table(file, COLUMNS, "give a CSV with a row for every normal picture")
    rows = {
        name.replace("\\", "/").removeprefix("./"): part for name, part in zip(table.picture, table.part, strict=True)
    }
    parts = {}
    for picture in pictures:
        pieces = Path(picture).parts
        ends = ("/".join(pieces[place:]) for place in range(len(pieces)))
        part = next((rows[end] for end in ends if end in rows), "")
        if not part:
            raise InputError(f"{file} has no part for {picture}; add a row with its name.")
        parts[picture] = part
    return parts


def calibration_index(index: pd.DataFrame, parts: dict[str, str], shots: int, seed: int) -> pd.DataFrame:
    """An index for ``run.run`` in which normal pictures are references or tested, never two of one part apart.

    ``shots`` parts are drawn, of each of which one picture becomes a reference; the others of these parts are left
    out, for they would be judged by a picture of themselves. All pictures of the other parts are tested.
    """
    named = index.assign(part=index.image.map(parts)).sample(frac=1, random_state=seed)
    drawn = list(dict.fromkeys(named.part))[:shots]
    references = named[named.part.isin(drawn)].drop_duplicates("part")
    tested = named[~named.part.isin(drawn)].assign(split="test")
    return pd.concat([references, tested] if len(tested) else [references]).drop(columns="part").sort_index()


def largest_by_part(values: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The largest value of each part, (parts,), from those of its pictures, (pictures,): a part fails by its worst."""
    return pd.Series(values).groupby(np.asarray(names)).max().to_numpy()


# ---------------------------------------------------------------- pictures of one part that nobody said are


def find_near_duplicates(pictures: Sequence[str], parts: dict[str, str] | None = None) -> list[list[str]]:
    """Sets of pictures that look like shots of one part, by path; pictures of one known part are none.

    Pictures are compared as 64 x 64 pixels less their mean colour. Two are near-duplicates where their root mean square
    distance is below a fifth of the median distance of all pairs: how alike the pictures of a line are depends on how
    they are taken. At most ``MOST`` pictures are compared.
    """
    pictures = list(pictures)[:MOST]
    if len(pictures) < 3:
        return []
    small = np.stack([_shrink(picture) for picture in pictures])
    squares = (small**2).sum(1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * small @ small.T, 0) / small.shape[1])
    near = distances < max(CLOSE * np.median(distances[np.triu_indices(len(pictures), 1)]), 1e-3)
    if parts:
        names = np.array([parts[picture] for picture in pictures])
        near &= names[:, None] != names
    np.fill_diagonal(near, False)
    count, labels = connected_components(near, directed=False)
    sets = [[pictures[place] for place in np.flatnonzero(labels == label)] for label in range(count)]
    return [group for group in sets if len(group) > 1]


def _shrink(picture: str) -> np.ndarray:
    image = Image.fromarray(np.asarray(image_files.load_image(picture))).resize((SIDE, SIDE), Image.Resampling.BOX)
    values = np.asarray(image, np.float32).reshape(-1, 3)
    return (values - values.mean(0)).ravel()


def warn_of_near_duplicates(pictures: Sequence[str], parts: dict[str, str] | None = None) -> list[str]:
    """A sentence on near-duplicates among normal pictures, with the names of the first; none where there are none."""
    sets = find_near_duplicates(pictures, parts)
    if not sets:
        return []
    first = [Path(picture).name for picture in sets[0][:3]]
    count = f"{len(sets)} {'set' if len(sets) == 1 else 'sets'}"
    compared = f" (of the first {MOST} that were compared)" if len(pictures) > MOST else ""
    remedy = "correct --groups" if parts else "name each picture's part with --groups"
    return [
        f"{sum(map(len, sets))} normal pictures are nearly the same as others ({count}){compared}, such as "
        f"{' and '.join(first)}. If these show one part they are no independent evidence, and the promise holds for "
        f"parts alone: {remedy}, or remove them."
    ]
