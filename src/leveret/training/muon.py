"""Muon: momentum whose matrices are made orthogonal before they are applied (Jordan et al., 2024)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from leveret.training.sharded import spread_like, whole
from leveret.training.skipping import step_there, undone_if_skipped

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration, from the paper."""
NOTHING_YET = -1.0
"""Stands for a mean square before the first one."""

Share = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
"""Does some work on a stack of matrices, perhaps a part of it on each rank."""


def alone(work: Callable[[Tensor], Tensor], stack: Tensor) -> Tensor:
    """All of it here."""
    return work(stack)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for the matrices; AdamW, given ready, for everything else.

    A matrix of several fused projections is taken apart first; one of which ranks hold a share each is gathered. The
    update is scaled to the root mean square of AdamW's, 0.2 sqrt(max(rows, columns)) (Liu et al., 2025), so that both
    take like learning rates and weight decay.

    Args:
        groups: of matrices, each with its "lr_scale".
        rows: for each matrix, the rows of each projection in it.
        iterations: of Newton-Schulz.
        variance: decay of each output neuron's mean square of the update, by whose root it is divided (NorMuon: Li et
            al., 2025); None: not done.
        cautious: decay only what the update makes smaller too (Chen et al., 2025).
        dtype: of the iterations' products.
        share: how several ranks, which have the same gradients, share the iterations.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        rows: dict[nn.Parameter, list[int]],
        rest: torch.optim.Optimizer,
        *,
        momentum: float,
        weight_decay: float,
        iterations: int = 5,
        variance: float | None = None,
        cautious: bool = False,
        dtype: torch.dtype = torch.bfloat16,
        share: Share = alone,
    ) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": momentum, "weight_decay": weight_decay})
        self.rows, self.iterations, self.dtype, self.share = rows, iterations, dtype, share
        self.variance, self.cautious = variance, cautious
        self.own = list(self.param_groups)
        self.rest = rest
        self.param_groups += rest.param_groups
        rest.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}  # (where the direction goes, update), lying wide
        moves: list[tuple[nn.Parameter, Tensor, dict[str, Any]]] = []
        for group in self.own:
            for matrix in group["params"]:
                momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                with undone_if_skipped(self, momentum):
                    momentum.lerp_(matrix.grad, 1 - group["momentum"])
                ahead = whole(matrix.grad.lerp(momentum, group["momentum"]))  # Nesterov's
                direction = torch.empty_like(ahead)
                moves.append((matrix, direction, group))
                for place, update in zip(*(x.split(self.rows[matrix]) for x in (direction, ahead)), strict=True):
                    pair = (place.T, update.T) if place.shape[0] > place.shape[1] else (place, update)
                    alike.setdefault(pair[0].shape, []).append(pair)
        for pairs in alike.values():
            together = torch.stack([update for _, update in pairs]).to(self.dtype)
            directions = self.share(lambda some: orthogonalise(some, self.iterations), together)
            for (place, _), found in zip(pairs, directions, strict=True):
                place.copy_(found)
        for matrix, direction, group in moves:
            self._apply(matrix, direction, group["lr"], group["weight_decay"])
        if (skipped := getattr(self, "found_inf", None)) is None:
            self.rest.step()
        else:
            step_there(skipped == 0, self.rest)

    def _apply(self, matrix: nn.Parameter, direction: Tensor, lr: float, weight_decay: float) -> None:
        """Decays the matrix and moves it against the orthogonal directions of its projections."""
        rows = self.rows[matrix]
        if self.variance is not None:
            squares = direction.square().mean(1, keepdim=True)  # of each output neuron
            kept = self.state[matrix].setdefault("variance", torch.full_like(squares, NOTHING_YET))
            with undone_if_skipped(self, kept):
                kept.copy_(torch.where(kept == NOTHING_YET, squares, kept.lerp(squares, 1 - self.variance)))
            for part, mean in zip(direction.split(rows), kept.split(rows), strict=True):
                size = part.norm()
                part.div_(mean.sqrt().add_(1e-8))
                part.mul_(size / part.norm().clamp_min(1e-8))
        with undone_if_skipped(self, matrix):
            moved = whole(matrix.detach())  # the matrix itself, if no ranks hold a share of it each
            if self.cautious:
                moved.sub_(moved * (direction * moved > 0), alpha=lr * weight_decay)
            else:
                moved.mul_(1 - lr * weight_decay)
            for part, update in zip(moved.split(rows), direction.split(rows), strict=True):
                part.add_(update, alpha=-lr * 0.2 * max(part.shape) ** 0.5)
            matrix.copy_(spread_like(moved, matrix))


def orthogonalise(wide: Tensor, iterations: int = 5) -> Tensor:
    """Nearly the closest matrices with orthonormal rows, by Newton-Schulz. [N, m, n], m <= n, to the same.

    Many at once, because one of a small model is too little work to share among cores. The largest singular value is
    brought near 1 by the root of the Gram matrix's norm, which is at hand and bounds it closer than the matrix's own
    norm does: what is saved is about one iteration.
    """
    a, b, c = COEFFICIENTS
    x: Tensor = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    gram = torch.bmm(x, x.mT)
    bound = gram.norm(dim=(1, 2), keepdim=True) + 1e-7
    x, gram = x / bound.sqrt(), gram / bound
    for number in range(iterations):
        if number > 0:
            gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
