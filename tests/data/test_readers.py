"""Files of every type, whole and broken: what can be read is read, the rest is named, and memory stays small."""

import gzip
import io
import json
import lzma
import random
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leveret.data.config import SourceConfig
from leveret.data.readers import read_rows, read_text
from leveret.data.rows import MAX_BLOCK_BYTES, MAX_ROW_BYTES
from leveret.data.sources import documents
from leveret.errors import UserError

TEXTS = ["First text.\r\nTwo lines.", "Zweiter: äöü 漢字 🙂", "third\u2028with a line separator", "a NUL \0 inside"]


def zst(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lambda data: lzma.compress(data, preset=0),
    ".zst": zst,
}


def jsonl(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"id": n, "text": text}).encode() + b"\n" for n, text in enumerate(texts))


def parquet(texts: list[str | None] | pa.Array, **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": texts, "id": list(range(len(texts)))}), sink, **options)
    return sink.getvalue()


def tar(members: dict[str, bytes], mode: str = "w", **options: object) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, **options) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def read(path: Path) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """(texts, where each stands, what was dropped and why)."""
    found, dropped = [], []
    config = SourceConfig(paths=[path.name])
    try:
        for document in documents(config, path.parent, {}, lambda where, why: dropped.append((where, why))):
            found.append(document)
    except UserError as error:
        assert re.search("no documents in|no column", str(error))  # noqa: PT017
    assert all("\n" not in where + why for where, why in dropped)
    return [document.text for document in found], [document.where for document in found], dropped


