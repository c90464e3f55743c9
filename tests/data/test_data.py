"""The index of every layout, the draw of references, and what the model sees of an image."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_mvtec, paint, shared, small_profile
from PIL import Image, ImageDraw

from vlmad_lib import ROOT, InputError, config
from vlmad_lib.data import dataset_classes, datasets, folder_roles, image_files, mask_files


def index(root, tmp_path, **changes):
    return datasets.build_index(small_profile(root, tmp_path / "cache", **changes))


def test_mvtec_layout_pairs_masks_by_name(mvtec, tmp_path):
    table, _ = index(mvtec, tmp_path)
    assert list(table.columns) == datasets.COLUMNS
    assert len(table) == 2 * (4 + 4 + 4)
    for row in table[table.label == 1].itertuples():
        assert row.mask.endswith(f"{row.category}/ground_truth/spot/{row.image[-7:-4]}_mask.png")
    assert (table[table.label == 0]["mask"] == "").all()
    assert set(table.group) == {"unknown"}


def test_real_mvtec_counts_and_notes(tmp_path):
    table, notes = index(shared("data/mvtec_ad"), tmp_path, dataset="mvtec", shots=[0])
    test = table[table.split == "test"]
    assert (len(test), int(test.label.sum()), test[test.label == 1].groupby(["category", "defect"]).ngroups) == (
        1725,
        1258,
        73,
    )
    assert test[test.label == 1]["mask"].ne("").all()
    assert table.groupby("group").category.nunique().to_dict() == {"flexible": 3, "rigid": 7, "texture": 5}
    assert "cable/train/good: 0 images where MVTec AD has 224." in notes
    assert not any("bottle" in note or "/test/" in note for note in notes)  # what is complete is not noted
    assert table.set_index("category").class_name["metal_nut"].iloc[0] == "metal nut"


def make_visa(root):
    """Two objects in VisA's layout, one image with two labels; images are not square."""
    lines = ["object,split,label,image,mask"]
    for name in ("candle", "pcb1"):
        anno = ["image,label,mask"]
        for i in range(3):
            good, bad = f"{name}/Data/Images/Normal/{i:04}.JPG", f"{name}/Data/Images/Anomaly/{i:03}.JPG"
            mask = f"{name}/Data/Masks/Anomaly/{i:03}.png"
            paint(root / good, i, (100, 60))
            paint(root / bad, 50 + i, (100, 60), spot=True)
            classes = np.zeros((60, 100), np.uint8)
            classes[20:40, 10:40] = 1 + i  # class indices, not 255
            (root / mask).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(classes).save(root / mask)
            lines += [f"{name},{'train' if i else 'test'},normal,{good},", f"{name},test,anomaly,{bad},{mask}"]
            anno += [f"{good},normal,", f'{bad},"{["melt", "scratch", "melt,scratch"][i]}",{mask}']
        (root / name / "image_anno.csv").write_text("\n".join(anno))
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(lines))
    return root


def test_visa_layout_labels_and_class_masks(tmp_path):
    table, notes = index(make_visa(tmp_path / "visa"), tmp_path, dataset="visa")
    candle = table[table.category == "candle"]
    assert list(candle[candle.label == 1].defect) == ["combined", "melt", "scratch"]
    assert set(candle[candle.defect == "combined"].labels) == {"melt;scratch"}
    assert set(table[table.category == "pcb1"].class_name) == {"printed circuit board"}
    for path in candle[candle.label == 1]["mask"]:
        assert mask_files.load_mask(path).sum() == 600  # every class index counts
    assert any("candle/test" in note for note in notes)  # counts differ from the real set and that is said


def test_visa_without_annotations_says_so(tmp_path):
    root = make_visa(tmp_path / "visa")
    (root / "candle" / "image_anno.csv").unlink()
    table, notes = index(root, tmp_path, dataset="visa")
    assert set(table[(table.category == "candle") & (table.label == 1)].defect) == {"anomaly"}
    assert any("image_anno.csv is missing" in note for note in notes)


