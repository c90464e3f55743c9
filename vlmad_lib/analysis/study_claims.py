"""The study this workbook grew from, rechecked: its claims against its own tables, and its WinCLIP taken apart.

A claim is a tuple: where it stands, what it says, the check that recomputes it from ``Tables``, and the check's own
arguments. A check returns what the study states, what was recomputed, a verdict and the reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.stats import pearsonr, t

from vlmad_lib import tables
from vlmad_lib.analysis import comparison, published
from vlmad_lib.config import Method, Profile
from vlmad_lib.data import datasets
from vlmad_lib.methods import winclip

METHODS = ("AnomalyCLIP", "WinCLIP")
METRICS = ["image_auroc", "pixel_auroc"]
TRUE, FALSE, UNKNOWN = "true", "false", "cannot be checked"
# How far a mean printed with three digits may be from the mean of rows printed so: half a unit of each.
ROUNDING = 0.001
# The groups as section 4.1 lists them; those of section 4.5 are in categories.csv.
SECTION_41 = {"rigid": ["bottle", "capsule", "metal_nut", "screw", "transistor"], "flexible": ["cable", "zipper"]}
Check = tuple[str, str, str, str]


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


def covers_benchmark(measured: pd.DataFrame) -> bool:
    """Whether a metrics table is of all the categories of MVTec AD, of which the study's means are."""
    categories = _read("categories", keep_default_na=False)
    names = set(categories[categories.dataset == published.BENCHMARKS[0]].category)
    return set(measured.dataset) == {published.BENCHMARKS[0]} and set(measured.category) == names


def measure_gaps(facts: Tables) -> dict[str, float]:
    """The study's mean zero-shot figure of WinCLIP less the paper's, by metric."""
    return {
        metric: float(np.subtract(*[facts.of(who, "winclip", metric)["mean"] for who in ("study", "paper")]))
        for metric in METRICS
    }


# ---------------------------------------------------------------- claims


def check_claims(claims: list[tuple], facts: Tables) -> pd.DataFrame:
    """What the study says, what was recomputed, the verdict and the reason: a row a claim."""
    rows = [(where, says, *check(facts, *arguments)) for where, says, check, *arguments in claims]
    return pd.DataFrame(rows, columns=["where", "the study says", "stated", "recomputed", "verdict", "why"])


def _number(stated: float, recomputed: float, slack: float, why: str, digits: int = 3) -> Check:
    """A stated number against the recomputed one; true where rounding can explain the difference."""
    shown = f"{stated:.{digits}f}", f"{recomputed:.{digits}f}" if digits != 3 else f"{recomputed:.4f}"
    if np.isnan(stated) or np.isnan(recomputed):
        return (*shown, UNKNOWN, "The study prints no numbers to recompute it from.")
    return (*shown, TRUE if abs(stated - recomputed) <= slack + 1e-9 else FALSE, why)


def _mean(facts: Tables, method: str, metric: str) -> Check:
    rows = facts.rows(method, metric)
    stated = facts.value("mean", metric, method)
    return _number(stated, rows.mean(), ROUNDING, f"Mean of the n = {len(rows)} rows of its own table.")


def _group(facts: Tables, method: str, metric: str, group: str) -> Check:
    item = "flexible_complex" if group == "flexible" else group
    rows = facts.rows(method, metric)
    rows = rows[rows.index.map(facts.groups()) == group]
    why = f"Mean of the rows of its n = {len(rows)} {group} categories."
    return _number(facts.value(item, metric, method, "category_type"), rows.mean(), ROUNDING, why)


def _gain(facts: Tables, metric: str) -> Check:
    ours, base = (facts.rows(method, metric).mean() for method in ("AnomalyCLIP", "WinCLIP"))
    slack = 100 * ROUNDING * (1 / base + ours / base**2) + 0.05
    why = f"Ratio of the rows' means, {ours:.4f} / {base:.4f}; rounding explains {slack:.1f} points."
    return _number(facts.value("relative_gain_percent", metric, "claim"), 100 * (ours / base - 1), slack, why, 1)


