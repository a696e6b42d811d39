"""The training loop. Pretraining, fine-tuning and all that follows go through it.

    batch of a step, made ahead where that can be --> micro-batches --> forward, backward --> clip --> optimizer
                                                           --> metrics, guard, checkpoint, validation

A run that was stopped goes on from its newest whole checkpoint and, on the same machine and settings, takes the same
steps to the last bit: the order of the data is a function of the step, and every random state is in the checkpoint.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor
from torch.profiler import record_function

from leveret.data.batches import Batch, Batches
from leveret.errors import UserError
from leveret.hardware.device import pick_dtype
from leveret.model.decoder import Decoder
from leveret.model.lora import merged
from leveret.training.checkpoint import Checkpoint, find_checkpoint
from leveret.training.config import TrainingConfig
from leveret.training.dry_run import memory_told, settle
from leveret.training.faults import Faults
from leveret.training.float8 import to_float8
from leveret.training.graphs import Graphs
from leveret.training.guards import (
    WINDOW,
    Beginning,
    Guard,
    RollBack,
    good_checkpoint,
    lower,
    refuse_strange_ids,
    write_failure,
)
from leveret.training.logbook import Logbook
from leveret.training.objective import Called, Loss, Objective, bits_per_byte, mean_loss
from leveret.training.optimizer import load_optimizer_state, make_optimizer
from leveret.training.parallel import ALONE, Group, exchanging, spread
from leveret.training.prefetch import prefetch
from leveret.training.profile import profiled
from leveret.training.progress import Progress
from leveret.training.saving import Saver
from leveret.training.schedule import learning_rate
from leveret.training.sharded import gathered, is_sharded, load_weights, whole
from leveret.training.signals import Interrupted, Leaving, Signals
from leveret.training.skipping import step_if
from leveret.training.stopping import worn_out


@dataclass
class Trainer:
    """One stage of training: what it works on. `train` runs it.

    recipe: the whole recipe as YAML, which every checkpoint keeps.
    probe: called after each validation with (step, model); its result joins the metrics. It uses random generators of
        its own.
    profile: write a trace of some steps and a table of where their time goes.
    room_after: bytes that stages after this one will need on the same disk.
    group: the processes that train together; the batches are this one's part.

    rows: of a micro-batch. graphs: counts what is compiled; None where nothing is. mark: names a part of a step.
    faults: planted by a test.
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
    room_after: int = 0
    group: Group = ALONE

    dtype: torch.dtype = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    rows: int = field(init=False)
    loss: torch.nn.Module = field(init=False)
    graphs: Graphs | None = field(init=False, default=None)
    mark: Callable[[str], AbstractContextManager[Any]] = field(init=False, default=record_function)
    faults: Faults = field(init=False)

    def __post_init__(self) -> None:
        self.dtype = pick_dtype(self.config.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        self.loss = Loss(self.model, self.objective)
        given = self.config.micro_batch_size
        self.rows = self.batches.share if given is None or given == "auto" else given
        self.faults = Faults.from_environment(self.batches.rank)

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
    the same gradients. Where the loss or the norm is no number, nothing of the model or the optimizer changes. Nothing
    here waits for the device.
    """
    config, scaler, ranks = trainer.config, trainer.scaler, trainer.group
    ranks.at("the sum of weights")
    ours = sum(trainer.objective.weight(each) for each in micro_batches)
    weight = ranks.sum(torch.full((), float(ours), device=trainer.device)).clamp_min(1)
    total = torch.zeros((), device=trainer.device)
    for number, micro_batch in enumerate(micro_batches, 1):
        with exchanging(trainer.loss, number == len(micro_batches)):
            ranks.at("forward")
            with trainer.mark("forward"), trainer.autocast():
                loss = trainer.loss(micro_batch) / weight
            ranks.at("backward")
            with trainer.mark("backward"):
                scaler.scale(loss).backward()
        total += loss.detach()
    with trainer.mark("optimizer"):
        scaler.unscale_(optimizer)
        total = ranks.sum(total)
        norm = whole(torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), config.grad_clip or math.inf))
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        step_if(total.isfinite() & norm.isfinite(), optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
    return total, norm


def train(trainer: Trainer) -> dict[str, Any]:
    """Trains to the end, or from where a checkpoint left off. Returns the summary.

    Raises:
        Interrupted: SIGINT, SIGTERM or SIGUSR1 came; everything is saved.
        UserError: numbers went wrong again and again, the data is damaged, the memory or the disk is too small, nothing
            can be saved, another process trains here, or early stopping has nothing to validate on.
    """
    if trainer.config.patience is not None and trainer.validation is None:
        raise UserError(f"{trainer.label}.patience needs held-out data; set its validation_fraction higher")
    total = trainer.config.total_steps(len(trainer.batches.split.windows), trainer.batches.length)
    with Signals() as signals, Saver(trainer, total) as saver, trainer.group.losses_named():
        optimizer = set_up(trainer)
        state = _resume(trainer, optimizer)
        progress = Progress.of(state)
        trainer.batches.skipped = frozenset(progress.skipped)
        guard = Guard(trainer, None if state else Beginning(trainer))
        with (
            Logbook(trainer, progress, total) as book,
            trainer.group.telling(_tells(book)),
            trainer.group.losses_named(),
        ):
            settle(trainer, total, state, book.say)
            if progress.step:
                book.say(f"going on from step {progress.step}")
                missed = not book.metrics.validated(progress.step) and _due(trainer, "eval", progress.step, total)
                if trainer.group.agree(int(missed)):
                    _validate(trainer, progress.step, signals, book)
            while not signals.agreed(trainer.group) and not _worn_out(trainer, progress, book):
                try:
                    _take_steps(trainer, optimizer, guard, progress, total, signals, saver, book)
                    break
                except RollBack as wanted:
                    saver.restart(book)
                    _roll_back(trainer, optimizer, guard, progress, wanted.first, book)
            if signal := signals.agreed(trainer.group):  # even in the last step: what comes after it is not done
                raise Interrupted(signal, progress.step)
            if progress.step < total:
                book.stopped_early()
            summary = book.summary()
        return summary | {"model_step": saver.settle(book)}


def _take_steps(
    trainer: Trainer,
    optimizer: torch.optim.Optimizer,
    guard: Guard,
    progress: Progress,
    total: int,
    signals: Signals,
    saver: Saver,
    book: Logbook,
) -> None:
    """Every step from where progress is, until the end, an early one, or a signal.

    Raises:
        RollBack: they have led nowhere.
    """
    config, group, begin, owed = trainer.config, trainer.group, progress.step, False
    book.restart(progress)
    steps = range(begin, total)
    ahead = prefetch(lambda step: _make(trainer, step), steps, trainer.device, trainer.batches.ahead)
    with closing(ahead), _no_garbage(), memory_told(trainer), profiled(trainer, book.say) as profile_step:
        for step in steps:
            profile_step(step - begin + 1)
            group.at("the data", step + 1)
            trainer.faults.strike(step + 1)
            with trainer.mark("step"), trainer.faults.gradients(trainer.batches.place(step), trainer.model):
                with trainer.mark("data"), book.spend("waiting"):
                    try:
                        batch = next(ahead)
                    except Exception:
                        if step > begin and group.ranks == 1:  # else others are waiting in a step
                            _save(trainer, optimizer, guard, progress, saver, book)  # what has been done is whole
                        raise
                lr = progress.lr_factor * learning_rate(config.schedule, config.optimizer.lr, step, total)
                guard.note(*train_step(trainer, optimizer, batch, lr))
            group.at("the end")
            done = progress.step = step + 1
            book.watch_graphs("step", done)
            logs, saves = done % config.log_every == 0 or done in (1, total), _due(trainer, "checkpoint", done, total)
            owed |= saves or saver.overdue(book)
            if logs or saves or done % WINDOW == 0:
                loss, norm = guard.read(progress, book.event)
                if logs:
                    book.step(done, loss, lr, norm, **trainer.batches.told())
                guard.check(progress)
            # Nothing that took long is lost by what comes after; but among bad steps a save would push out a good one.
            stop = bool(signals.agreed(group))
            last = signals if stop or done == total else None
            if (owed and not progress.bad_in_a_row) or last is not None:
                _save(trainer, optimizer, guard, progress, saver, book, last)
                owed = False
            if not stop and _due(trainer, "eval", done, total):
                stop = not _validate(trainer, done, signals, book) or _worn_out(trainer, progress, book)
                if stop:
                    _save(trainer, optimizer, guard, progress, saver, book, signals)
            if stop:
                return


def _worn_out(trainer: Trainer, progress: Progress, book: Logbook) -> bool:
    """Whether early stopping ends the stage here: it follows from the validations told of so far, on every rank."""
    if (patience := trainer.config.patience) is None:
        return False
    losses = {step: loss for step, loss in book.metrics.losses.items() if step <= progress.step}
    return bool(trainer.group.agree(int(worn_out(losses, patience))))


def _make(trainer: Trainer, step: int) -> list[Batch]:
    """A step's micro-batches, in the thread that works ahead if batches may be made so."""
    batches, faults = trainer.batches, trainer.faults
    faults.load(step + 1)
    batch = faults.corrupt(batches.place(step), batches.batch(step))
    refuse_strange_ids(batch, batches, step, trainer.model.config.vocabulary)
    return trainer.micro_batches(batch)


def _roll_back(
    trainer: Trainer, optimizer: torch.optim.Optimizer, guard: Guard, progress: Progress, first: int, book: Logbook
) -> None:
    """Goes back from bad steps, those from `first` on: to earlier weights, other data, a lower rate.

    Raises:
        UserError: it has done so as often as it may, or there is nothing to go back to.
    """
    group, checkpoints = trainer.group, trainer.folder / "checkpoints"
    # One rank chooses for all: what is on the disk may look otherwise to the others for a moment.
    number, to = (group.agree(each) for each in (good_checkpoint(checkpoints, first) if group.main else (-1, 0)))
    found = find_checkpoint(checkpoints, number)
    if progress.rollbacks == trainer.config.guard.max_rollbacks or (found is None and guard.beginning is None):
        raise UserError(write_failure(trainer, progress, first))
    places = {trainer.batches.place(step) for step in range(first, progress.step)}
    stopped = progress.step
    if found is not None:
        _load(trainer, optimizer, found)
    elif guard.beginning is not None:
        guard.beginning.restore(trainer, optimizer)
    progress.train_seconds = book.meter.seconds
    lower(progress, trainer.config.guard, places, to)
    trainer.batches.skipped = frozenset(progress.skipped)
    book.event("roll-back", stopped, to=to, skipped=sorted(places), lr_factor=progress.lr_factor)
    book.say(
        f"steps {first + 1} to {stopped} gave no numbers; back to step {to}, without their data, at "
        f"{progress.lr_factor:g} of the learning rate"
    )


def _tells(book: Logbook) -> Callable[[str, int, str], None]:
    """How the logbook is told of a rank that is late or silent."""
    return lambda kind, step, text: book.event(kind, step, what=text)


def _due(trainer: Trainer, what: Literal["eval", "checkpoint"], done: int, total: int) -> bool:
    """Whether a validation or a checkpoint comes after this step."""
    return done % trainer.config.every(what, total) == 0 or done == total


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
    spread(trainer)
    return make_optimizer(trainer.model, config.optimizer, trainer.dtype, trainer.group.share)


def _resume(trainer: Trainer, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Loads the newest whole checkpoint, which one rank finds for all. Returns its state; if there is none, nothing."""
    checkpoints, group = trainer.folder / "checkpoints", trainer.group
    found = find_checkpoint(checkpoints) if group.main else None
    number = group.agree(-1 if found is None else found.step)
    if not group.main:
        found = find_checkpoint(checkpoints, number)
    if found is None:
        return {}
    _load(trainer, optimizer, found)
    return found.state


def _load(trainer: Trainer, optimizer: torch.optim.Optimizer, found: Checkpoint) -> None:
    """Weights, optimizer, scaler and random states as they were."""
    load_weights(trainer.model, found.unmerged(trainer.model.config))
    load_optimizer_state(trainer.model, optimizer, found.optimizer())
    if scaler := found.state.get("scaler"):
        trainer.scaler.load_state_dict(scaler)
    found.restore_random()


def _save(
    trainer: Trainer,
    optimizer: torch.optim.Optimizer,
    guard: Guard,
    progress: Progress,
    saver: Saver,
    book: Logbook,
    last: Signals | None = None,
) -> None:
    """Saves, or begins to. last: nothing is trained after it, or not before a while, so it is made sure of; a signal
    shortens how long that may take."""
    gc.collect()
    trainer.group.at("the save", long=True)
    with book.spend("checkpoints"):
        if guard.count:
            guard.read(progress, book.event)
        progress.train_seconds = book.meter.seconds
        book.metrics.sync()
        if last is None:
            saver.save(optimizer, progress, book)
        else:
            saver.insist(optimizer, progress, book, last)
        guard.forget_beginning(saver.folder)


def _validate(trainer: Trainer, step: int, signals: Signals, book: Logbook) -> bool:
    """Validation loss and the probe. A signal ends it early, with nothing told of it; then False."""
    gc.collect()
    group, objective, found = trainer.group, trainer.objective, dict[str, Any]()
    group.at("the validation", long=True)
    # What is called here has shapes of its own, which are not worth compiling for.
    eager = torch.compiler.set_stance("force_eager") if trainer.graphs is not None else nullcontext()
    with book.spend("validation"), suppress(Leaving), eager:
        if trainer.validation is not None:
            batches = trainer.validation.in_order(trainer.config.eval_batches)
            parts = (part for batch in signals.heeded(batches, group) for part in trainer.micro_batches(batch))
            measured = Called(trainer.loss, objective) if is_sharded(trainer.model.parameters()) else objective
            loss, _ = mean_loss(trainer.model, measured, parts, trainer.device, trainer.dtype, group)
            found["validation_loss"] = loss
            if (text := trainer.validation.split).text_bytes and not text.masks:  # of text, and all of it
                found["validation_bits_per_byte"] = bits_per_byte(loss, text.tokens / text.text_bytes)
            book.watch_graphs("validation", step)
            book.say(f"step {step} · validation loss {loss:.4f}")
        if trainer.probe is not None:
            model = gathered(trainer.model)
            if group.main:
                with merged(model):
                    found |= trainer.probe(step, model)
        book.validation(step, found)
        return True
    return False
