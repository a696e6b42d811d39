"""When, whether and how a stage's checkpoints are made.

    how things stand --copied to pinned memory on a GPU--> written, in a thread there --> older ones deleted

Training waits for the copy alone; on a CPU, which would have to do the writing as well, for all of it. A disk that
refuses stops nothing: it is told of, and a save is tried again after a while. Only the last save, which nothing comes
after, is insisted on. Not covered: a network disk that lets a write hang instead of failing it.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leveret.errors import UserError
from leveret.model.config import ModelConfig
from leveret.model.counts import count_parameters
from leveret.training.checkpoint import (
    MARGIN,
    Snapshot,
    find_checkpoint,
    go_back_to_best,
    prune,
    steps_on_disk,
    tidy,
    write_checkpoint,
)
from leveret.training.config import TrainingConfig
from leveret.training.lock import Lock
from leveret.training.memory import optimizer_bytes
from leveret.training.optimizer import optimizer_state
from leveret.training.progress import Progress
from leveret.training.sharded import is_sharded, whole, write_shards
from leveret.training.signals import Signals

if TYPE_CHECKING:
    from leveret.training.logbook import Logbook
    from leveret.training.loop import Trainer

log = logging.getLogger("leveret")

RETRY_SECONDS = 60.0
"""After a save that failed, until another is tried, whatever the step. Steps go on in between."""
INSIST_SECONDS = 600.0
"""How long the save after the last step is tried again."""
SIGNAL_SECONDS = 20.0
"""How long the save after a signal is: clouds and Slurm kill 30 seconds after theirs, or later."""
PAUSE_SECONDS = 5.0
"""Between two of these tries."""
METRICS_BYTES, ROW_BYTES = 16 * 2**20, 2000
"""What a stage keeps beside its checkpoints, amply: plots and samples; a line of metrics, in all its forms."""
NOWHERE = -1
FULL = {errno.ENOSPC, errno.EDQUOT}

Losses = Mapping[int, float]
"""Validation losses by step."""


class Saver:
    """Makes the checkpoints of a stage of `total` steps. Used as a context manager around all that reads or writes the
    stage's folder: that is locked meanwhile. Of several processes that train together only the first does all this,
    but where each holds a share of the weights, it writes that.

    Raises:
        UserError: on entering, if another process works there, or the disk has no room for what the stage will keep.
    """

    def __init__(self, trainer: Trainer, total: int) -> None:
        self.trainer, self.total = trainer, total
        self.folder = trainer.folder / "checkpoints"
        self.lock = Lock(trainer.folder)
        self.main = trainer.group.main
        self.copies: dict[str, Tensor] = {}
        self.thread: ThreadPoolExecutor | None = None
        self.flight: Future[OSError | None] | None = None
        self.step = NOWHERE
        self.failed: OSError | None = None
        self.again = 0.0

    def __enter__(self) -> Saver:
        if not self.main:
            return self
        self.lock.__enter__()
        try:
            tidy(self.folder)
            self._check_room()
        except BaseException:
            self.lock.__exit__()
            raise
        if self.trainer.device.type != "cpu":
            self.thread = ThreadPoolExecutor(1, "checkpoints")
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.thread is not None:
                self.thread.shutdown()
            if self.flight is not None and (error := self.flight.result()):
                log.warning("step %d was not saved: %s", self.step, error)
        finally:
            if self.main:
                self.lock.__exit__()

    def _check_room(self) -> None:
        """Before anything is trained: is there room for all of it?"""
        have = free_space(self.folder)
        if have is None or self.total in steps_on_disk(self.folder):
            return
        have += sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())  # to be replaced
        need = space_needed(self.trainer.model.config, self.trainer.config, self.total) + self.trainer.room_after
        if have < need:
            raise UserError(
                f"{self.trainer.folder} will need {need / 1e9:.2f} GB for checkpoints and its disk has room for "
                f"{have / 1e9:.2f} GB; make room, set {self.trainer.label}.keep_last lower, or take another --run-dir"
            )

    def save(self, optimizer: torch.optim.Optimizer, progress: Progress, book: Logbook) -> None:
        """Saves how things stand, or begins to; first waits for the save before. A disk that refuses is told of."""
        self.wait(book)
        self.step, trainer = progress.step, self.trainer
        if not self.main and not self._shared:
            return
        state = progress.facts() | {
            "ranks": trainer.group.ranks,
            "micro_batch_size": trainer.rows,
            "compiled": trainer.graphs is not None,
            "scaler": trainer.scaler.state_dict(),
        }
        moments = optimizer_state(trainer.model, optimizer)
        snapshot, losses = Snapshot.of(trainer.model, moments, state, trainer.recipe), dict(book.metrics.losses)
        try:
            snapshot = self._of_all_ranks(snapshot) if self._shared else snapshot
        except OSError as error:
            self._take_in(error, book)
            return
        if not self.main:
            self.failed = None
        elif self.thread is not None:
            self.flight = self.thread.submit(self._attempt, self._copied(snapshot), losses)
        else:
            self._take_in(self._attempt(snapshot, losses), book)

    def settle(self, book: Logbook) -> int:
        """After the last save: under early stopping the best validated checkpoint becomes the newest, which is what a
        stage's model is. The step of that."""
        best = None
        if self.main and self.trainer.config.patience is not None:
            best = go_back_to_best(self.folder, book.metrics.losses)
        return book.progress.step if best is None else best

    def wait(self, book: Logbook) -> None:
        """Until no save is being written."""
        if self.flight is not None:
            error = self.flight.result()
            self.flight = None
            self._take_in(error, book)

    def overdue(self, book: Logbook) -> bool:
        """Whether a save failed, and it is time for another."""
        if self.flight is not None and self.flight.done():
            self.wait(book)
        return self._any(self.failed is not None and time.monotonic() >= self.again)

    def insist(self, optimizer: torch.optim.Optimizer, progress: Progress, book: Logbook, signals: Signals) -> None:
        """Makes sure that this step, which is the last for now, is saved: a save that fails is made again for a while.

        Raises:
            UserError: the disk refuses to the end.
        """
        begun = time.monotonic()
        if self.step != progress.step:
            self.save(optimizer, progress, book)
        while self._unfinished(book):
            over = time.monotonic() - begun >= (SIGNAL_SECONDS if signals.received else INSIST_SECONDS)
            if self._any(over):
                raise UserError(self._lost())
            time.sleep(PAUSE_SECONDS)
            self.save(optimizer, progress, book)

    def _unfinished(self, book: Logbook) -> bool:
        self.wait(book)
        return self._any(self.failed is not None)

    @property
    def _shared(self) -> bool:
        """Whether every rank holds a share of the weights; then all save together."""
        return is_sharded(self.trainer.model.parameters())

    def _any(self, own: bool) -> bool:
        """Whether it is so here; where all save together, whether it is so on any rank."""
        return bool(self.trainer.group.agree(int(own))) if self._shared else own

    def _of_all_ranks(self, snapshot: Snapshot) -> Snapshot:
        """What ranks hold a share of each: of the last step it is put together, so that what stays is in the form of
        one device, and under early stopping of every step, as any may be the one that stays; else each rank writes its
        share, for the checkpoint to take in.

        Raises:
            OSError: the disk refuses one of them.
        """
        tensors = [("model", snapshot.weights), ("optimizer", snapshot.optimizer)]
        if snapshot.step == self.total or self.trainer.config.patience is not None:
            full = [{name: whole(tensor).cpu() for name, tensor in part.items()} for _, part in tensors]
            return replace(snapshot, weights=full[0], optimizer=full[1])
        shards = self.folder / f".step-{snapshot.step:08d}.shards.partial"
        if self.main:
            shutil.rmtree(shards, ignore_errors=True)
        self.trainer.group.agree(0)  # no rank writes before that
        try:
            write_shards(shards, {f"{part}/{name}": each for part, some in tensors for name, each in some.items()})
        except OSError:
            shutil.rmtree(shards, ignore_errors=True)
            raise
        return replace(snapshot, weights={}, optimizer={}, shards=shards)

    def restart(self, book: Logbook) -> None:
        """Before steps are taken again from an earlier one on."""
        self.wait(book)
        self.step, self.failed = NOWHERE, None

    def _lost(self) -> str:
        assert self.failed is not None
        steps = steps_on_disk(self.folder)
        left = f"the same command goes on from step {steps[-1]}" if steps else "begin again with the same command"
        return f"step {self.step} could not be saved in {self.folder} ({_reason(self.failed)}); mend that, and {left}"

    def _take_in(self, error: OSError | None, book: Logbook) -> None:
        """What came of a save."""
        if error is not None:
            self.again = time.monotonic() + RETRY_SECONDS
            when = f"at the next checkpoint, or in {RETRY_SECONDS:.0f} seconds"
            book.say(f"step {self.step} was not saved ({_reason(error)}); another save is tried {when}")
            _note(book, "save-failed", self.step, error=_reason(error))
        elif self.failed is not None:
            book.say(f"step {self.step} is saved")
            _note(book, "saved-again", self.step)
        self.failed = error

    def _attempt(self, snapshot: Snapshot, losses: Losses) -> OSError | None:
        """Writes, then deletes what is no longer kept. Returns what the disk said against the first of these."""
        try:
            try:
                self._write(snapshot)
            except OSError as error:
                if error.errno not in FULL or snapshot.shards is not None or not self._thin_out(losses):
                    raise
                self._write(snapshot)
        except OSError as error:
            return error
        try:
            prune(self.folder, snapshot.step, self.trainer.config.keep_last, losses)
        except OSError as error:
            log.warning("a checkpoint that is no longer kept cannot be deleted: %s", error)
        return None

    def _write(self, snapshot: Snapshot) -> None:
        room = free_space(self.folder)
        if room is not None and room < snapshot.nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))
        try:
            write_checkpoint(self.folder, snapshot)
        finally:
            if snapshot.shards is not None:
                shutil.rmtree(snapshot.shards, ignore_errors=True)

    def _thin_out(self, losses: Losses) -> bool:
        """Deletes all checkpoints but the newest and the best, if the newest is found to be whole; whether any was.

        What is being learnt now is worth more than what was learnt before.
        """
        before = steps_on_disk(self.folder)
        newest = find_checkpoint(self.folder)
        if newest is not None:
            prune(self.folder, newest.step, 1, losses)
        if fewer := steps_on_disk(self.folder) != before:
            log.warning("%s: the disk is full, so older checkpoints were deleted before their time", self.folder)
        return fewer

    def _copied(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot in memory of the host, which steps to come do not touch. Waits for the copying only."""

        def copies(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: self._copy(f"{part}/{name}", tensor) for name, tensor in tensors.items()}

        weights, moments = copies("weights", snapshot.weights), copies("optimizer", snapshot.optimizer)
        adapters = copies("adapters", snapshot.adapters)
        if self.trainer.device.type == "cuda":
            torch.cuda.current_stream(self.trainer.device).synchronize()
        return replace(snapshot, weights=weights, optimizer=moments, adapters=adapters)

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        """Into a buffer that every save uses again: to pin memory takes long."""
        cuda = self.trainer.device.type == "cuda"
        if name not in self.copies:
            self.copies[name] = torch.empty_like(tensor, device="cpu", pin_memory=cuda)
        return self.copies[name].copy_(tensor, non_blocking=cuda)


def space_needed(model: ModelConfig, config: TrainingConfig, total: int) -> int:
    """Bytes that a stage of so many steps takes at its fullest: the checkpoints kept, the best, one being written, and
    what is told of it all. Frozen weights are counted with each, since not every disk knows links."""
    each = 4 * count_parameters(model).total + optimizer_bytes(model, config) + MARGIN
    saves = -(-total // config.every("checkpoint", total))
    rows = total // config.log_every
    return each * min(saves, config.keep_last + 2) + METRICS_BYTES + ROW_BYTES * rows


def free_space(folder: Path) -> int | None:
    """Bytes that can be written on the volume of a folder that may be yet to come; None where the volume says nothing.

    It knows of no quota: what that refuses, the save meets.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    usage = shutil.disk_usage(there)
    return usage.free if usage.total else None


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _note(book: Logbook, kind: str, step: int, **facts: str) -> None:
    """An event, if the disk lets it be written."""
    with suppress(OSError):
        book.event(kind, step, **facts)
