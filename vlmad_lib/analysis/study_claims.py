"""The study this workbook grew from, re-checked: its claims against its own tables and against published figures."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd

from vlmad_lib import tables
from vlmad_lib.analysis import published
from vlmad_lib.data import datasets
from vlmad_lib.methods import prompt_learner

METHODS = ("AnomalyCLIP", "WinCLIP")
TRUE, FALSE, UNKNOWN = "true", "false", "cannot be checked"
ROUNDING = 0.001
"""How far a mean printed with three digits may be from the mean of rows printed with three: half a unit of each."""
SECTION_41 = {"rigid": ["bottle", "capsule", "metal_nut", "screw", "transistor"], "flexible": ["cable", "zipper"]}
"""The groups as section 4.1 lists them; those of section 4.5 are in categories.csv."""

INDEX = [
    ("Tables 1 and 2", "WinCLIP by category and on average", "04_category_type"),
    ("Tables 3 and 4", "AnomalyCLIP by category and on average", "04_category_type"),
    ("Section 4.5", "groups of categories, consistency, failures", "04_category_type"),
    ("Table 5, section 5.1.2", "AnomalyCLIP by contrast of the defect", "05_defect_contrast"),
    ("Table 6, section 5.1.2", "AnomalyCLIP by type of defect", "06_defect_type"),
    ("Section 5.1.1", "AnomalyCLIP by group of categories", "04_category_type"),
    ("Figures 3 and 4, section 5.2.1", "WinCLIP by number of reference images", "08_shot_count"),
    ("Figure 5, section 5.2.2", "WinCLIP by window size", "07_window_size"),
    ("Section 3.1.2 and abstract", "prompt ensembles", "09_prompts"),
    ("Section 5.3", "misclassifications, announced there and measured here", "11_failures"),
    ("Section 5.3", "the hybrid, proposed there and tried here", "14_hybrid"),
    ("Sections 4 to 6", "every claim against the tables it rests on", "16_the_study_rechecked"),
]
"""The study's tables, figures and sections: which, what they show, and the notebook that has it for any data."""


def index() -> str:
    """``INDEX`` as a Markdown table with links."""
    rows = [f"| {item} | {shows} | [{title(name)}]({name}.ipynb) |" for item, shows, name in INDEX]
    return "\n".join(["| in the study | what it shows | here |", "|---|---|---|", *rows])


def title(notebook: str) -> str:
    """A notebook's name for people: ``04 Category type``."""
    number, *words = notebook.split("_")
    names = {name.casefold(): name for name in METHODS}
    return f"{number} {names.get(words[0], ' '.join(words).capitalize())}"


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
        found = self.study[self.study.table.isin(["Table 1", "Table 3"]) & (self.study.item != "mean")]
        found = found[(found.method == method) & (found.metric == metric)]
        return found.set_index("item").value.astype(float)

    def value(self, item: str, metric: str, method: str = "AnomalyCLIP", group: str = "") -> float:
        """One number of the study; nan where it has none."""
        found = self.study[(self.study.item == item) & (self.study.metric == metric) & (self.study.method == method)]
        found = found[found.group == group] if group else found
        return float(found.value.iloc[0]) if len(found) else float("nan")

    def groups(self) -> pd.Series:
        """Group of each category of MVTec AD, as in the study's section 4.5."""
        return self.categories[self.categories.dataset == "MVTec AD"].set_index("category").group

    def summary(self, group: str) -> pd.DataFrame:
        """Mean, standard deviation, n and 95 % interval (Student's t) of each row of the study's Table 5 or 6."""
        found = self.study[self.study.group == group].pivot_table(
            index="item", columns="metric", values="value", aggfunc="first", sort=False
        )
        found = found.astype(float).rename(columns={"auroc": "mean", "auroc_std": "std", "n_defect_types": "n"})
        half = [half_width(row.std, row.n) for row in found[["std", "n"]].itertuples()] if len(found) else []
        return found.assign(half=half, low=found["mean"] - half, high=found["mean"] + half)

    def of(self, who: str, kind: str, metric: str) -> pd.Series:
        """Published zero-shot figures on MVTec AD by category, with ``mean``."""
        found = self.figures[(self.figures.dataset == "MVTec AD") & (self.figures.shots == 0)]
        found = found[(found.who == who) & (found.kind == kind) & (found.metric == metric)]
        return found.set_index("category").value


