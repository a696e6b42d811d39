"""Curves drawn with characters: braille dots for lines, a disc for single points. Two dots wide, four high a cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from leveret.training.plots import limits

Points = Sequence[tuple[float, float]]
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bit of the dot in a column (left, right) and row (from above) of a braille cell."""


def curve(line: Points, single: Points, width: int, height: int) -> list[str]:
    """A picture of so many columns and rows, its axis on the left and at the foot included.

    Args:
        line: points that are joined, in order of x.
        single: points that are marked.
        width: columns in all, at least 20.
        height: rows of the picture; the foot is one more.
    """
    every = [*line, *single]
    heights = [y for _, y in every]
    low, high = min(heights), min(max(heights), limits(heights)[1])
    left, right = min(x for x, _ in every), max(x for x, _ in every)
    labels = [label(high), *[""] * (height - 2), label(low)]
    margin = max(map(len, labels)) + 2
    columns = max(width - margin, 8)

    def place(x: float, y: float) -> tuple[int, int]:
        """The dot, counted from the upper left."""
        across = (x - left) / ((right - left) or 1) * (2 * columns - 1)
        down = (high - min(max(y, low), high)) / ((high - low) or 1) * (4 * height - 1)
        return round(across), round(down)

    cells = [[0] * columns for _ in range(height)]
    for across, down in _joined([place(*point) for point in line]):
        cells[down // 4][across // 2] |= DOTS[across % 2][down % 4]
    rows = [[chr(0x2800 + dots) if dots else " " for dots in row] for row in cells]
    for across, down in (place(*point) for point in single):
        rows[down // 4][across // 2] = "●"
    lines = [f"{name:>{margin - 1}}┤{''.join(row)}".rstrip() for name, row in zip(labels, rows, strict=True)]
    ends = label(left), label(right)
    return [*lines, " " * margin + ends[0] + ends[1].rjust(columns - len(ends[0]))]


def _joined(dots: list[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """The dots and those on the way from each to the next."""
    yield from dots[:1]
    for (x, y), (to_x, to_y) in pairwise(dots):
        count = max(abs(to_x - x), abs(to_y - y))
        for number in range(1, count + 1):
            yield x + round((to_x - x) * number / count), y + round((to_y - y) * number / count)


def label(value: float) -> str:
    """A number in few characters."""
    if value and (abs(value) < 1e-2 or abs(value) >= 1e6):
        return f"{value:.2g}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.2f}"
