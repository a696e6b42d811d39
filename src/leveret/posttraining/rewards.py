"""Rewards that can be checked: the exact answer of a sum, the effect of a command.

    answer   1: the reference's text, white space aside
    shell    1: the reference's text, or its effect in the sandbox;  0.1: bash can read it

Where nothing can be run (no sandbox on this machine, or nothing can be said of the reference by running it), a command
has to be equal to the reference for the whole reward. PowerShell is never run, and not read either. An answer that has
not ended by itself gets nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from leveret.posttraining.prompts import Reference
from leveret.tasks.shell.effects import Effects, parses

RIGHT, READABLE = 1.0, 0.1


@dataclass(frozen=True, slots=True)
class Grade:
    """What an answer is worth, and why.

    exact: it is the reference. parses: bash can read it; effect: it has the reference's effect; both None where that
    was not asked or cannot be said.
    """

    reward: float
    exact: bool
    parses: bool | None = None
    effect: bool | None = None


class Grader:
    """Grades answers. kind: which reward; auto: by the reference."""

    def __init__(self, kind: Literal["auto", "answer", "shell"] = "auto") -> None:
        self.kind = kind
        self.effects = Effects()

    def grade(self, answers: Sequence[tuple[Reference, str, bool]]) -> list[Grade]:
        """Grades of (reference, answer, whether it ended by itself)."""
        asked = {
            place: (reference.response, text)
            for place, (reference, text, ended) in enumerate(answers)
            if ended and self.is_command(reference) and parses(text)
        }
        effects = dict(zip(asked, self.effects.same(list(asked.values())), strict=True))
        return [self._grade(*answer, effects.get(place), place in asked) for place, answer in enumerate(answers)]

    def is_command(self, reference: Reference) -> bool:
        """Whether bash is to read an answer, and perhaps to run it."""
        if self.kind == "auto":
            return reference.shell == "bash"
        return self.kind == "shell" and reference.shell in ("", "bash")

    def _grade(self, reference: Reference, text: str, ended: bool, effect: bool | None, readable: bool) -> Grade:
        exact = ended and text.split() == reference.response.split()
        right = RIGHT if exact or effect else 0.0
        if not self.is_command(reference):
            return Grade(right, exact)
        return Grade(right or READABLE * readable, exact, readable, effect)
