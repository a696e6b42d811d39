"""Weights of 8 or 4 bits: the same decoder with its matrices packed, so that fewer bytes are read for each token.

    int8    a weight is a whole number times its row's scale
    int4    a weight is a whole number from -8 to 7 times the scale of its group of 32; two to a byte. The embedding
            and the head, where rounding costs most, are int8

Only weights are rounded; what they are multiplied with stays as it is.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leveret.errors import UserError
from leveret.inference.kernels import GROUP, library, matrix, product
from leveret.model.decoder import Decoder

Quantisation = Literal["int8", "int4"]
FEW = 32
"""Most inputs that are multiplied with packed weights on a CPU; for more of them they are unpacked once."""


def pack_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers [rows, columns] and scales [rows] of a matrix: each row's largest weight becomes 127."""
    scale = weight.float().abs().amax(dim=1).clamp(min=1e-30) / 127
    return (weight.float() / scale[:, None]).round().to(torch.int8), scale


def pack_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes [rows, groups * 16] and scales [rows, groups] of a matrix.

    The weight farthest from zero becomes -8 or, with a slightly larger scale, -7 or 7; of several such scales each
    group takes the one with the least squared error. Byte j of a group holds weights j (low half) and j + 16, each
    plus 8.
    """
    rows, columns = weight.shape
    groups = F.pad(weight.float(), (0, -columns % GROUP)).view(rows, -1, GROUP)
    farthest = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))
    best = torch.full_like(farthest, torch.inf)
    scale, whole = torch.zeros_like(farthest), torch.zeros_like(groups)
    for divisor in (-8.5, -8.0, -7.5, -7.0, 7.0):
        tried = torch.where(farthest == 0, 1.0, farthest / divisor)
        rounded = (groups / tried).round().clamp(-8, 7)
        error = (rounded * tried - groups).square().sum(dim=2, keepdim=True)
        better = error < best
        best, scale = torch.where(better, error, best), torch.where(better, tried, scale)
        whole = torch.where(better, rounded, whole)
    low, high = (whole + 8).to(torch.uint8).chunk(2, dim=2)
    return (low | high << 4).view(rows, -1), scale[..., 0].contiguous()


def unpack(weight: Tensor, scale: Tensor, columns: int) -> Tensor:
    """The matrix [rows, columns] in float32."""
    if weight.dtype is torch.int8:
        return weight * scale[:, None]
    pairs = weight.view(len(weight), -1, GROUP // 2)
    whole = torch.cat((pairs & 15, pairs >> 4), dim=2).float() - 8
    return (whole * scale[..., None]).flatten(1)[:, :columns]


class Quantised(nn.Module):
    """A packed matrix [rows, columns]; dtype is that of what it gives."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, columns: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.columns, self.dtype = columns, dtype


class QuantisedLinear(Quantised):
    """In place of nn.Linear."""

    def __init__(self, weight: Tensor, scale: Tensor, columns: int, dtype: torch.dtype, bias: Tensor | None) -> None:
        super().__init__(weight, scale, columns, dtype)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        few = x.numel() <= FEW * self.columns
        if few and x.device.type == "cpu" and (kernels := library()) is not None:
            rows = matrix(self.weight, self.scale, None, self.columns)
            y = product(kernels, rows, x.reshape(-1, self.columns)).view(*x.shape[:-1], -1).to(x.dtype)
            return y if self.bias is None else y + self.bias
        return F.linear(x, unpack(self.weight, self.scale, self.columns).to(x.dtype), self.bias)


class QuantisedEmbedding(Quantised):
    """In place of nn.Embedding."""

    def forward(self, ids: Tensor) -> Tensor:
        flat = ids.flatten()
        return unpack(self.weight[flat], self.scale[flat], self.columns).to(self.dtype).view(*ids.shape, -1)


def quantise(model: Decoder, bits: Quantisation) -> Decoder:
    """Packs the decoder's matrices and tables, in place; norms, biases and learned positions stay. Returns it.

    Raises:
        UserError: a weight is not finite.
    """
    done: dict[int, tuple[Tensor, Tensor]] = {}  # tied weights are packed once
    for name, module in list(model.named_modules()):
        if type(module) not in (nn.Linear, nn.Embedding) or name == "embed_positions" or "value_gate" in name:
            continue
        weight = module.weight.detach()
        if id(module.weight) not in done:
            if not weight.isfinite().all():
                raise UserError(f"{name} has weights that are not finite, which cannot be quantised")
            table = bits == "int8" or len(weight) == model.config.vocabulary
            done[id(module.weight)] = pack_int8(weight) if table else pack_int4(weight)
        packed = (*done[id(module.weight)], weight.shape[1], weight.dtype)
        parent = model.get_submodule(name.rpartition(".")[0])
        bias = getattr(module, "bias", None)
        setattr(
            parent,
            name.rpartition(".")[2],
            QuantisedEmbedding(*packed) if isinstance(module, nn.Embedding) else QuantisedLinear(*packed, bias),
        )
    return model
