"""The study this workbook grew from, rechecked: its claims against its own tables, and its WinCLIP taken apart.

Notebook 16 lists the claims and the faults. A claim is a tuple: the section, what the study says, the check that
recomputes it from ``Tables``, and the check's own arguments. A check returns the figure the study states (empty where
it states none), what was recomputed, whether the claim holds (None where nobody can tell) and the reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.stats import pearsonr, t

from vlmad_lib.analysis import comparison, published
from vlmad_lib.config import Method
from vlmad_lib.data import datasets
from vlmad_lib.methods import winclip

METHODS = ("AnomalyCLIP", "WinCLIP")
METRICS = ["image_auroc", "pixel_auroc"]
HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot be checked"
# How far a mean printed with three digits may be from the mean of rows printed so: half a unit of each.
ROUNDING = 0.001
# The groups as section 4.1 lists them; those of section 4.5 are in categories.csv.
SECTION_41 = {"rigid": ["bottle", "capsule", "metal_nut", "screw", "transistor"], "flexible": ["cable", "zipper"]}
VERDICTS = {True: HOLDS, False: FAILS, None: UNKNOWN}
Check = tuple[str, str, bool | None, str]


# ---------------------------------------------------------------- tables


def _read(name: str, **options) -> pd.DataFrame:
    return pd.read_csv(datasets.REFERENCE / f"{name}.csv", **options)


@dataclass(frozen=True)
class Tables:
    """What claims are checked against: the study's numbers, published ones, defect types, image counts and groups."""

    study: pd.DataFrame = field(default_factory=lambda: _read("study_results", dtype=str))
    figures: pd.DataFrame = field(default_factory=published.read_figures)
    defects: pd.DataFrame = field(default_factory=lambda: _read("mvtec_defects"))
    counts: pd.DataFrame = field(default_factory=lambda: _read("dataset_counts"))
    categories: pd.DataFrame = field(default_factory=lambda: _read("categories"))

    def rows(self, method: str, metric: str) -> pd.Series:
        """The study's zero-shot figures by category, from its Table 1 or 3."""
        rows = self.study[self.study.table.isin(["Table 1", "Table 3"]) & (self.study.item != "mean")]
        rows = rows[(rows.method == method) & (rows.metric == metric)]
        return rows.set_index("item").value.astype(float)

    def value(self, item: str, metric: str, method: str = "AnomalyCLIP", group: str = "") -> float:
        """One number of the study; nan where it has none."""
        rows = self.study[(self.study.item == item) & (self.study.metric == metric) & (self.study.method == method)]
        rows = rows[rows.group == group] if group else rows
        return float(rows.value.iloc[0]) if len(rows) else float("nan")

    def groups(self) -> pd.Series:
        """Group of each category of MVTec AD, as in the study's section 4.5."""
        return self.categories[self.categories.dataset == "MVTec AD"].set_index("category").group

    def summary(self, group: str) -> pd.DataFrame:
        """Mean, standard deviation, n and 95 % interval (Student's t) of each row of the study's Table 5 or 6."""
        rows = self.study[self.study.group == group].pivot_table(
            index="item", columns="metric", values="value", aggfunc="first", sort=False
        )
        rows = rows.astype(float).rename(columns={"auroc": "mean", "auroc_std": "std", "n_defect_types": "n"})
        half = [half_width(row.std, row.n) for row in rows[["std", "n"]].itertuples()] if len(rows) else []
        return rows.assign(half=half, low=rows["mean"] - half, high=rows["mean"] + half)

    def of(self, who: str, kind: str, metric: str) -> pd.Series:
        """Published zero-shot figures on MVTec AD by category, with ``mean``."""
        rows = self.figures[(self.figures.dataset == "MVTec AD") & (self.figures.shots == 0)]
        rows = rows[(rows.who == who) & (rows.kind == kind) & (rows.metric == metric)]
        return rows.set_index("category").value


def half_width(std: float, n: float) -> float:
    """Half of the 95 % interval (Student's t) of a mean of n values; infinite where n is below 2."""
    return float(t.ppf(0.975, n - 1) * std / np.sqrt(n)) if n >= 2 else float("inf")


# ---------------------------------------------------------------- claims


