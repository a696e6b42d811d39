"""Several processes that train together, and what they do in the tests: each function runs on every rank."""

import io
import multiprocessing
import os
import signal
import socket
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_training import CPU, LENGTH, decoder, settings, unpainted
from torch import Tensor

from leveret.data.batches import Batch, Batches
from leveret.data.shards import TokenStore
from leveret.model.config import LoraConfig
from leveret.model.decoder import Decoder
from leveret.model.lora import add_lora
from leveret.model.weights import tied
from leveret.training import pulse
from leveret.training.loop import Trainer, set_up, train, train_step
from leveret.training.objective import NextToken
from leveret.training.optimizer import load_optimizer_state, optimizer_state
from leveret.training.parallel import Group, join
from leveret.training.sharded import load_weights, read_shards, whole, write_shards

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["leveret.training.loop", "torch.distributed.fsdp", "torch._dynamo"])

Settings = dict[str, Any]
Arrays = dict[str, Any]


@dataclass(frozen=True)
class Fate:
    """What became of a rank: what it returned, or what it raised, and its exit code."""

    value: Any
    error: str
    code: int | None


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def fates(ranks: int, work: Callable[..., Any], *arguments: Any, **variables: str) -> list[Fate]:
    """What becomes of so many ranks that each do work(group, *arguments)."""
    port = free_port()
    ends = [CONTEXT.Pipe() for _ in range(ranks)]
    environment = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | variables
    processes = [
        CONTEXT.Process(target=_rank, args=(environment | {"RANK": str(rank)}, end, work, arguments))
        for rank, (_, end) in enumerate(ends)
    ]
    for process in processes:
        process.start()
    for _, end in ends:
        end.close()
    found = []
    try:
        for (here, _), process in zip(ends, processes, strict=True):
            try:
                value, error = here.recv() if here.poll(100) else (None, "it came to no end")
            except EOFError:
                value, error = None, "it was gone"
            process.join(30)
            found.append(Fate(value, error, process.exitcode))
    finally:
        for process in processes:
            process.kill()
    return found


def together(ranks: int, work: Callable[..., Any], *arguments: Any, **variables: str) -> list[Any]:
    """What work(group, *arguments) returns on each of so many ranks."""
    found = fates(ranks, work, *arguments, **variables)
    assert not [fate.error for fate in found if fate.error], "\n".join(fate.error for fate in found)
    assert [fate.code for fate in found] == [0] * ranks
    return [fate.value for fate in found]


def _rank(
    environment: Mapping[str, str], end: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {"LOCAL_RANK": environment["RANK"]} | environment
    torch.set_num_threads(1)
    try:
        with join("cpu") as group:
            value = work(group, *arguments)
        end.send((value, ""))
    except BaseException:
        end.send((None, traceback.format_exc()))


def trainer_of(group: Group, store: Path, folder: Path, changes: Settings, **fields: Any) -> Trainer:
    config, tokens = settings(**changes), TokenStore(store)

    def batches(split: str) -> Batches:
        of, size, masks = tokens.split(split), config.batch_size, config.document_mask
        return Batches(of, size, LENGTH, config.seed, 0, masks, rank=group.rank, ranks=group.ranks)

    if group.pulse is not None:
        group.pulse.patience = config.parallel.patience
    known: dict[str, Any] = {
        "label": "test", "model": decoder(), "objective": NextToken(), "batches": batches("train"),
        "validation": batches("validation") if "validation" in tokens.manifest["splits"] else None, "config": config,
        "folder": folder, "device": CPU, "console": Console(file=io.StringIO()), "group": group,
    }  # fmt: skip
    return Trainer(**(known | fields))


def gradients(group: Group, store: Path, folder: Path, several: list[Settings]) -> list[Arrays]:
    """With each of these settings the gradients of the first step, whole, before they are clipped."""
    found = []
    for changes in several:
        trainer = trainer_of(group, store, folder, changes | {"grad_clip": None})
        optimizer = set_up(trainer)
        kept: Arrays = {}

        def keep(*_: Any, trainer: Trainer = trainer, kept: Arrays = kept) -> None:
            kept.update({n: whole(p.grad).numpy().copy() for n, p in trainer.model.named_parameters()})

        optimizer.register_step_pre_hook(keep)
        train_step(trainer, optimizer, trainer.micro_batches(trainer.batches.batch(0)), 0.01)
        found.append(kept)
    return found


class Stopped(NextToken):
    """Sends SIGTERM to its own process in the n-th step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.left = step

    def loss(self, model: Decoder, batch: Batch) -> Tensor:
        if model.training:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGTERM)
        return super().loss(model, batch)


def trainings(group: Group, store: Path, several: list[tuple[Path, Settings]], stop: int = 0, late: float = 0) -> Any:
    """Whole trainings, or what is left of them: (folder, settings) of each; the last rank is told to stop in a step.

    Returns the last one's summary, or what ended it.
    """
    from leveret.training.signals import Interrupted

    pulse.LATE_SECONDS = late or pulse.LATE_SECONDS
    ended: Any = None
    for folder, changes in several:
        objective = Stopped(stop if group.rank == group.ranks - 1 else 0)
        try:
            with pytest.MonkeyPatch.context() as patch:
                unpainted(patch)
                ended = train(trainer_of(group, store, folder, changes, objective=objective))
        except Interrupted as error:
            ended = str(error)
    return ended


def adapted(group: Group, store: Path, folder: Path, changes: Settings) -> None:
    """A whole training of adapters."""
    model = decoder()
    add_lora(model, LoraConfig(rank=4), seed=3)
    with pytest.MonkeyPatch.context() as patch:
        unpainted(patch)
        train(trainer_of(group, store, folder, changes, model=model))


def shards(group: Group, store: Path, folder: Path, kind: str) -> list[str]:
    """Writes a model's and its optimizer's shares, reads them whole and puts them back; what of it is not the same."""
    changes = {"parallel": {"kind": "fsdp"}, "optimizer": {"kind": kind, "lr": 0.01}}
    trainer = trainer_of(group, store, folder, changes)
    optimizer = set_up(trainer)
    for step in range(2):
        train_step(trainer, optimizer, trainer.micro_batches(trainer.batches.batch(step)), 0.01)
    weights, moments = dict(trainer.model.named_parameters()), optimizer_state(trainer.model, optimizer)
    named = {f"model/{n}": t for n, t in weights.items()} | {f"optimizer/{n}": t for n, t in moments.items()}
    write_shards(folder / "shards", named)
    group.agree(0)
    read = {
        f"{part}/{n}": t for part in ("model", "optimizer") for n, t in read_shards(folder / "shards", part).items()
    }
    wrong = [name for name, tensor in named.items() if not torch.equal(whole(tensor), read.pop(name))] + list(read)
    other = trainer_of(group, store, folder, changes)
    fresh = set_up(other)
    load_weights(other.model, tied(read_shards(folder / "shards", "model"), other.model.config))
    load_optimizer_state(other.model, fresh, read_shards(folder / "shards", "optimizer"))
    for part, before, now in (
        ("model", weights, dict(other.model.named_parameters())),
        ("optimizer", moments, optimizer_state(other.model, fresh)),
    ):
        wrong += [f"{part}/{n} put back" for n, t in before.items() if not torch.equal(whole(t), whole(now[n]))]
    return wrong
