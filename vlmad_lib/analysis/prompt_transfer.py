"""Prompts trained on some data and tested on others, as a matrix that never holds a leaked figure (notebook 13).

A *source* is a way to have AnomalyCLIP's prompts: hand-written, or learned and read from a file. A *target* is a
profile that tests them. Where a file's prompts were trained on data of the target the cell is refused: it is never run.
``python -m vlmad_lib transfer`` trains the prompts the demo ships for this.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations, product
from pathlib import Path

import numpy as np
import pandas as pd

from vlmad_lib import commands, config, methods, tables, within
from vlmad_lib.analysis import comparison, prompt_variants, variants
from vlmad_lib.config import Method, Profile
from vlmad_lib.data import datasets
from vlmad_lib.evaluation import statistics
from vlmad_lib.methods.prompt_learner import DEMO
from vlmad_lib.pipeline import run

MEASURES = tables.MAIN
HAND = "hand-written"
TRAINED = {
    "texture": ["brick_wall", "mosaic", "roof_shingles", "wood_plank"],
    "rigid": ["battery", "dice", "padlock", "spoon"],
    "flexible": ["bandage", "coil_spring", "glove", "ribbon"],
}
"""Auxiliary demo categories that prompts are trained on, by group."""
SEEDS, EPOCHS = (111, 112), 15
UNSEEN = {"texture": "roof_shingles", "rigid": "padlock", "flexible": "glove"}
"""Auxiliary categories that the demo's backbone was not trained on."""
DRAWN = {"train": 0, "good": 8, "per_defect": 3}  # images of each of these


@dataclass(frozen=True)
class Source:
    """A way to have prompts: what tables call it, the method that has them, its seed, and its group in the demo."""

    name: str
    spec: Method
    seed: int = 0
    group: str = ""


@dataclass(frozen=True)
class Target:
    """Data to test on: a profile and, where they are not its whole index, the index rows."""

    name: str
    profile: Profile
    table: pd.DataFrame | None = None


# ---------------------------------------------------------------- sources and targets


def find_trained(profile: Profile) -> Method | None:
    """A profile's first AnomalyCLIP with learned prompts; none where it has none."""
    candidates = [spec for spec in profile.methods if spec.method == "anomalyclip"]
    return next((spec for spec in candidates if spec.settings.get("prompts", "learned") != "object"), None)


def list_sources(tested: Sequence[Profile], checkpoints: Sequence[str] = ()) -> list[Source]:
    """Hand-written prompts, those of each profile and of each file; for the demo those trained on one group each.

    All on the backbone of the first profile's AnomalyCLIP. Empty where it has none.
    """
    spec = find_trained(tested[0])
    if spec is None:
        return []
    hand = spec.model_copy(update={"settings": spec.settings | {"prompts": "object"}} | prompt_variants.UNLEARNED)
    sources = [Source(HAND, hand)]
    for profile in tested:
        own = find_trained(profile)
        if own is not None:
            given = {"checkpoint": _place(profile, own), "trained_on": own.trained_on, "force_leak": False}
            sources.append(Source(_name_training(own, profile), spec.model_copy(update=given)))
    for path in checkpoints:
        own = spec.model_copy(update={"checkpoint": path, "trained_on": "", "force_leak": False})
        sources.append(Source(_name_training(own, tested[0]), own))
    if tested[0].dataset == "demo" and spec.backbone == "demo" and spec.weights == "demo":
        for group, seed in product(TRAINED, SEEDS):
            given = {"checkpoint": str(shipped_prompts(group, seed)), "trained_on": "", "force_leak": False}
            sources.append(Source(group, spec.model_copy(update=given), seed, group))
    different = {(source.spec.checkpoint, source.name): source for source in sources}
    return list(different.values())


def _place(profile: Profile, spec: Method) -> str:
    return spec.checkpoint if spec.checkpoint in ("", "demo") else str(profile.path(spec.checkpoint))


def _name_training(spec: Method, profile: Profile) -> str:
    """What prompts of a file were trained on, and the file, for a row of the matrix."""
    prompts = methods.choose(spec.model_copy(update={"force_leak": True}), profile).prompts
    return f"{prompts.trained_on} ({prompts.path.stem})"


def shipped_prompts(group: str, seed: int) -> Path:
    """The demo's prompts trained on one group of auxiliary categories."""
    return DEMO.with_name(f"{DEMO.stem}-{group}-{seed}.pth")


def list_targets(tested: Sequence[Profile], most: int = 0, pixels: int = 0) -> list[Target]:
    """Each profile as a target; the demo with ``most`` categories of each group (0: all), then ``list_unseen``.

    ``pixels``: the evaluation size of the demo's, its own for 0.
    """
    zero = [profile.model_copy(update={"imports": [], "shots": [0], "seeds": [0]}) for profile in tested]
    if tested[0].dataset != "demo" or tested[0].subset != "target":
        return [Target(datasets.describe_identity(profile), profile) for profile in zero]
    size = within("pixels", pixels or zero[0].evaluation_size, 16)
    table, _ = run.build_run_index(zero[0])
    first = zero[0].model_copy(update={"categories": variants.choose_categories(table, most), "evaluation_size": size})
    others = [Target(datasets.describe_identity(profile), profile) for profile in zero[1:]]
    return [Target("", first), *others, *list_unseen(first)]


