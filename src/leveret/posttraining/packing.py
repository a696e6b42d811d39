"""Examples to packed, masked rows.

    Example --chat template--> ids, learn --best fit--> rows of at most sequence_length + 1 tokens --> token shards

A row holds whole examples only; the documents of a row never see each other, and no token is learnt from but an
assistant's answer and its end token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leveret.data.examples import Example
from leveret.data.shards import ShardWriter, is_validation
from leveret.data.windows import Windows, ends_of, pack, permute
from leveret.errors import UserError
from leveret.tokenizer.template import render
from leveret.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class _Rendered:
    ids: list[int]
    learn: list[bool]
    text_bytes: int


def as_messages(example: Example) -> list[dict[str, str]]:
    """The example as chat templates take it."""
    return [{"role": message.role, "content": message.content} for message in example.messages]


def write_examples_as_shards(
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    folder: Path,
    sequence_length: int,
    validation_fraction: float,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Renders, splits, packs and writes examples. Returns what happened to them, which the manifest says too.

    Raises:
        UserError: no example fits into sequence_length.
    """
    splits: dict[str, list[_Rendered]] = {"train": [], "validation": []}
    too_long = 0
    for example in examples:
        rendered = render(tokenizer, as_messages(example))
        if len(rendered.ids) > sequence_length:
            too_long += 1
            continue
        split = "validation" if is_validation(example.instruction, validation_fraction) else "train"
        size = sum(len(message.content.encode()) for message in example.messages)
        splits[split].append(_Rendered(rendered.ids, rendered.learn, size))
    if not splits["train"]:
        raise UserError(f"no example is left to train on: {too_long} are longer than {sequence_length} tokens")
    writer = ShardWriter(folder, tokenizer.vocab_size, 10_000_000, masked=True)
    windows = {}
    counts: dict[str, Any] = {"too_long": too_long}
    for split, items in splits.items():
        if not items:
            continue
        shuffled = [items[i] for i in permute(np.arange(len(items), dtype=np.int64), len(items), key=0)]
        order, offsets = pack(np.array([len(item.ids) for item in shuffled]), sequence_length + 1)
        packed = [shuffled[i] for i in order]
        for item in packed:
            writer.add(split, item.ids, item.text_bytes, item.learn)
        bounds = ends_of(np.array([len(item.ids) for item in packed]))[offsets]
        windows[split] = Windows(np.stack([bounds[:-1], np.diff(bounds)], axis=1))
        rows = len(windows[split])
        counts[split] = {
            "examples": len(items),
            "rows": rows,
            "filled": round(int(bounds[-1]) / (rows * (sequence_length + 1)), 4),
            "learnt_tokens": sum(sum(item.learn) for item in items),
        }
    writer.finish(windows, facts | {"examples": counts})
    return counts
