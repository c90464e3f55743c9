"""One panel to look with: an image, what a method makes of it, other windows and words for it, and a threshold.

Everything is read from a run: its tables, its maps and the features it kept, so nothing but prompts is encoded.
"""

from __future__ import annotations

import io
import time
from base64 import b64encode
from collections.abc import Collection
from html import escape
from pathlib import Path

import ipywidgets as widgets
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image

from vlmad_lib import InputError, methods, tables
from vlmad_lib.analysis import prompt_variants, thresholds, variants
from vlmad_lib.config import Method
from vlmad_lib.data import datasets, mask_files, regions
from vlmad_lib.evaluation import metrics
from vlmad_lib.evaluation.statistics import percent
from vlmad_lib.pipeline import run, scoring
from vlmad_lib.pipeline.results import Results
from vlmad_lib.reporting import figures

# what the panel can have
PARTS = ("image", "window", "words", "threshold")
# what is chosen, each among what the choices before it leave
NARROWING = ("category", "method", "shots", "image")
AS_RUN = "as run"


class Panel(widgets.VBox):
    """The panel on a run. ``show`` names its parts; ``kind`` is the method to begin with, as profiles name it.

    ``normal`` is the scores table of normal training images, if they were scored. The threshold begins where a share
    ``alpha`` of those exceeds it, or of the good test images where there are none. InputError for other parts.
    """

    def __init__(
        self, results: Results, show: Collection[str] = PARTS, kind: str = "",
        normal: pd.DataFrame | None = None, alpha: float = 0.1,
    ):  # fmt: skip
        if not set(show) <= set(PARTS):
            raise InputError(f"The panel has the parts {', '.join(PARTS)}; 'show' asks for {', '.join(show)}.")
        self.results, self.show, self.normal, self.alpha = results, show, normal, alpha
        self.filling = False
        self.specs = {methods.choose(spec, results.profile).name: spec for spec in results.profile.methods}
        self.scores: thresholds.CategoryScores | None = None
        self._make()
        first = datasets.choose_example(results.index)
        of_kind = [name for name, spec in self.specs.items() if spec.method == kind]
        self._fill({"category": first.category, "image": first.image, "method": (of_kind or [None])[0]})

    def _make(self) -> None:
        """The widgets, and what each of them sets going."""
        wide = {"style": {"description_width": "11em"}}
        narrow = wide | {"layout": {"width": "28em"}}
        self.choices = {name: widgets.Dropdown(description=name, **narrow) for name in NARROWING}
        self.window = widgets.Dropdown(description="windows", **narrow)
        written = narrow | {"placeholder": AS_RUN, "continuous_update": False}
        self.good, self.bad = (widgets.Text(description=name, **written) for name in ("normal prompt", "anomalous"))
        self.limit = widgets.FloatSlider(
            description="threshold", readout_format=".3f", continuous_update=False, layout={"width": "46em"}, **wide
        )
        self.message, self.pictures, self.judgement = (widgets.HTML() for _ in range(3))
        chosen = [self.choices[name] for name in ("category", "image", "method", "shots")]
        rows = [chosen[:2], chosen[2:], [self.window], [self.good, self.bad], [self.message], [self.pictures]]
        super().__init__([*map(widgets.HBox, rows), self.limit, self.judgement])
        for box in chosen:
            box.observe(lambda _: self._fill({name: choice.value for name, choice in self.choices.items()}), "value")
        for box in (self.window, self.good, self.bad):
            box.observe(lambda _: self._look(), "value")
        self.limit.observe(lambda _: self._judge(), "value")
        self.limit.layout.display = _shown("threshold" in self.show)

    # ------------------------------------------------------------ what can be chosen

    def _fill(self, wanted: dict) -> None:
        """Offer what the run has, keep what is wanted and still there, and show it."""
        if self.filling:
            return
        self.filling, rows = True, self.results.scores  # what is set here is no choice of the person
        for name in NARROWING:
            offered, value = _offers(rows, name), wanted.get(name)
            self.choices[name].options = offered
            self.choices[name].value = value if value in [kept for _, kept in offered] else offered[0][1]
            rows = rows[rows[name] == self.choices[name].value]
        self.row = rows[rows.seed == rows.seed.min()].iloc[0]
        self._offer_changes()
        self._offer_threshold()
        self.filling = False
        self._look()
        self._judge()

    def _offer_changes(self) -> None:
        """Windows and words, where the method has them."""
        spec = self.specs.get(self.row.method)
        settings = methods.choose(spec, self.results.profile).settings if spec else None
        fields = settings.model_dump() if settings else {}
        sizes = fields.get("windows", [])
        offered = ((AS_RUN, 0), *((f"{size} x {size} alone", size) for size in sizes))
        if self.window.options != offered:
            self.window.options = offered
        pair, word = "own_normal" in fields, "word" in fields
        called = "anomalous prompt" if pair else 'word for "damaged"'
        if self.bad.description != called:  # what was written for another method means nothing to this one
            self.bad.description, self.bad.value, self.good.value = called, "", ""
        for box, there in ((self.good, pair), (self.bad, pair or word)):
            box.layout.display = _shown("words" in self.show and there)
        self.window.layout.display = _shown("window" in self.show and len(sizes) > 1)

    def _offer_threshold(self) -> None:
        """The range of a category's scores, beginning where normal images say; kept for another image of it."""
        row, scores = self.row, self.results.scores
        alike = (scores.category == row.category) & (scores.method == row.method) & (scores.shots == row.shots)
        before = self.scores
        (self.scores,) = thresholds.collect_scores(scores[alike], self.normal, int(row.shots))
        pairs = [(before.good, self.scores.good), (before.bad, self.scores.bad)] if before else []
        if pairs and all(np.array_equal(*pair) for pair in pairs):
            return
        every = np.concatenate([self.scores.good, self.scores.bad, self.scores.train])
        calm, low, high = self._calm(), every.min(), every.max()
        edge = max((high - low) / 20, 1e-6)
        low, high = float(low - edge), float(high + edge)
        self.limit.max = max(high, self.limit.max)  # a range beyond the last one would be refused
        self.limit.min, self.limit.max, self.limit.step = low, high, float(edge / 20)
        self.limit.value = thresholds.quantile(calm, self.alpha) if len(calm) else (low + high) / 2

    def _calm(self) -> np.ndarray:
        return self.scores.train if len(self.scores.train) else self.scores.good

    # ------------------------------------------------------------ what is shown

    def _look(self) -> None:
        """The image with its maps: as run and, where windows or words are asked for, as asked."""
        if self.filling or "image" not in self.show:
            return
        row, maps, limits, said = self.row, {}, (0.0, 1.0), [f"Score {self.row.score:.3f} as run."]
        try:
            if row.map_file:
                maps[AS_RUN] = self.results.framed(pd.DataFrame([row]))[0]
                limits = figures.map_limits(self.results, row.variant, row.category)
            else:
                said.append(f"{row.method} has scores, but no maps.")
            spec, started = self._changed(), time.perf_counter()
            if spec:
                self.message.value = "Asking; what is asked first loads the backbone …"
                score, anomaly_map = score_by_method(self.results, row, spec)
                said.append(f"As asked: {score:.3f}, in {time.perf_counter() - started:.2f} s.")
                maps["as asked"] = anomaly_map
                ends = [*limits, float(anomaly_map.min()), float(anomaly_map.max())]
                limits = min(ends), max(ends)  # one scale for both
        except InputError as error:
            said.append(str(error))
        self.message.value, self.pictures.value = escape(" ".join(said)), show_maps(row, maps, limits)

    def _changed(self) -> Method | None:
        """The method with the windows and words asked for; none where nothing is. InputError for half a pair."""
        base = spec = self.specs.get(self.row.method)
        if self.window.value:
            spec = variants.set_window_sizes(spec, [self.window.value])
        good, bad = self.good.value.strip(), self.bad.value.strip()
        return (
            None
            if (spec := prompt_variants.set_own_prompts(spec, good, bad) if good or bad else spec) == base
            else spec
        )

    def _judge(self) -> None:
        """What the threshold makes of the category and of this image."""
        if self.filling or "threshold" not in self.show:
            return
        limit, score, calm = self.limit.value, self.row.score, self._calm()
        said = f"This image, {score:.3f}, is {'rejected' if score > limit else 'accepted'}, by its score as run. "
        if len(calm):
            source = "normal training images" if len(self.scores.train) else "good test images"
            said += f"The threshold began at the {percent(1 - self.alpha)} quantile of {len(calm)} {source}."
        shown = plot_scores(self.scores, limit, score), count_decisions(self.scores, limit)
        self.judgement.value = f"<p>{escape(said)}</p>{''.join(shown)}"


