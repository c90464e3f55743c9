"""The study's claims: the verdicts on its own tables, and that each flips when the tables change."""

from __future__ import annotations

import inspect

import numpy as np
import pandas as pd
import pytest

from vlmad_lib import ROOT
from vlmad_lib.analysis import study_claims
from vlmad_lib.methods import prompt_learner

TABLES = study_claims.Tables()


def verdicts(
    tables: study_claims.Tables = TABLES, claims=study_claims.CLAIMS, only: str | None = None
) -> dict[str, str]:
    """By what the study says; ``only`` where it says this."""
    found = study_claims.check_claims([claim for claim in claims if only in (None, claim[1])], tables)
    return dict(zip(found["the study says"], found.verdict, strict=True))


def changed(item: str, metric: str, value, method="AnomalyCLIP", table="") -> study_claims.Tables:
    """The study's tables with one number changed."""
    mended = TABLES.study.copy()
    rows = (mended.item == item) & (mended.metric == metric) & (mended.method == method)
    rows &= mended.table.str.startswith(table)
    assert rows.any()
    mended.loc[rows, "value"] = str(value)
    return study_claims.Tables(study=mended)


def test_the_studys_gap_is_judged_from_all_of_mvtec_ad_alone():
    names = list(TABLES.of("paper", "winclip", "image_auroc").index.drop("mean"))
    whole = pd.DataFrame({"category": names * 2, "dataset": "MVTec AD"})
    assert len(names) == 15 and study_claims.covers_benchmark(whole)
    assert not study_claims.covers_benchmark(whole.assign(dataset="demo")) and not study_claims.covers_benchmark(
        whole[whole.category != "tile"]
    )
    assert not study_claims.covers_benchmark(pd.DataFrame({"category": ["gear", "linen"], "dataset": "MVTec AD"}))


@pytest.mark.parametrize(
    ("says", "verdict", "other", "change"),
    [
        ("AnomalyCLIP, mean pixel AUROC", "false", "true", ("mean", "pixel_auroc", 0.911)),
        ("AnomalyCLIP, mean image AUROC", "true", "false", ("bottle", "image_auroc", 0.5)),
        ("WinCLIP, mean image AUROC", "true", "false", ("tile", "image_auroc", 0.9, "WinCLIP", "Table")),
        ("AnomalyCLIP's gain over WinCLIP in pixel AUROC, %", "false", "true",
         ("relative_gain_percent", "pixel_auroc", 25.3, "claim")),
        ("AnomalyCLIP's gain over WinCLIP in image AUROC, %", "true", "false",
         ("relative_gain_percent", "image_auroc", 55, "claim")),
        ("AnomalyCLIP, mean image AUROC, rigid", "false", "true", ("rigid", "image_auroc", 0.880)),
        ("AnomalyCLIP, mean image AUROC, texture", "true", "false", ("wood", "image_auroc", 0.5)),
        ("WinCLIP's range of image AUROC", "true", "false", ("cable", "image_auroc", 0.1, "WinCLIP")),
        ("Both methods struggle with flexible objects", "false", "true", ("zipper", "image_auroc", 0.6)),
        ("High contrast is 17.1 points above low contrast", "true", "false", ("Low", "auroc", 0.9)),
        ("Medium contrast suggests a threshold effect", "cannot be checked", "false", ("Medium", "auroc", 0.8)),
        ("Missing components are the most difficult", "cannot be checked", "false",
         ("Missing Component", "auroc", 0.9)),
        ("Both tables rest on the same defect types", "true", "false", ("High", "auroc", 0.9)),
        ("Capsule, grid and hazelnut gain from one reference image", "false", "cannot be checked",
         ("hazelnut", "image_auroc", 0.7, "WinCLIP")),
        ("Total test images", "true", "false", ("mean", "n_test_images", 1700)),
    ],
)  # fmt: skip
def test_verdicts_follow_the_tables(says, verdict, other, change):
    assert verdicts(only=says) == {says: verdict}
    assert verdicts(changed(*change), only=says) == {says: other}


def test_a_certain_hardest_type_would_be_true():
    sure = TABLES.study.copy()
    sure.loc[(sure.group == "defect_type") & (sure.metric == "auroc_std"), "value"] = "0.001"
    assert verdicts(study_claims.Tables(study=sure))["Missing components are the most difficult"] == "true"


