"""What thresholds are worth: one category's on another, what mistakes cost, and sentences on both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vlmad_lib import tables, within
from vlmad_lib.analysis import comparison, thresholds
from vlmad_lib.analysis.thresholds import OWN, Part
from vlmad_lib.data import mask_files
from vlmad_lib.evaluation import metrics, statistics
from vlmad_lib.evaluation.statistics import percent
from vlmad_lib.pipeline.results import Results


def transfer(found: Sequence[Part], method: str, alpha: float = 0.0) -> pd.DataFrame:
    """Every category judged by every category's threshold: F1-max of its labels, or conformal at ``alpha`` if given.

    Rows: ``source`` category of the threshold, ``target`` judged; ``balanced`` is the mean of both rates. Conformal
    thresholds come from training images alone: good test images would be judged by themselves.
    """
    own = [part for part in found if part.method == method]
    whole = [part for part in own if len(part.good) and len(part.bad)]
    rows = []
    for giver in [part for part in own if len(part.train)] if alpha else whole:
        limit = thresholds.conformal(giver.train, alpha) if alpha else thresholds.f1_max(giver.good, giver.bad)
        for taker in whole:
            alarm, escape = float((taker.good > limit).mean()), float((taker.bad <= limit).mean())
            rows.append((giver.category, taker.category, alarm, escape, (alarm + escape) / 2))
    return pd.DataFrame(rows, columns=["source", "target", "false_alarm", "escape", "balanced"])


def lending(found: Sequence[Part], alpha: float) -> pd.DataFrame:
    """Balanced error with a category's own and with another's threshold, and the paired difference over *n* categories.

    Macro means by method and rule; another's is the mean over all others. The own F1-max threshold is set on half of
    the category's images and judged on the other half: judged by what set it, it would win in any case.
    """
    rows, halves = [], thresholds.split_half(found, OWN, thresholds.f1_max)
    halves["balanced"] = halves[["false_alarm", "escape"]].mean(axis=1)
    for method in dict.fromkeys(part.method for part in found):
        for rule, level in (("F1-max", 0.0), ("conformal", alpha)):
            moved = transfer(found, method, level)
            same = moved.source == moved.target
            own = moved[same].set_index("target") if level else halves[halves.method == method].set_index("category")
            pairs = pd.concat([own.balanced, moved[~same].groupby("target").balanced.mean()], axis=1).dropna()
            if len(pairs):
                ends = statistics.difference(pairs.iloc[:, 1] - pairs.iloc[:, 0])
                rows.append((method, rule, *pairs.mean(), *ends, len(pairs)))
    return pd.DataFrame(rows, columns=["method", "rule", "own", "another's", "difference", "low", "high", "n"])


# ---------------------------------------------------------------- cost


@dataclass(frozen=True)
class Prices:
    """What mistakes cost, in one unit, and the share of parts that are defective."""

    escape: float
    false_alarm: float
    defect_rate: float

    def __post_init__(self):
        within("defect_rate", self.defect_rate, 0, 1)
        within("cost_escape", self.escape, 0)
        within("cost_false_alarm", self.false_alarm, 0)

    def cost(self, false_alarm, escape):
        """Expected cost of 1000 parts at these rates."""
        return 1000 * (
            self.defect_rate * escape * self.escape + (1 - self.defect_rate) * false_alarm * self.false_alarm
        )

    @property
    def trivial(self) -> tuple[str, float]:
        """The cheaper way not to look at the parts, and its cost."""
        return min(("accept all", self.cost(0, 1)), ("reject all", self.cost(1, 0)), key=lambda pair: pair[1])


CHEAPEST = "least cost, own labels"


def costs(judged: pd.DataFrame, prices: Prices) -> pd.DataFrame:
    """Expected cost of 1000 parts by rule: the mean over *n* categories with Student's 95 % interval.

    Where all categories cost the same it is the cost at the ends of Wilson's intervals of both rates.
    """
    known = judged.dropna(subset=["false_alarm", "escape"])
    priced = known.assign(cost=prices.cost(known.false_alarm, known.escape))
    most, rows = prices.cost(1, 1), []
    for method, some in priced.groupby("method", sort=False):
        for rule, part in some.groupby("rule", sort=False):
            mean, low, high = statistics.paired(part.cost)
            if np.ptp(part.cost) < 1e-9:
                pairs = ((part.alarms, part.n_good), (part.escapes, part.n_bad))
                ends = zip(*(statistics.wilson(hits.sum(), n.sum()) for hits, n in pairs), strict=True)
                low, high = (prices.cost(*rates) for rates in ends)
            rows.append((method, rule, mean, max(low, 0.0), min(high, most), len(part)))
    return pd.DataFrame(rows, columns=["method", "rule", "cost", "cost_low", "cost_high", "n"])


def cheapest(good: np.ndarray, bad: np.ndarray, prices: Prices) -> float:
    """The threshold of least cost on labelled scores; for ``thresholds.split_half``."""
    limits = np.r_[-np.inf, np.unique(np.r_[good, bad])]
    alarms = 1 - np.searchsorted(np.sort(good), limits, "right") / len(good)
    escapes = np.searchsorted(np.sort(bad), limits, "right") / len(bad)
    return float(limits[np.argmin(prices.cost(alarms, escapes))])


# ---------------------------------------------------------------- the line


def at_precision(normal: np.ndarray, bad: np.ndarray, defect_rate: float, target: float) -> float:
    """The lowest threshold at which at least ``target`` of what a line rejects is defective; infinite where none is.

    The recall is that of the defective scores ``bad``; the false-alarm rate is what k ``normal`` scores promise,
    (1 + those above) / (k + 1): that none of few is above does not make it zero.
    """
    limits = np.unique(normal)
    alarms = (1 + len(normal) - np.searchsorted(np.sort(normal), limits, "right")) / (len(normal) + 1)
    recall = 1 - np.searchsorted(np.sort(bad), limits, "right") / len(bad)
    true, false = defect_rate * recall, (1 - defect_rate) * alarms
    met = limits[true >= target * (true + false)]
    return float(met[0]) if len(met) else float("inf")


def precision_needs(defect_rate: float, target: float) -> tuple[float, int]:
    """The most false alarms a precision allows, a rate in [0, 1], and how many normal images promise that rate.

    Even where every defect is caught; more defects escape, fewer good parts may be rejected. InputError for shares of 0
    or 1, at which there is nothing to aim at.
    """
    within("defect_rate", defect_rate, 1e-6, 1 - 1e-6)
    within("target_precision", target, 1e-6, 1 - 1e-6)
    rate = min(1.0, defect_rate * (1 - target) / ((1 - defect_rate) * target))
    return rate, thresholds.images_needed(rate)


def per_thousand(totals: pd.DataFrame, defect_rate: float) -> pd.DataFrame:
    """What 1000 parts of a line meet at the macro mean rates of ``thresholds.totals``, with this share defective.

    Columns: the keys of the totals, ``rejected``, of which ``defective``, ``escapes`` (defective parts accepted) and
    ``precision``, the share of the rejected that is defective; each with ``_low`` and ``_high``, which take the ends
    of the 95 % intervals of both rates at once and so are wider than 95 % asks. A rate's interval is the wider of that
    over categories and Wilson's over images. nan without defective images.
    """
    found = totals[[name for name in ("method", "rule", "n") if name in totals]].copy()
    ends = {"": None, "_low": np.fmin, "_high": np.fmax}
    alarm, escape = (
        {end: wider(totals[f"macro_{rate}{end}"], totals[f"{rate}{end}"]) if wider else totals[f"macro_{rate}"]
         for end, wider in ends.items()}
        for rate in ("false_alarm", "escape")
    )  # fmt: skip
    for end, other in (("", ""), ("_low", "_high"), ("_high", "_low")):
        false, against = (1000 * (1 - defect_rate) * alarm[side] for side in (end, other))
        true = 1000 * defect_rate * (1 - escape[other])
        found[f"rejected{end}"], found[f"defective{end}"] = false + true, true
        found[f"escapes{end}"] = 1000 * defect_rate * escape[end]
        found[f"precision{end}"] = true / (true + against).where(true + against > 0)
    return found


# ---------------------------------------------------------------- pixels


def marks(results: Results, spare: Results, alpha: float, shots: int = 0) -> pd.DataFrame:
    """What pixel thresholds from the maps of ``spare``, normal training images, mark on the test images.

    A row for each method, category and promise of ``thresholds.pixel_threshold`` at alpha, first reference draw: ``k``
    maps, ``alarms`` of ``n_good`` normal test images with a marked pixel, the mean shares of the ``normal pixels`` and
    of each ``defect's pixels`` that are marked, the share of ``defects touched``, and the image AUROCs of the marked
    area and of the method's own score. nan without such images or masks.
    """
    size, rows = results.profile.evaluation_size, []
    first = tables.select_first_draw(results.scores, shots)
    for (method, category), part in first[first.map_file != ""].groupby(["method", "category"], sort=False):
        own = spare.scores[(spare.scores.method == method) & (spare.scores.category == category)]
        if own.empty:
            continue
        maps, tested, label = spare.framed(own), results.framed(part), part.label.to_numpy()
        masked = [
            (scores, mask_files.framed_mask(row.mask, row.width, row.height, row.fit, size))
            for scores, row in zip(tested, part.itertuples(), strict=True)
            if row.mask
        ]
        maxima = np.array([scores.max() for scores in tested])
        for promise in ("images", "pixels"):
            limit = thresholds.pixel_threshold(maps, alpha, promise)
            area = thresholds.area_above(tested, limit)
            found = np.array([(scores[mask] > limit).mean() for scores, mask in masked if mask.any()])
            aurocs = [
                metrics.ranking(some[label == 0], some[label == 1])["auroc"] for some in (area, part.score.to_numpy())
            ]
            alarms = (maxima[label == 0] > limit).sum()
            shares = [some.mean() if len(some) else np.nan for some in (area[label == 0], found, found > 0)]
            rows.append((method, category, promise, len(maps), limit, alarms, (label == 0).sum(), *shares, *aurocs))
    counts = ["method", "category", "promise", "k", "threshold", "alarms", "n_good"]
    return pd.DataFrame(rows, columns=[*counts, *MARKED])


MARKED = ["normal pixels", "defect's pixels", "defects touched", "AUROC of the area", "AUROC of the score"]
"""The shares of ``marks``, and the AUROCs."""


# ---------------------------------------------------------------- for people


def shown(judged: pd.DataFrame) -> pd.DataFrame:
    """A table of rates for display: counts with their shares and 95 % intervals, macro means where it has them."""
    table = judged[[name for name in ("method", "category", "share", "rule", "k") if name in judged]].copy()
    for title, rate, hits, n in _SIDES:
        shares = map(thresholds.format_rate, judged[rate], judged[f"{rate}_low"], judged[f"{rate}_high"])
        counts = [f"{part:.4g} of {whole:.0f}" for part, whole in zip(judged[hits], judged[n], strict=True)]
        table[title] = [f"{count}: {share}" for count, share in zip(counts, shares, strict=True)]
        if f"macro_{rate}" in judged:
            columns = judged[[f"macro_{rate}{end}" for end in ("", "_low", "_high")]]
            table[f"macro mean, {title}"] = [thresholds.format_rate(*row) for row in columns.itertuples(index=False)]
    return table


_SIDES = (("false alarms", "false_alarm", "alarms", "n_good"), ("escapes", "escape", "escapes", "n_bad"))


# ---------------------------------------------------------------- sentences


def gaps(found: Sequence[Part]) -> str:
    """What these scores cannot say and why, as a Markdown list; empty where nothing is missing."""
    if not found:
        return "- No method was run with this number of references (n = 0); choose one of the profile's 'shots'."
    lines = []
    halves = sorted({part.category for part in found if part.source != thresholds.TRAIN})
    if halves:
        lines.append(
            f"For {tables.format_categories(len(halves))} no training image was scored: random halves of "
            "the good test images calibrate and are judged in turn, so each has fewer images. What share of them a "
            "rule then rejects follows from the rule and the number of images, so it cannot contradict a promise."
        )
    if few := sorted({part.category for part in found if not part.spare}):
        lines.append(f"Without two good images no threshold can be set from them: {', '.join(few)}.")
    if all(not len(part.bad) for part in found):
        lines.append(
            "No test image is defective (n = 0): false alarms only. Escapes, overkill, F1-max, precision, calibration, "
            "transfer and costs need labelled defects."
        )
    elif len({part.category for part in found}) == 1:
        lines.append(
            "With one category (n = 1) no threshold can be borrowed from another, nor a curve be fitted there."
        )
    return "\n".join(f"- {line}" for line in lines)


def rule_findings(judged: pd.DataFrame, alpha: float) -> str:
    """What is rejected and what escapes by each rule, and whether the counts contradict what it aims at.

    A verdict allows for what thresholds from k images vary by (``thresholds.alarm_chances``) and holds at 95 % over
    all methods together. Halves of the same images give none: their false alarms follow from the rule alone.
    """
    lines, level = [], statistics.together(max(judged.method.nunique(), 1))
    for (method, rule), part in judged.groupby(["method", "rule"], sort=False):
        alarms, n_good, escapes, n_bad = part[["alarms", "n_good", "escapes", "n_bad"]].sum()
        halves = " (set on half of the labelled images, judged on the others)" if rule == OWN else ""
        told = f"**{method}**, {rule}{halves}: false alarms {thresholds.format_share(alarms, n_good)}"
        told += f", escapes {thresholds.format_share(escapes, n_bad)}." if n_bad else "."
        fresh = part[(part.source == thresholds.TRAIN) & (part.n_good > 0)]
        if rule == "conformal":
            told += _silent(part, alpha) + _promise(fresh[np.isfinite(fresh.threshold)], alpha, level)
        elif rule == "quantile" and len(fresh):
            chances, seen = thresholds.alarm_chances(fresh, alpha, rule), int(fresh.alarms.sum())
            side = (1 - level) / 2
            more, less = chances[seen:].sum() <= side, chances[: seen + 1].sum() <= side
            word = "more than" if more else "less than" if less else "not told from"
            told += f" That is {word} the {percent(alpha)} it aims at, given how much thresholds from k = "
            told += f"{tables.format_range(fresh.k)} images vary; it promises nothing."
        lines.append(told)
    return "\n".join(f"- {line}" for line in lines) or "- No category has two good images (n = 0): nothing to judge."


def _silent(part: pd.DataFrame, alpha: float) -> str:
    """In how many categories k is too small for a threshold."""
    silent, least = int(np.isinf(part.threshold).sum()), thresholds.images_needed(alpha)
    some = tables.format_categories(len(part))
    told = f" In {silent} of {some} k is too small for {percent(alpha)} (it takes {least}): none is rejected."
    return told if silent else ""


def _promise(fresh: pd.DataFrame, alpha: float, level: float) -> str:
    """Whether conformal thresholds from training images reject more than promised, and up to what rate they may."""
    if fresh.empty:
        return ""
    alarms, n, allowed = int(fresh.alarms.sum()), int(fresh.n_good.sum()), thresholds.allowance(fresh, alpha, level)
    seen = f"{alarms} false alarms of {n} were seen, and up to {allowed} would be chance (95 %, all methods together)"
    promise = f" The promise of {percent(alpha)} (k = {tables.format_range(fresh.k)})"
    if alarms > allowed:
        return f"{promise} is contradicted: {seen}. Test and training images are not alike."
    return f"{promise} is not contradicted: {seen}. The rate of these thresholds could still be {at_most(alarms, n)}."


def at_most(hits: int, n: int, level: float = statistics.LEVEL) -> str:
    """The highest share that ``hits`` of n do not contradict, for people (Clopper and Pearson 1934, one-sided)."""
    from scipy.stats import beta

    return f"up to {beta.ppf(level, hits + 1, n - hits) if hits < n else 1:.1%} ({percent(level)} bound)"


def few_alarm_findings(measured: pd.DataFrame) -> str:
    """The metrics at few false alarms of a metrics table, macro means, as a Markdown list; and which cannot be had."""
    titles = tables.FEW_ALARMS | {"aupimo": tables.TITLES["aupimo"]}
    cells = measured.groupby(["method", "category"], sort=False)[list(titles)].mean()
    lines = []
    for method, part in cells.groupby("method", sort=False):
        told = []
        for name in part.columns[part.notna().any()]:
            mean, low, high = statistics.difference(part[name])
            span = f"{max(low, 0):.3f} to {min(high, 1):.3f}, " if part[name].count() > 1 else ""
            told.append(f"{titles[name]} {mean:.3f} ({span}n = {tables.format_categories(part[name].count())})")
        lines += [f"- **{method}**, at few false alarms: {', '.join(told)}."] if told else []
    counts, absent = tables.format_range(measured.n_good), cells.isna().groupby("category").all()
    takes = {"image_pauroc": "10", "recall_at_1pct": "100", "recall_at_0_1pct": "1000"}
    for name in absent.columns[absent.any()]:
        lacks = f"{takes.get(name)} good test images in a category, beside defective ones; here are {counts} good ones"
        lacks = "masks, and 100000 pixels of good test images in a category" if name == "aupimo" else lacks
        some = f"{absent[name].sum()} of {tables.format_categories(len(absent))}"
        lines.append(f"- {titles[name]} cannot be had in {some}: it takes {lacks}.")
    return "\n".join(lines)


def overkill_findings(table: pd.DataFrame) -> str:
    """What few escapes cost in good parts, and where the images are too few to say, as a Markdown list."""
    lines = []
    for method, part in table.groupby("method", sort=False):
        told = []
        for share, rows in part.groupby("share", sort=False):
            blind = int((rows.allowed == 0).sum())
            some = tables.format_categories(blind)
            few = f" (no escape allowed in {some} with too few defective images for {percent(share)})" if blind else ""
            told.append(
                f"{thresholds.format_share(rows.alarms.sum(), rows.n_good.sum())} at {percent(share)} escape{few}"
            )
        lines.append(
            f"- **{method}**: of the good parts it rejects {', '.join(told)}. These thresholds were set on the defects "
            "that they judge: a line cannot have them, and of its defects more may escape."
        )
    return "\n".join(lines) or "- Overkill at a share of escapes needs good and defective test images (n = 0)."


def transfer_findings(lent: pd.DataFrame) -> str:
    """What a borrowed threshold costs against a category's own (``lending``), as a Markdown list."""
    lines, halves = [], " (set on half of its labelled images, judged on the others)"
    for row in lent.itertuples():
        word = {"higher": "worse", "lower": "better"}.get(
            comparison.verdict(row.low, row.high), "not told from its own"
        )
        whose = halves if row.rule == "F1-max" else ""
        lines.append(
            f"- **{row.method}**, {row.rule}: balanced error {row.own:.3f} with a category's own threshold{whose}, "
            f"{row[4]:.3f} with another's: {comparison.format_difference(row.difference, row.low, row.high)}, n "
            f"= {row.n}, {word}."
        )
    return "\n".join(lines) or "- A threshold can only be lent between two categories with good and defective images."


