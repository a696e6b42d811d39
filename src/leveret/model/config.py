"""The shape of the decoder. Keys are transformers' names where transformers has one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from leveret.config import Config

GATE_CHANNELS = 32
"""Channels of a layer's input that decide how much it takes of a token's value embedding."""


Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""A matrix of a block, by transformers' name in Llama."""


class LoraConfig(Config):
    """Low-rank adapters (Hu et al., 2021): y = W x + alpha / rank * B (A x), where A and B alone are learnt."""

    rank: int = Field(16, gt=0)
    """Rows of A and columns of B, for each projection."""
    alpha: float = Field(32.0, gt=0)
    """The adapters' output is multiplied by alpha / rank."""
    targets: list[Projection] | None = Field(None, min_length=1)
    """Projections that get adapters. None: all that the model has. In a GPT-2 shape q, k and v are one matrix with one
    adapter, as in peft; there name all three or none."""

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class ModelConfig(Config):
    """Every knob of the one decoder. The defaults are those of a Llama-shaped model."""

    vocab_size: int | None = Field(None, gt=0)
    """Rows of the embedding. None: as many as the tokenizer has. More than the tokenizer's pads for speed."""
    hidden_size: int = Field(gt=0)
    """Width of the residual stream."""
    num_hidden_layers: int = Field(gt=0)
    """Number of blocks."""
    num_attention_heads: int = Field(gt=0)
    """Query heads."""
    num_key_value_heads: int | None = Field(None, gt=0)
    """Key and value heads (grouped-query attention). None: as many as query heads."""
    head_dim: int | None = Field(None, gt=0)
    """Width of a head. None: hidden_size / num_attention_heads."""
    intermediate_size: int = Field(gt=0)
    """Width of the feed-forward layer."""
    max_position_embeddings: int = Field(gt=0)
    """Context length in tokens."""
    position: Literal["rope", "learned", "none"] = "rope"
    """How a token's position enters: rotary (Su et al., 2021), a learned table, or not at all."""
    rope_theta: float = Field(10_000.0, gt=0)
    """Base of the rotary frequencies."""
    rope_fraction: float = Field(1.0, gt=0, le=1)
    """Share of a head's pairs that rotate, the fastest ones; the others carry no position (1: all)."""
    rope_layout: Literal["half", "interleaved"] = "half"
    """Which dimensions rotate together: i and i + head_dim/2 (GPT-NeoX, Llama in transformers), or 2i and 2i+1
    (the paper). On disk weights are always in the half layout."""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm (Zhang and Sennrich, 2019) or LayerNorm."""
    norm_eps: float = Field(1e-6, gt=0)
    """Added to the variance before the root."""
    mlp: Literal["swiglu", "gelu", "relu2"] = "swiglu"
    """Feed-forward layer: SwiGLU (Shazeer, 2020), GELU in its tanh form (as GPT-2), squared ReLU."""
    residual: Literal["sequential", "parallel", "parallel-shared-norm"] = "sequential"
    """x + attn(n1(x)), then + mlp(n2(x)); both at once with a norm each; both at once with one norm (PaLM)."""
    qk_norm: bool = False
    """RMSNorm over each query and key head before the rotation."""
    attention_bias: bool = False
    """Biases in the attention projections."""
    mlp_bias: bool = False
    """Biases in the feed-forward layer."""
    tie_word_embeddings: bool = True
    """The output head is the embedding."""
    logit_softcap: float | None = Field(None, gt=0)
    """Logits become cap * tanh(logits / cap) (Gemma 2)."""
    sliding_window: int | None = Field(None, gt=0)
    """A token attends to this many last tokens, itself among them. None: all."""
    window_pattern: str = Field("S", pattern="^[SL]+$")
    """Which layers have the sliding window: S (short) has it, L (long) sees all. Repeated downward from the last
    layer, so that SSSL ends with a layer that sees all (Gemma 2 and 3)."""
    value_residual: bool = False
    """Each layer's values are mixed with the first layer's, by learned weights (ResFormer: Zhou et al., 2024)."""
    value_embeddings: bool = False
    """Every second layer, the last among them, adds a learned vector of the token to its values, weighed by a gate on
    the first channels of its input (as nanochat).
    Tables of vocab_size rows: many parameters, hardly any work."""
    residual_scales: bool = False
    """Before each layer the stream becomes a * stream + b * embedding, a and b learned, from 1 and 0."""
    initializer_range: float = Field(0.02, gt=0)
    """Standard deviation of the initial weights."""
    residual_init: Literal["scaled", "plain", "zero"] = "scaled"
    """Projections into the residual stream start smaller by 1/sqrt(2 * layers) (GPT-2), like all others, or at zero, so
    that every block begins as the identity."""

    @model_validator(mode="after")
    def _possible(self) -> ModelConfig:
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not divide into num_attention_heads "
                f"{self.num_attention_heads}; change one, or give head_dim"
            )
        if self.num_attention_heads % self.kv_heads:
            raise ValueError(
                f"num_key_value_heads {self.kv_heads} does not divide num_attention_heads {self.num_attention_heads}"
            )
        if self.position == "rope" and self.head_width % 2:
            raise ValueError(f"rope needs an even head width, and head_dim is {self.head_width}")
        return self

    @property
    def windowed(self) -> list[bool]:
        """Of each layer, whether it has the sliding window."""
        layers, pattern = self.num_hidden_layers, self.window_pattern
        repeated = pattern * -(-layers // len(pattern))
        return [self.sliding_window is not None and letter == "S" for letter in repeated[-layers:]]

    @property
    def value_embedded(self) -> list[bool]:
        """Of each layer, whether it has value embeddings."""
        last = self.num_hidden_layers - 1
        return [self.value_embeddings and (last - layer) % 2 == 0 for layer in range(self.num_hidden_layers)]

    @property
    def gate_channels(self) -> int:
        return min(GATE_CHANNELS, self.hidden_size)

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_width(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def vocabulary(self) -> int:
        """vocab_size, which is known once the tokenizer is."""
        assert self.vocab_size is not None, "vocab_size is filled in from the tokenizer before the model is made"
        return self.vocab_size

    def with_vocabulary(self, size: int) -> ModelConfig:
        """This shape with vocab_size filled in where it was left to the tokenizer."""
        return self if self.vocab_size else self.model_copy(update={"vocab_size": size})
