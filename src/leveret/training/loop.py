"""The training loop. Pretraining, fine-tuning and all that follows go through it.

    batch of a step, made ahead --> micro-batches --> forward, backward --> clip --> optimizer
                                                           --> metrics, validation, checkpoint

A run that was stopped goes on from its newest whole checkpoint and, on the same machine and settings, takes the same
steps to the last bit: the order of the data is a function of the step, and every random state is in the checkpoint.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.profiler import record_function

from leveret.data.batches import Batch, Batches
from leveret.display import Display
from leveret.errors import UserError
from leveret.hardware.device import pick_dtype
from leveret.hardware.memory import peak_memory
from leveret.hardware.peak import peak_flops
from leveret.model.counts import flops_per_token
from leveret.model.decoder import Decoder
from leveret.training.checkpoint import find_checkpoint, prune_checkpoints, save_checkpoint
from leveret.training.config import TrainingConfig
from leveret.training.dry_run import memory_told, settle
from leveret.training.float8 import to_float8
from leveret.training.graphs import Graphs
from leveret.training.meter import Meter
from leveret.training.metrics import MetricsLog, plot_training, read_metrics, write_csv
from leveret.training.objective import Loss, Objective, mean_loss
from leveret.training.optimizer import load_optimizer_state, make_optimizer, optimizer_state
from leveret.training.prefetch import prefetch
from leveret.training.profile import profiled
from leveret.training.schedule import learning_rate
from leveret.training.signals import Interrupted, Signals


@dataclass
class Trainer:
    """One stage of training: what it works on. `train` runs it.

    recipe: the whole recipe as YAML, which every checkpoint keeps.
    probe: called after each validation with (step, model); its result joins the metrics. It uses random generators of
        its own.
    profile: write a trace of some steps and a table of where their time goes.

    rows: of a micro-batch. graphs: counts what is compiled; None where nothing is. mark: names a part of a step.
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
    profile: bool = False

    dtype: torch.dtype = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    rows: int = field(init=False)
    loss: Loss = field(init=False)
    graphs: Graphs | None = field(init=False, default=None)
    mark: Callable[[str], AbstractContextManager[Any]] = field(init=False, default=record_function)

    def __post_init__(self) -> None:
        self.dtype = pick_dtype(self.config.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        self.loss = Loss(self.model, self.objective)
        given = self.config.micro_batch_size
        self.rows = self.batches.share if given is None or given == "auto" else given

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32)

    def micro_batches(self, batch: Batch) -> list[Batch]:
        """The batch cut up, and what is learnt from counted while it is on the CPU.

        Compiled, the head goes over every position: places that are learnt from are as many as they are.
        """
        multiple = 1 if self.graphs is None else self.rows * self.batches.length
        return [part.counted(multiple) for part in batch.split(self.rows)]


def train_step(
    trainer: Trainer, optimizer: torch.optim.Optimizer, micro_batches: list[Batch], lr: float
) -> tuple[Tensor, Tensor]:
    """One update. Returns the mean loss and the norm of the gradients, both still on the device.

    The weight of the whole batch is known before the first backward pass, so that any cut into micro-batches gives
    the same gradients. Nothing here waits for the device (in float16 the scaler does, once).
    """
    config, scaler = trainer.config, trainer.scaler
    weight = max(sum(trainer.objective.weight(each) for each in micro_batches), 1)
    total = torch.zeros((), device=trainer.device)
    for micro_batch in micro_batches:
        with trainer.mark("forward"), trainer.autocast():
            loss = trainer.loss(micro_batch) / weight
        with trainer.mark("backward"):
            scaler.scale(loss).backward()
        total += loss.detach()
    with trainer.mark("optimizer"):
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), config.grad_clip or math.inf)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
    return total, norm