def cost_findings(table: pd.DataFrame, prices: Prices) -> str:
    """Which rules are cheaper than not looking at all, as a Markdown list.

    Verdicts hold at 95 % each; they are not corrected for their number, which the text says.
    """
    name, least = prices.trivial
    lines = [
        f"Per 1000 parts, to {name} without looking costs {least:.0f}; a rule must be cheaper than that. Thresholds "
        "from own labels were set on half of the images and judged on the others. Each interval is a 95 % one."
    ]
    for method, part in table.groupby("method", sort=False):
        told = []
        for row in part.itertuples():
            verdict = comparison.verdict(row.cost_low - least, row.cost_high - least)
            word = {"lower": "cheaper", "higher": "dearer"}.get(verdict, verdict)
            told.append(f"{row.rule} {row.cost:.0f} ({row.cost_low:.0f} to {row.cost_high:.0f}): {word}")
        lines.append(f"**{method}**, n = {tables.format_categories(part.n.max())}: {'; '.join(told)}.")
    told = "" if len(table) else " Without good and defective test images (n = 0) no rule has a cost."
    return "\n".join(f"- {line}" for line in lines) + told


def line_findings(lines: pd.DataFrame, defect_rate: float) -> str:
    """What 1000 parts of the line meet by each rule (``per_thousand``), as a Markdown list."""
    told = [
        f"- **{row.method}**, {row.rule}: of 1000 parts, {1000 * defect_rate:g} of them defective, it rejects "
        f"{_range(row, 'rejected', '.0f')}, of which {_range(row, 'defective', '.0f')} are defective: "
        f"{_range(row, 'precision', '.0%')} of what it rejects. {_range(row, 'escapes', '.1f')} defective parts pass "
        f"(n = {tables.format_categories(row.n)})."
        for row in lines.dropna(subset=["rejected", "escapes"]).itertuples()
    ]
    return "\n".join(told) or "- What 1000 parts of the line meet takes good and defective test images (n = 0)."


