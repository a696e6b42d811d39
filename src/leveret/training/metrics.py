"""metrics.jsonl is the truth: a line for every logged step and every validation. events.jsonl says what happened.

The CSV, the plots and the trackers are made from these.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from leveret.errors import UserError
from leveret.strangers.documents import parse_json
from leveret.strangers.files import read_limited

Row = dict[str, Any]
MOST_BYTES = 2**29
"""Of a file of rows that is read; a million steps take less."""
NOWHERE = Path(os.devnull)
"""Where ranks write that do not speak."""
log = logging.getLogger("leveret")


class Lines:
    """A file that grows by whole lines of JSON. A disk that is full or fails stops nothing: what it does not take
    waits for the next line."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("ab", buffering=0)
        self.size = path.stat().st_size
        self.refused = False
        self.waiting = b"" if _ends_whole(path, self.size) else b"\n"  # a crash cut it short

    def write(self, row: Row) -> None:
        self.waiting += json.dumps(row).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        try:
            if self.file.write(self.waiting) != len(self.waiting):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if not self.refused:  # once, until it has been written
                log.warning("%s waits to be written (%s)", self.file.name, error.strerror)
            self.refused = True
            with suppress(OSError):
                self.file.truncate(self.size)
        else:
            self.size += len(self.waiting)
            self.waiting, self.refused = b"", False

    def sync(self) -> None:
        """What was written outlives a loss of power too, as the checkpoint that is saved next does."""
        with suppress(OSError):
            os.fsync(self.file.fileno())

    def close(self) -> None:
        if self.waiting:
            self.flush()
        self.file.close()


class MetricsLog(Lines):
    """Reopened at a step, it cuts off what came after, in one replacement that a kill leaves whole. One
    that does not write knows all the same what was validated."""

    def __init__(self, folder: Path, resume_step: int, writes: bool = True) -> None:
        path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(folder) if row["step"] <= resume_step]
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            partial = folder / ".metrics.jsonl.partial"
            with partial.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in kept)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        self.losses = {row["step"]: row["validation_loss"] for row in kept if "validation_loss" in row}
        self.measured = {row["step"] for row in kept if "loss" not in row}
        super().__init__(path if writes else NOWHERE)

    def write(self, row: Row) -> None:
        super().write(row)
        if "validation_loss" in row:
            self.losses[row["step"]] = row["validation_loss"]
        if "loss" not in row:
            self.measured.add(row["step"])

    def validated(self, step: int) -> bool:
        """Whether a validation was told of, with a loss or without one."""
        return step in self.measured


def _ends_whole(path: Path, size: int) -> bool:
    """Whether the last line of a file of that size is whole."""
    if not size:
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def read_metrics(folder: Path) -> list[Row]:
    """The rows of metrics.jsonl up to the first line that is none, such as a last one that a crash cut short."""
    return list(takewhile(bool, _rows(folder / "metrics.jsonl")))


def read_events(folder: Path) -> list[Row]:
    """The rows of events.jsonl; a line that a crash cut short is left out."""
    return list(filter(None, _rows(folder / "events.jsonl")))


def _rows(path: Path) -> Iterator[Row]:
    """The lines of a file; one that is no JSON object with a step is empty."""
    try:
        content = read_limited(path, MOST_BYTES) if path.exists() else b""
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    for line in content.splitlines():
        yield row_of(line)


def row_of(line: bytes) -> Row:
    try:
        row = parse_json(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else {}
