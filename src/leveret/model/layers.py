"""The parts of a block: norm, rotation, attention, feed-forward.

Letters in names and comments:
    B batch   T tokens   S keys (cached and new)   C hidden size   H query heads   K key/value heads   D head width
"""

from __future__ import annotations

from functools import cache as once
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leveret.model.config import ModelConfig

if TYPE_CHECKING:
    from leveret.model.masks import Mask


class KeyValueStore(Protocol):
    """What attention needs of a cache: take this layer's new keys and values, give back all of them."""

    def extend(self, layer: int, k_BKTD: Tensor, v_BKTD: Tensor) -> tuple[Tensor, Tensor]: ...


class Look(NamedTuple):
    """What a block sees besides the stream.

    rope: cosines and sines, broadcasting to [B, 1, T, D/2]. start: the embeddings [B, T, C]. values: the tokens' own
    [B, T, K * D], in layers that have them. first: the first layer's values [B, K, T, D], where they are mixed in.
    """

    rope: tuple[Tensor, Tensor] | None
    mask: Mask
    cache: KeyValueStore | None
    start: Tensor
    values: Tensor | None
    first: Tensor | None


def make_norm(config: ModelConfig, width: int | None = None) -> nn.Module:
    width = width or config.hidden_size
    if config.norm == "rms":
        return nn.RMSNorm(width, eps=config.norm_eps)
    return nn.LayerNorm(width, eps=config.norm_eps)


def rope_table(config: ModelConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position's angles (Su et al., 2021), each [positions, D/2] in float32."""
    width = config.head_width
    exponents = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
    frequencies = config.rope_theta**-exponents
    if config.rope_fraction < 1:
        turning = round(len(frequencies) * config.rope_fraction)
        frequencies = torch.cat((frequencies[:turning], torch.zeros_like(frequencies[turning:])))
    angles = positions.float()[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x_BHTD: Tensor, cos: Tensor, sin: Tensor, layout: str) -> Tensor:
    """Turns each pair of dimensions by its position's angle. cos, sin broadcast to [B, 1, T, D/2].

    Computed in the dtype of x, as transformers does.
    """
    x, cos, sin = x_BHTD, cos.to(x_BHTD.dtype), sin.to(x_BHTD.dtype)
    if layout == "half":
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)


PLAIN_KEYS = 512
"""Most keys for which a CPU forms the whole matrix of scores: memory grows with their square."""


