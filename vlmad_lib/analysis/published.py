"""Published figures and the study's beside ours: fractions, one vocabulary of metrics, and how far each is trusted."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from vlmad_lib import config, tables
from vlmad_lib.analysis import comparison
from vlmad_lib.config import Method, Profile
from vlmad_lib.data import datasets
from vlmad_lib.evaluation.metrics import PIXEL

TRUSTED = ("primary", "paper-quoted", "secondary")
"""Trust tags of a method's published figures, best first: its authors', a paper's that quotes theirs, another paper's.
``setups.csv`` says down to which one a method's are taken; ``reimpl`` and ``rerun`` are third parties' own runs."""
LOG = r"log\.txt|\.log|results\.csv"
"""In a source: what the authors' program printed, which their paper's table may round or say otherwise."""
BENCHMARKS = ("MVTec AD", "VisA")
STUDIED = ("winclip", "anomalyclip")  # the methods of the study
MEAN_TOLERANCE, CATEGORY_TOLERANCE = 0.02, 0.05
PRINTED = 0.0005  # a figure of one decimal of a percent stands for values so near
EXACT, COARSE = "all thresholds", "200 thresholds"
"""By how many thresholds an AUPRO is computed: as MVTec AD defines it, or as AnomalyCLIP's code does, which gives other
values on the same maps (``metrics``: aupro and aupro_200)."""
LEARNED_ON = {"MVTec AD": "visa", "VisA": "mvtec"}
"""The data set on which published prompts and projections were learned, by the one they were tested on."""
BELOW = "below every rerun: look at your set-up first"
_KEYS = ["dataset", "kind", "shots", "category", "metric"]
_COLUMNS = [*_KEYS, "who", "value", "trust", "source", "thresholds", "uncounted"]
_JUDGED = ["method", "shots", "category", "metric", "AUPRO by", "ours", "paper", "trust", "difference", "tolerance",
           "verdict", "study", "lowest rerun", "highest rerun", "beside the reruns", "not counted",
           "no verdict because"]  # fmt: skip
_SPELLING = {"image_f1max": "image_f1_max", "pixel_f1max": "pixel_f1_max"}


# ---------------------------------------------------------------- the figures


@lru_cache(maxsize=1)
def read_setups() -> pd.DataFrame:
    """How each method's published figures were made, text by set-up (data/README.md); empty where it is not known."""
    table = pd.read_csv(datasets.REFERENCE / "setups.csv", dtype=str, keep_default_na=False)
    return table.assign(settings=[json.loads(text or "{}") for text in table.settings]).set_index("setup")


def _read(name: str) -> pd.DataFrame:
    """Figures of a table of ``data/reference`` by their method's published name, in [0, 1] and our vocabulary."""
    table = pd.read_csv(datasets.REFERENCE / name, dtype={"shots": str})
    shots = table.shots.replace("full", str(config.FULL))
    table = table.assign(metric=table.metric.replace(_SPELLING), value=table.value / 100, shots=shots)
    table = table[table.shots.str.isdigit() & table.metric.isin(list(tables.TITLES))]
    return table.assign(shots=table.shots.astype(int), trust=table.trust.replace("authors' log", "primary"))


def read_papers() -> pd.DataFrame:
    """The papers' figures and those of public reruns, in [0, 1]; ``who`` is ``paper`` or whose rerun it is.

    ``kind`` is a set-up of ``read_setups``, ``category`` may be ``mean`` (macro). Where several sources quote one
    figure of a paper, the most trusted goes first, then the source that says most. ``thresholds`` says by how many an
    AUPRO was computed (``EXACT``, ``COARSE`` or ``not stated``), and is empty for other metrics. ``uncounted`` says
    why a rerun's figure counts for nothing, and is empty where it counts.
    """
    table = pd.concat([_read("published_results.csv"), _read("rerun_results.csv")], ignore_index=True)
    collected = pd.concat([_of_paper(table, row) for row in read_setups().itertuples()] + [_of_reruns(table)])
    return collected.assign(thresholds=collected.thresholds.where(collected.metric == "aupro", ""))[_COLUMNS]


def _of_paper(table: pd.DataFrame, setup: Any) -> pd.DataFrame:
    trusted = TRUSTED[: TRUSTED.index(setup.trust) + 1]
    selected = table[table.method.isin(setup.published_as.split(";")) & table.trust.isin(trusted)]
    shares = selected.groupby("source").value.transform("size") / len(table)
    rank = selected.trust.map(TRUSTED.index).astype(float) - shares
    facts = {"kind": setup.Index, "who": "paper", "thresholds": setup.thresholds, "uncounted": ""}
    return selected.assign(rank=rank, **facts).sort_values("rank", kind="stable").drop_duplicates(_KEYS)


