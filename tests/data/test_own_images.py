"""A person's own pictures: every kind a phone or a camera writes works or is refused with a reason; new ones judged."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, make_mvtec, paint, small_profile, write_profile
from PIL import Image
from test_wrong_input import refused

from vlmad_lib import ROOT
from vlmad_lib.analysis import thresholds
from vlmad_lib.data import datasets, image_files
from vlmad_lib.pipeline import run
from vlmad_lib.reporting import decide

SIZE = (60, 40)


@pytest.fixture
def corner():
    """A picture 60 wide and 40 high whose upper left corner is red."""
    pixels = np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)
    pixels[:16, :16] = (255, 0, 0)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("suffix", ["jpg", "tiff", "webp", "png"])
@pytest.mark.parametrize(("orientation", "place"), [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
def test_photographs_are_shown_upright(tmp_path, corner, suffix, orientation, place):
    """EXIF 6: the camera was turned right, what was written first at the left lies at the top right."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    corner.save(tmp_path / f"a.{suffix}", exif=exif)
    shown = image_files.load_image(tmp_path / f"a.{suffix}")
    assert (
        shown.size == image_files.read_size(str(tmp_path / f"a.{suffix}")) == (SIZE if orientation < 5 else SIZE[::-1])
    )
    red = np.asarray(shown)[..., 1] < 45
    assert red[place] and red.sum() == pytest.approx(256, abs=40)


def test_a_rotated_photograph_takes_the_mask_of_what_is_seen(tmp_path, corner):
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(2):
        (tmp_path / "d/good").mkdir(parents=True, exist_ok=True)
        corner.save(tmp_path / f"d/good/{i}.jpg", exif=exif)
    (tmp_path / "d/red").mkdir()
    corner.save(tmp_path / "d/red/0.jpg", exif=exif)
    mask = Image.new("L", SIZE[::-1])
    mask.paste(255, (24, 0, 40, 16))
    (tmp_path / "d/ground_truth/red").mkdir(parents=True)
    mask.save(tmp_path / "d/ground_truth/red/0.png")
    table, _ = datasets.build_index(small_profile(tmp_path / "d", tmp_path, shots=[0]))
    assert set(zip(table.width, table.height, strict=True)) == {SIZE[::-1]}
    mask.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "d/ground_truth/red/0.png")
    refused(lambda: datasets.build_index(small_profile(tmp_path / "d", tmp_path, shots=[0])), "0.png", "60x40", "40x60")


def test_transparent_parts_are_white(tmp_path):
    """What is hidden under them depends on the program that wrote the file."""
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2] = (200, 10, 10, 255)
    pixels[3] = (0, 0, 0, 128)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    rows = np.asarray(image_files.load_image(tmp_path / "a.png"))[:, 0].tolist()
    assert rows[0] == [200, 10, 10] and rows[2] == [255, 255, 255] and rows[3] == [127, 127, 127]
    Image.new("P", (4, 4)).save(tmp_path / "p.png", transparency=0)
    assert np.asarray(image_files.load_image(tmp_path / "p.png")).min() == 255


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", "YCbCr", "1", "P"])
def test_every_common_kind_of_pixel_is_read(tmp_path, corner, mode):
    file = tmp_path / f"a.{'tiff' if mode in ('CMYK', 'YCbCr') else 'png'}"
    corner.convert(mode).save(file)
    shown = image_files.load_image(file)
    assert shown.mode == "RGB" and shown.size == SIZE
    assert image_files.views(file, "tiles", 24).shape == (2, 24, 24, 3)


