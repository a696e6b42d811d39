"""Batches: which windows make up a step, and the tensors of them.

The order is a pure function of (seed, epoch, step): a keyed permutation of the windows for every epoch. There is no
state but the step, and a jump to any step costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leveret.data.shards import IntArray, TokenSplit

IGNORED = -100
"""The target of a position that is not learnt from."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of tokens. B rows, T tokens each.

    inputs, targets: [B, T] int64; a target of -100 is not learnt from. positions, documents: [B, T] int64, the place
    of each token in its document and the document's number in its row; None where documents are not told apart.
    """

    inputs: Tensor
    targets: Tensor
    positions: Tensor | None = None
    documents: Tensor | None = None

    @property
    def weight(self) -> int:
        """Targets that are learnt from."""
        return int((self.targets != IGNORED).sum())

    @property
    def learnt(self) -> Tensor | None:
        """Which of the B * T positions are learnt from, [N]; None where all are, or where to count them is to wait."""
        if self.targets.device.type != "cpu":
            return None
        rows = (self.targets.flatten() != IGNORED).nonzero().squeeze(1)
        return None if len(rows) == self.targets.numel() else rows

    def split(self, rows: int) -> list[Batch]:
        """Micro-batches of that many rows."""
        parts = [None if t is None else t.split(rows) for t in (self.positions, self.documents)]
        return [
            Batch(inputs, targets, parts[0] and parts[0][i], parts[1] and parts[1][i])
            for i, (inputs, targets) in enumerate(zip(self.inputs.split(rows), self.targets.split(rows), strict=True))
        ]

    def to(self, device: torch.device) -> Batch:
        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return Batch(self.inputs.to(device), self.targets.to(device), move(self.positions), move(self.documents))


def permute(index: IntArray, size: int, key: int) -> IntArray:
    """Where each index in [0, size) goes under the permutation named by key.

    A four-round Feistel network over the next even number of bits, walked until it falls inside [0, size)
    (Black and Rogaway, 2002); the round function is splitmix64's finaliser.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)

    def once(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = value >> np.uint64(half), value & low
        for number in range(4):
            round_key = np.uint64((key * 4 + number + 1) * 0x9E3779B97F4A7C15 % 2**64)
            left, right = right, left ^ (_mix(right + round_key) & low)
        return (left << np.uint64(half)) | right

    with np.errstate(over="ignore"):
        out = once(index.astype(np.uint64))
        while (outside := out >= size).any():
            out[outside] = once(out[outside])
    return out.astype(np.int64)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Batches:
    """The batches of one split.

    Args:
        split: the tokens.
        batch_size: rows of a step's batch, however it is cut into micro-batches.
        sequence_length: tokens of a row; shorter windows are filled up.
        seed: names the order.
        pad_id: fills rows up; never learnt from.
        tell_documents: give positions and documents, for masks that keep documents apart.
    """

    def __init__(
        self,
        split: TokenSplit,
        batch_size: int,
        sequence_length: int,
        seed: int = 0,
        pad_id: int = 0,
        tell_documents: bool = False,
    ) -> None:
        self.split = split
        self.batch_size = batch_size
        self.length = sequence_length
        self.seed = seed
        self.pad_id = pad_id
        self.tell_documents = tell_documents

    @property
    def steps_per_epoch(self) -> float:
        return len(self.split.windows) / self.batch_size

    def windows_of(self, step: int) -> IntArray:
        """The windows that make up a step, counting steps from 0."""
        count = len(self.split.windows)
        rows = np.arange(step * self.batch_size, (step + 1) * self.batch_size, dtype=np.int64)
        out = np.empty_like(rows)
        for epoch in np.unique(rows // count):
            of_epoch = rows // count == epoch
            out[of_epoch] = permute(rows[of_epoch] % count, count, self.seed * 1_000_003 + int(epoch))
        return out

    def batch(self, step: int) -> Batch:
        return self.of_windows(self.windows_of(step))

    def in_order(self, most: int | None = None) -> Iterator[Batch]:
        """The split once, or `most` batches evenly spread over it; the last may be smaller."""
        count = len(self.split.windows)
        chosen = np.arange(count)
        if most is not None and most * self.batch_size < count:
            chosen = np.linspace(0, count - 1, most * self.batch_size).astype(np.int64)
        for start in range(0, len(chosen), self.batch_size):
            yield self.of_windows(chosen[start : start + self.batch_size])

    def of_windows(self, numbers: IntArray) -> Batch:
        """The tensors of these windows."""
        rows = len(numbers)
        inputs = np.full((rows, self.length), self.pad_id, dtype=np.int64)
        targets = np.full((rows, self.length), IGNORED, dtype=np.int64)
        documents = np.zeros((rows, self.length), dtype=np.int64)
        positions = np.tile(np.arange(self.length, dtype=np.int64), (rows, 1))
        for row, (start, length) in enumerate(self.split.windows[numbers].tolist()):
            tokens = self.split.read(self.split.shards, start, length)
            used = min(length - 1, self.length)
            inputs[row, :used] = tokens[:used]
            targets[row, :used] = tokens[1 : used + 1]
            if self.split.masks:
                learn = self.split.read(self.split.masks, start, length)
                targets[row, :used][~learn[1 : used + 1]] = IGNORED
            if self.tell_documents:
                self._tell(start, used, documents[row], positions[row])
        batch = Batch(torch.from_numpy(inputs), torch.from_numpy(targets))
        if not self.tell_documents:
            return batch
        return replace(batch, positions=torch.from_numpy(positions), documents=torch.from_numpy(documents))

    def _tell(self, start: int, used: int, documents: IntArray, positions: IntArray) -> None:
        """Fills in which document each token of a row belongs to, and its place in it."""
        token = np.arange(start, start + used)
        number = np.searchsorted(self.split.starts, token, side="right") - 1
        documents[:used] = number - number[:1]
        documents[used:] = documents[used - 1] + 1 if used else 0  # the filling is a document of its own
        positions[:used] = token - np.maximum(self.split.starts[number], start)
        positions[used:] = np.arange(len(positions) - used)