@once
def _compiled_flex_attention() -> Any:
    """FlexAttention is one kernel only when compiled; inside a compiled model it is anyway."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _flex(q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask: Any) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    alone = q_BHTD.device.type == "cuda" and not torch.compiler.is_compiling()
    function = _compiled_flex_attention() if alone else flex_attention
    grouped = q_BHTD.shape[1] > k_BKSD.shape[1]
    return function(q_BHTD, k_BKSD, v_BKSD, block_mask=mask, enable_gqa=grouped)  # type: ignore[no-any-return]


def attend(q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask: Mask) -> Tensor:
    """Attention with grouped keys and values, [B, H, T, D].

    Blocks go to FlexAttention. In bfloat16 on a CPU, plain matrix products are two to three times as fast as torch's
    kernel (benchmarks/attention.py).

    Args:
        mask: which keys each token sees: bool, broadcasting to [B, 1, T, S], or blocks; None is causal over all.
    """
    if mask is not None and not isinstance(mask, Tensor):
        return _flex(q_BHTD, k_BKSD, v_BKSD, mask)
    heads, kv_heads, tokens, keys = q_BHTD.shape[1], k_BKSD.shape[1], q_BHTD.shape[2], k_BKSD.shape[2]
    if q_BHTD.device.type != "cpu" or q_BHTD.dtype is not torch.bfloat16 or not 1 < tokens == keys <= PLAIN_KEYS:
        causal = mask is None and tokens > 1
        return F.scaled_dot_product_attention(
            q_BHTD, k_BKSD, v_BKSD, attn_mask=mask, is_causal=causal, enable_gqa=heads > kv_heads
        )
    k, v = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (k_BKSD, v_BKSD))
    if mask is not None:
        return _plain(q_BHTD, k, v, mask)
    # The first half sees nothing of the second, which is a quarter of all scores.
    half, seen = tokens // 2, torch.ones(tokens, keys, dtype=torch.bool).tril()[None, None]
    first = _plain(q_BHTD[:, :, :half], k[:, :, :half], v[:, :, :half], seen[:, :, :half, :half])
    return torch.cat((first, _plain(q_BHTD[:, :, half:], k, v, seen[:, :, half:])), dim=2)


def _plain(q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, mask: Tensor) -> Tensor:
    """Attention by two matrix products; mask is bool and broadcasts to [B, H, T, S]."""
    batch, heads, _, width = q_BHTD.shape
    unseen = torch.zeros(mask.shape, dtype=q_BHTD.dtype).masked_fill_(~mask, -torch.inf)
    unseen = unseen.expand(batch, heads, -1, -1).flatten(0, 1)
    q, k, v = (x.flatten(0, 1) for x in (q_BHTD, k_BHSD, v_BHSD))
    scores = torch.baddbmm(unseen, q, k.transpose(1, 2), alpha=width**-0.5)  # [B * H, T, S]
    return (scores.softmax(dim=-1) @ v).view(q_BHTD.shape)


class Attention(nn.Module):
    """Multi-head attention with grouped keys and values; q, k and v are one matrix in memory."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.width = config.num_attention_heads, config.kv_heads, config.head_width
        self.layout = config.rope_layout
        fused = (self.heads + 2 * self.kv_heads) * self.width
        self.qkv_proj = nn.Linear(config.hidden_size, fused, bias=config.attention_bias)
        self.o_proj = nn.Linear(self.heads * self.width, config.hidden_size, bias=config.attention_bias)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(self.width, eps=config.norm_eps)
            self.k_norm = nn.RMSNorm(self.width, eps=config.norm_eps)
        self.qk_norm = config.qk_norm
        if config.value_embedded[layer]:
            self.value_gate = nn.Linear(config.gate_channels, self.kv_heads, bias=False)
        if config.value_residual and layer > 0:
            self.value_mix = nn.Parameter(torch.tensor([0.5, 0.5]))

    def forward(self, x_BTC: Tensor, look: Look) -> tuple[Tensor, Tensor]:
        """The attended stream [B, T, C], and this layer's own values [B, K, T, D]."""
        batch, tokens, _ = x_BTC.shape
        qkv = self.qkv_proj(x_BTC).view(batch, tokens, -1, self.width).transpose(1, 2)
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=1)  # [B, H + K | K, T, D]
        if self.qk_norm:
            q, k = qk.to(self.q_norm.weight.dtype).split([self.heads, self.kv_heads], dim=1)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), dim=1).to(v.dtype)
        if look.rope is not None:
            qk = rotate(qk, *look.rope, self.layout)
        q, k = qk.split([self.heads, self.kv_heads], dim=1)
        if look.values is not None:
            gate = 2 * torch.sigmoid(self.value_gate(x_BTC[..., : self.value_gate.in_features]))  # [B, T, K]
            tokens_own = look.values.view(batch, tokens, self.kv_heads, self.width) * gate[..., None]
            v = v + tokens_own.transpose(1, 2).to(v.dtype)
        own = v
        if look.first is not None:
            mix = self.value_mix.to(v.dtype)
            v = mix[0] * v + mix[1] * look.first
        if look.cache is not None:
            k, v = look.cache.extend(self.layer, k, v)  # [B, K, S, D]
        out_BHTD = attend(q, k, v, look.mask)
        return self.o_proj(out_BHTD.transpose(1, 2).reshape(batch, tokens, -1)), own


class MLP(nn.Module):
    """The feed-forward layer; SwiGLU's gate and up projections are one matrix in memory."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind = config.mlp
        inner = config.intermediate_size
        if config.mlp == "swiglu":
            self.gate_up_proj = nn.Linear(config.hidden_size, 2 * inner, bias=config.mlp_bias)
        else:
            self.up_proj = nn.Linear(config.hidden_size, inner, bias=config.mlp_bias)
        self.down_proj = nn.Linear(inner, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x_BTC: Tensor) -> Tensor:
        if self.kind == "swiglu":
            gate, up = self.gate_up_proj(x_BTC).chunk(2, dim=-1)
            hidden = F.silu(gate) * up
        elif self.kind == "gelu":
            hidden = F.gelu(self.up_proj(x_BTC), approximate="tanh")
        else:
            hidden = F.relu(self.up_proj(x_BTC)).square()
        return self.down_proj(hidden)  # type: ignore[no-any-return]
