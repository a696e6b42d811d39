"""Every format of examples reads to the same thing, and every broken one names its line."""

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leveret.data.config import ExamplesConfig
from leveret.data.convert import convert
from leveret.data.examples import Example, Message, examples, one_turn, read_examples, write_examples
from leveret.errors import UserError

PAIRS = [("Show all .log files.", "find . -name '*.log'"), ("Count lines in a.txt.", "wc -l a.txt")]

RAW = """
Instruction

Show all .log files.
Command
find . -name '*.log'


INSTRUCTION:
Write two lines,
then stop.

  command :

cat <<EOF > out

  one
EOF

"""


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(found: list[Example]) -> list[tuple[str, str]]:
    return [(example.instruction, example.response) for example in found]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("instruction", "command"),
        ("prompt", "completion"),
        ("prompt", "response"),
        ("instruction", "output"),
        ("instruction", "response"),
    ],
)
def test_rows_of_two_fields(tmp_path: Path, question: str, answer: str) -> None:
    rows = [{question: q, answer: a, "input": "", "set": "x"} for q, a in PAIRS]
    found = list(read_examples(write_rows(tmp_path / "a.jsonl", rows)))
    assert pairs(found) == PAIRS
    assert found[0].messages == (Message("user", PAIRS[0][0]), Message("assistant", PAIRS[0][1]))
    assert found[0].meta == {"set": "x"}
    assert found[0].source.endswith("a.jsonl")


def test_an_input_follows_its_instruction(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"instruction": "Add.", "input": "1 and 2", "output": "3"}])
    assert pairs(list(read_examples(path))) == [("Add.\n\n1 and 2", "3")]


def test_messages_keep_every_turn(tmp_path: Path) -> None:
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "2+2"), ("assistant", "4")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    (example,) = read_examples(tmp_path / "a.parquet")
    assert example.messages == tuple(Message(*turn) for turn in turns)
    assert (example.instruction, example.response) == ("2+2", "4")


def test_raw_blocks(tmp_path: Path) -> None:
    expected = [
        ("Show all .log files.", "find . -name '*.log'"),
        ("Write two lines,\nthen stop.", "cat <<EOF > out\n\n  one\nEOF"),
    ]
    (tmp_path / "a.txt").write_text(RAW)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(RAW.replace("\n", "\r\n").encode()))
    assert pairs(list(read_examples(tmp_path / "a.txt"))) == expected
    assert pairs(list(read_examples(tmp_path / "b.txt.gz", format="raw"))) == expected


def test_aligned_files(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text(f"Instruction: {PAIRS[0][0]}\n{PAIRS[1][0]}\n\n")
    (tmp_path / "a.txt").write_text(f"{PAIRS[0][1]}\r\n{PAIRS[1][1]}")
    assert pairs(list(read_examples(f"{tmp_path}/q.txt,{tmp_path}/a.txt"))) == PAIRS
    config = ExamplesConfig(paths=["q.txt, a.txt"], max_examples=1)
    assert pairs(list(examples(config, tmp_path, {}))) == PAIRS[:1]


def test_aligned_files_of_different_lengths_or_with_holes(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "a.txt").write_text("1\n2\n")
    with pytest.raises(UserError, match=r"q\.txt has 3 lines, .*a\.txt has 2; they must agree"):
        list(read_examples(f"{tmp_path}/q.txt,{tmp_path}/a.txt"))
    (tmp_path / "a.txt").write_text("1\n\n3\n")
    with pytest.raises(UserError, match=r"a\.txt:2: 'command' is empty"):
        list(read_examples(f"{tmp_path}/q.txt,{tmp_path}/a.txt"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "x"}, "a.jsonl:2: fits no known format; its fields are: instruction; known are messages, "),
        ({"instruction": "x", "command": "  "}, "a.jsonl:2: 'command' is empty"),
        ({"prompt": 3, "completion": "y"}, "a.jsonl:2: 'prompt' is not text"),
        ({"messages": "x"}, "a.jsonl:2: 'messages' is not a list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, r"a.jsonl:2: unknown role \('robot'; known are"),
        ({"messages": [{"role": "user"}]}, "a.jsonl:2: 'content' is missing"),
        ({"messages": [{"role": "user", "content": "x"}]}, "a.jsonl:2: the last message is not the assistant's"),
        ({"messages": []}, "a.jsonl:2: no message of the user"),
    ],
)
def test_a_row_that_is_no_example_is_named(tmp_path: Path, row: dict[str, object], message: str) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"instruction": "fine", "command": "ls"}, row])
    with pytest.raises(UserError, match=message):
        list(read_examples(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Instruction\nx\n", ":1: this instruction has no command"),
        ("Instruction\nx\nInstruction\ny\n", ":1: this instruction has no command"),
        ("Command\nls\n", ":1: this command has no instruction"),
        ("Instruction\n\nCommand\nls\n", ":1: 'instruction' is empty"),
        ("hello\nInstruction\nx\nCommand\nls\n", ":1: text before the first heading"),
        ("\n", "no examples in "),
    ],
)
def test_a_broken_raw_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        list(read_examples(tmp_path / "a.txt"))


