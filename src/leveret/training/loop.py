"""The training loop. Pretraining, fine-tuning and all that follows go through it.

    batch of a step --> micro-batches --> forward, backward --> clip --> AdamW --> metrics, validation, checkpoint

A run that was stopped goes on from its newest whole checkpoint and, on the same machine and settings, takes the same
steps to the last bit: the order of the data is a function of the step, and every random state is in the checkpoint.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from leveret.data.batches import Batch, Batches
from leveret.display import Display
from leveret.errors import UserError
from leveret.hardware.device import pick_dtype
from leveret.hardware.peak import peak_flops
from leveret.model.counts import flops_per_token
from leveret.model.decoder import Decoder
from leveret.training.checkpoint import find_checkpoint, prune_checkpoints, save_checkpoint
from leveret.training.config import TrainingConfig
from leveret.training.meter import Meter
from leveret.training.metrics import MetricsLog, plot_training, read_metrics, write_csv
from leveret.training.objective import Objective, mean_loss
from leveret.training.optimizer import load_optimizer_state, make_optimizer, optimizer_state
from leveret.training.schedule import learning_rate


class Interrupted(Exception):
    """Training was asked to stop, has saved, and can go on with the same command."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} at step {step}; the same command goes on from here")
        self.exit_code = 128 + number


@dataclass
class Trainer:
    """One stage of training: what it works on. `train` runs it.

    recipe: the whole recipe as YAML, which every checkpoint keeps.
    probe: called after each validation with (step, model); its result joins the metrics. It uses random generators of
        its own.
    """

    label: str
    model: Decoder
    objective: Objective
    batches: Batches
    validation: Batches | None
    config: TrainingConfig
    folder: Path
    device: torch.device
    console: Console
    recipe: str = ""
    probe: Callable[[int, Decoder], dict[str, Any]] | None = None


def train_step(trainer: Trainer, optimizer: torch.optim.Optimizer, batch: Batch, lr: float) -> tuple[Tensor, Tensor]:
    """One update. Returns the mean loss and the norm of the gradients, both still on the device.

    The weight of the whole batch is known before the first backward pass, so that any cut into micro-batches gives
    the same gradients.
    """
    config, device = trainer.config, trainer.device
    dtype = pick_dtype(config.precision, device)
    weight = max(trainer.objective.weight(batch), 1)
    total = torch.zeros((), device=device)
    for micro_batch in batch.split(config.micro_batch_size or config.batch_size):
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            loss = trainer.objective.loss(trainer.model, micro_batch.to(device)) / weight
        loss.backward()
        total += loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), config.grad_clip or math.inf)
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total, norm


