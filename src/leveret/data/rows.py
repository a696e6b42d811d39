"""Blocks of raw rows: how texts are put into them, and how rows and texts come out again.

What goes in is hardly looked at, so that one process can read for many; what comes out is parsed and checked. A text
longer than MAX_ROW_BYTES comes in parts. NUL characters are text like others.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from leveret.data.streams import BLOCK_BYTES, in_words, shown
from leveret.errors import UserError

MAX_BLOCK_BYTES = 16 << 20
MAX_ROW_BYTES = MAX_BLOCK_BYTES - BLOCK_BYTES

Row = dict[str, Any]
Drop = Callable[[str, str], None]
"""Told of what cannot be read: (where, why)."""


def refuse(where: str, why: str) -> None:
    """The strict Drop: raises UserError."""
    raise UserError(f"{where}: {why}")


def overlook(where: str, why: str) -> None:
    """The Drop of those who are not the first to read, and need not tell again."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where rows come from."""

    file: str
    """What stands before a row's number when it is named: a path, a member of an archive, a dataset."""
    source: str
    """Label of the file, dataset or generator for manifests."""
    column: str = "text"
    """Key or column that holds the text."""


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive raw rows, MAX_BLOCK_BYTES at most: lines of JSON as they are, or texts in UTF-8."""

    place: Place
    first: int
    """Number of the first row, from 1."""
    rows: bytes | tuple[bytes, ...]
    part: int = 1
    """Which part of a text that is too long for one block."""
    most: int | None = None
    """How many texts to read at most."""

    @property
    def size(self) -> int:
        """Bytes of all rows."""
        return len(self.rows) if isinstance(self.rows, bytes) else sum(map(len, self.rows))

    @property
    def memory(self) -> int:
        """Bytes that it takes up, about: rows may be many and empty."""
        return _OBJECT_BYTES + (len(self.rows) if isinstance(self.rows, bytes) else sum(map(_memory, self.rows)))


_OBJECT_BYTES = 256
_ROW_BYTES = 48


def _memory(row: bytes) -> int:
    return _ROW_BYTES + len(row)


# --- what is in a block --------------------------------------------------------------------------------------


def texts(block: Block, drop: Drop) -> Iterator[tuple[str, str]]:
    """(where, text) of every text in a block, but for empty ones."""
    found = _json_texts(block, drop) if isinstance(block.rows, bytes) else _plain_texts(block, drop)
    return islice(((where, text) for where, text in found if text and not text.isspace()), block.most)


def _plain_texts(block: Block, drop: Drop) -> Iterator[tuple[str, str]]:
    assert isinstance(block.rows, tuple)
    part = f" (part {block.part})" if block.part > 1 else ""
    for number, row in enumerate(block.rows, start=block.first):
        where = f"{block.place.file}:{number}{part}"
        try:
            yield where, row.decode()
        except UnicodeDecodeError as error:
            drop(where, not_utf8(error))


def _json_texts(block: Block, drop: Drop) -> Iterator[tuple[str, str | None]]:
    column = block.place.column
    for number, row in json_rows(block, drop):
        where = f"{block.place.file}:{number}"
        text = row.get(column)
        if not isinstance(text, str | None):
            drop(where, f"column '{column}' holds {type(text).__name__}, not text")
        elif text is None and column not in row:
            drop(where, no_column(column, row))
        elif text and (wrong := flaw(text)):
            drop(where, wrong)
        else:
            yield where, text


def json_rows(block: Block, drop: Drop) -> Iterator[tuple[int, Row]]:
    """The objects in a block of JSON lines, each with its number; blank lines are passed over."""
    assert isinstance(block.rows, bytes)
    for number, line in enumerate(block.rows.split(b"\n"), start=block.first):
        if not line or line.isspace():
            continue
        try:
            row = json.loads(line.decode())
        except UnicodeDecodeError as error:
            drop(f"{block.place.file}:{number}", not_utf8(error))
        except (ValueError, RecursionError) as error:
            drop(f"{block.place.file}:{number}", not_json(error))
        else:
            if isinstance(row, dict):
                yield number, row
            else:
                what = type(row).__name__
                drop(f"{block.place.file}:{number}", f"expected an object with named fields, found {what}")


def no_column(column: str, there: Iterable[str]) -> str:
    """Why a row or a file is of no use: it has other columns."""
    return f"no column '{column}'; there are: {shown(', '.join(islice(there, 50))[:300])}"


def flaw(text: str) -> str:
    """What makes a text none: half a surrogate pair, which JSON can escape and UTF-8 cannot hold; empty: nothing."""
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        return f"half a surrogate pair at character {error.start}; repair the text"
    return ""


def not_utf8(error: UnicodeDecodeError) -> str:
    line = error.object.count(b"\n", 0, error.start) + 1
    at = f", line {line} of it" if line > 1 else f", byte {error.start + 1} of it"
    if error.object[error.start] == 0xED and error.object[error.start + 1 : error.start + 2] >= b"\xa0":
        return f"half a surrogate pair{at}; repair the text"
    return f"not UTF-8 ({error.reason}{at}); convert the text"


def not_json(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg}, character {error.pos + 1})"
    return f"not JSON ({in_words(error)})"


# --- texts to blocks -----------------------------------------------------------------------------------------


def text_blocks(texts: Iterable[bytes], place: Place, first: int = 1) -> Iterator[Block]:
    """Blocks of texts in UTF-8, of which the first has the number `first`."""
    for number, rows in packed(texts, first):
        if len(rows[0]) <= MAX_ROW_BYTES:
            yield Block(place, number, tuple(rows))
        else:
            yield from (Block(place, number, (text,), part) for part, text in enumerate(parts(rows), start=1))


def encoded(text: str) -> bytes:
    """A text as `text_blocks` takes it. Half a surrogate pair is named when the block is read."""
    return text.encode("utf-8", "surrogatepass")


def packed(rows: Iterable[bytes], first: int = 1) -> Iterator[tuple[int, list[bytes]]]:
    """Rows in lists of about BLOCK_BYTES at most, or of one longer row, each with the number of its first row."""
    held: list[bytes] = []
    size = 0
    for row in rows:
        if held and size + _memory(row) > BLOCK_BYTES:
            yield first, held
            first, held, size = first + len(held), [], 0
        held.append(row)
        size += _memory(row)
    if held:
        yield first, held


def parts(text: Iterable[bytes]) -> Iterator[bytes]:
    """A text that comes in pieces of any size, in parts of MAX_ROW_BYTES at most; nothing is lost between them.

    They end behind a line, a space or at least a character, the first of these that there is in the last BLOCK_BYTES.
    """
    held = bytearray()
    for piece in text:
        held += piece
        while len(held) > MAX_ROW_BYTES:
            start = MAX_ROW_BYTES - BLOCK_BYTES
            cut = held.rfind(b"\n", start, MAX_ROW_BYTES) + 1 or held.rfind(b" ", start, MAX_ROW_BYTES) + 1
            if not cut:
                cut = next((at for at in range(MAX_ROW_BYTES, start, -1) if held[at] & 0xC0 != 0x80), MAX_ROW_BYTES)
            yield bytes(held[:cut])
            del held[:cut]
    if held:
        yield bytes(held)
