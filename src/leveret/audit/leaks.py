"""The audit of a recipe: no held-out example may stand in what the model is trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from leveret.audit.finding import Finding, Stamp
from leveret.data.examples import Example
from leveret.data.leaks import KINDS, Leak, LeaksInText, find_leaks, leaking
from leveret.data.mixtures import Drawn
from leveret.data.sources import Document

T = TypeVar("T")
WAYS = {
    "examples": "--drop-leaks leaves such examples out",
    "corpus": "data.decontaminate leaves such documents out",
}
SHOWN = 20
"""Leaks of a place that the stamp names; audit.json names all."""


@dataclass(frozen=True, slots=True)
class Audit:
    """What was compared and what was found; `facts` is what audit.json holds."""

    leaks: int
    summary: str
    facts: dict[str, Any]

    def stamp(self) -> Stamp:
        """What the report shows of it."""
        if not self.facts["held_out"]:
            return Stamp("leaks", not_run="there is no held-out set in the recipe (evaluate.sets)")
        findings = [
            Finding(
                "error",
                f"{leak['kind']}: {leak['instruction'][:120]!r} stands in the {place}",
                leak["set"],
                WAYS[place],
            )
            for place, leaks in self.facts["leaks"].items()
            for leak in leaks[:SHOWN]
        ]
        return Stamp("leaks", findings, self.summary)

    def refusal(self, where: str) -> str:
        """Why this is not trained on, and how to go on; `where` names every leak."""
        told = []
        for place, way in WAYS.items():
            if kinds := Counter(leak["kind"] for leak in self.facts["leaks"][place]):
                counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
                told.append(f"the {place} ({counts}; {way})")
        return f"{self.leaks} held-out examples leak into {' and '.join(told)}; {where} names them"


def without_leaks(drawn: Drawn[T], held_out: Sequence[Example], example: Callable[[T], Example]) -> Drawn[T]:
    """What was drawn, but for what is a held-out example; `example` is what an item says."""
    leaks = leaking([example(item) for item in drawn.items], held_out)
    kinds = Counter(leaks.values())
    return replace(
        drawn,
        items=[item for number, item in enumerate(drawn.items) if number not in leaks],
        leaks={kind: kinds[kind] for kind in KINDS if kinds[kind]},
    )


class LeakAudit:
    """Looks for every held-out example in the fine-tuning examples, and in the documents that it is shown.

    Args:
        train: examples to learn from.
        held_out: by set.
        dropped: of stages that leave leaks out, how many that were, by kind.
        searched: how many examples those stages have left, which are searched no second time.
    """

    def __init__(
        self,
        train: Sequence[Example],
        held_out: dict[str, list[Example]],
        dropped: dict[str, dict[str, int]] | None = None,
        searched: int = 0,
    ) -> None:
        self._everything = [example for examples in held_out.values() for example in examples]
        self._names = [name for name, examples in held_out.items() for _ in examples]
        self._held_out, self._dropped, self._examples = held_out, dropped or {}, len(train) + searched
        self._in_examples = find_leaks(train, self._everything)
        self._corpus = LeaksInText(self._everything)

    @property
    def wants_more(self) -> bool:
        return bool(self._everything)

    def look(self, documents: Sequence[Document]) -> None:
        self._corpus.look(documents)

    def stamp(self) -> Stamp:
        return self.result().stamp()

    def result(self) -> Audit:
        found = {"examples": self._in_examples, "corpus": self._corpus.leaks}
        facts: dict[str, Any] = {
            "format_version": 1,
            "training_examples": self._examples,
            "held_out": {name: len(examples) for name, examples in self._held_out.items()},
            "dropped": self._dropped,
            "leaks": {place: [self._told(leak) for leak in leaks] for place, leaks in found.items()},
        }
        kinds = Counter(leak.kind for leaks in found.values() for leak in leaks)
        told = ", ".join(f"{number} {kind}" for kind, number in kinds.items()) or "none leaks"
        held_out = f"{len(self._everything)} held-out examples"
        summary = f"{held_out} against {self._examples} training examples and the corpus: {told}"
        return Audit(sum(kinds.values()), summary, facts)

    def _told(self, leak: Leak) -> dict[str, Any]:
        return {
            "set": self._names[leak.heldout], "instruction": self._everything[leak.heldout].instruction, **asdict(leak)
        }  # fmt: skip
