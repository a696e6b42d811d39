"""Batches: which windows make up a step, and the tensors of them.

    step --skipped--> place --permute--> windows --pieces--> rows of tokens --> inputs, targets, positions, documents

The order is a pure function of (seed, epoch, step): a keyed permutation of the windows for every epoch. There is no
state but the step and the places skipped, and a jump to any step costs nothing.

B rows, T positions, K pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leveret.data.shards import TokenSplit
from leveret.data.windows import IntArray, ends_of, permute, ranges

IGNORED = -100
"""The target of a position that is not learnt from."""
AHEAD = 16
"""Batches whose windows are looked up at once, since a permutation of few takes as long as one of many."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of tokens. B rows, T tokens each.

    inputs, targets: [B, T] int64; a target of -100 is not learnt from. positions, documents: [B, T] int64, the place
    of each token in its document and the document's number in its row; None where documents are not told apart.
    known: [B, D] float32, a figure known of each document beforehand, by its number in its row; 0 beyond the last.
    is_counted, count, answers, places: whether `counted` has found what `weight`, `learnt_documents` and `learnt`
    answer, and that.
    """

    inputs: Tensor
    targets: Tensor
    positions: Tensor | None = None
    documents: Tensor | None = None
    known: Tensor | None = None
    is_counted: bool = False
    count: int = 0
    answers: int = 0
    places: Tensor | None = None

    @property
    def weight(self) -> int:
        """Targets that are learnt from."""
        return self.count if self.is_counted else int((self.targets != IGNORED).sum())

    @property
    def learnt_documents(self) -> int:
        """Documents that have a target that is learnt from; rows, where documents are not told apart."""
        return (self if self.is_counted else self.counted()).answers

    @property
    def learnt(self) -> Tensor | None:
        """Which of the B * T positions are learnt from, [N]; None where all are, or where to count them is to wait."""
        if not self.is_counted and self.targets.device.type == "cpu":
            return self.counted().places
        return self.places

    def counted(self, multiple: int = 1) -> Batch:
        """With weight and learnt known from here on, so that nothing waits for them on a device. Of a batch on a CPU.

        Args:
            multiple: learnt is made up to a multiple of this by naming, again and again, a position that is not learnt
                from, so that compiled code meets few lengths. Where that comes to every position, learnt is None.
        """
        learnt = self.targets.numpy().ravel() != IGNORED
        places = np.flatnonzero(learnt)
        known = replace(self, is_counted=True, count=len(places), answers=self._answers(places), places=None)
        length = max(1, -(-len(places) // multiple)) * multiple
        if length >= len(learnt):
            return known
        filled = np.full(length, learnt.argmin())
        filled[: len(places)] = places
        return replace(known, places=torch.from_numpy(filled))

    def _answers(self, places: IntArray) -> int:
        """How many documents these positions, in ascending order, are in; rows, where documents are not told apart."""
        if not len(places):
            return 0
        others = np.diff(places // self.inputs.shape[1])
        if self.documents is not None:
            others |= np.diff(self.documents.numpy().ravel()[places])
        return 1 + int(np.count_nonzero(others))

    def split(self, rows: int) -> list[Batch]:
        """Micro-batches of that many rows, not counted yet."""
        whole = Batch(self.inputs, self.targets, self.positions, self.documents, self.known)
        parts = {name: tensor.split(rows) for name, tensor in whole.tensors().items()}
        return [Batch(**dict(zip(parts, each, strict=True))) for each in zip(*parts.values(), strict=True)]

    def tensors(self) -> dict[str, Tensor]:
        """Those there are, by field."""
        every = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in every.items() if isinstance(value, Tensor)}

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **changed)

    def pinned(self) -> Batch:
        """In memory that a GPU copies from by itself."""
        return self._each(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """On that device; for a copy out of pinned memory to a GPU nobody waits."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=device.type == "cuda"))


