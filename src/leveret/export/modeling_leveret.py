"""A language model made by Leveret, for transformers (5 or newer): `trust_remote_code=True` runs this file.

It is copied beside the weights of models that transformers has no class for. Its config.json has the knobs of Leveret's
own decoder (leveret/model/config.py), which reads the same folder without this file.

Letters in names and comments:
    B batch   T tokens   S keys (cached and new)   C hidden size   H query heads   K key/value heads   D head width
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast

SLIDING = "sliding_attention"


class LeveretConfig(PreTrainedConfig):
    """The decoder's knobs, and layer_types: of each layer, whether it has the sliding window."""

    model_type = "leveret"
    keys_to_ignore_at_inference = ["past_key_values"]


def make_norm(config: Any) -> nn.Module:
    kind = nn.RMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(config.hidden_size, eps=config.norm_eps)


class Attention(nn.Module):
    """Multi-head attention with grouped keys and values, in torch's own kernel."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.layer, self.width = layer, config.head_dim
        hidden, bias = config.hidden_size, config.attention_bias
        inner, outer = config.num_key_value_heads * self.width, config.num_attention_heads * self.width
        self.q_proj = nn.Linear(hidden, outer, bias=bias)
        self.k_proj = nn.Linear(hidden, inner, bias=bias)
        self.v_proj = nn.Linear(hidden, inner, bias=bias)
        self.o_proj = nn.Linear(outer, hidden, bias=bias)
        self.q_norm = nn.RMSNorm(self.width, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(self.width, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        if config.value_embeddings and (config.num_hidden_layers - 1 - layer) % 2 == 0:
            self.value_gate = nn.Linear(config.gate_channels, config.num_key_value_heads, bias=False)
        if config.value_residual and layer > 0:
            self.value_mix = nn.Parameter(torch.tensor([0.5, 0.5]))

    def forward(
        self, x_BTC: Tensor, rope: Any, mask: Tensor | None, cache: Any, values: Tensor | None, first: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The attended stream [B, T, C], and this layer's own values [B, K, T, D]."""
        batch, tokens, _ = x_BTC.shape
        projected = (project(x_BTC) for project in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (part.view(batch, tokens, -1, self.width).transpose(1, 2) for part in projected)
        q, k = rotate(self.q_norm(q), rope), rotate(self.k_norm(k), rope)
        if values is not None:
            gate = 2 * torch.sigmoid(self.value_gate(x_BTC[..., : self.value_gate.in_features]))  # [B, T, K]
            v = v + (values.view(batch, tokens, -1, self.width) * gate[..., None]).transpose(1, 2)
        own = v
        if first is not None:
            v = self.value_mix[0] * v + self.value_mix[1] * first
        if cache is not None:
            k, v = cache.update(k, v, self.layer)  # [B, K, S, D]
        causal = mask is None and tokens > 1
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=q.shape[1] > k.shape[1]
        )
        return self.o_proj(out.transpose(1, 2).reshape(batch, tokens, -1)), own


