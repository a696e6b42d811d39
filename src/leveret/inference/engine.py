"""The engine: generates text from a decoder and its tokenizer, one prompt or many at once.

    prompts --> one pass over each --> key/value cache --> a token at a time --> stop tokens, stop strings --> text

Past the context length the window slides: only the newest tokens are kept, three quarters of the context, and read
again, so that positions stay within what the model was trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from leveret.errors import UserError
from leveret.inference.cache import KeyValueCache
from leveret.inference.config import SamplingConfig
from leveret.inference.sampling import next_token
from leveret.model.decoder import Decoder
from leveret.tokenizer.tokenizer import IncrementalDecoder, Tokenizer


@dataclass(slots=True)
class Completion:
    """An answer. finish: "stop" (an end token or stop string came) or "length" (max_new_tokens came first)."""

    text: str
    tokens: list[int]
    finish: Literal["stop", "length"]


@dataclass(slots=True)
class _Sequence:
    """One prompt on its way."""

    history: list[int]
    end: int | None
    generator: torch.Generator
    decoder: IncrementalDecoder
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    given: int = 0
    start: int = 0  # of the window that the model reads, in history
    finish: Literal["stop", "length"] | None = None


class Engine:
    """Holds the weights and generates.

    Args:
        model: on its device, in its dtype.
        tokenizer: the model's own.
        dtype: of matrix products; None: the weights' own.
    """

    def __init__(self, model: Decoder, tokenizer: Tokenizer, dtype: torch.dtype | None = None) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        weight = model.embed_tokens.weight
        self.device, self.dtype = weight.device, dtype or weight.dtype
        self.context = model.config.max_position_embeddings

    def generate(
        self, prompts: Sequence[Sequence[int]], config: SamplingConfig, *, ignore_end: bool = False
    ) -> list[Completion]:
        """Completes every prompt (token ids). Sequences are independent: each as if it were alone.

        With ignore_end the end token is a token like others, so that a length is certain (for measuring speed).
        """
        if not prompts:
            return []
        sequences = self._sequences(prompts, config, None if ignore_end else self.tokenizer.eos_id)
        for _ in self._run(sequences, config):
            pass
        return [Completion(s.text, s.tokens, s.finish or "length") for s in sequences]

    def stream(self, prompt: Sequence[int], config: SamplingConfig) -> Iterator[str]:
        """Yields the answer to one prompt as it comes, never half a character or part of a stop string."""
        for sequence in self._run(self._sequences([prompt], config, self.tokenizer.eos_id), config):
            held = 0 if sequence.finish else _held_back(sequence.text, config.stop)
            if len(sequence.text) - held > sequence.given:
                yield sequence.text[sequence.given : len(sequence.text) - held]
                sequence.given = len(sequence.text) - held

    def _sequences(self, prompts: Sequence[Sequence[int]], config: SamplingConfig, end: int | None) -> list[_Sequence]:
        sequences = []
        for row, prompt in enumerate(prompts):
            if not prompt:
                raise UserError("the prompt is empty: give at least one token")
            generator = torch.Generator()
            if config.seed is None:
                generator.seed()
            else:
                generator.manual_seed(config.seed + row)
            decoder = IncrementalDecoder(self.tokenizer)
            sequences.append(_Sequence(list(prompt), end, generator, decoder))
        return sequences

    @torch.inference_mode()
    def _run(self, sequences: list[_Sequence], config: SamplingConfig) -> Iterator[_Sequence]:
        """Advances all sequences until each has finished, yielding each after each of its tokens."""
        longest = max(len(s.history) for s in sequences) + config.max_new_tokens
        capacity = min(self.context, longest)
        cache = KeyValueCache(self.model.config, len(sequences), capacity, self.device, self.dtype)
        active = sequences
        logits_BV = self._read(cache, active)
        while True:
            for sequence, logits_V in zip(active, logits_BV, strict=True):
                self._take(sequence, next_token(logits_V, sequence.history, config, sequence.generator), config)
                yield sequence
            going = [i for i, sequence in enumerate(active) if sequence.finish is None]
            if not going:
                return
            if len(going) < len(active):
                cache.keep_rows(torch.tensor(going, device=self.device))
                active = [active[i] for i in going]
            if int(cache.lengths.max()) >= cache.capacity:
                cache.clear()
                logits_BV = self._read(cache, active)
            else:
                last = torch.tensor([[s.history[-1]] for s in active], device=self.device)
                logits_BV = self._forward(cache, last, torch.ones_like(cache.lengths))

    def _read(self, cache: KeyValueCache, sequences: list[_Sequence]) -> Tensor:
        """Reads each sequence's window into the empty cache; one that outgrew the context slides first.

        The others keep theirs, so that what a sequence reads does not depend on its neighbours.
        """
        for sequence in sequences:
            if len(sequence.history) - sequence.start > self.context:
                sequence.start = len(sequence.history) - (self.context - self.context // 4)
        rows = [sequence.history[sequence.start :] for sequence in sequences]
        longest = max(len(row) for row in rows)
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self.device)
        return self._forward(cache, ids, torch.tensor([len(row) for row in rows], device=self.device))

    def _forward(self, cache: KeyValueCache, ids_BT: Tensor, real: Tensor) -> Tensor:
        """Runs the model over new tokens, `real` of them in each row. Logits [B, V] after each row's last."""
        positions, mask = cache.place(ids_BT.shape[1])
        positions = positions.clamp(max=self.context - 1)  # of padding only
        enabled = self.dtype is not torch.float32 and self.model.embed_tokens.weight.dtype is torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=enabled):
            hidden = self.model.hidden(ids_BT, positions, mask, cache)
            last = hidden[torch.arange(len(real), device=self.device), real - 1]
            cache.advance(real)
            return self.model.head(last)[:, : self.tokenizer.vocab_size]  # without rows that pad the table

    def _take(self, sequence: _Sequence, token: int, config: SamplingConfig) -> None:
        """Adds a token to a sequence, and ends it where it ends."""
        if token == sequence.end:
            sequence.finish = "stop"
            sequence.text += sequence.decoder.flush()
            return
        sequence.history.append(token)
        sequence.tokens.append(token)
        sequence.text += sequence.decoder.push(token)
        if len(sequence.tokens) >= config.max_new_tokens:
            sequence.finish = "length"
            sequence.text += sequence.decoder.flush()
        found = [at for stop in config.stop if (at := sequence.text.find(stop)) >= 0]
        if found:
            sequence.text = sequence.text[: min(found)]
            sequence.finish = "stop"


def _held_back(text: str, stops: Sequence[str]) -> int:
    """How many last characters might be the beginning of a stop string."""
    return max(
        (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])),
        default=0,
    )
