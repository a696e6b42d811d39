"""Planted faults: a test hook, set through the environment variable LEVERET_FAULTS.

    LEVERET_FAULTS=nan@7-12,die@30:rank1

Each is KIND@STEP, perhaps -LAST for a range and :rankN for one rank; steps count from 1, as in metrics.

    nan, inf   of the data: the gradients that a batch gives are NaN, or infinite
    corrupt    of the data: a token id that is not in the vocabulary
    loader     the thread that makes batches raises an exception
    hang       the rank stops for ever
    die        the rank is gone at once, as after kill -9
    slow       the rank pauses for SLOW seconds

Faults of the data belong to a place in its order, that of STEP while nothing is skipped: whoever reads it again meets
them again, and who skips it does not. The others strike once a step in the process, and not at all in the processes
that torchrun starts anew.
"""

from __future__ import annotations

import errno
import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from leveret.data.batches import Batch
from leveret.errors import UserError

VARIABLE = "LEVERET_FAULTS"
KINDS = ("nan", "inf", "corrupt", "loader", "hang", "die", "slow")
FORM = re.compile(rf"({'|'.join(KINDS)})@([1-9]\d*)(?:-(\d+))?(?::rank(\d+))?")
SLOW = 3.0
"""Seconds."""


def first_life() -> bool:
    """Whether torchrun has not started this process anew after another had failed."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"


@dataclass(frozen=True, slots=True)
class Fault:
    """kind: one of KINDS. first, last: steps, from 1. rank: None for every rank."""

    kind: str
    first: int
    last: int
    rank: int | None = None


@dataclass
class Faults:
    """What is planted for this rank; nothing, where the variable is not set."""

    planted: tuple[Fault, ...] = ()
    struck: set[tuple[str, int]] = field(default_factory=set)

    @classmethod
    def from_environment(cls, rank: int = 0) -> Faults:
        """Raises UserError where LEVERET_FAULTS is none of the above."""
        faults = []
        for text in filter(None, (part.strip() for part in os.environ.get(VARIABLE, "").split(","))):
            found = FORM.fullmatch(text)
            if found is None:
                raise UserError(f"{VARIABLE}: {text!r} is no fault; write {'|'.join(KINDS)}@STEP[-LAST][:rankN]")
            kind, first, last, where = found.groups()
            faults.append(Fault(kind, int(first), int(last or first), None if where is None else int(where)))
        return cls(tuple(each for each in faults if each.rank in (None, rank)))

    def _at(self, kind: str, step: int) -> bool:
        return any(each.kind == kind and each.first <= step <= each.last for each in self.planted)

    def _once(self, kind: str, step: int) -> bool:
        """Whether it strikes now, which it does once."""
        strikes = self._at(kind, step) and (kind, step) not in self.struck and first_life()
        if strikes:
            self.struck.add((kind, step))
        return strikes

    def load(self, step: int) -> None:
        """In the loader's thread, before the batch of a step is made."""
        if self._once("loader", step):
            raise OSError(errno.EIO, f"planted by {VARIABLE}", f"the batch of step {step}")

    def corrupt(self, place: int, batch: Batch) -> Batch:
        """The batch of a place, counted from 0, perhaps with an id that no vocabulary has."""
        if not self._at("corrupt", place + 1):
            return batch
        inputs = batch.inputs.clone()
        inputs[-1, -1] = torch.iinfo(torch.int32).max
        return replace(batch, inputs=inputs)

    def strike(self, step: int) -> None:
        """In the training thread, before a step, counted from 1, is taken."""
        if self._once("slow", step):
            time.sleep(SLOW)
        while self._at("hang", step) and first_life():
            time.sleep(3600)
        if self._once("die", step):
            os._exit(137)

    @contextmanager
    def gradients(self, place: int, model: nn.Module) -> Iterator[None]:
        """Backward passes inside give a gradient that is no number, where one is planted at this place."""
        value = math.nan if self._at("nan", place + 1) else math.inf if self._at("inf", place + 1) else None
        if value is None:
            yield
            return

        def spoil(parameter: Tensor) -> None:
            assert parameter.grad is not None
            parameter.grad.fill_(value)

        learnt = next(parameter for parameter in model.parameters() if parameter.requires_grad)
        hook = learnt.register_post_accumulate_grad_hook(spoil)
        try:
            yield
        finally:
            hook.remove()
