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
from vlmad_lib.analysis import comparison, draws, sweeps, wordings
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
        *["not decided"] * 2,
    ]
    assert comparison.format_difference(0.0123, -0.1, 0.2) == "+0.012 (-0.100 to +0.200)"
    assert (
        comparison.format_difference(*statistics.difference([0.0, 0.0])) == "+0.000 (the same in each)"
    )  # no interval of certainty
    assert comparison.verdict(*statistics.difference([0.1 + 0.2 - 0.3] * 2)[1:]) == "not decided"


def test_the_study_is_quoted_as_printed():
    assert sweeps.claim("text 5.2.2", "carpet@size3") == "0.89"
    assert sweeps.claim("Table 1", "hazelnut", "image_auroc") == "0.904"  # WinCLIP's, not AnomalyCLIP's


# ------------------------------------------------------------ window sizes


def test_sizes_beyond_the_grid_are_said():
    assert sweeps.fitting([3, 1, 3, 6, 0], 5) == ([3, 1], "Left out: sizes 6, 0 do not fit the 5 x 5 tokens.")
    assert sweeps.fitting([1, 5], 5) == ([1, 5], "")
    with pytest.raises(InputError, match="choose 1 to 5"):
        sweeps.fitting([7], 5)


def test_costs_by_hand():
    found = sweeps.window_costs(15, [2, 3, 7], [2, 3]).set_index("tokens per side")
    assert found["windows per image"].tolist() == [196, 169, 81]
    assert found["tokens per image"].tolist() == [196 * 5, 169 * 10, 81 * 50]
    assert found["of a usual image"][7] == pytest.approx(4050 / (226 + 980 + 1690))
    told = sweeps.cost_findings(found.reset_index(), [2, 3], 40)
    assert "The 1 size that the run lacks would encode 1.4 times its tokens, for 40 images" in told


