"""Keeps the C library from giving freed memory back to the system while a CPU trains or serves."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Numbers of glibc's malloc.h."""


def keep_freed_memory() -> bool:
    """Large tensors come from the heap, which stays, instead of fresh pages each time. Returns whether it was done.

    A step allocates the same tensors again and again; with glibc's defaults each is mapped and unmapped, and
    every page of it faults. benchmarks/allocator.py measures what this saves.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    done = mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(M_TOP_PAD, 64 * 2**20)
    return bool(done)
