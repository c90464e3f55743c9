"""The page of all pictures holds what the tables hold; ``tests/browser.py`` moves its threshold."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import TINY, make_mvtec, small_profile
from PIL import Image

from vlmad_lib.pipeline import run
from vlmad_lib.reporting import image_browser, pages

SPECS = [TINY | {"name": "One", "settings": {"windows": [1]}}, TINY | {"method": "clip"}]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A run of a method with maps on pictures of two tiles each, and of one without maps."""
    folder = tmp_path_factory.mktemp("browser")
    make_mvtec(folder / "data", size=(90, 60))
    return run.run(small_profile(folder / "data", folder / "cache", methods=SPECS, shots=[0, 1], seeds=[0]))


@pytest.fixture(scope="module")
def content(results):
    return image_browser.collect_images(results)


def unpack(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.uint8)


def test_every_test_picture_stands_in_it_once_with_its_scores(results, content):
    images = results.scores.drop_duplicates("image")
    assert len(content["images"]) == len(images) and set(content["methods"]) >= {"One, zero-shot", "One, 1-shot"}
    assert sum(row["label"] for row in content["images"]) == images.label.sum()
    chosen = results.scores[(results.scores.method == "One") & (results.scores.shots == 1)]
    values = content["scores"][content["methods"].index("One, 1-shot")]
    assert sorted(values) == sorted(chosen.score.round(5))
    assert {content["categories"][row["category"]] for row in content["images"]} == set(images.category)


def test_pictures_masks_and_maps_are_those_of_the_files(results, content):
    place = {}
    for row in content["images"]:
        number = place[row["category"]] = place.get(row["category"], -1) + 1
        part = content["parts"][row["category"]]
        picture = Image.open(io.BytesIO(base64.b64decode(part["pictures"][number])))
        assert picture.width > picture.height and picture.width <= image_browser.SIDES[1]
        assert bool(part["masks"][number]) is bool(row["label"])
        if row["label"]:
            covered = np.unpackbits(unpack(part["masks"][number])).mean()
            [mask] = [m for m in results.index["mask"] if m and row["name"].rsplit("/")[-1].split(".")[0] in m][:1]
            assert covered == pytest.approx((np.asarray(Image.open(mask)) > 0).mean(), abs=0.03)
        assert unpack(part["maps"][0][number]).size == content["cells"] ** 2
    for part in content["parts"]:  # a category has one scale
        levels = np.concatenate([unpack(text) for text in part["maps"][0]])
        assert levels.min() == 0 and levels.max() == 255


def test_a_method_without_maps_or_a_picture_without_a_score_has_none(results):
    kept = results.scores
    bare = kept.assign(map_file=kept.map_file.where(kept.method == "One", ""))
    bare = bare.drop(bare[(bare.method != "One") & (bare.image == bare.image.iloc[0])].index)
    content = image_browser.collect_images(replace(results, scores=bare))
    other = next(k for k, name in enumerate(content["methods"]) if not name.startswith("One"))
    assert set(text for part in content["parts"] for text in part["maps"][other]) == {""}
    assert content["scores"][other].count(None) == 1


@pytest.mark.parametrize(
    ("images", "side"), [(10, image_browser.SIDES[1]), (2000, 77), (100_000, image_browser.SIDES[0])]
)
def test_many_pictures_are_small(images, side):
    area = image_browser.PICTURE_BYTES / image_browser.BYTES_A_PIXEL / images
    assert image_browser._choose_side(area, image_browser.SIDES) == side


def test_of_many_pictures_the_most_telling_are_shown(results, content, monkeypatch):
    """Both labels of every category share the room; what is left out is counted and scored all the same."""
    choose = image_browser.choose_images
    monkeypatch.setattr(image_browser, "choose_images", lambda scores: choose(scores, 4))
    few = image_browser.collect_images(results)
    assert few["pictures"] == 4 < content["pictures"] == len(content["images"]) == len(few["images"])
    assert few["scores"] == content["scores"] and few["images"] == content["images"]
    places = [0] * len(few["categories"])
    for row in few["images"]:
        part, place = few["parts"][row["category"]], places[row["category"]]
        places[row["category"]] += 1
        row["shown"] = bool(part["pictures"][place])
        assert row["shown"] or not (part["masks"][place] or any(maps[place] for maps in part["maps"]))
    cells = {(row["category"], row["label"]) for row in few["images"] if row["shown"]}
    assert len(cells) == 4
    scores = results.scores.assign(name="One")[results.scores.shots == 0]
    scores = scores[scores.method == "One"]
    worst = scores[scores.label == 1].sort_values("score").groupby("category").image.first()
    assert set(worst) <= choose(scores, 4)


def test_the_page_closes_no_script_by_what_a_folder_is_called(results, tmp_path, monkeypatch):
    evil = "</script><script>alert(1)</script>"
    monkeypatch.setattr(image_browser, "collect_images", lambda _: {"categories": [evil], "parts": [{"pictures": []}]})
    record = {"profile": {"title": "T"}, "facts": {}, "started": "2026-01-01T00:00", "commit": "c"}
    image_browser.write_page(SimpleNamespace(folder=tmp_path, record=lambda: record), results)
    text = (tmp_path / pages.IMAGES).read_text()
    assert "<script>alert" not in text
    inner = text.split('id="content">')[1].split("</script>")[0]
    assert json.loads(inner) == {"categories": [evil]}
