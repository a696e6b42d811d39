"""All that is told of a stage while it trains: metrics.jsonl, events.jsonl, the console, the CSV and the plots.

metrics.jsonl has steps and validations, and is cut back to the checkpoint when a run goes on from it; events.jsonl has
what happened, and only grows.
"""

from __future__ import annotations

import json
import math
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any

from leveret.display import Display
from leveret.hardware.memory import peak_memory
from leveret.hardware.peak import peak_flops
from leveret.model.counts import flops_per_token
from leveret.training.meter import Meter
from leveret.training.metrics import MetricsLog, plot_training, read_metrics, write_csv
from leveret.training.progress import Progress

if TYPE_CHECKING:
    from leveret.training.loop import Trainer


class Logbook:
    """Used as a context manager around the steps of a stage, `total` in all."""

    def __init__(self, trainer: Trainer, progress: Progress, total: int) -> None:
        self.trainer, self.total = trainer, total
        self.metrics = MetricsLog(trainer.folder, progress.step)
        self.display = Display(trainer.console, trainer.label, total, progress.step)
        self.meter = self._meter(progress)

    def _meter(self, progress: Progress) -> Meter:
        tokens = self.trainer.config.batch_size * self.trainer.batches.length
        return Meter(tokens, _token_share(self.trainer), progress.train_seconds, progress.step)

    def __enter__(self) -> Logbook:
        self.display.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.display.__exit__(kind, value, at)
        self.metrics.close()

    def restart(self, progress: Progress) -> None:
        """Steps begin here: the clock starts, and what metrics say of later steps is cut off."""
        self.metrics.close()
        self.metrics = MetricsLog(self.trainer.folder, progress.step)
        self.meter = self._meter(progress)

    def say(self, text: str) -> None:
        self.display.say(text)

    def event(self, kind: str, step: int, **facts: Any) -> None:
        """Something happened that is no figure of a step."""
        row = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "kind": kind, "step": step} | facts
        with (self.trainer.folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def pause(self) -> AbstractContextManager[None]:
        """Time in here is no time of training."""
        return self.meter.pause()

    def step(self, done: int, loss: float, lr: float, norm: float, **facts: Any) -> None:
        """A line of metrics, shown too. A norm that is no number, as in float16 while a scale is sought, is None."""
        row = {"step": done, "loss": loss, "lr": lr, "grad_norm": norm if math.isfinite(norm) else None}
        row |= self.meter.lap(done) | {"peak_memory_bytes": peak_memory(self.trainer.device)} | facts
        self.metrics.write(row | self._graph_counts())
        shown = f"loss {loss:.3f} · {row['tokens_per_second']:,.0f} tokens/s"
        self.display.update(done, f"step {done}/{self.total}", shown)

    def validation(self, step: int, found: dict[str, Any]) -> None:
        """What a validation found, into the metrics, with the CSV and the plots drawn anew."""
        self.metrics.write({"step": step} | found)
        write_csv(self.trainer.folder)
        plot_training(self.trainer.folder, self.trainer.label)

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
        """The figures of the finished stage."""
        trainer, seconds = self.trainer, self.meter.seconds
        tokens = self.total * trainer.config.batch_size * trainer.batches.length
        peak, peak_source = peak_flops(trainer.device, trainer.dtype)
        validations = [row for row in read_metrics(trainer.folder) if row.get("validation_loss") is not None]
        return {
            "format_version": 1,
            "steps": self.total,
            "tokens": tokens,
            "epochs": self.total / trainer.batches.steps_per_epoch,
            "train_seconds": round(seconds, 3),
            "tokens_per_second": round(tokens / seconds, 1),
            "mfu": round(tokens / seconds * _token_share(trainer), 4),
            "peak_tflops": round(peak / 1e12, 3),
            "peak_source": peak_source,
            "peak_memory_bytes": peak_memory(trainer.device),
            "dtype": str(trainer.dtype).removeprefix("torch."),
            "micro_batch_size": trainer.rows,
            "compiled": trainer.graphs is not None,
            **self._graph_counts(),
            "final_validation_loss": validations[-1]["validation_loss"] if validations else None,
            "best_validation_loss": min((row["validation_loss"] for row in validations), default=None),
        }


def _token_share(trainer: Trainer) -> float:
    """Seconds that a token takes at the device's peak."""
    peak, _ = peak_flops(trainer.device, trainer.dtype)
    return flops_per_token(trainer.model.config, trainer.batches.length) / peak
