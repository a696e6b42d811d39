"""A model that transformers computes is asked as ours are: the same weights, the same answers."""

from pathlib import Path

import pytest
import torch
from tiny_models import ENGLISH, made_tokenizer, write_run

import leveret
from leveret.candidates import find_candidate
from leveret.errors import UserError
from leveret.evaluation.foreign import ForeignModel
from leveret.evaluation.suite import encoded, read_likelihoods
from leveret.export.write import export_model
from leveret.inference.config import SamplingConfig
from leveret.tasks.benchmarks import Question

LONG = " ".join(ENGLISH)
QUESTIONS = [
    Question((("To show a file", " type cat"), ("To show a file", " type touch it")), 0, (8, 13)),
    Question((("", "make the file"),), 0, (13,)),
    Question(((LONG, " touch it"), (LONG[40:], f" {LONG}")), 0, (8, 9)),  # longer than the context
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreign")
    write_run(folder / "run", made_tokenizer("bpe-gpt2", ENGLISH, None), max_position_embeddings=64)
    export_model(str(folder / "run"), folder / "exported")
    return folder / "exported"


def test_likelihoods_and_answers_are_those_of_our_engine(exported: Path) -> None:
    ours, theirs = leveret.load(str(exported), "cpu"), ForeignModel(exported, torch.device("cpu"), "")
    assert theirs.engine.context == 64
    found = []
    for engine in (ours.engine, theirs.engine):
        pairs = [encoded(engine.tokenizer, question) for question in QUESTIONS]
        found.append([each for group in read_likelihoods(engine, pairs) for each in group])  # type: ignore[arg-type]
    for mine, other in zip(*found, strict=True):
        assert other.loglikelihood == pytest.approx(mine.loglikelihood, abs=1e-2, rel=1e-4)
        assert other[1:] == mine[1:]
    assert found[0][-1].unscored > 0
    prompts = [model.prompt_ids([{"role": "user", "content": "make it"}]) for model in (ours, theirs)]
    assert prompts[0] == prompts[1]
    config = SamplingConfig(max_new_tokens=12)
    mine, other = (model.engine.generate([prompts[0]], config)[0] for model in (ours, theirs))
    assert (other.text, other.finish) == (mine.text, mine.finish)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["OPTForCausalLM"]}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"pickles such as pytorch_model\.bin are not read"):
        find_candidate(str(tmp_path))


def test_what_changes_an_answer_changes_a_candidate(exported: Path, tmp_path: Path) -> None:
    one = find_candidate(str(exported))
    again = find_candidate(str(exported))
    assert (again.weights_sha256, again.identity) == (one.weights_sha256, one.identity)
    write_run(tmp_path / "other", made_tokenizer("bpe-gpt2", ENGLISH), max_position_embeddings=64)
    other = find_candidate(str(tmp_path / "other"))  # the same weights, another template
    assert other.parameters == one.parameters
    assert other.identity != one.identity
