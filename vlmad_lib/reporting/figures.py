"""Figures: one style, one colour per method, one scale per category, alt text on every picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Image, Markdown, display
from matplotlib import ticker
from matplotlib.figure import Figure

from vlmad_lib import config, tables
from vlmad_lib.config import FULL
from vlmad_lib.data import image_files, mask_files
from vlmad_lib.pipeline.results import Results

STYLE = Path(__file__).parent / "vlmad.mplstyle"
COLOURS = {"WinCLIP": "#1f6feb", "AnomalyCLIP": "#d1670a"}
OTHERS = ("#2a9d6e", "#8e44ad", "#b5326e", "#6b7785", "#0b8a9e", "#a3820f")
NEUTRAL = "#30343b"  # what belongs to no single method, and lines of chance
BEST = "#ff2d55"  # frames and outlines
MAP = "magma"


def use_style(profile: str | Path = "") -> None:
    """Make matplotlib draw in the workbook's style; ``show`` attaches a figure as the profile's ``figures`` says."""
    plt.style.use(STYLE)
    plt.rcParams["savefig.format"] = (config.load_profile(profile).figures if profile else "") or "png"


def colours(methods: Sequence[str]) -> dict[str, str]:
    """A colour for each method, the same in every figure of a run."""
    spare = iter(OTHERS * 9)
    return {name: COLOURS.get(name) or next(spare) for name in dict.fromkeys(methods)}


def show(figure: Figure, alt: str, photo: bool = False) -> None:
    """Display a figure with its alt text and close it; photographs as JPEG, which is seven times smaller.

    Where the profile says ``figures: svg`` or ``pdf``, the figure is attached in that format as well: a report writes
    it beside its pages.
    """
    chosen = plt.rcParams["savefig.format"]
    drawing = _draw_vectors(figure, chosen) if chosen in config.VECTORS else {}
    kind, pixels = encode_figure(figure, photo)
    data, metadata = Image(pixels, format=kind, alt=alt, metadata={"alt": alt})._repr_mimebundle_()
    display({"text/plain": alt} | data | drawing, metadata=metadata, raw=True)


def _draw_vectors(figure: Figure, kind: str) -> dict[str, str]:
    """A figure as SVG or PDF by its media type, as notebooks keep them: text, or base64; no date is written in it."""
    stream = io.BytesIO()
    dates = {"Date": None} if kind == "svg" else {"CreationDate": None}
    figure.savefig(stream, format=kind, metadata=dates)
    drawn = stream.getvalue()
    return {config.VECTORS[kind]: drawn.decode() if kind == "svg" else base64.b64encode(drawn).decode()}


MOST_SENTENCES = 3


def show_answer(sentences: Sequence[str], figure: Figure | None = None, alt: str = "", photo: bool = False) -> None:
    """Display the answer of a notebook: at most three sentences, and the figure that shows it.

    A report puts what the cell tagged ``answer`` displays at the top of the page and beside the question in its index.
    Empty sentences are left out; ValueError for more than ``MOST_SENTENCES``.
    """
    sentences = [sentence for sentence in sentences if sentence]
    if len(sentences) > MOST_SENTENCES:
        raise ValueError(f"an answer has at most {MOST_SENTENCES} sentences, not {len(sentences)}")
    display(Markdown("\n\n".join(sentences)))
    if figure is not None:
        show(figure, alt, photo)


def encode_figure(figure: Figure, photo: bool = False) -> tuple[str, bytes]:
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


# ---------------------------------------------------------------- what several figures share


def _panels(count: int, width: float, height: float, **options) -> tuple[Figure, list[plt.Axes]]:
    """A figure of so many axes side by side; ``width`` is that of the whole."""
    figure, grid = plt.subplots(1, count, figsize=(width, height), squeeze=False, layout="constrained", **options)
    return figure, list(grid[0])


def _dodge(number: int, count: int, width: float = 0.6) -> float:
    """How far the ``number``-th of ``count`` points of a row stands from its middle; all within ``width``."""
    return (number - (count - 1) / 2) * width / max(count, 1)


def _bars(axes: plt.Axes, places, values, low, high, colour: str, style: str = "o", **points) -> None:
    """Points with the intervals from ``low`` to ``high``, in rows."""
    axes.hlines(places, low, high, color=colour, lw=2, alpha=0.45)
    axes.plot(values, places, style, color=colour, **points)


def _columns(axes: plt.Axes, places, values, low, high, colour: str, style: str = "o-", **points) -> None:
    """Points with the intervals from ``low`` to ``high``, in columns, and the line through them."""
    axes.vlines(places, low, high, color=colour, lw=1.5, alpha=0.3)
    axes.plot(places, values, style, color=colour, **({"ms": 4, "lw": 1.4} | points))


def _dash(axes: plt.Axes, value: float, across: bool = False, **line) -> None:
    """A dashed line at a value that means something: chance, no difference; ``across`` from left to right."""
    (axes.axhline if across else axes.axvline)(value, **({"color": NEUTRAL, "lw": 1, "ls": "--"} | line))


def _legend(figure: Figure, axes: Sequence[plt.Axes], place: str = "outside upper left", ncols: int = 3) -> None:
    """One legend of what several axes show."""
    named = {name: line for panel in axes for line, name in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc=place, ncols=ncols, fontsize=9)


def _point_rows(
    table: pd.DataFrame, label: str, value: str, ticks: dict[str, str], low: str = "low", high: str = "high",
    palette: dict[str, str] | None = None,
) -> tuple[Figure, plt.Axes]:  # fmt: skip
    """Points with their intervals in rows by ``label``, one colour per method; ``ticks`` are the rows and their texts.

    Without a column ``low`` there are no intervals.
    """
    order, names = list(ticks), list(dict.fromkeys(table.method))
    palette = palette or colours(names)
    figure, axes = plt.subplots(figsize=(8, 1.1 + (0.2 + 0.1 * len(names)) * len(order)))
    for number, (name, rows) in enumerate(table.groupby("method", sort=False)):
        places = rows[label].map(order.index) + _dodge(number, len(names))
        ends = (rows[low], rows[high]) if low in rows else (rows[value], rows[value])
        _bars(axes, places, rows[value], *ends, palette[name], ms=6, label=name)
    axes.set_yticks(range(len(order)), ticks.values())
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return figure, axes


def _heat_maps(
    panels: dict[str, pd.DataFrame], texts: dict[str, pd.DataFrame] | None, label: str, size: tuple[float, float],
    framed: Sequence[tuple[int, int]] = (), **colours_of,
) -> tuple[Figure, list[plt.Axes]]:  # fmt: skip
    """Tables as heat maps on one colour scale, a panel a title, with ``texts`` in the cells (two decimals without).

    ``framed`` are cells (row, column) with a frame; ``colours_of`` goes to seaborn: cmap, vmin, vmax.
    """
    values = np.concatenate([table.to_numpy(float).ravel() for table in panels.values()])
    colours_of = {"cmap": "viridis", "vmin": np.nanmin(values), "vmax": np.nanmax(values)} | colours_of
    figure, grid = _panels(len(panels), *size, sharey=True)
    for axes, (title, table) in zip(grid, panels.items(), strict=True):
        cells = texts[title] if texts else table.map("{:.2f}".format)
        # without a mask a cell without a value is drawn as the rest of the frame, and its text is not shown
        sns.heatmap(table, annot=cells, fmt="", cbar=False, ax=axes, annot_kws={"fontsize": 8}, **colours_of)
        axes.grid(False)
        axes.tick_params(length=0, labelrotation=0)
        axes.set(xlabel="", ylabel="")
        axes.set_title(title, fontsize=10, loc="left")
        for row, column in framed:
            axes.add_patch(plt.Rectangle((column, row), 1, 1, fill=False, ec=BEST, lw=2, clip_on=False))
    figure.colorbar(grid[0].collections[0], ax=grid, shrink=0.8, label=label)
    return figure, grid


# ---------------------------------------------------------------- points and lines


def _chance(value: str, fpr_limit: float) -> float | None:
    """What scores drawn by chance have of a metric, by its column; none where that depends on the images."""
    return {"image_auroc": 0.5, "pixel_auroc": 0.5, "aupro": fpr_limit / 2}.get(value)


def intervals(metrics: pd.DataFrame, value: str = "image_auroc", shots: int = 0, fpr_limit: float = 0.3) -> Figure:
    """Points with 95 % intervals per category, one colour per method, n beside each category.

    ``fpr_limit``: that of the AUPRO, in (0, 1]; maps drawn by chance have half of it.
    """
    rows = metrics[metrics.shots == shots].drop_duplicates(["method", "category"])
    order = tables.order_categories(metrics)
    counts = rows.drop_duplicates("category").set_index("category").reindex(order)
    ticks = {name: f"{name}  (n = {row.n_good:.0f} + {row.n_defective:.0f})" for name, row in counts.iterrows()}
    low, high = f"{value}_low", f"{value}_high"
    figure, axes = _point_rows(rows, "category", value, ticks, low, high, colours(metrics.method))
    title = tables.TITLES[value] + ("; bars: 95 % interval" if low in rows else "")
    if (chance := _chance(value, fpr_limit)) is not None:
        _dash(axes, chance)
        title += "; dashed: chance"
    axes.set(xlim=(0, 1.02), xlabel=title)
    _separate_groups(axes, metrics, order)
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
    figure, grid = _panels(len(values), 4.2 * len(values), 3.4)
    for axes, value in zip(grid, values, strict=True):
        draws = metrics.groupby(["method", "shots", "seed"], sort=False)[value].mean().reset_index()
        draws = draws.assign(place=draws.shots.map(places))
        how = {"data": draws, "x": "place", "y": value, "hue": "method", "palette": palette, "ax": axes}
        sns.lineplot(**how, errorbar=None, lw=1.5)
        sns.scatterplot(**how, s=20, alpha=0.6, legend=False, linewidth=0)
        axes.get_legend().remove()
        chance = _chance(value, fpr_limit)
        _dash(axes, chance, across=True, label="chance")
        axes.set(xlabel="reference images (shots)", ylabel=tables.TITLES[value])
        axes.set_xticks(list(places.values()), map(tables.format_shots, places))
        axes.set_ylim(min(chance - 0.05, draws[value].min() - 0.03), 1.01)
    _legend(figure, grid[:1], ncols=2 * len(values))
    return figure


def grids(
    maps: dict[str, np.ndarray], label: str, image: str | None = None, cell: tuple[int, int] | None = None
) -> Figure:
    """Small maps side by side on one colour scale, after the image they belong to; ``cell`` (row, column) is framed."""
    count = len(maps) + bool(image)
    figure, panels = _panels(count, 1.9 * count, 2.5)
    if image:
        first = panels.pop(0)
        thumbnail = load_thumbnail(image)
        first.imshow(thumbnail)
        first.set_title("image", fontsize=9)
        _bare(first)
    values = np.concatenate([anomaly_map.ravel() for anomaly_map in maps.values()])
    limits = {"vmin": values.min(), "vmax": max(values.max(), values.min() + 1e-6)}
    for axes, (title, anomaly_map) in zip(panels, maps.items(), strict=True):
        colour_scale = axes.imshow(anomaly_map, cmap=MAP, **limits)
        axes.set_title(title, fontsize=9)
        _bare(axes)
    figure.colorbar(colour_scale, ax=panels, shrink=0.7, label=label)
    if cell:
        for axes in panels:
            _frame(axes, cell, 1, 1)
        if image:
            rows, columns = anomaly_map.shape
            _frame(first, cell, thumbnail.shape[0] / rows, thumbnail.shape[1] / columns)
    return figure


def _frame(axes: plt.Axes, cell: tuple[int, int], height: float, width: float) -> None:
    """A frame around a cell (row, column) of a grid of cells of this height and width."""
    corner = (cell[1] * width - 0.5, cell[0] * height - 0.5)
    axes.add_patch(plt.Rectangle(corner, width, height, fill=False, edgecolor="#00c2d1", lw=1.5))


def _separate_groups(axes: plt.Axes, table: pd.DataFrame, order: list[str], edge: float = 0.5) -> None:
    """Lines between the groups of categories in rows; ``edge`` is how far below its place a row ends."""
    groups = table.drop_duplicates("category").set_index("category").group.loc[order]
    for place in np.flatnonzero(groups.to_numpy()[1:] != groups.to_numpy()[:-1]):
        axes.axhline(place + edge, color="#8a8f98", lw=0.8)


def load_thumbnail(image: str, width: int = 240) -> np.ndarray:
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
    left, right, bottom, top = _place(axes, cell, load_thumbnail(row.image), title)
    if outline and row.mask:
        mask = mask_files.framed_mask(row.mask, row.width, row.height, "squash", 240)
        axes.contour(mask, [0.5], colors=BEST, linewidths=1, extent=(left, right, top, bottom))


def maps(results: Results, rows: pd.DataFrame, titles: Sequence[str] | None = None) -> Figure:
    """Images above their anomaly maps; the maps of a category share one colour scale over all its test images.

    A region of interest is outlined in the map.
    """
    frames, regions = results.framed(rows), results.inside(rows)
    limits = {key: map_limits(results, *key) for key in set(zip(rows.variant, rows.category, strict=True))}
    figure, axes = _sheet(2, len(rows))
    for column, (row, frame, title) in enumerate(zip(rows.itertuples(), frames, titles or _named(rows), strict=True)):
        _draw(axes, (0, column), row, title)
        low, high = limits[row.variant, row.category]
        left, right, bottom, top = _place(
            axes, (1, column), frame, f"score {row.score:.3f}", cmap=MAP, vmin=low, vmax=high
        )
        if (inside := regions[column]) is not None:
            axes.contour(inside, [0.5], colors=BEST, linewidths=1, extent=(left, right, top, bottom))
    return figure


def map_limits(results: Results, variant: str, category: str) -> tuple[float, float]:
    """Colour limits of a category: the 1st and 99.9th percentile of all its maps, never one image's own."""
    rows = results.scores[(results.scores.variant == variant) & (results.scores.category == category)]
    values = np.concatenate([anomaly_map.ravel() for anomaly_map in results.maps(rows)])
    low, high = np.quantile(values, [0.01, 0.999])
    return float(low), float(max(high, low + 1e-6))


