"""Documents out of every kind of source, and one clear line for each that cannot be read."""

import gzip
import json
import lzma
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from leveret.data.config import SourceConfig
from leveret.data.sources import Document, documents, fingerprint, read_rows, source_facts
from leveret.errors import UserError

TEXTS = ["First text.\r\nTwo lines.", "Zweiter: äöü 漢字 🙂", "third\u2028with a line separator"]


def jsonl(texts: list[str], column: str = "text") -> bytes:
    return b"".join(json.dumps({column: text, "id": n}).encode() + b"\n" for n, text in enumerate(texts))


def zst(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


def texts(base: Path, *paths: str, **fields: object) -> list[str]:
    config = SourceConfig.model_validate({"paths": paths, **fields})
    return [document.text for document in documents(config, base, {})]


@pytest.mark.parametrize(
    ("name", "pack"),
    [("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress), ("a.jsonl.xz", lzma.compress), ("a.jsonl.zst", zst)],
)
def test_jsonl_plain_and_compressed(tmp_path: Path, name: str, pack) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / name).write_bytes(pack(jsonl(TEXTS)))
    assert texts(tmp_path, name) == TEXTS


def test_frames_of_compressed_files_are_read_to_the_last(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl(TEXTS[:1])) + gzip.compress(jsonl(TEXTS[1:])))
    (tmp_path / "b.jsonl.zst").write_bytes(zst(jsonl(TEXTS[:1])) + zst(jsonl(TEXTS[1:])))
    assert texts(tmp_path, "a.jsonl.gz") == texts(tmp_path, "b.jsonl.zst") == TEXTS


def test_parquet_json_and_txt(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": TEXTS, "n": [1, 2, 3]}), tmp_path / "a.parquet", row_group_size=2)
    (tmp_path / "b.json").write_text(json.dumps([{"body": text} for text in TEXTS]))
    (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbf" + TEXTS[0].encode())
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(TEXTS[1].encode()))
    assert texts(tmp_path, "a.parquet", column="body") == TEXTS
    assert texts(tmp_path, "b.json", column="body") == TEXTS
    assert texts(tmp_path, "c.txt", "d.txt.gz", column="body") == TEXTS[:2]
    assert list(read_rows(tmp_path / "a.parquet", ["n"])) == [(1, {"n": 1}), (2, {"n": 2}), (3, {"n": 3})]


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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": oops}\n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', r"a\.jsonl:2: not JSON in UTF-8"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl:1: expected an object .* found list"),
        ("a.jsonl", b"[" * 200_000 + b"\n", r"a\.jsonl:1: not JSON"),
        ("a.jsonl", b'{"body": "x", "id": 3}\n', r"a\.jsonl:1: no column 'text'; there are: body, id"),
        ("a.jsonl", b'{"text": 7}\n', r"a\.jsonl:1: column 'text' holds int, not text"),
        ("a.jsonl", b'{"text": "\\ud83d"}\n', r"a\.jsonl:1: half a surrogate pair"),
        ("a.jsonl", b"", r"no documents in a\.jsonl"),
        ("a.json", b'{"text": "x"}', r"a\.json: a \.json file must hold a list"),
        ("a.json", b'{"text": "x"}\n{"text": "y"}', r"a\.json:2: not JSON .* is \.jsonl"),
        ("a.txt", b"fine\nbad \xff\n", r"a\.txt:2: not UTF-8"),
        ("a.md", b"x", r"a\.md: unknown type of file; known are \.txt"),
        ("a.parquet", b"PAR1 nonsense", r"a\.parquet: cannot be read"),
        ("a.jsonl.gz", gzip.compress(jsonl(TEXTS) * 99)[:-20], r"a\.jsonl\.gz: cannot be read after row \d+"),
        ("a.jsonl.xz", lzma.compress(jsonl(TEXTS))[:-20], r"a\.jsonl\.xz: cannot be read"),
        ("a.txt.zst", zst(os.urandom(300_000).hex().encode())[:-20], r"a\.txt\.zst: cannot be read"),
        ("a.txt.gz", b"not gzip at all", r"a\.txt\.gz: cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        texts(tmp_path, name)
    assert "\n" not in str(caught.value)


def test_missing_files_folders_and_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": TEXTS}), tmp_path / "a.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"gone\.txt: no such file or folder"):
        texts(tmp_path, "gone.txt")
    with pytest.raises(UserError, match=r"gone\.jsonl\.zst: no such file"):
        next(read_rows(tmp_path / "gone.jsonl.zst"))
    with pytest.raises(UserError, match="an empty path"):
        texts(tmp_path, " ")
    with pytest.raises(UserError, match=r"no file here that can be read"):
        texts(tmp_path, "*.jsonl")
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
    with pytest.raises(UserError, match=r"split 'nope': cannot be read"):
        list(documents(config.model_copy(update={"split": "nope"}), tmp_path, {}))


def test_generators_get_their_options() -> None:
    def counting(upto: int) -> Iterator[Document]:
        return (Document(f"number {n}", "counting") for n in range(upto))

    config = SourceConfig(kind="generated", generator="counting", options={"upto": 3}, max_documents=2)
    assert [d.text for d in documents(config, Path(), {"counting": counting})] == ["number 0", "number 1"]
    with pytest.raises(UserError, match=r"no generator 'counting'; there are: prose, shell"):
        list(documents(config, Path(), {"shell": counting, "prose": counting}))
    wrong = config.model_copy(update={"options": {"until": 3}})
    with pytest.raises(UserError, match=r"generator 'counting': .*upto"):
        list(documents(wrong, Path(), {"counting": counting}))


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
