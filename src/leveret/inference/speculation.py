"""Guesses of what comes next: what followed the same words the last time (prompt lookup; Saxena, 2023)."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST, SHORTEST = 3, 2
"""Tokens that must be the same for a guess; longer ones are looked for first."""


class Lookup:
    """The tokens of a prompt and its answer so far, and where each run of a few of them ended last."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        at = len(self._tokens)
        for length in range(SHORTEST, min(LONGEST, at) + 1):
            self._next[tuple(self._tokens[at - length :])] = at
        self._tokens.append(token)

    def guess(self, most: int) -> list[int]:
        """At most so many tokens, none if the last ones are new."""
        for length in range(LONGEST, SHORTEST - 1, -1):
            at = self._next.get(tuple(self._tokens[-length:]))
            if at is not None:
                return self._tokens[at : at + most]
        return []
