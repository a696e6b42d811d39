"""The one index of n-grams of the audits: which known passages stand in a text, and where?

    passages -> words -> hashes of their n-grams -> sorted table, filters                    NgramIndex.build, once
    text -> words -> hashes of its runs of n words -> filter -> table -> the letters         NgramIndex.find

Words are compared as in GPT-3's analysis of contamination (Brown et al. 2020, appendix C): letters and digits only,
case folded, and here also after Unicode's NFKC. Hashes only propose; what is found has been compared letter by
letter. The index grows with its passages, and nothing grows with the texts, which are read block by block.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from leveret.config import Config
from leveret.data.hashing import Hashes, Numbers
from leveret.data.words import BLOCK, Words, blocks, longer, run_hashes

NGRAM = 13
SHORTEST = 5
"""Words of the shortest passage that is indexed; fewer stand in many a text by chance."""
COMMON = 10
"""An n-gram in more passages than this is boilerplate, such as the same instructions to every question."""
_FILTER_BITS = 32
"""Least bits of a filter for each of its entries: it lets at most 3% pass of what it should not."""

T = TypeVar("T", bound=np.generic)
Places = npt.NDArray[np.uint32]


class DecontaminateConfig(Config):
    """Which evaluation sets may not stand in the corpus, and what becomes of a document that has some of one."""

    sets: list[str] = Field(min_length=1)
    """Files (.jsonl, .json, .parquet), folders and globs of evaluation sets, relative to the recipe's folder."""
    fields: list[str] = []
    """Fields whose texts, joined in this order, are an example; without it, those of a known format."""
    ngram: int = Field(default=NGRAM, ge=SHORTEST)
    """Words in a row that make an overlap; an example of fewer must stand in the document as a whole."""
    action: Literal["drop", "cut"] = "drop"
    """`drop` the document, or `cut` the sentences that overlap (and drop it where less than half of it remains)."""


class Passage(NamedTuple):
    """A text to look for: example `number` (from 0) of a set."""

    set: str
    number: int
    text: str


class Overlap(NamedTuple):
    """text[start:end], in characters, stands in example `number` of a set."""

    start: int
    end: int
    set: str
    number: int


class Coverage(NamedTuple):
    """How many passages a set has, how many are too short to audit, and how many are nothing but boilerplate."""

    passages: int
    short: int
    common: int

    @property
    def audited(self) -> int:
        """Passages that would be found."""
        return self.passages - self.short - self.common


@dataclass(frozen=True, slots=True, eq=False)
class NgramIndex:
    """Finds in texts the passages that it was built of; `build` makes one."""

    n: int
    """Words of an n-gram."""
    sets: dict[str, Coverage]
    """How much of each set can be found, in the order in which the sets were given."""
    _known: list[_Known]
    _table: _Table
    _starts: _Filter
    """Of the first words, `_shortest` or more, of the passages of fewer than n words."""
    _shortest: int

    @classmethod
    def build(cls, passages: Iterable[Passage], n: int = NGRAM, shortest: int = SHORTEST) -> NgramIndex:
        """Index every n-gram of each passage; as a whole those of fewer words, but none of fewer than `shortest`.

        N-grams that stand in more than `COMMON` passages are boilerplate and ignored, much as GPT-3 ignored those
        that stood in more than 10 documents; the whole of a passage of fewer than n words is no boilerplate.
        """
        given: Counter[str] = Counter()
        short: Counter[str] = Counter()
        known: list[_Known] = []
        grams, places, starts = [], [], []
        for passage in passages:
            given[passage.set] += 1
            words = Words(passage.text)
            if len(words) < shortest:
                short[passage.set] += 1
                continue
            known.append(_Known(passage.set, passage.number, len(words) < n, words.joined(0, len(words)) + " "))
            grams.append(run_hashes(words.hashes, min(n, len(words))))
            places.append(words.places[: len(grams[-1])].astype(np.uint32))
            if known[-1].whole:
                starts += [run_hashes(words.hashes[:size], size) for size in range(shortest, len(words) + 1)]
        table = _Table.build(grams, places, np.array([passage.whole for passage in known], bool))
        common = Counter(known[owner].set for owner in np.setdiff1d(np.arange(len(known)), table.owners))
        sets = {name: Coverage(count, short[name], common[name]) for name, count in given.items()}
        return cls(n, sets, known, table, _Filter(_concatenated(starts, np.uint64)), shortest)

    @property
    def common(self) -> int:
        """N-grams that are ignored as boilerplate."""
        return self._table.common

    def lengths(self) -> dict[tuple[str, int], int]:
        """The words of each passage that can be found, by set and number."""
        return {(known.set, known.number): known.text.count(" ") for known in self._known}

    @property
    def nbytes(self) -> int:
        """Bytes of memory of the tables and texts."""
        texts = sum(sys.getsizeof(known) + sys.getsizeof(known.text) for known in self._known)
        return texts + self._table.nbytes + self._starts.bits.nbytes

    def find(self, text: str) -> list[Overlap]:
        """Where passages stand in a text, in its order; overlaps of one passage that meet in a word are one.

        An overlap starts and ends with a word.
        """
        return next(self.find_each([text]))

    def find_each(self, texts: Iterable[str]) -> Iterator[list[Overlap]]:
        """What `find` says of each text; for short ones several times as fast, since it looks at many together."""
        for batch in _batches(texts):
            starts = [0, *accumulate(len(text) + 1 for text in batch)]
            spans: defaultdict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
            for owner, start, end in self._runs("\n".join(batch)):
                number = bisect_right(starts, start) - 1
                if end < starts[number + 1]:
                    spans[number, owner].append((start - starts[number], end - starts[number]))
            found: list[list[Overlap]] = [[] for _ in batch]
            for (number, owner), runs in spans.items():
                found[number] += [Overlap(*span, *self._known[owner][:2]) for span in merged(runs)]
            yield from map(sorted, found)

    def _runs(self, text: str) -> Iterator[tuple[int, int, int]]:
        """(passage, start, end) of every n-gram, or whole, of a passage in a text."""
        for place, words in blocks(text, max(self.n - 1, 1)):
            for first, size, row in self._proposed(words):
                owner = int(self._table.owners[row])
                if self._known[owner].text.startswith(words.joined(first, size) + " ", self._table.places[row]):
                    start, end = words.span(first, size)
                    yield owner, place + start, place + end

    def _proposed(self, words: Words) -> Iterator[tuple[int, int, int]]:
        """(first word, words, row of the table) of each run of words whose hash is that of a row."""
        for first, row in self._table.rows(run_hashes(words.hashes, self.n)):
            yield first, self.n, row
        runs = run_hashes(words.hashes, self._shortest)
        firsts = np.arange(len(runs))
        for size in range(self._shortest, self.n):
            started = self._starts.passed(runs)
            firsts, runs = firsts[started], runs[started]
            for at, row in self._table.rows(runs):
                yield int(firsts[at]), size, row
            firsts = firsts[: firsts.searchsorted(len(words) - size)]
            if not len(firsts):
                return
            runs = longer(runs[: len(firsts)], words.hashes[firsts + size])


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts, as many together as make a block, or one that is longer."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and size + len(text) > BLOCK:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text) + 1
    if batch:
        yield batch


def merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same characters as sorted spans that do not overlap."""
    apart: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if apart and start < apart[-1][1]:
            apart[-1] = apart[-1][0], max(end, apart[-1][1])
        else:
            apart.append((start, end))
    return apart


# --- tables --------------------------------------------------------------------------------------------------


class _Known(NamedTuple):
    """A passage that is indexed, as a `whole` or by its n-grams; its words, folded, with a space after each."""

    set: str
    number: int
    whole: bool
    text: str


class _Filter:
    """Says of most hashes that were not put in that they were not; one look into `bits`, uint8 [B], for each.

    A Bloom filter of one hash function (Bloom 1970): the hash's first bits are the number of its bit.
    """

    def __init__(self, hashes: Hashes) -> None:
        count = max(_FILTER_BITS * len(hashes), 8).bit_length()
        self._shift = np.uint64(64 - count)
        self.bits = np.zeros(1 << (count - 3), np.uint8)
        numbers = self._numbers(hashes)
        np.bitwise_or.at(self.bits, numbers >> 3, np.left_shift(1, numbers & 7).astype(np.uint8))

    def passed(self, hashes: Hashes) -> Numbers:
        """Where in `hashes` those are that may have been put in."""
        numbers = self._numbers(hashes)
        passes = (self.bits[numbers >> 3] >> (numbers & 7).astype(np.uint8)) & 1
        return np.flatnonzero(passes)

    def _numbers(self, hashes: Hashes) -> Numbers:
        return (hashes >> self._shift).view(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """A row [R] for every n-gram of every passage that it stands in, sorted by hash."""

    hashes: Hashes
    owners: Places
    """The passage."""
    places: Places
    """Where in the passage's text the n-gram starts."""
    common: int
    """How many n-grams were left out as boilerplate."""
    filter: _Filter

    @classmethod
    def build(cls, grams: list[Hashes], places: list[Places], whole: npt.NDArray[np.bool_]) -> _Table:
        """The hashes and places of the n-grams of each passage, and whether they are the one of a whole one [P]."""
        hashes, place = _concatenated(grams, np.uint64), _concatenated(places, np.uint32)
        owner = np.repeat(np.arange(len(grams), dtype=np.uint32), [len(part) for part in grams])
        order = np.lexsort((place, owner, hashes))
        hashes, owner, place = hashes[order], owner[order], place[order]
        once = np.ones(len(hashes), bool)  # false where an n-gram comes again in the same passage
        once[1:] = (hashes[1:] != hashes[:-1]) | (owner[1:] != owner[:-1])
        hashes, owner, place = hashes[once], owner[once], place[once]
        different, gram, count = np.unique(hashes, return_inverse=True, return_counts=True)
        kept = (count[gram] <= COMMON) | whole[owner]
        common = len(different) - len(np.unique(gram[kept]))
        return cls(hashes[kept], owner[kept], place[kept], common, _Filter(different))

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (self.hashes, self.owners, self.places, self.filter.bits))

    def rows(self, runs: Hashes) -> Iterator[tuple[int, int]]:
        """(number of a run, row) for every row that has the run's hash."""
        at = self.filter.passed(runs)
        if not len(at):
            return
        low = self.hashes.searchsorted(runs[at])
        high = self.hashes.searchsorted(runs[at], "right")
        for found in (low < high).nonzero()[0]:
            for row in range(low[found], high[found]):
                yield int(at[found]), row


def _concatenated(parts: list[npt.NDArray[T]], kind: type[T]) -> npt.NDArray[T]:
    """Their concatenation, which numpy has none of for no arrays."""
    return np.concatenate([np.zeros(0, kind), *parts])