def test_official_visa_split_parses(tmp_path):
    split = pd.read_csv(shared("data/visa_meta/split_csv/1cls.csv"), keep_default_na=False)
    counts = pd.read_csv(datasets.REFERENCE / "dataset_counts.csv")
    expected = counts[counts.dataset == "VisA"].groupby(["category", "split"]).n_images.sum()
    pd.testing.assert_series_equal(
        split.groupby(["object", "split"]).size(), expected, check_names=False, check_index_type=False
    )


@pytest.mark.parametrize("nested", [True, False])
def test_own_folder_with_good_and_defects_only(tmp_path, nested):
    root = tmp_path / "pictures"
    base = root / "bracket" if nested else root
    for i in range(6):
        paint(base / "good" / f"{i}.jpg", i)
    paint(base / "dent" / "a.jpg", 9, spot=True)
    table, notes = index(root, tmp_path)
    assert set(table.category) == {"bracket" if nested else "pictures"}
    assert (table.split == "reference").sum() == 2 and len(datasets.select_tested(table)) == 5
    assert any("held out" in note for note in notes) and any("no mask" in note for note in notes)


def test_hazelnut_toy(tmp_path):
    table, _ = index(shared("data/own_images/hazelnut_toy"), tmp_path)
    assert table.groupby(["split", "defect"]).size().to_dict() == {
        ("test", "colour"): 17,
        ("test", "good"): 6,
        ("train", "good"): 28,
    }
    assert (table[table.label == 1]["mask"] != "").all()


def test_references_are_nested_seeded_and_never_tested(mvtec, tmp_path):
    table, _ = index(mvtec, tmp_path)
    draws = {
        (shots, seed): list(datasets.draw_references(table, "plate", shots, seed).image)
        for shots in (1, 2, 4)
        for seed in range(5)
    }
    for seed in range(5):
        assert draws[1, seed] == draws[2, seed][:1] and draws[2, seed] == draws[4, seed][:2]
        assert len(set(draws[4, seed])) == 4
    assert len({draws[1, seed][0] for seed in range(5)}) > 1
    assert draws[2, 0] == list(datasets.draw_references(table, "plate", 2, 0).image)
    assert not set(draws[4, 0]) & set(datasets.select_tested(table).image)


def test_references_do_not_depend_on_the_place_of_the_data(tmp_path):
    tables = [index(make_mvtec(tmp_path / name), tmp_path)[0] for name in ("here", "a/much/longer/place")]
    draws = [[path[-20:] for path in datasets.draw_references(table, "cloth", 3, 1).image] for table in tables]
    assert draws[0] == draws[1]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((100, 100), [(0, 0, 100, 100)]),
        ((150, 100), [(0, 0, 100, 100), (50, 0, 150, 100)]),
        ((100, 190), [(0, 0, 100, 100), (0, 80, 100, 180), (0, 90, 100, 190)]),
    ],
)
def test_square_tiles_cover_the_image(size, expected):
    assert image_files.boxes(*size, "tiles") == expected
    assert image_files.boxes(*size, "squash") == [(0, 0, *size)]


def test_views_are_pil_bicubic_rgb(tmp_path):
    paint(tmp_path / "a.png", 3, (90, 60))
    image = Image.open(tmp_path / "a.png")
    tiles = image_files.views(tmp_path / "a.png", "tiles", 24)
    assert tiles.shape == (2, 24, 24, 3) and tiles.dtype == np.uint8
    np.testing.assert_array_equal(tiles[1], np.asarray(image.crop((30, 0, 90, 60)).resize((24, 24), Image.BICUBIC)))
    np.testing.assert_array_equal(
        image_files.views(tmp_path / "a.png", "squash", 24)[0], np.asarray(image.resize((24, 24), Image.BICUBIC))
    )


