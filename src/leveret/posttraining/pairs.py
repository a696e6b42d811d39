"""Preferences to packed, masked rows: the two answers to a prompt stand in one row, the better first.

Preference --chat template--> prompt + chosen, prompt + rejected --best fit--> rows --> token shards
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from leveret.data.examples import Example, Message, Preference
from leveret.data.leaks import leaking, normalise
from leveret.data.shards import is_validation
from leveret.errors import UserError
from leveret.posttraining.lengths import Fitted, Fitter
from leveret.posttraining.packing import write_rows
from leveret.tokenizer.tokenizer import Tokenizer


def write_pairs_as_shards(
    pairs: Iterable[Preference],
    tokenizer: Tokenizer,
    folder: Path,
    length: int,
    validation_fraction: float,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Splits, renders, packs and writes pairs, by the rules for examples. Only the last answer is learnt.

    Args:
        length: tokens of a prompt with an answer; rows are twice as long. A pair where one of both is longer is left
            out.

    Returns:
        what happened to them, which the manifest says too; counts are of pairs, `lengths` of
        answered prompts.

    Raises:
        UserError: no pair is left to train on.
    """
    fit, left_out = Fitter(tokenizer, length, "drop"), 0
    sides: dict[str, list[tuple[Example, tuple[Fitted, ...]]]] = {"train": [], "validation": []}
    for pair in pairs:
        worse = Example((*pair.prompt, Message("assistant", pair.rejected)), pair.source, where=pair.where)
        answers = tuple(_last_answer(fitted) for each in (pair.example, worse) if (fitted := fit(each)) is not None)
        if len(answers) < 2 or not all(any(answer.learn) for answer in answers):
            left_out += 1
            continue
        held_out = is_validation(normalise(pair.example.instruction), validation_fraction)
        sides["validation" if held_out else "train"].append((pair.example, answers))
    near = leaking(*([example for example, _ in side] for side in sides.values()))
    splits = {name: [answers for _, answers in side] for name, side in sides.items()}
    splits["train"] = [answers for number, answers in enumerate(splits["train"]) if number not in near]
    if not splits["train"]:
        raise UserError(f"no pair is left to train on: {left_out} have an answer longer than {length} tokens")
    counts = {**fit.facts(), "too_long": left_out, "left_out": left_out, "near_validation": len(near)}
    return write_rows(splits, tokenizer, folder, 2 * length, facts, counts)


def _last_answer(fitted: Fitted) -> Fitted:
    """With nothing to learn but the last answer: the earlier ones are part of the prompt."""
    end = len(fitted.learn) - fitted.learn[::-1].index(True) if True in fitted.learn else 0
    begin = next((place for place in range(end, 0, -1) if not fitted.learn[place - 1]), 0)
    return replace(fitted, learn=[begin <= place < end for place in range(len(fitted.learn))])
