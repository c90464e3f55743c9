"""Does language help: WinCLIP with its words against the same features and references without (notebook 18).

A difference is WinCLIP's figure less another's, so above zero words help. It is paired over categories, each the mean
of its draws, or over reference draws, each the macro mean over categories.
"""

from __future__ import annotations

import pandas as pd

from vlmad_lib import config, tables, within
from vlmad_lib.analysis import comparison, draws
from vlmad_lib.config import FULL, Method, Profile, check_record
from vlmad_lib.evaluation import statistics
from vlmad_lib.methods import memory_bank

MEASURES = tables.MAIN
COLUMNS = ["shots", "against", "group", "over", "measure", "difference", "low", "high", "n"]
VERDICTS = {"higher": "words help", "lower": "words cost"}  # of two methods that differ in nothing else


def counts(profile: Profile, full: bool) -> list[int | str]:
    """The profile's smallest and largest number of references, and ``full`` where asked for."""
    few = sorted(shots for shots in profile.shots if 0 < shots < FULL)
    return [*dict.fromkeys([*few[:1], *few[-1:]]), *(["full"] if full and few else [])]


def plan(profile: Profile, spec: Method, shots: list[int | str], drawn: int, categories: list[str]) -> Profile:
    """The profile that runs a WinCLIP and all methods without words, with and without references.

    All maps are smoothed alike, as in the originals of those without words, or as the WinCLIP's settings say.
    ``drawn``: the reference draws of it, the profile's first ones; 0 for all. InputError for wrong shots.
    """
    seeds = profile.seeds[: within("draws", drawn, 0) or None]
    changes = {"shots": [0, *shots], "categories": categories, "seeds": seeds}
    wanted = check_record(Profile, profile.model_dump() | changes, "shots of notebook 18")
    smoothed = spec.model_copy(update={"settings": {"sigma": memory_bank.SIGMA} | spec.settings})
    return wanted.model_copy(update={"methods": [smoothed, *memory_bank.twins(smoothed)], "imports": []})


def differences(metrics: pd.DataFrame, own: str, alone: bool = False) -> pd.DataFrame:
    """``own``, which reads words, less each other method, by number of references.

    Both with the same references; ``alone``: words without references against references without words. Over
    categories, of each ``group`` and of ``all``, and over draws; 95 % intervals, *n* categories or draws.
    """
    rows = []
    others = metrics[metrics.method != own]
    for (shots, name), second in others.groupby(["shots", "method"], sort=False):
        first = metrics[(metrics.method == own) & (metrics.shots == (0 if alone else shots))]
        known = set(second.group)
        for group in [one for one in config.GROUPS if one in known and len(known) > 1] + ["all"]:
            sides = [side if group == "all" else side[side.group == group] for side in (first, second)]
            after, before = (side.groupby("category")[MEASURES].mean() for side in sides)
            rows += _rows({"shots": shots, "against": name, "group": group, "over": "categories"}, after - before)
        if shots < FULL:  # of all references there is one draw
            after, before = (side.groupby("seed")[MEASURES].mean() for side in (first, second))
            facts = {"shots": shots, "against": name, "group": "all", "over": "draws"}
            rows += _rows(facts, draws.between(after, before))
    return pd.DataFrame(rows, columns=COLUMNS).sort_values("shots", kind="stable", ignore_index=True)


def _rows(facts: dict, apart: pd.DataFrame) -> list[dict]:
    found = []
    for measure in MEASURES:
        known = apart[measure].dropna()
        values = dict(zip(("difference", "low", "high"), statistics.difference(known), strict=True))
        found.append(facts | {"measure": measure} | values | {"n": len(known)})
    return found


def difference_table(found: pd.DataFrame) -> pd.DataFrame:
    """``differences`` for people: the measures side by side, *n* of each where they differ; empty without rows."""
    if found.empty:
        return pd.DataFrame(columns=[*COLUMNS[:4], "n", *MEASURES])
    keys = ["shots", "against", "group", "over", "n"]
    counts = found.groupby(keys[:4], sort=False).n.agg(tables.format_each_count)
    told = found.assign(told=[told_apart(row) for row in found.itertuples()]).drop(columns="n")
    told = told.merge(counts.reset_index(), on=keys[:4])
    wide = told.pivot(index=keys, columns="measure", values="told").reindex(columns=MEASURES)
    return wide.reindex(pd.MultiIndex.from_frame(told[keys].drop_duplicates())).reset_index().rename_axis(columns=None)


