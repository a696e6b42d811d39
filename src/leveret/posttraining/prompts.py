"""Prompts to be answered, with the answers that are expected: one window each, and references.jsonl beside the shards.

    Example --chat template--> prompt + answer --one window each--> token shards
                               response, meta --a line each, in the order of the windows--> references.jsonl

The shards have the form of fine-tuning's, with nothing learnt but the last answer, so that the loss on held-out answers
can be measured as of any stage.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from leveret.data.examples import Example
from leveret.data.leaks import leaking, normalise
from leveret.data.shards import ShardWriter, TokenSplit, TokenStore, is_validation
from leveret.data.windows import Windows
from leveret.errors import UserError
from leveret.posttraining.lengths import Fitted, Fitter, as_messages
from leveret.strangers.documents import parse_json
from leveret.strangers.files import read_limited
from leveret.tokenizer.template import render
from leveret.tokenizer.tokenizer import Tokenizer

NAME = "references.jsonl"
MOST_BYTES = 2**29
"""Of that file: a million long answers."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What an answer is compared with. shell: whose command it is; empty where it is none."""

    response: str
    shell: str = ""


def write_prompts_as_shards(
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    folder: Path,
    length: int,
    validation_fraction: float,
    facts: dict[str, Any],
    max_new_tokens: int,
) -> dict[str, Any]:
    """Splits and renders examples, by the rules for fine-tuning, and writes them with their references.

    Args:
        length: tokens of a prompt with an answer, for which max_new_tokens are set aside.

    Returns:
        what happened to them, which the manifest says too.

    Raises:
        UserError: no prompt leaves room for an answer of max_new_tokens in `length` tokens.
    """
    fit = Fitter(tokenizer, length, "drop")
    sides: dict[str, list[tuple[Example, Fitted]]] = {"train": [], "validation": []}
    crowded = longest = 0
    for example in examples:
        if (fitted := fit(example)) is None:
            continue
        prompt = len(render(tokenizer, as_messages(example)[:-1], add_generation_prompt=True).ids)
        if prompt + max_new_tokens > length:
            crowded += 1
            continue
        longest = max(longest, prompt)
        held_out = is_validation(normalise(example.instruction), validation_fraction)
        learn = [place >= prompt and learnt for place, learnt in enumerate(fitted.learn)]
        sides["validation" if held_out else "train"].append((example, replace(fitted, learn=learn)))
    near = leaking(*([example for example, _ in side] for side in sides.values()))
    sides["train"] = [each for number, each in enumerate(sides["train"]) if number not in near]
    if not sides["train"]:
        raise UserError(
            f"no prompt is left to train on: {fit.left_out + crowded} leave no room for max_new_tokens "
            f"{max_new_tokens} in {length} tokens"
        )
    counts = fit.facts() | {"too_long": fit.too_long + crowded, "left_out": fit.left_out + crowded}
    counts |= {"near_validation": len(near), "longest_prompt": longest}
    _write(sides, tokenizer, folder, facts, counts)
    return counts


def _write(
    sides: dict[str, list[tuple[Example, Fitted]]],
    tokenizer: Tokenizer,
    folder: Path,
    facts: dict[str, Any],
    counts: dict[str, Any],
) -> None:
    """Adds each split's size to the counts."""
    writer = ShardWriter(folder, tokenizer.vocab_size, 10_000_000, masked=True)
    windows, lines = {}, []
    for split, side in sides.items():
        if not side:
            continue
        for example, fitted in side:
            writer.add(split, fitted.ids, fitted.text_bytes, fitted.learn)
            shell = str(example.meta.get("shell", ""))
            lines.append(json.dumps({"split": split, "response": example.response, "shell": shell}))
        lengths = np.array([len(fitted.ids) for _, fitted in side], dtype=np.int64)
        windows[split] = Windows(np.stack([writer.starts(split), lengths], axis=1))
        counts[split] = {"examples": len(side), "learnt_tokens": sum(sum(fitted.learn) for _, fitted in side)}
    content = "".join(line + "\n" for line in lines).encode()
    (writer.partial / NAME).write_bytes(content)
    kept = {"references": {"name": NAME, "sha256": hashlib.sha256(content).hexdigest()}}
    writer.finish(windows, facts | kept | {"examples": counts})


def read_references(store: TokenStore, split: str) -> list[Reference]:
    """The references of a split, in the order of its windows.

    Raises:
        UserError: they are damaged.
    """
    path = store.folder / NAME
    try:
        content = read_limited(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} cannot be read ({reason}); prepare the data again") from None
    if hashlib.sha256(content).hexdigest() != store.manifest["references"]["sha256"]:
        raise UserError(f"{path} is damaged; prepare the data again")
    rows = (parse_json(line) for line in content.decode().splitlines())
    return [Reference(row["response"], row["shell"]) for row in rows if row["split"] == split]


def prompt_of(split: TokenSplit, window: int) -> list[int]:
    """The ids before the answer."""
    start, length = split.windows.pieces[window].tolist()
    answer = int(split.read(split.masks, start, length).argmax())
    return [int(each) for each in split.read(split.shards, start, answer)]
