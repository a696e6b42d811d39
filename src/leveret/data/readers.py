"""Files of every type to blocks of raw rows.

    .txt .jsonl .json, plain or compressed --\\
    the same within .tar and .zip -------------> file_blocks --> Block --> texts
    .parquet ---------------------------------/

Reading goes from front to back and parses next to nothing. Memory holds a few blocks, whatever a file may hold: a .txt
longer than MAX_ROW_BYTES comes in parts, and a line of JSON so long is left out. (A page of a .parquet must be held,
and is usually 1 MiB; a column that unpacks beyond measure is left out.) A byte order mark at the start of a file is
taken off.
"""

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

from leveret.data.rows import (
    MAX_BLOCK_BYTES,
    MAX_ROW_BYTES,
    Block,
    Drop,
    Place,
    Row,
    json_rows,
    no_column,
    not_json,
    not_utf8,
    packed,
    parts,
    refuse,
    text_blocks,
)
from leveret.data.streams import (
    BLOCK_BYTES,
    DAMAGE,
    KNOWN,
    Damaged,
    Member,
    blocks,
    damage,
    decompressed,
    file_format,
    in_words,
    members,
    opened,
    shown,
)
from leveret.errors import UserError

MAX_TEXT_BYTES = 256 << 20


def file_blocks(path: Path, place: Place, drop: Drop) -> Iterator[Block]:
    """The rows of a file, in order; of an archive those of its members.

    Damage ends the file (of a .parquet the row group, of an archive the member) and what was read before is kept.
    Raises UserError for a file that cannot be opened, and for a .parquet without a column of text.
    """
    match file_format(path):
        case None:
            raise UserError(f"{path}: unknown type of file; known are {KNOWN}")
        case ".parquet":
            yield from _parquet_blocks(path, place, drop)
        case ".tar" | ".zip":
            yield from _archive_blocks(path, place, drop)
        case kind:
            with opened(path) as stream:
                yield from _stream_blocks(stream, kind, place, drop)


def _archive_blocks(path: Path, place: Place, drop: Drop) -> Iterator[Block]:
    try:
        for member in members(path):
            inside = replace(place, file=f"{place.file}:{shown(member.name)}")
            if member.fault:
                drop(inside.file, member.fault)
            else:
                yield from _member_blocks(member, inside, drop)
    except DAMAGE as error:
        drop(place.file, f"the rest of the archive cannot be read ({damage(path, error)})")


def _member_blocks(member: Member, place: Place, drop: Drop) -> Iterator[Block]:
    name = Path(member.name)
    try:
        with member.open() as file, decompressed(file, name.suffix) as stream:
            yield from _stream_blocks(stream, str(file_format(name)), place, drop)
    except DAMAGE as error:
        drop(place.file, f"cannot be read ({damage(place.file, error)})")


def _stream_blocks(stream: IO[bytes], kind: str, place: Place, drop: Drop) -> Iterator[Block]:
    made = {".txt": _txt_blocks, ".jsonl": _line_blocks, ".json": _item_blocks}[kind]
    return made(blocks(stream, place.file), place, drop)


def _txt_blocks(stream: Iterator[bytes], place: Place, drop: Drop) -> Iterator[Block]:
    """One text, or its parts by the number of their first line."""
    line = 1
    try:
        for part, text in enumerate(parts(stream), start=1):
            yield Block(place, line, (text,), part)
            line += text.count(b"\n")
    except Damaged as error:
        drop(f"{place.file}:{line}", _broken(error))


def _line_blocks(stream: Iterator[bytes], place: Place, drop: Drop) -> Iterator[Block]:
    """Whole lines. One longer than MAX_ROW_BYTES is left out without being held."""
    number, rest, endless = 1, b"", False
    try:
        for block in stream:
            end = block.find(b"\n") + 1
            if endless or len(rest) + (end or len(block)) > MAX_ROW_BYTES:
                rest, endless = b"", not end
                if endless:
                    continue
                drop(f"{place.file}:{number}", _TOO_LONG)
                number, block = number + 1, block[end:]
            cut = block.rfind(b"\n") + 1
            if cut:
                yield Block(place, number, rest + block[:cut])
                number, rest = number + block.count(b"\n"), b""
            rest += block[cut:]
    except Damaged as error:
        drop(f"{place.file}:{number}", _broken(error))
        return
    if endless:
        drop(f"{place.file}:{number}", _TOO_LONG)
    elif rest:
        yield Block(place, number, rest)


def _item_blocks(stream: Iterator[bytes], place: Place, drop: Drop) -> Iterator[Block]:
    """The items of a .json list, made lines of."""
    items = _items(codecs.iterdecode(stream, "utf-8", "surrogateescape"), place, drop)
    yield from (Block(place, first, b"\n".join(rows)) for first, rows in packed(items))


def _items(feed: Iterator[str], place: Place, drop: Drop) -> Iterator[bytes]:
    """The items of a JSON list, each as it is written, but in one line: a line end in JSON is nothing but white space.

    After an item that is no JSON nothing more can be read, as nobody knows where it ends.
    """
    decoder = json.JSONDecoder()
    at = number = 1
    try:
        text = next(feed, "").lstrip()
        if text[:1] != "[":
            if text:
                drop(place.file, "a .json file must hold a list of objects; one object a line is .jsonl")
            return
        while not text.startswith("]", at := _BETWEEN.match(text, at).end()):  # type: ignore[union-attr]
            try:
                end = decoder.raw_decode(text, at)[1]
            except (ValueError, RecursionError) as error:
                endless = len(text) - at > MAX_ROW_BYTES
                more = "" if endless else next(feed, "")
                if not more:
                    why = _TOO_LONG if endless else not_json(error)
                    drop(f"{place.file}:{number}", f"{why}, and the rest is not read")
                    return
                text, at = text[at:] + more, 0
                continue
            item = text[at:end].replace("\n", " ").encode("utf-8", "surrogateescape")
            if len(item) > MAX_ROW_BYTES:
                drop(f"{place.file}:{number}", _TOO_LONG)
            yield item if len(item) <= MAX_ROW_BYTES else b""
            at, number = end, number + 1
        if text[at + 1 :].strip() or next(feed, "").strip():
            drop(f"{place.file}:{number}", "text after the end of the list; one object a line is .jsonl")
    except Damaged as error:
        drop(f"{place.file}:{number}", _broken(error))


