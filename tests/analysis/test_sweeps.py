"""Window sizes, reference draws and wordings: variants, tables against hand-made cases, and sentences that follow."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, make_mvtec, small_profile
from scipy.stats import ttest_1samp
from sklearn.metrics import roc_auc_score

from vlmad_lib import InputError, tables
from vlmad_lib.analysis import comparison, prompt_variants, published, variants
from vlmad_lib.config import Method
from vlmad_lib.evaluation import statistics
from vlmad_lib.methods import winclip
from vlmad_lib.pipeline import run
from vlmad_lib.reporting import figures

SPEC = Method.model_validate({"name": "WinCLIP"} | TINY)

# ------------------------------------------------------------ differences


def test_differences_stay_within_what_an_auroc_can_be():
    values = np.array([0.1, 0.3, np.nan, 0.2])
    expected = ttest_1samp([0.1, 0.3, 0.2], 0).confidence_interval(0.95)
    assert statistics.difference(values) == pytest.approx((0.2, expected.low, expected.high))
    assert statistics.difference([0.2]) == (0.2, -1, 1)  # one value says nothing of its spread
    assert statistics.difference([0.1, 0.1, 0.1]) == pytest.approx((0.1, -1, 1))
    assert statistics.difference([0.0, 0.0]) == (0, 0, 0)
    assert statistics.difference([0.9, -0.9])[1:] == (-1, 1)
    assert [comparison.verdict(*ends) for ends in ((0.1, 0.2), (-0.2, -0.1), (0, 0), (-1, 1))] == [
        *["higher", "lower"],
        *["no difference shown"] * 2,
    ]
    assert comparison.format_difference(0.0123, -0.1, 0.2) == "+0.012 (-0.100 to +0.200)"
    assert (
        comparison.format_difference(*statistics.difference([0.0, 0.0])) == "+0.000 (the same in each)"
    )  # no interval of certainty
    assert comparison.verdict(*statistics.difference([0.1 + 0.2 - 0.3] * 2)[1:]) == "no difference shown"


def test_no_zero_of_a_difference_has_a_minus_sign():
    assert comparison.format_difference(-0.0001, -0.0003, 0.0002) == "+0.000 (less than 0.001 either way)"
    assert comparison.format_difference(-0.0001, -0.0003, 0.012) == "+0.000 (+0.000 to +0.012)"


def test_the_study_is_quoted_as_printed():
    assert published.quote_study("text 5.2.2", "carpet@size3") == "0.89"
    assert published.quote_study("Table 1", "hazelnut", "image_auroc") == "0.904"  # WinCLIP's, not AnomalyCLIP's


# ------------------------------------------------------------ window sizes


def test_sizes_beyond_the_grid_are_said():
    assert variants.keep_fitting_sizes([3, 1, 3, 6, 0], 5) == (
        [3, 1],
        "Left out: sizes 6 and 0 do not fit the 5 x 5 tokens.",
    )
    assert variants.keep_fitting_sizes([1, 5], 5) == ([1, 5], "")
    with pytest.raises(InputError, match="choose 1 to 5"):
        variants.keep_fitting_sizes([7], 5)


def test_window_variants_change_the_size_alone():
    base, alone, whole = variants.list_window_variants(SPEC, [4])
    assert base is SPEC and variants.set_window_sizes(SPEC, [1, 4]).settings == {"windows": [1, 4]}
    assert alone.settings == {"windows": [4], "full_image": False, "image_score": "map_max"}
    assert whole.settings == {"windows": [4], "full_image": True, "image_score": "class_token"}
    assert variants.list_window_variants(SPEC, [4], shots=1)[1].settings == alone.settings | {"patch_tokens": "none"}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Two sizes on a tiny backbone, one image of 4 x 4 masks at a time."""
    folder = tmp_path_factory.mktemp("swept")
    profile = small_profile(make_mvtec(folder / "data"), folder / "cache", shots=[0])
    return run.run(profile.model_copy(update={"methods": variants.list_window_variants(SPEC, [2, 3])}))


