"""Beam search: the most probable answers are followed side by side.

    one row a prompt --> so many rows --the best continuations of all of a prompt's rows--> rows take each other's place

An answer's score is the sum of its log-probabilities divided by length ** length_penalty, its end token counted; as
transformers has it (Wu et al., 2016, divide by ((5 + length) / 6) ** penalty). A prompt is done when so many answers
have ended and the best of those that go on is, at its present length, no better than the worst of them.

P prompts, B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leveret.errors import UserError
from leveret.inference.cache import KeyValueCache
from leveret.inference.config import SamplingConfig
from leveret.inference.request import Unfit

if TYPE_CHECKING:
    from leveret.inference.engine import Engine

ROWS = 128
"""Most rows that are read at once, except those of a single prompt."""


@dataclass(slots=True)
class Answer:
    """score: the sum of its log-probabilities while it goes on; divided as above when it has ended."""

    score: float
    tokens: list[int] = field(default_factory=list)
    ended: bool = False


@dataclass(slots=True)
class _Search:
    """The beams of one prompt. live: best first."""

    prompt: list[int]
    most: int  # tokens of its answer
    live: list[Answer] = field(default_factory=lambda: [Answer(0.0)])
    finished: list[Answer] = field(default_factory=list)
    done: bool = False

    def grow(self, found: list[tuple[float, int, int]], config: SamplingConfig, end: int | None) -> list[int]:
        """Goes on with the best (score, row, token), given best first. Returns the rows that its live answers go on
        from."""
        grown: list[Answer] = []
        parents: list[int] = []
        length = len(self.live[0].tokens) + 1
        for rank, (score, row, token) in enumerate(found):
            if token == end or length == self.most:
                if rank < config.beams:
                    tokens = self.live[row].tokens + ([] if token == end else [token])
                    self.finished.append(Answer(score / length**config.length_penalty, tokens, token == end))
            elif len(grown) < config.beams:
                grown.append(Answer(score, [*self.live[row].tokens, token]))
                parents.append(row)
        self.finished = sorted(self.finished, key=lambda answer: -answer.score)[: config.beams]
        self.live = grown
        full = len(self.finished) == config.beams
        self.done = not grown or (full and grown[0].score / length**config.length_penalty <= self.finished[-1].score)
        return parents


@torch.inference_mode()
def beam_search(
    engine: Engine, prompts: Sequence[Sequence[int]], config: SamplingConfig, ignore_end: bool = False
) -> list[Answer]:
    """The best answer to each prompt. The window does not slide: answers end with the context.

    Raises:
        Unfit: a prompt is longer than the context.
    """
    for prompt in prompts:
        if not prompt:
            raise UserError("the prompt is empty: give at least one token")
        if len(prompt) > engine.context:
            raise Unfit(f"the prompt has {len(prompt)} tokens, and there is room for {engine.context}: shorten it")
    end = None if ignore_end else engine.tokenizer.eos_id
    answers: list[Answer] = []
    at_once = max(1, ROWS // config.beams)
    for first in range(0, len(prompts), at_once):
        searches = [
            _Search([*prompt], min(config.max_new_tokens, engine.context - len(prompt) + 1))
            for prompt in prompts[first : first + at_once]
        ]
        _search(engine, searches, config, end)
        answers += [search.finished[0] for search in searches]
    return answers


def _search(engine: Engine, searches: list[_Search], config: SamplingConfig, end: int | None) -> None:
    """Runs some prompts' searches to their ends."""
    longest = max(len(search.prompt) for search in searches)
    capacity = min(engine.context, max(len(search.prompt) + search.most for search in searches))
    rows = len(searches) * config.beams
    cache = KeyValueCache(engine.model.config, rows, max(capacity, longest), engine.device, engine.dtype)
    cache.lengths = [0] * len(searches)
    ids = [search.prompt + [0] * (longest - len(search.prompt)) for search in searches]
    real = [len(search.prompt) for search in searches]
    while True:
        logits_BV = engine.runner.forward(torch.tensor(ids, device=engine.device), real, cache)
        logprobs_BV = logits_BV[:, : engine.tokenizer.vocab_size].float().log_softmax(-1)
        parents: list[int] = []
        ids, row = [], 0
        for search in searches:
            live = len(search.live)
            own = search.grow(_best(logprobs_BV[row : row + live], search.live, config.beams), config, end)
            if not search.done:
                parents += [row + parent for parent in own]
                ids += [[answer.tokens[-1]] for answer in search.live]
            row += live
        searches = [search for search in searches if not search.done]
        if not searches:
            return
        cache.take(parents)
        real = [1] * len(parents)


def _best(logprobs_BV: Tensor, live: list[Answer], beams: int) -> list[tuple[float, int, int]]:
    """The best continuations (score, row, token) of one prompt's rows, best first: enough that `beams` go on even if
    as many end."""
    scores = torch.tensor([[answer.score] for answer in live], device=logprobs_BV.device)
    total = (logprobs_BV + scores).flatten()
    values, places = total.topk(min(2 * beams, len(total)))
    width = logprobs_BV.shape[1]
    return [(value, *divmod(place, width)) for value, place in zip(values.tolist(), places.tolist(), strict=True)]
