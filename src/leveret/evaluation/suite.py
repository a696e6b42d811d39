"""Benchmarks and other tasks, as lm-evaluation-harness scores them: of several choices the likeliest is the answer.

acc takes the log-likelihood of the whole choice, acc_norm that divided by the choice's characters. LAMBADA has one
choice, which is right if greedy decoding would write it. Zero-shot, without a chat template; nothing is drawn. Tasks
that ask for an answer are answered greedily, through the chat template of a model that chats.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from leveret import __version__
from leveret.errors import UserError
from leveret.evaluation.calibration import calibration_of
from leveret.evaluation.exact_match import wilson_interval
from leveret.evaluation.foreign import ForeignEngine
from leveret.evaluation.generation import faults
from leveret.evaluation.likelihood import Likelihood, Pair, encode_pair, likelihoods
from leveret.evaluation.tasks import Asked, Items, Task, benchmark
from leveret.inference.config import SamplingConfig
from leveret.inference.engine import Answers, Completion, Engine
from leveret.tasks.benchmarks import Question
from leveret.tokenizer.tokenizer import Tokenizer

PROTOCOL = 1
"""Raised by one whenever a figure may come out otherwise than before."""
PROMPTS = "lm-evaluation-harness 0.4.13"
AT_ONCE = 64
"""Prompts that are answered together."""
Tell = Callable[[str], None]


class Model(Protocol):
    """What is evaluated; `leveret.load` gives one."""

    weights_sha256: str
    chats: bool

    @property
    def engine(self) -> Answers: ...
    def prompt_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]: ...


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
    tasks: Sequence[str | Task],
    limit: int | None = None,
    bench: Path | None = None,
    tell: Tell = lambda line: None,
) -> SuiteResult:
    """Scores a model on benchmarks and other tasks.

    Args:
        tasks: names in tasks/benchmarks.py, or what `find_tasks` found.
        limit: the first questions of each, as the harness's.
        bench: folder of the benchmarks' jsonl files; None: from the hub.
        tell: told of each task when it is done, and of failures of the network.

    Raises:
        UserError: a benchmark cannot be read, or another program holds the model.
    """
    figures: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    questions: dict[str, Sequence[Question]] = {}
    facts = protocol_of(model, limit)
    for each in tasks:
        task = benchmark(each) if isinstance(each, str) else each
        items = task.load(limit, bench, tell)
        questions[task.name] = items.questions
        figures[task.name], answered = ask(model, task.name, items)
        tell(f"{task.name}: {told(figures[task.name])}")
        rows += answered
    return SuiteResult({**facts, "tasks": figures}, rows, questions)


def ask(model: Model, name: str, items: Items) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The figures of one task, and the row of each of its questions."""
    if isinstance(items.items[0], Asked):
        rows, generated = _answers(model, items)
        figures = summarise_answers(rows) | {"chat_template": model.chats, "generation": generated}
    else:
        scored = score(engine_of(model), items.questions)
        rows = [judge(question, found) for question, found in zip(items.questions, scored, strict=True)]
        figures = summarise(rows, items.normed)
    named = [{"task": name, "id": f"{name}/{number}"} | row for number, row in enumerate(rows)]
    return figures | {"source": items.source}, named


def engine_of(model: Model) -> Engine | ForeignEngine:
    """What tells likelihoods. Raises UserError where another program holds the model."""
    if not isinstance(model.engine, Engine | ForeignEngine):
        raise UserError("llama.cpp tells no likelihoods of given texts: name the run, or an export with safetensors")
    return model.engine


def _answers(model: Model, items: Items) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of what is answered greedily, and the faults of the answers."""
    asked = [item for item in items.items if isinstance(item, Asked)]
    prompts = [model.prompt_ids(item.messages) for item in asked]
    answers: list[Completion] = [Completion("", [], "length")] * len(asked)
    config = SamplingConfig(max_new_tokens=items.max_new_tokens)
    order = sorted(range(len(asked)), key=lambda i: len(prompts[i]))  # alike ones together
    for begin in range(0, len(order), AT_ONCE):
        chunk = order[begin : begin + AT_ONCE]
        for i, answer in zip(chunk, model.engine.generate([prompts[i] for i in chunk], config), strict=True):
            answers[i] = answer
    rows = [
        {
            "prompt": item.messages[-1]["content"],
            "expected": item.answer,
            "answer": answer.text,
            "correct": bool(items.right(answer.text, item.answer)),
            "finish": answer.finish,
        }
        for item, answer in zip(asked, answers, strict=True)
    ]
    return rows, faults(answers)


def protocol_of(model: Model, limit: int | None) -> dict[str, Any]:
    """What decides a model's figures, but for the questions themselves."""
    engine = engine_of(model)
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
            "pairs_of_bfloat16": isinstance(engine, Engine) and engine.reader is not engine.model,
            "limit": limit,
            "seed": None,  # nothing is drawn
        },
        "versions": {"leveret": __version__, "torch": torch.__version__},
    }


def encoded(tokenizer: Tokenizer, question: Question) -> list[Pair]:
    return [encode_pair(tokenizer, context, continuation) for context, continuation in question.pairs]


def score(engine: Engine | ForeignEngine, questions: Sequence[Question]) -> list[list[Likelihood]]:
    """The likelihood of each choice of each question."""
    return read_likelihoods(engine, [encoded(engine.tokenizer, question) for question in questions])


def read_likelihoods(engine: Engine | ForeignEngine, groups: Sequence[Sequence[Pair]]) -> list[list[Likelihood]]:
    """As evaluation/likelihood.py's, with whatever computes the model."""
    return likelihoods(engine.reader, groups) if isinstance(engine, Engine) else engine.likelihoods(groups)


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
        figures |= _share(metric, [row[key] for row in rows])
    choices = [len(row["loglikelihoods"]) for row in rows]
    if choices[0] == 1:
        values = [row["loglikelihoods"][0] for row in rows]
        perplexity = math.exp(min(700.0, -statistics.fmean(values)))
        figures["perplexity"] = perplexity
        # To first order: the exponential's slope times the mean's error.
        figures["perplexity_stderr"] = perplexity * statistics.stdev(values) / math.sqrt(total) if total > 1 else None
    else:
        figures["chance"] = statistics.fmean(1 / count for count in choices)
        figures["calibration"] = calibration_of(rows)
    figures["cut"] = sum(row["cut"] > 0 for row in rows)
    figures["unscored"] = sum(row["unscored"] > 0 for row in rows)
    return figures


def summarise_answers(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures of a task's rows that were answered. ended: the share that ended by themselves."""
    ended = sum(row["finish"] == "stop" for row in rows) / len(rows)
    return {"n": len(rows), **_share("acc", [row["correct"] for row in rows]), "ended": ended}


def _share(metric: str, right: Sequence[bool]) -> dict[str, Any]:
    """The share that is right, its standard error and its interval."""
    total, share = len(right), sum(right) / len(right)
    return {
        metric: share,
        f"{metric}_stderr": math.sqrt(share * (1 - share) / (total - 1)) if total > 1 else None,
        f"{metric}_interval_95": list(wilson_interval(sum(right), total)),
    }


def told(figures: dict[str, Any]) -> str:
    """A task's figures in a line."""
    parts = []
    for metric in ("acc", "acc_norm"):
        if metric in figures:
            low, high = figures[f"{metric}_interval_95"]
            parts.append(f"{metric} {figures[metric]:.2%} (95%: {low:.2%} to {high:.2%})")
    cut = f", {figures['cut']:,} cut to the context" if figures.get("cut") else ""
    return f"{', '.join(parts)} of {figures['n']:,}{cut}"
