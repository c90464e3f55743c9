"""Ways to get the input wrong: each ends in one sentence that names the file or key and the remedy."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, make_mvtec, paint, small_profile
from PIL import Image
from safetensors.torch import save_file

from vlmad_lib import InputError, config
from vlmad_lib.analysis import by_defect, efficiency, failures, prompt_transfer, thresholds, variants
from vlmad_lib.data import datasets
from vlmad_lib.encoders import backbones
from vlmad_lib.pipeline import run
from vlmad_lib.reporting import report


def refused(work, *parts: str) -> str:
    """The message of the InputError: one line that names all parts, and two trees of own folders laid out otherwise."""
    with pytest.raises(InputError) as caught:
        work()
    message, _, tree = str(caught.value).partition("\n")
    assert message.endswith((".", "?")) and tree.startswith("There is, in ") == ("\n" in str(caught.value)), message
    for part in parts:
        assert part in message, (part, message)
    return message


@pytest.fixture
def start(tmp_path):
    """Runs a tiny data set after something was done to it."""
    root = make_mvtec(tmp_path / "data")
    return root, lambda **changes: lambda: run.run(small_profile(root, tmp_path / "cache", **changes))


def test_missing_root(tmp_path):
    refused(lambda: run.run(small_profile(tmp_path / "nowhere", tmp_path)), str(tmp_path / "nowhere"), "set 'root'")


def test_empty_root(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(lambda: run.run(small_profile(tmp_path / "empty", tmp_path)), str(tmp_path / "empty"), "data/README.md")


def test_missing_category(start):
    root, job = start
    refused(job(categories=["plate", "clth"]), str(root), "'clth'", "cloth, plate")


def test_category_without_test_images(start):
    root, job = start
    (root / "plate/test").rename(root / "plate-test")
    (root / "plate/ground_truth").rename(root / "plate-masks")
    refused(job(), str(root / "plate"), "add test/good")


def test_unreadable_image(start):
    root, job = start
    (root / "plate/test/good/000.png").write_bytes(b"this is no image")
    refused(job(), "plate/test/good/000.png", "cannot be read as an image", "replace or remove")


def test_truncated_image(start):
    root, job = start
    file = root / "plate/test/good/001.png"
    file.write_bytes(file.read_bytes()[:2000])
    refused(job(), "plate/test/good/001.png", "cannot be decoded", "replace or remove")


def test_mask_without_image(start):
    root, job = start
    (root / "cloth/test/spot/002.png").unlink()
    refused(job(), "cloth/ground_truth/spot/002_mask.png", "has no image", "remove it or add it")


def test_image_without_mask(start):
    root, job = start
    (root / "cloth/ground_truth/spot/002_mask.png").unlink()
    refused(job(dataset="mvtec"), "cloth/test/spot/002.png", "has no mask", "add it")


def test_mask_of_another_size(start):
    root, job = start
    Image.new("L", (30, 30)).save(root / "plate/ground_truth/spot/001_mask.png")
    refused(job(), "001_mask.png", "30x30", "60x60", "same size")


def test_too_few_references(tmp_path):
    root = make_mvtec(tmp_path / "data", ("plate",), train=2)
    refused(lambda: run.run(small_profile(root, tmp_path / "cache", shots=[4])), "plate", "2 normal", "lower 'shots'")


def test_too_few_good_images_to_hold_out(tmp_path):
    for i in range(3):
        paint(tmp_path / "data/part/good" / f"{i}.png", i)
    refused(lambda: run.run(small_profile(tmp_path / "data", tmp_path / "c", shots=[2])), "part", "add train/good")


def test_nothing_to_run(start):
    _, job = start
    refused(job(methods=[]), "no methods and no imports")


def test_two_methods_of_one_name(start):
    """Their rows would be averaged as if they were draws of one."""
    _, job = start
    refused(job(methods=[TINY, TINY | {"preset": "accurate"}]), "'WinCLIP'", "its own 'name'")


def test_unknown_model(start):
    _, job = start
    refused(job(methods=[{"backbone": "ViT-Q-99", "weights": "random:0"}]), "ViT-Q-99", "list_models")


@pytest.mark.parametrize("name", ["RN50", "MobileCLIP-S1", "timm/test_resnet"])
def test_towers_without_patch_tokens(name):
    refused(lambda: backbones.build_skeleton(name), f"{name} is no ViT and has no patch tokens")


def test_weights_not_on_this_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(backbones, "_cached", lambda hub: None)
    monkeypatch.setattr(backbones, "WEIGHTS", tmp_path)
    load = lambda tag: lambda: backbones.load_backbone("ViT-B-16-plus-240", tag)  # noqa: E731
    refused(load("laion400m_e31"), "open_clip_model.safetensors", str(tmp_path / "ViT-B-16-plus-240-laion400m_e31"))
    message = refused(load("laion400m_e32"), "vit_b_16_plus_240-laion400m_e32-699c4b84.pt")
    assert "e31" not in message  # the hub entry of e32 silently holds e31
    refused(load("laion"), "laion400m_e31", "or give a file")
    refused(load("weights/none.pt"), "weights/none.pt", "does not exist")


def test_openai_weights_need_their_activation():
    refused(lambda: backbones.locate_weights("ViT-L-14-336", "openai"), "QuickGELU", "ViT-L-14-336-quickgelu")


def test_weights_of_another_model(tmp_path):
    save_file({"visual.proj": torch.zeros(3, 3)}, tmp_path / "w.safetensors")
    refused(
        lambda: backbones.load_backbone("demo", str(tmp_path / "w.safetensors")), "w.safetensors", "do not fit demo"
    )


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated_weights(tmp_path, suffix):
    for content in (b"PK\x03\x04 broken", b"broken", b""):
        (tmp_path / f"w{suffix}").write_bytes(content)
        refused(lambda: backbones.load_backbone("demo", str(tmp_path / f"w{suffix}")), f"w{suffix}")


class Hostile:
    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return (Path.touch, (self.place,))


def test_hostile_weights_run_nothing(tmp_path):
    with (tmp_path / "evil.pt").open("wb") as stream:
        pickle.dump({"state_dict": Hostile(tmp_path / "ran")}, stream)
    torch.save({"x": Hostile(tmp_path / "ran")}, tmp_path / "evil2.pt")
    for name in ("evil.pt", "evil2.pt"):
        refused(lambda name=name: backbones.load_backbone("demo", str(tmp_path / name)), name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"shotz": [1]}, ["'shotz'", "did you mean 'shots'"]),
        ({"shots": "many"}, ["'shots'", "'many'", "valid list"]),
        ({"shots": [-1]}, ["shots.0", "greater than or equal to 0"]),
        ({"download": "yes"}, ["'download'", "boolean"]),
        ({"methods": [{"backbon": "demo"}]}, ["methods.0.backbon", "did you mean 'backbone'"]),
        ({"dataset": "imagenet"}, ["'dataset'", "'imagenet'"]),
        ({"contrast_limits": [15, 5]}, ["'contrast_limits'", "[15, 5]", "the lower one first"]),
        ({"contrast_limits": [5]}, ["'contrast_limits'", "two limits are needed"]),
        ({"contrast_limits": [0, 5]}, ["contrast_limits.0", "greater than 0"]),
    ],
)
def test_wrong_profile_keys(changes, parts):
    refused(lambda: config.load_profile("demo", changes), "demo.yml", *parts)


def test_missing_and_broken_profiles(tmp_path):
    refused(lambda: config.load_profile("dmo"), "dmo.yml", "demo", "path of a YAML file")
    (tmp_path / "bad.yml").write_text("title: [unclosed")
    refused(lambda: config.load_profile(tmp_path / "bad.yml"), "bad.yml", "correct that line")
    (tmp_path / "list.yml").write_text("- a\n- b")
    refused(lambda: config.load_profile(tmp_path / "list.yml"), "list.yml", "title, dataset and root")
    (tmp_path / "evil.yml").write_text("title: !!python/object/apply:os.system ['true']")
    refused(lambda: config.load_profile(tmp_path / "evil.yml"), "evil.yml")


def test_a_few_lines_of_yaml_that_name_themselves_into_gigabytes(tmp_path):
    """Nine lists, each ten times the one before: read by reference, and never written out."""
    lines = ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10))]
    for key in ("title: *a9", "shots: *a9", "methods: [{settings: {windows: *a9}}]"):
        (tmp_path / "bomb.yml").write_text("\n".join([*lines, "dataset: demo", "root: x", key]))
        assert len(refused(lambda: config.load_profile(tmp_path / "bomb.yml"), "bomb.yml")) < 500
    started = config.load_profile("demo", {"methods": [{"settings": {"windows": bomb()}}]})
    assert len(refused(lambda: run.list_variants(started), "WinCLIP settings", "'windows")) < 500


def bomb() -> list:
    """A list that would fill the machine if it were written out."""
    found = [1]
    for _ in range(30):
        found = [found] * 10
    return found


def test_names_that_lead_out_of_the_data(start, tmp_path):
    _, job = start
    refused(job(categories=["../x"]), "'../x'", "cloth, plate")
    for column, name in (("object", "../x"), ("image", "../../secret.png"), ("mask", "/etc/hostname")):
        row = {"object": "candle", "split": "test", "label": "normal", "image": "a.png", "mask": ""} | {column: name}
        file = tmp_path / "visa/split_csv/1cls.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(",".join(row) + "\n" + ",".join(row.values()))
        refused(lambda: run.run(small_profile(tmp_path / "visa", tmp_path, dataset="visa")), "1cls.csv", repr(name))


def test_file_names_that_no_table_can_hold(start):
    root, job = start
    name = os.fsdecode(os.fsencode(str(root / "plate/test/good")) + b"/\xff.png")
    try:
        Path(name).touch()
    except OSError:
        pytest.skip("this file system takes no such name")
    refused(job(), "not valid UTF-8", "rename the file")


def test_arrays_that_claim_to_fill_the_machine(start, tmp_path):
    """A hundred bytes of .npy that promise a map of exabytes, loose and in an archive."""
    _, job = start
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (2**30, 2**29)})
    folder = tmp_path / "maps"
    (folder / "plate/good").mkdir(parents=True)
    (folder / "plate/good/000.npy").write_bytes(stream.getvalue() + b"0" * 64)
    refused(job(**imported(folder)), "000.npy", "numpy.save")
    (folder / "plate/good/000.npy").unlink()
    with zipfile.ZipFile(folder / "plate.npz", "w") as archive:
        archive.writestr("good-000.npy", stream.getvalue() + b"0" * 64)
    refused(job(**imported(folder)), "plate.npz[good-000]", "save the archive again")


def test_safetensors_that_claim_a_header_of_exabytes(tmp_path):
    (tmp_path / "w.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    refused(
        lambda: backbones.load_backbone("demo", str(tmp_path / "w.safetensors")), "w.safetensors", "its header claims"
    )


def imported(path):
    return {"methods": [], "imports": [{"name": "other", "path": str(path)}]}


def test_wrong_outside_results(start, tmp_path):
    _, job = start
    refused(job(**imported(tmp_path / "absent")), str(tmp_path / "absent"), "correct 'path'")
    folder = tmp_path / "maps"
    folder.mkdir()
    refused(job(**imported(folder)), "<category>, <defect>")
    (folder / "plate.npz").write_bytes(b"no archive")
    refused(job(**imported(folder)), "plate.npz", "numpy.save")
    np.savez(folder / "plate.npz", **{"good-000": np.full((4, 4), np.nan)})
    refused(job(**imported(folder)), "plate.npz[good-000]", "finite numbers")
    np.savez(folder / "plate.npz", **{"good-000": np.zeros((4, 4)), "good-001": np.zeros((5, 5))})
    refused(job(**imported(folder)), "(4, 4)", "one size")
    np.savez(folder / "plate.npz", **{"good-000": np.array([Hostile(tmp_path / "ran")], dtype=object)})
    refused(job(**imported(folder)), "plate.npz[good-000]")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("category,defect,score\nplate,good,1", ["'image'"]),
        ("category,defect,image,score\nplate,good,000,high", ["line 2", "no finite number"]),
        ("category,defect,image,score\nplate,bad,000,1", ["<image file stem>"]),
    ],
)
def test_wrong_score_files(start, tmp_path, text, parts):
    _, job = start
    (tmp_path / "scores.csv").write_text(text)
    refused(job(**imported(tmp_path / "scores.csv")), *parts)


def test_nothing_computed_is_lost(start, tmp_path):
    """A broken image stops the run with its name; what was encoded before stays and is not encoded again."""
    root, job = start
    file = root / "plate/test/spot/003.png"
    whole = file.read_bytes()
    file.write_bytes(whole[:2000])
    refused(job(shots=[0]), "003.png")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache/features").rglob("*.npy")}
    assert len({path.parent for path in kept}) >= 8  # cloth, which comes first
    file.write_bytes(whole)
    assert len(job(shots=[0])().scores) == 16
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


# ---------------------------------------------------------------- pictures that would be missed, or misread


@pytest.mark.parametrize(
    ("place", "parts"),
    [
        ("plate/test/Good/000.png", ["both seem to hold normal pictures", "'folders: {normal: [Good, good]}'"]),
        ("plate/Ground_Truth/000.png", ["seems to hold masks", "looks like a picture", "{defects: [Ground_Truth]}"]),
        ("plate/masks/000.png", ["seems to hold masks", "looks like a picture", "ground_truth"]),
        ("plate/test/spot/000_mask.png", ["seems to be a mask", "ground_truth/spot"]),
        ("plate/ground_truth/000.png", ["lies loose in ground_truth/"]),
        ("plate/ground_truth/spot/000.png", ["are masks of one image"]),
        ("plate/good/000.png", ["lies beside train/", "train/good"]),
        ("plate/test/good/day2/000.png", ["lies in a folder below"]),
        ("plate/test/000.png", ["lies loose in test/"]),
        ("plate/test/good/a.tga", ["of a kind that is not read"]),
    ],
)
def test_pictures_out_of_place(tmp_path, place, parts):
    root = make_mvtec(tmp_path / "data", ("plate", "dial"))
    paint(root / place, 1)
    refused(lambda: datasets.build_index(small_profile(root, tmp_path / "cache")), str(root / place)[:-8], *parts)


@pytest.mark.parametrize(
    ("place", "parts"),
    [
        ("plate/test/Good/000.png", ["is not spelt 'good'"]),
        ("plate/Ground_Truth/000.png", ["is not spelt 'ground_truth'"]),
        ("plate/masks/000.png", ["seems to hold masks", "plate/ground_truth/<defect>"]),
        ("plate/test/spot/000_mask.png", ["seems to be a mask", "ground_truth/spot"]),
        ("plate/test/ground_truth/000.png", ["lies in test/", "plate/ground_truth"]),
        ("plate/OK/000.png", ["seems to hold normal pictures", "rename it to good/"]),
        ("plate/test/ok/000.png", ["seems to hold normal pictures", "plate/test/good"]),
    ],
)
def test_data_sets_of_a_known_layout_must_have_it_to_the_letter(tmp_path, place, parts):
    root = make_mvtec(tmp_path / "data", ("plate",))
    paint(root / place, 1)
    said = refused(lambda: datasets.build_index(small_profile(root, tmp_path / "cache", dataset="mvtec")), *parts)
    assert str(root / place)[:-8] in said and "folders" not in said


def test_folders_that_are_no_category_are_told(tmp_path):
    root = make_mvtec(tmp_path / "data", ("plate",))
    paint(root / "nut/yes/a.png", 1)
    (root / "notes").mkdir()
    notes = datasets.build_index(small_profile(root, tmp_path / "cache"))[1]
    assert [one for one in notes if one.startswith("nut: no category")] and not any("notes" in one for one in notes)


def test_a_category_without_good_pictures_is_in_no_mean(tmp_path):
    root = make_mvtec(tmp_path / "data", ("plate", "dial"))
    shutil.rmtree(root / "dial/test/good")
    found = run.run(small_profile(root, tmp_path / "cache", shots=[0]))
    row = found.headline().iloc[0]
    assert (row.categories, row["test images"]) == (1, 8)
    assert "dial: no good test images, so no image AUROC; the means leave it out." in found.facts["notes"]


def test_names_of_classes_of_no_category(start):
    refused(start[1](class_names={"plte": "steel plate"}), "'class_names' has 'plte'", "plate")


@pytest.mark.parametrize("key", ["seeds", "shots"])
def test_lists_that_may_not_be_empty(start, key):
    refused(lambda: start[1](**{key: []})(), f"'{key}'")


def test_a_taxonomy_that_is_missing_is_said_before_anything_is_computed(tmp_path):
    from conftest import write_profile

    root = make_mvtec(tmp_path / "data", ("plate",))
    file = write_profile(tmp_path, dataset="folder", root=str(root), taxonomy=str(tmp_path / "none.csv"))
    report_ = report.resolve(str(file), [], tmp_path / "out", "")
    refused(lambda: report.build(report_), "none.csv")
    assert not list((tmp_path / "cache").glob("features"))


@pytest.mark.parametrize(
    ("content", "said"),
    [("object;split", "lacks the column 'label'"), ("", "is not a readable CSV"),
     ("object,split,label,image,mask\nc,test,Normal,c/a.JPG,", "label 'Normal' is none of normal, anomaly"),
     ("object,split,label,image,mask\n" + 2 * "c,test,normal,c/a.JPG,\n", "names c/a.JPG twice")],
)  # fmt: skip
def test_split_files_of_visa(tmp_path, content, said):
    file = tmp_path / "data/split_csv/1cls.csv"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    refused(
        lambda: datasets.build_index(small_profile(tmp_path / "data", tmp_path / "c", dataset="visa")), str(file), said
    )


@pytest.mark.parametrize("content", ["no json", "[1]", "{}", '{"vision_cfg": 1, "text_cfg": {}}'])
def test_model_configs_that_are_none(tmp_path, content):
    (tmp_path / "own.json").write_text(content)
    refused(lambda: backbones.load_backbone(str(tmp_path / "own.json"), "random:0"), str(tmp_path / "own.json"))


def test_seeds_below_zero():
    refused(lambda: backbones.load_backbone(TINY["backbone"], "random:-1"), "a whole number from 0")


def test_one_score_for_one_image(start, tmp_path):
    lines = ["category,defect,image,score", "plate,good,000.png,1", "plate,good,000.jpg,2"]
    (tmp_path / "s.csv").write_text("\n".join(lines))
    refused(start[1](**imported(tmp_path / "s.csv")), "line 3", "plate/good/000 has a score already")
    paint(tmp_path / "data/plate/test/good/000.jpg", 3)
    (tmp_path / "s.csv").write_text("\n".join(lines[:2]))
    refused(start[1](**imported(tmp_path / "s.csv")), "Two test images are plate/good/000 but for their suffix")


def test_numbers_of_notebooks_out_of_range(start):
    demo = config.load_profile("demo")
    spec, results = demo.methods[0], start[1]()()
    table, scores = results.index, results.scores
    tried = {
        "images": lambda: variants.sample_index(table, ["plate"], -1),
        "seed": lambda: datasets.sample_images(table, 0, -1),
        "most": lambda: variants.choose_categories(table, -1),
        "references": lambda: variants.list_window_variants(spec, [1], -1),
        "low_cut": lambda: by_defect.assign_levels(pd.DataFrame({"contrast": [0.1, 0.2]}), (5, 0.9)),
        "high_cut": lambda: by_defect.assign_levels(pd.DataFrame({"contrast": [0.1, 0.2]}), (0.5, 0.4)),
        "rate": lambda: by_defect.summarise_recall(scores, "defect", rate=1.5),
        "repeats": lambda: efficiency.measure_costs(results.profile, results.profile.methods[0], table[:1], repeats=0),
        "shown": lambda: failures.select_worst(pd.DataFrame({"failure": [""]}), "", -1),
        "'most' is -2": lambda: thresholds.calibration_index(table, most=-2),
        "draws": lambda: variants.plan_without_words(demo, spec, [1], -1, []),
        "pixels": lambda: prompt_transfer.list_targets([demo], pixels=-5),
        "alpha": lambda: thresholds.rank(9, 1.0),
    }
    for name, work in tried.items():
        refused(work, name)


@pytest.mark.parametrize("name", ["01", "yes", "null", "1e3", "2024-01-05", "1_000", "0x1f", "1.0"])
def test_folders_named_as_yaml_writes_other_things(tmp_path, name):
    """They are text on the command line and in a file, quoted or not."""
    for place in (name, "other"):
        paint(tmp_path / "set" / place / "good/0.png", 1)
    for written in (name, f"'{name}'"):
        text = f"title: t\ndataset: folder\nroot: {tmp_path / 'set'}\nshots: [0]\n"
        (tmp_path / "p.yml").write_text(f"{text}categories: [{written}]\nclass_names: {{{written}: steel plate}}\n")
        given = [
            config.parse_override(f"categories=[{written}]"),
            config.parse_override(f"class_names={{{written}: steel plate}}"),
        ]
        (tmp_path / "q.yml").write_text(text)
        for chosen in (config.load_profile(tmp_path / "p.yml"), config.load_profile(tmp_path / "q.yml", dict(given))):
            assert (chosen.categories, chosen.class_names) == ([name], {name: "steel plate"})
            table, _ = datasets.build_index(chosen)
            assert list(table.category) == [name] and list(table.class_name) == ["steel plate"]


def test_text_that_yaml_takes_for_a_number_is_told_to_be_quoted(tmp_path):
    (tmp_path / "p.yml").write_text("title: 2024\ndataset: folder\nroot: a\n")
    refused(lambda: config.load_profile(tmp_path / "p.yml"), "'title'", "2024", "write it in quotes")
    refused(
        lambda: config.load_profile("own_images", dict([config.parse_override("categories=bottle")])),
        "'categories'",
        "list",
    )