def _offers(rows: pd.DataFrame, name: str) -> list[tuple[str, object]]:
    """The values of a column with what people read; defective images first."""
    if name == "image":
        first = rows.drop_duplicates("image").sort_values("label", ascending=False, kind="stable")
        return [(f"{row.defect} / {Path(row.image).stem}", row.image) for row in first.itertuples()]
    if name == "shots":
        return [(tables.name_shots(shots), shots) for shots in sorted(rows.shots.unique().tolist())]
    values = tables.order_categories(rows) if name == "category" else dict.fromkeys(rows[name])
    return [(value, value) for value in values]


def _shown(wanted: bool) -> str | None:
    """How a widget's layout says that it is there, or not."""
    return None if wanted else "none"


# ---------------------------------------------------------------- what the panel shows


def score_by_method(results: Results, row: pd.Series, spec: Method) -> tuple[float, np.ndarray]:
    """Score and map of a row of the scores table by another method, with the row's references, from kept features.

    The map is (H, W) float32 at the evaluation frame; the score that of the image alone
    (``methods.without_category_context``). InputError for settings the method cannot have.
    """
    profile, shots, spec = results.profile, int(row.shots), methods.without_category_context(spec)
    view = run.view_image(profile, row, spec)
    method = methods.choose(spec, profile).settled(view.facts, row.category)
    settings, names = method.settings, method.method.array_names(method.settings, shots)
    reference_rows = method.references(results.index, row.category, shots, int(row.seed)) if shots else None
    store, memory = (method.store(results.cache, view.facts, channels) for channels in ("", "rgb"))
    of_references = method.method.reference_array_names(settings, shots)
    references = memory.load(list(reference_rows.image), of_references) if shots else None
    scorer = scoring.Scorer(method, view.text, view.grid, references, cache=results.cache)
    store.fill([row.image], names)  # the view is of the whole image, also where the method has tiles
    inside = regions.tile_regions(profile, row.category, row.width, row.height, method.fit, view.grid)
    scorer.add(row.image, store.load([row.image], names)[0], inside)
    (score,), maps, _ = scorer.of([row.image])
    size, sigma = profile.evaluation_size, getattr(settings, "sigma", 0)
    return float(score), metrics.framed_map(maps, row.width, row.height, method.fit, size, sigma)


