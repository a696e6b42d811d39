"""Public benchmarks: our engine against lm-evaluation-harness's own `hf` model, the same weights and questions.

By default l20-edu-135m's shape and tokenizer with drawn weights, in float32. Timed is what a model does, from texts to
log-likelihoods; both are asked the same list, in interleaved rounds. The harness's batch size is the fastest of a few,
tried beforehand. Then answers are compared: every log-likelihood, and the accuracies that follow from them.

Run: LEVERET_DATA=... python benchmarks/evaluation_speed.py [--model RUN] [--suite six] [--limit 8] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import LlamaConfig, LlamaForCausalLM

import leveret
from leveret.api import LoadedModel
from leveret.evaluation.likelihood import Likelihood
from leveret.evaluation.suite import judge, score, summarise
from leveret.export.write import export_model
from leveret.hardware.device import environment, pick_device
from leveret.inference.engine import Engine
from leveret.recipe import load_recipe
from leveret.tasks.benchmarks import BENCHMARKS, Question, load_benchmark, named
from leveret.tokenizer import TokenizerConfig, train_tokenizer
from leveret.tokenizer.tokenizer import SpecialRoles, Tokenizer

SHAPE = "l20-edu-135m"
TOKENIZER = Path("tokenizers") / "smollm2_tokenizer.json"
BATCHES = {"cpu": (1, 4, 16), "cuda": (16, 64, 256)}
"""Batch sizes that the harness's model tries; the fastest is taken."""
TRIED = 4
"""Questions of each task on which it tries them."""
Asked = dict[str, list[Question]]


def drawn_model(folder: Path, data: Path | None, texts: list[str], quick: bool) -> Path:
    """A model with drawn weights in transformers' format; a tiny one with a tokenizer made of the texts if quick."""
    shape = load_recipe(SHAPE)[0].model
    sizes: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
    sizes |= {"num_key_value_heads": 1, "intermediate_size": 64}
    if not quick:
        sizes = {key: getattr(shape, key) for key in sizes}
    if quick or data is None:
        settings = {"kind": "bpe", "vocab_size": 400 if quick else 32_000, "special_tokens": ["<|endoftext|>"]}
        config = TokenizerConfig.model_validate(settings | {"eos_token": "<|endoftext|>"})
        tokenizer = train_tokenizer(config, texts)
    else:
        definition = (data / TOKENIZER).read_text(encoding="utf-8")
        tokenizer = Tokenizer(definition, SpecialRoles(eos_token="<|endoftext|>"))
    torch.manual_seed(0)
    sizes |= {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": shape.max_position_embeddings}
    LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, initializer_range=0.05, **sizes)).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def theirs(model: HFLM, questions: list[Question]) -> list[list[Likelihood]]:
    """The same answers from the harness's model."""
    asked = [
        Instance("loglikelihood", {}, pair, place, ("task", number, 1))
        for number, question in enumerate(questions)
        for place, pair in enumerate(question.pairs)
    ]
    answers = iter(model.loglikelihood(asked, disable_tqdm=True))
    return [[Likelihood(*next(answers), 0, 0) for _ in question.pairs] for question in questions]


def fastest(model: HFLM, asked: Asked, sizes: tuple[int, ...]) -> int:
    """The batch size at which the harness's model answers the first questions soonest."""
    seconds = {}
    for size in sizes:
        model.batch_size_per_gpu = size
        start = time.perf_counter()
        for questions in asked.values():
            theirs(model, questions[:TRIED])
        seconds[size] = time.perf_counter() - start
    return min(seconds, key=lambda size: seconds[size])


def compared(name: str, questions: list[Question], ours: Any, others: Any) -> dict[str, Any]:
    """How far apart the answers are, and both sides' accuracies."""
    pairs = [(a, b) for found, other in zip(ours, others, strict=True) for a, b in zip(found, other, strict=True)]
    sides = [
        summarise([judge(q, found) for q, found in zip(questions, side, strict=True)], BENCHMARKS[name].normed)
        for side in (ours, others)
    ]
    metrics = [metric for metric in ("acc", "acc_norm") if metric in sides[0]]
    return {
        "furthest_loglikelihood": max(abs(a.loglikelihood - b.loglikelihood) for a, b in pairs),
        "accuracies": [{metric: side[metric] for metric in metrics} for side in sides],
        "accuracy_equal": all(sides[0][metric] == sides[1][metric] for metric in metrics),
    }


