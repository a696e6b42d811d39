"""lm-evaluation-harness with our engine: any of its tasks, and the benchmarks of local files as tasks of its own kind.

Imported where it is asked for, since lm-eval (`pip install leveret[eval]`) takes seconds.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from leveret.errors import UserError
from leveret.evaluation.likelihood import Pair, encode_pair, likelihoods
from leveret.evaluation.suite import Model
from leveret.inference.config import SamplingConfig
from leveret.inference.engine import Engine
from leveret.tasks.benchmarks import BENCHMARKS, Question, load_benchmark

ANSWER_TOKENS = 256
"""Of an answer whose task does not say how long it may be, as with the harness's own models."""


class LeveretLM(LM):  # type: ignore[misc]
    """Our engine as the harness asks models."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(log-likelihood, greedy) of each continuation; what is asked of one document shares its beginning."""
        groups: dict[Any, list[int]] = {}
        for number, request in enumerate(requests):
            known = request.doc_id is not None
            groups.setdefault((request.task_name, request.doc_id) if known else number, []).append(number)
        pairs = [[encode_pair(self.engine.tokenizer, *requests[i].args) for i in group] for group in groups.values()]
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for group, found in zip(groups.values(), likelihoods(self.engine.reader, pairs), strict=True):
            for number, each in zip(group, found, strict=True):
                answers[number] = (each.loglikelihood, each.greedy)
                self.cache_hook.add_partial("loglikelihood", requests[number].args, answers[number])
        return answers

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """The log-likelihood of each text, in windows as long as the context that do not overlap."""
        windows = []
        for request in requests:
            start = encode_pair(self.engine.tokenizer, "", "").context[0]
            ids = self.engine.tokenizer.encode(request.args[0])
            cut = get_rolling_token_windows(ids, start, self.engine.context, 1)
            windows.append([Pair(*make_disjoint_window(window)) for window in cut])
        apart = [[window] for each in windows for window in each]
        values = iter(found[0].loglikelihood for found in likelihoods(self.engine.reader, apart))
        return [sum(next(values) for _ in each) for each in windows]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers, each decoded as its request says; alike ones together."""
        ways: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            ways.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        answers = [""] * len(requests)
        for way, numbers in ways.items():
            sampling = _sampling(json.loads(way))
            prompts = []
            for number in numbers:
                ids = self.engine.tokenizer.encode(requests[number].args[0])
                room = max(1, self.engine.context - sampling.max_new_tokens)
                prompts.append(ids[-room:] or encode_pair(self.engine.tokenizer, "", "").context)
            for number, answer in zip(numbers, self.engine.generate(prompts, sampling), strict=True):
                answers[number] = answer.text
        return answers


def _sampling(asked: dict[str, Any]) -> SamplingConfig:
    """What the harness calls generation_kwargs."""
    until = asked.get("until") or []
    drawn = asked.get("do_sample", asked.get("temperature", 0) > 0)
    longest = asked.get("max_gen_toks") or asked.get("max_new_tokens") or ANSWER_TOKENS
    return SamplingConfig(
        max_new_tokens=longest,
        temperature=asked.get("temperature", 1.0) if drawn else 0.0,
        top_k=asked.get("top_k") if drawn else None,
        top_p=asked.get("top_p") if drawn else None,
        stop=[text for text in ([until] if isinstance(until, str) else until) if text],
        seed=asked.get("seed", 0),
    )


def run_harness(
    model: Model | LM, tasks: Sequence[str], limit: int | None = None, include_path: Path | None = None
) -> dict[str, Any]:
    """The harness's results of a model of ours, or of one of its own.

    Args:
        include_path: folder of tasks; only those are known then, which saves seconds. None: the harness's own.

    Raises:
        UserError: there is no such task, or another program holds the model.
    """
    if not isinstance(model, LM):
        if not isinstance(model.engine, Engine):
            raise UserError("llama.cpp tells no likelihoods of given texts: name the run, or an export")
        model = LeveretLM(model.engine)
    manager = TaskManager(
        include_path=None if include_path is None else str(include_path), include_defaults=include_path is None
    )
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        raise UserError(f"lm-evaluation-harness has no task {unknown[0]!r}; `lm-eval ls tasks` lists them")
    found = simple_evaluate(model, tasks=list(tasks), limit=limit, task_manager=manager, bootstrap_iters=1000)
    return dict(found or {})


def evaluate_through_harness(
    model: Model, tasks: Sequence[str], limit: int | None, bench: Path | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the harness finds of any of its tasks, or of the benchmarks of local files; and its rows.

    Args:
        bench: folder of the files; None: the harness's own tasks, from the hub.
    """
    with tempfile.TemporaryDirectory() as folder:
        written = None if bench is None else write_tasks(tasks, bench, Path(folder), limit)
        found = run_harness(model, tasks, limit, written)
    told: dict[str, Any] = {key: found[key] for key in ("results", "versions", "n-shot", "n-samples") if key in found}
    rows = [{"task": task} | sample for task, samples in found["samples"].items() for sample in samples]
    return {"weights_sha256": model.weights_sha256, "lm_eval": version("lm_eval"), **told}, rows


def write_tasks(names: Sequence[str], bench: Path, folder: Path, limit: int | None = None) -> Path:
    """The benchmarks of local jsonl files as tasks for the harness, with its own prompts; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        questions = load_benchmark(name, bench, limit).questions
        rows = [_document(question) for question in questions]
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
            "test_split": "test",
            **_reading(questions[0]),
            "metric_list": [{"metric": metric} for metric in _metrics(name, questions[0])],
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return folder


def _metrics(name: str, question: Question) -> list[str]:
    return ["acc", *["acc_norm"] * BENCHMARKS[name].normed, *["perplexity"] * (len(question.pairs) == 1)]


def _shares_context(question: Question) -> bool:
    return len({context for context, _ in question.pairs}) == 1


def _document(question: Question) -> dict[str, Any]:
    context, continuation = question.pairs[0]
    if len(question.pairs) == 1:
        return {"context": context, "continuation": continuation}
    if _shares_context(question):
        return {"context": context, "choices": [text[1:] for _, text in question.pairs], "gold": question.gold}
    return {"choices": [text for text, _ in question.pairs], "continuation": continuation[1:], "gold": question.gold}


def _reading(question: Question) -> dict[str, Any]:
    """How the harness reads the documents; it puts a space before a choice, or the continuation of several contexts."""
    if len(question.pairs) == 1:
        return {"output_type": "loglikelihood", "doc_to_text": "context", "doc_to_target": "continuation"}
    texts = ("context", "gold") if _shares_context(question) else ("gold", "continuation")
    fields = dict(zip(("doc_to_text", "doc_to_target"), texts, strict=True))
    return {"output_type": "multiple_choice", **fields, "doc_to_choice": "choices"}
