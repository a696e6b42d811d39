"""Where a step's time goes: a trace of some steps, the time of each part, the costliest operators."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from leveret.hardware.peak import wait

if TYPE_CHECKING:
    from leveret.training.loop import Trainer

FIRST, LAST = 5, 10
"""Steps that are profiled, counted from 1 since this start: after the warm-up."""
PARTS = ("data", "forward", "backward", "optimizer")
"""What train_step and the loop mark; of the rest of a "step" nothing is known but that it waits."""
COSTLIEST = 10


@contextmanager
def profiled(trainer: Trainer, say: Callable[[str], None]) -> Iterator[Callable[[int], None]]:
    """Gives a function to be called before each step with its number, which profiles where the trainer asks for it.

    Writes profile/trace.json (for Perfetto or chrome://tracing) and profile/table.md into the stage's folder.
    """
    if not trainer.profile:
        yield lambda step: None
        return
    profiler = _Profiler(trainer.folder / "profile", trainer.device, say)
    trainer.mark = profiler.mark
    try:
        yield profiler.before
    finally:
        profiler.stop()


class _Profiler:
    def __init__(self, folder: Path, device: torch.device, say: Callable[[str], None]) -> None:
        self.folder, self.device, self.say = folder, device, say
        self.running: profile | None = None
        self.spans: list[tuple[str, Any, Any]] = []

    def before(self, step: int) -> None:
        if step == FIRST:
            kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device.type == "cuda")
            self.running = profile(activities=kinds)
            self.running.start()
        elif step == LAST + 1:
            self.stop()

    @contextmanager
    def mark(self, part: str) -> Iterator[None]:
        """Names a part of a step in the trace, and takes its time."""
        with record_function(part):
            start = self._now()
            yield
            if self.running is not None:
                self.spans.append((part, start, self._now()))

    def _now(self) -> Any:
        """The time; on CUDA an event in the stream, so that the time is the GPU's and nobody waits. MPS is untried."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event
        wait(self.device)
        return time.perf_counter()

    def _milliseconds(self) -> dict[str, float]:
        """Of each part and of whole steps, summed."""
        wait(self.device)
        sums = dict.fromkeys(("step", *PARTS), 0.0)
        for part, start, end in self.spans:
            sums[part] += start.elapsed_time(end) if self.device.type == "cuda" else (end - start) * 1e3
        return sums

    def stop(self) -> None:
        """Ends the trace, writes it and the table, and says what the parts took."""
        if self.running is None:
            return
        self.running.stop()
        sums = self._milliseconds()
        whole = sums.pop("step")
        if whole:
            shares = sums | {"waiting": max(whole - sum(sums.values()), 0.0)}
            steps = sum(part == "step" for part, _, _ in self.spans)
            self.folder.mkdir(parents=True, exist_ok=True)
            self.running.export_chrome_trace(str(self.folder / "trace.json"))
            text = _table(shares, whole, steps) + _operators(self.running, self.device)
            (self.folder / "table.md").write_text(text, encoding="utf-8")
            told = " · ".join(f"{part} {took / whole:.0%}" for part, took in shares.items())
            self.say(f"{whole / steps:,.1f} ms a step: {told}; more in {self.folder}")
        self.running = None


def _table(parts: dict[str, float], whole: float, steps: int) -> str:
    lines = [f"# Time of a step, mean of {steps}\n", "| part | ms | share |", "| --- | ---: | ---: |"]
    lines += [f"| {part} | {took / steps:.2f} | {took / whole:.1%} |" for part, took in parts.items()]
    return "\n".join([*lines, f"| all | {whole / steps:.2f} | 100.0% |\n"])


def _operators(found: profile, device: torch.device) -> str:
    """The operators whose own time, on the device, is largest."""
    kind = "cpu" if device.type != "cuda" else "device"
    own = {e.key: (getattr(e, f"self_{kind}_time_total"), e.count) for e in found.key_averages() if e.key not in PARTS}
    own.pop("step", None)
    whole = sum(took for took, _ in own.values()) or 1
    lines = ["\n# Costliest operators\n", "| operator | calls | ms | share |", "| --- | ---: | ---: | ---: |"]
    for name, (took, calls) in sorted(own.items(), key=lambda item: -item[1][0])[:COSTLIEST]:
        lines.append(f"| {name.replace('|', ' ')[:80]} | {calls} | {took / 1e3:.2f} | {took / whole:.1%} |")
    return "\n".join(lines) + "\n"
