"""Fine-tuning: examples a second in packed rows against one padded example a row.

The same examples, the same model, the same batch in tokens; three ways of laying them into rows:

    packed           best fit, several examples a row, kept apart by masks: what `leveret finetune` does
    padded to row    one example a row, filled up to the row's length, as static shapes need
    padded to batch  one example a row, filled up to the longest of its batch, which compiles anew for every length

Padded rows need no masks and get none. The ways take turns: in each round every one of them learns the same examples
once. The lengths are those of Dolly's rows where $LEVERET_DATA has instruct/dolly_hhrlhf_train_small.jsonl, by a
tokenizer trained on them; else drawn, log-normal, a prompt with a median of 16 tokens and an answer of 69, which is
what was found there.

Run: OMP_NUM_THREADS=2 python benchmarks/sft_throughput.py [--rounds 3] [--examples 48] [--rows 8] [--length 1024]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from leveret.data.batches import IGNORED, Batch, Batches
from leveret.data.shards import ShardWriter, TokenStore
from leveret.data.windows import Windows, ends_of, pack
from leveret.hardware.allocator import keep_freed_memory
from leveret.hardware.device import environment, pick_device
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.training.config import TrainingConfig
from leveret.training.loop import Trainer, set_up, train_step
from leveret.training.objective import NextToken

GOAL = 3.0
VOCABULARY = 8192
SHAPES = {
    "13.9m": {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1024},
    "tiny": {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128},
}
DOLLY = "instruct/dolly_hhrlhf_train_small.jsonl"
MEDIANS, SIGMAS = (16, 69), (0.8, 1.0)
"""Of the drawn lengths of prompts and answers."""

Lengths = list[tuple[int, int]]
"""Of each example: tokens of its prompt, and of its answer with the end token."""


def dolly(path: Path, count: int) -> Lengths:
    """The lengths of Dolly's rows, without the preamble that this copy puts before each."""
    from leveret.tokenizer import TokenizerConfig, train_tokenizer

    pairs = []
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        asked = row["prompt"].partition("### Instruction:")[2].partition("### Response:")[0].strip()
        pairs.append((asked, row["response"].strip()))
    fields = {"kind": "bpe", "vocab_size": VOCABULARY, "special_tokens": ["<|end|>"], "eos_token": "<|end|>"}
    tokenizer = train_tokenizer(TokenizerConfig.model_validate(fields), [text for pair in pairs for text in pair])
    lengths = [(len(tokenizer.encode(asked)) + 3, len(tokenizer.encode(said)) + 1) for asked, said in pairs]
    return [lengths[number % len(lengths)] for number in range(count)]


def drawn(count: int) -> Lengths:
    random = np.random.default_rng(0)
    parts = [np.exp(random.normal(np.log(m), s, count)).astype(int) + 2 for m, s in zip(MEDIANS, SIGMAS, strict=True)]
    return list(zip(*(part.tolist() for part in parts), strict=True))


def shards(folder: Path, lengths: Lengths, length: int) -> tuple[TokenStore, TokenStore]:
    """The examples in packed rows, and each in a row of its own; both in an order of no meaning."""
    random, made = np.random.default_rng(1), []
    sizes = np.array([prompt + answer for prompt, answer in lengths])
    order, offsets = pack(sizes, length + 1)
    for name, places, cuts in (("packed", order, offsets), ("padded", np.arange(len(sizes)), None)):
        writer = ShardWriter(folder / name, VOCABULARY, 10_000_000, masked=True)
        for place in places:
            prompt, answer = lengths[place]
            learn = [False] * prompt + [True] * answer
            writer.add("train", random.integers(0, VOCABULARY, prompt + answer).tolist(), 1, learn)
        ends = ends_of(sizes[places])
        bounds = ends if cuts is None else ends[cuts]
        writer.finish({"train": Windows(np.stack([bounds[:-1], np.diff(bounds)], axis=1))}, {})
        made.append(TokenStore(folder / name))
    return made[0], made[1]


def without_empty_rows(batch: Batch) -> Batch:
    """The last batch of all is filled up with these, and to train on them is no part of the work."""
    learnt = (batch.targets != IGNORED).any(dim=1)
    return replace(batch, **{name: tensor[learnt] for name, tensor in batch.tensors().items()})


def cut(batch: Batch) -> Batch:
    """Rows as long as the longest example in them."""
    used = int((batch.targets != IGNORED).any(dim=0).nonzero().max()) + 1
    return Batch(batch.inputs[:, :used], batch.targets[:, :used])


