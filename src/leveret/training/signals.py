"""Being asked to stop: by a person, by a scheduler that takes the machine away, by a cloud.

A signal is noticed when Python has control again: within a step, which is followed by the save; in a validation before
its next batch; while something is compiled, when that is done (at the start nothing has been trained yet that could be
lost). A process that is stuck outside Python, as in a collective that never ends, notices none.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

DOUBLED_SECONDS = 1.0
"""A second signal within this time is the first over again: a terminal sends it to launcher and process alike, and the
launcher hands it on."""


class Interrupted(Exception):
    """Training was asked to stop, has saved, and can go on with the same command."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} at step {step}; the same command goes on from here")
        self.exit_code = 128 + number


class Leaving(Exception):
    """What could be left half done was left, since a signal came."""


class Ranks(Protocol):
    """Processes that train together."""

    def agree(self, value: int) -> int:
        """The largest value of all ranks."""
        ...


class Signals:
    """Notes the first signal, so that the loop can save; a second one leaves at once."""

    NUMBERS = tuple(
        getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
    )  # Windows has no SIGUSR1, by which Slurm is often told to warn

    def __init__(self) -> None:
        self.received = 0
        self.at = 0.0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        with suppress(ValueError):  # not the main thread: then nobody sends us signals
            self.before = {number: signal.signal(number, self._note) for number in self.NUMBERS}
        return self

    def _note(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self.at = number, now
        elif now - self.at >= DOUBLED_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def agreed(self, ranks: Ranks) -> int:
        """The signal that any of the ranks has received, the same on all; 0 for none. All must ask together."""
        return ranks.agree(self.received)

    def heeded(self, items: Iterable[T], ranks: Ranks) -> Iterator[T]:
        """The items, until a signal comes to any rank. All have as many.

        Raises:
            Leaving: then.
        """
        for item in items:
            if self.agreed(ranks):
                raise Leaving
            yield item
