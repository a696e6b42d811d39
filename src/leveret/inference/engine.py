"""The engine: generates text from a decoder and its tokenizer, one prompt or many at once.

    prompts --> requests --> scheduler --> a token at a time --> stop tokens, stop strings --> text

Past the context length the window slides: only the newest tokens are kept, three quarters of the context, and read
again, so that positions stay within what the model was trained on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch

from leveret.inference.beams import beam_search
from leveret.inference.config import SamplingConfig
from leveret.inference.request import Delta, Finish, Request, TokenInfo
from leveret.inference.runner import Runner
from leveret.inference.scheduler import Scheduler
from leveret.inference.tiles import tiled
from leveret.model.decoder import Decoder
from leveret.tokenizer.tokenizer import Tokenizer

AT_ONCE = 256
"""Most prompts that are answered at the same time; the others wait, which bounds memory."""


@dataclass(slots=True)
class Completion:
    """An answer. infos: of its tokens, where logprobs are asked. prompt_tokens: length of what it answers."""

    text: str
    tokens: list[int]
    finish: Finish
    infos: list[TokenInfo] = field(default_factory=list)
    prompt_tokens: int = 0


class Schedules(Protocol):
    """What serves many requests at once; one thread drives it. See Scheduler."""

    slots: int
    prefix_hits: int

    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def bytes_per_slot(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    def submit(self, request: Request) -> None: ...
    def cancel(self, request: Request) -> None: ...
    def step(self) -> list[Delta]: ...


class Answers(ABC):
    """What generates, whatever computes it: this engine, or another program.

    context: tokens that the model reads. dtype: of its weights.
    """

    tokenizer: Tokenizer
    context: int
    device: torch.device
    dtype: torch.dtype | str

    @abstractmethod
    def scheduler(self, slots: int, capacity: int | None = None, *, remember: bool = True) -> Schedules:
        """What serves many requests at once; see Scheduler for the arguments."""

    def generate(
        self, prompts: Sequence[Sequence[int]], config: SamplingConfig, *, ignore_end: bool = False
    ) -> list[Completion]:
        """Completes every prompt (token ids). Sequences are independent: each as if it were alone.

        With ignore_end the end token is a token like others, so that a length is certain (for measuring speed).
        """
        requests = self._requests(prompts, config, ignore_end)
        completions = {request: Completion("", [], "length", [], len(request.prompt)) for request in requests}
        for delta in self._run(requests):
            completion = completions[delta.request]
            completion.text += delta.text
            completion.tokens += delta.tokens
            completion.infos += delta.infos
            completion.finish = delta.finish or completion.finish
        return list(completions.values())

    def stream(self, prompt: Sequence[int], config: SamplingConfig) -> Iterator[str]:
        """Yields the answer to one prompt as it comes, never half a character or part of a stop string."""
        if config.beams > 1:
            yield self.generate([prompt], config)[0].text  # which answer is best is known at the end
            return
        for delta in self._run(self._requests([prompt], config, False)):
            if delta.text:
                yield delta.text

    def _requests(self, prompts: Sequence[Sequence[int]], config: SamplingConfig, ignore_end: bool) -> list[Request]:
        """One for each prompt; each draws from the seed after the one before."""
        requests = []
        for row, prompt in enumerate(prompts):
            own = config if config.seed is None else config.model_copy(update={"seed": config.seed + row})
            requests.append(Request(list(prompt), own, slide=True, ignore_end=ignore_end))
        return requests

    def _run(self, requests: list[Request]) -> Iterator[Delta]:
        """Advances all requests until each has finished."""
        if not requests:
            return
        longest = max(len(request.prompt) + request.sampling.max_new_tokens for request in requests)
        scheduler = self.scheduler(min(len(requests), AT_ONCE), longest, remember=False)
        for request in requests:
            scheduler.submit(request)
        left = len(requests)
        while left:
            for delta in scheduler.step():
                left -= delta.finish is not None
                yield delta


class Engine(Answers):
    """Holds the weights and generates.

    Args:
        model: on its device, in its dtype.
        tokenizer: the model's own.
        dtype: of matrix products; None: the weights' own.
    """

    def __init__(self, model: Decoder, tokenizer: Tokenizer, dtype: torch.dtype | None = None) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        weight = model.norm.get_parameter("weight")  # matrices may be packed
        self.device = weight.device
        self.dtype: torch.dtype = dtype or weight.dtype
        self.context = model.config.max_position_embeddings
        self.runner = Runner(model, self.dtype)

    @cached_property
    def reader(self) -> Decoder:
        """The decoder for reading many tokens at once: the model, or a copy packed for it where that is faster."""
        return (tiled(self.model) if self.dtype is torch.float32 else None) or self.model

    def scheduler(self, slots: int, capacity: int | None = None, *, remember: bool = True) -> Scheduler:
        return Scheduler(self, slots, capacity, remember=remember)

    def generate(
        self, prompts: Sequence[Sequence[int]], config: SamplingConfig, *, ignore_end: bool = False
    ) -> list[Completion]:
        """The same; with beams, the window does not slide, and a stop string only cuts the best answer."""
        if config.beams == 1:
            return super().generate(prompts, config, ignore_end=ignore_end)
        completions = []
        for prompt, answer in zip(prompts, beam_search(self, prompts, config, ignore_end), strict=True):
            text = self.tokenizer.decode(answer.tokens)
            cut = min((at for stop in config.stop if (at := text.find(stop)) >= 0), default=len(text))
            finish: Finish = "stop" if answer.ended or cut < len(text) else "length"
            completions.append(Completion(text[:cut], answer.tokens, finish, prompt_tokens=len(prompt)))
        return completions
