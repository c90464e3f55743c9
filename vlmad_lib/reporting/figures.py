"""Figures: one style, one colour per method, one scale per category, alt text on every picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Image, display
from matplotlib import ticker
from matplotlib.figure import Figure

from vlmad_lib import config, tables
from vlmad_lib.config import FULL
from vlmad_lib.data import image_files, mask_files
from vlmad_lib.evaluation import statistics
from vlmad_lib.pipeline.results import Results

STYLE = Path(__file__).parent / "vlmad.mplstyle"
COLOURS = {"WinCLIP": "#1f6feb", "AnomalyCLIP": "#d1670a"}
OTHERS = ("#2a9d6e", "#8e44ad", "#b5326e", "#6b7785", "#0b8a9e", "#a3820f")
NEUTRAL = "#30343b"  # what belongs to no single method
MAP = "magma"


def use_style() -> None:
    """Make matplotlib draw in the workbook's style."""
    plt.style.use(STYLE)


def colours(methods: Sequence[str]) -> dict[str, str]:
    """A colour for each method, the same in every figure of a run."""
    spare = iter(OTHERS * 9)
    return {name: COLOURS.get(name) or next(spare) for name in dict.fromkeys(methods)}


def show(figure: Figure, alt: str, photo: bool = False) -> None:
    """Display a figure with its alt text and close it; photographs as JPEG, which is seven times smaller."""
    kind, pixels = encoded(figure, photo)
    display(Image(pixels, format=kind, alt=alt, metadata={"alt": alt}))


def encoded(figure: Figure, photo: bool = False) -> tuple[str, bytes]:
    """The kind of picture, ``png`` or ``jpeg``, and the picture of a figure, which is closed."""
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if isinstance(axis.get_major_formatter(), ticker.LogFormatterMathtext):
            axis.set_major_formatter(_Plain())
            axis.set_minor_formatter(_Plain())
    stream = io.BytesIO()
    kind = "jpeg" if photo else "png"
    figure.savefig(stream, format=kind, **({"pil_kwargs": {"quality": 85}} if photo else {}))
    plt.close(figure)
    return kind, stream.getvalue()