def dots(
    table: pd.DataFrame, label: str, value: str, title: str, n: str = "images", chance: float | None = 0.5
) -> Figure:
    """Points with their 95 % intervals (columns ``low``, ``high``) in rows by ``label``, one colour per method.

    A row tells its n, where methods differ the smallest, and its ``categories`` where the table has them; points of
    fewer than ``tables.SMALL`` are hollow.
    """
    counts = table.groupby(label, sort=False)[[n, *({"categories"} & set(table))]].min()
    ticks = {name: f"{name}  (n = {count:.0f})" for name, count in counts[n].items()}
    if "categories" in table and n == "images":
        texts = counts.images.map("  (n = {} images, ".format) + counts.categories.map(tables.format_categories) + ")"
        ticks = {name: f"{name}{text}" for name, text in texts.items()}
    figure, axes = _point_rows(table, label, value, ticks)
    names = list(dict.fromkeys(table.method))
    few = table[table[n] < tables.SMALL]
    places = few[label].map(list(ticks).index) + few.method.map(lambda name: _dodge(names.index(name), len(names)))
    axes.scatter(few[value], places, s=14, color="white", zorder=4)
    if chance is not None:
        _dash(axes, chance)
    dashed = "; dashed: chance" if chance is not None else ""
    axes.set(xlim=(-0.02, 1.02), xlabel=f"{title}; bars: 95 % interval{dashed}; hollow: n < {tables.SMALL}")
    return figure