def test_a_format_that_is_asked_for_must_fit(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"instruction": "x", "command": "y", "output": "z"}])
    assert next(read_examples(path)).response == "y"
    assert next(read_examples(path, format="instruction-response")).response == "z"
    with pytest.raises(UserError, match=r":1: 'prompt' is missing; there are: instruction, command, output"):
        list(read_examples(path, format="prompt-completion"))
    with pytest.raises(UserError, match=r"'raw' is the format of \.txt files"):
        list(read_examples(path, format="raw"))
    (tmp_path / "a.txt").write_text(RAW)
    with pytest.raises(UserError, match=r"a \.txt file has the format 'raw' or 'marked', not 'messages'"):
        list(read_examples(tmp_path / "a.txt", format="messages"))


def test_written_examples_read_back(tmp_path: Path) -> None:
    dialogue = Example((Message("system", "s"), Message("user", "ü\n"), Message("assistant", "a")), meta={"set": "b"})
    written = [one_turn("List files", "ls", meta={"set": "a", "intent": "ls"}), dialogue]
    written.append(one_turn("x", "y", meta={"half a pair": "\ud800"}))
    assert write_examples(tmp_path / "a.jsonl", written) == 3
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[0] == {"instruction": "List files", "command": "ls", "set": "a", "intent": "ls"}
    found = list(read_examples(tmp_path / "a.jsonl"))
    assert [(e.messages, e.meta) for e in found] == [(e.messages, e.meta) for e in written]


def test_convert(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(RAW)
    assert convert(tmp_path / "a.txt", tmp_path / "a.jsonl") == 2
    assert pairs(list(read_examples(tmp_path / "a.jsonl"))) == pairs(list(read_examples(tmp_path / "a.txt")))
    assert convert(tmp_path / "a.jsonl", tmp_path / "a.jsonl") == 2


def test_a_conversion_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    bad = write_rows(tmp_path / "bad.jsonl", [{"instruction": "x", "command": "y"}, {"nothing": 1}])
    (tmp_path / "out.jsonl").write_text("before")
    with pytest.raises(UserError, match=r"bad\.jsonl:2"):
        convert(bad, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "out.jsonl"]
    with pytest.raises(UserError, match=r"written as \.jsonl"):
        convert(bad, tmp_path / "out.txt")


def test_hub_and_generated_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    write_rows(tmp_path / "set" / "train.jsonl", [{"instruction": q, "response": a} for q, a in PAIRS])
    hub = ExamplesConfig(kind="hub", name=str(tmp_path / "set"))
    assert pairs(list(examples(hub, tmp_path, {}))) == PAIRS
    made = ExamplesConfig(kind="generated", generator="two", max_examples=1)
    assert pairs(list(examples(made, tmp_path, {"two": lambda: [one_turn(*pair) for pair in PAIRS]}))) == PAIRS[:1]


@pytest.mark.skipif("LEVERET_DATA" not in os.environ, reason="LEVERET_DATA is not set")
def test_public_examples() -> None:
    base = Path(os.environ["LEVERET_DATA"])
    assert sum(1 for _ in read_examples(base / "shell" / "nl2bash.jsonl")) == 11_560
    assert sum(1 for _ in read_examples(base / "instruct" / "rasbt_instruction-data.json")) == 1_100
    assert sum(1 for _ in read_examples(base / "instruct" / "dolly_hhrlhf_train_small.jsonl")) == 1_000