def precision_findings(aimed: pd.DataFrame, spare: Sequence[int], defect_rate: float, target: float) -> str:
    """What a precision takes, and in how many categories ``at_precision`` found a threshold for it (rows ``aimed``).

    ``spare``: how many normal images each category has for a threshold.
    """
    if aimed.empty or not 0 < defect_rate < 1:
        return ""
    rate, least = precision_needs(defect_rate, target)
    reached = [
        f"{method} in {np.isfinite(limits).sum()} of {tables.format_categories(len(limits))}"
        for method, limits in aimed.groupby("method", sort=False).threshold
    ]
    return (
        f"- A precision of {percent(target)} where {percent(defect_rate)} of the parts are defective takes a "
        f"false-alarm rate of at most {rate:.2%}, even if every defect is caught, and so {least} normal images or more "
        f"for each category; here they are {tables.format_range(pd.Series(spare))}. With half of the defective "
        f"images to "
        f"choose by, a threshold of that precision is found for {', '.join(reached)}; elsewhere it rejects nothing."
    )


def plan_findings(plan: pd.DataFrame) -> str:
    """How many images a promise takes (``thresholds.planner``), as a Markdown list of one."""
    told = [f"{percent(row.share)} {row[2]}, {row[3]} and {row[5]}" for row in plan.itertuples()]
    return (
        "- **Images that a promise takes**: good ones for a false-alarm rate that holds on average, those for one that "
        "holds with 95 % for one draw (as many defective ones of which none escapes bound the escapes likewise), and "
        f"defective ones if one of them escapes: {'; '.join(told)}."
    )