def recall_curves(curves: pd.DataFrame, measures: dict[str, str], label: str) -> Figure:
    """Recall against each measure (column: axis label) with its band (``by_defect.estimate_recall_curve``)."""
    palette, shown = colours(curves.method), [name for name in measures if (curves.measure == name).any()]
    figure, grid = _panels(len(shown), 4.6 * len(shown), 3.6, sharey=True)
    for axes, measure in zip(grid, shown, strict=True):
        for name, rows in curves[curves.measure == measure].groupby("method", sort=False):
            axes.fill_between(rows.value, rows.low, rows.high, color=palette[name], alpha=0.18, lw=0)
            axes.plot(rows.value, rows.recall, color=palette[name], label=name)
        axes.set(xlabel=measures[measure], ylim=(-0.03, 1.03))
        _log_axis(axes, curves.value[curves.measure == measure])
    grid[0].set_ylabel(label)
    _legend(figure, grid)
    return figure


def cells(table: pd.DataFrame, rows: str, columns: str, value: str, label: str) -> Figure:
    """A heat map by method of ``value`` in [0, 1] over two columns, in their categories' order, a panel a method.

    A cell tells its value, its interval (``low``, ``high``) and its ``images`` and ``categories``; one without images
    is empty.
    """
    lines = [
        f"{share:.2f}\n{cell.low:.2f} to {cell.high:.2f}\n"
        f"n = {cell.images},\n{tables.format_categories(cell.categories)}"
        for share, cell in zip(table[value], table.itertuples(), strict=True)
    ]
    wide = {
        column: {
            method: own.pivot(index=rows, columns=columns, values=column)
            .reindex(index=table[rows].cat.categories, columns=table[columns].cat.categories)
            for method, own in table.assign(text=lines).groupby("method", sort=False)
        }
        for column in (value, "text")
    }  # fmt: skip
    size = (0.9 + 4.4 * len(wide[value]), 3.9)
    figure, grid = _heat_maps(wide[value], wide["text"], label, size, vmin=0, vmax=1)
    for axes in grid:
        axes.set_xlabel(columns)
    grid[0].set_ylabel(rows)
    return figure


