"""Recommendations follow their table: by category or by image; no difference shown is not called equal."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import make_mvtec, paint, small_profile
from PIL import Image
from scipy import stats
from test_wrong_input import refused

from vlmad_lib import ROOT, config
from vlmad_lib.analysis import by_defect, comparison, recommendation
from vlmad_lib.analysis.recommendation import ImageComparison, Situation
from vlmad_lib.config import FULL
from vlmad_lib.data import datasets
from vlmad_lib.evaluation import metrics, pixel_ranking, statistics
from vlmad_lib.pipeline import run

GROUPS = {f"{group}{number}": group for group in ("texture", "rigid") for number in range(4)}
EXTRA = np.array([0.00, 0.02, 0.01, 0.03])  # categories differ, and by how much differs little


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recommendation")
    return run.run(small_profile(make_mvtec(folder / "data"), folder / "cache"))


def make_values(means: dict[str, float], groups: dict[str, str] = GROUPS) -> pd.DataFrame:
    """Made-up values: each method's level, the same ups and downs in every category, a little noise of its own."""
    rows = []
    for place, (name, mean) in enumerate(means.items()):
        for number, (category, group) in enumerate(groups.items()):
            level = mean + EXTRA[number % 4] + 0.001 * ((number + place) % 3)
            method, shots = name.split(", ")
            facts = {"name": name, "method": method, "shots": int(shots[0]), "group": group, "category": category}
            rows.append(facts | dict.fromkeys([*recommendation.MEASURED, recommendation.FAINT], level))
    return pd.DataFrame(rows)


def make_requirements(values: pd.DataFrame, learned: tuple[str, ...] = (), **ms: float) -> pd.DataFrame:
    """What made-up methods ask for: those that are not learned read the product's name."""
    first = values.drop_duplicates("name")[["name", "method", "shots"]].reset_index(drop=True)
    first["learned"] = first.method.isin(learned)
    first["product_name"] = ~first.learned
    return first.assign(batched=False, own_masks=False, known=True, ms=first.method.map(ms).fillna(10.0), memory=100.0)


def recommend(means: dict[str, float], learned: tuple[str, ...] = (), margins=None, groups=GROUPS, **changes):
    values = make_values(means, groups)
    situation = Situation(**{"name": "Line", "measure": "image_auroc"} | changes)
    table = recommendation.recommend(values, make_requirements(values, learned), [situation], margins)
    (row,) = table.itertuples()
    return table.iloc[0], recommendation.explain_choice(row)


# ---------------------------------------------------------------- over categories


@pytest.mark.parametrize("measure", recommendation.MARGINS)
def test_the_recommendation_flips_with_the_table(measure):
    for ahead, behind in (("One", "Other"), ("Other", "One")):
        row, sentence = recommend({f"{ahead}, 0-shot": 0.8, f"{behind}, 0-shot": 0.6}, measure=measure)
        assert row["take"] == f"{ahead}, 0-shot" and row.rivals == "" and row.verdict == recommendation.BETTER
        assert sentence.startswith(f"better than {behind} with 0 good pictures: +0.")


def test_every_number_of_a_sentence_is_in_its_row():
    means = {"One, 0-shot": 0.8, "Other, 0-shot": 0.6}
    row, sentence = recommend(means)
    for value in (row.difference, row.low, row.high):
        assert f"{value:+.3f}" in sentence
    assert recommendation.describe_units(row) == "8 products" and row.low < row.difference < row.high
    wide = make_values(means).pivot(index="category", columns="name", values="image_auroc")
    assert row.difference == pytest.approx((wide["One, 0-shot"] - wide["Other, 0-shot"]).mean())


