"""Attention as plain matrix products against torch's kernel, in bfloat16 on a CPU: forward and backward.

Both take turns over rows of packed documents, 3,072 tokens a batch, 6 heads of width 64.
Run: OMP_NUM_THREADS=2 python benchmarks/attention.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from leveret.hardware.allocator import keep_freed_memory
from leveret.hardware.device import environment, pick_device
from leveret.model.layers import PLAIN_KEYS, attend

HEADS, WIDTH, TOKENS = 6, 64, 3072


def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def milliseconds(function: object, qkv: Tensor, mask: Tensor) -> float:
    start = time.perf_counter()
    out = function(*qkv.split(HEADS, dim=1), mask)
    out.backward(torch.ones_like(out))
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    keep_freed_memory()
    rows, goals = [], {}
    for keys in (128, 256, PLAIN_KEYS):
        batch = TOKENS // keys
        qkv = torch.randn(batch, keys, 3 * HEADS, WIDTH, dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
        document = torch.arange(keys) // 60
        mask = (document[:, None] == document[None]) & torch.ones(keys, keys, dtype=torch.bool).tril()
        mask = mask.expand(batch, 1, keys, keys).contiguous()
        assert attend(*qkv.split(HEADS, dim=1), mask).sub(kernel(*qkv.split(HEADS, dim=1), mask)).abs().max() < 0.05
        times = [(milliseconds(kernel, qkv, mask), milliseconds(attend, qkv, mask)) for _ in range(rounds + 2)][2:]
        before, after = (statistics.median(column) for column in zip(*times, strict=True))
        ratios = sorted(a / b for a, b in times)
        ratio = statistics.median(ratios)
        rows.append(
            {"keys": keys, "kernel_ms": round(before, 2), "plain_ms": round(after, 2), "ratio": round(ratio, 2)}
        )
        goals[f"faster_at_{keys}"] = {"value": round(ratio, 3), "goal": 1.0}
        print(f"{keys:>4} keys  kernel {before:6.1f} ms  plain {after:6.1f} ms  ratio {ratio:.2f}", end="  ")
        print(f"({ratios[0]:.2f} to {ratios[-1]:.2f})")
    machine = environment(pick_device("cpu"))
    print(json.dumps({"benchmark": "attention", "machine": machine, "rows": rows, "goals": goals}))


if __name__ == "__main__":
    main()
