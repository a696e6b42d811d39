"""Windows: which runs of a split's tokens make up the rows that training reads.

    starts of documents --concatenated or best_fit--> Windows of every source --mixture--> Windows of the split

All of it is decided while the data is prepared. What order they are read in is a matter of `permute` alone.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from leveret.data.hashing import mix
from leveret.errors import UserError

if TYPE_CHECKING:
    from leveret.data.config import DataConfig
    from leveret.data.shards import ShardWriter

IntArray = NDArray[np.int64]
Packing = Literal["concatenate", "best-fit"]


@dataclass(frozen=True, slots=True)
class Windows:
    """Rows to read: W windows out of P pieces, each piece a run of the split's tokens.

    pieces: [P, 2] int64, start and length. offsets: [W + 1] int64, window w is pieces[offsets[w] : offsets[w + 1]];
    None where every piece is a window.
    """

    pieces: IntArray
    offsets: IntArray | None = None

    def __len__(self) -> int:
        return len(self.pieces) if self.offsets is None else len(self.offsets) - 1

    def counts(self, numbers: IntArray) -> IntArray:
        """The number of pieces of each of these windows."""
        return np.ones_like(numbers) if self.offsets is None else self.offsets[numbers + 1] - self.offsets[numbers]

    def of(self, numbers: IntArray) -> IntArray:
        """The pieces of these windows, in order, [K, 2]."""
        if self.offsets is None:
            return self.pieces[numbers]
        return self.pieces[ranges(self.offsets[numbers], self.counts(numbers))]

    def select(self, numbers: IntArray) -> Windows:
        """Some windows, in this order; one may come several times."""
        return Windows(self.of(numbers), None if self.offsets is None else ends_of(self.counts(numbers)))

    def sizes(self) -> IntArray:
        """The tokens of each window, [W]."""
        lengths: IntArray = self.pieces[:, 1]
        return lengths if self.offsets is None else np.diff(ends_of(lengths)[self.offsets])


def ends_of(counts: IntArray) -> IntArray:
    """0 and the running sums: [N] to [N + 1]."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)])


def ranges(firsts: IntArray, counts: IntArray) -> IntArray:
    """counts[0] whole numbers from firsts[0] on, then counts[1] from firsts[1] on, and so forth."""
    ends = ends_of(counts)
    return np.arange(ends[-1], dtype=np.int64) + np.repeat(firsts - ends[:-1], counts)


def join(parts: Sequence[Windows]) -> Windows:
    """The windows of all parts, one part after the other."""
    pieces = np.concatenate([part.pieces for part in parts])
    if all(part.offsets is None for part in parts):
        return Windows(pieces)
    return Windows(pieces, ends_of(np.concatenate([part.counts(np.arange(len(part))) for part in parts])))


# --- documents to windows ------------------------------------------------------------------------------------


def concatenated(starts: IntArray, end: int, length: int) -> Windows:
    """Windows over documents laid end to end: length + 1 tokens each, the last one shared with the next.

    A rest shorter than that is left out; but documents too short for one window together are that one window.

    Args:
        starts: where each document begins, [N], rising; the next begins where one ends.
        end: where the last one ends.
        length: positions of a row.
    """
    begin = int(starts[0]) if len(starts) else end
    first = np.arange(begin, max(end - 1, begin), length, dtype=np.int64)
    lengths = np.minimum(length + 1, end - first)
    whole = lengths == length + 1
    return Windows(np.stack([first, lengths], axis=1)[whole if whole.any() else slice(None)])


def best_fit(starts: IntArray, end: int, length: int) -> Windows:
    """Windows of whole documents wherever they fit (Ding et al., 2024, "Fewer Truncations Improve Language Modeling").

    A document of more than length + 1 tokens fills rows of its own first, each beginning with the last token of the
    one before, so that every token but the first is a target once; what is left of it is packed with the others.
    Arguments as of `concatenated`. Documents of a single token, which hold no target, are left out.
    """
    sizes = np.diff(starts, append=end)
    own = np.maximum(sizes - 1, 0) // length
    full = np.repeat(starts, own) + length * ranges(np.zeros_like(own), own)
    starts, sizes = starts + own * length, sizes - own * length
    starts, sizes = starts[sizes > 1], sizes[sizes > 1]
    items, offsets = pack(sizes, length + 1)
    packed = np.stack([starts, sizes], axis=1)[items]
    return join([Windows(np.stack([full, np.full_like(full, length + 1)], axis=1)), Windows(packed, offsets)])