def test_the_interval_is_that_of_the_test_that_names_the_rivals():
    """It holds 0 just where Holm's test does not tell the best from the method that it is set against."""
    for spread in (0.01, 0.05, 0.06, 0.07, 0.1):
        values = make_values({"One, 0-shot": 0.8, "Other, 0-shot": 0.75, "Third, 0-shot": 0.5})
        values.loc[values.method == "Other", "image_auroc"] += spread * np.linspace(-1, 1, 8)
        line = [Situation(name="Line", measure="image_auroc")]
        row = recommendation.recommend(values, make_requirements(values), line).iloc[0]
        best, other = (values[values.method == name].image_auroc.to_numpy() for name in ("One", "Other"))
        # the third is surely behind, so the other is the last step of Holm's: at 5 %
        ends = stats.ttest_1samp(best - other, 0).confidence_interval(0.95)
        assert (row.low, row.high) == pytest.approx((ends.low, ends.high)) and row.competitors == 3
        assert (row.low > 0) == ("Other" not in row.rivals)


def test_a_method_that_asks_for_less_is_taken_only_where_its_loss_stays_inside_the_margin():
    means = {"Few, 4-shot": 0.81, "Plain, 0-shot": 0.80}
    row, sentence = recommend(means)
    assert row.best == "Few, 4-shot" and row["take"] == "Plain, 0-shot" and row.verdict == "less"
    assert row.high < 0.02 and "Few with 4 good pictures gains less than the margin of 0.02" in sentence
    row, sentence = recommend(means, margins={"image_auroc": 0.005})
    assert row["take"] == "Few, 4-shot" and row.verdict == recommendation.BETTER


def test_no_difference_shown_is_not_equal():
    """Two methods that noise keeps apart from any decision: the best is taken, and the sentence says it is not sure."""
    values = make_values({"Few, 4-shot": 0.82, "Plain, 0-shot": 0.80})
    values.loc[values.method == "Few", "image_auroc"] += 0.2 * np.linspace(-1, 1, 8)
    line = [Situation(name="Line", measure="image_auroc")]
    table = recommendation.recommend(values, make_requirements(values), line)
    row = table.iloc[0]
    assert (
        row["take"] == row.best == "Few, 4-shot"
        and row.verdict == comparison.NO_DIFFERENCE
        and row.rivals == "Plain, 0-shot"
    )
    assert recommendation.explain_choice(next(table.itertuples())).startswith("no difference shown to Plain")


def test_a_tie_goes_to_the_method_that_asks_for_less_and_is_said():
    """0.8004 and 0.8001 both show as 0.800; the one without pictures is taken, whichever is a little higher."""
    for few, plain in ((0.8004, 0.8001), (0.8001, 0.8004)):
        means = {"Few, 4-shot": few, "Plain, 0-shot": plain}
        values = make_values(means)
        values["image_auroc"] = values.name.map(means) + values.category.str[-1].astype(int) * 0.00001
        values.loc[values.method == "Few", "image_auroc"] += 0.2 * np.r_[1, -1, 1, -1, 1, -1, 1, -1]
        line = [Situation(name="Line", measure="image_auroc")]
        (row,) = recommendation.recommend(values, make_requirements(values), line).itertuples()
        assert (row.take, row.tied, row.verdict) == ("Plain, 0-shot", "Few, 4-shot", recommendation.TIE)
        sentence = recommendation.explain_choice(row)
        assert sentence.startswith("a tie with Few with 4 good pictures, which asks for more: +0.000, -")
        assert sentence.endswith(comparison.NO_DIFFERENCE)


def test_a_tie_with_what_is_taken_in_place_of_the_best_says_what_the_best_has():
    """Few with 1 picture would be taken for that with 4; the plain method has as much and asks for less."""
    means = {"Few, 4-shot": 0.81, "Few, 1-shot": 0.80, "Plain, 0-shot": 0.80}
    values = make_values(means)
    values["image_auroc"] = values.name.map(means)
    values.loc[values.name == "Few, 4-shot", "image_auroc"] += 0.001 * np.linspace(-1, 1, 8)
    values.loc[values.method == "Plain", "image_auroc"] += 0.2 * np.linspace(-1, 1, 8)
    line = [Situation(name="Line", measure="image_auroc")]
    (row,) = recommendation.recommend(values, make_requirements(values), line).itertuples()
    assert (row.take, row.tied, row.best) == ("Plain, 0-shot", "Few, 1-shot", "Few, 4-shot")
    assert ": Few with 4 good pictures has +0.010" in recommendation.explain_choice(row)


