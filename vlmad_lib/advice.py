"""Which method for which line (notebook 17): trade-offs side by side, and advice, each sentence from a row of a table.

A method is advised only where the categories tell it from all that compete; otherwise the advice is what asks least
among those that they cannot tell apart, and says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vlmad_lib import breakdown, contrast, defects, efficiency, methods, statistics, sweeps
from vlmad_lib.efficiency import STEPS
from vlmad_lib.profile import FULL, Profile
from vlmad_lib.results import Results

FAINT = "faint_auroc"
TITLES = breakdown.TITLES | {FAINT: "AUROC of the least visible third of the defects"}
MEASURED = tuple(breakdown.MAIN)


@dataclass(frozen=True)
class Situation:
    """A line to advise: what decides there (a column of ``cells``), its categories, and what it can give a method."""

    name: str
    column: str
    groups: tuple[str, ...] = breakdown.GROUPS
    shots: int = FULL  # references at most
    trained: bool = True  # whether prompts or layers learned on other products, with masks, may be used
    fast: bool = False  # of methods that are not told apart take the fastest, not the one that asks least


SITUATIONS = (
    Situation("Any product: find the spot", "aupro"),
    Situation("Any product, no reference images: find the spot", "aupro", shots=0),
    Situation("Texture line: find the spot", "aupro", ("texture",)),
    Situation("Assembly check of rigid parts: good or bad", "image_auroc", ("rigid",)),
    Situation("Flexible products: good or bad", "image_auroc", ("flexible",)),
    Situation("Only the product's name is known", "image_auroc", shots=0, trained=False),
    Situation("No reference images", "image_auroc", shots=0),
    Situation("Up to two reference images", "image_auroc", shots=2),
    Situation("Faint defects matter most", FAINT),
    Situation("CPU only: fast, as long as accuracy does not suffer", "image_auroc", fast=True),
)


def situations(found: pd.DataFrame) -> list[Situation]:
    """Those of ``SITUATIONS`` that the categories of ``cells`` can speak of: own pictures may be of no known group."""
    return [one for one in SITUATIONS if set(one.groups) & set(found.group)]


# ---------------------------------------------------------------- what was measured


def cells(results: Results, measures: pd.DataFrame) -> pd.DataFrame:
    """Metrics by (name), category and method, averaged over reference draws, with that of the least visible defects.

    ``measures``: those of ``contrast.measure``, whose lowest third in contrast is called faint.
    """
    columns = list(MEASURED)
    found = breakdown.per_category(results.metrics, columns)
    kinds = results.metrics.assign(name=breakdown.by_name(results.metrics)).drop_duplicates("name")
    found = found.merge(kinds[["name", "method", "shots"]], on="name")
    faint = measures[contrast.levels(measures) == contrast.LEVELS[0]].image
    rows = []
    for (name, category), part in results.scores.assign(name=breakdown.by_name(results.scores)).groupby(
        ["name", "category"]
    ):
        seen = part[(part.label == 0) | part.image.isin(faint)]
        wins = [statistics.wins(one.label.to_numpy(), one.score.to_numpy()) for _, one in seen.groupby("seed")]
        rows.append(
            {"name": name, "category": category, FAINT: np.mean([one.mean() for one in wins if len(one)] or np.nan)}
        )
    return found.merge(pd.DataFrame(rows, columns=["name", "category", FAINT]), on=["name", "category"], how="left")


def costs(profile: Profile, rows: pd.DataFrame, repeats: int = 1) -> pd.DataFrame:
    """``efficiency.measure`` of every method: with the most references that it takes and, where it can, without any.

    Encoding is timed once for both: what they differ by is far less than two timings do.
    """
    found = []
    for spec in profile.methods:
        found.append(efficiency.measure(profile, spec, rows, repeats=repeats))
        if found[-1]["shots"] and methods.METHODS[spec.method].ZERO_SHOT:
            found.append(found[-1] | {"shots": 0, "score": found[-1]["bare"]})
    return pd.DataFrame(found)


def needs(results: Results, costs: pd.DataFrame) -> pd.DataFrame:
    """What every method asks for, by (name): ``shots``, whether it reads words or was ``learned``, ms and MB.

    ``costs``: rows of ``costs``, of which the next larger number of references counts; a method that has none, an
    import, has no ms nor MB.
    """
    chosen = {one.name: one for one in (methods.choose(spec, results.profile) for spec in results.profile.methods)}
    first = results.metrics.assign(name=breakdown.by_name(results.metrics)).drop_duplicates("name")
    timed = costs if len(costs) else pd.DataFrame(columns=["method", "shots", "memory", *STEPS])
    rows = []
    for row in first.itertuples():
        one = chosen.get(row.method)
        own = timed[timed.method == row.method].sort_values("shots")
        enough = own[own.shots >= row.shots]
        cost = next((enough if len(enough) else own[::-1]).itertuples(), None)
        rows.append(
            {
                "name": row.name,
                "method": row.method,
                "shots": row.shots,
                "words": bool(one and one.module.ZERO_SHOT),
                "learned": bool(one and one.settings.learned),
                "known": one is not None,
                "ms": float(sum(getattr(cost, name) for name in STEPS)) if cost else float("nan"),
                "memory": float(cost.memory) if cost else float("nan"),
            }
        )
    return pd.DataFrame(rows)


def tradeoffs(results: Results, found: pd.DataFrame, needed: pd.DataFrame, recalled: pd.DataFrame) -> pd.DataFrame:
    """One row a method and number of references, for people: accuracy with 95 % intervals, worst category, needs.

    ``recalled``: ``faint_recall``. Image AUROC's interval is over images; the others' are Student's over categories.
    ``n``: categories behind the three means (``breakdown.behind``).
    """
    rows = []
    for row in needed.itertuples():
        part = found[found.name == row.name]
        own = results.scores[(results.scores.method == row.method) & (results.scores.shots == row.shots)]
        worst = part.dropna(subset="image_auroc").nsmallest(1, "image_auroc")
        faint = recalled[(recalled.method == row.method) & (recalled.shots == row.shots)]
        rows.append(
            {
                "method": row.name,
                "image AUROC": _within(part.image_auroc.mean(), *statistics.macro_interval(own)),
                "pixel AUROC": _within(*_student(part.pixel_auroc)),
                "AUPRO": _within(*_student(part.aupro)),
                "worst category": "".join(f"{one.category} ({one.image_auroc:.3f})" for one in worst.itertuples()),
                "low-contrast recall": _within(*faint.iloc[0][["recall", "low", "high"]]) if len(faint) else "none",
                "ms per image": _plain(row.ms),
                "peak memory, MB": _plain(row.memory),
                "needs": asks(row),
                "n": breakdown.behind(part[list(MEASURED)]),
            }
        )
    return pd.DataFrame(rows)


def faint_recall(results: Results, measures: pd.DataFrame, rate: float = 0.1) -> pd.DataFrame:
    """``defects.recall`` of the least visible third of the defects, for every number of shots."""
    levelled = measures.assign(level=contrast.levels(measures))[["image", "level"]]
    scores, rows = results.scores.merge(levelled, on="image", how="left"), []
    for shots in sorted(results.scores.shots.unique()):
        part = defects.recall(scores, "level", contrast.LEVELS, rate, shots)
        rows.append(part[part.level == contrast.LEVELS[0]].assign(shots=shots))
    return pd.concat(rows, ignore_index=True)


def asks(row) -> str:
    """What a row of ``needs`` asks for besides the picture, in words."""
    if not row.known:
        return "unknown: imported results"
    told = ["the product's name"] if row.words and not row.learned else []
    told += [sweeps.count(row.shots, "normal image", "normal images")] if 0 < row.shots < FULL else []
    told += ["all normal training images"] if row.shots == FULL else []
    told += ["training on other products, with masks"] if row.learned else []
    return ", ".join(told)


def _student(values: pd.Series) -> tuple[float, float, float]:
    mean, low, high = statistics.paired(values.dropna())
    return mean, max(low, 0.0), min(high, 1.0)


def _within(mean: float, low: float, high: float) -> str:
    return "none" if np.isnan(mean) else f"{mean:.3f} ({low:.3f} to {high:.3f})"


def _plain(value: float) -> str:
    return "unknown" if np.isnan(value) else f"{value:.0f}"


# ---------------------------------------------------------------- advice


def advise(found: pd.DataFrame, needed: pd.DataFrame, situations: Iterable[Situation] = SITUATIONS) -> pd.DataFrame:
    """One row a situation, of which ``sentences`` makes the advice.

    Each method competes without references and with the most the situation can give, which is fixed before looking at
    results. ``best`` has the highest mean over the *n* categories that all competitors have; ``rivals`` are those not
    told from it (paired t tests, Bonferroni over all ``pairs``); ``take`` is ``best`` where there are none, otherwise
    what asks least, or is fastest, among them. ``difference`` is that of ``best`` to ``against``: the next best where
    ``best`` is taken, else what is taken in its place. ``low`` and ``high`` end its interval, at 95 % for all pairs
    together as the tests are: it holds 0 just where they do not tell the two apart.
    """
    rows = []
    for one in situations:
        allowed = needed[(needed.shots <= one.shots) & (one.trained | ~needed.learned)]
        most = allowed.groupby("method").shots.transform("max")
        allowed = allowed[(allowed.shots == 0) | (allowed.shots == most)]
        part = found[found.group.isin(one.groups) & found.name.isin(allowed.name)]
        wide = part.pivot(index="category", columns="name", values=one.column).dropna(axis=1, how="all").dropna()
        row = {
            "situation": one.name,
            "column": one.column,
            "n": len(wide) if wide.size else 0,
            "competitors": wide.shape[1],
        }
        rows.append(row | (_choice(wide, allowed.set_index("name"), one.fast) if wide.size else {}))
    return pd.DataFrame(rows, columns=COLUMNS)


_CHOICE = ["best", "value", "rivals", "take", "taken", "against", "other", "difference", "low", "high"]
_CHOICE += ["pairs", "reason"]
COLUMNS = ["situation", "column", "n", "competitors", *_CHOICE]


def _choice(wide: pd.DataFrame, allowed: pd.DataFrame, fast: bool) -> dict:
    """The last columns of ``advise``, from values (categories x competitors)."""
    means = wide.mean().sort_values(ascending=False, kind="stable")
    best, untold = sweeps.best(wide)
    rivals = [name for name in means.index if name in untold and name != best]
    order = allowed.loc[untold].sort_values(["ms"] if fast else ["learned", "shots", "ms"], kind="stable")
    take = order.index[0] if rivals else best
    others = [name for name in means.index if name != best]
    against = take if take != best else next(iter(rivals or others), "")
    pairs = wide.shape[1] * (wide.shape[1] - 1) // 2
    apart = (
        statistics.difference(wide[best] - wide[against], statistics.together(pairs))
        if against
        else (np.nan, np.nan, np.nan)
    )
    row = allowed.reset_index().set_index("name", drop=False).loc[take]
    time = f"{_plain(row.ms)} ms an image, with this backbone and input size only"
    reason = time if fast else f"it needs {asks(row) or 'nothing but the picture'}"
    return {
        "best": best,
        "value": means[best],
        "rivals": ", ".join(rivals),
        "take": take,
        "taken": means[take],
        "against": against,
        "other": means[against] if against else np.nan,
        **dict(zip(("difference", "low", "high"), apart, strict=True)),
        "pairs": pairs,
        "reason": reason,
    }


def shown(advised: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``advise`` for people: values in brackets, what the best is set against with the difference to it."""
    ends = zip(_valued(advised.against, advised.other), advised.difference, advised.low, advised.high, strict=True)
    return pd.DataFrame(
        {
            "situation": advised.situation,
            "by": advised.column.map(TITLES),
            "n": advised.n,
            "best": _valued(advised.best, advised.value),
            "rivals": _named(advised.rivals),
            "take": _named(advised["take"]),
            "best less": [f"{name}: {sweeps.signed(*rest)}" if name != "none" else name for name, *rest in ends],
        }
    )