def pack(lengths: IntArray, capacity: int) -> tuple[IntArray, IntArray]:
    """Which items share a row of that capacity: the longest first, each where it leaves the least room.

    Items of one length are placed together, and so are rows with equal room: the work is N + capacity.

    Args:
        lengths: [N], each from 1 to capacity.

    Returns:
        items [N] and offsets [R + 1]: row r holds items[offsets[r] : offsets[r + 1]], in the order they were given.
    """
    assert not len(lengths) or 0 < lengths.min() <= lengths.max() <= capacity
    order = np.argsort((capacity - lengths).astype(np.min_scalar_type(capacity)), kind="stable")
    row_of = np.empty(len(lengths), dtype=np.int64)  # row of each item, in that order
    groups = _Rows()
    done = rows = 0
    found, counts = np.unique(lengths, return_counts=True)
    for length, count in zip(found[::-1].tolist(), counts[::-1].tolist(), strict=True):
        left = count
        while left:
            room, free = groups.take(length) or (capacity, np.arange(rows, rows - (-left // (capacity // length))))
            each = room // length
            used, rest = np.split(free, [-(-left // each)])
            placed = min(left, len(used) * each)
            row_of[done : done + placed] = np.repeat(used, each)[:placed]
            groups.put(room, rest)
            groups.put(room - each * length, used[:-1])
            groups.put(room - (placed - (len(used) - 1) * each) * length, used[-1:])
            rows, done, left = max(rows, int(used[-1]) + 1), done + placed, left - placed
    row_of[order] = row_of.copy()
    return np.argsort(row_of, kind="stable"), ends_of(np.bincount(row_of, minlength=rows))


class _Rows:
    """Rows by the room they have left."""

    def __init__(self) -> None:
        self.rooms: list[int] = []  # sorted
        self.rows: dict[int, list[IntArray]] = {}

    def put(self, room: int, rows: IntArray) -> None:
        if not room or not len(rows):
            return
        if room not in self.rows:
            insort(self.rooms, room)
        self.rows.setdefault(room, []).append(rows)

    def take(self, length: int) -> tuple[int, IntArray] | None:
        """The least room that is enough, and all rows that have it."""
        at = bisect_left(self.rooms, length)
        if at == len(self.rooms):
            return None
        room = self.rooms.pop(at)
        return room, np.concatenate(self.rows.pop(room))


def coverage(windows: Windows, tokens: int, length: int) -> dict[str, float]:
    """What windows make of that many tokens.

    Returns:
        lost: the share of the tokens that are in no window; padded: the share of the rows' length + 1 places that no
        token fills.
    """
    first, lengths = windows.pieces[np.argsort(windows.pieces[:, 0], kind="stable")].T
    ends = np.maximum.accumulate(first + lengths)
    fresh = ends - np.maximum(first, np.concatenate([first[:1], ends[:-1]]))
    return {
        "lost": round(1 - int(fresh.sum()) / max(tokens, 1), 6),
        "padded": round(1 - int(lengths.sum()) / max(len(windows) * (length + 1), 1), 6),
    }


# --- mixtures ------------------------------------------------------------------------------------------------


def mixture(
    sources: Sequence[Windows],
    weights: Sequence[float | None],
    epochs: Sequence[float | None],
    tokens: int | None,
    seed: int = 0,
) -> tuple[Windows, list[dict[str, Any]]]:
    """How much is drawn of every source. A window of n tokens counts n - 1, its targets.

    - With weights (then every source has one): a source gives weight / sum of weights of `tokens`, or, without
      `tokens`, of as many as all sources hold.
    - Without: a source is read `epochs` times, once where that is None. With `tokens` too, all of them are read more
      often or less, in the same proportion, until that many are drawn.

    What a source gives is whole passes over its windows and, for the rest, windows chosen by a key: 2.3 passes are
    all of its windows twice and three tenths of them once more. Sources stand one after the other in the result; the
    order of batches shuffles them.

    Args:
        sources: the windows of each.
        weights, epochs: of each source.
        tokens: to draw in all; met to within half a window for each source where windows are equally long, else in the
            mean.
        seed: names the choice.

    Returns:
        the windows, and for each source what was drawn: windows, tokens, epochs.

    Raises:
        UserError: a source with a weight holds nothing.
    """
    sizes = [int((part.sizes() - 1).sum()) for part in sources]
    if any(weight is not None for weight in weights):
        for number, (weight, size) in enumerate(zip(weights, sizes, strict=True)):
            if weight is not None and not size:
                raise UserError(f"data.sources.{number} has a weight, but no text to train on; take it out")
        shares = [weight or 0.0 for weight in weights]
        total = float(tokens or sum(sizes))
    else:
        shares = [size * (1.0 if passes is None else passes) for size, passes in zip(sizes, epochs, strict=True)]
        total = float(tokens or sum(shares))
    chosen, drawn = [], []
    for number, (part, size, share) in enumerate(zip(sources, sizes, shares, strict=True)):
        passes = total * share / sum(shares) / size if size else 0.0
        times, rest = divmod(round(passes * len(part)), max(len(part), 1))
        numbers = np.arange(len(part), dtype=np.int64)
        again = permute(numbers, len(part), seed * 1_000_003 + number) < rest
        chosen.append(part.select(np.repeat(numbers, times + again)))
        count, targets = len(chosen[-1]), int((chosen[-1].sizes() - 1).sum())
        drawn.append({"windows": count, "tokens": targets, "epochs": round(count / max(len(part), 1), 6)})
    return join(chosen), drawn


def windows_of(
    writer: ShardWriter, config: DataConfig, length: int
) -> tuple[dict[str, Windows], dict[str, dict[str, Any]]]:
    """The windows of every split that was written, and what the manifest says of them. Only training is a mixture."""
    made, facts = {}, {}
    for name, split in writer.splits.items():
        mix: dict[str, Any] = {}
        if name == "train":
            mix["weights"] = [source.weight for source in config.sources]
            mix["epochs"] = [source.epochs for source in config.sources]
            mix["tokens"] = config.tokens
        made[name], facts[name] = make_windows(writer.starts(name), split.sources, length, config.packing, **mix)
    return made, facts


def make_windows(
    starts: IntArray,
    sources: Sequence[dict[str, int]],
    length: int,
    packing: Packing = "concatenate",
    weights: Sequence[float | None] = (),
    epochs: Sequence[float | None] = (),
    tokens: int | None = None,
) -> tuple[Windows, dict[str, Any]]:
    """The windows of a split, and what its manifest says of them.

    Documents that are merely concatenated and not mixed make one run; else no window has two sources in it.

    Args:
        starts: where each document of the split begins.
        sources: in the order of the split, each {"source": number in the recipe, "documents", "tokens"}.
        length: positions of a row.
        weights, epochs: of every source of the recipe, or nothing; for a validation split nothing.
        tokens: to draw in all.

    Returns:
        the windows, and {"packing", "lost", "padded"} with the shares of `coverage` before any mixing; of a mixture
        also "drawn": for each source of the recipe {"source", "windows", "tokens", "epochs"}.
    """
    mixed = tokens is not None or any(value is not None for value in (*weights, *epochs))
    if packing == "concatenate" and not mixed:
        sources = [{"source": 0, "documents": len(starts), "tokens": sum(source["tokens"] for source in sources)}]
    make = {"concatenate": concatenated, "best-fit": best_fit}[packing]
    documents = ends_of(np.array([source["documents"] for source in sources]))
    ends = ends_of(np.array([source["tokens"] for source in sources]))
    parts = [make(starts[a:b], end, length) for a, b, end in zip(documents, documents[1:], ends[1:], strict=False)]
    windows = join(parts)
    facts: dict[str, Any] = {"packing": packing, **coverage(windows, int(ends[-1]), length)}
    if mixed:
        of = {source["source"]: part for source, part in zip(sources, parts, strict=True)}
        every = [of.get(number, Windows(np.empty((0, 2), dtype=np.int64))) for number in range(len(weights))]
        windows, drawn = mixture(every, weights, epochs, tokens)
        facts["drawn"] = [{"source": number, **counts} for number, counts in enumerate(drawn)]
    return windows, facts


# --- order ---------------------------------------------------------------------------------------------------


def permute(index: IntArray, size: int, key: int) -> IntArray:
    """Where each index in [0, size) goes under the permutation named by key.

    A four-round Feistel network over the next even number of bits, walked until it falls inside [0, size)
    (Black and Rogaway, 2002); the round function is `mix`.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)

    def once(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = value >> np.uint64(half), value & low
        for number in range(4):
            round_key = np.uint64((key * 4 + number + 1) * 0x9E3779B97F4A7C15 % 2**64)
            left, right = right, left ^ (mix(right + round_key) & low)
        return (left << np.uint64(half)) | right

    with np.errstate(over="ignore"):
        out = once(index.astype(np.uint64))
        while (outside := out >= size).any():
            out[outside] = once(out[outside])
    return out.astype(np.int64)