def test_learned_prompts_of_others_ask_for_less_than_the_name_and_this_for_less_than_pictures():
    values = make_values({"Few, 4-shot": 0.8, "Few, 1-shot": 0.8, "Plain, 0-shot": 0.8, "Learned, 0-shot": 0.8})
    requirements = make_requirements(values, ("Learned",))
    order = recommendation.sort_by_effort(requirements)
    assert list(order.name) == ["Learned, 0-shot", "Plain, 0-shot", "Few, 1-shot", "Few, 4-shot"]
    said = [recommendation.describe_requirements(row) for row in order.itertuples()]
    assert said[:2] == ["nothing", "the product's name"] and said[3] == "the product's name and 4 good pictures"
    own = requirements.assign(own_masks=requirements.learned)
    assert recommendation.sort_by_effort(own).name.iloc[-1] == "Learned, 0-shot"
    imported = requirements.assign(known=~requirements.learned)  # nobody knows what it asks for
    assert recommendation.sort_by_effort(imported).name.iloc[-1] == "Learned, 0-shot"


def test_a_method_that_scores_pictures_together_competes_only_where_they_are_judged_so():
    values = make_values({"Plain, 0-shot": 0.8, "Batched, 0-shot": 0.9})
    requirements = make_requirements(values).assign(batched=lambda rows: rows.method == "Batched", product_name=False)
    said = [
        recommendation.describe_requirements(row) for row in recommendation.sort_by_effort(requirements).itertuples()
    ]
    assert said == ["nothing", "many unlabelled pictures of the product at once"]
    for batched, taken in ((False, "Plain, 0-shot"), (True, "Batched, 0-shot")):
        line = Situation(name="Line", measure="image_auroc", batched=batched)
        assert recommendation.recommend(values, requirements, [line])["take"].tolist() == [taken]


def test_situations_exclude_what_they_cannot_give():
    means = {"Learned, 0-shot": 0.9, "Few, 0-shot": 0.5, "Few, 1-shot": 0.7, "Few, 4-shot": 0.8}
    assert recommend(means, ("Learned",))[0]["take"] == "Learned, 0-shot"
    assert recommend(means, ("Learned",), training=False)[0]["take"] == "Few, 4-shot"
    assert recommend(means, ("Learned",), training=False, references=2)[0]["take"] == "Few, 1-shot"
    row, sentence = recommend(means, ("Learned",), training=False, references=0)
    assert row["take"] == "Few, 0-shot" and row.verdict == recommendation.ONLY and "the only method here" in sentence


def test_a_time_limit_leaves_slower_methods_and_unknown_times_out():
    values = make_values({"Slow, 0-shot": 0.9, "Fast, 0-shot": 0.7, "Imported, 0-shot": 0.95})
    requirements = make_requirements(values, Slow=900.0, Fast=20.0)
    requirements.loc[requirements.method == "Imported", "ms"] = np.nan
    line = [Situation(name="Line", measure="image_auroc", time_limit=100)]
    table = recommendation.recommend(values, requirements, line)
    assert table["take"].tolist() == ["Fast, 0-shot"]


def test_more_resources_never_give_worse_advice():
    """Whatever the figures: references, training or time in addition cannot cost more than the margin."""
    stream = np.random.default_rng(0)
    names = ["A, 0-shot", "A, 1-shot", "A, 4-shot", "B, 0-shot", "C, 1-shot", "C, 4-shot"]
    for _ in range(25):
        values = make_values(dict(zip(names, stream.uniform(0.6, 0.8, len(names)), strict=True)))
        values["image_auroc"] += stream.normal(0, stream.choice([0.003, 0.03]), len(values))
        values.loc[stream.integers(len(values), size=2), "image_auroc"] = np.nan  # a method lacks a category
        requirements = make_requirements(values, ("B",), A=5.0, B=50.0, C=20.0)
        for poor, rich in (
            ({"references": 0}, {"references": 1}),
            ({"references": 1}, {"references": FULL}),
            ({"training": False}, {}),
            ({"time_limit": 10}, {"time_limit": 30}),
        ):
            lines = [Situation(name="Line", measure="image_auroc", **given) for given in (poor, rich)]
            taken = recommendation.recommend(values, requirements, lines).taken
            assert np.isnan(taken[0]) or taken[1] >= taken[0] - recommendation.MARGINS["image_auroc"]


