"""The optimizer and its state under stable names."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from leveret.errors import UserError
from leveret.model.decoder import Decoder
from leveret.model.lora import projections
from leveret.model.weights import projection_rows
from leveret.training.adamw import AdamW
from leveret.training.adamw8bit import AdamW8bit
from leveret.training.config import OptimizerConfig
from leveret.training.muon import Muon, Share, alone
from leveret.training.sharded import spread_like


def make_optimizer(
    model: Decoder, config: OptimizerConfig, dtype: torch.dtype = torch.float32, share: Share = alone
) -> torch.optim.Optimizer:
    """The optimizer that the config names, over all parameters of the model that are not frozen.

    Args:
        dtype: of the model's products. Muon's are bfloat16 where they are, else float32.
        share: how ranks share Muon's work.

    Raises:
        UserError: lr_scales names what the model does not have.
    """
    named = _learnt(model)
    for pattern in config.lr_scales:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise UserError(
                f"optimizer.lr_scales: no parameter is called {pattern!r}; there are {', '.join(named)[:200]}"
            )
    if config.kind != "muon":
        return _adamw(named, config)
    matrices = {name: p for name, p in named.items() if name.startswith("layers.") and p.dim() == 2}
    adapters, own = projections(model), dict[float, list[nn.Parameter]]()
    for name, matrix in matrices.items():
        own.setdefault(_scale(name, config), []).append(matrix)
    peak = (config.muon_lr or config.lr) / config.lr
    return Muon(
        [{"params": some, "lr_scale": peak * scale} for scale, some in own.items()],
        {p: adapters.get(name) or projection_rows(name, p.shape[0], model.config) for name, p in matrices.items()},
        _adamw({name: p for name, p in named.items() if name not in matrices}, config),
        momentum=config.muon_momentum,
        weight_decay=config.weight_decay,
        iterations=config.muon_iterations,
        variance=config.muon_variance,
        cautious=config.cautious_decay,
        dtype=torch.bfloat16 if dtype is torch.bfloat16 else torch.float32,
        share=share,
    )


def _learnt(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are not frozen, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _scale(name: str, config: OptimizerConfig) -> float:
    return next((scale for pattern, scale in config.lr_scales.items() if fnmatchcase(name, pattern)), 1.0)


def _adamw(named: dict[str, nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW in groups of equal weight decay and rate: matrices decay; norms, biases and perhaps tables do not."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        decays = parameter.dim() > 1 and (config.decay_embeddings or "embed" not in name)
        key = (config.weight_decay if decays else 0.0, _scale(name, config))
        groups.setdefault(key, []).append(parameter)
    settings: list[dict[str, Any]] = [
        {"params": some, "weight_decay": decay, "lr_scale": scale} for (decay, scale), some in groups.items()
    ]
    if not settings:  # Muon has them all
        settings = [{"params": []}]
    if config.kind == "adamw8bit":
        return AdamW8bit(settings, lr=config.lr, betas=config.betas, eps=config.eps)
    if any(parameter.device.type not in ("cpu", "cuda") for parameter in named.values()):
        return AdamW(settings, lr=config.lr, betas=config.betas, eps=config.eps)
    return torch.optim.AdamW(settings, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


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
    if not state:  # of before the first good step
        return
    learnt = _learnt(model)
    if strangers := learnt.keys() ^ {key.rpartition("/")[0] for key in state}:
        raise UserError(f"the checkpoint's optimizer state does not fit the model: {', '.join(sorted(strangers)[:3])}")
    for name, parameter in learnt.items():
        mine = {key.rpartition("/")[2]: value for key, value in state.items() if key.rpartition("/")[0] == name}
        # Step counts stay where fused AdamW keeps them: on the parameter's device.
        optimizer.state[parameter] = {key: spread_like(value, parameter) for key, value in mine.items()}