def half_width(std: float, n: float) -> float:
    """Half of the 95 % interval (Student's t) of a mean of n values; infinite where n is below 2."""
    from scipy.stats import t

    return float(t.ppf(0.975, n - 1) * std / np.sqrt(n)) if n >= 2 else float("inf")


def covers_benchmark(measured: pd.DataFrame) -> bool:
    """Whether a metrics table is of all the categories of MVTec AD, of which the study's means are."""
    known = pd.read_csv(datasets.REFERENCE / "categories.csv", keep_default_na=False)
    names = set(known[known.dataset == published.BENCHMARKS[0]].category)
    return set(measured.dataset) == {published.BENCHMARKS[0]} and set(measured.category) == names


def measure_gaps(tables: Tables) -> dict[str, float]:
    """The study's mean zero-shot figure of WinCLIP less the paper's, by metric."""
    return {
        metric: float(np.subtract(*[tables.of(who, "winclip", metric)["mean"] for who in ("study", "paper")]))
        for metric in _METRICS
    }


# ---------------------------------------------------------------- claims


@dataclass(frozen=True)
class Finding:
    """What a check of a claim found."""

    stated: str
    recomputed: str
    verdict: str
    why: str


@dataclass(frozen=True)
class Claim:
    """A sentence of the study, where it stands, and the check that recomputes it from tables."""

    where: str
    says: str
    check: Callable[[Tables], Finding]


def check_claims(claims: list[Claim], tables: Tables) -> pd.DataFrame:
    """The claims with their findings, a row each."""
    rows = []
    for claim in claims:
        found = claim.check(tables)
        row = {"where": claim.where, "the study says": claim.says, "stated": found.stated}
        rows.append(row | {"recomputed": found.recomputed, "verdict": found.verdict, "why": found.why})
    return pd.DataFrame(rows)


def _number(stated: float, found: float, slack: float, why: str, digits: int = 3) -> Finding:
    """A stated number against the recomputed one; true where rounding can explain the difference."""
    shown = f"{stated:.{digits}f}", f"{found:.{digits}f}" if digits != 3 else f"{found:.4f}"
    if np.isnan(stated) or np.isnan(found):
        return Finding(*shown, UNKNOWN, "The study prints no numbers to recompute it from.")
    return Finding(*shown, TRUE if abs(stated - found) <= slack + 1e-9 else FALSE, why)


def _mean(method: str, metric: str, tables: Tables) -> Finding:
    rows = tables.rows(method, metric)
    stated = tables.value("mean", metric, method)
    return _number(stated, rows.mean(), ROUNDING, f"Mean of the n = {len(rows)} rows of its own table.")


def _group(method: str, metric: str, group: str, tables: Tables) -> Finding:
    item = "flexible_complex" if group == "flexible" else group
    rows = tables.rows(method, metric)
    rows = rows[rows.index.map(tables.groups()) == group]
    why = f"Mean of the rows of its n = {len(rows)} {group} categories."
    return _number(tables.value(item, metric, method, "category_type"), rows.mean(), ROUNDING, why)


def _gain(metric: str, tables: Tables) -> Finding:
    ours, base = (tables.rows(method, metric).mean() for method in ("AnomalyCLIP", "WinCLIP"))
    slack = 100 * ROUNDING * (1 / base + ours / base**2) + 0.05
    why = f"Ratio of the rows' means, {ours:.4f} / {base:.4f}; rounding explains {slack:.1f} points."
    return _number(tables.value("relative_gain_percent", metric, "claim"), 100 * (ours / base - 1), slack, why, 1)


def _spans(method: str, stated: tuple[str, float, str, float], tables: Tables) -> Finding:
    rows = tables.rows(method, "image_auroc")
    worst, low, best, high = stated
    same = rows.min() == low and rows.max() == high and rows[worst] == low and rows[best] == high
    found = f"{rows.min():.3f} ({rows.idxmin()}) to {rows.max():.3f} ({rows.idxmax()})"
    why = f"Smallest and largest of n = {len(rows)} rows; their standard deviation is {rows.std():.3f}."
    return Finding(f"{low:.3f} ({worst}) to {high:.3f} ({best})", found, TRUE if same else FALSE, why)


def _contrast_gap(tables: Tables) -> Finding:
    levels = tables.summary("contrast")
    gap = 100 * (levels["mean"]["High"] - levels["mean"]["Low"])
    stated = tables.value("high_minus_low_contrast_points", "auroc", "claim")
    high, low = levels.loc["High"], levels.loc["Low"]
    why = f"Table 5; the intervals are {low.low:.3f} to {low.high:.3f} and {high.low:.3f} to {high.high:.3f}."
    return _number(stated, gap, 0.15, why, 1)