class _Plain(ticker.LogFormatterSciNotation):
    """Labels of a log axis as plain numbers: the style leaves no text to TeX."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _chance(value: str, fpr_limit: float) -> float | None:
    """What scores drawn by chance have of a metric, by its column; none where that depends on the images."""
    return {"image_auroc": 0.5, "pixel_auroc": 0.5, "aupro": fpr_limit / 2}.get(value)


def intervals(metrics: pd.DataFrame, value: str = "image_auroc", shots: int = 0, fpr_limit: float = 0.3) -> Figure:
    """Points with 95 % intervals per category, one colour per method, n beside each category.

    ``fpr_limit``: that of the AUPRO, in (0, 1]; maps drawn by chance have half of it.
    """
    part = metrics[metrics.shots == shots]
    order = tables.order_categories(metrics)
    palette = colours(metrics.method)
    names = list(dict.fromkeys(part.method))
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.36 * len(order)))
    for number, name in enumerate(names):
        rows = part[part.method == name].drop_duplicates("category").set_index("category").reindex(order)
        shift = (number - (len(names) - 1) / 2) * 0.6 / max(len(names), 1)
        places = np.arange(len(order)) + shift
        if f"{value}_low" in rows:
            axes.hlines(places, rows[f"{value}_low"], rows[f"{value}_high"], color=palette[name], lw=2, alpha=0.45)
        axes.plot(rows[value], places, "o", color=palette[name], label=name, ms=6)
    counts = part.drop_duplicates("category").set_index("category").reindex(order)
    labels = [f"{name}  (n = {row.n_good:.0f} + {row.n_defective:.0f})" for name, row in counts.iterrows()]
    axes.set_yticks(range(len(order)), labels)
    told = "; bars: 95 % interval" if f"{value}_low" in part else ""
    chance = _chance(value, fpr_limit)
    if chance is not None:
        axes.axvline(chance, color="#30343b", lw=1, ls="--")
        told += "; dashed: chance"
    axes.set(xlim=(0, 1.02), xlabel=tables.TITLES[value] + told)
    axes.invert_yaxis()
    _separate_groups(axes, metrics, order)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return figure


def over_shots(
    metrics: pd.DataFrame, values: Sequence[str] = ("image_auroc", "pixel_auroc"), fpr_limit: float = 0.3
) -> Figure:
    """Macro means against the number of references: one dot per reference draw, the line through their mean.

    ``fpr_limit``: that of the AUPRO, in (0, 1]; maps drawn by chance have half of it.
    """
    palette, counts = colours(metrics.method), sorted(metrics.shots.unique())
    # all references have their place a step right of the largest number: how many they are differs by category
    places = {shots: shots if shots < FULL else max([0, *counts[:-1]]) + 1 for shots in counts}
    size = (4.2 * len(values), 3.4)
    figure, grid = plt.subplots(1, len(values), figsize=size, squeeze=False, layout="constrained")
    for axes, value in zip(grid.flat, values, strict=True):
        draws = metrics.groupby(["method", "shots", "seed"], sort=False)[value].mean().reset_index()
        for name, part in draws.groupby("method", sort=False):
            mean = part.groupby("shots")[value].mean()
            axes.plot(mean.index.map(places), mean, "-", color=palette[name], lw=1.5, label=name)
            axes.plot(part.shots.map(places), part[value], "o", color=palette[name], ms=4, alpha=0.6)
        chance = _chance(value, fpr_limit)
        axes.axhline(chance, color="#30343b", lw=1, ls="--", label="chance")
        axes.set(xlabel="reference images (shots)", ylabel=tables.TITLES[value])
        axes.set_xticks(list(places.values()), map(tables.format_shots, places))
        axes.set_ylim(min(chance - 0.05, draws[value].min() - 0.03), 1.01)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=2 * len(values))
    return figure


def grids(
    maps: dict[str, np.ndarray], label: str, image: str | None = None, cell: tuple[int, int] | None = None
) -> Figure:
    """Small maps side by side on one colour scale, after the image they belong to; ``cell`` (row, column) is framed."""
    count = len(maps) + bool(image)
    figure, panels = plt.subplots(1, count, figsize=(1.9 * count, 2.5), squeeze=False, layout="constrained")
    panels = list(panels[0])
    if image:
        first = panels.pop(0)
        shown = picture(image)
        first.imshow(shown)
        first.set_title("image", fontsize=9)
        _bare(first)
    values = np.concatenate([one.ravel() for one in maps.values()])
    limits = {"vmin": values.min(), "vmax": max(values.max(), values.min() + 1e-6)}
    for axes, (title, one) in zip(panels, maps.items(), strict=True):
        drawn = axes.imshow(one, cmap=MAP, **limits)
        axes.set_title(title, fontsize=9)
        _bare(axes)
    figure.colorbar(drawn, ax=panels, shrink=0.7, label=label)
    if cell:
        for axes in panels:
            _frame(axes, cell, 1, 1)
        if image:
            rows, columns = one.shape
            _frame(first, cell, shown.shape[0] / rows, shown.shape[1] / columns)
    return figure


def _frame(axes: plt.Axes, cell: tuple[int, int], height: float, width: float) -> None:
    """A frame around a cell (row, column) of a grid of cells of this height and width."""
    corner = (cell[1] * width - 0.5, cell[0] * height - 0.5)
    axes.add_patch(plt.Rectangle(corner, width, height, fill=False, edgecolor="#00c2d1", lw=1.5))


def _separate_groups(axes: plt.Axes, table: pd.DataFrame, order: list[str]) -> None:
    groups = table.drop_duplicates("category").set_index("category").group.loc[order]
    for place in np.flatnonzero(groups.to_numpy()[1:] != groups.to_numpy()[:-1]):
        axes.axhline(place + 0.5, color="#8a8f98", lw=0.8)


def picture(image: str, width: int = 240) -> np.ndarray:
    """A thumbnail of an image file, (h, width, 3) uint8."""
    loaded = image_files.load_image(image)
    return np.asarray(loaded.resize((width, round(width * loaded.height / loaded.width))))


def _bare(axes: plt.Axes) -> None:
    """No axes around a picture, and no ticks, which take time even where nobody sees them."""
    axes.axis("off")
    axes.xaxis.set_visible(False)
    axes.yaxis.set_visible(False)


TALL, WIDE = 1.26, 0.94  # a cell of a sheet, and the longer side of its picture: the rest is for the title


def _sheet(lines: int, columns: int) -> tuple[Figure, plt.Axes]:
    """A figure of cells, 1 wide and ``TALL`` high, all in one axes: one for each takes more time than its picture."""
    figure = plt.figure(figsize=(1.75 * columns, 1.75 * TALL * lines))
    axes = figure.add_axes((0, 0, 1, 1), autoscale_on=False, xlim=(0, columns), ylim=(TALL * lines, 0))
    _bare(axes)
    return figure, axes


def _place(axes: plt.Axes, cell: tuple[int, int], pixels: np.ndarray, title: str, **how) -> tuple[float, ...]:
    """Draw a picture (h, w) or (h, w, 3) into a cell (row, column) under its title; left, right, bottom and top."""
    height, width = (WIDE * side / max(pixels.shape[:2]) for side in pixels.shape[:2])
    middle, bottom = cell[1] + 0.5, TALL * (cell[0] + 1) - 0.02
    extent = middle - width / 2, middle + width / 2, bottom, bottom - height
    axes.imshow(pixels, extent=extent, aspect="auto", **how)
    axes.text(middle, bottom - height - 0.03, title, fontsize=8, ha="center", va="bottom")
    return extent


def pictures(rows: pd.DataFrame, columns: int = 6, titles: Sequence[str] | None = None, outline: bool = True) -> Figure:
    """A grid of index or scores rows with the outline of their masks."""
    figure, axes = _sheet(-(-len(rows) // columns), min(columns, len(rows)))
    for place, (row, title) in enumerate(zip(rows.itertuples(), titles or _named(rows), strict=True)):
        _draw(axes, divmod(place, columns), row, title, outline)
    return figure


def _named(rows: pd.DataFrame) -> list[str]:
    return [f"{row.category}\n{row.defect}" for row in rows.itertuples()]


def _draw(axes: plt.Axes, cell: tuple[int, int], row, title: str, outline: bool = True) -> None:
    left, right, bottom, top = _place(axes, cell, picture(row.image), title)
    if outline and row.mask:
        mask = mask_files.framed_mask(row.mask, row.width, row.height, "squash", 240)
        axes.contour(mask, [0.5], colors="#ff2d55", linewidths=1, extent=(left, right, top, bottom))


def maps(results: Results, rows: pd.DataFrame, titles: Sequence[str] | None = None) -> Figure:
    """Images above their anomaly maps; the maps of a category share one colour scale over all its test images."""
    frames = results.framed(rows)
    limits = {key: map_limits(results, *key) for key in set(zip(rows.variant, rows.category, strict=True))}
    figure, axes = _sheet(2, len(rows))
    for column, (row, frame, title) in enumerate(zip(rows.itertuples(), frames, titles or _named(rows), strict=True)):
        _draw(axes, (0, column), row, title)
        low, high = limits[row.variant, row.category]
        _place(axes, (1, column), frame, f"score {row.score:.3f}", cmap=MAP, vmin=low, vmax=high)
    return figure


def map_limits(results: Results, variant: str, category: str) -> tuple[float, float]:
    """Colour limits of a category: the 1st and 99.9th percentile of all its maps, never one image's own."""
    rows = results.scores[(results.scores.variant == variant) & (results.scores.category == category)]
    values = np.concatenate([one.ravel() for one in results.maps(rows)])
    low, high = np.quantile(values, [0.01, 0.999])
    return float(low), float(max(high, low + 1e-6))