def test_a_method_without_a_category_that_most_have_does_not_compete():
    values = make_values({"One, 0-shot": 0.8, "Other, 0-shot": 0.7, "Half, 0-shot": 0.99})
    values = values[(values.method != "Half") | values.category.isin(["rigid0", "rigid1"])]
    line = [Situation(name="Line", measure="image_auroc")]
    table = recommendation.recommend(values, make_requirements(values), line)
    assert table.n.tolist() == [8] and table["take"].tolist() == ["One, 0-shot"]
    assert table.left_out.tolist() == ["Half, 0-shot"]


def test_few_categories_without_images_have_no_interval():
    few = {"rigid0": "rigid", "rigid1": "rigid"}
    for groups in (few, {"rigid0": "rigid"}):
        row, sentence = recommend({"One, 0-shot": 0.9, "Other, 0-shot": 0.5}, groups=groups)
        assert row["take"] == "One, 0-shot" and row.verdict == comparison.NO_DIFFERENCE and np.isnan(row.low)
        assert "too few for an interval" in sentence and "1.000" not in sentence and "inf" not in sentence


def test_nothing_measured_is_nothing_to_compare():
    values = make_values({"One, 0-shot": 0.9, "Other, 0-shot": 0.5}).assign(image_auroc=np.nan)
    line = [Situation(name="Line", measure="image_auroc")]
    table = recommendation.recommend(values, make_requirements(values), line)
    assert "no method" in recommendation.explain_choice(next(table.itertuples()))


def test_methods_that_do_not_differ_are_rarely_told_apart():
    """With no true difference between five methods the best is said to be better than all in at most 5 % of draws."""
    stream, ahead, draws = np.random.default_rng(1), 0, 120
    names = [f"M{number}, 0-shot" for number in range(5)]
    line = [Situation(name="Line", measure="image_auroc")]
    values = make_values(dict.fromkeys(names, 0.8))
    requirements = make_requirements(values)
    for _ in range(draws):
        values["image_auroc"] = 0.8 + stream.normal(0, 0.02, len(values))
        ahead += (
            recommendation.recommend(values, requirements, line, {"image_auroc": 0.0}).verdict[0]
            == recommendation.BETTER
        )
    assert ahead <= stats.binom.ppf(0.999, draws, 0.05)


def notebook_situations() -> list[dict]:
    """The list that notebook 17 offers for editing."""
    cells = json.loads((ROOT / "notebooks/17_which_method.ipynb").read_text(encoding="utf-8"))["cells"]
    source = next("".join(cell["source"]) for cell in cells if "listed = [" in "".join(cell["source"]))
    space: dict = {"config": config}
    exec(source[: source.index("situations = [")], space)
    return space["listed"]


def published_values(dataset: str) -> pd.DataFrame:
    """Published figures by category, WinCLIP's by the rerun that has them for each number of references."""
    table = pd.read_csv(datasets.REFERENCE / "published_results.csv", dtype={"shots": str})
    sources = {"WinCLIP (zqhang reimpl)": "WinCLIP", "AnomalyCLIP": "AnomalyCLIP"}
    table = table[(table.dataset == dataset) & table.method.isin(sources) & (table.category != "mean")]
    table = table[table.trust.isin(["primary", "reimpl"]) & table.metric.isin(recommendation.MEASURED)]
    table = table.assign(method=table.method.map(sources), shots=table.shots.astype(int), value=table.value / 100)
    wide = table.pivot_table(index=["method", "shots", "category"], columns="metric", values="value").reset_index()
    wide["name"] = wide.method + ", " + wide.shots.astype(str) + "-shot"
    known = pd.read_csv(datasets.REFERENCE / "categories.csv").query("dataset == @dataset").set_index("category").group
    return wide.assign(group=wide.category.map(known), **{recommendation.FAINT: np.nan})


