"""What thresholds are worth: one category's on another, what mistakes cost, and sentences on both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vlmad_lib import breakdown, statistics, sweeps, thresholds, within
from vlmad_lib.statistics import percent
from vlmad_lib.thresholds import ORACLE, Part


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

    Macro means by method and rule; another's is the mean over all others.
    """
    rows = []
    for method in dict.fromkeys(part.method for part in found):
        for rule, level in (("F1-max", 0.0), ("conformal", alpha)):
            moved = transfer(found, method, level)
            same = moved.source == moved.target
            pairs = pd.concat(
                [moved[same].set_index("target").balanced, moved[~same].groupby("target").balanced.mean()], axis=1
            ).dropna()
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


def cheapest(found: Sequence[Part], prices: Prices) -> pd.DataFrame:
    """The threshold of least cost on a category's own labels: the oracle of ``costs``."""
    rows = []
    for part in (one for one in found if len(one.good) and len(one.bad)):
        limits = np.r_[-np.inf, np.unique(np.r_[part.good, part.bad])]
        alarms = 1 - np.searchsorted(np.sort(part.good), limits, "right") / len(part.good)
        escapes = np.searchsorted(np.sort(part.bad), limits, "right") / len(part.bad)
        best = limits[np.argmin(prices.cost(alarms, escapes))]
        rows.append(thresholds.judge(part, CHEAPEST, 0, [(best, part.good)]))
    return thresholds.rated(rows)


# ---------------------------------------------------------------- for people


def shown(judged: pd.DataFrame) -> pd.DataFrame:
    """A table of rates for display: counts with their shares and 95 % intervals, macro means where it has them."""
    table = judged[[name for name in ("method", "category", "share", "rule", "k") if name in judged]].copy()
    for title, rate, hits, n in _SIDES:
        shares = map(_share, judged[rate], judged[f"{rate}_low"], judged[f"{rate}_high"])
        counts = [f"{part:.4g} of {whole:.0f}" for part, whole in zip(judged[hits], judged[n], strict=True)]
        table[title] = [f"{count}: {share}" for count, share in zip(counts, shares, strict=True)]
        if f"macro_{rate}" in judged:
            columns = judged[[f"macro_{rate}{end}" for end in ("", "_low", "_high")]]
            table[f"macro mean, {title}"] = [_share(*row) for row in columns.itertuples(index=False)]
    return table


_SIDES = (("false alarms", "false_alarm", "alarms", "n_good"), ("escapes", "escape", "escapes", "n_bad"))


def _share(rate: float, low: float, high: float) -> str:
    return "none" if np.isnan(rate) else f"{rate:.1%} ({100 * low:.1f} to {100 * high:.1f})"


# ---------------------------------------------------------------- sentences


def gaps(found: Sequence[Part]) -> str:
    """What these scores cannot say and why, as a Markdown list; empty where nothing is missing."""
    if not found:
        return "- No method was run with this number of references (n = 0); choose one of the profile's 'shots'."
    lines = []
    halves = sorted({part.category for part in found if part.source != thresholds.TRAIN})
    if halves:
        lines.append(
            f"For {breakdown.categories(len(halves))} no training image was scored: random halves of "
            "the good test images calibrate and are judged in turn, so each has fewer images."
        )
    if few := sorted({part.category for part in found if not part.spare}):
        lines.append(f"Without two good images no threshold can be set from them: {', '.join(few)}.")
    if all(not len(part.bad) for part in found):
        lines.append(
            "No test image is defective (n = 0): false alarms only. Escapes, overkill, F1-max, calibration, transfer "
            "and costs need labelled defects."
        )
    elif len({part.category for part in found}) == 1:
        lines.append(
            "With one category (n = 1) no threshold can be borrowed from another, nor a curve be fitted there."
        )
    return "\n".join(f"- {line}" for line in lines)


def share_of(hits: float, n: float) -> str:
    """A share with its Wilson interval and counts."""
    return f"{_share(hits / n, *statistics.wilson(hits, n))[:-1]}, n = {n:.0f})" if n else "unknown (n = 0)"


