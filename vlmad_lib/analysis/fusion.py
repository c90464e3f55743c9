"""Does the hybrid help: its variants, a fusion weight chosen on auxiliary data, and where it gains (notebook 14).

Gains are differences to AnomalyCLIP or another method on the same images, paired over categories.
"""

from __future__ import annotations

import pandas as pd

from vlmad_lib import InputError, tables
from vlmad_lib.analysis import comparison, language, sweeps
from vlmad_lib.analysis.prompt_transfer import UNSEEN
from vlmad_lib.config import Method, Profile
from vlmad_lib.data import datasets
from vlmad_lib.evaluation import statistics
from vlmad_lib.methods import winclip
from vlmad_lib.pipeline import run
from vlmad_lib.pipeline.results import Results

ALONE, EQUAL = "Hybrid, windows alone", "Hybrid, equal weights"
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
HELD_OUT = list(UNSEEN.values())
"""Auxiliary categories of the demo that neither its backbone nor its prompts were trained on (their model cards)."""


# ---------------------------------------------------------------- what is run


def hybrid(spec: Method, name: str, fit: str, **changes) -> Method:
    """The hybrid that shares an AnomalyCLIP's backbone, prompts and input, with these settings."""
    shared = {key: spec.settings[key] for key in ("image_size", "sigma") if key in spec.settings}
    settings = shared | {"fit": fit} | changes
    return spec.model_copy(update={"method": "hybrid", "name": name, "preset": "paper", "settings": settings})


def fitting(index: pd.DataFrame) -> str:
    """How the hybrid fits images: the tiles that WinCLIP keeps where all are square, which changes nothing for them."""
    return "tiles" if (index.width == index.height).all() else "squash"


def words(spec: Method, profile: Profile, fit: str) -> Method:
    """WinCLIP, hand-written words, on an AnomalyCLIP's backbone: the profile's own where it is on it and fits alike."""
    for one in [one for one in profile.methods if one.method == "winclip"]:
        alike = one.network == spec.network
        if alike and winclip.settings(one.preset, one.settings).fit == fit:
            return one
    return Method(method="winclip", name="WinCLIP, same backbone", settings={"fit": fit}, **spec.network)


def variants(spec: Method, fit: str, weight: float | None = None) -> list[Method]:
    """Windows alone, both maps with equal weights and, where one was chosen that is neither, with that weight."""
    found = [hybrid(spec, ALONE, fit, local_weight=0.0), hybrid(spec, EQUAL, fit)]
    if weight is not None and weight not in (0.0, 0.5, 1.0):
        found.append(hybrid(spec, f"Hybrid, weight {weight:g} chosen", fit, local_weight=weight))
    return found


def ablations(spec: Method, fit: str) -> list[Method]:
    """The hybrid with equal weights, and with one part changed at a time."""
    changes = {
        "harmonic mean": {"fusion": "harmonic"},
        "windows without the whole image": {"full_image": False},
        "image score with the map": {"image_score": "with_map"},
    }
    return [hybrid(spec, EQUAL, fit), *(hybrid(spec, name, fit, **change) for name, change in changes.items())]


# ---------------------------------------------------------------- a weight from auxiliary data


def held_out(profile: Profile) -> Profile:
    """The profile of a few demo pictures of the categories ``HELD_OUT``, drawn into the cache."""
    from vlmad_lib.demo import data as demo

    root = profile.path(profile.cache) / "auxiliary"
    demo.write(root, "auxiliary", train=0, good=4, per_defect=1, categories=HELD_OUT)
    return profile.model_copy(update={"dataset": "folder", "root": str(root), "categories": []})


def weigh(profile: Profile, auxiliary: Profile, spec: Method) -> pd.DataFrame:
    """Pixel AUROC of every weight on an auxiliary profile's categories, a row a weight and category.

    InputError where these are the data of ``profile``: the weight would be chosen by what it is judged on. Prompts that
    were trained on the auxiliary data favour their own V-V map there; the method is then called LEAKED.
    """
    if datasets.overlaps_training_data(
        datasets.describe_identity(auxiliary), str(auxiliary.path(auxiliary.root)), profile
    ):
        raise InputError(
            f"The weight would be chosen on {auxiliary.root}, the data under test; name other 'auxiliary' data."
        )
    changes = {"imports": [], "shots": [0], "methods": [spec.model_copy(update={"force_leak": True})]}
    table, _ = run.build_run_index(auxiliary.model_copy(update=changes))
    named = {f"weight {weight:g}": weight for weight in WEIGHTS}
    some = [
        hybrid(spec, name, fitting(table), local_weight=weight).model_copy(update={"force_leak": True})
        for name, weight in named.items()
    ]
    found = run.run(auxiliary.model_copy(update=changes | {"methods": some})).metrics
    weights = found.method.str.removesuffix(" LEAKED").map(named)
    return found.assign(weight=weights)[["method", "weight", "group", "category", "pixel_auroc", "n_defective"]]


