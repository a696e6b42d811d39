"""What a stage is trained on out of all that its sources hold: rows refused and counted, shares by weight.

sources --read, each with a Refusals--> lists --weights--> Drawn
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Generic, TypeVar

import numpy as np

from leveret.data.config import ExamplesConfig
from leveret.data.refusals import Refusals
from leveret.data.rows import Drop, refuse
from leveret.data.sources import describe
from leveret.data.windows import permute
from leveret.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Drawn(Generic[T]):
    """The examples (or pairs) of all sources, and what became of the rows of each."""

    items: list[T]
    sources: Sequence[ExamplesConfig]
    read: Sequence[int]
    """Examples that each source holds."""
    taken: Sequence[int]
    """Those of them that are drawn."""
    refused: Sequence[Refusals]
    leaks: Mapping[str, int] = field(default_factory=dict)
    """Those drawn that were left out again since they are held-out examples, by kind."""

    def facts(self) -> list[dict[str, Any]]:
        """What a manifest says of them, source by source."""
        parts = zip(self.read, self.taken, self.refused, strict=True)
        return [{"read": read, "taken": taken, "refused": refused.facts()} for read, taken, refused in parts]

    def lines(self) -> Iterator[str]:
        """For the terminal: what was refused, where and why, and what was taken of sources with weights."""
        for source, read, taken, refused in zip(self.sources, self.read, self.taken, self.refused, strict=True):
            if refused.count:
                yield f"{describe(source)}: {refused.count:,} of {refused.count + read:,} rows refused: {refused}"
                yield from (f"  {line}" for line in refused.lines())
            if source.weight is not None:
                yield f"{describe(source)}: {taken:,} of {read:,} examples taken (weight {source.weight:g})"
        if self.leaks:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.leaks.items())
            yield f"left out {sum(self.leaks.values()):,} examples that are held out to evaluate on: {kinds}"


def draw(
    sources: Sequence[ExamplesConfig], read: Callable[[ExamplesConfig, Drop], Iterator[T]], strict: bool
) -> Drawn[T]:
    """Reads all sources and draws what their weights say, each in its order, source after source.

    Args:
        sources: all with a weight, or none.
        read: reads one of them; what it refuses is told to the Drop.
        strict: refuse the first row that is no example, instead of counting it.

    Raises:
        UserError: as `read` does; a weight so small beside the others that nothing is taken.
    """
    refused = [Refusals() for _ in sources]
    held = [list(read(source, refuse if strict else each)) for source, each in zip(sources, refused, strict=True)]
    sizes = [len(items) for items in held]
    taken = counts(sizes, [source.weight for source in sources])
    if 0 in taken:
        least = sources[taken.index(0)]
        raise UserError(f"{describe(least)}: with a weight of {least.weight:g} not one example is taken; raise it")
    drawn = [
        held[number][place]
        for number, (size, count) in enumerate(zip(sizes, taken, strict=True))
        for place in _places(size, count, number)
    ]
    return Drawn(drawn, sources, sizes, taken, refused)


def counts(sizes: Sequence[int], weights: Sequence[float | None]) -> list[int]:
    """How many to take of each source: all, or with weights the most that have these shares, each example once.

    So the source that is smallest beside its weight is taken whole; the others are rounded down.
    """
    shares = [Fraction(str(weight)) for weight in weights if weight is not None]
    if not shares:
        return list(sizes)
    assert len(shares) == len(sizes)
    unit = min(size / share for size, share in zip(sizes, shares, strict=True))
    return [int(unit * share) for share in shares]


def _places(size: int, count: int, key: int) -> list[int]:
    """`count` of the places 0 ... size - 1, rising, spread as if by chance; a greater count has all of a lesser one."""
    if count == size:
        return list(range(size))
    chosen: list[int] = np.sort(permute(np.arange(count), size, key)).tolist()
    return chosen
