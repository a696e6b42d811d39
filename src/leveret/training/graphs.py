"""When to compile, and what compiling came to."""

from __future__ import annotations

import torch

PAYS_AFTER = 600.0
"""Seconds that a stage would take at the device's peak from which it is compiled. Real runs take two or three times
as long; compiling saves about a fifth of that, and costs about a minute."""


def cannot_compile(device: torch.device) -> str | None:
    """What is missing for compiling on this device, None if nothing is known to be."""
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except RuntimeError:
            return "no C++ compiler; g++ or clang would do"
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            return "no Triton for this GPU"
    return None


class Graphs:
    """Counts the graphs that torch.compile makes.

    recompiles: those that came after the first step and the first validation, when all shapes should have been seen.
    """

    def __init__(self) -> None:
        torch.compiler.set_stance("default")
        torch.compiler.reset()  # graphs of an earlier stage would count towards the limit of them
        self.before = self._counter()
        self.made = self.recompiles = 0
        self.seen: set[str] = set()

    def note(self, kind: str) -> int:
        """Called after a "step" or "validation"; how many graphs were made in it, if it was not the first."""
        new = self._counter() - self.before - self.made
        self.made += new
        late = new if kind in self.seen else 0
        self.seen.add(kind)
        self.recompiles += late
        return late

    def _counter(self) -> int:
        from torch._dynamo.utils import counters

        return int(counters["stats"]["unique_graphs"])
