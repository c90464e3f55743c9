"""Methods that train a network on normal pictures: SSIM, losses by hand, resuming, and what a run keeps."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import small_profile
from skimage.metrics import structural_similarity
from torch.utils.flop_counter import FlopCounterMode

from vlmad_lib import InputError
from vlmad_lib.analysis import efficiency
from vlmad_lib.methods import autoencoder, cutpaste, ganomaly, trained_networks
from vlmad_lib.pipeline import run, workload

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"image_size": 32, "network_width": 4, "bottleneck": 4, "batch": 2}
AUTOENCODER = autoencoder.AUTOENCODER


def draw_pictures(count: int, side: int = 32) -> torch.Tensor:
    """Speckled pictures (N, 3, side, side) of whole numbers."""
    return torch.randint(60, 120, (count, 3, side, side), generator=torch.Generator().manual_seed(0)).float()


def weights(network: torch.nn.Module) -> list[torch.Tensor]:
    return list(network.state_dict().values())


# ---------------------------------------------------------------- differences of images


def test_ssim_of_a_shifted_square_is_that_of_scikit_image():
    first, second = np.zeros((2, 40, 40), np.float32)
    first[12:24, 12:24], second[14:26, 13:25] = 0.8, 0.8
    _, expected = structural_similarity(
        first, second, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    pair = (torch.from_numpy(values).expand(1, 3, -1, -1) for values in (first, second))
    similarity = trained_networks.measure_ssim(*pair)[0].numpy()
    np.testing.assert_allclose(similarity[5:-5, 5:-5], expected[5:-5, 5:-5], atol=1e-4)
    assert similarity[0, 0] == pytest.approx(1) and similarity.min() < 0.5


def test_errors_of_flat_images_by_hand():
    """Of two flat images no variance is left: 1 less 2ab + c over a squared and b squared and c."""
    first, second = torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), 0.2)
    expected = 1 - (2 * 0.5 * 0.2 + 1e-4) / (0.25 + 0.04 + 1e-4)
    found = trained_networks.measure_error(first, second, "ssim")
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    np.testing.assert_allclose(trained_networks.measure_error(first, second, "l2"), 0.09, rtol=1e-5)


def test_divergence_from_a_standard_normal_by_hand():
    means, logs = torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.tensor([[0.0, 0.0], [0.0, float(np.log(4))]])
    expected = [0, (1 + 4 + 4 - 1 - np.log(4)) / 2]
    np.testing.assert_allclose(autoencoder.measure_divergence(means, logs), expected, rtol=1e-6)


# ---------------------------------------------------------------- training


@pytest.mark.parametrize(
    "method", [AUTOENCODER, autoencoder.VAE, ganomaly.GANOMALY, cutpaste.CUTPASTE], ids=lambda method: method.key
)
def test_an_interrupted_training_ends_the_same_and_is_kept(method, tmp_path, monkeypatch):
    small = {key: value for key, value in SMALL.items() if key in method.Settings.model_fields}
    pixels, settings = draw_pictures(5), method.settings(overrides=small | {"epochs": 3})
    whole = method.remember({"pixels": pixels}, settings, 32)
    monkeypatch.setattr(trained_networks, "KEPT_EVERY", 0.0)
    keep, losses = trained_networks._keep, method.list_losses

    def keep_and_stop(state, epochs, *more):
        keep(state, epochs, *more)
        if epochs == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(trained_networks, "_keep", keep_and_stop)
    with pytest.raises(KeyboardInterrupt):
        method.remember({"pixels": pixels}, settings, 32, tmp_path)
    monkeypatch.setattr(trained_networks, "_keep", keep)
    steps = []
    monkeypatch.setattr(type(method), "list_losses", lambda self, *given: steps.append(1) or losses(*given))
    resumed = method.remember({"pixels": pixels}, settings, 32, tmp_path)
    assert len(steps) == 3  # batches of the third epoch alone
    again = method.remember({"pixels": pixels}, settings, 32, tmp_path)
    assert len(steps) == 3 and not list(tmp_path.glob("*.state.pt"))
    for other in (resumed, again):
        assert all(map(torch.equal, weights(whole), weights(other)))
    other = method.remember({"pixels": pixels}, settings.model_copy(update={"training_seed": 1}), 32, tmp_path)
    assert not torch.equal(weights(whole)[0], weights(other)[0]) and len(steps) == 12


def test_a_damaged_state_starts_the_training_again(tmp_path, monkeypatch):
    pixels, settings = draw_pictures(2), AUTOENCODER.settings(overrides=SMALL | {"epochs": 1})
    name = trained_networks._name_training(AUTOENCODER, pixels, settings)
    (tmp_path / f"{name}.state.pt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.warns(UserWarning, match="damaged; it starts again"):
        found = AUTOENCODER.remember({"pixels": pixels}, settings, 32, tmp_path)
    whole = AUTOENCODER.remember({"pixels": pixels}, settings, 32)
    assert all(map(torch.equal, weights(whole), weights(found)))


def test_a_training_leaves_the_generator_of_others_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    AUTOENCODER.remember({"pixels": draw_pictures(2)}, AUTOENCODER.settings(overrides=SMALL | {"epochs": 1}), 32)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("preset", ["paper", "l2"])
def test_a_square_pasted_into_a_constant_picture_stands_out(preset):
    """Trained on pictures of one colour it redraws that colour, and no square that it was never shown."""
    settings = AUTOENCODER.settings(preset, SMALL | {"epochs": 40, "rate": 2e-2})
    normal = torch.full((1, 3, 32, 32), 100.0)
    network = AUTOENCODER.remember({"pixels": normal}, settings, 32)
    pasted = normal.clone()
    pasted[..., 10:20, 8:18] = 220
    (plain, score), (plain_map, maps) = AUTOENCODER.score(
        {"pixels": torch.cat([normal, pasted])}, None, settings, 32, network
    )
    assert (network(normal / 255) - 100 / 255).abs().mean() < 0.05
    inside = maps[12:18, 10:16].mean()
    assert score == maps.max() > plain == plain_map.max() and inside > 3 * plain_map.max()
    assert inside > 3 * maps[26:, 24:].mean()


# ---------------------------------------------------------------- GANomaly


def test_an_autoencoder_looks_in_a_region_of_interest_alone():
    """Its score is the largest value of its map, so that of the cells inside."""
    chosen = autoencoder.AUTOENCODER.settings("demo", {"epochs": 1})
    network = trained_networks.start_network(autoencoder.AUTOENCODER, chosen, torch.device("cpu")).eval()
    features, inside = {"pixels": torch.rand(1, 3, 64, 64) * 255}, torch.zeros(64, 64, dtype=torch.bool)
    inside[:8, :8] = True
    whole, maps = autoencoder.AUTOENCODER.score(features, None, chosen, 64, network)
    score, _ = autoencoder.AUTOENCODER.score(features, None, chosen, 64, network, inside=inside)
    assert whole.item() == maps.max().item() and score.item() == maps[0, :8, :8].max().item() < whole.item()
    assert autoencoder.AUTOENCODER.rests_on_map(chosen, 1)


def test_ganomaly_scores_by_the_distance_of_two_codes():
    """|1 - 0| + |2 - 4|; the map is the squared error of a picture redrawn in -1..1."""
    codes, again = torch.tensor([[1.0, 2.0], [3.0, 3.0]]), torch.tensor([[0.0, 4.0], [3.0, 3.0]])
    stub = SimpleNamespace(generator=lambda images: (torch.zeros_like(images), codes, again))
    images = torch.full((2, 3, 16, 16), 0.8)
    scores, maps = ganomaly.GANOMALY.judge_images(stub, images, None)
    assert scores.tolist() == [3, 0] and maps.shape == (2, 16, 16)
    np.testing.assert_allclose(maps, 0.3**2, rtol=1e-5)


def test_losses_of_ganomaly_by_hand():
    """Reconstructions are black where images are grey, so 0 and -1 in -1..1; the code moves by 2."""
    images, settings = torch.full((1, 3, 16, 16), 0.5), ganomaly.GANOMALY.settings()
    codes = torch.zeros(1, 4)
    stub = SimpleNamespace(
        generator=lambda images: (images - 1, codes, codes + 2),
        discriminator=lambda images: (3 * images, images[:, 0, 0, 0]),
    )
    losses = dict(ganomaly.GANOMALY.list_losses(stub, images, settings, torch.Generator()))
    assert losses["discriminator"].item() == pytest.approx(np.log(2) + np.log1p(np.exp(-1)), rel=1e-5)
    assert losses["generator"].item() == pytest.approx(1 * 9 + 50 * 1 + 1 * 4)


def test_networks_of_ganomaly_have_the_published_shapes():
    """At 64 pixels maps of 32, 16, 8 and 4 with 64 to 512 channels, and a code of 100 numbers."""
    networks, images = ganomaly.GANOMALY.build_network(ganomaly.GANOMALY.settings()), torch.zeros(2, 3, 64, 64)
    with torch.inference_mode():
        reconstructions, codes, again = networks.generator(images)
        features, logits = networks.discriminator(reconstructions)
    assert reconstructions.shape == images.shape and codes.shape == again.shape == (2, 100)
    assert features.shape == (2, 512, 4, 4) and logits.shape == (2,)
    with pytest.raises(InputError, match="write a power of two"):
        ganomaly.GANOMALY.settings(overrides={"image_size": 48})


# ---------------------------------------------------------------- a run


def test_a_run_trains_on_normal_train_pictures_and_trains_once(mvtec, tmp_path, monkeypatch):
    shown, train = [], trained_networks._train

    def count(method, network, images, *more):
        shown.append(images)
        return train(method, network, images, *more)

    monkeypatch.setattr(trained_networks, "_train", count)
    specs = [{"method": "autoencoder", "settings": SMALL | {"epochs": 1}}]
    profile = small_profile(mvtec, tmp_path / "cache", methods=specs, shots=[0, 2, "full"], categories=["plate"])
    results = run.run(profile)
    assert sorted(map(len, shown)) == [2, 4]
    assert set(results.scores.shots) == {2, 1_000_000} and set(results.scores.backbone) == {"pixels (none, fp32)"}
    assert results.metrics.pixel_auroc.notna().all()
    assert "Autoencoder only compares with reference images: no zero-shot result." in results.facts["notes"]
    assert results.maps(results.scores.iloc[:1])[0].shape == (1, 32, 32)
    (tmp_path / "cache" / "units").rename(tmp_path / "lost")
    assert run.run(profile).scores.score.equals(results.scores.score) and len(shown) == 2


def test_a_run_says_what_it_will_train(mvtec, tmp_path, capsys, monkeypatch):
    """Of two epochs a category on four pictures, each step a forward pass and its gradients."""
    monkeypatch.setattr(workload, "measure_peak", lambda *_: 1e-9)
    monkeypatch.setattr(workload, "NOTEWORTHY", 0.0)
    settings = SMALL | {"epochs": 2, "error_measure": "l2"}
    specs = [{"method": "autoencoder", "settings": settings}]
    run.run(small_profile(mvtec, tmp_path, methods=specs, shots=["full"]), announce=True)
    told = capsys.readouterr().err
    work = AUTOENCODER.training_gflop(AUTOENCODER.settings(overrides=settings), 1)
    assert "Autoencoder: 2 networks to train on 4 normal images each, " in told
    assert workload._duration(8 * work / (workload.TRAINED * 1e-9)) in told
    network = AUTOENCODER.build_network(AUTOENCODER.settings(overrides=settings))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.rand(1, 3, 32, 32))
    assert 2.5 < work / 2 / (counter.get_total_flops() / 1e9) <= 3  # the first layer's input has no gradient
    monkeypatch.setattr(workload, "measure_peak", lambda *_: 50.0)
    assert workload.describe_training([]) == ""
    assert workload.describe_training([workload.Training("VAE", 4, 10.0, torch.device("cpu"))]) == ""


def test_no_published_encoder_is_timed_where_there_is_none():
    table = efficiency.tabulate_full_size(["autoencoder", "vae"], {"fp32": 100.0})
    assert table.empty and list(table)[-1] == "least s per image, fp32"


def test_a_network_of_its_own_reads_pixels_alone(mvtec, tmp_path):
    specs = [{"method": "autoencoder", "backbone": "ViT-B-16-plus-240"}]
    with pytest.raises(InputError, match="Autoencoder trains a network of its own.*write 'backbone: pixels'"):
        run.run(small_profile(mvtec, tmp_path, methods=specs))
    specs = [{"method": "autoencoder", "weights": "openai"}]
    with pytest.raises(InputError, match="pixels has no weights 'openai'; write 'weights: none'"):
        run.run(small_profile(mvtec, tmp_path, methods=specs))
    with pytest.raises(InputError, match="write a multiple of 16"):
        AUTOENCODER.settings(overrides={"image_size": 40})