def test_published_figures_get_a_usable_answer_in_most_situations():
    """At least seven of the nine situations that they can answer name one method and how sure that is."""
    values = published_values("MVTec AD")
    requirements = make_requirements(values, ("AnomalyCLIP",), WinCLIP=200.0, AnomalyCLIP=155.0)
    listed = [Situation(**row) for row in notebook_situations() if row["measure"] != recommendation.FAINT]
    table = recommendation.recommend(values, requirements, listed)
    usable = table[(table.verdict == recommendation.ONLY) | table.low.notna()]
    assert len(table) >= 9 and len(usable) >= len(table) - 2
    assert table["take"].notna().all()
    assert not any("nan" in recommendation.explain_choice(row) for row in table.itertuples())


def test_a_misspelt_situation_is_refused_by_name():
    for number, row in enumerate(notebook_situations()):
        config.check_record(Situation, row, f"Situation {number}")
    wrong = {"name": "Line", "measure": "image_auroc", "refernces": 2}
    refused(lambda: config.check_record(Situation, wrong, "Situation 3"), "Situation 3", "refernces", "references")


# ---------------------------------------------------------------- over images: one product


def write_product(folder, good: int, defective: int, qualities: dict[str, float]) -> recommendation.Results:
    """One part with masks, and imported maps of methods: so much of the mask over noise that all of them share."""
    stream, size = np.random.default_rng(0), 20
    for number in range(good):
        paint(folder / f"data/part/good/{number:03}.png", number, (size, size))
    saved = {name: {} for name in qualities}
    for number in range(good + defective):
        kind, stem = ("good", number) if number < good else ("dent", number - good)
        mask, noise = np.zeros((size, size), bool), stream.normal(size=(size, size))
        if kind == "dent":
            top, left = stream.integers(2, size - 8, 2)
            mask[top : top + 6, left : left + 6] = True
            paint(folder / f"data/part/dent/{stem:03}.png", 1000 + number, (size, size))
            target = folder / f"data/part/ground_truth/dent/{stem:03}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * 255).save(target)
        for name, quality in qualities.items():
            own = stream.normal(size=(size, size))
            saved[name][f"{kind}-{stem:03}"] = (quality * mask + noise + 0.3 * own).astype(np.float32)
    imports = []
    for name, maps in saved.items():
        (folder / name).mkdir()
        np.savez(folder / name / "part.npz", **maps)
        imports.append({"name": name, "path": str(folder / name)})
    chosen = small_profile(folder / "data", folder / "cache", methods=[], imports=imports, evaluation_size=size)
    return run.run(chosen)


def test_one_product_gets_the_method_that_is_best_by_a_clear_paired_margin(tmp_path):
    """240 good and 60 defective pictures; one of three methods is far better, one a little, both clearly."""
    product = write_product(tmp_path, 240, 60, {"Good": 4.0, "Fair": 1.2, "Poor": 0.9})
    contrasts = by_defect.measure_defects(product)
    values = recommendation.measure_methods(product, contrasts)
    requirements = recommendation.list_requirements(product, pd.DataFrame())
    lines = [Situation(name=f"Line {name}", measure=name) for name in ("aupro", "pixel_auroc", "image_auroc")]
    images = ImageComparison(product, contrasts)
    table = recommendation.recommend(values, requirements, lines, images=images)
    assert (
        (table["take"] == "Good, zero-shot").all()
        and (table.verdict == recommendation.BETTER).all()
        and (table.low > 0).all()
    )
    units = {recommendation.describe_units(row) for row in table.itertuples()}
    assert units == {"240 good and 60 defective pictures of part"}
    # the small lead of the second over the third is shown too, where the best is left out
    rest = recommendation.recommend(values, requirements[requirements.method != "Good"], lines, images=images)
    assert (rest["take"] == "Fair, zero-shot").all() and (rest.verdict == recommendation.BETTER).all()
    assert rest.difference.between(0.02, 0.4).all()
    # with no masks nothing is said of where defects are, and no interval is made up
    bare = ImageComparison(product, contrasts)
    bare.scores["aupro"] = bare.scores["aupro"].assign(mask="")
    row = recommendation.recommend(values, requirements, lines[:1], images=bare).iloc[0]
    assert row.verdict == comparison.NO_DIFFERENCE and np.isnan(row.low)