def list_unseen(profile: Profile) -> list[Target]:
    """The auxiliary demo categories that the backbone has not seen, drawn on first use, a target each group."""
    from vlmad_lib.demo import data as demo

    names = list(UNSEEN.values())
    root = demo.write(profile.path(profile.cache) / "demo_unseen", "auxiliary", categories=names, **DRAWN)
    own = {"dataset": "folder", "root": str(root), "categories": [], "class_names": {}, "groups": {}}
    small = profile.model_copy(update=own)
    table, _ = datasets.build_index(small)
    targets = []
    for group, name in UNSEEN.items():
        rows = table[table.category == name].reset_index(drop=True)
        rows = rows.assign(dataset="demo auxiliary", group=group, class_name=demo.CATEGORIES[name].class_name)
        there = {"subset": "auxiliary", "categories": [name]}
        targets.append(Target("auxiliary", profile.model_copy(update=there), rows))
    return targets


# ---------------------------------------------------------------- the matrix


def is_leaky(source: Source, target: Target) -> bool:
    """Whether prompts were trained on data of a target; InputError for a file that does not say on what."""
    forced = source.spec.model_copy(update={"force_leak": True}) if source.spec.checkpoint else source.spec
    prompts = methods.choose(forced, target.profile).prompts
    return prompts is not None and prompts.leaked


def measure_transfer(sources: Sequence[Source], targets: Sequence[Target]) -> pd.DataFrame:
    """The metrics of every source on every target, zero-shot, a row a category, with ``source``, ``seed``, ``target``.

    ``own`` says whether the prompts were trained on the category's group. Cells that leak are not run: their rows have
    ``refused`` True and no values.
    """
    parts = []
    for target in targets:
        table = run.build_run_index(target.profile)[0] if target.table is None else target.table
        fair = {f"{source.name}, {source.seed}": source for source in sources if not is_leaky(source, target)}
        if fair:
            specs = [source.spec.model_copy(update={"name": name}) for name, source in fair.items()]
            changed = target.profile.model_copy(update={"methods": specs})
            metrics = run.run(changed, table=target.table).metrics
            used = [fair[name] for name in metrics.method]
            facts = {"source": [source.name for source in used], "seed": [source.seed for source in used]}
            own = [source.group == group for source, group in zip(used, metrics.group, strict=True)]
            columns = [_name_column(target, group) for group in metrics.group]
            parts.append(metrics.assign(**facts, own=own, target=columns, refused=False))
        cells = table.drop_duplicates("category")[["dataset", "category", "group"]]
        for source in (source for source in sources if source not in fair.values()):
            facts = {"source": source.name, "seed": source.seed, "own": cells.group == source.group, "refused": True}
            columns = [_name_column(target, group) for group in cells.group]
            parts.append(cells.assign(**facts, target=columns, **dict.fromkeys(MEASURES, np.nan)))
    measured = pd.concat(parts, ignore_index=True)
    return measured[["source", "seed", "own", "target", "dataset", "group", "category", "refused", *MEASURES]]


def _name_column(target: Target, group: str) -> str:
    return ", ".join(filter(None, (group, target.name)))


def pivot_transfer(measured: pd.DataFrame, value: str) -> pd.DataFrame:
    """Macro means by source and target over *n* categories, each the mean of its seeds; ``value`` nan where refused."""
    cells = measured.groupby(["source", "target", "category"], sort=False)[[value, "refused"]].mean().reset_index()
    grouped = cells.groupby(["source", "target"], sort=False)
    means = grouped.agg(**{value: (value, "mean"), "n": ("category", "nunique"), "refused": ("refused", "max")})
    means = means.reset_index().assign(refused=lambda rows: rows.refused > 0)
    means.loc[means.refused, value] = np.nan  # a mean without the leaked categories would be of other data
    return means


# ---------------------------------------------------------------- differences


