"""llama.cpp as the engine, for GGUF files: our requests, our tokenizer and our text, its kernels.

    request --> prompt and answer so far, as ids --> llama.cpp in this process --> a few next ids --> text --> deltas

llama.cpp is asked for a few tokens at a time: it keeps the keys and values of what it has read, so that nothing is read
twice, and every id comes back, which its own streaming does not give where a character is made of several tokens. What
it opens for that is a server on a loopback port, behind a key that nobody else has.
"""

from __future__ import annotations

import http.client
import json
import queue
import secrets
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from leveret.errors import UserError
from leveret.inference.engine import Answers
from leveret.inference.request import Delta, Finish, Request, Unfit
from leveret.inference.scheduler import Text
from leveret.tokenizer.tokenizer import Tokenizer

PIECE = 8
"""Tokens that are asked for at a time, once an answer is under way."""
MOST_SLOTS = 16
"""Requests that an engine asked for many at once gives to llama.cpp together."""
NOT_THERE: dict[str, Any] = {
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logprobs": None,
    "beams": 1,
    "choices": [],
    "json_schema": None,
    "draft_tokens": 0,
}
"""Options of sampling that this backend does not have, and the values with which they are not asked for."""


@dataclass(frozen=True)
class GgufFile:
    """What must be known of a GGUF file to ask its model. bytes_per_token: of keys and values, in 16 bits."""

    path: Path
    context: int
    dtype: str
    bytes_per_token: int


class LlamaServer:
    """A model in llama.cpp, with its own threads, in this process.

    Args:
        slots: requests that are served together.
        capacity: tokens of each.

    Raises:
        UserError: xllamacpp is not installed, or llama.cpp cannot load the file.
    """

    def __init__(self, file: GgufFile, slots: int, capacity: int) -> None:
        try:
            import xllamacpp
        except ImportError:
            raise UserError("--backend llamacpp needs xllamacpp: pip install 'leveret[llamacpp]'") from None
        self.slots, self.capacity = slots, capacity
        self._key = secrets.token_hex(16)
        params = xllamacpp.CommonParams()
        params.model.path = str(file.path)
        params.api_keys = [self._key]
        params.n_parallel, params.n_ctx = slots, slots * capacity
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
        params.warmup = params.ui = False
        params.verbosity = 0
        if file.dtype == "f32":
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        try:
            held = [xllamacpp.Server(params)]
        except RuntimeError:
            raise UserError(
                f"llama.cpp cannot load {file.path}; write it again, or install a newer xllamacpp"
            ) from None
        self._address = held[0].listening_address.removeprefix("http://")
        # One told to stop before its loop has begun would never stop, nor would one that outlives the interpreter.
        self.ask("/completion", {"prompt": [0], "n_predict": 1})
        weakref.finalize(self, held.clear)

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """llama.cpp's answer to a POST. RuntimeError where it answers with an error."""
        connection = http.client.HTTPConnection(self._address)
        try:
            headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
            connection.request("POST", path, json.dumps(body), headers)
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        if "error" in answer:
            raise RuntimeError(f"llama.cpp: {answer['error']['message']}")
        return answer


class LlamaEngine(Answers):
    """A GGUF file's model, with the face of our engine.

    Greedy text is ours; draws are llama.cpp's own, so that a seed gives another text than with our engine. Where the
    end is to be ignored, it is never drawn.
    """

    device = torch.device("cpu")

    def __init__(self, file: GgufFile, tokenizer: Tokenizer) -> None:
        self.file, self.tokenizer, self.dtype = file, tokenizer, file.dtype
        self.context = file.context - 1  # llama.cpp keeps room for one token of the answer
        self._server: LlamaServer | None = None

    def scheduler(self, slots: int, capacity: int | None = None, *, remember: bool = True) -> LlamaScheduler:
        """What serves many requests at once. Its slots are llama.cpp's, which remember what they held in any case."""
        return LlamaScheduler(self, min(slots, MOST_SLOTS), min(capacity or self.context, self.context))

    def server(self, slots: int) -> LlamaServer:
        """llama.cpp with so many slots at least; the one that is there, if it has them."""
        if self._server is None or self._server.slots < slots:
            self._server = None  # its memory goes before the next one's comes
            self._server = LlamaServer(self.file, slots, self.context + 1)
        return self._server


@dataclass(slots=True, eq=False)
class _Running:
    """A request that has a slot. window: what the model reads. busy: whether llama.cpp is at it."""

    request: Request
    window: list[int]
    text: Text
    seed: int
    tokens: int = 0
    busy: bool = False
    cancelled: bool = False