def _log_axis(axes: plt.Axes, values: pd.Series) -> None:
    """A logarithmic axis with plain numbers, and several ticks where the positive values span little."""
    axes.set_xscale("log")
    positive = values[values > 0]
    narrow = len(positive) and positive.max() < 50 * positive.min()  # where powers of ten would be one tick, or two
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())


MARKS = {"paper": ("D", "#30343b"), "study": ("X", "#b5326e")}


def beside(points: pd.DataFrame, title: str, label: str = "image AUROC") -> Figure:
    """Figures by category, a panel a method: paper, study and reruns, ours in its colour with interval.

    ``points`` has the columns of ``published.collect_points``.
    """
    order, methods = tables.order_categories(points), list(dict.fromkeys(points.method))
    figure, grid = _panels(len(methods), 8.6, 1.7 + 0.27 * len(order), sharey=True)
    marks = _marks(points)
    for axes, method in zip(grid, methods, strict=True):
        for who, rows in points[points.method == method].groupby("who", sort=False):
            shape, colour = marks[who]
            hollow = {"ms": 7, "mfc": "none"} if who == "paper" else {"ms": 5}
            places = rows.category.map(order.index)
            _bars(axes, places, rows.value, rows.low, rows.high, colour, shape, label=who, **hollow)
        _dash(axes, 0.5)
        axes.set(xlim=(0, 1.02), xlabel=f"{label}; dashed: chance", yticks=range(len(order)), yticklabels=order)
        axes.set_title(method, fontsize=10, loc="left")
        _separate_groups(axes, points, order)
    grid[0].invert_yaxis()
    _legend(figure, grid, "outside lower left")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure


