"""One thread owns the scheduler; requests go in by a queue, what comes of them goes back to the event loop.

submit, cancel --> orders --> [thread: scheduler.step(), again and again] --call_soon_threadsafe--> a job's deltas
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from leveret.errors import UserError
from leveret.inference.engine import Schedules
from leveret.inference.request import Delta, Request

logger = logging.getLogger("leveret.serving")


class Failed(Exception):
    """The model failed at an answer; the log says more."""


@dataclass(eq=False)
class Job:
    """The answers to one request of a client."""

    requests: Sequence[Request]
    accepted: asyncio.Future[None]
    """Done once the scheduler has all of them, or refuses."""
    deltas: asyncio.Queue[Delta | Failed] = field(default_factory=asyncio.Queue)
    """What comes, in order. Bounded by the answers' lengths: no reader ever holds up the model."""

    def settle(self, error: Exception | None = None) -> None:
        if not self.accepted.done():
            self.accepted.set_exception(error) if error else self.accepted.set_result(None)


class Worker:
    """Runs the scheduler that `make` gives, and a new one after a failure.

    All methods are for the event loop's thread.

    Args:
        tracebacks: write those of failures to the log.
    """

    def __init__(self, make: Callable[[], Schedules], tracebacks: bool = False) -> None:
        self._make, self._tracebacks = make, tracebacks
        self.scheduler = make()
        self.answers = 0
        """Those that are generated or wait."""
        self._orders: queue.SimpleQueue[tuple[Literal["submit", "cancel", "stop"], Job | None]] = queue.SimpleQueue()
        self._jobs: dict[Request, Job] = {}  # of the thread alone
        self._thread = threading.Thread(target=self._work, name="leveret-engine", daemon=True)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Ends after the step under way; what is not complete is dropped."""
        self._orders.put(("stop", None))
        self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    async def submit(self, requests: Sequence[Request]) -> Job:
        """Hands requests to the scheduler: all of them, or none.

        Raises:
            UserError: one cannot be served.
            Failed: the model failed.
        """
        if not self.alive:
            raise Failed
        job = Job(requests, self._loop.create_future())
        self.answers += len(requests)
        self._orders.put(("submit", job))
        try:
            await job.accepted
        except BaseException:
            self.cancel(job)
            raise
        return job

    def cancel(self, job: Job) -> None:
        """Gives up what is not complete of a job, if anything is."""
        self._orders.put(("cancel", job))

    def _work(self) -> None:
        while True:
            try:
                verb, job = self._orders.get(block=not self._jobs)
            except queue.Empty:
                self._step()
                continue
            if job is None:
                return
            if verb == "submit":
                self._accept(job)
            else:
                self._drop(job)

    def _accept(self, job: Job) -> None:
        self._jobs |= dict.fromkeys(job.requests, job)
        try:
            for request in job.requests:
                self.scheduler.submit(request)
        except Exception as error:
            self._drop(job)
            self._tell(job.settle, error if isinstance(error, UserError) else self._log(error))
        else:
            self._tell(job.settle)

    def _drop(self, job: Job) -> None:
        mine = [request for request in job.requests if self._jobs.pop(request, None)]
        for request in mine:
            self.scheduler.cancel(request)
        self._tell(self._count_off, len(mine))

    def _step(self) -> None:
        try:
            deltas = self.scheduler.step()
        except Exception as error:
            self._fail(error)
            return
        told = [(self._jobs[delta.request], delta) for delta in deltas if delta.request in self._jobs]
        ended = [self._jobs.pop(delta.request, None) for delta in deltas if delta.finish is not None]
        self._tell(self._deliver, told, sum(job is not None for job in ended))

    def _fail(self, error: Exception) -> None:
        """Every answer under way is lost; those that come after are not."""
        failed = self._log(error)
        lost, self._jobs = self._jobs, {}
        self.scheduler = self._make()
        for job in set(lost.values()):
            self._tell(job.deltas.put_nowait, failed)
        self._tell(self._count_off, len(lost))

    def _log(self, error: Exception) -> Failed:
        logger.error("the model failed: %s", type(error).__name__)
        if self._tracebacks:
            logger.error("%s", "".join(traceback.format_exception(error)))
        return Failed()

    def _tell(self, what: Callable[..., None], *arguments: object) -> None:
        self._loop.call_soon_threadsafe(what, *arguments)

    def _deliver(self, told: list[tuple[Job, Delta]], ended: int) -> None:
        for job, delta in told:
            job.deltas.put_nowait(delta)
        self.answers -= ended

    def _count_off(self, answers: int) -> None:
        self.answers -= answers