def _flexible(tables: Tables) -> Finding:
    rows = tables.rows("AnomalyCLIP", "image_auroc")
    groups = tables.groups().reindex(rows.index)
    flexible, rigid = rows[groups == "flexible"], rows[groups == "rigid"]
    weakest = flexible.idxmin()
    rest = flexible.drop(weakest)
    found = f"flexible {flexible.mean():.3f}, rigid {rigid.mean():.3f}; without {weakest} {rest.mean():.3f}"
    why = (
        f"For AnomalyCLIP one category of n = {len(flexible)}, {weakest} ({flexible.min():.3f}), makes the difference: "
        f"the others are {'above' if rest.mean() > rigid.mean() else 'below'} the mean of the rigid ones."
    )
    struggles = flexible.mean() < rigid.mean() - ROUNDING and rest.mean() < rigid.mean()
    return Finding("AnomalyCLIP weaker on flexible ones", found, TRUE if struggles else FALSE, why)


def _hardest(tables: Tables) -> Finding:
    types = tables.summary("defect_type")
    named, others = types.loc["Missing Component"], types.drop("Missing Component")
    nearest = others.loc[others["mean"].idxmin()]
    found = f"{named['mean']:.3f} ± {named.half:.2f} (n = {named.n:.0f})"
    if named["mean"] > nearest["mean"]:
        return Finding("the lowest", found, FALSE, f"{nearest.name} is lower ({nearest['mean']:.3f}).")
    reaching = others[others.low <= named.high]
    why = f"Their 95 % interval reaches into those of {len(reaching)} of the n = {len(others)} other types."
    return Finding("the lowest", found, UNKNOWN if len(reaching) else TRUE, why)


def _threshold(tables: Tables) -> Finding:
    levels = tables.summary("contrast")
    low, medium, high = (levels.loc[name] for name in ("Low", "Medium", "High"))
    found = f"steps {medium['mean'] - low['mean']:+.3f} and {high['mean'] - medium['mean']:+.3f}"
    if medium.low <= low.high:
        return Finding("a threshold", found, FALSE, "Not even low and medium contrast are told apart.")
    apart = "are apart" if high.low > medium.high else "overlap"
    why = f"The levels are never defined; medium and high {apart} (n = {medium.n:.0f} and {high.n:.0f} defect types); "
    return Finding("a threshold", found, UNKNOWN, why + "three levels cannot tell a threshold from a slope.")


def _annotations(tables: Tables) -> Finding:
    used = [int(tables.summary(name).n.sum()) for name in ("contrast", "defect_type")]
    known = len(tables.defects)
    found = f"{used[0]} and {used[1]} of n = {known} defect types"
    why = f"{known - min(used)} defect types are left out of Tables 5 and 6 without a word."
    return Finding("MVTec AD's annotations", found, TRUE if min(used) == known else FALSE, why)


def _same_types(tables: Tables) -> Finding:
    levels, types = tables.summary("contrast"), tables.summary("defect_type")
    means = [float(np.average(part["mean"], weights=part.n)) for part in (levels, types)]
    why = f"Means of Tables 5 and 6, weighted by their n = {levels.n.sum():.0f} and {types.n.sum():.0f} defect types."
    same = levels.n.sum() == types.n.sum() and abs(means[0] - means[1]) <= ROUNDING
    return Finding("one set of defect types", f"{means[0]:.4f} and {means[1]:.4f}", TRUE if same else FALSE, why)


def _room(categories: list[str], gain: float, tables: Tables) -> Finding:
    left = 1 - tables.rows("WinCLIP", "image_auroc")[categories]
    found = ", ".join(f"{name} {value:.3f}" for name, value in left.items())
    short = left[left < gain]
    why = f"An AUROC ends at 1: {', '.join(short.index)} cannot gain {gain} (n = {len(short)} of {len(left)})."
    if short.empty:
        return Finding(f"+{gain} to +0.3", f"room: {found}", UNKNOWN, "No table gives few-shot figures.")
    return Finding(f"+{gain} to +0.3", f"room: {found}", FALSE, why)


def _inconsistent(tables: Tables) -> Finding:
    groups = tables.groups()
    moved = [name for group, names in SECTION_41.items() for name in names if groups[name] != group]
    listed = f"n = {sum(map(len, SECTION_41.values()))} categories that section 4.1 names beside the textures"
    why = f"Of the {listed}, {len(moved)} are in another group in section 4.5."
    return Finding("one grouping", f"moved: {', '.join(moved) or 'none'}", FALSE if moved else TRUE, why)


