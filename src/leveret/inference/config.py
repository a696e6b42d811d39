"""How text is sampled."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from leveret.config import Config


class SamplingConfig(Config):
    """Settings of one generation. temperature 0 is greedy."""

    max_new_tokens: int = Field(128, gt=0)
    """Most tokens to generate."""
    temperature: float = Field(0.0, ge=0)
    """Logits are divided by it; 0 takes the most probable token."""
    top_k: int | None = Field(None, gt=0)
    """Keep this many most probable tokens."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Keep the fewest most probable tokens that together reach this probability (Holtzman et al., 2020)."""
    min_p: float | None = Field(None, ge=0, le=1)
    """Keep tokens at least this times as probable as the most probable one (Nguyen et al., 2024)."""
    repetition_penalty: float = Field(1.0, gt=0)
    """Penalty on tokens that have occurred: a logit is divided by it if positive, multiplied if negative."""
    repetition_form: Literal["once", "per-count"] = "once"
    """once: the penalty itself, over prompt and answer (Keskar et al., 2019; transformers). per-count: the penalty to
    the power of the number of occurrences (smallm)."""
    repetition_window: int | None = Field(None, gt=0)
    """Look for occurrences among this many last tokens only. None: all."""
    stop: list[str] = []
    """Strings that end the answer; they are not part of it."""
    seed: int | None = None
    """Seed of the draws. None: a new one each time."""
