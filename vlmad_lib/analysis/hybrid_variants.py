"""Does the hybrid help: its variants, a fusion weight chosen on auxiliary data, and where it gains (notebook 14).

Gains are differences to AnomalyCLIP or another method on the same images, paired over categories.
"""

from __future__ import annotations

import pandas as pd

from vlmad_lib import InputError, tables
from vlmad_lib.analysis import comparison, variants
from vlmad_lib.analysis.prompt_transfer import UNSEEN
from vlmad_lib.config import Method, Profile
from vlmad_lib.data import datasets
from vlmad_lib.methods import winclip
from vlmad_lib.pipeline import run
from vlmad_lib.pipeline.results import Results

ALONE, EQUAL = "Hybrid, windows alone", "Hybrid, equal weights"
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
HELD_OUT = list(UNSEEN.values())
"""Auxiliary categories of the demo that neither its backbone nor its prompts were trained on (their model cards)."""


# ---------------------------------------------------------------- what is run


def make_hybrid(spec: Method, name: str, fit: str, **changes) -> Method:
    """The hybrid that shares an AnomalyCLIP's backbone, prompts and input, with these settings."""
    shared = {key: spec.settings[key] for key in ("image_size", "sigma") if key in spec.settings}
    settings = shared | {"fit": fit} | changes
    return spec.model_copy(update={"method": "hybrid", "name": name, "preset": "paper", "settings": settings})


def choose_fit(index: pd.DataFrame) -> str:
    """How the hybrid fits images: the tiles that WinCLIP keeps where all are square, which changes nothing for them."""
    return "tiles" if (index.width == index.height).all() else "squash"


def make_hand_written(spec: Method, profile: Profile, fit: str) -> Method:
    """WinCLIP, hand-written words, on an AnomalyCLIP's backbone: the profile's own where it is on it and fits alike."""
    for one in [one for one in profile.methods if one.method == "winclip"]:
        alike = one.network == spec.network
        if alike and winclip.settings(one.preset, one.settings).fit == fit:
            return one
    return Method(method="winclip", name="WinCLIP, same backbone", settings={"fit": fit}, **spec.network)


def list_hybrids(spec: Method, fit: str, weight: float | None = None) -> list[Method]:
    """Windows alone, both maps with equal weights and, where one was chosen that is neither, with that weight."""
    found = [make_hybrid(spec, ALONE, fit, local_weight=0.0), make_hybrid(spec, EQUAL, fit)]
    if weight is not None and weight not in (0.0, 0.5, 1.0):
        found.append(make_hybrid(spec, f"Hybrid, weight {weight:g} chosen", fit, local_weight=weight))
    return found


def list_ablations(spec: Method, fit: str) -> list[Method]:
    """The hybrid with equal weights, and with one part changed at a time."""
    changes = {
        "harmonic mean": {"fusion": "harmonic"},
        "windows without the whole image": {"full_image": False},
        "image score with the map": {"image_score": "with_map"},
    }
    return [
        make_hybrid(spec, EQUAL, fit),
        *(make_hybrid(spec, name, fit, **change) for name, change in changes.items()),
    ]


# ---------------------------------------------------------------- a weight from auxiliary data


def draw_held_out_data(profile: Profile) -> Profile:
    """The profile of a few demo pictures of the categories ``HELD_OUT``, drawn into the cache."""
    from vlmad_lib.demo import data as demo

    root = profile.path(profile.cache) / "auxiliary"
    demo.write(root, "auxiliary", train=0, good=4, per_defect=1, categories=HELD_OUT)
    return profile.model_copy(update={"dataset": "folder", "root": str(root), "categories": []})


def measure_weights(profile: Profile, auxiliary: Profile, spec: Method) -> pd.DataFrame:
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
        make_hybrid(spec, name, choose_fit(table), local_weight=weight).model_copy(update={"force_leak": True})
        for name, weight in named.items()
    ]
    found = run.run(auxiliary.model_copy(update=changes | {"methods": some})).metrics
    weights = found.method.str.removesuffix(" LEAKED").map(named)
    return found.assign(weight=weights)[["method", "weight", "group", "category", "pixel_auroc", "n_defective"]]


def choose_weight(weighed: pd.DataFrame) -> float:
    """The weight of the largest macro mean; of equal ones the nearest to one half. 0.5 where nothing is known."""
    means = weighed.groupby("weight").pixel_auroc.mean().dropna()
    if means.empty:
        return 0.5
    first = means[means >= means.max() - 1e-9].index
    return float(min(first, key=lambda weight: abs(weight - 0.5)))


