"""Batches ahead of the step, so that it never waits for them.

step --load, in a thread--> micro-batches on the CPU --pinned, a stream of their own--> on the GPU --> the loop
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from leveret.data.batches import Batch

AHEAD = 2
"""Steps whose batches are made before they are wanted."""

Load = Callable[[int], list[Batch]]
Sent = tuple[list[Batch], torch.Event | None]
"""Micro-batches, and on a GPU what says that they have arrived."""


def prefetch(load: Load, steps: Iterable[int], device: torch.device, ahead: bool = True) -> Generator[list[Batch]]:
    """What `load` makes of each step, in order, on the device.

    One thread works ahead. What goes wrong in it is raised here, at the step that it belongs to. Closing the generator
    ends the thread, once it is through with the step at hand. Without `ahead` a step is loaded when it is asked for.
    """
    if not ahead:
        for step in steps:
            yield [part.to(device) for part in load(step)]
        return
    send = _sender(load, device)
    waiting: deque[Future[Sent]] = deque()
    with ThreadPoolExecutor(1, "batches") as thread:
        try:
            for step in steps:
                waiting.append(thread.submit(send, step))
                if len(waiting) > AHEAD:
                    yield _received(waiting.popleft().result(), device)
            while waiting:
                yield _received(waiting.popleft().result(), device)
        finally:
            for future in waiting:
                future.cancel()


def _sender(load: Load, device: torch.device) -> Callable[[int], Sent]:
    """Loads a step and, for a GPU, starts the copying, beside whatever the GPU is computing."""
    if device.type != "cuda":
        return lambda step: (load(step), None)
    stream = torch.cuda.Stream(device)

    def send(step: int) -> Sent:
        with torch.cuda.stream(stream):
            return [part.pinned().to(device) for part in load(step)], stream.record_event()

    return send


def _received(sent: Sent, device: torch.device) -> list[Batch]:
    """The micro-batches, ready for this thread's stream: it is the GPU that waits for the copy, not we."""
    parts, arrived = sent
    if arrived is None:
        return [part.to(device) for part in parts]
    stream = torch.cuda.current_stream(device)
    stream.wait_event(arrived)
    for part in parts:
        for tensor in part.tensors().values():
            tensor.record_stream(stream)  # its memory is not given away before this stream is through with it
    return parts
