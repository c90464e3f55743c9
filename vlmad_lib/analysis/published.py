"""Published figures and the study's beside ours: fractions, one vocabulary of metrics, and how far each is trusted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from vlmad_lib import config, tables
from vlmad_lib.analysis import comparison
from vlmad_lib.config import USUAL, Method, Profile
from vlmad_lib.data import datasets
from vlmad_lib.evaluation.metrics import PIXEL

PAPERS = {"winclip": ("WinCLIP", "WinCLIP+"), "anomalyclip": ("AnomalyCLIP", "AnomalyCLIP")}
"""What the published table calls each method without and with reference images."""
TRUSTED = ("primary", "paper-quoted")
"""Trust tags of the method's own figures; ``reimpl`` is a third party's rerun, ``secondary`` another paper's table."""
LOG, OTHER_PROTOCOL = "log.txt", "NOT the paper protocol"
"""In a source: what the authors' program printed, which their paper's table may round or say otherwise; and a rerun
on other images, no evidence on the published figures."""
BENCHMARKS = ("MVTec AD", "VisA")
MEAN_TOLERANCE, CATEGORY_TOLERANCE = 0.02, 0.05
DRAWS = 5  # of references, over which the paper averages its few-shot figures
FPR_LIMIT = 0.3  # of the AUPRO in both papers
EXACT, COARSE = "all thresholds", "200 thresholds"
AUPRO = {"winclip": EXACT, "anomalyclip": COARSE}
"""By how many thresholds a paper computes its AUPRO: WinCLIP's as MVTec AD defines it, AnomalyCLIP's by its own code
(``metrics``: aupro and aupro_200), which gives other values on the same maps."""
COARSE_SOURCES = ("zqhang", "study")
"""Whose figures of any method come from 200 thresholds: AnomalyCLIP's authors, and the programs the study used."""
SIZE = {"winclip": 240, "anomalyclip": 518}
"""Pixels at which a paper compares maps with masks: the side of its method's input."""
PROMPTS_FROM = {"MVTec AD": "visa", "VisA": "mvtec"}
"""The data set on which AnomalyCLIP's published prompts were trained, by the one they were tested on."""
_KEYS = ["dataset", "kind", "shots", "category", "metric"]
_COLUMNS = [*_KEYS, "who", "value", "trust", "source", "thresholds"]
_JUDGED = ["method", "shots", "category", "metric", "AUPRO by", "ours", "paper", "trust", "difference", "tolerance",
           "verdict", "study", "re-implementations", "no verdict because"]  # fmt: skip
_SPELLING = {"image_f1max": "image_f1_max", "pixel_f1max": "pixel_f1_max"}


# ---------------------------------------------------------------- the figures


def read_papers() -> pd.DataFrame:
    """The papers' and the re-implementations' figures, in [0, 1]; ``who`` is ``paper`` or the re-implementation.

    ``kind`` is the method as profiles name it, ``category`` may be ``mean`` (macro). Where several sources quote
    one figure of a paper, primary ones go first, then the source that says most. ``thresholds`` says by how many an
    AUPRO was computed (``EXACT``, ``COARSE`` or ``not stated``), and is empty for other metrics.
    """
    table = pd.read_csv(datasets.REFERENCE / "published_results.csv", dtype={"shots": str})
    table = table.assign(metric=table.metric.replace(_SPELLING), value=table.value / 100)
    table = table[table.shots.str.isdigit() & table.metric.isin(list(tables.TITLES))]
    table = table.assign(shots=table.shots.astype(int))
    collected = [_of_paper(table, kind) for kind in PAPERS] + [_of_others(table, kind) for kind in PAPERS]
    return _counted(pd.concat(collected, ignore_index=True))[_COLUMNS]


def _counted(table: pd.DataFrame) -> pd.DataFrame:
    """A table of figures with the column ``thresholds``."""
    pairs = zip(table.kind, table.who, table.metric, strict=True)
    return table.assign(thresholds=[_thresholds(kind, who) if name == "aupro" else "" for kind, who, name in pairs])