@dataclass
class Way:
    """A way of laying examples into rows, with a model of its own that learns from them."""

    name: str
    batches: list[Batch]
    step: Callable[[Batch], Tensor]
    seconds: list[float]

    def round(self) -> None:
        start = time.perf_counter()
        for batch in self.batches:
            loss = self.step(batch)
        float(loss)  # waits for the device
        self.seconds.append(time.perf_counter() - start)


def way(name: str, store: TokenStore, shape: str, rows: int, length: int, device: torch.device, folder: Path) -> Way:
    """All examples once, in batches of that many rows: as many tokens a batch in each way that has full rows."""
    apart = name == "packed"
    config = TrainingConfig(steps=1, batch_size=rows, compile=False, document_mask=apart)
    batches = Batches(store.split("train"), rows, length, tell_documents=apart)
    torch.manual_seed(0)
    fields = SHAPES[shape] | {"vocab_size": VOCABULARY, "max_position_embeddings": length}
    model = Decoder(ModelConfig.model_validate(fields)).to(device)
    trainer = Trainer(name, model, NextToken(), batches, None, config, folder / name, device, Console(quiet=True))
    optimizer = set_up(trainer)
    every = [without_empty_rows(batch) for batch in batches.in_order()]
    if name == "padded to batch":
        every = [cut(batch) for batch in every]

    def step(batch: Batch) -> Tensor:
        parts = [part.to(device) for part in trainer.micro_batches(batch)]
        return train_step(trainer, optimizer, parts, 1e-4)[0]

    return Way(name, every, step, [])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="13.9m")
    parser.add_argument("--examples", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model, few and drawn lengths: to see that it works"
    )
    arguments = parser.parse_args()
    shape, examples, rounds, length = arguments.shape, arguments.examples, arguments.rounds, arguments.length
    if arguments.quick:
        shape, examples, rounds, length = "tiny", 16, 1, 256
    device = pick_device(arguments.device)
    if device.type == "cpu":
        keep_freed_memory()
    path = Path(os.environ.get("LEVERET_DATA", "nowhere")) / DOLLY
    known = path.is_file() and not arguments.quick
    every = dolly(path, examples) if known else drawn(examples)
    lengths = [each for each in every if sum(each) <= length]
    tokens, learnt = sum(map(sum, lengths)), sum(answer for _, answer in lengths)
    print(
        f"{len(lengths)} examples of {tokens / len(lengths):.0f} tokens in the mean, {learnt / len(lengths):.0f} learnt"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        packed, padded = shards(folder, lengths, length)
        given = (shape, arguments.rows, length, device, folder)
        ways = [way(name, store, *given) for name, store in
                (("packed", packed), ("padded to row", padded), ("padded to batch", padded))]  # fmt: skip
        for each in ways:
            assert sum(batch.weight for batch in each.batches) == learnt
            each.step(each.batches[0])
        for _ in range(rounds):
            for each in ways:
                each.round()
    rows: list[dict[str, Any]] = []
    for each in ways:
        ratios = [other / own for own, other in zip(each.seconds, ways[0].seconds, strict=True)]
        seconds = statistics.median(each.seconds)
        row = {
            "way": each.name,
            "rows": sum(len(batch.inputs) for batch in each.batches),
            "positions": sum(batch.inputs.numel() for batch in each.batches),
            "examples_per_second": round(len(lengths) / seconds, 2),
            "learnt_tokens_per_second": round(learnt / seconds, 1),
            "packed_vs_this": round(1 / statistics.median(ratios), 3),
        }
        rows.append(row)
        print(
            f"{each.name:<16}{row['rows']:>5} rows {row['positions']:>9,} positions {row['examples_per_second']:>8} "
            f"examples/s {row['learnt_tokens_per_second']:>9} learnt tokens/s   packed is {row['packed_vs_this']} x"
        )
    source = "dolly" if known else "drawn"
    facts = {
        "shape": shape,
        "lengths": source,
        "examples": len(lengths),
        "mean_tokens": round(tokens / len(lengths), 1),
    }
    goals = {"packed_vs_padded": {"value": rows[1]["packed_vs_this"], "goal": GOAL}}
    machine = environment(device)
    print(json.dumps({"benchmark": "sft_throughput", "machine": machine, "facts": facts, "rows": rows, "goals": goals}))


if __name__ == "__main__":
    main()
