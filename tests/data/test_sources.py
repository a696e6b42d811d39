"""Documents out of every kind of source: which, in what order, cut into which pieces and chunks; their identity."""

import json
import os
import pickle
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from leveret.data.config import SourceConfig
from leveret.data.sources import (
    CHUNK_BYTES,
    Chunk,
    Document,
    chunks,
    documents,
    fingerprint,
    pieces,
    read_chunk,
    refuse,
    source_facts,
)
from leveret.errors import UserError

TEXTS = ["First text.\r\nTwo lines.", "Zweiter: äöü 漢字 🙂", "third\u2028with a line separator"]


def jsonl(texts: list[str], column: str = "text") -> bytes:
    return b"".join(json.dumps({column: text, "id": n}).encode() + b"\n" for n, text in enumerate(texts))


def texts(base: Path, *paths: str, **fields: object) -> list[str]:
    config = SourceConfig.model_validate({"paths": paths, **fields})
    return [document.text for document in documents(config, base, {})]


def test_folders_and_globs_are_sorted_deduplicated_and_named_within_the_recipe_folder(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/1.txt", "b/deep/3.txt", "b/.hidden/4.txt", "b/notes.md", "a[1].txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts(tmp_path, "b") == ["b/1.txt", "b/2.txt", "b/deep/3.txt"]
    assert texts(tmp_path, "b/2.txt", "b/*.txt") == ["b/2.txt", "b/1.txt"]
    assert texts(tmp_path, "**/*3.txt", "a[1].txt") == ["b/deep/3.txt", "a[1].txt"]
    assert texts(tmp_path / "b", "../b/de*", str(tmp_path / "a*.txt")) == ["b/deep/3.txt", "a[1].txt"]
    sources = [d.source for d in documents(SourceConfig(paths=["b"]), tmp_path, {})]
    assert sources == ["b/1.txt", "b/2.txt", "b/deep/3.txt"]


def test_max_documents_and_empty_texts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(["", "one", " \n", "two", "three"]) + b'\n{"text": null}\n')
    assert texts(tmp_path, "a.jsonl") == ["one", "two", "three"]
    assert texts(tmp_path, "a.jsonl", max_documents=2) == ["one", "two"]


def test_links_out_of_a_folder_are_not_followed_but_a_link_that_is_named_is(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / "b" / "1.txt").write_text("one")
    (tmp_path / "b" / "2.txt").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "b" / "3.txt").symlink_to("1.txt")
    (tmp_path / "b" / "4.txt").symlink_to("4.txt")
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    assert texts(tmp_path, "b") == ["one", "one"]
    assert texts(tmp_path, "b/2.txt") == texts(tmp_path, "b/2*") == ["secret"]


def test_missing_files_folders_and_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": TEXTS}), tmp_path / "a.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"gone\.txt: no such file or folder"):
        texts(tmp_path, "gone.txt")
    with pytest.raises(UserError, match="an empty path"):
        texts(tmp_path, " ")
    for path in ("**.txt", "~nobody-of-this-name/a.txt"):
        with pytest.raises(UserError, match=re.escape(path)):
            texts(tmp_path, path)
    (tmp_path / "a.md").write_text("x")
    with pytest.raises(UserError, match=r"a\.md: unknown type of file; known are \.txt"):
        texts(tmp_path, "a.md")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    with pytest.raises(UserError, match=r"no documents in empty\.jsonl"):
        texts(tmp_path, "empty.jsonl")
    with pytest.raises(UserError, match=r"no file here that can be read"):
        texts(tmp_path, "*.json")
    with pytest.raises(UserError, match=r"empty: no file here that can be read"):
        texts(tmp_path, "empty")
    with pytest.raises(UserError, match=r"a\.parquet: no column 'text'; there are: body"):
        texts(tmp_path, "a.parquet")


def test_a_hub_dataset_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"text": TEXTS, "n": [1, 2, 3]}), tmp_path / "set" / "train.parquet")
    config = SourceConfig(kind="hub", name=str(tmp_path / "set"), max_documents=2)
    assert [document.text for document in documents(config, tmp_path, {})] == TEXTS[:2]
    with pytest.raises(UserError, match=r"no column 'body'; there are: text, n"):
        list(documents(config.model_copy(update={"column": "body"}), tmp_path, {}))
    with pytest.raises(UserError, match=r"split 'nope': no such split; there are: train"):
        list(documents(config.model_copy(update={"split": "nope"}), tmp_path, {}))


def counting(upto: int | None = None) -> Iterator[Document]:
    return (
        Document(f"number {n} \ud83d" if n == 4 else f"number {n}", "even" if n % 2 == 0 else "odd")
        for n in (count() if upto is None else range(upto))
    )


def test_generators_get_their_options() -> None:
    config = SourceConfig(kind="generated", generator="counting", options={"upto": 3})
    found = list(documents(config, Path(), {"counting": counting}))
    assert found == [Document(f"number {n}", ("even", "odd")[n % 2], f"counting:{n + 1}") for n in range(3)]
    with pytest.raises(UserError, match=r"no generator 'counting'; there are: prose, shell"):
        list(documents(config, Path(), {"shell": counting, "prose": counting}))
    wrong = config.model_copy(update={"options": {"until": 3}})
    with pytest.raises(UserError, match=r"generator 'counting': .*'until'"):
        list(documents(wrong, Path(), {"counting": counting}))
    surrogate = config.model_copy(update={"options": {"upto": 9}})
    with pytest.raises(UserError, match=r"counting:5: half a surrogate pair"):
        list(documents(surrogate, Path(), {"counting": counting}))


