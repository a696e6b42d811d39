"""What filters do to documents: how many each drops and changes, which, and why.

documents --> the filters in sequence, and each alone --> Inspection --> tables for the terminal
                                                                    \\-> inspect_page.py: a page
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from math import inf, isfinite, log
from pathlib import Path
from typing import TYPE_CHECKING

from leveret.config import Config
from leveret.data.config import SourceConfig
from leveret.data.filters.chain import Chain, apply
from leveret.data.filters.config import FilterConfig, GopherQualityConfig
from leveret.data.filters.measures import Filter, Measured, Result, length, quality
from leveret.data.hub import RETRY, RetryConfig
from leveret.data.rows import Drop, refuse
from leveret.data.sources import Document, Generators, documents
from leveret.data.tables import Table
from leveret.errors import UserError

if TYPE_CHECKING:
    from rich.console import RenderableType

EXAMPLES_PER_RULE, EXAMPLES = 3, 15
"""Dropped documents that are kept as examples, of each rule of a filter and of the whole filter."""
EXCERPT = 1500
"""Characters of a text that an example shows."""
BINS = 32


@dataclass(frozen=True)
class Dropped:
    """A document that a filter dropped: where it stands, why, and its first characters."""

    where: str
    why: str
    text: str


@dataclass(frozen=True)
class Changed:
    """A document that a filter changed: the first lines that are gone, and those that are new."""

    where: str
    gone: list[str]
    new: list[str]


@dataclass
class FilterReport:
    """What one filter did. In sequence it sees what those before it left; alone it sees every document."""

    name: str
    seen: int = 0
    dropped: int = 0
    changed: int = 0
    dropped_alone: int = 0
    changed_alone: int = 0
    rules: Counter[str] = field(default_factory=Counter)
    """Documents dropped in sequence, by the rule that was broken."""
    edits: Counter[str] = field(default_factory=Counter)
    """Changes made in sequence to documents that were kept, by kind; several in a document count each."""
    drops: list[Dropped] = field(default_factory=list)
    """Examples."""
    changes: list[Changed] = field(default_factory=list)
    """Examples."""

    def add(self, result: Result, before: str, where: str) -> None:
        """Counts one document in sequence, and keeps it as an example while there are few."""
        self.seen += 1
        if result.text is None:
            rule = result.why.partition(": ")[0]
            self.dropped += 1
            self.rules[rule] += 1
            if self.rules[rule] <= EXAMPLES_PER_RULE and len(self.drops) < EXAMPLES:
                self.drops.append(Dropped(where, result.why, shortened(before)))
        elif result.edits:
            self.changed += 1
            self.edits.update(result.edits)
            if len(self.changes) < EXAMPLES_PER_RULE:
                self.changes.append(Changed(where, *_difference(before, result.text)))


@dataclass(frozen=True)
class Histogram:
    """How a measure of the documents, as they were read, is distributed."""

    filter: str
    measure: str
    edges: list[float]
    """[B + 1] of the bins, evenly apart, or so in the logarithm."""
    counts: list[int]
    """[B] documents in each bin."""
    logarithmic: bool
    least: float
    most: float
    """Bounds of the filter; infinite where it has none."""
    outside: int
    """Documents out of bounds."""
    median: float

    def place(self, value: float) -> float:
        """Where a value stands between the first edge (0) and the last (1)."""
        low, high = self.edges[0], self.edges[-1]
        if self.logarithmic:
            return log(max(value, low) / low) / log(high / low)
        return (value - low) / (high - low)


@dataclass
class Inspection:
    """What some filters do to some documents."""

    documents: int = 0
    size: int = 0
    """Bytes of the texts that were read."""
    kept: int = 0
    kept_size: int = 0
    """Bytes of the texts that are left."""
    filters: list[FilterReport] = field(default_factory=list)
    histograms: list[Histogram] = field(default_factory=list)


def inspect_sources(
    sources: Sequence[SourceConfig],
    filters: Sequence[FilterConfig],
    base_dir: Path,
    generators: Generators,
    limit: int = 1000,
    drop: Drop = refuse,
    retry: RetryConfig = RETRY,
) -> Inspection:
    """What the filters do to the first `limit` documents, as many of each source as of the others.

    Raises UserError for what cannot be read, unless `drop` takes it, and for a filter that cannot be made or whose
    function fails.
    """
    if not sources:
        raise UserError("data.sources is empty, so there is nothing to look at")
    each = -(-limit // len(sources))
    found = (islice(documents(source, base_dir, generators, drop, retry=retry), each) for source in sources)
    return inspect(chain.from_iterable(found), filters, base_dir, limit)


def inspect(documents: Iterable[Document], filters: Sequence[FilterConfig], base_dir: Path, limit: int) -> Inspection:
    """What the filters do to the first `limit` documents. Raises UserError as `Chain` does."""
    steps = Chain(filters, base_dir).filters
    measured = {"length": Measured(length, Config()), "gopher-quality": Measured(_default_quality(), Config())}
    measured |= {name: step for name, step in steps.items() if isinstance(step, Measured)}
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    found = Inspection(filters=[FilterReport(name) for name in steps])
    for document in islice(documents, limit):
        found.documents += 1
        found.size += len(document.text.encode("utf-8", "replace"))
        left = _run(document, steps, found.filters)
        if left is not None:
            found.kept += 1
            found.kept_size += len(left.encode("utf-8", "replace"))
        for name, step in measured.items():
            for measure, value in step.measure(document.text).items():
                values[name, measure].append(value)
    found.histograms = [
        histogram(name, measure, of_all, measured[name].bounds.get(measure, (-inf, inf)))
        for (name, measure), of_all in values.items()
    ]
    return found


def _default_quality() -> Callable[[str], dict[str, float]]:
    return partial(quality, stop_words=frozenset(GopherQualityConfig().stop_words))


def _run(document: Document, steps: Mapping[str, Filter], reports: Sequence[FilterReport]) -> str | None:
    """Runs one document through the filters, in sequence and each alone; returns what is left of it."""
    left: str | None = document.text
    where = document.where or document.source
    for (name, step), report in zip(steps.items(), reports, strict=True):
        alone = apply(name, step, document.text, where)
        report.dropped_alone += alone.text is None
        report.changed_alone += alone.text is not None and bool(alone.edits)
        if left is not None:
            result = alone if left == document.text else apply(name, step, left, where)
            report.add(result, left, where)
            left = result.text
    return left


def shortened(text: str, most: int = EXCERPT) -> str:
    """The first characters of a text, and how many more there are."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} characters more)"


