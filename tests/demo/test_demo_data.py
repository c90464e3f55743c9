"""The procedural demo data: determinism, pairs, contrast, areas, the written layout."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from vlmad_lib import ROOT
from vlmad_lib.demo import CATEGORIES, CONTRASTS, data, delta_e, names, render, write
from vlmad_lib.demo.categories import CLASSES
from vlmad_lib.demo.training import card

CASES = [(c, d) for c in CATEGORIES for d in CATEGORIES[c].defects]


@pytest.fixture(scope="module")
def sample():
    """Every defect of the targets once per contrast: (category, defect, contrast) -> (image, mask, normal image)."""
    out = {}
    for k, (c, d) in enumerate((c, d) for c, d in CASES if CATEGORIES[c].subset == "target"):
        normal, none = render(c, 3, k)
        assert not none.any()
        out.update({(c, d, level): (*render(c, 3, k, d, level), normal) for level in CONTRASTS})
    return out


def test_subsets_are_disjoint_and_complete():
    target, auxiliary = names("target"), names("auxiliary")
    groups = [CATEGORIES[n].group for n in target]
    assert [groups.count(g) for g in ("texture", "rigid", "flexible")] == [4, 5, 3]
    assert len(auxiliary) >= 14 and {CATEGORIES[n].group for n in auxiliary} == set(groups)
    assert not set(target) & set(auxiliary)
    words = [{w for n in s for w in CATEGORIES[n].class_name.split()} for s in (target, auxiliary)]
    assert not words[0] & words[1]
    for subset in (target, auxiliary):
        found = [c for n in subset for c in CATEGORIES[n].defects.values()]
        assert set(found) == set(CLASSES.values())
        assert min(found.count(c) for c in set(found)) >= 2
    for n in target + auxiliary:
        assert 4 <= len(CATEGORIES[n].defects) <= (4 if n in target else 6)
        assert CATEGORIES[n].name == n and len({CATEGORIES[m].class_name for m in CATEGORIES}) == len(CATEGORIES)


@pytest.mark.parametrize("category", CATEGORIES)
def test_normal_images_are_deterministic_and_differ(category):
    first, mask = render(category, 1, 7)
    assert first.shape == (240, 240, 3) and first.dtype == np.uint8
    assert mask.shape == (240, 240) and mask.dtype == bool and not mask.any()
    assert first.tobytes() == render(category, 1, 7)[0].tobytes()
    other = (2, 7) if len(category) % 2 else (1, 8)  # another seed, or another index
    assert np.abs(first.astype(int) - render(category, *other)[0]).mean() > 2
    assert first.std() > 8 and 25 < first.mean() < 240


def test_defects_are_deterministic(sample):
    for c, d, level in list(sample)[::17]:
        k = [x for x in CASES if CATEGORIES[x[0]].subset == "target"].index((c, d))
        again = render(c, 3, k, d, level)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(again, sample[c, d, level], strict=False))


def test_defect_changes_its_mask_and_nothing_else(sample):
    for key, (image, mask, normal) in sample.items():
        changed = (image != normal).any(2)
        assert not (changed & ~ndimage.binary_dilation(mask, np.ones((3, 3)), iterations=6)).any(), key
        assert changed[mask].mean() > 0.6, key
        assert np.abs(image.astype(int) - normal)[mask].mean() > 2, key


def test_areas_are_in_range_and_varied(sample):
    area = np.array([mask.mean() for _, mask, _ in sample.values()])
    assert area.min() >= 0.002 and area.max() <= 0.10
    assert np.log10(area).std() > 0.25 and area.max() / area.min() > 15


def test_contrast_levels_are_ordered(sample):
    rows = [(CATEGORIES[c].defects[d], level, delta_e(i, m)) for (c, d, level), (i, m, _) in sample.items()]
    low, medium, high = (np.median([e for _, at, e in rows if at == level]) for level in CONTRASTS)
    assert 6 < low < 12 < medium < 26 < high
    ordered = 0
    for kind in CLASSES.values():
        means = [np.mean([e for k, at, e in rows if (k, at) == (kind, level)]) for level in CONTRASTS]
        ordered += means[0] < means[1] < means[2]
    assert ordered >= 8


@pytest.mark.parametrize(("category", "defect"), [x for x in CASES if CATEGORIES[x[0]].subset == "auxiliary"])
def test_auxiliary_defects_render(category, defect):
    image, mask = render(category, 0, 5, defect, "medium")
    assert 0.002 <= mask.mean() <= 0.10 and delta_e(image, mask) > 3


def test_other_size():
    image, mask = render("gear", 0, 0, "missing_tooth", "high", size=128)
    assert image.shape == (128, 128, 3) and 0.002 <= mask.mean() <= 0.10


def test_delta_e_of_known_colours():
    image = np.full((40, 40, 3), 119, np.uint8)  # L* = 50.03
    mask = np.zeros((40, 40), bool)
    with pytest.raises(ValueError, match="empty"):
        delta_e(image, mask)
    mask[15:25, 15:25] = True
    assert delta_e(image, mask) == pytest.approx(0, abs=1e-4)
    image[mask] = 255
    assert delta_e(image, mask) == pytest.approx(100 - 50.03, abs=0.1)
    with pytest.raises(ValueError, match="ring"):
        delta_e(image, np.ones_like(mask))


def test_unknown_names_are_refused(tmp_path):
    for call in (
        lambda: names("other"),
        lambda: render("unicorn", 0, 0),
        lambda: render("gear", 0, 0, "hole", "low"),
        lambda: render("gear", 0, 0, "rust", "extreme"),
        lambda: render("gear", 0, 0, "rust"),
        lambda: render("gear", 0, 0, contrast="low"),
        lambda: render("gear", -1, 0),
        lambda: write(tmp_path / "a", "other"),
        lambda: write(tmp_path / "a", categories=["brick_wall"]),
    ):
        with pytest.raises(ValueError):
            call()
    assert not any(tmp_path.iterdir())


def test_layout_is_written_once(tmp_path):
    root = tmp_path / "deep" / "demo"
    arguments = {"train": 1, "good": 1, "per_defect": 3, "categories": ["cork", "rope"]}
    assert write(root, **arguments) == root
    rows = list(csv.DictReader((root / "demo.csv").open(encoding="utf-8")))
    assert len(rows) == 2 * (1 + 1 + 4 * 3)
    files = {p.relative_to(root).as_posix() for p in root.rglob("*.png") if "ground_truth" not in p.parts}
    assert {r["image"] for r in rows} == files and len(files) == len(rows)
    images = [(root / r["image"]).read_bytes() for r in rows]
    assert len(set(images)) == len(images)
    for r in rows:
        split, defect, name = r["image"].split("/")[1:]
        truth = root / r["category"] / "ground_truth" / defect / name.replace(".png", "_mask.png")
        if r["defect"] == "good":
            assert not truth.exists() and defect == "good" and not r["contrast"] and not r["delta_e"]
            continue
        mask, image = Image.open(truth), np.asarray(Image.open(root / r["image"]))
        assert split == "test" and mask.mode == "L" and set(np.unique(mask)) == {0, 255}
        assert (np.asarray(mask) > 0).mean() == pytest.approx(float(r["area_fraction"]), abs=1e-6)
        assert delta_e(image, np.asarray(mask) > 0) == pytest.approx(float(r["delta_e"]), abs=1e-3)
        assert r["contrast"] == CONTRASTS[int(name[:3]) % 3]
        assert r["defect_class"] == CATEGORIES[r["category"]].defects[defect]
    assert len(json.loads((root / "demo.json").read_text())["source"]) == 64
    stamps = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    write(root, **arguments)
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == stamps
    write(root, seed=1, train=1, good=0, per_defect=0, categories=["cork"])
    assert (root / rows[0]["image"]).read_bytes() != images[0]
    write(root, **arguments)
    assert [(root / r["image"]).read_bytes() for r in rows] == images
    assert {p.name for p in root.parent.iterdir()} == {"demo"}


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return render(*args, **kwargs)

    monkeypatch.setattr(data, "render", failing)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "demo", categories=["cork"])
    assert len(calls) == 5 and not list(tmp_path.iterdir())


def test_foreign_folder_is_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="not demo data"):
        write(tmp_path, categories=["cork"])
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_the_data_card_is_that_of_the_program():
    """Run python -m vlmad_lib.demo.training.card after a change to the demo data."""
    text = (ROOT / "vlmad_lib/demo/data-card.md").read_text()
    assert text == card.data_card()
    for name in names("target"):
        assert f"| {name} | {CATEGORIES[name].group} |" in text
