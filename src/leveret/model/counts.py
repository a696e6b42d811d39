"""Counts that follow from the shape alone: parameters, floating-point operations."""

from __future__ import annotations

from dataclasses import dataclass

from leveret.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Parameters:
    """Numbers of parameters. embedding: token and position tables (a tied head costs nothing more)."""

    total: int
    embedding: int
    non_embedding: int


def count_parameters(config: ModelConfig) -> Parameters:
    """Parameters of the decoder of this shape, by part. An untied head counts as non-embedding."""
    hidden, heads, kv = config.hidden_size, config.num_attention_heads, config.kv_heads
    norm = hidden * (2 if config.norm == "layer" else 1)
    fused, out = (heads + 2 * kv) * config.head_width, heads * config.head_width
    attention = hidden * fused + out * hidden + (fused + hidden) * config.attention_bias
    attention += 2 * config.head_width * config.qk_norm
    tables = sum(config.value_embedded)
    extras = tables * config.gate_channels * kv  # the gates
    extras += 2 * config.num_hidden_layers * config.residual_scales
    extras += 2 * (config.num_hidden_layers - 1) * config.value_residual
    first = config.intermediate_size * (2 if config.mlp == "swiglu" else 1)
    mlp = hidden * first + config.intermediate_size * hidden + (first + hidden) * config.mlp_bias
    norms = norm * (1 if config.residual == "parallel-shared-norm" else 2)
    embedding = config.vocabulary * hidden
    head = 0 if config.tie_word_embeddings else embedding
    if config.position == "learned":
        embedding += config.max_position_embeddings * hidden
    embedding += tables * config.vocabulary * kv * config.head_width
    rest = config.num_hidden_layers * (attention + mlp + norms) + extras + norm + head
    return Parameters(embedding + rest, embedding, rest)


def flops_per_token(config: ModelConfig, sequence_length: int, recompute: str = "none") -> int:
    """Floating-point operations of one training token, forward and backward.

    6 x matrix parameters, the head among them and the tables not (Kaplan et al., 2020), plus attention's two products
    over the mean number of keys that a token sees: half of the length under a causal mask (PaLM's appendix B, halved).

    Args:
        recompute: gradient_checkpointing. full: the layers' forward products are made twice, 8 for 6 (Korthikanti et
            al., 2022); selective makes no product again. The model's FLOPs, as MFU counts them, are those of "none".
    """
    hidden, width = config.hidden_size, config.head_width
    attention = hidden * (config.num_attention_heads * 2 + config.kv_heads * 2) * width
    mlp = hidden * config.intermediate_size * (3 if config.mlp == "swiglu" else 2)
    every, window = (sequence_length + 1) / 2, min(config.sliding_window or sequence_length, sequence_length)
    within = window * (1 - (window - 1) / (2 * sequence_length))
    keys = sum(within if windowed else every for windowed in config.windowed)
    layers = config.num_hidden_layers * (attention + mlp) + 2 * config.num_attention_heads * width * keys
    return int((8 if recompute == "full" else 6) * layers + 6 * config.vocabulary * hidden)