def _marks(points: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Shape and colour by source: reruns in grey shapes, ours as dots in the methods' colours."""
    others = [who for who in dict.fromkeys(points.who) if who.endswith("rerun)")]
    ours = [who for who in dict.fromkeys(points.who) if who not in MARKS and who not in others]
    shapes = {who: ("s^v<>phd*"[number % 9], "#9aa1ab") for number, who in enumerate(others)}
    return MARKS | shapes | {who: ("o", colour) for who, colour in colours(ours).items()}


# ---------------------------------------------------------------- sweeps

GROUPS = dict(zip(config.GROUPS, OTHERS, strict=False)) | {"all": NEUTRAL}


def over_severity(table: pd.DataFrame, label: str, level: float, highest: float = np.inf) -> Figure:
    """Values with their 95 % intervals against the severity, a panel a shift, a line a method, dashed with references.

    ``table`` as made by ``robustness.summarise`` by severity; ``level`` is where the images as they are stand,
    ``highest`` the largest value there can be.
    """
    panels = list(table.groupby("shift", sort=False))
    names, width, height = list(dict.fromkeys(table.name)), min(len(panels), 4), -(-len(panels) // 4)
    methods = {name: name.rpartition(", ")[0] for name in names}
    palette = colours(methods.values())
    figure, grid = plt.subplots(
        *(height, width), figsize=(1.2 + 2.3 * width, 0.9 + 2.3 * height), squeeze=False, layout="constrained",
        sharex=True, sharey=True,
    )  # fmt: skip
    for axes in grid.flat[len(panels) :]:
        _bare(axes)
    for axes, (shift, lines) in zip(grid.flat, panels, strict=False):
        _dash(axes, level, across=True)
        for number, (name, rows) in enumerate(lines.groupby("name", sort=False)):
            places = rows.severity + _dodge(number, len(names), 0.12 * len(names))
            stroke = "o-" if name.endswith(tables.name_shots(0)) else "s--"
            high = rows.high.clip(upper=highest)
            _columns(axes, places, rows["mean"], rows.low, high, palette[methods[name]], stroke, label=name)
        axes.set_title(shift, fontsize=9, loc="left")
        axes.set_xticks(sorted(table.severity.unique()))
    ends = np.r_[table["mean"], level]
    reach = max(np.ptp(ends), 0.05)  # wider intervals are cut: one of few units would flatten all the rest
    grid[0, 0].set_ylim(ends.min() - 0.6 * reach, min(ends.max() + 0.6 * reach, highest + 0.02 * reach))
    figure.supxlabel("severity; bars: 95 % interval, cut at the frame; dashed: as before", fontsize=9)
    figure.supylabel(label, fontsize=9)
    _legend(figure, grid[0, :1])
    return figure


def differences(table: pd.DataFrame, rows: str, hue: str = "", colour: str = NEUTRAL) -> Figure:
    """Differences with their 95 % intervals, a panel a measure and a line for each value of the column ``rows``.

    ``table`` has the columns measure, difference, low, high (cut at 1) and n; lines in order of appearance, a colour
    for each value of the column ``hue`` where one is named; of methods (``hue`` "method") their own.
    """
    table = table.dropna(subset="difference")
    table = table.assign(low=table.low.clip(-1, 1), high=table.high.clip(-1, 1), shade=table[hue] if hue else "")
    names, panels = list(dict.fromkeys(table[rows])), list(table.groupby("measure", sort=False))
    inks = (OTHERS[2], OTHERS[0], *OTHERS[3:]) if hue else (colour,)
    shades = dict(zip(sorted(table.shade.unique()), inks, strict=False))
    shades = colours(list(dict.fromkeys(table.shade))) if hue == "method" else shades
    height = 1.4 + (0.33 + 0.1 * (len(shades) - 1)) * len(names)
    width = 0.6 + 0.085 * max((len(str(name)) for name in names), default=0)  # inches that the names take
    figure, grid = _panels(len(panels), width + 3 * len(panels), height, sharey=True)
    for axes, (measure, lines) in zip(grid, panels, strict=True):
        for number, (shade, ink) in enumerate(shades.items()):
            some = lines[lines.shade == shade]
            places = some[rows].map(names.index) + _dodge(number, len(shades), 0.32 * len(shades))
            _bars(axes, places, some.difference, some.low, some.high, ink, ms=5, label=shade)
        _dash(axes, 0)
        counts = " to ".join(str(int(n)) for n in sorted({lines.n.min(), lines.n.max()}))
        reach = 1.08 * max(0.01, lines[["low", "high", "difference"]].abs().to_numpy().max())
        axes.set(xlim=(-reach, reach), yticks=range(len(names)), yticklabels=names)
        axes.set_xlabel(f"difference in {tables.TITLES.get(measure, measure)}\nbars: 95 % interval, n = {counts}")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(4, steps=[1, 2, 5, 10]))  # more would touch
    grid[0].set_ylim(len(names) - 0.5, -0.5)
    if hue:
        _legend(figure, grid[:1], ncols=2)
    return figure


def cosines(table: pd.DataFrame) -> Figure:
    """Cosines between texts, every pair once over, as a picture with its numbers."""
    figure, (axes,) = _heat_maps({"": table}, None, "cosine", (2.4 + 0.5 * len(table), 1 + 0.42 * len(table)))
    plt.setp(axes.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
    return figure


def latencies(costs: pd.DataFrame, published: pd.DataFrame | None = None) -> Figure:
    """Milliseconds per image from zero: measured here with the range of the timings; below, published ones.

    Each has an axis of its own, as other machines and backbones may take a hundred times as long.
    """
    palette, labels = colours(costs.method), [costs.method + "\n" + costs.backbone + ", " + costs.precision]
    if published is not None and len(timed := published[published["ms per image"] > 0]):
        backbones = timed.backbone.where(timed.backbone != "", "?")
        labels.append(timed.method + "\n" + backbones + ", " + timed.input_px.map(_pixels) + timed.hardware)
    heights = [len(names) for names in labels]
    size = (6.5, 0.9 * len(heights) + 0.42 * sum(heights))
    figure, grid = plt.subplots(len(heights), figsize=size, height_ratios=heights, squeeze=False, layout="constrained")
    for place, row in enumerate(costs.itertuples()):
        _bars(grid[0, 0], place, row.encode, row.low, row.high, palette[row.method], ms=7)
    if len(labels) > 1:
        grid[1, 0].plot(timed["ms per image"], range(len(timed)), "D", color="#6b7785", ms=5)
    for axes, names, where in zip(grid[:, 0], labels, ("here", "published"), strict=False):
        axes.set_yticks(range(len(names)), names, fontsize=9)
        axes.set(ylim=(len(names) - 0.5, -0.5), xlabel=f"ms per image, {where}")
        axes.set_xlim(0, 1.05 * axes.get_xlim()[1])
    return figure


def worth(points: pd.DataFrame, label: str) -> Figure:
    """Accuracy with its interval (value, low, high) beside ms an image, a row a name, the most accurate on top."""
    points, palette = points.sort_values("value", na_position="first"), colours(points.method)
    figure, (left, right) = _panels(2, 9, 1.2 + 0.28 * len(points), sharey=True, width_ratios=(3, 2))
    for place, row in enumerate(points.itertuples()):
        _bars(left, place, row.value, row.low, row.high, palette[row.method], ms=5)
        right.plot(row.ms, place, "o", color=palette[row.method], ms=5)
    left.set_yticks(range(len(points)), points.name)
    left.set_xlabel(f"{label}; bars: 95 % interval")
    _log_axis(right, points.ms)
    right.set_xlabel("ms per image on this machine (log scale)")
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
    lines = len(names) * len(rules)
    figure, grid = _panels(len(panels), 4.4 * len(panels), 3.9)
    for axes, (value, title) in zip(grid, panels.items(), strict=True):
        for number, ((name, rule), rows) in enumerate(table.groupby(["method", "rule"], sort=False)):
            at = rows[x].map(places.index) + _dodge(number, lines, 0.08 * lines)
            low, high = rows[f"{value}_low"], rows[f"{value}_high"]
            _columns(axes, at, rows[value], low, high, palette[name], "o", ls=strokes[rule], label=f"{name}, {rule}")
        axes.set(xlabel=f"{label}; bars: 95 % interval", ylabel=title, xticks=range(len(places)))
        axes.set_xticklabels([f"{place:g}" for place in places])
        axes.set_ylim(bottom=0)
    for number, (name, level) in enumerate((marks or {}).items()):
        _dash(grid[0], level, across=True, ls=("-.", ":")[number % 2], label=name)
    _legend(figure, grid[:1], "outside lower left", 2)
    return figure


def reliability(curves: dict[tuple[str, str], pd.DataFrame]) -> Figure:
    """Share of defective images against the mean score of a bin, by (method, version); a panel a method."""
    methods, versions = (list(dict.fromkeys(key[place] for key in curves)) for place in (0, 1))
    shades = dict(zip(versions, (NEUTRAL, OTHERS[0], OTHERS[1]), strict=False))
    figure, grid = _panels(len(methods), 4.3 * len(methods), 4.4, sharey=True)
    for axes, method in zip(grid, methods, strict=True):
        axes.plot([0, 1], [0, 1], color="#8a8f98", lw=1, ls="--")
        own = {version: bins for (name, version), bins in curves.items() if name == method}
        for version, bins in own.items():
            _columns(axes, bins.score, bins.share, bins.low, bins.high, shades[version], label=version)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="mean score of a bin; dashed: calibrated")
        count = next(int(bins.n.sum()) for bins in own.values())
        axes.set_title(f"{method}  (n = {count} images)", fontsize=10, loc="left")
    grid[0].set_ylabel("share of defective images; bars: 95 % interval")
    _legend(figure, grid[:1], "outside lower left")
    return figure


def lent(
    table: pd.DataFrame, panels: dict[str, str],
    labels: tuple[str, str, str] = ("category of the threshold", "judged category", "share; numbers in %"),
) -> Figure:  # fmt: skip
    """Heat maps of values in [0, 1] from ``source`` (rows) to ``target`` (columns), a panel a column; own ones framed.

    As made by ``costs.transfer_thresholds`` or ``prompt_transfer.pivot_transfer``; ``labels``: of rows, columns and
    colours. A cell without a value is crossed out.
    """
    sources, targets = (list(dict.fromkeys(table[side])) for side in ("source", "target"))
    wide = {
        title: table.pivot(index="source", columns="target", values=value).loc[sources, targets].astype(float)
        for value, title in panels.items()
    }
    texts = {title: (100 * values).map("{:.0f}".format) for title, values in wide.items()}
    framed = [(sources.index(name), targets.index(name)) for name in sources if name in targets]
    size = (1.6 + (0.6 + 0.33 * len(targets)) * len(panels), 1.9 + 0.3 * len(sources))
    figure, grid = _heat_maps(wide, texts, labels[2], size, framed, cmap=MAP, vmin=0, vmax=1)
    for axes, values in zip(grid, wide.values(), strict=True):
        for row, column in np.argwhere(values.isna().to_numpy()):
            axes.text(column + 0.5, row + 0.5, "×", ha="center", va="center")
        axes.set_xlabel(labels[1])
        plt.setp(axes.get_xticklabels(), rotation=60, ha="right", rotation_mode="anchor")
    grid[0].set_ylabel(labels[0])
    return figure


# ---------------------------------------------------------------- failures


def odds(table: pd.DataFrame) -> Figure:
    """Odds ratios with their intervals on a log axis, one colour per method; ``table`` of ``failures.estimate_odds``.

    Those without an interval are left out.
    """
    edge = 50.0
    table = table.dropna(subset="low")
    table = table.assign(low=table.low.clip(lower=1 / edge), high=table.high.clip(upper=edge))
    figure, axes = _point_rows(table, "input", "odds ratio", {name: name for name in table.input})
    _dash(axes, 1)
    axes.set(xscale="log", xlabel="odds ratio of an escape (log scale); bars: 95 % for all together; dashed: no effect")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    return figure