def show_maps(row: pd.Series, maps: dict[str, np.ndarray], limits: tuple[float, float]) -> str:
    """An image, its mask, its maps by name on one colour scale from ``limits``, and the last of them over the image.

    No figure is drawn: a map changes while a person types.
    """
    image = figures.load_thumbnail(row.image)
    height, width = image.shape[:2]
    shown = {"image": image}
    if row["mask"]:
        mask = mask_files.framed_mask(row["mask"], row.width, row.height, "squash", 240)
        shown["mask"] = _resize(np.repeat(mask[..., None] * np.uint8(255), 3, 2), width, height)
    elif row.label:
        shown["image, which has no mask"] = shown.pop("image")
    else:
        shown["mask of a good part: empty"] = np.zeros_like(image)
    low, high = limits
    for name, anomaly_map in maps.items():
        share = np.clip((anomaly_map - low) / max(high - low, 1e-9), 0, 1)
        shown[f"map, {name}"] = _resize(mpl.colormaps[figures.MAP](share, bytes=True)[..., :3], width, height)
    if maps:
        name, last = next(reversed(shown.items()))
        shown[name.replace("map", "overlay")] = (image // 2 + last // 2).astype(np.uint8)
    alt = f"{row.category}, {row.defect}"
    boxes = [f"<div>{name}<br>{_jpeg(pixels, f'{alt}: {name}')}</div>" for name, pixels in shown.items()]
    bar = _colour_bar(low, high) if maps else ""
    return f"<div style='display:flex;flex-wrap:wrap;gap:8px'>{''.join(boxes)}</div>{bar}"


def _resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((width, height)))


