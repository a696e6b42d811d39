"""C files of ours, compiled on the machine that runs them, for its own instructions."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache as once
from pathlib import Path

from leveret.config import cache_dir

FLAGS = "-O3 -march=native -std=gnu11 -fno-math-errno -fno-trapping-math -shared -fPIC"
THREADS = "-fopenmp"
"""Tried first; without it the code runs in one thread."""


@once
def compiled(source: Path) -> ctypes.CDLL | None:
    """The library made of a C file, compiled on first use (seconds) and kept in the cache folder.

    Its threads are those of torch's OpenMP, if torch was imported before. None, with one line on
    standard error that says why, where there is no compiler ($CC, cc, gcc or clang) or it fails.
    """
    command = shlex.split(os.environ.get("CC", "")) or [
        next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), "")
    ]
    if not shutil.which(command[0]):
        _tell("no C compiler was found (cc, gcc, clang or $CC)")
        return None
    key = hashlib.sha256("\n".join([source.read_text("utf-8"), *command, FLAGS, _processor()]).encode())
    library = cache_dir() / "native" / f"{source.stem}-{key.hexdigest()[:16]}.so"
    try:
        if not library.exists():
            _compile(command, source, library)
        return ctypes.CDLL(str(library))
    except subprocess.CalledProcessError as error:
        _tell(f"{command[0]} failed: {' '.join(error.stderr.split()) or error.returncode}"[:300])
    except (OSError, subprocess.TimeoutExpired) as error:
        _tell(str(error))
    return None


def _compile(command: list[str], source: Path, library: Path) -> None:
    """Under a name of its own first, since other processes may do the same."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        for threads in ([THREADS], []):
            done = subprocess.run(
                [*command, *FLAGS.split(), *threads, str(source), "-o", str(made), "-lm"],
                capture_output=True,
                text=True,
                timeout=120,
            )
            if done.returncode == 0:
                break
        done.check_returncode()
        made.replace(library)


@once
def instructions() -> frozenset[str]:
    """The processor's, by the names that Linux gives them; nothing where it does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return frozenset()
    line = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(line.partition(":")[2].split())


def _processor() -> str:
    """What native code depends on: instructions differ between machines that share a home folder."""
    return " ".join([platform.processor(), platform.machine(), *sorted(instructions())])


def _tell(why: str) -> None:
    print(f"going on without compiled kernels, more slowly: {why}", file=sys.stderr)
