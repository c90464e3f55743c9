"""Methods without words: hand-computed cases of each, and the contract through a run on tiny data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import TINY, make_mvtec, paint, small_profile
from scipy import ndimage

from vlmad_lib import InputError, methods
from vlmad_lib.config import FULL, Method, Profile, check_record
from vlmad_lib.evaluation import metrics
from vlmad_lib.methods import memory_bank, winclip
from vlmad_lib.pipeline import run

NAMES = list(memory_bank.METHODS)


def tokens(*values: float) -> torch.Tensor:
    """(1, P, 1): one image whose patches are numbers."""
    return torch.tensor(values, dtype=torch.float32)[None, :, None]


# ---------------------------------------------------------------- PatchCore


def test_a_coreset_takes_the_farthest_point_each_time():
    points = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0]])
    for seed in range(5):
        first, *others = memory_bank.coreset(points, 3, seed).tolist()
        # from 0, 1 or 2 the farthest is 11, then the end of the other cluster; from 10 or 11 it is 0, then 2
        assert others == {0: [4, 2], 1: [4, 0], 2: [4, 0], 3: [0, 2], 4: [0, 2]}[first]


def test_a_coreset_of_everything_repeats_nothing_even_among_equal_points():
    points = torch.cat([torch.ones(6, 200), torch.zeros(3, 200)])
    picked = memory_bank.coreset(points, 9)
    assert sorted(picked.tolist()) == list(range(9))
    assert (picked[:2] < 6).sum() == 1  # the first two come from both places


def test_neighbourhoods_are_means_in_which_zeros_beyond_the_image_count():
    """As unfolding with padding and averaging does, which is how the official code has them."""
    grid = torch.arange(9.0).reshape(1, 9, 1)
    found = memory_bank.pooled(grid, 3, 3).flatten()
    assert found[0] == pytest.approx(sum([0, 1, 3, 4]) / 9) and found[4] == 4
    assert found[5] == pytest.approx(sum([1, 2, 4, 5, 7, 8]) / 9)
    several = torch.randn(2, 25, 4, generator=torch.Generator().manual_seed(0))
    unfolded = torch.nn.functional.unfold(several.mT.unflatten(2, (5, 5)), 3, padding=1)
    torch.testing.assert_close(memory_bank.pooled(several, 5, 3), unfolded.unflatten(1, (4, 9)).mean(2).mT)
    torch.testing.assert_close(memory_bank.pooled(grid, 3, 1), grid)


def test_patchcore_measures_to_the_nearest_patch_and_weighs_the_largest():
    chosen = memory_bank.PatchCore(neighbourhood=1, reweighted_by=2)
    memory = memory_bank.patchcore_memory({"patch": tokens(0, 0.5, 4, 9)}, chosen, 2)
    scores, maps = memory_bank.patchcore_score({"patch": tokens(0, 1, 4, 7)}, None, chosen, 2, memory)
    torch.testing.assert_close(maps[0], torch.tensor([[0.0, 0.5], [0.0, 2.0]]))
    # the strangest patch is 7, its nearest 9, and around that lie 9 and 4, both in the memory: distances 2 and 3
    weight = 1 - np.exp(2) / (np.exp(2) + np.exp(3))
    assert scores[0] == pytest.approx(2 * weight)


def test_patchcore_without_reweighting_is_the_largest_distance():
    chosen = memory_bank.PatchCore(neighbourhood=1, reweighted_by=1)
    scores, maps = memory_bank.patchcore_score(
        {"patch": tokens(0, 1, 4, 7)}, None, chosen, 2, torch.tensor([[0.0], [9]])
    )
    assert scores[0] == maps.max() == 4


def test_a_memory_of_equal_patches_weighs_the_nearest_itself():
    found = memory_bank.reweighted(torch.tensor([1.0]), torch.tensor([2]), torch.zeros(3, 1), 2)
    assert found == pytest.approx(0.5)


def test_only_large_memories_become_coresets():
    references = {"patch": torch.randn(4, 25, 6)}
    kept = {
        above: len(memory_bank.patchcore_memory(references, memory_bank.PatchCore(coreset_above=above), 5))
        for above in (3, 4)
    }
    assert kept == {3: 10, 4: 100}


# ---------------------------------------------------------------- PaDiM


def test_padim_is_the_mahalanobis_distance_at_each_position():
    generator = torch.Generator().manual_seed(0)
    references, images = torch.randn(7, 4, 2, generator=generator), torch.randn(3, 4, 2, generator=generator)
    chosen = memory_bank.PaDiM(dimensions=2)
    memory = memory_bank.padim_memory({"patch": references}, chosen, 2)
    scores, maps = memory_bank.padim_score({"patch": images}, None, chosen, 2, memory)
    for image in range(3):
        for place in range(4):
            own = references[:, place].double().numpy()
            inverse = np.linalg.inv(np.cov(own.T) + 0.01 * np.eye(2))
            apart = images[image, place].double().numpy() - own.mean(0)
            assert maps[image].flatten()[place] == pytest.approx(np.sqrt(apart @ inverse @ apart), rel=1e-5)
    torch.testing.assert_close(scores, maps.amax((1, 2)))


def test_padim_of_one_reference_is_a_plain_distance_over_its_regularisation():
    chosen = memory_bank.PaDiM(dimensions=1, regularisation=0.25)
    memory = memory_bank.padim_memory({"patch": tokens(1, 2, 3, 4)}, chosen, 2)
    _, maps = memory_bank.padim_score({"patch": tokens(1, 2, 3, 7)}, None, chosen, 2, memory)
    torch.testing.assert_close(maps[0], torch.tensor([[0.0, 0], [0, 6]]))


def test_padims_channels_are_drawn_by_its_seed():
    values = torch.arange(50.0).reshape(1, 1, 50)
    first, again, other = (memory_bank.PaDiM(dimensions=5, random_seed=seed).subset(values) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other) and first.unique().numel() == 5
    assert memory_bank.PaDiM(dimensions=80).subset(values).shape[-1] == 50


# ---------------------------------------------------------------- SPADE


def test_spade_looks_for_patches_in_the_nearest_images_only():
    references = {"class": torch.tensor([[0.0, 0], [3, 4], [30, 40]]), "patch": tokens(0, 5).expand(3, 2, 1).clone()}
    references["patch"][2] += 2  # patches 2 and 7
    references = {"class": references["class"], "patch": references["patch"].repeat(1, 2, 1)}
    image = {"class": torch.zeros(1, 2), "patch": tokens(0, 2, 7, 5)}
    for count, score, second in ((1, 0.0, 2.0), (2, 2.5, 2.0), (3, (0 + 5 + 50) / 3, 0.0)):
        chosen = memory_bank.Spade(nearest_images=count)
        scores, maps = memory_bank.spade_score(image, None, chosen, 2, memory_bank.spade_memory(references, chosen, 2))
        assert scores[0] == pytest.approx(score) and maps[0].flatten().tolist() == [0, second, second, 0]


def test_spade_averages_over_several_nearest_patches():
    chosen = memory_bank.Spade(nearest_images=1, nearest_patches=2)
    memory = memory_bank.spade_memory({"class": torch.zeros(1, 2), "patch": tokens(0, 1, 5, 9)}, chosen, 2)
    _, maps = memory_bank.spade_score({"class": torch.ones(1, 2), "patch": tokens(0, 4, 5, 9)}, None, chosen, 2, memory)
    assert maps[0].flatten().tolist() == [0.5, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("kind", ["patchcore", "padim", "spade"])
def test_normalised_tokens_ignore_their_lengths(kind):
    method, generator = memory_bank.METHODS[kind], torch.Generator().manual_seed(0)
    chosen = method.settings("paper", {"normalise": True})
    features, references = (
        {"class": torch.randn(2, 8, generator=generator), "patch": torch.randn(2, 25, 8, generator=generator)}
        for _ in range(2)
    )
    memory = method.remember(references, chosen, 5)
    scores, maps = method.score(features, None, chosen, 5, memory)
    longer = {name: 3 * values for name, values in features.items()}
    again, others = method.score(longer, None, chosen, 5, memory)
    torch.testing.assert_close(scores, again)
    torch.testing.assert_close(maps, others)


# ---------------------------------------------------------------- the contract


def test_maps_are_smoothed_as_in_the_originals():
    """Four pixels of a map of 224: an edge then rises as a Gaussian's integral with that deviation."""
    edge = np.repeat([0.0, 1.0], 8)[None].repeat(16, 0)[None]
    chosen = {kind: method.settings() for kind, method in memory_bank.METHODS.items()}
    for kind in ("patchcore", "padim", "spade"):
        found = metrics.framed_map(edge, 224, 224, "squash", 224, chosen[kind].sigma)
        plain = metrics.framed_map(edge, 224, 224, "squash", 224)
        np.testing.assert_allclose(found, ndimage.gaussian_filter(plain, 4.0), atol=1e-6)
    assert chosen["association"].sigma == 0


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """WinCLIP and all methods without words, few-shot and full-shot."""
    base = tmp_path_factory.mktemp("embedding")
    specs = [TINY, *(TINY | {"method": name} for name in NAMES)]
    profile = small_profile(
        make_mvtec(base / "data", train=10), base / "cache", methods=specs, shots=[0, 2, "full"], seeds=[0, 1]
    )
    return run.run(profile)


