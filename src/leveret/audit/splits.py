"""Validation against training: the same rows, near-duplicates, or the training stream read once more.

    validation documents --> hashes of each and of its runs of 13 tokens --+--> found in training? --> share of each
    training tokens, block by block --> hashes of runs of 13 tokens -------+

One of the published models built its validation stream as it had built training's, and so published training loss. Here
a hash of each text decides its side; this audit looks whether that came true, in the shards that are trained on.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from leveret.audit.finding import Finding, Stamp, count
from leveret.data.hashing import Hashes, Numbers, hash_spans
from leveret.data.shards import TokenSplit

RUN = 13
"""Tokens in a row that are compared."""
NEAR = 0.8
"""Share of a document's runs of tokens that stand in one of training, from which on it is a near-duplicate of that."""
REREAD = 0.5
"""Share of documents that are in training, from which on validation is training read once more."""
MOST = 5000
"""Documents of validation that are looked for, evenly spread."""
BLOCK = 2**20
"""Tokens of training that are looked at at a time."""
_FILTER_BITS = 24


@dataclass(frozen=True, slots=True)
class Overlap:
    """documents: that were looked for. same: those that stand in training token by token. near: besides, those of which
    one document of training has nearly all. spread: besides, those that have nearly all of their runs from several, as
    texts made of the same sentences do.
    """

    documents: int
    same: int
    near: int
    spread: int

    @property
    def share(self) -> float:
        return self.same / max(self.documents, 1)


def audit_validation(stages: dict[str, tuple[TokenSplit, TokenSplit | None]]) -> Stamp:
    """(training, validation) of each stage's shards."""
    findings, looked_at, facts = [], [], {}
    for stage, (train, held_out) in stages.items():
        if held_out is None:
            looked_at.append(f"{stage} has no validation split")
            continue
        found = overlap(train, held_out)
        looked_at.append(f"{stage}: {count(found.documents, 'document')} in {count(train.tokens, 'training token')}")
        facts[stage] = asdict(found)
        where, mend = f"the shards of {stage}", f"prepare the data anew with {_fraction(stage)}"
        if found.share >= REREAD:
            what = f"validation reads the training stream: {found.same:,} of {found.documents:,} documents are in it"
            findings.append(Finding("error", what, where, mend))
        elif found.same:
            what = f"{count(found.same, 'document')} of {found.documents:,} to validate on stand in training too"
            findings.append(Finding("warning", what, where, mend))
        if found.near:
            what = (
                f"{count(found.near, 'document')} of {found.documents:,} to validate on are near-duplicates: "
                f"{NEAR:.0%} of their runs of {RUN} tokens stand in one document of training"
            )
            findings.append(Finding("warning", what, where, "take duplicates out with data.dedup"))
    if not facts:
        return Stamp("validation overlap", not_run="; ".join(looked_at) or "nothing is trained")
    return Stamp("validation overlap", findings, "; ".join(looked_at), facts=facts)


def _fraction(stage: str) -> str:
    return f"{'data' if stage == 'pretrain' else stage}.validation_fraction"


def overlap(train: TokenSplit, held_out: TokenSplit) -> Overlap:
    """How much of some held-out documents stands in training. Reads training once."""
    bounds = _bounds(held_out)
    chosen = bounds[np.unique(np.linspace(0, len(bounds) - 1, min(MOST, len(bounds))).astype(np.int64))]
    documents = [held_out.read(held_out.shards, start, end - start) for start, end in chosen.tolist()]
    runs = [_runs(ids) for ids in documents]
    table = np.unique(np.concatenate([*runs, np.empty(0, np.uint64)]))
    there = _look_for(table, train)
    same = _same(documents, train)
    share = np.array([there[np.searchsorted(table, each)].mean() if len(each) else 0.0 for each in runs])
    covered = np.flatnonzero((share >= NEAR) & ~same)
    near = _of_one([np.unique(runs[number]) for number in covered], train) if len(covered) else 0
    return Overlap(len(documents), int(same.sum()), near, len(covered) - near)


