"""A GGUF file behind the server: the same routes and words, by llama.cpp."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import BadRequestError, OpenAI
from tiny_models import ENGLISH, made_tokenizer, write_run
from tiny_server import running

import leveret
from leveret.export.gguf import export_gguf

ASKED = [{"role": "user", "content": "make the file"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llamacpp")
    run = write_run(folder / "run", made_tokenizer("bpe-gpt2", ENGLISH), "finetune")
    export_gguf(str(run), folder / "model.gguf", "f32")
    return folder


@pytest.fixture(scope="module")
def asked(folder: Path) -> Iterator[OpenAI]:
    with running(leveret.load(str(folder / "model.gguf"))) as up:
        yield OpenAI(base_url=f"{up.url}/v1", api_key="none", max_retries=0, timeout=30)


def test_its_answers_are_those_of_the_run(folder: Path, asked: OpenAI) -> None:
    ours = leveret.load(str(folder / "run"), "cpu")
    expected = ours.complete(["make the file"], max_new_tokens=12)[0]
    given = {"model": "run", "messages": ASKED, "max_tokens": 12, "temperature": 0.0}
    whole = asked.chat.completions.create(**given)
    assert whole.choices[0].message.content == expected.text
    assert whole.usage.completion_tokens == len(expected.tokens)
    assert whole.usage.prompt_tokens == expected.prompt_tokens
    pieces = [piece.choices[0].delta.content or "" for piece in asked.chat.completions.create(**given, stream=True)]
    assert "".join(pieces) == expected.text
    assert len(pieces) > 2
    several = asked.completions.create(model="run", prompt=["To", "show"], max_tokens=6, temperature=0.0)
    raw = ours.complete(["To", "show"], raw=True, max_new_tokens=6)
    assert [choice.text for choice in several.choices] == [each.text for each in raw]


def test_what_llama_cpp_does_not_tell_is_refused(asked: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="logprobs is not there with --backend llamacpp"):
        asked.completions.create(model="run", prompt="To", logprobs=2)
    assert asked.completions.create(model="run", prompt="To", max_tokens=2).choices[0].finish_reason
