"""Several processes that train together, and what they do in the tests: each function runs on every rank."""

import io
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tiny_training import CPU, LENGTH, decoder, settings
from torch import Tensor

from leveret.data.batches import Batches
from leveret.data.shards import TokenStore
from leveret.training.config import TrainingConfig
from leveret.training.loop import Trainer, set_up, train, train_step
from leveret.training.objective import NextToken
from leveret.training.parallel import Group, join
from leveret.training.sharded import whole

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["leveret.training.loop", "torch.distributed.fsdp", "torch._dynamo", "torch.testing"])


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def together(ranks: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What work(group, *arguments) returns on each of so many ranks."""
    port = free_port()
    ends = [CONTEXT.Pipe() for _ in range(ranks)]
    processes = [
        CONTEXT.Process(target=_rank, args=(rank, ranks, port, end, work, arguments))
        for rank, (_, end) in enumerate(ends)
    ]
    for process in processes:
        process.start()
    try:
        found = [here.recv() if here.poll(100) else "nothing came" for here, _ in ends]
    finally:
        for process in processes:
            process.join(20)
            process.kill()
    wrong = [text for text in found if isinstance(text, str)]
    assert not wrong, "\n".join(wrong)
    return [value for (value,) in found]


def _rank(
    rank: int, ranks: int, port: int, end: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    try:
        with join("cpu") as group:
            end.send((work(group, *arguments),))
    except BaseException:
        end.send(traceback.format_exc())


def trainer_of(group: Group, store: TokenStore, folder: Path, config: TrainingConfig) -> Trainer:
    def batches(split: str) -> Batches:
        masks = config.document_mask
        return Batches(
            store.split(split), config.batch_size, LENGTH, config.seed, 0, masks, rank=group.rank, ranks=group.ranks
        )

    return Trainer(
        label="test", model=decoder(), objective=NextToken(), batches=batches("train"),
        validation=batches("validation") if "validation" in store.manifest["splits"] else None, config=config,
        folder=folder, device=CPU, console=Console(file=io.StringIO()), group=group,
    )  # fmt: skip


def gradients(group: Group, store: Path, folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """The gradients of one step's batch, as a sum of squares finds them: unclipped, before any update."""
    trainer = trainer_of(group, TokenStore(store), folder, settings(**changes))
    optimizer = set_up(trainer)
    kept: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        kept.update({n: whole(p.grad).clone() for n, p in trainer.model.named_parameters()})

    optimizer.register_step_pre_hook(keep)
    train_step(trainer, optimizer, trainer.micro_batches(trainer.batches.batch(0)), 0.01)
    return {name: tensor.numpy() for name, tensor in kept.items()}


def training(group: Group, store: Path, folder: Path, changes: dict[str, Any]) -> Any:
    """A whole training; its summary, as rank 0 tells it."""
    return train(trainer_of(group, TokenStore(store), folder, settings(**changes)))
