"""Products of the blocks in float8 (Micikevicius et al., 2022), by torchao."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from leveret.errors import UserError
from leveret.hardware.device import device_name
from leveret.model.decoder import Decoder

CAPABILITY = (8, 9)
"""Of the first GPUs with float8 products: Ada, then Hopper."""
MULTIPLE = 16
"""Rows and columns of a matrix must be multiples of this."""


def fits_float8(module: nn.Module, _: str = "") -> bool:
    """Whether it is a linear layer of a shape that float8 kernels take."""
    return isinstance(module, nn.Linear) and not (module.in_features % MULTIPLE or module.out_features % MULTIPLE)


def to_float8(model: Decoder, device: torch.device) -> None:
    """Replaces the blocks' linear layers by torchao's; parameters, names and the head stay as they are.

    Raises:
        UserError: the device has no float8 products, or torchao is not there.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < CAPABILITY:
        raise UserError(
            "precision fp8 needs an NVIDIA GPU of compute capability 8.9 or later, and this is "
            f"{device_name(device)}; set precision: auto"
        )
    try:
        float8: Any = importlib.import_module("torchao.float8")
    except ImportError:
        raise UserError("precision fp8 needs torchao: pip install 'leveret[gpu]', or set precision: auto") from None
    float8.convert_to_float8_training(model.layers, module_filter_fn=fits_float8)