def test_red_stays_red(tmp_path):
    Image.new("RGB", (20, 20), (255, 0, 0)).save(tmp_path / "red.png")
    assert image_files.views(tmp_path / "red.png", "squash", 8)[0, 0, 0].tolist() == [255, 0, 0]


def test_grey_and_16_bit_images_keep_their_brightness(tmp_path):
    Image.fromarray(np.full((8, 8), 128 * 256, np.uint16)).save(tmp_path / "deep.png")
    Image.new("L", (8, 8), 128).save(tmp_path / "grey.png")
    for name in ("deep", "grey"):
        assert set(np.asarray(image_files.load_image(tmp_path / f"{name}.png")).ravel()) == {128}


def test_masks_at_the_evaluation_frame(tmp_path):
    mask = np.zeros((100, 150), np.uint8)
    mask[:, 75:] = 1
    Image.fromarray(mask).save(tmp_path / "m.png")
    framed = mask_files.framed_mask(str(tmp_path / "m.png"), 150, 100, "tiles", 50)
    assert framed.shape == (50, 75) and framed[:, 38:].all() and not framed[:, :37].any()
    assert mask_files.framed_mask(str(tmp_path / "m.png"), 150, 100, "squash", 50).shape == (50, 50)
    assert not mask_files.framed_mask("", 150, 100, "tiles", 50).any()


