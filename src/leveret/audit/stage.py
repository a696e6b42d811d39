"""The audits of a run: before it trains, where an error stops it, and after; audit.json holds what was found.

before   leaks, contamination, validation overlap, tokenizer, characters; the corpus is read once for all of them
after    schedule; the scores of the last evaluation without contaminated examples
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from leveret.audit.contamination import (
    BENCHMARKS,
    HELD_OUT,
    ContaminationAudit,
    clean_subset,
    passages_of,
    questions_of,
    texts_of,
)
from leveret.audit.finding import Stamp
from leveret.audit.leaks import LeakAudit
from leveret.audit.reading import in_blocks, read_once
from leveret.audit.schedule import audit_schedule
from leveret.audit.splits import audit_validation
from leveret.audit.tokens import CharacterAudit, audit_tokenizer
from leveret.data.config import ExamplesConfig
from leveret.data.contamination import Decontaminator
from leveret.data.examples import Example
from leveret.data.shards import TokenSplit, TokenStore
from leveret.data.sources import Document
from leveret.errors import UserError
from leveret.posttraining.config import PosttrainingConfig, ReinforceConfig
from leveret.recipe import Recipe
from leveret.rundir import RunDir, read_json, write_json
from leveret.strangers.documents import parse_json
from leveret.strangers.files import read_limited
from leveret.tasks.benchmarks import Question
from leveret.tokenizer.tokenizer import Tokenizer
from leveret.training.config import TrainingConfig
from leveret.training.metrics import MOST_BYTES, read_metrics

AUDIT = "audit.json"
METRICS = {"acc": "correct", "acc_norm": "correct_norm"}
"""Scores, and the key of a row that says whether it counts."""


class Work(Protocol):
    """What audits ask of a run at work (run.py)."""

    base_dir: Path

    @property
    def run(self) -> RunDir: ...
    @property
    def recipe(self) -> Recipe: ...
    @property
    def training(self) -> Mapping[str, TrainingConfig]: ...
    def corpus(self) -> Iterator[Document]: ...
    def examples_of(self, sources: Iterable[ExamplesConfig]) -> Iterator[Example]: ...
    def trained_on(self, stage: str) -> list[Example]: ...
    def store(self, stage: str) -> TokenStore: ...
    def load_tokenizer(self) -> Tokenizer: ...


def audit_before_training(run: Work) -> str:
    """Does the audits of what a run is about to train on, and writes audit.json. Returns them in a line.

    Raises:
        UserError: one found what should not be trained on.
    """
    held_out = {name: list(run.examples_of([source])) for name, source in run.recipe.evaluate.sets.items()}
    trained_on = {stage: run.trained_on(stage) for stage in run.recipe.tuning}
    tokenizer, examples = run.load_tokenizer(), list(chain.from_iterable(trained_on.values()))
    leaks = _leaks(run, held_out, trained_on)
    generated = [name for name, source in run.recipe.evaluate.sets.items() if source.kind == "generated"]
    contamination = ContaminationAudit(passages_of(held_out), generated=generated)
    characters = CharacterAudit(
        tokenizer,
        (example.response for example in examples),
        (example.response for of_set in held_out.values() for example in of_set),
    )
    read_once(_corpus(run), [leaks, contamination, characters])
    contamination.look(texts_of(examples, "examples"))
    found = leaks.result()
    validation = audit_validation({stage: _splits(run, stage) for stage in run.training})
    stamps = [
        found.stamp(),
        contamination.stamp(),
        validation,
        _tokenizer(run, tokenizer, examples),
        characters.stamp(),
    ]
    write_json(run.run / AUDIT, found.facts | {"audits": [stamp.as_json() for stamp in stamps]})
    where = str(run.run / AUDIT)
    if found.leaks:
        raise UserError(found.refusal(where))
    if errors := [f"{stamp.audit}: {finding.told()}" for stamp in stamps for finding in stamp.errors]:
        more = f"; {where} names {len(errors) - 1} more" if errors[1:] else ""
        raise UserError(f"the audit stops here: {errors[0]}{more}")
    others = [f"{stamp.audit} {stamp.state}" for stamp in stamps[1:]]
    return "; ".join([*([found.summary] if held_out else []), *others])


def _leaks(run: Work, held_out: dict[str, list[Example]], trained_on: dict[str, list[Example]]) -> LeakAudit:
    """Examples of a stage that leaves leaks out were searched when they were drawn, and are not again."""
    dropping = [stage for stage, config in run.recipe.tuning.items() if config.drop_leaks]
    whole = [example for stage, examples in trained_on.items() if stage not in dropping for example in examples]
    dropped = {stage: run.store(stage).manifest["dropped_leaks"] for stage in dropping if stage in run.training}
    return LeakAudit(whole, held_out, dropped, searched=sum(len(trained_on[stage]) for stage in dropping))


def _tokenizer(run: Work, tokenizer: Tokenizer, examples: Sequence[Example]) -> Stamp:
    ends = {
        stage: run.store(stage).split("train")
        for stage, config in run.training.items()
        if not isinstance(config, ReinforceConfig)  # its shards hold prompts alone
    }
    answers = any(isinstance(config, PosttrainingConfig) for config in run.training.values())
    system = not examples or any(message.role == "system" for example in examples for message in example.messages)
    return audit_tokenizer(tokenizer, ends, answers, system)


def _splits(run: Work, stage: str) -> tuple[TokenSplit, TokenSplit | None]:
    store = run.store(stage)
    return store.split("train"), store.split("validation") if "validation" in store.manifest["splits"] else None


def _corpus(run: Work) -> Iterator[Document]:
    """The documents of pretraining without what data.decontaminate takes out of them."""
    sets, documents = run.recipe.data.decontaminate, run.corpus()
    if sets is None:
        yield from documents
        return
    decontaminate = Decontaminator(sets, run.base_dir)
    for block in in_blocks(documents):
        for document, verdict in zip(block, decontaminate.each([each.text for each in block]), strict=True):
            if verdict.text is not None:
                yield replace(document, text=verdict.text)


def audit_after_training(run: RunDir, recipe: Recipe, planned: dict[str, int]) -> list[Stamp]:
    """Adds what can be told once a run has been trained and evaluated to its audit.json. Returns all stamps.

    Args:
        planned: the steps that each stage's schedule is for.
    """
    known = read_stamps(run)
    known["schedule"] = audit_schedule(
        (stage, recipe.stages[stage], steps, *_ended(run / stage))
        for stage, steps in planned.items()
        if (run / stage / "summary.json").is_file()
    )
    _score_clean(known, HELD_OUT, lambda name: _rows(run / run.last_trained() / "evaluation" / f"{name}.jsonl"))
    _write_stamps(run, known)
    return list(known.values())


def audit_benchmarks(run: Work, questions: Mapping[str, Sequence[Question]], folder: Path) -> Stamp:
    """Looks for benchmarks in all that a run was trained on; adds it, and the scores on clean questions, to audit.json.

    Args:
        questions: of each benchmark, all of them, in order.
        folder: where the rows of the benchmarks lie.
    """
    known = read_stamps(run.run)
    before = known.get(BENCHMARKS)
    try:
        audit = ContaminationAudit(questions_of(questions), BENCHMARKS)
        read_once(_corpus(run), [audit])
        for stage in run.recipe.tuning:
            audit.look(texts_of(run.trained_on(stage), stage))
        stamp = audit.stamp()
    except UserError as error:  # such as texts that are not on this machine
        stamp = Stamp(BENCHMARKS, not_run=f"what it was trained on cannot be read: {error}")
    if before is not None and before.not_run is None and stamp.not_run is None:
        others = {name: found for name, found in before.facts["sets"].items() if name not in questions}
        findings = [finding for finding in before.findings if finding.where in others]
        sets = others | stamp.facts["sets"]
        stamp = replace(stamp, findings=[*findings, *stamp.findings], facts=stamp.facts | {"sets": sets})
    known[BENCHMARKS] = stamp
    _score_clean(known, BENCHMARKS, lambda name: _rows(folder / f"{name}.jsonl"))
    _write_stamps(run.run, known)
    return known[BENCHMARKS]


def read_stamps(run: RunDir) -> dict[str, Stamp]:
    """The stamps of a run, by the audit's name; empty where it was never audited."""
    facts = read_json(run / AUDIT) or {}
    return {stamp["audit"]: Stamp.of_json(stamp) for stamp in facts.get("audits", [])}


