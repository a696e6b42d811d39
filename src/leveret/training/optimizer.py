"""The optimizer and its state under stable names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leveret.errors import UserError
from leveret.model.decoder import Decoder
from leveret.model.weights import projection_rows
from leveret.training.config import OptimizerConfig
from leveret.training.muon import Muon


def make_optimizer(model: Decoder, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer that the config names, over all parameters of the model."""
    named = dict(model.named_parameters())
    if config.kind == "adamw":
        return _adamw(named, config)
    matrices = {name: p for name, p in named.items() if name.startswith("layers.") and p.dim() == 2}
    rest = {name: p for name, p in named.items() if name not in matrices}
    return Muon(
        list(matrices.values()),
        [projection_rows(name, parameter.shape[0], model.config) for name, parameter in matrices.items()],
        _adamw(rest, config),
        lr_scale=(config.muon_lr or config.lr) / config.lr,
        momentum=config.muon_momentum,
        weight_decay=config.weight_decay,
    )


def _adamw(named: dict[str, nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW in two groups: matrices with weight decay, and the rest (norms, biases, perhaps tables) without."""
    decayed: list[nn.Parameter] = []
    level: list[nn.Parameter] = []
    for name, parameter in named.items():
        is_table = name.startswith("embed_")
        decay = parameter.dim() > 1 and (config.decay_embeddings or not is_table)
        (decayed if decay else level).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": level, "weight_decay": 0.0},
    ]
    fused = next(iter(named.values())).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor of the optimizer's state as "parameter name/key"."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """The inverse of optimizer_state.

    Raises:
        UserError: the state is of another model.
    """
    names = {name for name, _ in model.named_parameters()}
    if strangers := names ^ {key.rpartition("/")[0] for key in state}:
        raise UserError(f"the checkpoint's optimizer state does not fit the model: {', '.join(sorted(strangers)[:3])}")
    for name, parameter in model.named_parameters():
        mine = {key.rpartition("/")[2]: value for key, value in state.items() if key.rpartition("/")[0] == name}
        # Step counts stay where fused AdamW keeps them: on the parameter's device.
        optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in mine.items()}
