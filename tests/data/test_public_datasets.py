"""Small folders in the layout of each public data set: what is read, what is noted, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_mvtec, paint, small_profile
from PIL import Image
from test_wrong_input import refused

from vlmad_lib import REFERENCE, config
from vlmad_lib.data import datasets, public_datasets


def paint_all(folder: Path, names: str, start: int = 0, masks: str = "", count: int = 3) -> None:
    """Pictures ``names`` with a number in it, with a spot and a mask each where ``masks`` is the path of those."""
    for i in range(count):
        mask = folder.parent / masks.format(i) if masks else None
        paint(folder / names.format(i), start + i, spot=bool(masks), mask=mask)


def make_btad(root: Path) -> None:
    for number, product in enumerate(("01", "02")):
        paint_all(root / product / "train/ok", "{:03}.bmp", 100 * number)
        paint_all(root / product / "test/ok", "{:03}.bmp", 100 * number + 10)
        paint_all(root / product / "test/ko", "{:03}.bmp", 100 * number + 20, "../ground_truth/ko/{:03}.png")


def make_mvtec_like(root: Path, category: str, defect: str) -> None:
    make_mvtec(root, (category,), train=3)
    for part in ("test", "ground_truth"):
        (root / category / part / "spot").rename(root / category / part / defect)


def make_kolektorsdd2(root: Path) -> None:
    for number, split in enumerate(("train", "test")):
        paint_all(root / split, "1{:04}.png", 100 * number)
        paint_all(root / split, "2{:04}.png", 100 * number + 10, f"{split}/2{{:04}}_GT.png")
        for i in range(3):
            Image.new("L", (60, 60)).save(root / split / f"1{i:04}_GT.png")


def make_dagm(root: Path) -> None:
    for number, split in enumerate(("Train", "Test")):
        paint_all(root / "Class1" / split, "0{:03}.PNG", 100 * number)
        paint_all(root / "Class1" / split, "1{:03}.PNG", 100 * number + 10, f"{split}/Label/1{{:03}}_label.PNG")
        (root / "Class1" / split / "Label" / "Labels.txt").write_text("1\n")


def make_real_iad(root: Path) -> None:
    pictures, entries = root / "realiad_256/mint", {"train": [], "test": []}
    for split, kind, start in (("train", "OK", 0), ("test", "OK", 10), ("test", "BX", 20)):
        for i in range(3):
            image = f"{'OK' if kind == 'OK' else f'NG/{kind}'}/S{start + i:04}/mint_{start + i:04}_{kind}_C{1 + i}.jpg"
            mask = None if kind == "OK" else image.replace(".jpg", ".png")
            paint(pictures / image, start + i, spot=bool(mask), mask=mask and pictures / mask)
            entry = {"category": "mint", "anomaly_class": kind, "image_path": image, "mask_path": mask}
            entries[split].append(entry)
    lists = root / "realiad_jsons/realiad_jsons"
    lists.mkdir(parents=True)
    meta = {"prefix": "mint/", "normal_class": "OK", "pre_transform": {}}
    (lists / "mint.json").write_text(json.dumps({"meta": meta} | entries))


def make_diagnosed(root: Path, good: str, finding: str) -> None:
    paint_all(root / good, "n{}.png", count=4)
    for i in range(4):
        paint(root / finding / f"y{i}.jpg", 20 + i, spot=True)


def make_head_ct(root: Path) -> None:
    for i in range(8):
        paint(root / "head_ct/head_ct" / f"{i:03}.png", i, spot=i > 3)
    (root / "labels.csv").write_text("id, hemorrhage\n" + "".join(f"{i},{int(i > 3)}\n" for i in range(8)))


def make_segmented(root: Path, images: str, masks: str, name: str = "{}.png", mask: str = "{}.png") -> None:
    paint_all(root / images, name, masks=f"{'../' * images.count('/')}{masks}/{mask}")


MAKERS = {
    "btad": make_btad,
    "mpdd": lambda root: make_mvtec_like(root, "metal_plate", "scratches"),
    "dtd_synthetic": lambda root: make_mvtec_like(root, "Woven_001", "bad"),
    "kolektorsdd2": make_kolektorsdd2,
    "dagm": make_dagm,
    "real_iad": make_real_iad,
    "head_ct": make_head_ct,
    "brain_mri": lambda root: make_diagnosed(root, "brain_tumor_dataset/no", "brain_tumor_dataset/yes"),
    "br35h": lambda root: make_diagnosed(root, "no", "yes"),
    "covid_19": lambda root: make_diagnosed(root, "NORMAL", "COVID-19"),
    "isic": lambda root: make_segmented(
        root, "ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth", "ISIC_{}.jpg",
        "ISIC_{}_Segmentation.png",
    ),
    "cvc_colondb": lambda root: make_segmented(root, "images", "masks"),
    "cvc_clinicdb": lambda root: make_segmented(root, "Original", "Ground Truth", "{}.tif", "{}.tif"),
    "kvasir": lambda root: make_segmented(root, "images", "masks", "{}.jpg"),
    "endo": lambda root: make_segmented(root, "images", "masks", "{}.jpg"),
    "tn3k": lambda root: make_segmented(root, "test-image", "test-mask", "{:04}.jpg", "{:04}.jpg"),
}  # fmt: skip
"""What draws a few pictures in the layout of each public data set."""
FINDINGS_ALONE = ("isic", "cvc_colondb", "cvc_clinicdb", "kvasir", "endo", "tn3k")
WITHOUT_TRAIN = ("head_ct", "brain_mri", "br35h", "covid_19")
# Normal and defective images to test, and normal ones to train, of each category of ``MAKERS``.
DRAWN = {"mpdd": (4, 4, 3), "dtd_synthetic": (4, 4, 3)} | dict.fromkeys(WITHOUT_TRAIN, (4, 4, 0))
DRAWN |= dict.fromkeys(FINDINGS_ALONE, (0, 3, 0))


def index(name: str, root: Path, cache: Path, **changes) -> tuple[pd.DataFrame, list[str]]:
    return datasets.build_index(small_profile(root, cache, dataset=name, **{"shots": [0]} | changes))


@pytest.mark.parametrize("name", MAKERS)
def test_each_layout_is_read_whole(name, tmp_path):
    """Every picture once, with its class name and group; masks where the data have them, and no others."""
    root = tmp_path / "data"
    MAKERS[name](root)
    table, notes = index(name, root, tmp_path / "cache")
    good, bad, train = DRAWN.get(name, (3, 3, 3))
    for category, rows in table.groupby("category"):
        test = rows[rows.split == "test"]
        assert (sum(test.label == 0), sum(test.label == 1)) == (good, bad), category
        assert sum((rows.split == "train") & (rows.label == 0)) == train
        assert (test["mask"] != "").tolist() == (test.label == (2 if name in WITHOUT_TRAIN else 1)).tolist()
        assert datasets.read_known_categories(table.dataset[0]).set_index("category").class_name[category]
    assert not table.image.duplicated().any() and "unknown" not in set(table.class_name)
    assert all(Path(path).is_file() for path in [*table.image, *table["mask"][table["mask"] != ""]])
    for row in table[table["mask"] != ""].itertuples():
        spot = np.asarray(Image.open(row.mask).convert("L")) > 127
        assert np.asarray(Image.open(row.image).convert("L"))[spot].min() > 200  # its own mask, by name
    known = pd.read_csv(REFERENCE / "dataset_counts.csv").query("dataset == @table.dataset[0]")
    whole = "category" in datasets.DATASETS[name].counted_by
    assert len(known) and any(f"has {known.n_images.iloc[0]}." in note for note in notes) == (
        whole and known.category.iloc[0] in set(table.category)
    )


@pytest.mark.parametrize("name", [*MAKERS, "mvtec", "visa"])
def test_what_is_laid_out_otherwise_is_told_the_tree(name, tmp_path):
    paint(tmp_path / "data/elsewhere/1.png", 0)
    kind = datasets.DATASETS[name]
    refused(lambda: index(name, tmp_path / "data", tmp_path / "cache"), str(tmp_path / "data"), kind.tree)
    if name != "visa":
        there = kind.explain_empty(tmp_path / "data")
        assert "elsewhere/" in there and "\n" not in there


def test_every_public_data_set_is_known():
    categories, counts = (pd.read_csv(REFERENCE / name) for name in ("categories.csv", "dataset_counts.csv"))
    kinds = [kind for kind in datasets.DATASETS.values() if type(kind).__module__ == public_datasets.__name__]
    titles = {kind.title for kind in kinds}
    assert {kind.name for kind in kinds} == set(MAKERS) and all(kind.tree for kind in kinds)
    assert titles <= set(categories.dataset) and titles <= set(counts.dataset)
    assert not categories[["dataset", "category"]].duplicated().any() and set(categories.group) <= set(config.GROUPS)


def test_counts_over_all_categories_are_compared_where_all_are_there(tmp_path):
    """A part of the data set has fewer images than the whole, which is no news."""
    make_mvtec(tmp_path / "data", tuple(datasets.read_known_categories("DTD-Synthetic").category), train=1, size=(8, 8))
    _, notes = index("dtd_synthetic", tmp_path / "data", tmp_path / "cache")
    assert notes == [f"{key} images where DTD-Synthetic has {count}." for key, count in [
        ("test/defective: 48", 947), ("test/good: 48", 357), ("train/good: 12", 1200),
    ]]  # fmt: skip
    assert index("dtd_synthetic", tmp_path / "data", tmp_path / "cache", categories=["Woven_001"])[1] == []


def test_references_are_held_out_where_there_is_no_train_split(tmp_path):
    for name in ("head_ct", "kvasir"):
        MAKERS[name](tmp_path / name)
    table, notes = index("head_ct", tmp_path / "head_ct", tmp_path / "cache", shots=[0, 1])
    assert len(datasets.draw_references(table, "brain", 1, 0)) == 1 and "held out" in notes[-1]
    refused(lambda: index("kvasir", tmp_path / "kvasir", tmp_path / "cache", shots=[1]), "colon", "0 good test images")
    refused(lambda: index("head_ct", tmp_path / "head_ct", tmp_path / "cache", categories=["chest"]), "chest", "brain")


def test_training_data_are_known_by_any_spelling_of_their_name(tmp_path):
    for name in MAKERS:
        profile = small_profile(tmp_path, tmp_path, dataset=name)
        for spelling in (name, datasets.DATASETS[name].title, name.upper().replace("_", " ")):
            assert datasets.overlaps_training_data(config.normalise_dataset_name(spelling), "", profile), spelling
        assert not datasets.overlaps_training_data("visa", "", profile) and not profile.own
    assert config.normalise_dataset_name("my parts ") == "my parts"


def test_defective_train_images_are_noted_and_no_references(tmp_path):
    for name in ("dagm", "kolektorsdd2"):
        MAKERS[name](tmp_path / name)
        table, notes = index(name, tmp_path / name, tmp_path / "cache", shots=[3])
        assert any("not tested: 3." in note for note in notes)
        assert len(datasets.draw_references(table, table.category[0], config.FULL, 0)) == 3
        refused(lambda table=table: datasets.draw_references(table, table.category[0], 4, 0), "3 normal train images")


def test_what_is_left_out_is_noted(tmp_path):
    make_diagnosed(tmp_path / "covid", "Normal/images", "COVID/images")
    paint(tmp_path / "covid/Viral Pneumonia/1.png", 0)
    assert "Folders that are not read: Viral Pneumonia/." in index("covid_19", tmp_path / "covid", tmp_path / "c")[1]
    make_kolektorsdd2(tmp_path / "k")
    paint(tmp_path / "k/test/3.png", 0)
    assert (
        "test: images without a mask 3_GT.png, which are left out: 1."
        in index("kolektorsdd2", tmp_path / "k", tmp_path / "c")[1]
    )


def test_masks_that_mark_nothing_count_as_none(tmp_path):
    """BTAD has some."""
    make_btad(tmp_path / "data")
    Image.new("L", (60, 60)).save(tmp_path / "data/02/ground_truth/ko/001.png")
    table, notes = index("btad", tmp_path / "data", tmp_path / "cache")
    assert sum(table["mask"] != "") == 5 and any("no pixel is marked" in note for note in notes)


def test_what_is_damaged_is_refused_by_name(tmp_path):
    make_segmented(tmp_path / "k", "images", "masks")
    (tmp_path / "k/masks/1.png").unlink()
    refused(lambda: index("kvasir", tmp_path / "k", tmp_path / "c"), "images/1.png", "no mask")
    make_head_ct(tmp_path / "h")
    (tmp_path / "h/head_ct/head_ct/003.png").unlink()
    refused(lambda: index("head_ct", tmp_path / "h", tmp_path / "c"), "labels.csv", "3,0")
    make_real_iad(tmp_path / "r")
    file = tmp_path / "r/realiad_jsons/realiad_jsons/mint.json"
    listed = json.loads(file.read_text())
    for change, part in ((("image_path", "../../x.jpg"), "leads out"), (("anomaly_class", "AK"), "no mask")):
        entry = listed["test"][0]
        file.write_text(json.dumps(listed | {"test": [entry | dict([change])]}))
        refused(lambda: index("real_iad", tmp_path / "r", tmp_path / "c"), "mint.json", part)
    file.write_text("{}")
    refused(lambda: index("real_iad", tmp_path / "r", tmp_path / "c"), "mint.json", "fetch it again")
