"""Benchmarks from files: which there are, what a result tells, and what is said of mistakes."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from benchmark_rows import FILES, HUB
from tiny_models import ENGLISH, made_tokenizer, write_run

import leveret
from leveret.api import LoadedModel
from leveret.data.config import OriginConfig
from leveret.errors import UserError
from leveret.evaluation.exact_match import wilson_interval
from leveret.evaluation.likelihood import Likelihood
from leveret.evaluation.suite import evaluate_suite, judge, summarise
from leveret.tasks import benchmarks
from leveret.tasks.benchmarks import BENCHMARKS, Question, load_benchmark, named


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    for name, rows in FILES.items():
        (folder / f"{BENCHMARKS[name].file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("model") / "run"
    write_run(folder, made_tokenizer("bpe-gpt2", ENGLISH), "pretrain", max_position_embeddings=32)
    return leveret.load(str(folder), "cpu")


def found(*values: float) -> list[Likelihood]:
    return [Likelihood(value, False, 0, 0) for value in values]


def test_the_likeliest_choice_is_the_answer_by_its_length_too() -> None:
    question = Question((("c", " yes"), ("c", " certainly not")), 1, (3, 13))
    row = judge(question, found(-3.0, -5.0))
    assert (row["choice"], row["correct"]) == (0, False)
    assert (row["choice_norm"], row["correct_norm"]) == (1, True)  # -3/3 against -5/13


def test_a_single_choice_is_right_if_greedy_decoding_would_write_it() -> None:
    question = Question((("c", " word"),), 0, (4,))
    rows = [judge(question, [Likelihood(value, greedy, 0, 0)]) for value, greedy in ((-1.0, True), (-2.0, False))]
    figures = summarise(rows, normed=False)
    assert [row["correct"] for row in rows] == [True, False]
    assert figures["perplexity"] == pytest.approx(math.exp(1.5))
    assert "acc_norm" not in figures


def test_figures_have_standard_errors_and_intervals() -> None:
    question = Question((("c", " a"), ("c", " b")), 0, (1, 1))
    rows = [judge(question, found(*values)) for values in [(-1, -2)] * 3 + [(-2, -1)]]
    figures = summarise(rows, normed=True)
    assert (figures["n"], figures["acc"], figures["chance"]) == (4, 0.75, 0.5)
    assert figures["acc_stderr"] == pytest.approx(0.25)  # deviation 0.5 over the root of 4
    assert figures["acc_interval_95"] == list(wilson_interval(3, 4))
    assert figures["acc_norm"] == 0.75


def test_a_result_says_how_it_was_measured_and_has_a_row_for_each_question(model: LoadedModel, bench: Path) -> None:
    told: list[str] = []
    result = evaluate_suite(model, ["copa", "boolq", "lambada_openai"], limit=1, bench=bench, tell=told.append)
    assert list(result.tasks) == ["copa", "boolq", "lambada_openai"]
    assert [row["id"] for row in result.rows] == ["copa/0", "boolq/0", "lambada_openai/0"]
    assert result.facts["weights_sha256"] == model.weights_sha256
    assert result.facts["tokenizer_sha256"] == model.tokenizer.content_hash
    assert result.facts["protocol"]["limit"] == 1
    assert result.tasks["boolq"]["cut"] == 1  # its passage is longer than 32 tokens
    assert result.tasks["copa"]["source"]["file"] == "copa.jsonl"
    assert len(told) == 3
    assert json.loads(json.dumps(result.facts)) == result.facts
    again = evaluate_suite(model, ["lambada_openai", "boolq", "copa"], limit=1, bench=bench)
    for name in result.tasks:  # the order of tasks changes nothing
        assert again.tasks[name] == result.tasks[name]


def test_names_of_suites_and_benchmarks() -> None:
    assert len(named("small")) == 11
    assert named("six") == ["arc_easy", "arc_challenge", "hellaswag", "lambada_openai", "piqa", "winogrande"]
    assert named("lambada, copa,copa") == ["lambada_openai", "copa"]
    with pytest.raises(UserError, match="no benchmark 'mmlu'; there are small, six, arc_easy"):
        named("copa,mmlu")
    with pytest.raises(UserError, match="names nothing"):
        named(" ,")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read"),
        ("", "has no questions"),
        ("{]\n", "line 1 is not JSON"),
        ('{"query": "x", "choices": ["a", "b"], "gold": 0}\n{"query": "x"}\n', "row 2 is no question"),
        ('{"query": "x", "choices": ["a", "b"], "gold": 2}\n', "row 1 is no question"),
        ("[1]\n", "row 1 is no question"),
    ],
)
def test_a_file_that_is_not_the_benchmark_is_one_line(content: str | None, told: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "openbook_qa.jsonl").write_text(content)
    with pytest.raises(UserError, match=told):
        load_benchmark("openbookqa", tmp_path)


def test_without_a_folder_the_hub_s_rows_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local folder in the dataset's place, which goes the same way through data/hub.py."""
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in HUB["piqa"]))
    local = OriginConfig(kind="hub", name=str(tmp_path), split="validation")
    asked: list[OriginConfig] = []

    def pieces(config: OriginConfig, log: Any) -> Any:
        asked.append(config)
        return hub_pieces(local, log)

    hub_pieces = benchmarks.hub_pieces
    monkeypatch.setattr(benchmarks, "hub_pieces", pieces)
    found = load_benchmark("piqa", None, limit=1)
    assert (asked[0].name, asked[0].split) == ("baber/piqa", "validation")
    assert found.questions == [BENCHMARKS["piqa"].of_hub(HUB["piqa"][0])]
    assert found.source["dataset"] == "baber/piqa"