def train(trainer: Trainer) -> dict[str, Any]:
    """Trains to the end, or from where a checkpoint left off. Returns the summary.

    Raises:
        Interrupted: SIGINT or SIGTERM came; everything is saved.
        UserError: the loss is no longer a number.
    """
    config = trainer.config
    total = config.total_steps(len(trainer.batches.split.windows), trainer.batches.length)
    eval_every = config.eval_every or max(1, total // 10)
    checkpoint_every = config.checkpoint_every or eval_every
    torch.use_deterministic_algorithms(config.deterministic)
    torch.manual_seed(config.seed)
    optimizer = make_optimizer(trainer.model, config.optimizer)
    begin, seconds = _resume(trainer, optimizer)
    trainer.model.gradient_checkpointing = config.gradient_checkpointing
    trainer.model.train()
    if config.compile:
        trainer.model.compile(dynamic=False)
    metrics = MetricsLog(trainer.folder, begin)
    meter = Meter(config.batch_size * trainer.batches.length, seconds, begin)
    done = begin
    with Signals() as signals, Display(trainer.console, trainer.label, total, begin) as display:
        if begin:
            display.say(f"going on from step {begin}")
            if not metrics.validated(begin) and (begin % eval_every == 0 or begin == total):
                _validate(trainer, begin, metrics, display)
        for step in range(begin, total):
            lr = learning_rate(config.schedule, config.optimizer.lr, step, total)
            loss, norm = train_step(trainer, optimizer, trainer.batches.batch(step), lr)
            done, last = step + 1, step + 1 == total
            if done % config.log_every == 0 or done == 1 or last:
                row = {"step": done, "loss": float(loss), "lr": lr, "grad_norm": float(norm)} | meter.lap(done)
                metrics.write(row)
                facts = f"loss {row['loss']:.3f} · {row['tokens_per_second']:,.0f} tokens/s"
                display.update(done, f"step {done}/{total}", facts)
                _check_finite(loss, norm, done)
            with meter.pause():
                if done % checkpoint_every == 0 or last or signals.received:
                    _check_finite(loss, norm, done)
                    _save(trainer, optimizer, done, meter.seconds, metrics.best_step())
                if signals.received:
                    break
                if done % eval_every == 0 or last:
                    _validate(trainer, done, metrics, display)
    metrics.close()
    if signals.received:  # even in the last step: what comes after training has not been done
        raise Interrupted(signals.received, done)
    return _summarise(trainer, total, meter.seconds)


def _check_finite(loss: Tensor, norm: Tensor, step: int) -> None:
    """Stops before weights that are no longer numbers are saved: a gradient that is none has just spoilt them."""
    for name, value in (("loss", float(loss)), ("gradient norm", float(norm))):
        if not math.isfinite(value):
            raise UserError(f"the {name} became {value} at step {step}; lower the learning rate")


def _resume(trainer: Trainer, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Loads the newest whole checkpoint. Returns the steps done and the seconds trained, zeros if there is none."""
    found = find_checkpoint(trainer.folder / "checkpoints")
    if found is None:
        return 0, 0.0
    trainer.model.load_state_dict(found.weights(trainer.model.config))
    load_optimizer_state(trainer.model, optimizer, found.optimizer())
    found.restore_random()
    return found.step, found.state["train_seconds"]


def _save(trainer: Trainer, optimizer: torch.optim.Optimizer, step: int, seconds: float, best_step: int | None) -> None:
    folder = trainer.folder / "checkpoints"
    state = {"step": step, "train_seconds": seconds}
    save_checkpoint(folder, trainer.model, optimizer_state(trainer.model, optimizer), state, trainer.recipe)
    prune_checkpoints(folder, trainer.config.keep_last, best_step)


def _validate(trainer: Trainer, step: int, metrics: MetricsLog, display: Display) -> None:
    """Validation loss and the probe, into the metrics, with the CSV and the plots drawn anew."""
    row: dict[str, Any] = {"step": step}
    if trainer.validation is not None:
        batches = trainer.validation.in_order(trainer.config.eval_batches)
        dtype = pick_dtype(trainer.config.precision, trainer.device)
        loss, _ = mean_loss(trainer.model, trainer.objective, batches, trainer.device, dtype)
        row["validation_loss"] = loss
        display.say(f"step {step} · validation loss {loss:.4f}")
    if trainer.probe is not None:
        row |= trainer.probe(step, trainer.model)
    metrics.write(row)
    write_csv(trainer.folder)
    plot_training(trainer.folder, trainer.label)


def _summarise(trainer: Trainer, steps: int, seconds: float) -> dict[str, Any]:
    """The figures of the finished stage."""
    tokens = steps * trainer.config.batch_size * trainer.batches.length
    dtype = pick_dtype(trainer.config.precision, trainer.device)
    peak, peak_source = peak_flops(trainer.device, dtype)
    rate = tokens / seconds
    validations = [row for row in read_metrics(trainer.folder) if row.get("validation_loss") is not None]
    return {
        "format_version": 1,
        "steps": steps,
        "tokens": tokens,
        "epochs": steps / trainer.batches.steps_per_epoch,
        "train_seconds": round(seconds, 3),
        "tokens_per_second": round(rate, 1),
        "mfu": round(rate * flops_per_token(trainer.model.config, trainer.batches.length) / peak, 4),
        "peak_tflops": round(peak / 1e12, 3),
        "peak_source": peak_source,
        "peak_memory_bytes": _peak_memory(trainer.device),
        "dtype": str(dtype).removeprefix("torch."),
        "final_validation_loss": validations[-1]["validation_loss"] if validations else None,
        "best_validation_loss": min((row["validation_loss"] for row in validations), default=None),
    }


def _peak_memory(device: torch.device) -> int | None:
    """The most memory held: on CUDA by tensors, else by the process (None where the system does not tell)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(ImportError):
        import resource
        import sys

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return None


class Signals:
    """Notes the first SIGINT or SIGTERM, so that the loop can save; a second one leaves at once."""

    NUMBERS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received = 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        with suppress(ValueError):  # not the main thread: then nobody sends us signals
            self.before = {number: signal.signal(number, self._note) for number in self.NUMBERS}
        return self

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
        for each in self.NUMBERS:
            signal.signal(each, signal.SIG_DFL)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