def _announced(words: str, tables: Tables) -> Finding:
    found = tables.study.astype(str).apply(lambda row: bool(re.search(words, " ".join(row), re.IGNORECASE)), axis=1)
    count = int(found.sum())
    why = "Announced in the abstract; none of its tables or numbers concerns it." if not count else "It has figures."
    return Finding("evaluated", f"{count} of n = {len(found)} numbers", TRUE if count else FALSE, why)


def _few_shot_tables(tables: Tables) -> Finding:
    rows = tables.study[tables.study.table.str.startswith("Table")]
    count = int((rows.shots != "0").sum())
    why = "There is no appendix and no few-shot table." if not count else "There are few-shot rows."
    return Finding("in the appendix", f"{count} of n = {len(rows)} numbers", TRUE if count else FALSE, why)


def _no_rows(item: str, metric: str, method: str, needs: str, stated: str, tables: Tables) -> Finding:
    """A number whose parts are not printed: how many of them are."""
    rows = tables.study[(tables.study.method == method) & (tables.study.metric == metric)]
    rows = rows[rows.group.isin(["category", "window_size", "defect_type"]) & rows.item.str.contains(item)]
    rows = rows[~rows.item.str.startswith("average")]
    return Finding(stated, f"{len(rows)} of its parts are printed", UNKNOWN, f"It would need {needs}.")


def _images(tables: Tables) -> Finding:
    part = tables.counts[(tables.counts.dataset == "MVTec AD") & (tables.counts.split == "test")]
    found = int(part.n_images.sum())
    stated = tables.value("mean", "n_test_images")
    why = f"Sum over n = {part.category.nunique()} categories."
    return _number(stated, found, 0, why, 0)


_METRICS = ("image_auroc", "pixel_auroc")

CLAIMS = [
    *(
        Claim("Tables 1 to 4", f"{method}, mean {tables.TITLES[metric]}", partial(_mean, method, metric))
        for method in METHODS
        for metric in _METRICS
    ),
    Claim("Table 4", "Total test images", _images),
    *(
        Claim(
            "Tables 2 and 4",
            f"{method}, mean {tables.TITLES[metric]}",
            partial(_no_rows, ".", metric, method, "the figures of all 15 categories", stated),
        )
        for method, metric, stated in (
            ("WinCLIP", "image_ap", "0.806"),
            ("WinCLIP", "aupro", "0.679"),
            ("AnomalyCLIP", "image_ap", "0.963"),
            ("AnomalyCLIP", "aupro", "0.814"),
        )
    ),
    *(
        Claim("Section 4.5", f"AnomalyCLIP's gain over WinCLIP in {tables.TITLES[metric]}, %", partial(_gain, metric))
        for metric in _METRICS
    ),
    Claim(
        "Section 4.5",
        "AnomalyCLIP's range of image AUROC",
        partial(_spans, "AnomalyCLIP", ("cable", 0.703, "carpet", 1.0)),
    ),
    Claim(
        "Section 4.5",
        "WinCLIP's range of image AUROC",
        partial(_spans, "WinCLIP", ("tile", 0.149, "hazelnut", 0.904)),
    ),
    *(
        Claim(
            "Section 4.5",
            f"{method}, mean {tables.TITLES[metric]}, {group}",
            partial(_group, method, metric, group),
        )
        for group in ("texture", "rigid", "flexible")
        for method in METHODS
        for metric in _METRICS
    ),
    Claim("Sections 4.5 and 5.1.1", "Both methods struggle with flexible objects", _flexible),
    Claim("Sections 4.1 and 4.5", "Transistor is a rigid object; transistor is a flexible object", _inconsistent),
    Claim(
        "Sections 3.1.3 and 4.5",
        "Windows are particularly effective at missing components; they can struggle with them",
        partial(
            _no_rows, "Missing", "auroc", "WinCLIP", "WinCLIP by type of defect; the two sections contradict", "both"
        ),
    ),
    Claim("Section 5.1.2", "High contrast is 17.1 points above low contrast", _contrast_gap),
    Claim("Section 5.1.2", "Medium contrast suggests a threshold effect", _threshold),
    Claim("Section 5.1.2", "Missing components are the most difficult", _hardest),
    Claim("Section 5.1.2", "Uses MVTec AD's rich annotations", _annotations),
    Claim("Tables 5 and 6", "Both tables rest on the same defect types", _same_types),
    Claim(
        "Section 5.2.1",
        "Capsule, grid and hazelnut gain from one reference image",
        partial(_room, ["capsule", "grid", "hazelnut"], 0.2),
    ),
    Claim(
        "Section 5.2.1",
        "One reference image brings +0.15 on average",
        partial(_no_rows, "@1 shot", "image_auroc", "WinCLIP", "one-shot figures by category", "+0.15"),
    ),
    Claim(
        "Section 5.2.2",
        "Window size 1 has 0.55 on average",
        partial(_no_rows, "@size1", "auroc", "WinCLIP", "the figures of all 15 categories at size 1", "0.55"),
    ),
    Claim("Section 4.2", "One-shot and few-shot results are in the appendix", _few_shot_tables),
    *(
        Claim("Abstract", f"The study evaluates {subject}", partial(_announced, words))
        for subject, words in (
            ("VisA", r"\bvisa\b"),
            ("inference efficiency", r"\bms\b|seconds|latency|fps|memory"),
            ("cross-domain generalisation", "domain"),
            ("prompt engineering", "prompt|template"),
            ("the APRIL-GAN framework", "april"),
        )
    ),
]
"""What the study concludes from its own tables, in the order of its sections."""


