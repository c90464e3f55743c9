"""The contract between library and notebooks: the scores table, its metrics, and the maps beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa

from vlmad_lib import InputError, config, tables
from vlmad_lib.config import Profile
from vlmad_lib.data import regions
from vlmad_lib.evaluation import metrics, statistics
from vlmad_lib.files import name_read_errors

# What names a variant in both tables.
KEYS = ["method", "backbone", "weights", "preset", "shots", "seed", "variant"]

_text = pa.Column(str)
_share = pa.Column(float, pa.Check.in_range(0, 1), nullable=True)
_whole = pa.Column(int, pa.Check.ge(0))


def describe_scores(settings: Sequence[str]) -> pa.DataFrameSchema:
    """The scores table: one row per test image and variant; map_file, map_row and tiles say where its maps lie.

    ``settings``: those of all methods, each a column of its own.
    """
    columns = {
        **dict.fromkeys(["dataset", "category", "class_name", "defect", "labels", "image", "mask"], _text),
        "group": pa.Column(str, pa.Check.isin(config.GROUPS)),
        "label": pa.Column(int, pa.Check.isin([0, 1])),
        **dict.fromkeys(["method", "backbone", "weights", "preset", "variant", "references"], _text),
        **dict.fromkeys(["shots", "seed", "width", "height", "tiles", "map_row"], _whole),
        **dict.fromkeys(settings, pa.Column(str, description="empty where a method has no such setting")),
        "map_file": pa.Column(str, description="file of maps in the cache, empty where there are only scores"),
        "score": pa.Column(float, pa.Check(np.isfinite, error="scores are finite numbers")),
    }
    return pa.DataFrameSchema(columns, strict=True, unique=["variant", "image"])


# The metrics table: one row per category and variant, all in [0, 1], nan where a class is missing.
# ``pixel_auroc_bound`` and so on: how far the value can be from the exact one, 0 unless pixels were counted in bins.
METRICS = pa.DataFrameSchema(
    {
        **dict.fromkeys(["dataset", "category", "group", *KEYS], pa.Column()),
        **dict.fromkeys([*metrics.IMAGE, *metrics.PIXEL, metrics.SATURATED], _share),
        **dict.fromkeys(["image_auroc_low", "image_auroc_high"], _share),
        **dict.fromkeys(metrics.BOUNDS, _share),
        **dict.fromkeys(["n_good", "n_defective", "n_masks", "n_lost_masks", "evaluation_size"], _whole),
    },
    strict=True,
)
SHARES = [name for name, column in METRICS.columns.items() if column.checks == _share.checks]


@dataclass(frozen=True)
class Results:
    """What a run leaves: the scores and metrics tables, the facts a report states, and the maps on demand."""

    profile: Profile
    index: pd.DataFrame
    scores: pd.DataFrame
    metrics: pd.DataFrame
    facts: dict
    cache: Path

    def maps(self, rows: pd.DataFrame) -> list[np.ndarray]:
        """The maps (tiles, h, w) of rows of the scores table: the anomaly scores of the patches."""
        return [metrics.grid_maps(kept_maps) for kept_maps in self.kept(rows)]

    def kept(self, rows: pd.DataFrame) -> list[np.ndarray]:
        """The maps of rows as units keep them, (tiles, h, w) or stacks (tiles, L + 1, h, w); see ``metrics``."""
        if "" in set(rows.map_file):
            raise InputError("These rows have scores but no maps; choose a method that has maps.")
        with name_read_errors(self.cache):
            maps = {file: np.load(self.cache / file, "r", allow_pickle=False) for file in rows.map_file.unique()}
            places = zip(rows.map_file, rows.map_row, rows.tiles, strict=True)  # the table's many columns are slow
            return [np.array(maps[file][first : first + tiles]) for file, first, tiles in places]

    def framed(self, rows: pd.DataFrame, seamless: bool = False) -> list[np.ndarray]:
        """The maps of rows at the evaluation frame, (H, W) float32 each; ``seamless``: to be looked at.

        Outside a region of interest stands the least value inside: it raises no alarm, and is dark in a picture.
        """
        size = self.profile.evaluation_size
        facts = zip(self.kept(rows), rows.width, rows.height, rows.fit, rows.sigma, self.inside(rows), strict=True)
        framed = []
        for tiles, width, height, fit, sigma, inside in facts:
            values = metrics.framed_map(tiles, width, height, fit, size, sigma, seamless)
            framed.append(values if inside is None else np.where(inside, values, values[inside].min()))
        return framed

    def inside(self, rows: pd.DataFrame) -> list[np.ndarray | None]:
        """The region of interest of each row at the evaluation frame, bool (H, W); None for all of the picture."""
        facts = zip(rows.category, rows.width, rows.height, rows.fit, strict=True)
        return [regions.frame_region(self.profile, *row) for row in facts]

    def macro(self) -> pd.DataFrame:
        """Macro means per method and shots, ``low`` and ``high`` of the image AUROC's 95 % interval, and what n is.

        That interval is over images; ``over_categories`` is the one over categories, as text.
        That is the categories, and their images, that have an image AUROC; ``pixel_categories`` have pixel metrics.
        """
        rows = []
        named = self.metrics.assign(name=tables.name_rows(self.metrics))
        for name, rows_of_name in named.groupby("name", sort=False):
            means = rows_of_name.groupby("category")[list(tables.TITLES)].mean().mean()
            chosen = self.scores[self.scores.variant.isin(rows_of_name.variant)]
            low, high = statistics.macro_interval(chosen)
            draws = rows_of_name.seed.nunique() if rows_of_name.shots.iloc[0] else 0
            ranked = (
                rows_of_name.dropna(subset="image_auroc") if rows_of_name.image_auroc.notna().any() else rows_of_name
            )
            images = chosen[chosen.category.isin(ranked.category)].image.nunique()
            masked = rows_of_name.dropna(subset="pixel_auroc").category.nunique()
            counts = {"categories": ranked.category.nunique(), "pixel_categories": masked}
            counts |= {"images": images, "draws": draws}
            spread = statistics.format_category_interval(ranked.groupby("category").image_auroc.mean())
            facts = {
                "method": rows_of_name.method.iloc[0],
                "name": name,
                "low": low,
                "high": high,
                "over_categories": spread,
            }
            rows.append({**facts, **means, **counts})
        return pd.DataFrame(rows)

    def headline(self, macro: pd.DataFrame | None = None) -> pd.DataFrame:
        """The macro means formatted for people; ``macro`` where they are at hand.

        The image AUROC has two intervals: for other images of these categories (bootstrap over images), and for other
        categories of the kind (Student's over categories).
        Pixel metrics have a number of categories of their own where some category has no masks.
        """
        macro = self.macro() if macro is None else macro
        interval = "{} to {}"
        masked = macro[macro.pixel_categories > 0]
        apart = (masked.pixel_categories != masked.categories).any()
        table = pd.DataFrame(
            {
                "method": row.name,
                "image AUROC": _number(row.image_auroc),
                "95 %, other images": interval.format(_number(row.low), _number(row.high)),
                "95 %, other categories": row.over_categories or "none",
                "pixel AUROC": _number(row.pixel_auroc),
                "AUPRO": _number(row.aupro),
                "categories": row.categories,
                "categories, pixel metrics": row.pixel_categories,
                "test images": row.images,
                "reference draws": row.draws,
            }
            for row in macro.itertuples(index=False)
        )
        return table if apart else table.drop(columns="categories, pixel metrics")

    def by_category(self) -> pd.DataFrame:
        """Image AUROC, pixel AUROC and AUPRO per category, method and shots, with the number of test images."""
        table = tables.average_by_category(self.metrics, tables.MAIN)
        named = self.scores.assign(name=tables.name_rows(self.scores))
        images = named.groupby(["name", "category"]).image.nunique().rename("test images")
        table = table.merge(images.reset_index(), on=["name", "category"])
        table = table.rename(columns={"name": "method"} | tables.TITLES)
        return table[["category", "group", "method", *table.columns[3:]]]


def _number(value: float) -> str:
    return "none" if np.isnan(value) else f"{value:.3f}"
