"""All that is told of a stage while it trains: metrics.jsonl, events.jsonl, ledger.json, the console, CSV and plots.

metrics.jsonl has steps and validations, and is cut back to the checkpoint when a run goes on from it; events.jsonl has
what happened, ledger.json what was spent, and these only grow.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from leveret.display import Display, duration
from leveret.hardware.memory import peak_memory
from leveret.hardware.peak import peak_flops
from leveret.model.counts import flops_per_token
from leveret.training.meter import Clock, Ledger, Meter
from leveret.training.metrics import NOWHERE, Lines, MetricsLog, Row, read_metrics
from leveret.training.parallel import RankLost
from leveret.training.plots import Painter
from leveret.training.power import Power
from leveret.training.progress import Progress
from leveret.training.signals import Interrupted
from leveret.training.trackers import Trackers

if TYPE_CHECKING:
    from leveret.training.loop import Trainer


class Logbook:
    """Used as a context manager around the steps of a stage, `total` in all.

    Every rank keeps one, as all need to know what was told; one of them writes and speaks.
    """

    def __init__(self, trainer: Trainer, progress: Progress, total: int) -> None:
        folder, config, self.main = trainer.folder, trainer.config, trainer.group.main
        self.trainer, self.progress, self.total = trainer, progress, total
        self.metrics = MetricsLog(folder, progress.step, self.main)
        self.events = Lines(folder / "events.jsonl" if self.main else NOWHERE)
        console = trainer.console if self.main else Console(quiet=True)
        self.trackers = Trackers(config.trackers if self.main else [], folder, console.print)
        self.display = Display(console, trainer.label, total, progress.step)
        self.clock, self.power, self.joules = Clock(), Power(trainer.device), 0.0
        self.meter = self._meter()
        self.ledger = Ledger(folder, self.clock, config.price, total)
        self.painter = Painter(folder, trainer.label)

    def _meter(self) -> Meter:
        tokens = self.trainer.config.batch_size * self.trainer.batches.length
        return Meter(self.clock, tokens, _token_share(self.trainer), self.progress.train_seconds, self.progress.step)

    def __enter__(self) -> Logbook:
        if any(self.ledger.before["seconds"].values()):
            self.event("restart", self.progress.step)
        self._account(now=True)
        self.trackers.tell(read_metrics(self.trainer.folder))
        self.display.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.display.__exit__(kind, value, at)
        self.metrics.close()
        with suppress(OSError):  # a disk that is full: what ended the training is what is to be told
            if isinstance(value, Interrupted):
                self.event("signal", self.progress.step, exit_code=value.exit_code)
            elif value is not None:
                kind_of = "rank-lost" if isinstance(value, RankLost) else "failed"
                error = " ".join(f"{type(value).__name__}: {value}".split())[:500]
                self.event(kind_of, self.progress.step, error=error)
            self._account(now=True)
        self.events.close()
        self.trackers.close()
        if isinstance(value, Interrupted) or not self.main:
            self.painter.stop()  # who asks to stop does not wait for pictures
        else:
            self.painter.finish(self.say)

    def restart(self, progress: Progress) -> None:
        """Steps begin here: the clock starts, and what metrics say of later steps is cut off."""
        self.metrics.close()
        self.metrics = MetricsLog(self.trainer.folder, progress.step, self.main)
        self.progress = progress
        self.clock.turn("training")
        self.meter = self._meter()

    def say(self, text: str) -> None:
        self.display.say(text)

    def event(self, kind: str, step: int, **facts: Any) -> None:
        """Something happened that is no figure of a step."""
        row = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "kind": kind, "step": step} | facts
        self.events.write(row)

    def spend(self, kind: str) -> AbstractContextManager[None]:
        """Time in here is for waiting, checkpoints or validation."""
        if kind != "waiting" and self.trainer.device.type == "cuda":
            torch.cuda.synchronize(self.trainer.device)  # the steps at work are no part of it
        return self.clock.spend(kind)

    def step(self, done: int, loss: float, lr: float, norm: float, **facts: Any) -> None:
        """A line of metrics, shown too. What is no number, such as a norm in float16 while a scale is sought, is
        None."""
        row = {"step": done, "loss": _number(loss), "lr": lr, "grad_norm": _number(norm)}
        row |= self.meter.lap(done) | {"peak_memory_bytes": peak_memory(self.trainer.device)} | facts
        row |= self._energy() | self._graph_counts()
        self.metrics.write(row)
        self.trackers.tell([row])
        self._account()
        if self.main:
            self.painter.update()
        shown = f"loss {loss:.3f} · {row['tokens_per_second']:,.0f} tokens/s"
        self.display.update(done, f"step {done}/{self.total}", shown, self._left(done))

    def validation(self, step: int, found: dict[str, Any]) -> None:
        """What a validation found, into the metrics."""
        self.metrics.write({"step": step} | found)
        self.trackers.tell([{"step": step} | found])
        if self.main:
            self.painter.update()

    def stopped_early(self) -> None:
        """The stage ends before its last step."""
        step, best = self.progress.step, self._best()
        self.event("stopped-early", step, best=best["step"])
        self.say(
            f"stopped early at step {step} of {self.total}: {self.trainer.config.patience} validations in a row were "
            f"no better than that of step {best['step']}, {best['validation_loss']:.4f}"
        )

    def _validations(self) -> list[Row]:
        return [row for row in read_metrics(self.trainer.folder) if row.get("validation_loss") is not None]

    def _best(self) -> Row:
        """The row of the best validation; without any, a row that says None."""
        none: Row = {"step": None, "validation_loss": None}
        return min(self._validations(), key=lambda row: row["validation_loss"], default=none)

    def _left(self, done: int) -> str:
        """The time that is left, in words; empty before there is anything to go on."""
        config, total = self.trainer.config, self.total
        pauses = {
            "checkpoints": config.pauses("checkpoint", done, total),
            "validation": config.pauses("eval", done, total),
        }
        if (found := self.meter.left(total - done, pauses)) is None or done == total:
            return ""
        seconds, whole = found
        return f"{'' if whole else 'over '}{duration(seconds)} left"

    def _energy(self) -> dict[str, Any]:
        """What this rank's device does now; the energy of all is brought up to now. Processors count for a machine."""
        found, group = self.power.read(), self.trainer.group
        own = self.power.joules if self.trainer.device.type == "cuda" or group.local_rank == 0 else 0.0
        if group.ranks > 1:
            own = float(group.sum(torch.tensor(own, dtype=torch.float64, device=self.trainer.device)))
        self.joules = own
        return found

    def _joules(self) -> float | None:
        return None if self.power.source is None else self.joules

    def _account(self, now: bool = False) -> None:
        if self.main:
            self.ledger.write(self._joules(), now)

    def watch_graphs(self, kind: str, step: int) -> None:
        """Says, once, if something is compiled that should have been by now."""
        graphs = self.trainer.graphs
        if graphs is not None and (late := graphs.note(kind)) and graphs.recompiles == late:
            self.say(f"step {step}: compiled again, which takes time; TORCH_LOGS=recompiles says why")

    def _graph_counts(self) -> dict[str, int]:
        """Of a compiled run: graphs made since this start, and those of them that came late."""
        graphs = self.trainer.graphs
        return {} if graphs is None else {"graphs": graphs.made, "recompiles": graphs.recompiles}

    def summary(self) -> dict[str, Any]:
        """The figures of the finished stage. seconds, energy and cost are of all that was ever spent on it, energy
        over as many seconds as it was counted in."""
        trainer, seconds, steps = self.trainer, self.meter.seconds, self.progress.step
        tokens = steps * trainer.config.batch_size * trainer.batches.length
        peak, peak_source = peak_flops(trainer.device, trainer.dtype)
        self._energy()
        spent = self.ledger.facts(self._joules())
        validations, best = self._validations(), self._best()
        return {
            "format_version": 1,
            "steps": steps,
            "planned_steps": self.total,
            "stopped_early": steps < self.total,
            "tokens": tokens,
            "epochs": steps / trainer.batches.steps_per_epoch,
            "train_seconds": round(seconds, 3),
            "seconds": spent["seconds"],
            "tokens_per_second": round(tokens / seconds, 1),
            "mfu": round(tokens / seconds * _token_share(trainer), 4),
            "peak_tflops": round(peak / 1e12, 3),
            "peak_source": peak_source,
            "peak_memory_bytes": peak_memory(trainer.device),
            "dtype": str(trainer.dtype).removeprefix("torch."),
            "micro_batch_size": trainer.rows,
            "compiled": trainer.graphs is not None,
            **self._graph_counts(),
            "energy_kwh": round(spent["energy_joules"] / 3.6e6, 6) if spent["metered_seconds"] else None,
            "energy_seconds": spent["metered_seconds"],
            "energy_source": self.power.source,
            "cost": spent["cost"],
            "final_validation_loss": validations[-1]["validation_loss"] if validations else None,
            "best_validation_loss": best["validation_loss"],
            "best_step": best["step"],
        }


def _token_share(trainer: Trainer) -> float:
    """Seconds that a token takes at the peak of all devices."""
    peak, _ = peak_flops(trainer.device, trainer.dtype)
    return flops_per_token(trainer.model.config, trainer.batches.length) / (peak * trainer.group.ranks)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