def _spans(facts: Tables, method: str, stated: tuple[str, float, str, float]) -> Check:
    rows = facts.rows(method, "image_auroc")
    worst, low, best, high = stated
    same = rows.min() == low and rows.max() == high and rows[worst] == low and rows[best] == high
    recomputed = f"{rows.min():.3f} ({rows.idxmin()}) to {rows.max():.3f} ({rows.idxmax()})"
    why = f"Smallest and largest of n = {len(rows)} rows; their standard deviation is {rows.std():.3f}."
    return (f"{low:.3f} ({worst}) to {high:.3f} ({best})", recomputed, TRUE if same else FALSE, why)


def _contrast_gap(facts: Tables) -> Check:
    levels = facts.summary("contrast")
    gap = 100 * (levels["mean"]["High"] - levels["mean"]["Low"])
    stated = facts.value("high_minus_low_contrast_points", "auroc", "claim")
    high, low = levels.loc["High"], levels.loc["Low"]
    why = f"Table 5; the intervals are {low.low:.3f} to {low.high:.3f} and {high.low:.3f} to {high.high:.3f}."
    return _number(stated, gap, 0.15, why, 1)


def _flexible(facts: Tables) -> Check:
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
    return ("AnomalyCLIP weaker on flexible ones", recomputed, TRUE if struggles else FALSE, why)


def _hardest(facts: Tables) -> Check:
    types = facts.summary("defect_type")
    named, others = types.loc["Missing Component"], types.drop("Missing Component")
    nearest = others.loc[others["mean"].idxmin()]
    recomputed = f"{named['mean']:.3f} ± {named.half:.2f} (n = {named.n:.0f})"
    if named["mean"] > nearest["mean"]:
        return ("the lowest", recomputed, FALSE, f"{nearest.name} is lower ({nearest['mean']:.3f}).")
    reaching = others[others.low <= named.high]
    why = f"Their 95 % interval reaches into those of {len(reaching)} of the n = {len(others)} other types."
    return ("the lowest", recomputed, UNKNOWN if len(reaching) else TRUE, why)


def _threshold(facts: Tables) -> Check:
    levels = facts.summary("contrast")
    low, medium, high = (levels.loc[name] for name in ("Low", "Medium", "High"))
    recomputed = f"steps {medium['mean'] - low['mean']:+.3f} and {high['mean'] - medium['mean']:+.3f}"
    if medium.low <= low.high:
        return ("a threshold", recomputed, FALSE, "Not even low and medium contrast are told apart.")
    apart = "are apart" if high.low > medium.high else "overlap"
    why = f"The levels are never defined; medium and high {apart} (n = {medium.n:.0f} and {high.n:.0f} defect types); "
    return ("a threshold", recomputed, UNKNOWN, why + "three levels cannot tell a threshold from a slope.")


def _annotations(facts: Tables) -> Check:
    used = [int(facts.summary(name).n.sum()) for name in ("contrast", "defect_type")]
    annotated = len(facts.defects)
    recomputed = f"{used[0]} and {used[1]} of n = {annotated} defect types"
    why = f"{annotated - min(used)} defect types are left out of Tables 5 and 6 without a word."
    return ("MVTec AD's annotations", recomputed, TRUE if min(used) == annotated else FALSE, why)


def _same_types(facts: Tables) -> Check:
    levels, types = facts.summary("contrast"), facts.summary("defect_type")
    means = [float(np.average(rows["mean"], weights=rows.n)) for rows in (levels, types)]
    why = f"Means of Tables 5 and 6, weighted by their n = {levels.n.sum():.0f} and {types.n.sum():.0f} defect types."
    same = levels.n.sum() == types.n.sum() and abs(means[0] - means[1]) <= ROUNDING
    return ("one set of defect types", f"{means[0]:.4f} and {means[1]:.4f}", TRUE if same else FALSE, why)