def dots(
    table: pd.DataFrame, label: str, value: str, title: str, n: str = "images", chance: float | None = 0.5
) -> Figure:
    """Points with their 95 % intervals (columns ``low``, ``high``) in rows by ``label``, one colour per method.

    A row tells its n, where methods differ the smallest, and its ``categories`` where the table has them; points of
    fewer than ``tables.SMALL`` are hollow.
    """
    order, names = list(dict.fromkeys(table[label])), list(dict.fromkeys(table.method))
    palette, places = colours(names), {one: place for place, one in enumerate(order)}
    figure, axes = plt.subplots(figsize=(8, 1.1 + (0.24 + 0.14 * len(names)) * len(order)))
    for number, (name, part) in enumerate(table.groupby("method", sort=False)):
        at = part[label].map(places) + (number - (len(names) - 1) / 2) * 0.6 / max(len(names), 1)
        axes.hlines(at, part.low, part.high, color=palette[name], lw=2, alpha=0.45)
        axes.scatter(part[value], at, s=36, color=palette[name], label=name, zorder=3)
        few = part[n] < tables.SMALL
        axes.scatter(part[value][few], at[few], s=14, color="white", zorder=4)
    counts = table.groupby(label)[n].min()
    ticks = [f"{one}  (n = {counts[one]:.0f})" for one in order]
    if "categories" in table and n == "images":
        least = table.groupby(label)[["categories", "images"]].min()
        ticks = [
            f"{one}  (n = {images} images, {number} cat.)" for one, number, images in least.loc[order].itertuples()
        ]
    axes.set_yticks(range(len(order)), ticks)
    if chance is not None:
        axes.axvline(chance, color="#30343b", lw=1, ls="--")
    told = "; dashed: chance" if chance is not None else ""
    axes.set(xlim=(-0.02, 1.02), xlabel=f"{title}; bars: 95 % interval{told}; hollow: n < {tables.SMALL}")
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return figure


