"""Training speed: our step against other tools' models of the same size, and against what the hardware can do.

Each contestant is a process of its own, set up as its users have it, that keeps its model and waits; in every round
each takes its turn over the same batches. They are in train_contestants.py: ours, transformers compiled and eager,
litgpt where it is installed, and a plain GPT-2 in the manner of nanoGPT.

The limit is, on a CPU, the time of the model's own matrix products at their shapes and nothing else, measured in the
same rounds; elsewhere the device's peak (datasheet, else measured), with causal attention at half, so that the share
of the limit is the MFU.

Run: python benchmarks/train_speed.py [--shapes 13.9m gpt2-124m ...] [--rounds 5] [--steps N] [--rows N]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._dynamo.utils import calculate_time_spent
from train_contestants import LIMIT, WAYS, Job, PlainGPT2, parameters

from leveret.data.shards import ShardWriter
from leveret.data.windows import Windows
from leveret.hardware.device import environment, pick_device, pick_dtype
from leveret.hardware.memory import peak_memory
from leveret.hardware.peak import peak_flops
from leveret.model.config import ModelConfig
from leveret.model.counts import count_parameters, flops_per_token
from leveret.recipe import load_recipe

RECIPES = {"gpt2-124m": (50_257, 16), "l20-edu-135m": (49_152, 6), "parchment-166m": (100_277, 16),
           "smallm-20m": (50_257, 31), "tinyllm-cli-67m": (32_000, 8)}  # fmt: skip
"""The reference models: entries of their tokenizers, and rows of a micro-batch as published (gpt2-124m's are ours)."""
SMALL = {
    "13.9m": ({"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1024,
               "vocab_size": 8192, "max_position_embeddings": 256}, 16),
    "tiny": ({"num_hidden_layers": 2, "hidden_size": 96, "num_attention_heads": 3, "intermediate_size": 256,
              "vocab_size": 512, "max_position_embeddings": 32}, 2),
}  # fmt: skip
"""Llama's shape with as many parameters as GPT-2's of that width and depth, and rows of a batch."""
CPU_ROWS = 2
"""Rows of a reference model's batch on a CPU."""
BATCHES = 64
"""Batches of different tokens; then they come again in another order."""
GOALS: dict[str, dict[tuple[str, str], tuple[str, float]]] = {
    "cpu": {("13.9m", "vs_best_peer"): ("vs_best_peer", 1.2), ("13.9m", "of_limit"): ("of_limit", 0.75)},
    "cuda": {(shape, "of_limit"): (f"mfu_{shape}", goal)
             for shape, goal in (("gpt2-124m", 0.45), ("l20-edu-135m", 0.33), ("parchment-166m", 0.40))},
}  # fmt: skip
"""By kind of device: which figure of our row of a shape is a goal, its key, and the goal."""


# --- a contestant's process ------------------------------------------------------------------------------------


def serve(pipe: Any, job: Job) -> None:
    """The child: makes its model, takes a first step, then as many as it is told, until it is told 0."""
    try:
        torch.manual_seed(0)
        count, step = WAYS[job.way](job)
        batches = job.batches()
        batch = (lambda n: batches.batch(n).pinned()) if job.device.type == "cuda" else batches.batch
        loss, done = float(step(batch(0))), 1
        compiling = calculate_time_spent().get("total_wall_time", 0.0)
        pipe.send({"parameters": count, "first_loss": loss, "compile_seconds": compiling})
        forget_peak(job.device)
        while steps := told(pipe, job.device):
            step(batch(done))  # not counted: it fetches back into caches and memory what others took
            wait(job.device)
            start = time.perf_counter()
            for number in range(done + 1, done + 1 + steps):
                step(batch(number))
            wait(job.device)
            seconds = (time.perf_counter() - start) / steps
            pipe.send({"seconds": seconds, "peak_memory_bytes": peak_memory(job.device) or 0})
            done += 1 + steps
    except Exception as error:
        with suppress(OSError):
            pipe.send({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})


def told(pipe: Any, device: torch.device) -> int:
    """The next order. Memory that is kept for later steps is given back for the others' turns."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    steps: int = pipe.recv()
    return steps


def wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def forget_peak(device: torch.device) -> None:
    """Compiling takes more memory than training does; that peak is not counted (on a CPU: where Linux can forget)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


# --- the race --------------------------------------------------------------------------------------------------


@dataclass
class Contestant:
    """The parent's side of a contestant: what it answered."""

    job: Job
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, self.job))
        self.process.start()
        theirs.close()

    def tell(self, steps: int) -> None:
        with suppress(OSError):  # it is no more, as hear() will find
            self.pipe.send(steps)

    def hear(self) -> bool:
        """Takes the next answer in; False, and one line said, where the contestant gave up."""
        try:
            answer = self.pipe.recv()
        except EOFError:
            answer = {"error": "its process ended (out of memory?)"}
        self.facts |= answer
        if "error" in answer:
            print(f"  {self.job.name} left out: {answer['error']}")
        elif "seconds" in answer:
            self.seconds.append(answer["seconds"])
        return "error" not in answer

    def turn(self, steps: int) -> bool:
        self.tell(steps)
        return self.hear()

    def end(self) -> None:
        self.tell(0)
        self.process.join()


