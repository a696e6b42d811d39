"""The stopwatch of the loop: training time, tokens a second and the share of the device's peak; pauses for saving and
validation are left out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Meter:
    """Counts seconds of training.

    Args:
        tokens_a_step: positions that a step reads.
        token_share: seconds that a token takes at the device's peak: its operations, by those a second.
        seconds: trained before this start.
        step: steps done before this start.
    """

    def __init__(self, tokens_a_step: int, token_share: float, seconds: float, step: int) -> None:
        self.tokens_a_step, self.token_share = tokens_a_step, token_share
        self.seconds = seconds
        self.since_step, self.since_seconds = step, seconds
        self.started = time.perf_counter()

    def _count(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self.started
        self.started = now

    def lap(self, step: int) -> dict[str, Any]:
        """Tokens read so far; tokens a second and the model's FLOP utilisation since the last lap."""
        self._count()
        steps, seconds = step - self.since_step, self.seconds - self.since_seconds
        self.since_step, self.since_seconds = step, self.seconds
        rate = steps * self.tokens_a_step / seconds
        return {
            "tokens": step * self.tokens_a_step,
            "tokens_per_second": rate,
            "mfu": round(rate * self.token_share, 4),
            "train_seconds": round(self.seconds, 3),
        }

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time spent inside does not count as training."""
        self._count()
        yield
        self.started = time.perf_counter()