def _of_reruns(table: pd.DataFrame) -> pd.DataFrame:
    """Figures of the reruns that ``reruns.csv`` lists; those that it marks say so in ``who``."""
    reruns = pd.read_csv(datasets.REFERENCE / "reruns.csv", keep_default_na=False).rename(columns={"name": "method"})
    rows = table[table.trust.isin(["reimpl", "rerun"])].merge(reruns, on="method").rename(columns={"setup": "kind"})
    marked = (rows.marked_metrics == "all") | ((rows.marked_metrics == "pixel") & rows.metric.isin(PIXEL))
    who = rows.by + " (" + rows["mark"].where(marked, "") + " rerun)"
    unknown = np.where((rows.metric == "aupro") & (rows.thresholds != COARSE), "thresholds not stated", "")
    rows = rows.assign(who=who.str.replace("( ", "("), uncounted=rows.why.where(marked, unknown))
    return rows.drop_duplicates([*_KEYS, "who"])


def read_study() -> pd.DataFrame:
    """The study's figures by category and their means (``mean``), as printed; columns as in ``published``."""
    table = pd.read_csv(datasets.REFERENCE / "study_results.csv", dtype=str)
    table = table[(table.shots == "0") & table.group.isin(["category", "overall"])]
    table = table[table.metric.isin(list(tables.TITLES))].rename(columns={"item": "category", "table": "source"})
    kinds = {read_setups().name[kind]: kind for kind in STUDIED}
    facts = {"dataset": "MVTec AD", "who": "study", "trust": "study", "shots": 0, "uncounted": ""}
    coarse = np.where(table.metric == "aupro", COARSE, "")  # the programs that it used
    collected = table.assign(kind=table.method.map(kinds), value=table.value.astype(float), thresholds=coarse, **facts)
    return collected.drop_duplicates(_KEYS)[_COLUMNS].reset_index(drop=True)  # tables go before prose that rounds them


def read_figures() -> pd.DataFrame:
    """``published`` and ``of_study`` in one table."""
    return _figures().copy()


@lru_cache(maxsize=1)
def _figures() -> pd.DataFrame:
    return pd.concat([read_papers(), read_study()], ignore_index=True)


