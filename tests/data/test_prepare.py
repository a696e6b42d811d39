"""Documents to shards: which side each is on, what stands around it, and what the manifest says."""

import hashlib
import io
import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from leveret.data.config import DataConfig
from leveret.data.parts import Job
from leveret.data.prepare import prepare_documents
from leveret.data.shards import TokenSplit, TokenStore, is_validation
from leveret.data.sources import Document
from leveret.errors import UserError
from leveret.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

DOCUMENTS = [Document(f"document {n} é{'!' * (n % 5)}", "made") for n in range(600)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    config = TokenizerConfig(
        kind="bpe", vocab_size=300, special_tokens=["<bos>", "<eos>"], bos_token="<bos>", eos_token="<eos>"
    )
    return train_tokenizer(config, [document.text for document in DOCUMENTS])


def prepare(
    folder: Path, tokenizer: Tokenizer, documents: list[Document] = DOCUMENTS, length: int = 16, **settings: Any
) -> TokenStore:
    source = {"kind": "generated", "generator": "made"}
    config = DataConfig.model_validate(
        {"sources": [source], "validation_fraction": 0.2, "shard_tokens": 500, "workers": 1} | settings
    )
    facts = {"tokenizer": tokenizer.content_hash, "sources": [{"name": "x", "licence": "MIT"}]}
    job, console = Job(tokenizer, config, folder), Console(file=io.StringIO())
    prepare_documents(job, {"made": lambda: documents}, length, folder / "shards", facts, console)
    return TokenStore(folder / "shards", tokenizer.content_hash)


def documents_of(split: TokenSplit) -> list[list[int]]:
    bounds = [*split.starts.tolist(), split.tokens]
    return [split.read(split.shards, a, b - a).tolist() for a, b in pairwise(bounds)]


def texts_of(store: TokenStore, name: str, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(ids) for ids in documents_of(store.split(name))]


def test_every_document_is_on_one_side_and_whole(tmp_path: Path, tokenizer: Tokenizer) -> None:
    store = prepare(tmp_path, tokenizer)
    sides = {name: texts_of(store, name, tokenizer) for name in ("train", "validation")}
    assert sides["train"] == [d.text for d in DOCUMENTS if not is_validation(d.text, 0.2)]  # in order
    assert sides["validation"] == [d.text for d in DOCUMENTS if is_validation(d.text, 0.2)]
    assert not set(sides["train"]) & set(sides["validation"])
    assert len(sides["validation"]) / len(DOCUMENTS) == pytest.approx(0.2, abs=0.05)


def test_the_sides_do_not_depend_on_order_company_or_repetition(tmp_path: Path, tokenizer: Tokenizer) -> None:
    whole = prepare(tmp_path / "whole", tokenizer)
    mixed = DOCUMENTS[:256] * 2 + [Document("a newcomer", "made")]
    random.Random(0).shuffle(mixed)
    store = prepare(tmp_path / "mixed", tokenizer, mixed)
    for name, other in (("train", "validation"), ("validation", "train")):
        assert set(texts_of(store, name, tokenizer)).isdisjoint(texts_of(whole, other, tokenizer))


def test_a_larger_fraction_only_adds_to_validation(tmp_path: Path, tokenizer: Tokenizer) -> None:
    small = prepare(tmp_path / "small", tokenizer, validation_fraction=0.1)
    large = prepare(tmp_path / "large", tokenizer, validation_fraction=0.3)
    assert set(texts_of(small, "validation", tokenizer)) < set(texts_of(large, "validation", tokenizer))


def test_without_a_fraction_there_is_no_validation(tmp_path: Path, tokenizer: Tokenizer) -> None:
    store = prepare(tmp_path, tokenizer, validation_fraction=0)
    assert list(store.manifest["splits"]) == ["train"]
    assert len(texts_of(store, "train", tokenizer)) == len(DOCUMENTS)


@pytest.mark.parametrize(
    ("form", "before", "after"),
    [
        ("{text}{eos}", [], ["<eos>"]),
        ("{bos}{text}", ["<bos>"], []),
        ("{bos}{text}{eos}{eos}", ["<bos>"], ["<eos>", "<eos>"]),
        ("{text}", [], []),
        ("{bos}Text: {text}\n{eos}", ["<bos>", "Text: "], ["\n", "<eos>"]),
        ("<eos>{text}", ["plain <eos>"], []),  # a control token's name, written out, is plain text
    ],
)
def test_what_stands_around_a_text(
    tmp_path: Path, tokenizer: Tokenizer, form: str, before: list[str], after: list[str]
) -> None:
    def ids(parts: list[str]) -> list[int]:
        known = tokenizer.special_tokens
        encoded = ([known[p]] if p in known else tokenizer.encode(p.removeprefix("plain ")) for p in parts)
        return [index for ids in encoded for index in ids]

    store = prepare(tmp_path, tokenizer, document_format=form, validation_fraction=0)
    wanted = [ids(before) + tokenizer.encode(d.text) + ids(after) for d in DOCUMENTS]
    assert documents_of(store.split("train")) == wanted


def test_control_tokens_written_in_a_text_stay_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    store = prepare(tmp_path, tokenizer, [Document("before <eos> after {eos}", "x")], validation_fraction=0)
    (ids,) = documents_of(store.split("train"))
    assert ids.count(tokenizer.special_tokens["<eos>"]) == 1
    assert ids[-1] == tokenizer.special_tokens["<eos>"]
    assert tokenizer.decode(ids) == "before <eos> after {eos}"


@pytest.mark.parametrize("role", ["bos", "eos"])
def test_a_control_token_that_the_tokenizer_lacks(tmp_path: Path, role: str) -> None:
    bare = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=256), ["a"])
    with pytest.raises(UserError, match=rf"\{{{role}\}}, but the tokenizer has no {role}_token"):
        prepare(tmp_path, bare, document_format=f"{{text}}{{{role}}}")
    assert not (tmp_path / "shards").exists()