def recall_curves(curves: pd.DataFrame, measures: dict[str, str], label: str) -> Figure:
    """Recall against each measure (column: axis label) with its band; ``curves`` of ``defects.recall_curve``."""
    palette, shown = colours(curves.method), [name for name in measures if (curves.measure == name).any()]
    figure, grid = plt.subplots(
        1, len(shown), figsize=(4.6 * len(shown), 3.6), squeeze=False, sharey=True, layout="constrained"
    )
    for axes, measure in zip(grid[0], shown, strict=True):
        for name, rows in curves[curves.measure == measure].groupby("method", sort=False):
            axes.fill_between(rows.value, rows.low, rows.high, color=palette[name], alpha=0.18, lw=0)
            axes.plot(rows.value, rows.recall, color=palette[name], label=name)
        axes.set(xlabel=measures[measure], ylim=(-0.03, 1.03))
        _log_axis(axes, curves.value[curves.measure == measure])
    grid[0, 0].set_ylabel(label)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return figure


def cells(table: pd.DataFrame, rows: str, columns: str, value: str, label: str) -> Figure:
    """A heat map by method of ``value`` in [0, 1] over two columns, in their categories' order, a panel a method.

    A cell tells its value, its interval (``low``, ``high``) and its ``images`` and ``categories``; one without images
    is empty.
    """
    methods, heights, widths = table.method.unique(), table[rows].cat.categories, table[columns].cat.categories
    figure, panels = plt.subplots(
        1, len(methods), figsize=(0.9 + 4.4 * len(methods), 3.9), squeeze=False, sharey=True, layout="constrained"
    )
    for axes, method in zip(panels[0], methods, strict=True):
        own = table[table.method == method]
        values = own.pivot(index=rows, columns=columns, values=value).reindex(index=heights, columns=widths)
        drawn = axes.imshow(values, cmap="viridis", vmin=0, vmax=1, aspect="auto")
        for cell in own.itertuples():
            place = widths.get_loc(getattr(cell, columns)), heights.get_loc(getattr(cell, rows))
            share = getattr(cell, value)
            text = f"{share:.2f}\n{cell.low:.2f} to {cell.high:.2f}\nn = {cell.images}, {cell.categories} cat."
            axes.annotate(text, place, ha="center", va="center", fontsize=8, color="white" if share < 0.6 else "black")
        axes.set(xticks=range(len(widths)), xticklabels=widths, yticks=range(len(heights)), yticklabels=heights)
        axes.set(xlabel=columns)
        axes.set_title(method, fontsize=10, loc="left")
        axes.grid(False)
    panels[0, 0].set_ylabel(rows)
    figure.colorbar(drawn, ax=list(panels[0]), shrink=0.8, label=label)
    return figure


def _log_axis(axes: plt.Axes, values: pd.Series) -> None:
    """A logarithmic axis with plain numbers, and several ticks where the positive values span little."""
    axes.set_xscale("log")
    known = values[values > 0]
    narrow = len(known) and known.max() < 50 * known.min()  # where powers of ten would be one tick, or two
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())


def against_measures(found: pd.DataFrame, measures: dict[str, str]) -> Figure:
    """The AUROC of every defect type against each measure (column: axis label), one colour per method."""
    palette = colours(found.method)
    figure, grid = plt.subplots(
        1, len(measures), figsize=(3.9 * len(measures), 3.4), squeeze=False, sharey=True, layout="constrained"
    )
    for axes, (column, title) in zip(grid[0], measures.items(), strict=True):
        for name, part in found.groupby("method", sort=False):
            axes.scatter(part[column], part.auroc, s=22, color=palette[name], alpha=0.65, label=name, lw=0)
        axes.axhline(0.5, color="#30343b", lw=1, ls="--")
        axes.set(xlabel=title, ylim=(-0.03, 1.03))
        _log_axis(axes, found[column])
    grid[0, 0].set_ylabel("AUROC of a defect type")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return figure


MARKS = {"paper": ("D", "#30343b"), "study": ("X", "#b5326e")}


def beside(points: pd.DataFrame, title: str, label: str = "image AUROC") -> Figure:
    """Figures by category, a panel a method: paper, study and re-implementations, ours in its colour with interval.

    ``points`` has the columns of ``published.collect_points``.
    """
    order, methods = tables.order_categories(points), list(dict.fromkeys(points.method))
    figure, panels = plt.subplots(
        1, len(methods), figsize=(8.6, 1.7 + 0.27 * len(order)), sharey=True, squeeze=False, layout="constrained"
    )
    marks = _marks(points)
    for axes, method in zip(panels[0], methods, strict=True):
        for who, part in points[points.method == method].groupby("who", sort=False):
            places, (shape, colour) = part.category.map(order.index), marks[who]
            axes.hlines(places, part.low, part.high, color=colour, lw=2, alpha=0.45)
            hollow = {"ms": 7, "mfc": "none"} if who == "paper" else {"ms": 5}
            axes.plot(part.value, places, shape, color=colour, label=who, **hollow)
        axes.axvline(0.5, color="#30343b", lw=1, ls="--")
        axes.set(xlim=(0, 1.02), xlabel=f"{label}; dashed: chance", yticks=range(len(order)), yticklabels=order)
        axes.set_title(method, fontsize=10, loc="left")
        _separate_groups(axes, points, order)
    panels[0, 0].invert_yaxis()
    found = {name: handle for axes in panels[0] for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found.keys(), loc="outside lower left", ncols=3, fontsize=8)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure


