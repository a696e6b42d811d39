"""Cross-entropy of a linear head, a chunk of rows at a time, so that the logits of a batch never exist at once.

    hidden [N, C] --chunk--> logits [n, V] --> loss, and at once its gradient --> hidden's and the head's gradients

The gradients are made in the forward pass, while a chunk's logits are at hand (as Liger's kernel does: Hsu et al.,
2024), so that nothing is computed twice: three products, as without chunks. Where every row's loss is wanted for
itself, what becomes of it is not known yet, and a chunk's logits are made again in the backward pass: four products.
A head that is frozen has no gradient made, which is one product less.

N rows, C hidden size, V vocabulary, n rows of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leveret.errors import UserError

CHUNK_NUMBERS = {"cpu": 2**24, "cuda": 2**26, "mps": 2**24}
"""Most logits that exist at once, by device: enough to keep the device busy, little beside the rest."""


def chunk_rows(vocabulary: int, device: str) -> int:
    """Rows of a chunk."""
    return max(1, CHUNK_NUMBERS.get(device, 2**24) // vocabulary)


def linear_cross_entropy(
    hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, ignored: int, softcap: float | None = None
) -> Tensor:
    """Sum of the cross-entropies of hidden @ weight.T, in nats, at least in float32; rows of target `ignored` count 0.

    Under autocast products are in its dtype, softmax in float32. softcap: logits are softcap * tanh(logits / softcap).
    """
    device = hidden_NC.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_NC.dtype
    rows = chunk_rows(len(weight_VC), device)
    if torch.is_grad_enabled() and (hidden_NC.requires_grad or weight_VC.requires_grad):
        return _Chunked.apply(hidden_NC, weight_VC, targets_N, ignored, softcap, dtype, rows)  # type: ignore
    weight = weight_VC.to(dtype)
    total = hidden_NC.new_zeros((), dtype=torch.promote_types(dtype, torch.float32))
    for hidden, targets in zip(hidden_NC.to(dtype).split(rows), targets_N.split(rows), strict=True):
        logits = _logits(hidden, weight, softcap)
        total = total + F.cross_entropy(logits, targets, ignore_index=ignored, reduction="sum")
    return total


def linear_token_losses(
    hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, ignored: int, softcap: float | None = None
) -> Tensor:
    """The cross-entropy of every row, [N], as linear_cross_entropy sums them; 0 where the target is `ignored`."""
    device = hidden_NC.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_NC.dtype
    rows = chunk_rows(len(weight_VC), device)
    return _Each.apply(hidden_NC, weight_VC, targets_N, ignored, softcap, dtype, rows)  # type: ignore


def liger_cross_entropy(
    hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, ignored: int, softcap: float | None = None
) -> Tensor:
    """The same by Liger's Triton kernel, on a GPU.

    Raises:
        UserError: there is no GPU, or liger-kernel is not installed.
    """
    if hidden_NC.device.type != "cuda":
        raise UserError(f"loss_kernel liger needs a GPU, and the device is {hidden_NC.device.type}; use chunked")
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError:
        raise UserError("loss_kernel liger needs liger-kernel: pip install 'leveret[gpu]'") from None
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else hidden_NC.dtype
    kernel = LigerFusedLinearCrossEntropyLoss(ignore_index=ignored, reduction="sum", softcap=softcap)
    return kernel(weight_VC.to(dtype), hidden_NC.to(dtype), targets_N).float()  # type: ignore[no-any-return]


def _logits(hidden: Tensor, weight: Tensor, softcap: float | None) -> Tensor:
    """[n, V], in float32 at least."""
    logits = hidden @ weight.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _chunk(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignored: int, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """The losses of a chunk [n] and the gradient of their sum with respect to the product [n, V], in float32."""
    logits = _logits(hidden, weight, softcap)
    learnt = targets != ignored
    places = torch.where(learnt, targets, 0)[:, None]
    normaliser = logits.logsumexp(1, keepdim=True)
    losses = torch.where(learnt, (normaliser - logits.gather(1, places))[:, 0], 0)
    # Compared, not scattered, so that a compiler makes it in the pass that makes the exponentials.
    right = torch.arange(logits.shape[1], dtype=torch.int32, device=logits.device) == places.int()
    gradient = torch.exp(logits - normaliser) - right.to(logits.dtype)
    if softcap is not None:
        gradient = gradient * (1 - (logits / softcap).square())
    gradient = torch.where(learnt[:, None], gradient, 0)
    return losses, gradient


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NC: Tensor,
        weight_VC: Tensor,
        targets_N: Tensor,
        ignored: int,
        softcap: float | None,
        dtype: torch.dtype,
        rows: int,
    ) -> Tensor:
        wide = torch.promote_types(dtype, torch.float32)
        weight = weight_VC.to(dtype)
        total = hidden_NC.new_zeros((), dtype=wide)
        weight_gradient = torch.zeros_like(weight_VC, dtype=wide) if ctx.needs_input_grad[1] else None
        hidden_gradients = []
        for hidden, targets in zip(hidden_NC.to(dtype).split(rows), targets_N.split(rows), strict=True):
            losses, gradient = _chunk(hidden, weight, targets, ignored, softcap)
            total, gradient = total + losses.sum(), gradient.to(dtype)
            hidden_gradients.append(gradient @ weight)
            if weight_gradient is not None:
                weight_gradient += gradient.T @ hidden
        ctx.save_for_backward(torch.cat(hidden_gradients), weight_gradient)
        ctx.dtypes = hidden_NC.dtype, weight_VC.dtype
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        of_hidden, of_weight = ctx.dtypes
        hidden = (hidden_gradient * scale.to(hidden_gradient.dtype)).to(of_hidden)
        head = None if weight_gradient is None else (weight_gradient * scale).to(of_weight)
        return hidden, head, None, None, None, None, None


class _Each(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NC: Tensor,
        weight_VC: Tensor,
        targets_N: Tensor,
        ignored: int,
        softcap: float | None,
        dtype: torch.dtype,
        rows: int,
    ) -> Tensor:
        weight, parts = weight_VC.to(dtype), []
        for hidden, targets in zip(hidden_NC.to(dtype).split(rows), targets_N.split(rows), strict=True):
            logits = _logits(hidden, weight, softcap)
            parts.append(F.cross_entropy(logits, targets, ignore_index=ignored, reduction="none"))
        ctx.save_for_backward(hidden_NC, weight_VC, targets_N)
        ctx.how = ignored, softcap, dtype, rows
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, scale_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NC, weight_VC, targets_N = ctx.saved_tensors
        ignored, softcap, dtype, rows = ctx.how
        weight = weight_VC.to(dtype)
        wide = torch.promote_types(dtype, torch.float32)
        weight_gradient = torch.zeros_like(weight_VC, dtype=wide) if ctx.needs_input_grad[1] else None
        hidden_gradients = []
        chunks = (hidden_NC.to(dtype).split(rows), targets_N.split(rows), scale_N.split(rows))
        for hidden, targets, scale in zip(*chunks, strict=True):
            _, gradient = _chunk(hidden, weight, targets, ignored, softcap)
            gradient = (gradient * scale[:, None]).to(dtype)
            hidden_gradients.append(gradient @ weight)
            if weight_gradient is not None:
                weight_gradient += gradient.T @ hidden
        hidden_gradient = torch.cat(hidden_gradients).to(hidden_NC.dtype)
        head = None if weight_gradient is None else weight_gradient.to(weight_VC.dtype)
        return hidden_gradient, head, None, None, None, None, None