_BETWEEN = re.compile(r"[ \t\r\n,]*")
_TOO_LONG = f"longer than {MAX_ROW_BYTES >> 20} MiB in one piece of JSON; split it"


def _broken(error: Damaged) -> str:
    return f"cannot be read from here on ({error})"


# --- parquet -------------------------------------------------------------------------------------------------

_TEXT_TYPES = {"string", "large_string", "string_view", "binary", "large_binary", "binary_view", "null"}
_BATCH_ROWS = 16  # a few bytes of a dictionary may stand for many long texts
_BOMB = 200  # times that a column is longer than on disk; texts are 2 to 20


def _parquet_blocks(path: Path, place: Place, drop: Drop) -> Iterator[Block]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, buffer_size=BLOCK_BYTES, pre_buffer=False, page_checksum_verification=True)
        types = dict(zip(file.schema_arrow.names, file.schema_arrow.types, strict=True))
    except (OSError, ValueError, pa.ArrowException) as error:
        drop(place.file, f"cannot be read ({damage(path, error)})")
        return
    with file:
        if place.column not in types:
            raise UserError(f"{path}: {no_column(place.column, types)}")
        kind = types[place.column]
        if str(kind.value_type if pa.types.is_dictionary(kind) else kind) not in _TEXT_TYPES:
            raise UserError(f"{path}: column '{place.column}' holds {kind}, not text")
        first = 1
        for group in range(file.num_row_groups):
            yield from text_blocks(_group(file, group, place, first, drop), place, first)
            first += file.metadata.row_group(group).num_rows


def _group(file: Any, group: int, place: Place, first: int, drop: Drop) -> Iterator[bytes]:
    """The texts of a row group, empty where there is none."""
    import pyarrow as pa

    facts = file.metadata.row_group(group)
    count, why = 0, "there are fewer rows than the file says"
    try:
        columns = {column.path_in_schema: column for column in map(facts.column, range(facts.num_columns))}
        on_disk, unpacked = columns[place.column].total_compressed_size, columns[place.column].total_uncompressed_size
        if unpacked > max(2 * MAX_BLOCK_BYTES, _BOMB * on_disk):
            raise ValueError(f"{on_disk} bytes that unpack to {unpacked} are no text")
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[place.column], use_threads=False):
            texts = batch.column(0)
            texts = texts.dictionary_decode() if pa.types.is_dictionary(texts.type) else texts
            for text in texts.cast(pa.large_binary()):
                yield text.as_py() or b""
                count += 1
    except (OSError, ValueError, LookupError, pa.ArrowException) as error:
        why = damage(place.file, error)
    if count < facts.num_rows:
        drop(f"{place.file}:{first + count}", f"rows to {first + facts.num_rows - 1} cannot be read ({why})")


# --- whole files, for examples -------------------------------------------------------------------------------


def read_rows(path: Path, drop: Drop = refuse) -> Iterator[tuple[int, Row]]:
    """The rows of a file with their numbers, from 1: lines of .jsonl, items of .json, rows of .parquet.

    A .txt file is one row {"text": ...}. What cannot be read is told to `drop`, by file and line.
    """
    match file_format(path):
        case ".tar" | ".zip":
            raise UserError(f"{path}: archives are read for texts only; unpack it")
        case ".txt":
            if text := read_text(path, drop):
                yield 1, {"text": text}
        case ".parquet":
            yield from _parquet_rows(path, drop)
        case _:
            for block in file_blocks(path, Place(str(path), ""), drop):
                yield from json_rows(block, drop)


def _parquet_rows(path: Path, drop: Drop) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path, buffer_size=BLOCK_BYTES, pre_buffer=False) as file:
            for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
                for row in _objects(batch):
                    number += 1
                    if isinstance(row, Exception):
                        drop(f"{path}:{number}", f"cannot be read ({in_words(row)})")
                    else:
                        yield number, row
    except (OSError, ValueError, pa.ArrowException) as error:
        drop(str(path), f"cannot be read after row {number} ({damage(path, error)})")


def _objects(batch: Any) -> list[Row | Exception]:
    """The rows of a batch; in the place of one that Python cannot hold, such as text that is no UTF-8, the reason."""
    try:
        rows: list[Row | Exception] = batch.to_pylist()
    except (ValueError, OverflowError) as error:
        if len(batch) == 1:
            return [error]
        return [row for place in range(len(batch)) for row in _objects(batch.slice(place, 1))]
    return rows


def read_text(path: Path, drop: Drop = refuse) -> str:
    """The whole of a text file (plain or compressed), line ends as they are, a byte order mark taken off.

    What cannot be read, or is longer than MAX_TEXT_BYTES, is told to `drop`, and is empty.
    """
    try:
        with opened(path) as stream:
            data = b"".join(islice(blocks(stream, str(path)), MAX_TEXT_BYTES // BLOCK_BYTES + 1))
        if len(data) <= MAX_TEXT_BYTES:
            return data.decode()
        drop(str(path), f"longer than {MAX_TEXT_BYTES >> 20} MiB; split it")
    except Damaged as error:
        drop(str(path), _broken(error))
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        drop(f"{path}:{line}", not_utf8(error))
    return ""
