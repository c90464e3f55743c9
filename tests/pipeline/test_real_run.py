"""The maps of a real WinCLIP run on ten categories of MVTec AD: figures of notebooks 04 to 06 by scikit-learn."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import shared
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from vlmad_lib import config, tables
from vlmad_lib.analysis import by_defect
from vlmad_lib.data import datasets
from vlmad_lib.pipeline import run

TEN = ["bottle", "capsule", "carpet", "hazelnut", "leather", "metal_nut", "screw", "toothbrush", "transistor", "wood"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    values = {
        "title": "real run", "dataset": "mvtec", "root": str(shared("data/mvtec_ad")), "categories": TEN,
        "imports": [{"name": "outside", "path": str(shared("data/winclip_run"))}],
        "cache": str(tmp_path_factory.mktemp("cache")),
    }  # fmt: skip
    return run.run(config.check_record(config.Profile, values, "test"))


@pytest.fixture(scope="module")
def raw(results):
    """Label, defect and largest map value of every image, straight from the files."""
    rows = []
    for category in TEN:
        with np.load(shared("data/winclip_run") / f"{category}.npz") as archive:
            for key in archive.files:
                defect, _, stem = key.rpartition("-")
                rows.append((category, defect, stem, int(defect != "good"), float(archive[key].max())))
    return pd.DataFrame(rows, columns=["category", "defect", "stem", "label", "score"])


def test_category_table(results, raw):
    cells = tables.average_by_category(results.metrics).set_index("category")
    assert list(cells.index) == tables.order_categories(results.metrics) and len(cells) == 10
    for category in ("bottle", "carpet", "screw"):
        part = raw[raw.category == category]
        assert cells.image_auroc[category] == pytest.approx(roc_auc_score(part.label, part.score), abs=1e-9)
    part = raw[raw.category == "wood"]
    assert cells.image_ap["wood"] == pytest.approx(average_precision_score(part.label, part.score), abs=1e-9)


def test_pixel_auroc(results):
    rows = results.scores[results.scores.category == "toothbrush"]
    frames = results.framed(rows)
    masks = [
        np.zeros((240, 240), bool)
        if not row["mask"]
        else np.asarray(Image.open(row["mask"]).convert("L").resize((240, 240), Image.Resampling.BILINEAR)) > 127
        for _, row in rows.iterrows()
    ]
    expected = roc_auc_score(np.stack(masks).ravel(), np.stack(frames).ravel())
    found = results.metrics.set_index("category").pixel_auroc["toothbrush"]
    assert found == pytest.approx(expected, abs=2e-4)  # JPEG noise at the masks' edges is thresholded before, not after


def by_hand(scores: pd.DataFrame, chosen: pd.Series) -> float:
    """The mean over categories of the AUROC of the chosen anomalous images."""
    values = []
    for _, part in scores.groupby("category"):
        kept = part[(part.label == 0) | chosen.loc[part.index]]
        if kept.label.any():
            values.append(roc_auc_score(kept.label, kept.score))
    return float(np.mean(values))


@pytest.mark.slow
def test_contrast_table(results):
    measures = by_defect.measure_defects(results)
    measures["level"] = by_defect.assign_levels(measures)
    assert measures.contrast.notna().mean() > 0.99 and measures.groupby("level").size().min() > 200
    scores = results.scores.merge(measures[["image", "level"]], on="image", how="left")
    found = by_defect.summarise_auroc(scores, "level", by_defect.LEVELS).set_index("level")
    for level in by_defect.LEVELS:
        assert found.auroc[level] == pytest.approx(by_hand(scores, scores.level == level), abs=1e-9)
        assert found.low[level] < found.auroc[level] < found.high[level]


def test_defect_table(results, raw):
    scores = results.scores.assign(defect_class=by_defect.classify_defects(results.scores, results.profile))
    found = by_defect.summarise_auroc(scores, "defect_class", by_defect.CLASSES).set_index("defect_class")
    known = pd.read_csv(datasets.REFERENCE / "mvtec_defects.csv").set_index(["category", "defect_type"]).proposed_class
    kinds = pd.Series([known.get((row.category, row.defect), "") for row in raw.itertuples()])
    for one in ("Surface Damage", "Missing Material", "Logical Error"):
        assert found.auroc[one] == pytest.approx(by_hand(raw, kinds == one), abs=1e-9)
    assert found.images.sum() == raw.label.sum() and by_defect.UNKNOWN not in set(scores.defect_class)