def _difference(before: str, after: str) -> tuple[list[str], list[str]]:
    """The first three lines each that stand in one text only; a line that another one replaced is cut to where they
    differ."""
    old, new = before.split("\n"), after.split("\n")
    in_old, in_new = set(old), set(new)
    gone = list(islice((line for line in old if line.strip() and line not in in_new), 3))
    come = list(islice((line for line in new if line.strip() and line not in in_old), 3))
    same = [max(_same_letters(*pair) - 60, 0) for pair in zip(gone, come, strict=False)] + [0, 0, 0]
    return _cut(gone, same), _cut(come, same)


def _same_letters(one: str, other: str) -> int:
    """How many characters both begin with."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _cut(lines: Sequence[str], starts: Sequence[int]) -> list[str]:
    return ["…" * bool(start) + shortened(line[start:], 240) for line, start in zip(lines, starts, strict=False)]


def histogram(name: str, measure: str, values: Sequence[float], bounds: tuple[float, float]) -> Histogram:
    """The histogram of one measure, from 0 or the least value to the greatest, its bounds included; logarithmic
    where values reach from near 0 into the thousands. Infinite values are in the first and last bin."""
    import numpy as np

    least, most = bounds
    array = np.asarray(values, float)
    ends = [*filter(isfinite, bounds), *array[np.isfinite(array)].tolist()] or [0.0]
    low, high = min(ends), max(ends)
    logarithmic = low >= 0 and high >= 1000
    low = max(low, 1.0) if logarithmic else min(low, 0.0)
    high = high if high > low else low + 1
    edges = np.geomspace(low, high, BINS + 1) if logarithmic else np.linspace(low, high, BINS + 1)
    counts, _ = np.histogram(np.clip(array, edges[0], edges[-1]), edges)
    outside = int(((array < least) | (array > most)).sum())
    return Histogram(
        name, measure, edges.tolist(), counts.tolist(), logarithmic, least, most, outside, float(np.median(array))
    )


# --- the terminal --------------------------------------------------------------------------------------------


def render_terminal(found: Inspection, examples: int = 3) -> RenderableType:
    """Tables of the filters and of the measures, and some examples of each filter, for rich to print."""
    from rich.console import Group
    from rich.text import Text

    summary = (
        f"{found.documents:,} documents ({megabytes(found.size)}) read, {found.kept:,} kept "
        f"({share(found.kept, found.documents)}), {megabytes(found.kept_size)} left"
    )
    tables = (_filter_table(found), *_rule_lines(found), Text(), _measure_table(found))
    return Group(Text(summary), Text(), *tables, *_example_lines(found, examples))


def _filter_table(found: Inspection) -> Table:
    return Table(
        "Filters in sequence; drops and changes: what each would do alone",
        ["filter", "seen", "dropped", "share", "changed", "drops", "changes"],
        [
            [
                report.name,
                f"{report.seen:,}",
                f"{report.dropped:,}",
                share(report.dropped, report.seen),
                f"{report.changed:,}",
                f"{report.dropped_alone:,}",
                f"{report.changed_alone:,}",
            ]
            for report in found.filters
        ],
    )


def _rule_lines(found: Inspection) -> Iterator[RenderableType]:
    """By which rule each filter dropped, or what it changed, the most frequent first."""
    from rich.text import Text

    for report in found.filters:
        if counts := (report.rules + report.edits).most_common(6):
            yield Text(f"{report.name}: " + ", ".join(f"{rule} {count:,}" for rule, count in counts))


def _measure_table(found: Inspection) -> Table:
    return Table(
        "Documents as they were read",
        ["measure", "", "median", "bounds", "outside", "from", "to"],
        [
            [
                f"{each.filter}: {words(each.measure)}",
                sparkline(each.counts),
                number(each.median),
                in_words(each),
                f"{each.outside:,}" if each.outside else "",
                number(each.edges[0]),
                number(each.edges[-1]),
            ]
            for each in found.histograms
        ],
    )


def _example_lines(found: Inspection, examples: int) -> Iterator[RenderableType]:
    from rich.text import Text

    for report in found.filters:
        for drop in report.drops[:examples]:
            yield Text(f"\n{report.name} drops {drop.where}\n  {drop.why}", style="bold")
            yield Text(f"  {' '.join(drop.text.split())[:240]}")
        for change in report.changes[:examples]:
            yield Text(f"\n{report.name} changes {change.where}", style="bold")
            yield Text(
                "\n".join([f"  - {line[:160]}" for line in change.gone] + [f"  + {x[:160]}" for x in change.new])
            )


def sparkline(counts: Sequence[int], width: int = BINS // 2) -> str:
    """`width` bars of text, each of several bins; what is not 0 shows."""
    step = -(-len(counts) // width)
    sums = [sum(counts[start : start + step]) for start in range(0, len(counts), step)]
    top = max(sums)
    return "".join(" ▁▂▃▄▅▆▇█"[-(-8 * count // top) if top else 0] for count in sums)


def words(name: str) -> str:
    return name.replace("_", " ")


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""


def number(value: float) -> str:
    """A number with three digits or more where they stand before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def in_words(each: Histogram) -> str:
    """The bounds of a measure: "3 to 10", "at most 0.3", or "" if there are none."""
    if isfinite(each.least) and isfinite(each.most):
        return f"{number(each.least)} to {number(each.most)}"
    if isfinite(each.least):
        return f"at least {number(each.least)}"
    return f"at most {number(each.most)}" if isfinite(each.most) else ""
