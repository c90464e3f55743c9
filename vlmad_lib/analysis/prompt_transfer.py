"""Prompts trained on some data and tested on others, as a matrix that never holds a leaked figure (notebook 13).

A *source* is a way to have AnomalyCLIP's prompts: hand-written, or learned and read from a file. A *target* is a
profile that tests them. Where a file's prompts were trained on data of the target the cell is refused: it is never run.
``python -m vlmad_lib transfer`` trains the prompts the demo ships for this.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
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
FEW = 3  # categories below which a difference is not counted in a sentence
COLUMNS = ["compared", "tested", "measure", "difference", "low", "high", "n"]


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
    known = [spec for spec in profile.methods if spec.method == "anomalyclip"]
    return next((spec for spec in known if spec.settings.get("prompts", "learned") != "object"), None)


def list_sources(tested: Sequence[Profile], checkpoints: Sequence[str] = ()) -> list[Source]:
    """Hand-written prompts, those of each profile and of each file; for the demo those trained on one group each.

    All on the backbone of the first profile's AnomalyCLIP. Empty where it has none.
    """
    spec = find_trained(tested[0])
    if spec is None:
        return []
    hand = spec.model_copy(update={"settings": spec.settings | {"prompts": "object"}} | prompt_variants.UNLEARNED)
    found = [Source(HAND, hand)]
    for profile in tested:
        one = find_trained(profile)
        if one is not None:
            given = {"checkpoint": _place(profile, one), "trained_on": one.trained_on, "force_leak": False}
            found.append(Source(_said(one, profile), spec.model_copy(update=given)))
    for path in checkpoints:
        one = spec.model_copy(update={"checkpoint": path, "trained_on": "", "force_leak": False})
        found.append(Source(_said(one, tested[0]), one))
    if tested[0].dataset == "demo" and spec.backbone == "demo" and spec.weights == "demo":
        for group, seed in ((group, seed) for group in TRAINED for seed in SEEDS):
            given = {"checkpoint": str(shipped_prompts(group, seed)), "trained_on": "", "force_leak": False}
            found.append(Source(group, spec.model_copy(update=given), seed, group))
    different = {(one.spec.checkpoint, one.name): one for one in found}
    return list(different.values())


def _place(profile: Profile, spec: Method) -> str:
    return spec.checkpoint if spec.checkpoint in ("", "demo") else str(profile.path(spec.checkpoint))


def _said(spec: Method, profile: Profile) -> str:
    """What prompts of a file were trained on, and the file, for a row of the matrix."""
    known = methods.choose(spec.model_copy(update={"force_leak": True}), profile).prompts
    return f"{known.trained_on} ({known.path.stem})"


def shipped_prompts(group: str, seed: int) -> Path:
    """The demo's prompts trained on one group of auxiliary categories."""
    return DEMO.with_name(f"{DEMO.stem}-{group}-{seed}.pth")


def list_targets(tested: Sequence[Profile], most: int = 0, pixels: int = 0) -> list[Target]:
    """Each profile as a target; for the demo its first ``most`` categories of each group (0: all), then ``unseen``.

    ``pixels``: the evaluation size of the demo's, its own for 0.
    """
    zero = [one.model_copy(update={"imports": [], "shots": [0], "seeds": [0]}) for one in tested]
    if tested[0].dataset != "demo" or tested[0].subset != "target":
        return [Target(datasets.describe_identity(one), one) for one in zero]
    size = within("pixels", pixels or zero[0].evaluation_size, 16)
    table, _ = run.build_run_index(zero[0])
    first = zero[0].model_copy(update={"categories": variants.choose_categories(table, most), "evaluation_size": size})
    return [Target("", first), *(Target(datasets.describe_identity(one), one) for one in zero[1:]), *unseen(first)]


def unseen(profile: Profile) -> list[Target]:
    """The auxiliary demo categories that the backbone has not seen, drawn on first use, a target each group."""
    from vlmad_lib.demo import data as demo

    names = list(UNSEEN.values())
    root = demo.write(profile.path(profile.cache) / "demo_unseen", "auxiliary", categories=names, **DRAWN)
    own = {"dataset": "folder", "root": str(root), "categories": [], "class_names": {}, "groups": {}}
    small = profile.model_copy(update=own)
    table, _ = datasets.build_index(small)
    found = []
    for group, name in UNSEEN.items():
        rows = table[table.category == name].reset_index(drop=True)
        rows = rows.assign(dataset="demo auxiliary", group=group, class_name=demo.CATEGORIES[name].class_name)
        there = {"subset": "auxiliary", "categories": [name]}
        found.append(Target("auxiliary", profile.model_copy(update=there), rows))
    return found


