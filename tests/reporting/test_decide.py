"""Decisions on folders as people have them: what is judged, left out and said, and what lies there after."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, paint, small_profile, write_profile
from PIL import Image
from test_wrong_input import refused

from vlmad_lib.analysis import thresholds
from vlmad_lib.data import datasets
from vlmad_lib.pipeline import part_groups
from vlmad_lib.reporting import decide

QUICK = TINY | {"settings": {"windows": [2], "states": "one"}}


def quick(tmp_path, cache, **changes):
    """A profile of few words, whose own data are not there."""
    return small_profile(tmp_path / "nowhere", cache, **{"methods": [QUICK]} | changes)


def names(found) -> list[str]:
    return sorted(found.table.image)


def said(found) -> str:
    return " ".join(found.facts["notes"])


def mask(path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((60, 60), np.uint8)
    values[:20, :20] = 255
    Image.fromarray(values).save(path)


def test_masks_are_left_out_wherever_they_lie(tmp_path, cache, drop):
    for place in ("masks/n0.png", "ground_truth/n0.png", "deeper/GT/n0.png", "n0_mask.png", "mask_n1.png"):
        mask(drop / place)
    paint(drop / "deeper/n9.png", 109)
    found = decide.decide(quick(tmp_path, cache), drop)
    assert names(found) == ["deeper/n9.png", "n0.png", "n1.png", "n2.png"]
    assert "4 masks are left out, such as" in said(found)  # ground_truth/ is known to hold them
    mask(drop / "good/0_mask.png")
    refused(lambda: decide.decide(quick(tmp_path, cache), drop), "good/0_mask.png", "seems to be a mask")


def test_one_picture_that_cannot_be_read_does_not_refuse_the_rest(tmp_path, cache, drop):
    (drop / "n0.heic").write_bytes(b"x" * 50)
    (drop / "n1.jpg").write_bytes(b"no picture")
    Image.fromarray(np.full((60, 60), 900, np.uint16)).save(drop / "deep.png")
    found = decide.decide(quick(tmp_path, cache), drop)
    table = found.table.set_index("image")
    unread = table[table.decision == "unreadable"]
    assert sorted(unread.index) == ["deep.png", "n0.heic", "n1.jpg"] and len(table) == 6
    assert "of a kind that is not read" in unread.reason["n0.heic"] and "nearly black" in unread.reason["deep.png"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [("OK", ["seems to hold normal pictures", "rename it to good/"]), ("Good", ["not spelt 'good'", "rename"])],
)
def test_normal_pictures_under_another_name_are_not_judged(tmp_path, cache, drop, name, parts):
    (drop / "good").rename(drop / name)
    refused(lambda: decide.decide(quick(tmp_path, cache), drop), str(drop / name), *parts, "to be judged")
    (drop / "train").mkdir()
    (drop / name).rename(drop / "train" / name)
    refused(lambda: decide.decide(quick(tmp_path, cache), drop), str(drop / "train" / name), *parts)


def test_the_profile_says_which_folder_holds_normal_pictures(tmp_path, cache, drop):
    (drop / "good").rename(drop / "no")
    for place in ("old/9.png", "drawn/n0.png"):
        paint(drop / place, 9)
    roles = {"normal": ["no"], "ignore": ["old"], "masks": ["drawn"]}
    chosen = quick(tmp_path, cache, folders=roles)
    found = decide.decide(chosen, drop)
    assert names(found) == ["n0.png", "n1.png", "n2.png"] and found.facts["normal"] == 12
    assert "old/ is left out, as 'folders' says." in said(found) and "1 masks are left out, such as drawn/n0" in said(
        found
    )
    (drop / "no").rename(drop / "OK")
    said_ = refused(lambda: decide.decide(chosen, drop), "'folders: {normal: [OK]}'")
    assert "\n" not in said_


def test_normal_pictures_of_a_profile_whose_data_are_laid_out_otherwise(tmp_path, cache, drop):
    for i in range(10):
        paint(tmp_path / "data/OK" / f"{i}.png", 200 + i)
    paint(tmp_path / "data/NG/0.png", 300)
    (drop / "good").rename(tmp_path / "away")

    def normal(**changes):
        return decide._normal(small_profile(tmp_path / "data", cache, **changes), drop, "", set(), {})[1]

    assert len(normal()) == 10
    (tmp_path / "data/OK").rename(tmp_path / "data/no")
    said_ = refused(normal, "own data cannot serve", "has no good/, but NG/ and no/", "normal: [...]")
    assert said_.endswith("masks: [...], ignore: [...]}').")
    assert len(normal(folders={"normal": ["no"]})) == 10


def test_more_normal_pictures_beside_good_are_told_where_to_go(tmp_path, cache, drop):
    paint(drop / "normal/a.png", 50)
    refused(lambda: decide.decide(quick(tmp_path, cache), drop), "normal", f"as {drop / 'good'} does: move")


def test_without_normal_pictures_the_remedy_is_a_folder_of_them(tmp_path, cache, drop):
    (drop / "good").rename(tmp_path / "away")
    chosen = quick(tmp_path, cache)
    refused(lambda: decide.decide(chosen, drop), f"{drop} has no good/ folder", "add it", "nowhere does not exist")
    refused(lambda: decide.decide(chosen, drop, category="bolt"), "nowhere does not exist", "set 'root'")


def test_a_file_is_said_to_be_one(tmp_path, cache, drop):
    (tmp_path / "parts.zip").write_bytes(b"PK")
    for file in (tmp_path / "parts.zip", drop / "n0.png"):
        refused(lambda file=file: decide.decide(quick(tmp_path, cache), file), str(file), "is a file", "unpack")


def test_a_wrong_alpha_is_refused_before_pictures_are_read(tmp_path, cache, drop, monkeypatch):
    monkeypatch.setattr(decide, "_pictures", lambda folder: pytest.fail("read"))
    refused(lambda: decide.decide(quick(tmp_path, cache), drop, alpha=10), "alpha", "between 0 and 1")


def test_the_folders_name_is_no_word_of_prompts(tmp_path, cache, drop):
    chosen = quick(tmp_path, cache)
    found = decide.decide(chosen, drop)
    other = drop.rename(tmp_path / "bolt")
    again = decide.decide(chosen, other)
    assert list(found.table.score) == list(again.table.score) and found.facts["class_name"] == "object"
    assert "Prompts call the product 'object'; say what it is" in said(found)
    named = decide.decide(chosen.model_copy(update={"class_names": {"part_07": "steel bracket"}}), other)
    assert said(named) == "Prompts call the product 'steel bracket'." and named.facts["category"] == "part_07"
    assert list(named.table.score) != list(found.table.score)
    several = chosen.model_copy(update={"class_names": {"bolt": "hex bolt", "nut": "nut"}})
    assert decide.decide(several, other).facts["class_name"] == "hex bolt"
    assert decide.decide(chosen, other, category="wing_nut").facts["class_name"] == "wing nut"


def test_a_folder_that_is_a_category_of_the_profile_keeps_its_name(tmp_path, cache, drop):
    own = small_profile(tmp_path, cache, methods=[QUICK])  # whose root holds the folder
    assert decide.decide(own, drop).facts["class_name"] == "drop 2026 11 27"
    assert "bottle" in datasets.category_names(own.model_copy(update={"dataset": "mvtec"}))
    assert datasets.category_names(quick(tmp_path, cache)) == []


def test_methods_without_words_say_nothing_of_them(tmp_path, cache, drop):
    only = quick(tmp_path, cache, methods=[TINY | {"method": "patchcore"}], shots=[1])
    assert said(decide.decide(only, drop)) == ""


def test_pictures_of_another_shape_are_noted(tmp_path, cache, drop):
    paint(drop / "strip.png", 7, (200, 50))
    found = decide.decide(quick(tmp_path, cache), drop)
    assert "1 of 4 new pictures have another shape" in said(found) and "strip.png with 200x50" in said(found)


def test_an_output_folder_holds_the_overlays_of_the_last_call_alone(tmp_path, cache, drop, capsys):
    values = {"dataset": "folder", "root": "nowhere", "shots": [0], "cache": str(cache), "methods": [QUICK]}
    file, out = write_profile(tmp_path, **values), tmp_path / "out"
    call = [str(file), str(drop), "--out", str(out)]
    assert decide.main(call) == 0 and len(list((out / "overlays").iterdir())) == 3
    (out / "overlays/notes.txt").write_text("mine")
    Image.new("RGB", (9, 9)).save(out / "overlays/00009-mine.jpg")
    (out / "overlays/broken.jpg").write_bytes(b"x")
    for name in ("n0.png", "n2.png"):
        (drop / name).unlink()
    assert decide.main(call) == 0
    [overlay] = pd.read_csv(out / "decisions.csv").overlay
    kept = sorted(path.name for path in (out / "overlays").iterdir())
    assert kept == sorted(["00009-mine.jpg", overlay.removeprefix("overlays/"), "broken.jpg", "notes.txt"])
    assert json.loads((out / "decisions.json").read_text())["notes"][0] in capsys.readouterr().err


# ---------------------------------------------------------------- parts and their pictures


@pytest.fixture
def parts_drop(tmp_path):
    """Fourteen parts, each photographed three times with a little noise, and one new picture with a spot."""
    folder = tmp_path / "parts"
    for part in range(14):
        for shot in range(3):
            file = folder / "good" / f"part{part:02}_{shot}.png"
            paint(file, part)
            noise = np.random.default_rng(100 * part + shot).integers(0, 3, (60, 60, 3))
            Image.fromarray((np.asarray(Image.open(file)) + noise).astype(np.uint8)).save(file)
    paint(folder / "new.png", 900, spot=True)
    return folder


def test_the_promise_holds_for_parts_only_where_thresholds_are_by_part():
    """Twelve parts, four pictures each: by picture far more good parts are rejected than alpha, by part no more."""
    stream, alpha, runs = np.random.default_rng(0), 0.1, 4000
    scores = stream.normal(size=(runs, 13, 1)) + 0.5 * stream.normal(size=(runs, 13, 4))
    rejected = {"pictures": 0, "parts": 0}
    for run in scores:
        new, known = run[0].max(), run[1:]
        owners = np.repeat(np.arange(12), 4)
        by_part = part_groups.largest_by_part(known.ravel(), owners)
        rejected["parts"] += new > thresholds.conformal(by_part, alpha)
        rejected["pictures"] += new > thresholds.conformal(known.ravel(), alpha)
    assert rejected["parts"] / runs <= alpha + 0.01
    assert rejected["pictures"] / runs > 1.5 * alpha


def test_references_and_thresholds_are_by_part(tmp_path, cache, parts_drop):
    chosen = quick(tmp_path, cache, shots=[0, 2])
    found = decide.decide(chosen, parts_drop, groups=r"(part\d+)_")
    facts, scores = found.facts, found.results.scores
    normal = scores[scores.defect == "good"]
    owners = normal.image.str.extract(r"(part\d+)_")[0]
    references = set(normal.references.iloc[0].split(";"))
    taken = {name.rpartition("/")[2][:6] for name in references}
    assert len(taken) == 2 and not taken & set(owners)  # no picture is judged by another of its part
    assert (facts["parts"], facts["references"], facts["calibration"]) == (14, 2, 12)
    assert facts["calibration_pictures"] == 36 and "from 12 normal parts" in facts["promise"]
    assert facts["threshold"] == thresholds.conformal(normal.score.groupby(owners).max().to_numpy(), 0.1)
    assert "nearly the same" not in said(found)


def test_groups_may_be_a_table(tmp_path, cache, parts_drop):
    file = tmp_path / "parts.csv"
    rows = [(f"part{part:02}_{shot}.png", f"lot {part // 2}") for part in range(14) for shot in range(3)]
    pd.DataFrame(rows, columns=["Picture", "Part"]).to_csv(file, sep=";", index=False)
    found = decide.decide(quick(tmp_path, cache, shots=[0]), parts_drop, groups=str(file))
    assert found.facts["parts"] == 7 and set(found.table.decision) == {"undecided"}
    assert "it takes 9 normal parts beside the references, there are 7" in found.facts["promise"]
    pd.DataFrame(rows[1:], columns=["picture", "part"]).to_csv(file, index=False)
    refused(
        lambda: decide.decide(quick(tmp_path, cache), parts_drop, groups=str(file)),
        "parts.csv has no part for", "part00_0.png", "add a row",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("groups", "parts"),
    [
        ("(part", ["no regular expression", "picture and part"]),
        ("(lot\\d+)", ["finds no part in the name of", "part00_0.png", "every normal picture"]),
        ("part", ["all normal pictures are of one part, 'part'", "add others"]),
        ("missing.csv", ["missing.csv", "No such file"]),
    ],
)
def test_wrong_groups_are_refused(tmp_path, cache, parts_drop, groups, parts):
    refused(lambda: decide.decide(quick(tmp_path, cache), parts_drop, groups=groups), *parts)


def test_near_duplicates_are_named_and_parts_are_none(parts_drop):
    pictures = sorted(map(str, (parts_drop / "good").glob("*.png")))
    sets = part_groups.find_near_duplicates(pictures)
    assert len(sets) == 14 and all(len({name[-8:-6] for name in names}) == 1 for names in sets)
    [sentence] = part_groups.warn_of_near_duplicates(pictures)
    assert "42 normal pictures" in sentence and "14 sets" in sentence and "part00_0.png and part00_1.png" in sentence
    parts = part_groups.read_parts(pictures, r"(part\d+)_")
    assert part_groups.warn_of_near_duplicates(pictures, parts) == []
    wrong = parts | {pictures[0]: "another"}
    assert "correct --groups" in part_groups.warn_of_near_duplicates(pictures, wrong)[0]
    assert part_groups.find_near_duplicates(pictures[::3]) == []  # one picture of each part


def test_marked_pixels_come_with_their_promise(tmp_path, drop):
    file = write_profile(tmp_path, dataset="folder", root="nowhere", methods=[QUICK], shots=[0])
    out = tmp_path / "out"
    assert decide.main([str(file), str(drop), "--out", str(out)]) == 0
    table, facts = pd.read_csv(out / "decisions.csv"), json.loads((out / "decisions.json").read_text())
    found = decide.decide(quick(tmp_path, tmp_path / "cache", shots=[0]), drop)
    rows = found.results.scores
    normal = [values.max() for values in found.results.framed(rows[rows.defect == "good"])]
    limit = thresholds.conformal(np.array(normal), 0.1)
    assert (
        facts["pixel_threshold"] == pytest.approx(limit) and "Nothing is promised of defects" in facts["pixel_promise"]
    )
    for row in table.itertuples():
        with Image.open(out / row.mask) as shown:
            marked = np.asarray(shown)
        assert marked.shape == (60, 60) and set(np.unique(marked)) <= {0, 255}
        assert (marked > 0).mean() == pytest.approx(row.area, abs=0.01)
    paint(drop / "n0.png", 100)  # a second call removes the masks of the first
    (drop / "n2.png").unlink()
    decide.main([str(file), str(drop), "--out", str(out)])
    assert len(list((out / "masks").glob("*.png"))) == 2