def entrants(config: ModelConfig, device: torch.device, quick: bool) -> list[tuple[str, bool]]:
    """Who takes part, and whether compiled. A plain GPT-2 does where it has as many parameters, to 2%."""
    found = [(LIMIT, False)] if device.type == "cpu" else []
    found += [("leveret", True), ("transformers", True), ("transformers", False)]
    if config.norm == "rms":
        found.append(("litgpt", True))
    with torch.device("meta"):
        plain = parameters(PlainGPT2(config))
    if abs(plain / count_parameters(config).total - 1) < 0.02:
        found.append(("plain GPT-2", True))
    for name in ("transformers", "litgpt"):
        if (name, True) in found and find_spec(name) is None:
            print(f"  {name} is not installed")
            found = [entry for entry in found if entry[0] != name]
    return list(dict.fromkeys((way, compiled and not quick) for way, compiled in found))


def race(jobs: list[Job], rounds: int, steps: int) -> list[Contestant]:
    """Starts one after the other, then lets them run in turn; who is first changes from round to round."""
    present = []
    for job in jobs:
        contestant = Contestant(job)
        present += [contestant] if contestant.hear() else []
    for number in range(rounds):
        print(f"  round {number + 1} of {rounds}: {len(present)} contestants", file=sys.stderr, flush=True)
        first = number % max(1, len(present))
        for contestant in present[first:] + present[:first]:
            if not contestant.turn(steps):
                present.remove(contestant)
    for contestant in present:
        contestant.end()
    return present


def results(shape: str, present: list[Contestant], limit: list[float]) -> list[dict[str, Any]]:
    """A row for each, which is printed too. limit: seconds of an update at the limit, of every round."""
    rows = []
    peers = [c.seconds for c in present if c.job.way not in (LIMIT, "leveret")]
    for c in present:
        length, median = c.job.length, statistics.median(c.seconds)
        row = {
            "shape": shape,
            "contestant": c.job.name,
            "parameters": c.facts["parameters"],
            "rows": c.job.rows,
            "sequence_length": length,
            "tokens_per_second": round(c.job.rows * length / median, 1),
            "best_tokens_per_second": round(c.job.rows * length / min(c.seconds), 1),
            "ms_per_step": round(median * 1e3, 2),
            "peak_memory_bytes": c.facts["peak_memory_bytes"],
            "of_limit": middle(limit, c.seconds),
        }
        if c.job.way != LIMIT:
            row["first_loss"] = round(c.facts["first_loss"], 4)
        if c.job.compiled:
            row["compile_seconds"] = round(c.facts["compile_seconds"], 1)
        if c.job.way == "leveret" and peers:
            row["vs_best_peer"] = middle([min(others) for others in zip(*peers, strict=True)], c.seconds)
        show(row)
        rows.append(row)
    return rows


