"""Looking at shards: what a model will read, and figures of it.

TokenStore --sample--> texts of windows
TokenStore --stats--> Stats --render--> tables for a terminal
                            --plot--> lengths.png, sources.png, frequencies.png
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leveret.data.shards import TokenSplit, TokenStore
from leveret.data.tables import Table
from leveret.data.windows import IntArray, coverage, ends_of, permute
from leveret.errors import UserError
from leveret.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BOUNDARY = "\n──────── next document ────────\n"
CUT = "[…]"
"""Stands where a window begins or ends in the middle of a document."""
AT_ONCE = 4_000_000
"""Tokens counted at a time, to bound memory."""
TOP = 20
"""Most frequent tokens shown."""
BAR = 32
"""Characters of the longest bar in a table."""
BLUE, RED, GREY = "#7aa6c2", "#c44e52", "#555555"


def sample(store: TokenStore, tokenizer: Tokenizer, count: int, seed: int = 0, split: str = "train") -> list[str]:
    """The texts of that many windows, chosen by seed; control tokens and the borders of documents are shown.

    Raises:
        UserError: there is no such split.
    """
    tokens = store.split(split)
    size, out = len(tokens.windows), []
    for number in permute(np.arange(min(count, size)), size, seed):
        pieces = tokens.windows.of(np.array([number])).tolist()
        out.append(BOUNDARY.join(text for piece in pieces for text in _texts(tokens, tokenizer, *piece)))
    return out


def _texts(split: TokenSplit, tokenizer: Tokenizer, start: int, length: int) -> list[str]:
    """What a run of tokens holds of every document that is in it."""
    end = start + length
    first, last = np.searchsorted(split.starts, [start, end], side="right")
    inner = [border for border in np.unique(split.starts[first:last]).tolist() if border < end]
    texts = [
        tokenizer.decode(split.read(split.shards, a, b - a).tolist(), skip_special=False)
        for a, b in pairwise([start, *inner, end])
    ]
    if not first or split.starts[first - 1] != start:
        texts[0] = CUT + texts[0]
    if end != split.tokens and (last == 0 or split.starts[last - 1] != end):
        texts[-1] += CUT
    return texts


# --- figures -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SplitFigures:
    """One split. lost and padded: see `coverage`; `lost` counts what a mixture does not draw, too."""

    documents: int
    tokens: int
    text_bytes: int
    windows: int
    lost: float
    padded: float


@dataclass(frozen=True)
class SourceFigures:
    """One source in all splits. read: its targets in the training windows, as often as they are there."""

    documents: int
    tokens: int
    read: int


@dataclass(frozen=True)
class Stats:
    """Figures of shards.

    lengths: tokens of each document, rising, [N]. counts: occurrences of each token id, [V]. top: texts and occurrences
    of the most frequent tokens. sources: by label; empty where they are not told apart, as among examples.
    """

    splits: dict[str, SplitFigures]
    sources: dict[str, SourceFigures]
    lengths: IntArray
    counts: IntArray
    top: list[tuple[str, int]]

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text (UTF-8) for each token, control tokens counted."""
        return sum(split.text_bytes for split in self.splits.values()) / max(int(self.lengths.sum()), 1)

    @property
    def never_seen(self) -> float:
        """The share of the vocabulary that does not occur."""
        return float((self.counts == 0).mean())

    def entries_for(self, share: float) -> int:
        """How many of the most frequent ids make up that share of all tokens."""
        sums = np.cumsum(np.sort(self.counts)[::-1])
        return int(np.searchsorted(sums, share * sums[-1])) + 1


def stats(store: TokenStore, tokenizer: Tokenizer) -> Stats:
    """Reads every token once; memory grows with the documents and windows only.

    Raises:
        UserError: there are no windows.
    """
    facts: dict[str, Any] = store.manifest["splits"]
    splits = {name: store.split(name) for name, entry in facts.items() if entry["windows"]["count"]}
    if not splits:
        raise UserError(f"{store.folder} has too few tokens for a window; prepare more documents")
    counts = np.zeros(store.manifest["vocab_size"], dtype=np.int64)
    for split in splits.values():
        for shard in split.shards:
            for start in range(0, len(shard), AT_ONCE):
                counts += np.bincount(shard[start : start + AT_ONCE], minlength=len(counts))
    frequent = np.argsort(-counts, kind="stable")[:TOP]
    return Stats(
        splits={name: _split_figures(split) for name, split in splits.items()},
        sources=_by_source(store.manifest, splits),
        lengths=np.sort(np.concatenate([np.diff(split.starts, append=split.tokens) for split in splits.values()])),
        counts=counts,
        top=[(_name(tokenizer, token), int(counts[token])) for token in frequent.tolist() if counts[token]],
    )