def test_max_documents_counts_what_can_be_read_across_pieces_and_ends_an_endless_generator(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\noops\n{"text": ""}\n{"text": "two"}\n')
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "three"}\n[]\n{"text": "four"}\n[]\n')
    dropped: list[str] = []
    for most, want, bad in [(2, 2, 1), (3, 3, 1), (4, 4, 2), (5, 4, 3)]:
        config = SourceConfig(paths=["a.jsonl", "b.jsonl"], max_documents=most)
        (piece,) = pieces(config, tmp_path, {})
        assert (piece.label, piece.size) == ("a.jsonl and 1 more", 91)
        dropped.clear()
        found = [
            document.text
            for chunk in chunks(piece, lambda where, why: dropped.append(where))
            for document in read_chunk(chunk, lambda where, why: dropped.append(where))
        ]
        assert found == ["one", "two", "three", "four"][:want]
        assert dropped == ["a.jsonl:2", "b.jsonl:2", "b.jsonl:4"][:bad]
    endless = SourceConfig(kind="generated", generator="counting", max_documents=3)
    assert len(list(documents(endless, Path(), {"counting": counting}))) == 3


# --- pieces and chunks ---------------------------------------------------------------------------------------


def test_pieces_are_files_but_small_texts_go_together(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02d}.txt").write_bytes(b"word " * 200_000)
    for name in ("05b.jsonl", "05c.jsonl"):
        (tmp_path / name).write_bytes(jsonl(TEXTS))
    found = pieces(SourceConfig(paths=["."]), tmp_path, {})
    assert [(piece.name, piece.label) for piece in found] == [
        ("0-00.txt", "00.txt and 5 more"),
        ("1-05b.jsonl", "05b.jsonl"),
        ("2-05c.jsonl", "05c.jsonl"),
        ("3-06.txt", "06.txt and 15 more"),
        ("4-22.txt", "22.txt and 15 more"),
        ("5-38.txt", "38.txt and 1 more"),
    ]
    assert [piece.size for piece in found][3:] == [16_000_000, 16_000_000, 2_000_000]
    where = [document.where for chunk in chunks(found[0], refuse) for document in read_chunk(chunk, refuse)]
    assert where == [f"{number:02d}.txt:1" for number in range(6)]


def test_chunks_travel_and_are_the_same_every_time(tmp_path: Path) -> None:
    rows = [f"row {n} " + "é" * (n * 7919 % 40_000) for n in range(1200)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}, ensure_ascii=False) + "\n" for row in rows))
    pq.write_table(pa.table({"text": rows}), tmp_path / "b.parquet", row_group_size=500)
    for name in ("a.jsonl", "b.parquet"):
        config = SourceConfig(paths=[name])
        (piece,) = (pickle.loads(pickle.dumps(piece)) for piece in pieces(config, tmp_path, {}))
        first, again = (list(chunks(piece, refuse)) for _ in range(2))
        assert first == again
        sizes = [chunk.size for chunk in first]
        assert len(sizes) > 10
        assert max(sizes) <= CHUNK_BYTES
        assert min(sizes[:-1]) > CHUNK_BYTES * 0.7
        sent: list[Chunk] = [pickle.loads(pickle.dumps(chunk)) for chunk in reversed(first)]
        found = [document for chunk in reversed(sent) for document in read_chunk(chunk, refuse)]
        assert found == [Document(row, name, f"{name}:{n}") for n, row in enumerate(rows, start=1)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "kind 'files' needs 'paths'"),
        ({"kind": "hub"}, "kind 'hub' needs 'name'"),
        ({"kind": "generated"}, "kind 'generated' needs 'generator'"),
        ({"paths": ["a"], "revision": "main"}, "'revision' belongs to a source of kind 'hub'"),
        ({"kind": "generated", "generator": "g", "paths": ["a"]}, "'paths' belongs to a source of kind 'files'"),
        ({"paths": ["a"], "colunm": "b"}, "colunm"),
    ],
)
def test_a_config_takes_only_what_belongs_to_its_kind(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SourceConfig.model_validate(fields)


def test_a_resolved_config_can_be_read_again() -> None:
    config = SourceConfig(kind="hub", name="some/set")
    assert SourceConfig.model_validate(config.model_dump()) == config


def test_the_fingerprint_follows_content_and_config_but_not_the_place(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("same")
    here, there = tmp_path / "here", tmp_path / "there"
    first = fingerprint(SourceConfig(paths=["a.txt"]), here)
    assert first == fingerprint(SourceConfig(paths=["a.txt"]), there)
    assert first == fingerprint(SourceConfig(paths=[str(there / "*.txt")]), there)
    assert first != fingerprint(SourceConfig(paths=["a.txt"], max_documents=1), here)
    (here / "a.txt").write_text("diff")
    assert first != fingerprint(SourceConfig(paths=["a.txt"]), here)
    facts = source_facts(SourceConfig(paths=["a.txt"], licence="MIT"), there)
    assert facts["licence"] == "MIT"
    assert facts["files"] == [
        {"name": "a.txt", "bytes": 4, "sha256": "0967115f2813a3541eaef77de9d9d5773f1c0c04314b0bbfe4ff3b3b1c55b5d5"}
    ]
    hub = SourceConfig(kind="hub", name="some/set")
    assert fingerprint(hub, here) != fingerprint(hub.model_copy(update={"revision": "v2"}), here)


@pytest.mark.skipif("LEVERET_DATA" not in os.environ, reason="LEVERET_DATA is not set")
def test_public_texts() -> None:
    base = Path(os.environ["LEVERET_DATA"])
    found = list(documents(SourceConfig(paths=["text/openstax.parquet", "text/*.txt"]), base, {}))
    assert len(found) == 993 + 1
    assert {document.source for document in found} == {"text/openstax.parquet", "text/tinyshakespeare.txt"}