def _jpeg(pixels: np.ndarray, alt: str) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "jpeg", quality=85)
    return _tag("jpeg", stream.getvalue(), alt, "width:200px")


def _tag(kind: str, content: bytes, alt: str, style: str = "") -> str:
    return f'<img alt="{escape(alt)}" style="{style}" src="data:image/{kind};base64,{b64encode(content).decode()}">'


def _colour_bar(low: float, high: float) -> str:
    colours = ",".join(mpl.colors.to_hex(colour) for colour in mpl.colormaps[figures.MAP](np.linspace(0, 1, 9)))
    bar = f"<span style='width:240px;height:12px;background:linear-gradient(90deg,{colours})'></span>"
    return f"<div style='display:flex;gap:6px;align-items:center'>all maps: {low:.3f} {bar} {high:.3f}</div>"


def plot_scores(scores: thresholds.CategoryScores, limit: float, own: float) -> str:
    """The scores of a category as an HTML picture, a dot an image, with the threshold; a ring around ``own``."""
    lines = {"defective": (scores.bad, "#b3261e"), "good": (scores.good, "#2a9d6e")}
    lines |= {"normal, training": (scores.train, "#6b7785")} if len(scores.train) else {}
    figure, axes = plt.subplots(figsize=(7, 0.7 + 0.35 * len(lines)), layout="constrained")
    for place, (values, colour) in enumerate(lines.values()):
        axes.plot(values, np.full(len(values), place), "o", color=colour, ms=6, alpha=0.45, mew=0)
        if own in values:
            axes.plot(own, place, "o", ms=11, mfc="none", mec="#30343b")
    axes.axvline(limit, color="#30343b", lw=1.5)
    axes.set_yticks(range(len(lines)), [f"{name} (n = {len(values)})" for name, (values, _) in lines.items()])
    axes.set(ylim=(-0.6, len(lines) - 0.4), xlabel="image score; line: threshold; ring: this image")
    alt = f"{scores.category}: image scores of {scores.method}, good and defective, and the threshold {limit:.3f}"
    return _tag(*figures.encode_figure(figure), alt)


def count_decisions(scores: thresholds.CategoryScores, limit: float) -> str:
    """What a threshold makes of a category, as an HTML table: counts, and rates with Wilson's 95 % interval."""
    (counts,) = thresholds.rated([thresholds.judge(scores, "moved", 0, [(limit, scores.good)])]).to_dict("records")
    lines = []
    for name, n, hits, mistake in (
        ("good", "n_good", "alarms", "false alarm"),
        ("defective", "n_bad", "escapes", "escape"),
    ):
        rate, wrong, total = mistake.replace(" ", "_"), counts[hits], counts[n]
        accepted, rejected = (total - wrong, wrong) if name == "good" else (wrong, total - wrong)
        ends = (
            f"{counts[rate]:.0%} ({counts[f'{rate}_low']:.0%} to {counts[f'{rate}_high']:.0%})" if total else "no image"
        )
        lines.append({"images": name, "accepted": accepted, "rejected": rejected, "mistake": f"{mistake}s: {ends}"})
    return tables.show_table(pd.DataFrame(lines), 0).to_html()