def test_they_have_no_zero_shot_result_and_one_full_shot_result(done):
    kinds = done.metrics.drop_duplicates("variant").groupby("method")[["shots", "seed"]]
    found = {name: sorted(map(tuple, part.to_numpy())) for name, part in kinds}
    few = [(2, 0), (2, 1), (FULL, 0)]
    assert found == {"WinCLIP": [(0, 0), *few]} | {methods.METHODS[name].title: few for name in NAMES}
    assert [note for note in done.facts["notes"] if "no zero-shot result" in note]
    full = done.scores[done.scores.shots == FULL]
    assert full.references.str.count(";").eq(9).all()
    assert done.scores.score.notna().all() and done.metrics.pixel_auroc.notna().all()


def test_they_encode_nothing_of_their_own_and_draw_the_same_references(done):
    folders = {path.name.rsplit("-", 1)[0] for path in (done.cache / "features").glob("*/*")}
    assert folders == {"winclip-tiles-rgb-80"}
    few = done.scores[(done.scores.shots == 2)].groupby(["category", "seed"])
    assert few.references.nunique().eq(1).all()


def test_association_is_winclip_plus_less_its_words(done):
    """WinCLIP+'s map is the mean of its zero-shot map and the association."""
    rows = done.scores[(done.scores.category == "plate") & (done.scores.seed == 0)].sort_values("image")
    maps = {(name, shots): np.concatenate(done.maps(part)) for (name, shots), part in rows.groupby(["method", "shots"])}
    np.testing.assert_allclose(
        2 * maps["WinCLIP", 2] - maps["WinCLIP", 0], maps["Association", 2], atol=1e-5
    )  # fmt: skip


