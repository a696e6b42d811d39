"""Serves many requests at once: they join and leave at any step.

    waiting --a free slot--> reads its prompt, in pieces --> a token a step, with all others --> finished

Slots of the cache in use are kept together, and in this order: rows that have one token to read, which all advance in
one pass; rows that read their prompts; rows that wait for another to read what they have in common; free slots, which
remember what they held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leveret.errors import UserError
from leveret.inference.cache import KeyValueCache
from leveret.inference.request import Delta, Finish, Request, TokenChoice, TokenInfo, Unfit
from leveret.inference.sampling import Chooser, next_tokens
from leveret.tokenizer.tokenizer import IncrementalDecoder, Tokenizer

if TYPE_CHECKING:
    from leveret.inference.engine import Engine

PIECE = 256
"""Tokens of prompts that are read in one step while others wait for their next token."""
PIECE_ALONE = 4096
"""As many while nobody does."""
WORTH_COPYING = 8
"""Shorter common beginnings are read again."""


class Text:
    """An answer's text as it grows: whole characters, up to the first stop string."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._decoder, self._stops, self._held = IncrementalDecoder(tokenizer), stops, ""

    def push(self, token: int) -> tuple[str, bool]:
        """The text that can be shown after one more token, and whether a stop string came."""
        return self._show(self._held + self._decoder.push(token))

    def flush(self) -> tuple[str, bool]:
        """What is left at the end, and whether a stop string is in it."""
        text, stopped = self._show(self._held + self._decoder.flush())
        if not stopped:
            text, self._held = text + self._held, ""
        return text, stopped

    def _show(self, text: str) -> tuple[str, bool]:
        self._held = ""
        if not self._stops:
            return text, False
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            return text[: min(found)], True
        held = max((n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False


@dataclass(slots=True, eq=False)
class Slot:
    """A row of the cache.

    window: what the model reads of its prompt and answer. read: how many tokens of it the cache has. A free slot has no
    request. used: the step when it last had one.
    """

    window: list[int] = field(default_factory=list)
    read: int = 0
    request: Request | None = None
    chooser: Chooser | None = None
    text: Text | None = None
    tokens: int = 0
    used: int = -1
    waits: bool = False

    @property
    def kind(self) -> int:
        """Its place in the order of slots."""
        if self.request is None:
            return 3
        if self.waits:
            return 2
        return 0 if len(self.window) - self.read == 1 else 1


class Scheduler:
    """One thread drives it.

    Args:
        slots: most requests that are served at once.
        capacity: tokens of a slot, at most the context. None: the context.
        remember: free slots keep what they held for requests that begin alike.
    """

    def __init__(self, engine: Engine, slots: int, capacity: int | None = None, *, remember: bool = True) -> None:
        self.engine, self.slots, self.remember = engine, slots, remember
        self.capacity = min(capacity or engine.context, engine.context)
        self.cache = KeyValueCache(engine.model.config, slots, self.capacity, engine.device, engine.dtype)
        self.prefix_hits = 0
        """Requests that took the beginning of their prompt from another."""
        self._slots = [Slot() for _ in range(slots)]
        self._queue: deque[Request] = deque()
        self._ended: list[Delta] = []  # of requests that were cancelled between steps
        self._steps = 0
        self._moved = False  # whether slots may be out of order

    @property
    def running(self) -> int:
        return sum(slot.request is not None for slot in self._slots)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def bytes_per_slot(self) -> int:
        """Of keys and values; they are set aside once, whatever comes."""
        return self.cache.bytes_per_slot

    @property
    def cached_tokens(self) -> int:
        """Tokens whose keys and values are there, of running requests and remembered ones."""
        return sum(slot.read for slot in self._slots)

    def submit(self, request: Request) -> None:
        """Queues a request.

        Raises:
            UserError: it asks for what is not served here.
            Unfit: its prompt has no room.
        """
        if not request.prompt:
            raise UserError("the prompt is empty: give at least one token")
        if request.sampling.beams > 1:
            raise UserError("beams are not served with others: generate alone, or with beams 1")
        if not request.slide and (tokens := len(request.prompt)) > self.capacity:
            raise Unfit(f"the prompt has {tokens} tokens, and there is room for {self.capacity}: shorten it")
        self._queue.append(request)

    def cancel(self, request: Request) -> None:
        """Drops a request; its slot is free at once, and the next step tells that it ended. Without effect on one
        that is not here (any more)."""
        if request in self._queue:
            self._queue.remove(request)
        else:
            slot = next((slot for slot in self._slots if slot.request is request), None)
            if slot is None:
                return
            self._free(slot)
        self._ended.append(Delta(request, "", [], finish="cancelled"))

    @torch.inference_mode()
    def step(self) -> list[Delta]:
        """Admits waiting requests, reads a piece of what is to be read, and gives each other row its next token."""
        deltas, self._ended = self._ended, []
        self._steps += 1
        if self._queue:
            self._admit()
        if self._moved:
            self._arrange()
        kinds = [slot.kind for slot in self._slots]
        ready, reading = kinds.count(0), kinds.count(1)
        if reading:
            deltas += self._read(ready, reading)
        if ready:
            deltas += self._advance(ready)
        return deltas

    def _admit(self) -> None:
        for slot in self._slots:
            if slot.request is None and self._queue:
                request = self._queue.popleft()
                vocabulary = self.engine.tokenizer.vocab_size
                slot.window, slot.read, slot.tokens = list(request.prompt), 0, 0
                slot.request, slot.chooser = request, Chooser(request.sampling, request.prompt, vocabulary)
                slot.text = Text(self.engine.tokenizer, request.sampling.stop)
                self._slide(slot)
                self._moved = True

    def _arrange(self) -> None:
        """Puts the slots in order, moving as few as can be."""
        self._moved = False
        slots = self._slots
        for kind in (0, 1, 2):
            low, high = 0, len(slots) - 1
            while True:
                while low < high and slots[low].kind <= kind:
                    low += 1
                while low < high and slots[high].kind > kind:
                    high -= 1
                if low >= high:
                    break
                self.cache.swap(low, high, (slots[low].read, slots[high].read))
                slots[low], slots[high] = slots[high], slots[low]

    def _read(self, first: int, count: int) -> list[Delta]:
        """Reads a piece of the prompts of rows first, first + 1, ...; those that are through get their first token."""
        budget = PIECE if first else PIECE_ALONE
        rows: list[Slot] = []
        for slot in self._slots[first : first + count]:
            longest = max(len(row.window) - row.read for row in [*rows, slot])
            if rows and longest * (len(rows) + 1) > budget:
                break
            rows.append(slot)
        left = [len(slot.window) - slot.read for slot in rows]
        tokens = min(max(left), budget, self.capacity - max(slot.read for slot in rows))
        real = [min(tokens, n) for n in left]
        pieces = [slot.window[slot.read : slot.read + n] for slot, n in zip(rows, real, strict=True)]
        ids = [piece + [0] * (tokens - len(piece)) for piece in pieces]
        logits_BV = self._forward(first, rows, ids, real)
        through = [i for i, slot in enumerate(rows) if slot.read == len(slot.window)]
        if not through:
            return []
        self._moved = True
        return self._take_all(
            [rows[i] for i in through], logits_BV if len(through) == len(rows) else logits_BV[through]
        )

    def _advance(self, count: int) -> list[Delta]:
        """Reads the last token of the first rows, and gives each its next."""
        rows = self._slots[:count]
        logits_BV = self._forward(0, rows, [slot.window[-1:] for slot in rows], [1] * count)
        return self._take_all(rows, logits_BV)

    def _forward(self, first: int, rows: list[Slot], ids: list[list[int]], real: list[int]) -> Tensor:
        """The logits [B, V] after each row's last new token."""
        part = self.cache.part(first, [slot.read for slot in rows])
        logits_BV = self.engine.runner.forward(torch.tensor(ids, device=self.engine.device), real, part)
        for slot, n in zip(rows, real, strict=True):
            slot.read += n
        return logits_BV[:, : self.engine.tokenizer.vocab_size]  # without rows that pad the table

    def _take_all(self, rows: list[Slot], logits_BV: Tensor) -> list[Delta]:
        choosers = [slot.chooser for slot in rows if slot.chooser is not None]
        tokens = next_tokens(logits_BV, choosers)
        infos = self._infos(logits_BV, tokens, choosers)
        return [self._take(slot, token, info) for slot, token, info in zip(rows, tokens, infos, strict=True)]

    def _take(self, slot: Slot, token: int, info: TokenInfo | None) -> Delta:
        """Adds a token to a row, and ends it where it ends."""
        request, chooser, text = slot.request, slot.chooser, slot.text
        assert request is not None
        assert chooser is not None
        assert text is not None
        finish: Finish | None = None
        if token == self.engine.tokenizer.eos_id and not request.ignore_end:
            self._free(slot)
            return Delta(request, text.flush()[0], [], finish="stop")
        chooser.add(token)
        slot.window.append(token)
        slot.tokens += 1
        shown, stopped = text.push(token)
        if stopped:
            finish = "stop"
        elif slot.tokens >= request.sampling.max_new_tokens or (len(slot.window) > self.capacity and not request.slide):
            rest, stopped = text.flush()
            shown, finish = shown + rest, "stop" if stopped else "length"
        if finish is not None:
            self._free(slot)
        elif len(slot.window) > self.capacity:
            self._slide(slot)
        return Delta(request, shown, [token], [] if info is None else [info], finish)

    def _infos(self, logits_BV: Tensor, tokens: list[int], rows: list[Chooser]) -> list[TokenInfo | None]:
        """What logprobs tells of the rows that ask for it: of the model's own distribution."""
        infos: list[TokenInfo | None] = [None] * len(rows)
        asking = [i for i, row in enumerate(rows) if row.config.logprobs is not None]
        if not asking:
            return infos
        logprobs = logits_BV[asking].float().log_softmax(-1)
        most = max(rows[i].config.logprobs or 0 for i in asking)
        values, ids = logprobs.topk(min(most, logprobs.shape[1]))
        for i, own, best, at in zip(asking, logprobs, values.tolist(), ids.tolist(), strict=True):
            k, token = rows[i].config.logprobs or 0, tokens[i]
            top = tuple(self._choice(n, value) for n, value in zip(at[:k], best[:k], strict=True))
            infos[i] = TokenInfo(self._choice(token, float(own[token])), top)
        return infos

    def _choice(self, token: int, logprob: float) -> TokenChoice:
        return TokenChoice(token, self.engine.tokenizer.token_bytes(token), logprob)

    def _slide(self, slot: Slot) -> None:
        """Keeps the newest tokens of a window that outgrew the slot, three quarters of what it holds, to be read
        again, so that positions stay within what the model was trained on."""
        if len(slot.window) > self.capacity:
            slot.window = slot.window[-(self.capacity - self.capacity // 4) :]
            slot.read = 0
            self._moved = True

    def _free(self, slot: Slot) -> None:
        slot.request = slot.chooser = slot.text = None
        slot.used, slot.waits = self._steps, False
        if not self.remember:
            slot.window, slot.read = [], 0
        self._moved = True