def best_weight(weighed: pd.DataFrame) -> float:
    """The weight of the largest macro mean; of equal ones the nearest to one half. 0.5 where nothing is known."""
    means = weighed.groupby("weight").pixel_auroc.mean().dropna()
    if means.empty:
        return 0.5
    first = means[means >= means.max() - 1e-9].index
    return float(min(first, key=lambda weight: abs(weight - 0.5)))


# ---------------------------------------------------------------- where it gains


def images(results: Results, without: list[str]) -> pd.DataFrame:
    """Pixel AUROC inside each masked image by method: image, category, group, method and ``auroc``."""
    rows = results.scores[(results.scores["mask"] != "") & (results.scores.map_file != "")]
    rows = rows[~rows.method.isin(without)]
    rows = rows.assign(auroc=sweeps.inside(results, rows)) if len(rows) else rows.assign(auroc=[])
    return rows[["image", "category", "group", "method", "auroc"]].dropna(subset="auroc")


def where(table: pd.DataFrame, base: str) -> pd.DataFrame:
    """Gain in pixel AUROC inside an image over ``base``, where that localises worse and where better, by method.

    Each half of a category's images says in turn whether the category is among the worse half for ``base``, the other
    half what is gained there: one half for both would find gains where ``base`` merely had bad luck. Means over *n*
    categories with their 95 % interval; a category near the middle may be in both rows.
    """
    wide = table.pivot(index=["category", "image"], columns="method", values="auroc").dropna().sort_index()
    half = wide.groupby("category").cumcount() % 2
    rows = []
    for method in [name for name in dict.fromkeys(table.method) if name != base]:
        gain, found = wide[method] - wide[base], []
        for judged in (0, 1):
            level = wide[base][half != judged].groupby("category").mean()
            gained = gain[half == judged].groupby("category").mean().reindex(level.index).dropna()
            worse = level[gained.index] < level.median()
            found.append(pd.DataFrame({"gain": gained, "worse": worse}))
        both = pd.concat(found)
        sides = {f"{base} worse": both[both.worse], f"{base} better": both[~both.worse], "all": both}
        for name, part in sides.items():
            apart = part.groupby(level="category").gain.mean()
            ends = dict(zip(("difference", "low", "high"), statistics.difference(apart), strict=True))
            rows.append({"method": method, "where": name} | ends | {"n": len(apart)})
    return pd.DataFrame(rows, columns=["method", "where", "difference", "low", "high", "n"])


# ---------------------------------------------------------------- sentences


def findings(
    metrics: pd.DataFrame, base: str, hand_written: str, gains: pd.DataFrame, weighed: pd.DataFrame | None = None
) -> str:
    """Whether the hybrid helps, by how much and where, as a Markdown list."""
    lines = []
    for name in [name for name in dict.fromkeys(metrics.method) if name not in (base, hand_written)]:
        found = language.differences(metrics, name)
        found = found[
            (found.over == "categories") & found.difference.notna() & found.measure.isin(["pixel_auroc", "aupro"])
        ]
        for other in (base, hand_written):
            part = found[(found.against == other) & (found.group == "all")]
            told = [f"{tables.TITLES[row.measure]} {language.told_apart(row)}" for row in part.itertuples()]
            if told:
                lines.append(
                    f"**{name}** less {other}: {', '.join(told)} (n = {tables.format_counts(part.n, 'categories')})."
                )
        part = found[(found.against == base) & (found.group != "all") & (found.measure == "pixel_auroc")]
        if len(part):
            told = [f"{row.group} {language.told_apart(row)} (n = {row.n})" for row in part.itertuples()]
            lines.append(f"**{name}** less {base}, pixel AUROC by group: {'; '.join(told)}.")
        lines += _where_line(name, gains[gains.method == name])
    if not lines:
        return (
            tables.NO_AUROC
            if metrics.image_auroc.isna().all()
            else "- No image has a mask (n = 0): no map can be judged."
        )
    if weighed is not None and weighed.pixel_auroc.notna().any():
        lines.append(_weight_line(weighed))
    return "\n".join(f"- {line}" for line in lines)


def _where_line(name: str, part: pd.DataFrame) -> list[str]:
    told = [
        f"{row.where} {language.told_apart(row)} (n = {row.n})" for row in part.dropna(subset="difference").itertuples()
    ]
    return [f"**{name}**, gain inside an image by category: {'; '.join(told)}."] if told else []


_ENDS = {0.0: ", windows alone", 1.0: ", which leaves the windows out"}


def _weight_line(weighed: pd.DataFrame) -> str:
    means, n = weighed.groupby("weight").pixel_auroc.mean(), weighed.category.nunique()
    ends = f"{means.min():.3f} to {means.max():.3f}"
    wide = weighed.pivot(index="category", columns="weight", values="pixel_auroc")
    chosen = best_weight(weighed)
    apart = statistics.difference(wide[chosen] - wide[0.5])
    told = "equal weights" if chosen == 0.5 else f"{comparison.format_difference(*apart)} against equal weights there"
    return (
        f"On auxiliary data (n = {tables.format_categories(n)}) the weight of the V-V map moves pixel AUROC "
        f"from {ends}; "
        f"the best is {chosen:g}{_ENDS.get(chosen, '')}: {told}. Target images had no part in it."
    )