class LlamaScheduler:
    """Serves requests by llama.cpp's slots; has the face of our Scheduler. One thread drives it."""

    def __init__(self, engine: LlamaEngine, slots: int, capacity: int) -> None:
        self.engine, self.slots, self.capacity = engine, slots, capacity
        self.prefix_hits = 0
        """Requests whose prompt's beginning was there already."""
        self.bytes_per_slot = engine.file.bytes_per_token * (engine.context + 1)
        self._server = engine.server(slots)
        self._threads = ThreadPoolExecutor(slots, "llamacpp")
        self._queue: deque[Request] = deque()
        self._running: list[_Running] = []
        self._done: queue.SimpleQueue[tuple[_Running, dict[str, Any] | Exception]] = queue.SimpleQueue()
        self._ended: list[Delta] = []

    @property
    def running(self) -> int:
        return sum(not each.cancelled for each in self._running)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def cached_tokens(self) -> int:
        """Tokens of running requests; what llama.cpp remembers besides is not known."""
        return sum(len(each.window) for each in self._running)

    def submit(self, request: Request) -> None:
        """Queues a request.

        Raises:
            UserError: it asks for what this backend does not have.
            Unfit: its prompt has no room.
        """
        if not request.prompt:
            raise UserError("the prompt is empty: give at least one token")
        for name, value in NOT_THERE.items():
            if getattr(request.sampling, name) != value:
                raise UserError(f"{name} is not there with --backend llamacpp; leave it out, or take a run of ours")
        if request.sampling.repetition_penalty != 1.0 and request.sampling.repetition_form == "per-count":
            raise UserError("repetition_form per-count is not there with --backend llamacpp; take once")
        if not request.slide and (tokens := len(request.prompt)) > self.capacity:
            raise Unfit(f"the prompt has {tokens} tokens, and there is room for {self.capacity}: shorten it")
        self._queue.append(request)

    def cancel(self, request: Request) -> None:
        """Drops a request; the few tokens that llama.cpp is at are thrown away, and then its slot is free."""
        if request in self._queue:
            self._queue.remove(request)
        else:
            found = next((each for each in self._running if each.request is request and not each.cancelled), None)
            if found is None:
                return
            found.cancelled = True
        self._ended.append(Delta(request, "", [], finish="cancelled"))

    def step(self) -> list[Delta]:
        """Gives every idle slot work, and waits until a request has new tokens or has ended."""
        while self._queue and len(self._running) < self.slots:
            self._admit(self._queue.popleft())
        for each in self._running:
            if not each.busy and not each.cancelled:
                each.busy = True
                self._threads.submit(self._advance, each, self._wish(each))
        self._running = [each for each in self._running if each.busy or not each.cancelled]
        deltas, self._ended = self._ended, []
        while any(each.busy for each in self._running) and (not deltas or not self._done.empty()):
            each, answer = self._done.get()
            each.busy = False
            if isinstance(answer, Exception):
                self._running.remove(each)
                raise answer
            if not each.cancelled:
                deltas.append(self._take(each, answer))
        return deltas

    def _admit(self, request: Request) -> None:
        config = request.sampling
        seed = secrets.randbits(32) if config.seed is None else config.seed
        text = Text(self.engine.tokenizer, config.stop)
        self._running.append(_Running(request, list(request.prompt), text, seed))

    def _wish(self, each: _Running) -> dict[str, Any]:
        """What llama.cpp is asked: the next few tokens. A seed is another one for each piece."""
        config = each.request.sampling
        if len(each.window) > self.capacity:  # slides as our engine does
            each.window = each.window[-(self.capacity - self.capacity // 4) :]
        room = min(self.capacity + 1 - len(each.window), config.max_new_tokens - each.tokens)
        return {
            "prompt": each.window,
            "n_predict": min(PIECE, max(1, each.tokens), room),
            "return_tokens": True,
            "cache_prompt": True,
            "ignore_eos": each.request.ignore_end,
            "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],
            "temperature": config.temperature,
            "top_k": config.top_k or 0,
            "top_p": config.top_p or 1.0,
            "min_p": config.min_p or 0.0,
            "repeat_penalty": config.repetition_penalty,
            "repeat_last_n": config.repetition_window or self.engine.file.context,
            "logit_bias": [[token, bias] for token, bias in config.logit_bias.items()],
            "seed": (each.seed + each.tokens) % 2**32,
        }

    def _advance(self, each: _Running, wish: dict[str, Any]) -> None:
        """Runs in a thread of its own."""
        try:
            self._done.put((each, self._server.ask("/completion", wish)))
        except Exception as error:  # told to the thread that drives
            self._done.put((each, error))

    def _take(self, each: _Running, answer: dict[str, Any]) -> Delta:
        """Adds the tokens that came, and ends the answer where it ends."""
        request, end = each.request, self.engine.tokenizer.eos_id
        ended = answer["stop_type"] == "eos" and answer["tokens"][-1] == end  # it ends at what looks like an end too
        self.prefix_hits += each.tokens == 0 and answer["timings"]["cache_n"] > 0
        tokens: list[int] = answer["tokens"][:-1] if ended else answer["tokens"]
        finish: Finish | None = "stop" if ended else None
        shown, taken, stopped = "", 0, False
        for token in tokens:
            piece, stopped = each.text.push(token)
            shown, taken = shown + piece, taken + 1
            if stopped:
                break
        each.window += tokens[:taken]
        each.tokens += taken
        over = len(each.window) > self.capacity and not request.slide
        if not stopped and (ended or over or each.tokens >= request.sampling.max_new_tokens):
            rest, stopped = each.text.flush()
            shown, finish = shown + rest, finish or ("stop" if stopped else "length")
        if stopped:
            finish = "stop"
        if finish is not None:
            self._running.remove(each)
        return Delta(request, shown, tokens[:taken], finish=finish)