def test_lossy_masks_are_cut_at_half(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    Image.fromarray(mask).save(tmp_path / "m.jpg", quality=60)
    assert abs(int(mask_files.load_mask(tmp_path / "m.jpg").sum()) - 1024) < 40


def test_masks_of_any_kind_are_read_alike(tmp_path):
    """Palettes in any order, colours, transparency, lossy files: what is not black, or not transparent, is defect."""
    grey = np.zeros((30, 30), np.uint8)
    grey[10:20, 5:20] = 255
    plain = Image.fromarray(grey)
    clear = Image.fromarray(np.full((30, 30), 255, np.uint8))
    kinds = {
        "palette.png": plain.convert("RGB").quantize(2),
        "adaptive.png": plain.convert("P", palette=Image.Palette.ADAPTIVE),
        "blue.png": Image.fromarray(np.stack([0 * grey, 0 * grey, grey // 255], -1)),
        "alpha.png": Image.merge("LA", (clear, plain)),
        "red.png": Image.merge("RGBA", (clear, Image.fromarray(255 - grey), Image.fromarray(255 - grey), plain)),
        "black.png": Image.merge("LA", (Image.fromarray(0 * grey), plain)),
        "opaque.png": Image.merge("LA", (plain, clear)),
        "lossy.webp": plain,
    }
    for name, image in kinds.items():
        image.save(tmp_path / name)
        share = (mask_files.load_mask(tmp_path / name) == (grey > 0)).mean()
        assert share == 1 if not name.endswith("webp") else share > 0.95, name
    indices = Image.fromarray((grey > 0).astype(np.uint8), "P")
    indices.putpalette([255, 255, 255, 255, 0, 0])
    indices.save(tmp_path / "index.png")
    assert (mask_files.load_mask(tmp_path / "index.png") == (grey > 0)).all()  # no black: the index counts
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(InputError, match="float.tif cannot be decoded .a mask has whole numbers"):
        mask_files.load_mask(tmp_path / "float.tif")


# ---------------------------------------------------------------- folders as people have them


def refusal(root, tmp_path, **changes):
    """The sentence with which a data folder is refused, and the trees below it where it is laid out otherwise."""
    with pytest.raises(InputError) as caught:
        index(root, tmp_path, **changes)
    assert str(caught.value).partition("\n")[0].endswith(".")
    return str(caught.value)


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (["yes", "no"], ["has no good/, but no/ and yes/"]),
        (["OK", "NG"], ["/OK seems to hold normal pictures", "good"]),
        (["Good", "Bad"], ["/Good is not spelt 'good'"]),
        (["normal", "abnormal"], ["/normal seems to hold normal pictures", "good"]),
        (["jack/ok_front", "jack/def_front"], ["/jack/ok_front seems to hold normal pictures", "good"]),
        (["MT_Free", "MT_Crack"], ["/MT_Free seems to hold normal pictures", "good"]),
        (["Class1/Train", "Class1/Test"], ["/Class1/Test is not spelt 'test'", "test/good"]),
        (["train/cup/good", "test/cup/good", "test/cup/bad"], ["lies below the split", "/cup/test/good"]),
        (["sets/cup/train/good", "sets/cup/test/good"], ["/sets holds the categories (cup", "set 'root'"]),
        (["cup/train/good", "cup/test_private", "cup/test_public/good"], ["/cup/test_public is there", "test/good"]),
        (["cup/train/ok", "cup/test/ok", "cup/test/ko"], ["/train/ok seems to hold normal", "rename it to"]),
        (["cup/train/0", "cup/test/0", "cup/test/1"], ["/train has no good/, but 0"]),
        (["cup/good", "cup/normal", "cup/dent"], ["/cup/normal seems to hold normal", "move them to"]),
        (["cup/test/good", "cup/test/ground_truth/dent"], ["lies in test/", "/cup/ground_truth"]),
        (["cup/good", "cup/dent", "ground_truth/cup/dent"], ["seems to hold masks", "<category>/ground_truth"]),
    ],
)
def test_no_folder_of_a_known_layout_is_taken_for_good_or_bad_by_guess(tmp_path, there, said):
    for number, place in enumerate(there):
        paint(tmp_path / "set" / place / "0.png", number)
    for part in said:
        assert part in refusal(tmp_path / "set", tmp_path, shots=[0], dataset="mvtec")


@pytest.mark.parametrize("name", ["ok", "OK", "Normal", "defect-free", "good_parts", "i.O.", "not defective", "正常"])
def test_names_that_mean_good(name):
    assert folder_roles.is_good_name(name)


@pytest.mark.parametrize("name", ["abnormal", "ko", "NG", "not_ok", "no good", "normal wear", "broken", "n.i.O.", "1"])
def test_names_that_do_not_mean_good(name):
    assert not folder_roles.is_good_name(name)


def test_folders_that_nothing_reads_are_noted(mvtec, tmp_path):
    paint(mvtec / "plate/validation/good/0.png", 1)
    paint(mvtec / "plate/train/spot/0.png", 2)
    table, notes = index(mvtec, tmp_path)
    assert "plate: validation/ is not read; pictures left out: 1." in notes
    assert "plate: defective train images, which are not tested: 1 (train/spot/)." in notes
    assert not any("have no mask" in note for note in notes) and len(datasets.select_tested(table)) == 16


def test_what_systems_leave_in_folders_is_no_picture(mvtec, tmp_path):
    before = index(mvtec, tmp_path)
    for place in ("__MACOSX/plate/good", "plate/test/good/@eaDir/000.png", "plate/test/.ipynb_checkpoints"):
        paint(mvtec / place / "x.png", 1)
    after = index(mvtec, tmp_path)
    assert after[0].equals(before[0]) and after[1] == before[1]


def test_a_file_in_place_of_a_folder_and_one_that_may_not_be_read(mvtec, tmp_path, monkeypatch):
    (tmp_path / "parts.zip").touch()
    assert "is a file, not a folder; unpack it" in refusal(tmp_path / "parts.zip", tmp_path)
    locked, listing = mvtec / "plate/ground_truth/spot", Path.iterdir

    def iterdir(folder):
        if folder == locked:
            raise PermissionError(13, "Permission denied", str(folder))
        return listing(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)  # the tests may run as root, whom no mode stops
    assert f"{locked} may not be read (permission denied)" in refusal(mvtec, tmp_path)


# ---------------------------------------------------------------- masks as people have them


def make_part(root, names="{}_mask.png", masks=True, count=4):
    """Good pictures and spotted ones, whose masks have names of a pattern; the region of the spot."""
    for i in range(count):
        paint(root / "good" / f"{i}.jpg", i)
        mask = root / "ground_truth/spot" / names.format(i)
        paint(root / "spot" / f"{i}.jpg", 50 + i, spot=True, mask=mask if masks else None)
    region = np.zeros((60, 60), bool)
    region[20:40, 10:40] = True
    return region


@pytest.mark.parametrize(
    "names",
    ["{}.png", "{}_MASK.png", "{}_gt.png", "{}_label.bmp", "{}-seg.png", "{}_segmentation.png", "mask_{}.png"]
    + ["{}.png.png", "{}.jpg.png", "{}_ground_truth.png"],
)
def test_masks_under_the_names_of_other_tools(tmp_path, names):
    make_part(tmp_path / "part", names)
    table, notes = index(tmp_path / "part", tmp_path, shots=[0])
    assert table.set_index("image")["mask"][str(tmp_path / "part/spot/2.jpg")].endswith(f"spot/{names.format(2)}")
    assert (table["mask"] != "").sum() == 4 and notes == []


def test_several_masks_of_one_image_are_merged(tmp_path):
    region = make_part(tmp_path / "part", "{}/000.png")
    folder = tmp_path / "part/ground_truth/spot"
    other = np.zeros((60, 60), np.uint8)
    other[:5, :5] = 126
    for i in (0, 1):
        Image.fromarray(other).save(folder / f"{i}/001.png")
    table, notes = index(tmp_path / "part", tmp_path, shots=[0])
    masks = table.set_index("image")["mask"]
    np.testing.assert_array_equal(mask_files.load_mask(masks[str(tmp_path / "part/spot/0.jpg")]), region | (other > 0))
    assert masks[str(tmp_path / "part/spot/3.jpg")] == str(folder / "3/000.png")
    assert notes == ["part: images with several masks: 2; what any of them marks is defect."]
    Image.fromarray(other[:9]).save(folder / "1/001.png")
    assert "differ in size" in refusal(tmp_path / "part", tmp_path, shots=[0])
    (folder / "1").rename(folder / "9")
    assert "have no image named 9" in refusal(tmp_path / "part", tmp_path, shots=[0])


@pytest.mark.parametrize("names", ["{}.png", "{}_GT.png", "{}_label.bmp", "{}_segmentation.png", "mask_{}.png"])
def test_masks_beside_their_pictures_are_no_defective_pictures(tmp_path, names):
    root = tmp_path / "part"
    region = make_part(root, masks=False)
    for i in range(4):
        Image.fromarray(region.astype(np.uint8) * 255).save(root / "spot" / names.format(i))
    table, notes = index(root, tmp_path, shots=[0])
    masks = table.set_index("image")["mask"]
    assert len(table) == 8 and masks[str(root / "spot/2.jpg")] == str(root / "spot" / names.format(2))
    assert notes == [f"part: 4 masks lie beside the pictures, such as spot/{names.format(0)}."]
    paint(root / "spot" / names.format(1), 1)  # a picture under the name of a mask
    if names == "{}.png":
        assert len(index(root, tmp_path, shots=[0])[0]) == 9
    else:
        said = refusal(root, tmp_path, shots=[0])
        assert "seems to be a mask of 1.jpg" in said and "move it to ground_truth/spot." in said


def test_a_lone_mask_is_known_by_its_pixels_and_a_picture_of_a_label_is_none(tmp_path):
    region = make_part(tmp_path / "part")
    paint(tmp_path / "part/spot/label_7.png", 7)
    paint(tmp_path / "part/spot/0.png", 8)  # a picture as 0.jpg is
    table, _ = index(tmp_path / "part", tmp_path, shots=[0])
    assert (table.label == 1).sum() == 6
    Image.fromarray(region).save(tmp_path / "part/spot/label_7.png")
    assert "label_7.png seems to be a mask; move" in refusal(tmp_path / "part", tmp_path, shots=[0])


def test_a_folder_of_masks_named_as_a_defect_may_be(tmp_path):
    region = make_part(tmp_path / "part")
    paint(tmp_path / "part/label/0.png", 1)
    assert set(index(tmp_path / "part", tmp_path, shots=[0])[0].defect) == {"good", "label", "spot"}
    Image.fromarray(region).save(tmp_path / "part/label/0.png")
    assert "are masks of one image" in refusal(tmp_path / "part", tmp_path, shots=[0])
    (tmp_path / "part/label/0.png").rename(tmp_path / "part/label/9.png")
    assert "has no image of its name" in refusal(tmp_path / "part", tmp_path, shots=[0])


def test_masks_in_another_format_are_not_passed_over(tmp_path):
    make_part(tmp_path / "part", masks=False)
    (tmp_path / "part/ground_truth/spot").mkdir(parents=True)
    (tmp_path / "part/ground_truth/spot/0.json").touch()
    notes = index(tmp_path / "part", tmp_path, shots=[0])[1]
    assert "part: ground_truth/spot/ has no pictures, but 0.json; save masks as PNG." in notes


def lossy(mask: np.ndarray) -> Image.Image:
    """A mask that was saved as JPEG once."""
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "JPEG", quality=75)
    return Image.open(stream)


@pytest.mark.parametrize("top", [1, 2, 126, 236, 255])
def test_levels_of_lossless_masks_all_count(tmp_path, top):
    """Among them class indices and MVTec LOCO AD's codes of defects, several in one mask."""
    mask = np.zeros((60, 60), np.uint8)
    mask[5:30, 5:30], mask[35:40, 35:40] = top, max(1, top - 7)
    Image.fromarray(mask).save(tmp_path / "m.png")
    np.testing.assert_array_equal(mask_files.load_mask(tmp_path / "m.png"), mask > 0)
    mask = np.repeat(np.arange(240, dtype=np.uint8), 4).reshape(-1, 60)  # instances, numbered throughout
    Image.fromarray(mask).save(tmp_path / "n.png")
    np.testing.assert_array_equal(mask_files.load_mask(tmp_path / "n.png"), mask > 0)


def test_grey_edges_of_a_mask_that_was_a_jpeg_are_no_defect(tmp_path):
    draw = Image.new("L", (400, 400))
    ImageDraw.Draw(draw).line([(40, 60), (180, 200), (330, 330)], 255, 4)
    clean = np.asarray(draw)
    lossy(clean).save(tmp_path / "m.png")
    assert (np.asarray(lossy(clean)) > 0).sum() > 1.5 * (clean > 0).sum()  # what was read as defect
    assert mask_files.load_mask(tmp_path / "m.png").sum() == pytest.approx((clean > 0).sum(), rel=0.05)


def test_masks_that_say_nothing_or_the_contrary_are_noted(tmp_path):
    region = make_part(tmp_path / "part", "{}.png").astype(np.uint8)
    folder = tmp_path / "part/ground_truth/spot"
    Image.fromarray(region * 0).save(folder / "0.png")
    (folder / "1.png").unlink()
    Image.fromarray(region).save(folder / "1.jpg")  # values 0 and 1
    Image.fromarray(255 - region * 255).save(folder / "2.png")
    lossy(region * 255).save(folder / "3.png")
    table, notes = index(tmp_path / "part", tmp_path, shots=[0])
    assert (table["mask"] != "").sum() == 2 and not any("anomalous images" in note for note in notes)
    blank, over, grey = notes
    assert "no pixel is marked as defect in 2 of its 4 masks, such as ground_truth/spot/0.png" in blank
    assert "JPEG and WebP files lose" in blank
    assert "more than half" in over and "in 1 of its 4 masks" in over and "spot/2.png (83%); if" in over
    assert "grey edges" in grey and "in 1 of its 4 masks" in grey and "spot/3.png" in grey


def test_masks_of_good_pictures_are_black(tmp_path):
    region = make_part(tmp_path / "part")
    (tmp_path / "part/ground_truth/good").mkdir()
    Image.fromarray(region * False).save(tmp_path / "part/ground_truth/good/0.png")
    table, notes = index(tmp_path / "part", tmp_path, shots=[0])
    assert (table["mask"] != "").sum() == 4 and notes == []
    Image.fromarray(region).save(tmp_path / "part/ground_truth/good/0.png")
    assert "marks 17% of" in refusal(tmp_path / "part", tmp_path, shots=[0])


def test_masks_are_read_once_until_a_file_changes(tmp_path, monkeypatch):
    region = make_part(tmp_path / "part")
    read, reading = [], mask_files._read_mask
    monkeypatch.setattr(mask_files, "_read_mask", lambda path: read.append(path) or reading(path))
    notes = [index(tmp_path / "part", tmp_path, shots=[0])[1] for _ in range(2)]
    assert notes == [[], []] and len(read) == 4
    file = tmp_path / "part/ground_truth/spot/0_mask.png"
    state = file.stat()
    content = file.read_bytes()
    Image.fromarray(region * False).save(file)
    file.write_bytes(file.read_bytes().ljust(len(content), b"\0"))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))  # another mask of equal size and time
    assert "such as ground_truth/spot/0_mask.png" in index(tmp_path / "part", tmp_path, shots=[0])[1][0]
    for kept in (tmp_path / "cache/masks").glob("*.json"):
        kept.write_text("damaged")
    assert "such as ground_truth/spot/0_mask.png" in index(tmp_path / "part", tmp_path, shots=[0])[1][0]