def tabulate_means(dataset: str, kinds: Sequence[str] = ()) -> pd.DataFrame:
    """The published macro means of a benchmark, for display: a row per method, shots and source of the figures.

    Of some ``kinds``, or of all. ``AUPRO by`` is the number of thresholds of the AUPRO, where there is one.
    """
    collected = read_figures()
    collected = collected[(collected.dataset == dataset) & (collected.category == "mean")]
    collected = collected[collected.kind.isin(list(kinds) or read_setups().index)]
    logged = collected.source.str.contains(LOG) & (collected.who == "paper")
    collected = collected.assign(
        method=collected.kind.map(read_setups().name), who=collected.who.mask(logged, "authors' log")
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
    """The set-up of a method of a metrics table: from the profile, for an import from its name, or empty."""
    spec = _specs(profile).get(name)
    if spec:
        return _choose_setup(spec)
    titles = read_setups().name
    named = titles[[bool(re.search(rf"(?<![\w-]){re.escape(title)}(?![a-z])", name, re.I)) for title in titles]]
    return named.str.len().idxmax() if len(named) else ""


def _choose_setup(spec: Method) -> str:
    """The set-up of a method that asks for most of its settings, else the first of its preset, else its first."""
    rows = read_setups()
    rows = rows[rows.method == spec.method]
    rows = rows[rows.preset == spec.preset] if spec.preset in set(rows.preset) else rows
    fitting = {kind: len(wanted) for kind, wanted in rows.settings.items() if wanted.items() <= spec.settings.items()}
    return max(fitting, key=lambda kind: fitting[kind]) if fitting else next(iter(rows.index), "")


def _specs(profile: Profile) -> dict[str, Method]:
    marked = {f"{spec.name} LEAKED": spec for spec in profile.methods}
    return {spec.name: spec for spec in profile.methods} | marked


def judge(
    metrics: pd.DataFrame,
    profile: Profile,
    mean_tolerance: float = MEAN_TOLERANCE,
    category_tolerance: float = CATEGORY_TOLERANCE,
) -> pd.DataFrame:
    """Each of our figures beside the paper's, the study's and public reruns': means first, then categories.

    A mean is over the categories of this run, on every side; so is ``difference``, ours minus the paper's (nan where
    their test images differ). ``verdict`` is ``within`` or ``outside`` the tolerance, and empty where the setup is not
    the published one; ``no verdict because`` then says what differs. Our AUPRO is computed by as many thresholds as
    the paper's, which ``AUPRO by`` names. ``beside the reruns`` needs no setup: it says whether ours lies within what
    others reached, and whether the paper does; marked reruns stand in ``not counted`` alone.
    """
    metrics = _as_published(metrics, profile)
    by_method = metrics.groupby(["method", "shots"])
    counted = by_method.thresholds.agg(lambda part: " and ".join(sorted(set(part))))
    sizes = by_method.evaluation_size.first()
    kinds = {name: guess_kind(name, profile) for name in metrics.method.unique()}
    figures = _over_categories(metrics)
    cells: dict[tuple, list[Any]] = {}
    for figure in figures[figures.kind.isin(list(kinds.values()))].itertuples():
        cells.setdefault((figure.kind, figure.shots, figure.category, figure.metric), []).append(figure)
    coarse = _ours(metrics.assign(aupro=metrics.aupro_200)).query("metric == 'aupro'")
    coarse = coarse.set_index(["method", "shots", "category"]).ours
    reasons = {key: _reason(part, profile) for key, part in by_method}
    lacking = {key: _lacking(part) for key, part in by_method}
    rows = []
    for row in _ours(metrics).itertuples():
        key = (row.method, row.shots)
        part = cells.get((kinds[row.method], row.shots, row.category, row.metric), [])
        paper, study = (next((figure for figure in part if figure.who == who), None) for who in ("paper", "study"))
        value = paper.value if paper else np.nan
        lacks = lacking[key]
        by = counted[key] if row.metric == "aupro" else ""
        reason = reasons[key] or _cell_reason(row, paper, by, int(sizes[key]), lacks[row.category], profile)
        unlike = row.category == "mean" and any(lacks[name] for name in lacks if name != "mean")
        tolerance = mean_tolerance if row.category == "mean" else category_tolerance
        close = "within" if abs(row.ours - value) <= tolerance + 1e-9 else "outside"
        own, reached = row.ours, value
        if by:  # of reruns' AUPROs those by 200 thresholds are known to be so
            own = coarse.get((*key, row.category), np.nan)
            reached = value if paper and paper.thresholds == COARSE else np.nan
        reruns = [figure for figure in part if figure.who not in ("paper", "study")]
        beside = _beside_reruns(np.nan if unlike else own, reached, reruns, tolerance)
        rows.append(
            [
                *(row.method, row.shots, row.category, row.metric, by, row.ours, value, _trust(paper) if paper else ""),
                *(np.nan if unlike else row.ours - value, tolerance, "" if reason else close),
                *(study.value if study else np.nan, *beside, reason),
            ]
        )
    return pd.DataFrame(rows, columns=_JUDGED)


def _over_categories(metrics: pd.DataFrame) -> pd.DataFrame:
    """The figures on the data of a run, with means over its categories: printed ones where these are all."""
    figures = read_figures()
    figures = figures[figures.dataset == metrics.dataset.iloc[0]]
    run = set(metrics.category)
    cells = figures[figures.category.isin(run)]
    keys = ["kind", "shots", "metric", "who"]
    means = cells.assign(value=cells.groupby(keys).value.transform("mean"), category="mean")
    means = means[cells.groupby(keys).value.transform("size") == len(run)].drop_duplicates(keys)
    printed = figures[figures.category == "mean"] if run >= set(_tested(metrics.dataset.iloc[0])) else figures[:0]
    return pd.concat([cells, printed, means]).drop_duplicates([*keys, "category"])


def _beside_reruns(ours: float, paper: float, reruns: Sequence[Any], tolerance: float) -> tuple[str, str, str, str]:
    """The ends of the reruns' range, where ours (nan: not comparable) and the paper's lie, and what is not counted."""
    names = {rerun.who: f"{rerun.value:.3f} {rerun.who.partition(' (')[0]}" for rerun in reruns}
    counted = sorted((rerun for rerun in reruns if not rerun.uncounted), key=lambda rerun: rerun.value)
    marked = "; ".join(f"{names[rerun.who]}: {rerun.uncounted}" for rerun in reruns if rerun.uncounted)
    if not counted:
        return "", "", "", marked
    place = "" if np.isnan(ours) else describe_range(ours, paper, [rerun.value for rerun in counted], tolerance)
    return names[counted[0].who], names[counted[-1].who], place, marked


def describe_range(ours: float, paper: float, reruns: Sequence[float], tolerance: float) -> str:
    """Where a figure lies beside reruns of the method, whether they reach the paper (nan: no figure), and n of them."""
    lowest, highest = min(reruns), max(reruns)
    if lowest - PRINTED <= ours <= highest + PRINTED:
        text = "within the reruns' range"
    elif lowest - tolerance <= ours <= highest + tolerance:
        text = "near the reruns' range"
    else:
        text = BELOW if ours < lowest else "above every rerun"
    missed = "; every rerun is below the paper too" if paper - highest > tolerance else ""
    return f"{text}{missed} (n = {len(reruns)})"


def _as_published(metrics: pd.DataFrame, profile: Profile) -> pd.DataFrame:
    """A metrics table whose AUPRO is by as many ``thresholds`` as the method's paper's, where it was counted so."""
    thresholds = read_setups().thresholds
    coarse = (
        metrics.method.map({name: thresholds.get(guess_kind(name, profile)) for name in metrics.method.unique()})
        == COARSE
    )
    coarse &= metrics.aupro_200.notna()
    counted = pd.Series(EXACT, metrics.index).mask(coarse, COARSE)
    return metrics.assign(aupro=metrics.aupro.mask(coarse, metrics.aupro_200), thresholds=counted)


def _trust(row: Any) -> str:
    return f"{row.trust}: authors' log" if re.search(LOG, row.source) else row.trust


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


def _reason(part: pd.DataFrame, profile: Profile) -> str:
    """What differs from the published setup in a method with a number of shots; empty where nothing does."""
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
    if not (kind := _choose_setup(spec)):
        return "not published"
    setup = read_setups().loc[kind]
    preset = {} if spec.preset == setup.preset else {"preset": spec.preset}
    changed = preset | {key: value for key, value in spec.settings.items() if setup.settings.get(key) != value}
    absent = {key: value for key, value in setup.settings.items() if key not in spec.settings}
    backbone = spec.backbone.removeprefix("timm/").removesuffix(f".{setup.weights}")
    learned_on = LEARNED_ON[row.dataset]
    learned_otherwise = setup.learns and config.normalise_dataset_name(spec.trained_on) != learned_on
    draws, needed = part.seed.nunique() if 0 < row.shots < config.FULL else 0, int(setup.draws or 0)
    differing = {
        f"other backbone or weights than {setup.backbone}, {setup.weights}": (backbone, spec.weights)
        != (setup.backbone, setup.weights),
        f"other settings than the paper's: {_list(changed)}": changed,
        f"without the paper's settings: {_list(absent)}": absent,
        f"{setup.learns} not known to be trained on {learned_on}, as the published ones": learned_otherwise,
        f"{draws} draws of references, the paper averages {needed}": 0 < draws < needed,
    }
    return "; ".join(text for text, differs in differing.items() if differs)


def _list(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())


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
    few = f"{len(run)} of {len(counts)} products" if len(run) < len(counts) else ""
    return reasons | {"mean": few or next((reasons[name] for name in run if reasons[name]), "")}


def _cell_reason(row: Any, paper: Any, by: str, size: int, lacking: str, profile: Profile) -> str:
    """Why a figure is not judged by the paper's ; ``by``: our thresholds of an AUPRO, ``size``: our pixels."""
    if paper is None:
        return "not published"
    setup, counted = read_setups().loc[paper.kind], paper.thresholds
    if row.metric in PIXEL and not setup.evaluation_size.isdigit():
        return f"maps compared at {size} px, published at {setup.evaluation_size or 'a size not stated'}"
    if row.metric in PIXEL and str(size) != setup.evaluation_size:
        wanted = setup.evaluation_size
        return f"maps compared at {size} px, published at {wanted}: set evaluation_size: {wanted}"
    if by and counted not in (EXACT, COARSE):
        return "by how many thresholds the AUPRO was published is not stated"
    if by != counted:
        return f"AUPRO by {by}, published by {counted}, which are not counted in bins"
    if by == EXACT and profile.fpr_limit != float(setup.fpr_limit):
        return f"AUPRO up to {profile.fpr_limit}, published up to {setup.fpr_limit}"
    return lacking


# ---------------------------------------------------------------- points of a figure


def collect_points(metrics: pd.DataFrame, profile: Profile, metric: str = "image_auroc") -> pd.DataFrame:
    """Zero-shot figures by category, ours among them where the data are a benchmark; else MVTec AD's as published.

    Of the study's methods, and of this run's where some are published. Columns: dataset, metric, method, category,
    group, who, value, and low and high for ours.
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
    shown = {*STUDIED, *kinds} & set(figures[figures.category != "mean"].kind)
    judged = collected.category.isin(groups.index) & collected.kind.isin(list(shown)) & collected.value.notna()
    collected = collected[judged]
    collected = collected.assign(dataset=dataset, metric=metric, group=collected.category.map(groups))
    collected["method"] = collected.kind.map(read_setups().name)
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
