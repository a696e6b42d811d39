"""What a training takes on a machine: operations, time, money and memory. The one place for all of them.

    model, recipe's stage, steps --> FLOPs --> / (peak x MFU x GPUs) --> seconds --> x price --> dollars
                                 --> memory by part, of each GPU

A Machine is made by machines.machine_of from a GPU's name, or by hand.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from leveret.errors import UserError
from leveret.model.config import ModelConfig
from leveret.model.counts import count_parameters, flops_per_token
from leveret.planning.memory import inference_memory
from leveret.training.config import TrainingConfig
from leveret.training.memory import cuts, training_memory
from leveret.training.parallel import STATE_BYTES

FILLED = 0.9
"""Share of a GPU's memory that the estimate of a micro-batch may fill: its gaps, its context, other programs."""


@dataclass(frozen=True)
class Machine:
    """What trains: `gpus` equal devices in `nodes` machines, all figures those of one device.

    gpu: its name. gpus: of all nodes together. peak_flops: operations a second of bfloat16 products. memory_bytes: None
    where nobody knows. price_hour: dollars; None without a price. mfu: share of the peak that a step's operations come
    to. mfu_source: who measured it, on what. mfu_range: 80% of what it may turn out to be. kind: of device, as torch
    has it.
    """

    gpu: str
    gpus: int
    peak_flops: float
    memory_bytes: int | None
    price_hour: float | None
    mfu: float
    mfu_source: str
    mfu_range: tuple[float, float] | None = None
    nodes: int = 1
    kind: str = "cuda"

    @property
    def flops_per_second(self) -> float:
        """Of all devices, at that utilisation."""
        return self.gpus * self.peak_flops * self.mfu

    def dollars(self, seconds: float) -> float | None:
        """What so much time costs."""
        return None if self.price_hour is None else self.gpus * self.price_hour * seconds / 3600


@dataclass(frozen=True)
class Cost:
    """What a training takes.

    flops: recomputed ones among them. seconds_range, dollars_range: over the machine's mfu_range, least first. memory:
    bytes on each device at its peak, by part, "total" among them; micro_batch_size: rows that they are of.
    """

    flops: float
    tokens: int
    seconds: float
    dollars: float | None
    memory: dict[str, int]
    micro_batch_size: int
    seconds_range: tuple[float, float]
    dollars_range: tuple[float, float] | None


def training_cost(model: ModelConfig, config: TrainingConfig, length: int, steps: int, machine: Machine) -> Cost:
    """What so many steps of a stage take.

    Args:
        length: tokens of a row.

    Raises:
        UserError: not even single rows fit into the machine's memory.
    """
    tokens = steps * config.batch_size * length
    flops = float(tokens) * flops_per_token(model, length, config.gradient_checkpointing)
    seconds = flops / machine.flops_per_second
    low, high = machine.mfu_range or (machine.mfu, machine.mfu)
    seconds_range = (seconds * machine.mfu / high, seconds * machine.mfu / low)
    rows, memory = peak_memory_of(model, config, length, machine)
    dollars_range = None
    if machine.price_hour is not None:
        dollars_range = (machine.dollars(seconds_range[0]) or 0.0, machine.dollars(seconds_range[1]) or 0.0)
    return Cost(flops, tokens, seconds, machine.dollars(seconds), memory, rows, seconds_range, dollars_range)


def peak_memory_of(
    model: ModelConfig, config: TrainingConfig, length: int, machine: Machine
) -> tuple[int, dict[str, int]]:
    """(rows of a micro-batch, bytes on each device by part): training_memory, and the cache of one sample's context.

    With auto the largest cut of a device's share of the batch that fits. Several devices share weights, gradients and
    moments where training would (fsdp).

    Raises:
        UserError: it does not fit; the message says what would.
    """
    share = -(-config.batch_size // machine.gpus)
    device, dtype = torch.device(machine.kind), torch.bfloat16
    shards = _shards(model, config, machine)

    def of(rows: int) -> dict[str, int]:
        parts = training_memory(model, config, length, rows, dtype, device)
        parts["cache"] = inference_memory(model)["cache"]
        for part in ("weights", "gradients", "optimizer"):
            parts[part] = -(-parts[part] // shards)
        parts["total"] = sum(size for part, size in parts.items() if part != "total")
        return parts

    room = None if machine.memory_bytes is None else FILLED * machine.memory_bytes
    given = config.micro_batch_size or share
    tried = list(cuts(share)) if given == "auto" else [min(given, share)]
    for rows in tried:
        parts = of(rows)
        if room is None or parts["total"] <= room:
            return rows, parts
    raise UserError(_too_large(machine, config, rows, parts["total"]))


def _shards(model: ModelConfig, config: TrainingConfig, machine: Machine) -> int:
    """Devices that share one copy of the weights, as training.parallel decides it."""
    kind, together = config.parallel.kind, config.parallel.shard_ranks or machine.gpus // machine.nodes
    state = STATE_BYTES * count_parameters(model).total
    short = machine.memory_bytes is not None and state > machine.memory_bytes / 2
    return together if config.adapters is None and (kind == "fsdp" or (kind == "auto" and short)) else 1


def _too_large(machine: Machine, config: TrainingConfig, rows: int, total: int) -> str:
    ways = []
    if rows > 1:
        ways.append("micro_batch_size: auto")
    if config.gradient_checkpointing != "full":
        ways.append("gradient_checkpointing: full")
    ways.append("a smaller model, or a GPU with more memory")
    assert machine.memory_bytes is not None
    return (
        f"{rows} rows at once take {total / 2**30:.1f} GiB, and a {machine.gpu} has "
        f"{machine.memory_bytes / 2**30:.0f}; what would work: {', or '.join(ways)}"
    )
