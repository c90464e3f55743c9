"""Breakdowns by contrast and defect class on made-up scores, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from vlmad_lib import InputError, config
from vlmad_lib.analysis import by_defect
from vlmad_lib.data import datasets
from vlmad_lib.demo.data import CATEGORIES
from vlmad_lib.evaluation import statistics


def table(
    good: int = 20, bad: int = 12, gap: float = 1.0, seed: int = 0, method: str = "WinCLIP", more: int = 0
) -> pd.DataFrame:
    """Two categories and some more on different scales, half of their defects clear (``level`` high), half hidden."""
    stream, rows = np.random.default_rng(seed), []
    for category, offset in (("plate", 0.0), ("cloth", 5.0), *((f"part{i}", float(i)) for i in range(more))):
        for i in range(good):
            rows.append((category, f"{category}g{i}", "good", "", 0, offset + stream.normal(), ""))
        for i in range(bad):
            level = ("low", "high")[i % 2]
            score = offset + stream.normal() + gap * (level == "high")
            rows.append((category, f"{category}b{i}", ("dent", "stain")[i % 2], "", 1, score, level))
    columns = ["category", "image", "defect", "labels", "label", "score", "level"]
    found = pd.DataFrame(rows, columns=columns).assign(method=method, shots=0, seed=0, group="rigid")
    found["level"] = found.level.mask(found.label == 0)
    return found


def test_one_category_is_plain_auroc():
    scores = table().query("category == 'plate'")
    found = by_defect.summarise_auroc(scores, "level", by_defect.LEVELS).set_index("level")
    for level in ("low", "high"):
        part = scores[(scores.label == 0) | (scores.level == level)]
        assert found.auroc[level] == pytest.approx(roc_auc_score(part.label, part.score))
        assert found.low[level] <= found.auroc[level] <= found.high[level]
    assert found.images.tolist() == [6, 6] and list(found.index) == ["low", "high"]


def test_categories_are_never_compared_with_one_another():
    scores = table(gap=3)
    found = by_defect.summarise_auroc(scores, "level", by_defect.LEVELS).set_index("level").auroc
    per = [by_defect.summarise_auroc(part, "level").set_index("level").auroc for _, part in scores.groupby("category")]
    for level in ("low", "high"):
        assert found[level] == pytest.approx(np.mean([one[level] for one in per]))
    moved = scores.assign(score=scores.score + 100 * (scores.category == "cloth"))
    assert by_defect.summarise_auroc(moved, "level").auroc.tolist() == pytest.approx(
        by_defect.summarise_auroc(scores, "level").auroc.tolist()
    )


def test_a_category_without_normal_images_is_left_out():
    scores = table()
    scores = scores[(scores.category != "cloth") | (scores.label == 1)]
    found = by_defect.summarise_auroc(scores, "level")
    assert found.images.tolist() == [6, 6]
    only = by_defect.summarise_auroc(scores[scores.category == "cloth"], "level")
    assert only.auroc.isna().all() and only.images.tolist() == [0, 0]
    nothing = only.iloc[:0].assign(category="", label=0, seed=0, shots=0, score=0.0)
    assert by_defect.summarise_recall(nothing, "level").empty
    assert by_defect.compare_auroc(nothing, "level", [("low", "high")]).empty


def test_counts_are_those_of_the_images_that_count():
    """Of two categories one lacks normal images: neither its images nor its types nor itself count."""
    scores = table()
    found = by_defect.summarise_auroc(scores[(scores.category != "cloth") | (scores.label == 1)], "level")
    assert found.images.tolist() == [6, 6] and found.categories.tolist() == [1, 1] and found.types.tolist() == [1, 1]
    assert by_defect.summarise_auroc(scores, "level").categories.tolist() == [2, 2]


def test_types_by_scikit_learn():
    scores = table()
    found = by_defect.summarise_types(scores).set_index(["category", "defect"])
    part = scores[(scores.category == "cloth") & ((scores.label == 0) | (scores.defect == "stain"))]
    assert found.auroc["cloth", "stain"] == pytest.approx(roc_auc_score(part.label, part.score))
    assert len(found) == 4 and (found.images == 6).all()
    row = found.loc["cloth", "stain"]
    assert (row.low, row.high) == pytest.approx(statistics.wilson(6 * row.auroc, 6))  # six images: no bootstrap


def test_recall_at_a_fixed_false_positive_rate_by_hand():
    normal = [0.1] * 18 + [0.6, 0.9]  # one of twenty may be exceeded, so the limit is 0.6
    scores = table(good=20, bad=4).query("category == 'plate'").copy()
    scores.loc[scores.label == 0, "score"] = normal
    scores.loc[scores.label == 1, "score"] = [0.5, 0.6, 0.7, 0.95]
    found = by_defect.summarise_recall(scores, "defect", rate=0.05).set_index("defect")
    assert found.recall.to_dict() == {"dent": 0.5, "stain": 0.5} and found.images.tolist() == [2, 2]
    assert tuple(found.loc["dent", ["low", "high"]]) == pytest.approx(statistics.wilson(1, 2))
    assert by_defect.summarise_recall(scores, "defect", rate=0.0).recall.tolist() == [0.0, 0.5]  # above 0.9 only
    detected = by_defect.detect_images(scores, 0.05)
    assert detected.groupby("label").hit.sum().to_dict() == {0: 1, 1: 2} and set(detected.limit) == {0.6}


# ---------------------------------------------------------------- classes


def test_demo_taxonomy_is_that_of_the_drawings():
    known = by_defect.read_taxonomy(config.load_profile("demo"))
    assert known == {(c.name, name): kind for c in CATEGORIES.values() for name, kind in c.defects.items()}
    assert set(known.values()) == set(by_defect.CLASSES)


def test_mvtec_and_visa_have_a_class_for_every_defect_of_theirs():
    mvtec = by_defect.read_taxonomy(config.load_profile("mvtec"))
    counts = pd.read_csv(datasets.REFERENCE / "dataset_counts.csv").query(
        "dataset == 'MVTec AD' and defect_type != 'good'"
    )
    assert len(mvtec) == 73 and set(mvtec) == set(zip(counts.category, counts.defect_type, strict=True))
    visa = by_defect.read_taxonomy(config.load_profile("visa"))
    assert len(visa) == 78 and visa["cashew", "burnt"] == "Appearance Change"


def test_classes_of_labels(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("category,defect_type,proposed_class\nplate,dent,Surface Damage\nplate,stain,Appearance Change\n")
    chosen = config.load_profile("own_images", {"taxonomy": str(file)})
    rows = pd.DataFrame(
        [("plate", "good", "", 0), ("plate", "dent", "", 1), ("plate", "combined", "dent;stain", 1),
         ("plate", "twice", "dent;dent", 1), ("plate", "odd", "", 1)],
        columns=["category", "defect", "labels", "label"],
    ).assign(image=list("abcde"))  # fmt: skip
    found = by_defect.classify_defects(rows, chosen)
    assert found.tolist() == ["", "Surface Damage", "Multiple", "Surface Damage", "unknown"]
    own = by_defect.classify_defects(
        rows, config.load_profile("own_images")
    )  # no taxonomy: folders' names say what a person knows
    assert own.tolist() == ["", "dent", "Multiple", "dent", "odd"]


@pytest.mark.parametrize(("text", "said"), [(None, "cannot|readable"), ("a,b\n1,2\n", "lacks the column")])
def test_a_wrong_taxonomy_is_refused(tmp_path, text, said):
    file = tmp_path / "mine.csv"
    if text:
        file.write_text(text)
    with pytest.raises(InputError, match=said) as error:
        by_defect.read_taxonomy(config.load_profile("own_images", {"taxonomy": str(file)}))
    assert str(file) in str(error.value)


# ---------------------------------------------------------------- differences of two kinds of defects


ENDS = [("low", "high")]


def test_of_one_product_images_decide():
    scores = table(60, 60, 2.0).query("category == 'plate'")
    row = by_defect.compare_auroc(scores, "level", ENDS).iloc[0]
    normal, low, high = (scores.score[chosen].to_numpy() for chosen in (
        scores.label == 0, scores.level == "low", scores.level == "high"
    ))  # fmt: skip
    assert tuple(row[["difference", "low", "high"]]) == statistics.subset_difference(normal, high, low)
    assert row.low > 0 and (row.over, row.n) == ("images", 60) and (row.categories, row.images) == (1, 60)


def test_one_category_of_many_decides_nothing():
    scores = table(60, 60, 6.0, more=4)
    scores["level"] = scores.level.where(scores.category == "plate")
    row = by_defect.compare_auroc(scores, "level", ENDS).iloc[0]
    assert tuple(row[["low", "high"]]) == (-1, 1) and (row.over, row.n) == ("categories", 1)
    none = by_defect.compare_auroc(scores.assign(level=scores.level.replace("low", np.nan)), "level", ENDS)
    assert none.n.tolist() == [0] and none.difference.isna().all()


def clustered(seed: int, spread: float = 1.5, categories: int = 10) -> pd.DataFrame:
    """Categories whose low defects are of one type and whose high ones of another, equally hard on the average.

    How hard a type is varies with ``spread``; images of one type are much alike, as those of real products are.
    """
    stream, rows = np.random.default_rng(seed), []
    for number in range(categories):
        rows += [(f"c{number}", "good", 0, stream.normal(), None, 0.0) for _ in range(20)]
        for level, visible in (("low", 1.0), ("high", 9.0)):
            hardness = stream.normal(1, spread)
            values = zip(stream.normal(hardness, 1, 15), visible + stream.random(15), strict=True)
            rows += [(f"c{number}", level, 1, score, level, measured) for score, measured in values]
    columns = ["category", "defect", "label", "score", "level", "contrast"]
    scores = pd.DataFrame(rows, columns=columns).assign(method="A", shots=0, seed=0, group="rigid", labels="")
    return scores.assign(image=scores.index.astype(str))


def decided(scores: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, over_images: bool) -> list[bool]:
    """Whether the difference of the levels and the correlation with contrast are decided, over images or categories."""
    with monkeypatch.context() as patch:
        if over_images:
            patch.setattr(statistics, "ENOUGH", 1000)
        compared, related = (
            by_defect.compare_auroc(scores, "level", ENDS),
            by_defect.correlate_measures(scores, ["contrast"]),
        )
    return [bool(table.low[0] > 0 or table.high[0] < 0) for table in (compared, related)]


def test_defects_alike_within_categories_prove_no_effect_of_contrast(monkeypatch):
    scores = clustered(0)
    assert decided(scores, monkeypatch, True) == [True, True]  # as if each image were a product of its own
    assert decided(scores, monkeypatch, False) == [False, False]


@pytest.mark.slow
def test_intervals_over_categories_decide_no_more_than_they_say(monkeypatch):
    draws = [clustered(seed) for seed in range(300)]
    over_images = np.mean([decided(scores, monkeypatch, True) for scores in draws[:40]], axis=0)
    over_categories = np.mean([decided(scores, monkeypatch, False) for scores in draws], axis=0)
    assert (over_images > 0.3).all()
    assert (over_categories < 0.05 + 2 * np.sqrt(0.05 * 0.95 / 300)).all()


def test_a_class_of_the_hardest_product_alone_is_not_harder_within_it():
    """One class stands in the hard categories, one in the easy ones; within each they are as hard as the others."""
    scores = table(40, 40, 0.0, more=8)
    hard = scores.category.isin(["plate", "cloth", "part0", "part1", "part2"])
    scores["score"] = scores.score + np.where((scores.label == 1) & ~hard, 3.0, 0.0)
    rare = scores.image.str.extract("b([0-9]+)", expand=False).astype(float) % 4 == 0
    scores["kind"] = np.where(rare, np.where(hard, "hard", "easy"), "other")
    scores["kind"] = scores.kind.mask(scores.label == 0, "")
    found = by_defect.summarise_auroc(scores, "kind").set_index("kind")
    assert found.high["hard"] < found.low["easy"]
    compared = by_defect.compare_auroc(scores, "kind", [(by_defect.REST, name) for name in ("hard", "easy")])
    assert (compared.low < 0).all() and (compared.high > 0).all() and compared.categories.tolist() == [5, 5]
    scores["score"] = scores.score - 2.0 * (scores.kind == "hard")
    again = by_defect.compare_auroc(scores, "kind", [(by_defect.REST, name) for name in ("hard", "easy")])
    assert again.high[0] < 0 < again.high[1]


def test_the_intervals_of_a_family_hold_together():
    scores = table(40, 60, 1.0, seed=2, more=4)
    alone = by_defect.compare_auroc(scores, "level", ENDS).iloc[0]
    family = by_defect.compare_auroc(scores, "level", [*ENDS, ("low", "high"), ("low", "nothing")])
    row = family.iloc[0]  # of a family of two: nothing to compare is no comparison
    assert family.n.tolist() == [6, 6, 0]
    assert row.low < alone.low and row.high > alone.high and row.difference == alone.difference
    wins = [
        by_defect.add_wins(part).groupby("level").win.mean().loc[["low", "high"]].diff().iloc[-1]
        for _, part in scores.groupby("category")
    ]
    assert tuple(row[["difference", "low", "high"]]) == pytest.approx(statistics.difference(wins, 0.975))


def test_correlations_are_those_of_each_category_averaged():
    """Faint defects stand in the easy category: across categories contrast seems to hurt, within them it helps."""
    rows = []
    for number, category in enumerate(("easy", "fair", "plain", "tough", "hard")):
        rows += [(category, "good", 0, i / 50, np.nan) for i in range(50)]
        for i in range(20):
            rows.append((category, f"kind{i % 4}", 1, 0.5 - 0.1 * number + i / 60 + 0.07 * (i % 3), 30 * number + i))
    rows.append(("single", "good", 0, 0.0, np.nan))
    rows.append(("single", "kind0", 1, 1.0, 3.0))
    scores = pd.DataFrame(rows, columns=["category", "defect", "label", "score", "contrast"])
    scores = scores.assign(image=scores.index.astype(str), method="A", shots=0, seed=0, area=1 / (1 + scores.contrast))
    found = by_defect.correlate_measures(scores.assign(sharpness=1.0), ["contrast", "area", "sharpness"])
    at = found.set_index("measure")
    won = by_defect.add_wins(scores)
    assert won.contrast.corr(won.win, method="spearman") < 0 < at.low["contrast"]
    each = [
        part.contrast.corr(part.win, method="spearman") for name, part in won.groupby("category") if name != "single"
    ]
    mean, low, high = statistics.paired(each, statistics.together(3))
    expected = (mean, max(low, -1), min(high, 1))
    assert tuple(at.loc["contrast", ["rank correlation", "low", "high"]]) == pytest.approx(expected)
    assert at["rank correlation"]["area"] == pytest.approx(-mean)
    assert at.categories["contrast"] == 5 and at.images["contrast"] == 100  # the single image has no order
    assert np.isnan(at["rank correlation"]["sharpness"]) and at.categories["sharpness"] == 0


def test_levels_are_told_apart_by_their_difference():
    """Intervals that overlap do not make a difference undecided: easy categories are easy at both levels."""
    scores = table(40, 80, 0.8, seed=2, more=6)
    scores["score"] = scores.score + (scores.label == 1) * scores.category.map(
        dict(zip(scores.category.unique(), np.linspace(-1, 1.5, 8), strict=True))
    )
    at = by_defect.summarise_auroc(scores, "level", by_defect.LEVELS).set_index("level")
    row = by_defect.compare_auroc(scores, "level", ENDS).iloc[0]
    assert row.difference == pytest.approx(at.auroc["high"] - at.auroc["low"])
    assert at.low["high"] < at.high["low"] and row.low > 0
    turned = by_defect.compare_auroc(scores, "level", [("high", "low")]).iloc[0]
    assert tuple(turned[["difference", "low", "high"]]) == pytest.approx((-row.difference, -row.high, -row.low))


def test_recall_is_the_mean_over_categories():
    scores = table(20, 12, 9.0, more=4)
    scores = scores[(scores.category != "plate") | (scores.label == 0) | scores.image.isin(["plateb0", "plateb1"])]
    hits = by_defect.detect_images(scores, 0.05).query("label == 1")
    each = hits.groupby("category").hit.mean()
    row = by_defect.summarise_recall(scores.assign(all="all"), "all", rate=0.05).iloc[0]
    assert row.recall == pytest.approx(each.mean()) != pytest.approx(hits.hit.mean())
    assert (row.low, row.high) == pytest.approx(tuple(statistics.paired(each)[1:])) and row.categories == 6


def test_the_curve_of_recall_rises_where_recall_does():
    scores = table(40, 60, 5.0, more=6)
    stream = np.random.default_rng(3)
    measure = np.where(scores.level == "high", 20.0, 5.0) * np.exp(stream.normal(0, 0.1, len(scores)))
    hits = by_defect.detect_images(scores.assign(contrast=measure), 0.05).query("label == 1")
    curve = by_defect.estimate_recall_curve(hits, "contrast", [5, 20])
    share = hits.groupby(["level", "category"]).hit.mean().groupby("level").mean()
    assert curve.recall.tolist() == pytest.approx([share["low"], share["high"]], abs=0.03)
    assert (curve.low <= curve.recall).all() and (curve.recall <= curve.high).all()
    assert curve.high[0] < curve.low[1] and set(curve.categories) == {8} and set(curve.images) == {480}
    whole = by_defect.estimate_recall_curve(hits, "contrast")
    assert len(whole) == 40 and whole.value.is_monotonic_increasing
    one = by_defect.estimate_recall_curve(hits[hits.category == "plate"], "contrast", [5, 20])
    assert one.high[0] < one.low[1] and set(one.categories) == {1}  # images of one product have a band too
    assert by_defect.estimate_recall_curve(hits.assign(contrast=np.nan), "contrast").empty


def test_a_rate_that_allows_no_image_is_said():
    scores = table(good=16)
    strict = by_defect.describe_strict_rate(scores, 0.05)
    assert strict.startswith("In 2 of 2 products the good test images (16)") and "rate of 5%" in strict
    assert by_defect.describe_strict_rate(scores, 0.1) == by_defect.describe_strict_rate(scores, 0.0) == ""
    few = scores[~scores.image.isin([f"plateg{i}" for i in range(10)])]
    assert by_defect.describe_strict_rate(few, 0.1).startswith("In 1 of 2 products the good test images (6)")
