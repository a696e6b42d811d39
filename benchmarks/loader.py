"""How many tokens of ready batches one core loads in a second, out of memory-mapped shards.

Generated shards of documents of log-normal length; batches of 32 rows, in the shuffled order of training; with and
without documents told apart, of documents laid end to end and of best-fit windows. Packing's own speed is the last row.
Run: OMP_NUM_THREADS=1 python benchmarks/loader.py [--tokens 100000000] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leveret.data.batches import Batches
from leveret.data.shards import ShardWriter, TokenSplit, TokenStore
from leveret.data.windows import Windows, best_fit, concatenated
from leveret.hardware.device import environment, pick_device

ROWS, VOCABULARY, BATCHES, GOAL = 32, 50_304, 200, 50e6


def generated(folder: Path, tokens: int) -> TokenSplit:
    """About that many tokens of documents with a median of 400 tokens, in shards of 10 million."""
    random = np.random.default_rng(0)
    writer, written = ShardWriter(folder, VOCABULARY, 10_000_000), 0
    while written < tokens:
        lengths = np.exp(random.normal(6, 1, 1000)).astype(np.int64) + 1
        ids = random.integers(0, VOCABULARY, int(lengths.sum()), dtype=np.uint16)
        writer.extend("train", ids, lengths, 4 * len(ids))
        written += len(ids)
    writer.finish({"train": Windows(np.array([[0, written]]))}, {})
    return TokenStore(folder).split("train")


def tokens_per_second(split: TokenSplit, length: int, told: bool, seed: int) -> float:
    """Of that many batches, one after the other, each held until the next is there."""
    batches = Batches(split, ROWS, length, seed, tell_documents=told)
    start = time.perf_counter()
    for step in range(BATCHES):
        batch = batches.batch(step)
    seconds = time.perf_counter() - start
    assert batch.inputs.shape == (ROWS, length)
    return BATCHES * ROWS * length / seconds


def packing(documents: int, length: int) -> tuple[float, Windows]:
    """Seconds of best fit over that many documents."""
    sizes = np.exp(np.random.default_rng(1).normal(6, 1, documents)).astype(np.int64) + 1
    starts = np.cumsum(sizes) - sizes
    start = time.perf_counter()
    windows = best_fit(starts, int(sizes.sum()), length)
    return time.perf_counter() - start, windows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=100_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--documents", type=int, default=10_000_000, help="to pack")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        split = generated(Path(folder) / "shards", arguments.tokens)
        for length in (1024, 2048):
            for name, make in (("concatenate", concatenated), ("best-fit", best_fit)):
                split.windows = make(split.starts, split.tokens, length)
                for told in (False, True):
                    tokens_per_second(split, length, told, 0)
                    rates = [tokens_per_second(split, length, told, seed) for seed in range(arguments.rounds)]
                    median, lowest = round(statistics.median(rates)), round(min(rates))
                    row = {"packing": name, "tokens": length, "documents_told": told}
                    rows.append(row | {"tokens_per_second": median, "lowest": lowest})
                    apart = "  documents told apart" if told else ""
                    print(f"{name:<12}{length:>5} tokens {median / 1e6:7.0f} M tokens/s{apart}")
    seconds, windows = packing(arguments.documents, 2048)
    rows.append({"packing": "best-fit", "documents": arguments.documents, "seconds": round(seconds, 2)})
    print(f"packing {arguments.documents:,} documents into {len(windows):,} rows: {seconds:.1f} s")
    plain = min(row["tokens_per_second"] for row in rows if row.get("documents_told") is False)
    told = min(row["tokens_per_second"] for row in rows if row.get("documents_told"))
    goals = {
        "loader_tokens_per_s": {"value": plain, "goal": GOAL},
        "told_tokens_per_s": {"value": told, "goal": GOAL},
    }
    machine = environment(pick_device("cpu"))
    print(json.dumps({"benchmark": "loader", "machine": machine, "rows": rows, "goals": goals}))


if __name__ == "__main__":
    main()