# ---------------------------------------------------------------- the matrix


def is_leaky(source: Source, target: Target) -> bool:
    """Whether prompts were trained on data of a target; InputError for a file that does not say on what."""
    forced = source.spec.model_copy(update={"force_leak": True}) if source.spec.checkpoint else source.spec
    prompts = methods.choose(forced, target.profile).prompts
    return prompts is not None and prompts.leaked


def measure_transfer(known: Sequence[Source], tested: Sequence[Target]) -> pd.DataFrame:
    """The metrics of every source on every target, zero-shot, a row a category, with ``source``, ``seed``, ``target``.

    Cells that leak are not run: their rows have ``refused`` True and no values.
    """
    parts = []
    for target in tested:
        table = run.build_run_index(target.profile)[0] if target.table is None else target.table
        fair = {f"{one.name}, {one.seed}": one for one in known if not is_leaky(one, target)}
        if fair:
            specs = [one.spec.model_copy(update={"name": name}) for name, one in fair.items()]
            changed = target.profile.model_copy(update={"methods": specs})
            found = run.run(changed, table=target.table).metrics
            facts = {
                "source": found.method.map(lambda name, fair=fair: fair[name].name),
                "seed": found.method.map(lambda name, fair=fair: fair[name].seed),
                "own": found.method.map(lambda name, fair=fair: fair[name].group) == found.group,
            }
            parts.append(found.assign(**facts, target=[_column(target, one) for one in found.group], refused=False))
        cells = table.drop_duplicates("category")[["dataset", "category", "group"]]
        for one in (one for one in known if one not in fair.values()):
            facts = {"source": one.name, "seed": one.seed, "own": cells.group == one.group, "refused": True}
            names = [_column(target, group) for group in cells.group]
            parts.append(cells.assign(**facts, target=names, **dict.fromkeys(MEASURES, np.nan)))
    found = pd.concat(parts, ignore_index=True)
    return found[["source", "seed", "own", "target", "dataset", "group", "category", "refused", *MEASURES]]


def _column(target: Target, group: str) -> str:
    return ", ".join(filter(None, (group, target.name)))


def pivot_transfer(found: pd.DataFrame, value: str) -> pd.DataFrame:
    """Macro means by source and target over *n* categories, each the mean of its seeds; ``value`` nan where refused."""
    cells = found.groupby(["source", "target", "category"], sort=False)[[value, "refused"]].mean().reset_index()
    grouped = cells.groupby(["source", "target"], sort=False)
    means = grouped.agg(**{value: (value, "mean"), "n": ("category", "nunique"), "refused": ("refused", "max")})
    means = means.reset_index().assign(refused=lambda rows: rows.refused > 0)
    means.loc[means.refused, value] = np.nan  # a mean without the leaked categories would be of other data
    return means


# ---------------------------------------------------------------- differences


def pair_transfer(found: pd.DataFrame, level: float = statistics.LEVEL) -> pd.DataFrame:
    """Sources set against each other on the same categories, paired, with intervals over *n* categories.

    Each learned source less the hand-written prompts; a group's prompts on their own group less the other groups'
    there; and every two groups. Seeds are averaged first, refused cells left out. ``tested`` is a dataset.
    """
    fair = found[~found.refused]
    groups = [name for name in TRAINED if name in set(fair.source)]
    learned = [name for name in dict.fromkeys(fair.source) if name != HAND]
    rows = []
    for dataset, part in fair.groupby("dataset", sort=False):
        cells = part.groupby(["source", "category"], sort=False)[MEASURES].mean()
        pairs = [(f"{name} less {HAND}", name, HAND) for name in learned]
        pairs += [(f"{one} less {other}", one, other) for one, other in combinations(groups, 2)]
        known = set(cells.index.unique("source"))
        for name, one, other in pairs:
            if {one, other} <= known:
                rows += _rows(name, dataset, cells.loc[one] - cells.loc[other], level)
        trained = part[part.source.isin(groups)]
        same, cross = (trained[trained.own == side].groupby("category")[MEASURES].mean() for side in (True, False))
        if len(same) and len(cross):
            rows += _rows("own group less other groups", dataset, same - cross, level)
    return pd.DataFrame(rows, columns=COLUMNS)


def _rows(name: str, dataset: str, apart: pd.DataFrame, level: float) -> list[tuple]:
    values = {measure: apart[measure].dropna() for measure in MEASURES}
    known = {measure: one for measure, one in values.items() if len(one)}
    return [(name, dataset, measure, *statistics.difference(one, level), len(one)) for measure, one in known.items()]