def train(trainer: Trainer) -> dict[str, Any]:
    """Trains to the end, or from where a checkpoint left off. Returns the summary.

    Raises:
        Interrupted: SIGINT or SIGTERM came; everything is saved.
        UserError: the loss is no longer a number, or the memory is too small.
    """
    config, device = trainer.config, trainer.device
    total = config.total_steps(len(trainer.batches.split.windows), trainer.batches.length)
    eval_every = config.eval_every or max(1, total // 10)
    checkpoint_every = config.checkpoint_every or eval_every
    optimizer = set_up(trainer)
    state = _resume(trainer, optimizer)
    begin = done = int(state["step"])
    metrics = MetricsLog(trainer.folder, begin)
    with Signals() as signals, Display(trainer.console, trainer.label, total, begin) as display:
        settle(trainer, total, state, display.say)
        if begin:
            display.say(f"going on from step {begin}")
            if not metrics.validated(begin) and (begin % eval_every == 0 or begin == total):
                _validate(trainer, begin, metrics, display)
        meter = Meter(config.batch_size * trainer.batches.length, _token_share(trainer), state["train_seconds"], begin)
        ahead = prefetch(lambda step: trainer.micro_batches(trainer.batches.batch(step)), range(begin, total), device)
        with closing(ahead), _no_garbage(), memory_told(trainer), profiled(trainer, display.say) as profile_step:
            for step in range(begin, total):
                profile_step(step - begin + 1)
                with trainer.mark("step"):
                    with trainer.mark("data"):
                        batch = next(ahead)
                    lr = learning_rate(config.schedule, config.optimizer.lr, step, total)
                    loss, norm = train_step(trainer, optimizer, batch, lr)
                done, last = step + 1, step + 1 == total
                _watch_graphs(trainer, "step", done, display)
                if done % config.log_every == 0 or done == 1 or last:
                    row = {"step": done, "loss": float(loss), "lr": lr, "grad_norm": float(norm)} | meter.lap(done)
                    _log(trainer, metrics, display, row, total)
                    _check_finite(trainer, loss, norm, done)
                with meter.pause():
                    if done % checkpoint_every == 0 or last or signals.received:
                        _check_finite(trainer, loss, norm, done)
                        _save(trainer, optimizer, done, meter.seconds, metrics.best_step())
                    if signals.received:
                        break
                    if done % eval_every == 0 or last:
                        _validate(trainer, done, metrics, display)
    metrics.close()
    if signals.received:  # even in the last step: what comes after training has not been done
        raise Interrupted(signals.received, done)
    return _summarise(trainer, total, meter.seconds)


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Python looks for cycles in the pauses only: in the middle of a step it would let the device wait."""
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def set_up(trainer: Trainer) -> torch.optim.Optimizer:
    """Puts the model and the process into the state that the recipe asks for."""
    config = trainer.config
    torch.use_deterministic_algorithms(config.deterministic)
    torch.manual_seed(config.seed)
    if config.precision == "fp8":
        to_float8(trainer.model, trainer.device)
    trainer.model.gradient_checkpointing = config.gradient_checkpointing
    trainer.model.train()
    return make_optimizer(trainer.model, config.optimizer, trainer.dtype)


def _token_share(trainer: Trainer) -> float:
    """Seconds that a token takes at the device's peak."""
    peak, _ = peak_flops(trainer.device, trainer.dtype)
    return flops_per_token(trainer.model.config, trainer.batches.length) / peak


def _check_finite(trainer: Trainer, loss: Tensor, norm: Tensor, step: int) -> None:
    """Stops before weights that are no longer numbers are saved: a gradient that is none has just spoilt them.

    In float16 the scaler passes over such a step, which is no more than its search for a scale.
    """
    named = [("loss", float(loss))] + [("gradient norm", float(norm))] * (not trainer.scaler.is_enabled())
    for name, value in named:
        if not math.isfinite(value):
            raise UserError(f"the {name} became {value} at step {step}; lower the learning rate")


def _log(trainer: Trainer, metrics: MetricsLog, display: Display, row: dict[str, Any], total: int) -> None:
    """A line of metrics, shown too. A norm that is no number, as in float16 while a scale is sought, is None."""
    row |= {"peak_memory_bytes": peak_memory(trainer.device)} | _graph_counts(trainer)
    metrics.write(row | {"grad_norm": row["grad_norm"] if math.isfinite(row["grad_norm"]) else None})
    facts = f"loss {row['loss']:.3f} · {row['tokens_per_second']:,.0f} tokens/s"
    display.update(row["step"], f"step {row['step']}/{total}", facts)


def _graph_counts(trainer: Trainer) -> dict[str, int]:
    """Of a compiled run: graphs made since this start, and those of them that came late."""
    graphs = trainer.graphs
    return {} if graphs is None else {"graphs": graphs.made, "recompiles": graphs.recompiles}


def _watch_graphs(trainer: Trainer, kind: str, step: int, display: Display) -> None:
    """Says, once, if something is compiled that should have been by now."""
    graphs = trainer.graphs
    if graphs is not None and (late := graphs.note(kind)) and graphs.recompiles == late:
        display.say(f"step {step}: compiled again, which takes time; TORCH_LOGS=recompiles says why")


def _resume(trainer: Trainer, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Loads the newest whole checkpoint. Returns its state, that of a beginning if there is none."""
    found = find_checkpoint(trainer.folder / "checkpoints")
    if found is None:
        return {"step": 0, "train_seconds": 0.0}
    trainer.model.load_state_dict(found.weights(trainer.model.config))
    load_optimizer_state(trainer.model, optimizer, found.optimizer())
    if scaler := found.state.get("scaler"):
        trainer.scaler.load_state_dict(scaler)
    found.restore_random()
    return found.state


def _save(trainer: Trainer, optimizer: torch.optim.Optimizer, step: int, seconds: float, best_step: int | None) -> None:
    gc.collect()
    folder = trainer.folder / "checkpoints"
    state = {
        "step": step,
        "train_seconds": seconds,
        "micro_batch_size": trainer.rows,
        "compiled": trainer.graphs is not None,
        "scaler": trainer.scaler.state_dict(),
    }
    save_checkpoint(folder, trainer.model, optimizer_state(trainer.model, optimizer), state, trainer.recipe)
    prune_checkpoints(folder, trainer.config.keep_last, best_step)


def _validate(trainer: Trainer, step: int, metrics: MetricsLog, display: Display) -> None:
    """Validation loss and the probe, into the metrics, with the CSV and the plots drawn anew."""
    gc.collect()
    row: dict[str, Any] = {"step": step}
    if trainer.validation is not None:
        batches = trainer.validation.in_order(trainer.config.eval_batches)
        parts = (part for batch in batches for part in trainer.micro_batches(batch))
        loss, _ = mean_loss(trainer.model, trainer.objective, parts, trainer.device, trainer.dtype)
        row["validation_loss"] = loss
        _watch_graphs(trainer, "validation", step, display)
        display.say(f"step {step} · validation loss {loss:.4f}")
    if trainer.probe is not None:
        # What it calls has shapes of its own, which are not worth compiling for.
        with torch.compiler.set_stance("force_eager") if trainer.graphs is not None else nullcontext():
            row |= trainer.probe(step, trainer.model)
    metrics.write(row)
    write_csv(trainer.folder)
    plot_training(trainer.folder, trainer.label)


def _summarise(trainer: Trainer, steps: int, seconds: float) -> dict[str, Any]:
    """The figures of the finished stage."""
    tokens = steps * trainer.config.batch_size * trainer.batches.length
    peak, peak_source = peak_flops(trainer.device, trainer.dtype)
    validations = [row for row in read_metrics(trainer.folder) if row.get("validation_loss") is not None]
    return {
        "format_version": 1,
        "steps": steps,
        "tokens": tokens,
        "epochs": steps / trainer.batches.steps_per_epoch,
        "train_seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1),
        "mfu": round(tokens / seconds * _token_share(trainer), 4),
        "peak_tflops": round(peak / 1e12, 3),
        "peak_source": peak_source,
        "peak_memory_bytes": peak_memory(trainer.device),
        "dtype": str(trainer.dtype).removeprefix("torch."),
        "micro_batch_size": trainer.rows,
        "compiled": trainer.graphs is not None,
        **_graph_counts(trainer),
        "final_validation_loss": validations[-1]["validation_loss"] if validations else None,
        "best_validation_loss": min((row["validation_loss"] for row in validations), default=None),
    }