def test_the_image_score_of_windows_alone_is_the_maximum_of_the_map(swept):
    scores = swept.scores[swept.scores.method == "3 x 3, windows alone"]
    assert scores.score.to_numpy() == pytest.approx([values.max() for values in swept.maps(scores)])
    whole = swept.metrics[swept.metrics.method.str.endswith("with the whole image")]
    assert (whole.groupby("category").image_auroc.nunique() == 1).all()  # the class token knows no size


def test_pixels_inside_an_image(swept):
    scores = swept.scores[(swept.scores["mask"] != "") & (swept.scores.method == "2 x 2, windows alone")]
    auroc = variants.measure_inside_images(swept, scores)
    assert len(auroc) == 2 * 4 and auroc.index.equals(scores.index)  # categories, anomalous images
    mask = np.zeros((60, 60), bool)
    mask[20:40, 10:40] = True  # what conftest.paint draws
    assert auroc.iloc[3] == pytest.approx(roc_auc_score(mask.ravel(), swept.framed(scores.iloc[3:4])[0].ravel()))
    assert variants.measure_inside_images(swept, scores.iloc[:0]).empty


def test_the_best_column_and_what_is_not_shown_to_be_worse():
    noise = np.array([0.01, -0.01, 0.02, -0.02, 0.01, -0.01])
    values = pd.DataFrame({1: 0.5 + noise, 2: 0.901 + noise / 2, 3: 0.9 - noise})
    assert variants.find_best_column(values) == (2, [2, 3])
    assert variants.find_best_column(values.assign(**{"3": values[3] + 0.5}).drop(columns=3)) == ("3", ["3"])
    assert variants.find_best_column(values[:1])[1] == [1, 2, 3]  # one image shows no difference
    # 3 pairs: a difference at 5 % is not enough, one at 5 % / 3 is
    apart = np.array([0.05, 0.03, 0.0, 0.06, 0.0, 0.05])
    assert 0.05 / 3 < ttest_1samp(apart, 0).pvalue < 0.05
    close = pd.DataFrame({1: 0.9 - apart, 2: [0.9] * 6, 3: [0.1 + 0.1 * (i % 2) for i in range(6)]})
    assert variants.find_best_column(close) == (2, [1, 2])


# ------------------------------------------------------------ reference draws