@dataclass(frozen=True)
class Permuted:
    """A permutation test of the training sets: own group less other groups, its p, and what it rests on."""

    difference: float
    p: float
    ways: int
    categories: int
    trainings: int


def permute_groups(found: pd.DataFrame) -> Permuted | None:
    """Whether prompts differ on their own group from other groups' by more than which training was called what.

    Categories share trainings and a training its luck, so the trainings are permuted: if what they were trained on does
    not matter, each seed's could as well bear each other's groups. ``difference`` is the mean over the categories that
    all trainings tested, on the first data set, of the mean of ``MEASURES``; p, two-sided, is the share of all ``ways``
    in which it is as far from zero. None without trainings of two groups.
    """
    fair = found[~found.refused & found.source.isin(TRAINED) & (found.dataset == found.dataset.iloc[0])]
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
        less = (
            (table - table.mean(1, keepdims=True)) * len(names) / (len(names) - 1)
        )  # each less the mean of the others
        each = [less[np.arange(len(own)), [order[group] for group in own]].mean() for order in orders]
        totals = np.add.outer(totals, np.array(each) / len(seeds)).ravel()
    p = float(np.mean(np.abs(totals) >= abs(totals[0]) - 1e-12))  # the first order is as they were
    return Permuted(float(totals[0]), p, len(totals), len(cells), len(names) * len(seeds))


def compare_seeds(found: pd.DataFrame) -> pd.DataFrame:
    """How far trainings that differ in their seed alone lie apart, beside those that differ in their group.

    Largest less smallest macro mean over the *n* categories that all groups tested: of a group's seeds (mean and
    largest over the groups), and of the groups, each the mean of its seeds.
    """
    rows = []
    fair = found[~found.refused & found.source.isin(TRAINED)]
    for dataset, part in fair.groupby("dataset", sort=False):
        groups = part.source.nunique()
        shared = part.groupby("category").filter(lambda rows, groups=groups: rows.source.nunique() == groups)
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


# ---------------------------------------------------------------- sentences


def describe(measured: pd.DataFrame) -> str:
    """Whether it matters what prompts were trained on, as a Markdown list, the answer first."""
    differences = pair_transfer(measured).dropna(subset="difference")
    differences = differences[differences.n >= FEW]
    cells = measured.drop_duplicates(["source", "target"])
    refused = int(measured[measured.refused].drop_duplicates(["source", "target"]).source.size)
    lines = [_answer(measured), _count_decided(measured, differences)] if len(differences) else []
    lines.append(
        f"Of {tables.format_count(len(cells), 'cell', 'cells')} of the matrix {refused} "
        f"{'is' if refused == 1 else 'are'} refused: the prompts were trained on those very data."
    )
    return "\n".join(f"- {line}" for line in lines)


def _answer(measured: pd.DataFrame) -> str:
    """Whether the training data matter, by the permutation of the training sets, or why that cannot be decided."""
    question, test = "**Does it matter?**", permute_groups(measured)
    if test is None:
        return f"{question} Undecided: that takes prompts trained on several groups, each with several seeds."
    enough = 1 / test.ways <= 1 - statistics.LEVEL
    decided = enough and test.p <= 1 - statistics.LEVEL + 1e-12
    better = "better" if test.difference > 0 else "worse"
    verdict = f"Yes: prompts are {better} on what they were trained on" if decided else "Not decided"
    few = "" if enough else ", too few to decide anything"
    return (
        f"{question} {verdict if enough else 'Undecided'}. Own group less other groups {test.difference:+.3f} (n = "
        f"{tables.format_categories(test.categories)}, {test.trainings} trainings): of the {test.ways} ways to permute "
        f"the training sets within their seeds {test.p:.0%} give as much, p = {test.p:.3f}{few}."
    )


def _count_decided(measured: pd.DataFrame, differences: pd.DataFrame) -> str:
    """How many differences between these prompt files are told apart at 95 % all together, and the largest."""
    together = pair_transfer(measured, statistics.together(len(differences))).loc[differences.index]
    decided = together[(together.low > 0) | (together.high < 0)]
    pool = decided if len(decided) else together
    largest = pool.loc[pool.difference.abs().idxmax()]
    return (
        f"Of {len(together)} differences between these prompts {len(decided)} are told apart (95 % all together); the "
        f"largest is {largest.compared}, tested on {largest.tested}, {tables.TITLES[largest.measure]} "
        f"{comparison.format_difference(largest.difference, largest.low, largest.high)}, n = "
        f"{tables.format_categories(largest.n)}."
    )


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