def test_pictures_that_cannot_be_meant_are_refused(tmp_path):
    twelve = np.full((8, 8), 4000, np.uint16)
    Image.fromarray(twelve).save(tmp_path / "camera.png")
    refused(lambda: image_files.load_image(tmp_path / "camera.png"), "camera.png", "none above 4000", "stretch all")
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "float.tiff")
    refused(lambda: image_files.load_image(tmp_path / "float.tiff"), "float.tiff", "no known range")
    Image.new("RGB", (8, 8)).save(tmp_path / "pages.tiff", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    refused(lambda: image_files.load_image(tmp_path / "pages.tiff"), "pages.tiff", "2 pictures")
    (tmp_path / "data/good").mkdir(parents=True)
    (tmp_path / "data/good/IMG_1.HEIC").touch()
    refused(
        lambda: datasets.build_index(small_profile(tmp_path / "data", tmp_path)), "IMG_1.HEIC", "save it as PNG or JPEG"
    )


def write_deep_png(path, values):
    """A PNG of 16 bits a channel from (H, W, 3) uint16, which Pillow does not write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0))]
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body)) for tag, body in parts
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def test_colours_of_a_12_bit_camera_are_refused_as_its_greys_are(tmp_path):
    values = np.linspace(0, 4095, 64 * 3).reshape(8, 8, 3).astype(np.uint16)
    write_deep_png(tmp_path / "camera.png", values)
    refused(
        lambda: image_files.load_image(tmp_path / "camera.png"), "camera.png", "16 bits", "none above 4095", "stretch"
    )
    write_deep_png(tmp_path / "whole.png", values * 16)
    np.testing.assert_array_equal(np.asarray(image_files.load_image(tmp_path / "whole.png")), values * 16 >> 8)
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "night.png")  # 8 bits may be dark
    assert np.asarray(image_files.load_image(tmp_path / "night.png")).max() == 9


def test_long_strips_are_named_with_their_tiles_before_they_are_encoded(tmp_path):
    for i in range(2):
        paint(tmp_path / "part/good" / f"{i}.png", i)
    paint(tmp_path / "part/good/strip.png", 3, (400, 20))
    chosen = small_profile(tmp_path / "part", tmp_path, shots=[0])
    tiles = len(image_files.boxes(400, 20, "tiles"))
    assert tiles > image_files.MANY_TILES
    [note] = run.build_run_index(chosen)[1]
    assert (
        f"1 of 3 pictures, such as strip.png with 400x20 pixels, which WinCLIP cuts into {tiles} square tiles" in note
    )
    with pytest.warns(UserWarning, match="long strips"):
        found = run.run(chosen)
    assert note in found.facts["notes"]
    squashed = small_profile(tmp_path / "part", tmp_path, shots=[0], methods=[TINY | {"settings": {"fit": "squash"}}])
    assert run.build_run_index(squashed)[1] == []


def test_a_picture_that_only_pillow_warns_of_is_read_in_silence(tmp_path):
    Image.new("1", (11_000, 9_500)).save(tmp_path / "a.png")
    code = "import sys; from vlmad_lib.data import image_files; print(image_files.read_size(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout.strip(), done.stderr) == ("(11000, 9500)", "")


def test_a_picture_that_may_not_be_read_is_not_called_broken(tmp_path, monkeypatch):
    def opened(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", opened)
    refused(lambda: image_files.load_image(tmp_path / "a.png"), "a.png", "permission denied", "right to read it")


def test_a_picture_of_64_megapixels(tmp_path):
    Image.new("L", (10_000, 6_400), 128).save(tmp_path / "a.png", compress_level=1)
    found = image_files.views(tmp_path / "a.png", "tiles", 24)
    assert found.shape == (2, 24, 24, 3) and set(found.ravel()) == {128}


def test_a_picture_that_unpacks_to_gigabytes_is_refused(tmp_path, monkeypatch):
    paint(tmp_path / "a.png", 0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    refused(lambda: image_files.load_image(tmp_path / "a.png"), "a.png", "cannot be read as an image")


def test_loose_pictures_are_told_where_to_go(tmp_path):
    paint(tmp_path / "mine/a.png", 0)
    refused(lambda: datasets.build_index(small_profile(tmp_path / "mine", tmp_path)), "mine", "lie loose", "good/")


def test_one_picture_is_enough_for_a_score(tmp_path):
    paint(tmp_path / "part/good/a.png", 0)
    found = run.run(small_profile(tmp_path / "part", tmp_path / "cache", shots=[0]))
    assert len(found.scores) == 1 and np.isfinite(found.scores.score).all()
    refused(lambda: run.run(small_profile(tmp_path / "part", tmp_path / "cache", shots=[1])), "part", "train/good")


# ---------------------------------------------------------------- decisions on new pictures


@pytest.fixture
def drop(tmp_path):
    """Twelve good pictures, and five new ones in all places: one with a spot, one broken, one that is a formula."""
    folder = tmp_path / "drop"
    for i in range(12):
        paint(folder / "good" / f"{i}.png", i)
    paint(folder / "=1+1.png", 100)
    paint(folder / "spot & <b>.png", 101, spot=True)
    paint(folder / "shift 2/ä.jpg", 102)
    paint(folder / "shift 2/ä.png", 103, (90, 60))
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_new_pictures_get_decisions_and_overlays(tmp_path, cache, drop, capsys):
    file = write_profile(tmp_path, dataset="folder", root="nowhere", shots=[0, 1, 8], cache=str(cache))
    assert decide.main([str(file), str(drop), "--out", str(tmp_path / "out")]) == 1  # one is unreadable
    printed = capsys.readouterr()
    table = pd.read_csv(tmp_path / "out/decisions.csv", keep_default_na=False).set_index("image")
    facts = json.loads((tmp_path / "out/decisions.json").read_text())
    assert sorted(table.index) == ["./=1+1.png", "broken.png", "shift 2/ä.jpg", "shift 2/ä.png", "spot & <b>.png"]
    assert (facts["normal"], facts["references"], facts["calibration"]) == (12, 1, 11)  # 8 would leave too few
    assert table.decision["broken.png"] == "unreadable" and "cannot be read" in table.reason["broken.png"]
    assert set(table.warning) == {" ".join(facts["warnings"])} and "are random" in table.warning["broken.png"]
    judged = table.drop("broken.png")
    assert (judged.decision == "defective").equals(judged.score.astype(float) > facts["threshold"])
    assert (judged.decision == "defective").equals(judged.p.astype(float) <= 0.1)
    for name in judged.overlay:
        with Image.open(tmp_path / "out" / name) as overlay:
            assert overlay.width == 2 * decide.WIDTH and np.asarray(overlay).std() > 5
    assert "5 pictures" in printed.out and "1 unreadable" in printed.out and "random" in printed.err


def test_the_threshold_is_the_conformal_one_of_normal_pictures_that_are_no_references(tmp_path, cache, drop):
    chosen = small_profile(tmp_path, cache, shots=[0, 2])
    found = decide.decide(chosen, drop)
    scores = found.results.scores
    normal = scores[scores.defect == "good"]
    assert len(normal) == 10 and not {path[-9:] for path in normal.image} & set(normal.references.iloc[0].split(";"))
    assert found.facts["threshold"] == thresholds.conformal(normal.score.to_numpy(), 0.1)


def test_pictures_are_never_judged_by_themselves_however_they_are_spelt(tmp_path, cache, monkeypatch):
    root = make_mvtec(tmp_path / "data", ("plate",))
    (tmp_path / "link").symlink_to(root / "plate/test/good")
    monkeypatch.chdir(root / "plate")
    for place in (Path("test/good"), root / "plate/test/good", tmp_path / "link"):
        _, normal = decide._normal(
            small_profile(root, cache), place, "plate", set(image_files.list_files_below(place)), {}
        )
        assert len(normal) == 4 and all("/train/good/" in path for path in normal)


def test_too_few_normal_pictures_decide_nothing(tmp_path, cache, drop):
    for i in range(8):
        (drop / "good" / f"{i}.png").unlink()
    found = decide.decide(small_profile(tmp_path, cache), drop)
    assert set(found.table.decision) == {"undecided", "unreadable"} and found.table.score.notna().sum() == 4
    assert "takes 9 normal pictures" in found.describe() and found.facts["threshold"] is None
    again = decide.decide(small_profile(tmp_path, cache), drop, alpha=0.25)
    assert not set(again.table.decision) & {"undecided"}


def test_normal_pictures_of_the_profile_serve_where_the_folder_has_none(tmp_path, cache, mvtec):
    chosen = small_profile(mvtec, cache)
    paint(tmp_path / "new/a.png", 7)
    refused(lambda: decide.decide(chosen, tmp_path / "new"), "no good/ folder", "--category", "cloth, plate")
    found = decide.decide(chosen, tmp_path / "new", alpha=0.2, category="plate")
    assert found.facts["normal"] == 8 and found.facts["category"] == "plate" and len(found.table) == 1
    spotted = decide.decide(chosen, mvtec / "plate/test/spot", alpha=0.2, category="plate")
    assert set(spotted.table.decision) <= {"good", "defective"} and len(spotted.table) == 4


def test_wrong_requests_are_refused(tmp_path, cache, drop, capsys):
    chosen = small_profile(tmp_path, cache)
    refused(lambda: decide.decide(chosen, tmp_path / "absent"), "absent", "correct its path")
    refused(lambda: decide.decide(chosen, drop / "good" / ".." / "good" / "x"), "does not exist")
    refused(lambda: decide.decide(chosen, drop, method="Other"), "Other", "WinCLIP")
    refused(lambda: decide.decide(chosen, drop, alpha=1.5), "alpha", "between 0 and 1")
    refused(lambda: decide.decide(chosen.model_copy(update={"methods": []}), drop), "names no methods")
    (tmp_path / "empty").mkdir()
    refused(lambda: decide.decide(chosen, tmp_path / "empty"), "no picture to judge")
    only = small_profile(tmp_path, cache, methods=[TINY | {"method": "patchcore"}], shots=[0, 20])
    refused(lambda: decide.decide(only, drop), "PatchCore needs references")
    file = write_profile(tmp_path, dataset="folder", root=str(drop), cache=str(cache))
    assert decide.main([str(file), str(drop), "--out", str(drop / "out")]) == 2
    assert "would be judged next time" in capsys.readouterr().err
