"""Documents, one at a time, out of files, Hugging Face datasets and generators.

    paths -> find_files -> read_rows (.jsonl .json .parquet .txt, plain or compressed) -\\
    hub name ------------> hub_rows ----------------------------------------------------- documents
    generator name ------> generated ---------------------------------------------------/

Nothing is held but the row at hand, and the order is the same on every machine. In this module whatever
cannot be read is a `UserError` that names file and line (or row); nothing is dropped but empty texts.
"""

import gzip
import hashlib
import inspect
import io
import json
import lzma
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, TypeVar

from leveret.data.config import OriginConfig, SourceConfig
from leveret.errors import UserError

Row = dict[str, Any]
T = TypeVar("T")

COMPRESSIONS = (".gz", ".zst", ".xz")
FORMATS = (".txt", ".jsonl", ".json", ".parquet")


@dataclass(frozen=True, slots=True)
class Document:
    """One text and the label of the source it came from (a file, a dataset or a generator)."""

    text: str
    source: str


def documents(
    config: SourceConfig,
    base_dir: Path,
    generators: Mapping[str, Callable[..., Iterable[Document]]],
) -> Iterator[Document]:
    """The documents of one source, in order.

    `base_dir` is what relative paths start from; `generators` are the known ones by name. Empty texts are left
    out. Raises UserError for whatever cannot be read, and at the end if there was no document at all.
    """
    found: Iterator[Document]
    match config.kind:
        case "files":
            found = chain.from_iterable(
                _file_documents(path, config.column, label(path, base_dir))
                for path in find_files(config.paths, base_dir)
            )
        case "hub":
            found = _row_documents(hub_rows(config), config.column, str(config.name))
        case "generated":
            found = iter(generated(config, generators))
    return not_empty(islice(found, config.max_documents), "documents", config)


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
        "hub": f"dataset '{config.name}'" + (f" ({config.subset})" if config.subset else ""),
        "generated": f"generator '{config.generator}'",
    }[config.kind]


# --- files ---------------------------------------------------------------------------------------------------


def file_format(path: Path) -> str | None:
    """The suffix that says how to read a file, compression aside: `a.jsonl.gz` -> `.jsonl`; None if unknown."""
    bare = path.with_suffix("") if path.suffix in COMPRESSIONS else path
    readable = bare.suffix in FORMATS and (bare is path or bare.suffix != ".parquet")
    return bare.suffix if readable else None


def label(path: Path, base_dir: Path) -> str:
    """A file's name for manifests: relative to `base_dir` where it lies inside, so that folders can move."""
    return path.relative_to(base_dir).as_posix() if path.is_relative_to(base_dir) else path.name


def find_files(paths: Sequence[str], base_dir: Path) -> list[Path]:
    """The readable files that files, folders (searched to the bottom) and globs stand for, each once.

    In the order given, sorted within each entry. Hidden files, and in folders and globs also files of other
    types, are passed over. `a.txt,b.txt` is two entries, unless a file is called so. Raises UserError for an
    entry that yields nothing, and for a file of unknown type.
    """
    found: dict[Path, None] = {}
    for entry in chain.from_iterable([e] if (base_dir / e).exists() else e.split(",") for e in paths):
        if not entry.strip():
            raise UserError("an empty path among 'paths'; name a file, a folder or a glob")
        pattern = Path(entry.strip()).expanduser()
        path = base_dir / pattern
        if path.is_file():
            if file_format(path) is None:
                raise UserError(f"{path}: unknown type of file; known are {_known()}")
            found[path] = None
            continue
        if not path.is_dir() and not any(mark in entry for mark in "*?["):
            raise UserError(f"{path}: no such file or folder")
        matches = _files_below(path) if path.is_dir() else _glob(pattern, base_dir)
        if not matches:
            raise UserError(f"{path}: no file here that can be read; known types are {_known()}")
        found.update(dict.fromkeys(matches))
    return list(found)


def _known() -> str:
    return f"{' '.join(FORMATS)}, all but .parquet also with {' '.join(COMPRESSIONS)}"


def _glob(pattern: Path, base_dir: Path) -> list[Path]:
    """Sorted readable files that match, those in matched folders included."""
    root = Path(pattern.anchor) if pattern.is_absolute() else base_dir
    matches = root.glob(str(pattern.relative_to(pattern.anchor)))
    files = chain.from_iterable(_files_below(match) if match.is_dir() else [match] for match in matches)
    return sorted({file for file in files if file.is_file() and file_format(file)})


