"""Prompts on other data: the matrix by hand, cells that leak, and what the demo ships."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, make_mvtec, small_profile
from scipy.stats import binomtest

from vlmad_lib import InputError, config
from vlmad_lib.analysis import prompt_transfer
from vlmad_lib.analysis.prompt_transfer import MEASURES
from vlmad_lib.data import datasets
from vlmad_lib.evaluation import statistics
from vlmad_lib.methods import checkpoints, prompt_learner
from vlmad_lib.methods.prompt_learner import PromptLearner
from vlmad_lib.pipeline import run
from vlmad_lib.reporting import figures

GROUPS = {"a": "texture", "b": "texture", "c": "rigid"}


def table(values: dict[tuple[str, int], list[float]], refused: tuple = ()) -> pd.DataFrame:
    """Metrics from {(source, seed): values of categories a, b, c}; (source, category) pairs are refused."""
    rows = []
    for (source, seed), found in values.items():
        for (category, group), value in zip(GROUPS.items(), found, strict=True):
            out = (source, category) in refused
            facts = {"source": source, "seed": seed, "own": source == group, "target": group, "dataset": "data"}
            measured = dict.fromkeys(MEASURES, np.nan if out else value)
            rows.append(facts | {"group": group, "category": category, "refused": out} | measured)
    return pd.DataFrame(rows)


VALUES = {
    (prompt_transfer.HAND, 0): [0.5, 0.6, 0.7],
    ("texture", 1): [0.8, 0.9, 0.6],
    ("texture", 2): [0.9, 0.9, 0.8],
    ("rigid", 1): [0.6, 0.7, 0.8],
    ("rigid", 2): [0.6, 0.7, 1.0],
}
FOUND = table(VALUES)


def row(found: pd.DataFrame, name: str) -> pd.Series:
    return found[(found.compared == name) & (found.measure == "image_auroc")].iloc[0]


def test_the_matrix_is_macro_means_with_seeds_averaged():
    cells = prompt_transfer.pivot_transfer(FOUND, "image_auroc").set_index(["source", "target"])
    assert cells.loc[("texture", "texture"), "image_auroc"] == pytest.approx((0.85 + 0.9) / 2)
    assert cells.loc[("rigid", "rigid")].tolist() == pytest.approx([0.9, 1, 0])


def test_a_column_with_a_refused_category_has_no_figure():
    found = table(VALUES, refused=(("texture", "a"),))
    cells = prompt_transfer.pivot_transfer(found, "image_auroc").set_index(["source", "target"])
    assert np.isnan(cells.loc[("texture", "texture"), "image_auroc"]) and cells.loc[("texture", "texture"), "refused"]
    assert not cells.loc[("texture", "rigid"), "refused"]
    figure = figures.lent(cells.reset_index(), {"image_auroc": "image AUROC"}, ("from", "to", "share"))
    assert "×" in [text.get_text() for text in figure.axes[0].texts]
    figures.plt.close(figure)
    # nor does any difference count it
    assert row(prompt_transfer.pair_transfer(found), f"texture minus {prompt_transfer.HAND}").n == 2


def test_differences_are_paired_over_categories():
    found = prompt_transfer.pair_transfer(FOUND)
    own = row(found, "own group minus other groups")
    apart = [0.85 - 0.6, 0.9 - 0.7, 0.9 - 0.7]
    assert own[["difference", "low", "high"]].tolist() == pytest.approx(statistics.paired(apart)) and own.n == 3
    less = row(found, "texture minus rigid")
    assert less.difference == pytest.approx(np.mean([0.25, 0.2, -0.2])) and less.over == "categories"
    assert row(found, f"rigid minus {prompt_transfer.HAND}").difference == pytest.approx(np.mean([0.1, 0.1, 0.2]))
    together = row(prompt_transfer.pair_transfer(FOUND, 10), "texture minus rigid")
    assert together.difference == less.difference and together.low < less.low
    alone = prompt_transfer.pair_transfer(FOUND[FOUND.source == "texture"])
    assert "own group minus other groups" not in set(alone.compared)


def test_a_matrix_of_one_source_has_no_differences():
    alone = FOUND[FOUND.source == prompt_transfer.HAND]
    assert prompt_transfer.pair_transfer(alone).empty and prompt_transfer.permute_groups(alone) is None


def test_groups_are_set_beside_seeds():
    found = prompt_transfer.compare_seeds(FOUND).set_index("measure").loc["image_auroc"]
    texture, rigid = (2.6 / 3 - 2.3 / 3), (2.3 / 3 - 2.1 / 3)
    expected = [np.mean([texture, rigid]), max(texture, rigid), (2.3 + 2.6) / 6 - (2.1 + 2.3) / 6]
    assert found[["between seeds, mean", "between seeds, largest", "between groups"]].tolist() == pytest.approx(
        expected
    )
    assert prompt_transfer.compare_seeds(FOUND[FOUND.seed < 2]).empty


def trained(stream: np.random.Generator, own: float = 0.0) -> pd.DataFrame:
    """Three groups' prompts of two seeds on twelve categories: a training is as lucky on all of them, or on a group."""
    groups, rows = ["texture", "rigid", "flexible"], []
    categories = stream.normal(0.7, 0.1, 12)
    for seed in (1, 2):
        begin = stream.normal(0, 0.05, 3)  # where the prompts of a seed start, the same for all groups
        for source in groups:
            luck = begin + stream.normal(0, 0.05) + stream.normal(0, 0.05, 3)
            for number, category in enumerate(categories):
                group = groups[number % 3]
                value = category + luck[number % 3] + stream.normal(0, 0.02) + own * (source == group)
                facts = {"source": source, "seed": seed, "own": source == group, "target": group, "dataset": "data"}
                facts |= {"group": group, "category": str(number), "refused": False}
                rows.append(facts | dict.fromkeys(MEASURES, value))
    return pd.DataFrame(rows)


