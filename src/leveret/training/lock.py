"""One process at a time in a folder.

The lock is the kernel's (flock) on the file FOLDER/lock, so it goes with its process, however that ends; the file stays
and means nothing by itself. What it says of its holder is for people. On NFS it holds between machines; on disks that
know no such lock (some Lustre and FUSE mounts, and Windows) nobody is refused, and where each machine keeps its own
locks (Lustre with localflock) only those of the same machine are.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from leveret.errors import UserError

log = logging.getLogger("leveret")

NAME = "lock"
LONGEST = 500
"""Characters that are read of what it says."""
TRIES, PAUSE = 10, 0.02
"""How often and how many seconds apart a lock is asked for: who only looks at it holds it for a moment."""

if sys.platform == "win32":

    def _locked(file: TextIO, shared: bool) -> bool:
        return True
else:
    import fcntl

    def _locked(file: TextIO, shared: bool) -> bool:
        """Whether the lock is ours now.

        Raises:
            OSError: there are no locks here.
        """
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


class Lock:
    """Held while a process works in a folder. Used as a context manager.

    Raises:
        UserError: on entering, if another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Lock:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = (self.folder / NAME).open("a+", encoding="utf-8")
        if not self._taken():
            who = _said(self.file)
            self.file.close()
            raise UserError(f"{self.folder} is in use by {who}; stop that one first, or take another --run-dir")
        with suppress(OSError):  # a full disk: the lock is held all the same
            self.file.truncate(0)
            since = datetime.now(UTC).isoformat(timespec="seconds")
            self.file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}")
            self.file.flush()
        return self

    def _taken(self) -> bool:
        try:
            for attempt in range(TRIES):
                if attempt:
                    time.sleep(PAUSE)
                if _locked(self.file, shared=False):
                    return True
        except OSError as error:
            log.warning("%s cannot be locked (%s): see to it that one process alone works there", self.folder, error)
            return True
        return False

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self.file.truncate(0)
        with suppress(OSError):
            self.file.close()


def holder(folder: Path) -> str | None:
    """Who works in a folder now, as "process 7 on host since time"; None if nobody does, or nobody can know."""
    try:
        with (folder / NAME).open(encoding="utf-8") as file:
            return None if _locked(file, shared=True) else _said(file)
    except OSError:
        return None


def _said(file: TextIO) -> str:
    file.seek(0)
    return file.read(LONGEST).strip() or "another process"