def _bounds(split: TokenSplit) -> Numbers:
    """[D, 2]: where each document begins and ends."""
    starts = np.asarray(split.starts, dtype=np.int64)
    bounds: Numbers = np.stack([starts, np.append(starts[1:], split.tokens)], axis=1)
    return bounds[bounds[:, 1] > bounds[:, 0]]


def _runs(ids: NDArray[np.generic]) -> Hashes:
    """A hash of every run of tokens."""
    starts = np.arange(max(len(ids) - RUN + 1, 0), dtype=np.int64)
    return hash_spans(_wide(ids), starts, starts + RUN) if len(starts) else np.empty(0, np.uint64)


def _wide(ids: NDArray[np.generic]) -> Hashes:
    return ids.astype(np.uint64) + np.uint64(1)


def _blocks(split: TokenSplit) -> Iterator[NDArray[np.generic]]:
    """The tokens, blocks that share a run but for one token with the next."""
    for start in range(0, split.tokens, BLOCK):
        yield split.read(split.shards, start, min(BLOCK + RUN - 1, split.tokens - start))


def _look_for(table: Hashes, train: TokenSplit) -> NDArray[np.bool_]:
    """Which hashes of a sorted table stand in training."""
    there = np.zeros(len(table), dtype=np.bool_)
    shift = np.uint64(64 - _FILTER_BITS)
    known = np.zeros(2**_FILTER_BITS, dtype=np.bool_)  # lets few pass that are not in the table
    known[table >> shift] = True
    for ids in _blocks(train):
        hashes = _runs(ids)
        hashes = hashes[known[hashes >> shift]]
        places = np.searchsorted(table, hashes)
        found = places < len(table)
        found[found] = table[places[found]] == hashes[found]
        there[places[found]] = True
    return there


def _of_one(held_out: list[Hashes], train: TokenSplit) -> int:
    """How many of these sets of runs one document of training has nearly all of. Reads training once."""
    owners: defaultdict[int, list[int]] = defaultdict(list)
    for number, hashes in enumerate(held_out):
        for each in hashes.tolist():
            owners[each].append(number)
    table = np.sort(np.fromiter(owners, np.uint64, len(owners)))
    starts, near, place = np.asarray(train.starts, dtype=np.int64), set[int](), 0
    shared: dict[int, set[int]] = {}  # the known runs of each document that is not at its end yet
    for ids in _blocks(train):
        hashes = _runs(ids)
        at = np.minimum(np.searchsorted(table, hashes), len(table) - 1)
        found = np.flatnonzero(table[at] == hashes)
        documents = np.searchsorted(starts, place + found, side="right") - 1
        for document, each in zip(documents.tolist(), hashes[found].tolist(), strict=True):
            shared.setdefault(document, set()).add(each)
        place += BLOCK
        last = int(np.searchsorted(starts, place, side="right")) - 1
        for document in [each for each in shared if each < last]:
            near |= _mostly_in(shared.pop(document), owners, held_out)
    for left in shared.values():
        near |= _mostly_in(left, owners, held_out)
    return len(near)


def _mostly_in(runs: set[int], owners: Mapping[int, list[int]], held_out: list[Hashes]) -> set[int]:
    """The sets, by number, of which these runs are nearly all."""
    counts = Counter(number for run in runs for number in owners[run])
    return {number for number, count in counts.items() if count >= NEAR * len(held_out[number])}


def _same(documents: list[NDArray[np.generic]], train: TokenSplit) -> NDArray[np.bool_]:
    """Which documents stand in training as a whole; only those of training that are as long as one of them are read."""
    wanted: dict[bytes, list[int]] = {}
    for number, ids in enumerate(documents):
        wanted.setdefault(ids.tobytes(), []).append(number)
    found = np.zeros(len(documents), dtype=np.bool_)
    bounds = _bounds(train)
    lengths = np.unique([len(ids) for ids in documents])
    for start, end in bounds[np.isin(bounds[:, 1] - bounds[:, 0], lengths)].tolist():
        found[wanted.get(train.read(train.shards, start, end - start).tobytes(), [])] = True
    return found
