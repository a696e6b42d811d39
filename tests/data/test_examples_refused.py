"""Bad rows are left out, counted by reason and named by line, in words of bounded length; too many end the reading."""

import io
import json
import random
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from tiny_project import Command, write_project

from leveret.data.config import ExamplesConfig
from leveret.data.convert import convert
from leveret.data.examples import examples, read_examples
from leveret.data.refusals import NAMED, Refusals
from leveret.errors import UserError
from leveret.recipe import load_recipe
from leveret.run import Run

GOOD = json.dumps({"instruction": "2+2", "output": "4"}).encode()
LONGEST = 500
"""Characters that a line about one row may have."""


def said(*roles: str) -> bytes:
    return json.dumps({"messages": [{"role": role, "content": "x"} for role in roles]}).encode()


def refused(path: Path, **config: Any) -> tuple[int, Refusals]:
    told = Refusals()
    found = list(examples(ExamplesConfig(paths=[path.name], **config), path.parent, {}, told))
    return len(found), told


BAD: dict[str, tuple[bytes, str]] = {
    "no JSON": (b'{"instruction": "2+2", ', "not JSON"),
    "not an object": (b"[1, 2]", "expected an object with named fields"),
    "binary noise": (b"\x89" + random.Random(0).randbytes(3000).replace(b"\n", b""), "not UTF-8"),
    "NULs": (b"\0" * 1000, "not JSON"),
    "a NUL in the text": (b'{"instruction": "a\\u0000b", "output": "4"}', "'instruction' has control characters"),
    "another encoding": ('{"instruction": "café", "output": "4"}'.encode("latin-1"), "not UTF-8"),
    "half a pair": (b'{"instruction": "\\ud800", "output": "4"}', "'instruction' has half a surrogate pair"),
    "1 MB": (json.dumps({"instruction": "a" * 10**6, "output": "4"}).encode(), "too long to be an example"),
    "50 MB": (
        b'{"instruction": "' + b"a" * 50_000_000 + b'", "output": "4"}',
        "longer than 15 MiB in one piece of JSON",
    ),
    "deep lists": (b'{"instruction": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "not JSON"),
    "deep objects": (b'{"a":' * 10**5 + b"1" + b"}" * 10**5, "not JSON"),
    "a long number": (b'{"instruction": "2+2", "output": ' + b"9" * 10**4 + b"}", "not JSON"),
    "wrong type": (b'{"instruction": "2+2", "output": 4}', "'output' is not text"),
    "missing field": (b'{"instruction": "2+2"}', "fits no known format"),
    "many fields": (json.dumps({f"field {n}": n for n in range(10**4)}).encode(), "fits no known format"),
    "empty answer": (b'{"instruction": "2+2", "output": " "}', "'output' is empty"),
    "unknown role": (said("user", "robot" * 10**4), "unknown role"),
    "system after user": (said("user", "system", "assistant"), "a message of the system that is not the first"),
    "two users": (said("user", "user", "assistant"), "two messages of the user in a row"),
    "two answers": (said("user", "assistant", "assistant"), "two messages of the assistant in a row"),
    "no answer": (said("system", "user"), "the last message is not the assistant's"),
    "answer first": (said("assistant", "user", "assistant"), "the assistant speaks before the user"),
    "nobody": (said(), "no message of the user"),
    "same answers": (b'{"prompt": "2+2", "chosen": "4", "rejected": "4"}', "'chosen' and 'rejected' are the same"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_left_out_and_named_by_line_and_reason(tmp_path: Path, name: str) -> None:
    line, reason = BAD[name]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([GOOD, GOOD, line, GOOD, b""]))
    count, told = refused(path)
    assert (count, dict(told.reasons)) == (3, {reason: 1})
    ((where, why),) = told.first
    assert where == "a.jsonl:3"
    assert why.startswith(reason)
    assert len(why) < LONGEST
    assert why.isprintable()
    with pytest.raises(UserError, match=r"^a\.jsonl:3: " + re.escape(reason)):
        list(examples(ExamplesConfig(paths=["a.jsonl"]), tmp_path, {}))


def test_long_lines_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        for _ in range(3):
            file.write(GOOD + b"\n" + b'{"instruction": "' + b"a" * 50_000_000 + b'"}\n')
    tracemalloc.start()
    count, told = refused(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (count, told.count) == (3, 3)
    assert [where for where, _ in told.first] == ["a.jsonl:2", "a.jsonl:4", "a.jsonl:6"]
    assert peak < 60_000_000


def test_the_first_rows_are_named_and_the_others_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([GOOD] * 30 + [b"{", b'{"instruction": "", "output": "x"}'] * 12))
    count, told = refused(path)
    assert (count, told.count) == (30, 24)
    assert told.facts()["reasons"] == {"not JSON": 12, "'instruction' is empty": 12}
    lines = list(told.lines())
    assert len(lines) == NAMED + 1
    assert lines[1] == "a.jsonl:32: 'instruction' is empty"
    assert lines[-1] == f"and {24 - NAMED} more"


def test_too_many_refused_rows_end_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([GOOD] * 2 + [b"{}"] * 2))
    assert refused(path)[0] == 2
    path.write_bytes(b"\n".join([GOOD] * 2 + [b"{}"] * 3))
    with pytest.raises(
        UserError, match=r"^too few examples in a\.jsonl: 3 of 5 rows, more than 50%, .*a\.jsonl:3: fits no"
    ):
        refused(path)
    path.write_bytes(random.Random(0).randbytes(10**6))
    with pytest.raises(
        UserError, match=r"^no examples in a\.jsonl: [\d,]+ of [\d,]+ rows, all, are refused \(not UTF-8: "
    ) as error:
        refused(path)
    assert len(str(error.value)) < 2 * LONGEST
    path.write_bytes(GOOD)
    with pytest.raises(UserError, match=r"no examples in a\.jsonl of which topic is what its `where` asks for"):
        refused(path, where={"topic": ["sums"]})


def test_parquet_with_wrong_columns_and_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    bytes_of = pa.array([b"2+2", b"\xff\xfe", b"3+3"])
    broken = pa.Array.from_buffers(pa.string(), 3, bytes_of.buffers())
    pq.write_table(pa.table({"instruction": broken, "output": ["4", "5", "6"]}), path)
    count, told = refused(path)
    assert count == 2
    assert [where for where, _ in told.first] == ["a.parquet:2"]
    assert dict(told.reasons) == {"cannot be read": 1}
    pq.write_table(pa.table({"question": ["x"], "b": ["y"]}), path)
    with pytest.raises(UserError, match=r"a\.parquet:1: fits no known format; its fields are: question, b"):
        refused(path)
    pq.write_table(pa.table({"instruction": [1], "output": ["y"]}), path)
    with pytest.raises(UserError, match=r"a\.parquet:1: 'instruction' is not text \(but int\)"):
        refused(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read after row 0"):
        refused(path)


def test_text_files_lose_their_bad_blocks_only(tmp_path: Path) -> None:
    blocks = ["Instruction", "a", "Command", "1", "Instruction", "b", "Instruction", "c", "Command", "", "Command", "4"]
    (tmp_path / "a.txt").write_text("\n".join([*blocks, "Instruction", "d", "Command", "2", *blocks[:4] * 2]))
    count, told = refused(tmp_path / "a.txt")
    assert count == 4
    assert told.first == [
        ("a.txt:5", "this instruction has no command"),
        ("a.txt:7", "'command' is empty"),
        ("a.txt:11", "this command has no instruction"),
    ]


def test_conversion_goes_on_past_refused_rows(tmp_path: Path, leveret: Command) -> None:
    pair = b'{"prompt": "2+2", "chosen": "4", "rejected": "5", "id": 1}'
    marked = b'{"text": "### Human: 3+3 ### Assistant: 6", "id": 2}'
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([GOOD, b"{}", pair, marked]))
    done = leveret("data", "convert", "a.jsonl", "b.jsonl", cwd=tmp_path)
    assert done.stdout == "3 examples in b.jsonl\n"
    assert done.stderr.startswith("1 of 4 rows refused: fits no known format: 1\n  a.jsonl:2: fits no known format")
    assert [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()] == [
        {"instruction": "2+2", "command": "4"},
        {"prompt": "2+2", "chosen": "4", "rejected": "5", "id": 1},
        {"instruction": "3+3", "command": "6", "id": 2},
    ]
    assert convert(tmp_path / "b.jsonl", tmp_path / "b.jsonl") == 3


def run_of(folder: Path, *overrides: str, told: io.StringIO | None = None) -> Run:
    recipe, base = load_recipe(str(folder / "tiny.yaml"), list(overrides))
    return Run(recipe, base, folder / "run", Console(file=told or io.StringIO(), width=80), "cpu", copy_data=True)


def test_prepare_tells_what_it_refused_and_the_manifest_keeps_it(tmp_path: Path) -> None:
    write_project(tmp_path)
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write('{"instruction": "x"}\n{"instruction": "x", "command": ""}\n')
        file.write(json.dumps({"instruction": "x " * 100, "command": "ls"}) + "\n")
    console = io.StringIO()
    run = run_of(tmp_path, told=console)
    run.upto("prepare")
    lines = console.getvalue().splitlines()
    place = lines.index("prepare: pairs.jsonl: 2 of 243 rows refused: fits no known format: 1; 'command' is empty: 1")
    assert lines[place + 1].startswith("prepare:   pairs.jsonl:241: fits no known format; its fields are: instruction;")
    assert lines[place + 2] == "prepare:   pairs.jsonl:242: 'command' is empty"
    (drawn,) = run.store("finetune").manifest["drawn"]
    assert (drawn["read"], drawn["taken"], drawn["refused"]["count"]) == (241, 241, 2)
    assert drawn["refused"]["reasons"] == {"fits no known format": 1, "'command' is empty": 1}
    assert drawn["refused"]["first"][1] == {"where": "pairs.jsonl:242", "why": "'command' is empty"}
    assert "prepare: examples longer than 64 tokens: 1 left out" in console.getvalue()
    assert run.store("finetune").manifest["examples"]["first_too_long"] == ["pairs.jsonl:243"]


def test_a_strict_stage_and_a_held_out_set_refuse_the_first_bad_row(tmp_path: Path) -> None:
    write_project(tmp_path)
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write('{"instruction": "x"}\n')
    with pytest.raises(UserError, match=r"^pairs\.jsonl:241: fits no known format"):
        run_of(tmp_path, "finetune.strict=true").upto("prepare")
    with (tmp_path / "held.jsonl").open("a") as file:
        file.write('{"instruction": "x"}\n')
    with pytest.raises(UserError, match=r"^held\.jsonl:17: fits no known format"):
        run_of(tmp_path).upto("audit")


def test_weights_are_given_to_all_sources_or_none_and_to_no_held_out_set(tmp_path: Path) -> None:
    write_project(tmp_path)
    with pytest.raises(UserError, match="some examples have a weight and some have none"):
        run_of(tmp_path, "finetune.examples=[{paths: [pairs.jsonl], weight: 1}, {paths: [pairs.jsonl]}]")
    with pytest.raises(UserError, match="set 'held' has a weight"):
        run_of(tmp_path, "evaluate.sets.held.weight=1")


def test_a_format_without_its_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    with pytest.raises(UserError, match=r"a\.jsonl:1: 'text' is missing; there are: instruction, output"):
        list(read_examples(tmp_path / "a.jsonl", format="marked"))