@pytest.fixture
def at(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def write(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


Write = Callable[[str, bytes], Path]


# --- whole files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", PACKINGS)
def test_text_formats_plain_and_compressed(at: Write, suffix: str) -> None:
    pack = PACKINGS[suffix]
    numbers = [1, 2, 3, 4]
    lines = at(f"a.jsonl{suffix}", pack(b"\xef\xbb\xbf" + jsonl(TEXTS).rstrip(b"\n")))
    assert read(lines) == (TEXTS, [f"{lines.name}:{number}" for number in numbers], [])
    items = at(f"a.json{suffix}", pack(json.dumps([{"text": t} for t in TEXTS], indent=2, ensure_ascii=False).encode()))
    assert read(items) == (TEXTS, [f"{items.name}:{number}" for number in numbers], [])
    text = at(f"a.txt{suffix}", pack(b"\xef\xbb\xbf" + TEXTS[0].encode() + b"\0"))
    assert read(text) == ([TEXTS[0] + "\0"], [f"{text.name}:1"], [])
    assert [row["text"] for _, row in read_rows(lines)] == [row["text"] for _, row in read_rows(items)] == TEXTS
    assert read_text(text) == TEXTS[0] + "\0"


def test_frames_of_compressed_files_are_read_to_the_last(at: Write) -> None:
    for suffix in (".gz", ".xz", ".zst"):
        pack = PACKINGS[suffix]
        assert read(at(f"a.jsonl{suffix}", pack(jsonl(TEXTS[:1])) + pack(jsonl(TEXTS[1:]))))[0] == TEXTS


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_of_every_type_of_text(at: Write, kind: pa.DataType) -> None:
    data = parquet(pa.array([*TEXTS, None, "", TEXTS[0]], pa.string()).cast(kind), row_group_size=2)
    path = at("a.parquet", data)
    assert read(path) == ([*TEXTS, TEXTS[0]], [f"a.parquet:{number}" for number in (1, 2, 3, 4, 7)], [])
    assert [row["id"] for _, row in read_rows(path)] == list(range(7))


def test_archives_are_read_member_by_member(at: Write) -> None:
    long = "x" * 120 + "/b.jsonl"
    members = {
        "./a.txt": TEXTS[0].encode(),
        long: jsonl(TEXTS),
        "ünï/c.jsonl.gz": gzip.compress(jsonl(TEXTS[1:])),
        "read.me": b"?",
        "__MACOSX/._a.txt": b"\0\1",
        "empty.txt": b"",
        "d.json": json.dumps([{"text": "last"}]).encode(),
    }
    want = [TEXTS[0], *TEXTS, *TEXTS[1:], "last"]
    for path in (
        at("a.tar", tar(members, format=tarfile.GNU_FORMAT)),
        at("a.tar.gz", tar(members, "w:gz", format=tarfile.PAX_FORMAT)),
        at("a.tgz", tar(members, "w:gz")),
        at("a.tar.xz", tar(members, "w:xz")),
        at("a.tar.zst", zst(tar(members))),
        at("a.zip", zipped(members)),
    ):
        texts, where, dropped = read(path)
        assert texts == want
        assert where[1] == f"{path.name}:{long}:1"
        assert dropped == []
    with pytest.raises(UserError, match="unpack it"):
        next(read_rows(path))


def test_links_and_names_that_lead_out_of_an_archive_are_named(at: Write) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, kind in [
            ("l.txt", tarfile.SYMTYPE),
            ("h.txt", tarfile.LNKTYPE),
            ("p", tarfile.FIFOTYPE),
            ("d/", tarfile.DIRTYPE),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/hostname"
            archive.addfile(info)
        for name in (
            "../up.txt",
            "/abs.txt",
            "a/../../up.txt",
            "inner.parquet",
            "inner.zip",
            "line\nend.md",
            "fine.txt",
        ):
            info = tarfile.TarInfo(name)
            info.size = 4
            archive.addfile(info, io.BytesIO(b"fine"))
    texts, where, dropped = read(at("a.tar", file.getvalue()))
    assert (texts, where) == (["fine"], ["a.tar:fine.txt:1"])
    assert [(name.removeprefix("a.tar:"), why.split()[-1]) for name, why in dropped] == [
        *[(name, "file") for name in ("l.txt", "h.txt", "p")],
        *[(name, "archive") for name in ("../up.txt", "/abs.txt", "a/../../up.txt")],
        *[(name, "it") for name in ("inner.parquet", "inner.zip")],
    ]
    link = zipfile.ZipInfo("link.txt")
    link.external_attr = 0o120777 << 16
    secret = zipfile.ZipInfo("secret.txt")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr(link, "/etc/hostname")
        packed.writestr("C:\\up.txt", "x")
        packed.writestr("a\\..\\..\\up.txt", "x")
        packed.writestr("old.txt", "x", zipfile.ZIP_BZIP2)
        packed.writestr(secret, "x")
        packed.writestr("fine.txt", "fine")
    data = bytearray(file.getvalue())
    data[data.rindex(b"secret.txt") - 38] |= 1  # encrypted, says the directory
    texts, where, dropped = read(at("a.zip", bytes(data)))
    assert (texts, where) == (["fine"], ["a.zip:fine.txt:1"])
    assert [name.removeprefix("a.zip:") for name, _ in dropped][:1] == ["link.txt"]
    assert len(dropped) == 5
    assert sorted(path.name for path in at("x", b"").parent.iterdir()) == [
        "a.tar",
        "a.zip",
        "x",
    ]  # nothing was unpacked


# --- rows that cannot be read --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"text": oops}', "not JSON (Expecting value, character 10)"),
        (b'{"text": "\xff"}', "not UTF-8 (invalid start byte, byte 11 of it)"),
        (b'{"text": "a\0b"}', "not JSON (Invalid control character at"),
        (b'\xef\xbb\xbf{"text": "x"}', "not JSON (Unexpected UTF-8 BOM"),
        (b"[1]", "expected an object with named fields, found list"),
        (b"[" * 1_000_000, "not JSON (maximum recursion depth"),
        (b'{"text":' * 1_000_000, "not JSON (maximum recursion depth"),
        (b'{"text": ' + b"9" * 5000 + b"}", "not JSON (Exceeds the limit"),
        (b'{"body": "x", "a\\nb": 3}', r"no column 'text'; there are: body, a\nb"),
        (b'{"text": 7}', "column 'text' holds int, not text"),
        (b'{"text": "\\ud83d"}', "half a surrogate pair at character 0"),
    ],
)
def test_a_line_that_cannot_be_read_is_named_and_the_others_are_kept(at: Write, line: bytes, why: str) -> None:
    path = at("a.jsonl", b'\n{"text": "before"}\n' + line + b'\r\n\n{"text": "a NUL \\u0000"}')
    texts, where, [dropped] = read(path)
    assert (texts, where) == (["before", "a NUL \0"], ["a.jsonl:2", "a.jsonl:5"])
    assert dropped[0] == "a.jsonl:3"
    assert dropped[1].startswith(why)
    with pytest.raises(UserError, match=r"a\.jsonl:3: "):
        list(documents(SourceConfig(paths=[path.name]), path.parent, {}))


def test_items_of_a_json_list(at: Write) -> None:
    start = b'[{"text": "one"}, 7, {"text": "\xff"}, {"text": "two\\nlines"}'
    assert read(at("a.json", start + b"\n]\n")) == (
        ["one", "two\nlines"],
        ["a.json:1", "a.json:4"],
        [
            ("a.json:2", "expected an object with named fields, found int"),
            ("a.json:3", "not UTF-8 (invalid start byte, byte 11 of it); convert the text"),
        ],
    )
    for rest in (b"", b", {", b', {"text": oops}, {"text": "three"}]', b", " + b"[" * 1_000_000 + b"]", b"] []"):
        texts, _, dropped = read(at("a.json", start + rest))
        assert texts == ["one", "two\nlines"]
        assert [name for name, _ in dropped] == ["a.json:5", "a.json:2", "a.json:3"]
    for other in (b'{"text": "x"}', b"x", b'{"text": "x"}\n{"text": "y"}'):
        (dropped,) = read(at("a.json", other))[2]
        assert dropped == ("a.json", "a .json file must hold a list of objects; one object a line is .jsonl")
    assert read(at("a.json", b""))[2] == read(at("a.json", b" []\n"))[2] == []


def test_texts_that_are_not_utf8(at: Write) -> None:
    assert read(at("a.txt", b"fine\nbad \xff\n"))[2] == [
        ("a.txt:1", "not UTF-8 (invalid start byte, line 2 of it); convert the text")
    ]
    with pytest.raises(UserError, match=r"a\.txt:2: not UTF-8"):
        read_text(at("a.txt", b"fine\nbad \xff\n"))
    bad = pa.array([b"fine", b"\xff", b"\xed\xa0\xbd", b"fine too"], pa.binary()).view(pa.string())
    texts, where, dropped = read(at("a.parquet", parquet(bad)))
    assert (texts, where) == (["fine", "fine too"], ["a.parquet:1", "a.parquet:4"])
    assert [(name, why.split(" (")[0]) for name, why in dropped] == [
        ("a.parquet:2", "not UTF-8"),
        ("a.parquet:3", "half a surrogate pair, byte 1 of it; repair the text"),
    ]


def test_wrong_columns_of_a_parquet_end_the_reading(at: Write) -> None:
    path = at("a.parquet", parquet(TEXTS))
    for column, message in {
        "body": "no column 'body'; there are: text, id",
        "id": "'id' holds int64, not text",
    }.items():
        with pytest.raises(UserError, match=message):
            list(documents(SourceConfig(paths=[path.name], column=column), path.parent, {}, lambda where, why: None))


# --- damage --------------------------------------------------------------------------------------------------

NOISE = [random.Random(n).randbytes(2000).hex() for n in range(500)]  # does not compress away


@pytest.mark.parametrize("suffix", PACKINGS)
def test_rows_before_the_end_of_a_truncated_file_are_kept(at: Write, suffix: str) -> None:
    data = PACKINGS[suffix](jsonl(NOISE))
    path = at(f"a.jsonl{suffix}", data[: len(data) * 2 // 3])
    texts, _, [(where, why)] = read(path)
    assert texts == NOISE[: len(texts)]
    assert 250 < len(texts) < 334
    assert where == f"{path.name}:{len(texts) + 1}"
    assert ("not JSON" if suffix == "" else "cannot be read from here on (") in why
    with pytest.raises(UserError, match=rf"{where}: "):
        list(documents(SourceConfig(paths=[path.name]), path.parent, {}))
    with pytest.raises(UserError, match=rf"{where}: "):
        list(read_rows(path))


def test_truncated_texts_lists_and_archives(at: Write) -> None:
    packed = gzip.compress("".join(NOISE).encode())
    assert read(at("a.txt.gz", packed[:-20]))[2][0][0] == "a.txt.gz:1"
    packed = gzip.compress(json.dumps([{"text": text} for text in NOISE]).encode())
    texts, _, [(where, why)] = read(at("a.json.gz", packed[:-400_000]))
    assert texts == NOISE[: len(texts)] != []
    assert where == f"a.json.gz:{len(texts) + 1}"
    assert why.startswith("cannot be read from here on")
    members = {"a.jsonl": jsonl(NOISE[:100]), "b.jsonl": jsonl(NOISE[100:200]), "c.jsonl": jsonl(NOISE[200:])}
    for name, data in {"a.tar": tar(members), "a.tar.gz": tar(members, "w:gz")}.items():
        texts, _, dropped = read(at(name, data[: len(data) * 3 // 10]))
        assert texts == NOISE[: len(texts)]
        assert 130 < len(texts) < 155
        assert [where for where, _ in dropped] == [f"{name}:b.jsonl:{len(texts) - 99}", name]
    whole = tar(members)
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    assert read(at("b.tar", whole[:end]))[2][0][1].startswith(
        "the rest of the archive cannot be read (the archive ends"
    )
    broken = bytearray(whole)
    broken[whole.index(b"b.jsonl") + 3] ^= 1  # a header: what follows cannot be found
    texts, _, dropped = read(at("c.tar", bytes(broken)))
    assert (len(texts), [where for where, _ in dropped]) == (100, ["c.tar"])
    data = zipped(members)
    assert read(at("a.zip", data[:-30]))[2][0][0] == "a.zip"
    flipped = bytearray(data)
    flipped[data.index(b"b.jsonl") + 5000] ^= 255
    texts, _, dropped = read(at("b.zip", bytes(flipped)))
    assert texts[-300:] == NOISE[200:]  # the other members are read
    assert {where.rpartition(":")[0] for where, _ in dropped} == {"b.zip:b.jsonl"}


def test_a_broken_row_group_costs_its_rows_only(at: Write) -> None:
    data = bytearray(parquet(NOISE, row_group_size=100, use_dictionary=False, write_page_checksum=True))
    group = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(2).column(0)
    data[group.data_page_offset + 100_000] ^= 1
    texts, where, [dropped] = read(at("a.parquet", bytes(data)))
    assert texts == NOISE[:200] + NOISE[300:]
    assert where[200] == "a.parquet:301"
    assert dropped[0] == "a.parquet:201"
    assert dropped[1].startswith("rows to 300 cannot be read")
    for end in (0, 3, 100, len(data) // 2, len(data) - 1):
        assert [where for where, _ in read(at("b.parquet", bytes(data[:end])))[2]] == ["b.parquet"]


WHOLE = {
    "a.txt.gz": gzip.compress("\n".join(NOISE[:3]).encode()),
    "a.jsonl.gz": gzip.compress(jsonl(NOISE[:20])),
    "a.jsonl.xz": lzma.compress(jsonl(NOISE[:20])),
    "a.jsonl.zst": zst(jsonl(NOISE[:20])),
    "a.jsonl": jsonl(TEXTS),
    "a.json": json.dumps([{"text": text} for text in TEXTS]).encode(),
    "a.parquet": parquet(TEXTS * 3, row_group_size=5),
    "a.tar": tar({"é.txt": b"text", "x" * 130 + ".jsonl": jsonl(TEXTS)}, format=tarfile.PAX_FORMAT),
    "b.tar": tar({"x" * 130 + ".txt": b"text", "a.jsonl": jsonl(TEXTS)}, format=tarfile.GNU_FORMAT),
    "a.zip": zipped({"é.txt": b"text", "a.jsonl.gz": gzip.compress(jsonl(TEXTS))}),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whatever_is_broken_nothing_crashes(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    path = tmp_path_factory.mktemp("broken") / name
    flips = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    @given(flips, st.integers(0, 1 << 20))
    def check(flips: list[tuple[int, int]], cut: int) -> None:
        data = bytearray(WHOLE[name])
        for place, value in flips:
            data[place % len(data)] = value
        path.write_bytes(data[: cut % len(data)] if cut % 3 == 0 else data)
        texts, where, dropped = read(path)
        if dropped or not texts:
            with pytest.raises(UserError):
                list(documents(SourceConfig(paths=[name]), path.parent, {}))
        assert all(place.startswith(name) for place in [*where, *(place for place, _ in dropped)])

    check()


# --- length and memory ---------------------------------------------------------------------------------------


def test_long_texts_come_in_parts_of_which_nothing_is_lost(at: Write) -> None:
    words = "word and wörd\n" * 1_300_000
    texts, where, dropped = read(at("a.txt", words.encode()))
    assert "".join(texts) == words
    assert [text[-1] for text in texts] == ["\n"] * 2
    line = texts[0].count("\n") + 1
    assert (where, dropped) == (["a.txt:1", f"a.txt:{line} (part 2)"], [])
    glued = "日" * (MAX_ROW_BYTES // 2)
    texts, where, _ = read(at("a.parquet", parquet(["a", glued, "b"])))
    assert ["".join(texts[1:-1]), where] == [glued, [f"a.parquet:{at}" for at in ("1", "2", "2 (part 2)", "3")]]
    assert max(len(text.encode()) for text in texts) <= MAX_BLOCK_BYTES


def test_a_line_is_read_up_to_the_limit_and_dropped_beyond(at: Write) -> None:
    def line(length: int) -> bytes:
        return b'{"text": "' + b"x" * (length - 13) + b'"}\n'

    data = line(20) + line(MAX_ROW_BYTES) + line(20) + line(MAX_ROW_BYTES + 1) + line(20) + line(3 * MAX_ROW_BYTES)
    texts, where, dropped = read(at("a.jsonl", data[:-1]))
    assert [len(text) for text in texts] == [7, MAX_ROW_BYTES - 13, 7, 7]
    assert where == [f"a.jsonl:{number}" for number in (1, 2, 3, 5)]
    assert dropped == [(f"a.jsonl:{number}", "longer than 15 MiB in one piece of JSON; split it") for number in (4, 6)]