def _marks(points: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Shape and colour by source: re-implementations in grey shapes, ours as dots in the methods' colours."""
    others = [who for who in dict.fromkeys(points.who) if who.endswith("reimpl)") or who.endswith("rerun)")]
    ours = [who for who in dict.fromkeys(points.who) if who not in MARKS and who not in others]
    shapes = dict(
        zip(others, [("s", "#9aa1ab"), ("^", "#9aa1ab"), ("v", "#9aa1ab"), ("<", "#9aa1ab")] * 9, strict=False)
    )
    return MARKS | shapes | {who: ("o", colour) for who, colour in colours(ours).items()}


# ---------------------------------------------------------------- sweeps

GROUPS = dict(zip(config.GROUPS, OTHERS, strict=False)) | {"all": NEUTRAL}


def over_windows(table: pd.DataFrame, own: pd.Series) -> Figure:
    """Macro mean AUROC against the window size, a line a group with 95 % intervals over its categories (n).

    ``table`` as made by ``sweeps.window_table``; ``own`` has the image and pixel AUROC of the method's own fusion.
    """
    known = table.dropna(subset="auroc")
    panels = {name: part for name, part in known.groupby("measure", sort=False) if name != "image, class token"}
    size = (3.6 * len(panels), 3.8)
    figure, grid = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, (measure, part) in zip(grid.flat, panels.items(), strict=True):
        value = own["image_auroc" if measure.startswith("image") else "pixel_auroc"]
        axes.axhline(value, color=GROUPS["all"], lw=1, ls=":", label="the method as it is")
        found = [name for name in config.GROUPS if name in set(part.group)]
        groups = {name: part[part.group == name] for name in found if len(found) > 1} | {"all": part}
        for number, (name, rows) in enumerate(groups.items()):
            _line(axes, rows, name, 0.12 * (number - (len(groups) - 1) / 2))
        axes.axhline(0.5, color="#30343b", lw=1, ls="--")
        axes.set(xlabel="window size k; dashed: chance", title=measure, xticks=sorted(part.k.unique()))
    grid[0, 0].set(ylabel="AUROC", ylim=(0, 1.02))
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=9)
    return figure


def _line(axes: plt.Axes, rows: pd.DataFrame, name: str, shift: float) -> None:
    """The means of a group's categories over window sizes, with intervals; those of two would hide the rest."""
    found = rows.groupby("k").auroc.apply(lambda values: statistics.paired(values.to_numpy()))
    means, lows, highs = np.array(found.tolist()).T
    places, colour = found.index + shift, GROUPS[name]
    if np.isfinite(lows).all() and rows.category.nunique() > 2:
        axes.vlines(places, lows.clip(0, 1), highs.clip(0, 1), color=colour, lw=1.5, alpha=0.35)
    axes.plot(places, means, "o-", color=colour, ms=4, lw=1.5, label=f"{name} (n = {rows.category.nunique()})")


def best_sizes(table: pd.DataFrame) -> Figure:
    """Category by window size: mean pixel AUROC inside an image, the best framed, those not told from it dotted.

    ``table`` as made by ``sweeps.best_sizes``.
    """
    columns = [name for name in table if name.startswith("k = ")]
    values = table[columns].to_numpy(float)
    figure, axes = plt.subplots(figsize=(1.6 + 0.75 * len(columns), 1.2 + 0.36 * len(table)), layout="constrained")
    drawn = axes.imshow(values, cmap="viridis", aspect="auto")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for place, row in enumerate(table.to_dict("records")):
        untold = row["not told from it"].split(", ")
        for column, name in enumerate(columns):
            size = name.removeprefix("k = ")
            ink = "white" if row[name] < middle else "black"
            axes.text(column, place, f"{row[name]:.3f}{' •' if size in untold else ''}", ha="center", va="center",
                      fontsize=8, color=ink)  # fmt: skip
            if size == str(row["best"]):
                axes.add_patch(plt.Rectangle((column - 0.48, place - 0.46), 0.96, 0.92, fill=False, ec="#ff2d55", lw=2))
    labels = [f"{row.category}  (n = {row.images})" for row in table.itertuples()]
    axes.set_yticks(range(len(table)), labels)
    axes.set_xticks(range(len(columns)), columns)
    axes.grid(False)
    _separate_groups(axes, table, list(table.category))
    figure.colorbar(drawn, ax=axes, label="pixel AUROC inside an image", shrink=0.8)
    return figure


