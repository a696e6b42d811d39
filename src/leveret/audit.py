"""The audit of a recipe: no held-out example may stand in what the model is trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from leveret.data.examples import Example
from leveret.data.leaks import find_leaks, find_leaks_in_text
from leveret.data.sources import Document


@dataclass(frozen=True, slots=True)
class Audit:
    """What was compared and what was found; `facts` is what audit.json holds."""

    leaks: int
    summary: str
    facts: dict[str, Any]


def audit_recipe(train: Sequence[Example], corpus: Iterable[Document], held_out: dict[str, list[Example]]) -> Audit:
    """Looks for every held-out example in the fine-tuning examples and in the documents of pretraining."""
    everything = [example for examples in held_out.values() for example in examples]
    names = [name for name, examples in held_out.items() for _ in examples]
    found = {
        "examples": find_leaks(train, everything),
        "corpus": find_leaks_in_text(everything, corpus),
    }
    facts: dict[str, Any] = {
        "format_version": 1,
        "training_examples": len(train),
        "held_out": {name: len(examples) for name, examples in held_out.items()},
        "leaks": {
            place: [
                {"set": names[leak.heldout], "instruction": everything[leak.heldout].instruction} | asdict(leak)
                for leak in leaks
            ]
            for place, leaks in found.items()
        },
    }
    kinds = Counter(leak.kind for leaks in found.values() for leak in leaks)
    count = sum(kinds.values())
    told = ", ".join(f"{number} {kind}" for kind, number in kinds.items()) or "none leaks"
    summary = f"{len(everything)} held-out examples against {len(train)} training examples and the corpus: {told}"
    return Audit(count, summary, facts)
