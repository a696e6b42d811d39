"""The decoder: embedding, blocks, head. One model for every recipe; its knobs are ModelConfig.

Letters in names and comments:
    B batch   T tokens   S keys   C hidden size   V vocabulary
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts, noop_context_fn

from leveret.model.config import LoraConfig, ModelConfig
from leveret.model.layers import MLP, Attention, KeyValueStore, Look, make_norm, rope_table
from leveret.model.masks import Masks, training_masks


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
        self.scales = nn.Parameter(torch.tensor([1.0, 0.0])) if config.residual_scales else None

    def forward(self, x_BTC: Tensor, look: Look) -> tuple[Tensor, Tensor]:
        """The stream after this layer, and the layer's values [B, K, T, D]."""
        if self.scales is not None:
            x_BTC = self.scales[0] * x_BTC + self.scales[1] * look.start
        normed = self.input_layernorm(x_BTC)
        attended, values = self.self_attn(normed, look)
        if self.residual == "parallel-shared-norm":
            return x_BTC + attended + self.mlp(normed), values
        if self.residual == "parallel":
            return x_BTC + attended + self.mlp(self.post_attention_layernorm(x_BTC)), values
        x_BTC = x_BTC + attended
        return x_BTC + self.mlp(self.post_attention_layernorm(x_BTC)), values


class Decoder(nn.Module):
    """A decoder-only transformer.

    Weights are drawn from the global torch generator when it is made; `with torch.device("meta")` makes it without
    any memory.
    """

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocabulary, config.hidden_size)
        if config.position == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        if config.position == "rope":
            # Kept, since compiled layers would each make them again; on the CPU even where the weights are nowhere.
            table = rope_table(config, torch.arange(config.max_position_embeddings, device="cpu"))
            for name, part in zip(("rope_cos", "rope_sin"), table, strict=True):
                self.register_buffer(name, part, persistent=False)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        width = config.kv_heads * config.head_width
        embedded = [str(i) for i, has in enumerate(config.value_embedded) if has]
        self.value_embeds = nn.ModuleDict({i: nn.Embedding(config.vocabulary, width) for i in embedded})
        self.gradient_checkpointing: Literal["none", "selective", "full"] = "none"
        self.lora: LoraConfig | None = None  # what add_lora has given it
        self.norm = make_norm(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocabulary, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Normal(0, initializer_range), ones for norms, zeros for biases; what leads into the stream by residual_init.

        Learned scales and mixes keep what their layers gave them; gates start at zero, which is half open.
        """
        std = self.config.initializer_range
        into_stream = {
            "scaled": std / (2 * self.config.num_hidden_layers) ** 0.5,
            "plain": std,
            "zero": 0.0,
        }[self.config.residual_init]
        for name, parameter in self.named_parameters():
            if name.endswith(("scales", "value_mix")):
                continue
            if parameter.dim() == 1:
                nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.ones_(parameter)
            elif name.endswith("value_gate.weight"):
                nn.init.zeros_(parameter)
            else:
                leads_in = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=into_stream if leads_in else std)

    def forward(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        mask: Masks | Tensor | None = None,
        cache: KeyValueStore | None = None,
    ) -> Tensor:
        """Logits [B, T, V] of the next token at every position; the arguments are hidden's."""
        return self.head(self.hidden(ids_BT, positions_BT, mask, cache))

    def hidden(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        mask: Masks | Tensor | None = None,
        cache: KeyValueStore | None = None,
    ) -> Tensor:
        """The final, normed hidden states [B, T, C].

        Args:
            ids_BT: token ids.
            positions_BT: position of each token; None counts from 0.
            mask: which keys each token sees: one for all layers, bool, broadcasting to [B, H, T, S], or one for each
                kind of layer; None is causal.
            cache: holds earlier keys and values. With it, positions and mask describe the new tokens, and a sliding
                window is the mask's business.
        """
        tokens = ids_BT.shape[1]
        if positions_BT is None:
            positions_BT = torch.arange(tokens, device=ids_BT.device)[None]
        if mask is None and cache is None:
            mask = training_masks(self.config, positions_BT, None)
        masks = mask if isinstance(mask, Masks) else Masks(mask, mask)
        x_BTC = self.embed_tokens(ids_BT)
        rope = None
        if self.config.position == "learned":
            x_BTC = x_BTC + self.embed_positions(positions_BT)
        elif self.config.position == "rope":
            rope = (self.rope_cos[positions_BT][:, None], self.rope_sin[positions_BT][:, None])  # [B or 1, 1, T, D/2]
        start, first = x_BTC, None
        for i, layer in enumerate(self.layers):
            mask_i = masks.window if self.config.windowed[i] else masks.everything
            values = self.value_embeds[str(i)](ids_BT) if str(i) in self.value_embeds else None
            x_BTC, own = self._through(layer, x_BTC, Look(rope, mask_i, cache, start, values, first))
            if self.config.value_residual and first is None:
                first = own
        return self.norm(x_BTC)  # type: ignore[no-any-return]

    def _through(self, layer: nn.Module, x_BTC: Tensor, look: Look) -> tuple[Tensor, Tensor]:
        """One layer, whose activations are kept for the backward pass or made again in it."""
        if not self.training or self.gradient_checkpointing == "none":
            return layer(x_BTC, look)  # type: ignore[no-any-return]
        keep = _keep_products if self.gradient_checkpointing == "selective" else noop_context_fn
        return checkpoint(layer, x_BTC, look, use_reentrant=False, context_fn=keep)  # type: ignore[no-any-return]

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states [..., C] -> [..., V]."""
        logits: Tensor = self.lm_head(hidden)
        if (cap := self.config.logit_softcap) is not None:
            logits = cap * torch.tanh(logits / cap)
        return logits


def _keep_products() -> tuple[Any, Any]:
    """Selective checkpointing: the results of costly products are kept, everything cheap is made again."""
    aten = torch.ops.aten
    kinds = ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")
    costly = [getattr(aten, f"_scaled_dot_product_{kind}").default for kind in kinds]
    return create_selective_checkpoint_contexts([aten.mm.default, aten.addmm.default, *costly])  # type: ignore


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