def test_the_order_of_images_changes_nothing(done):
    """One by one or together: what is remembered of the references does not depend on the tested images."""
    generator = torch.Generator().manual_seed(1)
    names = ["class", "patch", "window_2", "window_3"]
    shapes = {"class": (3, 8), "patch": (3, 25, 8), "window_2": (3, 16, 8), "window_3": (3, 9, 8)}
    images, references = ({name: torch.randn(*shapes[name], generator=generator) for name in names} for _ in range(2))
    for method in memory_bank.METHODS.values():
        chosen = method.settings()
        memory = method.remember(references, chosen, 5)
        scores, maps = method.score(images, None, chosen, 5, memory)
        for place in range(3):
            one = {name: values[place : place + 1] for name, values in images.items()}
            score, found = method.score(one, None, chosen, 5, memory)
            torch.testing.assert_close(score[0], scores[place])
            torch.testing.assert_close(found[0], maps[place])


def test_twins_share_backbone_and_windows_of_a_winclip():
    spec = check_record(Method, TINY | {"settings": {"windows": [1], "fit": "squash", "states": "one"}}, "test")
    found = {one.method: one for one in memory_bank.twins(spec)}
    assert set(found) == set(NAMES) and {one.backbone for one in found.values()} == {TINY["backbone"]}
    assert found["association"].settings["windows"] == [1] and "windows" not in found["padim"].settings
    assert {one.settings["sigma"] for one in found.values()} == {0.0}
    for one in found.values():
        assert methods.METHODS[one.method].settings(one.preset, one.settings).fit == "squash"
    study = check_record(
        Method, TINY | {"preset": "study"}, "test"
    )  # has no patch tokens, which the others cannot do without
    assert "patch_tokens" not in {one.method: one for one in memory_bank.twins(study)}["spade"].settings


# ---------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("patchcore", {"coreset": 0.0}, "PatchCore settings: key 'coreset' has the value 0.0"),
        ("spade", {"neighbours": 3}, "SPADE settings: unknown key 'neighbours'"),
        ("association", {"windows": [], "patch_tokens": "none"}, "keep one of them"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(kind, settings, said):
    with pytest.raises(InputError, match=said):
        memory_bank.METHODS[kind].settings("paper", settings)
    with pytest.raises(InputError, match="has no preset 'study'; use paper"):
        memory_bank.METHODS[kind].settings("study")


def test_a_profile_without_references_is_refused(mvtec, tmp_path):
    padim = TINY | {"method": "padim"}
    with pytest.raises(InputError, match="'shots' asks for no references, and without them PaDiM cannot run; add 1"):
        run.run(small_profile(mvtec, tmp_path, methods=[padim], shots=[0]))
    both = run.run(small_profile(mvtec, tmp_path, methods=[padim, TINY], shots=[0]))
    assert set(both.scores.method) == {"WinCLIP"}
    assert "PaDiM only compares with reference images: no zero-shot result." in both.facts["notes"]


def test_full_shots_need_a_picture_to_hold_out(tmp_path):
    paint(tmp_path / "data/good/0.png", 0)
    paint(tmp_path / "data/dent/0.png", 50, spot=True)
    with pytest.raises(InputError, match="only 1 good test images, too few to hold out 1 as references; add train"):
        run.run(small_profile(tmp_path / "data", tmp_path / "cache", shots=[0, "full"]))


def test_full_is_kept_as_it_was_written(mvtec, tmp_path):
    profile = small_profile(mvtec, tmp_path, shots=[0, "full"])
    assert profile.shots == [0, FULL] and profile.model_dump()["shots"] == [0, "full"]
    assert check_record(Profile, profile.model_dump(), "again") == profile
    with pytest.raises(InputError, match="'shots.0' has the value 'all'"):
        small_profile(mvtec, tmp_path, shots=["all"])


def test_winclip_brings_references_to_length_one_once():
    references = {"patch": torch.randn(1, 4, 3), "class": torch.randn(1, 3)}
    kept = winclip.remember(references, winclip.settings(), 2)
    assert list(kept) == ["patch"]  # whole images are compared with nothing
    torch.testing.assert_close(kept["patch"].norm(dim=-1), torch.ones(1, 4))
    assert winclip.remember(kept, winclip.settings(), 2) is kept
