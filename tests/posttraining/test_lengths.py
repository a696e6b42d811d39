"""Examples that are longer than a row: left out, cut in a stated way, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_packing import make_tokenizer

from leveret.data.examples import Example, Message, one_turn
from leveret.errors import UserError
from leveret.posttraining.lengths import LEAST_PROMPT, Fitter, TooLong, as_messages, told
from leveret.posttraining.packing import write_examples_as_shards
from leveret.tokenizer import Tokenizer
from leveret.tokenizer.template import render

SHORT = one_turn("list the files", "ls")
LONG_PROMPT = one_turn("count the words of this: " + "alpha beta gamma " * 20, "wc -w all.txt")
LONG_ANSWER = one_turn("say much", "echo " + "alpha beta gamma " * 20)
DIALOGUE = Example(
    (
        Message("system", "be brief"),
        Message("user", "where am i, of all the folders that there are?"),
        Message("assistant", "pwd; echo and nowhere else"),
        Message("user", "who is here with me on this machine?"),
        Message("assistant", "who"),
        Message("user", "the day?"),
        Message("assistant", "date"),
    )
)


@pytest.fixture(scope="module", params=["command", "chatml", "parchment"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return make_tokenizer(request.param)


def length(tokenizer: Tokenizer, example: Example) -> int:
    return len(render(tokenizer, as_messages(example)).ids)


def learnt(tokenizer: Tokenizer, ids: list[int], learn: list[bool]) -> str:
    return tokenizer.decode([i for i, wanted in zip(ids, learn, strict=True) if wanted], skip_special=False)


@pytest.mark.parametrize("policy", ["drop", "truncate", "refuse"])
def test_what_fits_stays_as_it_is(tokenizer: Tokenizer, policy: TooLong) -> None:
    rendered = render(tokenizer, as_messages(DIALOGUE))
    fit = Fitter(tokenizer, len(rendered.ids), policy)
    fitted = fit(DIALOGUE)
    assert fitted is not None
    assert (fitted.ids, fitted.learn) == (rendered.ids, rendered.learn)
    assert fitted.text_bytes == sum(len(message.content) for message in DIALOGUE.messages)
    assert (fit.too_long, fit.left_out, told(fit.facts(), fit.length)) == (0, 0, "")


def test_a_prompt_is_cut_at_its_end_and_the_answer_stays_whole(tokenizer: Tokenizer) -> None:
    whole = render(tokenizer, as_messages(LONG_PROMPT))
    answer = learnt(tokenizer, whole.ids, whole.learn)
    for room in range(len(whole.ids) - 1, len(whole.ids) - 40, -3):
        fitted = Fitter(tokenizer, room, "truncate")(LONG_PROMPT)
        assert fitted is not None
        assert room - 4 <= len(fitted.ids) <= room
        assert learnt(tokenizer, fitted.ids, fitted.learn) == answer
        assert "count the words of this: alpha" in tokenizer.decode(fitted.ids)


def test_the_oldest_turns_go_first_and_the_system_message_stays(tokenizer: Tokenizer) -> None:
    without_first = Example(DIALOGUE.messages[:1] + DIALOGUE.messages[3:])
    last_only = Example(DIALOGUE.messages[:1] + DIALOGUE.messages[5:])
    room = length(tokenizer, without_first)
    for limit, kept in ((room, without_first), (room + 1, without_first), (room - 1, last_only)):
        fitted = Fitter(tokenizer, limit, "truncate")(DIALOGUE)
        assert fitted is not None
        assert fitted.ids == render(tokenizer, as_messages(kept)).ids
        assert fitted.text_bytes == sum(len(message.content) for message in kept.messages)


def test_an_answer_that_leaves_no_room_is_left_out_and_counted(tokenizer: Tokenizer) -> None:
    bare = length(tokenizer, LONG_PROMPT) - len(tokenizer.encode(LONG_PROMPT.instruction))
    fit = Fitter(tokenizer, bare + LEAST_PROMPT - 4, "truncate")
    assert fit(LONG_PROMPT) is None
    assert fit(LONG_ANSWER) is None
    assert (fit.too_long, fit.truncated, fit.left_out) == (2, 0, 2)


def test_a_character_that_is_cut_through_is_left_out_whole(tokenizer: Tokenizer) -> None:
    example = one_turn("what is this, in a word or in two? " + "🐇" * 30, "hare")
    for room in range(length(tokenizer, example) - 12, length(tokenizer, example)):
        fitted = Fitter(tokenizer, room, "truncate")(example)
        assert fitted is not None
        assert "\ufffd" not in tokenizer.decode(fitted.ids)


def test_refusing_names_the_first(tokenizer: Tokenizer) -> None:
    fit = Fitter(tokenizer, 60, "refuse")
    assert fit(SHORT) is not None
    with pytest.raises(UserError, match=r"'count the words of this: .*' has \d+ tokens, more than sequence_length 60"):
        fit(LONG_PROMPT)


@pytest.mark.parametrize(
    ("policy", "counted"),
    [
        ("drop", {"too_long": 3, "truncated": 0, "left_out": 3}),
        ("truncate", {"too_long": 3, "truncated": 2, "left_out": 1}),
    ],
)
def test_the_manifest_says_what_happened(
    tmp_path: Path, tokenizer: Tokenizer, policy: TooLong, counted: dict[str, Any]
) -> None:
    examples = [SHORT, LONG_PROMPT, LONG_ANSWER, DIALOGUE]
    counts = write_examples_as_shards(examples, tokenizer, tmp_path / "shards", 80, 0.0, {}, policy)
    assert counts == json.loads((tmp_path / "shards" / "manifest.json").read_text())["examples"]
    assert counts.items() >= (counted | {"policy": policy}).items()
    assert counts["lengths"]["longest"] == max(length(tokenizer, example) for example in examples)
    assert counts["train"]["examples"] == 4 - counted["left_out"]
    cut = f"{counted['truncated']} cut, " if counted["truncated"] else ""
    assert told(counts, 80).startswith(f"examples longer than 80 tokens: {cut}{counted['left_out']} left out (lengths:")
