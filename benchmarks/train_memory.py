"""The most memory that a training step takes, each case in a process of its own.

Five cases are the reference models as their recipes train them, with the micro-batch found for 8 GB; two are
parchment-166m's shape at 16 x 1,024, with the loss in chunks and with all logits at once. On a CPU, five more are the
reference models with a few rows: what their tensors take, which is what an estimate counts.
Run: OMP_NUM_THREADS=2 python benchmarks/train_memory.py [--device cuda] [--rows 16] [--only tensors] [--quick]

On a CPU the figure is the peak of the process's resident memory, Python and torch themselves (before_gb) among it; on
CUDA it is torch's peak, under a limit of 8 GB. All logits of 16 x 1,024 take about 31 GB; where there is less, give
fewer rows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from leveret.data.batches import IGNORED, Batch, Batches
from leveret.data.shards import ShardWriter, TokenStore
from leveret.data.windows import concatenated
from leveret.hardware.device import environment, pick_device
from leveret.hardware.memory import peak_memory
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.planning.describe import expected_model
from leveret.recipe import load_recipe
from leveret.training import dry_run
from leveret.training.config import TrainingConfig
from leveret.training.loop import Trainer, set_up, train_step
from leveret.training.memory import training_memory
from leveret.training.objective import NextToken

BUDGET = 8e9
MODELS = ("smallm-20m", "tinyllm-cli-67m", "gpt2-124m", "l20-edu-135m", "parchment-166m")
LENGTH = 1024
FEW_TOKENS = 4096
"""Of a micro-batch whose tensors are counted."""


class PlainLoss(NextToken):
    """All logits of a micro-batch at once, as losses are usually written."""

    def loss(self, model: Decoder, batch: Batch) -> Tensor:
        logits = model(batch.inputs).flatten(0, 1).float()
        return F.cross_entropy(logits, batch.targets.flatten(), ignore_index=IGNORED, reduction="sum")


def shape(name: str, quick: bool, **changes: Any) -> tuple[ModelConfig, TrainingConfig, int]:
    """Model, training and row length of a recipe; quick: two narrow layers, and short rows."""
    recipe, _ = load_recipe(name)
    model, length = expected_model(recipe), recipe.row_length()
    training = {"micro_batch_size": "auto", "precision": "auto", "compile": False} | changes
    if quick:
        small = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
        model = model.model_copy(update=small | {"num_key_value_heads": None, "head_dim": None})
        length, training["batch_size"] = 64, 16
    return model, TrainingConfig.model_validate(recipe.pretrain.model_dump() | training), length


def random_batches(folder: Path, rows: int, length: int) -> Batches:
    """One batch of random ids, which every vocabulary here has."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, (rows * length + 1,), generator=generator)
    writer = ShardWriter(folder, 1000, len(ids))
    writer.add("train", ids.tolist(), len(ids))
    writer.finish({"train": concatenated(writer.starts("train"), len(ids), length)}, {})
    return Batches(TokenStore(folder).split("train"), rows, length)


