"""What is done when numbers go wrong: bad steps are counted, too many in a row are gone back from, spikes are told.

    loss, norm of every step --note--> kept on the device --read, when a line of metrics is due--> told as events
                                                                  --too many bad ones in a row--> RollBack

A step is bad where its loss or the norm of its gradients is no number; train_step has passed over it then, so that
weights stay numbers. What is decided is a function of the step alone, whenever a run is stopped and gone on with.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from leveret.data.batches import Batch, Batches
from leveret.errors import UserError
from leveret.training.checkpoint import open_checkpoint, steps_on_disk
from leveret.training.config import GuardConfig
from leveret.training.metrics import read_metrics
from leveret.training.progress import Progress

if TYPE_CHECKING:
    from leveret.training.loop import Trainer

WINDOW = 128
"""Steps that a spike is measured against, and the most that pass before the device is asked."""
ENOUGH = 32
"""Steps before there is a spread to measure against."""
SIGMAS = 6.0

Tell = Callable[..., None]
"""Takes an event: kind, step, facts."""


class RollBack(Exception):
    """The steps from `first` on, counted from 0, were all bad: an earlier state has to be gone back to."""

    def __init__(self, first: int) -> None:
        super().__init__(f"every step from {first + 1} on is bad")
        self.first = first


class Trend:
    """The last values of one figure, and whether the next lies far above their straight line.

    The line takes out the slope of a warm-up; what is left is compared with the spread around it. A spike joins the
    values as the highest that would have been none, so that it hides no other, and a new level is got used to.
    """

    def __init__(self) -> None:
        self.values: deque[float] = deque(maxlen=WINDOW)
        self.high = False

    def spike(self, value: float) -> float | None:
        """What was expected, where this value begins a spike."""
        was_high, expected = self.high, None
        if len(self.values) >= ENOUGH:
            expected, sigma = _foretold(np.asarray(self.values))
            limit = expected + SIGMAS * sigma
            self.high, value = value > limit, min(value, limit)
        self.values.append(value)
        return expected if self.high and not was_high else None


def _foretold(values: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    """The next value on the least squares line, and the standard deviation around that, a thousandth of it at least."""
    count = len(values)
    place = np.arange(count) - (count - 1) / 2
    mean, slope = values.mean(), (place @ values) / (place @ place)
    expected = float(mean + slope * (count + 1) / 2)
    left = values - mean - slope * place
    return expected, max(math.sqrt(left @ left / (count - 2)), 1e-3 * abs(expected))


class Beginning:
    """A stage's state before its first step: the weights, in the host's memory; there is nothing else yet."""

    def __init__(self, trainer: Trainer) -> None:
        self.weights = [parameter.detach().to("cpu", copy=True) for parameter in trainer.model.parameters()]
        self.scaler = trainer.scaler.state_dict()

    @torch.no_grad()
    def restore(self, trainer: Trainer, optimizer: torch.optim.Optimizer) -> None:
        for parameter, weight in zip(trainer.model.parameters(), self.weights, strict=True):
            parameter.copy_(weight)
        optimizer.state.clear()
        if self.scaler:
            trainer.scaler.load_state_dict(self.scaler)
        torch.manual_seed(trainer.config.seed)


class Guard:
    """Watches a stage's steps.

    Args:
        beginning: what to go back to, until there is a checkpoint.
    """

    def __init__(self, trainer: Trainer, beginning: Beginning | None) -> None:
        self.config, self.scaler, self.beginning = trainer.config.guard, trainer.scaler, beginning
        self.noted = torch.zeros(WINDOW, 2, device=trainer.device)
        self.count = 0
        self.trends = {"loss": Trend(), "grad_norm": Trend()}

    def note(self, loss: Tensor, norm: Tensor) -> None:
        """Keeps a step's figures where they are; nobody waits."""
        self.noted[self.count, 0], self.noted[self.count, 1] = loss, norm
        self.count += 1

    def read(self, progress: Progress, tell: Tell) -> tuple[float, float]:
        """Waits for the steps noted, counts and tells what was wrong with them. The last one's loss and norm."""
        rows = self.noted[: self.count].tolist()
        for step, (loss, norm) in enumerate(rows, progress.step - self.count + 1):
            found = {"loss": loss, "grad_norm": norm}
            wrong = {name: str(value) for name, value in found.items() if not math.isfinite(value)}
            if wrong and ("loss" in wrong or not self._seeking()):
                progress.bad_steps += 1
                progress.bad_in_a_row += 1
                tell("skipped", step, in_a_row=progress.bad_in_a_row, **wrong)
                continue
            progress.bad_in_a_row = 0
            for name in found.keys() - wrong.keys():
                if (expected := self.trends[name].spike(found[name])) is not None:
                    tell("spike", step, figure=name, value=found[name], expected=expected)
        self.count = 0
        return rows[-1][0], rows[-1][1]

    def _seeking(self) -> bool:
        """Whether gradients that are no numbers are only the scaler's search for a scale, in float16."""
        return self.scaler.is_enabled() and self.scaler.get_scale() >= 1

    def forget_beginning(self, checkpoints: Path) -> None:
        """Its memory is given back once there is a checkpoint."""
        if self.beginning is not None and steps_on_disk(checkpoints):
            self.beginning = None

    def check(self, progress: Progress) -> None:
        """Raises RollBack where the steps last read were bad, too many in a row. Called at steps that only their
        number decides on, so that a run that was stopped in between decides the same."""
        if progress.bad_in_a_row >= self.config.max_skipped:
            raise RollBack(progress.step - progress.bad_in_a_row)


