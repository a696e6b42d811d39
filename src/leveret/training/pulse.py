"""Which of several processes does not answer, or does not get on: found by a thread beside the work.

    work: at("data"), at("forward"), ... --a beat a second: how far, where, since when--> store --> everyone else

All ranks pass the same places in the same order, so the one that the others wait for is the one that has passed the
fewest, wherever those are stuck. The thread needs nothing of the main one, which may stand in a collective for ever: it
tells first, and when patience is over it ends the process, so that whoever started it can start all ranks anew.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

BEAT_SECONDS = 1.0
SILENT_SECONDS = 10.0
"""Without a beat for so long a rank is said not to answer."""
LOST_SECONDS = 60.0
"""And for so long, it is given up."""
LATE_SECONDS = 20.0
"""Who lets the others wait for so long is named, and again whenever the wait has doubled."""
TOGETHER = 4
"""Times the patience that all may stand at one place: they may all have much to do."""
DONE = "done"
"""Why a rank leaves that has come to the end."""
LOST = 75
"""Exit code of the ranks that are left when one is lost: to be tried again (as sysexits.h has it)."""

Post = Callable[[str, str], None]
Fetch = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Beat:
    """What a rank says of itself. passed: places of this step. since: seconds at the last one. long: whether that may
    take as long as it likes. left: why it is going, empty while it is not. who: host and process."""

    number: int
    step: int
    passed: int
    place: str
    since: float
    long: bool
    left: str
    who: str

    @property
    def so_far(self) -> tuple[int, int]:
        return self.step, self.passed

    @classmethod
    def read(cls, text: str) -> Beat:
        return cls(**json.loads(text))

    def text(self) -> str:
        return json.dumps({name: getattr(self, name) for name in self.__slots__})


@dataclass
class Heard:
    """The last beat of a rank, and when it was new to us."""

    beat: Beat
    when: float


class Pulse:
    """The thread of one rank.

    Args:
        post, fetch: write and read a key of the store that all ranks share, at once; they raise RuntimeError when it
            is gone.
        patience: seconds that the others may wait for a rank before they are ended.
    """

    def __init__(self, rank: int, ranks: int, post: Post, fetch: Fetch, patience: float) -> None:
        self.rank, self.ranks, self.post, self.fetch, self.patience = rank, ranks, post, fetch, patience
        self.who = f"{socket.gethostname()}, process {os.getpid()}"
        self.tell: Callable[[str, str], None] = lambda kind, text: _say(text)
        self.step, self.passed, self.place, self.moved, self.long = 0, 0, "its start", time.monotonic(), True
        self.heard: dict[int, Heard] = {}
        self.number = 0
        self.said: dict[int, float] = {}
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def start(self) -> None:
        self._beat()
        self.thread.start()

    def stop(self, why: str) -> None:
        """The last beat says why this rank goes: nobody waits for it any more."""
        self.stopped.set()
        self.thread.join()
        with suppress(RuntimeError):  # whoever held the store has gone before us
            self._beat(why)

    def at(self, place: str, step: int | None = None, long: bool = False) -> None:
        """The work has come to this place, and perhaps to a step; nobody is named for a long one, as long as it
        beats."""
        self.step, self.passed = (self.step, self.passed + 1) if step is None else (step, 0)
        self.place, self.moved, self.long = place, time.monotonic(), long

    def _own(self, left: str = "") -> Beat:
        since = round(time.monotonic() - self.moved, 1)
        return Beat(self.number, self.step, self.passed, self.place, since, self.long, left, self.who)

    def _beat(self, left: str = "") -> None:
        self.number += 1
        self.post(f"beat/{self.rank}", self._own(left).text())

    def _run(self) -> None:
        while not self.stopped.wait(BEAT_SECONDS):
            try:
                self._beat()
                self.listen()
                fault = self.fault()
            except RuntimeError:
                self._end("lost", "the process that holds the ranks together, rank 0's or torchrun's, is gone")
            else:
                if fault is not None:
                    self._end("rank-lost", fault)

    def listen(self) -> None:
        """Takes in every other rank's newest beat."""
        for rank in range(self.ranks):
            if rank == self.rank or (text := self.fetch(f"beat/{rank}")) is None:
                continue
            beat = Beat.read(text)
            if rank not in self.heard or self.heard[rank].beat.number != beat.number:
                self.heard[rank] = Heard(beat, time.monotonic())

    def fault(self) -> str | None:
        """Says who is silent or late; why to end, if it is time to."""
        now = time.monotonic()
        for rank, heard in self.heard.items():
            quiet = now - heard.when
            if not heard.beat.left and quiet > SILENT_SECONDS:
                text = (
                    f"rank {rank} ({heard.beat.who}) has not answered for {quiet:.0f} s; it was at {_where(heard.beat)}"
                )
                if quiet > LOST_SECONDS:
                    return f"{text}, and is given up"
                self._name(rank, "rank-silent", text, quiet)
        if now - self.moved > SILENT_SECONDS and not self.long and (gone := self.gone()) is not None:
            return gone
        beats = {rank: heard.beat for rank, heard in self.heard.items() if not heard.beat.left}
        return self._late(beats | {self.rank: self._own()}, now - self.moved)

    def _late(self, beats: dict[int, Beat], waited: float) -> str | None:
        """Names who has passed fewest places, this rank perhaps; why to end, if patience is over."""
        if waited < min(LATE_SECONDS, self.patience) or any(beat.long for beat in beats.values()):
            return None
        rank = min(beats, key=lambda each: beats[each].so_far)
        if all(beat.so_far == beats[rank].so_far for beat in beats.values()):
            stuck = f"every rank has been at {_where(self._own())} for {waited:.0f} s: a device hangs, or the network"
            return stuck if waited > TOGETHER * self.patience else None
        late = beats[rank]
        text = f"rank {rank} ({late.who}) has been at {_where(late)} for {late.since:.0f} s, and the others wait for it"
        if waited > self.patience:
            return f"{text}; it is given up"
        self._name(rank, "rank-late", text, waited)
        return None

    def _name(self, rank: int, kind: str, text: str, seconds: float) -> None:
        """Once, and again whenever it has doubled; anew, if it had come back in between."""
        before = self.said.get(rank, 0.0)
        if seconds < before:
            before = 0.0
        if seconds >= 2 * before:
            self.said[rank] = seconds
            if self._speaks():
                self.tell(kind, text)

    def _speaks(self) -> bool:
        """Whether this rank is the first of those that answer."""
        now = time.monotonic()
        return all(
            now - self.heard[rank].when > SILENT_SECONDS or self.heard[rank].beat.left
            for rank in range(self.rank)
            if rank in self.heard
        )

    def _end(self, kind: str, text: str) -> None:
        """Ends this process, whatever its main thread is stuck in."""
        if self._speaks():
            self.tell(kind, text)
        os._exit(LOST)

    def missing(self) -> str | None:
        """After a collective has failed: which rank is gone, looked for until one has missed its beats."""
        deadline = time.monotonic() + SILENT_SECONDS
        while time.monotonic() < deadline:
            if (gone := self.gone()) is not None:
                return gone
            for rank, heard in sorted(self.heard.items()):
                if time.monotonic() - heard.when > 3.5 * BEAT_SECONDS:
                    return f"rank {rank} ({heard.beat.who}) is gone; it was at {_where(heard.beat)}"
            time.sleep(BEAT_SECONDS / 5)
        return None

    def gone(self) -> str | None:
        """Who has left for a reason of its own."""
        for rank, heard in sorted(self.heard.items()):
            if heard.beat.left not in ("", DONE):
                return f"rank {rank} ({heard.beat.who}) has left at {_where(heard.beat)}: {heard.beat.left}"
        return None


def _where(beat: Beat) -> str:
    return f"{beat.place} of step {beat.step}" if beat.step else beat.place


def _say(text: str) -> None:
    print(f"leveret: {text}", file=sys.stderr, flush=True)
