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


def verdict(check, *arguments, tables: study_claims.Tables = TABLES) -> str:
    """The verdict of one claim."""
    return study_claims.check_claims([("here", "what it says", check, *arguments)], tables).verdict[0]


def changed(item: str, metric: str, value, method="AnomalyCLIP", table="") -> study_claims.Tables:
    """The study's tables with one number changed."""
    mended = TABLES.study.copy()
    rows = (mended.item == item) & (mended.metric == metric) & (mended.method == method)
    rows &= mended.table.str.startswith(table)
    assert rows.any()
    mended.loc[rows, "value"] = str(value)
    return study_claims.Tables(study=mended)


HOLDS, FAILS, UNKNOWN = study_claims.HOLDS, study_claims.FAILS, study_claims.UNKNOWN


@pytest.mark.parametrize(
    ("check", "arguments", "expected", "other", "change"),
    [
        ("mean", ("AnomalyCLIP", "pixel_auroc"), FAILS, HOLDS, ("mean", "pixel_auroc", 0.911)),
        ("mean", ("AnomalyCLIP", "image_auroc"), HOLDS, FAILS, ("bottle", "image_auroc", 0.5)),
        ("mean", ("WinCLIP", "image_auroc"), HOLDS, FAILS, ("tile", "image_auroc", 0.9, "WinCLIP", "Table")),
        ("gain", ("pixel_auroc",), FAILS, HOLDS, ("relative_gain_percent", "pixel_auroc", 25.3, "claim")),
        ("gain", ("image_auroc",), HOLDS, FAILS, ("relative_gain_percent", "image_auroc", 55, "claim")),
        ("group", ("AnomalyCLIP", "image_auroc", "rigid"), FAILS, HOLDS, ("rigid", "image_auroc", 0.880)),
        ("group", ("AnomalyCLIP", "image_auroc", "texture"), HOLDS, FAILS, ("wood", "image_auroc", 0.5)),
        ("range", ("WinCLIP", ("tile", 0.149, "hazelnut", 0.904)), HOLDS, FAILS,
         ("cable", "image_auroc", 0.1, "WinCLIP")),
        ("flexible", (), FAILS, HOLDS, ("zipper", "image_auroc", 0.6)),
        ("contrast_gap", (), HOLDS, FAILS, ("Low", "auroc", 0.9)),
        ("threshold", (), UNKNOWN, FAILS, ("Medium", "auroc", 0.8)),
        ("hardest", (), UNKNOWN, FAILS, ("Missing Component", "auroc", 0.9)),
        ("same_types", (), HOLDS, FAILS, ("High", "auroc", 0.9)),
        ("room", (["capsule", "grid", "hazelnut"], 0.2), FAILS, UNKNOWN, ("hazelnut", "image_auroc", 0.7, "WinCLIP")),
        ("images", (), HOLDS, FAILS, ("mean", "n_test_images", 1700)),
    ],
)  # fmt: skip
def test_verdicts_follow_the_tables(check, arguments, expected, other, change):
    check = getattr(study_claims, f"check_{check}")
    assert verdict(check, *arguments) == expected
    assert verdict(check, *arguments, tables=changed(*change)) == other


def test_a_certain_hardest_type_would_hold():
    sure = TABLES.study.copy()
    sure.loc[(sure.group == "defect_type") & (sure.metric == "auroc_std"), "value"] = "0.001"
    assert verdict(study_claims.check_hardest, tables=study_claims.Tables(study=sure)) == HOLDS


def test_all_annotations_and_one_grouping_would_hold():
    fewer = TABLES.defects.head(52)
    assert verdict(study_claims.check_annotations, tables=study_claims.Tables(defects=fewer)) == HOLDS
    groups = TABLES.categories.copy()
    groups.loc[groups.category == "transistor", "group"] = "rigid"
    assert verdict(study_claims.check_grouping) == FAILS
    assert verdict(study_claims.check_grouping, tables=study_claims.Tables(categories=groups)) == HOLDS


def test_a_number_on_visa_or_with_references_would_count():
    row = {"table": "Table 7", "method": "WinCLIP", "shots": "1", "group": "VisA", "item": "candle", "metric": "fps"}
    more = study_claims.Tables(study=pd.concat([TABLES.study, pd.DataFrame([row | {"value": "0.9"}])]))
    for check, *arguments in ((study_claims.check_mention, "visa"), (study_claims.check_few_shot,)):
        assert (verdict(check, *arguments), verdict(check, *arguments, tables=more)) == (FAILS, HOLDS)


def test_what_is_stated_stands_in_the_claim_and_unprinted_parts_cannot_be_checked():
    parts = study_claims.check_parts, "@size1", "auroc", "WinCLIP", "all figures", "0.55"
    row = study_claims.check_claims([("Section 1", "Size 1 has", *parts)], TABLES).iloc[0]
    assert row["the study says"] == "Size 1 has: 0.55" and row.verdict == UNKNOWN
    assert row.recomputed.startswith("1 of the figures it needs")


PUBLISHED = [
    (study_claims.check_paper, "image_auroc"),
    (study_claims.check_paper, "pixel_auroc"),
    (study_claims.check_tile,),
    (study_claims.check_authors_log,),
    (study_claims.check_boards,),
]


def test_published_figures_decide():
    assert [verdict(*claim) for claim in PUBLISHED] == [FAILS, FAILS, FAILS, HOLDS, FAILS]
    figures = TABLES.figures.copy()
    ours = (figures.kind == "winclip") & ~figures.who.isin(["paper", "study"]) & (figures.shots == 0)
    figures.loc[ours, "value"] = 0.4
    other = study_claims.Tables(figures=figures)
    assert [verdict(*claim, tables=other) for claim in PUBLISHED[:3]] == [HOLDS, HOLDS, HOLDS]
    assert verdict(study_claims.check_authors_log, tables=changed("cable", "image_auroc", 0.7)) == FAILS


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
    figures = TABLES.figures[(TABLES.figures.dataset == "MVTec AD") & (TABLES.figures.shots == 0)]
    figures = figures[(figures.kind == "winclip") & (figures.metric == "image_auroc") & (figures.category != "mean")]
    sources = figures.pivot(index="category", columns="who", values="value")
    for who, r in {"study": 0.24, "zqhang (rerun)": 0.96}.items():
        n, correlation, *_ = study_claims.correlate(sources["paper"], sources[who])
        assert n == 15 and correlation == pytest.approx(r, abs=0.005)


def test_boards_are_counted_in_the_data_sets_that_the_study_is_about():
    """Other data sets of the same tables have boards too."""
    _, recomputed, holds, _ = study_claims.check_boards(study_claims.Tables())
    assert recomputed == "MVTec AD: 0, VisA: 4" and not holds
