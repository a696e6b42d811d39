"""A tiny recipe with all that it needs, and the types that the tests of the command line share."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Command = Callable[..., subprocess.CompletedProcess[str]]

WORDS = ("alpha", "beta", "gamma", "delta", "omega", "sigma", "kappa", "lambda")
ANSWER = "touch made.txt"
"""What the tiny model learns to answer to everything, so that a test may run it."""

RECIPE = """
name: tiny
tokenizer:
  kind: bpe
  vocab_size: 320
  special_tokens: [<pad>, <eos>, <instruction>, <command>]
  pad_token: <pad>
  eos_token: <eos>
  template: command
data:
  sources: [{paths: [texts/corpus.jsonl, texts/notes.txt]}]
  validation_fraction: 0.1
model:
  hidden_size: 32
  num_hidden_layers: 2
  num_attention_heads: 2
  intermediate_size: 64
  max_position_embeddings: 64
pretrain:
  steps: 20
  batch_size: 4
  eval_every: 10
  log_every: 5
  optimizer: {lr: 1e-2}
finetune:
  examples: [{paths: [pairs.jsonl]}]
  steps: 60
  batch_size: 16
  eval_every: 30
  log_every: 10
  validation_fraction: 0.1
  optimizer: {lr: 2e-2}
  schedule: {kind: linear}
evaluate:
  max_new_tokens: 16
  sets: {held: {paths: [held.jsonl]}}
sample_prompts: [To show]
"""


def write_project(folder: Path) -> Path:
    """A recipe with its corpus, examples and held-out examples; returns the recipe's path."""
    documents = [
        f"To show {a} type cat {a}.txt; to make {b} type touch {b}.txt, {number} times."
        for a in WORDS
        for b in WORDS
        for number in range(6)
    ]
    (folder / "texts").mkdir(parents=True)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
    (folder / "texts" / "corpus.jsonl").write_text(lines)
    (folder / "texts" / "notes.txt").write_text("The cat command shows a file. Touch makes one. " * 10)
    for name, numbers in (("pairs", range(30)), ("held", range(30, 32))):
        asked = [f"make the file of {word}{number}" for word in WORDS for number in numbers]
        lines = "".join(json.dumps({"instruction": text, "command": ANSWER}) + "\n" for text in asked)
        (folder / f"{name}.jsonl").write_text(lines)
    (folder / "tiny.yaml").write_text(RECIPE)
    return folder / "tiny.yaml"


@dataclass(frozen=True)
class TinyRun:
    """A finished run with its shards inside, the project it came from, and what the command said."""

    project: Path
    path: Path
    stdout: str
    stderr: str

    @property
    def recipe(self) -> Path:
        return self.project / "tiny.yaml"


GPU = ("gpu_memory_bytes", "gpu_utilisation", "power_watts")
"""What metrics say besides where there is one."""


def outcome(run: Path, steps: int, stage: str = "pretrain") -> tuple[list[dict[str, Any]], str, dict[str, str]]:
    """What must be equal: metrics but for the clock's, samples, and the hashes of the last checkpoint's tensors."""
    clocks = {"tokens_per_second", "train_seconds", "mfu", "peak_memory_bytes", *GPU}
    lines = (run / stage / "metrics.jsonl").read_text().splitlines()
    rows = [{key: value for key, value in json.loads(line).items() if key not in clocks} for line in lines]
    last = run / stage / "checkpoints" / f"step-{steps:08d}"
    files = json.loads((last / "manifest.json").read_text())["files"]
    samples = (run / stage / "samples.md").read_text()
    return rows, samples, {name: digest for name, digest in files.items() if name.endswith(".safetensors")}
