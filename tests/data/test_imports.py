"""Results of other tools become rows of the scores table like any other."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pandas as pd
import pytest
from conftest import make_mvtec, small_profile
from PIL import Image
from skimage import io
from test_wrong_input import refused

from vlmad_lib import InputError
from vlmad_lib.config import Profile, check_record
from vlmad_lib.data import csv_files, datasets, external_results, mask_files
from vlmad_lib.pipeline import run


def profile(root, tmp_path, path, **changes):
    imports = [{"name": "other tool", "path": str(path)}]
    return small_profile(root, tmp_path / "cache", methods=[], imports=imports, **changes)


@pytest.fixture
def perfect(mvtec, tmp_path):
    """Maps that equal the masks, at another size than the images."""
    table, _ = datasets.build_index(small_profile(mvtec, tmp_path / "cache"))
    rows = datasets.select_tested(table)
    maps = {
        (row.category, row.defect, row.image[-7:-4]): mask_files.framed_mask(row.mask, 60, 60, "squash", 30).astype(
            np.float32
        )
        for row in rows.itertuples()
    }
    return mvtec, maps


def save_npz(folder, maps):
    folder.mkdir()
    for category in {key[0] for key in maps}:
        named = {f"{defect}-{stem}": values for (name, defect, stem), values in maps.items() if name == category}
        np.savez(folder / f"{category}.npz", **named)
    return folder


def save_npy(folder, maps):
    for (category, defect, stem), values in maps.items():
        place = folder / category / "test" / defect
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / f"{stem}.npy", values)
    return folder


@pytest.mark.parametrize("save", [save_npz, save_npy])
def test_maps_from_both_layouts(perfect, tmp_path, save):
    root, maps = perfect
    found = run.run(profile(root, tmp_path, save(tmp_path / "maps", maps)))
    assert len(found.scores) == 16 and set(found.scores.method) == {"other tool"}
    assert (found.metrics.image_auroc == 1).all() and (found.metrics.pixel_auroc > 0.99).all()
    assert found.maps(found.scores)[0].shape == (1, 30, 30)
    assert found.facts["warnings"] == [] and found.facts["backbones"] == []


def test_scores_alone_from_a_csv(mvtec, tmp_path):
    lines = ["category,defect,image,score"]
    lines += [
        f"{c},{d},{i:03}.png,{i + 10 * (d == 'spot')}"
        for c in ("plate", "cloth")
        for d in ("good", "spot")
        for i in range(4)
    ]
    (tmp_path / "scores.csv").write_text("\n".join(lines))
    found = run.run(profile(mvtec, tmp_path, tmp_path / "scores.csv"))
    assert (found.metrics.image_auroc == 1).all() and found.metrics.pixel_auroc.isna().all()
    with pytest.raises(InputError, match="scores but no maps"):
        found.maps(found.scores)


def test_scores_beside_maps_win_over_the_maximum(perfect, tmp_path):
    root, maps = perfect
    folder = save_npz(tmp_path / "maps", maps)
    lines = [f"{c},{d},{s},{0.25}" for c, d, s in maps]
    (folder / "scores.csv").write_text("\n".join(["category,defect,image,score", *lines]))
    assert set(run.run(profile(root, tmp_path, folder)).scores.score) == {0.25}


def test_what_is_not_covered_is_said(perfect, tmp_path):
    root, maps = perfect
    partial = {key: values for key, values in maps.items() if key[0] == "plate" and key != ("plate", "spot", "003")}
    partial["plate", "spot", "999"] = next(iter(maps.values()))
    found = run.run(profile(root, tmp_path, save_npz(tmp_path / "maps", partial)))
    notes = " ".join(found.facts["notes"])
    assert "1 results of plate have no test image" in notes
    assert "plate lacks results for 1 test images" in notes and "no results for cloth" in notes
    assert len(found.scores) == 7


def test_imports_and_methods_share_one_table(perfect, tmp_path):
    root, maps = perfect
    both = small_profile(
        root, tmp_path / "cache", shots=[0], imports=[{"name": "other", "path": str(save_npz(tmp_path / "m", maps))}]
    )
    found = run.run(both)
    assert found.scores.groupby("method").size().to_dict() == {"WinCLIP": 16, "other": 16}
    assert list(found.headline().method) == ["WinCLIP, zero-shot", "other, zero-shot"]


def test_changed_maps_are_read_again(perfect, tmp_path):
    root, maps = perfect
    folder = save_npy(tmp_path / "maps", maps)
    before = run.run(profile(root, tmp_path, folder)).metrics.pixel_auroc.mean()
    save_npy(folder, {key: 1 - values for key, values in maps.items()})
    assert run.run(profile(root, tmp_path, folder)).metrics.pixel_auroc.mean() < 0.1 < before


def test_results_of_fixed_size_root(tmp_path):
    """A file name with dashes in its defect keeps its stem."""
    root = make_mvtec(tmp_path / "data", ("plate",))
    (root / "plate/test/spot").rename(root / "plate/test/spot-on")
    (root / "plate/ground_truth/spot").rename(root / "plate/ground_truth/spot-on")
    keys = [("good", i) for i in range(4)] + [("spot-on", i) for i in range(4)]
    (tmp_path / "maps").mkdir()
    np.savez(tmp_path / "maps/plate.npz", **{f"{d}-{i:03}": np.full((4, 4), float(d != "good")) for d, i in keys})
    assert run.run(profile(root, tmp_path, tmp_path / "maps")).metrics.image_auroc.tolist() == [1.0]


def test_names_with_hyphens_dots_and_na(tmp_path):
    """Ordinary file names, in both forms that results come in."""
    from conftest import paint

    root = tmp_path / "data"
    for number in range(3):
        paint(root / "plate/test/good" / f"img-{number}.v1.png", number)
        paint(root / "plate/test/NA" / f"part.{number}-x.png", 10 + number, spot=True)
    named = {f"good-img-{number}.v1": np.zeros((9, 9)) for number in range(3)}
    named |= {f"NA-part.{number}-x": np.ones((9, 9)) for number in range(3)}
    (tmp_path / "maps").mkdir()
    np.savez(tmp_path / "maps/plate.npz", **named)
    lines = [f"plate,good,img-{number}.v1,{number}" for number in range(3)]
    lines += [f"plate,NA,part.{number}-x.png,{9 + number}" for number in range(3)]
    (tmp_path / "s.csv").write_text("\n".join(["category,defect,image,score", *lines]))
    for place in ("maps", "s.csv"):
        found = run.run(profile(root, tmp_path, tmp_path / place, shots=[0]))
        assert len(found.scores) == 6 and (found.metrics.image_auroc == 1).all()


# ---------------------------------------------------------------- files as people have them

ROWS = [("plate", defect, f"{number:03}.png", number + 0.25 + 10 * (defect == "dent"))
        for defect in ("good", "dent") for number in range(2)]  # fmt: skip
WRITTEN = {
    "commas": lambda text: text.encode(),
    "semicolons and decimal commas": lambda text: text.replace(",", ";").replace(".25", ",25").encode(),
    "tabs": lambda text: text.replace(",", "\t").encode(),
    "tabs and decimal commas": lambda text: text.replace(",", "\t").replace(".25", ",25").encode(),
    "UTF-16 with tabs": lambda text: text.replace(",", "\t").encode("utf-16"),
    "a byte order mark": lambda text: text.encode("utf-8-sig"),
    "spaces": lambda text: text.replace(",", ", ").encode(),
    "capitals in the header": lambda text: text.replace("category,defect", "Category,DEFECT").encode(),
    "quotes": lambda text: text.replace("plate", '"plate"').replace("category", '"category"').encode(),
    "paths of Windows": lambda text: text.replace("good,0", "good,plate\\test\\good\\0").encode(),
    "another column": lambda text: "\n".join(f"{line},x" for line in text.splitlines()).encode(),
}


def scores_as(tmp_path, content: bytes):
    (tmp_path / "s.csv").write_bytes(content)
    return external_results._scores(tmp_path / "s.csv")


@pytest.mark.parametrize("kind", WRITTEN)
def test_score_tables_of_other_programs(tmp_path, kind):
    text = "category,defect,image,score\n" + "".join(f"{','.join(map(str, row))}\n" for row in ROWS)
    expected = {(category, defect, image[:-4]): score for category, defect, image, score in ROWS}
    assert scores_as(tmp_path, WRITTEN[kind](text)) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("category;defect;image;score\np;good;0;0,5\np;good;1;0.5\n", "line 2: the score is no finite number"),
        ("category;defect;image;score\np;good;0;1.234,5\n", "line 2: the score is no finite number"),
        ('category,defect,image,score\np,good,0,"1,234"\n', "line 2: the score is no finite number"),
        ("category,defect,image,score\np,good,0,0,5\n", "more values than its header has names"),
        ("category,defect,image,score,Score\np,good,0,1,2\n", "'score' twice"),
        ("category,defect,image\np,good,0\n", "lacks the column 'score'; it needs category, defect, image, score"),
        ("category,defect,image,score\nStück,good,0,1\n".encode("latin-1"), "line 2 is not UTF-8; in Excel choose"),
    ],
)
def test_what_is_in_doubt_is_refused(tmp_path, text, said):
    refused(lambda: scores_as(tmp_path, text if isinstance(text, bytes) else text.encode()), "s.csv", said)


def test_no_table_is_cut_short_to_its_header(tmp_path):
    """Pandas takes the first of too many values for a row's name, and drops the last where it may not."""
    (tmp_path / "t.csv").write_text("a,b\n1,2,3\n")
    refused(
        lambda: csv_files.read_text_table(tmp_path / "t.csv", ("a", "b"), "write one"),
        "more values",
        "commas in quotes",
    )


