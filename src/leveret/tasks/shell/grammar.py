"""The grammar of shell intents: reads grammar/*.yaml and draws one instruction with its command.

    intent = wordings (English) + one command + options (a clause and a flag each)
    slot   = a typed value, said one way in the wording and perhaps typed another way in the command

Notation. Wordings: ``[a|b|]`` picks one alternative, ``{type}`` draws a slot, ``{options}`` places the clauses.
Commands: ``{type}`` and ``{options}`` only. The same reference is the same value; ``{type#2}`` is another one.
Doubled brackets and bars are literal.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from importlib import resources
from typing import Any

import yaml

from leveret.data.leaks import content_words

REFERENCE = re.compile(r"\{([A-Za-z0-9_-]+(?:#\d+)?)\}")
RANGE = re.compile(r"(\d+)-(\d+)$")
DISTINCT = 0.5
"""Jaccard index of content words below which a wording counts as another way of saying it."""
OPEN_TYPE = 200
"""A slot type with at least this many values made of others keeps some of them out of training."""


@dataclass(frozen=True, slots=True)
class Value:
    """A drawn slot: as it is said in the wording, and as it is typed in the command."""

    said: str
    typed: str


def is_new(typed: str) -> bool:
    """Whether this value of an open slot type is kept out of training: one in eight, by a hash of the value."""
    return hashlib.sha256(typed.encode()).digest()[0] < 32


class Slots:
    """The slot types, as the lists of alternatives in slots*.yaml."""

    def __init__(self, types: dict[str, list[str]]) -> None:
        self.types = {name: [str(a) for a in alternatives] for name, alternatives in types.items()}

    def draw(self, kind: str, rng: random.Random) -> Value:
        if bounds := RANGE.match(kind):
            number = str(rng.randint(int(bounds[1]), int(bounds[2])))
            return Value(number, number)
        said, _, typed = rng.choice(self.types[kind]).partition(" => ")
        values = {ref: self.draw(ref.partition("#")[0], rng) for ref in REFERENCE.findall(said + typed)}
        return Value(
            REFERENCE.sub(lambda m: values[m[1]].said, said),
            REFERENCE.sub(lambda m: values[m[1]].typed, typed or said),
        )

    def draw_side(self, kind: str, new: bool, rng: random.Random) -> Value:
        """A value on the wanted side of the hold-out. Types with few values, and values that the grammar spells out
        (plain words, common names such as /usr/local), are all training."""
        while True:
            value = self.draw(kind, rng)
            if not self.is_open(kind):
                return value
            if (is_new(value.typed) and value.typed not in self.types.get(kind, ())) == new:
                return value

    @cache  # noqa: B019 (one instance lives as long as the program)
    def is_open(self, kind: str) -> bool:
        spelt_out = sum(not REFERENCE.search(alternative) for alternative in self.types.get(kind, ()))
        return self.capacity(kind) - spelt_out >= OPEN_TYPE

    @cache  # noqa: B019 (one instance lives as long as the program)
    def capacity(self, kind: str) -> int:
        """How many values the type has, counting each alternative's product of references."""
        if bounds := RANGE.match(kind):
            return int(bounds[2]) - int(bounds[1]) + 1
        return sum(
            math.prod(self.capacity(ref.partition("#")[0]) for ref in set(REFERENCE.findall(a)))
            for a in self.types[kind]
        )


@dataclass(frozen=True)
class Option:
    """An optional clause: ``say`` lists its wordings, ``flag`` is what the command gains."""

    name: str
    say: tuple[str, ...]
    flag: str


@dataclass(frozen=True)
class Drawn:
    """One instruction with its command, and what both were made from."""

    instruction: str
    command: str
    options: tuple[Option, ...] = field(default=(), compare=False)
    values: Mapping[str, Value] = field(default_factory=dict, compare=False)
    """By reference, such as `file` or `file#2`."""


