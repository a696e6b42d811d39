"""kernels.c from Python: its structures, its library, and its product."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from leveret.hardware.native import compiled

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.uint8: 3}
"""By the dtype that weights, keys and values are kept in; int4 is two to a byte of uint8."""
GROUP = 32
"""int4 weights that share a scale."""
WORTH_A_THREAD = 250_000
"""Weights times tokens: with less to do, threads wait for each other longer than they work."""

Pointers = ctypes.c_void_p
Integers = ctypes.c_int


class Matrix(ctypes.Structure):
    _fields_ = [(name, Pointers) for name in ("weight", "scale", "bias")] + [
        (name, Integers) for name in ("rows", "columns", "kind")
    ]


class Norm(ctypes.Structure):
    _fields_ = [(name, Pointers) for name in ("weight", "bias")]


class Layer(ctypes.Structure):
    _fields_ = [
        *((name, Norm) for name in ("before_attention", "before_mlp")),
        *((name, Pointers) for name in ("q_norm", "k_norm")),
        *((name, Matrix) for name in ("qkv", "out", "up", "down")),
        ("window", Integers),
    ]


class Model(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.POINTER(Layer)),
        *((name, Matrix) for name in ("tokens", "positions", "head")),
        ("final", Norm),
        *((name, Pointers) for name in ("cosines", "sines")),
        *((name, ctypes.c_float) for name in ("epsilon", "softcap")),
        *((name, Integers) for name in ("count", "heads", "kv_heads", "width")),
        *((name, Integers) for name in ("mlp", "residual", "layer_norm", "interleaved")),
    ]


class Cache(ctypes.Structure):
    _fields_ = [(name, Pointers) for name in ("keys", "values")] + [
        (name, Integers) for name in ("kind", "rows", "capacity")
    ]


class Batch(ctypes.Structure):
    _fields_ = [
        *((name, Pointers) for name in ("ids", "rows", "positions", "wanted", "logits")),
        *((name, Pointers) for name in ("stream", "normed", "heads", "attended", "wide", "inner", "scores")),
        *((name, Integers) for name in ("count", "wanted_count", "threads")),
    ]


def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they cannot be had, as one line has said then."""
    return compiled(Path(__file__).with_name("kernels.c"))


def address(tensor: Tensor | None) -> int | None:
    """Where a tensor begins, for a pointer; the caller keeps the tensor."""
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def matrix(weight: Tensor, scale: Tensor | None, bias: Tensor | None, columns: int) -> Matrix:
    return Matrix(address(weight), address(scale), address(bias), len(weight), columns, KINDS[weight.dtype])


def threads_for(work: int) -> int:
    """Of torch's threads as many as this many weights times tokens are worth."""
    return max(1, min(torch.get_num_threads(), work // WORTH_A_THREAD))


def product(library: ctypes.CDLL, weight: Matrix, x_NC: Tensor) -> Tensor:
    """x [N, columns] times the transpose of a matrix [rows, columns], in float32."""
    x_NC = x_NC.float().contiguous()
    y = torch.empty(len(x_NC), weight.rows)
    threads = threads_for(weight.rows * x_NC.numel())
    library.product(ctypes.byref(weight), Pointers(x_NC.data_ptr()), len(x_NC), Pointers(y.data_ptr()), threads)
    return y
