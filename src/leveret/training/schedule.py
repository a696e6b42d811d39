"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from leveret.training.config import ScheduleConfig


def learning_rate(config: ScheduleConfig, peak: float, step: int, total: int) -> float:
    """The rate of a step, counting steps from 0; the last one is total - 1.

    Warm-up is linear from peak / warm-up steps to the peak, and takes at most half of the steps. After it cosine and
    linear fall to min_lr, which the last step uses; wsd stays at the peak until its final linear decay.
    """
    warmup = config.warmup_steps if config.warmup_steps is not None else round(config.warmup_fraction * total)
    warmup = min(warmup, total // 2)
    if step < warmup:
        return peak * (step + 1) / warmup
    if config.kind == "constant":
        return peak
    start = warmup
    if config.kind == "wsd":
        start = max(warmup, total - max(1, round(config.decay_fraction * total)))
        if step < start:
            return peak
    progress = (step - start + 1) / max(1, total - start)
    shape = (1 + math.cos(math.pi * progress)) / 2 if config.kind == "cosine" else 1 - progress
    return config.min_lr + (peak - config.min_lr) * shape