def over_severity(table: pd.DataFrame, label: str, level: float, highest: float = np.inf) -> Figure:
    """Values with their 95 % intervals against the severity, a panel a shift, a line a method, dashed with references.

    ``table`` as made by ``robustness.summarise`` by severity; ``level`` is where the images as they are stand,
    ``highest`` the largest value there can be.
    """
    panels = list(table.groupby("shift", sort=False))
    lines, names = -(-len(panels) // 4), list(dict.fromkeys(table.name))
    methods = {name: name.rpartition(", ")[0] for name in names}
    palette, width = colours(methods.values()), min(len(panels), 4)
    figure, grid = plt.subplots(
        *(lines, width), figsize=(1.2 + 2.3 * width, 0.9 + 2.3 * lines), squeeze=False, layout="constrained",
        sharex=True, sharey=True,
    )  # fmt: skip
    for axes in grid.flat[len(panels) :]:
        _bare(axes)
    for axes, (shift, part) in zip(grid.flat, panels, strict=False):
        axes.axhline(level, color="#30343b", lw=1, ls="--")
        for number, (name, rows) in enumerate(part.groupby("name", sort=False)):
            colour, places = palette[methods[name]], rows.severity + 0.12 * (number - (len(names) - 1) / 2)
            stroke = "o-" if name.endswith(tables.name_shots(0)) else "s--"
            axes.vlines(places, rows.low, rows.high.clip(upper=highest), color=colour, lw=1.5, alpha=0.3)
            axes.plot(places, rows["mean"], stroke, color=colour, ms=4, lw=1.3, label=name)
        axes.set_title(shift, fontsize=9, loc="left")
        axes.set_xticks(sorted(table.severity.unique()))
    ends = np.r_[table["mean"], level]
    reach = max(np.ptp(ends), 0.05)  # wider intervals are cut: one of few units would flatten all the rest
    grid[0, 0].set_ylim(ends.min() - 0.6 * reach, min(ends.max() + 0.6 * reach, highest + 0.02 * reach))
    figure.supxlabel("severity; bars: 95 % interval, cut at the frame; dashed: as before", fontsize=9)
    figure.supylabel(label, fontsize=9)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return figure


def differences(table: pd.DataFrame, rows: str, hue: str = "", colour: str = NEUTRAL) -> Figure:
    """Differences with their 95 % intervals, a panel a measure and a line for each value of the column ``rows``.

    ``table`` has the columns measure, difference, low, high (cut at 1) and n; lines in order of appearance, a colour
    for each value of the column ``hue`` where one is named.
    """
    known = table.dropna(subset="difference")
    names, panels = list(dict.fromkeys(known[rows])), list(known.groupby("measure", sort=False))
    shades = dict(zip(sorted(known[hue].unique()), (OTHERS[2], OTHERS[0], *OTHERS[3:]), strict=False)) if hue else {}
    height = 1.4 + (0.33 + 0.1 * max(0, len(shades) - 1)) * len(names)
    figure, grid = plt.subplots(
        1, len(panels), figsize=(2 + 3.4 * len(panels), height), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, (measure, part) in zip(grid.flat, panels, strict=True):
        part = part.assign(low=part.low.clip(-1, 1), high=part.high.clip(-1, 1))
        for number, name in enumerate(shades or [""]):
            some = part[part[hue] == name] if shades else part
            places = some[rows].map(names.index) + (number - (len(shades or [""]) - 1) / 2) * 0.32
            axes.hlines(places, some.low, some.high, color=shades.get(name, colour), lw=2, alpha=0.45)
            axes.plot(some.difference, places, "o", color=shades.get(name, colour), ms=5, label=name)
        axes.axvline(0, color="#30343b", lw=1, ls="--")
        told = " to ".join(str(int(n)) for n in sorted({part.n.min(), part.n.max()}))
        reach = 1.08 * max(0.01, part[["low", "high", "difference"]].abs().to_numpy().max())
        axes.set(xlim=(-reach, reach), yticks=range(len(names)), yticklabels=names)
        axes.set_xlabel(f"difference in {tables.TITLES[measure]}\nbars: 95 % interval, n = {told}")
        axes.locator_params(axis="x", nbins=5)
    grid[0, 0].set_ylim(len(names) - 0.5, -0.5)
    if shades:
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def cosines(table: pd.DataFrame) -> Figure:
    """Cosines between texts, every pair once over, as a picture with its numbers."""
    count = len(table)
    figure, axes = plt.subplots(figsize=(2.4 + 0.5 * count, 1 + 0.42 * count), layout="constrained")
    drawn = axes.imshow(table.to_numpy(), cmap="viridis")
    middle = (table.to_numpy().min() + 1) / 2
    for row, column in np.ndindex(count, count):
        value = table.iloc[row, column]
        ink = "white" if value < middle else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
    axes.set_yticks(range(count), table.index)
    axes.set_xticks(range(count), table.columns, rotation=45, ha="right")
    axes.grid(False)
    figure.colorbar(drawn, ax=axes, label="cosine", shrink=0.8)
    return figure


def latencies(costs: pd.DataFrame, published: pd.DataFrame | None = None) -> Figure:
    """Milliseconds per image from zero: measured here with the range of the timings; below, published ones.

    Each has an axis of its own, as other machines and backbones may take a hundred times as long.
    """
    heights = [len(costs), 0 if published is None else int((published["ms per image"] > 0).sum())]
    heights = [count for count in heights if count]
    size = (6.5, 0.9 * len(heights) + 0.42 * sum(heights))
    figure, grid = plt.subplots(len(heights), figsize=size, height_ratios=heights, squeeze=False, layout="constrained")
    palette = colours(costs.method)
    first = grid[0, 0]
    for place, row in enumerate(costs.itertuples()):
        first.hlines(place, row.low, row.high, color=palette[row.method], lw=3, alpha=0.45)
        first.plot(row.encode, place, "o", color=palette[row.method], ms=7)
    labels = [[f"{row.method}\n{row.backbone}, {row.precision}" for row in costs.itertuples()]]
    if len(heights) > 1:
        known = published[published["ms per image"] > 0]
        named = known.method + "\n" + known.backbone.where(known.backbone != "", "?") + ", "
        labels.append(list(named + known.input_px.map(_pixels) + known.hardware))
        grid[1, 0].plot(known["ms per image"], range(len(known)), "D", color="#6b7785", ms=5)
    for axes, names, where in zip(grid[:, 0], labels, ("here", "published"), strict=False):
        axes.set_yticks(range(len(names)), names, fontsize=9)
        axes.set(ylim=(len(names) - 0.5, -0.5), xlabel=f"ms per image, {where}")
        axes.set_xlim(0, 1.05 * axes.get_xlim()[1])
    return figure


def worth(points: pd.DataFrame, label: str) -> Figure:
    """Accuracy with its interval (value, low, high) beside ms an image, a row a name, the most accurate on top."""
    points, palette = points.sort_values("value", na_position="first"), colours(points.method)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9, 1.2 + 0.28 * len(points)), sharey=True, width_ratios=(3, 2), layout="constrained"
    )
    for place, row in enumerate(points.itertuples()):
        left.hlines(place, row.low, row.high, color=palette[row.method], lw=3, alpha=0.3)
        left.plot(row.value, place, "o", color=palette[row.method], ms=5)
        right.plot(row.ms, place, "o", color=palette[row.method], ms=5)
    left.set_yticks(range(len(points)), points.name)
    left.set_xlabel(f"{label}; bars: 95 % interval")
    right.set(xscale="log", xlabel="ms per image on this machine (log scale)")
    right.xaxis.set_major_formatter("{x:g}")
    for axes in (left, right):
        axes.grid(axis="y", lw=0.4, alpha=0.5)
    return figure


