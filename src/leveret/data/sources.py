"""Documents out of files, Hugging Face datasets and generators.

    config --pieces--> Piece --chunks--> Chunk --read_chunk--> Document

A piece is one sequential read, which only cuts its rows into chunks; a chunk is parsed on its own, in whatever process.
The order, the pieces and the chunks are the same on every machine. What cannot be read is named to a `Drop`, which
may raise (`refuse`) or take note; empty texts are passed over in silence.
"""

import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from leveret.data.config import OriginConfig, SourceConfig
from leveret.data.hub import RETRY, HubPiece, Log, RetryConfig, dataset_words, hub_pieces, hub_rows
from leveret.data.readers import file_blocks
from leveret.data.rows import MAX_BLOCK_BYTES, Block, Drop, Place, Row, encoded, no_column, text_blocks, texts
from leveret.data.rows import refuse as refuse
from leveret.data.streams import KNOWN, file_format, in_words, shown
from leveret.errors import UserError

CHUNK_BYTES = 4 << 20
"""Raw rows of a chunk: enough for a worker to be busy with, and many chunks for each of many workers."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Document:
    """One text, the label of the source it came from (a file, a dataset or a generator), and its place there."""

    text: str
    source: str
    where: str = ""
    """`path:line`, `archive:member:line`, `name[split] shard:row` or `generator:number`."""


Generators = Mapping[str, Callable[..., Iterable[Document]]]
Read = Callable[[Drop, Log], Iterator[Block]]


@dataclass(frozen=True, slots=True)
class Piece:
    """An independent, sequential read: a file, a run of small .txt files, a dataset's shard, a generator."""

    name: str
    """Unique and stable within the source."""
    label: str
    """What manifests call it."""
    size: int | None
    """Bytes on disk, where known."""
    read: Read
    """Its rows, from the first on. Can be sent to another process if the generator can."""
    revision: str | None = None
    """Commit of a dataset on the hub."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive raw rows of a piece, CHUNK_BYTES or one block of more."""

    blocks: tuple[Block, ...]

    @property
    def size(self) -> int:
        """Bytes of the raw rows."""
        return sum(block.size for block in self.blocks)


def pieces(
    config: SourceConfig,
    base_dir: Path,
    generators: Generators,
    log: Log = _log.warning,
    retry: RetryConfig = RETRY,
) -> list[Piece]:
    """The pieces of a source, in order. With max_documents there is one, and it ends where it should.

    `base_dir` is what relative paths start from; `generators` are the known ones by name. Raises UserError for
    what is not there.
    """
    match config.kind:
        case "files":
            files = find_files(config.paths, base_dir)
            found = [_file_piece(run, base_dir, config.column) for run in _runs(files)]
        case "hub":
            found = [_shard_piece(shard, config) for shard in hub_pieces(config, log, retry)]
        case "generated":
            name = str(config.generator)
            found = [Piece(name, name, None, partial(_read_generator, generator(config, generators), name))]
    if config.max_documents is not None:
        sizes = [piece.size for piece in found]
        size = None if None in sizes else sum(filter(None, sizes))
        read = partial(_read_some, [piece.read for piece in found], config.max_documents)
        found = [replace(found[0], label=_and_more([piece.label for piece in found]), size=size, read=read)]
    return [replace(piece, name=f"{number}-{piece.name}") for number, piece in enumerate(found)]


def chunks(piece: Piece, drop: Drop, log: Log = _log.warning) -> Iterator[Chunk]:
    """The rows of a piece, in order, without a look at what is in them. Raises UserError for what is not there."""
    held: list[Block] = []
    size = 0
    for block in piece.read(drop, log):
        if held and size + block.memory > CHUNK_BYTES:
            yield Chunk(tuple(held))
            held, size = [], 0
        held.append(block)
        size += block.memory
    if held:
        yield Chunk(tuple(held))


def read_chunk(chunk: Chunk, drop: Drop) -> Iterator[Document]:
    """The documents of a chunk, in order."""
    return chain.from_iterable(_documents(block, drop) for block in chunk.blocks)


def documents(
    config: SourceConfig,
    base_dir: Path,
    generators: Generators,
    drop: Drop = refuse,
    log: Log = _log.warning,
    retry: RetryConfig = RETRY,
) -> Iterator[Document]:
    """The documents of one source, in order, read in this process.

    Raises UserError for whatever cannot be read, unless `drop` takes it, and at the end if there was no document.
    """
    blocks = chain.from_iterable(piece.read(drop, log) for piece in pieces(config, base_dir, generators, log, retry))
    return not_empty(chain.from_iterable(_documents(block, drop) for block in blocks), "documents", config)