def rule_findings(judged: pd.DataFrame, alpha: float) -> str:
    """Whether thresholds from normal images keep their promise, and what escapes, beside the oracle."""
    lines = []
    for (method, rule), part in judged.groupby(["method", "rule"], sort=False):
        alarms, n_good, escapes, n_bad = part[["alarms", "n_good", "escapes", "n_bad"]].sum()
        seen = " (an oracle)" if rule == ORACLE else ""
        told = f"**{method}**, {rule}{seen}: false alarms {share_of(alarms, n_good)}"
        told += f", escapes {share_of(escapes, n_bad)}." if n_bad else "."
        if rule == "conformal":
            told += _promise(part, alpha)
        elif rule == "quantile" and n_good:
            low, high = statistics.wilson(alarms, n_good)
            word = "more than" if low > alpha else "less than" if high < alpha else "not told from"
            told += f" That is {word} the {percent(alpha)} it aims at; it promises nothing."
        lines.append(told)
    return "\n".join(f"- {line}" for line in lines) or "- No category has two good images (n = 0): nothing to judge."


def _promise(part: pd.DataFrame, alpha: float) -> str:
    """Whether the false alarms of conformal thresholds are as many as promised."""
    silent = int(np.isinf(part.threshold).sum())
    least = int(np.ceil(1 / alpha - 1 - 1e-9))
    level = percent(alpha)
    told = f" In {silent} of {breakdown.categories(len(part))} k is too small for {level} (it takes {least}): none is "
    told += "rejected."
    told = told if silent else ""
    fresh = part[part.source == thresholds.TRAIN]
    if fresh.empty or silent == len(part):
        return told
    alarms, allowed = int(fresh.alarms.sum()), thresholds.allowance(fresh, alpha)
    word = "kept" if alarms <= allowed else "broken, so test and training images are not alike"
    return (
        f"{told} The promise of {level}, k = {sweeps.spanned(fresh.k)}: up to {allowed} false alarms of "
        f"{int(fresh.n_good.sum())} would be chance (95 %), {alarms} were seen: {word}."
    )


def overkill_findings(table: pd.DataFrame) -> str:
    """What few escapes cost in good parts, and where the images are too few to say, as a Markdown list."""
    lines = []
    for method, part in table.groupby("method", sort=False):
        told = []
        for share, rows in part.groupby("share", sort=False):
            blind = int((rows.allowed == 0).sum())
            some = breakdown.categories(blind)
            few = f" (no escape allowed in {some} with too few defective images for {percent(share)})" if blind else ""
            told.append(f"{share_of(rows.alarms.sum(), rows.n_good.sum())} at {percent(share)} escape{few}")
        lines.append(f"- **{method}**: of the good parts it rejects {', '.join(told)}.")
    return "\n".join(lines) or "- Overkill at a share of escapes needs good and defective test images (n = 0)."


def transfer_findings(lent: pd.DataFrame) -> str:
    """What a borrowed threshold costs against a category's own (``lending``), as a Markdown list."""
    lines = []
    for row in lent.itertuples():
        word = {"higher": "worse", "lower": "better"}.get(sweeps.verdict(row.low, row.high), "not told from its own")
        lines.append(
            f"- **{row.method}**, {row.rule}: balanced error {row.own:.3f} with a category's own threshold, "
            f"{row[4]:.3f} with another's: {sweeps.signed(row.difference, row.low, row.high)}, n = {row.n}, {word}."
        )
    return "\n".join(lines) or "- A threshold can only be lent between two categories with good and defective images."


def cost_findings(table: pd.DataFrame, prices: Prices) -> str:
    """Which rules are cheaper than not looking at all, and how far the oracle is, as a Markdown list."""
    name, least = prices.trivial
    lines = [f"Per 1000 parts, to {name} without looking costs {least:.0f}; a rule must be cheaper than that."]
    for method, part in table.groupby("method", sort=False):
        told = []
        for row in part[~part.rule.isin([ORACLE, CHEAPEST])].itertuples():
            verdict = sweeps.verdict(row.cost_low - least, row.cost_high - least)
            word = {"lower": "cheaper", "higher": "dearer"}.get(verdict, verdict)
            told.append(f"{row.rule} {row.cost:.0f} ({row.cost_low:.0f} to {row.cost_high:.0f}): {word}")
        best = part[part.rule == CHEAPEST].cost
        oracle = f" No threshold could do better than {best.iloc[0]:.0f}." if len(best) else ""
        lines.append(f"**{method}**, n = {part.n.max()}: {'; '.join(told) or 'no rule'}.{oracle}")
    told = "" if len(table) else " Without good and defective test images (n = 0) no rule has a cost."
    return "\n".join(f"- {line}" for line in lines) + told
