"""The public benchmarks, scored as lm-evaluation-harness does: of a question's choices the likeliest is the answer.

acc takes the log-likelihood of the whole choice, acc_norm that divided by the choice's characters. LAMBADA has one
choice, which is right if greedy decoding would write it. Zero-shot, without a chat template; nothing is drawn.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from leveret import __version__
from leveret.errors import UserError
from leveret.evaluation.exact_match import wilson_interval
from leveret.evaluation.likelihood import Likelihood, Pair, encode_pair, likelihoods
from leveret.inference.engine import Answers, Engine
from leveret.tasks.benchmarks import BENCHMARKS, Question, load_benchmark
from leveret.tokenizer.tokenizer import Tokenizer

PROTOCOL = 1
"""Raised by one whenever a figure may come out otherwise than before."""
PROMPTS = "lm-evaluation-harness 0.4.13"
Tell = Callable[[str], None]


class Model(Protocol):
    """What is evaluated; `leveret.load` gives one."""

    engine: Answers
    weights_sha256: str


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """facts: what was measured, and how; JSON. rows: one for each question, in order, of all tasks. questions: by
    task."""

    facts: dict[str, Any]
    rows: list[dict[str, Any]]
    questions: dict[str, Sequence[Question]]

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        """Figures by task."""
        return self.facts["tasks"]  # type: ignore[no-any-return]


def evaluate_suite(
    model: Model,
    tasks: Sequence[str],
    limit: int | None = None,
    bench: Path | None = None,
    tell: Tell = lambda line: None,
) -> SuiteResult:
    """Scores a model on benchmarks.

    Args:
        tasks: names in tasks/benchmarks.py.
        limit: the first questions of each, as the harness's.
        bench: folder of their jsonl files; None: from the hub.
        tell: told of each task when it is done, and of failures of the network.

    Raises:
        UserError: a benchmark cannot be read, or another program holds the model.
    """
    engine = model.engine
    if not isinstance(engine, Engine):
        raise UserError("llama.cpp tells no likelihoods of given texts: name the run, or an export with safetensors")
    figures: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    questions: dict[str, Sequence[Question]] = {}
    for task in tasks:
        loaded = load_benchmark(task, bench, limit, tell)
        questions[task] = loaded.questions
        scored = score(engine, loaded.questions)
        answered = [
            {"task": task, "id": f"{task}/{number}"} | judge(question, found)
            for number, (question, found) in enumerate(zip(loaded.questions, scored, strict=True))
        ]
        figures[task] = summarise(answered, BENCHMARKS[task].normed) | {"source": loaded.source}
        tell(f"{task}: {told(figures[task])}")
        rows += answered
    return SuiteResult({**_protocol(model, engine, limit), "tasks": figures}, rows, questions)


def _protocol(model: Model, engine: Engine, limit: int | None) -> dict[str, Any]:
    return {
        "format_version": 1,
        "weights_sha256": model.weights_sha256,
        "tokenizer_sha256": engine.tokenizer.content_hash,
        "protocol": {
            "version": PROTOCOL,
            "prompts": PROMPTS,
            "shots": 0,
            "chat_template": False,
            "dtype": str(engine.dtype).removeprefix("torch."),
            "limit": limit,
            "seed": None,  # nothing is drawn
        },
        "versions": {"leveret": __version__, "torch": torch.__version__},
    }


def encoded(tokenizer: Tokenizer, question: Question) -> list[Pair]:
    return [encode_pair(tokenizer, context, continuation) for context, continuation in question.pairs]


def score(engine: Engine, questions: Sequence[Question]) -> list[list[Likelihood]]:
    """The likelihood of each choice of each question."""
    return likelihoods(engine.model, [encoded(engine.tokenizer, question) for question in questions])


def judge(question: Question, found: Sequence[Likelihood]) -> dict[str, Any]:
    """A question's row of the log; of equally likely choices the first is taken."""
    values = [each.loglikelihood for each in found]
    row: dict[str, Any] = {"gold": question.gold, "loglikelihoods": values}
    if len(found) == 1:
        row |= {"correct": found[0].greedy, "correct_norm": found[0].greedy}
    else:
        normed = [value / max(1, length) for value, length in zip(values, question.lengths, strict=True)]
        choice, choice_norm = values.index(max(values)), normed.index(max(normed))
        row |= {
            "choice": choice,
            "choice_norm": choice_norm,
            "correct": choice == question.gold,
            "correct_norm": choice_norm == question.gold,
        }
    return row | {"cut": max(each.cut for each in found), "unscored": max(each.unscored for each in found)}


def summarise(rows: Sequence[dict[str, Any]], normed: bool) -> dict[str, Any]:
    """Figures of a task's rows. Standard errors are those of a mean, from the sample's deviation; 95% intervals are
    Wilson's. chance: acc of one who guesses. cut, unscored: questions that did not fit into the context.
    """
    total = len(rows)
    figures: dict[str, Any] = {"n": total}
    for metric, key in (("acc", "correct"), ("acc_norm", "correct_norm"))[: 1 + normed]:
        right = sum(row[key] for row in rows)
        share = right / total
        figures[metric] = share
        figures[f"{metric}_stderr"] = math.sqrt(share * (1 - share) / (total - 1)) if total > 1 else None
        figures[f"{metric}_interval_95"] = list(wilson_interval(right, total))
    choices = [len(row["loglikelihoods"]) for row in rows]
    if choices[0] == 1:
        values = [row["loglikelihoods"][0] for row in rows]
        perplexity = math.exp(min(700.0, -statistics.fmean(values)))
        figures["perplexity"] = perplexity
        # To first order: the exponential's slope times the mean's error.
        figures["perplexity_stderr"] = perplexity * statistics.stdev(values) / math.sqrt(total) if total > 1 else None
    else:
        figures["chance"] = statistics.fmean(1 / count for count in choices)
    figures["cut"] = sum(row["cut"] > 0 for row in rows)
    figures["unscored"] = sum(row["unscored"] > 0 for row in rows)
    return figures


def told(figures: dict[str, Any]) -> str:
    """A task's figures in a line."""
    parts = []
    for metric in ("acc", "acc_norm"):
        if metric in figures:
            low, high = figures[f"{metric}_interval_95"]
            parts.append(f"{metric} {figures[metric]:.2%} (95%: {low:.2%} to {high:.2%})")
    cut = f", {figures['cut']:,} cut to the context" if figures["cut"] else ""
    return f"{', '.join(parts)} of {figures['n']:,}{cut}"
