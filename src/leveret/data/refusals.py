"""What became of rows that are no examples: left out, counted by reason, and the first of them named."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

NAMED = 10
"""Refused rows of a source that are named; the others are counted."""

MOST_REASONS = 5
"""Reasons that are told in a line, the most frequent first."""

_PARTICULARS = re.compile(r"\s*(?:[(:;]|, found |, (?:byte|line) \d| at character | after row ).*", re.DOTALL)


@dataclass
class Refusals:
    """A Drop that takes note."""

    reasons: Counter[str] = field(default_factory=Counter)
    """Rows by reason, without particulars."""
    first: list[tuple[str, str]] = field(default_factory=list)
    """(where, why) of the first ones."""

    def __call__(self, where: str, why: str) -> None:
        self.reasons[_PARTICULARS.sub("", why)] += 1
        if len(self.first) < NAMED:
            self.first.append((where, why))

    @property
    def count(self) -> int:
        """How many rows were refused; a part of a file that cannot be read is one."""
        return self.reasons.total()

    def __str__(self) -> str:
        told = [f"{reason}: {count:,}" for reason, count in self.reasons.most_common(MOST_REASONS)]
        return "; ".join(told + ["and others"] * (len(self.reasons) > MOST_REASONS))

    def facts(self) -> dict[str, Any]:
        """What a manifest says of them."""
        return {
            "count": self.count,
            "reasons": dict(self.reasons.most_common()),
            "first": [{"where": where, "why": why} for where, why in self.first],
        }

    def lines(self) -> Iterator[str]:
        """The first ones, a line each, and how many more there are."""
        yield from (f"{where}: {why}" for where, why in self.first)
        if more := self.count - len(self.first):
            yield f"and {more:,} more"
