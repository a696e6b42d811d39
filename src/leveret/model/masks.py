"""Which earlier tokens each token sees.

On a GPU documents and windows are a block mask of FlexAttention (Dong et al., 2024), which passes over the blocks
nobody sees; elsewhere they are a matrix of truth values. Both say the same.

B rows, T tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from leveret.model.config import ModelConfig

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

    Mask = Tensor | BlockMask | None
    """bool, broadcasting to [B, H, T, S]; or blocks; None is causal over all."""


class Masks(NamedTuple):
    """What the layers see that look at everything, and what those see that have a sliding window."""

    everything: Mask
    window: Mask


def training_masks(config: ModelConfig, positions_BT: Tensor, documents_BT: Tensor | None) -> Masks:
    """The masks of whole rows, each mask made only where the model has a layer that uses it."""
    has_window = config.sliding_window is not None and any(config.windowed)
    everything = None
    if documents_BT is not None and not (has_window and all(config.windowed)):
        everything = _mask(positions_BT, None, documents_BT)
    return Masks(everything, _mask(positions_BT, config.sliding_window, documents_BT) if has_window else None)


def _mask(positions_BT: Tensor, window: int | None, documents_BT: Tensor | None) -> Mask:
    if positions_BT.device.type == "cuda":
        return block_mask(positions_BT, window, documents_BT)
    return causal_mask(positions_BT, window, documents_BT)


def causal_mask(positions_BT: Tensor, window: int | None = None, documents_BT: Tensor | None = None) -> Tensor:
    """Which earlier token each token may see: bool [B or 1, 1, T, T].

    Args:
        positions_BT: ascending within a row; with documents, counted from 0 in each.
        window: how many last tokens are seen, the token itself among them.
        documents_BT: number of the document each token belongs to; tokens see their own document only.
    """
    tokens = positions_BT.shape[1]
    order = torch.arange(tokens, device=positions_BT.device)
    seen = order[:, None] >= order[None, :]  # [T, T]
    if window is not None:
        seen = seen & (order[:, None] - order[None, :] < window)
    seen = seen[None, None]
    if documents_BT is not None:
        seen = seen & (documents_BT[:, None, :, None] == documents_BT[:, None, None, :])
    return seen


def block_mask(positions_BT: Tensor, window: int | None = None, documents_BT: Tensor | None = None) -> BlockMask:
    """The same as blocks for FlexAttention."""
    from torch.nn.attention.flex_attention import create_block_mask

    rows, tokens = positions_BT.shape

    def seen(b: Tensor, _: Tensor, q: Tensor, k: Tensor) -> Tensor:
        allowed = q >= k
        if window is not None:
            allowed = allowed & (q - k < window)
        if documents_BT is not None:
            allowed = allowed & (documents_BT[b, q] == documents_BT[b, k])
        return allowed

    batch = rows if documents_BT is not None else None
    return create_block_mask(seen, batch, None, tokens, tokens, device=str(positions_BT.device))
