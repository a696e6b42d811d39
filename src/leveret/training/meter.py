"""Where a stage's time goes, how fast it is, what it has cost, and how long the rest will take."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

from leveret.strangers.documents import read_json

KINDS = ("starting", "training", "waiting", "checkpoints", "validation")
"""starting: until the first step, the trial step and compiling among it. waiting: for a batch that is not ready. A GPU
works on for a moment while the process waits, so that it was idle for at most so long."""

RECENT = 20
"""Laps whose median says how long a step takes."""


class Clock:
    """Seconds of this process by kind.

    latest: how long the last checkpoint and the last validation took.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self.latest: dict[str, float] = {}
        self.kind, self.since = "starting", time.perf_counter()

    def count(self) -> None:
        """Brings seconds up to now."""
        now = time.perf_counter()
        self.seconds[self.kind] += now - self.since
        self.since = now

    def turn(self, kind: str) -> str:
        """Time from here on is of this kind; what it was before."""
        self.count()
        before, self.kind = self.kind, kind
        return before

    @contextmanager
    def spend(self, kind: str) -> Iterator[None]:
        before, begun = self.turn(kind), self.since
        try:
            yield
        finally:
            self.turn(before)
            self.latest[kind] = self.since - begun

    @property
    def stepping(self) -> float:
        """Seconds of steps, with what they waited for."""
        self.count()
        return self.seconds["training"] + self.seconds["waiting"]


class Meter:
    """The speed of the steps, from one logged step to the next.

    Args:
        tokens_a_step: positions that a step reads.
        token_share: seconds that a token takes at the device's peak: its operations, by those a second.
        seconds: trained before this start.
        step: steps done before this start.
    """

    def __init__(self, clock: Clock, tokens_a_step: int, token_share: float, seconds: float, step: int) -> None:
        self.clock, self.tokens_a_step, self.token_share = clock, tokens_a_step, token_share
        self.before = seconds - clock.stepping
        self.since_step, self.since_seconds = step, seconds
        self.steady = False
        self.laps: deque[float] = deque(maxlen=RECENT)

    @property
    def seconds(self) -> float:
        """Spent on the steps that are done, waiting for data included, over all starts."""
        return self.before + self.clock.stepping

    def lap(self, step: int) -> dict[str, Any]:
        """Tokens read so far; tokens a second and the model's FLOP utilisation since the last lap."""
        total = self.seconds
        steps, seconds = step - self.since_step, total - self.since_seconds
        self.since_step, self.since_seconds = step, total
        if self.steady:
            self.laps.append(seconds / steps)
        self.steady = True  # the first lap warms up
        rate = steps * self.tokens_a_step / seconds
        return {
            "tokens": step * self.tokens_a_step,
            "tokens_per_second": rate,
            "mfu": round(rate * self.token_share, 4),
            "train_seconds": round(total, 3),
        }

    def left(self, steps: int, pauses: dict[str, int]) -> tuple[float, bool] | None:
        """Seconds that so many steps and pauses (checkpoints, validation) to come will take; None before there is
        anything to go on. False beside them: a kind of pause was never seen yet, so that it will be more."""
        if not self.laps:
            return None
        known = {kind: number for kind, number in pauses.items() if kind in self.clock.latest}
        seconds = median(self.laps) * steps + sum(self.clock.latest[kind] * number for kind, number in known.items())
        return seconds, all(kind in known for kind, number in pauses.items() if number)


class Ledger:
    """ledger.json of a stage: all that was ever spent on it, on steps too that were lost in a crash.

    steps: of the whole stage. seconds: by kind. energy_joules: over metered_seconds, the time in which the hardware
    counted them. cost: of all seconds, in dollars; None without a price.
    """

    EVERY = 10.0
    """Seconds between two writings at least: what a kill makes it forget."""

    def __init__(self, folder: Path, clock: Clock, price: float | None, steps: int) -> None:
        self.path, self.clock, self.price, self.steps = folder / "ledger.json", clock, price, steps
        self.before = read_ledger(folder)
        self.written = time.monotonic()

    def facts(self, joules: float | None) -> dict[str, Any]:
        """All that was spent up to now, with the energy of this start."""
        self.clock.count()
        before, now = self.before, self.clock.seconds
        seconds = {kind: round(before["seconds"].get(kind, 0.0) + now[kind], 3) for kind in KINDS}
        metered = before["metered_seconds"] + (0.0 if joules is None else sum(now.values()))
        return {
            "format_version": 1,
            "steps": self.steps,
            "seconds": seconds,
            "energy_joules": round(before["energy_joules"] + (joules or 0.0), 1),
            "metered_seconds": round(metered, 3),
            "cost": None if self.price is None else round(self.price * sum(seconds.values()) / 3600, 4),
        }

    def write(self, joules: float | None, now: bool = False) -> None:
        """Keeps the facts on disk, if now or if the last time is long ago."""
        if now or time.monotonic() - self.written >= self.EVERY:
            self.written = time.monotonic()
            partial = self.path.with_name(f".{self.path.name}.partial")
            with suppress(OSError):  # a full disk: the next time, perhaps
                partial.write_text(json.dumps(self.facts(joules), indent=2) + "\n", encoding="utf-8")
                partial.replace(self.path)


def read_ledger(folder: Path) -> dict[str, Any]:
    """What ledger.json says; nothing spent, where there is none or it is damaged."""
    nothing: dict[str, Any] = {"steps": None, "seconds": {}, "energy_joules": 0.0, "metered_seconds": 0.0, "cost": None}
    try:
        found = nothing | read_json(folder / "ledger.json")
        sums = [*found["seconds"].values(), found["energy_joules"], found["metered_seconds"]]
    except (OSError, ValueError, TypeError, AttributeError):
        return nothing
    return found if all(isinstance(each, int | float) for each in sums) else nothing
