"""Documents to token shards, on all cores, and never from the beginning again.

    pieces -> chunks --PartMaker, in many processes--> parts --merge, in order, dedup--> shards, windows, manifest

What is written is the same whatever the number of workers and whatever was killed in between: a part that is whole is
not made again, and the merge is a pure function of the parts.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from leveret.data.dedup import Seen
from leveret.data.parts import DONE, Job, Part, PartMaker, Unreadable, frame, names_of_filters
from leveret.data.shards import ShardWriter
from leveret.data.sources import Chunk, Generators, Piece, chunks, describe, pieces, refuse
from leveret.data.windows import windows_of
from leveret.display import Display
from leveret.errors import UserError
from leveret.strangers.documents import read_json

CUT = 2
"""Goes up when chunks are cut otherwise, or a part holds something else."""
FEW = 4
"""Cores that threads keep busy."""
ALONE = 32 * 2**20
"""Bytes of text for which starting worker processes takes longer than they save."""
TYPICAL_GROWTH = 2.5
"""Text to bytes on disk of the first file, whose true ratio nobody knows yet; English in compressed parquet."""

log = logging.getLogger("leveret")


@dataclass
class Place:
    """Where the parts of one piece are, and what is known of them."""

    source: int
    piece: Piece
    folder: Path

    def part(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"

    @property
    def done(self) -> Path:
        return self.folder / DONE


@dataclass
class Reading:
    """A piece of which parts are still being made."""

    place: Place
    parts: int = 0
    waiting: int = 0
    ended: bool = False
    landed: int = 0
    retries: int = 0
    unreadable: Unreadable = field(default_factory=Unreadable)

    def todo(self, strict: bool) -> Iterator[tuple[Chunk, Path]]:
        """The chunks of the piece, each with its part; what cannot be read and what the network did are noted."""
        for chunk in chunks(self.place.piece, refuse if strict else self.unreadable, self.log):
            self.parts += 1
            yield chunk, self.place.part(self.parts - 1)
        self.ended = True
        self.close()

    def log(self, failure: str) -> None:
        self.retries += 1
        log.warning("%s", failure)

    @property
    def done(self) -> bool:
        return self.ended and not self.waiting

    def close(self) -> None:
        """Notes that every part of the piece is there, if so."""
        if self.done:
            facts = {"parts": self.parts, "retries": self.retries, "unreadable": asdict(self.unreadable)}
            partial = self.place.done.with_suffix(".partial")
            partial.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(facts), encoding="utf-8")
            partial.replace(self.place.done)


def prepare_documents(
    job: Job,
    generators: Generators,
    sequence_length: int,
    folder: Path,
    facts: dict[str, Any],
    console: Console,
) -> None:
    """Makes the shards of folder, going on where an earlier call was cut off.

    Args:
        sequence_length: tokens of a window.
        facts: what else the manifest says.

    Raises:
        UserError: nothing to train on; a source that cannot be read at all.
        OSError: a full disk; nothing is left half written.
    """
    frame(job.config.document_format, job.tokenizer)  # what is wrong with the recipe shows before any work
    with _alone(folder):
        if (folder / "manifest.json").is_file():
            return
        places = lay_out(job, generators, folder)
        if job.config.executor is None:
            make_parts(job, places, console)
        else:
            from leveret.data.executors import run_executor

            run_executor(job.config.executor, job, places, str(parts_of(folder) / "logs"))
        merge(job, places, sequence_length, folder, facts)
        shutil.rmtree(parts_of(folder))


def parts_of(folder: Path) -> Path:
    """Where the parts are: under another name for each way of cutting, so that no part of an older one is taken."""
    return folder.with_name(f"{folder.name}.parts-{CUT}")


def lay_out(job: Job, generators: Generators, folder: Path) -> list[Place]:
    """Every piece of every source, in order, with the folder of its parts."""
    places: list[Place] = []
    for number, source in enumerate(job.config.sources):
        for piece in pieces(source, job.base_dir, generators, log.warning, job.config.retry):
            full = f"{piece.name}@{piece.revision}" if piece.revision else piece.name
            name = re.sub(r"[^\w.-]+", "_", full, flags=re.ASCII)[-120:]  # of names, file systems count bytes
            places.append(Place(number, piece, parts_of(folder) / f"{number:03d}-{len(places):06d}-{name}"))
    return places


# --- parts ---------------------------------------------------------------------------------------------------


def make_parts(job: Job, places: list[Place], console: Console) -> None:
    """Makes every part of these pieces that is not there yet."""
    todo = [place for place in places if not place.done.is_file()]
    if not todo:
        return
    sizes = [place.piece.size for place in todo if place.piece.size is not None]
    total = sum(sizes) if len(sizes) == len(todo) else None
    with _Workers(job) as workers, Display(console, "prepare", total) as display:
        flight = _Flight(workers, display)
        for place in todo:
            reading = Reading(place)
            for chunk, path in reading.todo(job.config.strict):
                flight.send(reading, chunk, path)
        flight.land()


def make_piece(maker: PartMaker, place: Place) -> None:
    """Makes the parts of one piece one after the other, in this process."""
    if place.done.is_file():
        return
    reading = Reading(place)
    for chunk, path in reading.todo(maker.config.strict):
        if not path.is_file():
            maker.make(chunk, path)


class _Flight:
    """The chunks that workers are busy with, and the count of what is done."""

    def __init__(self, workers: _Workers, display: Display) -> None:
        self.workers, self.display, self.limit = workers, display, 2 * workers.count
        self.sent: deque[tuple[Reading, Chunk, Path, Future[int] | None]] = deque()
        self.bytes = self.tokens = 0
        self.finished = self.unpacked = 0  # bytes of whole pieces, on disk and as text

    def send(self, reading: Reading, chunk: Chunk, path: Path) -> None:
        """Has the part of a chunk made unless it is there; waits while too many are under way."""
        future = None if path.is_file() else self.workers.make(chunk, path)
        reading.waiting += 1
        self.sent.append((reading, chunk, path, future))
        self.land(self.limit)

    def land(self, most: int = 0) -> None:
        """Takes in the oldest chunks until at most so many are under way."""
        while len(self.sent) > most:
            reading, chunk, path, future = self.sent.popleft()
            try:
                tokens = _tokens(path) if future is None else future.result()
            except BrokenProcessPool:
                raise UserError(
                    "a worker process was killed, perhaps for want of memory; the same command goes on, and "
                    "data.workers sets how many there are"
                ) from None
            self.bytes, self.tokens = self.bytes + chunk.size, self.tokens + tokens
            reading.waiting -= 1
            reading.close()
            rate = self.bytes / 1e6 / max(self.display.seconds, 1e-9)
            facts = f"{rate:.1f} MB/s · {self.tokens:,} tokens"
            self.display.update(self._done(reading, chunk), f"{self.bytes / 1e6:,.0f} MB of text", facts)

    def _done(self, reading: Reading, chunk: Chunk) -> float:
        """Bytes of the sources, as they are on disk, that have been dealt with: within a piece, an estimate."""
        size = reading.place.piece.size or 0
        reading.landed += chunk.size
        if reading.done:
            self.finished += size
            self.unpacked += reading.landed
            return self.finished
        growth = self.unpacked / self.finished if self.finished else TYPICAL_GROWTH
        return self.finished + min(reading.landed / max(growth, 1.0), size)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tokens(path: Path) -> int:
    return len(Part.read(path).tokens)


_maker: PartMaker | None = None
"""Of this worker process."""


def _begin(job: Job) -> None:
    """A worker starts: ctrl-C is the parent's business, and no worker outlives it."""
    global _maker
    os.environ["RAYON_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    _maker = PartMaker(job)


def _die_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _work(chunk: Chunk, path: Path) -> int:
    assert _maker is not None
    return _maker.make(chunk, path)


class _Workers:
    """Makes parts: the first ones in threads, and when there are many, the others in processes started for them.

    Where nothing but the encoder works, which lets go of Python's lock, threads are enough for a few cores.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.count = job, job.config.workers or _cores()
        self.maker = PartMaker(job)
        self.threads = ThreadPoolExecutor(1 if self.maker.judges else self.count)
        self.enough = self.count == 1 or (not self.maker.judges and self.count <= FEW)
        self.pool: ProcessPoolExecutor | None = None
        self.made = 0

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.threads.shutdown(cancel_futures=True)
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def make(self, chunk: Chunk, path: Path) -> Future[int]:
        if self.enough or self.made < ALONE:
            self.made += chunk.size
            return self.threads.submit(self.maker.make, chunk, path)
        if self.pool is None:
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(self.count, context, initializer=_begin, initargs=(self.job,))
        return self.pool.submit(_work, chunk, path)


# --- merge ---------------------------------------------------------------------------------------------------


class _Tally:
    """What became of the documents of one source."""

    def __init__(self) -> None:
        self.read = self.kept = self.retries = 0
        self.revision: str | None = None
        self.dropped: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()
        self.edits: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.unreadable = Unreadable()

    def add(self, part: Part) -> None:
        self.read += len(part.fate)
        self.dropped += part.dropped()
        self.changed.update(part.changed)
        for name, edits in part.edits.items():
            self.edits[name].update(edits)
        self.unreadable.add(part.unreadable)

    def facts(self, filters: list[str]) -> dict[str, Any]:
        return {
            **({"revision": self.revision} if self.revision else {}),
            "read": self.read,
            "kept": self.kept,
            "retries": self.retries,
            "filters": {
                name: {
                    "dropped": self.dropped[name],
                    "changed": self.changed[name],
                    "edits": dict(sorted(self.edits[name].items())),
                }
                for name in filters
            },
            "unreadable": {
                "count": self.unreadable.count,
                "first": [{"where": where, "why": why} for where, why in self.unreadable.first],
            },
        }


def merge(job: Job, places: list[Place], sequence_length: int, folder: Path, facts: dict[str, Any]) -> None:
    """Writes the shards out of all parts, leaving out documents that were there before."""
    config = job.config
    writer = ShardWriter(folder, job.tokenizer.vocab_size, config.shard_tokens)
    seen = None if config.dedup is None else Seen(config.dedup)
    tallies = [_Tally() for _ in config.sources]
    by_label: Counter[str] = Counter()
    try:
        for place in places:
            tally = tallies[place.source]
            tally.revision = place.piece.revision
            done = read_json(place.done)
            for number in range(done["parts"]):
                part = Part.read(place.part(number))
                tally.add(part)
                kept = _write(writer, part, place.source, seen)
                tally.kept += kept
                by_label[place.piece.label] += kept
            tally.retries += done["retries"]
            tally.unreadable.add(Unreadable(**done["unreadable"]))
        for source, tally in zip(config.sources, tallies, strict=True):
            if not tally.read:
                raise UserError(f"no documents in {describe(source)}")
        if "train" not in writer.splits:
            raise UserError("no document to train on is left; check the recipe's data.sources and data.filters")
        windows, drawn = windows_of(writer, config, sequence_length)
        filters = list(names_of_filters(config))
        writer.finish(
            windows,
            facts
            | {
                "documents_by_source": dict(by_label),
                "documents": [tally.facts(filters) for tally in tallies],
                "duplicates": None if seen is None else seen.counts,
                "drawn": drawn,
            },
        )
    except BaseException:
        shutil.rmtree(writer.partial, ignore_errors=True)
        raise


def _write(writer: ShardWriter, part: Part, source: int, seen: Seen | None) -> int:
    """Appends the documents of a part that are the first of their kind; returns how many."""
    if seen is None:
        first = np.ones(len(part.lengths), dtype=np.bool_)
    else:
        assert part.prints is not None
        first = seen.first(part.prints)
    for split, side in (("train", ~part.validation), ("validation", part.validation)):
        chosen = first & side
        if chosen.any():
            tokens = part.tokens if chosen.all() else part.tokens[np.repeat(chosen, part.lengths)]
            writer.extend(split, tokens, part.lengths[chosen], int(part.text_bytes[chosen].sum()), source=source)
    return int(first.sum())


def summary(manifest: dict[str, Any]) -> str:
    """What became of the documents, in a line: how many were read, what took how many out, and what is left."""
    gone: Counter[str] = Counter()
    for source in manifest["documents"]:
        gone.update({name: counts["dropped"] for name, counts in source["filters"].items()})
        gone["unreadable"] += source["unreadable"]["count"]
    gone.update({f"{kind} duplicates": count for kind, count in (manifest["duplicates"] or {}).items()})
    read = sum(source["read"] for source in manifest["documents"])
    out = ", ".join(f"{name} {count:,}" for name, count in gone.items() if count)
    tokens = sum(split["tokens"] for split in manifest["splits"].values())
    return f"{read:,} documents read" + (f"; left out: {out}" if out else "") + f"; {tokens:,} tokens"


# --- one at a time --------------------------------------------------------------------------------------------


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets one process at a time make these shards; another one waits."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as file:
        with suppress(ImportError):  # Windows
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