def _write_stamps(run: RunDir, stamps: dict[str, Stamp]) -> None:
    facts = read_json(run / AUDIT) or {"format_version": 1}
    write_json(run / AUDIT, facts | {"audits": [stamp.as_json() for stamp in stamps.values()]})


def _score_clean(known: dict[str, Stamp], audit: str, rows_of: Callable[[str], list[dict[str, Any]]]) -> None:
    """Puts the score without contaminated examples beside what was found of each set that was answered."""
    stamp = known.get(audit)
    if stamp is None or stamp.not_run is not None:
        return
    clean: dict[str, dict[str, Any]] = {}
    for name, found in stamp.facts["sets"].items():
        if rows := rows_of(name):
            for metric, key in METRICS.items():
                if key in rows[0]:
                    figures = clean_subset([bool(row[key]) for row in rows], found["rows"])
                    clean.setdefault(name, {})[metric] = figures
    known[audit] = replace(stamp, facts=stamp.facts | {"clean": clean})


def _ended(folder: Path) -> tuple[int, float | None]:
    """The last step of a stage, and the rate that was logged for it, if it was."""
    steps = int(read_json(folder / "summary.json")["steps"])
    rates = [row["lr"] for row in read_metrics(folder) if row["step"] == steps and "lr" in row]
    return steps, rates[-1] if rates else None


def _rows(path: Path) -> list[dict[str, Any]]:
    """The examples of a set as the last evaluation answered them."""
    return [parse_json(line) for line in read_limited(path, MOST_BYTES).splitlines()] if path.exists() else []
