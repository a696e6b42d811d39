"""Steps that are passed over on the device: whether a step counts is a number there, and nobody waits for it.

    good --> found_inf of the optimizer --> every tensor keeps its old bits (torch.where), or takes its new ones

`found_inf` (1.0: pass over) is what torch's fused kernels look at by themselves; our own optimizers look at it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def step_if(good: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One update if `good`, a bool scalar on the device; else weights, moments and step counts keep every bit.

    The optimizer is one of make_optimizer's or a fused one of torch's. On a CPU, where looking costs nothing, a step
    that is passed over is not taken at all.
    """
    if good.device.type != "cpu":
        step_there(good, optimizer)
    elif good:
        optimizer.step()


def step_there(good: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """step_if, decided on the device: the whole step is computed, and its results are taken or not."""
    optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]


@contextmanager
def undone_if_skipped(optimizer: torch.optim.Optimizer, *tensors: Tensor) -> Iterator[None]:
    """Undoes what is done to these tensors inside, in a step that is passed over. For the step() of an optimizer."""
    skipped: Tensor | None = getattr(optimizer, "found_inf", None)
    if skipped is None:
        yield
        return
    before = [tensor.clone() for tensor in tensors]
    yield
    for tensor, old in zip(tensors, before, strict=True):
        tensor.copy_(torch.where(skipped > 0, old, tensor))