def listed_maps(tmp_path, fill, scale=None):
    """The scores, maps and notes of two images by what ``fill`` puts into a folder."""
    folder = tmp_path / "maps"
    (folder / "plate/test/dent").mkdir(parents=True)
    fill(folder)
    table = pd.DataFrame({"category": "plate", "defect": "dent", "image": [f"/x/dent/{name}.png" for name in "ab"]})
    _, scores, maps, notes = external_results.read_results(folder, table, scale)
    return scores.tolist(), maps, " ".join(notes)


VALUES = {"a": np.array([[0.5, 0.25], [0, 0.125]]), "b": np.array([[1.0, 2], [3, 1.5]])}


def each(write, suffix):
    return lambda folder: [write(folder / f"plate/test/dent/{name}{suffix}", VALUES[name]) for name in VALUES]


def archive(key="dent-{}", name="plate.npz", change=lambda values: values):
    return lambda folder: np.savez(folder / name, **{key.format(one): change(VALUES[one]) for one in VALUES})


def tiff(kind):
    return each(lambda path, values: io.imsave(path, values.astype(kind), check_contrast=False), ".tiff")


@pytest.mark.parametrize(
    "fill",
    [
        tiff(np.float32), tiff(np.float64), tiff(np.float16), each(np.save, ".npy"), archive(), archive("dent/{}"),
        archive("dent-{}.png"), archive("plate/test/dent/{}.png"), archive(r"plate\test\dent\{}.png"),
        archive(change=lambda values: values[None]), archive(change=lambda values: values[None, ..., None]),
    ],
)  # fmt: skip
def test_maps_as_other_tools_save_them(tmp_path, fill):
    """Among them MVTec's own evaluation code: TIFF of floating point."""
    scores, maps, notes = listed_maps(tmp_path, fill)
    assert scores == [0.5, 3] and np.array_equal(maps, np.stack([*VALUES.values()])) and not notes