def _room(facts: Tables, categories: list[str], gain: float) -> Check:
    left = 1 - facts.rows("WinCLIP", "image_auroc")[categories]
    recomputed = ", ".join(f"{name} {value:.3f}" for name, value in left.items())
    short = left[left < gain]
    why = f"An AUROC ends at 1: {', '.join(short.index)} cannot gain {gain} (n = {len(short)} of {len(left)})."
    if short.empty:
        return (f"+{gain} to +0.3", f"room: {recomputed}", UNKNOWN, "No table gives few-shot figures.")
    return (f"+{gain} to +0.3", f"room: {recomputed}", FALSE, why)


def _inconsistent(facts: Tables) -> Check:
    groups = facts.groups()
    moved = [name for group, names in SECTION_41.items() for name in names if groups[name] != group]
    listed = f"n = {sum(map(len, SECTION_41.values()))} categories that section 4.1 names beside the textures"
    why = f"Of the {listed}, {len(moved)} are in another group in section 4.5."
    return ("one grouping", f"moved: {', '.join(moved) or 'none'}", FALSE if moved else TRUE, why)


def _announced(facts: Tables, words: str) -> Check:
    recomputed = facts.study.astype(str).apply(lambda row: bool(re.search(words, " ".join(row), re.IGNORECASE)), axis=1)
    count = int(recomputed.sum())
    why = "Announced in the abstract; none of its tables or numbers concerns it." if not count else "It has figures."
    return ("evaluated", f"{count} of n = {len(recomputed)} numbers", TRUE if count else FALSE, why)


def _few_shot_tables(facts: Tables) -> Check:
    rows = facts.study[facts.study.table.str.startswith("Table")]
    count = int((rows.shots != "0").sum())
    why = "There is no appendix and no few-shot table." if not count else "There are few-shot rows."
    return ("in the appendix", f"{count} of n = {len(rows)} numbers", TRUE if count else FALSE, why)


def _no_rows(facts: Tables, item: str, metric: str, method: str, needs: str, stated: str) -> Check:
    """A number whose parts are not printed: how many of them are."""
    rows = facts.study[(facts.study.method == method) & (facts.study.metric == metric)]
    rows = rows[rows.group.isin(["category", "window_size", "defect_type"]) & rows.item.str.contains(item)]
    rows = rows[~rows.item.str.startswith("average")]
    return (stated, f"{len(rows)} of its parts are printed", UNKNOWN, f"It would need {needs}.")


def _images(facts: Tables) -> Check:
    rows = facts.counts[(facts.counts.dataset == "MVTec AD") & (facts.counts.split == "test")]
    recomputed = int(rows.n_images.sum())
    stated = facts.value("mean", "n_test_images")
    why = f"Sum over n = {rows.category.nunique()} categories."
    return _number(stated, recomputed, 0, why, 0)


