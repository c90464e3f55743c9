"""The optimiser of the demo CLIP's image tower: Muon on the matrices of its blocks, AdamW on all else."""

from __future__ import annotations

import torch
from torch import Tensor

NEWTON_SCHULZ = 3.4445, -4.7750, 2.0315
"""Coefficients of the quintic iteration, as torch.optim.Muon has them."""


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest matrix whose singular values are about one, of a matrix (n, m)."""
    a, b, c = NEWTON_SCHULZ
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    wide = wide / wide.norm().clamp(min=1e-7)
    gram, total = wide @ wide.mT, None
    for _ in range(steps):  # on the small square side only: the long one is multiplied once
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        total = factor if total is None else factor @ total
        gram = factor @ gram @ factor
    found = total @ wide
    return found if matrix.shape[0] <= matrix.shape[1] else found.mT


class Muon(torch.optim.Optimizer):
    """Momentum whose direction is made orthogonal (Jordan et al., 2024), at the size of AdamW's steps.

    torch.optim.Muon iterates in bfloat16, which a CPU without such instructions emulates, tens of times slower than
    float32 here. It also takes the stacked projections to queries, keys and values for one matrix; here a parameter of
    3 n x n is three.
    """

    def __init__(self, parameters, lr: float, weight_decay: float = 0.0, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One step of every matrix that has a gradient."""
        for group in self.param_groups:
            for value in group["params"]:
                if value.grad is None:
                    continue
                state = self.state[value]
                if not state:
                    state["momentum"] = torch.zeros_like(value)
                state["momentum"].lerp_(value.grad, 1 - group["momentum"])
                ahead = value.grad.lerp(state["momentum"], group["momentum"])
                rows, columns = value.shape
                parts = ahead.chunk(3) if rows == 3 * columns else (ahead,)
                size = 0.2 * max(parts[0].shape) ** 0.5  # root mean square of AdamW's steps
                value.mul_(1 - group["lr"] * group["weight_decay"])
                value.sub_(torch.cat([orthogonal(part) for part in parts]), alpha=group["lr"] * size)