def rotate(x_BHTD: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
    """Turns dimensions i and i + D/2 of every head by its position's angle."""
    if rope is None:
        return x_BHTD
    cos, sin = (part.to(x_BHTD.dtype) for part in rope)
    a, b = x_BHTD.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class MLP(nn.Module):
    """SwiGLU, GELU in its tanh form, or squared ReLU."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.kind = config.mlp
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        if self.kind == "swiglu":
            self.gate_proj = nn.Linear(hidden, inner, bias=bias)
        self.up_proj = nn.Linear(hidden, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)

    def forward(self, x_BTC: Tensor) -> Tensor:
        up = self.up_proj(x_BTC)
        if self.kind == "swiglu":
            up = F.silu(self.gate_proj(x_BTC)) * up
        else:
            up = F.gelu(up, approximate="tanh") if self.kind == "gelu" else F.relu(up).square()
        return self.down_proj(up)  # type: ignore[no-any-return]


class Block(nn.Module):
    """One layer: attention and feed-forward one after the other, or side by side with a norm each or one for both."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.residual = config.residual
        self.input_layernorm = make_norm(config)
        self.self_attn = Attention(config, layer)
        if self.residual != "parallel-shared-norm":
            self.post_attention_layernorm = make_norm(config)
        self.mlp = MLP(config)
        self.scales = nn.Parameter(torch.tensor([1.0, 0.0])) if config.residual_scales else None

    def forward(self, x_BTC: Tensor, start: Tensor, *seen: Any) -> tuple[Tensor, Tensor]:
        if self.scales is not None:
            x_BTC = self.scales[0] * x_BTC + self.scales[1] * start
        normed = self.input_layernorm(x_BTC)
        attended, own = self.self_attn(normed, *seen)
        if self.residual == "sequential":
            x_BTC = x_BTC + attended
            return x_BTC + self.mlp(self.post_attention_layernorm(x_BTC)), own
        if self.residual == "parallel":
            normed = self.post_attention_layernorm(x_BTC)
        return x_BTC + attended + self.mlp(normed), own


class LeveretPreTrainedModel(PreTrainedModel):
    config_class = LeveretConfig
    base_model_prefix = "model"
    _no_split_modules = ["Block"]
    _supports_sdpa = True


class LeveretModel(LeveretPreTrainedModel):
    """Embedding, blocks, last norm."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        width = config.num_key_value_heads * config.head_dim
        embedded = [str(i) for i, layer in enumerate(self.layers) if hasattr(layer.self_attn, "value_gate")]
        self.value_embeds = nn.ModuleDict({i: nn.Embedding(config.vocab_size, width) for i in embedded})
        self.norm = make_norm(config)
        self.post_init()  # type: ignore[no-untyped-call]

    def rope(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of every position's angles, each [B, 1, T, D/2] in float32."""
        pairs = self.config.head_dim // 2
        exponents = torch.arange(0, 2 * pairs, 2, device=positions_BT.device, dtype=torch.float32) / (2 * pairs)
        frequencies = self.config.rope_theta**-exponents
        frequencies[round(pairs * self.config.rope_fraction) :] = 0
        angles = positions_BT[:, None, :, None].float() * frequencies
        return angles.cos(), angles.sin()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        """The final, normed hidden states [B, T, C], and the cache."""
        config = self.config
        if input_ids is None:
            raise ValueError("give input_ids: embeddings alone do not say all that this model reads of a token")
        x_BTC = self.embed_tokens(input_ids)
        if past_key_values is None and (not self.training if use_cache is None else use_cache):
            past_key_values = DynamicCache(config=config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(seen, seen + x_BTC.shape[1], device=x_BTC.device)[None]
        facts = (config, x_BTC, attention_mask, past_key_values, position_ids)
        makers = {"full_attention": create_causal_mask, SLIDING: create_sliding_window_causal_mask}
        masks = {kind: makers[kind](*facts) for kind in set(config.layer_types)}
        if config.position == "learned":
            x_BTC = x_BTC + self.embed_positions(position_ids)
        rope = self.rope(position_ids) if config.position == "rope" else None
        start, first = x_BTC, None
        for i, layer in enumerate(self.layers):
            values = self.value_embeds[str(i)](input_ids) if str(i) in self.value_embeds else None
            x_BTC, own = layer(x_BTC, start, rope, masks[config.layer_types[i]], past_key_values, values, first)
            if config.value_residual and first is None:
                first = own
        return self.norm(x_BTC), past_key_values


class LeveretForCausalLM(LeveretPreTrainedModel, GenerationMixin):
    """The decoder with its head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = LeveretModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        # Each by name, since `generate` looks at the names: without position_ids it would not skip padding on the left.
        hidden, cache = self.model(input_ids, attention_mask, position_ids, past_key_values, use_cache)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept])
        if (cap := self.config.logit_softcap) is not None:
            logits = cap * torch.tanh(logits / cap)
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)