def test_the_manifest(tmp_path: Path, tokenizer: Tokenizer) -> None:
    store = prepare(tmp_path, tokenizer)
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    assert manifest["tokenizer"] == tokenizer.content_hash
    assert manifest["sources"] == [{"name": "x", "licence": "MIT"}]
    assert manifest["dtype"] == "uint16"
    assert manifest["vocab_size"] == tokenizer.vocab_size
    assert list(manifest["documents_by_source"].values()) == [len(DOCUMENTS)]
    for name, facts in manifest["splits"].items():
        texts = [d.text for d in DOCUMENTS if is_validation(d.text, 0.2) == (name == "validation")]
        assert facts["documents"] == len(texts)
        assert facts["text_bytes"] == sum(len(text.encode()) for text in texts)
        assert facts["tokens"] == sum(len(tokenizer.encode(text)) + 1 for text in texts)
        assert [shard["tokens"] for shard in facts["shards"][:-1]] == [500] * (len(facts["shards"]) - 1)
        for entry in [*facts["shards"], facts["starts"], facts["windows"]]:
            path = tmp_path / "shards" / entry["name"]
            assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(manifest["splits"]["train"]["shards"]) > 1
    assert store.verify() == []


def test_windows_cover_the_split_in_order(tmp_path: Path, tokenizer: Tokenizer) -> None:
    split = prepare(tmp_path, tokenizer, length=16).split("train")
    assert split.windows.pieces[:, 0].tolist() == list(range(0, 16 * len(split.windows), 16))
    assert (split.windows.pieces[:, 1] == 17).all()
    assert split.tokens - int(split.windows.pieces[-1].sum()) < 16


def test_the_same_documents_make_the_same_shards(tmp_path: Path, tokenizer: Tokenizer) -> None:
    first, second = (prepare(tmp_path / name, tokenizer).manifest for name in ("a", "b"))
    assert first == second


@pytest.mark.parametrize("documents", [[], [Document(DOCUMENTS[0].text, "x")]], ids=["none", "all held out"])
def test_nothing_to_train_on_is_a_user_error(tmp_path: Path, tokenizer: Tokenizer, documents: list[Document]) -> None:
    fraction = np.nextafter(1, 0)  # as good as everything
    with pytest.raises(UserError, match="no document"):
        prepare(tmp_path, tokenizer, documents, validation_fraction=fraction)
    assert not (tmp_path / "shards").exists()


def test_lone_surrogates_are_left_out_and_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    documents = [Document("before", "x"), Document("a \ud800 b", "x"), Document("after", "x")]
    store = prepare(tmp_path, tokenizer, documents, validation_fraction=0)
    assert texts_of(store, "train", tokenizer) == ["before", "after"]
    (counts,) = store.manifest["documents"]
    assert counts["unreadable"]["count"] == 1
    assert counts["unreadable"]["first"][0]["where"] == "made:2"


def test_nothing_but_the_shards_is_left(tmp_path: Path, tokenizer: Tokenizer) -> None:
    prepare(tmp_path, tokenizer)
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == {"shards"}