def test_resampled_pixels_are_the_exact_metrics_of_the_drawn_images():
    stream = np.random.default_rng(3)
    masks = [np.zeros((12, 12), bool) for _ in range(6)]
    for number in (3, 4, 5):
        masks[number][2:6, number : number + 3] = True
        masks[number][9:11, 0:2] = True
    maps = [(stream.normal(size=(12, 12)) + mask).astype(np.float32) for mask in masks]
    times = np.array([[1, 1, 1, 1, 1, 1], [2, 0, 1, 0, 2, 1], [0, 3, 0, 1, 0, 2]])
    edges = np.unique(np.concatenate(maps))  # a bin for each score: nothing is tied that is not
    auroc, aupro = pixel_ranking.CountsByImage(
        edges, pixel_ranking.split_pixels(zip(maps, masks, strict=True))
    ).resampled(times, 0.3)
    for draw, counts in enumerate(times):
        pairs = [pair for pair, often in zip(zip(maps, masks, strict=True), counts, strict=True) for _ in range(often)]
        exact = metrics.pixel_metrics(pairs, 0.3)
        assert auroc[draw] == pytest.approx(exact["pixel_auroc"], abs=1e-6)
        assert aupro[draw] == pytest.approx(exact["aupro"], abs=1e-5)
    rough = pixel_ranking.CountsByImage(
        pixel_ranking.spread_edges(np.concatenate(maps[:3])), pixel_ranking.split_pixels(zip(maps, masks, strict=True))
    )
    assert np.abs(rough.resampled(times, 0.3)[0] - auroc).max() < 0.01


def test_faint_defects_are_ranked_against_the_good_images_of_their_category(results):
    """By hand: of the least visible third, the share of good images that each outscores, averaged."""
    contrasts = results.scores[results.scores["mask"] != ""].drop_duplicates("image").reset_index(drop=True)
    contrasts["contrast"] = np.arange(len(contrasts), dtype=float)
    values = recommendation.measure_methods(results, contrasts)
    faint = set(contrasts.image[contrasts.contrast <= contrasts.contrast.quantile(1 / 3)])
    for row in values[values.shots == 0].itertuples():
        scores = results.scores
        rows = scores[(scores.method == row.method) & (scores.shots == 0) & (scores.category == row.category)]
        good, bad = rows[rows.label == 0].score.to_numpy(), rows[rows.image.isin(faint)].score.to_numpy()
        wins = [(good < score).mean() + 0.5 * (good == score).mean() for score in bad]
        assert row.faint_auroc == pytest.approx(np.mean(wins) if wins else np.nan, nan_ok=True)


# ---------------------------------------------------------------- what methods ask for


def test_the_time_of_a_method_is_that_with_as_many_references(results):
    steps = dict.fromkeys(recommendation.STEPS, 1.0) | {"memory": 5.0}
    name = results.profile.methods[0].name
    costs = pd.DataFrame([{"method": name, "shots": shots} | steps | {"score": 10.0**shots} for shots in (0, 2)])
    requirements = recommendation.list_requirements(results, costs).set_index("shots")
    assert requirements.ms.to_dict() == {0: 4.0, 1: 103.0} and set(requirements.memory) == {5.0}
    assert requirements.product_name.all() and not requirements.learned.any()
    assert recommendation.list_requirements(results, costs[:1]).ms.tolist() == [4.0, 4.0]
    assert recommendation.list_requirements(results, pd.DataFrame()).ms.isna().all()