def shots(
    values: dict[int, list[list[float]]], dataset: str = "demo", names: tuple = ("gear", "linen")
) -> pd.DataFrame:
    """Metrics by number of references: for each draw the AUROC of every category."""
    rows = [
        {
            "method": "WinCLIP", "dataset": dataset, "group": "rigid", "category": name, "shots": count, "seed": seed,
            "image_auroc": value, "pixel_auroc": value / 2, "aupro": value,
        }
        for count, some in values.items()
        for seed, draw in enumerate(some)
        for name, value in zip(names, draw, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows)


RISING = {0: [[0.5, 0.6]], 1: [[0.7, 0.8], [0.72, 0.8], [0.71, 0.8]], 2: [[0.71, 0.8], [0.72, 0.81], [0.72, 0.8]]}
FALLING = {0: [[0.8, 0.8]], 1: [[0.7, 0.6], [0.7, 0.62], [0.71, 0.6]], 2: [[0.7, 0.9], [0.8, 0.5], [0.7, 0.6]]}


def test_steps_are_paired_over_draws():
    found = comparison.compare_steps(shots(RISING))
    first = found[(found.more == 1) & (found.measure == "image_auroc")].iloc[0]
    assert (first.difference, first.low, first.high) == pytest.approx(statistics.paired([0.2, 0.21, 0.205]))
    later = found[(found.more == 2) & (found.measure == "image_auroc")].iloc[0]
    assert later.difference == pytest.approx(0.005) and (later.low, later.high) == (-1, 1)  # no spread, no interval
    assert found.n.tolist() == [3] * 4
    own = comparison.compare_steps(shots(RISING), ("method", "category"))
    gear = own[(own.category == "gear") & (own.more == 1) & (own.measure == "image_auroc")].iloc[0]
    assert (gear.difference, gear.low, gear.high) == pytest.approx(statistics.paired([0.2, 0.22, 0.21]))


def test_steps_over_categories_average_the_draws():
    found = comparison.compare_steps(shots(RISING), over="categories")
    first = found[(found.more == 1) & (found.measure == "image_auroc")].iloc[0]
    expected = statistics.paired([0.21, 0.2])
    assert (first.difference, first.low, first.high) == pytest.approx((expected[0], expected[1], expected[2]))
    assert first.n == 2


def test_the_whole_gain_follows_the_steps_and_counts_among_their_comparisons():
    found = comparison.compare_steps(shots(RISING), over="categories", whole=True)
    steps = comparison.compare_steps(shots(RISING), over="categories")
    counts = sorted(shots(RISING).shots.unique())
    whole = found[(found.fewer == counts[0]) & (found.more == counts[-1])]
    assert len(whole) == len(found) - len(steps) > 0
    added = steps.groupby("measure", sort=False).difference.sum()
    assert whole.set_index("measure").difference.to_dict() == pytest.approx(added.to_dict())
    together = comparison.compare_steps(shots(RISING), over="categories", whole=True, together=True)
    assert (together.high - together.low > found.high - found.low).any()


def test_the_pivot_of_steps_has_a_row_for_each_step():
    table = comparison.pivot_differences(comparison.compare_steps(shots(RISING)), ["method", "step"])
    assert table.step.tolist() == ["0 to 1", "1 to 2"] and table.n.tolist() == ["3", "3"]
    bare = shots(RISING)
    bare.loc[bare.seed == 0, "pixel_auroc"] = np.nan
    steps = comparison.compare_steps(bare[bare.shots > 0])
    assert comparison.pivot_differences(steps, ["method", "step"]).n.tolist() == ["3 and 2"]
    assert table["image_auroc"][0].startswith("+0.205 (+0.19") and table["image_auroc"][0].endswith("higher")


def test_steps_of_a_measure_hold_together():
    alone, both = (
        comparison.compare_steps(shots(RISING), over="categories", measures=["aupro"], together=together)
        for together in (False, True)
    )
    assert both.measure.tolist() == ["aupro"] * 2 and both.difference.tolist() == alone.difference.tolist()
    expected = statistics.paired([0.21, 0.2], statistics.together(2))
    assert (both.low[0], both.high[0]) == pytest.approx((expected[1], expected[2])) and both.high[0] > alone.high[0]


def test_means_over_draws():
    means = tables.average_over_draws(shots(RISING)).set_index(["method", "shots"])
    assert means.loc[("WinCLIP", 1), "draws"] == 3
    assert means.loc[("WinCLIP", 1), "image AUROC, deviation"] == pytest.approx(np.std([0.75, 0.76, 0.755], ddof=1))


def test_claims_of_one_reference():
    names = ("hazelnut", "bottle", "grid")
    values = {0: [[0.9, 0.9, 0.5]], 1: [[0.95, 0.8, 0.75], [0.96, 0.81, 0.74], [0.95, 0.8, 0.76]]}
    found = published.check_shot_claims(shots(values, "MVTec AD", names)).set_index("category")
    assert found["by its own table"].to_dict() == dict.fromkeys(found.index, "possible") | {"hazelnut": "impossible"}
    assert found.room["hazelnut"] == pytest.approx(1 - 0.904)
    assert found.verdict.to_dict() == {
        "average": "none", "capsule": "none", "grid": "agrees", "hazelnut": "contradicted",
        "bottle": "agrees", "screw": "none",
    }  # fmt: skip
    every = [name for name in published.read_study_table("Table 1")["item"].unique() if name != "mean"]
    gained = {0: [[0.5] * 15], 1: [[0.6] * 15, [0.61] * 15, [0.6] * 15]}
    whole = published.check_shot_claims(shots(gained, "MVTec AD", tuple(every))).set_index("category")
    assert len(every) == 15 and whole.verdict["average"] == "contradicted"
    other = published.check_shot_claims(shots(RISING))
    assert set(other.verdict) == {"none"} and set(other.here) == {"no comparison: the data are demo"}


# ------------------------------------------------------------ wordings


CHANGES = {
    "one pair": {"states": "one", "templates": "none", "own_normal": [], "own_anomalous": []},
    "21 templates": {"templates": "21"},
    "22 templates": {"templates": "22"},
    "own pair": {"states": "own", "templates": "none", "own_normal": ["a {}"], "own_anomalous": ["a {}"]},
    "two at once": {"temperature": 0.2, "names": "object"},
    "unknown": {"no such setting": 1},
}


def test_settings_vary_as_asked_and_repeat_none():
    found = prompt_variants.vary_settings(SPEC, CHANGES)
    chosen = [winclip.settings(spec.preset, spec.settings) for spec in found]
    names = [spec.name.removeprefix("WinCLIP, ") for spec in found]
    assert found[0] is SPEC and names[1:] == ["one pair", "21 templates", "own pair", "two at once"]
    assert chosen[1].templates == "none" and (chosen[4].temperature, chosen[4].names) == (0.2, "object")
    accurate = prompt_variants.vary_settings(SPEC.model_copy(update={"preset": "accurate"}), CHANGES)
    assert [spec.name.removeprefix("WinCLIP, ") for spec in accurate[2:3]] == ["22 templates"]
    with pytest.raises(InputError, match="'' is no prompt"):
        prompt_variants.vary_settings(SPEC, {"half": {"states": "own", "own_normal": ["a {}"], "own_anomalous": [""]}})


def test_only_changes_that_leave_nothing_learned_drop_the_checkpoint():
    spec = Method.model_validate({"method": "anomalyclip", "checkpoint": "demo", "force_leak": True})
    changes = {"plain": {"attention": "none"}, "word": {"prompts": "object", "word": "broken"}}
    _, plain, word = prompt_variants.vary_settings(spec, changes)
    assert plain.checkpoint == "demo" and plain.force_leak and not (word.checkpoint or word.force_leak)


def test_what_is_asked(tiny_backbone, tmp_path):
    profile = small_profile(make_mvtec(tmp_path / "data", ("plate",)), tmp_path / "cache")
    row = pd.Series({"class_name": "plate", "category": "plate"})
    specs = prompt_variants.vary_settings(SPEC, CHANGES)
    found = prompt_variants.tabulate_prompts(specs, profile, tiny_backbone, row).set_index("variant")
    assert found.loc["WinCLIP", ["normal", "anomalous"]].tolist() == [154, 88]
    assert found.loc["WinCLIP, one pair", "an anomalous one"] == "damaged plate"
    assert found.loc["WinCLIP, own pair", "cosine"] == pytest.approx(1)  # twice the same words


def worded(**values: list[float]) -> pd.DataFrame:
    rows = [
        {"method": method, "category": str(i), "image_auroc": one, "pixel_auroc": one / 2, "aupro": 0.5}
        for method, some in values.items()
        for i, one in enumerate(some)
    ]
    return pd.DataFrame(rows)


FAMILY = [SPEC, SPEC.model_copy(update={"name": "WinCLIP, one"}), SPEC.model_copy(update={"name": "WinCLIP, two"})]


def test_wordings_are_paired_over_categories_within_a_family():
    leaked = [SPEC.model_copy(update={"name": "A"}), SPEC.model_copy(update={"name": "A, word"})]
    values = {"WinCLIP": [0.9, 0.8, 0.7], "WinCLIP, one": [0.8, 0.71, 0.6], "WinCLIP, two": [0.9, 0.7, 0.8]}
    values |= {"A LEAKED": [0.5, 0.5, 0.5], "A, word": [0.9, 0.1, 0.5]}  # tables call leaked prompts so
    found = prompt_variants.compare_families(worded(**values), [FAMILY, leaked])
    image = found[found.measure == "image_auroc"].set_index(["base", "variant"])
    assert list(image.index)[1:4] == [("WinCLIP", "one"), ("WinCLIP", "two"), ("A LEAKED", "A LEAKED")]
    expected = statistics.paired([-0.1, -0.09, -0.1], 0.975)
    assert tuple(image.loc[("WinCLIP", "one"), ["difference", "low", "high"]]) == pytest.approx(expected)
    assert np.isnan(image.difference.iloc[0]) and image.loc[("A LEAKED", "word"), "low"] > -1.0
    assert image.auroc.tolist() == pytest.approx([0.8, 0.703, 0.8, 0.5, 0.5], abs=1e-3)
    assert set(image.over) == {"categories"} and image.n.tolist() == [3] * 5


# ------------------------------------------------------------ figures


def test_figures_show_what_the_tables_say():
    some = pd.DataFrame({"name": ["x", "y"], "measure": "image_auroc", "difference": [0.1, -0.2], "n": 3})
    axes = figures.differences(some.assign(low=[-0.1, -1.0], high=[0.3, 1.0]), "name").axes[0]
    assert axes.get_xlim()[0] < -1 < 1 < axes.get_xlim()[1] and "n = 3" in axes.get_xlabel()


def test_some_categories_of_each_group():
    table = pd.DataFrame({"category": list("abcdef"), "group": ["texture"] * 3 + ["rigid"] * 2 + ["flexible"]})
    assert variants.choose_categories(table, 2) == ["a", "b", "d", "e", "f"] and variants.choose_categories(
        table, 0
    ) == list("abcdef")


@pytest.mark.parametrize("dataset", ["demo", "mvtec"])
def test_a_sweep_is_small_on_the_demo_data_alone(dataset):
    rows = [(c, g, split, d, int(d != "good")) for c, g in zip("ab", ("rigid",) * 2, strict=True)
            for split, d in [("train", "good"), *[("test", "good")] * 3, *[("test", "dent")] * 3]]  # fmt: skip
    index = pd.DataFrame(rows, columns=["category", "group", "split", "defect", "label"])
    index["image"] = index.index.astype(str)
    results = SimpleNamespace(index=index, profile=SimpleNamespace(dataset=dataset))
    categories, table = variants.choose_sweep_data(results, 1, 2)
    if dataset == "demo":
        assert categories == ["a"] and sorted(table.label[table.split == "test"]) == [0, 1]
        assert (table.split == "train").sum() == 1
        assert "on 2 test pictures each of a." in variants.describe_sweep_data(table, results)
    else:
        assert categories == ["a", "b"] and len(table) == len(index)
        assert variants.describe_sweep_data(table, results) == ""


@pytest.mark.parametrize(("share", "good", "bad"), [(0.5, 6, 6), (0.25, 6, 2), (0.75, 2, 6)])
def test_the_share_of_defective_images_is_as_asked_and_as_many_stay_as_it_allows(share, good, bad):
    rows = [("train", 0)] * 3 + [("test", 0)] * 6 + [("test", 1)] * 6
    table = pd.DataFrame(rows, columns=["split", "label"]).assign(category="plate", image=[*map(str, range(15))])
    kept = variants.sample_defective_share(table, share)
    tested = kept[kept.split == "test"]
    assert (tested.label == 0).sum() == good and (tested.label == 1).sum() == bad
    assert (kept.split == "train").sum() == 3 and kept.image.is_unique
    assert list(kept.image) == sorted(kept.image, key=int)  # in the index's order
