"""A run end to end on tiny data: the contract of its tables, interruption, references, tiles, workers."""

from __future__ import annotations

import io
import json
import shutil
import threading
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, make_mvtec, paint, shared, small_profile
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from test_data import make_visa

from vlmad_lib import digests, files, methods
from vlmad_lib.config import Method
from vlmad_lib.data import datasets, image_files, mask_files
from vlmad_lib.encoders import backbones, feature_store
from vlmad_lib.evaluation import metrics
from vlmad_lib.methods import winclip
from vlmad_lib.pipeline import progress, results, run, scoring, units


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One finished run, shared by the tests that only read it."""
    base = tmp_path_factory.mktemp("done")
    return run.run(small_profile(make_mvtec(base / "data"), base / "cache", shots=[0, 1, 2], seeds=[0, 1]))


def same(first: pd.DataFrame, second: pd.DataFrame) -> None:
    order = ["variant", "category", "image"] if "image" in first else ["variant", "category"]
    sort = lambda table: table.sort_values(order, ignore_index=True)  # noqa: E731
    pd.testing.assert_frame_equal(sort(first), sort(second), check_exact=True)


def test_tables_keep_their_contract(done):
    results.describe_scores(methods.SETTINGS).validate(done.scores)
    results.METRICS.validate(done.metrics)
    variants = done.scores.drop_duplicates("variant")[["shots", "seed"]]
    assert set(map(tuple, variants.to_numpy())) == {(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)}
    assert len(done.scores) == 5 * 2 * 8 and len(done.metrics) == 5 * 2
    assert done.scores.groupby(["variant", "category"]).size().eq(8).all()


def test_metrics_follow_from_scores_and_maps(done):
    part = done.metrics.iloc[3]
    rows = done.scores[(done.scores.variant == part.variant) & (done.scores.category == part.category)]
    assert part.image_auroc == pytest.approx(roc_auc_score(rows.label, rows.score))
    masks = [mask_files.framed_mask(row.mask, row.width, row.height, row.fit, 60) for row in rows.itertuples()]
    maps = done.framed(rows)
    flat = roc_auc_score(np.ravel(masks), np.ravel(maps))
    assert part.pixel_auroc == pytest.approx(flat, abs=1e-9)
    assert part.aupro == pytest.approx(metrics.pixel_metrics(zip(maps, masks, strict=True))["aupro"])


def test_binned_pixel_metrics_state_their_error(done):
    """In the table beside the values, and in a note of the report; exact results in the same cache are not taken."""
    root, cache = Path(done.profile.root), Path(done.profile.cache)
    binned = run.run(small_profile(root, cache, shots=[0], pixel_metrics="binned"))
    exact = done.metrics[done.metrics.shots == 0]
    for value, bound in zip(metrics.COUNTED, metrics.BOUNDS, strict=True):
        off = np.abs(binned.metrics[value].to_numpy() - exact[value].to_numpy())
        if value == "aupimo":  # so few normal pixels have none
            assert np.isnan(off).all() and exact[bound].isna().all()
            continue
        assert (off <= binned.metrics[bound] + 1e-12).all() and (exact[bound] == 0).all()
    assert binned.metrics.image_auroc.tolist() == exact.image_auroc.tolist()
    assert binned.metrics.pixel_auroc_bound.min() > 0
    largest = f"pixel AUROC {binned.metrics.pixel_auroc_bound.max():.1e}, pixel AP"
    assert [largest in note for note in binned.facts["notes"] if "bins" in note] == [True]
    assert not any("bins" in note for note in done.facts["notes"])


def test_maps_stay_at_the_grids_size(done):
    assert {one.shape for one in done.maps(done.scores)} == {(1, 5, 5)}


def test_references_are_written_into_the_rows(done):
    few = done.scores[(done.scores.shots == 2) & (done.scores.seed == 1) & (done.scores.category == "cloth")]
    expected = datasets.draw_references(done.index, "cloth", 2, 1).image
    assert few.references.unique().tolist() == [";".join("/".join(path.split("/")[-3:]) for path in expected)]
    assert set(done.scores[done.scores.shots == 0].references) == {""}


def test_weights_and_warnings_are_recorded(done):
    assert done.facts["backbones"][0]["sha256"].startswith(done.scores.weights.iloc[0])
    assert "random" in done.facts["warnings"][0]


def test_few_shot_scores_equal_a_direct_computation(done, tiny_backbone):
    """Through the cache (fp16 on disk) and straight from the encoder."""
    rows = done.scores[(done.scores.shots == 1) & (done.scores.seed == 0) & (done.scores.category == "plate")]
    chosen = winclip.settings()
    names = winclip.arrays(chosen, 1)

    def encode(paths):
        pixels = np.concatenate([image_files.views(path, "tiles", 80) for path in paths])
        return winclip.encode(tiny_backbone, tiny_backbone.normalise(pixels), names)

    texts = winclip_text(tiny_backbone, "plate")
    scores, _ = winclip.score(
        encode(rows.image), texts, chosen, 5, encode(datasets.draw_references(done.index, "plate", 1, 0).image)
    )
    np.testing.assert_allclose(rows.score, scores, atol=2e-3)


def winclip_text(backbone, name):
    from vlmad_lib.encoders import prompts

    return prompts.prototypes(backbone, *prompts.ensemble(name))


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("place", ["encode", "score", "write", "gather"])
def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path, done, monkeypatch, place):
    """Stopped in the middle of any step; nothing finished is computed again, the numbers are the same."""
    root = make_mvtec(tmp_path / "data")
    profile = small_profile(root, tmp_path / "cache", shots=[0, 1], seeds=[0])
    calls = {"n": 0}
    target, name, stop = {
        "encode": (feature_store.Store, "_encode", 4),
        "score": (winclip.WINCLIP, "score", 3),
        "write": (units, "_measure", 3),
        "gather": (units, "gather_units", 1),
    }[place]
    original = getattr(target, name)

    def broken(*args, **kwargs):
        calls["n"] += 1
        if calls["n"] == stop:
            raise Interrupted
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(target, name, broken)
        with pytest.raises(Interrupted):
            run.run(profile)
    cache = tmp_path / "cache"
    kept = {path: path.stat().st_mtime_ns for path in [*cache.glob("features/**/*.npy"), *cache.glob("units/*/*")]}
    assert kept
    assert not list(cache.glob("units/.*")) and not list(cache.glob("runs/*/run.json"))
    again = run.run(profile)
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
    fresh = run.run(small_profile(root, tmp_path / "other", shots=[0, 1], seeds=[0]))
    same(again.scores, fresh.scores)
    same(again.metrics, fresh.metrics)


def test_a_second_run_computes_nothing(done, monkeypatch):
    for target, name in [(feature_store.Store, "_encode"), (winclip.WINCLIP, "score"), (run, "_compute")]:
        monkeypatch.setattr(target, name, lambda *_: pytest.fail("computed again"))
    same(run.run(done.profile).scores, done.scores)


def test_arrays_that_are_kept_are_not_encoded_again(tmp_path, tiny_backbone):
    chosen = methods.choose(small_profile(tmp_path, tmp_path).methods[0], small_profile(tmp_path, tmp_path))
    paint(tmp_path / "a.png", 1)
    store, asked = chosen.store(tmp_path / "cache", tiny_backbone), []
    encode = store.encode
    store.encode = lambda backbone, images, names: asked.append(list(names)) or encode(backbone, images, names)
    assert store.fill([str(tmp_path / "a.png")], ["class", "window_2"]) == 1
    assert store.fill([str(tmp_path / "a.png")], ["class", "window_3"]) == 1
    assert store.fill([str(tmp_path / "a.png")], ["window_2", "window_3"]) == 0
    assert asked == [["class", "window_2"], ["window_3"]]


def test_methods_that_share_a_store_encode_an_image_once(tmp_path, monkeypatch):
    alike = [TINY | {"name": f"k = {size}", "settings": {"windows": [size]}} for size in (1, 2, 3)]
    other = TINY | {"name": "swapped", "settings": {"windows": [2], "channels": "bgr"}}
    chosen = small_profile(make_mvtec(tmp_path / "data", ("plate",)), tmp_path / "cache", methods=[*alike, other])
    seen = []
    encode = winclip.encode
    monkeypatch.setattr(winclip.WINCLIP, "encode", lambda *asked: seen.append(sorted(asked[2])) or encode(*asked))
    monkeypatch.setattr(digests, "digest", _plain_digest(digests.digest))
    scores = run.run(chosen.model_copy(update={"shots": [0]})).scores
    together = ["class", "window_1", "window_2", "window_3"]
    assert scores.groupby("method").size().tolist() == [8] * 4
    assert seen == [together] * 8 + [["class", "window_2"]] * 8


def _plain_digest(digest):
    """Digests that do not read the source of a function put in another's place."""
    return lambda *facts: digest(*(str(fact) if callable(fact) else fact for fact in facts))