def check_claims(claims: list[tuple], facts: Tables) -> pd.DataFrame:
    """A row a claim: section, what the study says, what was recomputed, the verdict and the reason."""
    rows = []
    for section, says, check, *arguments in claims:
        stated, recomputed, holds, reason = check(facts, *arguments)
        verdict = VERDICTS[None if holds is None else bool(holds)]
        rows.append((section, f"{says}: {stated}" if stated else says, recomputed, verdict, reason))
    return pd.DataFrame(rows, columns=["section", "the study says", "recomputed", "verdict", "because"])


def _number(stated: float, recomputed: float, slack: float, why: str, digits: int = 3) -> Check:
    """A stated number against the recomputed one; it holds where rounding can explain the difference."""
    shown = f"{stated:.{digits}f}", f"{recomputed:.{digits}f}" if digits != 3 else f"{recomputed:.4f}"
    if np.isnan(stated) or np.isnan(recomputed):
        return (*shown, None, "The study prints no numbers to recompute it from.")
    return (*shown, abs(stated - recomputed) <= slack + 1e-9, why)


def check_mean(facts: Tables, method: str, metric: str) -> Check:
    """Whether a mean of the study's zero-shot figures is that of its own rows."""
    rows = facts.rows(method, metric)
    stated = facts.value("mean", metric, method)
    return _number(stated, rows.mean(), ROUNDING, f"Mean of the n = {len(rows)} rows of its own table.")


def check_group(facts: Tables, method: str, metric: str, group: str) -> Check:
    """Whether the mean over a group of categories is that of its rows."""
    item = "flexible_complex" if group == "flexible" else group
    rows = facts.rows(method, metric)
    rows = rows[rows.index.map(facts.groups()) == group]
    why = f"Mean of the rows of its n = {len(rows)} {group} categories."
    return _number(facts.value(item, metric, method, "category_type"), rows.mean(), ROUNDING, why)


def check_gain(facts: Tables, metric: str) -> Check:
    """Whether AnomalyCLIP's gain over WinCLIP, in percent, follows from the rows of both."""
    ours, base = (facts.rows(method, metric).mean() for method in ("AnomalyCLIP", "WinCLIP"))
    slack = 100 * ROUNDING * (1 / base + ours / base**2) + 0.05
    why = f"Ratio of the rows' means, {ours:.4f} / {base:.4f}; rounding explains {slack:.1f} points."
    return _number(facts.value("relative_gain_percent", metric, "claim"), 100 * (ours / base - 1), slack, why, 1)


def check_range(facts: Tables, method: str, stated: tuple[str, float, str, float]) -> Check:
    """Whether the lowest and the highest image AUROC are where the study says: (worst, value, best, value)."""
    rows = facts.rows(method, "image_auroc")
    worst, low, best, high = stated
    same = rows.min() == low and rows.max() == high and rows[worst] == low and rows[best] == high
    recomputed = f"{rows.min():.3f} ({rows.idxmin()}) to {rows.max():.3f} ({rows.idxmax()})"
    why = f"Smallest and largest of n = {len(rows)} rows; their standard deviation is {rows.std():.3f}."
    return (f"{low:.3f} ({worst}) to {high:.3f} ({best})", recomputed, same, why)


def check_contrast_gap(facts: Tables) -> Check:
    """Whether high contrast lies as many points above low contrast as the study says."""
    levels = facts.summary("contrast")
    gap = 100 * (levels["mean"]["High"] - levels["mean"]["Low"])
    stated = facts.value("high_minus_low_contrast_points", "auroc", "claim")
    high, low = levels.loc["High"], levels.loc["Low"]
    why = f"Table 5; the intervals are {low.low:.3f} to {low.high:.3f} and {high.low:.3f} to {high.high:.3f}."
    return _number(stated, gap, 0.15, why, 1)


