"""What holds for every input, on inputs nobody thought of: index, windows, tiles, metrics, profiles, kept files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import small_profile
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from vlmad_lib import InputError, config, files
from vlmad_lib.analysis import thresholds
from vlmad_lib.data import datasets, image_files
from vlmad_lib.evaluation import metrics
from vlmad_lib.methods import winclip

settings.register_profile("vlmad", deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
settings.load_profile("vlmad")
quick = settings(max_examples=60)

# any name a file system takes: spaces, quotes, tags, letters of every script; no dot in front, which hides
NAMES = st.text(
    st.characters(exclude_characters="/\0\\", exclude_categories=("Cs", "Cc")) | st.sampled_from(" '\"<>&$;,*|="),
    min_size=1,
    max_size=12,
).filter(lambda name: not name.startswith(".") and name not in ("good", "test", "train", "ground_truth"))
WHOLE = st.integers(0, 3)


# ---------------------------------------------------------------- index


@settings(max_examples=12)
@given(st.dictionaries(NAMES, st.tuples(WHOLE, st.integers(1, 3), st.dictionaries(NAMES, WHOLE, max_size=2)),
                       min_size=1, max_size=2), st.data())  # fmt: skip
def test_the_index_holds_every_picture_once_under_its_own_names(tree, drawn):
    """Train and test pictures and masks, whatever categories, defects and files are called."""
    with tempfile.TemporaryDirectory() as folder:
        root, wanted = Path(folder), {}
        for category, (train, good, defects) in tree.items():
            counts = {("train", "good"): train, ("test", "good"): good}
            counts |= {("test", defect): count for defect, count in defects.items()}
            for (split, defect), count in counts.items():
                place = root / category / split / defect
                place.mkdir(parents=True, exist_ok=True)
                for number in range(count):
                    stem = drawn.draw(NAMES.filter(lambda name: "_mask" not in name)) + str(number)
                    masked = defect != "good" and drawn.draw(st.booleans())
                    mask = root / category / "ground_truth" / defect / f"{stem}_mask.png"
                    Image.new("L", (4, 4)).save(place / f"{stem}.png")
                    if masked:
                        mask.parent.mkdir(parents=True, exist_ok=True)
                        Image.fromarray(np.eye(4, dtype=np.uint8) * 255).save(mask)
                    key = str(place / f"{stem}.png")
                    wanted[key] = (category, split, defect, str(mask) if masked else "", defect != "good")
        table, _ = datasets.build_index(small_profile(root, root / ".cache", shots=[0]))
        found = zip(table.category, table.split, table.defect, table["mask"], table.label.astype(bool), strict=True)
        assert dict(zip(table.image, found, strict=True)) == wanted and len(table) == len(wanted)


# ---------------------------------------------------------------- tiles and windows


@quick
@given(st.integers(1, 3000), st.integers(1, 3000))
def test_tiles_are_squares_that_cover_the_picture(width, height):
    assume(max(width, height) < 40 * min(width, height))
    found, edge = image_files.boxes(width, height, "tiles"), min(width, height)
    seen = np.zeros((height, width), bool)
    for left, top, right, bottom in found:
        assert right - left == bottom - top == edge and 0 <= left <= width - edge and 0 <= top <= height - edge
        seen[top:bottom, left:right] = True
    assert seen.all() and len(set(found)) == len(found)


@quick
@given(st.integers(1, 12), st.data())
def test_windows_are_squares_of_neighbours_and_every_patch_is_in_one(grid, drawn):
    size = drawn.draw(st.integers(1, grid))
    cells = winclip.window_tokens(grid, size).numpy()
    rows, columns = np.divmod(cells, grid)
    assert len({tuple(sorted(one)) for one in cells}) == len(cells) == (grid - size + 1) ** 2
    assert (np.ptp(rows, axis=1) == size - 1).all() and (np.ptp(columns, axis=1) == size - 1).all()
    assert set(cells.ravel()) == set(range(grid**2))


@quick
@given(st.integers(1, 9), st.data())
def test_windows_that_agree_spread_to_a_map_that_says_the_same(grid, drawn):
    size, value = drawn.draw(st.integers(1, grid)), drawn.draw(st.floats(1e-3, 1))
    scores = torch.full((1, (grid - size + 1) ** 2), value)
    for mean in ("harmonic", "mean"):
        spread = winclip.spread(scores, grid, size, mean)
        torch.testing.assert_close(spread, torch.full_like(spread, value), rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------- metrics

SCORES = arrays.arrays(np.float32, st.integers(1, 12), elements=st.integers(-20, 20).map(float))


@quick
@given(SCORES, SCORES)
def test_auroc_is_the_share_of_pairs_in_order(normal, anomalous):
    """Ties count half; turning the scores round turns the value round; only their order matters."""
    found = metrics.ranking(normal, anomalous)
    pairs = np.sign(anomalous[:, None] - normal[None]) / 2 + 0.5
    assert found["auroc"] == pytest.approx(pairs.mean())
    assert metrics.ranking(-normal, -anomalous)["auroc"] == pytest.approx(1 - found["auroc"])
    assert metrics.ranking(np.exp(normal / 8), np.exp(anomalous / 8)) == pytest.approx(found)
    assert all(0 <= value <= 1 for value in found.values())


@quick
@given(st.integers(1, 3), st.integers(2, 9), st.integers(2, 64), st.data())
def test_binned_pixel_metrics_are_within_their_bounds(count, side, bins, drawn):
    shape = (count, side, side)
    values = drawn.draw(arrays.arrays(np.float32, shape, elements=st.floats(-1e6, 1e6, width=32)))
    masks = drawn.draw(arrays.arrays(bool, shape))
    pairs = lambda: zip(values, masks, strict=True)  # noqa: E731
    exact, rough = metrics.pixel_metrics(pairs()), metrics.pixel_metrics(pairs(), bins=bins)
    for name, bound in zip(metrics.COUNTED, metrics.BOUNDS, strict=True):
        if name != "aupimo" and masks.any() and not masks.all():  # so few pixels have no AUPIMO
            assert 0 <= exact[name] <= 1 and abs(exact[name] - rough[name]) <= rough[bound] + 1e-9
        else:
            assert np.isnan(exact[name]) and np.isnan(rough[name])


@quick
@given(arrays.arrays(float, st.integers(1, 40), elements=st.floats(0, 1)), st.floats(0.01, 0.99))
def test_a_conformal_threshold_rejects_no_more_of_its_own_than_promised(normal, alpha):
    """Of k pictures and a new one, any of which may be the new one, at most alpha (k + 1) are rejected."""
    rejected = sum(one > thresholds.conformal(np.delete(normal, place), alpha) for place, one in enumerate(normal))
    assert rejected <= alpha * len(normal) + 1e-9


# ---------------------------------------------------------------- profiles

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
ANY = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))
KEYS = st.sampled_from([*config.Profile.model_fields, "shotz", ""]) | st.text(max_size=6)


@quick
@given(st.dictionaries(KEYS, ANY, max_size=4))
def test_a_profile_is_checked_or_refused_in_one_sentence(values):
    """Whatever a YAML file holds: a profile that reads back as itself, or an InputError of one line."""
    base = {"title": "x", "dataset": "folder", "root": "y"}
    try:
        found = config.check_record(config.Profile, base | values, "any.yml")
    except InputError as error:
        assert len(str(error).splitlines()) == 1 and str(error).startswith("any.yml: ")
    else:
        again = yaml.safe_load(yaml.safe_dump(found.model_dump(), sort_keys=False, allow_unicode=True))
        assert config.check_record(config.Profile, again, "again") == found


@quick
@given(st.text(max_size=20))
def test_an_override_is_read_or_refused(text):
    try:
        key, _ = config.parse_override(text)
    except InputError as error:
        assert "write key=value" in str(error) or "not a YAML value" in str(error)
    else:
        assert text.startswith(f"{key}=")


# ---------------------------------------------------------------- kept files

ARRAYS = arrays.arrays(
    st.sampled_from([np.float16, np.float32, np.float64, np.int64, bool]),
    arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)


@quick
@given(ARRAYS, st.booleans(), st.data())
def test_a_kept_array_comes_back_or_is_known_to_be_damaged(values, columns_first, drawn):
    """Any one byte changed, any part cut off, anything appended."""
    values = np.asfortranarray(values) if columns_first else values
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.npy"
        files.write_array(file, values)
        found = files.read_array(file)
        assert found.dtype == values.dtype and found.tobytes() == values.tobytes() and found.shape == values.shape
        np.testing.assert_array_equal(np.load(file, allow_pickle=False), values)  # still a plain NumPy file
        content = bytearray(file.read_bytes())
        place = drawn.draw(st.integers(0, len(content) - 1))
        changed = content.copy()
        changed[place] ^= drawn.draw(st.integers(1, 255))
        for wrong in (changed, content[:place], content + b"x"):
            file.write_bytes(wrong)
            with pytest.raises(files.Damaged):
                files.read_array(file)
