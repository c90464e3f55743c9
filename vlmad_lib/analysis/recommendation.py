"""Which method to take on a line (notebook 17): what methods give and ask for, and a recommendation for each situation.

The best method is the one with the highest mean. One that asks for less is recommended in its place only where the
interval of what it loses stays inside a stated margin (a test of non-inferiority): that no difference is shown between
two methods is no evidence that they are equal. The best is compared with every other method that competes (Hsu 1996).
Of methods with the same mean as shown, to ``DIGITS`` decimals, the one that asks for least is recommended.

Categories are the unit where there are ``statistics.ENOUGH`` of them: the recommendation then speaks of other products
of the kind. With fewer, the test images are: it then speaks of these products alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
import torch

from vlmad_lib import config, digests, methods, tables
from vlmad_lib.analysis import by_defect, comparison, efficiency
from vlmad_lib.analysis.efficiency import STEPS
from vlmad_lib.config import FULL, Profile, Shots, Strict
from vlmad_lib.data import mask_files
from vlmad_lib.encoders import feature_store
from vlmad_lib.evaluation import pixel_ranking, statistics
from vlmad_lib.pipeline.results import Results
from vlmad_lib.tables import format_count

FAINT = "faint_auroc"
TITLES = tables.TITLES | {FAINT: "AUROC of the faintest defects"}
MEASURED = tuple(tables.MAIN)
MARGINS = {"image_auroc": 0.02, FAINT: 0.02, "pixel_auroc": 0.02, "aupro": 0.03}
"""What a method that asks for less may lose of each measure."""
DIGITS = 3  # decimals at which two means are a tie, as they are shown
BETTER, LESS, TIE, ONLY, NONE = "better", "less", "tie", "only", "none"
"""Verdicts of ``recommend``; where the best has rivals it is ``comparison.NO_DIFFERENCE``."""
GLOSSES = {
    "association": "WinCLIP's comparison with good pictures, without words",
    "patchcore": "a comparison with patches of good pictures, without words",
    "padim": "the spread of good pictures at each place, without words",
    "spade": "a comparison with the nearest good pictures, without words",
}
"""What methods are that no page of their own explains, by the key of the method."""
TOGETHER = 64  # enlarged maps in memory
DRAWS = 2  # reference draws, the first ones, of which pixels are counted image by image: it is most of the work
OWN_DATA = "folder "  # how checkpoints name training data that were a person's own pictures


class Situation(Strict):
    """A line to advise: what decides there, which categories are like its products, and what it can give a method.

    ``references``: good pictures at most (``full``: as many as there are). ``batched``: whether pictures are judged
    many at a time; otherwise methods that score them only together do not compete. ``training``: whether prompts or
    layers that were learned on other products may be used. ``time_limit``: milliseconds an image may take on this
    machine.
    """

    name: str
    measure: Literal["image_auroc", "pixel_auroc", "aupro", FAINT]
    groups: list[Literal[config.GROUPS]] = list(config.GROUPS)
    references: Shots = FULL
    batched: bool = False
    training: bool = True
    time_limit: float | None = None


# ---------------------------------------------------------------- what was measured


def measure_methods(results: Results, contrasts: pd.DataFrame) -> pd.DataFrame:
    """Metrics in [0, 1] by name (method and number of references) and category, averaged over reference draws.

    Columns: name, category, group, ``MEASURED``, method, shots and ``faint_auroc``, the AUROC of the defects in
    ``contrasts`` (from ``by_defect.measure_defects``) that are of the lowest level of contrast.
    """
    values = tables.average_by_category(results.metrics, list(MEASURED))
    kinds = results.metrics.assign(name=tables.name_rows(results.metrics)).drop_duplicates("name")
    values = values.merge(kinds[["name", "method", "shots"]], on="name")
    rows = []
    for (name, category), scores in _faint_scores(results, contrasts).groupby(["name", "category"]):
        shares = [statistics.wins(draw.label.to_numpy(), draw.score.to_numpy()) for _, draw in scores.groupby("seed")]
        auroc = np.mean([share.mean() for share in shares if len(share)] or np.nan)
        rows.append({"name": name, "category": category, FAINT: auroc})
    return values.merge(pd.DataFrame(rows, columns=["name", "category", FAINT]), on=["name", "category"], how="left")


def _levels(results: Results, contrasts: pd.DataFrame) -> pd.Series:
    """The level of contrast of each defect: thirds, or as the profile fixes them."""
    return by_defect.assign_levels(contrasts, limits=results.profile.contrast_limits)


def _faint_scores(results: Results, contrasts: pd.DataFrame) -> pd.DataFrame:
    """The rows of the scores table of normal images and of the faintest defects, with their name."""
    faint = contrasts[_levels(results, contrasts) == by_defect.LEVELS[0]].image
    scores = results.scores.assign(name=tables.name_rows(results.scores))
    return scores[(scores.label == 0) | scores.image.isin(faint)]


def measure_costs(profile: Profile, rows: pd.DataFrame, repeats: int = 1) -> pd.DataFrame:
    """The costs of every method: with the most references that it takes and, where it can, without any.

    Encoding is timed once for both: what they differ by is far less than two timings do. Methods that share an encoder
    have the peak memory of the first of them: a memory bank reads what WinCLIP keeps.
    """
    costs, peaks = [], {}
    for spec in profile.methods:
        encoder = *spec.network.values(), methods.METHODS[spec.method].encode
        costs.append(efficiency.measure_costs(profile, spec, rows, repeats=repeats, memory=peaks.get(encoder)))
        peaks.setdefault(encoder, costs[-1].get("memory"))
        if costs[-1]["shots"] and methods.METHODS[spec.method].zero_shot:
            costs.append(costs[-1] | {"shots": 0, "score": costs[-1]["bare"]})
    return pd.DataFrame(costs)


REQUIREMENTS = ["name", "method", "shots", "batched", "product_name", "learned", "own_masks", "known", "ms", "memory"]
"""What each method asks for: good pictures (``shots``), the product's name, pictures with masks of the user's own."""


def list_requirements(results: Results, costs: pd.DataFrame) -> pd.DataFrame:
    """The columns of ``REQUIREMENTS`` for every method and number of references of a run.

    ``batched``: whether it scores pictures of the product only together. ``learned``: whether it reads prompts or
    layers learned on other products; ``own_masks``: whether these were the user's own pictures, so that he has to have
    them. Published ones ask nothing of him. ``ms`` and ``memory`` (MB) are from ``costs``, of which the next larger
    number of references counts; nan for a method without any, an import.
    """
    chosen = {spec.name: methods.choose(spec, results.profile) for spec in results.profile.methods}
    first = results.metrics.assign(name=tables.name_rows(results.metrics)).drop_duplicates("name")
    timed = costs if len(costs) else pd.DataFrame(columns=["method", "shots", "memory", *STEPS])
    rows = []
    for row in first.itertuples():
        method = chosen.get(row.method)
        timings = timed[timed.method == row.method].sort_values("shots")
        enough = timings[timings.shots >= row.shots]
        cost = next((enough if len(enough) else timings[::-1]).itertuples(), None)
        facts = {
            "batched": bool(method and method.method.scores_whole_category),
            "product_name": bool(method and method.names_product(results.index.iloc[0])),
            "learned": bool(method and method.settings.learned),
            "own_masks": bool(method and method.prompts and method.prompts.trained_on.startswith(OWN_DATA)),
            "known": method is not None,
            "ms": float(sum(getattr(cost, step) for step in STEPS)) if cost else float("nan"),
            "memory": float(cost.memory) if cost else float("nan"),
        }
        rows.append({"name": row.name, "method": row.method, "shots": row.shots} | facts)
    return pd.DataFrame(rows, columns=REQUIREMENTS)


def describe_requirements(row) -> str:
    """What a row of ``list_requirements`` asks of the user besides the picture to judge, in words."""
    if not row.known:
        return "what its imported results do not say"
    needs = ["the product's name"] if row.product_name else []
    needs += ["many unlabelled pictures of the product at once"] if row.batched else []
    needs += [format_count(row.shots, "good picture", "good pictures")] if 0 < row.shots < FULL else []
    needs += ["all good pictures"] if row.shots == FULL else []
    needs += ["pictures with masks of other own products"] if row.own_masks else []
    return " and ".join(needs) or "nothing"


def sort_by_effort(requirements: pd.DataFrame) -> pd.DataFrame:
    """Requirements from the least to the most: nothing, the product's name, unlabelled pictures at once, few and many
    good pictures, masks.

    Of two that ask for the same the faster one goes first, and unknown times last. So do methods of which it is
    unknown what they ask for.
    """
    several = (requirements.shots > 0) | requirements.batched
    conditions = [~requirements.known, requirements.own_masks, several, requirements.product_name]
    kind = np.select(conditions, [4, 3, 2, 1], 0)
    ordered = requirements.assign(kind=kind).sort_values(["kind", "shots", "product_name", "ms"], kind="stable")
    return ordered.drop(columns="kind")


def recall_faint(results: Results, contrasts: pd.DataFrame, rate: float = 0.1) -> pd.DataFrame:
    """``by_defect.summarise_recall`` of the defects of the lowest level of contrast, for every number of shots."""
    levelled = contrasts.assign(level=_levels(results, contrasts))[["image", "level"]]
    scores, by_shots = results.scores.merge(levelled, on="image", how="left"), []
    for shots in sorted(results.scores.shots.unique()):
        recalls = by_defect.summarise_recall(scores, "level", by_defect.LEVELS, rate, shots)
        by_shots.append(recalls[recalls.level == by_defect.LEVELS[0]].assign(shots=shots))
    return pd.concat(by_shots, ignore_index=True)


# ---------------------------------------------------------------- two methods on the same images


@dataclass
class ImageComparison:
    """Differences of two methods of a run on the test images of some categories, paired by image.

    Image AUROCs have the bootstrap's interval and DeLong's test; pixel AUROC and AUPRO have the bootstrap over images,
    with all pixels of an image together: its spread is that of the first ``DRAWS`` reference draws, its middle the
    difference over all of them. Categories are taken as given.
    """

    results: Results
    contrasts: pd.DataFrame
    kept: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        scores = self.results.scores.assign(name=tables.name_rows(self.results.scores))
        self.metrics = self.results.metrics.assign(name=tables.name_rows(self.results.metrics))
        faint = _faint_scores(self.results, self.contrasts)
        self.scores = {"image_auroc": scores, FAINT: faint, "pixel_auroc": scores, "aupro": scores}

    def count(self, measure: str, categories: Sequence[str]) -> tuple[int, int]:
        """How many normal and defective images of some categories a measure rests on."""
        rows = self.scores[measure]
        rows = rows[rows.category.isin(categories)].drop_duplicates("image")
        if measure in ("pixel_auroc", "aupro"):
            rows = rows[(rows.label == 0) | (rows["mask"] != "")]
        return int((rows.label == 0).sum()), int((rows.label == 1).sum())

    def compare(
        self, measure: str, first: str, second: str, categories: Sequence[str], level: float
    ) -> tuple[float, float, float]:
        """The ends of the interval of the first method's measure less the second's, and the p of no difference.

        (nan, nan, 1) where a category has too few images of a class for either.
        """
        if measure in ("pixel_auroc", "aupro"):
            sides = [self._resample_pixels(measure, name, categories) for name in (first, second)]
            if any(side is None for side in sides):
                return np.nan, np.nan, 1.0
            resampled = sides[0] - sides[1]
            shift = self._mean(measure, first, categories) - self._mean(measure, second, categories) - resampled.mean()
            return statistics.bootstrap_ends(resampled + shift, level)
        rows = self.scores[measure]
        rows = rows[rows.category.isin(categories)]
        sides = [rows[rows.name == name] for name in (first, second)]
        _, low, high = statistics.macro_difference(*sides, statistics.resamples_at(level), level=level)
        p = statistics.macro_delong(*sides)
        return (np.nan, np.nan, 1.0) if (low, high) == (-1, 1) else (low, high, p)

    def _mean(self, measure: str, name: str, categories: Sequence[str]) -> float:
        """The macro mean of a metric of the run over some categories, each the mean of its draws."""
        rows = self.metrics[(self.metrics["name"] == name) & self.metrics.category.isin(categories)]
        return float(rows.groupby("category")[measure].mean().mean())

    def _resample_pixels(self, measure: str, name: str, categories: Sequence[str]) -> np.ndarray | None:
        """(R,) macro means of a pixel metric over resampled images, the same ones for every method."""
        resampled = [self._category_pixels(name, category) for category in categories]
        if any(values is None for values in resampled):
            return None
        return np.mean([values[0 if measure == "pixel_auroc" else 1] for values in resampled], axis=0)

    def _category_pixels(self, name: str, category: str) -> np.ndarray | None:
        """(2, R) pixel AUROC and AUPRO over resampled images of a category, means over draws; None with few images."""
        if (name, category) not in self.kept:
            rows = self.scores["aupro"]
            rows = rows[(rows.name == name) & (rows.category == category) & ((rows.label == 0) | (rows["mask"] != ""))]
            images = rows.drop_duplicates("image")
            few = min((images.label == 0).sum(), (images.label == 1).sum()) < statistics.FEW or "" in set(rows.map_file)
            self.kept[name, category] = None if few else self._compute_pixels(rows)
        return self.kept[name, category]

    def _compute_pixels(self, rows: pd.DataFrame) -> np.ndarray:
        profile = self.results.profile
        facts = rows[["image", "mask", "seed", "map_file", "map_row", "sigma"]].to_csv(index=False)
        pixels = digests.digest_files(rows["mask"].unique(), self.results.cache)
        settings = profile.evaluation_size, profile.fpr_limit, statistics.MOST_RESAMPLES, DRAWS
        code = (
            pixel_ranking.CountsByImage,
            pixel_ranking.spread_edges,
            digests.list_versions(digests.MEASURING_LIBRARIES),
        )
        key = digests.digest(facts, pixels, settings, *code)

        def compute() -> torch.Tensor:
            draws = [self._resample_draw(draw) for _, draw in list(rows.groupby("seed"))[:DRAWS]]
            return torch.from_numpy(np.mean(draws, axis=0))

        return feature_store.load_or_compute(self.results.cache / "resampled" / f"{key}.npy", compute).numpy()

    def _resample_draw(self, rows: pd.DataFrame) -> np.ndarray:
        rows, size = rows.sort_values("image"), self.results.profile.evaluation_size
        patches = [grid.ravel() for grid in self.results.maps(rows[rows.label == 0])]
        pairs = (
            (anomaly_map if inside is None else anomaly_map[inside][None], self._regions(row, size, inside))
            for start in range(0, len(rows), TOGETHER)
            for anomaly_map, inside, row in zip(
                self.results.framed(rows[start : start + TOGETHER]),
                self.results.inside(rows[start : start + TOGETHER]),
                rows[start : start + TOGETHER].itertuples(),
                strict=True,
            )
        )
        counts = pixel_ranking.CountsByImage(
            pixel_ranking.spread_edges(np.concatenate(patches)), pixel_ranking.split_pixels(pairs)
        )
        times = statistics.resample_images(rows.label.to_numpy(), statistics.MOST_RESAMPLES)
        return counts.resampled(times, self.results.profile.fpr_limit)

    def _regions(self, row, size: int, inside: np.ndarray | None) -> pixel_ranking.Regions:
        key = row.image, row.fit
        if key not in self.kept:
            mask = mask_files.framed_mask(row.mask, row.width, row.height, row.fit, size)
            self.kept[key] = pixel_ranking.find_regions_inside(mask, inside)
        return self.kept[key]


# ---------------------------------------------------------------- the recommendation


COLUMNS = ["situation", "measure", "unit", "n", "normal", "defective", "categories", "competitors", "left_out",
           "verdict", "best", "value", "rivals", "tied", "take", "taken", "against", "difference", "low", "high",
           "margin", "asks"]  # fmt: skip


def recommend(
    values: pd.DataFrame,
    requirements: pd.DataFrame,
    situations: Sequence[Situation],
    margins: dict[str, float] | None = None,
    images: ImageComparison | None = None,
) -> pd.DataFrame:
    """One row a situation with the method to take there; ``explain_choice`` says why.

    Every method and number of references that a situation allows competes, over the categories of its groups for
    which most methods have a value; a method that lacks one of these does not compete (``left_out``). So what a
    situation allows more cannot lower the recommended method's mean by more than the margin.

    ``best`` has the highest mean ``value``; ``rivals`` are the methods to which it shows no difference: paired tests of
    the best against each, Holm's correction over these. ``take`` is the method that asks for least of those whose loss
    is smaller than the margin (the upper end of the interval of the difference, Bonferroni over the same comparisons),
    otherwise the best; where one that asks for still less has the same value to ``DIGITS`` decimals, that one. ``tied``
    is a method with the same value that asks for more. ``verdict``: ``NONE`` (nothing to compare), ``ONLY`` one method,
    ``TIE`` (there is such a method), ``LESS`` (one that asks for less and loses less than the margin), ``BETTER`` (the
    best, better than all others) or ``comparison.NO_DIFFERENCE`` (the best, which has rivals). ``difference``, ``low``
    and ``high`` are those of ``best`` to ``against``: to ``take``, or, where that is the best itself, to its first
    rival, or else to the next best.

    ``unit`` is ``category`` from ``statistics.ENOUGH`` categories on, ``image`` below it where ``images`` are given,
    else empty: then there is no interval (nan). ``n`` counts categories, ``normal`` and ``defective`` images.
    """
    margins = MARGINS | (margins or {})
    rows = []
    for situation in situations:
        allowed = requirements[
            (requirements.shots <= situation.references)
            & (situation.training | ~requirements.learned)
            & (situation.batched | ~requirements.batched)
        ]
        if situation.time_limit is not None:
            allowed = allowed[allowed.ms <= situation.time_limit]
        wide = values[values.group.isin(situation.groups)].pivot(
            index="category", columns="name", values=situation.measure
        )
        measured = wide.dropna(axis=1, how="all")
        wide = wide[measured.notna().sum(axis=1) * 2 > measured.shape[1]]
        wide = wide[[name for name in sort_by_effort(allowed).name if name in wide]]
        whole = wide.dropna(axis=1) if len(wide) else wide.iloc[:, :0]
        row = {"situation": situation.name, "measure": situation.measure}
        row |= {"n": len(whole) if whole.shape[1] else 0}
        row |= {"categories": ", ".join(whole.index), "competitors": whole.shape[1]}
        row |= {"left_out": "; ".join(name for name in wide if name not in whole), "verdict": NONE}
        if whole.shape[1]:
            row |= _choose(whole, situation.measure, allowed.set_index("name"), margins[situation.measure], images)
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def _choose(
    wide: pd.DataFrame, measure: str, allowed: pd.DataFrame, margin: float, images: ImageComparison | None
) -> dict:
    """What ``recommend`` says of values (categories x competitors); these stand in the order of what they ask for."""
    unit = "category" if len(wide) >= statistics.ENOUGH else "image" if images else ""
    means = wide.mean()
    best = means.idxmax()  # of equal means the first, which asks for least
    others = list(means.drop(best).sort_values(ascending=False, kind="stable").index)

    def compare(name: str, level: float) -> tuple[float, float, float]:
        if unit == "category":
            return statistics.paired_test(wide[best] - wide[name], level)
        return images.compare(measure, best, name, list(wide.index), level) if unit else (np.nan, np.nan, 1.0)

    together = statistics.together(max(len(others), 1))
    tests = {name: compare(name, together) for name in others}
    probabilities = [p for *_, p in tests.values()]
    decided, steps = statistics.holm(probabilities), statistics.holm_levels(probabilities)
    rivals = [name for name, sure in zip(others, decided, strict=True) if not sure]
    cheaper = [name for name in wide.columns[: list(wide).index(best)] if tests[name][1] < margin]
    take, tied = cheaper[0] if cheaper else best, ""
    same = [name for name in wide if round(means[name], DIGITS) == round(means[take], DIGITS)]
    same = [name for name in same if name == take or means[best] - means[name] < margin]
    if len(same) > 1:  # the first asks for least; where that is the best itself, the next best is what it ties with
        take, tied = same[0], take if take != same[0] else next((name for name in others if name in same), "")
    against = take if take != best else next(iter(rivals or others), "")
    if against and take == best:  # the interval that agrees with Holm's test
        low, high, _ = compare(against, steps[others.index(against)])
    else:
        low, high = tests[against][:2] if against else (np.nan, np.nan)
    rows = {name: row for name, row in zip(allowed.index, allowed.itertuples(), strict=True)}
    normal, defective = images.count(measure, list(wide.index)) if unit == "image" else (0, 0)
    return {
        "unit": unit,
        "normal": normal,
        "defective": defective,
        "verdict": _judge(bool(others), bool(tied), bool(cheaper), bool(rivals)),
        "best": best,
        "value": means[best],
        "rivals": "; ".join(rivals),
        "tied": tied,
        "take": take,
        "taken": means[take],
        "against": against,
        "difference": means[best] - means[against] if against else np.nan,
        "low": low,
        "high": high,
        "margin": margin,
        "asks": describe_requirements(rows[take]),
    }


def _judge(others: bool, tied: bool, cheaper: bool, rivals: bool) -> str:
    """The verdict of ``recommend``."""
    if not others:
        return ONLY
    return TIE if tied else LESS if cheaper else comparison.NO_DIFFERENCE if rivals else BETTER


def explain_choice(row) -> str:
    """Why a row of ``recommend`` names its method, and how sure that is, with the lead of the best and its interval."""
    if row.verdict == NONE:
        return "no method that this situation allows has a value here"
    if row.verdict == ONLY:
        return "the only method here that this allows"
    lead = comparison.format_difference(row.difference, row.low, row.high).replace(" (", ", ").rstrip(")")
    if np.isnan(row.low):
        lead = f"{row.difference:+.3f}, too few for an interval"
    if row.verdict == TIE:
        tie = f"a tie with {name_with_pictures(row.tied)}, which asks for more"
        sure = f", {comparison.NO_DIFFERENCE}" if not row.low > 0 else ""
        other = f"{name_with_pictures(row.best)} has " if row.best not in (row.take, row.tied) else ""
        return f"{tie}: {other}{lead}{sure}"
    if row.verdict == LESS:
        return f"{name_with_pictures(row.best)} gains less than the margin of {row.margin:g}: {lead}"
    words = "better than" if row.verdict == BETTER else f"{comparison.NO_DIFFERENCE} to"
    return f"{words} {name_with_pictures(row.against)}: {lead}"


def describe_units(row) -> str:
    """What the interval of a recommendation is over: products, or the pictures of some that are named."""
    if row.unit == "image":
        return f"{row.normal:.0f} good and {row.defective:.0f} defective pictures of {row.categories}"
    return format_count(row.n, "product", "products")


def name_with_pictures(name: str) -> str:
    """A method and its references in words: ``WinCLIP, 4-shot`` is ``WinCLIP with 4 good pictures``."""
    method, _, shots = name.rpartition(", ")
    words = {"zero-shot": "without good pictures", "full-shot": "with all good pictures"}
    count = shots.removesuffix("-shot")
    return f"{method} {words.get(shots) or 'with ' + format_count(int(count), 'good picture', 'good pictures')}"
