"""Run with filefaults.c preloaded: a save, over and over, each time with another of its file operations gone wrong.

Prints JSON: how many operations a save has, by name, how many cases were tried, what came of them, and every one after
which something was not as it must be.

    python saves_under_faults.py FOLDER EVERY       EVERY 1: each operation, 3: each third
"""

import ctypes
import json
import os
import shutil
import sys
import traceback
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from leveret.errors import UserError
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.training.checkpoint import (
    Checkpoint,
    Snapshot,
    find_checkpoint,
    open_checkpoint,
    steps_on_disk,
    write_checkpoint,
)
from leveret.training.config import TrainingConfig
from leveret.training.optimizer import make_optimizer, optimizer_state
from leveret.training.parallel import ALONE
from leveret.training.progress import Progress
from leveret.training.saving import Saver

SHIM = ctypes.CDLL(None)
NONE, NO_SPACE, IO_ERROR, SHORT, FULL, KILL, TORN = range(7)
KINDS = {"ENOSPC": NO_SPACE, "EIO": IO_ERROR, "short write": SHORT, "full from there on": FULL,
         "killed": KILL, "killed in a write": TORN}  # fmt: skip
SAVED, TOLD, REFUSED, CRASHED = range(4)
"""What a child says: saved; failed, and told of it; ended by an OSError before any step, which the command line says in
a line; anything else, which must not be."""

CONFIG = ModelConfig(
    vocab_size=17, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
    max_position_embeddings=6,
)  # fmt: skip
TRAINING = TrainingConfig(steps=100, eval_every=10, keep_last=2)


class Book:
    """A logbook that takes everything in and keeps nothing."""

    metrics = SimpleNamespace(losses={10: 2.0, 20: 3.0})

    def say(self, text: str) -> None: ...

    def event(self, kind: str, step: int, **facts: Any) -> None: ...


class State:
    """A model and its optimizer after a few steps of their own, and what a save of them must give back."""

    def __init__(self, seed: int, step: int) -> None:
        torch.manual_seed(seed)
        self.model, self.step = Decoder(CONFIG), step
        self.optimizer = make_optimizer(self.model, TRAINING.optimizer)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()
        self.meant = self.tensors(self.model.state_dict(), optimizer_state(self.model, self.optimizer))

    @staticmethod
    def tensors(weights: dict[str, Tensor], moments: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in (*weights.items(), *moments.items())}

    def save(self, stage: Path) -> int:
        """Through all that training goes through."""
        trainer: Any = SimpleNamespace(
            folder=stage, device=torch.device("cpu"), config=TRAINING, model=self.model, label="pretrain", rows=4,
            graphs=None, scaler=torch.amp.GradScaler("cpu", enabled=False), recipe="name: tiny\n", room_after=0,
            batches=SimpleNamespace(rank=0), group=ALONE,
        )  # fmt: skip
        book: Any = Book()
        with Saver(trainer, 100) as saver:
            saver.save(self.optimizer, Progress(self.step), book)
            return TOLD if saver.failed else SAVED

    def is_in(self, found: Checkpoint) -> bool:
        there = self.tensors(found.weights(CONFIG), found.optimizer())
        return found.step == self.step and there.keys() == self.meant.keys() and all(
            torch.equal(there[name], value) for name, value in self.meant.items()
        )  # fmt: skip


def in_a_child(stage: Path, state: State, target: int, kind: int) -> int:
    """A save in a process of its own; its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            SHIM.filefaults_arm(str(stage).encode(), ctypes.c_long(target), kind)
            os._exit(state.save(stage))
        except (OSError, UserError):
            os._exit(REFUSED)
        except BaseException:
            traceback.print_exc()
            os._exit(CRASHED)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def faults_after(stage: Path, came: int, kind: int, old: list[State], new: State, later: State) -> list[str]:
    """What is wrong with a stage's folder after a save that met a fault."""
    wrong = []
    if came == CRASHED or (came < 0) != (kind in (KILL, TORN)):
        wrong.append(f"the process came to {came}")
    if kind == SHORT and came != SAVED:
        wrong.append("half a write was taken for a failure")
    found, known = find_checkpoint(stage / "checkpoints"), [*old, new]
    if found is None or not any(state.is_in(found) for state in known):
        wrong.append("there is no whole checkpoint")
    elif came == SAVED and not new.is_in(found):
        wrong.append("it said that it had saved, and had not")
    for step in steps_on_disk(stage / "checkpoints"):
        try:
            there = open_checkpoint(stage / "checkpoints" / f"step-{step:08d}")
        except UserError as error:
            wrong.append(str(error))
        else:
            if not any(state.is_in(there) for state in known):
                wrong.append(f"step {step} is not what was saved")
    if later.save(stage) != SAVED:
        wrong.append("a later save failed")
    found = find_checkpoint(stage / "checkpoints")
    if found is None or not later.is_in(found):
        wrong.append("a later save is not there")
    if left := [path.name for path in (stage / "checkpoints").glob(".*")]:
        wrong.append(f"left behind: {left}")
    if (stage / "checkpoints" / "latest").read_text() != f"step-{later.step:08d}\n":
        wrong.append("latest points elsewhere")
    return wrong


def operations(stage: Path, state: State) -> tuple[int, dict[str, int]]:
    """Those of a save that nothing happens to."""
    SHIM.filefaults_arm(str(stage).encode(), ctypes.c_long(0), NONE)
    assert state.save(stage) == SAVED
    names = ("open64", "openat64", "write", "fsync", "ftruncate64", "rename", "mkdir", "unlink", "unlinkat", "rmdir")
    count = {name: SHIM.filefaults_count(name.encode()) for name in names}
    total = SHIM.filefaults_count(b"")
    SHIM.filefaults_arm(b"", ctypes.c_long(0), NONE)
    assert total == sum(count.values()), "an operation that is not listed here"
    return total, {name: number for name, number in count.items() if number}


def main(scratch: Path, every: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    old, later = [State(1, 5), State(2, 10), State(3, 20)], State(6, 40)
    base, stage = scratch / "base", scratch / "stage"
    for state in old:  # the first is one that the save under test deletes
        moments = optimizer_state(state.model, state.optimizer)
        write_checkpoint(base / "checkpoints", Snapshot.of(state.model, moments, {"step": state.step}))
    report: dict[str, Any] = {"operations": {}, "cases": 0, "came": Counter(), "wrong": []}
    for name, new in {"a new step": State(4, 30), "the same step again": State(5, 20)}.items():
        shutil.copytree(base, stage)
        total, counted = operations(stage, new)
        report["operations"][name] = counted
        shutil.rmtree(stage)
        for what, kind in KINDS.items():
            for target in range(1, (counted["write"] if kind in (SHORT, TORN) else total) + 1, every):
                shutil.copytree(base, stage)
                came = in_a_child(stage, new, target, kind)
                report["cases"] += 1
                report["came"][f"{what}: {came}"] += 1
                wrong = faults_after(stage, came, kind, old, new, later)
                report["wrong"] += [f"{name}, {what} at operation {target}: {each}" for each in wrong]
                shutil.rmtree(stage)
    return report


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
