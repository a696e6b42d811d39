"""Steps that are passed over on the device: whether a step counts is a number there, and nobody waits for it.

    good --> found_inf of the optimizer --> every tensor keeps its old bits (torch.where), or takes its new ones

`found_inf` (1.0: pass over) is what torch's fused kernels look at by themselves; our own optimizers look at it too.
"""

from __future__ import annotations

import torch
from torch import Tensor


def step_if(good: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One update if `good`, a bool scalar on the device; else weights, moments and step counts keep every bit.

    The optimizer is one of make_optimizer's or a fused one of torch's. State that a first step makes is made, as it
    is before any step.
    """
    optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]


def unless_skipped(optimizer: torch.optim.Optimizer, new: Tensor, old: Tensor) -> Tensor:
    """The new values, or the old ones in a step that is passed over. For the step() of an optimizer."""
    skipped: Tensor | None = getattr(optimizer, "found_inf", None)
    return new if skipped is None else torch.where(skipped > 0, old, new)
