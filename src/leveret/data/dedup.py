"""Which documents stood before, word for word or nearly so.

    texts --fingerprints, in workers--> a hash and a signature each --Seen, in order--> first of its kind, or dropped

Two documents are as alike as the Jaccard index of their shingles (runs of words) says. A signature estimates it: in
each cell of a sketch two documents hold the same shingle with the probability of their index (MinHash, Broder 1997).
Its first cells are grouped into bands; documents that agree in a whole band are compared (locality-sensitive hashing,
Indyk and Motwani 1998), by the other cells, of which one bit each is kept (Li and König 2010).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from leveret.config import Config
from leveret.data.hashing import GOLDEN, Hashes, Numbers, hash_spans, mix

Flags = NDArray[np.bool_]


class DedupConfig(Config):
    """Which documents are dropped because one before them says the same."""

    exact: bool = True
    """Drop a document whose text stood before, white space aside."""
    near: float | None = Field(default=None, ge=0.6, lt=1)
    """Drop a document whose shingles have at least this Jaccard index with those of one kept before, such as 0.8."""
    ngram: PositiveInt = 5
    """Words of a shingle; a shorter document is one shingle."""

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not self.exact and self.near is None:
            raise ValueError("dedup without 'exact' and without 'near' drops nothing; leave it out")
        return self


@dataclass(frozen=True)
class Fingerprints:
    """What tells N documents apart. exact: uint64 [N]. signatures: uint8 [N, bytes], where near ones are looked for."""

    exact: Hashes
    signatures: NDArray[np.uint8] | None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """By name, for np.savez."""
        return {"exact": self.exact} | ({} if self.signatures is None else {"signatures": self.signatures})

    @classmethod
    def of(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        """From what `arrays` gave."""
        return cls(arrays["exact"], arrays.get("signatures"))


def fingerprints(texts: Sequence[str], config: DedupConfig) -> Fingerprints:
    """A pure function of each text.

    The exact one is BLAKE2b of the text with every run of white space as one space and none at the ends; case counts.
    A signature looks at words only (`\\w+` in lower case), at most the first 2**20 characters of a text, and is all
    zeros where there is no word.
    """
    exact = np.frombuffer(b"".join(map(_digest, texts)), dtype="<u8")
    if config.near is None:
        return Fingerprints(exact, None)
    layout = _layout(config.near)
    signatures = np.zeros((len(texts), layout.width), dtype=np.uint8)
    for block in _blocks(texts):
        shingles, document = _shingles(texts[block], config.ngram)
        cells = _sketch(shingles, document, block.stop - block.start, layout.cells)
        signatures[block] = layout.pack(cells)
        signatures[block][np.bincount(document, minlength=len(cells)) == 0] = 0
    return Fingerprints(exact, signatures)


_PIECE = 2**20  # characters that are taken apart at once, so that a text of any length costs little memory


def _digest(text: str) -> bytes:
    digest = hashlib.blake2b(digest_size=8)
    begun = gap = False
    for start in range(0, len(text), _PIECE):
        piece = text[start : start + _PIECE]
        words = piece.split()
        if words and begun and (gap or piece[0].isspace()):
            digest.update(b" ")
        digest.update(" ".join(words).encode("utf-8", "surrogatepass"))
        begun |= bool(words)
        gap = piece[-1].isspace()
    return digest.digest()


# --- signatures ----------------------------------------------------------------------------------------------

CHECKS = 512
"""Cells of which one bit is kept, to estimate the Jaccard index."""
SURE = 2.33
"""Standard deviations that an estimate may lie below the threshold: of pairs right at it, 1% are then missed."""


@dataclass(frozen=True)
class _Layout:
    """How a sketch becomes a signature: for each band a key of 32 bits, then the checks, a bit each."""

    bands: int
    rows: int
    most: int
    """Checks in which two documents may differ and still count as the same."""

    @property
    def cells(self) -> int:
        return self.bands * self.rows + CHECKS

    @property
    def width(self) -> int:
        """Bytes of a signature."""
        return 4 * self.bands + CHECKS // 8

    def pack(self, cells: Hashes) -> NDArray[np.uint8]:
        """[N, cells] -> [N, width]. The low bits of a cell are as good as random, those that were compared are high."""
        bits = 32 // self.rows
        codes = (cells[:, :-CHECKS] & np.uint64(2**bits - 1)).reshape(-1, self.bands, self.rows)
        keys = (codes << np.arange(0, bits * self.rows, bits, dtype=np.uint64)).sum(axis=2, dtype=np.uint64)
        checks = np.packbits((cells[:, -CHECKS:] & np.uint64(1)).astype(np.bool_), axis=1)
        return np.concatenate([keys.astype("<u4").view(np.uint8), checks], axis=1)

    def unpack(self, signatures: NDArray[np.uint8]) -> tuple[NDArray[np.uint32], Hashes]:
        """[N, width] -> keys [N, bands], checks [N, CHECKS / 64]."""
        keys, checks = np.split(signatures, [4 * self.bands], axis=1)
        return np.ascontiguousarray(keys).view("<u4"), np.ascontiguousarray(checks).view("<u8")


@lru_cache
def _layout(threshold: float) -> _Layout:
    """As many rows as at most 11 bands allow that find 99% of the pairs right at the threshold.

    A pair of Jaccard index J shares a band of r rows with probability J^r, so one of b with 1 - (1 - J^r)^b, and its
    checks agree with probability (1 + J) / 2 each. More rows mean fewer pairs compared in vain, more bands memory.
    """
    agree = (1 + threshold) / 2
    most = CHECKS * (1 - agree) + SURE * math.sqrt(CHECKS * agree * (1 - agree))
    for rows in range(8, 0, -1):
        bands = math.ceil(math.log(0.01) / math.log1p(-(threshold**rows)))
        if bands <= 11:
            return _Layout(bands, rows, int(most))
    raise AssertionError("the config allows no such threshold")


_BLOCK = 2**18  # characters of a block of documents: its arrays stay in the processor's cache
_BLOCK_DOCUMENTS = 256
_LONGEST = 2**20


def _blocks(texts: Sequence[str]) -> Iterator[slice]:
    start = size = 0
    for number, text in enumerate(texts):
        size += min(len(text), _LONGEST)
        if number > start and (size > _BLOCK or number - start == _BLOCK_DOCUMENTS):
            yield slice(start, number)
            start, size = number, min(len(text), _LONGEST)
    if start < len(texts):
        yield slice(start, len(texts))


def _shingles(texts: Sequence[str], ngram: int) -> tuple[Hashes, Numbers]:
    """(hash, number of its text) of every run of `ngram` words; of all words of a text that has fewer."""
    texts = [text[:_LONGEST] for text in texts]
    characters = np.frombuffer("\n".join(texts).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    values = _character_values().take(characters)
    edges = np.flatnonzero(np.diff(values != 0, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    words = hash_spans(values, starts, ends)
    document = np.searchsorted(np.cumsum([len(text) + 1 for text in texts]), starts, side="right")
    position = np.arange(len(words))
    after = np.searchsorted(document, document, side="right")  # the first word of the next text
    first = np.diff(document, prepend=-1) != 0
    chosen = np.flatnonzero((position + ngram <= after) | first)
    return hash_spans(words, chosen, np.minimum(chosen + ngram, after[chosen])), document[chosen]


@lru_cache(maxsize=1)
def _character_values() -> Hashes:
    """For every code point a random number, the same for upper and lower case; 0 where it is of no word."""
    values = np.zeros(0x110000, dtype=np.uint64)
    characters = np.arange(len(values), dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    letters = re.findall(r"\w", characters)
    lower = np.array([ord(letter.lower()[0]) for letter in letters], dtype=np.uint64)
    values[[ord(letter) for letter in letters]] = mix(lower)
    return values


_ROUNDS = 16
_EMPTY = np.uint64(2**64 - 1)


def _sketch(shingles: Hashes, document: Numbers, documents: int, cells: int) -> Hashes:
    """[documents, cells]: in each cell the hash of a shingle of the document, a random one by a rule that all share.

    In every round a shingle falls into one random cell; a cell keeps the least hash of the first round that reached it
    (fast similarity sketching, Dahlgaard, Knudsen and Thorup 2017): a few hashes for each shingle, where MinHash takes
    one for each cell. What is empty after the last round, in short documents, is filled by MinHash. `document` rises.
    """
    least = np.full((documents, cells), _EMPTY)
    for turn in range(_ROUNDS):
        hashes = mix(shingles + _salt(turn))
        place = ((hashes >> np.uint64(32)) * np.uint64(cells) >> np.uint64(32)).view(np.int64) + document * cells
        hashes >>= np.uint64(4)
        hashes |= np.uint64(turn << 60)  # later rounds compare as greater
        np.minimum.at(least.reshape(-1), place, hashes)
        unfinished = (least == _EMPTY).any(axis=1)[document]
        shingles, document = shingles[unfinished], document[unfinished]
        if not len(shingles):
            return least
    for number in np.unique(document).tolist():
        own = np.unique(shingles[slice(*np.searchsorted(document, [number, number + 1]))])
        holes = np.flatnonzero(least[number] == _EMPTY)
        least[number, holes] = mix(own + _salt(_ROUNDS + holes)[:, None]).min(axis=1)
    return least


def _salt(turn: int | Numbers) -> Hashes:
    return np.asarray(turn).astype(np.uint64) * GOLDEN


# --- memory --------------------------------------------------------------------------------------------------


class Seen:
    """What was read so far, so that the first of its kind is told from the others.

    Takes 11 to 23 bytes for each distinct text. For each document kept 64, 10 to 16 for each band (11 bands at most, 9
    at a threshold of 0.8), and up to an eighth of its signature to spare. `counts` says how many were dropped, and by
    which of the two.
    """

    def __init__(self, config: DedupConfig) -> None:
        self._exact = _Exact() if config.exact else None
        self._near = None if config.near is None else _Near(_layout(config.near))
        self.counts = {"exact": 0, "near": 0}

    def first(self, prints: Fingerprints) -> Flags:
        """[N]: whether each document is the first of its kind; what comes later is held against it.

        Exactly: no text before was the same, kept or not. Nearly: no document kept before is as alike as the
        threshold, by estimate. The answers do not depend on how the documents are cut into calls.
        """
        first = np.ones(len(prints.exact), dtype=np.bool_)
        if self._exact is not None:
            first = self._exact.add(prints.exact)
            self.counts["exact"] += int((~first).sum())
        if self._near is not None:
            assert prints.signatures is not None, "these fingerprints were made without 'near'"
            fresh = self._near.add(prints.signatures[first])
            self.counts["near"] += int((~fresh).sum())
            first[first] = fresh
        return first


class _Table:
    """Numbers other than 0, each at a slot that follows from its key (open addressing, triangular probing)."""

    MOST_FULL = 0.7

    def __init__(self, dtype: type[np.unsignedinteger[Any]]) -> None:
        self.slots = np.zeros(1024, dtype=dtype)
        self.used = 0

    def walk(self, keys: NDArray[Any]) -> Iterator[tuple[Numbers, NDArray[Any]]]:
        """Step by step: which keys, by their number, come upon an entry, and the entry; among them are all of a key."""
        numbers, home = np.arange(len(keys)), self._home(keys)
        for step in count():
            entries = self.slots[self._slot(home, step)]
            met = np.flatnonzero(entries)
            if not len(met):
                return
            numbers, home = numbers[met], home[met]
            yield numbers, entries[met]

    def add(self, entries: NDArray[Any], keys_of: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """Enters distinct numbers, which are not there yet; `keys_of` gives the keys of any entries."""
        size = len(self.slots)
        while self.used + len(entries) > self.MOST_FULL * size:
            size *= 2
        if size > len(self.slots):
            old, self.slots = self.slots, np.zeros(size, dtype=self.slots.dtype)
            for start in range(0, len(old), _BATCH):
                part = old[start : start + _BATCH]
                part = part[part != 0]
                self._place(part, keys_of(part))
        self._place(entries, keys_of(entries))
        self.used += len(entries)

    def _place(self, entries: NDArray[Any], keys: NDArray[Any]) -> None:
        home = self._home(keys)
        for step in count():
            if not len(entries):
                return
            slot = self._slot(home, step)
            free = self.slots[slot] == 0
            self.slots[slot[free]] = entries[free]
            left = np.flatnonzero(self.slots[slot] != entries)  # the slot was taken, or another of these took it
            entries, home = entries[left], home[left]

    def _home(self, keys: NDArray[Any]) -> Numbers:
        bits = len(self.slots).bit_length() - 1
        return (keys.astype(np.uint64) * GOLDEN >> np.uint64(64 - bits)).astype(np.int64)

    def _slot(self, home: Numbers, step: int) -> Numbers:
        return (home + step * (step + 1) // 2) & (len(self.slots) - 1)


class _Exact:
    """A set of 64-bit hashes."""

    def __init__(self) -> None:
        self.table = _Table(np.uint64)

    def add(self, hashes: Hashes) -> Flags:
        """Whether each is new."""
        distinct, where = np.unique(np.maximum(hashes, np.uint64(1)), return_index=True)
        new = np.ones(len(distinct), dtype=np.bool_)
        for numbers, entries in self.table.walk(distinct):
            new[numbers] &= entries != distinct[numbers]
        self.table.add(distinct[new], lambda entries: entries)
        first = np.zeros(len(hashes), dtype=np.bool_)
        first[where[new]] = True
        return first


_BATCH = 4096
HOLDERS = 64
"""Of the documents with one key of a band only so many, the first, are looked at: else pages of one template would be
compared each with each."""


class _Near:
    """The signatures of the documents kept, from row 1 on, and for every band a table of rows by their key."""

    def __init__(self, layout: _Layout) -> None:
        self.layout = layout
        self.keys = np.zeros((1024, layout.bands), dtype=np.uint32)
        self.checks = np.zeros((1024, CHECKS // 64), dtype=np.uint64)
        self.used = 1
        self.tables = [_Table(np.uint32) for _ in range(layout.bands)]

    def add(self, signatures: NDArray[np.uint8]) -> Flags:
        """Whether each is like none that was kept before; such a one is kept."""
        first = np.ones(len(signatures), dtype=np.bool_)
        with_words = np.flatnonzero(signatures.any(axis=1))
        for start in range(0, len(with_words), _BATCH):
            numbers = with_words[start : start + _BATCH]
            keys, checks = self.layout.unpack(signatures[numbers])
            like_old, room = self._look_up(keys, checks)
            new = np.flatnonzero(~like_old)
            kept, entered = self._settle(keys[new], checks[new], room[new])
            self._keep(keys[new[kept]], checks[new[kept]], entered[kept])
            first[numbers] = False
            first[numbers[new[kept]]] = True
        return first

    def _look_up(self, keys: NDArray[np.uint32], checks: Hashes) -> tuple[Flags, Numbers]:
        """[N]: whether each is like one kept; [N, bands]: how many more may come under its key, where it is not."""
        like = np.zeros(len(keys), dtype=np.bool_)
        room = np.full(keys.shape, HOLDERS)
        for band, table in enumerate(self.tables):
            still = np.flatnonzero(~like)
            wanted = keys[still, band]
            for numbers, rows in table.walk(wanted):
                same = self.keys[rows, band] == wanted[numbers]
                numbers, rows = still[numbers[same]], rows[same]
                room[numbers, band] -= 1
                like[numbers] |= self._alike(checks[numbers], self.checks[rows])
        return like, room

    def _alike(self, a: Hashes, b: Hashes) -> Flags:
        different = np.bitwise_count(a ^ b).sum(axis=-1, dtype=np.int64)
        like: Flags = different <= self.layout.most
        return like

    def _settle(self, keys: NDArray[np.uint32], checks: Hashes, room: Numbers) -> tuple[Flags, Flags]:
        """Holds the documents of a batch against one another: those that share a key, one by one in their order.

        Returns [N]: whether each is kept; [N, bands]: whether it is entered under its key, for which there is room.
        """
        shared = np.zeros(keys.shape, dtype=np.bool_)
        for band in range(self.layout.bands):
            _, place, times = np.unique(keys[:, band], return_inverse=True, return_counts=True)
            shared[:, band] = times[place] > 1
        kept, entered = np.ones(len(keys), dtype=np.bool_), room > 0
        holders: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for number in np.flatnonzero(shared.any(axis=1)).tolist():
            bands = np.flatnonzero(shared[number])
            places = list(zip(bands.tolist(), keys[number, bands].tolist(), strict=True))
            rivals = list({rival for place in places for rival in holders[place]})
            if rivals and self._alike(checks[number], checks[rivals]).any():
                kept[number] = False
                continue
            for band, key in places:
                if len(holders[band, key]) < room[number, band]:
                    holders[band, key].append(number)
                else:
                    entered[number, band] = False
        return kept, entered

    def _keep(self, keys: NDArray[np.uint32], checks: Hashes, entered: Flags) -> None:
        end = self.used + len(keys)
        if end > len(self.keys):
            size = max(end, len(self.keys) * 9 // 8)
            # In place, by an eighth: the memory of large arrays is moved by the system without a second copy.
            self.keys.resize((size, self.layout.bands), refcheck=False)
            self.checks.resize((size, CHECKS // 64), refcheck=False)
        self.keys[self.used : end], self.checks[self.used : end] = keys, checks
        rows = np.arange(self.used, end, dtype=np.uint32)
        self.used = end
        for band, table in enumerate(self.tables):
            table.add(rows[entered[:, band]], partial(self._key, band))

    def _key(self, band: int, rows: NDArray[np.uint32]) -> NDArray[np.uint32]:
        keys: NDArray[np.uint32] = self.keys[rows, band]
        return keys
