"""Whether a model is right as often as it believes to be.

Of a question with several choices, the belief in the chosen one is its share of the choices' probability: the softmax
of their log-likelihoods. Questions are put in order of that belief and cut into bins that hold equally many; the
expected calibration error is the mean distance of a bin's accuracy from its belief, weighted by questions (Guo et al.,
2017, "On Calibration of Modern Neural Networks"; bins of equal mass: Nguyen and O'Connor, 2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

BINS = 10


def belief(loglikelihoods: Sequence[float]) -> float:
    """The share of the likeliest choice in the probability of all of them."""
    values = np.asarray(loglikelihoods, dtype=np.float64)
    return float(1 / np.exp(values - values.max()).sum())


def calibration(beliefs: Sequence[float], correct: Sequence[bool], bins: int = BINS) -> dict[str, Any]:
    """The expected calibration error of these answers, `ece`, and the `bins` from the least belief on.

    belief, accuracy: means over all. Where there are fewer answers than bins, each is a bin.
    """
    order = np.argsort(np.asarray(beliefs), kind="stable")
    sure, right = np.asarray(beliefs, dtype=np.float64)[order], np.asarray(correct, dtype=np.float64)[order]
    parts = np.array_split(np.arange(len(order)), min(bins, len(order)))
    found = [
        {"n": len(part), "belief": float(sure[part].mean()), "accuracy": float(right[part].mean())} for part in parts
    ]
    error = sum(part["n"] * abs(part["belief"] - part["accuracy"]) for part in found) / len(order)
    return {
        "n": len(order),
        "ece": float(error),
        "belief": float(sure.mean()),
        "accuracy": float(right.mean()),
        "bins": found,
    }


def calibration_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The same of the rows of evaluation/suite.py, those with several choices; None where there are none."""
    chosen = [row for row in rows if len(row.get("loglikelihoods", ())) > 1]
    if not chosen:
        return None
    return calibration([belief(row["loglikelihoods"]) for row in chosen], [row["correct"] for row in chosen])


def plot_reliability(known: dict[str, dict[str, Any]], path: Path) -> None:
    """Accuracy over belief, a panel for each model; on the diagonal a model is right as often as it believes to be.

    Args:
        known: what `calibration` found, by the model's name.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    across = min(4, len(known))
    down = -(-len(known) // across)
    with plt.style.context("seaborn-v0_8-whitegrid"):
        figure, panels = plt.subplots(
            down, across, figsize=(2.6 * across + 0.5, 2.7 * down + 0.3), sharex=True, sharey=True, squeeze=False
        )
        for axes, (name, found) in zip(panels.flat, known.items(), strict=False):
            axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle="--")
            points = [(part["belief"], part["accuracy"]) for part in found["bins"]]
            axes.plot(*zip(*points, strict=True), color="#6b9dc2", marker="o", markersize=4, linewidth=1.2)
            axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
            axes.set_title(f"{name}\nECE {found['ece']:.3f}", fontsize="small")
        for axes in panels.flat[len(known) :]:
            axes.set_visible(False)
        figure.supxlabel("belief in the chosen answer", fontsize="small")
        figure.supylabel("share right", fontsize="small")
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
        plt.close(figure)
