"""metrics.csv and the pictures of a stage, drawn from metrics.jsonl and events.jsonl beside the training.

plots/loss.png (all of it), plots/loss-zoomed.png (its last four fifths), plots/rates.png. `python -m
leveret.training.plots FOLDER TITLE` draws them once; a training has that done by another process, so that no step
waits for a picture.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leveret.training.metrics import Row, read_events, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REST = 30.0
"""Seconds between the starts of two drawings at least."""
PATIENCE = 120.0
"""Seconds that the last drawing may take."""

TRAINING, VALIDATION, RATES = "#6b9dc2", "#c44e52", "#55785a"
MARKS = {"spike": ("spike", "#e08a1e", "v"), "skipped": ("skipped step", "#8a63a8", "x")}
"""Kinds of events that are marked at the upper edge: label, colour, marker."""
LOSSES = {"prefer": "loss (nats per pair)", "reinforce": "loss (its value says nothing)"}
"""What the loss of a stage is, where it is not that of the next token."""
PANELS = {
    "validation_bits_per_byte": ("held-out bits per byte", 1.0),
    "lr": ("learning rate", 1.0),
    "grad_norm": ("gradient norm", 1.0),
    "tokens_per_second": ("tokens/s", 1.0),
    "peak_memory_bytes": ("peak memory, GiB", 2.0**30),
    "reward": ("reward", 1.0),
    "validation_reward": ("held-out reward", 1.0),
    "answer_tokens": ("tokens of an answer", 1.0),
    "validation_preferred": ("chosen likelier", 1.0),
    "validation_margin": ("margin", 1.0),
    "validation_chosen": ("log p of chosen", 1.0),
}
"""Of rates.png: key, label, and the unit that values are divided by."""


class Painter:
    """Has the CSV and the plots of a stage drawn while it trains."""

    def __init__(self, folder: Path, title: str) -> None:
        self.command = [sys.executable, "-m", "leveret.training.plots", str(folder), title]
        self.at_work: subprocess.Popen[bytes] | None = None
        self.begun = float("-inf")

    def update(self) -> None:
        """Begins a drawing, unless one is under way or was just begun."""
        busy = self.at_work is not None and self.at_work.poll() is None
        if not busy and time.monotonic() - self.begun >= REST:
            self._begin()

    def _begin(self) -> None:
        self.begun = time.monotonic()
        # A session of its own: ctrl-C is for the training alone.
        self.at_work = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip

    def stop(self) -> None:
        """Ends a drawing that is under way."""
        if self.at_work is not None:
            self.at_work.kill()
            self.at_work.wait()

    def finish(self, say: Callable[[str], None]) -> None:
        """Draws a last time, and waits for it."""
        try:
            if self.at_work is not None:
                self.at_work.wait(PATIENCE)
            self._begin()
            assert self.at_work is not None
            code = self.at_work.wait(PATIENCE)
            failed = f"exit code {code}" if code else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            failed = str(error)
        if failed:
            say(f"the plots are not drawn ({failed}); `{' '.join(self.command)}` says why")


def write_csv(folder: Path, rows: list[Row]) -> None:
    """metrics.csv, one column for every key."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    partial = folder / ".metrics.csv.partial"
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(folder / "metrics.csv")


def plot_training(folder: Path, title: str) -> None:
    """Draws every picture of a stage's folder anew."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows, events = read_metrics(folder), read_events(folder)
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)

    def save(figure: Any, name: str) -> None:
        partial = plots / f".{name}"
        figure.savefig(partial, dpi=120, bbox_inches="tight")
        plt.close(figure)
        partial.replace(plots / name)

    with plt.style.context("seaborn-v0_8-whitegrid"):
        for name, begin in (("loss.png", 0.0), ("loss-zoomed.png", 0.2)):
            figure, axes = plt.subplots(figsize=(7, 4))
            _loss(axes, rows, events, begin)
            axes.set(title=title, xlabel="step", ylabel=LOSSES.get(folder.name, "loss (nats per token)"))
            save(figure, name)
        shown = [key for key in PANELS if points(rows, key)]
        figure, panels = plt.subplots(max(len(shown), 1), 1, figsize=(7, 2.1 * max(len(shown), 1)), sharex=True)
        for axes, key in zip(panels if len(shown) > 1 else [panels], shown, strict=False):
            label, unit = PANELS[key]
            steps, values = zip(*points(rows, key), strict=True)
            axes.plot(steps, [value / unit for value in values], color=RATES, linewidth=1)
            axes.set_ylim(limits([value / unit for value in values], floor=0.0))
            axes.set_ylabel(label)
            _mark(axes, events)
        figure.axes[0].set_title(title)
        figure.axes[-1].set_xlabel("step")
        figure.align_ylabels()
        save(figure, "rates.png")


def points(rows: list[Row], key: str) -> list[tuple[int, float]]:
    return [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]


def limits(values: list[float], floor: float | None = None) -> tuple[float, float]:
    """The ends of an axis: around nearly all values, so that a few far out do not flatten the rest. It begins at the
    floor, unless there are values below it."""
    ordered = sorted(values)
    if floor is not None and ordered[0] < floor:
        floor = None
    usual, low = ordered[int(0.98 * (len(ordered) - 1))], ordered[0] if floor is None else floor
    high = min(ordered[-1], usual + (usual - low))
    room = 0.06 * (high - low) or 1.0
    return low if floor is not None else low - room, high + room


def _loss(axes: Axes, rows: list[Row], events: list[Row], begin: float) -> None:
    """Training and validation loss from a share of the steps on, and what happened."""
    first = begin * max((row["step"] for row in rows), default=0)
    training = [point for point in points(rows, "loss") if point[0] >= first]
    validation = [point for point in points(rows, "validation_loss") if point[0] >= first]
    if training:
        marker = "." if len(training) == 1 else ""  # which is no line yet
        axes.plot(*zip(*training, strict=True), label="training", color=TRAINING, linewidth=1, marker=marker)
    if validation:
        few = len(validation) <= 40
        axes.plot(
            *zip(*validation, strict=True), label="validation", color=VALIDATION, linewidth=1.4,
            marker="o" if few else "", markersize=3.5,
        )  # fmt: skip
    if begin and training + validation:
        axes.set_ylim(limits([value for _, value in training + validation]))
    _mark(axes, [event for event in events if event["step"] >= first])
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=True, fontsize="small", loc="upper right")


def _mark(axes: Axes, events: list[Row]) -> None:
    """Spikes and skipped steps as marks at the upper edge, roll-backs as lines across."""
    for kind, (label, colour, marker) in MARKS.items():
        if steps := [event["step"] for event in events if event.get("kind") == kind]:
            axes.plot(
                steps, [1.0] * len(steps), linestyle="", marker=marker, markersize=5, color=colour, label=label,
                transform=axes.get_xaxis_transform(), clip_on=False, zorder=3,
            )  # fmt: skip
    for number, event in enumerate(event for event in events if event.get("kind") == "roll-back"):
        once = "roll-back" if number == 0 else None
        axes.axvline(event["step"], color="#333333", linestyle="--", linewidth=1, label=once)


if __name__ == "__main__":
    write_csv(Path(sys.argv[1]), read_metrics(Path(sys.argv[1])))
    plot_training(Path(sys.argv[1]), sys.argv[2])
