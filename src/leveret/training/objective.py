"""What a stage minimises: a sum over a micro-batch and the weight that the whole batch divides it by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from leveret.data.batches import IGNORED, Batch
from leveret.model.decoder import Decoder, causal_mask


class Objective(Protocol):
    """The loss of a step is the sum of `loss` over its micro-batches, divided by the sum of `weight`."""

    def weight(self, batch: Batch) -> int:
        """What the batch counts, known before any forward pass."""
        ...

    def loss(self, model: Decoder, batch: Batch) -> Tensor:
        """The summed loss of a micro-batch, a scalar of at least float32."""
        ...


class NextToken:
    """Cross-entropy of the next token, in nats, summed over the targets that are learnt from."""

    def weight(self, batch: Batch) -> int:
        return batch.weight

    def loss(self, model: Decoder, batch: Batch) -> Tensor:
        mask = None
        if batch.documents is not None and batch.positions is not None:
            mask = causal_mask(batch.positions, model.config.sliding_window, batch.documents)
        rows, targets = batch.learnt, batch.targets.flatten()
        logits = model(batch.inputs, batch.positions, mask, rows=rows).flatten(0, -2)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        targets = targets if rows is None else targets.index_select(0, rows)
        return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


@torch.no_grad()
def mean_loss(
    model: Decoder, objective: Objective, batches: Iterable[Batch], device: torch.device, dtype: torch.dtype
) -> tuple[float, int]:
    """The loss over these batches divided by their weight, and the weight."""
    was_training = model.training
    model.eval()
    total, weight = 0.0, 0
    for batch in batches:
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            total += float(objective.loss(model, batch.to(device)))
        weight += objective.weight(batch)
    model.train(was_training)
    return total / max(weight, 1), weight
