"""Training and held-out pairs of the shell grammar.

Four sets, disjoint by construction:

    train         trained wordings, trained values, trained company of options
    values        as train, but every slot of an open type takes a value kept out of training
    wordings      the one wording of each intent that training never sees
    combinations  two options that training never sees together
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import Field

from leveret.config import Config
from leveret.tasks.shell.grammar import Drawn, Grammar, Intent, Option, load_grammar

Split = Literal["train", "values", "wordings", "combinations"]
HELD_OUT: tuple[Split, ...] = get_args(Split)[1:]
PATIENCE = 60
"""Draws in a row that bring nothing new before an intent counts as exhausted."""


class ShellOptions(Config):
    """What the generator of shell pairs is asked for."""

    split: Split = "train"
    """Training pairs, or one of the three held-out sets."""
    per_intent: int = Field(300, gt=0)
    """Pairs of each intent, as far as it has that many."""
    core: bool = False
    """Only the everyday intents (grammar/core.yaml)."""
    seed: int = 0
    """Seed of the draws. Which values, wordings and combinations are held out does not depend on it."""


@dataclass(frozen=True, slots=True)
class ShellPair:
    instruction: str
    command: str
    intent: str
    shell: str


def pairs(options: ShellOptions) -> Iterator[ShellPair]:
    """The pairs of one split, intent by intent, each instruction once (whatever its case and full stop)."""
    for intent, drawn in drawings(options):
        yield ShellPair(drawn.instruction, drawn.command, intent.name, intent.shell)


def drawings(options: ShellOptions) -> Iterator[tuple[Intent, Drawn]]:
    """The pairs with what they were made from."""
    grammar = load_grammar()
    seen: set[str] = set()
    for intent in grammar.core if options.core else grammar.intents:
        rng = random.Random(f"{options.seed}/{options.split}/{intent.name}")
        found = misses = 0
        while found < options.per_intent and misses < PATIENCE:
            drawn = _draw(grammar, intent, options.split, rng)
            if drawn is None:
                break
            key = drawn.instruction.casefold().rstrip(".?")
            if key in seen:
                misses += 1
                continue
            seen.add(key)
            found, misses = found + 1, 0
            yield intent, drawn


def _draw(grammar: Grammar, intent: Intent, split: Split, rng: random.Random) -> Drawn | None:
    """One drawing for the split, or None where the intent has nothing to hold out there."""
    wording = intent.new_wording if split == "wordings" else rng.choice(intent.trained_wordings)
    if split == "combinations":
        if not intent.new_pairs:
            return None
        return grammar.draw(intent, wording, rng.choice(intent.new_pairs), rng)
    if split == "values" and not grammar.has_open_slot(intent):
        return None
    return grammar.draw(intent, wording, _company(intent, rng), rng, new_values=split == "values")


def _company(intent: Intent, rng: random.Random) -> tuple[Option, ...]:
    """No option, one, or two that training may see together."""
    if not intent.options:
        return ()
    number = rng.choices([0, 1, 2], [2, 2, 6])[0]
    if number == 2 and intent.trained_pairs:
        return rng.choice(intent.trained_pairs)
    return (rng.choice(intent.options),) if number else ()
