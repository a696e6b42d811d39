"""AdamW (Loshchilov and Hutter, 2019) written out, for devices and moments that torch's fused kernels do not know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from leveret.training.skipping import undone_if_skipped


class AdamW(torch.optim.Optimizer):
    """torch.optim.AdamW's update and names of its state, a parameter at a time, nothing on the host.

    torch's own without a fused kernel keeps step counts on the host and refuses found_inf; its fused kernel for MPS
    overlooks found_inf.
    """

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
            state.update(self.pack(*(torch.zeros_like(gradient) for _ in range(3))))
        with undone_if_skipped(self, parameter, *state.values()):
            state["step"] += 1
            mean, square = self.unpack(state, gradient.shape)
            mean.lerp_(gradient, 1 - beta1)
            square.lerp_(gradient.square(), 1 - beta2)
            root = square.sqrt()
            corrected = root.div(torch.sqrt(1 - beta2 ** state["step"])).add_(group["eps"])
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.sub_(torch.div(mean, corrected, out=corrected).mul_(group["lr"] / (1 - beta1 ** state["step"])))
            for key, value in self.pack(mean, square, root).items():
                state[key].copy_(value)

    def pack(self, mean: Tensor, square: Tensor, root: Tensor) -> dict[str, Tensor]:
        """The moments as they are kept. root: of the square."""
        return {"exp_avg": mean, "exp_avg_sq": square}

    def unpack(self, state: dict[str, Tensor], shape: torch.Size) -> tuple[Tensor, Tensor]:
        """The mean of the gradient and of its square, in float32, to be changed; perhaps the state's own tensors."""
        return state["exp_avg"], state["exp_avg_sq"]
