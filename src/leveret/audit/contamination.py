"""Contamination of evaluation sets, by set, and the score of a model on the examples that are clean.

An example is dirty where a run of 13 of its words stands in what was trained on (data/contamination.py).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from leveret.audit.finding import Finding, Stamp, count
from leveret.data.contamination import Search
from leveret.data.examples import Example
from leveret.data.overlap import NGRAM, NgramIndex, Passage
from leveret.data.sources import Document
from leveret.evaluation.exact_match import wilson_interval
from leveret.tasks.benchmarks import Question

HELD_OUT, BENCHMARKS = "contamination", "benchmarks"
"""What the audits of held-out sets and of benchmarks are called."""
OF_A_FILE = "name its file in data.decontaminate.sets, and quote the score without them"
GENERATED = "a generator makes it, whose phrases are in what it makes to train on too: quote the score without them"
"""How that is mended."""


def passages_of(held_out: dict[str, list[Example]]) -> list[Passage]:
    """What is looked for of held-out sets: each question with its answer."""
    return [
        Passage(name, number, "\n".join(m.content for m in example.messages if m.role != "system"))
        for name, examples in held_out.items()
        for number, example in enumerate(examples)
    ]


def texts_of(examples: Iterable[Example], source: str) -> Iterable[Document]:
    """Examples to train on, as documents to search."""
    for number, example in enumerate(examples):
        text = "\n".join(message.content for message in example.messages)
        yield Document(text, source, f"{source}:{number + 1}")


def questions_of(questions: Mapping[str, Sequence[Question]]) -> list[Passage]:
    """What is looked for of benchmarks: each question with its right answer."""
    return [
        Passage(name, number, "".join(question.pairs[question.gold]))
        for name, every in questions.items()
        for number, question in enumerate(every)
    ]


class ContaminationAudit:
    """Looks for evaluation sets in what is trained on. Which examples it finds: `facts["sets"]` of its stamp."""

    def __init__(self, passages: Sequence[Passage], audit: str = HELD_OUT, generated: Container[str] = ()) -> None:
        """generated: the sets that a generator makes, whose phrases are those of what it makes to train on."""
        self._audit, self.wants_more, self._generated = audit, bool(passages), generated
        self._search = Search(NgramIndex.build(passages))

    def look(self, documents: Iterable[Document]) -> None:
        self._search.look(documents)

    def stamp(self) -> Stamp:
        found = self._search.found
        if not self.wants_more:
            return Stamp(self._audit, not_run="there is no evaluation set in the recipe (evaluate.sets)")
        findings = [
            Finding(
                "warning",
                f"{count(len(one.examples), 'example')} of {one.coverage.passages:,} share a run of {NGRAM} words with "
                f"{count(one.documents, 'document')} of training, which {'has' if one.documents == 1 else 'have'} "
                f"{len(one.whole) or 'none'} of them nearly whole; such as: {one.passages[0].text[:120]!r}",
                name,
                GENERATED if name in self._generated else OF_A_FILE,
            )
            for name, one in found.sets.items()
            if one.examples
        ]
        documents = f"{count(found.documents, 'document')}, {found.characters / 1e6:,.1f} million characters"
        return Stamp(self._audit, findings, f"{count(len(found.sets), 'set')} in {documents}", facts=found.facts())


def clean_subset(correct: Sequence[bool], dirty: Iterable[int]) -> dict[str, Any]:
    """The score without contaminated examples.

    Args:
        correct: of each example, in the set's order.
        dirty: rows of contaminated examples, from 1, as `facts["sets"][name]["rows"]` has them.
    """
    out = set(dirty)
    kept = [right for row, right in enumerate(correct, 1) if row not in out]
    figures: dict[str, Any] = {"examples": len(kept), "correct": sum(kept), "left_out": len(correct) - len(kept)}
    figures["of_all"] = sum(correct) / max(len(correct), 1)
    if not kept:
        return figures | {"accuracy": None, "interval_95": None}
    return figures | {"accuracy": sum(kept) / len(kept), "interval_95": list(wilson_interval(sum(kept), len(kept)))}
