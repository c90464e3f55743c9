"""CutPaste: what is pasted and where, labels, the density against SciPy, and a training that goes on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf

from vlmad_lib.methods import cutpaste, trained_networks

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"image_size": 32, "network_width": 2, "batch": 2, "epochs": 3}


def draw_images(count: int, side: int = 32) -> torch.Tensor:
    """Speckled images (N, 3, side, side) in 0..1."""
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("paste", [cutpaste.paste_patch, cutpaste.paste_scar])
@pytest.mark.parametrize("shape", [(64, 64), (16, 40)])
def test_a_picture_differs_only_where_something_was_pasted(paste, shape):
    image = torch.rand(3, *shape, generator=torch.Generator().manual_seed(1))
    kept = image.clone()
    for seed in range(8):
        pasted, where = paste(image, torch.Generator().manual_seed(seed))
        changed = (pasted != image).any(0)
        assert changed.any() and not changed[~where].any() and torch.equal(image, kept)
        assert pasted.shape == image.shape and pasted.min() >= 0 and pasted.max() <= 1


def test_patches_have_the_papers_areas_and_ratios_and_scars_are_turned_strips():
    image, scars = draw_images(1, 256)[0], set()
    for seed in range(30):
        _, where = cutpaste.paste_patch(image, torch.Generator().manual_seed(seed))
        rows, columns = (int(where.any(axis).sum()) for axis in (1, 0))
        assert where.sum() == rows * columns and 0.018 < rows * columns / 256**2 < 0.16
        assert 0.28 < rows / columns < 3.5
        _, where = cutpaste.paste_scar(image, torch.Generator().manual_seed(seed))
        assert 10 <= where.sum() <= 1.3 * 16 * 25
        scars.add(bool(where[where.any(1)][:, where.any(0)].all()))
    assert False in scars  # a strip that is turned does not fill its box


def test_a_batch_holds_every_image_in_three_kinds():
    images = draw_images(4)
    pictures, labels = cutpaste.paste_into_batch(images, torch.Generator().manual_seed(0))
    assert pictures.shape == (12, 3, 32, 32) and labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert all((pictures[number] != pictures[number + place]).any() for number in range(4) for place in (4, 8))
    again, _ = cutpaste.paste_into_batch(images, torch.Generator().manual_seed(0))
    assert torch.equal(pictures, again)


def test_densities_are_those_of_scipy():
    values = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.arange(1.0, 6))
    gaussian = cutpaste.Gaussian(5)
    gaussian.fit(values)
    fitted = LedoitWolf().fit(values.double().numpy())
    expected = -multivariate_normal(fitted.location_, fitted.covariance_).logpdf(values[:7].numpy())
    np.testing.assert_allclose(gaussian(values[:7]), expected, rtol=1e-4)


def test_numbers_that_never_vary_have_a_density_too():
    gaussian = cutpaste.Gaussian(3)
    gaussian.fit(torch.tensor([[1.0, 0.0, 2.0], [2.0, 0.0, 1.0]]))
    near, far = gaussian(torch.tensor([[1.5, 0.0, 1.5], [1.5, 1.0, 1.5]]))
    assert torch.isfinite(near) and far > near


def test_scores_and_maps_of_both_readings():
    settings = cutpaste.CUTPASTE.settings(overrides=SMALL)
    pixels = 255 * draw_images(5)
    network = cutpaste.CUTPASTE.remember({"pixels": pixels}, settings, 32)
    scores, maps = cutpaste.CUTPASTE.score({"pixels": pixels[:2]}, None, settings, 32, network)
    torch.testing.assert_close(scores, network.images(network.embed_images(pixels[:2] / 255)))
    assert maps.shape == (2, 32, 32) and torch.isfinite(maps).all()
    other = settings.model_copy(update={"image_score": "map_max"})
    largest, _ = cutpaste.CUTPASTE.score({"pixels": pixels[:2]}, None, other, 32, network)
    torch.testing.assert_close(largest, maps.amax((1, 2)))


def test_a_training_learns_to_tell_pastes_apart():
    """Bright is a corner of every picture: whatever else is bright was pasted."""
    images = torch.full((6, 3, 32, 32), 0.2)
    images[:, :, :20, :20] = 0.8
    settings = cutpaste.CUTPASTE.settings(overrides=SMALL | {"epochs": 60, "rate": 0.02, "batch": 6})
    network = trained_networks.train_network(cutpaste.CUTPASTE, 255 * images, settings).requires_grad_(False)
    pictures, labels = cutpaste.paste_into_batch(images.repeat(4, 1, 1, 1), torch.Generator().manual_seed(5))
    right = (network(pictures).argmax(1) == labels).float().mean()
    assert right > 0.5  # a third by guessing
