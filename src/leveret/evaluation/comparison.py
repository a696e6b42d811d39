"""Models under one protocol: each is asked the same questions, and what it answered is kept.

    references --find--> candidates --load, one at a time--> answers on disk --> facts --> comparison.md, .json, plots

What a model answered lies in the cache under a hash of its weights, its tokenizer and shape, the protocol and the
questions: a comparison that was stopped goes on where it was, and one that is repeated asks nothing.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

import torch

from leveret import __version__
from leveret.data.sources import Document
from leveret.errors import UserError
from leveret.evaluation.bootstrap import RESAMPLES, SEED, compare_answers
from leveret.evaluation.calibration import calibration_of
from leveret.evaluation.suite import PROMPTS, PROTOCOL, Model, Tell, ask, engine_of, told
from leveret.evaluation.tasks import Items, Task
from leveret.evaluation.texts import compare_texts, summarise_texts, text_losses

FORMAT_VERSION = 1
TEXT = "held-out text"
"""How the text is called where tasks are."""
KEYS = {"acc": "correct", "acc_norm": "correct_norm"}
"""Of a metric, the key of a row that says whether it counts."""

Answers = dict[str, Any]


class Candidate(Protocol):
    """See leveret/candidates.py."""

    @property
    def name(self) -> str: ...
    @property
    def reference(self) -> str: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def computed_by(self) -> str: ...
    @property
    def weights_sha256(self) -> str: ...
    @property
    def identity(self) -> str: ...
    @property
    def parameters(self) -> int: ...
    @property
    def context(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def load(self) -> Callable[[], Model]: ...


@dataclass(frozen=True)
class Wish:
    """What is compared.

    limit: the first questions of each task, and the first documents. bench: folder of the benchmarks' files. texts:
    documents whose bits per byte are measured. published: what others measured, kept apart.
    """

    tasks: Sequence[Task]
    limit: int | None = None
    bench: Path | None = None
    texts: Sequence[Document] = ()
    published: Sequence[Mapping[str, Any]] = ()


@dataclass
class Comparison:
    """facts: what comparison.json says. rows: of each model, by task. failures: (reference, why) of those left out."""

    facts: dict[str, Any]
    rows: dict[str, dict[str, list[dict[str, Any]]]]
    failures: list[tuple[str, str]] = field(default_factory=list)


def compare(
    references: Sequence[str], find: Callable[[str], Candidate], wish: Wish, cache: Path, tell: Tell
) -> Comparison:
    """Asks every model, one after the other.

    Args:
        find: from a reference to the model; raises UserError where there is none.
        cache: folder of what was answered.
        tell: told what is done, and what cannot be.

    Raises:
        UserError: not one of the models can be asked, or a task cannot be read.
    """
    items = {task.name: task.load(wish.limit, wish.bench, tell) for task in wish.tasks}
    models: dict[str, dict[str, Any]] = {}
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    failures: list[tuple[str, str]] = []
    for reference in references:
        try:
            candidate = find(reference)
            found = _Asking(candidate, cache, tell).all(items, wish.texts)
        except UserError as error:
            failures.append((reference, " ".join(str(error).split())))
            tell(f"{reference} is left out: {failures[-1][1]}")
            continue
        name = _unique(candidate.name, models)
        rows[name] = {task: answers["rows"] for task, answers in found.items()}
        models[name] = _facts(candidate, found)
    if not models:
        raise UserError(f"none of the models can be compared; the first: {failures[0][0]}: {failures[0][1]}")
    facts = {
        "format_version": FORMAT_VERSION,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "protocol": _protocol(wish),
        "versions": {"leveret": __version__, "torch": torch.__version__},
        "seeds": {"bootstrap": SEED, "answers": None},  # nothing is drawn for an answer
        "questions": {task: {"sha256": each.content_hash, "source": each.source} for task, each in items.items()},
        "models": models,
        "pairs": [_pair(a, b, models, rows) for a, b in combinations(models, 2)],
        "failures": [{"model": reference, "why": why} for reference, why in failures],
        "published": list(wish.published),
    }
    return Comparison(facts, rows, failures)


class _Asking:
    """One model being asked; its weights are read at the first question that it has not answered before."""

    def __init__(self, candidate: Candidate, cache: Path, tell: Tell) -> None:
        self.candidate, self.cache, self.tell = candidate, cache, tell
        self.model: Model | None = None

    def all(self, items: Mapping[str, Items], texts: Sequence[Document]) -> dict[str, Answers]:
        """What it answered, by task. Its weights are let go at the end."""
        found = {}
        try:
            for task, each in items.items():
                found[task] = self._kept(task, each.content_hash, lambda task=task, each=each: self._ask(task, each))  # type: ignore[misc]
            if texts:
                found[TEXT] = self._kept(TEXT, _hash([asdict(text) for text in texts]), lambda: self._read(texts))
        finally:
            if self.model is not None:
                self.model = None
                gc.collect()
        return found

    def _kept(self, task: str, questions: str, make: Callable[[], Answers]) -> Answers:
        """What was answered before, or is now."""
        one = self.candidate
        key = {
            "weights": one.weights_sha256,
            "identity": one.identity,
            "computed_by": one.computed_by,
            "device": one.device,
            "protocol": [PROTOCOL, PROMPTS, "float32"],
            "questions": questions,
        }
        path = self.cache / f"{_hash(key)[:32]}.json"
        try:
            known: Answers = json.loads(path.read_text("utf-8"))
            if known["format_version"] == FORMAT_VERSION and known["key"] == key:
                return known
        except (OSError, ValueError, KeyError, TypeError):
            pass
        versions = {"leveret": __version__, "torch": torch.__version__}
        made = {"format_version": FORMAT_VERSION, "key": key, "versions": versions, **make()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(made, ensure_ascii=False), "utf-8", "surrogatepass")
        partial.replace(path)
        return made

    def _loaded(self) -> Model:
        if self.model is None:
            self.tell(f"{self.candidate.name}: loading")
            self.model = self.candidate.load()
        return self.model

    def _ask(self, task: str, items: Items) -> Answers:
        figures, rows = ask(self._loaded(), task, items)
        self.tell(f"{self.candidate.name}: {task}: {told(figures)}")
        return {"figures": figures, "rows": rows}

    def _read(self, texts: Sequence[Document]) -> Answers:
        rows = text_losses(engine_of(self._loaded()), texts)
        figures = summarise_texts(rows)
        self.tell(f"{self.candidate.name}: {figures['bits_per_byte']:.4f} bits a byte of {TEXT}")
        return {"figures": figures, "rows": rows}


def _hash(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def _unique(name: str, taken: Mapping[str, Any]) -> str:
    """The name, with a number where another model has it."""
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name} ({number})"
    return unique


def _protocol(wish: Wish) -> dict[str, Any]:
    return {
        "version": PROTOCOL,
        "prompts": PROMPTS,
        "shots": 0,
        "chat_template": "for tasks that ask for an answer, where the model chats",
        "dtype": "float32",
        "limit": wish.limit,
        "resamples": RESAMPLES,
    }


def _facts(candidate: Candidate, found: Mapping[str, Answers]) -> dict[str, Any]:
    """What comparison.json says of a model."""
    tasks = {task: answers["figures"] for task, answers in found.items() if task != TEXT}
    believed = [row for task in tasks for row in found[task]["rows"]]
    return {
        "reference": candidate.reference,
        "revision": candidate.revision,
        "weights_sha256": candidate.weights_sha256,
        "computed_by": candidate.computed_by,
        "parameters": candidate.parameters,
        "context": candidate.context,
        "device": candidate.device,
        "tasks": tasks,
        "calibration": calibration_of(believed),
        "text": found[TEXT]["figures"] if TEXT in found else None,
        "versions": {task: answers["versions"] for task, answers in found.items()},
    }


def metric_of(figures: Mapping[str, Any]) -> str:
    """What a task is compared by: acc_norm where the harness has it."""
    return "acc_norm" if "acc_norm" in figures else "acc"


def _pair(a: str, b: str, models: Mapping[str, Any], rows: Mapping[str, Any]) -> dict[str, Any]:
    """Two models on the same questions."""
    keys = {task: KEYS[metric_of(figures)] for task, figures in models[a]["tasks"].items()}
    ours, theirs = ({task: [row[key] for row in rows[each][task]] for task, key in keys.items()} for each in (a, b))
    found = {"a": a, "b": b, **(compare_answers(ours, theirs) if keys else {})}
    if TEXT in rows[a]:
        found["text"] = compare_texts(rows[a][TEXT], rows[b][TEXT])
    return found
