"""Headers of GGUF files, walked through by their own counts before a library, or llama.cpp, believes them.

"GGUF", version, number of tensors, number of keys
keys      length and name, type, value; an array: type, count, values
tensors   length and name, dimensions, type, place
"""

from __future__ import annotations

import os
from io import BufferedReader
from math import prod
from pathlib import Path

from leveret.errors import UserError

TENSORS, KEYS, NAME_BYTES = 100_000, 4096, 2**16
ITEMS = 2**22
"""Of all arrays together: a vocabulary has three, of up to 300,000 items."""
TEXT_BYTES = 2**26
"""Of one text: our whole tokenizer.json is one."""
DIMENSIONS = 4
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a plain value, by type."""
STRING, ARRAY = 8, 9
LEAST_BITS = 1
"""Of a weight in any form of quantising."""


def checked_gguf(path: Path) -> Path:
    """The path of a GGUF file whose header is sound: its counts, texts and places lie in the file.

    Raises:
        UserError: they do not, or there are more than any model has.
    """
    try:
        with path.open("rb") as file:
            _Walk(file).header()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no whole GGUF file ({error})") from None
    return path


class _Walk:
    """Reads a header from its beginning. Everything raises ValueError where it is not sound."""

    def __init__(self, file: BufferedReader) -> None:
        self._file, self._size = file, os.fstat(file.fileno()).st_size
        self._items = 0

    def header(self) -> None:
        if self._file.read(4) != b"GGUF" or self._number(4) not in (2, 3):
            raise ValueError("it does not begin as one")
        tensors, keys = self._count(8, TENSORS, "tensors"), self._count(8, KEYS, "keys")
        for _ in range(keys):
            self._text(NAME_BYTES)
            self._value(self._number(4))
        places = [self._tensor() for _ in range(tensors)]
        start = self._file.tell()
        for name, weights, place in places:
            if start + place + weights * LEAST_BITS // 8 > self._size:
                raise ValueError(f"the tensor {name[:80]!r} lies beyond its end")
        if len({name for name, _, _ in places}) < len(places):
            raise ValueError("a tensor is there twice")

    def _number(self, width: int) -> int:
        read = self._file.read(width)
        if len(read) < width:
            raise ValueError("it ends in its header")
        return int.from_bytes(read, "little")

    def _count(self, width: int, most: int, what: str) -> int:
        if (count := self._number(width)) > most:
            raise ValueError(f"{count:,} {what}, and at most {most:,} are read")
        return count

    def _skip(self, count: int) -> None:
        if self._file.seek(count, os.SEEK_CUR) > self._size:
            raise ValueError("it ends in its header")

    def _text(self, most: int) -> bytes:
        length = self._count(8, most, "bytes of a text")
        read = self._file.read(length)
        if len(read) < length:
            raise ValueError("it ends in its header")
        return read

    def _value(self, kind: int) -> None:
        if kind in WIDTHS:
            self._skip(WIDTHS[kind])
        elif kind == STRING:
            self._text(TEXT_BYTES)
        elif kind == ARRAY:
            self._array()
        else:
            raise ValueError(f"a value of the unknown type {kind}")

    def _array(self) -> None:
        kind, count = self._number(4), self._number(8)
        self._items += count
        if self._items > ITEMS:
            raise ValueError(f"its arrays have more than {ITEMS:,} items")
        if kind in WIDTHS:
            self._skip(count * WIDTHS[kind])
        elif kind == STRING:
            for _ in range(count):
                self._text(TEXT_BYTES)
        else:
            raise ValueError("an array of what is neither text nor number")

    def _tensor(self) -> tuple[bytes, int, int]:
        name = self._text(NAME_BYTES)
        shape = [self._number(8) for _ in range(self._count(4, DIMENSIONS, "dimensions"))]
        self._number(4)
        return name, prod(shape), self._number(8)
