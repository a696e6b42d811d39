"""Dialogues: what fits of them, and their form on disk."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from leveret.errors import UserError
from leveret.inference.dialogue import Dialogue, fit


def counted(messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Messages whose content says how long they are."""
    return [int(message["content"]) for message in messages for _ in range(int(message["content"]))]


def said(system: int | None, *lengths: int) -> list[dict[str, str]]:
    roles = ["user", "assistant"] * len(lengths)
    turns = [{"role": role, "content": str(length)} for role, length in zip(roles, lengths, strict=False)]
    return [*([] if system is None else [{"role": "system", "content": str(system)}]), *turns]


@pytest.mark.parametrize(
    ("system", "turns", "left_out", "ids"),
    [
        (None, [5, 6, 7], 0, [5] * 5 + [6] * 6 + [7] * 7),
        (None, [20, 50, 9], 0, [20] * 20 + [50] * 50 + [9] * 9),
        (None, [21, 60, 9], 2, [9] * 9),  # 90 of 100 leave no room for the answer: a question goes with its answer
        (10, [30, 40, 9, 8, 7], 2, [10] * 10 + [9] * 9 + [8] * 8 + [7] * 7),  # the system's message stays
        (10, [30, 40, 50, 60, 7], 4, [10] * 10 + [7] * 7),
        (None, [5, 6, 95], 2, [95] * 95),  # the last question alone leaves less room, and is answered
    ],
)
def test_the_oldest_turns_go_where_the_context_is_full(
    system: int | None, turns: list[int], left_out: int, ids: list[int]
) -> None:
    fitted = fit(said(system, *turns), counted, context=100, answer=20)
    assert (fitted.left_out, fitted.ids) == (left_out, ids)


def test_room_is_kept_for_the_answer_up_to_a_quarter_of_the_context() -> None:
    messages = said(None, 20, 50, 10)
    assert fit(messages, counted, context=100, answer=20).left_out == 0
    assert fit(messages, counted, context=100, answer=21).left_out == 2
    assert fit(said(None, 20, 45, 10), counted, context=100, answer=10_000).left_out == 0


def test_a_question_longer_than_the_context_is_refused_with_both_numbers() -> None:
    with pytest.raises(UserError, match="101 tokens, and 99 fit"):
        fit(said(1, 5, 5, 100), counted, context=100, answer=20)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    dialogue = Dialogue("tiny", "Be brief.\u2028", {"temperature": 0.7, "stop": ["\n"]})
    dialogue.ask("日本 \x1b[31m?")
    dialogue.answer("")
    path = tmp_path / "said.json"
    dialogue.save(path)
    assert json.loads(path.read_text("utf-8")) == {
        "format_version": 1,
        "model": "tiny",
        "system": "Be brief.\u2028",
        "sampling": {"temperature": 0.7, "stop": ["\n"]},
        "messages": [{"role": "user", "content": "日本 \x1b[31m?"}, {"role": "assistant", "content": ""}],
    }
    assert Dialogue.load(path) == dialogue
    dialogue.ask("again")
    dialogue.save(path)
    assert len(Dialogue.load(path).turns) == 3
    assert [each.name for each in tmp_path.iterdir()] == ["said.json"]


def test_saving_spares_files_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "thesis.tex"
    path.write_text("years of work")
    with pytest.raises(UserError, match="is there and is no dialogue"):
        Dialogue().save(path)
    assert path.read_text() == "years of work"
    with pytest.raises(UserError, match="cannot be written"):
        Dialogue().save(tmp_path / "nowhere" / "said.json")


def test_the_system_may_be_the_first_message_of_a_file(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello", "at": 5}]
    (tmp_path / "said.json").write_text(json.dumps({"format_version": 1, "messages": messages, "title": "x"}))
    assert Dialogue.load(tmp_path / "said.json").messages == [messages[0], {"role": "user", "content": "Hello"}]


def test_of_what_the_chat_page_exports_the_newest_is_taken(tmp_path: Path) -> None:
    conversations = [
        {"id": "1", "model": "a", "updated": "2026-11-20", "turns": [{"role": "user", "content": "old"}]},
        {"id": "2", "model": "b", "updated": "2026-11-21", "turns": [{"role": "user", "content": "new", "tokens": []}]},
    ]
    export = {"format": "leveret-conversations", "format_version": 1, "conversations": conversations}
    (tmp_path / "page.json").write_text(json.dumps(export))
    found = Dialogue.load(tmp_path / "page.json")
    assert (found.model, found.turns) == ("b", [{"role": "user", "content": "new"}])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "it is not JSON"),
        (b"\xff\xfe", "it is not JSON"),
        (b"[]", "is no dialogue: the whole"),
        (b"[" * 100_000, "more than 64 levels"),
        ({"format_version": 1, "conversations": []}, "messages: Input should be a valid list"),
        ({"messages": []}, "format_version: Field required"),
        ({"format_version": 2, "messages": []}, "has format_version 2, and this Leveret reads 1"),
        ({"format_version": 1, "messages": [{"role": "tool", "content": ""}]}, "messages.0.role"),
        ({"format_version": 1, "messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        (
            {"format_version": 1, "messages": [{"role": r, "content": "x"} for r in ("user", "system")]},
            "only its first message may be the system's",
        ),
    ],
)
def test_what_is_no_dialogue_is_told_in_one_line(content: Any, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "said.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(UserError) as told:
        Dialogue.load(path)
    assert expected in str(told.value)
    assert "\n" not in str(told.value)


def test_a_question_is_taken_back_with_its_answer() -> None:
    dialogue = Dialogue(system="Be brief.")
    assert dialogue.back() is None
    for text in ("one", "two"):
        dialogue.ask(text)
        dialogue.answer(text.upper())
    assert dialogue.back() == "two"
    assert [message["content"] for message in dialogue.messages] == ["Be brief.", "one", "ONE"]