def test_window_variants_change_the_size_alone():
    base, alone, whole = sweeps.window_variants(SPEC, [4])
    assert base is SPEC and sweeps.of_sizes(SPEC, [1, 4]).settings == {"windows": [1, 4]}
    assert alone.settings == {"windows": [4], "full_image": False, "image_score": "map_max"}
    assert whole.settings == {"windows": [4], "full_image": True, "image_score": "class_token"}
    assert sweeps.window_variants(SPEC, [4], shots=1)[1].settings == alone.settings | {"patch_tokens": "none"}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Two sizes on a tiny backbone, one image of 4 x 4 masks at a time."""
    folder = tmp_path_factory.mktemp("swept")
    profile = small_profile(make_mvtec(folder / "data"), folder / "cache", shots=[0])
    return run.run(profile.model_copy(update={"methods": sweeps.window_variants(SPEC, [2, 3])}))


def test_only_the_maximum_of_the_map_depends_on_the_size(swept):
    table = sweeps.window_table(swept, "WinCLIP")
    assert len(table) == len(sweeps.MEASURES) * 2 * 2 and set(table.k) == {2, 3}
    token = table[table.measure == "image, class token"].groupby("category").auroc
    assert (token.nunique() == 1).all()
    row = table[(table.measure == "image, maximum of the map") & (table.k == 3) & (table.category == "cloth")].iloc[0]
    scores = swept.scores[(swept.scores.method == "3 x 3, windows alone") & (swept.scores.category == "cloth")]
    assert row.auroc == pytest.approx(roc_auc_score(scores.label, scores.score))
    assert scores.score.to_numpy() == pytest.approx([one.max() for one in swept.maps(scores)])


def test_pixels_inside_an_image(swept):
    images = sweeps.by_image(swept, "WinCLIP")
    assert len(images) == 2 * 4 * 2  # categories, anomalous images, sizes
    row = images.iloc[3]
    one = swept.scores[(swept.scores.image == row.image) & (swept.scores.method == f"{row.k} x {row.k}, windows alone")]
    mask = np.zeros((60, 60), bool)
    mask[20:40, 10:40] = True  # what conftest.paint draws
    assert row.auroc == pytest.approx(roc_auc_score(mask.ravel(), swept.framed(one)[0].ravel()))
    assert sweeps.best_sizes(images).images.tolist() == [4, 4]


def test_the_best_column_and_what_cannot_be_told_from_it():
    noise = np.array([0.01, -0.01, 0.02, -0.02, 0.01, -0.01])
    values = pd.DataFrame({1: 0.5 + noise, 2: 0.901 + noise / 2, 3: 0.9 - noise})
    assert sweeps.best(values) == (2, [2, 3])
    assert sweeps.best(values.assign(**{"3": values[3] + 0.5}).drop(columns=3)) == ("3", ["3"])
    assert sweeps.best(values[:1])[1] == [1, 2, 3]  # one image tells nothing apart
    # 3 pairs: a difference at 5 % is not enough, one at 5 % / 3 is
    apart = np.array([0.05, 0.03, 0.0, 0.06, 0.0, 0.05])
    assert 0.05 / 3 < ttest_1samp(apart, 0).pvalue < 0.05
    close = pd.DataFrame({1: 0.9 - apart, 2: [0.9] * 6, 3: [0.1 + 0.1 * (i % 2) for i in range(6)]})
    assert sweeps.best(close) == (2, [1, 2])


def windows(values: dict[str, tuple[str, list[float]]], measure: str = "pixel, with the whole image") -> pd.DataFrame:
    """A window table of one measure: sizes 1, 2, 3 ... of each category."""
    rows = [(measure, group, name, k, one) for name, (group, some) in values.items() for k, one in enumerate(some, 1)]
    return pd.DataFrame(rows, columns=["measure", "group", "category", "k", "auroc"])


def compared(base: list[float], **others: list[float]) -> pd.DataFrame:
    rows = [
        {"method": method, "category": str(i), "image_auroc": 0.5, "pixel_auroc": value, "aupro": 0.5}
        for method, some in ({"WinCLIP": base} | others).items()
        for i, value in enumerate(some)
    ]
    return comparison.compare_with_base(pd.DataFrame(rows), "WinCLIP")


def test_group_means_of_sizes():
    table = windows({"linen": ("texture", [0.4, 0.8]), "cork": ("texture", [0.6, 0.8]), "gear": ("rigid", [0.9, 0.2])})
    found = sweeps.by_size(table).set_index("group")
    assert list(found.index) == ["texture", "rigid", "all"] and found.n.tolist() == [2, 1, 3]
    assert found["k = 1"].tolist() == pytest.approx([0.5, 0.9, 1.9 / 3])


def test_window_findings_follow_the_data():
    good = {"a": ("texture", [0.5, 0.81, 0.7]), "b": ("texture", [0.51, 0.8, 0.7]), "c": ("texture", [0.5, 0.79, 0.72])}
    bad = {"a": ("rigid", [0.9, 0.6, 0.61]), "b": ("rigid", [0.91, 0.62, 0.6]), "c": ("rigid", [0.9, 0.6, 0.62])}
    own = [0.7, 0.71, 0.7]
    one = compared(own, **{"2 x 2, with the whole image": [0.81, 0.8, 0.79]})
    other = compared([0.95, 0.96, 0.949], **{"1 x 1, with the whole image": [0.9, 0.91, 0.9]})
    empty = pd.DataFrame()
    told = [
        sweeps.window_findings(windows(*args), empty, *more, "WinCLIP")
        for args, more in (([good], [one]), ([bad], [other]))
    ]
    assert "k = 2 with 0.800: +0.097" in told[0] and "n = 3, better: k = 2 may replace it" in told[0]
    assert "k = 1 with 0.903: -0.050" in told[1] and "n = 3, worse: keep the fusion" in told[1]
    assert "holds at 95 % for all 1 variants together, of which this one was picked by these data" in told[0]
    assert (
        "**texture** (n = 3): best k = 2 by pixel AUROC with the whole image (0.800), told from all others" in told[0]
    )
    assert "**rigid** (n = 3): best k = 1" in told[1]


def test_claims_of_the_study_are_tested():
    measure = "pixel, windows alone"
    poor = windows({str(i): ("texture", [0.5 + i / 100, 0.7, 0.9, 0.9, 0.9, 0.7, 0.7]) for i in range(4)}, measure)
    fine = windows({str(i): ("texture", [0.9 + i / 100, 0.9, 0.6, 0.6, 0.6, 0.7, 0.7]) for i in range(4)}, measure)
    told = ["\n".join(sweeps._claim_lines(table)) for table in (poor, fine)]
    assert "k = 1 is poor (it has 0.55 on average)" in told[0] and told[0].count("n = 4: agrees") == 2
    assert told[1].count("n = 4: contradicts it") == 2
    assert "structural" not in told[0]  # no rigid category, nothing to say
    args = (
        pd.DataFrame(),
        compared([0.5] * 4, **{f"{k} x {k}, windows alone": [0.6] * 4 for k in range(1, 8)}),
        "WinCLIP",
    )
    assert "The study" in sweeps.window_findings(poor, *args)
    assert "The study" not in sweeps.window_findings(poor, *args, shots=1)


def test_a_claim_that_other_sizes_outdo_is_not_simply_agreed_with():
    measure = "pixel, windows alone"
    low = windows({str(i): ("texture", [0.6 + i / 100, 0.9, 0.9, 0.9, 0.9, 0.5, 0.55]) for i in range(4)}, measure)
    told = "\n".join(sweeps._claim_lines(low))
    assert "n = 4: agrees on average, yet k = 6, 7 are lower still." in told
    assert "textures do best with 3 to 5" in told and told.count("yet") == 1  # k = 2 is no higher than they are
    high = windows({str(i): ("texture", [0.1, 0.95 + i / 100, 0.9, 0.9, 0.9, 0.1, 0.1]) for i in range(4)}, measure)
    assert "n = 4: agrees on average, yet k = 2 is higher still." in "\n".join(sweeps._claim_lines(high))


def test_an_image_score_that_no_size_moves_is_said_without_a_number():
    token, top = [0.8, 0.8, 0.8], [0.8, 0.9, 0.7]
    told = []
    for values in (token, top):
        table = windows({"a": ("texture", values)}, "image, class token")
        told.append(sweeps._image_lines({name: part.pivot(index="category", columns="k", values="auroc")
                                         for name, part in table.groupby("measure")})[0])  # fmt: skip
    assert "does not depend on the window size (macro mean 0.800, n = 1)" in told[0] and "by up to" not in told[0]
    assert "moves with the window size, by up to 0.200 in a category (macro" in told[1]


def test_a_size_without_any_auroc_is_said():
    table = windows({"a": ("unknown", [np.nan, np.nan])})
    assert sweeps.window_findings(table, pd.DataFrame(), pd.DataFrame(), "WinCLIP") == tables.NO_AUROC


def test_what_one_image_says():
    row = pd.Series({"category": "gear", "defect": "rust"})
    maps = {"1x1 windows": np.array([0.0, 1.0]), "2x2 windows": np.array([0.4, 0.6]), "fused": np.zeros(2)}
    assert "0.500 with 1x1 windows and 0.100 with 2x2 windows" in sweeps.example_findings(maps, row)


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
    found = draws.steps(shots(RISING))
    first = found[(found.more == 1) & (found.measure == "image_auroc")].iloc[0]
    assert (first.gain, first.low, first.high) == pytest.approx(statistics.paired([0.2, 0.21, 0.205]))
    later = found[(found.more == 2) & (found.measure == "image_auroc")].iloc[0]
    assert later.gain == pytest.approx(0.005) and (later.low, later.high) == (-1, 1)  # no spread, no interval
    assert found.n.tolist() == [3] * 4
    own = draws.steps(shots(RISING), ("method", "category"))
    gear = own[(own.category == "gear") & (own.more == 1) & (own.measure == "image_auroc")].iloc[0]
    assert (gear.gain, gear.low, gear.high) == pytest.approx(statistics.paired([0.2, 0.22, 0.21]))


def test_steps_over_categories_average_the_draws():
    found = draws.steps_over_categories(shots(RISING))
    first = found[(found.more == 1) & (found.measure == "image_auroc")].iloc[0]
    expected = statistics.paired([0.21, 0.2])
    assert (first.gain, first.low, first.high) == pytest.approx((expected[0], expected[1], expected[2]))
    assert first.n == 2


def test_step_table_has_a_row_for_each_step():
    found = draws.step_table(draws.steps(shots(RISING)))
    assert found.step.tolist() == ["0 to 1", "1 to 2"] and found.n.tolist() == ["3", "3"]
    bare = shots(RISING)
    bare.loc[bare.seed == 0, "pixel_auroc"] = np.nan
    assert draws.step_table(draws.steps(bare[bare.shots > 0])).n.tolist() == ["3 and 2"]
    assert found["image AUROC"][0].startswith("+0.205 (+0.19") and found["image AUROC"][0].endswith("higher")


def test_draw_findings_follow_the_data():
    rising, falling = (draws.draw_findings(shots(values)) for values in (RISING, FALLING))
    assert "0 to 1 shots +0.205" in rising and "n = 3 draws: higher); 1 to 2 shots +0.005" in rising
    assert "gains diminish" in rising and "gains diminish" not in falling
    assert "0 to 1 shots -0.145" in falling and "n = 3 draws: lower" in falling
    assert "The draw matters most for gear: 0.020 between the best and the worst of 3 draws of 1" in rising
    assert "for linen: 0.020" in falling
    assert "for other products +0.141 to +0.269, n = 2 categories: higher; with other references of these" in rising
    assert "For a new product the intervals over categories decide" in rising
    nothing = shots({0: [[0.5, 0.6]]})
    assert "no other number of references was run" in draws.draw_findings(nothing)
    assert draws.draw_findings(nothing.assign(image_auroc=np.nan)) == tables.NO_AUROC


def test_methods_without_references_are_left_out():
    table = pd.concat([shots(RISING), shots({0: [[0.5, 0.5]]}).assign(method="AnomalyCLIP")])
    assert set(draws.drawing(table).method) == {"WinCLIP"}
    assert set(draws.drawing(table[table.method == "AnomalyCLIP"]).method) == {"AnomalyCLIP"}
    means = draws.over_draws(table).set_index(["method", "shots"])
    assert means.loc[("WinCLIP", 1), "draws"] == 3
    assert means.loc[("WinCLIP", 1), "image AUROC, deviation"] == pytest.approx(np.std([0.75, 0.76, 0.755], ddof=1))


def test_extreme_draws_and_their_references():
    row = draws.extreme_draws(shots(RISING)).iloc[0]
    assert (row.category, row["best seed"], row["worst seed"]) == ("gear", 1, 0) and row["range"] == pytest.approx(0.02)
    assert draws.extreme_draws(shots({0: [[0.5, 0.5]], 1: [[0.6, 0.6]]})).empty
    scores = pd.DataFrame(
        {"category": "gear", "shots": 2, "seed": [0, 1], "references": ["a/b/1.png;a/b/2.png", "a/b/3.png"]}
    )
    assert draws.drawn(scores, 2).iloc[0].tolist() == ["gear", "1.png, 2.png", "3.png"]


def test_claims_of_one_reference():
    names = ("hazelnut", "bottle", "grid")
    values = {0: [[0.9, 0.9, 0.5]], 1: [[0.95, 0.8, 0.75], [0.96, 0.81, 0.74], [0.95, 0.8, 0.76]]}
    found = draws.shot_claims(shots(values, "MVTec AD", names)).set_index("category")
    assert found["by its own table"].to_dict() == dict.fromkeys(found.index, "possible") | {"hazelnut": "impossible"}
    assert found.room["hazelnut"] == pytest.approx(1 - 0.904)
    assert found.verdict.to_dict() == {
        "average": "none", "capsule": "none", "grid": "agrees", "hazelnut": "contradicted",
        "bottle": "agrees", "screw": "none",
    }  # fmt: skip
    every = [name for name in sweeps.study("Table 1")["item"].unique() if name != "mean"]
    gained = {0: [[0.5] * 15], 1: [[0.6] * 15, [0.61] * 15, [0.6] * 15]}
    whole = draws.shot_claims(shots(gained, "MVTec AD", tuple(every))).set_index("category")
    assert len(every) == 15 and whole.verdict["average"] == "contradicted"
    other = draws.shot_claims(shots(RISING))
    assert set(other.verdict) == {"none"} and set(other.here) == {"no comparison: the data are demo"}
    told = [draws.claim_findings(one) for one in (found.reset_index(), other)]
    assert "1 cannot be true by its own table: hazelnut (room for 0.096)" in told[0]
    assert "On these data (n = 3)" in told[0] and "grid agrees" in told[0]
    assert "Here, no comparison: the data are demo." in told[1]


# ------------------------------------------------------------ wordings


def test_wordings_change_one_part_and_repeat_none():
    found = wordings.variants(SPEC, "a {} in order", "a broken {}")
    chosen = [winclip.settings(one.preset, one.settings) for one in found]
    assert found[0] is SPEC and len({str(one) for one in chosen}) == len(found)
    names = [one.name.removeprefix("WinCLIP, ") for one in found]
    assert not {"full ensemble", "22 templates", "cleaned names", "temperature 0.07"} & set(names)  # it has those
    assert chosen[names.index("one pair")].templates == "none" and chosen[-1].own_anomalous == ["a broken {}"]
    assert "own pair" not in [one.name for one in wordings.variants(SPEC)]
    accurate = [one.name for one in wordings.variants(SPEC.model_copy(update={"preset": "accurate"}))]
    assert "WinCLIP, 22 templates" in accurate and "WinCLIP, 21 templates" not in accurate
    own = SPEC.model_copy(update={"settings": chosen[-1].model_dump(include={"states", "own_normal", "own_anomalous"})})
    assert "WinCLIP, full ensemble" in [one.name for one in wordings.variants(own)]
    with pytest.raises(InputError, match="'' is no prompt"):
        wordings.variants(SPEC, "a {}")


def test_words_of_anomalyclip_need_no_checkpoint():
    spec = Method.model_validate({"method": "anomalyclip", "checkpoint": "demo", "force_leak": True})
    found = wordings.variants(spec)
    assert [one.settings["word"] for one in found[1:]] == list(wordings.WORDS)
    assert not any(one.checkpoint or one.force_leak for one in found[1:])


def test_what_is_asked(tiny_backbone, tmp_path):
    profile = small_profile(make_mvtec(tmp_path / "data", ("plate",)), tmp_path / "cache")
    row = pd.Series({"class_name": "plate", "category": "plate"})
    some = wordings.variants(SPEC, "a {}", "a {}")
    found = wordings.asked(some, profile, tiny_backbone, row).set_index("variant")
    assert found.loc["WinCLIP", ["normal", "anomalous"]].tolist() == [154, 88]
    assert found.loc["WinCLIP, one pair", "an anomalous one"] == "damaged plate"
    assert found.loc["WinCLIP, own pair", "cosine"] == pytest.approx(1)  # twice the same words
    told = wordings.cosine_findings(found.reset_index())
    assert "1.000 (WinCLIP, own pair), n = 11 variants" in told and "results say little: " in told
    alike = wordings.state_cosines(tiny_backbone, "plate", ["a {}", ""])
    assert alike.shape == (12, 12) and np.diag(alike) == pytest.approx(1) and alike.index[-1] == "a plate"
    with pytest.raises(InputError, match="own prompts: 'a {thing}' is no prompt"):
        wordings.state_cosines(tiny_backbone, "plate", ["a {thing}"])


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
    found = wordings.differences(worded(**values), [FAMILY, leaked])
    image = found[found.measure == "image_auroc"].set_index(["base", "variant"])
    assert list(image.index)[1:4] == [("WinCLIP", "one"), ("WinCLIP", "two"), ("A LEAKED", "A LEAKED")]
    expected = statistics.paired([-0.1, -0.09, -0.1], 0.975)
    assert tuple(image.loc[("WinCLIP", "one"), ["difference", "low", "high"]]) == pytest.approx(expected)
    assert np.isnan(image.difference.iloc[0]) and image.loc[("A LEAKED", "word"), "low"] > -1.0
    table = wordings.difference_table(found).set_index("variant")
    assert (
        table.loc["two", "image AUROC"] == pytest.approx(0.8)
        and table.loc["WinCLIP", "image AUROC, difference"] == "none"
    )


def test_wording_findings_follow_the_data():
    lower = worded(**{"WinCLIP": [0.9, 0.8, 0.7], "WinCLIP, one": [0.8, 0.71, 0.6], "WinCLIP, two": [0.9, 0.7, 0.8]})
    higher = worded(**{"WinCLIP": [0.5, 0.5, 0.5], "WinCLIP, one": [0.8, 0.81, 0.8], "WinCLIP, two": [0.5, 0.5, 0.5]})
    told = [wordings.findings(wordings.differences(one, [FAMILY])) for one in (lower, higher)]
    assert "image AUROC 0.800 (n = 3): none is higher; lower with one -0.097" in told[0]
    assert "higher with one +0.303" in told[1] and "none is lower; not decided for 1 of 2" in told[1]
    assert wordings.findings(wordings.differences(lower.assign(image_auroc=np.nan, pixel_auroc=np.nan), [FAMILY])) == (
        tables.NO_AUROC
    )


def test_temperature_is_judged_by_the_data():
    same = worded(**{"WinCLIP": [0.9, 0.8], "WinCLIP, temperature 0.2": [0.9, 0.8]})
    moved = worded(**{"WinCLIP": [0.9, 0.8], "WinCLIP, temperature 0.2": [0.9, 0.5]})
    assert "does not depend on the temperature: no category moves by more than 0.0000 over 2" in (
        wordings.temperature_findings(same)
    )
    told = wordings.temperature_findings(moved)
    assert (
        "the image AUROC depends on the temperature: no category moves by more than 0.3000" in told and "0.150" in told
    )
    assert wordings.temperature_findings(worded(WinCLIP=[0.9])) == ""


# ------------------------------------------------------------ figures


def test_figures_show_what_the_tables_say():
    sizes = pd.DataFrame(
        {"group": "rigid", "category": ["gear", "key"], "images": 5, "k = 1": [0.5, 0.8], "k = 2": [0.9, 0.7],
         "best": [2, 1], "not told from it": ["2", "1, 2"]}
    )  # fmt: skip
    axes = figures.best_sizes(sizes).axes[0]
    assert [box.get_xy() for box in axes.patches] == [(1, 0), (0, 1)]  # the best of each row is framed
    assert [text.get_text() for text in axes.texts] == ["0.500", "0.900 •", "0.800 •", "0.700 •"]
    table = windows({"a": ("texture", [0.5, 0.6]), "b": ("rigid", [0.7, 0.8])}, "pixel, windows alone")
    figure = figures.over_windows(table, pd.Series({"image_auroc": 0.5, "pixel_auroc": 0.75}))
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert lines["all (n = 2)"].get_ydata().tolist() == pytest.approx([0.6, 0.7])
    assert lines["the method as it is"].get_ydata()[0] == 0.75
    some = pd.DataFrame({"name": ["x", "y"], "measure": "image_auroc", "difference": [0.1, -0.2], "n": 3})
    axes = figures.differences(some.assign(low=[-0.1, -1.0], high=[0.3, 1.0]), "name").axes[0]
    assert axes.get_xlim()[0] < -1 < 1 < axes.get_xlim()[1] and "n = 3" in axes.get_xlabel()


def test_some_categories_of_each_group():
    table = pd.DataFrame({"category": list("abcdef"), "group": ["texture"] * 3 + ["rigid"] * 2 + ["flexible"]})
    assert sweeps.some(table, 2) == ["a", "b", "d", "e", "f"] and sweeps.some(table, 0) == list("abcdef")


@pytest.mark.parametrize("dataset", ["demo", "mvtec"])
def test_a_sweep_is_small_on_the_demo_data_alone(dataset):
    rows = [(c, g, split, d, int(d != "good")) for c, g in zip("ab", ("rigid",) * 2, strict=True)
            for split, d in [("train", "good"), *[("test", "good")] * 3, *[("test", "dent")] * 3]]  # fmt: skip
    index = pd.DataFrame(rows, columns=["category", "group", "split", "defect", "label"])
    index["image"] = index.index.astype(str)
    results = SimpleNamespace(index=index, profile=SimpleNamespace(dataset=dataset))
    categories, table = sweeps.part(results, 1, 2)
    if dataset == "demo":
        assert categories == ["a"] and sorted(table.label[table.split == "test"]) == [0, 1]
        assert (table.split == "train").sum() == 1
    else:
        assert categories == ["a", "b"] and len(table) == len(index)
