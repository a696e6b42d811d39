"""The words of a text as numpy arrays: a hash of each, and where it stands.

    text -> codes: the letters of words folded, 0 for all else -> a hash for each word -> hashes of runs of words

A word is a run of letters, digits and underscores (`\\w+`) of the text after Unicode's NFKC and case folding. No
word becomes a Python string on the way, which makes this several times faster than a regular expression.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator
from functools import cached_property, lru_cache
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from leveret.data.hashing import Hashes, Numbers, hash_spans

Codes = npt.NDArray[np.uint32]

BLOCK = 1 << 15
"""Characters that are looked at together, so that their arrays (about 30 bytes each) stay in the caches."""

_WORD = 0x9E3779B97F4A7C15
_SEPARATOR = re.compile(r"(?!\w)[\x00-\xbf\u2000-\u206f\u3000-\u3020\uff00-\uff20]")
"""Spaces and punctuation of any script that can start a text anew: no marks that join the letter before them."""


class Words:
    """The words of one text: `hashes` uint64 [W] of the words, in order; with methods for their letters and places."""

    def __init__(self, text: str) -> None:
        self._text = text
        codes = _letters().take(_code_points(_folded(text)), mode="clip")
        letter = np.zeros(len(codes) + 2, bool)
        np.not_equal(codes, 0, out=letter[1:-1])
        edges = np.flatnonzero(letter[1:] != letter[:-1])
        self._codes, self._starts, self._ends = codes, edges[0::2], edges[1::2]
        self.hashes = hash_spans(codes, self._starts, self._ends)

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def places(self) -> Numbers:
        """Where each word starts in all of them `joined`."""
        after = np.cumsum(self._ends - self._starts + 1)
        return np.concatenate([[0], after[:-1]])

    def joined(self, first: int, count: int) -> str:
        """The letters of `count` words from number `first`, folded, one space between two words."""
        codes = self._codes[self._starts[first] : self._ends[first + count - 1]]
        return " ".join(codes.astype("<u4").tobytes().decode("utf-32-le").replace("\0", " ").split())

    def span(self, first: int, count: int) -> tuple[int, int]:
        """Where `count` words from number `first` start and end in the text as it was given, in characters."""
        start, last = int(self._starts[first]), int(self._ends[first + count - 1]) - 1
        if self._text.isascii():
            return start, last + 1
        return int(self._origins[0][start]), int(self._origins[1][last])

    @cached_property
    def _origins(self) -> tuple[Numbers, Numbers]:
        """For each code, start and end of the characters of the text that it was made of."""
        joining = "".join(filter(_joins, set(self._text)))
        pieces = re.findall(rf"\n|.[{re.escape(joining)}]*" if joining else ".", self._text, re.DOTALL)
        ends = np.fromiter(accumulate(map(len, pieces)), np.int64, len(pieces))
        width = {piece: len(_folded(piece)) for piece in set(pieces)}
        widths = np.fromiter(map(width.__getitem__, pieces), np.int64, len(pieces))
        return np.repeat(np.concatenate([[0], ends[:-1]]), widths), np.repeat(ends, widths)


def blocks(text: str, overlap: int) -> Iterator[tuple[int, Words]]:
    """The words of a text of any length, block by block, each with the place in the text where the block starts.

    The last words of a block, `overlap` or a few more, are the first of the next one, so that every run of overlap + 1
    words stands whole in one; but for runs with thousands of characters between two words, which may be cut.
    """
    start = 0
    while (stop := _seam(text, start + BLOCK, len(text))) < len(text):
        words = Words(text[start:stop])
        yield start, words
        again = _before(text, start, stop, overlap)
        if again == start:  # nearly all is noise: the next block starts with what may be a run's first word
            again += words.span(0, 1)[0] if len(words) else 0
        start = again if again > start else stop
    yield start, Words(text[start:])


def _before(text: str, start: int, stop: int, words: int) -> int:
    """A place after `start` from which on there are so many words up to `stop`, or a few more; `start` if none is."""
    size = 16 * words
    while stop - size > start:
        place = _seam(text, stop - size, stop)
        if len(Words(text[place:stop])) >= words:
            return place
        size *= 2
    return start


def _seam(text: str, place: int, stop: int) -> int:
    """Where to cut at `place` or soon after: between words that normalisation cannot join, if there are any."""
    limit = min(place + BLOCK, stop)
    found = _SEPARATOR.search(text, place, limit)
    return found.start() if found else limit


def run_hashes(words: Hashes, size: int) -> Hashes:
    """A hash [W - size + 1] for each run of `size` words, from the hashes [W] of the words.

    sum_i word_i C^(size - 1 - i) modulo 2^64; made of runs of 1, 2, 4, ... words, as a power is of squares.
    """
    runs, done = np.zeros(len(words) + 1, np.uint64), 0
    part, length = words, 1
    while True:
        if size & length:
            runs, done = _join(part, length, runs, done), done + length
        if 2 * length > size:
            return runs
        part, length = _join(part, length, part, length), 2 * length


def longer(runs: Hashes, words: Hashes) -> Hashes:
    """The hashes [N] of runs that one more word, of hashes [N], is put to."""
    return runs * np.uint64(_WORD) + words


def _join(left: Hashes, size: int, right: Hashes, more: int) -> Hashes:
    """The hashes of all runs of size + more words, from those of all runs of `size` and of all runs of `more`."""
    count = max(len(right) - size, 0)
    return left[:count] * np.uint64(pow(_WORD, more, 1 << 64)) + right[size:]


# --- folding -------------------------------------------------------------------------------------------------


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _code_points(text: str) -> Codes:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


@lru_cache(maxsize=1)
def _letters() -> Codes:
    """For each code point itself if it is part of a word, else 0."""
    letters = np.zeros(sys.maxunicode + 1, np.uint32)
    for word in re.finditer(r"\w+", "".join(map(chr, range(sys.maxunicode + 1)))):
        letters[word.start() : word.end()] = np.arange(word.start(), word.end())
    return letters


def _joins(character: str) -> bool:
    """Whether normalisation may merge or reorder a character with the one before it: marks, vowels of Hangul."""
    first = unicodedata.normalize("NFKD", character)[0]
    return unicodedata.category(first)[0] == "M" or "\u1160" <= first <= "\u11ff"
