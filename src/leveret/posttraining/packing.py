"""Examples to packed, masked rows.

    Example --chat template--> ids, learn --best fit--> rows of at most sequence_length + 1 tokens --> token shards

A row holds whole examples only; the documents of a row never see each other, and no token is learnt from but an
assistant's answer and its end token.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from leveret.data.examples import Example
from leveret.data.leaks import leaking, normalise
from leveret.data.shards import ShardWriter, is_validation
from leveret.data.windows import IntArray, Windows, ends_of, pack, permute
from leveret.errors import UserError
from leveret.posttraining.lengths import Fitted, Fitter, TooLong
from leveret.tokenizer.tokenizer import Tokenizer


def write_examples_as_shards(
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    folder: Path,
    sequence_length: int,
    validation_fraction: float,
    facts: dict[str, Any],
    too_long: TooLong = "drop",
) -> dict[str, Any]:
    """Splits, renders, packs and writes examples. Returns what happened to them, which the manifest says too.

    The side of an example follows from its normalised instruction, so that the same question in other capitals, or with
    another answer, is on the same side; a training example that is a near-duplicate of one to validate on is left out.

    Raises:
        UserError: no example fits into sequence_length, or one does not and that is refused.
    """
    fit = Fitter(tokenizer, sequence_length, too_long)
    sides: dict[str, list[tuple[Example, Fitted]]] = {"train": [], "validation": []}
    for example in examples:
        if (fitted := fit(example)) is not None:
            held_out = is_validation(normalise(example.instruction), validation_fraction)
            sides["validation" if held_out else "train"].append((example, fitted))
    near = leaking(*([example for example, _ in side] for side in sides.values()))
    splits = {name: [fitted for _, fitted in side] for name, side in sides.items()}
    splits["train"] = [fitted for number, fitted in enumerate(splits["train"]) if number not in near]
    if not splits["train"]:
        raise UserError(f"no example is left to train on: {fit.left_out} are longer than {sequence_length} tokens")
    counts = {**fit.facts(), "near_validation": len(near)}
    groups: dict[str, list[tuple[Fitted, ...]]] = {
        name: [(fitted,) for fitted in items] for name, items in splits.items()
    }
    return write_rows(groups, tokenizer, folder, sequence_length, facts, counts)


def write_rows(
    splits: dict[str, list[tuple[Fitted, ...]]],
    tokenizer: Tokenizer,
    folder: Path,
    length: int,
    facts: dict[str, Any],
    counts: dict[str, Any],
) -> dict[str, Any]:
    """Packs groups of documents into rows of at most length + 1 tokens, a group whole in one row, and writes them.

    Returns:
        `counts` and what each split has: examples (groups), rows, the share of their places that is filled, and learnt
        tokens. The manifest says it too.

    Raises:
        UserError: nothing would be learnt from any of them.
    """
    if not any(any(document.learn) for group in splits["train"] for document in group):
        raise UserError(
            "no token would be learnt: the tokenizer's chat template does not mark what the assistant says "
            "({% generation %}); set tokenizer.template to one of ours"
        )
    writer = ShardWriter(folder, tokenizer.vocab_size, 10_000_000, masked=True)
    windows, counts = {}, dict(counts)
    for split, groups in splits.items():
        if not groups:
            continue
        shuffled = [groups[i] for i in permute(np.arange(len(groups), dtype=np.int64), len(groups), key=0)]
        order, offsets = pack(_sizes(shuffled), length + 1)
        packed = [shuffled[i] for i in order]
        documents = [document for group in packed for document in group]
        for document in documents:
            writer.add(split, document.ids, document.text_bytes, document.learn)
        bounds = ends_of(_sizes(packed))[offsets]
        windows[split] = Windows(np.stack([bounds[:-1], np.diff(bounds)], axis=1))
        rows = len(windows[split])
        counts[split] = {
            "examples": len(groups),
            "rows": rows,
            "filled": round(int(bounds[-1]) / (rows * (length + 1)), 4),
            "learnt_tokens": sum(sum(document.learn) for document in documents),
        }
    writer.finish(windows, facts | {"examples": counts})
    return counts


def _sizes(groups: list[tuple[Fitted, ...]]) -> IntArray:
    """Tokens of each group."""
    return np.array([sum(len(document.ids) for document in group) for group in groups], dtype=np.int64)
