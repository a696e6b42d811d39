"""Loss, perplexity and bits per byte on a validation split."""

from __future__ import annotations

import math
from typing import Any

import torch

from leveret.data.batches import Batches
from leveret.model.decoder import Decoder
from leveret.training.objective import NextToken, mean_loss


def held_out_loss(model: Decoder, batches: Batches, device: torch.device, most: int | None = None) -> dict[str, Any]:
    """Measures in float32 over the whole split, or `most` batches spread over it.

    Bits per byte divides the bits of all tokens by the bytes of their text: with the split's mean of bytes a token
    it is exact over the whole split. For masked (fine-tuning) splits it is left out.
    """
    loss, tokens = mean_loss(model, NextToken(), batches.in_order(most), device, torch.float32)
    split = batches.split
    figures: dict[str, Any] = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": tokens}
    if not split.masks:
        figures["bits_per_byte"] = loss / math.log(2) * split.tokens / split.text_bytes
    return figures
