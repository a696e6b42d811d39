"""The optimizer and its state under stable names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leveret.training.config import OptimizerConfig


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW in two groups: matrices with weight decay, and the rest (norms, biases, perhaps tables) without."""
    decayed: list[nn.Parameter] = []
    level: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_table = name.startswith("embed_")
        decay = parameter.dim() > 1 and (config.decay_embeddings or not is_table)
        (decayed if decay else level).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": level, "weight_decay": 0.0},
    ]
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor of the optimizer's state as "parameter name/key"."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """The inverse of optimizer_state."""
    for name, parameter in model.named_parameters():
        mine = {key.rpartition("/")[2]: value for key, value in state.items() if key.rpartition("/")[0] == name}
        # Step counts stay where fused AdamW keeps them: on the parameter's device.
        optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in mine.items()}
