"""Intervals by resampling, of two models that answered the same questions and of sums over documents.

Questions (or documents) are drawn again and again with replacement, the same ones for both models, and the middle 95%
of what comes out is the interval (the percentile interval: Efron and Tibshirani, 1993, "An Introduction to the
Bootstrap", chapter 13; for two systems on one test set: Koehn, 2004, "Statistical Significance Tests for Machine
Translation Evaluation"). Each interval has a generator of its own, so that no other one changes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

SEED = 20041
RESAMPLES = 10_000
MIDDLE = (2.5, 97.5)
"""Percentiles between which 95% lie."""
AT_ONCE = 1 << 22
"""Counts that are drawn at once, which bounds memory."""

Floats = NDArray[np.float64]


def _generator(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, *name.encode()])


def _interval(values: Floats) -> list[float]:
    return [float(value) for value in np.percentile(values, MIDDLE)]


def resampled_differences(a: Sequence[bool], b: Sequence[bool], name: str = "", seed: int = SEED) -> Floats:
    """Differences in accuracy, a's less b's, of so many resamples of the questions, [RESAMPLES].

    A question counts 1, 0 or -1, so that to draw questions is to draw how many there are of each, which is multinomial.

    Args:
        a, b: whether each answered each question rightly, in the same order.
        name: of the questions; other names, other draws.
    """
    wins, ties, losses = outcomes(a, b)
    drawn = _generator(seed, name).multinomial(len(a), np.array([wins, ties, losses]) / len(a), RESAMPLES)
    differences: Floats = (drawn[:, 0] - drawn[:, 2]) / len(a)
    return differences


def outcomes(a: Sequence[bool], b: Sequence[bool]) -> tuple[int, int, int]:
    """Questions that only a answered rightly, that both or neither did, and that only b did."""
    wins = sum(x and not y for x, y in zip(a, b, strict=True))
    losses = sum(y and not x for x, y in zip(a, b, strict=True))
    return wins, len(a) - wins - losses, losses


def compare_answers(
    a: Mapping[str, Sequence[bool]], b: Mapping[str, Sequence[bool]], seed: int = SEED
) -> dict[str, Any]:
    """Two models on the same questions.

    Args:
        a, b: for each task, whether each question was answered rightly.

    Returns:
        `tasks`: for each, n, wins, ties and losses of a, the difference in accuracy (a's less b's) and its interval.
        `mean`: the same difference averaged over tasks, each resampled by itself. `won`, `tied`, `lost`: tasks by
        their accuracy. `clear`: tasks won and lost whose interval leaves 0 out.
    """
    tasks: dict[str, Any] = {}
    drawn = []
    for task in a:
        wins, ties, losses = outcomes(a[task], b[task])
        drawn.append(resampled_differences(a[task], b[task], task, seed))
        tasks[task] = {
            "n": len(a[task]),
            "wins": wins,
            "ties": ties,
            "losses": losses,
            "difference": (wins - losses) / len(a[task]),
            "interval_95": _interval(drawn[-1]),
        }
    differences = [found["difference"] for found in tasks.values()]
    return {
        "tasks": tasks,
        "mean": {"difference": float(np.mean(differences)), "interval_95": _interval(np.mean(drawn, axis=0))},
        "won": sum(value > 0 for value in differences),
        "tied": sum(value == 0 for value in differences),
        "lost": sum(value < 0 for value in differences),
        "clear": {
            "won": sum(found["interval_95"][0] > 0 for found in tasks.values()),
            "lost": sum(found["interval_95"][1] < 0 for found in tasks.values()),
        },
    }


def ratio_interval(above: ArrayLike, below: ArrayLike, name: str = "", seed: int = SEED) -> list[float]:
    """The 95% interval of sum(above) / sum(below) when documents are drawn again; of one document there is none.

    Args:
        above, below: a figure of each document, such as the bits that it takes and its bytes.
    """
    tops, bottoms = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    rng, size = _generator(seed, name), len(tops)
    if size < 2:
        return [float(tops.sum() / bottoms.sum())] * 2
    ratios: list[Floats] = []
    step = max(1, AT_ONCE // size)
    for begin in range(0, RESAMPLES, step):
        counts = rng.multinomial(size, np.full(size, 1 / size), min(step, RESAMPLES - begin))
        ratios.append((counts @ tops) / (counts @ bottoms))
    return _interval(np.concatenate(ratios))
