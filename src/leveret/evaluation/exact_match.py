"""Exact match: the share of prompts whose most probable answer is the expected one, white space aside."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leveret.data.examples import Example
from leveret.evaluation.failures import categories
from leveret.inference.config import SamplingConfig
from leveret.inference.engine import Answers
from leveret.tokenizer.template import render


def normalise_space(text: str) -> str:
    """Runs of white space as one space, none at the ends."""
    return " ".join(text.split())


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson, 1927)."""
    if not total:
        return 0.0, 1.0
    z = 1.959964
    share = correct / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return max(0.0, middle - half), min(1.0, middle + half)


def exact_match(
    engine: Answers, examples: Sequence[Example], config: SamplingConfig, batch_size: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Answers every example's prompt.

    Returns:
        The figures (accuracy, its 95% interval, how many answers ended by themselves, failures by category), and one
        row for each example.
    """
    prompts = [
        render(
            engine.tokenizer,
            [{"role": m.role, "content": m.content} for m in example.messages[:-1]],
            add_generation_prompt=True,
        ).ids
        for example in examples
    ]
    rows: list[dict[str, Any]] = [{} for _ in examples]
    by_length = sorted(range(len(examples)), key=lambda i: len(prompts[i]))
    for begin in range(0, len(by_length), batch_size):
        chunk = by_length[begin : begin + batch_size]
        for i, completion in zip(chunk, engine.generate([prompts[i] for i in chunk], config), strict=True):
            expected = examples[i].response
            rows[i] = {
                "instruction": examples[i].instruction,
                "expected": expected,
                "answer": completion.text,
                "correct": normalise_space(completion.text) == normalise_space(expected),
                "finish": completion.finish,
                "categories": categories(expected),
            }
    correct = sum(row["correct"] for row in rows)
    low, high = wilson_interval(correct, len(rows))
    figures = {
        "examples": len(rows),
        "correct": correct,
        "accuracy": correct / len(rows) if rows else None,
        "interval_95": [low, high],
        "ended_by_itself": sum(row["finish"] == "stop" for row in rows),
        "by_category": _by_category(rows),
    }
    return figures, rows


def _by_category(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """For each category of commands: examples, and failures among them."""
    examples = Counter(name for row in rows for name in row["categories"])
    failures = Counter(name for row in rows if not row["correct"] for name in row["categories"])
    return {name: {"examples": examples[name], "failed": failures[name]} for name in sorted(examples)}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
