"""How fast a recipe's own training step is on the machine at hand: a short real training on random tokens."""

from __future__ import annotations

import datetime
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from leveret.data.batches import Batches
from leveret.data.shards import ShardWriter, TokenStore
from leveret.data.windows import concatenated
from leveret.hardware.device import device_name, pick_device
from leveret.hardware.peak import peak_flops, wait
from leveret.model.config import ModelConfig
from leveret.model.counts import flops_per_token
from leveret.model.decoder import Decoder
from leveret.planning.speeds import Row
from leveret.training import dry_run
from leveret.training.config import TrainingConfig
from leveret.training.loop import Trainer, set_up, train_step
from leveret.training.objective import NextToken

STEPS = 50
WARM_STEPS = 3
"""Not counted: they compile and fill caches."""
PATIENCE = 120.0
"""Seconds after which the probe has seen enough, with LEAST steps or more."""
LEAST = 5


@dataclass(frozen=True)
class Probe:
    """What was seen. steps: counted ones; rows: of each."""

    tokens_per_second: float
    mfu: float
    peak_tflops: float
    peak_source: str
    steps: int
    rows: int
    device: str

    def row(self, name: str, flops: float) -> Row:
        """As a measurement of ours of a recipe."""
        return Row(
            gpu=self.device,
            model=name,
            flops_per_token=flops,
            tokens_per_second=self.tokens_per_second,
            date=datetime.date.today().isoformat(),
            source=f"{self.steps} steps of {self.rows} rows, probed here",
            ours=True,
            peak_tflops=self.peak_tflops,
        )


def probe(model: ModelConfig, config: TrainingConfig, length: int, steps: int = STEPS) -> Probe:
    """Takes so many steps at that shape on the machine at hand, of one micro-batch each: the optimizer, which a real
    step pays once for all its micro-batches, counts for at least as much.

    Raises:
        UserError: it does not fit into the memory.
    """
    device = pick_device()
    quiet = Console(quiet=True)
    config = config.model_copy(update={"micro_batch_size": "auto"})
    with tempfile.TemporaryDirectory() as folder:
        batches = _random_batches(Path(folder), config.batch_size, length, model.vocabulary)
        decoder = Decoder(model).to(device)
        trainer = Trainer("probe", decoder, NextToken(), batches, None, config, Path(folder), device, quiet)
        with dry_run.memory_told(trainer):
            optimizer = set_up(trainer)
            dry_run.settle(trainer, 100_000, {}, lambda line: None)
            taken, begun = [], time.perf_counter()
            for number in range(WARM_STEPS + steps):
                parts = trainer.micro_batches(batches.batch(0))[:1]
                wait(device)
                start = time.perf_counter()
                train_step(trainer, optimizer, [part.to(device) for part in parts], 1e-4)
                wait(device)
                taken.append(time.perf_counter() - start)
                if number >= WARM_STEPS + LEAST and time.perf_counter() - begun > PATIENCE:
                    break
    counted = taken[WARM_STEPS:]
    rate = trainer.rows * length / statistics.median(counted)
    peak, source = peak_flops(device, trainer.dtype)
    flops = flops_per_token(model, length, config.gradient_checkpointing)
    return Probe(rate, rate * flops / peak, peak / 1e12, source, len(counted), trainer.rows, device_name(device))


def _random_batches(folder: Path, rows: int, length: int, vocabulary: int) -> Batches:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (rows * length + 1,), generator=generator)
    writer = ShardWriter(folder, vocabulary, len(ids))
    writer.add("train", ids.tolist(), len(ids))
    writer.finish({"train": concatenated(writer.starts("train"), len(ids), length)}, {})
    return Batches(TokenStore(folder).split("train"), rows, length)