def middle(theirs: list[float], ours: list[float]) -> float:
    """How many times as fast as they we were, in the middle one of the rounds."""
    return round(statistics.median(a / b for a, b in zip(theirs, ours, strict=True)), 4)


def show(row: dict[str, Any]) -> None:
    speeds = f"{row['tokens_per_second']:>9,.0f} tokens/s  (best {row['best_tokens_per_second']:>9,.0f})"
    memory, share = f"{row['peak_memory_bytes'] / 2**20:>7,.0f} MiB", f"{row['of_limit']:6.1%} of the limit"
    compiling = f"  compile {row['compile_seconds']:5.1f} s" if "compile_seconds" in row else ""
    print(f"  {row['contestant']:<24}{speeds}  {row['ms_per_step']:>8,.1f} ms {memory}  {share}{compiling}", flush=True)


def shape_of(name: str, device: torch.device) -> tuple[ModelConfig, int]:
    """The model of that name, and the usual rows of its batch."""
    if name in SMALL:
        shape, rows = SMALL[name]
        return ModelConfig.model_validate(shape), rows
    vocabulary, rows = RECIPES[name]
    recipe, _ = load_recipe(name)
    return recipe.model.with_vocabulary(vocabulary), CPU_ROWS if device.type == "cpu" else rows


def write_shards(folder: Path, config: ModelConfig, rows: int) -> Path:
    """Tokens whose frequency falls with their rank, as words' does, in a window for each row of the batches."""
    length = config.max_position_embeddings
    windows = Windows(np.array([[start * length, length + 1] for start in range(rows * BATCHES)]))
    ids = config.vocabulary ** np.random.default_rng(0).random(rows * BATCHES * length + 1)
    writer = ShardWriter(folder, config.vocabulary, len(ids))
    writer.extend("train", ids.astype(writer.dtype), np.array([len(ids)]), len(ids))
    writer.finish({"train": windows}, {})
    return folder


def measure(shape: str, arguments: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """The results of one shape."""
    device = arguments.device
    config, usual = shape_of(shape, device)
    rows, length = arguments.rows or usual, config.max_position_embeddings
    print(f"{shape}: {rows} x {length} tokens", flush=True)
    shards = write_shards(scratch / shape, config, rows)
    jobs = [Job(*each, config, rows, shards, str(device)) for each in entrants(config, device, arguments.quick)]
    present = race(jobs, arguments.rounds, arguments.steps)
    if device.type == "cpu":
        limit = next(c.seconds for c in present if c.job.way == LIMIT)
    else:
        flops = rows * length * flops_per_token(config, length)
        limit = [flops / peak_flops(device, pick_dtype("auto", device))[0]] * arguments.rounds
    return results(shape, present, limit)


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", nargs="+", choices=[*SMALL, *RECIPES], help="on a CPU 13.9m, else all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of each contestant in a round; on a CPU 5, else 50")
    parser.add_argument("--rows", type=int, help="of a batch")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="a tiny shape, one round, nothing compiled")
    arguments = parser.parse_args()
    arguments.device = pick_device(arguments.device)
    on_cpu = arguments.device.type == "cpu"
    arguments.shapes = arguments.shapes or (["13.9m"] if on_cpu else ["13.9m", *RECIPES])
    arguments.steps = arguments.steps or (5 if on_cpu else 50)
    if arguments.quick:
        arguments.shapes, arguments.rounds, arguments.steps = ["tiny"], 1, 2
    return arguments


def main() -> None:
    arguments = arguments_of()
    device = arguments.device
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{scratch}/compiled"  # empty, so that compiling is measured
        for shape in arguments.shapes:
            rows += measure(shape, arguments, Path(scratch))
    ours = {row["shape"]: row for row in rows if row["contestant"].startswith("leveret")}
    goals = {
        key: {"value": ours[shape][figure], "goal": goal}
        for (shape, figure), (key, goal) in GOALS.get(device.type, {}).items()
        if figure in ours.get(shape, {})
    }
    print(json.dumps({"benchmark": "train_speed", "machine": environment(device), "rows": rows, "goals": goals}))


if __name__ == "__main__":
    main()
