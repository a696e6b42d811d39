"""Estimates of memory, by part: of a recipe's training on a device, and of generation."""

from __future__ import annotations

import torch

from leveret.hardware.device import pick_dtype
from leveret.hardware.memory import available_memory
from leveret.model.config import ModelConfig
from leveret.model.counts import count_parameters
from leveret.training.config import TrainingConfig
from leveret.training.memory import fitting_rows, training_memory


def planned_memory(model: ModelConfig, config: TrainingConfig, length: int, device: torch.device) -> dict[str, int]:
    """training_memory with the micro-batch that the recipe names, or for auto with what would fit here now."""
    dtype = pick_dtype(config.precision, device)

    def of(rows: int) -> dict[str, int]:
        return training_memory(model, config, length, rows, dtype, device)

    rows = config.micro_batch_size or config.batch_size
    if rows == "auto":
        rows = fitting_rows(config.batch_size, lambda rows: of(rows)["total"], available_memory(device))
    return of(rows)


def inference_memory(model: ModelConfig, bytes_a_number: int = 4, sequences: int = 1) -> dict[str, int]:
    """Bytes that generation holds: weights, and the keys and values of full contexts."""
    cache = 2 * model.num_hidden_layers * model.kv_heads * model.head_width * model.max_position_embeddings
    parts = {
        "weights": bytes_a_number * count_parameters(model).total,
        "cache": sequences * cache * bytes_a_number,
    }
    return parts | {"total": sum(parts.values())}
