"""Own pictures laid out otherwise: read where there is no doubt, by the profile's key, or refused with both trees."""

from __future__ import annotations

import re

import pytest
from conftest import paint, small_profile
from test_data import index, refusal

from vlmad_lib import InputError, config
from vlmad_lib.data import layouts


def fill(root, *places):
    """Three pictures in each folder; masks, with a spot, in those named after masks and where ``=`` gives their names.

    ``dent=m:{}_mask.png`` are masks in dent/.
    """
    for number, written in enumerate(places):
        place, _, names = written.partition("=m:")
        masks = names or any(word in place.lower() for word in ("mask", "gt", "label", "truth", "annot"))
        for i in range(3):
            picture = root / place / ((names or "{}.png").format(i) if masks else f"{i}.jpg")
            if masks:
                paint(tmp := picture.with_name("x.png"), i, spot=True, mask=picture)
                tmp.unlink()
            else:
                paint(picture, 100 * number + i)
    return root


def count(table):
    """The images and the masks of each split and defect, such as ``test/dent 3 3``."""
    rows = table.assign(masked=table["mask"] != "").groupby(["split", "defect"]).masked.agg(["size", "sum"])
    return [f"{split}/{defect} {size} {masked}" for (split, defect), (size, masked) in rows.iterrows()]


BOTH = ["test/good 3 0"]


@pytest.mark.parametrize(
    ("there", "counts", "said"),
    [
        (["OK", "NG"], ["test/NG 3 0", *BOTH], "set: OK/ is read as the normal pictures: 'OK' stands for 'good'."),
        (["Good", "Bad"], ["test/Bad 3 0", *BOTH], "set: Good/ is read as"),
        (["jack/ok_front", "jack/def_front"], ["test/def_front 3 0", *BOTH], "jack: ok_front/ is read as"),
        (["MT_Free", "MT_Crack"], ["test/MT_Crack 3 0", *BOTH], "set: MT_Free/ is read as"),
        (
            ["cup/train/ok", "cup/test/ok", "cup/test/ko", "cup/ground_truth/ko"],
            [*BOTH, "test/ko 3 3", "train/good 3 0"],
            "cup: train/ok/ and test/ok/ are read as the normal pictures: 'ok' stands for 'good'.",
        ),
        (
            ["cup/Training/OK", "cup/Test/normal", "cup/Test/x", "cup/GT/x"],
            [*BOTH, "test/x 3 3", "train/good 3 0"],
            "cup: Training/ is read as train.",
        ),
        (
            ["cup/train/good", "cup/test_public/good", "cup/test_public/x", "cup/test_public/ground_truth/x"]
            + ["cup/validation"],
            [*BOTH, "test/x 3 3", "train/good 3 0"],
            "cup: validation/ is not read; pictures left out: 3.",
        ),
        (
            ["train/cup/good", "test/cup/good", "test/cup/x", "ground_truth/cup/x"],
            [*BOTH, "test/x 3 3", "train/good 3 0"],
            "The splits lie above the categories: train/cup/ is read as cup/train/.",
        ),
        (["good", "dent", "masks"], ["test/dent 3 3", *BOTH], "set: masks/ is read as masks."),
        (["good", "dent", "ground_truth"], ["test/dent 3 3", *BOTH], ""),
        (["good", "dent", "annotations"], ["test/dent 3 3", *BOTH], "set: annotations/ is read as masks."),
        (["good", "a", "b", "gt/a", "gt/b"], ["test/a 3 3", "test/b 3 3", *BOTH], "set: gt/ is read as masks."),
        (["good", "dent", "dent/masks"], ["test/dent 3 3", *BOTH], "set: dent/masks/ is read as masks."),
        (["OK", "ng", "gt/OK=m:{}.bmp", "gt/ng"], None, "marks 17% of"),
        (
            ["ok", "ng", "ng=m:{}_GT.png"],
            [*BOTH, "test/ng 3 3"],
            "set: 3 masks lie beside the pictures, such as ng/0_GT",
        ),
    ],
)
def test_own_folders_of_other_names_are_read_where_there_is_no_doubt(tmp_path, there, counts, said):
    root = fill(tmp_path / "set", *there)
    if counts is None:
        assert said in refusal(root, tmp_path, shots=[0])
        return
    table, notes = index(root, tmp_path, shots=[0])
    assert count(table) == counts and said in "\n".join(notes)
    assert len(notes) == len(set(notes)) and table.label.equals((table.defect != "good").astype(int))


def test_mvtec_ad_2_is_told_its_own_data_set(tmp_path):
    root = fill(tmp_path / "set", "can/train/good", "can/test_public/good", "can/test_public/bad", "can/test_private")
    with pytest.raises(InputError, match="'dataset: mvtec2'.*to have test/good"):
        index(root, tmp_path, shots=[0])


def test_a_note_says_once_how_the_folders_of_many_categories_are_read(tmp_path):
    root = fill(tmp_path / "set", *(f"{name}/{kind}" for name in "abcdef" for kind in ("OK", "NG")))
    note = "a, b, c, d and 2 more: OK/ is read as the normal pictures: 'OK' stands for 'good'."
    assert index(root, tmp_path, shots=[0])[1][0] == note


