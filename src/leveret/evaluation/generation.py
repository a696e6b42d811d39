"""Faults of generated text that no likelihood shows: it repeats itself, goes round in circles, or does not end.

rep-n: the share of an answer's n-grams of tokens that were in it before, averaged over answers ("seq-rep-n" of Welleck
et al., 2019, "Neural Text Generation with Unlikelihood Training"). distinct-n: different n-grams of all answers over
all their n-grams (Li et al., 2016). Answers shorter than n tokens have no n-grams and are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from leveret.inference.engine import Completion

REPEATED, DISTINCT = (2, 3, 4), (1, 2)
"""Lengths of the n-grams that are told."""
TURNS = 3
"""Times that the same tokens come one after the other, at the end, where text goes round in circles."""
LONG = 12
"""Tokens of all turns together at least: three full stops are no circle."""

Tokens = Sequence[int]


def _grams(tokens: Tokens, n: int) -> list[tuple[int, ...]]:
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def repeated(tokens: Tokens, n: int) -> float | None:
    """The share of a text's n-grams that were in it before; None for a text without any."""
    grams = _grams(tokens, n)
    return 1 - len(set(grams)) / len(grams) if grams else None


def distinct(texts: Sequence[Tokens], n: int) -> float | None:
    """Different n-grams of all texts over all of their n-grams."""
    grams = [gram for tokens in texts for gram in _grams(tokens, n)]
    return len(set(grams)) / len(grams) if grams else None


def loops(tokens: Tokens) -> bool:
    """Whether a text ends in the same tokens TURNS times, or more often until LONG tokens are reached."""
    for period in range(1, len(tokens) // TURNS + 1):
        tail = list(tokens[-max(TURNS * period, LONG) :])
        if len(tail) >= LONG and tail[period:] == tail[:-period]:
            return True
    return False


def faults(completions: Sequence[Completion]) -> dict[str, Any]:
    """Figures of these answers: their number, mean tokens, `rep_2` and so on, `distinct_1` and so on, and the shares
    that ended by themselves, that are empty, and that end in a loop.
    """
    total = max(1, len(completions))
    texts = [completion.tokens for completion in completions]
    found: dict[str, Any] = {"answers": len(completions), "tokens": sum(map(len, texts)) / total}
    for n in REPEATED:
        shares = [share for tokens in texts if (share := repeated(tokens, n)) is not None]
        found[f"rep_{n}"] = sum(shares) / len(shares) if shares else None
    found |= {f"distinct_{n}": distinct(texts, n) for n in DISTINCT}
    found["ended"] = sum(completion.finish == "stop" for completion in completions) / total
    found["empty"] = sum(not completion.text.strip() for completion in completions) / total
    found["loops"] = sum(map(loops, texts)) / total
    return found
