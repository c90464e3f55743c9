"""``images.html``: every test picture of a report, with its scores, its mask and its maps.

A reader sorts and filters the pictures, moves the threshold, and sets two methods side by side. The page is one file:
pictures and maps stand in it as text, a part for each category, which the browser unpacks when it is first shown.
Pictures and maps shrink where there are many, so that the page stays readable in size (``PICTURE_BYTES``,
``MAP_BYTES``). Of more than ``MOST`` images only the most telling have a picture; all are counted.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from PIL import Image

from vlmad_lib import files, tables
from vlmad_lib.analysis import by_defect
from vlmad_lib.data import image_files, mask_files
from vlmad_lib.evaluation import metrics
from vlmad_lib.pipeline.results import Results
from vlmad_lib.reporting import pages

if TYPE_CHECKING:
    from vlmad_lib.reporting.report import Report

# Images that have a picture, at most.
MOST = 3000
# About how many bytes all pictures of a page take, all maps, and all masks; as text in the page a third more.
PICTURE_BYTES, MAP_BYTES, MASK_BYTES = 3e6, 1.5e6, 0.5e6
# The longer side of a picture in pixels: at least and at most; a pixel takes about a quarter of a byte as WebP.
SIDES, BYTES_A_PIXEL = (40, 128), 0.25
# The cells of a map along one side, at least and at most.
CELLS = (6, 16)
# Cells of a mask along one side, at least and at most.
MASK_CELLS = (32, 64)


def write_page(report: Report, results: Results) -> None:
    """Write ``images.html`` into the folder of a report."""
    content = collect_images(results)
    parts = [_dump(part) for part in content.pop("parts")]
    index = _dump(content)
    text = pages.render_template(report.record(), "images.html.j2", "images.js", index=index, parts=parts)
    files.replace_file(report.folder / pages.IMAGES, lambda path: path.write_text(text, encoding="utf-8"))


def _dump(content: dict[str, Any]) -> str:
    """JSON that can stand in a script element whatever folders are called."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def collect_images(results: Results) -> dict[str, Any]:
    """What the page holds, JSON-ready.

    ``methods``: a name a method and number of references, the first draw. ``images``: a row an image with its place
    in ``categories``, its label (1 defective), defect, class, level of contrast and name. ``scores``: by method, one
    an image, none where it has no score. ``parts``: by category, the pictures as base64 WebP, the masks as packed
    bits, and by method the maps as bytes (cells x cells), scaled from the lowest to the highest value of the category;
    all empty for images that have no picture here. ``pictures``: how many have one.
    """
    scores = tables.select_first_draws(results.scores)
    scores = scores.assign(
        name=tables.name_rows(scores), defect_class=by_defect.classify_defects(scores, results.profile)
    )
    methods, categories = list(dict.fromkeys(scores.name)), tables.order_categories(scores)
    measures = by_defect.measure_defects(results)
    level = by_defect.assign_levels(measures, limits=results.profile.contrast_limits) if len(measures) else []
    levels = dict(zip(measures.image, level, strict=True)) if len(measures) else {}
    places = {name: place for place, name in enumerate(categories)}
    images = scores.drop_duplicates("image").assign(place=lambda rows: rows.category.map(places))
    images = images.sort_values(["place", "label", "defect", "image"], kind="stable")
    drawn_images = choose_images(scores)
    side = _choose_side(PICTURE_BYTES / BYTES_A_PIXEL / len(drawn_images), SIDES)
    cells = _choose_side(MAP_BYTES / len(drawn_images) / len(methods), CELLS)
    mask_cells = _choose_side(MASK_BYTES * 8 / len(drawn_images), MASK_CELLS)
    rows = [
        {
            "category": row.place,
            "label": row.label,
            "defect": row.defect,
            "class": row.defect_class,
            "level": levels.get(row.image) if isinstance(levels.get(row.image), str) else "",
            "name": "/".join(Path(row.image).parts[-2:]),
        }
        for row in images.itertuples()
    ]
    by_method = {name: table.set_index("image") for name, table in scores.groupby("name")}
    drawn = {name: _draw_maps(results, rows[rows.index.isin(drawn_images)], cells) for name, rows in by_method.items()}
    packed = iter(
        Parallel(n_jobs=results.profile.processes, prefer="threads")(
            delayed(_pack_picture)(row.image, row.mask, side, mask_cells)
            for row in images.itertuples()
            if row.image in drawn_images
        )
    )
    parts: list[dict[str, list]] = [{"pictures": [], "masks": [], "maps": [[] for _ in methods]} for _ in categories]
    for row in images.itertuples():
        picture, mask = next(packed) if row.image in drawn_images else ("", "")
        parts[row.place]["pictures"].append(picture)
        parts[row.place]["masks"].append(mask)
        for number, name in enumerate(methods):
            parts[row.place]["maps"][number].append(drawn[name].get(row.image, ""))
    listed = [by_method[name].score.reindex(images.image).round(5) for name in methods]
    return {
        "methods": methods,
        "categories": categories,
        "cells": cells,
        "maskCells": mask_cells,
        "images": rows,
        "pictures": len(drawn_images),
        "scores": [[None if pd.isna(value) else value for value in column] for column in listed],
        "parts": parts,
    }


