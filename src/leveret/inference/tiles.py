"""Float32 products of many tokens on processors with tiles of bfloat16 (tiles.c), several times torch's speed there."""

from __future__ import annotations

import ctypes
from functools import cache as once
from pathlib import Path

import torch
from torch import Tensor, nn

from leveret.hardware.native import compiled, instructions
from leveret.model.decoder import Decoder, hollow_decoder

NEEDED = {"amx_tile", "amx_bf16"}
SIDE, CHUNK = 32, 256
"""Rows and columns are filled up to a multiple of SIDE; rows of x that are packed at once. As in tiles.c."""


@once
def library() -> ctypes.CDLL | None:
    """The compiled product; None without such a processor, its system's leave, or a compiler."""
    if not instructions() >= NEEDED:
        return None
    found = compiled(Path(__file__).with_name("tiles.c"))
    return found if found is not None and found.permitted() == 0 else None


def _room(rows: int, columns: int) -> Tensor:
    """For a packed matrix: two halves of each number."""
    up = [-(-count // SIDE) * SIDE for count in (rows, columns)]
    return torch.empty(2 * up[0] * up[1], dtype=torch.bfloat16)


class TiledLinear(nn.Module):
    """In place of nn.Linear in float32 on a CPU. Its matrix is packed, in as many bytes as before."""

    def __init__(self, kernels: ctypes.CDLL, linear: nn.Linear) -> None:
        super().__init__()
        self._kernels, self.bias = kernels, linear.bias
        weight = linear.weight.detach().contiguous()
        self.rows, self.columns = weight.shape
        self.packed = _room(self.rows, self.columns)
        kernels.pack(_address(weight), ctypes.c_long(self.rows), ctypes.c_long(self.columns), _address(self.packed))

    def forward(self, x: Tensor) -> Tensor:
        x_NC = x.reshape(-1, self.columns).contiguous()
        scratch, y = _room(min(len(x_NC), CHUNK), self.columns), torch.empty(len(x_NC), self.rows)
        sizes = (ctypes.c_long(size) for size in (len(x_NC), self.columns, self.rows))
        self._kernels.product(*map(_address, (self.packed, x_NC, scratch, y)), *sizes, torch.get_num_threads())
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], -1)


def _address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def tiled(model: Decoder) -> Decoder | None:
    """The same decoder for reading many tokens at once, with weights of its own; None where torch is the way.

    A number is taken as two bfloat16s, which differ from it by up to 2^-17 of its size.
    """
    copy, state = hollow_decoder(model.config), model.state_dict()
    if copy.state_dict().keys() != state.keys():  # packed weights, or adapters
        return None
    if any(weight.dtype is not torch.float32 or weight.device.type != "cpu" for weight in state.values()):
        return None
    if (kernels := library()) is None:
        return None
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    copy.load_state_dict(state, assign=True)
    for name, linear in linears.items():
        parent, _, last = name.rpartition(".")
        setattr(copy.get_submodule(parent), last, TiledLinear(kernels, linear))
    return copy.eval()
