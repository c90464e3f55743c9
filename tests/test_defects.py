"""Breakdowns by contrast and defect class on made-up scores, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from vlmad_lib import InputError, contrast, data, defects, profile, statistics
from vlmad_lib.demo.data import CATEGORIES


def table(good: int = 20, bad: int = 12, gap: float = 1.0, seed: int = 0, method: str = "WinCLIP") -> pd.DataFrame:
    """Two categories on different scales, half of their defects clear (``level`` high) and half hidden (low)."""
    stream, rows = np.random.default_rng(seed), []
    for category, offset in (("plate", 0.0), ("cloth", 5.0)):
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
    found = defects.by(scores, "level", contrast.LEVELS).set_index("level")
    for level in ("low", "high"):
        part = scores[(scores.label == 0) | (scores.level == level)]
        assert found.auroc[level] == pytest.approx(roc_auc_score(part.label, part.score))
        assert found.low[level] <= found.auroc[level] <= found.high[level]
    assert found.images.tolist() == [6, 6] and list(found.index) == ["low", "high"]


def test_categories_are_never_compared_with_one_another():
    scores = table(gap=3)
    found = defects.by(scores, "level", contrast.LEVELS).set_index("level").auroc
    per = [defects.by(part, "level").set_index("level").auroc for _, part in scores.groupby("category")]
    for level in ("low", "high"):
        assert found[level] == pytest.approx(np.mean([one[level] for one in per]))
    moved = scores.assign(score=scores.score + 100 * (scores.category == "cloth"))
    assert defects.by(moved, "level").auroc.tolist() == pytest.approx(defects.by(scores, "level").auroc.tolist())


def test_a_category_without_normal_images_is_left_out():
    scores = table()
    scores = scores[(scores.category != "cloth") | (scores.label == 1)]
    found = defects.by(scores, "level")
    assert found.images.tolist() == [6, 6]
    only = defects.by(scores[scores.category == "cloth"], "level")
    assert only.auroc.isna().all() and only.images.tolist() == [0, 0]
    nothing = only.iloc[:0].assign(category="", label=0, seed=0, shots=0, score=0.0)
    recalled, apart = defects.recall(nothing, "level"), defects.apart(nothing, only)
    assert apart.empty and "n = 0" in defects.class_findings(only.iloc[:0], apart, recalled, 0.05)


def test_counts_are_those_of_the_images_that_count():
    """Of two categories one lacks normal images: neither its images nor its types nor itself count."""
    scores = table()
    found = defects.by(scores[(scores.category != "cloth") | (scores.label == 1)], "level")
    assert found.images.tolist() == [6, 6] and found.categories.tolist() == [1, 1] and found.types.tolist() == [1, 1]
    assert defects.by(scores, "level").categories.tolist() == [2, 2]


def test_types_by_scikit_learn():
    scores = table()
    found = defects.types(scores).set_index(["category", "defect"])
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
    found = defects.recall(scores, "defect", rate=0.05).set_index("defect")
    assert found.recall.to_dict() == {"dent": 0.5, "stain": 0.5} and found.images.tolist() == [2, 2]
    assert tuple(found.loc["dent", ["low", "high"]]) == pytest.approx(statistics.wilson(1, 2))
    assert defects.recall(scores, "defect", rate=0.0).recall.tolist() == [0.0, 0.5]  # above 0.9 only
    allowed = defects.false_positives(scores, 0.05)
    assert allowed["false positives"].tolist() == [1] and allowed["normal images"].tolist() == [20]


# ---------------------------------------------------------------- classes


def test_demo_taxonomy_is_that_of_the_drawings():
    known = defects.taxonomy(profile.load("demo"))
    assert known == {(c.name, name): kind for c in CATEGORIES.values() for name, kind in c.defects.items()}
    assert set(known.values()) == set(defects.CLASSES)


def test_mvtec_and_visa_have_a_class_for_every_defect_of_theirs():
    mvtec = defects.taxonomy(profile.load("mvtec"))
    counts = pd.read_csv(data.REFERENCE / "dataset_counts.csv").query("dataset == 'MVTec AD' and defect_type != 'good'")
    assert len(mvtec) == 73 and set(mvtec) == set(zip(counts.category, counts.defect_type, strict=True))
    visa = defects.taxonomy(profile.load("visa"))
    assert len(visa) == 78 and visa["cashew", "burnt"] == "Appearance Change"


def test_classes_of_labels(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("category,defect_type,proposed_class\nplate,dent,Surface Damage\nplate,stain,Appearance Change\n")
    chosen = profile.load("own_images", {"taxonomy": str(file)})
    rows = pd.DataFrame(
        [("plate", "good", "", 0), ("plate", "dent", "", 1), ("plate", "combined", "dent;stain", 1),
         ("plate", "twice", "dent;dent", 1), ("plate", "odd", "", 1)],
        columns=["category", "defect", "labels", "label"],
    ).assign(image=list("abcde"))  # fmt: skip
    found = defects.classes(rows, chosen)
    assert found.tolist() == ["", "Surface Damage", "Multiple", "Surface Damage", "unknown"]
    told = defects.unknown(rows.assign(defect_class=found))
    assert told.startswith("1 image has") and "plate/odd" in told
    assert defects.unknown(rows.assign(defect_class="Multiple")) == ""
    own = defects.classes(rows, profile.load("own_images"))  # no taxonomy: folders' names say what a person knows
    assert own.tolist() == ["", "dent", "Multiple", "dent", "odd"]


@pytest.mark.parametrize(("text", "said"), [(None, "cannot|readable"), ("a,b\n1,2\n", "lacks the column")])
def test_a_wrong_taxonomy_is_refused(tmp_path, text, said):
    file = tmp_path / "mine.csv"
    if text:
        file.write_text(text)
    with pytest.raises(InputError, match=said) as error:
        defects.taxonomy(profile.load("own_images", {"taxonomy": str(file)}))
    assert str(file) in str(error.value)


# ---------------------------------------------------------------- sentences


def test_findings_follow_the_data():
    told = {}
    for gap in (0.0, 6.0):
        scores = table(60, 60, gap)
        found = defects.by(scores, "level", contrast.LEVELS)
        scores = scores.assign(contrast=scores.level.map({"low": 1.0, "high": 9.0}), area=0.1, sharpness=np.nan)
        kinds = defects.types(scores).assign(contrast=[1.0, 5.0, 2.0, 6.0], area=0.1, sharpness=np.nan)
        related = defects.correlations(scores, kinds)
        told[gap] = defects.level_findings(found, defects.apart(scores, found, ("low", "high")), related)
    assert "not told apart" in told[0.0] and "n = 60 images" in told[0.0]
    assert "not told apart" not in told[6.0] and "told apart" in told[6.0]
    assert "1.000" in told[6.0] and told[0.0] != told[6.0]
    assert "within a category: detection rises with contrast" in told[6.0]
    assert "within a category: detection shows no sure relation to contrast" in told[0.0]


def test_correlations_across_and_within_categories_can_disagree():
    """Faint defects stand in the easy category: across categories contrast seems to hurt, within them it helps."""
    rows = []
    for number, category in enumerate(("easy", "hard")):
        rows += [(category, f"{category}g{i}", "good", 0, i / 50, np.nan) for i in range(50)]
        for i in range(20):
            rows.append((category, f"{category}b{i}", f"kind{i % 4}", 1, 0.5 - 0.4 * number + i / 60, 30 * number + i))
    scores = pd.DataFrame(rows, columns=["category", "image", "defect", "label", "score", "contrast"])
    scores = scores.assign(method="A", shots=0, seed=0, group="rigid", area=1 / (1 + scores.contrast), sharpness=1.0)
    medians = scores[scores.label == 1].groupby(["category", "defect"])[list(contrast.MEASURES)].median().reset_index()
    found = defects.correlations(scores, defects.types(scores).merge(medians, on=["category", "defect"]))
    at = found.set_index(["measure", "over"])["rank correlation"]
    assert at["contrast", "types"] < 0 < at["contrast", "images within a category"]
    assert at["contrast", "images within a category"] == pytest.approx(1, abs=0.01)
    assert at["area", "images within a category"] == pytest.approx(-1, abs=0.01)
    assert np.isnan(at["sharpness", "types"])
    told = defects.level_findings(*[pd.DataFrame(columns=["method", "level", "auroc"])] * 2, found)
    assert "rises with contrast (+1.00" in told and "n = 40" in told


def test_levels_are_told_apart_by_their_difference():
    """Intervals that overlap do not make a difference undecided: both levels share the normal images."""
    scores = table(40, 80, 0.8, seed=2)
    found = defects.by(scores, "level", contrast.LEVELS)
    at = found.set_index("level")
    row = defects.apart(scores, found, ("low", "high")).iloc[0]
    assert row.difference == pytest.approx(at.auroc["high"] - at.auroc["low"]) and row.pairs == 1
    assert at.low["high"] < at.high["low"] and row.low > 0
    turned = defects.apart(scores, found, ("high", "low")).iloc[0]
    assert (turned.difference, turned.high) == pytest.approx((-row.difference, -row.low), abs=0.03)


def test_the_hardest_and_the_easiest_are_set_apart_for_all_pairs():
    scores = table(40, 80, 1.0, seed=2)
    scores["kind"] = scores.level.mask(scores.defect.eq("stain") & scores.level.eq("high"), "other")
    scores.loc[scores.label == 1, "kind"] = [("a", "b", "c")[i % 3] for i in range(160)]
    found = defects.by(scores, "kind")
    row = defects.apart(scores, found).iloc[0]
    order = found.sort_values("auroc").kind.tolist()
    assert [row["first"], row.second] == [order[0], order[-1]] and (row["values"], row.pairs) == (3, 3)
    alone = defects.apart(scores, found, (order[0], order[-1])).iloc[0]
    assert alone.difference == row.difference > 0 and row.low < alone.low and row.high > alone.high
    assert defects.apart(scores, found.assign(images=5)).empty  # too few for a verdict of their own


def test_a_rate_that_allows_no_image_is_said():
    scores = table(good=16)
    assert defects.blind(scores, 0.05) == "no image of 16 in 2 of 2 categories"
    assert defects.blind(scores, 0.1) == defects.blind(scores, 0.0) == ""
    assert defects.blind(scores[~scores.image.isin([f"plateg{i}" for i in range(10)])], 0.1) == (
        "no image of 6 in 1 of 2 categories"
    )


def test_correlations_within_categories_know_what_their_means_cost():
    """A category of one defect has no order, and every other one loses a degree of freedom."""
    stream = np.random.default_rng(0)
    rows = [(f"c{c}", f"{c}-{i}", "good" if i < 5 else "dent", int(i > 4)) for c in range(12) for i in range(7)]
    scores = pd.DataFrame(rows[:-1], columns=["category", "image", "defect", "label"])
    values = {"score": stream.normal(size=83), "contrast": stream.normal(size=83), "area": np.nan, "sharpness": np.nan}
    scores = scores.assign(method="A", shots=0, seed=0, group="rigid", **values)
    none = pd.DataFrame(columns=["method", "category", "auroc", *contrast.MEASURES])
    row = defects.correlations(scores, none).query("measure == 'contrast' and n > 0").iloc[0]
    bad = scores[(scores.label == 1) & (scores.category != "c11")]
    bad = bad.assign(win=defects._won(scores).win)
    ranks = bad.groupby("category")[["contrast", "win"]].rank()
    expected = statistics.rank_correlation(ranks.contrast, ranks.win, 11)
    assert row.n == 22 and (row["rank correlation"], row.low, row.high) == pytest.approx(expected)


def test_class_findings_name_the_hardest_and_the_small():
    found = pd.DataFrame(
        [("A", "Surface Damage", 0.6, 0.55, 0.65, 40), ("A", "Structural Break", 0.9, 0.85, 0.95, 30),
         ("A", "Multiple", 0.2, 0.0, 0.8, 3)],
        columns=["method", "defect_class", "auroc", "low", "high", "images"],
    )  # fmt: skip
    recalled = pd.DataFrame({"method": "A", "defect_class": "x", "recall": [0.5, 1.0], "images": [10, 10]})
    between = pd.DataFrame(
        [("A", "Surface Damage", "Structural Break", 0.3, 0.1, 0.5, 3, 3)],
        columns=["method", "first", "second", "difference", "low", "high", "values", "pairs"],
    )
    told = defects.class_findings(found, between, recalled, 0.05)
    assert "Surface Damage is hardest (AUROC 0.600, n = 40), Structural Break easiest (0.900, n = 30): +0.300" in told
    assert "(+0.100 to +0.500), for all 3 pairs of classes together, told apart." in told
    assert "not told apart" in defects.class_findings(found, between.assign(low=-0.1), recalled, 0.05)
    assert "in each category it finds" in told
    few = defects.class_findings(found, between, recalled, 0.025, "no image of 16 in 12 of 12 categories")
    assert "at most 2.5% false positives in each category (no image of 16 in 12 of 12 categories) it finds" in few
    assert "Multiple (n = 3)" in told and "75% of all" in told.replace(" of\n", " of ")
    assert "hardest" not in defects.class_findings(found, between.iloc[:0], recalled, 0.05)


def test_beside_the_study():
    study = pd.read_csv(data.REFERENCE / "study_results.csv")
    found = pd.DataFrame({"method": "AnomalyCLIP", "level": ["low", "high"], "auroc": [0.7, 0.9]})
    both = defects.beside_study(found, "level", study[study.table == "Table 5"])
    assert both.study.tolist() == [0.768, 0.939] and both["study's types"].tolist() == [13, 25]
    other = defects.beside_study(
        found.assign(method=["WinCLIP", "AnomalyCLIP"]), "level", study[study.table == "Table 5"]
    )
    assert np.isnan(other.study[0]) and pd.isna(other["study's types"][0]) and other.study[1] == 0.939
    found = pd.DataFrame(
        {"method": "AnomalyCLIP", "defect_class": ["Missing Component", "unknown"], "auroc": [0.7, 0.9]}
    )
    both = defects.beside_study(found, "defect_class", study[study.table == "Table 6"])
    assert both.study.iloc[0] == 0.757 and np.isnan(both.study.iloc[1])
