"""AdamW whose two moments take a byte a number each, for memory that is short (after Dettmers et al., 2021).

Numbers are kept in blocks, each scaled by its largest: the mean by the square of a signed byte, so that small numbers
keep their precision, and the root of the mean square, which is what the update divides by, rounded up, so that it is
never zero where a gradient has been.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 128
"""Numbers that share a scale, of four bytes."""


class AdamW8bit(torch.optim.Optimizer):
    """torch.optim.AdamW's update on moments of eight bits; small tensors, of norms and biases, keep all 32."""

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad.float(), group)

    def _update(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            for moment in ("mean", "root"):
                state.update(_pack(moment, torch.zeros_like(gradient)))
        state["step"] += 1
        mean, root = (_unpack(moment, state, gradient.shape) for moment in ("mean", "root"))
        mean.lerp_(gradient, 1 - beta1)
        square = root.square_().lerp_(gradient.square(), 1 - beta2)
        root = square.sqrt_()
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        corrected = root / torch.sqrt(1 - beta2 ** state["step"]) + group["eps"]
        parameter.sub_(mean / corrected * (group["lr"] / (1 - beta1 ** state["step"])))
        state.update(_pack("mean", mean) | _pack("root", root))


def _pack(moment: str, numbers: Tensor) -> dict[str, Tensor]:
    """A moment as it is kept: bytes and scales, or itself where it is small."""
    if numbers.numel() < 32 * BLOCK:
        return {moment: numbers}
    blocks = F.pad(numbers.flatten(), (0, -numbers.numel() % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1, keepdim=True)
    shares = blocks / scales.clamp_min(torch.finfo(torch.float32).tiny)  # -1 to 1
    if moment == "mean":
        kept = (shares.abs().sqrt() * 127).round().copysign(shares).to(torch.int8)
    else:
        kept = (shares * 255).ceil().to(torch.uint8)
    return {moment: kept, f"{moment}_scale": scales}


def _unpack(moment: str, state: dict[str, Tensor], shape: torch.Size) -> Tensor:
    """The moment in float32."""
    if f"{moment}_scale" not in state:
        return state[moment]
    kept, scales = state[moment].float(), state[f"{moment}_scale"]
    shares = kept * kept.abs() / 127**2 if moment == "mean" else kept / 255
    return (shares * scales).flatten()[: shape.numel()].view(shape)
