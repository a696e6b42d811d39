"""Being asked to stop."""

from __future__ import annotations

import signal
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any


class Interrupted(Exception):
    """Training was asked to stop, has saved, and can go on with the same command."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} at step {step}; the same command goes on from here")
        self.exit_code = 128 + number


class Signals:
    """Notes the first SIGINT or SIGTERM, so that the loop can save; a second one leaves at once."""

    NUMBERS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received = 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        with suppress(ValueError):  # not the main thread: then nobody sends us signals
            self.before = {number: signal.signal(number, self._note) for number in self.NUMBERS}
        return self

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
        for each in self.NUMBERS:
            signal.signal(each, signal.SIG_DFL)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
