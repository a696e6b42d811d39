"""Wrong commands that look right, to be preferred less than the right one.

value     one value of the command is another one of its type
flag      one option that was asked for is missing
intent    the command of another intent, about the same things as far as it names them
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

from leveret.tasks.shell.grammar import REFERENCE, Drawn, Intent, load_grammar, mask_command
from leveret.tasks.shell.pairs import ShellOptions, drawings

Mistake = Literal["value", "flag", "intent"]
TRIES = 8
"""Draws of a value until it is another one."""


@dataclass(frozen=True, slots=True)
class ShellPreference:
    """An instruction, its command, and a wrong one with the kind of mistake in it."""

    instruction: str
    chosen: str
    rejected: str
    intent: str
    shell: str
    mistake: Mistake


def preferences(options: ShellOptions) -> Iterator[ShellPreference]:
    """The pairs of `pairs`, each with a mistake; kinds come equally often where a command has room for them."""
    rng = random.Random(f"mistakes/{options.seed}/{options.split}")
    for intent, drawn in drawings(options):
        for kind in rng.sample(get_args(Mistake), 3):
            wrong = _wrong(kind, intent, drawn, options.split == "values", rng)
            if wrong not in (None, drawn.command):
                yield ShellPreference(drawn.instruction, drawn.command, wrong, intent.name, intent.shell, kind)
                break


def _wrong(kind: Mistake, intent: Intent, drawn: Drawn, new: bool, rng: random.Random) -> str | None:
    """A command with that mistake, perhaps by chance the right one; None where there is no room for it."""
    grammar = load_grammar()
    if kind == "intent":
        other = rng.choice(_akin(intent))
        return grammar.other_command(other, (), drawn.values, rng, new)
    if kind == "flag":
        if not drawn.options:
            return None
        left_out = rng.choice(drawn.options)
        kept = tuple(option for option in drawn.options if option != left_out)
        return grammar.other_command(intent, kept, drawn.values, rng, new)
    flags = "".join(mask_command(option.flag) for option in drawn.options)
    named = sorted(intent.slot_references() | set(REFERENCE.findall(flags)))
    if not named:
        return None
    reference = rng.choice(named)
    rest = {key: value for key, value in drawn.values.items() if key != reference}
    tries = (grammar.other_command(intent, drawn.options, rest, rng, new) for _ in range(TRIES))
    return next((wrong for wrong in tries if wrong != drawn.command), None)


@cache
def _akin(intent: Intent) -> list[Intent]:
    """Other intents of the same shell: those that share a slot with this one, if any do."""
    others = [other for other in load_grammar().intents if other.shell == intent.shell and other != intent]
    return [other for other in others if intent.slot_references() & other.slot_references()] or others
