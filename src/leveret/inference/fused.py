"""A decoder as kernels.c runs it: all layers of a few tokens in one call.

The routine covers what every recipe uses. What it does not know (value embeddings and residuals, residual scales,
adapters that are not merged, layers replaced by others, other devices) is left to torch, which knows everything.

Letters in names and comments:
    B batch   T tokens   N = B * T   V vocabulary   H query heads   K key/value heads   D head width
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from leveret.inference.cache import KeyValueCache
from leveret.inference.kernels import (
    KINDS,
    Batch,
    Cache,
    Layer,
    Matrix,
    Model,
    Norm,
    address,
    library,
    matrix,
    threads_for,
)
from leveret.inference.quantize import Quantised, QuantisedEmbedding, QuantisedLinear
from leveret.model.decoder import Block, Decoder

MLPS = {"swiglu": 0, "gelu": 1, "relu2": 2}
RESIDUALS = {"sequential": 0, "parallel": 1, "parallel-shared-norm": 2}
MOST = 32
"""Tokens at once. For more of them torch's products, which use each weight often, are faster."""
KNOWN = {nn.Linear, nn.Embedding, QuantisedLinear, QuantisedEmbedding}
"""Modules whose weights it reads: these and no subclass, which may do something else."""
EVERYTHING = 2**31 - 1
"""A window that nothing is outside of."""


def covers(model: Decoder, dtype: torch.dtype) -> bool:
    """Whether the routine computes what this decoder does, with keys and values in this dtype."""
    config = model.config
    if dtype not in KINDS or config.value_residual or config.value_embeddings or config.residual_scales:
        return False
    tables: list[Any] = [model.embed_tokens, model.lm_head]
    for layer in model.layers:
        if type(layer) is not Block:
            return False
        tables += [getattr(layer.self_attn, name) for name in ("qkv_proj", "o_proj")]
        tables += list(layer.mlp.children())
    return all(type(table) in KNOWN and _plain(table.weight) for table in tables)


def _plain(weight: Tensor) -> bool:
    """Whether its address is all there is to know; not so of what is spread over processes."""
    usual = type(weight) in (Tensor, nn.Parameter) and weight.device.type == "cpu"
    return usual and weight.dtype in KINDS and weight.is_contiguous()


class Fused:
    """A decoder's weights by their addresses. They may change in place (but norms and biases only in float32)."""

    def __init__(self, kernels: ctypes.CDLL, model: Decoder) -> None:
        self._kernels = kernels
        self._kept: list[Any] = [model]  # what the pointers point into
        self._scratch: dict[tuple[int, int], list[Tensor]] = {}
        config = self.config = model.config
        self.most = MOST
        self._weights = sum(weight.numel() for weight in model.state_dict().values())
        self._layers = (Layer * config.num_hidden_layers)(
            *(self._layer(block, windowed) for block, windowed in zip(model.layers, config.windowed, strict=True))
        )
        learned, rope = config.position == "learned", config.position == "rope"
        self._model = Model(
            self._layers,
            self._matrix(model.embed_tokens),
            self._matrix(model.embed_positions) if learned else Matrix(),
            self._matrix(model.lm_head),
            self._norm(model.norm),
            self._vector(model.rope_cos if rope else None),
            self._vector(model.rope_sin if rope else None),
            config.norm_eps,
            config.logit_softcap or 0.0,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.kv_heads,
            config.head_width,
            MLPS[config.mlp],
            RESIDUALS[config.residual],
            config.norm == "layer",
            config.rope_layout == "interleaved",
        )

    def _vector(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self._kept.append(tensor := tensor.detach().float().contiguous())
        return address(tensor)

    def _matrix(self, module: Any) -> Matrix:
        columns = module.columns if isinstance(module, Quantised) else module.weight.shape[1]
        self._kept.append(module)
        whole = matrix(module.weight, getattr(module, "scale", None), None, columns)
        whole.bias = self._vector(getattr(module, "bias", None))
        return whole

    def _norm(self, module: Any) -> Norm:
        return Norm(self._vector(module.weight), self._vector(getattr(module, "bias", None)))

    def _layer(self, block: Any, windowed: bool) -> Layer:
        attention, mlp = block.self_attn, block.mlp
        shared = self.config.residual == "parallel-shared-norm"
        return Layer(
            self._norm(block.input_layernorm),
            Norm() if shared else self._norm(block.post_attention_layernorm),
            self._vector(attention.q_norm.weight) if attention.qk_norm else None,
            self._vector(attention.k_norm.weight) if attention.qk_norm else None,
            self._matrix(attention.qkv_proj),
            self._matrix(attention.o_proj),
            self._matrix(mlp.gate_up_proj if mlp.kind == "swiglu" else mlp.up_proj),
            self._matrix(mlp.down_proj),
            self.config.sliding_window if windowed else EVERYTHING,
        )

    def forward(self, ids_BT: Tensor, real: list[int], cache: KeyValueCache, every: bool) -> Tensor:
        """Runner.forward's."""
        tokens = ids_BT.shape[1]
        counts = [tokens] * len(real) if every else real
        rows = [row for row, count in enumerate(counts) for _ in range(count)]
        columns = [column for count in counts for column in range(count)]
        where = torch.tensor([rows, [cache.lengths[row] + column for row, column in zip(rows, columns, strict=True)]])
        ids = ids_BT.flatten() if len(rows) == ids_BT.numel() else ids_BT[where[0], torch.tensor(columns)]
        wanted = torch.arange(len(rows)) if every else torch.tensor(counts).cumsum(0) - 1
        logits = self._run(ids.contiguous(), where, wanted, cache)
        cache.advance(real)
        return logits.view(*ids_BT.shape, -1) if every else logits

    def _run(self, ids_N: Tensor, where_2N: Tensor, wanted: Tensor, cache: KeyValueCache) -> Tensor:
        """Reads tokens into the cache, each at its row and position. Logits [wanted, V] after some of them."""
        logits = torch.empty(len(wanted), self._model.head.rows)
        scratch = self._rows_of(len(ids_N), cache.capacity)
        batch = Batch(
            *map(address, (ids_N, *where_2N, wanted, logits, *scratch)),
            len(ids_N),
            len(wanted),
            threads_for(self._weights * len(ids_N)),
        )
        slots = cache.keys.stride(0) // cache.keys.stride(1)
        store = Cache(
            cache.keys.data_ptr(), cache.values.data_ptr(), KINDS[cache.keys.dtype], slots, cache.keys.shape[3]
        )
        self._kernels.forward(ctypes.byref(self._model), ctypes.byref(store), ctypes.byref(batch))
        return logits

    def _rows_of(self, count: int, capacity: int) -> list[Tensor]:
        """Scratch of the last size asked for."""
        if (count, capacity) not in self._scratch:
            config, layer = self.config, self._layers[0]
            heads = config.num_attention_heads * config.head_width
            widths = (config.hidden_size, config.hidden_size, layer.qkv.rows, heads, layer.up.rows, layer.down.columns)
            scores = config.num_attention_heads * capacity
            self._scratch = {(count, capacity): [torch.empty(count, width) for width in (*widths, scores)]}
        return self._scratch[count, capacity]


def fused(model: Decoder, dtype: torch.dtype) -> Fused | None:
    """The decoder for kernels.c, with keys and values in this dtype; None where it is torch's business."""
    if not covers(model, dtype) or (kernels := library()) is None:
        return None
    return Fused(kernels, model)