def test_the_training_sets_are_permuted_by_hand():
    found = trained(np.random.default_rng(0))
    test = prompt_transfer.permute_groups(found)
    assert (test.ways, test.categories, test.trainings) == (36, 12, 6)
    averaged = found.groupby(["source", "category"])[list(MEASURES)].mean().reset_index()
    own = averaged.merge(found[["category", "group"]].drop_duplicates())
    side = own.source == own.group
    less = own[side].set_index("category").image_auroc - own[~side].groupby("category").image_auroc.mean()
    assert test.difference == pytest.approx(less.mean())
    assert (36 * test.p) == pytest.approx(round(36 * test.p)) and test.p >= 1 / 36
    assert prompt_transfer.permute_groups(found[found.source == "rigid"]) is None
    sure = prompt_transfer.permute_groups(trained(np.random.default_rng(0), own=0.4))
    assert sure.p == pytest.approx(1 / 36) and sure.decides and sure.difference > 0
    few = prompt_transfer.permute_groups(FOUND)
    assert few.ways == 4 and not few.decides  # four ways can never reach 5 %


@pytest.mark.parametrize("draws", [120, pytest.param(1500, marks=pytest.mark.slow)])
def test_without_a_difference_the_answer_is_seldom_yes(draws):
    stream = np.random.default_rng(draws)
    fired = sum(prompt_transfer.permute_groups(trained(stream)).p <= 0.05 for _ in range(draws))
    assert binomtest(fired, draws, 0.05, alternative="greater").pvalue > 0.01


# ---------------------------------------------------------------- leakage


@pytest.fixture
def prompts(tmp_path, tiny_backbone):
    """A file of prompts trained on some categories of a folder."""

    def write(*categories: str):
        path = tmp_path / f"prompts_{len(categories)}.pth"
        prompt_learner.write(PromptLearner(tiny_backbone), path, "folder data", str(tmp_path / "data"), categories)
        return str(path)

    return write