def check_flexible(facts: Tables) -> Check:
    """Whether AnomalyCLIP is weaker on flexible objects, and not on one of them alone."""
    rows = facts.rows("AnomalyCLIP", "image_auroc")
    groups = facts.groups().reindex(rows.index)
    flexible, rigid = rows[groups == "flexible"], rows[groups == "rigid"]
    weakest = flexible.idxmin()
    rest = flexible.drop(weakest)
    recomputed = f"flexible {flexible.mean():.3f}, rigid {rigid.mean():.3f}; without {weakest} {rest.mean():.3f}"
    why = (
        f"For AnomalyCLIP one category of n = {len(flexible)}, {weakest} ({flexible.min():.3f}), makes the difference: "
        f"the others are {'above' if rest.mean() > rigid.mean() else 'below'} the mean of the rigid ones."
    )
    struggles = flexible.mean() < rigid.mean() - ROUNDING and rest.mean() < rigid.mean()
    return "", recomputed, struggles, why


def check_hardest(facts: Tables) -> Check:
    """Whether missing components are the hardest kind of defect, as far as the intervals can say."""
    types = facts.summary("defect_type")
    named, others = types.loc["Missing Component"], types.drop("Missing Component")
    nearest = others.loc[others["mean"].idxmin()]
    recomputed = f"{named['mean']:.3f} ± {named.half:.2f} (n = {named.n:.0f})"
    if named["mean"] > nearest["mean"]:
        return "", recomputed, False, f"{nearest.name} is lower ({nearest['mean']:.3f})."
    reaching = others[others.low <= named.high]
    why = f"Their 95 % interval reaches into those of {len(reaching)} of the n = {len(others)} other types."
    return "", recomputed, None if len(reaching) else True, why


def check_threshold(facts: Tables) -> Check:
    """Whether the three levels of contrast can show a threshold."""
    levels = facts.summary("contrast")
    low, medium, high = (levels.loc[name] for name in ("Low", "Medium", "High"))
    recomputed = f"steps {medium['mean'] - low['mean']:+.3f} and {high['mean'] - medium['mean']:+.3f}"
    if medium.low <= low.high:
        return "", recomputed, False, "Between low and medium contrast no difference is shown."
    apart = "are apart" if high.low > medium.high else "overlap"
    why = f"The levels are never defined; medium and high {apart} (n = {medium.n:.0f} and {high.n:.0f} defect types); "
    return "", recomputed, None, why + "three levels cannot tell a threshold from a slope."


def check_annotations(facts: Tables) -> Check:
    """Whether Tables 5 and 6 use every defect type of MVTec AD."""
    used = [int(facts.summary(name).n.sum()) for name in ("contrast", "defect_type")]
    annotated = len(facts.defects)
    recomputed = f"{used[0]} and {used[1]} of n = {annotated} defect types"
    why = f"{annotated - min(used)} defect types are left out of Tables 5 and 6 without a word."
    return "", recomputed, min(used) == annotated, why


def check_same_types(facts: Tables) -> Check:
    """Whether Tables 5 and 6, weighted by their defect types, have one mean."""
    levels, types = facts.summary("contrast"), facts.summary("defect_type")
    means = [float(np.average(rows["mean"], weights=rows.n)) for rows in (levels, types)]
    why = f"Means of Tables 5 and 6, weighted by their n = {levels.n.sum():.0f} and {types.n.sum():.0f} defect types."
    same = levels.n.sum() == types.n.sum() and abs(means[0] - means[1]) <= ROUNDING
    return "", f"{means[0]:.4f} and {means[1]:.4f}", same, why


def check_room(facts: Tables, categories: list[str], gain: float) -> Check:
    """Whether the image AUROC of WinCLIP leaves room for a gain in some categories."""
    left = 1 - facts.rows("WinCLIP", "image_auroc")[categories]
    recomputed = ", ".join(f"{name} {value:.3f}" for name, value in left.items())
    short = left[left < gain]
    if short.empty:
        return f"+{gain} to +0.3", f"room: {recomputed}", None, "No table gives few-shot figures."
    why = f"An AUROC ends at 1: {', '.join(short.index)} cannot gain {gain} (n = {len(short)} of {len(left)})."
    return f"+{gain} to +0.3", f"room: {recomputed}", False, why


def check_grouping(facts: Tables) -> Check:
    """Whether sections 4.1 and 4.5 put each category into the same group."""
    groups = facts.groups()
    moved = [name for group, names in SECTION_41.items() for name in names if groups[name] != group]
    listed = f"n = {sum(map(len, SECTION_41.values()))} categories that section 4.1 names beside the textures"
    why = f"Of the {listed}, {len(moved)} are in another group in section 4.5."
    return "", f"moved: {', '.join(moved) or 'none'}", not moved, why


