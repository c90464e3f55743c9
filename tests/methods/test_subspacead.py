"""SubspaceAD: blocks, subspaces, residuals and scores by hand, and its oracle."""

from __future__ import annotations

import numpy as np
import parity
import pytest
import torch
from conftest import shared

from vlmad_lib import InputError
from vlmad_lib.encoders import backbones, image_towers
from vlmad_lib.methods import subspacead

SUBSPACEAD = subspacead.SUBSPACEAD


def test_the_blocks_are_the_published_ones_or_from_the_middle():
    """Numbers begin with 1: block 22 of the giant's forty, as the paper counts, is 23 here."""
    assert subspacead.choose_blocks(40) == [23, 24, 25, 26, 27, 28, 29]
    assert subspacead.choose_blocks(24) == [14, 15, 16, 17, 18]
    assert subspacead.choose_blocks(12) == [8, 9]
    assert subspacead.choose_blocks(20) == [11, 12, 13, 14]
    assert subspacead.choose_blocks(1) == [1]


def test_tokens_are_means_over_raw_blocks():
    net = backbones.load_backbone("timm/test_vit", "random:0")
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    kept = image_towers.encode_tokens(net, images, range(1, net.depth + 1)).blocks
    found = subspacead.encode(net, images, ["middle", "blocks_1_3"])
    torch.testing.assert_close(found["blocks_1_3"], (kept[1] + kept[3]) / 2)
    middle = subspacead.choose_blocks(net.depth)
    torch.testing.assert_close(found["middle"], torch.stack([kept[number] for number in middle]).mean(0))


def test_angles_are_drawn_by_the_seed():
    angles = subspacead.draw_angles(200, 0)
    assert angles == subspacead.draw_angles(200, 0) != subspacead.draw_angles(200, 1)
    assert 0 <= min(angles) < 10 and 335 < max(angles) <= 345


@pytest.mark.parametrize("share, components", [(0.5, 1), (0.8, 1), (0.85, 2), (0.99, 3), (1.0, 3)])
def test_a_subspace_has_as_few_components_as_hold_the_share(share, components):
    """Variances 16, 3 and 1: the first holds 80 %, two hold 95 %."""
    corners = torch.tensor([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], dtype=torch.double)
    tokens = corners * torch.tensor([16.0, 3, 1]).double().sqrt() + torch.tensor([5.0, 0, -2])
    found = subspacead.find_subspace([tokens[:3], tokens[3:]], share - 1e-9)
    assert found.mean.tolist() == pytest.approx([5, 0, -2])
    assert found.held.tolist() == [place < components for place in range(3)]
    assert (found.variances * 7 / 8).tolist() == pytest.approx([16, 3, 1])
    assert found.axes[:, 0].abs().tolist() == pytest.approx([1, 0, 0])


def test_residuals_are_what_the_subspace_leaves():
    mean, left = torch.tensor([1.0, 1, 1]), torch.diag(torch.tensor([0.0, 1, 1]))
    tokens = torch.tensor([[[9.0, 1, 1], [0, 4, 5], [1, 1, 1]]])
    assert subspacead.measure_residuals(tokens, mean, left).tolist() == [[0, 25, 0]]


def test_the_map_is_enlarged_and_blurred_with_its_rim_mirrored():
    stream = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 4, 4, generator=stream)
    large = torch.nn.functional.interpolate(maps[:, None], (8, 8), mode="bilinear")[:, 0].numpy()
    weight = np.exp(-1 / 32)
    padded = np.pad(large, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    rows = (weight * padded[:, :-2] + padded[:, 1:-1] + weight * padded[:, 2:]) / (1 + 2 * weight)
    expected = (weight * rows[..., :-2] + rows[..., 1:-1] + weight * rows[..., 2:]) / (1 + 2 * weight)
    np.testing.assert_allclose(subspacead.enlarge(maps, 8).numpy(), expected, atol=1e-6)


def test_the_score_is_the_mean_of_the_top_percent_of_pixels():
    settings = SUBSPACEAD.settings(overrides={"image_size": 56, "rotations": 0})
    tokens = torch.rand(1, 16, 3, generator=torch.Generator().manual_seed(0))
    memory = torch.zeros(3), torch.eye(3)
    score, maps = subspacead.score({"middle": tokens}, None, settings, 4, memory)
    np.testing.assert_allclose(maps[0].flatten(), tokens[0].square().sum(-1))
    pixels = subspacead.enlarge(maps, 56).flatten().sort(descending=True).values
    assert score.item() == pytest.approx(pixels[:31].mean().item())  # of 3136


def test_references_and_their_copies_make_one_subspace():
    """With a share of 0.8, so that something is left of four dimensions."""
    settings = SUBSPACEAD.settings(overrides={"variance_share": 0.8})
    stream = torch.Generator().manual_seed(0)
    plain, turned = torch.randn(2, 9, 4, generator=stream), torch.randn(2, 9, 4, generator=stream)
    mean, left = subspacead.remember({"middle": plain, "rotated_7_middle": turned}, settings, 3)
    together = torch.cat([plain, turned]).flatten(0, 1)
    torch.testing.assert_close(mean, together.mean(0))
    values, vectors = np.linalg.eigh(np.cov(together.numpy(), rowvar=False))
    held = np.cumsum(values[::-1]) / values.sum()
    count = int((held < 0.8).sum()) + 1
    assert 0 < count < 4
    wanted = vectors[:, ::-1][:, count:]
    np.testing.assert_allclose(left.numpy() @ left.numpy().T, wanted @ wanted.T, atol=1e-5)


@pytest.mark.parametrize(
    "name, side",
    [
        ("timm/vit_giant_patch14_reg4_dinov2", 672),
        ("timm/vit_small_patch14_reg4_dinov2.lvd142m", 448),
        ("ViT-B-16-plus-240", 240),
    ],
)
def test_the_size_of_the_input_follows_from_the_backbone(name, side):
    facts = type("Facts", (), {"name": name, "image_size": 240})()
    settled = SUBSPACEAD.settle(SUBSPACEAD.settings(), facts, "bottle")
    assert (settled.image_size, settled.rotations) == (side, 30)
    assert SUBSPACEAD.settle(SUBSPACEAD.settings(), facts, "transistor").rotations == 0
    assert SUBSPACEAD.settings("few_rotations").rotations == 7


def test_references_have_copies_at_each_angle():
    chosen = SUBSPACEAD.settings(overrides={"rotations": 2, "blocks": [3, 4]})
    first, second = subspacead.draw_angles(2, 0)
    names = ["blocks_3_4", f"rotated_{first:g}_blocks_3_4", f"rotated_{second:g}_blocks_3_4"]
    assert SUBSPACEAD.reference_array_names(chosen, 1) == names
    assert [rotation.rim for rotation in SUBSPACEAD.reference_rotations(chosen).values()] == ["black"] * 2


def test_a_share_of_all_variance_is_refused():
    """Nothing but rounding would be left."""
    with pytest.raises(InputError, match="share"):
        SUBSPACEAD.settings(overrides={"variance_share": 1.0})


@pytest.mark.slow
def test_parity_with_the_official_code():
    rows = parity.compare(shared("golden/subspacead_small.json"))
    assert len(rows) > 25 and not [row for row in rows if not row[1] <= row[2]]
