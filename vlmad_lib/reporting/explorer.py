"""One panel to look with: an image, what a method makes of it, other windows and words for it, and a threshold.

Everything is read from a run: its tables, its maps and the features it kept, so nothing but prompts is encoded.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from html import escape
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas as pd

from vlmad_lib import InputError, methods, tables
from vlmad_lib.analysis import sweeps, thresholds, wordings
from vlmad_lib.config import Method
from vlmad_lib.data import datasets
from vlmad_lib.evaluation.statistics import percent
from vlmad_lib.pipeline.results import Results
from vlmad_lib.reporting import figures, looks

PARTS = ("image", "window", "words", "threshold")
NARROWING = ("category", "method", "shots", "image")
"""What is chosen, each among what the choices before it leave."""
AS_RUN = "as run"


class Panel(widgets.VBox):
    """The panel on a run. ``show`` names its parts; ``kind`` is the method to begin with, as profiles name it.

    ``normal`` is the scores table of normal training images (``thresholds.normal_scores``). The threshold begins where
    a share ``alpha`` of those exceeds it, or of the good test images where there are none. InputError for other parts.
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
        self.part = None
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
        self.told, self.pictures, self.judgement = (widgets.HTML() for _ in range(3))
        chosen = [self.choices[name] for name in ("category", "image", "method", "shots")]
        rows = [chosen[:2], chosen[2:], [self.window], [self.good, self.bad], [self.told], [self.pictures]]
        super().__init__([*map(widgets.HBox, rows), self.limit, self.judgement])
        for box in chosen:
            box.observe(lambda _: self._fill({name: one.value for name, one in self.choices.items()}), "value")
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
            self.choices[name].value = value if value in [one for _, one in offered] else offered[0][1]
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
        sizes = getattr(settings, "windows", [])
        offered = ((AS_RUN, 0), *((f"{size} x {size} alone", size) for size in sizes))
        if self.window.options != offered:
            self.window.options = offered
        pair, word = hasattr(settings, "own_normal"), hasattr(settings, "word")
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
        (part,) = thresholds.collect_scores(scores[alike], self.normal, int(row.shots))
        if self.part and all(np.array_equal(*(getattr(one, k) for one in (part, self.part))) for k in ("good", "bad")):
            return
        self.part, every = part, np.concatenate([part.good, part.bad, part.train])
        calm, low, high = self._calm(), every.min(), every.max()
        edge = max((high - low) / 20, 1e-6)
        low, high = float(low - edge), float(high + edge)
        self.limit.max = max(high, self.limit.max)  # a range beyond the last one would be refused
        self.limit.min, self.limit.max, self.limit.step = low, high, float(edge / 20)
        self.limit.value = thresholds.quantile(calm, self.alpha) if len(calm) else (low + high) / 2

    def _calm(self) -> np.ndarray:
        return self.part.train if len(self.part.train) else self.part.good

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
                self.told.value = "Asking; what is asked first loads the backbone …"
                score, found = looks.asked(self.results, row, spec)
                said.append(f"As asked: {score:.3f}, in {time.perf_counter() - started:.2f} s.")
                maps["as asked"] = found
                limits = min(limits[0], float(found.min())), max(limits[1], float(found.max()))  # one scale for both
        except InputError as error:
            said.append(str(error))
        self.told.value, self.pictures.value = escape(" ".join(said)), looks.pictures(row, maps, limits)

    def _changed(self) -> Method | None:
        """The method with the windows and words asked for; none where nothing is. InputError for half a pair."""
        base = spec = self.specs.get(self.row.method)
        if self.window.value:
            spec = sweeps.of_sizes(spec, [self.window.value])
        good, bad = self.good.value.strip(), self.bad.value.strip()
        return None if (spec := wordings.own(spec, good, bad) if good or bad else spec) == base else spec

    def _judge(self) -> None:
        """What the threshold makes of the category and of this image."""
        if self.filling or "threshold" not in self.show:
            return
        limit, score, calm = self.limit.value, self.row.score, self._calm()
        said = f"This image, {score:.3f}, is {'rejected' if score > limit else 'accepted'}, by its score as run. "
        if len(calm):
            source = "normal training images" if len(self.part.train) else "good test images"
            said += f"The threshold began at the {percent(1 - self.alpha)} quantile of {len(calm)} {source}."
        shown = looks.scores(self.part, limit, score), looks.counts(self.part, limit)
        self.judgement.value = f"<p>{escape(said)}</p>{''.join(shown)}"


def _offers(rows: pd.DataFrame, name: str) -> list[tuple[str, object]]:
    """The values of a column with what people read; defective images first."""
    if name == "image":
        first = rows.drop_duplicates("image").sort_values("label", ascending=False, kind="stable")
        return [(f"{row.defect} / {Path(row.image).stem}", row.image) for row in first.itertuples()]
    if name == "shots":
        return [(tables.name_shots(one), one) for one in sorted(rows.shots.unique().tolist())]
    return [(one, one) for one in (tables.order_categories(rows) if name == "category" else dict.fromkeys(rows[name]))]


def _shown(wanted: bool) -> str | None:
    """How a widget's layout says that it is there, or not."""
    return None if wanted else "none"