@pytest.mark.parametrize(
    ("there", "folders", "counts"),
    [
        (["yes", "no"], {"normal": ["no"]}, [*BOTH, "test/yes 3 0"]),
        (["c/yes", "c/no", "c/old"], {"normal": ["n?"], "ignore": ["old"]}, [*BOTH, "test/yes 3 0"]),
        (["c/Train", "c/Test"], {"normal": ["Train"], "defects": ["Test"]}, ["test/Test 3 0", *BOTH]),
        (["c/train/0", "c/test/0", "c/test/1"], {"normal": ["*/0"]}, ["test/1 3 0", *BOTH, "train/good 3 0"]),
        (["c/learn/0", "c/try/0", "c/try/1"], {"train": ["learn"], "test": ["try"], "normal": ["0"]},
         ["test/1 3 0", *BOTH, "train/good 3 0"]),
        (["good", "ok", "dent"], {"normal": ["good", "ok"]}, ["test/dent 3 0", "test/good 6 0"]),
        (["good", "ok", "dent"], {"ignore": ["ok"]}, ["test/dent 3 0", *BOTH]),
        (["good", "ok", "dent"], {"defects": ["ok"]}, ["test/dent 3 0", *BOTH, "test/ok 3 0"]),
        (["good", "dent", "drawn=m:{}.png"], {"masks": ["drawn"]}, ["test/dent 3 3", *BOTH]),
        (["polyps", "masks"], {"defects": ["polyps"]}, ["test/polyps 3 3"]),
        (["a/good", "a/dent", "b/good"], {"ignore": ["b"]}, ["test/dent 3 0", *BOTH]),
    ],
)  # fmt: skip
def test_the_profile_says_which_folder_is_what(tmp_path, there, folders, counts):
    table, notes = index(fill(tmp_path / "set", *there), tmp_path, shots=[0], folders=folders)
    assert count(table) == counts
    assert any(" is read as " in note or " are read as " in note or "as 'folders' says" in note for note in notes)


@pytest.mark.parametrize(
    ("there", "said", "key"),
    [
        (["yes", "no"], "has no good/, but no/ and yes/", "normal: [...], defects: [...]"),
        (["Class1/Train", "Class1/Test"], "0.jpg lies loose in Train/", "{normal: [Train]}"),
        (["sets/cup/train/good", "sets/cup/test/good"], "/sets holds the categories (cup", ""),
        (["cup/train/0", "cup/test/0", "cup/test/1"], "/train has no good/, but 0", "{normal: [0]}"),
        (["cup/good", "cup/normal", "cup/dent"], "both seem to hold normal", "{normal: [good, normal]}"),
        (["cup/test/good", "cup/testing/good", "cup/test/x"], "both seem to be test/", "{ignore: [testing]}"),
        (["cup/OK"], "without defects beside it that is not sure", "{normal: [OK]}"),
        (["cup/good", "cup/dent", "ground_truth/cup/dent"], "seems to hold masks", "masks: [...]"),
        (["good", "a", "b", "masks"], "may be the mask of", "masks: [...]"),
        (["good", "dent", "dent/day 2"], "lies in a folder below", "{ignore: [dent/day 2]}"),
        (["train/cup/good", "test/cup/good", "test/cup/bad", "train"], "lies below the split", "normal: [...]"),
    ],
)
def test_what_is_doubtful_is_refused_with_both_trees_and_the_key(tmp_path, there, said, key):
    root = fill(tmp_path / "set", *there)
    sentence, _, trees = refusal(root, tmp_path, shots=[0]).partition("\n")
    assert said in sentence and (key in sentence if key else "folders: {" not in sentence)
    found, _, wanted = trees.partition("Wanted, ")
    assert f"There is, in {root}:" in found and found.count("3 pictures") == len(there)
    assert "good/ (or train/good/ and test/good/)" in wanted and "ground_truth/<defect>/" in wanted


def test_a_long_tree_is_shortened(tmp_path):
    root = fill(tmp_path / "set", *(f"c{i}/{kind}" for i in range(9) for kind in ("a", "b")))
    found = refusal(root, tmp_path, shots=[0]).partition("There is")[2].partition("Wanted")[0].splitlines()[1:]
    assert len(found) == layouts.LINES and found[-1] == "  ... and 16 more folders"


def test_a_folder_said_to_hold_normal_pictures_in_one_split_is_no_defect_in_the_other(tmp_path):
    root = fill(tmp_path / "set", "cup/train/0", "cup/test/0", "cup/test/1")
    said = refusal(root, tmp_path, shots=[0], folders={"normal": ["train/0"]})
    assert "nothing says what" in said and "cup/test/0 holds" in said and "{normal: [0]}" in said


def test_folders_that_the_profile_names_in_vain_or_twice_or_elsewhere_are_refused(tmp_path):
    root = fill(tmp_path / "set", "cup/good", "cup/dent")
    assert "'folders' has 'gud' in normal, which names no folder in" in refusal(
        root, tmp_path, folders={"normal": ["gud"]}
    )
    twice = {"normal": ["good"], "ignore": ["g*"]}
    assert "'folders' has good as normal and as ignore" in refusal(root, tmp_path, folders=twice)
    for changes, said in [
        ({"folders": {"normal": ["good"]}, "dataset": "mvtec"}, "only own pictures have it"),
        ({"folders": {"norml": ["good"]}}, "did you mean 'normal'?"),
        ({"folders": {"normal": ["../good"]}}, "its path relative to the category"),
    ]:
        with pytest.raises(InputError, match=re.escape(said)):
            small_profile(root, tmp_path, **changes)


def test_folders_named_as_yaml_writes_other_things_are_text(tmp_path):
    assert config.parse_override("folders={normal: [no, 0], ignore: [2024-01-05]}")[1] == {
        "normal": ["no", "0"],
        "ignore": ["2024-01-05"],
    }
