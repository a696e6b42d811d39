"""One training by several processes, each on a device of its own, as torchrun starts them.

    join: who is who --> spread: the model over them --> each step: the gradients' sum over all ranks, once

DDP keeps the whole model on every rank; FSDP2 keeps a share of every matrix, and hybrid a share within a group of ranks
and the same in every group. Gradients are summed, not averaged: the step divides by the weight of the whole batch.
"""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from leveret.errors import UserError
from leveret.hardware.device import pick_device
from leveret.hardware.memory import available_memory
from leveret.training.pulse import DONE, LOST, Pulse

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

    from leveret.training.config import ParallelConfig
    from leveret.training.loop import Trainer

FOREVER = timedelta(days=30)
"""Of collectives: it is the pulse that ends them."""
BROKEN = re.compile("gloo|nccl|connection|socket|broken pipe", re.IGNORECASE)
"""In what a collective says that could not be ended."""
STATE_BYTES = 16
"""Of a parameter: itself, its gradient and two moments in float32."""


class RankLost(Exception):
    """Another rank is gone, so this one cannot go on. The same command does, from the newest checkpoint."""

    exit_code = LOST


@dataclass(eq=False)
class Group:
    """The processes of a training, and which of them this is.

    local_rank, local_ranks: among those of this machine.
    """

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    local_ranks: int = 1
    store: Any = None
    pulse: Pulse | None = None

    @property
    def main(self) -> bool:
        """Whether this is the one that speaks and writes."""
        return self.rank == 0

    def at(self, place: str, step: int | None = None, long: bool = False) -> None:
        """Where the work is, for the others to know whom they wait for. All ranks pass the same places.

        Args:
            step: that begins here, counted from 1.
            long: it may take as long as it likes.
        """
        if self.pulse is not None:
            self.pulse.at(place, step, long)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, on the device and in place."""
        if self.ranks > 1:
            dist.all_reduce(tensor)
        return tensor

    def agree(self, value: int) -> int:
        """The largest value of all ranks, on the host."""
        if self.ranks == 1:
            return value
        box = torch.tensor([value])
        dist.all_reduce(box, dist.ReduceOp.MAX)
        return int(box)

    def totals(self, *values: float) -> list[float]:
        """The sums over all ranks, on the host."""
        if self.ranks == 1:
            return list(values)
        box = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(box)
        return box.tolist()

    def share(self, work: Callable[[Tensor], Tensor], stack: Tensor) -> Tensor:
        """work(stack), each rank doing its part of the stack's first dimension."""
        if self.ranks == 1:
            return work(stack)
        each = -(-len(stack) // self.ranks)
        mine = stack[self.rank * each : (self.rank + 1) * each]
        done = torch.zeros((each, *stack.shape[1:]), dtype=stack.dtype, device=stack.device)
        if len(mine):
            done[: len(mine)] = work(mine)
        every = [torch.empty_like(done) for _ in range(self.ranks)]
        dist.all_gather(every, done)
        return torch.cat(every)[: len(stack)]

    def tell(self, name: str, text: str = "") -> None:
        """Says something by name to those who `hear` it; once in a start of the group."""
        if self.ranks > 1:
            self.store.set(f"told/{name}", text)

    def hear(self, name: str) -> str:
        """What is told by that name, waited for however long it takes. If the teller is lost, this process ends."""
        self.at(f"waiting for {name}", long=True)
        pause = 0.01
        while not self.store.check([f"told/{name}"]):  # torch's own waiting warns whenever it has waited in vain
            if self.pulse is not None and (gone := self.pulse.gone()):
                raise RankLost(f"{gone}; the same command goes on")
            time.sleep(pause)
            pause = min(2 * pause, 0.5)
        return str(self.store.get(f"told/{name}").decode())

    def wait(self, name: str) -> None:
        """Until rank 0 has come here too."""
        if self.main:
            self.tell(name)
        else:
            self.hear(name)

    @contextmanager
    def telling(self, tell: Callable[[str, int, str], None]) -> Iterator[None]:
        """Who is late or silent is told so as well, with kind, step and text."""
        if self.pulse is None:
            yield
            return
        before, pulse = self.pulse.tell, self.pulse

        def both(kind: str, text: str) -> None:
            before(kind, text)
            tell(kind, pulse.step, text)

        pulse.tell = both
        try:
            yield
        finally:
            pulse.tell = before

    @contextmanager
    def losses_named(self) -> Iterator[None]:
        """What a collective says when a rank is gone becomes a RankLost that names it."""
        try:
            yield
        except RuntimeError as error:
            if self.pulse is None or not BROKEN.search(str(error)) or (missing := self.pulse.missing()) is None:
                raise
            raise RankLost(f"{missing}; started again, all ranks go on from the newest checkpoint") from error


ALONE = Group()


@contextmanager
def join(device: str = "auto", patience: float = 300.0) -> Iterator[Group]:
    """The group that torchrun's environment tells of; ALONE without one.

    Args:
        patience: seconds that ranks wait for one of them before they give it up.

    Raises:
        UserError: the devices are too few, or of a kind that does not work together.
    """
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if ranks == 1:
        yield ALONE
        return
    group = _connect(pick_device(device), ranks)
    assert group.pulse is not None
    group.pulse.patience = patience
    group.pulse.start()
    try:
        yield group
    except BaseException as error:
        group.pulse.stop(" ".join(f"{type(error).__name__}: {error}".split())[:200])
        raise
    group.at("the end", long=True)
    dist.barrier()
    group.pulse.stop(DONE)
    dist.destroy_process_group()


def _connect(device: torch.device, ranks: int) -> Group:
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", 0))
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"several processes train on CUDA or the CPU, not on {device.type}; use --device cpu")
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(f"rank {rank} has no GPU: start {torch.cuda.device_count()} processes on this machine")
        torch.cuda.set_device(local)
    store: Any = next(rendezvous("env://"))[0]
    store.set_timeout(FOREVER)
    # torchrun keeps its store when it starts the ranks anew: what an earlier start has told is not for this one.
    store = PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    beats = store.clone()
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=FOREVER)

    def fetch(key: str) -> str | None:
        return beats.get(key).decode() if beats.check([key]) else None

    pulse = Pulse(rank, ranks, beats.set, fetch, patience=300.0)
    return Group(rank, ranks, local, int(os.environ.get("LOCAL_WORLD_SIZE", ranks)), store, pulse)


