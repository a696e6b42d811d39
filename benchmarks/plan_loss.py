"""Does a calibrated plan foretell the loss of a larger run? Three small runs, then one of four times their largest.

The ladder of `leveret plan calibrate` is trained on real text (from LEVERET_DATA) and a law is moved to it; then the
model that was foretold is trained, and its held-out loss compared. The largest run of the ladder has about a quarter of
its work: half the parameters and half the tokens.

Run: LEVERET_DATA=... OMP_NUM_THREADS=2 python benchmarks/plan_loss.py [--text books] [--tokens 8e6] [--quick]

About ten minutes on two quiet cores. --quick: tiny models on generated commands, in seconds; its losses say nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from leveret.hardware.device import environment, pick_device
from leveret.model.counts import count_parameters, flops_per_token
from leveret.planning.calibration import Held, calibrate, held_by, held_out
from leveret.planning.describe import expected_model
from leveret.planning.laws import FITS
from leveret.recipe import Recipe, load_recipe
from leveret.run import Run

GOAL = 0.05
"""Nats between the foretold loss and the measured one, at most."""
SHARE = 0.4
"""Of the large run's work that the ladder may take: its largest run is then a quarter."""


TEXTS: dict[str, list[dict[str, Any]]] = {
    "textbooks": [{"paths": ["openstax.parquet"]}, {"paths": ["wikipedia_2015.parquet"], "max_documents": 2000}],
    "books": [{"paths": ["gutenberg.parquet"], "max_documents": 3000}],
    "news": [{"paths": ["wikinews.parquet"]}],
}
"""By name, what of $LEVERET_DATA/text is read; each is more than the tokens of one pass."""


def content(quick: bool, name: str, tokens: int) -> dict[str, Any]:
    """The large run's recipe."""
    end = "<|endoftext|>"
    generated = {"kind": "generated", "generator": "shell-drills", "options": {"count": 3000}, "licence": "MIT"}
    text = Path(os.environ.get("LEVERET_DATA", "")) / "text"
    sources = [{**source, "paths": [str(text / path) for path in source["paths"]]} for source in TEXTS[name]]
    return {
        "name": "large",
        "tokenizer": {
            "kind": "bpe",
            "vocab_size": 512 if quick else 2048,
            "special_tokens": [end],
            "eos_token": end,
        },
        "data": {"sources": [generated] if quick else sources, "validation_fraction": 0.05 if quick else 0.005},
        "model": {
            "depth": 2 if quick else 3,
            "hidden_size": 64 if quick else 192,
            "max_position_embeddings": 64 if quick else 256,
        },
        "pretrain": {
            "tokens": tokens,
            "batch_size": 16,
            "optimizer": {"muon_iterations": 3},
            "compile": False,
            "eval_every": tokens,
            "eval_batches": None,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", choices=list(TEXTS), default=next(iter(TEXTS)))
    parser.add_argument("--tokens", type=float, help="of the large run [8e6; quick: 1e5]")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if not arguments.quick and "LEVERET_DATA" not in os.environ:
        sys.exit("LEVERET_DATA is not set: the folder with text/openstax.parquet and others; or use --quick")
    began, rows = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["LEVERET_CACHE"] = f"{scratch}/cache"
        path = Path(scratch) / "large.yaml"
        tokens = int(arguments.tokens or (1e5 if arguments.quick else 8e6))
        path.write_text(yaml.safe_dump(content(arguments.quick, arguments.text, tokens)))
        recipe, base = load_recipe(str(path))

        def train(each: Recipe) -> Held:
            start = time.perf_counter()
            run = Run(each, base, Path(scratch) / each.name, Console(quiet=True))
            run.upto("pretrain")
            held, model = held_by(run.run.path, held_out(run.store("pretrain"))), expected_model(each)
            rows.append(
                {
                    "run": each.name,
                    "parameters": count_parameters(model).total,
                    "tokens": held.tokens,
                    "flops": held.tokens * flops_per_token(model, each.row_length()),
                    "loss": round(held.loss, 4),
                    "seconds": round(time.perf_counter() - start, 1),
                }
            )
            print(
                "{run:<12} {parameters:>10,} parameters {tokens:>12,} tokens  loss {loss:.4f}  {seconds} s".format(
                    **rows[-1]
                )
            )
            return held

        found = calibrate(recipe, train, FITS["epoch-2024"], SHARE)
        large = (count_parameters(expected_model(recipe)).total, recipe.pretrain.tokens)
        foretold, band = found.fit.loss(*large), found.fit.band_at(*large)
        print(f"foretold     {foretold:.4f}, give or take {band:.3f} (80%)", flush=True)
        measured = train(recipe).loss
    print(f"off by       {foretold - measured:+.4f}; {rows[-1]['flops'] / rows[-2]['flops']:.1f} times the largest")
    goals = {"off_by_nats": {"value": round(abs(foretold - measured), 4), "goal": GOAL}}
    facts = {
        "text": arguments.text,
        "foretold": round(foretold, 4),
        "measured": round(measured, 4),
        "band": round(band, 4),
        "offset": round(found.fit.offset, 4),
        "efficiency": found.fit.efficiency,
        "times_the_largest": round(rows[-1]["flops"] / rows[-2]["flops"], 2),
        "seconds": round(time.perf_counter() - began, 1),
    }
    machine = environment(pick_device())
    print(json.dumps({"benchmark": "plan_loss", "machine": machine, "rows": [*rows, facts], "goals": goals}))


if __name__ == "__main__":
    main()