def _pixels(value: object) -> str:
    return f"{float(value):.0f} px, " if value not in ("", 0) else ""


# ---------------------------------------------------------------- thresholds


def by_rule(
    table: pd.DataFrame, x: str, panels: dict[str, str], label: str, marks: dict[str, float] | None = None
) -> Figure:
    """Values against ``x``, a panel a column (title), a colour a method and a stroke a rule.

    Bars are the intervals (``_low``, ``_high``); ``marks`` are levels of the first panel, named in the legend.
    """
    names, rules, places = (list(dict.fromkeys(table[column])) for column in ("method", "rule", x))
    palette, strokes = colours(names), dict(zip(rules, ("--", "-", ":", "-."), strict=False))
    figure, grid = plt.subplots(1, len(panels), figsize=(4.4 * len(panels), 3.9), squeeze=False, layout="constrained")
    for axes, (value, title) in zip(grid[0], panels.items(), strict=True):
        for number, ((name, rule), part) in enumerate(table.groupby(["method", "rule"], sort=False)):
            at = part[x].map(places.index) + 0.08 * (number - (len(names) * len(rules) - 1) / 2)
            axes.vlines(at, part[f"{value}_low"], part[f"{value}_high"], color=palette[name], lw=1.5, alpha=0.3)
            axes.plot(at, part[value], "o", ls=strokes[rule], color=palette[name], ms=4, label=f"{name}, {rule}")
        axes.set(xlabel=f"{label}; bars: 95 % interval", ylabel=title, xticks=range(len(places)))
        axes.set_xticklabels([f"{place:g}" for place in places])
        axes.set_ylim(bottom=0)
    for number, (told, level) in enumerate((marks or {}).items()):
        grid[0, 0].axhline(level, color="#30343b", lw=1, ls=("-.", ":")[number % 2], label=told)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower left", ncols=2, fontsize=9)
    return figure