def test_methods_that_share_features_are_scored_together_as_alone(tmp_path, monkeypatch):
    """Each image and mask is read once for all of them; how many are scored together changes nothing."""
    root, read = make_mvtec(tmp_path / "data", ("plate",)), []
    each, framed = feature_store.Store.each, mask_files.framed_mask

    def seen(store, paths, names, **how):
        paths = list(paths)
        read.extend(paths)
        return each(store, paths, names, **how)

    specs = [TINY | {"name": "one"}, TINY | {"name": "two", "settings": {"windows": [3]}}]
    more = {"shots": [0, 1, 2], "seeds": [0, 1]}
    run.run(small_profile(root, tmp_path / "cache", methods=specs, shots=[0, 2], seeds=[0, 1]))  # encodes
    shutil.rmtree(tmp_path / "cache" / "units")
    monkeypatch.setattr(feature_store.Store, "each", seen)
    monkeypatch.setattr(mask_files, "framed_mask", lambda *place: read.append(place[0]) or framed(*place))
    together = run.run(small_profile(root, tmp_path / "cache", methods=specs, **more))
    tested = [one for one in read if "/test/" in one or "ground_truth" in one]
    assert len(tested) == len(set(tested)) == 12
    monkeypatch.setattr(run, "TOGETHER", 1)
    for spec in specs:
        alone = run.run(small_profile(root, tmp_path / spec["name"], methods=[spec], **more))
        for part, whole in ((alone.scores, together.scores), (alone.metrics, together.metrics)):
            columns = part.columns.drop("map_file", errors="ignore")
            same(part[columns], whole[whole.method == spec["name"]][columns])


