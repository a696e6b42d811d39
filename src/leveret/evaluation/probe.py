"""A look at benchmarks while a model trains: few questions, the same each time."""

from __future__ import annotations

from pathlib import Path

from leveret.evaluation.config import ProbeConfig
from leveret.evaluation.suite import Tell, judge, score, summarise
from leveret.inference.engine import Engine
from leveret.model.decoder import Decoder
from leveret.tasks.benchmarks import BENCHMARKS, load_benchmark, named
from leveret.tokenizer.tokenizer import Tokenizer


class Probe:
    """Holds the questions, which are read when it is made: a mistake is told before training begins.

    Args:
        base: where relative folders begin.
        tell: told of failures of the network.
    """

    def __init__(self, config: ProbeConfig, base: Path, tell: Tell) -> None:
        self.every = config.every
        bench = None if config.bench is None else base / config.bench
        tasks = named(",".join(config.benchmarks))
        self.questions = {task: load_benchmark(task, bench, config.questions, tell).questions for task in tasks}

    def measure(self, step: int, model: Decoder, tokenizer: Tokenizer) -> dict[str, float]:
        """The share of right answers, as `probe_BENCHMARK`: acc_norm where the harness has it; nothing between the
        chosen steps. The model is in training mode before and after.
        """
        if self.every is not None and step % self.every:
            return {}
        found = {}
        engine = Engine(model, tokenizer)  # which puts it into the mode for answering
        for task, questions in self.questions.items():
            scored = score(engine, questions)
            rows = [judge(question, each) for question, each in zip(questions, scored, strict=True)]
            normed = BENCHMARKS[task].normed
            found[f"probe_{task}"] = float(summarise(rows, normed)["acc_norm" if normed else "acc"])
        model.train()
        return found
