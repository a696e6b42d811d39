"""What an example is: who says what, in which order, and which texts are none."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Any

from leveret.data.rows import Row, flaw
from leveret.data.streams import shown

ROLES = ("system", "user", "assistant")
MAX_CHARACTERS = 500_000
"""Of all messages of an example together: more than any context here holds, and few enough to hold many."""

_CONTROL = re.compile("[\0-\x06\x0e-\x1a\x1c-\x1f\x7f]")  # but for bell, backspace, white space and escape
_SHOWN = 300


class Unfit(Exception):
    """What was read is no example. The message is the reason, then particulars after `:`, `;` or `(`."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks (`system`, `user` or `assistant`) and what."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """A dialogue whose last message is the assistant's answer to learn or to be judged by."""

    messages: tuple[Message, ...]
    source: str = ""
    """Label of the file, dataset or generator it came from."""
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Whatever else its row says, such as an intent or a category."""
    where: str = field(default="", compare=False)
    """`file:line` of its row; empty if it is generated."""

    @property
    def instruction(self) -> str:
        """What the user said last."""
        return next(message.content for message in reversed(self.messages) if message.role == "user")

    @property
    def response(self) -> str:
        """What the assistant said last."""
        return next(message.content for message in reversed(self.messages) if message.role == "assistant")


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt, of which the first is the better."""

    prompt: tuple[Message, ...]
    """The dialogue so far; its last message is the user's."""
    chosen: str
    """The assistant's better answer."""
    rejected: str
    """The assistant's worse answer, another text."""
    source: str = ""
    """Label of the file, dataset or generator it came from."""
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Whatever else its row says."""
    where: str = field(default="", compare=False)
    """`file:line` of its row; empty if it is generated."""

    @property
    def example(self) -> Example:
        """The prompt with the better answer."""
        return Example((*self.prompt, Message("assistant", self.chosen)), self.source, self.meta, self.where)


def one_turn(instruction: str, response: str, source: str = "", meta: Mapping[str, Any] | None = None) -> Example:
    """The example of one question and its answer."""
    return Example((Message("user", instruction), Message("assistant", response)), source, dict(meta or {}))


def dialogue(messages: Iterable[Message]) -> tuple[Message, ...]:
    """The messages as they are: perhaps one of the system, then user and assistant in turn, the last the assistant's.

    Raises Unfit where they are not so, or too long.
    """
    said = tuple(messages)
    turns = [message.role for message in (said[1:] if said and said[0].role == "system" else said)]
    if "system" in turns:
        raise Unfit("a message of the system that is not the first")
    if "user" not in turns:
        raise Unfit("no message of the user")
    if turns[0] != "user":
        raise Unfit("the assistant speaks before the user")
    for before, after in pairwise(turns):
        if before == after:
            raise Unfit(f"two messages of the {after} in a row")
    if turns[-1] != "assistant":
        raise Unfit("the last message is not the assistant's")
    if (size := sum(len(message.content) for message in said)) > MAX_CHARACTERS:
        raise Unfit(f"too long to be an example ({size:,} characters; {MAX_CHARACTERS:,} are read)")
    return said


def text_of(row: Row, name: str) -> str:
    """The text that a row has under a name. Raises Unfit where there is none worth learning."""
    value = row.get(name)
    if value is None:
        raise Unfit(f"'{name}' is missing; there are: {names(row)}")
    if not isinstance(value, str):
        raise Unfit(f"'{name}' is not text (but {type(value).__name__})")
    if not value.strip():
        raise Unfit(f"'{name}' is empty")
    if wrong := flaw(value):
        raise Unfit(f"'{name}' has {wrong}")
    if found := _CONTROL.search(value):
        raise Unfit(f"'{name}' has control characters ({found[0]!r} at character {found.start()}; binary data?)")
    return value


def messages_of(turns: object, name: str) -> list[Message]:
    """Messages out of a list of {"role", "content"}; whatever else a turn has is left out. Raises Unfit."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Unfit(f"'{name}' is not a list of objects with 'role' and 'content'")
    for turn in turns:
        role = turn.get("role")
        if role not in ROLES:
            told = ascii(role[:40]) if isinstance(role, str) else type(role).__name__
            raise Unfit(f"unknown role ({told}; known are {', '.join(ROLES)})")
    return [Message(turn["role"], text_of(turn, "content")) for turn in turns]


def names(row: Row) -> str:
    """The names of a row's fields, or the first of many."""
    return shown(", ".join(islice(row, 50))[:_SHOWN]) or "none"
