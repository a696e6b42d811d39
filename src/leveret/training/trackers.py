"""Other people's dashboards: trackio, TensorBoard, Weights & Biases. They are told what metrics.jsonl says.

A step is told once. How far each tracker was told is kept in trackers.json, so that a run that goes on continues the
tracker's own run: what it has missed it is told, what it has it is not told again. After a roll-back the steps that are
taken anew are told from where the first attempt ended. None of it stops a training: a tracker that is missing or fails
is said in a line, and left out.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from leveret.strangers.documents import read_json
from leveret.training.metrics import Row

PROJECT = "leveret"
"""What the trackers' project is called, unless their own environment variables name another."""


class Tracker(Protocol):
    """One dashboard."""

    def log(self, step: int, figures: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Files under STAGE/tensorboard, which `tensorboard --logdir` shows."""

    def __init__(self, folder: Path, name: str, identity: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), flush_secs=10)

    def log(self, step: int, figures: dict[str, float]) -> None:
        for key, value in figures.items():
            self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        self.writer.close()


class Trackio:
    """Trackio's database on this machine, which `trackio show` shows."""

    def __init__(self, folder: Path, name: str, identity: str) -> None:
        import trackio

        self.finish = trackio.finish  # of the run begun last, which then is forgotten at exit
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        with contextlib.redirect_stdout(io.StringIO()):
            self.run = trackio.init(
                project, name=f"{name}-{identity}", resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False
            )

    def log(self, step: int, figures: dict[str, float]) -> None:
        self.run.log(figures, step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.finish()


class WeightsAndBiases:
    """Weights & Biases, without a network unless WANDB_MODE says otherwise: files under STAGE/wandb, which `wandb sync
    --append` sends later."""

    def __init__(self, folder: Path, name: str, identity: str) -> None:
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=name, id=identity, resume="allow", dir=str(folder),
            mode=None if "WANDB_MODE" in os.environ else "offline",
            settings=wandb.Settings(silent=True, x_disable_stats=True),
        )  # fmt: skip

    def log(self, step: int, figures: dict[str, float]) -> None:
        self.run.log(figures, step=step)

    def close(self) -> None:
        self.run.finish()


KINDS: dict[str, Callable[[Path, str, str], Tracker]] = {
    "trackio": Trackio,
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


class Trackers:
    """The trackers of a stage.

    Args:
        kinds: which, of KINDS.
        folder: the stage's, RUN/STAGE; these two name the trackers' run.
        say: tells the user a line.
    """

    def __init__(self, kinds: Sequence[str], folder: Path, say: Callable[[str], None]) -> None:
        self.path, self.say = folder / "trackers.json", say
        self.state: dict[str, Any] = {"identity": uuid.uuid4().hex[:8], "told": {}} | self._read()
        name = f"{folder.absolute().parent.name}-{folder.name}"
        self.open: dict[str, Tracker] = {}
        for kind in kinds:
            with self._harmless(kind):
                self.open[kind] = KINDS[kind](folder, name, self.state["identity"])

    def _read(self) -> dict[str, Any]:
        try:
            found = read_json(self.path)
            return found if isinstance(found["told"], dict) else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    @contextlib.contextmanager
    def _harmless(self, kind: str) -> Iterator[None]:
        """What a tracker does wrong in here is said, and it is left out from then on."""
        try:
            yield
        except Exception as error:
            self.open.pop(kind, None)
            why = " ".join(str(error).split())[:200]
            hint = "; pip install 'leveret[tracking]'" if isinstance(error, ImportError) else ""
            self.say(f"{kind} is left out: {why or type(error).__name__}{hint}")

    def tell(self, rows: list[Row]) -> None:
        """Tells each tracker those of the rows, which are in order, that it was not told yet."""
        for kind in list(self.open):
            told = self.state["told"].setdefault(kind, {})
            new = [row for row in rows if row["step"] > told.get(_sort(row), -1)]
            if not new:
                continue
            told |= {_sort(row): row["step"] for row in new}
            self._write()  # before it is told: rather a step that is missing than one told twice
            with self._harmless(kind):
                for row in new:
                    figures = {key: value for key, value in row.items() if key != "step" and _is_number(value)}
                    self.open[kind].log(row["step"], figures)

    def _write(self) -> None:
        partial = self.path.with_name(".trackers.json.partial")
        partial.write_text(json.dumps(self.state) + "\n", encoding="utf-8")
        partial.replace(self.path)

    def close(self) -> None:
        for kind, tracker in list(self.open.items()):
            with self._harmless(kind):
                tracker.close()
        self.open.clear()


def _sort(row: Row) -> str:
    """A step and its validation have the same number."""
    return "steps" if "lr" in row else "validations"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
