"""Numbers that tell a text's form, and the filter that keeps a text by bounds on them.

Each measure is a pure function from a text to named numbers; the names are those of the bounds in config.py.
A word is what stands between white space, punctuation included.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from leveret.config import Config

if TYPE_CHECKING:
    from numpy import int64, uint64
    from numpy.typing import NDArray

Measures = dict[str, float]


class Result(NamedTuple):
    """What one filter makes of a text: None drops it, and `why` says so as "rule: numbers"."""

    text: str | None
    why: str = ""
    edits: Mapping[str, int] = {}
    """How often the text was changed, by the kind of change."""


Filter = Callable[[str], Result]


class Measured:
    """The filter that keeps a text whose measures all lie within the bounds that a config's fields name."""

    def __init__(self, measure: Callable[[str], Measures], config: Config) -> None:
        self.measure = measure
        self.bounds = bounds(config)

    def __call__(self, text: str) -> Result:
        why = self.judge(self.measure(text))
        return Result(None if why else text, why)

    def judge(self, measures: Measures) -> str:
        """Which bound is broken, in words; "" if none is."""
        for name, (least, most) in self.bounds.items():
            value, said = measures[name], name.replace("_", " ")
            if value < least:
                return f"least {said}: {value:.4g} < {least:.4g}"
            if not value <= most:
                return f"most {said}: {value:.4g} > {most:.4g}"
        return ""


def bounds(config: Config) -> dict[str, tuple[float, float]]:
    """(least, most) of each measure that a config bounds; its fields `least` and `most` bound the score."""
    found: dict[str, tuple[float, float]] = {}
    for field, value in config:
        end, _, name = field.partition("_")
        if end in ("least", "most") and isinstance(value, int | float):
            least, most = found.get(name or "score", (-inf, inf))
            found[name or "score"] = (value, most) if end == "least" else (least, value)
    return found


# --- length and quality --------------------------------------------------------------------------------------

_BULLETS = ("•", "‣", "▪", "◦", "- ", "* ", "– ")
_ELLIPSES = ("...", "…")
_has_letter = re.compile(r"[^\W\d_]").search


def length(text: str) -> Measures:
    """Words and characters."""
    return {"words": len(text.split()), "characters": len(text)}


def quality(text: str, stop_words: frozenset[str]) -> Measures:
    """The measures of Gopher's quality rules."""
    words = text.split()
    lines = _lines(text)
    count, line_count = max(len(words), 1), max(len(lines), 1)
    ellipses = sum(map(text.count, _ELLIPSES))
    return {
        "words": len(words),
        "mean_word_length": sum(map(len, words)) / count,
        "symbols_per_word": max(text.count("#"), ellipses) / count,
        "bullet_lines": sum(line.startswith(_BULLETS) for line in lines) / line_count,
        "ellipsis_lines": sum(line.endswith(_ELLIPSES) for line in lines) / line_count if ellipses else 0.0,
        "alphabetic_words": 1 - len([word for word in words if not word.isalpha() and not _has_letter(word)]) / count,
        "stop_words": _occurring(text.lower(), stop_words),
    }


def _occurring(text: str, words: frozenset[str]) -> int:
    """How many of the words occur in the text."""
    found: set[str] = set()
    for match in _any_of(words).finditer(text):
        found.add(match[0])
        if len(found) == len(words):
            break
    return len(found)


@lru_cache(maxsize=16)
def _any_of(words: frozenset[str]) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(words)))})\b")


def _lines(text: str) -> list[str]:
    return [stripped for line in text.split("\n") if (stripped := line.strip())]


# --- repetition ----------------------------------------------------------------------------------------------

TOP, DUPLICATE = range(2, 5), range(5, 11)
"""Sizes in words of the runs of which the most frequent one counts, and of those of which each repetition does."""


def repetition(text: str) -> Measures:
    """The measures of Gopher's repetition rules; a run of words that occurs once is no top one."""
    lines, paragraphs = _lines(text), _paragraphs(text)
    found: Measures = {}
    found["duplicate_lines"], found["duplicate_line_characters"] = _duplicates(lines)
    found["duplicate_paragraphs"], found["duplicate_paragraph_characters"] = _duplicates(paragraphs)
    found |= {f"top_{n}_gram_characters": 0.0 for n in TOP}
    found |= {f"duplicate_{n}_gram_characters": 0.0 for n in DUPLICATE}
    return found | dict(_gram_shares(text.split()))


