"""Shards come back as they were written, and what was damaged or does not belong is found."""

import json
from pathlib import Path

import numpy as np
import pytest

from leveret.data.shards import (
    ShardWriter,
    TokenSplit,
    TokenStore,
    file_sha256,
    is_validation,
    token_dtype,
)
from leveret.data.windows import Windows, concatenated
from leveret.errors import UserError

FACTS = {"tokenizer": "0123456789abcdef", "sources": [{"path": "a.txt"}]}


def some_documents(count: int, vocab_size: int, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    documents = [random.integers(0, vocab_size, random.integers(1, 12)).tolist() for _ in range(count)]
    documents[0][0] = vocab_size - 1
    return documents


def write(folder: Path, documents: list[list[int]], vocab_size: int = 1000, shard_tokens: int = 10) -> TokenStore:
    writer = ShardWriter(folder, vocab_size, shard_tokens)
    for number, ids in enumerate(documents):
        writer.add("validation" if number % 5 == 4 else "train", ids, text_bytes=2 * len(ids))
    windows = {name: concatenated(writer.starts(name), split.tokens, 7) for name, split in writer.splits.items()}
    writer.finish(windows, FACTS)
    return TokenStore(folder)


def everything(split: TokenSplit) -> list[int]:
    return [int(token) for shard in split.shards for token in shard]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1000, "uint16"), (65_536, "uint16"), (65_537, "uint32")])
def test_round_trip(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    documents = some_documents(40, vocab_size)
    store = write(tmp_path / "shards", documents, vocab_size)
    assert store.manifest["dtype"] == dtype == np.dtype(token_dtype(vocab_size)).name
    assert store.manifest["tokenizer"] == FACTS["tokenizer"]
    for name, expected in (
        ("train", [d for n, d in enumerate(documents) if n % 5 != 4]),
        ("validation", [d for n, d in enumerate(documents) if n % 5 == 4]),
    ):
        split, facts = store.split(name), store.manifest["splits"][name]
        tokens = [token for document in expected for token in document]
        assert everything(split) == tokens
        assert all(shard.dtype == dtype for shard in split.shards)
        assert [len(shard) for shard in split.shards[:-1]] == [10] * (len(split.shards) - 1)
        assert split.tokens == facts["tokens"] == len(tokens)
        assert split.text_bytes == facts["text_bytes"] == 2 * len(tokens)
        assert facts["documents"] == len(expected)
        assert [shard["tokens"] for shard in facts["shards"]] == [len(shard) for shard in split.shards]
        ends = [*split.starts[1:].tolist(), len(tokens)]
        found = [tokens[a:b] for a, b in zip(split.starts.tolist(), ends, strict=True)]
        assert found == expected


def test_any_run_of_tokens_across_shard_borders(tmp_path: Path) -> None:
    split = write(tmp_path / "shards", some_documents(12, 1000)).split("train")
    tokens = everything(split)
    assert len(split.shards) > 3
    for start in range(len(tokens)):
        for length in (1, 2, 9, 10, 11, 23, len(tokens) - start):
            if start + length <= len(tokens):
                assert split.read(split.shards, start, length).tolist() == tokens[start : start + length]


def test_a_document_longer_than_several_shards(tmp_path: Path) -> None:
    store = write(tmp_path / "shards", [list(range(47)), [7]])
    split = store.split("train")
    assert [len(shard) for shard in split.shards] == [10, 10, 10, 10, 8]
    assert everything(split) == [*range(47), 7]
    assert split.starts.tolist() == [0, 47]


def test_masks_lie_beside_their_tokens(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "shards", 100, 10, masked=True)
    random = np.random.default_rng(1)
    ids, learn = [], []
    for document in some_documents(9, 100):
        mask = (random.random(len(document)) < 0.5).tolist()
        writer.add("train", document, len(document), mask)
        ids += document
        learn += mask
    writer.finish({"train": Windows(np.array([[0, len(ids)]]))}, FACTS)
    store = TokenStore(tmp_path / "shards")
    split = store.split("train")
    assert len(split.shards) == len(split.masks) > 3
    assert split.read(split.shards, 0, len(ids)).tolist() == ids
    assert split.read(split.masks, 0, len(ids)).tolist() == learn
    assert split.read(split.masks, 8, 14).tolist() == learn[8:22]
    assert store.verify() == []


def test_the_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "shards"
    writer = ShardWriter(folder, 100, 10)
    writer.add("train", [1, 2, 3], 3)
    assert not folder.exists()
    again = ShardWriter(folder, 100, 10)  # after a crash: what is half written does not join
    again.add("train", [4, 5], 2)
    again.finish({"train": Windows(np.array([[0, 2]]))}, FACTS)
    assert everything(TokenStore(folder).split("train")) == [4, 5]
    assert [path.name for path in folder.parent.iterdir()] == ["shards"]


def names_in(manifest: object) -> set[str]:
    """Every file that a manifest names, wherever it does."""
    if isinstance(manifest, list):
        return {name for item in manifest for name in names_in(item)}
    if isinstance(manifest, dict):
        own = {str(manifest["name"])} if "sha256" in manifest else set()
        return own | {name for item in manifest.values() for name in names_in(item)}
    return set()


def test_every_file_is_named_and_hashed(tmp_path: Path) -> None:
    store = write(tmp_path / "shards", some_documents(12, 1000))
    on_disk = {path.name for path in store.folder.iterdir()}
    assert names_in(store.manifest) == on_disk - {"manifest.json"}
    first = store.manifest["splits"]["train"]["shards"][0]
    assert first["sha256"] == file_sha256(store.folder / first["name"])
    assert store.verify() == []
    same = write(tmp_path / "again", some_documents(12, 1000))
    assert same.manifest == store.manifest


@pytest.mark.parametrize("name", ["train-00001.npy", "validation-00000.npy", "train-starts.npy", "train-windows.npy"])
def test_verify_finds_a_flipped_bit(tmp_path: Path, name: str) -> None:
    store = write(tmp_path / "shards", some_documents(30, 1000))
    path = store.folder / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert store.verify() == [name]


def test_verify_finds_a_changed_manifest(tmp_path: Path) -> None:
    """Or the manifest cannot be read at all."""
    store = write(tmp_path / "shards", some_documents(30, 1000))
    path = store.folder / "manifest.json"
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            assert TokenStore(store.folder).verify(), place
        except UserError as error:
            assert "no readable manifest" in str(error) or "another format version" in str(error)  # noqa: PT017


def test_verify_finds_a_missing_file(tmp_path: Path) -> None:
    store = write(tmp_path / "shards", some_documents(30, 1000))
    (store.folder / "train-00002.npy").unlink()
    assert store.verify() == ["train-00002.npy"]
    with pytest.raises(UserError, match=r"train-00002\.npy"):
        store.split("train")


def test_verify_looks_at_masks_too(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "shards", 100, 10, masked=True)
    writer.add("train", list(range(25)), 25, [True] * 25)
    writer.finish({"train": Windows(np.array([[0, 25]]))}, FACTS)
    np.save(tmp_path / "shards" / "train-00001.learn.npy", np.zeros(10, dtype=np.bool_))
    assert TokenStore(tmp_path / "shards").verify() == ["train-00001.learn.npy"]


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "shards", some_documents(5, 1000)).folder
    assert TokenStore(folder, "0123456789abcdef").manifest["tokenizer"] == "0123456789abcdef"
    with pytest.raises(UserError, match=r"another tokenizer.*prepare the data again") as caught:
        TokenStore(folder, "f" * 16)
    assert "\n" not in str(caught.value)