def test_other_weights_or_config_in_the_same_file_are_read_anew(tmp_path, tiny_backbone):
    """While a kernel lives, and from the same cache: never another network's kept features or scores."""
    root, config, weights = make_mvtec(tmp_path / "data", ("plate",)), tmp_path / "own.json", tmp_path / "w.safetensors"
    known = json.loads(Path(TINY["backbone"]).read_text())
    other = backbones.load_backbone(TINY["backbone"], "random:1").model.state_dict()

    def scores(content: dict, state: dict, cache: str) -> pd.Series:
        config.write_text(json.dumps(content))
        save_file({name: value.clone() for name, value in state.items()}, weights)
        spec = {"backbone": str(config), "weights": str(weights)}
        return run.run(small_profile(root, tmp_path / cache, methods=[TINY | spec], shots=[0])).scores.score

    first, state = scores(known, tiny_backbone.model.state_dict(), "c1"), tiny_backbone.model.state_dict()
    for number, (content, tensors) in enumerate([(known | {"quick_gelu": True}, state), (known, other)]):
        kept, fresh = (scores(content, tensors, name) for name in ("c1", f"fresh{number}"))
        assert not np.allclose(kept, first)
        pd.testing.assert_series_equal(kept, fresh)


@pytest.mark.parametrize("presets", [("paper",), ("study", "accurate")])
def test_an_image_is_encoded_once_whatever_is_scored_together(tmp_path, monkeypatch, presets):
    """Parts of a run, and methods with other colours, ask for other arrays of the same image."""
    specs, done, encode = [TINY | {"name": name, "preset": name} for name in presets], [], feature_store.Store._encode

    def seen(store, paths, *more):
        done.extend((store.folder, path) for path in paths)
        return encode(store, paths, *more)

    monkeypatch.setattr(run, "TOGETHER", 1)
    monkeypatch.setattr(feature_store.Store, "_encode", seen)
    root = make_mvtec(tmp_path / "data", ("plate",))
    with warnings.catch_warnings(action="error"):
        run.run(small_profile(root, tmp_path / "cache", methods=specs, shots=[0, 2], seeds=[0, 1]))
    assert done and len(done) == len(set(done))


