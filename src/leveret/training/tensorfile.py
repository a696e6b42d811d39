"""Files that are on the disk once they are written, hashed on the way; among them tensors, as safetensors has them.

    8 bytes       length of the header
    header        JSON: {"__metadata__": ..., name: {"dtype", "shape", "data_offsets"}}, spaces up to a multiple of 8
    the tensors   one after the other, wide numbers first, so that each lies where its width divides

The safetensors library's own writer does not flush, tells of a disk that refuses in words only, and would have the file
read once more for its hash.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

CHUNK = 16 * 2**20
"""Bytes that are hashed and written at a time."""

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    """Writes a safetensors file of tensors on the CPU. Returns its SHA-256.

    Raises:
        OSError: the disk refuses; what is there of the file is of no use.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name in names:
        tensor, begin = tensors[name], end
        end += tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return write_flushed(path, _parts(len(text).to_bytes(8, "little") + text, (tensors[name] for name in names)))


def _parts(head: bytes, tensors: Iterable[Tensor]) -> Iterator[bytes | memoryview]:
    yield head
    for tensor in tensors:
        content = memoryview(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
        for begin in range(0, len(content), CHUNK):
            yield content[begin : begin + CHUNK]


def write_flushed(path: Path, parts: Iterable[bytes | memoryview]) -> str:
    """Writes a file and makes sure that the disk has it. Returns the SHA-256 of what was meant to be written."""
    digest = hashlib.sha256()
    with path.open("wb", buffering=2**20) as file:
        for part in parts:
            digest.update(part)
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
