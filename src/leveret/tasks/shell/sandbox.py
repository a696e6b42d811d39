"""Runs shell commands that a model wrote, where they can do no harm: cage.py says what holds them.

    jobs (a command, the files it finds) --cage.py, many in one start--> outcomes (exit code, output, folder)

Where the machine does not allow it (no Linux, no user namespaces for everyone, a container that masks /proc), nothing
is run at all: `lack` says why.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

SECONDS = 2.0
"""How long a command may run."""
START_SECONDS = 10.0
"""How long the sandbox itself may take, besides its commands."""
CAGE = Path(__file__).with_name("cage.py")
PLACES = ("backup", "data", "home", "media", "mnt", "opt", "srv", "tmp", "var")
"""Folders of the root that each job has of its own, too."""

Files = Mapping[str, str | None]
"""Contents by path; None is a folder. Paths are relative to the folder that a command works in, or begin with a slash
and one of PLACES."""


@dataclass(frozen=True, slots=True)
class Job:
    """A command and the files that it finds."""

    command: str
    files: Files = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a command.

    status: its exit code, negative after a signal; None where it was ended for taking too long or saying too much, or
    could not be tried.
    output: the first 256 KiB of its stdout. tree: what was there then, [kind, mode, content's hash or target, time] by
    path as in Files; None where that could not be read.
    """

    status: int | None
    output: str = ""
    tree: Mapping[str, Any] | None = None


def run(jobs: Sequence[Job], seconds: float = SECONDS) -> list[Outcome]:
    """What comes of each command, each alone in a folder of its own.

    Raises:
        OSError: the machine does not allow a sandbox; `lack` is for asking before.
    """
    outcomes: list[Outcome] = []
    while len(outcomes) < len(jobs):
        outcomes += _start(jobs[len(outcomes) :], seconds)
    return outcomes


def _start(jobs: Sequence[Job], seconds: float) -> list[Outcome]:
    """The outcomes up to one that ended the sandbox itself, such as by using up the machine's memory."""
    commands = [{"command": job.command, "files": dict(job.files)} for job in jobs]
    asked = {"seconds": seconds, "places": PLACES, "jobs": commands}
    cage = subprocess.Popen(
        [sys.executable, "-I", "-S", str(CAGE)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={}, cwd="/", start_new_session=True,
    )  # fmt: skip
    with cage:
        try:
            said, wrong = cage.communicate(json.dumps(asked).encode(), START_SECONDS + 2 * seconds * len(jobs))
        except subprocess.TimeoutExpired:
            cage.kill()
            said, wrong = cage.communicate()
        except BaseException:
            cage.kill()  # with which everything in it ends
            raise
    if cage.returncode == 3:
        raise OSError(wrong.decode("utf-8", "replace").strip())
    if cage.returncode == 1:
        raise RuntimeError(wrong.decode("utf-8", "replace"))
    lines = said.decode().split("\n")[:-1]
    outcomes = [Outcome(**json.loads(line)) for line in lines]
    return outcomes if len(outcomes) == len(jobs) else [*outcomes, Outcome(None)]


@lru_cache(maxsize=1)
def lack() -> str | None:
    """Why commands cannot be run here, in a few words; None where they can, which is tried."""
    if sys.platform != "linux":
        return "the sandbox needs Linux"
    try:
        held, free = run([Job("touch /made || touch /usr/made || touch /etc/made"), Job("echo made | cat > made; ls")])
    except OSError as error:
        return f"this machine allows no sandbox ({error})"
    if held.status == 0 or free.output != "made\n":
        return "the sandbox does not hold here"
    return None