def pair_transfer(measured: pd.DataFrame, comparisons: int = 1) -> pd.DataFrame:
    """Sources set against each other on the same categories, paired, with intervals over *n* categories.

    Each learned source less the hand-written prompts; every two groups' prompts; and a group's prompts on their own
    group less the other groups' there. Seeds are averaged first, refused cells left out. Columns: compared, tested (a
    dataset) and ``comparison.COLUMNS``; the intervals hold at 95 % for ``comparisons`` together.
    """
    fair = measured[~measured.refused]
    groups = [name for name in TRAINED if name in set(fair.source)]
    learned = [name for name in dict.fromkeys(fair.source) if name != HAND]
    names = [*((name, HAND) for name in learned), *combinations(groups, 2)]
    frames = []
    for dataset, rows in fair.groupby("dataset", sort=False):
        cells = rows.groupby(["source", "category"], sort=False)[MEASURES].mean()
        tested = set(cells.index.unique("source"))
        pairs = {
            f"{first} minus {second}": (cells.loc[first], cells.loc[second])
            for first, second in names
            if {first, second} <= tested
        }
        trained = rows[rows.source.isin(groups)]
        sides = [trained[trained.own == own].groupby("category")[MEASURES].mean() for own in (True, False)]
        if all(map(len, sides)):
            pairs["own group minus other groups"] = sides
        for name, (after, before) in pairs.items():
            facts = {"compared": name, "tested": dataset}
            frames.append(comparison.pair_differences(after, before, "categories", comparisons, **facts))
    if not frames:
        return pd.DataFrame(columns=["compared", "tested", *comparison.COLUMNS])
    differences = pd.concat(frames, ignore_index=True)
    return differences[differences.n > 0].reset_index(drop=True)


@dataclass(frozen=True)
class Permuted:
    """A permutation test of the training sets: own group minus other groups, its p, and what it rests on."""

    difference: float
    p: float
    ways: int
    categories: int
    trainings: int

    @property
    def decides(self) -> bool:
        """Whether p is at most 5 %, which fewer than twenty ways never reach."""
        return self.p <= 1 - statistics.LEVEL + 1e-12


def permute_groups(measured: pd.DataFrame) -> Permuted | None:
    """Whether prompts differ on their own group from other groups' by more than which training was called what.

    Categories share trainings and a training its luck, so the trainings are permuted: if what they were trained on does
    not matter, each seed's could as well bear each other's groups. ``difference`` is the mean over the categories that
    all trainings tested, on the first data set, of the mean of ``MEASURES``; p, two-sided, is the share of all ``ways``
    in which it is as far from zero. None without trainings of two groups.
    """
    fair = measured[~measured.refused & measured.source.isin(TRAINED)]
    fair = fair[fair.dataset == measured.dataset.iloc[0]]
    values = fair.assign(value=fair[MEASURES].mean(axis=1))
    cells = values.pivot_table(index=["category", "group"], columns=["seed", "source"], values="value").dropna()
    names = list(cells.columns.unique("source"))
    cells = cells[cells.index.get_level_values("group").isin(names)]
    seeds = [seed for seed in cells.columns.unique("seed") if set(cells[seed]) == set(names)]
    if len(names) < 2 or not seeds or cells.empty:
        return None
    own, orders = [names.index(group) for _, group in cells.index], list(permutations(range(len(names))))
    totals = np.zeros(1)
    for seed in seeds:
        table = cells[seed][names].to_numpy()
        less_others = (table - table.mean(1, keepdims=True)) * len(names) / (len(names) - 1)
        each = [less_others[np.arange(len(own)), [order[group] for group in own]].mean() for order in orders]
        totals = np.add.outer(totals, np.array(each) / len(seeds)).ravel()
    p = float(np.mean(np.abs(totals) >= abs(totals[0]) - 1e-12))  # the first order is as they were
    return Permuted(float(totals[0]), p, len(totals), len(cells), len(names) * len(seeds))


def compare_seeds(measured: pd.DataFrame) -> pd.DataFrame:
    """How far trainings that differ in their seed alone lie apart, beside those that differ in their group.

    Largest less smallest macro mean over the *n* categories that all groups tested: of a group's seeds (mean and
    largest over the groups), and of the groups, each the mean of its seeds.
    """
    rows = []
    fair = measured[~measured.refused & measured.source.isin(TRAINED)]
    for dataset, cells in fair.groupby("dataset", sort=False):
        groups = cells.source.nunique()
        shared = cells.groupby("category").filter(lambda rows, groups=groups: rows.source.nunique() == groups)
        means = shared.groupby(["source", "seed"])[MEASURES].mean()
        if shared.empty or groups < 2 or means.index.unique("seed").size < 2:
            continue
        seeds = means.groupby("source").agg(np.ptp)
        between = means.groupby("source").mean().agg(np.ptp)
        for measure in MEASURES:
            values = (seeds[measure].mean(), seeds[measure].max(), between[measure])
            rows.append((dataset, measure, *values, shared.category.nunique()))
    names = ["between seeds, mean", "between seeds, largest", "between groups"]
    return pd.DataFrame(rows, columns=["tested", "measure", *names, "n"])


# ---------------------------------------------------------------- the demo's prompts


def main(arguments: list[str] | None = None) -> int:
    """Train the prompts the demo ships, each with its card and loss curve; 0 done, 2 wrong input."""
    return commands.run_command(_train_shipped)


def _train_shipped() -> int:
    from vlmad_lib.methods import objectives, training

    for group, categories in TRAINED.items():
        profile = config.load_profile("demo_auxiliary", {"categories": categories})
        for seed in SEEDS:
            plan = objectives.Plan(epochs=EPOCHS, seed=seed)
            training.train(
                objectives.PROMPTS, profile, shipped_prompts(group, seed), plan, progress=sys.stderr.isatty()
            )
    return 0
