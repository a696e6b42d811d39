"""The stopwatch of the loop: training time and tokens a second, pauses for saving and validation left out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Meter:
    """Counts seconds of training.

    Args:
        tokens_a_step: positions that a step reads.
        seconds: trained before this start.
        step: steps done before this start.
    """

    def __init__(self, tokens_a_step: int, seconds: float, step: int) -> None:
        self.tokens_a_step = tokens_a_step
        self.seconds = seconds
        self.since_step, self.since_seconds = step, seconds
        self.started = time.perf_counter()

    def _count(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self.started
        self.started = now

    def lap(self, step: int) -> dict[str, Any]:
        """Tokens read so far, and tokens a second since the last lap."""
        self._count()
        steps, seconds = step - self.since_step, self.seconds - self.since_seconds
        self.since_step, self.since_seconds = step, self.seconds
        return {
            "tokens": step * self.tokens_a_step,
            "tokens_per_second": steps * self.tokens_a_step / seconds,
            "train_seconds": round(self.seconds, 3),
        }

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time spent inside does not count as training."""
        self._count()
        yield
        self.started = time.perf_counter()
