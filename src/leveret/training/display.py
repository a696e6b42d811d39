"""What a person sees while a model trains: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 15.0
"""At most one plain line in this time, the first and last besides."""


class Display:
    """Shows loss, tokens/s and time left. Used as a context manager around the loop."""

    def __init__(self, console: Console, label: str, total: int, start: int) -> None:
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

    def update(self, row: dict[str, Any]) -> None:
        """A row of metrics of a step that is done."""
        step, facts = row["step"], f"loss {row['loss']:.3f} · {row['tokens_per_second']:,.0f} tokens/s"
        self.progress.update(self.task, completed=step, facts=facts)
        now = time.monotonic()
        if not self.live and (now - self.said >= PLAIN_SECONDS or step == self.total):
            self.said = now
            left = (now - self.begun) / max(step - self.start, 1) * (self.total - step)
            self.console.print(f"{self.label}: step {step}/{self.total} · {facts} · {left:.0f} s left", highlight=False)

    def say(self, text: str) -> None:
        self.progress.console.print(f"{self.label}: {text}", highlight=False)