def test_what_is_no_set_of_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no readable manifest"):
        TokenStore(tmp_path / "nowhere")
    folder = write(tmp_path / "shards", some_documents(8, 1000)).folder
    with pytest.raises(UserError, match="no test split; it has train, validation"):
        TokenStore(folder).split("test")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format_version": 999}))
    with pytest.raises(UserError, match="format version"):
        TokenStore(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest)[:-20])
    with pytest.raises(UserError, match="no readable manifest"):
        TokenStore(folder)
    for splits in (None, [], {"train": 7}, {"train": {}}, {"train": {"shards": [{"name": "x"}]}}):
        (folder / "manifest.json").write_text(json.dumps(manifest | {"splits": splits}))
        with pytest.raises(UserError, match="no readable manifest"):
            TokenStore(folder)
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match="no readable manifest"):
        TokenStore(folder)


def test_a_shortened_shard_is_refused(tmp_path: Path) -> None:
    store = write(tmp_path / "shards", some_documents(12, 1000))
    path = store.folder / "train-00001.npy"
    np.save(path, np.load(path)[:-1])
    with pytest.raises(UserError, match="shorter than their manifest"):
        store.split("train")
    for content in (path.read_bytes()[:-4], b"no array", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"train-00001\.npy cannot be read \(damaged\)"):
            store.split("train")


@pytest.mark.parametrize("documents", [[[]], [[7]]])
def test_too_few_tokens_for_one_window_are_refused(tmp_path: Path, documents: list[list[int]]) -> None:
    store = write(tmp_path / "shards", documents)
    with pytest.raises(UserError, match="too few to read; prepare more documents"):
        store.split("train")


def test_the_side_of_a_document_depends_on_its_text_alone() -> None:
    texts = [f"document {number}" for number in range(4000)]
    sides = [is_validation(text, 0.1) for text in texts]
    assert sum(sides) == pytest.approx(400, abs=80)
    assert [is_validation(text, 0.1) for text in reversed(texts)] == sides[::-1]
    # A larger share only adds documents to the validation split.
    assert all(is_validation(text, 0.2) for text, side in zip(texts, sides, strict=True) if side)
    assert not any(is_validation(text, 0.0) for text in texts)
    assert is_validation("\ud800 half a pair", 1.0)
