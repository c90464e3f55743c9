"""Units: one variant of one method on one category, kept under a digest of everything that decides its numbers.

A unit's folder holds ``scores.npy``, ``maps.npy`` where the method has maps (``metrics`` says in which form), and
``unit.json``: what the images of the index do not say of its rows. The tables of a run are put together from its units.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vlmad_lib import digests, files
from vlmad_lib.config import Profile
from vlmad_lib.data import mask_files, regions
from vlmad_lib.data.dataset_classes import DATASETS
from vlmad_lib.evaluation import metrics, pixel_ranking, statistics
from vlmad_lib.methods import SETTINGS
from vlmad_lib.pipeline.results import KEYS, METRICS, SHARES, describe_scores

# By image and fit, its mask at the evaluation frame; None where a defective image has none: no pixels to count.
Masks = dict[tuple[str, str], pixel_ranking.Regions | None]


@dataclass(frozen=True)
class Tested:
    """Rows of an index, all of one category, and a digest of them and of what their images and masks hold."""

    rows: pd.DataFrame
    key: str


def list_read_files(profile: Profile, rows: pd.DataFrame) -> list[str]:
    """The images and masks of index rows, and what else their data set reads for their metrics."""
    regions = [file for image in rows.image for file in DATASETS[profile.dataset].list_region_files(image)]
    return [*rows.image, *rows["mask"], *regions]


def describe_tested(profile: Profile, rows: pd.DataFrame) -> Tested:
    """Index rows with what identifies them, wherever their images and masks lie."""
    pixels = digests.digest_files(list_read_files(profile, rows), profile.path(profile.cache))
    described = rows.drop(columns=["image", "mask"]).to_csv(index=False)
    return Tested(rows.drop(columns="split"), digests.digest(described, pixels))


@dataclass(frozen=True)
class Unit:
    """A unit's folder, its rows, the columns that name its variant, and the files of its references."""

    place: Path
    tested: Tested
    columns: dict[str, Any]
    references: Sequence[str] = ()

    @property
    def rows(self) -> pd.DataFrame:
        """The index rows of its images."""
        return self.tested.rows


def locate_unit(
    profile: Profile, code: str, on: Tested, columns: dict[str, Any], references: Sequence[str] = (), more: Any = ""
) -> Unit:
    """The unit of a variant's columns on tested rows; ``code`` and ``more``: what else decides its numbers."""
    cache = profile.path(profile.cache)
    drawn = digests.digest_files(references, cache)
    measures = profile.evaluation_size, profile.fpr_limit, profile.pixel_metrics
    key = digests.digest(columns, on.key, drawn, more, *measures, code)
    return Unit(cache / "units" / key, on, columns, references)


def write_unit(
    profile: Profile, unit: Unit, scores: np.ndarray, maps: np.ndarray | None, tiles: Sequence[int], masks: Masks,
    device: str = "",
) -> None:  # fmt: skip
    """Keep a unit's image scores (N,), maps or stacks (sum of tiles, ...) and metrics, complete or not at all.

    ``masks`` are read once for all units that share the dictionary. ``device``, in words, computed the scores.
    """
    rows = unit.rows
    named = {key: unit.columns[key] for key in KEYS}
    named |= {key: rows[key].iloc[0] for key in ("dataset", "category", "group")}
    kept = {
        "tiles": list(map(int, tiles)),
        "device": device,
        "metrics": named | _measure(profile, unit, scores, maps, tiles, masks),
    }

    def fill(partial: Path) -> None:
        np.save(partial / "scores.npy", np.asarray(scores, np.float64), allow_pickle=False)
        if maps is not None:
            np.save(partial / "maps.npy", np.asarray(maps, np.float32), allow_pickle=False)
        (partial / "unit.json").write_text(json.dumps(kept), encoding="utf-8")

    files.write_folder(unit.place, fill)


