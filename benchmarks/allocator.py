"""What keep_freed_memory saves in a training step of the quickstart's model on a CPU.

Rounds of two processes, one with glibc's defaults and one that keeps freed memory, take turns.
Run: python benchmarks/allocator.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

from leveret.hardware.device import environment, pick_device

STEP = """
import sys, time, torch
from leveret.hardware.allocator import keep_freed_memory
from leveret.data.batches import Batch
from leveret.model.decoder import Decoder
from leveret.recipe import load_recipe
from leveret.training.objective import NextToken
from leveret.training.optimizer import make_optimizer
if sys.argv[1] == "kept":
    assert keep_freed_memory()
recipe, _ = load_recipe("quickstart")
config = recipe.model.with_vocabulary(recipe.tokenizer.vocab_size)
model, objective = Decoder(config), NextToken()
optimizer = make_optimizer(model, recipe.pretrain.optimizer, torch.bfloat16)
ids = torch.randint(0, config.vocabulary, (recipe.pretrain.batch_size, recipe.row_length() + 1))
batch, times = Batch(ids[:, :-1], ids[:, 1:]), []
for _ in range(12):
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective.loss(model, batch) / batch.weight
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    times.append(time.perf_counter() - start)
print(batch.inputs.numel() / sorted(times[2:])[5])
"""


def tokens_per_second(kind: str) -> float:
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", STEP, kind], capture_output=True, text=True, check=True)
    return float(out.stdout)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = [
        {kind: tokens_per_second(kind) for kind in ("default", "kept")} for _ in range(parser.parse_args().rounds)
    ]
    rows = []
    for kind in ("default", "kept"):
        rates = [r[kind] for r in rounds]
        median = statistics.median(rates)
        rows.append(
            {
                "allocator": kind,
                "tokens_per_second": round(median),
                "lowest": round(min(rates)),
                "highest": round(max(rates)),
            }
        )
        print(f"{kind:<8} {median:>9,.0f} tokens/s  ({min(rates):,.0f} to {max(rates):,.0f})")
    ratio = statistics.median(r["kept"] / r["default"] for r in rounds)
    print(f"ratio    {ratio:>9.2f}")
    result = {
        "benchmark": "allocator",
        "machine": environment(pick_device("cpu")),
        "rows": rows,
        "goals": {"kept_vs_default": {"value": round(ratio, 3), "goal": 1.0}},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
