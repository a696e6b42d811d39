"""From logits to the next tokens, of many rows at once, each in its own way.

    logits --> constraint --> penalties, bias --> temperature --> top_k, top_p, min_p --> one draw a row

B rows, V vocabulary, K tokens that are drawn from, in blocks of W.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from random import Random
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from leveret.inference.config import SamplingConfig

COLDEST = 1e-4
"""Lower temperatures are this one: the logits must stay finite."""
CANDIDATES = (128, 1024)
"""Tokens among which top_p looks for its share before it sorts the whole vocabulary."""
BLOCK = 256
"""Probabilities that are summed before a draw looks at each."""


class Constraint(Protocol):
    """What an answer may be. done: it is whole, and nothing can follow."""

    @property
    def done(self) -> bool: ...

    def restrict(self, logits_V: Tensor) -> None:
        """Sets the logits of tokens that cannot come next to minus infinity."""

    def add(self, token: int) -> None: ...


class Counts:
    """How often tokens have occurred, among all so far or the last `window`; what is asked of it grows with the number
    of different tokens, not of all."""

    def __init__(self, vocabulary: int, window: int | None = None) -> None:
        self._places: dict[int, int] = {}
        self._ids = np.zeros(vocabulary, dtype=np.int64)
        self._counts = np.zeros(vocabulary, dtype=np.float32)
        self._last: deque[int] | None = None if window is None else deque()
        self._window = window

    def add(self, token: int) -> None:
        place = self._places.setdefault(token, len(self._places))
        self._ids[place] = token
        self._counts[place] += 1
        if self._last is not None:
            self._last.append(token)
            if len(self._last) > (self._window or 0):
                self._counts[self._places[self._last.popleft()]] -= 1

    @property
    def ids(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The different tokens; of some the count may be zero by now."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        return self._counts[: len(self._places)]


class Chooser:
    """How one answer's tokens are chosen, and what must be remembered for it.

    Args:
        prompt: token ids, which the repetition penalty counts too.
        vocabulary: number of token ids.
    """

    def __init__(
        self, config: SamplingConfig, prompt: Sequence[int], vocabulary: int, constraint: Constraint | None = None
    ) -> None:
        self.config, self.constraint = config, constraint
        self.random = Random(config.seed)
        self.said: Counts | None = None
        if config.repetition_penalty != 1.0:
            self.said = Counts(vocabulary, config.repetition_window)
            for token in prompt:
                self.said.add(token)
        self.answered: Counts | None = None
        if config.presence_penalty or config.frequency_penalty:
            self.answered = Counts(vocabulary)
        bias = {token: value for token, value in config.logit_bias.items() if 0 <= token < vocabulary}
        self.bias = (np.array([*bias], dtype=np.int64), np.array([*bias.values()], dtype=np.float32)) if bias else None
        self.plain = constraint is None and self.said is None and self.answered is None and self.bias is None
        """Whether it goes by the model's own logits."""

    def add(self, token: int) -> None:
        for counts in (self.said, self.answered, self.constraint):
            if counts is not None:
                counts.add(token)


def next_tokens(logits_BV: Tensor, rows: Sequence[Chooser]) -> list[int]:
    """A token for each row, by its own settings, from the logits of the model, which stay as they are."""
    if not all(row.plain for row in rows):
        logits_BV = adjusted(logits_BV, rows)
    drawing = [i for i, row in enumerate(rows) if row.config.temperature > 0]
    if not drawing:
        return logits_BV.argmax(-1).tolist()
    if len(drawing) == len(rows):
        return draw(logits_BV, rows).tolist()
    tokens_B = logits_BV.argmax(-1)
    tokens_B[drawing] = draw(logits_BV[drawing], [rows[i] for i in drawing])
    return tokens_B.tolist()


def adjusted(logits_BV: Tensor, rows: Sequence[Chooser]) -> Tensor:
    """Logits after constraints, penalties and bias.

    Repetition: divided by the factor where positive, multiplied where negative (Keskar et al., 2019). Presence and
    frequency: minus the one if the token has occurred in the answer, minus the other times how often (OpenAI).
    """
    logits_BV = logits_BV.float().clone(memory_format=torch.contiguous_format)
    for logits_V, row in zip(logits_BV, rows, strict=True):
        if row.constraint is not None:
            row.constraint.restrict(logits_V)
    flat, width, device = logits_BV.view(-1), logits_BV.shape[1], logits_BV.device

    places, factors = [], []
    for i, row in enumerate(rows):
        if row.said is not None:
            once = row.config.repetition_form == "once"
            places.append(i * width + row.said.ids)
            factors.append(
                row.config.repetition_penalty ** (np.minimum(row.said.counts, 1) if once else row.said.counts)
            )
    if places:
        at = torch.from_numpy(np.concatenate(places)).to(device)
        factor = torch.from_numpy(np.concatenate(factors).astype(np.float32)).to(device)
        old = flat[at]
        flat[at] = torch.where(old > 0, old / factor, old * factor)

    places, terms = [], []
    for i, row in enumerate(rows):
        if row.answered is not None:
            counts, config = row.answered.counts, row.config
            places.append(i * width + row.answered.ids)
            terms.append(-config.presence_penalty * (counts > 0) - config.frequency_penalty * counts)
        if row.bias is not None:
            places.append(i * width + row.bias[0])
            terms.append(row.bias[1])
    if places:
        at = torch.from_numpy(np.concatenate(places)).to(device)
        flat.index_add_(0, at, torch.from_numpy(np.concatenate(terms).astype(np.float32)).to(device))
    return logits_BV


