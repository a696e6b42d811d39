"""What is shown of the examples before training: true to the shards, and harmless to a terminal."""

import io
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from leveret.data.examples import Example, Message, Preference, one_turn
from leveret.data.shards import TokenStore
from leveret.posttraining.lengths import as_messages
from leveret.posttraining.look import Look, Shown, Token, look, render, spans, too_long, visible
from leveret.posttraining.look_page import render_html
from leveret.posttraining.packing import write_examples_as_shards
from leveret.posttraining.pairs import write_pairs_as_shards
from leveret.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from leveret.tokenizer.template import render as render_chat

SPECIALS = ["<pad>", "<eos>", "<instruction>", "<command>"]
NASTY = "red \x1b[31m bell \x07 \u202eturned \u2028 <eos> 👩‍👩‍👧 tab\there <script>alert(1)</script>"
LENGTH = 220
EXAMPLES = [
    *(one_turn(f"make file {number} of the {number} files", f"touch {number}") for number in range(20)),
    one_turn(f"say {NASTY}", f"echo '{NASTY}'"),
    one_turn("this one is " + "much " * 120 + "too long", "true", "long.jsonl"),
    Example(tuple(Message(role, text) for role, text in [("user", "one"), ("assistant", "1")] * 3)),
]


def make_tokenizer(kind: str = "bpe", **changes: Any) -> Tokenizer:
    fields = {"kind": kind, "vocab_size": 400, "special_tokens": SPECIALS, "eos_token": "<eos>", "pad_token": "<pad>",
              "template": "command"} | changes  # fmt: skip
    texts = [f"make file {number} of the files <instruction> <command>" for number in range(50)]
    return train_tokenizer(TokenizerConfig.model_validate(fields), texts)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


def of_examples(folder: Path, tokenizer: Tokenizer, count: int = 5, policy: Any = "drop") -> Look:
    facts = {"tokenizer": tokenizer.content_hash}
    write_examples_as_shards(EXAMPLES, tokenizer, folder / "shards", LENGTH, 0.1, facts, policy)
    return look(TokenStore(folder / "shards"), tokenizer, "finetune", LENGTH, LENGTH, 1, count)


def text_of(shown: Shown, *, learnt: bool | None = None) -> str:
    return b"".join(t.data for t in shown.tokens if learnt is None or t.learnt == learnt).decode()


def test_what_is_shown_is_what_is_trained_on(tmp_path: Path, tokenizer: Tokenizer) -> None:
    found = of_examples(tmp_path, tokenizer, count=99)
    chats = [render_chat(tokenizer, as_messages(example)) for example in EXAMPLES]
    of_chats = {
        tokenizer.decode(chat.ids, skip_special=False): tokenizer.decode(
            [index for index, learn in zip(chat.ids, chat.learn, strict=True) if learn], skip_special=False
        )
        for chat in chats
    }
    assert len(found.examples) == found.made["train"]["examples"] >= 18  # all of them, once each
    assert {text_of(shown): text_of(shown, learnt=True) for shown in found.examples}.items() <= of_chats.items()
    lengths = sorted(len(shown.tokens) for shown in found.examples)
    assert found.lengths.tolist() == lengths
    assert found.learnt == sum(token.learnt for shown in found.examples for token in shown.tokens)
    assert found.fill.sum() == pytest.approx(sum(lengths) / (LENGTH + 1))
    row = found.row
    assert sum(len(document.tokens) for document in row.documents) + row.empty == LENGTH + 1
    assert all(text_of(document).startswith("<instruction>\n") for document in row.documents)
    assert {text_of(document) for document in row.documents} <= set(of_chats)
    fates = dict(found.fates())
    assert fates[f"left out, longer than {LENGTH} tokens"] == 1
    assert sum(fates.values()) == len(EXAMPLES)


def test_few_examples_are_spread_and_the_same_every_time(tmp_path: Path, tokenizer: Tokenizer) -> None:
    found = of_examples(tmp_path, tokenizer, count=3)
    places = [int(shown.title.split()[1]) for shown in found.examples]
    total = found.made["train"]["examples"]
    assert places == sorted(set(places))
    assert all(abs(b - a - total / 3) <= 1 for a, b in pairwise(places))
    again = of_examples(tmp_path, tokenizer, count=3)
    assert again.examples == found.examples


def test_pairs_are_shown_with_both_answers(tmp_path: Path, tokenizer: Tokenizer) -> None:
    turns = (Message("user", "one"), Message("assistant", "1"), Message("user", "and the files?"))
    pairs = [Preference(turns, f"ls {number}", "rm -r /") for number in range(4)]
    facts = {"tokenizer": tokenizer.content_hash}
    write_pairs_as_shards(pairs, tokenizer, tmp_path / "shards", LENGTH, 0.0, facts)
    found = look(TokenStore(tmp_path / "shards"), tokenizer, "prefer", LENGTH, 2 * LENGTH, 2, 1)
    chosen, rejected = found.examples
    assert (chosen.title, rejected.title) == ("example 3 of 4, chosen", "example 3 of 4, rejected")
    assert text_of(chosen, learnt=True).startswith("ls ")
    assert text_of(rejected, learnt=True) == "rm -r /<eos>"
    assert text_of(chosen, learnt=False) == text_of(rejected, learnt=False)
    assert found.room == 2 * LENGTH + 1


