"""Preference pairs: every form reads to the same thing, and what is no pair is named."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leveret.data.config import ExamplesConfig
from leveret.data.examples import Example, Message, Preference, preferences, read_examples
from leveret.errors import UserError

USER, GOOD, BAD = (
    {"role": "user", "content": "2+2"},
    {"role": "assistant", "content": "4"},
    {"role": "assistant", "content": "5"},
)
SYSTEM = {"role": "system", "content": "Be brief."}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(path: Path, **config: Any) -> list[Preference]:
    return list(preferences(ExamplesConfig(paths=[path.name], **config), path.parent, {}))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+2", "chosen": "4", "rejected": "5"},
        {"prompt": [USER], "chosen": "4", "rejected": "5"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "2+2", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"instruction": "2+2", "input": "", "output": "4", "chosen": "4", "rejected": "5"},
        {"chosen": "\n\nHuman: 2+2\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2\n\nAssistant: 5"},
    ],
)
def test_every_form_of_a_pair(tmp_path: Path, row: dict[str, Any]) -> None:
    (found,) = pairs(write_rows(tmp_path / "a.jsonl", [row | {"id": 7}]))
    assert found == Preference((Message("user", "2+2"),), "4", "5", "a.jsonl", {"id": 7})
    assert found.example == Example((Message("user", "2+2"), Message("assistant", "4")), "a.jsonl", {"id": 7})


def test_pairs_keep_what_was_said_before(tmp_path: Path) -> None:
    earlier = [SYSTEM, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, USER]
    row = {"chosen": [*earlier, GOOD], "rejected": [*earlier, BAD]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    (found,) = pairs(tmp_path / "a.parquet")
    assert [message.role for message in found.prompt] == ["system", "user", "assistant", "user"]
    assert (found.chosen, found.rejected) == ("4", "5")
    (about,) = pairs(
        write_rows(tmp_path / "b.jsonl", [{"instruction": "Add.", "input": "2 2", "chosen": "4", "rejected": "5"}])
    )
    assert about.prompt == (Message("user", "Add.\n\n2 2"),)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "chosen": "4", "rejected": " 4 "}, "'chosen' and 'rejected' are the same"),
        ({"prompt": "x", "chosen": "4", "rejected": " "}, "'rejected' is empty"),
        ({"prompt": "x", "chosen": "", "rejected": "4"}, "'chosen' is empty"),
        ({"prompt": "", "chosen": "3", "rejected": "4"}, "'prompt' is empty"),
        ({"prompt": "x", "chosen": "4"}, "'rejected' is missing; there are: prompt, chosen"),
        ({"prompt": "x", "chosen": 4, "rejected": "5"}, r"'chosen' is not text \(but int\)"),
        ({"chosen": "4", "rejected": "5"}, "no marked turns"),
        ({"chosen": [USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, "'chosen' and 'rejected' differ before"),
        ({"chosen": [USER, GOOD], "rejected": [USER]}, "the last message of 'rejected' is not the assistant's"),
        ({"chosen": [USER, GOOD], "rejected": []}, "the last message of 'rejected' is not the assistant's"),
        ({"prompt": "y", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "'chosen' does not begin with the prompt"),
        ({"prompt": [GOOD], "chosen": "4", "rejected": "5"}, "no message of the user"),
        ({"prompt": [USER, GOOD], "chosen": "4", "rejected": "5"}, "two messages of the assistant in a row"),
        ({"prompt": [USER | {"role": "tool"}], "chosen": "4", "rejected": "5"}, r"unknown role \('tool'; known are"),
    ],
)
def test_what_is_no_pair_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    fine = {"prompt": "2+2", "chosen": "4", "rejected": "5"}
    with pytest.raises(UserError, match=f"a.jsonl:2: {message}"):
        pairs(write_rows(tmp_path / "a.jsonl", [fine, row, fine]))


def test_pairs_have_one_format_and_are_examples_where_these_are_asked_for(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"prompt": "2+2", "chosen": "4", "rejected": "5", "output": "four"}])
    with pytest.raises(UserError, match="have the format 'preference', not 'messages'"):
        pairs(path, format="messages")
    assert next(read_examples(path)).response == "4"
    path = write_rows(tmp_path / "a.jsonl", [{"instruction": "2+2", "output": "four", "chosen": "4", "rejected": "5"}])
    assert next(read_examples(path)).response == "four"
    assert next(read_examples(path, format="preference")).response == "4"


def test_generated_pairs(tmp_path: Path) -> None:
    made = [
        Preference((Message("user", str(n)),), "yes", "no", meta={"kind": ("even", "odd")[n % 2]}) for n in range(9)
    ]
    config = ExamplesConfig(kind="generated", generator="pairs", where={"kind": ["odd"]}, max_examples=3)
    found = preferences(config, tmp_path, {"pairs": lambda: made})
    assert [pair.prompt[0].content for pair in found] == ["1", "3", "5"]


@pytest.mark.skipif("LEVERET_DATA" not in os.environ, reason="LEVERET_DATA is not set")
def test_public_pairs() -> None:
    base = Path(os.environ["LEVERET_DATA"]) / "instruct"
    refused: list[tuple[str, str]] = []
    config = ExamplesConfig(paths=["rasbt_instruction-data-with-preference.json"])
    found = list(preferences(config, base, {}, lambda *told: refused.append(told)))
    assert (len(found), len(refused)) == (1_094, 6)
    assert {why for _, why in refused} == {"'chosen' and 'rejected' are the same"}