def test_names_that_differ_in_capitals_are_read_and_said(tmp_path):
    scores, _, notes = listed_maps(tmp_path, archive(name="Plate.npz"))
    assert scores == [0.5, 3] and notes == "maps: Plate.npz is read as plate.npz."
    for name in ("PLATE.npz", "plate.NPZ"):
        np.savez(tmp_path / "maps" / name, x=1)
    (tmp_path / "maps/plate").rename(tmp_path / "maps/other")
    table = pd.DataFrame({"category": ["plate"], "defect": "dent", "image": "/x/dent/a.png"})
    refused(lambda: external_results.read_results(tmp_path / "maps", table), "differ in capitals only", "plate.npz")


def test_maps_of_few_levels_are_noted_and_pictures_of_maps_refused(tmp_path):
    scores, _, notes = listed_maps(tmp_path, archive(change=lambda values: (values * 50).astype(np.uint8)))
    assert scores == [25, 150] and "256 levels at most" in notes and "stretched" not in notes
    stretched = archive(change=lambda values: (values / values.max() * 255).astype(np.uint8))
    assert "all reach 255, so each was stretched to itself" in listed_maps(tmp_path / "2", stretched)[2]


def pngs(dtype, factor):
    """Maps multiplied by a factor and saved as whole numbers."""
    return each(lambda path, values: Image.fromarray((values * factor).round().astype(dtype)).save(path), ".png")


