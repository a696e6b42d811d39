"""Whether the learning rate's schedule ended when training did.

One of the published models was stopped at step 30,000 of a schedule set for 76,300: its rate never came down.
"""

from __future__ import annotations

from collections.abc import Iterable

from leveret.audit.finding import Finding, Stamp
from leveret.training.config import TrainingConfig
from leveret.training.schedule import learning_rate

TOLERANCE = 0.05
"""Of the peak rate: nearer to its end than this, a schedule has ended."""


def audit_schedule(stages: Iterable[tuple[str, TrainingConfig, int, int, float | None]]) -> Stamp:
    """Of each stage its name, its config, the steps that its schedule is for, those taken, and the last rate logged."""
    findings, looked_at = [], []
    for stage, config, planned, taken, logged in stages:
        peak = config.optimizer.lr
        end = learning_rate(config.schedule, peak, planned - 1, planned)
        rate = learning_rate(config.schedule, peak, min(taken, planned) - 1, planned) if logged is None else logged
        looked_at.append(f"{stage} {taken:,} of {planned:,} steps, {rate:.2g}")
        if taken < planned and config.schedule.kind == "constant":
            findings.append(Finding("warning", _early(taken, planned), stage, "go on, or say steps anew"))
        elif rate - end > TOLERANCE * peak:
            what = f"{_early(taken, planned)} at a rate of {rate:.3g}, and the schedule ends at {end:.3g}"
            mend = f"train it to its end, or set {stage}.steps to what is meant, so that the rate comes down"
            findings.append(Finding("warning", what, stage, mend))
    if not looked_at:
        return Stamp("schedule", not_run="nothing has been trained yet")
    return Stamp("schedule", findings, "; ".join(looked_at))


def _early(taken: int, planned: int) -> str:
    return f"training ended at step {taken:,} of {planned:,}"
