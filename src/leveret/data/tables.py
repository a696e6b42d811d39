"""Tables for a terminal of any width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

NARROW = 18
"""Characters that the first column may be folded to."""
_APART = 3
IN_ASCII = str.maketrans("█▉▊▋▌▍▎▏▇▆▅▄▃▂▁", "#######|%*+=-:.")
"""Bars and lines of bars for a terminal that can write no more than ASCII."""


@dataclass(frozen=True)
class Table:
    """A title and a table whose first column is words, and whose others are figures or, without a heading, bars.

    Where the terminal is too narrow for all columns, the last ones are left out.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=box.SIMPLE_HEAD, show_edge=False)
        shown = self._fitting(options.max_width)
        for number, column in enumerate(self.columns[:shown]):
            justify: Literal["left", "right"] = "left" if number == 0 or not column else "right"
            table.add_column(Text(column), justify=justify, no_wrap=number > 0, overflow="fold")
        for row in self.rows:
            cells = [cell.translate(IN_ASCII) if options.ascii_only else cell for cell in row[:shown]]
            table.add_row(*map(Text, cells))  # as Text: names may look like rich's markup
        yield Text(self.title, style="bold")
        yield table
        yield Text()

    def _fitting(self, width: int) -> int:
        """How many columns there is room for."""
        from rich.cells import cell_len

        first, *others = (max(map(cell_len, cells)) for cells in zip(self.columns, *self.rows, strict=True))
        needed = accumulate((_APART + other for other in others), initial=min(first, NARROW) + 2)
        return max(sum(each <= width for each in needed), 1)