@pytest.mark.parametrize(("dtype", "scale"), [(np.uint8, 255), (np.uint16, 65535)])
def test_png_maps_are_read_by_their_stated_scale(tmp_path, dtype, scale):
    scores, maps, notes = listed_maps(tmp_path, pngs(dtype, scale / 4), scale)
    assert scores == pytest.approx([0.125, 0.75], abs=1 / scale) and maps.dtype == np.float32
    assert maps[1] == pytest.approx(VALUES["b"] / 4, abs=1 / scale)
    assert ("256 levels at most" in notes) == (dtype == np.uint8)
    floats = listed_maps(tmp_path / "2", each(np.save, ".npy"), scale)[0]
    assert floats == [0.5, 3]  # the scale is that of PNG alone


@pytest.mark.parametrize(("dtype", "levels"), [(np.uint8, 255), (np.uint16, 65535)])
def test_png_maps_without_their_scale_or_with_anothers_are_refused(tmp_path, dtype, levels):
    fill = pngs(dtype, 9)
    refused(lambda: listed_maps(tmp_path, fill), "dent/a.png", "is a picture of a map", f"write 'scale: {levels}'")
    other = 255 + 65535 - levels
    refused(lambda: listed_maps(tmp_path / "2", fill, other), f"levels up to {levels}", f"correct 'scale: {other}'")


def test_a_scale_is_one_of_a_png():
    with pytest.raises(InputError, match="'imports.0.scale'"):
        check_record(Profile, {"title": "t", "dataset": "folder", "root": "x",
                               "imports": [{"name": "n", "path": "p", "scale": 100}]}, "test")  # fmt: skip


PICTURES = {"L": "is a picture of a map", "RGB": "is a picture in colours"}


@pytest.mark.parametrize("mode", PICTURES)
def test_pictures_of_maps_are_refused(tmp_path, mode):
    fill = each(lambda path, values: Image.fromarray(values.astype(np.uint8)).convert(mode).save(path), ".png")
    refused(lambda: listed_maps(tmp_path, fill), "dent/a.png", PICTURES[mode], ".npy or .tiff")


def test_two_maps_of_one_image_and_other_files_are_refused(tmp_path):
    both = [archive(), each(np.save, ".npy")]
    refused(lambda: listed_maps(tmp_path, lambda folder: [one(folder) for one in both]), "maps of one image", "remove")
    photo = each(lambda path, values: path.write_bytes(b"x"), ".jpg")
    refused(lambda: listed_maps(tmp_path / "2", photo), "a.jpg", "no anomaly map that is read", ".npy, .tif, .tiff")
    broken = each(lambda path, values: path.write_bytes(b"x"), ".tiff")
    refused(lambda: listed_maps(tmp_path / "3", broken), "a.tiff", "cannot be read as an anomaly map")
    (tmp_path / "s.xlsx").write_bytes(b"PK")
    refused(lambda: external_results._scores(tmp_path / "s.xlsx"), "s.xlsx", "no CSV", "save it as CSV")


def test_the_data_are_not_their_own_maps(mvtec, tmp_path):
    refused(lambda: run.run(profile(mvtec, tmp_path, mvtec)), "is the test image, not its anomaly map")


def test_results_that_match_nothing_are_named(mvtec, tmp_path):
    (tmp_path / "s.csv").write_text("category,defect,image,score\nplate,Spot,000.png,1\n")
    refused(lambda: run.run(profile(mvtec, tmp_path, tmp_path / "s.csv")), "No outside result", "such as Spot/000")


# ---------------------------------------------------------------- what ADEval evaluates, and anomalib predicts