def test_references_held_out_leave_the_test_of_every_setting(tmp_path):
    """Compared with and without references, a method meets the same images."""
    for number in range(8):
        paint(tmp_path / "data/bracket/good" / f"{number}.png", number)
        paint(tmp_path / "data/bracket/dent" / f"{number}.png", 20 + number, spot=True)
    found = run.run(small_profile(tmp_path / "data", tmp_path / "cache", shots=[0, 2], seeds=[0, 1]))
    tested = found.scores.groupby(["shots", "seed"]).image.agg(frozenset)
    assert tested.nunique() == 1 and len(tested.iloc[0]) == 12
    assert set(found.by_category()["test images"]) == {12} == set(found.headline()["test images"])
    alone = run.run(small_profile(tmp_path / "data", tmp_path / "cache", shots=[0]))
    assert len(alone.scores) == 16  # nothing is held out where nobody asks for references


def test_a_changed_image_is_scored_again(tmp_path):
    from conftest import paint

    profile = small_profile(make_mvtec(tmp_path / "data", ("plate",)), tmp_path / "cache", shots=[0])
    before = run.run(profile).scores.set_index("image").score
    image = before.index[0]
    paint(type(tmp_path)(image), 4242)
    after = run.run(profile).scores.set_index("image").score
    assert after[image] != before[image]
    pd.testing.assert_series_equal(after.drop(image), before.drop(image))