def _documents(block: Block, drop: Drop) -> Iterator[Document]:
    return (Document(text, block.place.source, where) for where, text in texts(block, drop))


def not_empty(items: Iterator[T], what: str, config: OriginConfig) -> Iterator[T]:
    """The items as they are; UserError if there are none."""
    first = next(items, None)
    if first is None:
        raise UserError(f"no {what} in {describe(config)}")
    yield first
    yield from items


def describe(config: OriginConfig) -> str:
    """A few words that tell the user which source is meant."""
    return {
        "files": ", ".join(config.paths),
        "hub": dataset_words(config),
        "generated": f"generator '{config.generator}'",
    }[config.kind]


# --- pieces --------------------------------------------------------------------------------------------------


def _runs(files: Iterable[Path]) -> Iterator[list[Path]]:
    """Each file alone, but .txt files, of which there may be millions, together up to MAX_BLOCK_BYTES on disk."""
    run: list[Path] = []
    size = 0
    for file in files:
        alone, size = file_format(file) != ".txt", size + file.stat().st_size
        if run and (alone or size > MAX_BLOCK_BYTES):
            yield run
            run, size = [], file.stat().st_size
        run.append(file)
        if alone:
            yield run
            run, size = [], 0
    if run:
        yield run


def _file_piece(run: Sequence[Path], base_dir: Path, column: str) -> Piece:
    labels = [label(file, base_dir) for file in run]
    files = [(file, Place(named(file, base_dir), name, column)) for file, name in zip(run, labels, strict=True)]
    return Piece(labels[0], _and_more(labels), sum(file.stat().st_size for file in run), partial(_read_files, files))


def _and_more(labels: Sequence[str]) -> str:
    others = len(set(labels)) - 1
    return labels[0] + f" and {others} more" * bool(others)


def _read_files(files: Iterable[tuple[Path, Place]], drop: Drop, log: Log) -> Iterator[Block]:
    return chain.from_iterable(file_blocks(path, place, drop) for path, place in files)


def _shard_piece(shard: HubPiece, config: SourceConfig) -> Piece:
    place = Place(_shard(config, shard), str(config.name), config.column)
    return Piece(shard.name, str(config.name), None, partial(_read_shard, shard, place), shard.revision)


def _shard(config: OriginConfig, shard: HubPiece) -> str:
    return f"{config.name}[{config.split}] {shard.name}"


def _read_shard(shard: HubPiece, place: Place, drop: Drop, log: Log) -> Iterator[Block]:
    def found() -> Iterator[bytes]:
        for number, row in hub_rows(shard, log):
            if place.column not in row:
                raise UserError(f"{place.file}: {no_column(place.column, row)}")
            text = row[place.column]
            if not isinstance(text, str | None):
                drop(f"{place.file}:{number}", f"column '{place.column}' holds {type(text).__name__}, not text")
                text = None
            yield encoded(text or "")

    return text_blocks(found(), place)


def _read_generator(make: Callable[[], Iterable[Document]], name: str, drop: Drop, log: Log) -> Iterator[Block]:
    number = 1
    for source, run in groupby(make(), attrgetter("source")):
        for block in text_blocks((encoded(document.text) for document in run), Place(name, source), number):
            yield block
            number = block.first + len(block.rows)


def _read_some(reads: Sequence[Read], most: int, drop: Drop, log: Log) -> Iterator[Block]:
    """The blocks that hold the first documents, told where to stop. To know it they are parsed, one time too many."""
    for block in chain.from_iterable(read(drop, log) for read in reads):
        count = sum(1 for _ in texts(block, lambda where, why: None))
        yield replace(block, most=most)
        most -= count
        if most <= 0:
            return


def dataset_rows(config: OriginConfig, log: Log = _log.warning) -> Iterator[tuple[str, Row]]:
    """The rows of a Hugging Face dataset, each with words that say where it stands; failures as in `hub_rows`."""
    for shard in hub_pieces(config, log):
        for number, row in hub_rows(shard, log):
            yield f"{_shard(config, shard)}:{number}", row


