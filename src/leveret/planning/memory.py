"""Estimates of memory, by part."""

from __future__ import annotations

from leveret.model.config import ModelConfig
from leveret.model.counts import count_parameters
from leveret.training.config import TrainingConfig


def training_memory(
    model: ModelConfig, config: TrainingConfig, sequence_length: int, bytes_a_number: int
) -> dict[str, int]:
    """Bytes that training holds at its peak, by part.

    Weights, gradients and AdamW's two moments are float32. Activations are what the backward pass needs of each layer
    (Korthikanti et al., 2022, without the attention matrix, which flash attention does not keep), in bytes_a_number
    each; with gradient checkpointing only each layer's input and one whole layer. Logits are counted with their
    float32 copy and its gradient.
    """
    total = count_parameters(model).total
    tokens = (config.micro_batch_size or config.batch_size) * sequence_length
    attention = (2 * model.num_attention_heads + 2 * model.kv_heads) * model.head_width
    inner = model.intermediate_size * (4 if model.mlp == "swiglu" else 2)
    layer = tokens * ((4 * model.hidden_size + attention + inner) * bytes_a_number + 4 * 2 * model.hidden_size)
    inputs = tokens * model.hidden_size * 4
    layers = model.num_hidden_layers
    activations = layers * inputs + layer if config.gradient_checkpointing else layers * layer
    parts = {
        "weights": 4 * total,
        "gradients": 4 * total,
        "optimizer": 8 * total,
        "activations": activations,
        "logits": tokens * model.vocabulary * (bytes_a_number + 8),
    }
    return parts | {"total": sum(parts.values())}


def inference_memory(model: ModelConfig, bytes_a_number: int = 4, sequences: int = 1) -> dict[str, int]:
    """Bytes that generation holds: weights, and the keys and values of full contexts."""
    cache = 2 * model.num_hidden_layers * model.kv_heads * model.head_width * model.max_position_embeddings
    parts = {
        "weights": bytes_a_number * count_parameters(model).total,
        "cache": sequences * cache * bytes_a_number,
    }
    return parts | {"total": sum(parts.values())}
