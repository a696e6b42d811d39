"""A terminal that a test types into and reads from."""

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

ESCAPE = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[()][A-Z0-9]|[=>78])")
"""What commands a terminal; without it, what is left is what is read."""


class Terminal:
    """`leveret ARGUMENTS` in a terminal of a kind and width. Used as a context manager; what is left running is killed.

    Args:
        kind: TERM.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        arguments: list[str | Path],
        cwd: Path,
        columns: int = 80,
        kind: str = "xterm",
    ) -> None:
        self.out, self.seen = "", 0
        self.end, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        changed = {"TERM": kind, "PROMPT_TOOLKIT_NO_CPR": "1", "HOME": str(cwd)}
        own = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}

        def begin() -> None:
            os.login_tty(theirs)
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a job in the background would hand on as ignored

        self.process = subprocess.Popen(
            [sys.executable, "-m", "leveret", *map(str, arguments)],
            cwd=cwd,
            env=own | changed,
            preexec_fn=begin,
        )
        os.close(theirs)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.end)

    def send(self, text: str) -> None:
        os.write(self.end, text.encode())

    def wait_for(self, text: str, seconds: float = 30) -> str:
        """Reads until this text stands behind what was waited for before; returns what came up to it, read plainly."""
        deadline = time.monotonic() + seconds
        while (at := self.plain.find(text, self.seen)) < 0:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} did not come; there is {self.plain[self.seen :]!r}"
            if select.select([self.end], [], [], left)[0]:
                assert self._read(), f"{text!r} did not come before the end; there is {self.plain[self.seen :]!r}"
        before, self.seen = self.plain[self.seen : at + len(text)], at + len(text)
        return before

    def leave(self, seconds: float = 30) -> int:
        """Presses ctrl-D and reads to the end; returns the exit code."""
        self.send("\x04")
        deadline = time.monotonic() + seconds
        while select.select([self.end], [], [], max(deadline - time.monotonic(), 0))[0] and self._read():
            pass
        return self.process.wait(max(deadline - time.monotonic(), 0))

    @property
    def plain(self) -> str:
        """All that came, without escape sequences and carriage returns."""
        return ESCAPE.sub("", self.out).replace("\r", "")

    def _read(self) -> bool:
        try:
            data = os.read(self.end, 65536)
        except OSError:  # Linux says so when nobody is at the other end any more
            return False
        self.out += data.decode("utf-8", "replace")
        return bool(data)