def results_by_path(values=lambda name: VALUES[name], folder="/elsewhere/plate/test/dent/"):
    """Two results as ADEval takes them: (map, score, path of the mask) by the path of the image."""
    return {f"{folder}{name}.png": (values(name), float(number), None) for number, name in enumerate(VALUES)}


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_the_pickle_of_adeval_has_maps_and_scores(tmp_path, protocol):
    def fill(folder):
        both = results_by_path() | results_by_path(folder="/elsewhere/cloth/test/dent/")
        (folder / "plate.pkl").write_bytes(pickle.dumps(both, protocol))

    scores, maps, notes = listed_maps(tmp_path, fill)
    assert scores == [0, 1] and np.array_equal(maps, np.stack([*VALUES.values()])) and not notes
    table = pd.DataFrame({"category": "plate", "defect": "dent", "image": [f"/x/dent/{name}.png" for name in "ab"]})
    found = external_results.read_results(tmp_path / "maps/plate.pkl", table)  # the file itself
    assert found[1].tolist() == [0, 1] and np.array_equal(found[2], maps)


def test_images_of_visa_are_known_by_their_folder(tmp_path):
    """Their kind of defect is in no path: VisA keeps all of them in one folder."""
    folder = "plate/Data/Images"
    images = [f"/x/{folder}/{kind}/000.JPG" for kind in ("Anomaly", "Normal")]
    table = pd.DataFrame({"category": "plate", "defect": ["dent", "good"], "image": images})
    windows = rf"D:\{folder}\Anomaly\000.JPG".replace("/", "\\")
    places = [windows, f"/y/{folder}/Normal/000.JPG", "/y/cap/Anomaly/0.JPG"]
    results = {name: (VALUES["a"] + number, 1.0 - number, None) for number, name in enumerate(places)}
    (tmp_path / "s.pkl").write_bytes(pickle.dumps(results))
    rows, scores, maps, notes = external_results.read_results(tmp_path / "s.pkl", table)
    assert len(rows) == 2 and scores.tolist() == [1, 0] and maps[:, 0, 0].tolist() == [0.5, 1.5] and not notes


class Command:
    """An object whose pickle calls a function of the operating system."""

    def __reduce__(self):
        return os.mkdir, ("made_by_a_pickle",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pickle.dumps({"dent/a.png": (VALUES["a"], 1.0, Command())}), "it holds posix.mkdir"),
        (pickle.dumps([1, 2]), "is no pickle that is read"),
        (b"damaged", "is no pickle that is read"),
        (pickle.dumps({"plate/dent/a.png": (np.zeros(3), 1.0, None)}), "is no anomaly map of finite numbers"),
        (pickle.dumps(results_by_path(lambda name: VALUES["a"] * np.nan)), "is no anomaly map of finite numbers"),
        (pickle.dumps({"plate/dent/a.png": (VALUES["a"], float("nan"), None)}), "no finite number"),
        (pickle.dumps(results_by_path() | results_by_path(folder="dent/")), "two results of plate/dent/a"),
    ],
)
def test_nothing_in_a_pickle_but_arrays_is_read_or_executed(tmp_path, monkeypatch, content, said):
    monkeypatch.chdir(tmp_path)
    refused(
        lambda: listed_maps(tmp_path, lambda folder: (folder / "plate.pkl").write_bytes(content)), "plate.pkl", said
    )
    assert not (tmp_path / "made_by_a_pickle").exists()


def test_scores_as_anomalib_names_its_predictions(tmp_path):
    """Paths of all categories, and columns that are not needed."""
    lines = ["image_path,pred_label,pred_score", "/d/plate/test/dent/a.png,True,0.75"]
    lines += ["/d/cloth/test/dent/a.png,True,9", "/d/plate/test/dent/b.png,False,0.25"]

    def fill(folder):
        (folder / "scores.csv").write_text("\n".join(lines))
        each(np.save, ".npy")(folder)

    assert listed_maps(tmp_path, fill)[0] == [0.75, 0.25]
    lines.append("/d/plate/test/dent/b.png,False,nan")
    refused(lambda: listed_maps(tmp_path / "2", fill), "scores.csv, line 5: the score is no finite number")
    lines[-1] = "/e/plate/test/dent/b.png,False,0.5"
    refused(lambda: listed_maps(tmp_path / "3", fill), "scores.csv, line 5: plate/dent/b has a score already")