def pixel_findings(found: pd.DataFrame, alpha: float) -> str:
    """What pixel thresholds promise and what they mark (``marks``), as a Markdown list."""
    promised = {
        "images": f"at most {percent(alpha)} of new normal images have any marked pixel",
        "pixels": f"on average at most {percent(alpha)} of a new normal image's pixels are marked",
    }
    lines = []
    for (method, promise), part in found.groupby(["method", "promise"], sort=False):
        told = (
            f"- **{method}**, pixel threshold over {promise} (k = {tables.format_range(part.k)}), which promises that "
        )
        marked = thresholds.format_share(part.alarms.sum(), part.n_good.sum())
        told += f"{promised[promise]}: any pixel is marked in {marked} of the "
        told += "normal test images"
        told += f", and {part['normal pixels'].mean():.2%} of their pixels." if part.n_good.any() else "."
        mean, low, high = statistics.difference(part["defect's pixels"])
        if (n := part["defect's pixels"].notna().sum()) > 1:
            share = f"{mean:.0%} are marked ({max(low, 0):.0%} to {min(high, 1):.0%}, n = {n} categories)"
            told += f" Of a defect's pixels {share}, which nothing promises."
        lines.append(told)
    return "\n".join(lines)


def _range(row: tuple, name: str, form: str) -> str:
    """A value of a row with its interval; ``none`` where it has no value."""
    value, low, high = (getattr(row, f"{name}{end}") for end in ("", "_low", "_high"))
    return "none" if np.isnan(value) else f"{value:{form}} ({low:{form}} to {high:{form}})"