def _name(tokenizer: Tokenizer, token: int) -> str:
    return repr(tokenizer.token_bytes(token).decode("utf-8", "backslashreplace"))


def _split_figures(split: TokenSplit) -> SplitFigures:
    longest = int(split.windows.sizes().max())
    shares = coverage(split.windows, split.tokens, longest - 1)
    return SplitFigures(len(split.starts), split.tokens, split.text_bytes, len(split.windows), **shares)


def _by_source(manifest: dict[str, Any], splits: dict[str, TokenSplit]) -> dict[str, SourceFigures]:
    labels = [f"{number}: {label(source)}" for number, source in enumerate(manifest.get("sources", []))]
    found = dict.fromkeys(labels, SourceFigures(0, 0, 0))
    for name, split in splits.items():
        entries = manifest["splits"][name].get("sources", [])
        if split.masks or not entries or any(entry["source"] >= len(labels) for entry in entries):
            return {}
        read = _read_of(split, entries) if name == "train" else [0] * len(entries)
        for entry, targets in zip(entries, read, strict=True):
            old = found[labels[entry["source"]]]
            found[labels[entry["source"]]] = SourceFigures(
                old.documents + entry["documents"], old.tokens + entry["tokens"], old.read + targets
            )
    return found


def _read_of(split: TokenSplit, entries: list[dict[str, int]]) -> list[int]:
    """The targets in the windows of each source; a window belongs where it begins."""
    windows = split.windows
    pieces = windows.pieces if windows.offsets is None else windows.pieces[windows.offsets[:-1]]
    ends = ends_of(np.array([entry["tokens"] for entry in entries]))[1:]
    source = np.searchsorted(ends, pieces[:, 0], side="right")
    return [int(n) for n in np.bincount(source, windows.sizes() - 1, len(entries))]


def label(source: dict[str, Any]) -> str:
    """A source of a manifest in a few words."""
    files = [str(file["name"]) for file in source.get("files", [])]
    if files:
        return files[0] + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    parts = [source.get("name") or source.get("generator") or source.get("kind", "?"), source.get("subset")]
    return "/".join(str(part) for part in parts if part)


# --- for a terminal ------------------------------------------------------------------------------------------


def render(stats: Stats) -> list[Table]:
    """Tables: splits, sources, lengths of documents, frequencies of tokens."""
    return [_splits_table(stats), *([_sources_table(stats)] if stats.sources else []), *_shape_tables(stats)]


