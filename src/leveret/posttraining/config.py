"""Post-training: training's keys, and where the examples come from."""

from __future__ import annotations

from pydantic import Field

from leveret.data.config import ExamplesConfig
from leveret.training.config import TrainingConfig


class PosttrainingConfig(TrainingConfig):
    """What all stages after pretraining have in common."""

    examples: list[ExamplesConfig] = Field(min_length=1)
    """Sources of examples."""
    sequence_length: int | None = Field(None, gt=1)
    """Tokens of a packed row; an example that is longer is left out and counted. None: the context length."""
    validation_fraction: float = Field(0.01, ge=0, lt=1)
    """Share of the examples, by a hash of the instruction, that measures the stage and is not trained on."""


class FinetuneConfig(PosttrainingConfig):
    """Supervised fine-tuning: the loss is on the answers only, each with its end token."""
