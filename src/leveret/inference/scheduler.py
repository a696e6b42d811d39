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
from leveret.inference.constraints import constraint_of
from leveret.inference.request import Delta, Finish, Request, TokenChoice, TokenInfo, Unfit
from leveret.inference.sampling import Chooser, Constraint, next_tokens
from leveret.inference.speculation import Lookup
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
class Row:
    """A request that is being answered.

    number: in the order of their coming. tokens: how many it has been given. waits: it has not taken yet what others
    have read of its prompt, or will have.
    """

    number: int
    request: Request
    chooser: Chooser
    text: Text
    lookup: Lookup | None
    tokens: int = 0
    waits: bool = True


@dataclass(slots=True, eq=False)
class Slot:
    """A row of the cache.

    window: what the model reads of its prompt and answer. read: how many tokens of it the cache has. row: None where it
    is free. used: the step when it last was not.
    """

    window: list[int] = field(default_factory=list)
    read: int = 0
    row: Row | None = None
    used: int = -1

    @property
    def kind(self) -> int:
        """Its place in the order of slots."""
        if self.row is None:
            return 3
        if self.row.waits:
            return 2
        return 0 if len(self.window) - self.read == 1 else 1

    @property
    def busy(self) -> Row:
        assert self.row is not None
        return self.row


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
        self.drafted = self.accepted = 0
        """Tokens that were guessed, and those that the model would have said."""
        self._slots = [Slot() for _ in range(slots)]
        self._queue: deque[tuple[Request, Constraint | None]] = deque()
        self._ended: list[Delta] = []  # of requests that were cancelled between steps
        self._steps = self._requests = 0
        self._moved = False  # whether slots may be out of order

    @property
    def running(self) -> int:
        return sum(slot.row is not None for slot in self._slots)

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
            UserError: it asks for what cannot be.
            Unfit: its prompt has no room.
        """
        if not request.prompt:
            raise UserError("the prompt is empty: give at least one token")
        known = self.engine.tokenizer.vocab_size
        if min(request.prompt) < 0 or max(request.prompt) >= known:
            raise UserError(f"the prompt has token ids outside of 0 to {known - 1}, which are all that there are")
        if request.sampling.beams > 1:
            raise UserError("beams are not served with others: generate alone, or with beams 1")
        if not request.slide and (tokens := len(request.prompt)) > self.capacity:
            raise Unfit(f"the prompt has {tokens} tokens, and there is room for {self.capacity}: shorten it")
        self._queue.append((request, constraint_of(request.sampling, self.engine.tokenizer)))

    def cancel(self, request: Request) -> None:
        """Drops a request; its slot is free at once, and the next step tells that it ended. Without effect on one
        that is not here (any more)."""
        waiting = next((item for item in self._queue if item[0] is request), None)
        slot = next((slot for slot in self._slots if slot.row is not None and slot.row.request is request), None)
        if waiting is not None:
            self._queue.remove(waiting)
        elif slot is not None:
            self._free(slot)
        else:
            return
        self._ended.append(Delta(request, "", [], finish="cancelled"))

    @torch.inference_mode()
    def step(self) -> list[Delta]:
        """Admits waiting requests, reads a piece of what is to be read, and gives each other row its next token."""
        deltas, self._ended = self._ended, []
        self._steps += 1
        if self._queue:
            self._admit()
        if any(slot.kind == 2 for slot in self._slots):
            self._share()
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
        """Gives free slots to waiting requests: the one whose tokens a prompt goes on from, or the longest unused."""
        free = [slot for slot in self._slots if slot.row is None]
        while self._queue and free:
            request, constraint = self._queue.popleft()
            prompt = request.prompt
            slot = max(free, key=lambda slot: (_goes_on(prompt, slot), -slot.used))
            free.remove(slot)
            slot.read = min(_common(prompt, slot.window), slot.read, len(prompt) - 1)  # the last is read in any case
            slot.window, slot.row = list(prompt), self._row(request, constraint)
            self._slide(slot)
            self.prefix_hits += slot.read >= WORTH_COPYING
            self._moved = True

    def _row(self, request: Request, constraint: Constraint | None) -> Row:
        sampling = request.sampling
        chooser = Chooser(sampling, request.prompt, self.engine.tokenizer.vocab_size, constraint)
        guesses = sampling.draft_tokens > 0 and chooser.plain and sampling.logprobs is None
        lookup = Lookup(request.prompt) if guesses else None
        self._requests += 1
        return Row(self._requests, request, chooser, Text(self.engine.tokenizer, sampling.stop), lookup)

    def _share(self) -> None:
        """Waiting rows take what others have read of their prompt; they wait on while another reads more of it."""
        for place, slot in enumerate(self._slots):
            if slot.row is None or not slot.row.waits:
                continue
            last = len(slot.window) - 1  # is read in any case
            for other_place, other in enumerate(self._slots):
                if other is not slot and other.read >= slot.read + WORTH_COPYING:
                    known = min(_common(slot.window, other.window), other.read, last)
                    if known >= slot.read + WORTH_COPYING:
                        self.prefix_hits += slot.read < WORTH_COPYING
                        self.cache.copy(other_place, place, known)
                        slot.read = known
            slot.row.waits = any(
                other.kind == 1 and min(_common(slot.window, other.window), last) >= slot.read + WORTH_COPYING
                for other in self._slots
            )
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
                self._swap(low, high)
        reading = [place for place, slot in enumerate(slots) if slot.kind == 1]
        if reading:  # who came first reads first
            self._swap(reading[0], min(reading, key=lambda place: slots[place].busy.number))

    def _swap(self, one: int, other: int) -> None:
        if one != other:
            slots = self._slots
            self.cache.swap(one, other, (slots[one].read, slots[other].read))
            slots[one], slots[other] = slots[other], slots[one]

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
        if any(slot.busy.lookup is not None for slot in rows):
            room = self.capacity - 1 - max(slot.read for slot in rows)
            drafts = [self._guess(slot.busy, room) for slot in rows]
            if any(drafts):
                return self._advance_drafts(rows, drafts)
        logits_BV = self._forward(0, rows, [slot.window[-1:] for slot in rows], [1] * count)
        return self._take_all(rows, logits_BV)

    def _guess(self, row: Row, room: int) -> list[int]:
        sampling = row.request.sampling
        most = min(sampling.draft_tokens, room, sampling.max_new_tokens - row.tokens - 1)
        return [] if row.lookup is None else row.lookup.guess(most)

    def _advance_drafts(self, rows: list[Slot], drafts: list[list[int]]) -> list[Delta]:
        """The same with guesses read along: those that the model would have said are taken."""
        longest = max(map(len, drafts))
        ids = [
            slot.window[-1:] + draft + [0] * (longest - len(draft)) for slot, draft in zip(rows, drafts, strict=True)
        ]
        logits_BTV = self._forward(0, rows, ids, [1 + len(draft) for draft in drafts], every=True)
        firsts = next_tokens(logits_BTV[:, 0], [slot.busy.chooser for slot in rows])
        infos = self._infos(logits_BTV[:, 0], firsts, rows)
        best = logits_BTV.argmax(-1).tolist()
        deltas = []
        for slot, draft, first, info, own in zip(rows, drafts, firsts, infos, best, strict=True):
            right = next((n for n, guess in enumerate(draft) if guess != own[n]), len(draft))
            slot.read -= len(draft) - right
            self.drafted += len(draft)
            self.accepted += right
            deltas.append(self._take(slot, [first, *own[1 : right + 1]], info))
        return deltas

    def _forward(
        self, first: int, rows: list[Slot], ids: list[list[int]], real: list[int], every: bool = False
    ) -> Tensor:
        """The logits after each row's last new token [B, V], or after every token [B, T, V]."""
        part = self.cache.part(first, [slot.read for slot in rows])
        logits = self.engine.runner.forward(torch.tensor(ids, device=self.engine.device), real, part, every)
        for slot, n in zip(rows, real, strict=True):
            slot.read += n
        return logits[..., : self.engine.tokenizer.vocab_size]  # without rows that pad the table

    def _take_all(self, rows: list[Slot], logits_BV: Tensor) -> list[Delta]:
        tokens = next_tokens(logits_BV, [slot.busy.chooser for slot in rows])
        infos = self._infos(logits_BV, tokens, rows)
        return [self._take(slot, [token], info) for slot, token, info in zip(rows, tokens, infos, strict=True)]

    def _take(self, slot: Slot, tokens: list[int], info: TokenInfo | None) -> Delta:
        """Adds tokens to a row, until it ends."""
        delta = Delta(slot.busy.request, "", [])
        for token in tokens:
            delta.finish = self._take_one(slot, token, delta)
            if delta.finish is not None:
                break
        if info is not None and delta.tokens:
            delta.infos.append(info)
        if delta.finish is not None:
            slot.read = min(slot.read, len(slot.window))
            self._free(slot)
        elif len(slot.window) > self.capacity:
            self._slide(slot)
        return delta

    def _take_one(self, slot: Slot, token: int, delta: Delta) -> Finish | None:
        """Adds a token to a row and to what is told of it. Returns how the row ends, if it does."""
        row = slot.busy
        request, chooser, text = row.request, row.chooser, row.text
        if token == self.engine.tokenizer.eos_id and (chooser.constraint is not None or not request.ignore_end):
            delta.text += text.flush()[0]
            return "stop"
        chooser.add(token)
        if row.lookup is not None:
            row.lookup.add(token)
        slot.window.append(token)
        row.tokens += 1
        delta.tokens.append(token)
        shown, stopped = text.push(token)
        delta.text += shown
        if stopped:
            return "stop"
        whole = chooser.constraint is not None and chooser.constraint.done
        full = len(slot.window) > self.capacity and not request.slide
        if not (whole or full or row.tokens >= request.sampling.max_new_tokens):
            return None
        shown, stopped = text.flush()
        delta.text += shown
        return "stop" if stopped or whole else "length"

    def _infos(self, logits_BV: Tensor, tokens: list[int], rows: list[Slot]) -> list[TokenInfo | None]:
        """What logprobs tells of the rows that ask for it: of the model's own distribution."""
        infos: list[TokenInfo | None] = [None] * len(rows)
        wanted = [slot.busy.request.sampling.logprobs for slot in rows]
        asking = [i for i, k in enumerate(wanted) if k is not None]
        if not asking:
            return infos
        logprobs = logits_BV[asking].float().log_softmax(-1)
        most = max(wanted[i] or 0 for i in asking)
        values, ids = logprobs.topk(min(most, logprobs.shape[1]))
        for i, own, best, at in zip(asking, logprobs, values.tolist(), ids.tolist(), strict=True):
            k, token = wanted[i] or 0, tokens[i]
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
        slot.row, slot.used = None, self._steps
        if not self.remember:
            slot.window, slot.read = [], 0
        self._moved = True


def _common(one: list[int], other: list[int]) -> int:
    """Length of the common beginning."""
    low, high = 0, min(len(one), len(other))
    if not high or one[0] != other[0]:
        return 0
    while low < high:  # the first `low` are equal; slices are compared in C
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _goes_on(prompt: list[int], slot: Slot) -> int:
    """Tokens that a free slot has read, if all of them begin the prompt."""
    return slot.read if slot.window[: slot.read] == prompt[: slot.read] else 0
