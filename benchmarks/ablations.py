"""What one change of a recipe does to the bits per byte of held-out documents: the runs behind docs/experiments.md.

Every variant is the recipe with some keys changed, trained on as many tokens of the same shards from the same seeds;
what is told is its mean over the seeds, and the mean of its differences from the recipe itself, seed by seed.

    corpus --> shards --> recipe, variants x seeds --> bits per byte

Runs that are finished are kept in --work and not repeated.
Run: LEVERET_DATA=... python benchmarks/ablations.py [--tokens 1e6] [--seeds 2] [--work DIR] [--only NAME ...] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from time_to_loss import QUICK, SETTINGS, kept, prepare, train_ours
from train_contestants import Job

from leveret.data.shards import TokenStore
from leveret.hardware.device import environment, pick_device
from leveret.recipe import load_recipe

VARIANTS = {
    "the recipe": [],
    "tables at 6e-3": ["pretrain.optimizer.lr=6e-3"],
    "matrices at 1e-2": ["pretrain.optimizer.muon_lr=1e-2"],
    "five iterations of Newton-Schulz": ["pretrain.optimizer.muon_iterations=5"],
    "NorMuon and cautious decay": ["pretrain.optimizer.muon_variance=0.95", "pretrain.optimizer.cautious_decay=true"],
    "SwiGLU": ["model.mlp=swiglu", "model.intermediate_size=1024"],
    "queries and keys not normed": ["model.qk_norm=false"],
    "blocks that begin scaled": ["model.residual_init=scaled"],
    "value embeddings": ["model.value_embeddings=true"],
    "value residual": ["model.value_residual=true"],
    "residual scales": ["model.residual_scales=true"],
    "half-truncated rope": ["model.rope_fraction=0.5"],
    "window of 64 in three of four layers": ["model.sliding_window=64", "model.window_pattern=SSSL"],
    "logits capped at 15": ["model.logit_softcap=15"],
    "untied head": ["model.tie_word_embeddings=false"],
    "deeper layers slower": [
        "pretrain.optimizer.lr_scales={layers.2.*: 0.8, layers.3.*: 0.7, layers.4.*: 0.6, layers.5.*: 0.5}"
    ],
    "first and last layer at half": ["pretrain.optimizer.lr_scales={layers.0.*: 0.5, layers.5.*: 0.5}"],
    "decay over a fifth": ["pretrain.schedule.decay_fraction=0.2"],
    "cosine": ["pretrain.schedule.kind=cosine"],
    "8 rows": ["pretrain.batch_size=8"],
}  # fmt: skip
"""Keys changed in each."""


def measure(work: Path, arguments: argparse.Namespace, name: str, store: TokenStore, base: list[str]) -> list[float]:
    """The final bits per byte of a variant, for each seed."""
    recipe, _ = load_recipe(arguments.recipe, base + VARIANTS[name])
    training, finals = recipe.pretrain, []
    job = Job("leveret", training.compile is not False, recipe.model.with_vocabulary(store.manifest["vocab_size"]),
              training.batch_size, store.folder, str(arguments.device), training)  # fmt: skip
    steps = int(arguments.tokens / (job.rows * recipe.row_length()))
    for seed in range(arguments.seeds):
        run = f"{name.replace(' ', '-')}-{steps}-{seed}"
        curve = kept(work, run, partial(train_ours, job, steps, seed, work / run))
        finals.append(curve[steps])
    return finals


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", default="leveret-15m")
    parser.add_argument("--tokens", type=float, default=1e6, help="of each run")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), help="besides the recipe itself")
    parser.add_argument("--work", type=Path, help="a folder that keeps finished runs")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="tiny models on made-up text; the figures mean nothing")
    arguments = parser.parse_args()
    arguments.device = pick_device(arguments.device)
    if arguments.quick:
        arguments.tokens, arguments.seeds, arguments.only = 2_000, 1, ["tables at 6e-3", "value residual"]
    elif "LEVERET_DATA" not in os.environ:
        sys.exit("set LEVERET_DATA to the folder that holds text/; or use --quick")
    first, rows = next(iter(VARIANTS)), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as scratch:
        work = (arguments.work or Path(scratch)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        _, store = prepare(work, SETTINGS["cpu"], arguments.quick)
        base = QUICK * arguments.quick
        for name in [first, *(arguments.only or list(VARIANTS)[1:])]:
            finals = measure(work, arguments, name, store, base)
            best = rows[0]["bits"] if rows else finals
            change = statistics.mean(a - b for a, b in zip(finals, best, strict=True))
            rows.append({"variant": name, "keys": VARIANTS[name], "bits": finals, "change": round(change, 4)})
            seeds = ", ".join(f"{value:.4f}" for value in finals)
            print(f"{name:<40} {statistics.mean(finals):.4f}  {change:+.4f}  ({seeds})", flush=True)
    facts = {"recipe": arguments.recipe, "tokens": arguments.tokens, "seeds": arguments.seeds}
    print(json.dumps({"benchmark": "ablations", "machine": environment(arguments.device) | facts, "rows": rows,
                      "goals": {}}))  # fmt: skip


if __name__ == "__main__":
    main()
