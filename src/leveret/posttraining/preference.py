"""Learning from preferences: the better of two answers is made likelier than the worse, directly (DPO).

    row: prompt + chosen | prompt + rejected | prompt + chosen | ...
        --decoder--> log-probability of every answer, [B, D]
        --less what the base model gave it, known beforehand--> margin of every pair, [B, P] --> -log sigmoid

No reward model and no sampling: both answers are there (Rafailov et al., 2023). B rows, T tokens, D documents of a row,
P = D / 2 pairs, N positions learnt from, C hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leveret.data.batches import IGNORED, Batch
from leveret.model.decoder import Decoder
from leveret.posttraining.config import PreferConfig
from leveret.training.cross_entropy import linear_token_losses
from leveret.training.objective import final_states, learnt_from


def answer_log_probabilities(model: Decoder, batch: Batch, most: int) -> tuple[Tensor, Tensor]:
    """The log-probability of every document's learnt tokens, in nats, and how many they are: [B, D] each.

    Args:
        most: D. Documents beyond it teach nothing (the filling of a row is one).
    """
    documents, positions = batch.documents, batch.positions
    assert documents is not None
    assert positions is not None
    rows, targets = len(batch.inputs), batch.targets.flatten()
    first = torch.arange(rows, device=targets.device)[:, None] * most
    place = (first + documents.clamp(max=most - 1)).flatten()
    # No answer is longer than the context, but two of them are a row, and so its filling may be.
    batch = replace(batch, positions=positions.clamp(max=model.config.max_position_embeddings - 1))
    hidden_NC, targets_N, place_N = learnt_from(batch, final_states(model, batch), targets, place)
    losses_N = linear_token_losses(hidden_NC, model.lm_head.weight, targets_N, IGNORED, model.config.logit_softcap)
    nothing = losses_N.new_zeros(rows * most)
    summed = nothing.index_add(0, place_N, -losses_N)
    tokens = nothing.index_add(0, place_N, (targets_N != IGNORED).to(nothing.dtype))
    return summed.view(rows, most), tokens.view(rows, most)


@dataclass(frozen=True, slots=True)
class Judged:
    """The pairs of a batch, [B, P] each.

    there: whether there is such a pair. losses: 0 where there is none. margins: how much likelier the chosen answer has
    become than the rejected, as the form counts it, times beta. chosen, rejected: log-probabilities. tokens: of both
    answers, [B, P, 2].
    """

    there: Tensor
    losses: Tensor
    margins: Tensor
    chosen: Tensor
    rejected: Tensor
    tokens: Tensor


class Preferences:
    """-log sigmoid of the margin by which the chosen answer leads, summed over pairs.

    The margin, with pi the probability that the model gives an answer y of |y| tokens and ref that of the base model:

        dpo                beta (log pi/ref (chosen) - log pi/ref (rejected))                 Rafailov et al., 2023
        length-normalised  the same with each log-ratio divided by |y|                        Lambert et al., 2024
        reference-free     beta (log pi (chosen) / |y| - log pi (rejected) / |y|) - margin    Meng et al., 2024

    A batch's documents come in pairs, the chosen answer first; `known` is log ref, or zeros without a reference.
    """

    def __init__(self, config: PreferConfig) -> None:
        self.form, self.beta, self.margin = config.form, config.the_beta, config.the_margin
        self.sft_weight = config.sft_weight

    def weight(self, batch: Batch) -> int:
        """Pairs."""
        return batch.learnt_documents // 2

    def loss(self, model: Decoder, batch: Batch) -> Tensor:
        return self.judge(model, batch).losses.sum()

    def judge(self, model: Decoder, batch: Batch) -> Judged:
        assert batch.known is not None
        summed_BD, tokens_BD = answer_log_probabilities(model, batch, batch.known.shape[1])
        mean_BD = summed_BD / tokens_BD.clamp_min(1)
        gain_BD = summed_BD - batch.known.to(summed_BD.dtype)
        if self.form != "dpo":
            gain_BD = gain_BD / tokens_BD.clamp_min(1)
        summed, tokens, mean, gain = (each.unflatten(1, (-1, 2)) for each in (summed_BD, tokens_BD, mean_BD, gain_BD))
        margins = self.beta * (gain[..., 0] - gain[..., 1])
        losses = -F.logsigmoid(margins - self.margin) - self.sft_weight * mean[..., 0]
        there = (tokens > 0).all(-1)
        return Judged(there, torch.where(there, losses, 0), margins, summed[..., 0], summed[..., 1], tokens)

    def likelier(self, judged: Judged) -> Tensor:
        """Whether the model, whatever the base did, finds the chosen answer likelier, for each token where the form
        divides by them: bool [B, P]."""
        if self.form == "dpo":
            return judged.chosen > judged.rejected
        return judged.chosen / judged.tokens[..., 0] > judged.rejected / judged.tokens[..., 1]


@torch.no_grad()
def measure(
    model: Decoder, objective: Preferences, batches: Iterable[Batch], device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """What a model makes of held-out pairs.

    Returns:
        pairs: how many. loss: mean over pairs. accuracy: share of the pairs with a margin above 0, so 0 for the base
        itself where it is the reference. preferred: share whose chosen answer is likelier. margin: mean. chosen,
        rejected: mean log-probabilities of the answers, in nats; where both fall, the model forgets how to answer.
    """
    was_training = model.training
    model.eval()
    totals = torch.zeros(7, dtype=torch.float64)
    for batch in batches:
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            judged = objective.judge(model, batch.to(device))
        figures = (
            judged.there, judged.losses, judged.margins > 0, objective.likelier(judged), judged.margins,
            judged.chosen, judged.rejected,
        )  # fmt: skip
        totals += torch.stack([each[judged.there].float().sum() for each in figures]).cpu()
    model.train(was_training)
    pairs, *rest = totals.tolist()
    names = ("loss", "accuracy", "preferred", "margin", "chosen", "rejected")
    return {"pairs": int(pairs)} | {name: value / max(pairs, 1) for name, value in zip(names, rest, strict=True)}
