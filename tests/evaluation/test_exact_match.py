"""Exact match: what counts as right, how sure the share is, and what is told of each example."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from leveret.data.examples import Example, Message, one_turn
from leveret.evaluation.config import EvaluateConfig
from leveret.evaluation.exact_match import exact_match, normalise_space, wilson_interval, write_rows
from leveret.inference.config import SamplingConfig
from leveret.inference.engine import Completion
from leveret.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    specials = ["<eos>", "<system>", "<instruction>", "<command>"]
    config = TokenizerConfig(kind="bpe", vocab_size=270, special_tokens=specials, eos_token="<eos>", template="command")
    return train_tokenizer(config, ["ls -l"])


class Parrot:
    """An engine that answers from a table by what stands in the prompt, and notes how it was asked."""

    def __init__(self, tokenizer: Tokenizer, answers: dict[str, Completion]) -> None:
        self.tokenizer, self.answers = tokenizer, answers
        self.batches: list[list[str]] = []
        self.configs: list[SamplingConfig] = []

    def generate(self, prompts: Sequence[Sequence[int]], config: SamplingConfig) -> list[Completion]:
        texts = [self.tokenizer.decode(prompt, skip_special=False) for prompt in prompts]
        self.batches.append(texts)
        self.configs.append(config)
        return [next(answer for key, answer in self.answers.items() if key in text) for text in texts]


def stop(text: str) -> Completion:
    return Completion(text, [], "stop")


EXAMPLES = [
    one_turn("count the lines of a.txt", "wc -l a.txt"),
    one_turn("list", "ls"),
    one_turn("write the date into d.txt", "date > d.txt"),
    one_turn("sort x and drop what stands twice", "sort x | uniq"),
    Example((Message("system", "be brief"), Message("user", "who"), Message("assistant", "whoami"))),
]
ANSWERS = {
    "count": stop("  wc   -l\ta.txt\n"),
    "list": stop("ls"),
    "write": stop("date >> d.txt"),
    "sort": Completion("sort x |", [], "length"),
    "who": stop("whoami"),
}


@pytest.mark.parametrize(
    ("text", "normal"),
    [(" ls  -l \n", "ls -l"), ("a\n\tb", "a b"), ("", ""), (" \n", ""), ("ls", "ls"), ("A  b", "A b")],
)
def test_white_space_is_normalised(text: str, normal: str) -> None:
    assert normalise_space(text) == normal


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_interval_against_published_values(correct: int, total: int, low: float, high: float) -> None:
    """The first four are those of Newcombe (1998), table I, method 3."""
    assert wilson_interval(correct, total) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))


def test_wilson_interval_solves_its_equation() -> None:
    """Its ends are the shares p at which the observed one lies 1.96 standard deviations away."""
    for correct, total in [(3, 10), (97, 100), (500, 1000)]:
        for p in wilson_interval(correct, total):
            distance = abs(correct / total - p) / math.sqrt(p * (1 - p) / total)
            assert distance == pytest.approx(1.959964, rel=1e-6)
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_figures_and_rows(tokenizer: Tokenizer, batch_size: int) -> None:
    engine = Parrot(tokenizer, ANSWERS)
    figures, rows = exact_match(engine, EXAMPLES, SamplingConfig(max_new_tokens=33), batch_size)  # type: ignore[arg-type]
    assert figures == {
        "examples": 5,
        "correct": 3,
        "accuracy": 0.6,
        "interval_95": list(wilson_interval(3, 5)),
        "ended_by_itself": 4,
        "by_category": {
            "pipe chain": {"examples": 1, "failed": 1},
            "plain": {"examples": 3, "failed": 0},
            "redirection": {"examples": 1, "failed": 1},
        },
    }
    assert [row["instruction"] for row in rows] == [e.instruction for e in EXAMPLES]  # in the examples' order
    assert [row["correct"] for row in rows] == [True, True, False, False, True]
    assert rows[3] == {
        "instruction": "sort x and drop what stands twice",
        "expected": "sort x | uniq",
        "answer": "sort x |",
        "correct": False,
        "finish": "length",
        "categories": ["pipe chain"],
    }
    assert [len(batch) for batch in engine.batches] == {1: [1] * 5, 2: [2, 2, 1], 64: [5]}[batch_size]
    lengths = [len(text) for batch in engine.batches for text in batch]
    assert lengths == sorted(lengths)  # prompts of a like length share a batch, so that little of it is filling
    assert all(config == SamplingConfig(max_new_tokens=33) for config in engine.configs)
    assert engine.configs[0].temperature == 0


def test_prompts_hold_all_but_the_answer(tokenizer: Tokenizer) -> None:
    engine = Parrot(tokenizer, ANSWERS)
    exact_match(engine, EXAMPLES[-1:], SamplingConfig(), 1)  # type: ignore[arg-type]
    assert engine.batches == [["<system>\nbe brief\n\n<instruction>\nwho\n\n<command>\n"]]


def test_a_recipe_says_how_wide_it_searches() -> None:
    assert EvaluateConfig(max_new_tokens=9).decoding == SamplingConfig(max_new_tokens=9)
    decoding = EvaluateConfig(beams=4, length_penalty=0.6).decoding
    assert (decoding.beams, decoding.length_penalty, decoding.temperature) == (4, 0.6, 0)


def test_no_examples(tokenizer: Tokenizer) -> None:
    figures, rows = exact_match(Parrot(tokenizer, {}), [], SamplingConfig(), 4)  # type: ignore[arg-type]
    assert (figures["examples"], figures["accuracy"], figures["interval_95"], rows) == (0, None, [0.0, 1.0], [])


def test_rows_are_written_as_json_lines(tmp_path: Path) -> None:
    rows = [{"answer": "echo 'é\n'", "correct": True}, {"answer": "", "correct": False}]
    write_rows(tmp_path / "new" / "set.jsonl", rows)
    lines = (tmp_path / "new" / "set.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert "é" in lines[0]
