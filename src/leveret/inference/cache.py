"""Keys and values of the tokens seen so far, in memory set aside once."""

from __future__ import annotations

import torch
from torch import Tensor

from leveret.model.config import ModelConfig
from leveret.model.masks import Masks


class KeyValueCache:
    """A static cache for B sequences of at most S tokens: [layers, B, K, S, D] for keys and as much for values.

    Each sequence fills its own row from the left; `lengths` says how far. New tokens of a row that are padding are
    written too, and overwritten by the tokens that come after the row's real ones.
    """

    def __init__(
        self, config: ModelConfig, batch: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.num_hidden_layers, batch, config.kv_heads, capacity, config.head_width)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.window = config.sliding_window
        self.capacity = capacity
        self.lengths = torch.zeros(batch, device=device, dtype=torch.long)
        self.positions = self.lengths[:, None]
        self.used = 0

    def place(self, tokens: int) -> tuple[Tensor, Masks]:
        """Makes room for new tokens in every row.

        Returns:
            Their positions [B, T], and which keys they see: bool [B, 1, T, S used] each, None where causal order says
            it.
        """
        new = torch.arange(tokens, device=self.lengths.device)
        self.positions = self.lengths[:, None] + new
        first = self.used == 0
        self.used = int(self.lengths.max()) + tokens
        assert self.used <= self.capacity
        if first and self.window is None:
            return self.positions, Masks(None, None)
        keys = torch.arange(self.used, device=self.lengths.device)
        distance = self.positions[:, None, :, None] - keys  # [B, 1, T, S]
        seen = distance >= 0
        return self.positions, Masks(seen, None if self.window is None else seen & (distance < self.window))

    def extend(self, layer: int, k_BKTD: Tensor, v_BKTD: Tensor) -> tuple[Tensor, Tensor]:
        """Writes a layer's new keys and values; returns all up to the longest row [B, K, S used, D]."""
        rows = torch.arange(len(self.lengths), device=self.lengths.device)[:, None]
        self.keys[layer][rows, :, self.positions] = k_BKTD.transpose(1, 2).to(self.keys.dtype)
        self.values[layer][rows, :, self.positions] = v_BKTD.transpose(1, 2).to(self.values.dtype)
        return self.keys[layer][:, :, : self.used], self.values[layer][:, :, : self.used]

    def keep_rows(self, rows: Tensor) -> None:
        """Drops the other rows."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.lengths = self.lengths[rows]

    def advance(self, counts: Tensor) -> None:
        """Says how many of the tokens placed last were real, [B]."""
        self.lengths = self.lengths + counts

    def clear(self) -> None:
        """Forgets everything, to be filled again."""
        self.lengths = torch.zeros_like(self.lengths)
        self.used = 0