def check_mention(facts: Tables, words: str) -> Check:
    """Whether any number of the study concerns what a regular expression describes."""
    recomputed = facts.study.astype(str).apply(lambda row: bool(re.search(words, " ".join(row), re.IGNORECASE)), axis=1)
    count = int(recomputed.sum())
    why = "Announced in the abstract; none of its tables or numbers concerns it." if not count else "It has figures."
    return "", f"{count} of n = {len(recomputed)} numbers", count, why


def check_few_shot(facts: Tables) -> Check:
    """Whether any table of the study has results with reference images."""
    rows = facts.study[facts.study.table.str.startswith("Table")]
    count = int((rows.shots != "0").sum())
    why = "There is no appendix and no few-shot table." if not count else "There are few-shot rows."
    return "", f"{count} of n = {len(rows)} numbers", count, why


def check_parts(facts: Tables, item: str, metric: str, method: str, needs: str, stated: str) -> Check:
    """A claim that nobody can check, since the study does not print the parts of its number: how many it does."""
    rows = facts.study[(facts.study.method == method) & (facts.study.metric == metric)]
    rows = rows[rows.group.isin(["category", "window_size", "defect_type"]) & rows.item.str.contains(item)]
    rows = rows[~rows.item.str.startswith("average")]
    return stated, f"{len(rows)} of the figures it needs are printed", None, f"It would need {needs}."


def check_images(facts: Tables) -> Check:
    """Whether the number of test images is that of MVTec AD."""
    rows = facts.counts[(facts.counts.dataset == "MVTec AD") & (facts.counts.split == "test")]
    recomputed = int(rows.n_images.sum())
    stated = facts.value("mean", "n_test_images")
    why = f"Sum over n = {rows.category.nunique()} categories."
    return _number(stated, recomputed, 0, why, 0)


# ---------------------------------------------------------------- against the original methods


def check_paper(facts: Tables, metric: str) -> Check:
    """Whether the study's mean of WinCLIP is one that re-implementations reach too."""
    study, paper = (facts.of(who, "winclip", metric)["mean"] for who in ("study", "paper"))
    rows = facts.figures[(facts.figures.dataset == "MVTec AD") & (facts.figures.shots == 0)]
    rows = rows[(rows.kind == "winclip") & (rows.metric == metric) & (rows.category == "mean")]
    others = rows[~rows.who.isin(["paper", "study"])].value.sort_values()
    listed = ", ".join(f"{value:.3f}" for value in others)
    recomputed = f"paper {paper:.3f}; re-implementations {listed}"
    close = sum(abs(others - paper) < abs(others - study))
    why = f"{close} of n = {len(others)} re-implementations are nearer to the paper than to the study."
    return (f"{study:.3f}", recomputed, close <= len(others) / 2, why)


def check_tile(facts: Tables) -> Check:
    """Whether prompts can explain WinCLIP's figure on tile, which is below chance."""
    rows = facts.figures[(facts.figures.category == "tile") & (facts.figures.metric == "image_auroc")]
    rows = rows[(rows.kind == "winclip") & (rows.shots == 0)].set_index("who").value
    others = rows.drop(["paper", "study"])
    recomputed = f"paper {rows['paper']:.3f}; re-implementations {others.min():.3f} to {others.max():.3f}"
    why = (
        f"The same prompts rank tile well elsewhere (n = {len(others) + 1}), and turned round {rows['study']:.3f} is "
        f"{1 - rows['study']:.3f}: an inverted ranking, which words alone do not explain."
    )
    inverted = rows["study"] < 0.5 < others.min()
    return (f"{rows['study']:.3f}", recomputed, not inverted, why)