def good_checkpoint(folder: Path, first: int) -> tuple[int, int]:
    """Where to go back to when the steps from `first` on, counted from 0, are bad: the step in a checkpoint's name, -1
    if there is none, and the step that its weights are of, which for one made among bad steps is the last before them.

    It is the newest one that a good step was taken from, as the weights themselves may be what is bad; where there is
    none, one that the first bad step was taken from.
    """
    last = (-1, 0)
    for number in reversed(steps_on_disk(folder)):
        try:
            step = number - int(open_checkpoint(folder / f"step-{number:08d}").state["bad_in_a_row"])
        except UserError:
            continue
        if step < first:
            return number, step
        if step == first and last[0] < 0:
            last = number, step
    return last


def lower(progress: Progress, config: GuardConfig, places: set[int], to_step: int) -> None:
    """Progress as it is after a roll-back: less of the data, a lower rate."""
    progress.step = to_step
    progress.skipped = sorted({*progress.skipped, *places})
    progress.lr_factor *= config.rollback_lr
    progress.rollbacks += 1
    progress.bad_in_a_row = 0


def write_failure(trainer: Trainer, progress: Progress, first: int) -> str:
    """failure.md in the stage's folder: what happened, the last lines of metrics, what may help. The sentence that
    says so in short."""
    folder, stage = trainer.folder, trainer.label
    columns = ("step", "loss", "grad_norm", "lr")
    rows = [row for row in read_metrics(folder) if "lr" in row][-20:]
    table = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    table += ["| " + " | ".join(str(row.get(column, "")) for column in columns) + " |" for row in rows]
    steps = steps_on_disk(folder / "checkpoints")
    what = f"the loss or its gradients were no numbers at steps {first + 1} to {progress.step}"
    lines = [
        f"# {stage} stopped: {what}",
        "",
        f"It had gone back {progress.rollbacks} times, to other data and a lower rate (now {progress.lr_factor:g} of "
        f"the schedule's), and {progress.bad_steps} steps were passed over in all. events.jsonl has every one of them.",
        "",
        f"Checkpoints of steps {', '.join(map(str, steps)) or '(none)'} are whole; weights that are no numbers are in "
        "none of them.",
        "",
        "## What may help",
        "",
        f"- a lower peak rate ({stage}.optimizer.lr), a longer warm-up ({stage}.schedule.warmup_steps), or a tighter "
        f"{stage}.grad_clip",
        f"- {stage}.precision: bf16 or fp32 instead of fp16 or fp8",
        "- if it is always the same data: `leveret data verify`, and a look at it with `leveret data inspect`",
        "- if it is always another step, on one machine only: that machine's memory",
        "",
        "## The last lines of metrics",
        "",
        *table,
    ]
    if trainer.group.main:
        (folder / "failure.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"{what}, after {progress.rollbacks} roll-backs; {folder / 'failure.md'} says what may help"


def refuse_strange_ids(batch: Batch, batches: Batches, step: int, vocabulary: int) -> None:
    """Looks at a batch while it is on the host: on a GPU a token id that the model does not know ends the process.

    Raises:
        UserError: there is one; the message names where it was read.
    """
    inputs, targets = batch.inputs.numpy(), batch.targets.numpy()
    if inputs.min() >= 0 and max(inputs.max(), targets.max()) < vocabulary:
        return
    strange = (inputs < 0) | (inputs >= vocabulary) | (targets >= vocabulary)
    row = int(strange.any(axis=1).argmax())
    window = int(batches.windows_of(step)[batches.rank * batches.share + row])
    raise UserError(
        f"the batch of step {step + 1} has token ids outside the vocabulary of {vocabulary}: row {row}, window "
        f"{window} of the split; its shards are damaged (`leveret data verify` names the file): prepare the data again"
    )