def told_apart(row) -> str:
    """A difference, its interval and what it says: ``+0.012 (-0.003 to +0.027), not decided``."""
    if pd.isna(row.difference):
        return "none"
    return f"{comparison.format_difference(row.difference, row.low, row.high)}, {comparison.verdict(row.low, row.high)}"


def findings(found: pd.DataFrame, alone: pd.DataFrame, own: str, twin: str) -> str:
    """Whether words help, as a Markdown list; ``twin``: the method that is ``own`` without its words."""
    known = found.dropna(subset="difference")
    if known.empty:
        return tables.NO_AUROC
    lines = []
    for shots, part in known.groupby("shots"):
        same = part[(part.against == twin) & (part.group == "all")]
        told = [_told(part, over, VERDICTS) for over, part in same.groupby("over", sort=False)]
        lines.append(f"**{tables.name_shots(shots)}**, {own} less {twin}, its own references: {'; '.join(told)}.")
        others = part[(part.against != twin) & (part.group == "all") & (part.over == "categories")]
        if len(others):
            lines.append(f"**{tables.name_shots(shots)}**, {own} less the others: {_counted(others)}.")
    few = known[(known.shots == known.shots.min()) & (known.against == twin) & (known.group != "all")]
    for group, part in few.groupby("group", sort=False):
        name = tables.name_shots(part.shots.iloc[0])
        lines.append(f"**{group}**, {name}, {own} less {twin}: {_told(part, 'categories', VERDICTS)}.")
    words = alone.dropna(subset="difference")
    words = words[(words.group == "all") & (words.over == "categories") & (words.against == twin)]
    for shots, part in words.groupby("shots"):
        name = tables.format_shots(shots)
        noun = "reference" if shots == 1 else "references"
        told = _told(part, "categories", {"higher": "words ahead", "lower": "references ahead"})
        lines.append(f"Words alone less {name} {noun} alone ({twin}): {told}.")
    decided = known[(known.over == "categories") & (known.against == twin)]
    lines.append(
        "For a new product the intervals over categories decide, for other references of a known one those over draws. "
        f"Each holds at 95 % by itself: of {len(decided)} differences to {twin} over categories chance alone would "
        f"decide about {(1 - statistics.LEVEL) * len(decided):.1f}."
    )
    return "\n".join(f"- {line}" for line in lines)


def _told(part: pd.DataFrame, over: str, verdicts: dict[str, str]) -> str:
    """The measures of one comparison and for what: ``for other products, over n = 12 categories, image AUROC ...``."""
    told = []
    for row in part.itertuples():
        verdict = comparison.verdict(row.low, row.high)
        interval = comparison.format_difference(row.difference, row.low, row.high)
        told.append(f"{tables.TITLES[row.measure]} {interval}, {verdicts.get(verdict, verdict)}")
    scope = {"categories": "for other products", "draws": "with other references of these products"}[over]
    return f"{scope}, over n = {tables.format_counts(part.n, over)}, {', '.join(told)}"


def _counted(part: pd.DataFrame) -> str:
    """How many comparisons are decided which way, by name."""
    verdicts = pd.Series([comparison.verdict(row.low, row.high) for row in part.itertuples()], index=part.index)
    told = []
    for kind in VERDICTS:
        rows = part[verdicts == kind]
        names = [f"{row.against}, {tables.TITLES[row.measure]} {row.difference:+.3f}" for row in rows.itertuples()]
        told.append(f"{kind} in {len(rows)}" + (f" ({'; '.join(names)})" if names else ""))
    chance = (1 - statistics.LEVEL) * len(part)
    return (
        f"{', '.join(told)}, not decided in {(verdicts == 'not decided').sum()} of n = {len(part)} comparisons over "
        f"{tables.format_counts(part.n, 'categories')}, of which chance alone would decide about {chance:.1f}"
    )