def test_prompts_of_other_categories_of_a_data_set_do_not_leak(prompts, tmp_path):
    def leaked(path, categories):
        method = TINY | {"method": "anomalyclip", "checkpoint": path}
        chosen = small_profile(tmp_path / "data", tmp_path / "cache", methods=[method], categories=categories)
        try:
            run.list_variants(chosen)
        except InputError as error:
            assert "trained on folder data, the data they would be tested on" in str(error)
            return True
        return False

    make_mvtec(tmp_path / "data")
    one, all_of_them = prompts("plate"), prompts()
    assert leaked(one, ["plate"]) and leaked(one, []) and leaked(one, ["cloth", "plate"])
    assert not leaked(one, ["cloth"])
    assert leaked(all_of_them, ["cloth"])  # a file that does not say which categories is taken to know all


def test_the_matrix_refuses_what_leaks_and_runs_the_rest(prompts, tmp_path):
    make_mvtec(tmp_path / "data")
    make_mvtec(tmp_path / "other", ("bolt", "felt"))
    method = TINY | {"method": "anomalyclip", "checkpoint": prompts("plate", "cloth")}
    first = small_profile(tmp_path / "other", tmp_path / "cache", methods=[method])
    second = small_profile(tmp_path / "data", tmp_path / "cache", methods=[])
    known = prompt_transfer.list_sources([first, second])
    assert [one.name for one in known] == [prompt_transfer.HAND, "folder data (prompts_2)"]
    found = prompt_transfer.measure_transfer(known, prompt_transfer.list_targets([first, second]))
    refused = found.set_index(["source", "category"]).refused
    assert refused.to_dict() == {
        (one.name, name): one.name != prompt_transfer.HAND and name in ("plate", "cloth")
        for one in known
        for name in ("bolt", "felt", "plate", "cloth")
    }
    assert found[~found.refused].pixel_auroc.notna().all() and found[found.refused][MEASURES].isna().all(axis=None)


def test_a_profile_without_learned_prompts_has_no_sources(tmp_path):
    hand = TINY | {"method": "anomalyclip", "settings": {"prompts": "object"}}
    assert prompt_transfer.list_sources([small_profile(tmp_path, tmp_path, methods=[TINY])]) == []
    assert prompt_transfer.list_sources([small_profile(tmp_path, tmp_path, methods=[hand])]) == []


# ---------------------------------------------------------------- the demo


def test_shipped_prompts_know_what_they_were_trained_on():
    spec = prompt_transfer.find_trained(config.load_profile("demo"))
    for group, categories in prompt_transfer.TRAINED.items():
        for seed in prompt_transfer.SEEDS:
            path = prompt_transfer.shipped_prompts(group, seed)
            found = checkpoints.read(path, prompt_learner.CHECKPOINT)
            assert (found["trained_on"], found["categories"]) == ("demo auxiliary", categories)
            card = path.with_suffix(".md").read_text()
            assert f"seed {seed}" in card and ", ".join(categories) in card
            source = prompt_transfer.Source(group, spec.model_copy(update={"checkpoint": str(path)}), seed, group)
            for other, name in prompt_transfer.UNSEEN.items():
                changes = {"subset": "auxiliary", "categories": [name]}
                target = prompt_transfer.Target("auxiliary", config.load_profile("demo", changes))
                assert prompt_transfer.is_leaky(source, target) == (other == group)
    sources = prompt_transfer.list_sources([config.load_profile("demo")])
    assert len(sources) == 2 + 6 and not prompt_transfer.is_leaky(
        sources[-1], prompt_transfer.Target("", config.load_profile("demo"))
    )


def test_trained_groups_are_auxiliary_categories_of_their_group():
    from vlmad_lib.demo import data as demo

    for group, categories in prompt_transfer.TRAINED.items():
        assert {demo.CATEGORIES[name].group for name in categories} == {group} and categories == sorted(categories)
        assert set(categories) <= set(demo.names("auxiliary")) and prompt_transfer.UNSEEN[group] in categories
    assert datasets.describe_identity(config.load_profile("demo")) == "demo target"
