"""What a stage minimises: a sum over a micro-batch and the weight that the whole batch divides it by."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from leveret.data.batches import IGNORED, Batch
from leveret.model.decoder import Decoder
from leveret.model.masks import training_masks
from leveret.training.cross_entropy import liger_cross_entropy, linear_cross_entropy
from leveret.training.parallel import ALONE, Group


class Objective(Protocol):
    """The loss of a step is the sum of `loss` over its micro-batches, divided by the sum of `weight`."""

    def weight(self, batch: Batch) -> int:
        """What the batch counts, known before any forward pass."""
        ...

    def loss(self, model: Decoder, batch: Batch) -> Tensor:
        """The summed loss of a micro-batch, a scalar of at least float32."""
        ...


def final_states(model: Decoder, batch: Batch) -> Tensor:
    """The final hidden states of every position, [B * T, C]; documents that are told apart see only themselves."""
    masks = None
    if batch.documents is not None and batch.positions is not None:
        masks = training_masks(model.config, batch.positions, batch.documents)
    return model.hidden(batch.inputs, batch.positions, masks).flatten(0, 1)


def learnt_from(batch: Batch, *every: Tensor) -> tuple[Tensor, ...]:
    """Of each tensor [B * T, ...] the positions that are learnt from; all of them where nobody has found these."""
    rows = batch.learnt
    return every if rows is None else tuple(each.index_select(0, rows) for each in every)


class NextToken:
    """Cross-entropy of the next token, in nats, summed over the targets that are learnt from.

    kernel: what computes it from the hidden states and the head.
    """

    KERNELS = {"chunked": linear_cross_entropy, "liger": liger_cross_entropy}
    kernel = "chunked"

    def __init__(self, kernel: str = kernel) -> None:
        self.kernel = kernel

    def weight(self, batch: Batch) -> int:
        return batch.weight

    def loss(self, model: Decoder, batch: Batch) -> Tensor:
        hidden, targets = learnt_from(batch, final_states(model, batch), batch.targets.flatten())
        return self.KERNELS[self.kernel](hidden, model.lm_head.weight, targets, IGNORED, model.config.logit_softcap)


class Loss(torch.nn.Module):
    """A model and its objective as one function of a batch, so that both are compiled as one."""

    def __init__(self, model: Decoder, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch) -> Tensor:
        return self.objective.loss(self.model, batch)


@dataclass(frozen=True)
class Called:
    """An objective whose loss is that of a module called as a whole, which is how FSDP's gathers its weights."""

    whole: torch.nn.Module
    objective: Objective

    def weight(self, batch: Batch) -> int:
        return self.objective.weight(batch)

    def loss(self, model: Decoder, batch: Batch) -> Tensor:
        return self.whole(batch)  # type: ignore[no-any-return]


def bits_per_byte(loss: float, density: float) -> float:
    """A mean loss in nats a token as bits for each byte of the text, which compares tokenizers too.

    density: tokens a byte of that text.
    """
    return loss / math.log(2) * density


@torch.no_grad()
def mean_loss(
    model: Decoder,
    objective: Objective,
    batches: Iterable[Batch],
    device: torch.device,
    dtype: torch.dtype,
    ranks: Group = ALONE,
) -> tuple[float, int]:
    """The loss over these batches, of which each rank has a part, divided by their weight; and the weight."""
    was_training = model.training
    model.eval()
    total, weight = 0.0, 0
    for batch in batches:
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            total += float(objective.loss(model, batch.to(device)))
        weight += objective.weight(batch)
    model.train(was_training)
    total, whole = ranks.totals(total, weight)
    return total / max(whole, 1), int(whole)
