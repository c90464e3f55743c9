"""What thresholds are worth: one category's on another, what mistakes cost, what a line meets, which pixels are marked.

Shares of images and their intervals come from ``thresholds``; a line has fewer defective parts than a test set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import beta

from vlmad_lib import tables, within
from vlmad_lib.analysis import comparison, thresholds
from vlmad_lib.analysis.thresholds import OWN, TRAIN, CategoryScores
from vlmad_lib.data import mask_files
from vlmad_lib.evaluation import metrics, pixel_ranking, statistics
from vlmad_lib.evaluation.statistics import percent
from vlmad_lib.pipeline.results import Results

# The shares that ``mark_pixels`` gives, and the AUROCs.
MARKED = ["normal pixels", "defect's pixels", "defects touched", "AUROC of the area", "AUROC of the score"]
# The F1 of all pixels at a threshold from normal images, and at the best one that the labels know.
SEGMENTED = ["pixel F1", "best pixel F1"]


def transfer_thresholds(categories: Sequence[CategoryScores], method: str, alpha: float = 0.0) -> pd.DataFrame:
    """Every category judged by every category's threshold: F1-max of its labels, or conformal at ``alpha`` if given.

    Rows: ``source`` category of the threshold, ``target`` judged; ``balanced`` is the mean of both rates. Conformal
    thresholds come from training images alone: good test images would be judged by themselves.
    """
    chosen = [scores for scores in categories if scores.method == method]
    targets = [scores for scores in chosen if len(scores.good) and len(scores.bad)]
    rows = []
    for source in [scores for scores in chosen if len(scores.train)] if alpha else targets:
        limit = thresholds.conformal(source.train, alpha) if alpha else thresholds.f1_max(source.good, source.bad)
        for target in targets:
            alarm, escape = float((target.good > limit).mean()), float((target.bad <= limit).mean())
            rows.append((source.category, target.category, alarm, escape, (alarm + escape) / 2))
    return pd.DataFrame(rows, columns=["source", "target", "false_alarm", "escape", "balanced"])


def compare_transfer(categories: Sequence[CategoryScores], alpha: float) -> pd.DataFrame:
    """Balanced error with a category's own and with another's threshold, and the paired difference over *n* categories.

    Macro means by method and rule; another's is the mean over all others. The own F1-max threshold is set on half of
    the category's images and judged on the other half: judged by what set it, it would win in any case.
    """
    rows, halves = [], thresholds.judge_halves(categories, OWN, thresholds.f1_max)
    halves["balanced"] = halves[["false_alarm", "escape"]].mean(axis=1)
    for method in dict.fromkeys(scores.method for scores in categories):
        for rule, level in (("F1-max", 0.0), ("conformal", alpha)):
            moved = transfer_thresholds(categories, method, level)
            same = moved.source == moved.target
            own = moved[same].set_index("target") if level else halves[halves.method == method].set_index("category")
            pairs = pd.concat([own.balanced, moved[~same].groupby("target").balanced.mean()], axis=1).dropna()
            if len(pairs):
                ends = statistics.difference(pairs.iloc[:, 1] - pairs.iloc[:, 0])
                rows.append((method, rule, *pairs.mean(), *ends, comparison.verdict(*ends[1:]), len(pairs)))
    columns = ["method", "rule", "own", "another's", "difference", "low", "high", "another's is", "n"]
    return pd.DataFrame(rows, columns=columns)


# ---------------------------------------------------------------- cost


@dataclass(frozen=True)
class Prices:
    """What mistakes cost, in one unit, and the share of parts that are defective."""

    escape: float
    false_alarm: float
    defect_share: float

    def __post_init__(self):
        within("defect_share", self.defect_share, 0, 1)
        within("cost_escape", self.escape, 0)
        within("cost_false_alarm", self.false_alarm, 0)

    def cost(self, false_alarm, escape):
        """Expected cost of 1000 parts at these rates."""
        return 1000 * (
            self.defect_share * escape * self.escape + (1 - self.defect_share) * false_alarm * self.false_alarm
        )

    @property
    def trivial(self) -> tuple[str, float]:
        """The cheaper way not to look at the parts, and its cost."""
        return min(("accept all", self.cost(0, 1)), ("reject all", self.cost(1, 0)), key=lambda pair: pair[1])


def estimate_costs(judged: pd.DataFrame, prices: Prices) -> pd.DataFrame:
    """Expected cost of 1000 parts by rule: the mean over *n* categories with Student's 95 % interval.

    Where all categories cost the same it is the cost at the ends of Wilson's intervals of both rates. ``than not to
    look`` compares with the cheaper way not to look at the parts.
    """
    judged = judged.dropna(subset=["false_alarm", "escape"])
    judged = judged.assign(cost=prices.cost(judged.false_alarm, judged.escape))
    most, least, rows = prices.cost(1, 1), prices.trivial[1], []
    for (method, rule), categories in judged.groupby(["method", "rule"], sort=False):
        mean, low, high = statistics.paired(categories.cost)
        if np.ptp(categories.cost) < 1e-9:
            pairs = ((categories.alarms, categories.n_good), (categories.escapes, categories.n_bad))
            ends = zip(*(statistics.wilson(hits.sum(), n.sum()) for hits, n in pairs), strict=True)
            low, high = (prices.cost(*rates) for rates in ends)
        low, high = max(low, 0.0), min(high, most)
        words = {"lower": "cheaper", "higher": "dearer"}
        verdict = words.get(comparison.verdict(low - least, high - least), comparison.NO_DIFFERENCE)
        rows.append((method, rule, mean, low, high, verdict, len(categories)))
    columns = ["method", "rule", "cost", "cost_low", "cost_high", "than not to look", "n"]
    return tables.order_by_method(pd.DataFrame(rows, columns=columns), judged.method)


def cheapest_threshold(good: np.ndarray, bad: np.ndarray, prices: Prices) -> float:
    """The threshold of least cost on labelled scores; for ``thresholds.judge_halves``."""
    limits = np.r_[-np.inf, np.unique(np.r_[good, bad])]
    alarms = 1 - np.searchsorted(np.sort(good), limits, "right") / len(good)
    escapes = np.searchsorted(np.sort(bad), limits, "right") / len(bad)
    return float(limits[np.argmin(prices.cost(alarms, escapes))])


# ---------------------------------------------------------------- the line


def threshold_at_precision(normal: np.ndarray, bad: np.ndarray, defect_share: float, target: float) -> float:
    """The lowest threshold at which at least ``target`` of what a line rejects is defective; infinite where none is.

    The recall is that of the defective scores ``bad``; the false-alarm rate is what k ``normal`` scores promise,
    (1 + those above) / (k + 1): that none of few is above does not make it zero.
    """
    limits = np.unique(normal)
    alarms = (1 + len(normal) - np.searchsorted(np.sort(normal), limits, "right")) / (len(normal) + 1)
    recall = 1 - np.searchsorted(np.sort(bad), limits, "right") / len(bad)
    true, false = defect_share * recall, (1 - defect_share) * alarms
    met = limits[true >= target * (true + false)]
    return float(met[0]) if len(met) else float("inf")


def plan_precision(defect_share: float, target: float) -> tuple[float, int]:
    """The most false alarms a precision allows, a rate in [0, 1], and how many normal images promise that rate.

    Even where every defect is caught; more defects escape, fewer good parts may be rejected. InputError for shares of 0
    or 1, at which there is nothing to aim at.
    """
    within("defect_share", defect_share, 1e-6, 1 - 1e-6)
    within("target_precision", target, 1e-6, 1 - 1e-6)
    rate = min(1.0, defect_share * (1 - target) / ((1 - defect_share) * target))
    return rate, thresholds.images_needed(rate)


def count_per_thousand(totals: pd.DataFrame, defect_share: float) -> pd.DataFrame:
    """What 1000 parts of a line meet at the macro mean rates of ``thresholds.pool_categories``.

    Columns: the keys of the totals, ``rejected``, of which ``defective``, ``escapes`` (defective parts accepted) and
    ``precision``, the share of the rejected that is defective; each with ``_low`` and ``_high``, which take the ends
    of the 95 % intervals of both rates at once and so are wider than 95 % asks. A rate's interval is the wider of that
    over categories and Wilson's over images. nan without defective images.
    """
    counts = totals[[name for name in ("method", "rule", "n") if name in totals]].copy()
    wider = {"_low": np.fmin, "_high": np.fmax}
    alarm, escape = (
        {"": totals[f"macro_{rate}"]}
        | {end: choose(totals[f"macro_{rate}{end}"], totals[f"{rate}{end}"]) for end, choose in wider.items()}
        for rate in ("false_alarm", "escape")
    )
    for end, other in (("", ""), ("_low", "_high"), ("_high", "_low")):
        false, against = (1000 * (1 - defect_share) * alarm[side] for side in (end, other))
        true = 1000 * defect_share * (1 - escape[other])
        counts[f"rejected{end}"], counts[f"defective{end}"] = false + true, true
        counts[f"escapes{end}"] = 1000 * defect_share * escape[end]
        counts[f"precision{end}"] = true / (true + against).where(true + against > 0)
    return counts


# ---------------------------------------------------------------- pixels


def _select_inside(results: Results, rows: pd.DataFrame) -> list[np.ndarray]:
    """The maps of rows at the evaluation frame, of a region of interest its pixels alone."""
    pairs = zip(results.framed(rows), results.inside(rows), strict=True)
    return [scores if inside is None else scores[inside] for scores, inside in pairs]


def mark_pixels(results: Results, spare: Results | None, alpha: float, shots: int = 0) -> pd.DataFrame:
    """What pixel thresholds from the maps of normal images, those of ``spare``, mark on the test images.

    A row for each method, category and rule, first reference draw: the promises of ``thresholds.pixel_threshold`` at
    alpha, and ``thresholds.deviation_threshold``. ``k`` maps, ``alarms`` of ``n_good`` normal test images with a marked
    pixel, the mean shares of the ``normal pixels`` and of each ``defect's pixels`` that are marked, the share of
    ``defects touched``, the image AUROCs of the marked area and of the method's own score, the F1 of all pixels of
    images that have a mask or need none, and the best F1 that any threshold has. nan without such images or masks.

    Where ``spare`` has no maps, a random half of the good test images sets the thresholds and is not judged.
    """
    size, rows = results.profile.evaluation_size, []
    first = tables.select_first_draw(results.scores, shots)
    for (method, category), images in first[first.map_file != ""].groupby(["method", "category"], sort=False):
        maps, images, source = _hold_out_maps(results, spare, images)
        if not maps:
            continue
        tested, label, places = _select_inside(results, images), images.label.to_numpy(), results.inside(images)
        outlined = [
            (mask_files.framed_mask(row.mask, row.width, row.height, row.fit, size), scores, place, not row.label)
            for scores, row, place in zip(tested, images.itertuples(), places, strict=True)
            if row.mask or not row.label
        ]
        pairs = [(scores, mask if place is None else mask[place]) for mask, scores, place, _ in outlined]
        masked = [(scores, mask) for scores, mask in pairs if mask.any()]
        measured = results.metrics[(results.metrics.variant == images.variant.iloc[0])]
        best = measured[measured.category == category].pixel_f1_max.iloc[0]
        if source == thresholds.HALVES and outlined:  # other images than those of the metrics table
            regions = [
                (scores[None] if scores.ndim == 1 else scores, pixel_ranking.find_regions_inside(mask, place, normal))
                for mask, scores, place, normal in outlined
            ]
            best = metrics.pixel_metrics(regions, coarse=False)["pixel_f1_max"]
        maxima = np.array([scores.max() for scores in tested])
        for promise in (thresholds.IMAGES, thresholds.PIXELS, thresholds.DEVIATIONS):
            if promise == thresholds.DEVIATIONS:
                limit = thresholds.deviation_threshold(maps)
            else:
                limit = thresholds.pixel_threshold(maps, alpha, promise)
            area = thresholds.marked_areas(tested, limit)
            marked = np.array([(scores[mask] > limit).mean() for scores, mask in masked])
            aurocs = [
                metrics.ranking(values[label == 0], values[label == 1])["auroc"]
                for values in (area, images.score.to_numpy())
            ]
            alarms = (maxima[label == 0] > limit).sum()
            shares = [values.mean() if len(values) else np.nan for values in (area[label == 0], marked, marked > 0)]
            counts = source, promise, len(maps), limit, alarms, (label == 0).sum()
            rows.append((method, category, *counts, *shares, *aurocs, metrics.pixel_f1(pairs, limit), best))
    columns = ["method", "category", "source", "promise", "k", "threshold", "alarms", "n_good"]
    return pd.DataFrame(rows, columns=[*columns, *MARKED, *SEGMENTED])


def _hold_out_maps(
    results: Results, spare: Results | None, images: pd.DataFrame
) -> tuple[list[np.ndarray], pd.DataFrame, str]:
    """Maps of normal images that may set a threshold, the rows of a method and category to judge, and the source.

    ``images`` are these rows; no maps where there is no such image.
    """
    if spare is not None:
        same = (spare.scores.method == images.method.iloc[0]) & (spare.scores.category == images.category.iloc[0])
        if same.any():
            return _select_inside(spare, spare.scores[same]), images, thresholds.TRAIN
    good = images[images.label == 0]
    half = good.iloc[np.random.default_rng(0).permutation(len(good))[: len(good) // 2]]
    return _select_inside(results, half), images.drop(half.index), thresholds.HALVES


# ---------------------------------------------------------------- go or no-go

GO, NO_GO, TOO_FEW = "go", "no-go", "too few pictures to say"


def judge_limits(judged: pd.DataFrame, max_escapes: float, max_false_alarms: float) -> pd.DataFrame:
    """Rates of ``thresholds.rated`` with ``verdict``: whether both stay within a person's limits, shares in [0, 1].

    ``no-go`` where the 95 % interval of a rate lies above its limit, ``go`` where both intervals lie within, else too
    few pictures to say; each row by itself. InputError for limits that are no shares.
    """
    limits = {"escape": within("max_escapes", max_escapes, 0, 1)}
    limits["false_alarm"] = within("max_false_alarms", max_false_alarms, 0, 1)
    broken = np.any([judged[f"{rate}_low"] > limit for rate, limit in limits.items()], axis=0)
    kept = np.all([judged[f"{rate}_high"] <= limit for rate, limit in limits.items()], axis=0)
    return judged.assign(verdict=np.select([broken, kept], [NO_GO, GO], TOO_FEW))


def plan_verdict(share: float) -> int:
    """How many images, none of them on the wrong side, ``judge_limits`` takes to see a rate within a share.

    0 for a share of 0 or 1, which no number or any number of images shows.
    """
    low = statistics.wilson(0, 1)[1]  # z^2 / (1 + z^2)
    return int(np.ceil(low / (1 - low) * (1 / share - 1) - 1e-9)) if 0 < share < 1 else 0


def describe_limits(
    limited: pd.DataFrame, max_escapes: float, max_false_alarms: float, defect_share: float, most: int = 3
) -> str:
    """Go or no-go, and what to do next, in one sentence; ``judge_limits`` of a row a method and category.

    The rows are those of ``thresholds.judge_at_false_alarms`` at ``max_false_alarms``, so that methods are compared at
    the same false alarms. It is a no-go where each method breaks a limit for some product. Counts are of 1,000 parts
    of which the share ``defect_share`` is defective, at the mean rates over categories. Of more than ``most`` methods
    it speaks of those that let the fewest defects escape.
    """
    if limited.empty:
        return "**Neither go nor no-go**: no product has good pictures to set a threshold from (n = 0)."
    escaped = limited.groupby("method", sort=False).escape.mean()
    limited = limited[limited.method.isin(escaped.sort_values(kind="stable").index[:most])]
    left_out = f", the best {most} of {len(escaped)} methods" if len(escaped) > most else ""
    verdicts = limited.groupby("method", sort=False).verdict
    kept, broken = (verdicts.agg(lambda names, verdict=verdict: (names == verdict).sum()) for verdict in (GO, NO_GO))
    whole = (kept == verdicts.size()).any()
    lead = "Go" if whole else "Go for some products" if kept.any() else "No-go" if broken.all() else "Too few to say go"
    sizes = limited.groupby("method")[["n_bad", "n_good", "alarms"]].sum().max()
    number = limited.category.nunique()
    products = tables.format_count(number, "product", "products")
    shares = limited.groupby("method", sort=False).escape.mean().dropna()
    if number == 1:  # pictures of one product can be counted
        values, of = [f"{share * sizes.n_bad:.0f}" for share in shares], f"{sizes.n_bad:.0f} defects"
    else:
        values, of = [f"{share:.0%}" for share in shares], "the defects"
    passed = [f"{value} with {name}" for value, name in zip(values, shares.index, strict=True)]
    counted = f"let {tables.join_words(passed)}".replace(" with ", f" of {of} escape with ", 1)
    if number > 1:
        of_parts = tables.join_words([f"{1000 * defect_share * share:.0f}" for share in shares])
        counted += f", {of_parts} of the {1000 * defect_share:g} defective parts in 1,000"
    counted = counted if passed else "let an unknown share of defects escape, for no test picture is defective"
    named = [
        f"{words} in {tables.format_each_count(counts[counts > 0])} of {products}"
        + ("" if (counts > 0).all() else f" with {tables.join_words(list(counts.index[counts > 0]))}")
        for words, counts in (("shown to be broken", broken), ("kept", kept))
        if counts.any()
    ]
    judged = f"your limits are {tables.join_words(named)}" if named else "no limit is shown to be broken"
    return (
        f"**{lead}** at limits of {percent(max_escapes)} escapes and {percent(max_false_alarms)} false alarms "
        f"(`max_escapes`, `max_false_alarms`): thresholds that reject {sizes.alarms:.0f} of {sizes.n_good:.0f} good "
        f"test pictures {counted}; "
        f"{judged} (n = {sizes.n_bad:.0f} defective and "
        f"{sizes.n_good:.0f} good pictures{left_out}); next, "
        f"{_advise(lead, max_escapes, max_false_alarms)}."
    )


def _advise(lead: str, max_escapes: float, max_false_alarms: float) -> str:
    """What to do after a verdict of ``describe_limits``."""
    if lead == "No-go":
        return (
            "see in [11 Failures](11_failures.ipynb) which defects escape, then photograph those in another light or "
            "closer and run this again"
        )
    if lead == "Too few to say go":
        wanted = [
            f"{plan_verdict(share)} {kind}" for share, kind in ((max_escapes, "defective"), (max_false_alarms, "good"))
        ]
        wanted = [text for text in wanted if not text.startswith("0 ")]
        return f"test more pictures: a go takes at least {tables.join_words(wanted) or 'one'} of each product"
    return "set the threshold from good pictures of your own, as in [12 Thresholds](12_thresholds.ipynb)"


# ---------------------------------------------------------------- what is missing, and what was promised


def describe_gaps(categories: Sequence[CategoryScores]) -> str:
    """What these scores cannot say and why, as a Markdown list; empty where nothing is missing."""
    if not categories:
        return "- No method was run with this number of references (n = 0); choose one of the profile's 'shots'."
    lines = []
    if halves := {scores.category for scores in categories if scores.source != TRAIN}:
        lines.append(
            f"For {tables.format_count(len(halves), 'product', 'products')} no training picture was scored: a random "
            "half of the good test pictures sets the threshold and the other half is judged, many times. So escapes "
            "here differ from those of [11](11_failures.ipynb), where all good test pictures set one threshold. "
            "What share of them a rule rejects follows from the rule and their number and can contradict no promise."
        )
    if few := sorted({scores.category for scores in categories if not scores.spare}):
        lines.append(f"Without two good pictures no threshold can be set from them: {', '.join(few)}.")
    if all(not len(scores.bad) for scores in categories):
        lines.append(
            "No test picture is defective (n = 0): false alarms only. Escapes, overkill, F1-max, precision, "
            "calibration, transfer and costs need labelled defects."
        )
    elif len({scores.category for scores in categories}) == 1:
        lines.append("With one product (n = 1) no threshold can be borrowed from another, nor a curve be fitted there.")
    return "\n".join(f"- {line}" for line in lines)


def judge_promise(judged: pd.DataFrame, alpha: float) -> pd.DataFrame:
    """Whether false alarms contradict what conformal thresholds from training images promise, a row a method.

    ``alarms`` of ``n`` good images over all categories, ``allowed`` by chance at 95 % over all methods together: it
    takes what thresholds from k images vary by into account (``thresholds.alarm_chances``). ``highest`` is the rate
    that so many alarms do not contradict (one-sided 95 % bound of Clopper and Pearson 1934).
    """
    fresh = judged[(judged.rule == "conformal") & (judged.source == TRAIN) & (judged.n_good > 0)]
    fresh, rows = fresh[np.isfinite(fresh.threshold)], []
    level = statistics.together(max(judged.method.nunique(), 1))
    for method, rows_of_method in fresh.groupby("method", sort=False):
        alarms, n = int(rows_of_method.alarms.sum()), int(rows_of_method.n_good.sum())
        allowed = thresholds.allowance(rows_of_method, alpha, level)
        highest = float(beta.ppf(statistics.LEVEL, alarms + 1, n - alarms)) if alarms < n else 1.0
        promise = "contradicted" if alarms > allowed else "not contradicted"
        rows.append((method, tables.format_range(rows_of_method.k), alarms, n, allowed, promise, highest))
    return pd.DataFrame(rows, columns=["method", "k", "alarms", "n", "allowed", "promise", "highest"])
