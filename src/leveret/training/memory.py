"""What a training step holds in memory, by part, from shapes alone; and how many rows of it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import torch

from leveret.model.config import ModelConfig
from leveret.model.counts import count_parameters
from leveret.model.decoder import hollow_decoder
from leveret.model.layers import PLAIN_KEYS
from leveret.model.lora import adapted, count_lora
from leveret.training.config import TrainingConfig
from leveret.training.cross_entropy import chunk_rows

MUON_WORK = 18
"""Bytes that a step of Muon takes for each number it updates: the update and its stacks in float32 and bfloat16."""
USABLE = 0.6
"""Share of the memory there is that an estimate may come to: the C allocator leaves gaps between activations, and the
peaks of benchmarks/train_memory.py were up to 1.4 times the estimates."""


def training_memory(
    model: ModelConfig, config: TrainingConfig, length: int, rows: int, dtype: torch.dtype, device: torch.device
) -> dict[str, int]:
    """Bytes that training holds at its peak, by part, for micro-batches of that many rows.

    Weights, gradients and the optimizer's moments are float32, the last two only of what is learnt; `copies` are the
    weights cast to the products' dtype. Logits exist for one chunk of rows at a time, several times over, beside the
    head's gradient and that of the hidden states. `update` is what Muon works on when activations are gone, as far as
    it is more than those. Compiled code keeps less.
    """
    total = count_parameters(model).total
    lora, learnt = config.adapters, learnt_numbers(model, config)
    matrices = _muon_numbers(model, config) if config.optimizer.kind == "muon" else 0
    chunk = min(chunk_rows(model.vocabulary, device.type), rows * length)
    head = model.vocabulary * model.hidden_size if lora is None else 0
    kept, a_layer = (
        activation_bytes(model, length, dtype, device, recompute, config.document_mask)
        for recompute in ("none", config.gradient_checkpointing)
    )
    layers = model.num_hidden_layers * a_layer
    if lora is not None and config.gradient_checkpointing != "full":  # what is between A and B
        layers += dtype.itemsize * lora.rank * sum(len(parts) for _, parts in adapted(model, lora).values())
    parts = {
        "weights": 4 * total,
        "gradients": 4 * learnt,
        "optimizer": optimizer_bytes(model, config),
        "copies": 0 if dtype is torch.float32 else dtype.itemsize * total,
        "activations": rows * length * (layers + kept),
        "logits": chunk * model.vocabulary * (12 + dtype.itemsize) + 4 * head + rows * length * 8 * model.hidden_size,
    }
    parts["update"] = max(0, MUON_WORK * matrices - parts["copies"] - parts["activations"] - parts["logits"])
    return parts | {"total": sum(parts.values())}


def activation_bytes(
    model: ModelConfig,
    length: int,
    dtype: torch.dtype,
    device: torch.device,
    recompute: str,
    documents: bool = True,
) -> int:
    """Bytes that a layer keeps of a token for its backward pass.

    Counted over the tensors that autograd saves (as Korthikanti et al., 2022, do for another block): the stream and
    norms in float32, the products' inputs in dtype. Attention's matrix is kept only where a CPU forms it; of that a
    quarter is never made where documents are not kept apart.
    """
    width, hidden = dtype.itemsize, model.hidden_size
    if recompute == "full":
        return 4 * hidden
    q, kv = model.num_attention_heads * model.head_width, model.kv_heads * model.head_width
    inner = model.intermediate_size
    if recompute == "selective":
        products = q + 2 * kv + q + hidden + inner * (2 if model.mlp == "swiglu" else 1) + hidden
        return 4 * hidden + width * products
    norms = 1 if model.residual == "parallel-shared-norm" else 2
    norm = (8 if model.norm == "rms" else 4) * hidden + width * hidden
    rotated = q + kv if model.position == "rope" else 0
    attention = width * (q + 2 * kv + rotated + q)
    if device.type == "cpu" and dtype is torch.bfloat16 and length <= PLAIN_KEYS:
        scores = model.num_attention_heads * length
        attention += width * (scores - (0 if documents else scores // 4) + 2 * (q - kv))
    return norms * norm + attention + width * inner * (4 if model.mlp == "swiglu" else 2)


def learnt_numbers(model: ModelConfig, config: TrainingConfig) -> int:
    """How many numbers are not frozen."""
    return count_parameters(model).total if config.adapters is None else count_lora(model, config.adapters)


def optimizer_bytes(model: ModelConfig, config: TrainingConfig) -> int:
    """AdamW keeps two moments of every parameter, in 8 bits a quarter of that; Muon one of the blocks' matrices."""
    learnt, kind = learnt_numbers(model, config), config.optimizer.kind
    if kind == "adamw8bit":
        return 2 * learnt
    return 8 * learnt - (4 * _muon_numbers(model, config) if kind == "muon" else 0)


def _muon_numbers(model: ModelConfig, config: TrainingConfig) -> int:
    """Numbers in the matrices of the blocks that are learnt, which are Muon's."""
    return _block_matrices(model) if config.adapters is None else learnt_numbers(model, config)


@lru_cache(maxsize=256)
def _block_matrices(model: ModelConfig) -> int:
    named = hollow_decoder(model).named_parameters()
    return sum(parameter.numel() for name, parameter in named if name.startswith("layers.") and parameter.dim() == 2)


def cuts(batch_size: int) -> Iterator[int]:
    """Rows of the micro-batches if a batch is cut into 1, 2, 4, ... as even as can be, down to single rows."""
    parts = 1
    while True:
        rows = -(-batch_size // parts)
        yield rows
        if rows == 1:
            return
        parts *= 2


def fitting_rows(batch_size: int, needed: Callable[[int], int], available: int | None) -> int:
    """The largest cut of a batch of which `needed` bytes are usable; 1 if none is, the whole batch if nobody knows."""
    if available is None:
        return batch_size
    return next((rows for rows in cuts(batch_size) if needed(rows) <= available * USABLE), 1)