def test_every_method_is_timed_without_references_and_with_the_most(results, monkeypatch):
    def measured(profile, spec, rows, repeats, memory):
        shots = max(profile.shots)
        return {"method": spec.name, "shots": shots, "encode": 9.0, "score": 2.0 if shots else 1.0, "bare": 1.0}

    monkeypatch.setattr(recommendation.efficiency, "measure_costs", measured)
    costs = recommendation.measure_costs(results.profile, None)
    assert costs.shots.tolist() == [1, 0] and costs.score.tolist() == [2, 1] and costs.encode.tolist() == [9, 9]
    assert len(recommendation.measure_costs(results.profile.model_copy(update={"shots": [0]}), None)) == 1


def test_a_word_free_prompt_asks_for_no_name():
    """AnomalyCLIP's prompts say "object" whatever the product is; WinCLIP's name it; memory banks read no words."""
    index = pd.DataFrame([{"class_name": "bolt", "category": "bolt"}])
    reads = {}
    for spec in config.load_profile("demo").methods:
        chosen = recommendation.methods.choose(spec, config.load_profile("demo"))
        reads[spec.method] = chosen.names_product(index.iloc[0])
    assert reads == {"winclip": True, "anomalyclip": False}


def test_a_method_is_named_with_its_pictures():
    names = ["A, B, zero-shot", "A, 1-shot", "A, 4-shot", "A, full-shot"]
    assert [recommendation.name_with_pictures(name) for name in names] == [
        "A, B without good pictures", "A with 1 good picture", "A with 4 good pictures", "A with all good pictures",
    ]  # fmt: skip


# ---------------------------------------------------------------- groups and references of own pictures


def test_a_profile_gives_own_categories_their_groups(results):
    table, _ = datasets.build_index(results.profile.model_copy(update={"groups": {"plate": "rigid"}}))
    assert table.groupby("category").group.first().to_dict() == {"cloth": "unknown", "plate": "rigid"}
    changed = results.profile.model_copy(update={"groups": {"plat": "rigid"}})
    refused(lambda: datasets.build_index(changed), "'groups'", "plat", "plate")
    wrong = {"groups": {"plate": "stiff"}}
    refused(lambda: small_profile(results.profile.path("x"), results.cache, **wrong), "groups.plate", "texture")


def test_all_references_of_a_folder_without_a_train_split_are_those_held_out(tmp_path):
    for number in range(9):
        paint(tmp_path / "data/good" / f"{number}.png", number)
        paint(tmp_path / "data/dent" / f"{number}.png", 50 + number, spot=True)
    chosen = small_profile(tmp_path / "data", tmp_path / "cache", shots=[0, 1, "full"])
    table, notes = datasets.build_index(chosen)
    assert (table.split == "reference").sum() == 4 and "4 of 9" in " ".join(notes)
    drawn = datasets.draw_references(table, "data", FULL, 0)
    assert len(drawn) == 4 and set(drawn.split) == {"reference"}


def test_holms_levels_agree_with_its_decisions():
    probabilities = [0.001, 0.02, 0.2, 0.04]
    assert statistics.holm(probabilities) == [True, False, False, False]
    assert statistics.holm_levels(probabilities) == pytest.approx([1 - 0.05 / 4] + [1 - 0.05 / 3] * 3)
    assert statistics.holm_levels([0.001, 0.002]) == pytest.approx([1 - 0.05 / 2, 0.95])


def test_delongs_test_over_one_category_is_delongs_test():
    stream = np.random.default_rng(0)
    labels = np.repeat([0, 1], 20)
    sides = [labels + stream.normal(0, spread, 40) for spread in (0.6, 1.2)]
    tables = [
        pd.DataFrame({"category": "a", "image": range(40), "label": labels, "score": side, "seed": 0}) for side in sides
    ]
    *_, p = statistics.delong(labels, *sides)
    assert statistics.macro_delong(*tables) == pytest.approx(p)
    twice = [pd.concat([table, table.assign(category="b")]) for table in tables]
    assert statistics.macro_delong(*twice) < p  # the same difference in two categories is surer