def generator(config: OriginConfig, generators: Mapping[str, Callable[..., Iterable[T]]]) -> Callable[[], Iterable[T]]:
    """The generator named in `config`, with its options. Raises UserError for unknown names."""
    found = generators.get(config.generator or "")
    if found is None:
        raise UserError(f"no generator '{config.generator}'; there are: {', '.join(sorted(generators))}")
    try:
        inspect.signature(found).bind(**config.options)
    except TypeError as error:
        raise UserError(f"generator '{config.generator}': {error}; see its options") from error
    return partial(found, **config.options)


# --- files ---------------------------------------------------------------------------------------------------


def label(path: Path, base_dir: Path) -> str:
    """A file's name for manifests: relative to `base_dir` where it lies inside, so that folders can move."""
    return shown(path.relative_to(base_dir).as_posix() if path.is_relative_to(base_dir) else path.name)


def named(path: Path, base_dir: Path) -> str:
    """How a file is named to the user: like its label, but in full where it lies outside."""
    return label(path, base_dir) if path.is_relative_to(base_dir) else shown(str(path))


def find_files(paths: Sequence[str], base_dir: Path) -> list[Path]:
    """The readable files that files, folders (searched to the bottom) and globs stand for, each once.

    In the order given, sorted within each entry. Passed over are hidden files, in folders and globs also files of
    other types, and in folders links that lead out of them. `a.txt,b.txt` is two entries, unless a file is called
    so. Raises UserError for an entry that yields nothing, and for a file of unknown type.
    """
    found: dict[Path, None] = {}
    for entry in chain.from_iterable([e] if (base_dir / e).exists() else e.split(",") for e in paths):
        if not entry.strip():
            raise UserError("an empty path among 'paths'; name a file, a folder or a glob")
        try:
            found.update(dict.fromkeys(_entry_files(entry, base_dir)))
        except UserError:
            raise
        except (ValueError, RuntimeError) as error:  # a glob like `**.txt`, a home of nobody
            raise UserError(f"{entry}: {in_words(error)}") from error
    return list(found)


def _entry_files(entry: str, base_dir: Path) -> list[Path]:
    pattern = Path(entry.strip()).expanduser()
    path = base_dir / pattern
    if path.is_file():
        if file_format(path) is None:
            raise UserError(f"{path}: unknown type of file; known are {KNOWN}")
        return [path]
    if not path.is_dir() and not any(mark in entry for mark in "*?["):
        raise UserError(f"{path}: no such file or folder")
    matches = _files_below(path) if path.is_dir() else _glob(pattern, base_dir)
    if not matches:
        raise UserError(f"{path}: no file here that can be read (links out of it aside); known types are {KNOWN}")
    return matches


def _glob(pattern: Path, base_dir: Path) -> list[Path]:
    """Sorted readable files that match, those in matched folders included."""
    root = Path(pattern.anchor) if pattern.is_absolute() else base_dir
    matches = root.glob(str(pattern.relative_to(pattern.anchor)))
    files = chain.from_iterable(_files_below(match) if match.is_dir() else [match] for match in matches)
    return sorted({file for file in files if file.is_file() and file_format(file)})


def _files_below(folder: Path) -> list[Path]:
    """Sorted readable files, without links that lead out of the folder."""
    inside = folder.resolve()
    return sorted(
        path
        for path in folder.rglob("*")
        if file_format(path)
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and (not path.is_symlink() or path.resolve().is_relative_to(inside))
    )


# --- identity ------------------------------------------------------------------------------------------------


def source_facts(config: OriginConfig, base_dir: Path) -> dict[str, Any]:
    """What a manifest says of a source, as JSON: its config, and its files by name, size in bytes and SHA-256.

    The files found stand in the place of `paths`, so that the same texts in another folder are the same source.
    """
    facts = config.model_dump(mode="json", exclude={"paths"}, exclude_none=True)
    if config.kind == "files":
        facts["files"] = [_file_facts(path, base_dir) for path in find_files(config.paths, base_dir)]
    return facts


def _file_facts(path: Path, base_dir: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": label(path, base_dir), "bytes": path.stat().st_size, "sha256": digest}


def fingerprint(config: OriginConfig, base_dir: Path) -> str:
    """SHA-256 in hex of a source's facts: changes when its config or the content of one of its files does.

    For the hub it knows name, subset, split and revision only, and for a generator its name and options.
    """
    facts = json.dumps(source_facts(config, base_dir), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(facts.encode()).hexdigest()


def write_text(path: Path, documents: Iterable[Document]) -> int:
    """Writes documents into one text file, a blank line between two; returns their number."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for document in documents:
            file.write(document.text.strip() + "\n\n")
            count += 1
    return count
