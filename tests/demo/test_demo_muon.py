"""The demo's optimiser against PyTorch's own Muon, which iterates in bfloat16, and against the polar factor."""

from __future__ import annotations

import pytest
import torch

from vlmad_lib.demo.training import train
from vlmad_lib.demo.training.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (8, 8)])
def test_orthogonal_keeps_the_singular_vectors_and_levels_the_values(shape):
    left, _, right = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(1)), False)
    values = torch.linspace(0.5, 3, min(shape))
    found = left.mT @ orthogonal(left * values @ right) @ right.mT
    assert (found.diagonal() > 0.6).all() and (found.diagonal() < 1.3).all()
    torch.testing.assert_close(found, torch.diag(found.diagonal()), atol=1e-4, rtol=0)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
def test_steps_are_those_of_torch_optim_muon():
    stream = torch.Generator().manual_seed(2)
    start = torch.randn(12, 20, generator=stream)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}
    pairs = [(ours, Muon([ours], **options))]
    pairs += [(theirs, torch.optim.Muon([theirs], **options, adjust_lr_fn="match_rms_adamw"))]
    for _ in range(3):
        slope = torch.randn(12, 20, generator=stream)
        for value, optimiser in pairs:
            value.grad = slope.clone()
            optimiser.step()
    moved = (ours - start).norm().item()
    assert moved > 0.1 and (ours - theirs).norm().item() < 0.02 * moved  # bfloat16 keeps two to three digits


def test_queries_keys_and_values_are_three_matrices():
    stream = torch.Generator().manual_seed(3)
    stacked = torch.nn.Parameter(torch.zeros(24, 8))
    alone = [torch.nn.Parameter(torch.zeros(8, 8)) for _ in range(3)]
    slopes = torch.randn(24, 8, generator=stream) * torch.tensor([1.0, 100.0, 0.01]).repeat_interleave(8)[:, None]
    stacked.grad = slopes
    for value, slope in zip(alone, slopes.chunk(3), strict=True):
        value.grad = slope
    Muon([stacked], 0.1).step()
    Muon(alone, 0.1).step()
    torch.testing.assert_close(stacked, torch.cat(alone))


@pytest.mark.parametrize("muon", [False, True])
def test_every_parameter_of_the_tower_has_one_optimiser(muon):
    visual = train.build(0).visual
    found = train._optimisers(visual, train.Settings(muon=muon))
    held = [value for one in found for group in one.param_groups for value in group["params"]]
    assert len(held) == len({id(value) for value in held}) == len(list(visual.parameters()))
    matrices = {id(value) for group in found[-1].param_groups for value in group["params"]} if muon else set()
    blocks = dict(visual.transformer.named_parameters())
    assert matrices == ({id(value) for value in blocks.values() if value.ndim == 2} if muon else set())
