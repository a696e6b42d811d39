"""File names to streams of bytes: what a suffix means, decompression, and the members of archives.

Archives are read from front to back as streams, and nothing is ever unpacked to disk. What a stream holds is never
held whole, so that a file that unpacks to a thousand times its size needs no more memory than another.
"""

import codecs
import errno
import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from leveret.errors import UserError

COMPRESSIONS = (".gz", ".xz", ".zst")
STREAMED = (".txt", ".jsonl", ".json")
"""Formats that are read from front to back, and so inside archives too."""
ARCHIVES = (".tar", ".zip")
FORMATS = (*STREAMED, ".parquet", *ARCHIVES)
KNOWN = f"{' '.join(FORMATS)}, all but .parquet and .zip also with {' '.join(COMPRESSIONS)}"

BLOCK_BYTES = 1 << 20
_READ_BYTES = 1 << 16  # zstd's reader loses what it has unpacked of a read that meets damage: so, not much at a time

DAMAGE = (OSError, EOFError, lzma.LZMAError, zlib.error, tarfile.TarError, zipfile.BadZipFile)
"""What the standard library and pyarrow raise for bytes that are not what the suffix says, or not all there."""


def file_format(path: Path) -> str | None:
    """The suffix that says how to read a file, compression aside: `a.jsonl.gz` -> `.jsonl`; None if unknown."""
    if path.suffix == ".tgz":
        return ".tar"
    bare = path.with_suffix("") if path.suffix in COMPRESSIONS else path
    readable = bare.suffix in FORMATS and (bare is path or bare.suffix not in (".parquet", ".zip"))
    return bare.suffix if readable else None


def shown(name: str) -> str:
    """A name that fits into one line of UTF-8: what cannot be printed is escaped."""
    return name if name.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed as they are read. UserError if it cannot be opened."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise unreadable(path, error) from error
    with file, decompressed(file, path.suffix) as stream:
        yield stream


def decompressed(file: IO[bytes], suffix: str) -> IO[bytes]:
    """The bytes of an open file, decompressed as its suffix says."""
    match suffix:
        case ".gz" | ".tgz":
            return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
        case ".xz":
            return lzma.open(file)
        case ".zst":
            import pyarrow as pa  # its reader tells a truncated file from a whole one; zstandard's does not

            return io.BufferedReader(pa.input_stream(file, compression="zstd"))
        case _:
            return file


def unreadable(path: Path | str, error: Exception) -> UserError:
    """The error for a file that this machine does not give us, whatever is in it."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else in_words(error)
    return UserError(f"{path}: cannot be read ({reason}); check the path, its rights and the disk")


def damage(path: Path | str, error: Exception) -> str:
    """What is wrong with the bytes, in words.

    UserError where it is not the bytes but the disk, the network or the rights: rows must not be left out of a
    corpus because of where it is read.
    """
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: an offset out of the file
        raise unreadable(path, error) from error
    return in_words(error)


def in_words(error: Exception) -> str:
    """An exception's message in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


class Damaged(Exception):
    """A stream breaks off; the message says in words why."""


def blocks(stream: IO[bytes], name: str) -> Iterator[bytes]:
    """A stream in blocks of BLOCK_BYTES (the last may be shorter), a byte order mark taken off.

    Raises Damaged after all that could be read before the damage. `name` is that of the file, for UserErrors.
    """
    first = True
    broken = ""
    while not broken:
        parts: list[bytes] = []
        left = BLOCK_BYTES
        try:
            while left and (data := stream.read1(min(left, _READ_BYTES))):  # type: ignore[attr-defined]
                parts.append(data)
                left -= len(data)
        except DAMAGE as error:
            broken = damage(name, error)
        if block := b"".join(parts):
            yield block.removeprefix(codecs.BOM_UTF8) if first else block
            first = False
        elif not broken:
            return
    raise Damaged(broken)


# --- archives ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive. Those of a .tar must be opened before the next one is asked for."""

    name: str
    open: Callable[[], Any]
    """A context manager of the member's bytes."""
    fault: str = ""
    """Why it must not be read; empty if it may."""