def _measure(
    profile: Profile, unit: Unit, scores: np.ndarray, maps: np.ndarray | None, tiles: Sequence[int], masks: Masks
) -> dict[str, float | int]:
    """Image and pixel metrics of one unit, and the counts they rest on."""
    rows, labels, size, fit = unit.rows, unit.rows.label.to_numpy(), profile.evaluation_size, unit.columns["fit"]
    places = [regions.frame_region(profile, row.category, row.width, row.height, fit) for row in rows.itertuples()]
    for row, place in zip(rows.itertuples(), places, strict=True):
        if (row.image, fit) not in masks:
            masks[row.image, fit] = _frame_regions(profile, row, fit, place)
    inside = [masks[image, fit] for image in rows.image]
    values = metrics.image_metrics(labels, scores)
    values["image_auroc_low"], values["image_auroc_high"] = statistics.auroc_interval(labels, scores)
    values |= dict.fromkeys([*metrics.PIXEL, *metrics.BOUNDS, metrics.SATURATED], float("nan"))
    if maps is not None:
        maps_by_image = np.split(np.asarray(maps), np.cumsum(tiles)[:-1])
        bins = metrics.BINS if profile.pixel_metrics == "binned" else 0

        def frame_pairs(defects: set[str]) -> Iterator[tuple[np.ndarray, pixel_ranking.Regions]]:
            """The map and the regions of each image of some kinds, where it has a mask or needs none."""
            each = zip(rows.itertuples(), maps_by_image, inside, places, strict=True)
            for row, tile_maps, mask, place in each:
                if mask is not None and row.defect in defects:
                    width, height, sigma = row.width, row.height, unit.columns["sigma"]
                    framed = metrics.framed_map(tile_maps, width, height, fit, size, sigma)
                    yield (framed if place is None else framed[place][None]), mask

        values |= metrics.pixel_metrics(frame_pairs(set(rows.defect)), profile.fpr_limit, bins=bins)
        # as MVTec LOCO's evaluation has it: each kind of defect beside the normal images, then the mean over the kinds
        annotated = [mask is not None and bool(mask.annotated) for mask in inside]
        kinds = rows.defect[annotated].unique()
        overlaps = [metrics.saturated_overlap(frame_pairs({"good", kind}), bins=bins) for kind in kinds]
        values[metrics.SATURATED] = float(np.mean(overlaps)) if overlaps else float("nan")
    empty = [row for row, mask in zip(rows.itertuples(), inside, strict=True) if row.mask and not mask.place.size]
    if any(place is not None for place in places):  # a mask outside the region of interest is not lost by its size
        empty = [r for r in empty if not mask_files.framed_mask(r.mask, r.width, r.height, fit, size).any()]
    counts = {"n_good": (labels == 0).sum(), "n_defective": (labels == 1).sum(), "n_masks": (rows["mask"] != "").sum()}
    counts |= {"n_lost_masks": len(empty), "evaluation_size": size}
    return values | {name: int(value) for name, value in counts.items()}


def _frame_regions(profile: Profile, row: Any, fit: str, place: np.ndarray | None) -> pixel_ranking.Regions | None:
    """The regions of an index row's mask at the evaluation frame; None where a defective image has no mask.

    ``place`` (H, W) bool: the region of interest, if there is one, outside of which nothing counts.
    """
    if row.label and not row.mask:
        return None
    size = profile.evaluation_size
    mask = mask_files.framed_mask(row.mask, row.width, row.height, fit, size)
    apart = DATASETS[profile.dataset].read_regions(row.image) if row.mask else []
    annotated = [(mask_files.frame_mask(region, fit, size), share) for region, share in apart]
    return pixel_ranking.find_regions_inside(mask, place, not row.label, annotated)


def gather_units(cache: Path, all_units: Sequence[Unit]) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """The scores and metrics tables of units, checked against their schemas, and the devices that scored, in words.

    Outside results have no device.
    """
    kept = [files.read_json(unit.place / "unit.json") for unit in all_units]
    tiles = [np.array(facts["tiles"]) for facts in kept]
    whole = [unit.columns | _files(cache, unit) for unit in all_units]  # a row a unit, then one for each of its images
    columns = pd.DataFrame(whole).loc[np.repeat(np.arange(len(all_units)), list(map(len, tiles)))]
    scores = pd.concat([unit.rows for unit in all_units], ignore_index=True)
    scores = pd.concat([scores, columns.reset_index(drop=True)], axis=1).assign(
        score=np.concatenate([_load_scores(unit.place / "scores.npy") for unit in all_units]),
        tiles=np.concatenate(tiles),
        map_row=np.concatenate([counts.cumsum() - counts for counts in tiles]),
    )
    measured = pd.DataFrame([facts["metrics"] for facts in kept]).astype(dict.fromkeys(SHARES, float))
    scored_on = sorted({facts["device"] for facts in kept if facts["device"]})
    return describe_scores(SETTINGS).validate(scores), METRICS.validate(measured), scored_on


def _load_scores(file: Path) -> np.ndarray:
    with files.name_read_errors(file):
        return np.load(file, allow_pickle=False)


def _files(cache: Path, unit: Unit) -> dict[str, str]:
    """A unit's references and the file of its maps, empty where it has none."""
    maps = unit.place / "maps.npy"
    place = str(maps.relative_to(cache)) if maps.is_file() else ""
    return {"references": ";".join(map(_short, unit.references)), "map_file": place}


def _short(path: str) -> str:
    """A file with its last two folders: enough to find it, and no home folder in a table that is shared."""
    return "/".join(Path(path).parts[-3:])
