"""Benchmarks looked at while a model trains."""

import json
from pathlib import Path

import pytest
from benchmark_rows import FILES
from tiny_models import ENGLISH, made_tokenizer, write_run

import leveret
from leveret.errors import UserError
from leveret.evaluation.config import ProbeConfig
from leveret.evaluation.probe import Probe
from leveret.evaluation.suite import evaluate_suite
from leveret.inference.engine import Engine


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    (tmp_path / "bench").mkdir()
    for name in ("hellaswag", "copa"):
        lines = "".join(json.dumps(row) + "\n" for row in FILES[name])
        (tmp_path / "bench" / f"{name}.jsonl").write_text(lines)
    return tmp_path


def test_shares_are_those_of_the_suite_at_the_chosen_steps(bench: Path) -> None:
    write_run(bench / "run", made_tokenizer("bpe-gpt2", ENGLISH), "pretrain")
    model = leveret.load(str(bench / "run"), "cpu")
    assert isinstance(model.engine, Engine)
    config = ProbeConfig(benchmarks=["hellaswag", "copa"], questions=2, bench="bench", every=10)
    probe = Probe(config, bench, print)
    decoder = model.engine.model.train()
    assert probe.measure(15, decoder, model.tokenizer) == {}
    found = probe.measure(20, decoder, model.tokenizer)
    assert decoder.training
    tasks = evaluate_suite(leveret.load(str(bench / "run"), "cpu"), ["hellaswag", "copa"], 2, bench / "bench").tasks
    assert found == {"probe_hellaswag": tasks["hellaswag"]["acc_norm"], "probe_copa": tasks["copa"]["acc"]}


def test_a_missing_file_is_told_before_training_begins(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"hellaswag\.jsonl cannot be read"):
        Probe(ProbeConfig(bench="nowhere"), tmp_path, print)