def measure(engine: Engine, harness: HFLM, asked: Asked, rounds: int) -> list[dict[str, Any]]:
    """A row for each task: median seconds of both, and how their answers compare."""
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in asked}
    rows = {}
    for turn in range(rounds):
        for name, questions in asked.items():
            start = time.perf_counter()
            ours = score(engine, questions)
            middle = time.perf_counter()
            others = theirs(harness, questions)
            seconds[name][0].append(middle - start)
            seconds[name][1].append(time.perf_counter() - middle)
            if turn == 0:
                rows[name] = compared(name, questions, ours, others)
    table = []
    for name, (own, other) in seconds.items():
        own_s, other_s = statistics.median(own), statistics.median(other)
        row = {"task": name, "questions": len(asked[name]), "leveret_s": own_s, "hf_s": other_s}
        table.append(row | {"vs_hf": other_s / own_s} | rows[name])
        print(
            f"{name:<16}{len(asked[name]):>10,}{own_s:>12.2f}{other_s:>12.2f}{other_s / own_s:>8.2f}"
            f"{rows[name]['furthest_loglikelihood']:>12.1e}  {rows[name]['accuracy_equal']}",
            flush=True,
        )
    return table


def goals_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """vs_hf: the harness's seconds over ours, of all tasks together."""
    ratio = sum(row["hf_s"] for row in rows) / sum(row["leveret_s"] for row in rows)
    furthest = max(row["furthest_loglikelihood"] for row in rows)
    equal = sum(row["accuracy_equal"] for row in rows) / len(rows)
    return {
        "vs_hf": {"value": round(ratio, 2), "goal": 3.0},
        "loglikelihoods_within": {"value": furthest, "goal": 1e-3},
        "tasks_of_equal_accuracy": {"value": equal, "goal": 1.0},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="a run or an exported folder instead of drawn weights")
    parser.add_argument("--suite", default="six")
    parser.add_argument("--bench", type=Path, help="folder of the benchmarks' files [LEVERET_DATA/bench]")
    parser.add_argument("--limit", type=int, default=8, help="questions of each task")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="a tiny model, two questions: to see that it works")
    arguments = parser.parse_args()
    data = Path(os.environ["LEVERET_DATA"]) if "LEVERET_DATA" in os.environ else None
    bench = arguments.bench or (data and data / "bench")
    if bench is None:
        raise SystemExit("give --bench, or set LEVERET_DATA")
    limit, rounds = (2, 1) if arguments.quick else (arguments.limit, arguments.rounds)
    device = pick_device(arguments.device)
    asked = {name: load_benchmark(name, bench, limit).questions for name in named(arguments.suite)}
    texts = [text for questions in asked.values() for question in questions for text in question.pairs[0]]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        if arguments.model is None:
            drawn_model(folder, data, texts, arguments.quick)
        elif (Path(arguments.model) / "config.json").is_file():
            folder = Path(arguments.model)
        else:
            export_model(arguments.model, folder)
        model: LoadedModel = leveret.load(str(folder), str(device), "float32")
        assert isinstance(model.engine, Engine)
        harness = HFLM(pretrained=str(folder), device=str(device), dtype="float32", batch_size=1)
        size = fastest(harness, asked, (2,) if arguments.quick else BATCHES[device.type])
        harness.batch_size_per_gpu = size
        score(model.engine, [questions[0] for questions in asked.values()])
        print(f"the harness's batch size: {size}\n{'task':<16}{'questions':>10}{'leveret, s':>12}{'hf, s':>12}"
              f"{'ratio':>8}{'furthest':>12}  accuracy equal", flush=True)  # fmt: skip
        rows = measure(model.engine, harness, asked, rounds)
    facts = {"model": arguments.model or f"{SHAPE}, drawn", "batch_size": size, "rounds": rounds}
    machine = environment(device)
    result = {"benchmark": "evaluation_speed", "machine": machine, **facts, "rows": rows, "goals": goals_of(rows)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
