"""Data sets with a split for thresholds: MVTec AD 2 and MVTec LOCO AD."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from conftest import make_loco, make_mvtec_ad2, paint, small_profile
from PIL import Image

from vlmad_lib import InputError, config, tables
from vlmad_lib.data import dataset_classes, datasets
from vlmad_lib.pipeline import run

COUNTS = {"train": 4, "validation": 4, "test": 8}


def build(root, tmp_path, **changes):
    return datasets.build_index(small_profile(root, tmp_path / "cache", **changes))


@pytest.mark.parametrize("below", ["", "can"])
def test_mvtec_ad_2_has_its_three_splits_and_leaves_out_what_has_no_labels(tmp_path, below):
    make_mvtec_ad2(tmp_path / "ad2")
    table, notes = build(tmp_path / "ad2" / below, tmp_path, dataset="mvtec2")
    assert dict(table.groupby("split").size()) == COUNTS and set(table.defect) == {"good", "bad"}
    assert (table[table.split != "test"].label == 0).all() and set(table.group) == {"rigid"}
    bad = table[table.label == 1]
    assert all(
        mask.endswith(f"bad/{image[-15:-4]}_mask.png") for mask, image in zip(bad["mask"], bad.image, strict=True)
    )
    assert "test_private and test_private_mixed have no public masks or labels; pictures left out: 2." in notes
    assert "can/train/good: 4 images where MVTec AD 2 (test_public) has 412." in notes
    assert "can/test/bad: 4 images where MVTec AD 2 (test_public) has 90." in notes
    assert set(datasets.select_tested(table).split) == {"test"}
    assert set(datasets.draw_references(table, "can", 2, 0).split) == {"train"}


def test_mvtec_loco_merges_the_masks_of_an_image_and_keeps_its_regions(tmp_path):
    root = make_loco(tmp_path / "loco")
    table, notes = build(root, tmp_path, dataset="loco")
    assert dict(table.groupby("split").size()) == COUNTS | {"test": 12}
    assert set(table[table.label == 1].defect) == {"logical_anomalies", "structural_anomalies"}
    assert notes == ["box: images with several masks: 4; what any of them marks is defect."]
    loco = datasets.DATASETS["loco"]
    for kind, areas, shares in (("logical", [600], [0.25]), ("structural", [300, 300], [1, 1])):
        image = str(root / f"box/test/{kind}_anomalies/001.png")
        regions = loco.read_regions(image)
        assert [mask.sum() for mask, _ in regions] == areas and [share for _, share in regions] == shares
        assert len(loco.list_region_files(image)) == 1 + len(areas)
    for changed in ("box/train/good/000.png", "box/test/good/000.png", "000.png"):
        assert loco.read_regions(str(root / changed)) == [] == datasets.DATASETS["mvtec2"].read_regions(changed)


def test_saturation_areas_are_those_of_the_official_evaluation(tmp_path):
    root = make_loco(tmp_path, count=1)
    image, file = str(root / "box/test/logical_anomalies/000.png"), root / "box/defects_config.json"
    for threshold, relative, share in ((9999, False, 1), (30, False, 0.05), (0.3345, True, 200 / 600)):
        entry = {"pixel_value": 40, "saturation_threshold": threshold, "relative_saturation": relative}
        file.write_text(json.dumps([entry]))
        [(_, found)] = datasets.DATASETS["loco"].read_regions(image)
        assert found == pytest.approx(share)


def test_what_is_wrong_in_the_folders_of_loco_is_named(tmp_path):
    root = make_loco(tmp_path / "loco", count=1)
    loco, image = datasets.DATASETS["loco"], str(root / "box/test/logical_anomalies/000.png")
    mask = root / "box/ground_truth/logical_anomalies/000/000.png"
    Image.fromarray(np.full((60, 60), 7, np.uint8)).save(mask)
    with pytest.raises(InputError, match=r"000.png has the values 7, where one of .*defects_config.json .*\(40, 90\)"):
        loco.read_regions(image)
    (root / "box/defects_config.json").write_text('{"defect_name": 1}')
    with pytest.raises(InputError, match="defects_config.json is no list of pixel_value"):
        loco.read_regions(image)
    (root / "box/defects_config.json").unlink()
    assert loco.read_regions(image) == []
    _, notes = build(root, tmp_path, dataset="loco")
    assert "box: defects_config.json is missing, so there is no sPRO; fetch it again." in notes


@pytest.mark.parametrize("name", ["mvtec2", "loco"])
def test_a_folder_in_another_layout_and_a_defect_without_a_mask_are_refused(tmp_path, name):
    test = {"mvtec2": "test_public", "loco": "test"}[name]
    paint(tmp_path / "other/can/train/good/0.png", 1)
    with pytest.raises(InputError, match=f"can has no folder {test}"):
        build(tmp_path / "other", tmp_path, dataset=name)
    paint(tmp_path / f"other/can/{test}/good/0.png", 2)
    paint(tmp_path / f"other/can/{test}/bad/0.png", 3, spot=True)
    with pytest.raises(InputError, match="bad/0.png has no mask in .*ground_truth"):
        build(tmp_path / "other", tmp_path, dataset=name)
    assert datasets.DATASETS[name].tree.startswith("<category>/{train,validation}/good/")


@pytest.mark.parametrize(
    ("said", "name"),
    [("MVTec AD 2", "mvtec2"), ("mvtec_loco", "loco"), ("MVTec LOCO AD", "loco"), ("mvtec-ad", "mvtec")],
)
def test_what_prompts_were_trained_on_is_known_by_any_spelling(said, name):
    assert config.normalise_dataset_name(said) == name and name in config.DATASETS


def test_known_counts_and_names_of_both_data_sets_are_complete():
    counts = pd.read_csv(dataset_classes.REFERENCE / "dataset_counts.csv")
    known = pd.read_csv(dataset_classes.REFERENCE / "categories.csv")
    for name, categories, totals in (("mvtec2", 8, (2528, 302, 1084)), ("loco", 5, (1778, 305, 1568))):
        title = datasets.DATASETS[name].title
        rows = counts[counts.dataset == title]
        assert tuple(rows.groupby("split").n_images.sum()[["train", "validation", "test"]]) == totals
        assert (
            set(rows.category) == set(known[known.dataset == title].category) and rows.category.nunique() == categories
        )


def test_a_run_counts_the_saturated_overlap_by_kind_of_defect_and_anew_with_another_saturation(tmp_path):
    root = make_loco(tmp_path / "loco", count=2)
    maps = {}
    for kind in ("good", "logical_anomalies", "structural_anomalies"):
        values = np.full((60, 60), 0.5)
        if kind != "good":
            values[20:40, 10:40] = 0
            values[20 : 25 if kind == "logical_anomalies" else 40, 10 : 40 if kind == "logical_anomalies" else 25] = 1
        maps |= {f"{kind}-{number:03}": values for number in range(2)}
    (tmp_path / "maps").mkdir()
    np.savez(tmp_path / "maps/box.npz", **maps)
    profile = small_profile(
        root, tmp_path / "cache", dataset="loco", methods=[], imports=[{"name": "tool", "path": str(tmp_path / "maps")}]
    )
    row = run.run(profile).metrics.iloc[0]
    # of 600 logical pixels 150 are marked, which is enough; of two structural regions one
    assert row.spro == pytest.approx((1 + 1 / 2) / 2) and row.aupro < row.spro
    entries = json.loads((root / "box/defects_config.json").read_text())
    entries[0]["saturation_threshold"] = 300
    (root / "box/defects_config.json").write_text(json.dumps(entries))
    results = run.run(profile)
    assert results.metrics.spro.item() == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert tables.list_metrics(results.metrics)[-1] == "spro"
    assert "sPRO" in tables.show_table(tables.average_by_category(results.metrics)).to_html()
    assert tables.list_metrics(results.metrics.assign(spro=np.nan)) == list(tables.TITLES)