def _thresholds(kind: str, who: str) -> str:
    if any(name in who for name in COARSE_SOURCES):
        return COARSE
    return AUPRO[kind] if who == "paper" else "not stated"


def _of_paper(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    named = np.where(table.shots > 0, PAPERS[kind][1], PAPERS[kind][0])
    selected = table[(table.method == named) & table.trust.isin(TRUSTED)].assign(kind=kind, who="paper")
    rank = selected.trust.map(TRUSTED.index) - selected.groupby("source").value.transform("size") / len(table)
    return selected.assign(rank=rank).sort_values("rank", kind="stable").drop_duplicates(_KEYS)


def _of_others(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    selected = table[table.method.str.startswith(f"{PAPERS[kind][0]} (") & (table.trust == "reimpl")]
    selected = selected[~selected.source.str.contains(OTHER_PROTOCOL)]
    return selected.assign(kind=kind, who=selected.method).drop_duplicates([*_KEYS, "who"])


def read_study() -> pd.DataFrame:
    """The study's figures by category and their means (``mean``), as printed; columns as in ``published``."""
    table = pd.read_csv(datasets.REFERENCE / "study_results.csv", dtype=str)
    table = table[(table.shots == "0") & table.group.isin(["category", "overall"])]
    table = table[table.metric.isin(list(tables.TITLES))].rename(columns={"item": "category", "table": "source"})
    kinds = {names[0]: kind for kind, names in PAPERS.items()}
    facts = {"dataset": "MVTec AD", "who": "study", "trust": "study", "shots": 0}
    collected = _counted(table.assign(kind=table.method.map(kinds), value=table.value.astype(float), **facts))
    return collected.drop_duplicates(_KEYS)[_COLUMNS].reset_index(drop=True)  # tables go before prose that rounds them


def read_figures() -> pd.DataFrame:
    """``published`` and ``of_study`` in one table."""
    return _figures().copy()


@lru_cache(maxsize=1)
def _figures() -> pd.DataFrame:
    return pd.concat([read_papers(), read_study()], ignore_index=True)


def tabulate_means(dataset: str) -> pd.DataFrame:
    """The published macro means of a benchmark, for display: a row per method, shots and source of the figures.

    ``AUPRO by`` is the number of thresholds of the AUPRO, where there is one.
    """
    collected = read_figures()
    collected = collected[(collected.dataset == dataset) & (collected.category == "mean")]
    logged = collected.source.str.contains(LOG) & (collected.who == "paper")
    collected = collected.assign(
        method=[USUAL[kind]["name"] for kind in collected.kind], who=collected.who.mask(logged, "authors' log")
    )
    keys = ["method", "shots", "who", "trust"]
    wide = collected.pivot_table(index=keys, columns="metric", values="value", sort=False)
    by = collected[collected.metric == "aupro"].set_index(wide.index.names).thresholds
    wide = wide[[name for name in tables.TITLES if name in wide]].join(by[~by.index.duplicated()].rename("AUPRO by"))
    return (
        wide.fillna({"AUPRO by": ""})
        .reset_index()
        .sort_values(["method", "shots"], ascending=[False, True], kind="stable")
    )


def read_means(methods: Sequence[str], dataset: str = "MVTec AD") -> pd.DataFrame:
    """Published macro means of methods as ``published_results.csv`` names them, in [0, 1], whoever prints them.

    A row per method, as ordered, and number of references; columns method, shots, image_auroc, pixel_auroc, aupro, nan
    where none was published. Where sources differ, the most trusted goes first.
    """
    table = pd.read_csv(datasets.REFERENCE / "published_results.csv", dtype={"shots": str})
    table = table[(table.dataset == dataset) & (table.category == "mean") & table.method.isin(methods)]
    table = table[table.shots.str.isdigit() & table.metric.isin(tables.MAIN)]
    trust = table.trust.map(lambda name: TRUSTED.index(name) if name in TRUSTED else len(TRUSTED))
    table = table.assign(shots=table.shots.astype(int), value=table.value / 100, trust=trust)
    first = table.sort_values("trust", kind="stable").drop_duplicates(["method", "shots", "metric"])
    wide = first.pivot(index=["method", "shots"], columns="metric", values="value").reindex(columns=tables.MAIN)
    order = {name: place for place, name in enumerate(methods)}
    wide = wide.reset_index().rename_axis(columns=None)
    return wide.sort_values("method", key=lambda names: names.map(order), kind="stable", ignore_index=True)


# ---------------------------------------------------------------- beside ours


def guess_kind(name: str, profile: Profile) -> str:
    """The kind of a method of a metrics table: from the profile, for an import from its name, or empty."""
    spec = _specs(profile).get(name)
    if spec:
        return spec.method
    return next((kind for kind in PAPERS if kind in name.casefold()), "")


def _specs(profile: Profile) -> dict[str, Method]:
    marked = {f"{spec.name} LEAKED": spec for spec in profile.methods}
    return {spec.name: spec for spec in profile.methods} | marked


def judge(
    metrics: pd.DataFrame,
    profile: Profile,
    mean_tolerance: float = MEAN_TOLERANCE,
    category_tolerance: float = CATEGORY_TOLERANCE,
) -> pd.DataFrame:
    """Each of our figures beside the paper's, the study's and the re-implementations': means first, then categories.

    ``difference`` is ours minus the paper's (nan for a mean over part of the benchmark). ``verdict`` is ``within`` or
    ``outside`` the tolerance, and empty where the setup is not the published one; ``no verdict because`` then says
    what differs. Our AUPRO is computed by as many thresholds as the paper's, which ``AUPRO by`` names.
    """
    metrics = _as_published(metrics, profile)
    ours = _ours(metrics)
    counted = metrics.groupby(["method", "shots"]).thresholds.agg(lambda part: " and ".join(sorted(set(part))))
    sizes = metrics.groupby(["method", "shots"]).evaluation_size.first()
    figures = read_figures()
    figures = figures[figures.dataset == metrics.dataset.iloc[0]]
    reasons = {key: _reason(part, profile) for key, part in metrics.groupby(["method", "shots"])}
    lacking = {key: _lacking(part) for key, part in metrics.groupby(["method", "shots"])}
    rows = []
    for row in ours.itertuples():
        part = figures[(figures.kind == guess_kind(row.method, profile)) & (figures.shots == row.shots)]
        part = part[(part.category == row.category) & (part.metric == row.metric)]
        paper, study = (part[part.who == who] for who in ("paper", "study"))
        others = part[~part.who.isin(["paper", "study"])]
        figure = paper.value.iloc[0] if len(paper) else np.nan
        lacks = lacking[row.method, row.shots][row.category]
        by = counted[row.method, row.shots] if row.metric == "aupro" else ""
        size = int(sizes[row.method, row.shots])
        reason = reasons[row.method, row.shots] or _cell_reason(row, paper, by, size, lacks, profile)
        unlike = row.category == "mean" and lacks  # a mean over other categories or images differs for that alone
        tolerance = mean_tolerance if row.category == "mean" else category_tolerance
        close = "within" if abs(row.ours - figure) <= tolerance + 1e-9 else "outside"
        rows.append(
            {
                "method": row.method,
                "shots": row.shots,
                "category": row.category,
                "metric": row.metric,
                "AUPRO by": by,
                "ours": row.ours,
                "paper": figure,
                "trust": _trust(paper.iloc[0]) if len(paper) else "",
                "difference": np.nan if unlike else row.ours - figure,
                "tolerance": tolerance,
                "verdict": "" if reason else close,
                "study": study.value.iloc[0] if len(study) else np.nan,
                "re-implementations": _range(others),
                "no verdict because": reason,
            }
        )
    return pd.DataFrame(rows, columns=_JUDGED)


def _as_published(metrics: pd.DataFrame, profile: Profile) -> pd.DataFrame:
    """A metrics table whose AUPRO is by as many ``thresholds`` as the method's paper's, where it was counted so."""
    coarse = (
        metrics.method.map({name: AUPRO.get(guess_kind(name, profile)) for name in metrics.method.unique()}) == COARSE
    )
    coarse &= metrics.aupro_200.notna()
    counted = pd.Series(EXACT, metrics.index).mask(coarse, COARSE)
    return metrics.assign(aupro=metrics.aupro.mask(coarse, metrics.aupro_200), thresholds=counted)


def _trust(row: pd.Series) -> str:
    return f"{row.trust}: authors' log" if LOG in row.source else row.trust


def _ours(metrics: pd.DataFrame) -> pd.DataFrame:
    """Our figures, long: averaged over draws; the macro means first; no row where there is no value."""
    columns = [
        name for name in tables.TITLES if name in set(read_figures().metric)
    ]  # AUPIMO is younger than the papers
    cells = metrics.groupby(["method", "shots", "category"], sort=False)[columns].mean()
    total = cells.groupby(["method", "shots"], sort=False).mean().assign(category="mean")
    values = pd.concat([total.set_index("category", append=True), cells]).rename_axis(columns="metric")
    ours = values.stack().rename("ours").reset_index().dropna()
    orders = {"method": dict.fromkeys(metrics.method), "category": ["mean", *tables.order_categories(metrics)]}
    places = {key: {name: place for place, name in enumerate(names)} for key, names in orders.items()}
    places["metric"] = {name: place for place, name in enumerate(columns)}
    ranks = ours.assign(later=ours.category != "mean", **{key: ours[key].map(rank) for key, rank in places.items()})
    return ours.loc[ranks.sort_values(["later", "method", "shots", "category", "metric"]).index]


def _range(others: pd.DataFrame) -> str:
    """The span of the re-implementations' figures, n, and of an AUPRO by how many thresholds."""
    values = others.value
    if values.empty:
        return "none"
    ends = f"{values.min():.3f}" if len(values) == 1 else f"{values.min():.3f} to {values.max():.3f}"
    by = " or ".join(sorted(set(others.thresholds) - {""}))
    return f"{ends} (n = {len(values)}{f'; {by}' if by else ''})"


def _reason(part: pd.DataFrame, profile: Profile) -> str:
    """Why no figure of a method and number of shots is judged; empty where its setup is the published one."""
    row = part.iloc[0]
    spec = _specs(profile).get(row.method)
    if spec is None:
        return "imported: how it was made is not known here"
    if row.dataset not in BENCHMARKS:
        return f"nothing is published on the data set {row.dataset}"
    if row.method != spec.name:
        return "prompts LEAKED: trained on the data under test"
    if spec.weights.startswith("random:"):
        return "random weights"
    usual = USUAL[spec.method]
    if (spec.backbone, spec.weights) != (usual["backbone"], usual["weights"]):
        return f"other backbone or weights than {usual['backbone']}, {usual['weights']}"
    if spec.preset != "paper" or spec.settings:
        return "other settings than the paper's"
    if spec.method == "anomalyclip" and config.normalise_dataset_name(spec.trained_on) != PROMPTS_FROM[row.dataset]:
        return f"prompts not known to be trained on {PROMPTS_FROM[row.dataset]}, as the published ones"
    if row.shots and part.seed.nunique() < DRAWS:
        return f"{part.seed.nunique()} draws of references, the paper averages {DRAWS}"
    return ""


def _tested(dataset: str) -> dict[str, tuple[int, int]]:
    """Normal and anomalous test images of each category of a benchmark."""
    counts = pd.read_csv(datasets.REFERENCE / "dataset_counts.csv")
    counts = counts[(counts.dataset == dataset) & (counts.split == "test")]
    sums = counts.assign(good=counts.defect_type == "good").pivot_table(
        index="category", columns="good", values="n_images", aggfunc="sum"
    )
    return {row.Index: (row[2], row[1]) for row in sums.itertuples()}


def _lacking(part: pd.DataFrame) -> dict[str, str]:
    """What the tests of a method lack of the benchmark: by category, and under ``mean``; empty where nothing."""
    counts = _tested(part.dataset.iloc[0])
    rows = part.drop_duplicates("category").set_index("category")
    reasons = {
        name: "" if counts.get(name) == (row.n_good, row.n_defective) else "not the benchmark's test images"
        for name, row in rows.iterrows()
    }
    run = [name for name in counts if name in reasons]
    few = f"{len(run)} of {len(counts)} categories" if len(run) < len(counts) else ""
    return reasons | {"mean": few or next((reasons[name] for name in run if reasons[name]), "")}


def _cell_reason(row: pd.Series, paper: pd.DataFrame, by: str, size: int, lacking: str, profile: Profile) -> str:
    """Why a figure is not judged by ``paper``'s rows; ``by``: our thresholds of an AUPRO, ``size``: our pixels."""
    if paper.empty:
        return "not published"
    kind, counted = paper.kind.iloc[0], paper.thresholds.iloc[0]
    if row.metric in PIXEL and size != SIZE[kind]:
        return f"maps compared at {size} px, published at {SIZE[kind]}: set evaluation_size: {SIZE[kind]}"
    if by != counted:
        return f"AUPRO by {by}, published by {counted}, which are not counted in bins"
    if by == EXACT and profile.fpr_limit != FPR_LIMIT:
        return f"AUPRO up to {profile.fpr_limit}, published up to {FPR_LIMIT}"
    return lacking


# ---------------------------------------------------------------- points of a figure


def collect_points(metrics: pd.DataFrame, profile: Profile, metric: str = "image_auroc") -> pd.DataFrame:
    """Zero-shot figures by category, ours among them where the data are a benchmark; else MVTec AD's as published.

    Columns: dataset, metric, method (WinCLIP or AnomalyCLIP), category, group, who, value, and low and high for ours.
    """
    dataset = metrics.dataset.iloc[0] if metrics.dataset.iloc[0] in BENCHMARKS else BENCHMARKS[0]
    figures = read_figures()
    figures = figures[(figures.dataset == dataset) & (figures.shots == 0) & (figures.metric == metric)]
    metrics = _as_published(metrics, profile)
    ours = metrics[(metrics.dataset == dataset) & (metrics.shots == 0)]
    low, high = (ours.get(f"{metric}_{end}", np.nan) for end in ("low", "high"))
    kinds = [guess_kind(name, profile) for name in ours.method]
    ours = ours.assign(kind=kinds, who=ours.method, value=ours[metric], low=low, high=high)
    collected = pd.concat([figures, ours], ignore_index=True)
    groups = pd.read_csv(datasets.REFERENCE / "categories.csv").query("dataset == @dataset").set_index("category").group
    judged = collected.category.isin(groups.index) & collected.kind.isin(list(PAPERS)) & collected.value.notna()
    collected = collected[judged]
    collected = collected.assign(dataset=dataset, metric=metric, group=collected.category.map(groups))
    collected["method"] = [USUAL[kind]["name"] for kind in collected.kind]
    columns = ["dataset", "metric", "method", "category", "group", "who", "value", "low", "high"]
    return collected.reindex(columns=columns)


def write_title(found: pd.DataFrame, profile: Profile) -> str:
    """The title of a figure of ``points``: whose numbers it shows."""
    named = [*_specs(profile), *(spec.name for spec in profile.imports)]
    ours = [name for name in dict.fromkeys(found.who) if name in named]
    if ours:
        return f"{found.dataset.iloc[0]}: this run's {', '.join(ours)} beside the published figures"
    return f"{found.dataset.iloc[0]} as published: no point of this run, whose data are others"


STUDY = datasets.REFERENCE / "study_results.csv"


def read_study_table(table: str) -> pd.DataFrame:
    """The rows of one table of the study, or of one of its sections (``text 5.2.2``), as it printed them."""
    figures = pd.read_csv(STUDY, dtype=str)
    return figures[figures.table == table]


def quote_study(table: str, item: str, metric: str = "auroc") -> str:
    """One figure the study prints for WinCLIP, as printed: a number, or a range of two."""
    rows = read_study_table(table)
    return rows[(rows.method == "WinCLIP") & (rows["item"] == item) & (rows.metric == metric)].value.iloc[0]


SHOT_CLAIMS = {
    "average": ("gains", "average_gain_0_to_1_shot"),
    "capsule": ("gains", "gain_capsule_grid_hazelnut"),
    "grid": ("gains", "gain_capsule_grid_hazelnut"),
    "hazelnut": ("gains", "gain_capsule_grid_hazelnut"),
    "bottle": ("drops", ""),
    "screw": ("drops", ""),
}
"""What the study says that one reference image does to the image AUROC (section 5.2.1), and where its figure is."""


def check_shot_claims(table: pd.DataFrame) -> pd.DataFrame:
    """The study's claims of one reference, against its own zero-shot Table 1 and against these metrics of a WinCLIP.

    ``room``: how far the image AUROC could rise at all from Table 1. Only MVTec AD can be compared.
    """
    steps = table[table.shots.isin([0, 1])]
    gains = comparison.compare_steps(steps, ("method", "category"))
    macro = comparison.compare_steps(steps).assign(category="average")
    gains = pd.concat([gains, macro])
    gains = gains[(gains.measure == "image_auroc") & gains.difference.notna()].drop_duplicates("category")
    comparable = set(table.dataset) == {"MVTec AD"}
    rows, all_of_them = (
        [],
        read_study_table("Table 1").query("group == 'category' and item != 'mean'")["item"].nunique(),
    )
    for name, (way, item) in SHOT_CLAIMS.items():
        start = float(quote_study("Table 1", "mean" if name == "average" else name, "image_auroc"))
        ends = [float(end) for end in quote_study("text 5.2.1", item).split("-")] if item else [-1.0, 0.0]
        own = gains[gains.category == name]
        if name == "average" and table.category.nunique() < all_of_them:
            own = own[:0]  # a mean of other categories
        facts = {
            "category": name,
            "the study": f"{way} {' to '.join(f'{end:+.2f}' for end in ends)}" if item else way,
            "its Table 1": start,
            "room": 1 - start,
            "by its own table": "possible" if ends[0] <= 1 - start else "impossible",
        }
        rows.append(facts | _measure_claim(own, ends, bool(item), comparable, set(table.dataset)))
    return pd.DataFrame(rows)


def _measure_claim(own: pd.DataFrame, ends: list[float], bounded: bool, comparable: bool, datasets: set[str]) -> dict:
    """What was measured of one claim: the gain and whether it agrees, or why there is no comparison."""
    if not comparable:
        why = f"the data are {', '.join(sorted(datasets))}" if datasets else "no WinCLIP was run"
        return {"here": f"no comparison: {why}", "verdict": "none"}
    if own.empty:
        return {"here": "no comparison: not run here with 0 and 1 shot", "verdict": "none"}
    row = own.iloc[0]
    low, high = (ends[0], ends[-1]) if bounded else (-1.0, -1e-9)
    apart = row.low > high or row.high < low
    inside = low <= row.low and row.high <= high
    word = "contradicted" if apart else "agrees" if inside else comparison.NO_DIFFERENCE
    return {
        "here": f"{comparison.format_difference(row.difference, row.low, row.high)}, n = {row.n}",
        "verdict": word,
    }


def compare_shot_gains(metrics: pd.DataFrame) -> pd.DataFrame:
    """What references bring a WinCLIP here, from none to each number of them, beside its paper's gains on MVTec AD.

    Columns: shots, measure, published (the paper's gain of the macro mean), then ours over *n* draws: difference, low,
    high, n. Only numbers of references that the paper has; empty without a zero-shot result.
    """
    paper = read_means(["WinCLIP", "WinCLIP+"]).set_index("shots")
    shots = sorted(set(metrics.shots) & set(paper.index) - {0})
    steps = [comparison.compare_steps(metrics[metrics.shots.isin([0, number])]) for number in shots]
    gains = pd.concat([comparison.compare_steps(metrics.iloc[:0]), *steps]).rename(columns={"more": "shots"})
    gains["published"] = [
        paper.loc[row.shots, row.measure] - paper.loc[0, row.measure] if row.fewer == 0 else np.nan
        for row in gains.itertuples()
    ]
    return gains[["shots", "measure", "published", "over", "difference", "low", "high", "n"]].reset_index(drop=True)
