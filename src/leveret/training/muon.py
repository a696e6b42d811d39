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
        alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}  # (projection, update), lying wide
        for matrix in group["params"]:
            momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
            momentum.lerp_(matrix.grad, 1 - group["momentum"])
            ahead = matrix.grad.lerp(momentum, group["momentum"])  # Nesterov's
            matrix.mul_(1 - group["lr"] * group["weight_decay"])
            rows = self.rows[matrix]
            for part, update in zip(matrix.split(rows), ahead.split(rows), strict=True):
                pair = (part.T, update.T) if part.shape[0] > part.shape[1] else (part, update)
                alike.setdefault(pair[0].shape, []).append(pair)
        for (_, width), pairs in alike.items():
            directions = orthogonalise(torch.stack([update for _, update in pairs]))
            for (part, _), direction in zip(pairs, directions, strict=True):
                part.add_(direction.to(part.dtype), alpha=-group["lr"] * 0.2 * width**0.5)
        self.rest.step()


def orthogonalise(wide: Tensor, steps: int = 5) -> Tensor:
    """Nearly the closest matrices with orthonormal rows, by Newton-Schulz in bfloat16. [N, m, n], m <= n, to the same.

    Many at once, because one of a small model is too little work to share among cores.
    """
    a, b, c = COEFFICIENTS
    x = wide.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
