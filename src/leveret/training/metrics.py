"""metrics.jsonl is the truth; the CSV and the plots are drawn from it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any


class MetricsLog:
    """One line of JSON for every logged step. Reopening it at a step cuts off what came after."""

    def __init__(self, folder: Path, resume_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(folder) if row["step"] <= resume_step]
        self.path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self.file = self.path.open("a", buffering=1)

        self.losses = {row["step"]: row["validation_loss"] for row in kept if "validation_loss" in row}

    def write(self, row: dict[str, Any]) -> None:
        self.file.write(json.dumps(row) + "\n")
        if "validation_loss" in row:
            self.losses[row["step"]] = row["validation_loss"]

    def validated(self, step: int) -> bool:
        return step in self.losses

    def best_step(self) -> int | None:
        """The step with the lowest validation loss so far."""
        return min(self.losses, key=self.losses.__getitem__, default=None)

    def close(self) -> None:
        self.file.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line that a crash cut short is left out."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def write_csv(folder: Path) -> None:
    """metrics.csv beside metrics.jsonl, one column for every key."""
    rows = read_metrics(folder)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def plot_training(folder: Path, title: str) -> None:
    """plots/loss.png (whole), plots/loss-zoomed.png (last four fifths), plots/rates.png."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.axes import Axes

    rows = read_metrics(folder)
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)

    def draw(axes: Axes, key: str, **style: Any) -> None:
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), **style)

    def save(figure: Any, name: str) -> None:
        figure.savefig(plots / name, dpi=110, bbox_inches="tight")
        plt.close(figure)

    with plt.style.context("seaborn-v0_8-whitegrid"):
        for name, zoomed in (("loss.png", False), ("loss-zoomed.png", True)):
            figure, axes = plt.subplots(figsize=(7, 4))
            draw(axes, "loss", label="training", color="#7aa6c2", linewidth=1)
            draw(axes, "validation_loss", label="validation", color="#c44e52", marker="o", markersize=4)
            if zoomed and rows:
                late = [row for row in rows if row["step"] >= rows[-1]["step"] / 5]
                values = [r[k] for r in late for k in ("loss", "validation_loss") if r.get(k) is not None]
                axes.set_xlim(left=rows[-1]["step"] / 5)
                axes.set_ylim(min(values) * 0.95, max(values) * 1.05)
            axes.set(xlabel="step", ylabel="loss (nats per token)", title=title)
            if axes.get_legend_handles_labels()[0]:
                axes.legend()
            save(figure, name)
        figure, panels = plt.subplots(3, 1, figsize=(7, 7), sharex=True)
        labels = {"lr": "learning rate", "grad_norm": "gradient norm", "tokens_per_second": "tokens/s"}
        for axes, (key, label) in zip(panels, labels.items(), strict=True):
            draw(axes, key, color="#55785a", linewidth=1)
            axes.set_ylabel(label)
            axes.set_ylim(bottom=0)
        panels[0].set_title(title)
        panels[-1].set_xlabel("step")
        save(figure, "rates.png")
