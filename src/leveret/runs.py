"""The runs in a folder: how each is doing, what it has cost, what sets two apart.

Everything here only reads, and takes what is damaged or not there yet for unknown: a run can be looked at while it
goes on, after a crash, or half copied.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from leveret.errors import UserError
from leveret.rundir import read_object
from leveret.strangers.documents import read_yaml
from leveret.training import STAGES
from leveret.training.lock import holder
from leveret.training.meter import read_ledger
from leveret.training.metrics import Row, read_events, row_of

TAIL = 1 << 18
"""Bytes at the end of metrics.jsonl in which the newest figures are looked for."""


@dataclass(frozen=True)
class StageStatus:
    """What is known of a stage of training; None is unknown. seconds and cost: of all that was ever spent on it."""

    name: str
    step: int | None
    steps: int | None
    loss: float | None
    validation_loss: float | None
    seconds: float | None
    cost: float | None
    energy_kwh: float | None
    summary: dict[str, Any]


@dataclass(frozen=True)
class RunStatus:
    """What is known of a run.

    state: running, finished, interrupted (it goes on with the same command) or failed.
    stage: the one at work, the one that was not finished, or the last.
    why: the error of a failed run.
    """

    path: Path
    state: str
    stage: str
    why: str
    stages: dict[str, StageStatus]

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def trained(self) -> StageStatus | None:
        """The stage of training to look at: the one named by `stage`, else the last there is."""
        return self.stages.get(self.stage) or next(reversed(self.stages.values()), None)

    @property
    def seconds(self) -> float | None:
        return _sum([stage.seconds for stage in self.stages.values()])

    @property
    def cost(self) -> float | None:
        return _sum([stage.cost for stage in self.stages.values()])


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def runs_in(folder: Path) -> list[RunStatus]:
    """The runs right under a folder, by name, or the folder itself where it is one.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {str(folder)!r} to look for runs in; `leveret run RECIPE` makes runs/NAME")
    if _is_run(folder):
        return [status(folder)]
    return [status(path) for path in sorted(folder.iterdir()) if _is_run(path)]


def _is_run(path: Path) -> bool:
    marks = ("recipe.yaml", "state.json", *(f"{stage}/metrics.jsonl" for stage in STAGES))
    return path.is_dir() and any((path / mark).is_file() for mark in marks)


def find(reference: str) -> tuple[RunStatus, StageStatus | None]:
    """A run by its folder or its name under runs/, /STAGE after it if wished, and its stage of training to look at.

    Raises:
        UserError: there is no such run, or no such stage in it.
    """
    path, wanted = Path(reference), None
    if path.name in STAGES and not _is_run(path):
        path, wanted = path.parent, path.name
    for candidate in (path, Path("runs") / path):
        if _is_run(candidate):
            run = status(candidate)
            if wanted is not None and wanted not in run.stages:
                raise UserError(f"{candidate} has no figures of {wanted} yet")
            return run, run.stages[wanted] if wanted else run.trained
    raise UserError(f"there is no run {str(path)!r} here or under runs/; `leveret runs` lists them")


def status(path: Path) -> RunStatus:
    """How a run is doing."""
    known = read_object(path / "state.json").get("stages")
    begun = {name: entry for name, entry in known.items() if isinstance(entry, dict)} if isinstance(known, dict) else {}
    stages = {name: _stage(path / name, name) for name in STAGES if (path / name / "metrics.jsonl").is_file()}
    at_work = [name for name in STAGES if holder(path / name)]
    open_ends = [name for name, entry in begun.items() if not entry.get("finished")]
    last = next(reversed(begun or stages or {"": None}))
    if at_work or holder(path):
        return RunStatus(path, "running", next(iter([*at_work, *open_ends, last])), "", stages)
    if open_ends or not begun:
        stage = open_ends[0] if open_ends else last
        why = str(begun.get(stage, {}).get("failed") or "")
        return RunStatus(path, "failed" if why else "interrupted", stage, why, stages)
    return RunStatus(path, "finished", last, "", stages)


def _stage(folder: Path, name: str) -> StageStatus:
    summary, ledger, rows = read_object(folder / "summary.json"), read_ledger(folder), newest(folder)
    logged = next((row for row in reversed(rows) if "lr" in row), {})
    validated = next((row for row in reversed(rows) if "validation_loss" in row), {})
    seconds = sum(ledger["seconds"].values()) or _number(logged.get("train_seconds"))
    joules = _number(ledger["energy_joules"])
    return StageStatus(
        name=name,
        step=logged.get("step", validated.get("step")),
        steps=ledger["steps"] or summary.get("steps"),
        loss=_number(logged.get("loss")),
        validation_loss=_number(validated.get("validation_loss")),
        seconds=seconds,
        cost=_number(ledger["cost"]),
        energy_kwh=joules / 3.6e6 if joules else None,
        summary=summary,
    )


def newest(folder: Path) -> list[Row]:
    """The last rows of metrics.jsonl."""
    with (folder / "metrics.jsonl").open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        return [row for line in file.read().splitlines() if (row := row_of(line))]


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) else None


def happened(folder: Path) -> dict[str, int]:
    """How often each kind of event was in a stage."""
    return dict(Counter(str(event.get("kind")) for event in read_events(folder)))


FIGURES = {
    "steps": "steps", "tokens": "tokens", "training seconds": "train_seconds", "tokens/s": "tokens_per_second",
    "MFU": "mfu", "peak memory, bytes": "peak_memory_bytes", "final validation loss": "final_validation_loss",
    "best validation loss": "best_validation_loss", "dtype": "dtype",
}  # fmt: skip
"""What of a finished stage's summary.json is compared."""


def compared(a: RunStatus, b: RunStatus) -> list[tuple[Any, ...]]:
    """Figures of two runs side by side: (label, of a, of b), those of the runs first."""
    rows: list[tuple[Any, ...]] = [
        ("state", a.state, b.state),
        ("seconds", a.seconds, b.seconds),
        ("cost, $", a.cost, b.cost),
    ]
    for name in STAGES:
        pair = [run.stages.get(name) for run in (a, b)]
        for label in ("step", "loss", "validation_loss", "energy_kwh"):
            rows.append((f"{name}: {label.replace('_', ' ')}", *(getattr(stage, label, None) for stage in pair)))
        for label, key in FIGURES.items():
            rows.append((f"{name}: {label}", *(stage.summary.get(key) if stage else None for stage in pair)))
    return [row for row in rows if row[1:] != (None, None)]


def recipe_of(run: RunStatus) -> dict[str, Any]:
    """The recipe as it stands in the run; empty where it is not readable."""
    try:
        found = read_yaml(run.path / "recipe.yaml")
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