def members(path: Path) -> Iterator[Member]:
    """The files of an archive, in its order, but for hidden ones and those of other types.

    Raises one of DAMAGE where the archive itself cannot be read on.
    """
    with opened(path) as stream:
        try:
            for name, open_member, fault in _tar(stream) if file_format(path) == ".tar" else _zip(stream):
                inner = PurePosixPath(name.replace("\\", "/"))
                kind = file_format(Path(inner.name))
                if inner.is_absolute() or PureWindowsPath(name).drive or ".." in inner.parts:
                    fault = "its name leads out of the archive"
                elif not fault and (kind is None or any(part.startswith(".") for part in inner.parts)):
                    continue
                elif not fault and kind not in STREAMED:
                    fault = f"a {kind} is not read inside an archive; unpack it"
                yield Member(name, open_member, fault)
        except _BROKEN_HEADER as error:
            raise tarfile.ReadError(in_words(error)) from error


_Found = tuple[str, Callable[[], Any], str]
_BROKEN_HEADER = (ValueError, LookupError, struct.error, RuntimeError)  # what makes no sense is not always a BadZipFile
_NOT_A_FILE = "a link or a device, not a file"
_MAX_HEADER = 1 << 20  # bytes of a long name or of extended attributes
_SPARSE = "sparse"
_WITHOUT_BYTES = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)


def _zip(file: IO[bytes]) -> Iterator[_Found]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            fault = ""
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                fault = _NOT_A_FILE
            elif info.flag_bits & 1:
                fault = "encrypted; unpack it"
            elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                fault = "compressed neither by deflate nor not at all; unpack it"  # bz2 may unpack 4 KB to 5 GB at once
            if not info.is_dir():
                yield info.filename, partial(_open_zipped, archive, info), fault


def _open_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    try:
        return archive.open(info)
    except _BROKEN_HEADER as error:
        raise zipfile.BadZipFile(in_words(error)) from error


def _tar(stream: IO[bytes]) -> Iterator[_Found]:
    """The members of a tar stream (POSIX and GNU).

    `tarfile` itself takes a broken header for the end of the archive, and keeps every header it has seen.
    """
    said: dict[str, str] = {}  # what headers before a member say of it
    while header := stream.read(tarfile.BLOCKSIZE):
        if not header.strip(b"\0"):
            return
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        size = int(said.get("size", info.size))
        if info.type == tarfile.GNUTYPE_SPARSE or size < 0:
            raise tarfile.ReadError("a sparse member or a broken header; pack it anew")
        if info.type in _WITHOUT_BYTES:
            size = 0  # whatever the header says
        member = _Member(stream, size)
        if info.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            if size > _MAX_HEADER:
                raise tarfile.ReadError(f"a header of {size} bytes")
            data = member.readall()
            said |= _pax(data) if info.type == tarfile.XHDTYPE else {"path": _text(data.rstrip(b"\0"))}
        elif info.type not in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            if not info.isdir():
                fault = "" if info.isreg() and _SPARSE not in said else _NOT_A_FILE
                yield said.get("path", info.name), partial(io.BufferedReader, member), fault
            said = {}
        member.skip()
        _Member(stream, -size % tarfile.BLOCKSIZE).skip()
    raise EOFError("the archive ends before its end mark")


def _pax(data: bytes) -> dict[str, str]:
    """What matters here of POSIX extended attributes, which are records of `length key=value\\n`."""
    found = {}
    at = 0
    while at < len(data):
        space = data.index(b" ", at)
        end = at + int(data[at:space])
        key, _, value = data[space + 1 : end - 1].partition(b"=")
        if end <= space:
            raise ValueError("a broken header")
        if key in (b"path", b"size"):
            found[key.decode()] = _text(value)
        elif key.startswith(b"GNU.sparse."):
            found[_SPARSE] = ""
        at = end
    return found


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


class _Member(io.RawIOBase):
    """The next `size` bytes of a stream."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream, self._left = stream, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read1(min(len(buffer), self._left))  # type: ignore[attr-defined]
        if self._left and not data:
            raise EOFError("the archive ends inside this member")
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)

    def skip(self) -> None:
        buffer = bytearray(_READ_BYTES)
        while self._left:
            self.readinto(buffer)