def test_all_annotations_and_one_grouping_would_be_true():
    fewer = TABLES.defects.head(52)
    assert verdicts(study_claims.Tables(defects=fewer))["Uses MVTec AD's rich annotations"] == "true"
    groups = TABLES.categories.copy()
    groups.loc[groups.category == "transistor", "group"] = "rigid"
    says = "Transistor is a rigid object; transistor is a flexible object"
    assert (verdicts()[says], verdicts(study_claims.Tables(categories=groups))[says]) == ("false", "true")


def test_a_number_on_visa_or_with_references_would_count():
    row = {"table": "Table 7", "method": "WinCLIP", "shots": "1", "group": "VisA", "item": "candle", "metric": "fps"}
    more = study_claims.Tables(study=pd.concat([TABLES.study, pd.DataFrame([row | {"value": "0.9"}])]))
    for says in ("The study evaluates VisA", "One-shot and few-shot results are in the appendix"):
        assert (verdicts()[says], verdicts(more)[says]) == ("false", "true")


def test_published_figures_decide():
    found = verdicts(claims=study_claims.CONTRADICTIONS)
    assert list(found.values()) == ["false", "false", "false", "true", "false"]
    figures = TABLES.figures.copy()
    ours = (figures.kind == "winclip") & ~figures.who.isin(["paper", "study"]) & (figures.shots == 0)
    figures.loc[ours, "value"] = 0.4
    other = verdicts(study_claims.Tables(figures=figures), study_claims.CONTRADICTIONS)
    assert list(other.values())[:3] == ["true", "true", "true"]
    assert (
        "29 of n = 30"
        in study_claims.check_claims(study_claims.CONTRADICTIONS, changed("cable", "image_auroc", 0.7)).recomputed[3]
    )


def test_the_gap_to_the_paper_is_that_of_the_means():
    assert study_claims.measure_gaps(TABLES) == pytest.approx(
        {"image_auroc": 0.612 - 0.918, "pixel_auroc": 0.726 - 0.851}, abs=6e-4
    )
    figures = TABLES.figures.copy()
    figures.loc[(figures.who == "study") & (figures.category == "mean"), "value"] = 0.9
    assert study_claims.measure_gaps(study_claims.Tables(figures=figures))["image_auroc"] == pytest.approx(
        -0.018, abs=6e-4
    )


def test_what_is_so_of_the_learned_positions_is_the_codes():
    sizes = {name: value.default for name, value in inspect.signature(prompt_learner.PromptLearner).parameters.items()}
    told = "{context} positions at the input, {width} in each of blocks 2 to {depth}".format(**sizes)
    assert told in (ROOT / "notebooks" / "16_the_study_rechecked.ipynb").read_text(encoding="utf-8")


def test_correlation_is_pearsons_with_fishers_interval():
    from scipy.stats import pearsonr

    first, second = (pd.Series(np.random.default_rng(seed).normal(size=15), range(15)) for seed in (0, 1))
    expected = pearsonr(first, second)
    interval = expected.confidence_interval(0.95)
    assert study_claims.correlate(first, second) == pytest.approx((15, expected.statistic, interval.low, interval.high))
    assert study_claims.correlate(first[:3], second)[2:] == (-1, 1)  # three points say nothing
    assert study_claims.correlate(first[:5], first)[2:] == (-1, 1)
    assert np.isnan(study_claims.correlate(first[:2], second)[1])


def test_the_study_goes_its_own_way_and_a_good_reimplementation_does_not():
    from vlmad_lib.analysis import published

    figures = published.read_papers().assign(method="WinCLIP", group="texture")
    part = pd.concat([figures, published.read_study().assign(method="WinCLIP", group="texture")])
    part = part[(part.dataset == "MVTec AD") & (part.shots == 0) & (part.metric == "image_auroc")]
    found = study_claims.correlate_sources(part[(part.kind == "winclip") & (part.category != "mean")])
    r = found[found.against == "paper"].set_index("figures of").r
    assert r["study"] == pytest.approx(0.24, abs=0.005) and r["WinCLIP (zqhang reimpl)"] == pytest.approx(
        0.96, abs=0.005
    )
    assert found[found.against == "paper"].set_index("figures of").n["study"] == 15
