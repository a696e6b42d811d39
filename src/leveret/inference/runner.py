"""The one place that calls the model for inference."""

from __future__ import annotations

import torch
from torch import Tensor

from leveret.inference.cache import KeyValueCache
from leveret.inference.fused import fused
from leveret.model.decoder import Decoder


class Runner:
    """Runs a decoder over new tokens of cached rows: a few of them by our own kernels where those know it.

    Args:
        model: on its device, in its dtype.
        dtype: of matrix products.
    """

    def __init__(self, model: Decoder, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype
        weight = next(model.norm.parameters())  # matrices may be packed
        self.device = weight.device
        self.autocast = dtype is not torch.float32 and weight.dtype is torch.float32
        self.fused = fused(model, dtype)

    @torch.inference_mode()
    def forward(self, ids_BT: Tensor, real: list[int], cache: KeyValueCache, every: bool = False) -> Tensor:
        """Runs the model over new tokens, of which `real` in each row are no padding, and adds them to the cache.

        Args:
            cache: its rows in use are those of ids_BT.
            every: give the logits after every token, padding too.

        Returns:
            Logits after each row's last real token [B, V], or after every token [B, T, V]; V with rows that only pad
            the table.
        """
        if self.fused is not None and ids_BT.numel() <= self.fused.most:
            return self.fused.forward(ids_BT, real, cache, every)
        positions, masks = cache.place(ids_BT.shape[1])
        with torch.autocast(self.device.type, self.dtype, enabled=self.autocast):
            hidden = self.model.hidden(ids_BT, positions, masks, cache)
            cache.advance(real)
            if every:
                return self.model.head(hidden.flatten(0, 1)).view(*ids_BT.shape, -1).float()
            last = torch.tensor(real, device=self.device) - 1
            return self.model.head(hidden[torch.arange(len(real), device=self.device), last]).float()
