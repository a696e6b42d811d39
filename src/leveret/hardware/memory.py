"""How much memory there is, how much was held at most, and whether an error says that there is none left."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says what a container may have (version 2)."""


def available_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken; None where the system does not say. The MPS path is untried.

    On CUDA free memory and what torch keeps for itself unused; on a CPU what the system, and the container if there
    is one, have left, or where only that is known (macOS) all of the machine's.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    found = [size for size in (_of_system(), _of_container()) if size is not None]
    return min(found, default=None)


def _of_system() -> int | None:
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _of_container() -> int | None:
    """The limit less what is held; pages of files, which give way, are not held."""
    with suppress(OSError, ValueError):  # no limit: "max"
        limit = int((CGROUP / "memory.max").read_text())
        held = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return limit - int(held["anon"])
    return None


def peak_memory(device: torch.device) -> int | None:
    """The most memory held: on CUDA by tensors, else by the process (None where the system does not tell)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):  # of this program alone; getrusage counts what its starter held, too
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    with suppress(ImportError):
        import resource
        import sys

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; CUDA has an exception for it, the others have words."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(each in str(error) for each in words)
    )