def flip(file: Path, place: int = -20) -> None:
    """Change one bit of a file: its size and the look of it stay."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_damaged_features_are_encoded_again_and_it_is_said(tmp_path):
    """Cut off, one bit changed, or gone between two steps: never read as if they were whole."""
    profile = small_profile(make_mvtec(tmp_path / "data", ("plate",)), tmp_path / "cache", shots=[0])
    good = run.run(profile).scores
    kept = sorted((tmp_path / "cache").glob("features/**/class.npy"))
    kept[0].write_bytes(kept[0].read_bytes()[:50])
    flip(kept[1])
    kept[2].write_bytes(b"")
    for folder in ("units", "runs"):
        shutil.rmtree(tmp_path / "cache" / folder)
    with pytest.warns(UserWarning, match="were damaged; .* is encoded again") as said:
        same(run.run(profile).scores, good)
    assert [sum(str(file) in str(one.message) for one in said) for file in kept] == [1, 1, 1] + [0] * (len(kept) - 3)
    with warnings.catch_warnings(action="error"):
        same(run.run(profile).scores, good)


def test_damaged_results_are_computed_again_and_it_is_said(tmp_path):
    """A bit of a unit's scores or maps, of a run's table, or of the checksums themselves; other units stay."""
    profile = small_profile(make_mvtec(tmp_path / "data"), tmp_path / "cache", shots=[0])
    good, cache = run.run(profile), tmp_path / "cache"
    for name in ("units/*/maps.npy", "runs/*/scores.parquet", "runs/*/run.json", "units/*/sums.json"):
        file = sorted(cache.glob(name))[0]
        others = {path: path.stat().st_mtime_ns for path in cache.glob("units/*/*") if path.parent != file.parent}
        flip(file)
        with pytest.warns(UserWarning, match=f"{file.parent} were damaged and are computed again"):
            again = run.run(profile)
        same(again.scores, good.scores)
        same(again.metrics, good.metrics)
        for one, other in zip(good.maps(good.scores), again.maps(again.scores), strict=True):
            np.testing.assert_array_equal(one, other)
        assert all(path.stat().st_mtime_ns == before for path, before in others.items())
    shutil.rmtree(file.parent)  # removed by hand: nothing to say, the unit is missing
    with warnings.catch_warnings(action="error"):
        same(run.run(profile).scores, good.scores)


def test_workers_change_nothing(tmp_path, done):
    parallel = run.run(small_profile(done.profile.path(done.profile.root), tmp_path / "cache", shots=[0, 1], workers=2))
    serial = done.scores[(done.scores.shots < 2) & (done.scores.seed == 0)]
    columns = ["variant", "category", "image", "score"]
    merged = parallel.scores[columns].merge(serial[columns], on=columns[:3])
    assert len(merged) == len(parallel.scores)
    np.testing.assert_allclose(merged.score_x, merged.score_y, atol=1e-4)  # threads differ, so do sums


def fake_features(store: feature_store.Store, folder: Path, count: int) -> list[str]:
    """Kept features of as many images, half a megabyte each, without images worth decoding or a backbone."""
    paths, generator = [], np.random.default_rng(0)
    for number in range(count):
        paths.append(str(folder / f"{number}.png"))
        Path(paths[-1]).write_text(str(number))
        for name, shape in {"class": (1, 512), "window_2": (1, 144, 512), "patch": (1, 169, 896)}.items():
            file = store._places(paths[-1], [name])[name]
            file.parent.mkdir(parents=True, exist_ok=True)
            files.write_array(file, generator.standard_normal(shape).astype(np.float16))
    return paths


def test_memory_and_scores_do_not_depend_on_the_number_of_images(tmp_path, tiny_backbone):
    """All features of a hundred images at once would be ten times the peak of ten."""
    settings = {"windows": [2]}
    chosen = methods.choose(small_profile(tmp_path, tmp_path, methods=[TINY | {"settings": settings}]).methods[0], None)
    store = chosen.store(tmp_path / "cache", tiny_backbone)
    paths = fake_features(store, tmp_path, 100)
    names, text = ["class", "window_2", "patch"], torch.randn(2, 512, generator=torch.Generator().manual_seed(0))
    references = store.load(paths[:1], names)
    peaks, found = {}, {}
    for count in (10, 100):
        tracemalloc.start()
        scorer = scoring.Scorer(chosen, text, 13, references)
        for path, values in zip(paths, store.each(paths[:count], names), strict=False):
            scorer.add(path, values)
        found[count] = scorer.of(paths[:count])
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[100] < 1.1 * peaks[10]
    assert peaks[10] < 5 * sum(array.numel() * 4 for array in references[0].values())
    for ten, hundred in zip(found[10], found[100], strict=True):
        np.testing.assert_array_equal(ten, hundred[:10])


def test_a_batch_is_bounded_and_the_next_is_read_ahead(tmp_path, tiny_backbone, monkeypatch):
    """Four images of 25 tokens fit 100 tokens at once; while the first four are encoded the rest may be read."""
    paths = [str(tmp_path / f"{number}.png") for number in range(6)]
    for number, path in enumerate(paths):
        paint(Path(path), number)
    chosen = methods.choose(small_profile(tmp_path, tmp_path).methods[0], None)
    together, single = (chosen.store(tmp_path / name, tiny_backbone) for name in ("together", "single"))
    sizes, read, encode = [], threading.Event(), together.encode
    views = image_files.views

    def seeing(path, *how):
        if path == paths[-1]:
            read.set()
        return views(path, *how)

    def encoding(backbone, images, names):
        sizes.append(len(images))
        assert len(sizes) > 1 or read.wait(30)  # the last image is read before the first four are done
        return encode(backbone, images, names)

    monkeypatch.setattr(image_files, "views", seeing)
    monkeypatch.setattr(feature_store, "TOKENS_AT_ONCE", 100)
    together.encode = encoding
    assert together.fill(paths, ["class"], batch=32) == 6 and sizes == [4, 2]
    assert single.fill(paths, ["class"], batch=1) == 6
    for one, other in zip(together.each(paths, ["class"]), single.each(paths, ["class"]), strict=True):
        torch.testing.assert_close(one["class"], other["class"], atol=1e-2, rtol=1e-2)  # kept as fp16


def test_the_bar_counts_the_images_that_are_left_to_encode(tmp_path, monkeypatch):
    bars = []

    class Bar(progress.Bar):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs | {"file": io.StringIO(), "disable": False})
            bars.append(self)

    monkeypatch.setattr(run, "Bar", Bar)
    profile = small_profile(make_mvtec(tmp_path / "data"), tmp_path / "cache", shots=[0])
    run.run(profile.model_copy(update={"categories": ["plate"]}), progress=True)
    run.run(profile, progress=True)
    assert [(bar.unit, bar.total, bar.n) for bar in bars] == [
        ("images", 8, 8), ("parts", 1, 1), ("images", 8, 8), ("parts", 1, 1),
    ]  # fmt: skip
    assert all(bar.work_done == pytest.approx(bar.work) and bar.work != bar.total for bar in bars)


def test_non_square_images_are_tiled_and_averaged(tmp_path, tiny_backbone):
    root = make_visa(tmp_path / "visa")
    profile = small_profile(root, tmp_path / "cache", dataset="visa", shots=[0, 1], categories=["candle"])
    found = run.run(profile)
    assert set(found.scores.tiles) == {2} and found.maps(found.scores)[0].shape == (2, 5, 5)
    assert found.framed(found.scores)[0].shape == (60, 100)
    zero = found.scores[found.scores.shots == 0].iloc[0]
    pixels = image_files.views(zero.image, "tiles", 80)
    encoded = winclip.encode(tiny_backbone, tiny_backbone.normalise(pixels), ["class", "window_2", "window_3"])
    scores, _ = winclip.score(encoded, winclip_text(tiny_backbone, "candle"), winclip.settings(), 5)
    assert zero.score == pytest.approx(float(scores.mean()), abs=2e-3)
    flat = [TINY | {"settings": {"fit": "squash"}}]
    squashed = run.run(
        small_profile(root, tmp_path / "cache", dataset="visa", shots=[0], categories=["candle"], methods=flat)
    )
    assert set(squashed.scores.tiles) == {1}


def test_tile_t_meets_tile_t_of_the_references():
    torch.manual_seed(0)
    grid, tiles = 3, np.array([2, 2])
    values = {name: torch.randn(4, size, 8) for name, size in {"window_1": 9, "patch": 9}.items()}
    values["class"] = torch.randn(4, 8)
    text = torch.randn(2, 8)
    chosen = winclip.settings("paper", {"windows": [1]})
    images = [{name: array[start : start + 2] for name, array in values.items()} for start in (0, 2)]
    scorer = scoring.Scorer(methods.ChosenMethod(Method(), chosen), text, grid, (values, tiles))
    for name, one in zip("ab", images, strict=True):
        scorer.add(name, one)
    scores, maps, counts = scorer.of("ab")
    assert counts.tolist() == [2, 2]
    odd = {name: array[1::2] for name, array in values.items()}
    expected, expected_maps = winclip.score(odd, text, chosen, grid, odd)
    np.testing.assert_allclose(maps[1::2], expected_maps, atol=1e-6)
    even = {name: array[::2] for name, array in values.items()}
    np.testing.assert_allclose(scores, (expected + winclip.score(even, text, chosen, grid, even)[0]) / 2, atol=1e-6)


def test_study_preset_swaps_channels_of_test_images_only(tmp_path):
    root = make_mvtec(tmp_path / "data", ("plate",))
    method = TINY | {"preset": "study"}
    found = run.run(small_profile(root, tmp_path / "cache", methods=[method], shots=[0, 1]))
    folders = {path.name.rsplit("-", 1)[0] for path in (tmp_path / "cache/features").glob("*/*")}
    assert folders == {"winclip-squash-bgr-80", "winclip-squash-rgb-80"}
    assert set(found.scores.image_score) == {"map_max"}


def test_real_imported_maps_give_the_reported_figures(tmp_path):
    """A public WinCLIP run's maps reproduce its own metrics: pixels to 0.1 point, images to 1 point."""
    profile = small_profile(
        shared("data/mvtec_ad"), tmp_path / "cache", dataset="mvtec", methods=[], evaluation_size=200,
        imports=[{"name": "outside", "path": str(shared("data/winclip_run"))}],
    )  # fmt: skip
    found = run.run(profile).metrics.set_index("category")
    reported = pd.read_csv(shared("data/winclip_run/metrics.csv")).set_index("category") / 100
    assert set(found.index) == set(reported.index)
    assert (found.pixel_auroc - reported.pixel_auroc).abs().max() < 0.001
    assert (found.image_auroc - reported.image_auroc).abs().max() < 0.01
