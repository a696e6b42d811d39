"""Parts: what a worker makes of one chunk of raw rows, a file each, whole or absent.

    chunk --read_chunk--> documents --filters, decontamination--> kept --tokenise, fingerprint--> part file

A part is a pure function of the chunk, the recipe and the tokenizer: who makes it, when and where does not matter.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from leveret.data.config import DataConfig
from leveret.data.contamination import NAME as DECONTAMINATION
from leveret.data.contamination import Decontaminator
from leveret.data.dedup import Fingerprints, fingerprints
from leveret.data.filters.chain import Chain, Verdict, names
from leveret.data.shards import flush, is_validation, token_dtype
from leveret.data.sources import Chunk, Document, read_chunk, refuse
from leveret.data.windows import IntArray
from leveret.errors import UserError
from leveret.strangers.documents import parse_json
from leveret.strangers.tensors import checked_arrays
from leveret.tokenizer.tokenizer import Tokenizer

DONE = "done.json"
"""Beside the parts of a piece once all of them are there."""


NAMED = 100
"""Most unreadable rows that are named; all are counted."""


@dataclass
class Unreadable:
    """The Drop that takes note: how many rows could not be read, and (where, why) of the first ones."""

    count: int = 0
    first: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, where: str, why: str) -> None:
        self.add(Unreadable(1, [(where, why)]))

    def add(self, other: Unreadable) -> None:
        self.count += other.count
        self.first += other.first[: NAMED - len(self.first)]


@dataclass(frozen=True)
class Job:
    """What every worker must know; it travels to other processes and machines."""

    tokenizer: Tokenizer
    config: DataConfig
    base_dir: Path


class PartMaker:
    """Makes parts. One in every worker process.

    Raises:
        UserError: data.document_format asks for a token that the tokenizer lacks.
    """

    def __init__(self, job: Job) -> None:
        self.tokenizer, self.config = job.tokenizer, job.config
        self.dtype = token_dtype(job.tokenizer.vocab_size)
        self.before, self.after = (
            np.asarray(ids, dtype=self.dtype) for ids in frame(job.config.document_format, job.tokenizer)
        )
        self.chain = Chain(job.config.filters, job.base_dir)
        clean = job.config.decontaminate
        self.decontaminate = None if clean is None else Decontaminator(clean, job.base_dir)
        near = job.config.dedup is not None and job.config.dedup.near is not None
        self.judges = bool(job.config.filters) or clean is not None or near
        """Whether documents are looked at in Python, and not merely encoded."""

    def make(self, chunk: Chunk, path: Path) -> int:
        """Writes the part of a chunk. Returns how many tokens are in it."""
        unreadable = Unreadable()
        verdicts = self._judge(read_chunk(chunk, refuse if self.config.strict else unreadable))
        fates = [verdict.by for verdict in verdicts]
        changed = Counter(name for verdict in verdicts for name in verdict.changed)
        texts = [verdict.text for verdict in verdicts if verdict.text is not None]
        arrays = self._encode(texts)
        if self.config.dedup is not None:
            arrays |= fingerprints(texts, self.config.dedup).arrays()
        known = sorted(set(fates))
        arrays["fate"] = np.asarray([known.index(fate) for fate in fates], dtype=np.uint8)
        told = {"fates": known, "changed": changed, "edits": _edits(verdicts), "unreadable": asdict(unreadable)}
        arrays["told"] = np.frombuffer(json.dumps(told).encode(), dtype=np.uint8)
        _write(path, arrays)
        return len(arrays["tokens"])

    def _judge(self, documents: Iterable[Document]) -> list[Verdict]:
        """What the filters, and then decontamination, make of each document."""
        verdicts = [self.chain(document.text, document.where) for document in documents]
        if self.decontaminate is not None:
            left = [number for number, verdict in enumerate(verdicts) if verdict.text is not None]
            again = self.decontaminate.each([str(verdicts[number].text) for number in left])
            for number, verdict in zip(left, again, strict=True):
                verdicts[number] = replace(verdict, edits={**verdicts[number].edits, **verdict.edits})
        return verdicts

    def _encode(self, texts: list[str]) -> dict[str, NDArray[Any]]:
        pieces: list[NDArray[Any]] = [np.empty(0, dtype=self.dtype)]
        lengths = np.empty(len(texts), dtype=np.int64)
        for number, text in enumerate(texts):
            pieces += (self.before, np.asarray(self.tokenizer.encode(text), dtype=self.dtype), self.after)
            lengths[number] = sum(map(len, pieces[-3:]))
        fraction = self.config.validation_fraction
        return {
            "tokens": np.concatenate(pieces),
            "lengths": lengths,
            "text_bytes": np.asarray([len(text.encode("utf-8", "replace")) for text in texts], dtype=np.int64),
            "validation": np.asarray([is_validation(text, fraction) for text in texts], dtype=np.bool_),
        }


def _edits(verdicts: Iterable[Verdict]) -> dict[str, Counter[str]]:
    """For each filter how often it changed something, by the kind of change."""
    total: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for verdict in verdicts:
        for name, edits in verdict.edits.items():
            total[name].update(edits)
    return total


def _write(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        flush(partial)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class Part:
    """The documents of one chunk that the filters kept, in order.

    tokens: [T]. lengths, text_bytes, validation: [N], of each document. fate: [R], for every document that was read the
    number in `fates` of what dropped it; "" is nothing. changed: by filter, how many documents it edited; edits: how
    often, by the kind of change, such as what was masked.
    """

    tokens: NDArray[Any]
    lengths: IntArray
    text_bytes: IntArray
    validation: NDArray[np.bool_]
    prints: Fingerprints | None
    fate: NDArray[np.uint8]
    fates: list[str]
    changed: dict[str, int]
    edits: dict[str, dict[str, int]]
    unreadable: Unreadable

    @classmethod
    def read(cls, path: Path) -> Part:
        """Raises UserError where the file is damaged, and takes it away so that it is made again."""
        try:
            with np.load(checked_arrays(path), allow_pickle=False) as file:
                arrays = dict(file)
            told = parse_json(arrays.pop("told").tobytes())
            fate = arrays.pop("fate")
            own = {name: arrays.pop(name) for name in ("tokens", "lengths", "text_bytes", "validation")}
            prints = Fingerprints.of(arrays) if arrays else None
            unreadable = Unreadable(**told.pop("unreadable"))
            return cls(**own, prints=prints, fate=fate, unreadable=unreadable, **told)
        except (OSError, ValueError, LookupError, EOFError, TypeError, AttributeError, BadZipFile) as error:
            for lost in (path, path.with_name(DONE)):
                lost.unlink(missing_ok=True)
            raise UserError(f"{path} is damaged ({error}); it is deleted, prepare again to make it anew") from None

    def dropped(self) -> Counter[str]:
        """How many documents each filter dropped."""
        counts = np.bincount(self.fate, minlength=len(self.fates))
        return Counter({name: int(count) for name, count in zip(self.fates, counts, strict=True) if name and count})


def frame(document_format: str, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The token ids before and after each document."""

    def ids(part: str) -> list[int]:
        out: list[int] = []
        for piece in part.replace("{bos}", "\0bos\0").replace("{eos}", "\0eos\0").split("\0"):
            if piece in ("bos", "eos"):
                number = tokenizer.bos_id if piece == "bos" else tokenizer.eos_id
                if number is None:
                    raise UserError(f"data.document_format has {{{piece}}}, but the tokenizer has no {piece}_token")
                out.append(number)
            elif piece:
                out += tokenizer.encode(piece)
        return out

    before, _, after = document_format.partition("{text}")
    return ids(before), ids(after)


def names_of_filters(config: DataConfig) -> Iterable[str]:
    """The filters of a recipe, in order, as manifests name them."""
    yield from names(config.filters)
    if config.decontaminate is not None:
        yield DECONTAMINATION