# ---------------------------------------------------------------- against the original methods


def _against_paper(metric: str, tables: Tables) -> Finding:
    study, paper = (tables.of(who, "winclip", metric)["mean"] for who in ("study", "paper"))
    part = tables.figures[(tables.figures.dataset == "MVTec AD") & (tables.figures.shots == 0)]
    part = part[(part.kind == "winclip") & (part.metric == metric) & (part.category == "mean")]
    others = part[~part.who.isin(["paper", "study"])].value.sort_values()
    listed = ", ".join(f"{value:.3f}" for value in others)
    found = f"paper {paper:.3f}; re-implementations {listed}"
    close = sum(abs(others - paper) < abs(others - study))
    why = f"{close} of n = {len(others)} re-implementations are nearer to the paper than to the study."
    return Finding(f"{study:.3f}", found, FALSE if close > len(others) / 2 else TRUE, why)


def _tile(tables: Tables) -> Finding:
    part = tables.figures[(tables.figures.category == "tile") & (tables.figures.metric == "image_auroc")]
    part = part[(part.kind == "winclip") & (part.shots == 0)].set_index("who").value
    others = part.drop(["paper", "study"])
    found = f"paper {part['paper']:.3f}; re-implementations {others.min():.3f} to {others.max():.3f}"
    why = (
        f"The same prompts rank tile well elsewhere (n = {len(others) + 1}), and turned round {part['study']:.3f} is "
        f"{1 - part['study']:.3f}: an inverted ranking, which words alone do not explain."
    )
    inverted = part["study"] < 0.5 < others.min()
    return Finding(f"{part['study']:.3f}, poorly suited prompts", found, FALSE if inverted else TRUE, why)


def _authors_rows(tables: Tables) -> Finding:
    equal = total = 0
    for metric in _METRICS:
        study, paper = tables.rows("AnomalyCLIP", metric), tables.of("paper", "anomalyclip", metric)
        both = study.index.intersection(paper.index)
        total += len(both)
        equal += int((abs(study[both] - paper[both]) < 1e-9).sum())
    same = equal == total
    why = "The table is the log shipped with the authors' code" if same else "The table differs from the authors' log"
    return Finding(
        "the authors' weights", f"{equal} of n = {total} cells are equal", TRUE if same else FALSE, why + "."
    )


def _boards(tables: Tables) -> Finding:
    known = tables.counts.groupby("dataset").category.unique()
    boards = {name: sum("pcb" in one for one in names) for name, names in known.items()}
    found = ", ".join(f"{name}: {count}" for name, count in boards.items())
    why = "Its advice names parts that are in none of the categories it tested; VisA has them."
    return Finding("PCB components", found, TRUE if boards["MVTec AD"] else FALSE, why)


CONTRADICTIONS = [
    *(
        Claim("Table 2", f"WinCLIP, mean {tables.TITLES[metric]}", partial(_against_paper, metric))
        for metric in _METRICS
    ),
    Claim("Section 4.5", "Tile fails because template prompts are poorly suited", _tile),
    Claim("Section 4.2, Table 3", "AnomalyCLIP's table is a reproduction of the authors' weights", _authors_rows),
    Claim("Section 5.2.2", "Small windows for PCB components", _boards),
]
"""What the study says of the methods that published figures can decide."""