@pytest.mark.parametrize(("policy", "fate"), [("drop", "left out"), ("truncate", "cut from ")])
def test_one_that_is_too_long_is_shown(tokenizer: Tokenizer, policy: Any, fate: str) -> None:
    shown = too_long(EXAMPLES, tokenizer, LENGTH, policy)
    assert shown is not None
    assert shown.title.startswith(f"long.jsonl, {fate}")
    assert text_of(shown, learnt=True) == "true<eos>"
    assert (len(shown.tokens) <= LENGTH) == (policy == "truncate")
    assert too_long(EXAMPLES[:20], tokenizer, LENGTH, policy) is None


def test_unknown_tokens_are_counted(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    letters = [*SPECIALS, "<unk>", *"\nabcdefghijklmnopqrstuvwxyz "]
    backend = Backend(models.BPE({text: number for number, text in enumerate(letters)}, [], unk_token="<unk>"))
    backend.add_special_tokens(letters[:5])
    backend.decoder = decoders.Fuse()
    roles = make_tokenizer().roles.__class__(eos_token="<eos>", unk_token="<unk>")
    template = "{% for m in messages %}{{ m.content }}{% generation %}{{ eos_token }}{% endgeneration %}{% endfor %}"
    tokenizer = Tokenizer(backend.to_str(), roles, template)
    write_examples_as_shards([one_turn("aé", "bß7")], tokenizer, tmp_path / "shards", 20, 0.0, {"tokenizer": "x"})
    found = look(TokenStore(tmp_path / "shards"), tokenizer, "finetune", 20, 20, 1, 1)
    assert found.unknown == 3
    assert "Unknown: 3 tokens are <unk>, text that this tokenizer cannot write" in list(found.facts())


# --- what a terminal and a page get ----------------------------------------------------------------------------


def printed(found: Look, extra: Shown | None = None, *, width: int = 80, borders: bool = False, **options: Any) -> str:
    class Terminal(io.StringIO):
        encoding = options.pop("encoding", "utf-8")

    file = Terminal()
    render(found, extra, Console(file=file, width=width, _environ={}, **options), borders)
    return file.getvalue()


def test_learnt_tokens_are_marked_where_there_are_no_colours(tmp_path: Path, tokenizer: Tokenizer) -> None:
    found = of_examples(tmp_path, tokenizer)
    for options in ({}, {"no_color": True, "force_terminal": True}):
        shown = re.sub("\x1b[^m]*m", "", printed(found, **options))
        assert "⟦touch " in shown
        assert "<eos>⟧" in shown
        assert "⟦<command>" not in shown
    coloured = printed(found, force_terminal=True, color_system="standard")
    assert "⟦" not in coloured
    assert "\x1b[1;32mtouch 1" in coloured.replace("\x1b[0m\x1b[1;32m", "")
    assert "\x1b[36m<command>" in coloured


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_every_terminal_can_show_it(tmp_path: Path, tokenizer: Tokenizer, width: int, encoding: str) -> None:
    found = of_examples(tmp_path, tokenizer, count=99)
    shown = printed(found, too_long(EXAMPLES, tokenizer, LENGTH, "drop"), width=width, encoding=encoding, borders=True)
    shown.encode(encoding)
    assert not {c for c in shown if c != "\n" and ord(c) < 32} | {"\u202e", "\u2028", "\x7f"} & set(shown)
    lines = shown.splitlines()
    assert max(map(len, lines)) <= width
    assert ("[[" in shown) == (encoding == "ascii")
    assert f"of {LENGTH + 1} tokens" in " ".join(shown.split())


def test_borders_of_tokens_are_shown_when_asked_for(tmp_path: Path, tokenizer: Tokenizer) -> None:
    found = of_examples(tmp_path, tokenizer, count=1)
    document = found.examples[0]
    without, shown = printed(found, width=400), printed(found, width=400, borders=True)
    assert "│" not in without
    everything = [document, *found.row.documents]
    assert shown.count("│") == sum(len(each.tokens) for each in everything) + 1  # the legend's


def test_nothing_on_the_page_is_a_command(tmp_path: Path, tokenizer: Tokenizer) -> None:
    page = render_html(of_examples(tmp_path, tokenizer, count=99), too_long(EXAMPLES, tokenizer, LENGTH, "drop"))
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert not {"\x1b", "\x07", "\u202e", "\u2028"} & set(page)
    assert '<span class="learnt">' in page
    assert "prefers-color-scheme: dark" in page


def test_what_would_not_be_seen_is_spelt() -> None:
    assert visible("a\x1b[0m\n\tb\u202e\ud800 é 👩‍👩‍👧") == "a\\x1b[0m↵\n\\tb\\u202e\\ud800 é 👩‍👩‍👧"


def test_characters_that_tokens_share_stay_whole() -> None:
    pieces = [Token(bytes([byte]), False, False) for byte in "aé".encode()]
    assert [(text, count) for text, _, count in spans(pieces)] == [("a", 1), ("é", 2)]
    halves = [Token(b"\xc3", False, False), Token(b"\xa9", True, False)]
    assert [text for text, _, _ in spans(halves)] == ["\\xc3", "\\xa9"]