def bar(share: float) -> str:
    """A bar for a share of the longest, in eighths of a character."""
    eighths = round(share * BAR * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _splits_table(stats: Stats) -> Table:
    return Table(
        f"Splits: {stats.bytes_per_token:.2f} bytes of text a token",
        ["split", "documents", "tokens", "bytes", "windows", "lost", "padded"],
        [
            [
                name,
                *(f"{n:,}" for n in (s.documents, s.tokens, s.text_bytes, s.windows)),
                f"{s.lost:.2%}",
                f"{s.padded:.2%}",
            ]
            for name, s in stats.splits.items()
        ],
    )


def _sources_table(stats: Stats) -> Table:
    tokens = max(sum(s.tokens for s in stats.sources.values()), 1)
    read = max(sum(s.read for s in stats.sources.values()), 1)
    return Table(
        "Sources",
        ["source", "documents", "tokens", "of all", "of what is read"],
        [
            [name, f"{s.documents:,}", f"{s.tokens:,}", f"{s.tokens / tokens:.1%}", f"{s.read / read:.1%}"]
            for name, s in stats.sources.items()
        ],
    )


def length_table(lengths: IntArray, title: str) -> Table:
    """How many documents are how long, by powers of two. lengths: tokens of each, rising, [N]."""
    edges = 2 ** np.arange(int(lengths[-1]).bit_length() + 1)
    found, _ = np.histogram(lengths, edges)
    shown = list(zip(edges.tolist(), found.tolist(), strict=False))[int((found > 0).argmax()) :]
    middle = ", ".join(f"{q}%: {np.percentile(lengths, q):,.0f}" for q in (5, 25, 50, 75, 95, 99))
    return Table(
        f"{title}: mean {lengths.mean():,.0f}, longest {lengths[-1]:,}; {middle}",
        ["tokens", "documents", "share", ""],
        [
            [f"{low:,} to {2 * low - 1:,}", f"{n:,}", f"{n / len(lengths):.1%}", bar(n / found.max())]
            for low, n in shown
        ],
    )


def _shape_tables(stats: Stats) -> list[Table]:
    total = max(int(stats.counts.sum()), 1)
    half, most = stats.entries_for(0.5), stats.entries_for(0.99)
    frequencies = Table(
        f"Tokens: {half:,} of {len(stats.counts):,} entries make up half of the text, {most:,} make up 99%; "
        f"{stats.never_seen:.1%} never occur",
        ["most frequent", "times", "share", ""],
        [[name, f"{n:,}", f"{n / total:.2%}", bar(n / stats.top[0][1])] for name, n in stats.top],
    )
    return [length_table(stats.lengths, "Tokens of a document"), frequencies]


# --- pictures ------------------------------------------------------------------------------------------------


def plot(stats: Stats, folder: Path) -> list[Path]:
    """Draws lengths.png, frequencies.png and, where sources are known, sources.png into the folder."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    drawings = {"lengths.png": (_draw_lengths, 4.0), "frequencies.png": (_draw_frequencies, 4.0)}
    if stats.sources:
        drawings["sources.png"] = (_draw_sources, 1.5 + 0.5 * len(stats.sources))
    folder.mkdir(parents=True, exist_ok=True)
    with plt.style.context("seaborn-v0_8-whitegrid"):
        for name, (draw, height) in drawings.items():
            figure, axes = plt.subplots(figsize=(7, height))
            draw(stats, axes)
            figure.savefig(folder / name, dpi=110, bbox_inches="tight")
            plt.close(figure)
    return [folder / name for name in drawings]


def _draw_lengths(stats: Stats, axes: Axes) -> None:
    lengths = stats.lengths[stats.lengths > 0]
    bins = np.unique(np.geomspace(int(lengths[0]), int(lengths[-1]) + 1, 61).round())
    for weights, name, colour in ((None, "of documents", BLUE), (lengths, "of tokens", RED)):
        found, _ = np.histogram(lengths, bins, weights=weights)
        axes.stairs(100 * found / found.sum(), bins, fill=True, color=colour, alpha=0.25)
        axes.stairs(100 * found / found.sum(), bins, color=colour, linewidth=1.5, label=name)
    middle = float(np.median(lengths))
    axes.axvline(middle, color=GREY, linestyle="--", linewidth=1, label=f"median {middle:,.0f}")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set(xlabel="tokens of a document", ylabel="share (%)", title="Lengths of documents")
    axes.set_ylim(bottom=0)
    axes.legend()


def _draw_frequencies(stats: Stats, axes: Axes) -> None:
    found = np.sort(stats.counts[stats.counts > 0])[::-1]
    axes.plot(np.arange(1, len(found) + 1), found, color=BLUE, linewidth=1.5)
    for share in (0.5, 0.9, 0.99):
        rank = stats.entries_for(share)
        point = (rank, int(found[rank - 1]))
        axes.plot(*point, "o", color=RED, markersize=5)
        axes.annotate(f"{share:.0%} of the text", point, (-8, -10), textcoords="offset points", ha="right")
    axes.set(xscale="log", yscale="log", xlabel="rank of the entry", ylabel="occurrences")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,.0f}")
    seen = len(found)
    axes.set_title(f"Frequencies of tokens: {seen:,} of {len(stats.counts):,} entries occur")


def _draw_sources(stats: Stats, axes: Axes) -> None:
    names = list(stats.sources)[::-1]
    tokens = np.array([stats.sources[name].tokens for name in names])
    read = np.array([stats.sources[name].read for name in names])
    for offset, values, name, colour in ((0.2, tokens, "of all tokens", BLUE), (-0.2, read, "of what is read", RED)):
        shares = 100 * values / max(values.sum(), 1)
        bars = axes.barh(np.arange(len(names)) + offset, shares, 0.38, color=colour, label=name)
        axes.bar_label(bars, [f"{share:.1f}%" for share in shares], padding=3, fontsize=8)
    axes.set_yticks(np.arange(len(names)), names, parse_math=False)  # a name may hold two $
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    axes.set(xlabel="share (%)", title=f"Sources: {tokens.sum() / 1e6:,.1f} million tokens")
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0)  # beside the bars, which may be full
