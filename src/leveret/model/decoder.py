"""The decoder: embedding, blocks, head. One model for every recipe; its knobs are ModelConfig.

Letters in names and comments:
    B batch   T tokens   S keys   C hidden size   V vocabulary
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from leveret.model.config import ModelConfig
from leveret.model.layers import MLP, Attention, KeyValueStore, make_norm, rope_table


class Block(nn.Module):
    """One layer: attention and feed-forward around the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.residual = config.residual
        self.input_layernorm = make_norm(config)
        self.self_attn = Attention(config, layer)
        if config.residual != "parallel-shared-norm":
            self.post_attention_layernorm = make_norm(config)
        self.mlp = MLP(config)

    def forward(
        self,
        x_BTC: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        cache: KeyValueStore | None,
    ) -> Tensor:
        normed = self.input_layernorm(x_BTC)
        attended = self.self_attn(normed, rope, mask, cache)
        if self.residual == "parallel-shared-norm":
            return x_BTC + attended + self.mlp(normed)  # type: ignore[no-any-return]
        if self.residual == "parallel":
            return x_BTC + attended + self.mlp(self.post_attention_layernorm(x_BTC))  # type: ignore[no-any-return]
        x_BTC = x_BTC + attended
        return x_BTC + self.mlp(self.post_attention_layernorm(x_BTC))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """A decoder-only transformer.

    Weights are drawn from the global torch generator when it is made; `with torch.device("meta")` makes it without
    any memory.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocabulary, config.hidden_size)
        if config.position == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.gradient_checkpointing = False
        self.norm = make_norm(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocabulary, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Normal(0, initializer_range); projections into the residual stream smaller by 1/sqrt(2 layers)."""
        std = self.config.initializer_range
        residual = std / (2 * self.config.num_hidden_layers) ** 0.5 if self.config.scale_residual_init else std
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.ones_(parameter)
            else:
                into_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=residual if into_stream else std)

    def forward(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValueStore | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, T, V] of the next token at every position; with rows, [rows, V] of these among the B * T."""
        x_BTC = self.hidden(ids_BT, positions_BT, mask, cache)
        return self.head(x_BTC if rows is None else x_BTC.flatten(0, 1).index_select(0, rows))

    def hidden(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValueStore | None = None,
    ) -> Tensor:
        """The final, normed hidden states [B, T, C].

        Args:
            ids_BT: token ids.
            positions_BT: position of each token; None counts from 0.
            mask: which keys each token sees, bool, broadcasting to [B, H, T, S]; None is causal over all.
            cache: holds earlier keys and values. With it, positions and mask describe the new tokens, and a sliding
                window is the mask's business.
        """
        tokens = ids_BT.shape[1]
        if positions_BT is None:
            positions_BT = torch.arange(tokens, device=ids_BT.device)[None]
        if mask is None and cache is None and self.config.sliding_window is not None:
            mask = causal_mask(positions_BT, self.config.sliding_window)
        x_BTC = self.embed_tokens(ids_BT)
        rope = None
        if self.config.position == "learned":
            x_BTC = x_BTC + self.embed_positions(positions_BT)
        elif self.config.position == "rope":
            cos, sin = rope_table(self.config, positions_BT.flatten())
            shape = (positions_BT.shape[0], 1, tokens, -1)
            rope = (cos.view(shape), sin.view(shape))  # [B or 1, 1, T, D/2]
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                x_BTC = checkpoint(layer, x_BTC, rope, mask, cache, use_reentrant=False)
            else:
                x_BTC = layer(x_BTC, rope, mask, cache)
        return self.norm(x_BTC)  # type: ignore[no-any-return]

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states [..., C] -> [..., V]."""
        logits: Tensor = self.lm_head(hidden)
        if (cap := self.config.logit_softcap) is not None:
            logits = cap * torch.tanh(logits / cap)
        return logits


class _Undrawn(TorchFunctionMode):
    """Passes over the drawing of weights: on the meta device it does nothing but import a second's worth of torch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return None
        return func(*args, **(kwargs or {}))


def hollow_decoder(config: ModelConfig) -> Decoder:
    """The decoder on the meta device: shapes without memory or values, for weights to be put in."""
    with torch.device("meta"), _Undrawn():
        return Decoder(config)


def causal_mask(positions_BT: Tensor, window: int | None = None, documents_BT: Tensor | None = None) -> Tensor:
    """Which earlier token each token may see: bool [B or 1, 1, T, T].

    Args:
        positions_BT: ascending within a row; with documents, counted from 0 in each.
        window: how many last tokens are seen, the token itself among them.
        documents_BT: number of the document each token belongs to; tokens see their own document only.
    """
    tokens = positions_BT.shape[1]
    order = torch.arange(tokens, device=positions_BT.device)
    seen = order[:, None] >= order[None, :]  # [T, T]
    if window is not None:
        seen = seen & (order[:, None] - order[None, :] < window)
    seen = seen[None, None]
    if documents_BT is not None:
        seen = seen & (documents_BT[:, None, :, None] == documents_BT[:, None, None, :])
    return seen