# ---------------------------------------------------------------- where it gains


def measure_inside_images(results: Results, without: list[str]) -> pd.DataFrame:
    """Pixel AUROC inside each masked image by method: image, category, group, method and ``auroc``."""
    rows = results.scores[(results.scores["mask"] != "") & (results.scores.map_file != "")]
    rows = rows[~rows.method.isin(without)]
    rows = rows.assign(auroc=variants.measure_inside_images(results, rows)) if len(rows) else rows.assign(auroc=[])
    return rows[["image", "category", "group", "method", "auroc"]].dropna(subset="auroc")


def compare_halves(table: pd.DataFrame, base: str) -> pd.DataFrame:
    """Gain in pixel AUROC inside an image over ``base``, where that localises worse and where better, by method.

    Each half of a category's images says in turn whether the category is among the worse half for ``base``, the other
    half what is gained there: one half for both would find gains where ``base`` merely had bad luck. Means over *n*
    categories with their 95 % interval; a category near the middle may be in both rows.
    """
    wide = table.pivot(index=["category", "image"], columns="method", values="auroc").dropna().sort_index()
    half = wide.groupby("category").cumcount() % 2
    rows = []
    for method in [name for name in dict.fromkeys(table.method) if name != base]:
        gain, halves = wide[method] - wide[base], []
        for judged in (0, 1):
            level = wide[base][half != judged].groupby("category").mean()
            gained = gain[half == judged].groupby("category").mean().reindex(level.index).dropna()
            worse = level[gained.index] < level.median()
            halves.append(pd.DataFrame({"gain": gained, "worse": worse}))
        both = pd.concat(halves)
        sides = {f"{base} worse": both[both.worse], f"{base} better": both[~both.worse], "all": both}
        for name, gains in sides.items():
            gained = gains.groupby(level="category")[["gain"]].mean()
            rows.append(comparison.pair_differences(gained, gained * 0, "categories", method=method, where=name))
    columns = ["method", "where", "difference", "low", "high", "n"]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)


# ---------------------------------------------------------------- sentences


def describe_gains(metrics: pd.DataFrame, base: str, hand_written: str, weighed: pd.DataFrame | None = None) -> str:
    """Whether the hybrids help over AnomalyCLIP and over WinCLIP's words, as a Markdown list: one line a hybrid."""
    lines = []
    for name in [name for name in dict.fromkeys(metrics.method) if name not in (base, hand_written)]:
        gains = comparison.compare_with_others(metrics, name)
        gains = gains[(gains.over == "categories") & (gains.group == "all") & (gains.measure == "pixel_auroc")]
        gains = gains[gains.against.isin([base, hand_written])].dropna(subset="difference")
        sides = [f"less {row.against} {comparison.describe_difference(row)}" for row in gains.itertuples()]
        if sides:
            lines.append(f"- **{name}**, pixel AUROC: {'; '.join(sides)}.")
    if not lines:
        no_mask = "- No image has a mask (n = 0): no map can be judged."
        return tables.NO_AUROC if metrics.image_auroc.isna().all() else no_mask
    if weighed is not None and weighed.pixel_auroc.notna().any():
        lines.append(_describe_weight(weighed))
    return "\n".join(lines)


# What a fusion weight at an end of its range means.
_ENDS = {0.0: ", windows alone", 1.0: ", which leaves the windows out"}


def _describe_weight(weighed: pd.DataFrame) -> str:
    means, chosen = weighed.groupby("weight").pixel_auroc.mean(), choose_weight(weighed)
    wide = weighed.pivot(index="category", columns="weight", values="pixel_auroc")
    gain = comparison.pair_differences(wide[[chosen]], wide[[0.5]].set_axis([chosen], axis=1), "categories").iloc[0]
    beside = "equal weights" if chosen == 0.5 else f"against equal weights there {comparison.describe_difference(gain)}"
    return (
        f"- On auxiliary data (n = {tables.format_categories(weighed.category.nunique())}) the weight of the V-V map "
        f"moves pixel AUROC from {means.min():.3f} to {means.max():.3f}; the best is "
        f"{chosen:g}{_ENDS.get(chosen, '')}: "
        f"{beside}. Target images had no part in it."
    )