def tensors_at_once(work: Callable[[], object], scratch: Path) -> int:
    """The most bytes that tensors on the CPU hold at once while something works, as torch's profiler tells."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        work()
    profiler.export_chrome_trace(str(scratch / "trace.json"))
    events = json.loads((scratch / "trace.json").read_text("utf-8"))["traceEvents"]
    held = [event["args"] for event in events if event.get("name") == "[memory]"]
    return max(each["Total Allocated"] for each in held if each["Device Type"] == 0)


def two_steps(trainer: Trainer) -> None:
    """Two optimizer steps, the first a short one that makes the moments. A step's later micro-batches take what its
    second does, on top of the gradients of its first."""
    optimizer = set_up(trainer)
    dry_run.settle(trainer, 1, {}, lambda line: None)
    batch = trainer.batches.batch(0)
    for parts in (batch.split(1)[:1], trainer.micro_batches(batch)[:2]):
        train_step(trainer, optimizer, [part.to(trainer.device) for part in parts], 1e-4)


def measure(case: str, device: torch.device, rows: int, quick: bool) -> dict[str, Any]:
    """Takes two optimizer steps here; what they took at most."""
    kind, _, name = case.partition(":")
    model_config, config, length = shape(name, quick)
    if kind in ("chunked", "plain") and not quick:
        length = LENGTH
    if kind != "fits":
        few = max(1, FEW_TOKENS // length) if kind == "tensors" else rows
        sizes = {"batch_size": (1 + (kind == "tensors")) * few, "micro_batch_size": few}
        config = TrainingConfig.model_validate(config.model_dump() | sizes)
    if device.type == "cuda" and kind == "fits":
        torch.cuda.set_per_process_memory_fraction(BUDGET / torch.cuda.mem_get_info(device)[1], device)
    before = 0 if device.type == "cuda" else peak_memory(device) or 0
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)

        def work() -> Trainer:
            batches = random_batches(scratch, config.batch_size, length)
            objective = PlainLoss() if kind == "plain" else NextToken()
            model = Decoder(model_config).to(device)
            trainer = Trainer("memory", model, objective, batches, None, config, scratch, device, Console())
            two_steps(trainer)
            return trainer

        if device.type != "cuda":
            dry_run.available_memory = lambda device: int(BUDGET - before)
        made: list[Trainer] = []
        tensors = tensors_at_once(lambda: made.append(work()), scratch) if kind == "tensors" else None
        trainer = made[0] if made else work()
    estimate = training_memory(model_config, config, length, trainer.rows, trainer.dtype, device)["total"]
    peak = (peak_memory(device) or 0) if tensors is None else tensors
    return {
        "case": case,
        "batch": f"{config.batch_size} x {length}",
        "micro_batch_size": trainer.rows,
        "dtype": str(trainer.dtype).removeprefix("torch."),
        "gradient_checkpointing": config.gradient_checkpointing,
        "peak_gb": round(peak / 1e9, 3),
        "before_gb": round(before / 1e9, 3),
        "estimate_gb": round(estimate / 1e9, 3),
        "seconds": round(time.perf_counter() - started, 1),
    }


def in_child(case: str, arguments: argparse.Namespace) -> dict[str, Any]:
    rows = str(arguments.rows)
    command = [sys.executable, __file__, "--case", case, "--device", arguments.device, "--rows", rows]
    done = subprocess.run(command + ["--quick"] * arguments.quick, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{case:<24} {row['batch']:>10}, {row['micro_batch_size']:>3} at once  {row['peak_gb']:6.2f} GB "
        f"(estimate {row['estimate_gb']:.2f})  {row['seconds']:6.1f} s",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=int, default=16, help="of the batch that the two losses are compared on")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, in seconds")
    parser.add_argument(
        "--only", choices=("fits", "loss", "tensors"), help="the models within 8 GB, the chunked loss, or estimates"
    )
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    if arguments.case:
        print(json.dumps(measure(arguments.case, device, arguments.rows, arguments.quick)))
        return
    rows, goals = [], {}
    if arguments.only in (None, "fits"):
        rows += [in_child(f"fits:{name}", arguments) for name in MODELS]
        goals["peak_gb_of_five"] = {"value": max(row["peak_gb"] for row in rows), "goal": BUDGET / 1e9}
    if arguments.only in (None, "loss"):
        chunked, plain = (in_child(f"{kind}:parchment-166m", arguments) for kind in ("chunked", "plain"))
        rows += [chunked, plain]
        goals["chunked_of_plain"] = {"value": round(chunked["peak_gb"] / plain["peak_gb"], 3), "goal": 0.5}
    if arguments.only in (None, "tensors") and device.type == "cpu":
        found = [in_child(f"tensors:{name}", arguments) for name in MODELS]
        rows += found
        off = max(abs(row["estimate_gb"] / row["peak_gb"] - 1) for row in found)
        goals["estimates_off_by"] = {"value": round(off, 3), "goal": 0.1}
    print(json.dumps({"benchmark": "train_memory", "machine": environment(device), "rows": rows, "goals": goals}))


if __name__ == "__main__":
    main()
