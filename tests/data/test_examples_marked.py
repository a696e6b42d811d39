"""Dialogues in one text: every kind of marks, and only where there is no doubt."""

import json
import os
from pathlib import Path

import pytest

from leveret.data.config import ExampleFormat
from leveret.data.examples import Example, read_examples
from leveret.data.refusals import Refusals
from leveret.errors import UserError


def turns(example: Example) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in example.messages]


def read(folder: Path, text: str, format: ExampleFormat = "auto") -> Example:
    (folder / "a.jsonl").write_text(json.dumps({"text": text, "id": 1}))
    (example,) = read_examples(folder / "a.jsonl", format)
    assert example.meta == {"id": 1}
    return example


TWO = [("user", "What is 2+2?"), ("assistant", "4."), ("user", "And 3+3?"), ("assistant", "6,\n\nI think.")]


@pytest.mark.parametrize(
    "text",
    [
        "### Human: What is 2+2? ### Assistant: 4. ### Human: And 3+3? ### Assistant: 6,\n\nI think.",
        "### Human: What is 2+2?### Assistant: 4.### Human: And 3+3?### Assistant: 6,\n\nI think.",
        "### Human:\nWhat is 2+2?\n\n### Assistant:\n4.\n### Human:\nAnd 3+3?\n### Assistant:\n6,\n\nI think.\n",
        "\n\nHuman: What is 2+2?\n\nAssistant: 4.\n\nHuman: And 3+3?\n\nAssistant: 6,\n\nI think.",
        "User: What is 2+2?\nAssistant: 4.\nUser: And 3+3?\nAssistant: 6,\n\nI think.",
        "### Instruction:\nWhat is 2+2?\n\n### Response:\n4.\n### Instruction:\nAnd 3+3?\n### Response: 6,\n\nI think.",
    ],
)
def test_every_kind_of_marks(tmp_path: Path, text: str) -> None:
    assert turns(read(tmp_path, text)) == TWO
    assert turns(read(tmp_path, text, "marked")) == TWO
    (tmp_path / "a.txt").write_text(text)
    assert [turns(example) for example in read_examples(tmp_path / "a.txt")] == [TWO]


def test_an_input_joins_its_instruction(tmp_path: Path) -> None:
    text = "### Instruction:\nAdd.\n\n### Input:\n2 and 2\n\n### Response:\n4"
    assert turns(read(tmp_path, text)) == [("user", "Add.\n\n2 and 2"), ("assistant", "4")]
    text = "### Instruction:\nAdd 2 and 2.\n\n### Input:\n\n### Response:\n4"
    assert turns(read(tmp_path, text)) == [("user", "Add 2 and 2."), ("assistant", "4")]


def test_the_system_speaks_by_a_mark_or_where_the_format_is_named(tmp_path: Path) -> None:
    expected = [("system", "Be brief."), ("user", "2+2"), ("assistant", "4")]
    assert turns(read(tmp_path, "### System: Be brief. ### Human: 2+2 ### Assistant: 4")) == expected
    assert turns(read(tmp_path, "Be brief.\n\nUser: 2+2\nAssistant: 4", "marked")) == expected
    with pytest.raises(UserError, match=r"a\.jsonl:1: text before the first mark \(User:\); with `format: marked`"):
        read(tmp_path, "Be brief.\n\nUser: 2+2\nAssistant: 4")


def test_marks_of_two_kinds_need_the_format_named(tmp_path: Path) -> None:
    text = "### Human: Write a play. ### Assistant: Gladly:\nUser: Hello!\nAssistant: Good day."
    with pytest.raises(UserError, match=r"marks of several kinds \(### Human:, User:\)"):
        read(tmp_path, text)
    assert turns(read(tmp_path, text, "marked")) == [
        ("user", "Write a play."),
        ("assistant", "Gladly:\nUser: Hello!\nAssistant: Good day."),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A page about nothing.", "no marked turns"),
        ("The user: Bob. The Assistant: Alice. User: in a line", "no marked turns"),
        ("#### Human: 2+2 #### Assistant: 4", "no marked turns"),
        ("User: 2+2", "no marked turns"),
        ("### Human: 2+2 ### Assistant: ", "nothing follows the mark '### Assistant:'"),
        ("### Human: 2 ### Human: 3 ### Assistant: 4", "two messages of the user in a row"),
        ("### Assistant: 2 ### Human: 3 ### Assistant: 4", "the assistant speaks before the user"),
        ("### Human: 2 ### Assistant: 3 ### Human: 4", "the last message is not the assistant's"),
        ("### Input:\n2\n### Instruction:\n3\n### Response:\n4", "'### Input:' does not follow '### Instruction:'"),
        ("### Human: 2\0 ### Assistant: 3", "'text' has control characters"),
    ],
)
def test_what_is_no_marked_dialogue(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"a.jsonl:1: {message}"):
        read(tmp_path, text)


def test_dialogues_of_a_text_file_stand_between_lines_of_dashes(tmp_path: Path) -> None:
    text = "User: a\nAssistant: 1\n---\n2\n\n---\n\nUser: b\nAssistant:\n---\nUser: c\nAssistant: 3\n"
    (tmp_path / "a.txt").write_text(text)
    told = Refusals()
    found = list(read_examples(tmp_path / "a.txt", drop=told))
    assert [(e.instruction, e.response) for e in found] == [("a", "1\n---\n2"), ("c", "3")]
    assert told.first == [(f"{tmp_path}/a.txt:8", "nothing follows the mark 'Assistant:'")]


@pytest.mark.skipif("LEVERET_DATA" not in os.environ, reason="LEVERET_DATA is not set")
def test_public_marked_turns() -> None:
    base = Path(os.environ["LEVERET_DATA"]) / "instruct"
    found = list(read_examples(base / "dolly_open_qa_chinkara.jsonl"))
    assert len(found) == 3_742
    assert turns(found[2]) == [
        ("user", "Who gave the UN the land in NY to build their HQ"),
        ("assistant", "John D Rockerfeller"),
    ]
