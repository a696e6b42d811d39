"""Memory of preparing a corpus, by its size: generated JSON lines, tokenised on all cores, deduplicated.

The highest resident set of the command and its workers together, sampled ten times a second, in /proc. Linux only.
Run: python benchmarks/prepare_memory.py [--gigabytes 0.25 0.5 1 2]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from leveret.hardware.device import environment, pick_device

LIMIT = 2 * 2**30
RECIPE = {
    "name": "memory",
    "tokenizer": {"kind": "bpe", "vocab_size": 8192, "special_tokens": ["<eos>"], "eos_token": "<eos>"},
    "data": {"sources": [{"paths": ["corpus.jsonl"]}], "dedup": {"exact": True}},
    "model": {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64,
              "max_position_embeddings": 1024},
    "pretrain": {"steps": 1},
}  # fmt: skip


def write_corpus(path: Path, size: int) -> None:
    """Documents of 200 to 2,000 words drawn from 20,000 made-up ones, until there are that many bytes."""
    rng = random.Random(0)
    words = ["".join(rng.choices("aeioulnrstmkd", k=rng.randint(2, 9))) for _ in range(20_000)]
    written = 0
    with path.open("w") as file:
        while written < size:
            start = rng.randrange(len(words))
            text = " ".join(words[start : start + 100] + rng.choices(words, k=rng.randint(100, 1900)))
            written += file.write(json.dumps({"text": text}) + "\n")


def resident(group: int) -> int:
    """Bytes of all processes of a process group."""
    total = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getpgid(int(entry.name)) == group:
                    total += int((entry / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            except (OSError, ValueError):
                continue
    return total


def peak(folder: Path, recipe: Path) -> tuple[int, float]:
    """(bytes, seconds) of `leveret prepare` after its tokenizer is there."""
    command = [sys.executable, "-m", "leveret", "prepare", str(recipe), "--run-dir", str(folder / "run"), "--copy-data"]
    started, highest = time.monotonic(), 0
    process = subprocess.Popen(command, cwd=folder, start_new_session=True, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        highest = max(highest, resident(process.pid))
        time.sleep(0.1)
    assert process.returncode == 0
    return highest, time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.25, 0.5, 1, 2])
    rows = []
    for gigabytes in parser.parse_args().gigabytes:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write_corpus(folder / "corpus.jsonl", 20 * 2**20)
            (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
            tokenizer = ["tokenizer", "train", "recipe.yaml", "--run-dir", "small"]
            subprocess.run([sys.executable, "-m", "leveret", *tokenizer], cwd=folder, check=True, capture_output=True)
            loaded = {"kind": "huggingface", "source": "small/tokenizer"}
            (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"tokenizer": loaded}))
            write_corpus(folder / "corpus.jsonl", int(gigabytes * 10**9))
            highest, seconds = peak(folder, folder / "recipe.yaml")
        rows.append({"gigabytes": gigabytes, "peak_bytes": highest, "seconds": round(seconds, 1)})
        print(f"{gigabytes:>6} GB  peak {highest / 2**20:7,.0f} MiB  {gigabytes * 1e3 / seconds:6.1f} MB/s")
    goals = {"peak_bytes": {"value": rows[-1]["peak_bytes"], "goal": LIMIT}}
    machine = environment(pick_device("cpu"))
    print(json.dumps({"benchmark": "prepare_memory", "machine": machine, "rows": rows, "goals": goals}))


if __name__ == "__main__":
    main()