def choose_images(scores: pd.DataFrame, most: int = MOST) -> set[str]:
    """The images of a scores table, with ``name``, that are shown: all, or ``most`` that tell most of the methods.

    Those are in each category the good ones that a method scores highest and the defective ones that it scores lowest,
    the farthest out first.
    """
    wrong = scores.score.where(scores.label == 0, -scores.score)
    places = wrong.groupby([scores.name, scores.category, scores.label]).rank(method="first", ascending=False)
    return set(places.groupby(scores.image).min().nsmallest(most, keep="first").index)


def _choose_side(area: float, limits: tuple[int, int]) -> int:
    """The side of a square of at most so large an area, within the limits."""
    return int(np.clip(np.sqrt(area), *limits))


def _pack_picture(image: str, mask: str, side: int, mask_cells: int) -> tuple[str, str]:
    """A picture whose longer side has at most ``side`` pixels, and its mask's cells, both as base64 text."""
    picture = image_files.load_image(image)
    picture.thumbnail((side, side), Image.Resampling.BOX)
    stream = io.BytesIO()
    picture.save(stream, "webp", quality=70)  # of a small JPEG half is its head
    if not mask:
        return _encode(stream.getvalue()), ""
    drawn = Image.fromarray(mask_files.load_mask(mask).astype(np.uint8) * 255)
    covered = np.asarray(drawn.resize((mask_cells, mask_cells), Image.Resampling.BOX)) > 0
    return _encode(stream.getvalue()), _encode(np.packbits(covered).tobytes())


def _draw_maps(results: Results, rows: pd.DataFrame, cells: int) -> dict[str, str]:
    """The maps of one method by image, as bytes of its category's scale; none where it has no maps."""
    drawn = {}
    rows = rows[rows.map_file != ""].reset_index()
    for _, own in rows.groupby("category", sort=False):
        maps = np.stack(_shrink_maps(results, own, cells))
        low, high = maps.min(), maps.max()
        levels = np.round((maps - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
        drawn |= {image: _encode(level.tobytes()) for image, level in zip(own.image, levels, strict=True)}
    return drawn


def _shrink_maps(results: Results, rows: pd.DataFrame, cells: int) -> list[np.ndarray]:
    """Maps (cells, cells) of whole images; that of one tile is the grid itself, several are joined first."""
    shrunk, facts = [], rows[["width", "height", "fit", "sigma"]]
    for tiles, inside, (_, row) in zip(results.maps(rows), results.inside(rows), facts.iterrows(), strict=True):
        size = results.profile.evaluation_size
        whole = tiles[0]
        if len(tiles) > 1 or inside is not None:
            whole = metrics.framed_map(tiles, row.width, row.height, row.fit, size, row.sigma)
        if inside is not None:  # outside a region of interest as in ``Results.framed``
            whole = np.where(inside, whole, whole[inside].min())
        resized = Image.fromarray(np.asarray(whole, np.float32)).resize((cells, cells), Image.Resampling.BOX)
        shrunk.append(np.asarray(resized))
    return shrunk


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode()
