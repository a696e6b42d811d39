"""Headers of tensor files: found to fit the bytes behind them before a library sees the file.

    safetensors   8 bytes: length of the header; JSON {name: {"dtype", "shape", "data_offsets"}}; the tensors
    .npy          magic, version, length of the header; a Python dict as text; the array
    .npz          a zip archive of .npy files, as they are

The safetensors library takes a name that is there twice, and a header of 100 MB. numpy reads its header by Python's own
parser.
"""

from __future__ import annotations

import os
import re
from math import prod
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

from leveret.errors import UserError
from leveret.strangers.documents import parse_json

HEADER_BYTES = 16 * 2**20
"""Of a safetensors header: about 100,000 tensors."""
DIMENSIONS = 8
WIDTHS = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of a number."""
ARRAY_HEADER = re.compile(
    rb"\{'descr': '(?:[<|])([uifb][1248])', 'fortran_order': False, 'shape': \(((?:\d{1,18}, ?)*\d{0,18})\), \} *\n"
)
"""What numpy writes of an array of plain numbers, and nothing else."""


def checked_tensors(path: Path) -> Path:
    """The path of a safetensors file whose header is sound.

    Raises:
        UserError: the file is not there, or its header is too long, no JSON, or does not fit the bytes behind it.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(HEADER_BYTES, size - 8):
                raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
            content = file.read(length)
        _check_header(content, size - 8 - length)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())[:200]
        raise UserError(f"{path} is no whole safetensors file ({reason})") from None
    return path


def _check_header(content: bytes, size: int) -> None:
    """Raises ValueError where it does not describe `size` bytes, all of them once."""
    header = parse_json(content, once=True)
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are no texts")
    end = 0
    for begin, after, name in sorted((*_place(name, entry), name) for name, entry in header.items()):
        if begin != end:
            raise ValueError(f"{name[:80]!r} begins at {begin}, and what is before it ends at {end}")
        end = after
    if end != size:
        raise ValueError(f"its tensors take {end:,} bytes, and there are {size:,}")


def _place(name: str, entry: Any) -> tuple[int, int]:
    """Where a tensor begins and ends. Raises ValueError where that is not its shape times its type."""
    name = name[:80]
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in WIDTHS:
        raise ValueError(f"{name!r} is of an unknown type")
    if not _counts(shape) or len(shape) > DIMENSIONS or not _counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{name!r} has no shape or no place")
    begin, end = offsets
    if end - begin != prod(shape) * WIDTHS[dtype]:
        raise ValueError(f"{name!r} of shape {shape} does not take the {end - begin} bytes that it has")
    return begin, end


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def checked_array(path: Path) -> Path:
    """The path of an .npy file of plain numbers whose header fits its size.

    Raises:
        OSError: it cannot be read.
        ValueError: its header is another, or the file is of another size.
    """
    with path.open("rb") as file:
        _check_array(file, os.fstat(file.fileno()).st_size, str(path))
    return path


def checked_arrays(path: Path) -> Path:
    """The path of an .npz file of such arrays, none of which is packed or there twice.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file.
    """
    try:
        with ZipFile(path) as archive:
            members = archive.infolist()
            if len({member.filename for member in members}) < len(members):
                raise ValueError(f"{path} has an array twice")
            for member in members:
                if member.compress_type != ZIP_STORED or member.compress_size != member.file_size:
                    raise ValueError(f"{path} is packed")
                with archive.open(member) as file:
                    _check_array(file, member.file_size, f"{path}, {member.filename[:80]},")
    except (BadZipFile, NotImplementedError, RuntimeError) as error:  # such as one that is encrypted
        raise ValueError(f"{path} is no whole .npz file ({error})") from None
    return path


def _check_array(file: IO[bytes], size: int, where: str) -> None:
    head = file.read(10)
    length = int.from_bytes(head[8:], "little")
    found = ARRAY_HEADER.fullmatch(file.read(length)) if head[:8] == b"\x93NUMPY\x01\x00" else None
    if found is None:
        raise ValueError(f"{where} is no array of plain numbers")
    shape = [int(number) for number in found[2].split(b",") if number.strip()]
    if len(shape) > DIMENSIONS or 10 + length + prod(shape) * int(found[1][1:]) != size:
        raise ValueError(f"{where} has {size:,} bytes, which do not fit its shape")