def read_examples() -> list[str]:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## A data set of your own")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def test_a_table_of_ones_own_is_run_as_the_contributors_page_has_it(mvtec, tmp_path, monkeypatch):
    known, _ = index(mvtec, tmp_path, shots=[0, 1])
    chosen = known[known.category == "plate"]
    chosen[["category", "split", "defect", "image", "mask"]].sample(frac=1, random_state=0).to_csv(
        tmp_path / "parts.csv"
    )
    own = small_profile(tmp_path / "parts", tmp_path / "cache")
    monkeypatch.setattr(config, "load_profile", lambda name, overrides: own)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(read_examples()[0], names)
    scores = names["results"].scores
    assert set(scores.image) == set(datasets.select_tested(chosen).image) and set(scores.dataset) == {"parts"}
    table = names["results"].index.drop(columns="dataset")
    assert table.equals(chosen.drop(columns="dataset").reset_index(drop=True))


def test_a_data_set_of_ones_own_is_one_class(tmp_path, monkeypatch):
    assert set(datasets.DATASETS) == set(config.DATASETS)
    registry = dict(datasets.DATASETS)
    monkeypatch.setattr(dataset_classes, "DATASETS", registry)
    monkeypatch.setattr(datasets, "DATASETS", registry)
    exec(read_examples()[1], vars(dataset_classes) | {"__name__": "screws"})
    for place in ("good/1.png", "good/2.png", "bent/7.png", "bent/7_mask.bmp"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8), 255).save(tmp_path / place)
    profile = small_profile(tmp_path, tmp_path / "cache", shots=[0]).model_copy(update={"dataset": "screws"})
    table, notes = datasets.build_index(profile)
    assert list(table.defect) == ["bent", "good", "good"] and list(table.label) == [1, 0, 0] and notes == []
    assert set(table.dataset) == {"Screws"} and table["mask"].iloc[0] == str(tmp_path / "bent/7_mask.bmp")
    assert datasets.describe_identity(profile) == "screws"