WORDS = [
    ("3.1.1", "each window goes through the image encoder on its own",
     "patches are embedded once; a window is a subset of tokens at their own positions; harmonic means merge them",
     "02_winclip"),
    ("3.2.3", "the attention is amplified by a learned scaling factor",
     "values attend to values, nothing is learned, on a path beside the network's own", "03_anomalyclip"),
    ("4.2", "tokens are learned at each layer of the text encoder",
     "{context} positions at the input, {width} in each of blocks 2 to {depth}", "03_anomalyclip"),
    ("3.2", "AnomalyCLIP is truly zero-shot",
     "its prompts are trained on another data set with defects and masks: no target data, but anomalies",
     "03_anomalyclip"),
    ("4.4", "the AUPRO columns compare the methods",
     "the two come from two programs that measure different things; here one program measures both",
     "04_category_type"),
]  # fmt: skip
"""What the study's words say of the methods, what is so, and the notebook that shows it."""


def words() -> pd.DataFrame:
    """``WORDS`` for display."""
    sizes = {name: one.default for name, one in inspect.signature(prompt_learner.PromptLearner).parameters.items()}
    rows = [(where, says, so.format(**sizes), title(name)) for where, says, so, name in WORDS]
    return pd.DataFrame(rows, columns=["section", "the study says", "what is so", "shown in"])


def correlate(first: pd.Series, second: pd.Series) -> tuple[int, float, float, float]:
    """n, Pearson's r and its 95 % interval (Fisher's z) over the common categories; (-1, 1) where n is below 4."""
    both = pd.concat([first, second], axis=1, join="inner").dropna()
    if len(both) < 3 or both.nunique().min() < 2:
        return len(both), float("nan"), -1.0, 1.0
    r = float(np.corrcoef(both.to_numpy().T)[0, 1])
    if len(both) < 4 or abs(r) > 1 - 1e-9:  # a perfect fit of few points is no certainty
        return len(both), r, -1.0, 1.0
    reach = 1.959964 / np.sqrt(len(both) - 3)
    return len(both), r, float(np.tanh(np.arctanh(r) - reach)), float(np.tanh(np.arctanh(r) + reach))


def correlate_sources(points: pd.DataFrame, bases: tuple[str, ...] = ("paper", "study")) -> pd.DataFrame:
    """How the sources of WinCLIP's figures by category go together, two at a time: n, r and its interval, by metric.

    ``points`` has the columns of ``published.collect_points``; sources with fewer than 3 categories are left out.
    """
    rows = []
    for metric, part in points[points.method == "WinCLIP"].groupby("metric", sort=False):
        series = {who: one.set_index("category").value for who, one in part.groupby("who", sort=False) if len(one) > 2}
        for place, base in enumerate(name for name in bases if name in series):
            for who in (name for name in series if name not in bases[: place + 1]):
                rows.append((metric, who, base, *correlate(series[base], series[who])))
    return pd.DataFrame(rows, columns=["metric", "figures of", "against", "n", "r", "low", "high"])


# ---------------------------------------------------------------- sentences


def claim_findings(claims: pd.DataFrame, against: str) -> str:
    """How many claims hold against some figures, as a Markdown list with those that do not."""
    counts = claims.verdict.value_counts().reindex([TRUE, FALSE, UNKNOWN], fill_value=0)
    lines = [
        f"- Of n = {len(claims)} claims held against {against}, {counts[TRUE]} are right, {counts[FALSE]} are wrong "
        f"and {counts[UNKNOWN]} cannot be checked."
    ]
    for row in claims[claims.verdict == FALSE].to_dict("records"):
        says = f"*{row['the study says']}* ({row['where']})"
        lines.append(f"- Wrong: {says}; stated {row['stated']}, recomputed {row['recomputed']}. {row['why']}")
    return "\n".join(lines)


def agreement_findings(found: pd.DataFrame) -> str:
    """Whose figures of WinCLIP by category go with the paper's, as a Markdown list."""
    lines = []
    for row in found[found.against == "paper"].dropna().to_dict("records"):
        side = "holds 0" if row["low"] <= 0 <= row["high"] else "lies above 0" if row["low"] > 0 else "lies below 0"
        interval = f"{row['low']:.2f} to {row['high']:.2f}, n = {row['n']} categories"
        lines.append(
            f"- {tables.TITLES[row['metric']]} by category, {row['figures of']} against the paper: "
            f"r = {row['r']:.2f}; its interval {side} ({interval})."
        )
    return "\n".join(lines)
