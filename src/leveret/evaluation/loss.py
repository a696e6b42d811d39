"""Loss, perplexity and bits per byte on a validation split, overall and by source."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from leveret.data.batches import Batch, Batches
from leveret.data.shards import TokenSplit
from leveret.data.windows import IntArray
from leveret.model.decoder import Decoder
from leveret.training.objective import NextToken, bits_per_byte, mean_loss


def held_out_loss(
    model: Decoder, batches: Batches, device: torch.device, most: int | None = None, labels: Sequence[str] = ()
) -> dict[str, Any]:
    """Measures in float32 over the whole split, or `most` batches spread over it.

    Bits per byte divides the bits of all tokens by the bytes of their text: with the split's mean of bytes a token
    it is exact over the whole split. For masked (fine-tuning) splits it is left out.

    Args:
        labels: what sources are called, by their number in the recipe. Of a whole split that has several, `by_source`
            tells the same figures of each.
    """
    split, objective = batches.split, NextToken()
    apart = _by_source(split) if most is None else {}
    if len(apart) < 2 or max(apart) >= len(labels):
        loss, tokens = mean_loss(model, objective, batches.in_order(most), device, torch.float32)
        return _figures(loss, tokens, None if split.masks else split.tokens / split.text_bytes)
    by_source, total, tokens = {}, 0.0, 0
    for number, (windows, density) in apart.items():
        mean, count = mean_loss(model, objective, _of(batches, windows), device, torch.float32)
        by_source[f"{number}: {labels[number]}"] = _figures(mean, count, density)
        total, tokens = total + mean * count, tokens + count
    return _figures(total / tokens, tokens, split.tokens / split.text_bytes) | {"by_source": by_source}


def _figures(loss: float, tokens: int, density: float | None) -> dict[str, Any]:
    """density: tokens a byte of the text, if that is known."""
    figures: dict[str, Any] = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": tokens}
    if density is not None:
        figures["bits_per_byte"] = bits_per_byte(loss, density)
    return figures


def _by_source(split: TokenSplit) -> dict[int, tuple[IntArray, float | None]]:
    """For each source's number the windows that begin in it, so that one over a seam counts to the first, and its
    tokens a byte; of a fine-tuning split, whose sources nobody knows, nothing.
    """
    if split.masks or not split.sources:
        return {}
    windows = split.windows
    begins = (windows.pieces if windows.offsets is None else windows.pieces[windows.offsets[:-1]])[:, 0]
    place = np.searchsorted(np.cumsum([source["tokens"] for source in split.sources]), begins, side="right")
    found = {}
    for number, source in enumerate(split.sources):
        if len(chosen := np.flatnonzero(place == number)):
            size = source.get("text_bytes")  # older shards do not say
            found[source["source"]] = chosen, source["tokens"] / size if size else None
    return found


def _of(batches: Batches, windows: IntArray) -> Iterator[Batch]:
    """These windows in order, in batches of one shape."""
    rows = min(len(windows), batches.batch_size)
    for start in range(0, len(windows), rows):
        yield batches.of_windows(windows[start : start + rows], rows)