def reliability(curves: dict[tuple[str, str], pd.DataFrame]) -> Figure:
    """Share of defective images against the mean score of a bin, by (method, version); a panel a method."""
    methods = list(dict.fromkeys(name for name, _ in curves))
    versions = list(dict.fromkeys(version for _, version in curves))
    shades = dict(zip(versions, (GROUPS["all"], OTHERS[0], OTHERS[1]), strict=False))
    size = (4.3 * len(methods), 4.4)
    figure, grid = plt.subplots(1, len(methods), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, method in zip(grid[0], methods, strict=True):
        axes.plot([0, 1], [0, 1], color="#8a8f98", lw=1, ls="--")
        for (name, version), bins in curves.items():
            if name == method:
                axes.vlines(bins.score, bins.low, bins.high, color=shades[version], lw=1.5, alpha=0.35)
                axes.plot(bins.score, bins.share, "o-", color=shades[version], ms=4, lw=1.2, label=version)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="mean score of a bin; dashed: calibrated")
        count = next(int(bins.n.sum()) for (name, _), bins in curves.items() if name == method)
        axes.set_title(f"{method}  (n = {count} images)", fontsize=10, loc="left")
    grid[0, 0].set_ylabel("share of defective images; bars: 95 % interval")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower left", ncols=3, fontsize=9)
    return figure


def lent(
    table: pd.DataFrame, panels: dict[str, str],
    labels: tuple[str, str, str] = ("category of the threshold", "judged category", "share; numbers in %"),
) -> Figure:  # fmt: skip
    """Heat maps of values in [0, 1] from ``source`` (rows) to ``target`` (columns), a panel a column; own ones framed.

    As made by ``decisions.transfer`` or ``prompt_transfer.pivot_transfer``; ``labels`` are those of rows, columns and
    colours. A cell without a value is crossed out.
    """
    given, judged = (list(dict.fromkeys(table[side])) for side in ("source", "target"))
    size = (1.6 + (0.6 + 0.33 * len(judged)) * len(panels), 1.9 + 0.3 * len(given))
    figure, grid = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, (value, title) in zip(grid[0], panels.items(), strict=True):
        wide = table.pivot(index="source", columns="target", values=value).loc[given, judged].to_numpy(float)
        drawn = axes.imshow(wide, cmap=MAP, vmin=0, vmax=1, aspect="auto")
        for row, column in np.ndindex(wide.shape):
            ink = "white" if wide[row, column] < 0.6 else "black"
            told = "×" if np.isnan(wide[row, column]) else f"{100 * wide[row, column]:.0f}"
            axes.text(column, row, told, ha="center", va="center", fontsize=7, color=ink)
            if given[row] == judged[column]:
                _frame(axes, (row, column), 1, 1)
        axes.set(title=title, xlabel=labels[1], xticks=range(len(judged)), yticks=range(len(given)))
        axes.set_xticklabels(judged, rotation=60, ha="right")
        axes.set_yticklabels(given)
        axes.grid(False)
    grid[0, 0].set_ylabel(labels[0])
    figure.colorbar(drawn, ax=list(grid[0]), label=labels[2], shrink=0.8)
    return figure


# ---------------------------------------------------------------- failures


def odds(table: pd.DataFrame) -> Figure:
    """Odds ratios with their intervals on a log axis, one colour per method; ``table`` of ``causes.explained``.

    Those without an interval are left out.
    """
    table = table.dropna(subset="low")
    order, names = list(dict.fromkeys(table.input)), list(dict.fromkeys(table.method))
    palette, edge = colours(names), 50.0
    figure, axes = plt.subplots(figsize=(8, 1.1 + (0.22 + 0.12 * len(names)) * len(order)))
    for number, (name, part) in enumerate(table.groupby("method", sort=False)):
        at = part.input.map(order.index) + (number - (len(names) - 1) / 2) * 0.6 / max(len(names), 1)
        axes.hlines(
            at, part.low.clip(lower=1 / edge), part.high.clip(upper=edge), color=palette[name], lw=2, alpha=0.45
        )
        axes.plot(part["odds ratio"], at, "o", color=palette[name], ms=6, label=name)
    axes.set_yticks(range(len(order)), order)
    axes.axvline(1, color="#30343b", lw=1, ls="--")
    axes.set(xscale="log", xlabel="odds ratio of an escape (log scale); bars: 95 % for all together; dashed: no effect")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return figure
