"""From logits to the next token."""

from __future__ import annotations

import torch
from torch import Tensor

from leveret.inference.config import SamplingConfig


def next_token(logits_V: Tensor, history: list[int], config: SamplingConfig, generator: torch.Generator) -> int:
    """Chooses a token from the logits [V] of one sequence, whose tokens so far are `history`."""
    logits = penalise(logits_V.float(), history, config)
    if config.temperature == 0:
        return int(logits.argmax())
    probabilities = truncate(logits / config.temperature, config).softmax(-1)
    return int(torch.multinomial(probabilities.cpu(), 1, generator=generator))


def penalise(logits_V: Tensor, history: list[int], config: SamplingConfig) -> Tensor:
    """Makes tokens of the history less probable, by either form of the repetition penalty."""
    if config.repetition_penalty == 1.0 or not history:
        return logits_V
    window = history[-config.repetition_window :] if config.repetition_window else history
    tokens, counts = torch.tensor(window, device=logits_V.device).unique(return_counts=True)
    power = counts.float() if config.repetition_form == "per-count" else torch.ones_like(tokens, dtype=torch.float)
    factor = config.repetition_penalty**power
    logits_V = logits_V.clone()
    old = logits_V[tokens]
    logits_V[tokens] = torch.where(old > 0, old / factor, old * factor)
    return logits_V


def truncate(logits_V: Tensor, config: SamplingConfig) -> Tensor:
    """Sets the logits of tokens that top_k, top_p and min_p leave out to minus infinity; the best always stays."""
    if config.top_k is not None and config.top_k < len(logits_V):
        least = logits_V.topk(config.top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < least, -torch.inf)
    if config.top_p is not None:
        ordered, order = logits_V.sort(descending=True)
        probabilities = ordered.softmax(-1)
        surplus = probabilities.cumsum(-1) - probabilities >= config.top_p
        logits_V = logits_V.masked_fill(surplus.scatter(0, order, surplus), -torch.inf)
    if config.min_p is not None:
        probabilities = logits_V.softmax(-1)
        logits_V = logits_V.masked_fill(probabilities < config.min_p * probabilities.max(), -torch.inf)
    return logits_V
