"""What a person sees of work that takes long: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
import unicodedata
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

PLAIN_SECONDS = 15.0
"""At most one plain line in this time, the first and last besides."""
SPOOFING = {*"\u061c\u200e\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}
"""Marks that turn the direction of writing, and with it what a line seems to say."""


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
            TextColumn("{task.fields[left]}", style="progress.remaining"),
            console=console,
            transient=True,
            disable=not self.live,
        )
        self.task = self.progress.add_task(label, total=total, completed=start, facts="", left="")
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

    def update(self, done: float, place: str, facts: str, left: str | None = None) -> None:
        """So much is done; `place` says it in words where no bar is drawn. `left` tells the time left, empty where it
        is not known; None: as the share done says."""
        left = self._left(done) if left is None else left
        self.progress.update(self.task, completed=done, facts=facts, left=left)
        now = time.monotonic()
        if not self.live and (now - self.said >= PLAIN_SECONDS or done == self.total):
            self.said = now
            parts = [place, facts, *([left] if left else [])]
            self.console.print(f"{self.label}: {' · '.join(parts)}", highlight=False)

    def _left(self, done: float) -> str:
        if self.total is None or done <= self.start:
            return ""
        return f"{duration(self.seconds / (done - self.start) * (self.total - done))} left"

    def say(self, text: str) -> None:
        self.progress.console.print(f"{self.label}: {text}", highlight=False)


def duration(seconds: float) -> str:
    """In words, as exactly as anybody wants to know: 42 s, 3 min 10 s, 2 h 05 min, 3 d 04 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02} h"


def spelt(character: str) -> str:
    """A character as it may be shown: spelt out (\\x1b) if it would be invisible or command the terminal."""
    hidden = unicodedata.category(character) in ("Cc", "Cs", "Cn", "Co", "Zl", "Zp") or character in SPOOFING
    return ascii(character)[1:-1] if hidden else character
