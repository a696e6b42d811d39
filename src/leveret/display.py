"""What a person sees of work that takes long: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 15.0
"""At most one plain line in this time, the first and last besides."""


class Display:
    """Shows how far the work is, some facts, and the time left. Used as a context manager around the work.

    Args:
        label: the stage's name.
        total: the work to be done, in any unit; None if nobody knows.
        start: how much of it was done before.
    """

    def __init__(self, console: Console, label: str, total: int | None, start: int = 0) -> None:
        self.console, self.label, self.total = console, label, total
        self.live = console.is_terminal
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not self.live,
        )
        self.task = self.progress.add_task(label, total=total, completed=start, facts="")
        self.begun, self.start, self.said = time.monotonic(), start, float("-inf")

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        self.progress.stop()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.begun

    def update(self, done: float, place: str, facts: str) -> None:
        """So much is done; `place` says it in words where no bar is drawn."""
        self.progress.update(self.task, completed=done, facts=facts)
        now = time.monotonic()
        if not self.live and (now - self.said >= PLAIN_SECONDS or done == self.total):
            self.said = now
            left = ""
            if self.total is not None and done > self.start:
                to_go = (now - self.begun) / (done - self.start) * (self.total - done)
                left = f" · {to_go:.0f} s left"
            self.console.print(f"{self.label}: {place} · {facts}{left}", highlight=False)

    def say(self, text: str) -> None:
        self.progress.console.print(f"{self.label}: {text}", highlight=False)
