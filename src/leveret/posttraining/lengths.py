"""Examples that are longer than a row: left out, cut, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from leveret.data.examples import Example, Message
from leveret.data.refusals import NAMED
from leveret.errors import UserError
from leveret.tokenizer.template import render
from leveret.tokenizer.tokenizer import Tokenizer

TooLong = Literal["drop", "truncate", "refuse"]
CUT_THROUGH = "\ufffd"
"""What decoding makes of a character that a cut went through."""
LEAST_PROMPT = 16
"""Tokens that are left of a prompt at least, where it is cut; an example whose answer leaves less room is left out."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """An example as a model reads it: token ids, for each whether it is learnt, and the bytes of its messages."""

    ids: list[int]
    learn: list[bool]
    text_bytes: int


def as_messages(example: Example) -> list[dict[str, str]]:
    """The example as chat templates take it."""
    return [{"role": message.role, "content": message.content} for message in example.messages]


class Fitter:
    """Renders examples to at most `length` tokens, and counts what that took.

    - drop: an example that is longer is left out.
    - truncate: its oldest turns go first, the system message stays; then the end of the last prompt. The last answer
      stays whole, with its end token: a model that learns from answers cut off never learns to stop. Where it leaves no
      room for `LEAST_PROMPT` tokens of the prompt, the example is left out.
    - refuse: the first that is longer is a UserError.
    """

    def __init__(self, tokenizer: Tokenizer, length: int, policy: TooLong) -> None:
        self.tokenizer, self.length, self.policy = tokenizer, length, policy
        self.lengths: list[int] = []
        self.first: list[str] = []
        self.too_long = self.truncated = 0

    def __call__(self, example: Example) -> Fitted | None:
        """The example's ids and what to learn of them; None: it is left out.

        Raises:
            UserError: it is too long, and that is refused.
        """
        whole = self._render(example.messages)
        length = len(whole.ids)
        self.lengths.append(length)
        if length <= self.length:
            return whole
        self.too_long += 1
        if example.where and len(self.first) < NAMED:
            self.first.append(example.where)
        if self.policy == "refuse":
            said = f"{example.where or example.source or 'example'} {' '.join(example.instruction.split())[:60]!r}"
            raise UserError(
                f"{said} has {length} tokens, more than sequence_length {self.length}; "
                "raise that, or set too_long to drop or truncate"
            )
        cut = self._cut(example.messages) if self.policy == "truncate" else None
        self.truncated += cut is not None
        return cut

    @property
    def left_out(self) -> int:
        return self.too_long - self.truncated

    def facts(self) -> dict[str, Any]:
        """Counts, and quantiles of the lengths before any cut, in tokens."""
        marks = {"median": 0.5, "p90": 0.9, "p99": 0.99, "longest": 1.0}
        found = [int(each) for each in np.quantile(self.lengths or [0], [*marks.values()], method="inverted_cdf")]
        return {
            "policy": self.policy,
            "too_long": self.too_long,
            "truncated": self.truncated,
            "left_out": self.left_out,
            "first_too_long": self.first,
            "lengths": dict(zip(marks, found, strict=True)),
        }

    def _render(self, messages: Sequence[Message]) -> Fitted:
        rendered = render(self.tokenizer, as_messages(Example(tuple(messages))))
        return Fitted(rendered.ids, rendered.learn, sum(len(message.content.encode()) for message in messages))

    def _cut(self, messages: Sequence[Message]) -> Fitted | None:
        """The dialogue without its oldest turns, and where that is not enough without the end of its last prompt."""
        begin = next(place for place, message in enumerate(messages) if message.role != "system")
        last = max(place for place, message in enumerate(messages) if message.role == "user")
        starts = [place for place in range(begin, last + 1) if messages[place].role == "user"]
        for start in starts:
            kept = [*messages[:begin], *messages[start:]]
            fitted = self._render(kept)
            if len(fitted.ids) <= self.length:
                return fitted
        prompt = self.tokenizer.encode(messages[last].content)
        while (over := len(fitted.ids) - self.length) > 0:
            prompt = prompt[:-over]
            if len(prompt) < LEAST_PROMPT:
                return None
            kept[begin] = Message("user", self.tokenizer.decode(prompt).rstrip(CUT_THROUGH))
            fitted = self._render(kept)
        return fitted


def told(facts: dict[str, Any], length: int, what: str = "examples") -> str:
    """A line about a Fitter's facts for the terminal; empty where everything fits."""
    if not facts["too_long"]:
        return ""
    done = [f"{facts[key]} {how}" for key, how in (("truncated", "cut"), ("left_out", "left out")) if facts[key]]
    lengths = ", ".join(f"{name} {value}" for name, value in facts["lengths"].items())
    first = f"; the first: {', '.join(facts['first_too_long'])}" * bool(facts["first_too_long"])
    return f"{what} longer than {length} tokens: {', '.join(done)} (lengths: {lengths}){first}"