def _files_below(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and file_format(path)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def open_bytes(path: Path) -> IO[bytes]:
    """The bytes of a file, decompressed as they are read."""
    match path.suffix:
        case ".gz":
            return gzip.open(path, "rb")  # type: ignore[return-value]
        case ".xz":
            return lzma.open(path, "rb")
        case ".zst":
            import pyarrow as pa  # its reader tells a truncated file from a whole one; zstandard's does not

            return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
        case _:
            return path.open("rb")


def read_text(path: Path) -> str:
    """The whole of a text file (plain or compressed), line ends as they are, a byte order mark taken off."""
    try:
        with open_bytes(path) as file:
            return file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8 ({error.reason}); convert the file") from error
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise _unreadable(path, error) from error


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[int, Row]]:
    """The rows of a file with their numbers, from 1: lines of .jsonl, items of .json, rows of .parquet.

    A .txt file is one row {"text": ...}. Of .parquet only `columns` are read, where given. Raises UserError
    naming file and line for what cannot be read.
    """
    match file_format(path):
        case ".txt":
            yield 1, {"text": read_text(path)}
        case ".jsonl":
            yield from _jsonl_rows(path)
        case ".json":
            yield from _json_rows(path)
        case ".parquet":
            yield from _parquet_rows(path, columns)
        case _:
            raise UserError(f"{path}: unknown type of file; known are {_known()}")


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Row]]:
    number = 0
    try:
        with open_bytes(path) as file:
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    yield number, _json_row(line, f"{path}:{number}")
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise _unreadable(path, error, after=number) from error


def _json_row(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON in UTF-8 ({error})") from error
    return _object(row, where)


def _json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        rows = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise UserError(f"{path}:{line}: not JSON ({error}); one object a line is .jsonl") from error
    if not isinstance(rows, list):
        raise UserError(f"{path}: a .json file must hold a list of objects; one object a line is .jsonl")
    for number, row in enumerate(rows, start=1):
        yield number, _object(row, f"{path}:{number}")


def _object(row: object, where: str) -> Row:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with named fields, found {type(row).__name__}")
    return row


def _parquet_rows(path: Path, columns: Sequence[str] | None) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for column in columns or ():
                if column not in file.schema_arrow.names:
                    raise _missing(column, file.schema_arrow.names, str(path))
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error, after=number) from error


def _unreadable(path: Path, error: Exception, after: int = 0) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path}: no such file")
    cause = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{path}: cannot be read{f' after row {after}' if after else ''} ({cause})")


def _missing(column: str, there: Iterable[str], where: str) -> UserError:
    return UserError(f"{where}: no column '{column}'; there are: {', '.join(there)}")


def _file_documents(path: Path, column: str, source: str) -> Iterator[Document]:
    if file_format(path) == ".txt":
        column = "text"
    rows = ((f"{path}:{number}", row) for number, row in read_rows(path, [column]))
    return _row_documents(rows, column, source)


def _row_documents(rows: Iterable[tuple[str, Row]], column: str, source: str) -> Iterator[Document]:
    for where, row in rows:
        if column not in row:
            raise _missing(column, row, where)
        text = row[column]
        if not isinstance(text, str | None):
            raise UserError(f"{where}: column '{column}' holds {type(text).__name__}, not text")
        if text and not text.isspace():
            yield Document(checked(text, where), source)


def checked(text: str, where: str) -> str:
    """The text as it is; UserError for half a surrogate pair, which JSON can escape but no UTF-8 text holds."""
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: half a surrogate pair at character {error.start}; repair the text") from error
    return text


# --- Hugging Face datasets and generators --------------------------------------------------------------------


def hub_rows(config: OriginConfig) -> Iterator[tuple[str, Row]]:
    """The rows of a Hugging Face dataset, streamed, each with words that say where it stands.

    A dataset's own code is never run. Raises UserError with the library's reason in one line.
    """
    import datasets

    number = 0
    try:
        stream = datasets.load_dataset(
            config.name, config.subset, split=config.split, revision=config.revision, streaming=True
        )
        for number, row in enumerate(stream, start=1):
            yield f"{config.name}[{config.split}]:{number}", row
    except Exception as error:  # the library raises whatever its layers raise; the cause stays chained
        reason = " ".join(str(error).split()) or type(error).__name__
        place = f" after row {number}" if number else ""
        raise UserError(f"{describe(config)}, split '{config.split}': cannot be read{place} ({reason})") from error


def generated(config: OriginConfig, generators: Mapping[str, Callable[..., Iterable[T]]]) -> Iterable[T]:
    """What the generator named in `config` makes of its options. Raises UserError for unknown names."""
    generator = generators.get(config.generator or "")
    if generator is None:
        raise UserError(f"no generator '{config.generator}'; there are: {', '.join(sorted(generators))}")
    try:
        inspect.signature(generator).bind(**config.options)
    except TypeError as error:
        raise UserError(f"generator '{config.generator}': {error}; see its options") from error
    return generator(**config.options)


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