@lru_cache(maxsize=4)
def _order(seed: int, windows: int, first: int, count: int) -> IntArray:
    """Which windows are read as number first, first + 1, ...: all of them in every epoch, in an order of its own."""
    rows = np.arange(first, first + count, dtype=np.int64)
    out = np.empty_like(rows)
    for epoch in np.unique(rows // windows):
        of_epoch = rows // windows == epoch
        out[of_epoch] = permute(rows[of_epoch] % windows, windows, seed * 1_000_003 + int(epoch))
    return out


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where pieces go: `length` tokens from `start` on, into `row` from `column` on, [K] each. used: [B], how many
    positions of a row are filled; the last token of a row is a target only."""

    row: IntArray
    column: IntArray
    start: IntArray
    length: IntArray
    used: IntArray


class Batches:
    """The batches of one split.

    Args:
        split: the tokens.
        batch_size: rows of a step's batch, however it is cut into micro-batches and among ranks.
        sequence_length: tokens of a row; shorter windows are filled up.
        seed: names the order.
        pad_id: fills rows up; never learnt from.
        tell_documents: give positions and documents, for masks that keep documents apart.
        known: a figure for every document of the split, which batches bring along. Windows hold whole documents then.
        rank, ranks: which of how many processes this is. Each takes as many rows of a batch; those that are missing
            where it does not divide are filled up and learnt from nowhere.
        skipped: places in the order, counted in batches, that are passed over. With the step it is all the state.

    ahead: whether a step's batch may be made before the step; else it asks for the weights as they are then.
    """

    ahead = True

    def __init__(
        self,
        split: TokenSplit,
        batch_size: int,
        sequence_length: int,
        seed: int = 0,
        pad_id: int = 0,
        tell_documents: bool = False,
        *,
        known: NDArray[np.float32] | None = None,
        rank: int = 0,
        ranks: int = 1,
        skipped: frozenset[int] = frozenset(),
    ) -> None:
        self.split = split
        self.batch_size = batch_size
        self.length = sequence_length
        self.seed = seed
        self.pad_id = pad_id
        self.tell_documents = tell_documents
        self.known = known
        self.rank = rank
        self.ranks = ranks
        self.skipped = skipped

    @property
    def steps_per_epoch(self) -> float:
        return len(self.split.windows) / self.batch_size

    @property
    def share(self) -> int:
        """This rank's rows of a step's batch."""
        return -(-self.batch_size // self.ranks)

    def place(self, step: int) -> int:
        """Where in the order the batch of a step stands: the step, moved on by the places skipped up to there.

        To skip the batch that a step has just read, add its place: no earlier step's batch changes.
        """
        for skipped in sorted(self.skipped):
            step += skipped <= step
        return step

    def windows_of(self, step: int) -> IntArray:
        """The windows that make up a step, counting steps from 0, for all ranks."""
        ahead, place = divmod(self.place(step), AHEAD)
        order = _order(self.seed, len(self.split.windows), ahead * AHEAD * self.batch_size, AHEAD * self.batch_size)
        return order[place * self.batch_size : (place + 1) * self.batch_size]

    def batch(self, step: int) -> Batch:
        """This rank's part of a step's batch."""
        return self._part(self.windows_of(step), self.batch_size)

    def told(self) -> dict[str, float]:
        """What the metrics of the last step should say of its batch. All ranks ask together."""
        return {}

    def in_order(self, most: int | None = None) -> Iterator[Batch]:
        """This rank's part of the split once, or of `most` batches evenly spread over it.

        All have as many rows, since compiled code is made for one shape: the last is filled up with empty ones.
        """
        count = len(self.split.windows)
        chosen = np.arange(count)
        if most is not None and most * self.batch_size < count:
            chosen = np.linspace(0, count - 1, most * self.batch_size).astype(np.int64)
        rows = min(len(chosen), self.batch_size)
        for start in range(0, len(chosen), self.batch_size):
            yield self._part(chosen[start : start + self.batch_size], rows)

    def _part(self, numbers: IntArray, rows: int) -> Batch:
        """This rank's share of a batch of these windows, filled up to that many rows for all ranks together."""
        share = -(-rows // self.ranks)
        return self.of_windows(numbers[self.rank * share : (self.rank + 1) * share], share)

    def of_windows(self, numbers: IntArray, rows: int | None = None) -> Batch:
        """The tensors of these windows, and of empty ones up to that many rows."""
        layout = self._lay_out(numbers, len(numbers) if rows is None else rows)
        tokens_BT1 = self._read(self.split.shards, layout, self.pad_id)
        inputs_BT, targets_BT = tokens_BT1[:, :-1].astype(np.int64), tokens_BT1[:, 1:].astype(np.int64)
        if (layout.used < self.length).any():
            filling_BT = np.arange(self.length) >= layout.used[:, None]
            inputs_BT[filling_BT] = self.pad_id
            targets_BT[filling_BT] = IGNORED
        if self.split.masks:
            targets_BT[~self._read(self.split.masks, layout, False)[:, 1:]] = IGNORED
        self._forget_seams(layout, targets_BT)
        batch = Batch(torch.from_numpy(inputs_BT), torch.from_numpy(targets_BT))
        if not self.tell_documents:
            return batch
        positions_BT, documents_BT = self._tell(layout)
        batch = replace(batch, positions=torch.from_numpy(positions_BT), documents=torch.from_numpy(documents_BT))
        if self.known is None:
            return batch
        row, column, number = self.documents_of(numbers)
        known_BD = np.zeros((len(layout.used), self.most_documents), dtype=np.float32)
        known_BD[row, column] = self.known[number]
        return replace(batch, known=torch.from_numpy(known_BD))

    def documents_of(self, numbers: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """The documents that begin in these windows: row, number in its row, and number in the split, of each."""
        start, length = self.split.windows.of(numbers).T
        first, end = (np.searchsorted(self.split.starts, place) for place in (start, start + length))
        row = np.repeat(np.repeat(np.arange(len(numbers)), self.split.windows.counts(numbers)), end - first)
        return row, np.arange(len(row)) - np.searchsorted(row, row), ranges(first, end - first)

    @cached_property
    def most_documents(self) -> int:
        """Documents that begin in the window that has the most of them."""
        return 1 + int(self.documents_of(np.arange(len(self.split.windows)))[1].max(initial=0))

    def _lay_out(self, numbers: IntArray, rows: int) -> _Layout:
        """The pieces of these windows one after the other in their rows; what is beyond a row's end is cut off."""
        counts = self.split.windows.counts(numbers)
        start, length = self.split.windows.of(numbers).T
        row = np.repeat(np.arange(len(numbers)), counts)
        ends = ends_of(length)
        column = ends[:-1] - np.repeat(ends[ends_of(counts)[:-1]], counts)
        length = np.minimum(length, self.length + 1 - column)
        used = np.maximum(np.bincount(row, np.maximum(length, 0), rows).astype(np.int64) - 1, 0)
        inside = length > 0
        return _Layout(row[inside], column[inside], start[inside], length[inside], used)

    def _read(self, arrays: list[NDArray[Any]], layout: _Layout, filling: int) -> NDArray[Any]:
        """The arrays' values in their places, [B, T + 1], in the arrays' dtype."""
        out_BT1 = np.full((len(layout.used), self.length + 1), filling, dtype=arrays[0].dtype)
        places = (layout.row.tolist(), layout.column.tolist(), layout.start.tolist(), layout.length.tolist())
        for row, column, start, length in zip(*places, strict=True):
            out_BT1[row, column : column + length] = self.split.read(arrays, start, length)
        return out_BT1

    def _forget_seams(self, layout: _Layout, targets_BT: IntArray) -> None:
        """No document foretells how another goes on in its middle; how another begins is learnt."""
        seam = layout.column > 0
        if seam.any():
            row, column, start = layout.row[seam], layout.column[seam], layout.start[seam]
            starts = self.split.starts
            middle = np.searchsorted(starts, start, side="left") == np.searchsorted(starts, start, side="right")
            targets_BT[row[middle], column[middle] - 1] = IGNORED

    def _tell(self, layout: _Layout) -> tuple[IntArray, IntArray]:
        """Each token's place in its document (or in what a window has of it), and the document's number in its row.

        The filling of a row is a document of its own.
        """
        begins_BT1 = np.zeros((len(layout.used), self.length + 1), dtype=np.bool_)
        begins_BT1[layout.row, layout.column] = True
        begins_BT1[np.arange(len(layout.used)), layout.used] = True
        first = np.searchsorted(self.split.starts, layout.start, side="right")
        count = np.searchsorted(self.split.starts, layout.start + layout.length, side="left") - first
        start = self.split.starts[ranges(first, count)]
        begins_BT1[np.repeat(layout.row, count), start - np.repeat(layout.start - layout.column, count)] = True
        begins_BT = begins_BT1[:, :-1]
        at = np.flatnonzero(begins_BT)
        lengths = np.diff(at, append=begins_BT.size)
        of_row = np.count_nonzero(begins_BT, axis=1)
        positions = np.arange(begins_BT.size) - np.repeat(at, lengths)
        documents = np.repeat(ranges(np.zeros_like(of_row), of_row), lengths)
        return positions.reshape(begins_BT.shape), documents.reshape(begins_BT.shape)