CLAIMS = [
    *(("Tables 1 to 4", f"{method}, mean {tables.TITLES[metric]}", _mean, method, metric)
      for method in METHODS for metric in METRICS),
    ("Table 4", "Total test images", _images),
    *(("Tables 2 and 4", f"{method}, mean {tables.TITLES[metric]}", _no_rows, ".", metric, method,
       "the figures of all 15 categories", stated)
      for method, metric, stated in (("WinCLIP", "image_ap", "0.806"), ("WinCLIP", "aupro", "0.679"),
                                     ("AnomalyCLIP", "image_ap", "0.963"), ("AnomalyCLIP", "aupro", "0.814"))),
    *(("Section 4.5", f"AnomalyCLIP's gain over WinCLIP in {tables.TITLES[metric]}, %", _gain, metric)
      for metric in METRICS),
    ("Section 4.5", "AnomalyCLIP's range of image AUROC", _spans, "AnomalyCLIP", ("cable", 0.703, "carpet", 1.0)),
    ("Section 4.5", "WinCLIP's range of image AUROC", _spans, "WinCLIP", ("tile", 0.149, "hazelnut", 0.904)),
    *(("Section 4.5", f"{method}, mean {tables.TITLES[metric]}, {group}", _group, method, metric, group)
      for group in ("texture", "rigid", "flexible") for method in METHODS for metric in METRICS),
    ("Sections 4.5 and 5.1.1", "Both methods struggle with flexible objects", _flexible),
    ("Sections 4.1 and 4.5", "Transistor is a rigid object; transistor is a flexible object", _inconsistent),
    ("Sections 3.1.3 and 4.5",
     "Windows are particularly effective at missing components; they can struggle with them",
     _no_rows, "Missing", "auroc", "WinCLIP", "WinCLIP by type of defect; the two sections contradict", "both"),
    ("Section 5.1.2", "High contrast is 17.1 points above low contrast", _contrast_gap),
    ("Section 5.1.2", "Medium contrast suggests a threshold effect", _threshold),
    ("Section 5.1.2", "Missing components are the most difficult", _hardest),
    ("Section 5.1.2", "Uses MVTec AD's rich annotations", _annotations),
    ("Tables 5 and 6", "Both tables rest on the same defect types", _same_types),
    ("Section 5.2.1", "Capsule, grid and hazelnut gain from one reference image", _room,
     ["capsule", "grid", "hazelnut"], 0.2),
    ("Section 5.2.1", "One reference image brings +0.15 on average", _no_rows, "@1 shot", "image_auroc", "WinCLIP",
     "one-shot figures by category", "+0.15"),
    ("Section 5.2.2", "Window size 1 has 0.55 on average", _no_rows, "@size1", "auroc", "WinCLIP",
     "the figures of all 15 categories at size 1", "0.55"),
    ("Section 4.2", "One-shot and few-shot results are in the appendix", _few_shot_tables),
    *(("Abstract", f"The study evaluates {subject}", _announced, words)
      for subject, words in (("VisA", r"\bvisa\b"),
                             ("inference efficiency", r"\bms\b|seconds|latency|fps|memory"),
                             ("cross-domain generalisation", "domain"),
                             ("prompt engineering", "prompt|template"),
                             ("the APRIL-GAN framework", "april"))),
]  # fmt: skip
"""What the study concludes from its own tables, in the order of its sections."""


# ---------------------------------------------------------------- against the original methods


def _against_paper(facts: Tables, metric: str) -> Check:
    study, paper = (facts.of(who, "winclip", metric)["mean"] for who in ("study", "paper"))
    rows = facts.figures[(facts.figures.dataset == "MVTec AD") & (facts.figures.shots == 0)]
    rows = rows[(rows.kind == "winclip") & (rows.metric == metric) & (rows.category == "mean")]
    others = rows[~rows.who.isin(["paper", "study"])].value.sort_values()
    listed = ", ".join(f"{value:.3f}" for value in others)
    recomputed = f"paper {paper:.3f}; re-implementations {listed}"
    close = sum(abs(others - paper) < abs(others - study))
    why = f"{close} of n = {len(others)} re-implementations are nearer to the paper than to the study."
    return (f"{study:.3f}", recomputed, FALSE if close > len(others) / 2 else TRUE, why)


def _tile(facts: Tables) -> Check:
    rows = facts.figures[(facts.figures.category == "tile") & (facts.figures.metric == "image_auroc")]
    rows = rows[(rows.kind == "winclip") & (rows.shots == 0)].set_index("who").value
    others = rows.drop(["paper", "study"])
    recomputed = f"paper {rows['paper']:.3f}; re-implementations {others.min():.3f} to {others.max():.3f}"
    why = (
        f"The same prompts rank tile well elsewhere (n = {len(others) + 1}), and turned round {rows['study']:.3f} is "
        f"{1 - rows['study']:.3f}: an inverted ranking, which words alone do not explain."
    )
    inverted = rows["study"] < 0.5 < others.min()
    return (f"{rows['study']:.3f}, poorly suited prompts", recomputed, FALSE if inverted else TRUE, why)