def _paragraphs(text: str) -> list[str]:
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    return [stripped for paragraph in text.split("\n\n") if (stripped := paragraph.strip())]


def _duplicates(parts: list[str]) -> tuple[float, float]:
    """Shares of the parts, and of their characters, that occurred before."""
    unique = set(parts)
    if len(unique) == len(parts):
        return 0.0, 0.0
    return 1 - len(unique) / len(parts), 1 - sum(map(len, unique)) / sum(map(len, parts))


def _gram_shares(words: list[str]) -> Iterator[tuple[str, float]]:
    """The shares of characters in repeated runs of words, by name; those that are 0 may be missing.

    A run of n + 1 words can only occur twice where both its runs of n words do, so that each size looks at what
    the one before left: mostly little, and from 5 words on in most texts nothing. Runs are compared by 64-bit
    hashes, so that two different ones are taken for one with a chance of less than 1e-9 in a book.
    """
    import numpy as np

    word_hash = np.fromiter(map(hash, words), np.int64, len(words)).view(np.uint64)
    starts = np.zeros(len(words) + 1, np.int64)  # [N + 1] characters before each word, and all of them
    np.cumsum(np.fromiter(map(len, words), np.int64, len(words)), out=starts[1:])
    at = np.arange(len(words) - 1)  # where runs begin that may occur twice
    gram_hash = word_hash[:-1] * _MULTIPLIER + word_hash[1:]
    for n in range(TOP.start, DUPLICATE.stop):
        found = _repeated(gram_hash)
        if found is None:
            return
        by_hash, first = found
        if n in TOP:
            yield f"top_{n}_gram_characters", _top(at[by_hash], first, n, starts)
        else:
            yield f"duplicate_{n}_gram_characters", _covered(_later(at[by_hash], first), n, starts)
        by_hash.sort()
        at = at[by_hash]
        grows = (at[1:] - at[:-1] == 1).nonzero()[0]
        at = at[grows]
        gram_hash = gram_hash[by_hash[grows]] * _MULTIPLIER + word_hash[at + n]


_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that no bit of a hash is lost


def _repeated(hashes: NDArray[uint64]) -> tuple[NDArray[int64], NDArray[int64]] | None:
    """The indices [K] of the hashes that occur twice or more, equal ones side by side, and where in them each
    hash begins [G]; None if there are none."""
    import numpy as np

    order = np.argsort(hashes)
    in_order = hashes[order]
    edge = np.ones(len(hashes) + 1, bool)  # [K + 1] whether a new hash begins here
    np.not_equal(in_order[1:], in_order[:-1], out=edge[1:-1])
    if edge.all():
        return None
    repeated = ~(edge[:-1] & edge[1:])
    return order[repeated], edge[:-1][repeated].nonzero()[0]


def _counts(at: NDArray[int64], first: NDArray[int64]) -> NDArray[int64]:
    """How often each run occurs [G]; `at` [K] holds where the runs begin, equal ones side by side, and `first` [G]
    where in it each run is first."""
    counts = first.copy()
    counts[:-1] = first[1:]
    counts[-1] = len(at)
    counts -= first
    return counts


def _top(at: NDArray[int64], first: NDArray[int64], n: int, starts: NDArray[int64]) -> float:
    """Share of the characters in the most frequent run of n words, the longest one of equally frequent ones."""
    counts = _counts(at, first)
    most = counts.max()
    begin = at[first[counts == most]]
    return float(most * (starts[begin + n] - starts[begin]).max() / starts[-1])


def _later(at: NDArray[int64], first: NDArray[int64]) -> NDArray[int64]:
    """`at` without the earliest occurrence of each run, in the order of the text."""
    import numpy as np

    earliest = np.repeat(np.minimum.reduceat(at, first), _counts(at, first))
    later: NDArray[int64] = np.sort(at[at != earliest])
    return later


def _covered(at: NDArray[int64], n: int, starts: NDArray[int64]) -> float:
    """Share of the characters in the runs of n words that begin `at`, each character counted once."""
    import numpy as np

    begin, end = starts[at], starts[at + n]
    begin[1:] = np.maximum(begin[1:], end[:-1])
    return float((end - begin).sum() / starts[-1])
