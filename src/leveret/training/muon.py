"""Muon: momentum whose matrices are made orthogonal before they are applied (Jordan et al., 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration, from the paper."""


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for the matrices; AdamW, given ready, for everything else.

    A matrix of several fused projections is taken apart first: `rows` gives, for each matrix, the rows of each
    projection. The update is scaled to the root mean square of AdamW's, 0.2 sqrt(max(rows, columns)) (Liu et al.,
    2025), so that both take like learning rates and weight decay.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        rows: list[list[int]],
        rest: torch.optim.AdamW,
        *,
        lr_scale: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        defaults = {"lr": 0.0, "lr_scale": lr_scale, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(matrices, defaults)
        self.rows = dict(zip(matrices, rows, strict=True))
        self.rest = rest
        self.matrices = self.param_groups[0]
        self.param_groups += rest.param_groups
        rest.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        group = self.matrices
        for matrix in group["params"]:
            momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
            momentum.lerp_(matrix.grad, 1 - group["momentum"])
            ahead = matrix.grad.lerp(momentum, group["momentum"])  # Nesterov's
            matrix.mul_(1 - group["lr"] * group["weight_decay"])
            rows = self.rows[matrix]
            for part, update in zip(matrix.split(rows), ahead.split(rows), strict=True):
                size = 0.2 * max(update.shape) ** 0.5
                part.add_(orthogonalise(update).to(part.dtype), alpha=-group["lr"] * size)
        self.rest.step()


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearly the closest matrix with orthonormal rows or columns, by Newton-Schulz in bfloat16. [m, n] -> [m, n]."""
    a, b, c = COEFFICIENTS
    x: Tensor = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x