@dataclass(frozen=True)
class Intent:
    name: str
    shell: str
    command: str
    wordings: tuple[str, ...]
    options: tuple[Option, ...] = field(default=())
    also: tuple[str, ...] = field(default=())
    """Wordings that came later: all training, so that the one held out stays the same."""

    def _rank(self, text: str) -> bytes:
        return hashlib.sha256(f"{self.name}/{text}".encode()).digest()

    @cached_property
    def new_wording(self) -> str:
        """The wording kept out of training: by hash, among those that share few words with each other wording."""

        def nearest(wording: str) -> float:
            return max(_likeness(wording, other) for other in self.wordings if other != wording)

        distinct = [w for w in self.wordings if nearest(w) < DISTINCT]
        return min(distinct or self.wordings, key=self._rank if distinct else nearest)

    @cached_property
    def trained_wordings(self) -> tuple[str, ...]:
        also = (w for w in self.also if _likeness(self.new_wording, w) < DISTINCT)
        return (*(w for w in self.wordings if w != self.new_wording), *also)

    @cached_property
    def pairs_of_options(self) -> list[tuple[Option, Option]]:
        return list(itertools.combinations(self.options, 2))

    @cached_property
    def new_pairs(self) -> list[tuple[Option, Option]]:
        """Pairs of options never seen together in training: a quarter of them, where there are at least four options.

        Each option keeps company with at least two others in training.
        """
        ranked = sorted(self.pairs_of_options, key=lambda pair: self._rank(pair[0].name + pair[1].name))
        chosen: list[tuple[Option, Option]] = []
        for pair in ranked:
            rest = [p for p in self.pairs_of_options if p not in chosen and p != pair]
            if all(sum(option in p for p in rest) >= 2 for option in self.options):
                chosen.append(pair)
            if len(chosen) >= max(1, len(ranked) // 4):
                break
        return chosen

    @cached_property
    def trained_pairs(self) -> list[tuple[Option, Option]]:
        return [pair for pair in self.pairs_of_options if pair not in self.new_pairs]

    def slot_references(self) -> set[str]:
        """The slots that every drawing of this intent fills."""
        return set(REFERENCE.findall(mask_command(self.command))) - {"options"}


def _likeness(wording: str, other: str) -> float:
    """The Jaccard index of their content words; 1 where the other one says all of the wording and more."""
    mine, theirs = (content_words(re.sub(r"[\[\]|]", " ", w)) for w in (wording, other))
    return 1.0 if mine <= theirs else len(mine & theirs) / len(mine | theirs)


def mask_doubled(text: str) -> str:
    """``{{`` and its kin become private characters, so that what is left is notation."""
    for position, mark in enumerate("{}[]|"):
        text = text.replace(mark * 2, chr(0xE000 + position))
    return text


def mask_command(text: str) -> str:
    """As mask_doubled, for commands and flags, where brackets and bars mean themselves."""
    return text.replace("{{", chr(0xE000)).replace("}}", chr(0xE001))


def unmask(text: str) -> str:
    for position, mark in enumerate("{}[]|"):
        text = text.replace(chr(0xE000 + position), mark)
    return text


def _choose(text: str, rng: random.Random) -> str:
    """Replaces every [a|b] by one of its alternatives."""
    return re.sub(r"\[([^\[\]]*)\]", lambda m: rng.choice(m[1].split("|")), text)


def _join_clauses(clauses: list[str], rng: random.Random) -> str:
    if len(clauses) < 2:
        return "".join(clauses)
    rng.shuffle(clauses)
    return rng.choice([" and ", ", ", " "]).join(clauses)


class Grammar:
    """All intents, the everyday ones among them, and the slots they draw from."""

    def __init__(self, intents: list[Intent], core: set[str], slots: Slots) -> None:
        self.intents = intents
        self.core = [intent for intent in intents if intent.name in core]
        self.slots = slots

    def draw(
        self,
        intent: Intent,
        wording: str,
        options: tuple[Option, ...],
        rng: random.Random,
        new_values: bool = False,
    ) -> Drawn:
        """One pair. With new_values, every slot of an open type takes a value kept out of training."""
        command = _masked(intent, options)
        clauses = _join_clauses([_choose(mask_doubled(rng.choice(o.say)), rng) for o in options], rng)
        text = _choose(mask_doubled(wording), rng)
        if "{options}" in text:
            text = text.replace("{options}", clauses)
        elif clauses:
            body, mark = (text[:-1], "?") if text.endswith("?") else (text, "")
            text = f"{body} {clauses}{mark}"
        values = self._values(set(REFERENCE.findall(text + command)), new_values, rng)
        instruction = REFERENCE.sub(lambda m: values[m[1]].said, text)
        return Drawn(
            _style(" ".join(unmask(instruction).split()), intent.shell, rng, text[0] != "{"),
            _typed(command, values),
            options,
            values,
        )

    def other_command(
        self, intent: Intent, options: tuple[Option, ...], values: Mapping[str, Value], rng: random.Random, new: bool
    ) -> str:
        """The command of an intent with these values, and drawn ones where it needs more; new as in `draw`."""
        command = _masked(intent, options)
        return _typed(command, self._values(set(REFERENCE.findall(command)), new, rng, values))

    def _values(
        self, references: set[str], new: bool, rng: random.Random, known: Mapping[str, Value] | None = None
    ) -> dict[str, Value]:
        """A value for each reference, the known ones among them."""
        values = dict(known or {})
        for reference in sorted(references - values.keys()):
            kind = reference.partition("#")[0]
            value = self.slots.draw_side(kind, new, rng)
            while value in values.values() and self.slots.capacity(kind) > 4:
                value = self.slots.draw_side(kind, new, rng)
            values[reference] = value
        return values

    def has_open_slot(self, intent: Intent) -> bool:
        return any(self.slots.is_open(ref.partition("#")[0]) for ref in intent.slot_references())


def _masked(intent: Intent, options: tuple[Option, ...]) -> str:
    """The command with the flags of these options, as mask_command leaves it."""
    flags = "".join(option.flag for option in intent.options if option in options)
    return mask_command(intent.command).replace("{options}", mask_command(flags))


def _typed(command: str, values: Mapping[str, Value]) -> str:
    return unmask(REFERENCE.sub(lambda m: values[m[1]].typed, command))


POWERSHELL_STYLES: list[Callable[[str], str]] = [
    lambda text: f"in PowerShell, {text}",
    lambda text: f"PowerShell: {text}",
    lambda text: f"{text} in PowerShell" if not text.endswith("?") else f"{text[:-1]} in PowerShell?",
    lambda text: f"with PowerShell, {text}",
]


def _style(text: str, shell: str, rng: random.Random, begins_with_word: bool) -> str:
    """Names the shell where it is PowerShell, and writes some instructions as a sentence; a value keeps its case."""
    if shell == "powershell":
        text = rng.choice(POWERSHELL_STYLES)(text)
    if rng.random() < 0.25:
        text = (text[0].upper() if begins_with_word else text[0]) + text[1:] + ("" if text.endswith("?") else ".")
    return text


def _read_folder() -> Iterator[tuple[str, Any]]:
    folder = resources.files(__package__) / "grammar"
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".yaml"):
            yield entry.name, yaml.load(entry.read_text("utf-8"), yaml.CSafeLoader)


def _intent(entry: dict[str, Any]) -> Intent:
    options = tuple(
        Option(str(name), tuple(option["say"]), option["flag"]) for name, option in (entry.get("options") or {}).items()
    )
    return Intent(
        entry["intent"],
        entry.get("shell", "bash"),
        entry["command"],
        tuple(entry["wordings"]),
        options,
        tuple(entry.get("also", ())),
    )


@lru_cache(maxsize=1)
def load_grammar() -> Grammar:
    """The shipped grammar."""
    types: dict[str, list[str]] = {}
    intents: list[Intent] = []
    core: set[str] = set()
    for name, content in _read_folder():
        if name.startswith("slots"):
            twice = types.keys() & content
            assert not twice, f"{name} defines {twice} again"
            types |= content
        elif name == "core.yaml":
            core = {intent for domain in content.values() for intent in domain}
        else:
            intents += [_intent(entry) for entry in content]
    return Grammar(intents, core, Slots(types))
