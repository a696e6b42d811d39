"""metrics.jsonl is the truth: a line for every logged step and every validation. events.jsonl says what happened.

The CSV, the plots and the trackers are made from these.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class MetricsLog:
    """Reopened at a step, it cuts off what came after, in one replacement that a kill leaves whole."""

    def __init__(self, folder: Path, resume_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(folder) if row["step"] <= resume_step]
        partial = folder / ".metrics.jsonl.partial"
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in kept)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)
        self.file = self.path.open("a", buffering=1, encoding="utf-8")
        self.losses = {row["step"]: row["validation_loss"] for row in kept if "validation_loss" in row}

    def write(self, row: Row) -> None:
        self.file.write(json.dumps(row) + "\n")
        if "validation_loss" in row:
            self.losses[row["step"]] = row["validation_loss"]

    def sync(self) -> None:
        """What was written outlives a loss of power too, as the checkpoint that is saved next does."""
        os.fsync(self.file.fileno())

    def validated(self, step: int) -> bool:
        return step in self.losses

    def best_step(self) -> int | None:
        """The step with the lowest validation loss so far."""
        return min(self.losses, key=self.losses.__getitem__, default=None)

    def close(self) -> None:
        self.file.close()


def read_metrics(folder: Path) -> list[Row]:
    """The rows of metrics.jsonl up to the first line that is none, such as a last one that a crash cut short."""
    return list(takewhile(bool, _rows(folder / "metrics.jsonl")))


def read_events(folder: Path) -> list[Row]:
    """The rows of events.jsonl; a line that a crash cut short is left out."""
    return list(filter(None, _rows(folder / "events.jsonl")))


def append_event(folder: Path, row: Row) -> None:
    """Adds a line to events.jsonl, behind one that a crash cut short too."""
    with (folder / "events.jsonl").open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 1, 0))
        whole = file.read() in (b"", b"\n")
        file.write(b"\n" * (not whole) + json.dumps(row).encode() + b"\n")


def _rows(path: Path) -> Iterator[Row]:
    """The lines of a file; one that is no JSON object with a step is empty."""
    for line in path.read_bytes().splitlines() if path.exists() else []:
        yield row_of(line)


def row_of(line: bytes) -> Row:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else {}
