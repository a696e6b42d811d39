"""Keys and values of the tokens seen so far, in memory set aside once."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from leveret.model.config import ModelConfig
from leveret.model.masks import Masks


class KeyValueCache:
    """A static cache of so many slots of S tokens: [layers, slots, K, S, D] for keys and as much for values.

    The rows in use are the first ones, one for each entry of `lengths`: how many tokens of it are there. A row is
    filled from the left; what is written of padding is overwritten by the tokens that come after the row's real ones.
    """

    def __init__(
        self, config: ModelConfig, slots: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.num_hidden_layers, slots, config.kv_heads, capacity, config.head_width)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.window = config.sliding_window
        self.capacity = capacity
        self.lengths: list[int] = []
        self._new: tuple[Tensor, Tensor] | slice = slice(0)  # where new tokens go: rows and positions, or positions
        self._used = 0

    @property
    def device(self) -> torch.device:
        return self.keys.device

    @property
    def bytes_per_slot(self) -> int:
        return (self.keys.nbytes + self.values.nbytes) // self.keys.shape[1]

    def part(self, first: int, lengths: list[int]) -> KeyValueCache:
        """The slots from `first` on, in the same memory, as a cache whose rows in use have these lengths."""
        part = copy(self)
        part.keys, part.values = self.keys[:, first:], self.values[:, first:]
        part.lengths = lengths
        return part

    def place(self, tokens: int) -> tuple[Tensor, Masks]:
        """Makes room for new tokens in every row in use.

        Returns:
            Their positions [B or 1, T], and which keys they see: bool [B or 1, 1, T, S used] each, None where causal
            order says it.
        """
        longest, shortest = max(self.lengths), min(self.lengths)
        self._used = longest + tokens
        assert self._used <= self.capacity
        if longest == shortest:
            self._new = slice(longest, self._used)
            positions = torch.arange(longest, self._used, device=self.device)[None]  # [1, T]
        else:
            first = torch.tensor(self.lengths, device=self.device)[:, None]
            positions = first + torch.arange(tokens, device=self.device)  # [B, T]
            self._new = (torch.arange(len(self.lengths), device=self.device)[:, None], positions)
        plain = longest == shortest and (tokens == 1 or longest == 0)  # causal order says it
        if plain and self.window is None:
            return positions, Masks(None, None)
        keys = torch.arange(self._used, device=self.device)
        distance = positions[:, None, :, None] - keys  # [B or 1, 1, T, S]
        seen = distance >= 0
        windowed = None if self.window is None else seen & (distance < self.window)
        return positions, Masks(None if plain else seen, windowed)

    def extend(self, layer: int, k_BKTD: Tensor, v_BKTD: Tensor) -> tuple[Tensor, Tensor]:
        """Writes a layer's new keys and values; returns all up to the longest row [B, K, S used, D]."""
        rows = len(self.lengths)
        keys, values = self.keys[layer, :rows], self.values[layer, :rows]  # [B, K, S, D]
        if isinstance(self._new, slice):
            keys[:, :, self._new] = k_BKTD
            values[:, :, self._new] = v_BKTD
        else:
            at, positions = self._new
            keys[at, :, positions] = k_BKTD.transpose(1, 2).to(keys.dtype)
            values[at, :, positions] = v_BKTD.transpose(1, 2).to(values.dtype)
        return keys[:, :, : self._used], values[:, :, : self._used]

    def advance(self, counts: list[int]) -> None:
        """Says how many of the tokens placed last were real, in each row."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copies a row's first tokens to another slot; lengths stay as they are."""
        self.keys[:, target, :, :tokens] = self.keys[:, source, :, :tokens]
        self.values[:, target, :, :tokens] = self.values[:, source, :, :tokens]

    def take(self, rows: list[int]) -> None:
        """The rows in use become copies of these."""
        most = max(self.lengths)
        moved = [row for row, source in enumerate(rows) if row != source]
        for store in (self.keys, self.values):
            store[:, moved, :, :most] = store[:, [rows[row] for row in moved], :, :most]
        self.lengths = [self.lengths[row] for row in rows]

    def swap(self, one: int, other: int, lengths: tuple[int, int]) -> None:
        """Exchanges two slots, of whose tokens so many matter."""
        if 0 in lengths:
            source, target = (other, one) if lengths[0] == 0 else (one, other)
            self.copy(source, target, max(lengths))
            return
        most = max(lengths)
        for store in (self.keys, self.values):
            kept = store[:, one, :, :most].clone()
            store[:, one, :, :most] = store[:, other, :, :most]
            store[:, other, :, :most] = kept
