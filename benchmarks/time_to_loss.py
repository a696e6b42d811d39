"""How long until our recipe is as good as the nanoGPT recipe at its best, and how much better it ends.

Both learn from the same documents, cut by the same tokenizer, with as many parameters besides tables of embeddings.
Noise-proof: the seconds of a step come from interleaved rounds, a budget of step time is so many steps, and those are
trained however long that takes here. The peer is trained at several rates and keeps its best; ours is trained twice, on
a schedule that ends at 40% of the budget and on one that takes all of it.

    corpus --> shards --> seconds a step --> steps in the budget --> bits per byte of held-out documents

Runs that are finished are kept in --work and not repeated, so that the benchmark can be stopped and started again; a
changed recipe needs another folder.
Run: LEVERET_DATA=... python benchmarks/time_to_loss.py [--budget 600] [--seeds 3] [--work DIR] [--quick]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from train_contestants import Job, PlainGPT2, parameters, peer
from train_speed import race

from leveret.data.batches import Batches
from leveret.data.shards import TokenStore
from leveret.hardware.allocator import keep_freed_memory
from leveret.hardware.device import environment, pick_device
from leveret.model.config import ModelConfig
from leveret.model.counts import count_parameters
from leveret.model.decoder import Decoder
from leveret.recipe import Recipe, load_recipe
from leveret.training.config import ScheduleConfig
from leveret.training.loop import Trainer, train
from leveret.training.metrics import read_metrics
from leveret.training.objective import NextToken
from leveret.training.schedule import learning_rate

SHARE = 0.4
"""Of the budget: how long our short schedule takes, and the goal."""
RATES = {"cpu": (5e-4, 1e-3, 2e-3), "cuda": (6e-4,)}
"""Peak rates of the peer that are tried first: on a CPU around its best, on a GPU the published one alone."""
WINDOWS = 512
"""Held-out windows that all are measured on."""


@dataclass(frozen=True)
class Setting:
    """What is raced where: our recipe, the peer's shape, sources of $LEVERET_DATA/text, rows of the peer's batch."""

    recipe: str
    peer: dict[str, int]
    sources: list[dict[str, Any]]
    peer_rows: int


OPENSTAX = [{"paths": ["openstax.parquet"]}, {"paths": ["wikipedia_2015.parquet"], "max_documents": 2000}]
SETTINGS = {
    "cpu": Setting("leveret-15m", {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6}, OPENSTAX, 16),
    "cuda": Setting(
        "leveret-124m",
        {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
        [{"paths": ["*.parquet"]}],
        64,
    ),
}


# --- the corpus ------------------------------------------------------------------------------------------------


def prepare(work: Path, setting: Setting, quick: bool) -> tuple[Recipe, TokenStore]:
    """Our recipe on these documents, and its shards, made once."""
    text = Path(os.environ["LEVERET_DATA"]) / "text" if "LEVERET_DATA" in os.environ else None
    sources = [{**s, "paths": [str(text / p) for p in s["paths"]]} for s in setting.sources] if text else []
    if quick or not sources:
        documents = [" ".join(f"{n * d % 97} times {n}" for n in range(60)) for d in range(300)]
        (work / "made.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in documents))
        sources = [{"paths": [str(work / "made.jsonl")]}]
    overrides = [f"data.sources={json.dumps(sources)}", "data.validation_fraction=0.02", *QUICK * quick]
    recipe, _ = load_recipe(setting.recipe, overrides)
    (work / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    command = ["prepare", "recipe.yaml", "--run-dir", "run", "--copy-data"]
    subprocess.run([sys.executable, "-m", "leveret", *command], cwd=work, check=True, capture_output=True)
    return recipe, TokenStore(next(path.parent for path in (work / "run" / "shards").rglob("manifest.json")))


QUICK = [
    "tokenizer.vocab_size=300",
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.intermediate_size=128",
    "model.max_position_embeddings=32",
    "data.sequence_length=32",
    "pretrain.compile=false",
    "pretrain.batch_size=8",
]


# --- training --------------------------------------------------------------------------------------------------


def seconds_a_step(ours: Job, theirs: Job, rounds: int) -> tuple[float, float]:
    """Median seconds of an update of each, in turns."""
    present = race([ours, theirs], rounds, 5)
    return statistics.median(present[0].seconds), statistics.median(present[1].seconds)


def bits(loss: float, store: TokenStore) -> float:
    """Bits per byte of a loss in nats per token, with the held-out documents' mean of bytes a token."""
    held = store.split("validation")
    return loss / math.log(2) * held.tokens / held.text_bytes


