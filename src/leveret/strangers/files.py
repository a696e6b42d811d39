"""Sizes, names and links of files that others have made."""

from __future__ import annotations

import stat
from pathlib import Path

from leveret.errors import UserError


def read_limited(path: Path, most: int) -> bytes:
    """The content of a plain file of at most so many bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger, or no plain file: a pipe would be waited for, a device never ends.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path.name} is no plain file")
    with path.open("rb") as file:
        content = file.read(most + 1) if found.st_size <= most else b""
    if found.st_size > most or len(content) > most:
        raise ValueError(f"it has {max(found.st_size, len(content)):,} bytes, and at most {most:,} are read")
    return content


def beside(folder: Path, name: object) -> Path:
    """The file of that name in a folder; what it links to lies in the folder too, or in the hub's cache around it.

    The hub's cache keeps MODEL/snapshots/COMMIT/NAME as links into MODEL/blobs.

    Raises:
        UserError: the name leads out of the folder, or the link does.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or any(sign in name for sign in "/\\\0"):
        raise UserError(f"{folder} names {name!r}, which is no file beside it")
    path = folder / name
    if path.is_symlink():
        allowed = [folder.resolve()]
        if folder.absolute().parent.name == "snapshots":
            allowed.append(folder.absolute().parent.parent.resolve() / "blobs")
        if not any(path.resolve().is_relative_to(place) for place in allowed):
            raise UserError(f"{path} is a link that leads out of its folder; put the file itself there")
    return path
