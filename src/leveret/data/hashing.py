"""64-bit hashes by numpy, many at once: of numbers, and of runs of them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Numbers = NDArray[np.int64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_BASE = 0x9FB21C651E98DF25  # odd, so that its powers have inverses modulo 2**64


def mix(numbers: Hashes) -> Hashes:
    """Changes numbers in place, by a permutation that looks random (SplitMix64, Steele, Lea and Flood 2014)."""
    numbers ^= numbers >> np.uint64(30)
    numbers *= np.uint64(0xBF58476D1CE4E5B9)
    numbers ^= numbers >> np.uint64(27)
    numbers *= np.uint64(0x94D049BB133111EB)
    numbers ^= numbers >> np.uint64(31)
    return numbers


def hash_spans(values: NDArray[Any], starts: Numbers, ends: Numbers) -> Hashes:
    """A hash of values[start:end] for each start and end: a polynomial, by differences of one running sum."""
    powers, inverses = _powers(1 << max(19, len(values).bit_length()))
    sums = np.zeros(len(values) + 1, dtype=np.uint64)
    np.cumsum(values * powers[: len(values)], out=sums[1:])
    return mix((sums[ends] - sums[starts]) * inverses[starts])


@lru_cache(maxsize=8)
def _powers(size: int) -> tuple[Hashes, Hashes]:
    """The powers of the base modulo 2**64, and of its inverse; few sizes are ever asked for."""
    each = (np.full(size, number, dtype=np.uint64) for number in (_BASE, pow(_BASE, -1, 2**64)))
    powers, inverses = (np.cumprod(numbers) for numbers in each)
    return powers, inverses