def train_ours(job: Job, steps: int, seed: int, folder: Path) -> dict[int, float]:
    """Through the loop that every run goes through. Bits per byte by the step."""
    config = job.training.model_copy(
        update={"steps": steps, "tokens": None, "seed": seed, "checkpoint_every": steps}
        | {"eval_every": max(1, steps // 20), "eval_batches": WINDOWS // job.rows}
    )
    if job.device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(seed)
    model, store = Decoder(job.config).to(job.device), TokenStore(job.shards)
    sets = [Batches(store.split(split), job.rows, job.length, seed) for split in ("train", "validation")]
    train(Trainer(folder.name, model, NextToken(), *sets, config, folder, job.device, Console(stderr=True)))
    rows = [row for row in read_metrics(folder) if "validation_loss" in row]
    return {row["step"]: bits(row["validation_loss"], store) for row in rows}


def train_peer(job: Job, steps: int, seed: int, rate: float) -> dict[int, float]:
    """AdamW, 2% warm-up, cosine to a tenth. Bits per byte after the last step."""
    torch.manual_seed(seed)
    store = TokenStore(job.shards)
    model = PlainGPT2(job.config)
    _, step = peer(job, model, lambda model, inputs, targets: model(inputs, targets), rate=lambda: current)
    schedule = ScheduleConfig(min_lr=rate / 10)
    batches = Batches(store.split("train"), job.rows, job.length, seed)
    for number in range(steps):
        current = learning_rate(schedule, rate, number, steps)
        loss = step(batches.batch(number))
        if number % 100 == 0:
            print(f"  peer at {rate:g}, seed {seed}: step {number} of {steps}, loss {float(loss):.3f}", file=sys.stderr)
    model.eval()
    losses = []
    with torch.no_grad(), torch.autocast(job.device.type, job.dtype, enabled=job.dtype is not torch.float32):
        for batch in Batches(store.split("validation"), job.rows, job.length).in_order(WINDOWS // job.rows):
            batch = batch.to(job.device)
            losses.append((float(model(batch.inputs, batch.targets)), batch.inputs.numel()))
    mean = sum(loss * count for loss, count in losses) / sum(count for _, count in losses)
    return {steps: bits(mean, store)}


def kept(work: Path, name: str, make: Callable[[], dict[int, float]]) -> dict[int, float]:
    """The curve of a run: what an earlier start left in the work folder, else made now."""
    path = work / f"{name}.json"
    if not path.exists():
        path.write_text(json.dumps(make()))
    return {int(step): value for step, value in json.loads(path.read_text()).items()}


def first_below(curve: dict[int, float], goal: float) -> float | None:
    """The step at which a curve comes down to the goal, between two of its points in proportion; None: it does not."""
    points = sorted(curve.items())
    for (before, above), (step, value) in pairwise([(0, math.inf), *points]):
        if value <= goal:
            share = 1.0 if math.isinf(above) else (above - goal) / (above - value)
            return before + share * (step - before)
    return None


def race_to_loss(work: Path, arguments: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    """All runs, and what they say."""
    recipe, store = prepare(work, setting, arguments.quick)
    vocabulary = store.manifest["vocab_size"]
    ours = Job("leveret", recipe.pretrain.compile is not False, recipe.model.with_vocabulary(vocabulary),
               recipe.pretrain.batch_size, store.folder, str(arguments.device), recipe.pretrain)  # fmt: skip
    shape = {**setting.peer, "vocab_size": vocabulary, "max_position_embeddings": recipe.row_length()}
    if arguments.quick:
        shape |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    theirs = Job("plain GPT-2", ours.compiled, ModelConfig(**shape, intermediate_size=4 * shape["hidden_size"]),
                 setting.peer_rows, store.folder, str(arguments.device))  # fmt: skip
    timed = kept(work, "seconds", lambda: dict(enumerate(seconds_a_step(ours, theirs, arguments.rounds))))
    steps, their_steps = (max(2, int(arguments.budget / timed[i])) for i in (0, 1))
    print(f"ours {timed[0] * 1e3:.0f} ms a step, {steps} steps; the peer {timed[1] * 1e3:.0f} ms, {their_steps} steps")

    def of_peer(rate: float, seed: int) -> float:
        run = partial(train_peer, theirs, their_steps, seed, rate)
        return kept(work, f"peer-{rate:g}-{seed}", run)[their_steps]

    sweep = {rate: of_peer(rate, 0) for rate in RATES[arguments.device.type]}
    while (best := min(sweep, key=sweep.__getitem__)) in (min(sweep), max(sweep)) and len(sweep) > 1:
        rate = best / 2 if best == min(sweep) else best * 2  # the best must have a worse one on either side
        sweep[rate] = of_peer(rate, 0)
    rows = []
    for seed in range(arguments.seeds):
        final = of_peer(best, seed)
        short, whole = (
            kept(work, f"ours-{n}-{seed}", partial(train_ours, ours, n, seed, work / f"ours-{n}-{seed}"))
            for n in (int(steps * SHARE), steps)
        )
        reached = first_below(short, final)
        if reached is None:
            reached = first_below(whole, final)
        rows.append(
            {
                "seed": seed,
                "peer_bits": round(final, 4),
                "short_bits": round(short[int(steps * SHARE)], 4),
                "whole_bits": round(whole[steps], 4),
                "time_ratio": None if reached is None else round(reached / steps, 4),
                "bits_ratio": round(whole[steps] / final, 4),
            }
        )
        print(f"seed {seed}  " + "  ".join(f"{key} {value}" for key, value in rows[-1].items() if key != "seed"))
    with torch.device("meta"):
        plain = PlainGPT2(theirs.config)
    tables = parameters(plain.tokens) + parameters(plain.positions)
    sizes = [count_parameters(ours.config).non_embedding, parameters(plain) - tables]
    return {"sweep": sweep, "seconds": timed, "runs": rows, "non_embedding": sizes}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget", type=float, help="seconds of step time (600)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=9, help="of measuring a step")
    parser.add_argument("--work", type=Path, help="a folder that keeps finished runs")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="tiny models on made-up text; the figures mean nothing")
    arguments = parser.parse_args()
    arguments.device = pick_device(arguments.device)
    arguments.budget = arguments.budget or (0.3 if arguments.quick else 600.0)
    if arguments.quick:
        arguments.seeds, arguments.rounds = 1, 1
    elif "LEVERET_DATA" not in os.environ:
        sys.exit("set LEVERET_DATA to the folder that holds text/; or use --quick")
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        found = race_to_loss(work.absolute(), arguments, SETTINGS["cuda" if arguments.device.type == "cuda" else "cpu"])
    ratios = [row["time_ratio"] for row in found["runs"]]
    goals = {
        "time_ratio": {"value": None if None in ratios else round(statistics.mean(ratios), 4), "goal": SHARE},
        "bits_ratio": {"value": round(statistics.mean(row["bits_ratio"] for row in found["runs"]), 4), "goal": 0.88},
    }
    machine = environment(arguments.device)
    print(json.dumps({"benchmark": "time_to_loss", "machine": machine, "rows": [found], "goals": goals}))


if __name__ == "__main__":
    main()