def check_authors_log(facts: Tables) -> Check:
    """Whether the study's figures of AnomalyCLIP are those of its authors, cell by cell."""
    equal = total = 0
    for metric in METRICS:
        study, paper = facts.rows("AnomalyCLIP", metric), facts.of("paper", "anomalyclip", metric)
        both = study.index.intersection(paper.index)
        total += len(both)
        equal += int((abs(study[both] - paper[both]) < 1e-9).sum())
    same = equal == total
    why = "The table is the log shipped with the authors' code" if same else "The table differs from the authors' log"
    return "", f"{equal} of n = {total} cells are equal", same, why + "."


def check_boards(facts: Tables) -> Check:
    """Whether circuit boards are among the categories that the study tested."""
    tested = facts.counts[facts.counts.dataset.isin(published.BENCHMARKS)]
    names_by_data = tested.groupby("dataset").category.unique()
    boards = {data: sum("pcb" in name for name in names) for data, names in names_by_data.items()}
    recomputed = ", ".join(f"{name}: {count}" for name, count in boards.items())
    why = "Its advice names parts that are in none of the categories it tested; VisA has them."
    return "", recomputed, boards["MVTec AD"], why


def correlate(first: pd.Series, second: pd.Series) -> tuple[int, float, float, float]:
    """The number of common categories, Pearson's r and its 95 % interval (Fisher's z); (-1, 1) for fewer than 4."""
    both = pd.concat([first, second], axis=1, join="inner").dropna()
    if len(both) < 3 or both.nunique().min() < 2:
        return len(both), float("nan"), -1.0, 1.0
    result = pearsonr(*both.to_numpy().T)
    perfect = abs(result.statistic) > 1 - 1e-9  # a perfect fit of few points is no certainty
    return len(both), float(result.statistic), *((-1.0, 1.0) if perfect else result.confidence_interval(0.95))


# ---------------------------------------------------------------- its WinCLIP taken apart

COLUMNS = ["shots", "fault", "direction", "base", "value", *comparison.COLUMNS]
PAPER, STUDY = "as in the paper", "as in the study"
ADDED, REMOVED = "one fault added to the paper's", "one fault taken from the study's"
ALL = "all faults together"


def list_variants(spec: Method, faults: Mapping[str, str]) -> list[Method]:
    """A WinCLIP as the paper and as the study have it; with one fault added to the one, taken from the other.

    ``faults`` gives the setting that each fault is. Backbone, windows, states and ``fit`` stay the method's own.
    """
    own = winclip.settings(spec.preset, spec.settings)
    kept = own.model_dump(include={"windows", "states", "own_normal", "own_anomalous", "fit"})
    paper, study = (winclip.settings(name).model_dump() for name in ("paper", "study"))
    variants = [(PAPER, "paper", kept), (STUDY, "study", kept)]
    for fault, setting in faults.items():
        variants.append((f"{ADDED}: {fault}", "paper", kept | {setting: study[setting]}))
        variants.append((f"{REMOVED}: {fault}", "study", kept | {setting: paper[setting]}))
    return [spec.model_copy(update={"name": name, "preset": base, "settings": more}) for name, base, more in variants]


def compare_variants(metrics: pd.DataFrame) -> pd.DataFrame:
    """Paired differences over *n* categories of every variant of a run to the one it was made from.

    ``direction`` is ``ALL`` (the study's WinCLIP against the paper's), ``ADDED`` or ``REMOVED``; intervals hold at 95 %
    for all differences of a direction together.
    """
    rows = []
    for direction, base in ((ALL, PAPER), (ADDED, PAPER), (REMOVED, STUDY)):
        in_direction = metrics.method == STUDY if direction == ALL else metrics.method.str.startswith(f"{direction}: ")
        for measure in METRICS:
            compared = metrics[(metrics.method == base) | in_direction].dropna(subset=measure)
            if compared.method.nunique() < 2:
                continue
            facts = {"shots": int(compared.shots.iloc[0]), "direction": direction, "measure": measure}
            differences = comparison.compare_with_base(compared, base, measure).set_index("method")
            for name, row in differences.drop(base).iterrows():
                fault = ALL if direction == ALL else name.partition(": ")[2]
                values = {"fault": fault, "base": differences[measure][base], "value": row[measure]}
                ends = row[["n", "difference", "low", "high"]].to_dict()
                rows.append(facts | values | ends | {"over": "categories"})
    return pd.DataFrame(rows, columns=COLUMNS).astype({"n": int})