def draw(logits_BV: Tensor, rows: Sequence[Chooser]) -> Tensor:
    """A token of each row. What a row draws does not depend on the others: those that keep few tokens draw among these,
    in the order of their probabilities, the others among all, in the order of the vocabulary."""
    configs = [row.config for row in rows]
    size = logits_BV.shape[1]
    warm_BK = logits_BV.new_full((len(rows), size + -size % BLOCK), -torch.inf, dtype=torch.float32)
    warmth = _column([max(config.temperature, COLDEST) for config in configs], logits_BV)
    logits_BV = torch.div(logits_BV, warmth, out=warm_BK[:, :size])
    tokens_B = torch.empty(len(rows), dtype=torch.long, device=logits_BV.device)
    few = [i for i, config in enumerate(configs) if _keeps_few(config)]
    if few:
        chosen = [configs[i] for i in few]
        best, ids = candidates(logits_BV if len(few) == len(rows) else logits_BV[few], chosen)
        places = _pass(probable(best, chosen), [rows[i] for i in few])
        tokens_B[few] = ids.gather(1, places)[:, 0]
    if len(few) < len(rows):
        rest = [i for i in range(len(rows)) if i not in set(few)]
        logits_BK = probable(warm_BK[rest] if few else warm_BK, [configs[i] for i in rest])
        tokens_B[rest] = _pass(logits_BK, [rows[i] for i in rest])[:, 0]
    return tokens_B.clamp_(max=size - 1)  # the last where a model gives no numbers


def candidates(logits_BV: Tensor, configs: Sequence[SamplingConfig]) -> tuple[Tensor, Tensor]:
    """The tokens that top_k and then top_p keep: their logits, best first, minus infinity for those left out; and
    their ids, both [B, K]. Of equal logits as many are kept as are asked for."""
    size = logits_BV.shape[1]
    kept = torch.tensor([[config.top_k or size] for config in configs], device=logits_BV.device)
    share = _column([config.top_p if _nucleus(config) else 2.0 for config in configs], logits_BV)
    everywhere = all(config.top_k for config in configs)
    total = None if everywhere else logits_BV.logsumexp(-1, keepdim=True)
    for width in (max(config.top_k or 0 for config in configs),) if everywhere else (*CANDIDATES, size):
        width = min(width, size)
        best, ids = logits_BV.topk(width) if width < size else logits_BV.sort(descending=True)
        left_out = torch.arange(width, device=logits_BV.device) >= kept
        if any(map(_nucleus, configs)):
            among = best.masked_fill(left_out, -torch.inf).logsumexp(-1, keepdim=True)
            probabilities = (best - (among if total is None else torch.where(kept < size, among, total))).exp()
            left_out = left_out | (probabilities.cumsum(-1) - probabilities >= share)
            left_out[:, 0] = False  # whatever is asked for
        if width == size or bool(left_out[:, -1].all()):
            break
    return best.masked_fill(left_out, -torch.inf), ids


def probable(logits_BK: Tensor, configs: Sequence[SamplingConfig]) -> Tensor:
    """Takes tokens out that are less than min_p times as probable as the best, in place."""
    if not any(config.min_p for config in configs):
        return logits_BK
    least = _column([config.min_p or 0.0 for config in configs], logits_BK).log()
    return logits_BK.masked_fill_(logits_BK < logits_BK.amax(-1, keepdim=True) + least, -torch.inf)


def _pass(logits_BK: Tensor, rows: Sequence[Chooser]) -> Tensor:
    """The places [B, 1] where the running sums of probabilities pass each row's next random number: first the block,
    then the place in it. N blocks.

    Running sums are in float64, which Apple's GPUs have not: in float32 improbable tokens would be lost in them.
    """
    width = logits_BK.shape[1]
    if width % BLOCK:
        logits_BK = F.pad(logits_BK, (0, -width % BLOCK), value=-torch.inf)
    weights = logits_BK.sub_(logits_BK.amax(-1, keepdim=True)).exp_()  # in place: pages of new memory cost more
    blocks_BNW = weights.unflatten(1, (-1, BLOCK))
    device = "cpu" if weights.device.type == "mps" else weights.device
    sums_BN = blocks_BNW.sum(-1).to(device).double().cumsum(-1)
    random = torch.tensor([[row.random.getrandbits(32) / 2**32] for row in rows], dtype=torch.float64, device=device)
    wanted = random * sums_BN[:, -1:]
    block = torch.searchsorted(sums_BN, wanted, right=True).clamp(max=sums_BN.shape[1] - 1)  # [B, 1]
    after = sums_BN.gather(1, block)
    before = F.pad(sums_BN, (1, 0)).gather(1, block)
    inside = blocks_BNW[torch.arange(len(rows)), block[:, 0]].to(device).double().cumsum(-1)  # [B, W]
    place = torch.searchsorted(inside, (wanted - before) / (after - before) * inside[:, -1:], right=True)
    return (block * BLOCK + place).clamp(max=width - 1).to(weights.device)


def _nucleus(config: SamplingConfig) -> bool:
    return config.top_p is not None and config.top_p < 1


def _keeps_few(config: SamplingConfig) -> bool:
    return config.top_k is not None or _nucleus(config)


def _column(values: Sequence[float | None], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]