def _authors_rows(facts: Tables) -> Check:
    equal = total = 0
    for metric in METRICS:
        study, paper = facts.rows("AnomalyCLIP", metric), facts.of("paper", "anomalyclip", metric)
        both = study.index.intersection(paper.index)
        total += len(both)
        equal += int((abs(study[both] - paper[both]) < 1e-9).sum())
    same = equal == total
    why = "The table is the log shipped with the authors' code" if same else "The table differs from the authors' log"
    return ("the authors' weights", f"{equal} of n = {total} cells are equal", TRUE if same else FALSE, why + ".")


def _boards(facts: Tables) -> Check:
    names_by_data = facts.counts.groupby("dataset").category.unique()
    boards = {data: sum("pcb" in name for name in names) for data, names in names_by_data.items()}
    recomputed = ", ".join(f"{name}: {count}" for name, count in boards.items())
    why = "Its advice names parts that are in none of the categories it tested; VisA has them."
    return ("PCB components", recomputed, TRUE if boards["MVTec AD"] else FALSE, why)


CONTRADICTIONS = [
    *(("Table 2", f"WinCLIP, mean {tables.TITLES[metric]}", _against_paper, metric) for metric in METRICS),
    ("Section 4.5", "Tile fails because template prompts are poorly suited", _tile),
    ("Section 4.2, Table 3", "AnomalyCLIP's table is a reproduction of the authors' weights", _authors_rows),
    ("Section 5.2.2", "Small windows for PCB components", _boards),
]
"""What the study says of the methods that published figures can decide."""


def correlate(first: pd.Series, second: pd.Series) -> tuple[int, float, float, float]:
    """n, Pearson's r and its 95 % interval (Fisher's z) over the common categories; (-1, 1) where n is below 4."""
    both = pd.concat([first, second], axis=1, join="inner").dropna()
    if len(both) < 3 or both.nunique().min() < 2:
        return len(both), float("nan"), -1.0, 1.0
    result = pearsonr(*both.to_numpy().T)
    perfect = abs(result.statistic) > 1 - 1e-9  # a perfect fit of few points is no certainty
    return len(both), float(result.statistic), *((-1.0, 1.0) if perfect else result.confidence_interval(0.95))


def correlate_sources(points: pd.DataFrame, bases: tuple[str, ...] = ("paper", "study")) -> pd.DataFrame:
    """How the sources of WinCLIP's figures by category go together, two at a time: n, r and its interval, by metric.

    ``points`` has the columns of ``published.collect_points``; sources with fewer than 3 categories are left out.
    """
    rows = []
    for metric, values in points[points.method == "WinCLIP"].groupby("metric", sort=False):
        series = {who: own.set_index("category").value for who, own in values.groupby("who", sort=False)}
        series = {who: own for who, own in series.items() if len(own) > 2}
        for place, base in enumerate(name for name in bases if name in series):
            for who in (name for name in series if name not in bases[: place + 1]):
                rows.append((metric, who, base, *correlate(series[base], series[who])))
    return pd.DataFrame(rows, columns=["metric", "figures of", "against", "n", "r", "low", "high"])


# ---------------------------------------------------------------- its WinCLIP taken apart

# The settings of the preset ``study`` that differ from the paper's, without ``fit``, which changes nothing on square
# images; whether each acts without references, and whether it belongs to what references add.
FAULTS = [
    ("map maximum as score", "image_score", True, False),
    ("no whole-image scale", "full_image", True, False),
    ("harmonic of normal", "harmonic_of", True, False),
    ("temperature 0.01", "temperature", True, False),
    ("blue and red swapped", "channels", True, True),
    ("no full stops", "templates", True, False),
    ("folder names", "names", True, False),
    ("prompts not normalised", "normalise_prompts", True, False),
    ("no patch tokens", "patch_tokens", False, True),
    ("plain mean of windows", "window_association", False, True),
    ("harmonic fusion", "fusion", False, True),
]
COLUMNS = ["shots", "fault", "direction", "metric", "base", "value", "n", "difference", "low", "high"]
PAPER, STUDY = "as in the paper", "as in the study"
ADDED, REMOVED = "one fault added to the paper's", "one fault taken from the study's"
ALL = "all faults together"