def _named(names: pd.Series) -> list[str]:
    return [name if isinstance(name, str) and name else "none" for name in names]


def _valued(names: pd.Series, values: pd.Series) -> list[str]:
    return [f"{name} ({value:.3f})" if value == value else "none" for name, value in zip(names, values, strict=True)]


def sentences(advised: pd.DataFrame) -> str:
    """The advice as a Markdown list; every sentence is its row of ``advise``."""
    return "\n".join(f"- **{row.situation}**: {_sentence(row)}" for row in advised.itertuples())


def _sentence(row) -> str:
    counted = f"n = {breakdown.categories(row.n)}"
    if not row.n:
        return f"not enough evidence: no category here has a value to compare ({counted})."
    title = TITLES[row.column]
    if row.competitors == 1:
        return f"only {row.take} was run that fits ({title} {row.taken:.3f}, {counted}): nothing to compare it with."
    together = f"95 % for all {row.pairs:.0f} pairs together, " if row.pairs > 1 else ""
    apart = f"{sweeps.signed(row.difference, row.low, row.high)}, {together}{counted}"
    if not row.rivals:
        others = f"all {row.competitors - 1} others; of the next, " if row.competitors > 2 else ""
        others += f"{row.against} ({row.other:.3f})" + ("," if others else "")
        return f"take **{row.take}**: {title} {row.taken:.3f}, ahead of {others} by {apart}."
    told = f"not enough evidence for one method: {row.best} has the highest {title} ({row.value:.3f})"
    if row.take == row.best:
        return (
            f"{told} but is not told from {row.rivals}; of {row.against} ({row.other:.3f}) it is ahead by {apart}. "
            f"Of these it is also the one to start with: {row.reason}."
        )
    return (
        f"{told} but is not told from {row.rivals}. Start with **{row.take}** ({row.taken:.3f}; {row.reason}): what "
        f"{row.best} is ahead by, {apart}, is not certain with {row.competitors} methods compared."
    )