def spread(trainer: Trainer) -> None:
    """Puts the trainer's loss to work on all ranks of its group, with equal weights. Before any optimizer is made."""
    group, config = trainer.group, trainer.config
    if group.ranks == 1:
        return
    if way(trainer) == "ddp":
        trainer.loss = _replicate(trainer.loss)
    elif config.optimizer.kind == "adamw8bit":
        raise UserError(
            f"{trainer.label}.optimizer.kind adamw8bit is not for fsdp; set {trainer.label}.parallel.kind: ddp"
        )
    elif config.micro_batch_size == "auto":
        raise UserError(f"{trainer.label}.micro_batch_size auto is not for fsdp: give a number of rows")
    else:
        _shard(trainer.loss, trainer.model.layers, mesh_shape(group, config.parallel), trainer.device)


def way(trainer: Trainer) -> str:
    """ "ddp" or "fsdp". auto: fsdp only where weights, gradients and moments fill more than half of the memory."""
    kind = trainer.config.parallel.kind
    if trainer.model.lora is not None:  # FSDP2 gathers what is frozen too, for nothing
        return "ddp"
    if kind != "auto":
        return kind
    state = STATE_BYTES * sum(parameter.numel() for parameter in trainer.model.parameters())
    memory = available_memory(trainer.device)
    short = memory is not None and state > memory / 2
    return "fsdp" if trainer.group.agree(int(short)) else "ddp"


def mesh_shape(group: Group, config: ParallelConfig) -> tuple[int, int]:
    """(groups, ranks in each that share the weights among them).

    Raises:
        UserError: the ranks do not divide so.
    """
    sharing = config.shard_ranks or min(group.local_ranks, group.ranks)
    if group.ranks % sharing:
        raise UserError(f"parallel.shard_ranks {sharing} does not divide the {group.ranks} ranks")
    return group.ranks // sharing, sharing


def _replicate(loss: nn.Module) -> nn.Module:
    """DDP, whose hook sums."""
    from torch.nn.parallel import DistributedDataParallel

    def total(_, bucket):  # type: ignore[no-untyped-def]  # torch takes no annotations but its own
        future: Any = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
        return future.then(lambda done: done.value()[0])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the new name of broadcast_buffers is too new
        wrapped = DistributedDataParallel(loss, broadcast_buffers=False, gradient_as_bucket_view=True)
    wrapped.register_comm_hook(None, total)
    return wrapped


def _shard(loss: nn.Module, layers: nn.ModuleList, shape: tuple[int, int], device: torch.device) -> None:
    """FSDP2: every layer is gathered for its own work, the embedding, the head and the last norm with the whole."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    groups, sharing = shape
    if groups == 1:
        mesh = init_device_mesh(device.type, (sharing,), mesh_dim_names=("shard",))
    else:
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))
    # A layer's second output is a view, which nobody changes in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    for module in (*layers, loss):
        sharded: FSDPModule = fully_shard(module, mesh=mesh)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum


@contextmanager
def exchanging(loss: nn.Module, now: bool) -> Iterator[None]:
    """Around a micro-batch's forward and backward: whether its gradients, with those kept so far, are summed over the
    ranks at its end, or kept."""
    module: Any = loss
    if hasattr(loss, "set_requires_gradient_sync"):
        module.set_requires_gradient_sync(now)
    with nullcontext() if now or not hasattr(loss, "no_sync") else module.no_sync():
        yield