def list_variants(spec: Method, shots: int = 0) -> list[Method]:
    """A WinCLIP as the paper and as the study have it; with one fault added to the one, taken from the other.

    Backbone, windows, states and ``fit`` stay the method's own. Without references the faults that act zero-shot, with
    them those of what references add.
    """
    own = winclip.settings(spec.preset, spec.settings)
    kept = own.model_dump(include={"windows", "states", "own_normal", "own_anomalous", "fit"})
    paper, study = (winclip.settings(name).model_dump() for name in ("paper", "study"))
    variants = [(PAPER, "paper", kept), (STUDY, "study", kept)]
    for name, setting, zero_shot, few_shot in FAULTS:
        if few_shot if shots else zero_shot:
            variants.append((f"{ADDED}: {name}", "paper", kept | {setting: study[setting]}))
            variants.append((f"{REMOVED}: {name}", "study", kept | {setting: paper[setting]}))
    return [spec.model_copy(update={"name": name, "preset": base, "settings": more}) for name, base, more in variants]


def plan_faults(profile: Profile, spec: Method) -> list[Profile]:
    """The profiles that run ``list_variants``: with the fewest references of a profile, one draw, and without.

    In this order an image is encoded once: references need all arrays, zero-shot runs some of them.
    """
    numbers = [*sorted(shots for shots in set(profile.shots) if shots)[:1], 0]
    kept = {"imports": [], "seeds": profile.seeds[:1]}
    changes = [kept | {"methods": list_variants(spec, shots), "shots": [shots]} for shots in numbers]
    return [profile.model_copy(update=values) for values in changes]


def compare_variants(metrics: pd.DataFrame) -> pd.DataFrame:
    """Paired differences over *n* categories of every variant of a run to the one it was made from.

    ``direction`` is ``ALL`` (the study's WinCLIP against the paper's), ``ADDED`` or ``REMOVED``; intervals hold at 95 %
    for all differences of a direction together.
    """
    rows = []
    for direction, base in ((ALL, PAPER), (ADDED, PAPER), (REMOVED, STUDY)):
        of_direction = metrics.method == STUDY if direction == ALL else metrics.method.str.startswith(f"{direction}: ")
        for metric in METRICS:
            compared = metrics[(metrics.method == base) | of_direction].dropna(subset=metric)
            if compared.method.nunique() < 2:
                continue
            facts = {"shots": int(compared.shots.iloc[0]), "direction": direction, "metric": metric}
            differences = comparison.compare_with_base(compared, base, metric).set_index("method")
            for name, row in differences.drop(base).iterrows():
                fault = ALL if direction == ALL else name.partition(": ")[2]
                values = {"fault": fault, "base": differences[metric][base], "value": row[metric]}
                rows.append(facts | values | row[["n", "difference", "low", "high"]].to_dict())
    return pd.DataFrame(rows, columns=COLUMNS).astype({"n": int})


def describe_faults(changes: pd.DataFrame) -> str:
    """What all faults together do, and how many single ones are no difference shown: a line a measure and shots."""
    lines = []
    for (shots, metric), rows in changes.groupby(["shots", "metric"], sort=False):
        whole, single = rows[rows.direction == ALL].iloc[0], rows[rows.direction != ALL]
        idle = (single.low == 0) & (single.high == 0)
        undecided = (single.low <= 0) & (single.high >= 0) & ~idle
        effect = comparison.format_difference(whole.difference, whole.low, whole.high)
        lines.append(
            f"- **All faults together, {tables.name_shots(shots)}, {tables.TITLES[metric]}**: {effect}, n = "
            f"{tables.format_categories(whole.n)}, {comparison.verdict(whole.low, whole.high)}. Of {len(single)} "
            f"single changes {idle.sum()} change nothing and {undecided.sum()} are no difference shown."
        )
    return "\n".join(lines) or tables.NO_AUROC
