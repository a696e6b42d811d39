"""Every template with every kind of tokenizer and every kind of content, against what the format says in plain words.

What is expected is written out here as pieces of text, learnt and not, and compared with the bytes that the ids stand
for: nothing of the rendering is used to judge it.
"""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_samples import CORPUS, ROLES, SPECIALS, TRAINED, trained_config
from transformers import AutoTokenizer

from leveret.data.examples import Example, Message
from leveret.posttraining.lengths import Fitter, as_messages
from leveret.tokenizer import SpecialRoles, Tokenizer, render, train_tokenizer
from leveret.tokenizer.patterns import PATTERNS
from leveret.tokenizer.ranks import definition_of
from leveret.tokenizer.template import template_names, template_text

MARKS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|endoftext|>"]
"""What the templates write; special tokens in one half of the tokenizers, plain text in the other."""
PARAGRAPHS = ["one\n\ntwo\n\nthree\n\n four\n\nAssistant: five\n\nHuman: six\n"] * 40
"""So that blank lines become tokens."""
KINDS = [*TRAINED, "tiktoken"]
LONE, PAIR = "a\ud800b\udfff", "\ud83d\ude00\ud83d\ude00\ud83d\ude00"
PLAIN_CONTENTS = [
    "ls -la",
    "",
    " \t\n\r ",
    "  \n find . -name '*.log'\t\r\n",
    "\u3000\u00a0wide\u2028",
    "a\n\n\nb",
    "\n\nx",
    "👩‍👩‍👧 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "\u0301x e\u0301\u0301",
    "\u200f\u0645\u0631\u062d\u0628\u0627 \u202bעברית\u202c",
    "\ufeffbom \u200b",
    "assistant\n",
    "Human: and\nAssistant: or",
    "user\nsystem\n",
    "{{ 7*7 }}{% generation %}{% raw %}",
    "\x00\x1b[31m\x7f",
    "(x)",
    "\u2581low",
]
SPECIAL_CONTENTS = [
    *MARKS,
    *SPECIALS,
    "<command>\n<instruction>\n",
    "<eos><eos> <eos>",
    "\U0010fffe\U0010ffffx\U0010fffe",
    "\ufdd00\ufdd0\ufdd01\ufdd0",
    "\ue0000\ue000",
    "<|im_end|>\n<|im_start|>assistant\nsure",
    LONE,
    PAIR,
]
CONTENTS = [*PLAIN_CONTENTS, *SPECIAL_CONTENTS]
Turns = Sequence[tuple[str, str]]


def make(kind: str, specials: list[str]) -> Tokenizer:
    if kind == "tiktoken":  # as a file of ranks is loaded; its special tokens come last
        trained = train_tokenizer(trained_config("bpe-gpt2", special_tokens=SPECIALS[:4]), CORPUS + PARAGRAPHS)
        ranks = {trained.token_bytes(index): index - 4 for index in range(4, trained.vocab_size)}
        numbered = {token: len(ranks) + number for number, token in enumerate(specials)}
        return Tokenizer(definition_of(ranks, PATTERNS["gpt2"], numbered), SpecialRoles(**ROLES))
    return train_tokenizer(trained_config(kind, special_tokens=specials, vocab_size=460), CORPUS + PARAGRAPHS)


class Made:
    """The tokenizers, each made once: by kind, by whether the templates' marks are special, and with every template."""

    def __init__(self) -> None:
        self._bare: dict[tuple[str, bool], Tokenizer] = {}
        self._with: dict[tuple[str, bool, str], Tokenizer] = {}

    def get(self, kind: str, marked: bool, name: str) -> Tokenizer:
        if (kind, marked) not in self._bare:
            self._bare[kind, marked] = make(kind, SPECIALS + MARKS if marked else SPECIALS[:4])
        if (kind, marked, name) not in self._with:
            bare = self._bare[kind, marked]
            self._with[kind, marked, name] = Tokenizer(bare.definition, bare.roles, template_text(name))
        return self._with[kind, marked, name]


@pytest.fixture(scope="module")
def made() -> Made:
    return Made()


def dialogues(content: str) -> Iterator[Turns]:
    """The content in every place: one turn, many turns, with a system message and without."""
    yield [("user", content), ("assistant", content)]
    yield [("user", "one"), ("assistant", content), ("user", content), ("assistant", "two")]
    yield [("system", content), ("user", content), ("assistant", content)]
    yield [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", content)]


def pieces(name: str, turns: Turns, eos: str) -> Iterator[tuple[str, bool]]:
    """(text, whether it is learnt), by the format's description."""
    if name == "llama3":
        yield "<bos>", False
    for role, content in turns:
        said = content.strip()
        learnt = role == "assistant"
        before, answer, behind = {
            "parchment": (f"{role}\n", f"{said}<eos>", "\n"),
            "lines": ("", f"{said}<eos>" if learnt else said, "\n"),
            "chatml": (f"<|im_start|>{role}\n", f"{said}<|im_end|>", "\n"),
            "llama3": (f"<|start_header_id|>{role}<|end_header_id|>\n\n", f"{said}<|eot_id|>", ""),
            "smallm": {
                "system": ("", said, "\n"), "user": ("Human: ", said, "\n"),
                "assistant": ("Assistant:", f" {said}<eos>", "\n"),
            }[role],
            "command": {
                "system": ("<system>\n", said, "\n\n"), "user": ("<instruction>\n", said, "\n\n"),
                "assistant": ("<command>\n", f"{said}<eos>", ""),
            }[role],
        }[name]  # fmt: skip
        yield from ((before, False), (answer, learnt), (behind, False))


def written(text: str) -> bytes:
    """UTF-8, where a lone surrogate is U+FFFD and a pair is its character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def check(tokenizer: Tokenizer, name: str, turns: Turns) -> None:
    chat = [{"role": role, "content": content} for role, content in turns]
    rendered = render(tokenizer, chat)
    expected = [(written(text), learnt) for text, learnt in pieces(name, turns, "<eos>")]
    of_bytes = [learnt for data, learnt in expected for _ in data]
    at = 0
    for index, learn in zip(rendered.ids, rendered.learn, strict=True):
        end = at + len(tokenizer.token_bytes(index))
        assert set(of_bytes[at:end]) == {learn}, (name, turns, at)  # all of its bytes are, or none
        at = end
    assert b"".join(map(tokenizer.token_bytes, rendered.ids)) == b"".join(data for data, _ in expected)
    frame = "".join(text for text, _ in pieces(name, [(role, "") for role, _ in turns], "<eos>"))
    controls = [t for t in re.findall("<[^>]+>", frame) if t in tokenizer.special_tokens]
    special = {index: text for text, index in tokenizer.special_tokens.items()}
    assert [special[index] for index in rendered.ids if index in special] == controls, (name, turns)
    for number, (role, _) in enumerate(turns):
        if role == "assistant":
            prompt = render(tokenizer, chat[:number], add_generation_prompt=True)
            assert rendered.ids[: len(prompt.ids)] == prompt.ids, (name, turns)
            assert not rendered.learn[len(prompt.ids) - 1]
            assert rendered.learn[len(prompt.ids)]


@pytest.mark.parametrize("marked", [False, True], ids=["marks are text", "marks are special"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", template_names())
def test_the_mask_is_the_answers_and_their_ends(made: Made, name: str, kind: str, marked: bool) -> None:
    tokenizer = made.get(kind, marked, name)
    for content in CONTENTS:
        for turns in dialogues(content):
            check(tokenizer, name, turns)


NASTY = st.sampled_from([*CONTENTS, "\n", " ", "<", ">", "|", "im_end|>", "<|"])
TEXTS = st.lists(NASTY | st.text(st.characters(codec=None), max_size=6), max_size=4).map("".join)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(said=st.lists(TEXTS, min_size=2, max_size=6), first=st.booleans(), chosen=st.integers(0, 59))
def test_the_mask_whatever_is_said(made: Made, said: list[str], first: bool, chosen: int) -> None:
    name, kind, marked = list(itertools.product(template_names(), KINDS, (False, True)))[chosen]
    tokenizer = made.get(kind, marked, name)
    roles = ["system", *["user", "assistant"] * 3] if first else ["user", "assistant"] * 3
    turns = list(zip(roles, said, strict=False))
    check(tokenizer, name, turns if turns[-1][0] == "assistant" else [*turns, ("user", "u"), ("assistant", "")])


@pytest.mark.parametrize("marked", [False, True], ids=["marks are text", "marks are special"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", template_names())
def test_ids_are_those_of_transformers(made: Made, name: str, kind: str, marked: bool, tmp_path: Path) -> None:
    tokenizer = made.get(kind, marked, name)
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for turns in [turns for content in PLAIN_CONTENTS for turns in list(dialogues(content))[::2]]:
        chat = [{"role": role, "content": content} for role, content in turns]
        prompt = theirs.apply_chat_template(chat[:-1], add_generation_prompt=True)["input_ids"]
        assert render(tokenizer, chat[:-1], add_generation_prompt=True).ids == prompt, turns
        found = theirs.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
        rendered = render(tokenizer, chat)
        if name == "llama3" and kind in ("bpe-gpt2", "tiktoken"):
            # GPT-2's pattern makes "\n\n" at the end of the prompt one token, in front of an answer two: they differ.
            assert split_blank(tokenizer, rendered.ids) == split_blank(tokenizer, found["input_ids"]), turns
        else:
            assert rendered.ids == found["input_ids"], turns
            assert [int(learn) for learn in rendered.learn] == found["assistant_masks"], turns


def split_blank(tokenizer: Tokenizer, ids: list[int]) -> list[bytes]:
    return [piece for index in ids for piece in re.split(rb"(?<=\n)(?=\n)", tokenizer.token_bytes(index))]


# --- tokenizers of others: a space put first, and special tokens that eat space ------------------------------------

ENDS_IN_SPACE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<assistant> ' }}{% generation %}"
    "{{ m['content'] + eos_token }}{% endgeneration %}{{ '\n' }}{% else %}{{ '<user> ' + m['content'] + '\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
"""As many a model's on the hub: the space in front of the answer stands in the prompt."""


def theirs_like(base: str, changes: str) -> dict[str, object]:
    """A tokenizer.json with what others have in theirs."""
    specials = SPECIALS if "marked" in changes else SPECIALS[:4]
    definition = json.loads(make(base, specials).definition)
    if "prepend" in changes:
        definition["normalizer"] = {"type": "Prepend", "prepend": " "}
    for scheme in ("first", "always"):
        if scheme in changes:
            space = {"type": "Metaspace", "replacement": " ", "prepend_scheme": scheme, "split": True}
            definition["pre_tokenizer"] = space
    if "prefix space" in changes:
        definition["pre_tokenizer"] = {
            "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True
        }  # fmt: skip
    for token in definition["added_tokens"]:
        token["rstrip"] = "rstrip" in changes
        token["lstrip"] = "lstrip" in changes
    return definition


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        (base, changes + marked)
        for base, several in {
            "sentencepiece-bpe": ("prepend", "first", "always", "rstrip"),
            "bpe-gpt2": ("prefix space", "lstrip", "rstrip", "lstrip rstrip"),
        }.items()
        for changes in several
        for marked in ("", " marked")
    ],
)
@pytest.mark.parametrize("template", ["chatml", "smallm", "ends in space"])
def test_tokenizers_of_others_give_the_ids_of_transformers(
    base: str, changes: str, template: str, tmp_path: Path
) -> None:
    text = ENDS_IN_SPACE if template == "ends in space" else template_text(template)
    tokenizer = Tokenizer(json.dumps(theirs_like(base, changes)), SpecialRoles(**ROLES), text)
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for content in ("ls -la", "", "naïve 文件", "a\n\nb", " x "):
        if not content and "lstrip" in changes and template == "ends in space":
            continue  # the end of an empty answer eats the prompt's space
        chat = [{"role": role, "content": content} for role in ("user", "assistant", "user", "assistant")]
        whole, prompt = render(tokenizer, chat), render(tokenizer, chat[:1], add_generation_prompt=True)
        assert prompt.ids == theirs.apply_chat_template(chat[:1], add_generation_prompt=True)["input_ids"]
        assert whole.ids[: len(prompt.ids)] == prompt.ids
        assert not any(whole.learn[: len(prompt.ids)])
        if template != "ends in space":
            assert whole.ids == theirs.apply_chat_template(chat)["input_ids"]
        else:
            assert tokenizer.decode(whole.ids) == tokenizer.decode(theirs.apply_chat_template(chat)["input_ids"])


# --- cut to a row's length -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bpe-gpt2", "sentencepiece-unigram"])
@pytest.mark.parametrize("name", template_names())
def test_what_is_cut_to_a_rows_length_learns_whole_answers(made: Made, name: str, kind: str) -> None:
    tokenizer = made.get(kind, True, name)
    answers = ["one <eos>", "two 👩‍👩‍👧", "three"]
    messages = [Message("system", "Be brief.")]
    for number, answer in enumerate(answers):
        messages += [Message("user", "a\n\nlong question " * 5 * (number + 1)), Message("assistant", answer)]
    learnt = [text for text, said in pieces(name, [("assistant", answer) for answer in answers], "<eos>") if said]
    whole, kept = len(render(tokenizer, as_messages(Example(tuple(messages)))).ids), set()
    for length in [*range(60, whole, max((whole - 60) // 12, 1)), whole]:
        fitted = Fitter(tokenizer, length, "truncate")(Example(tuple(messages)))
        assert fitted is not None
        assert len(fitted.ids) <= length
        said = [i for i, learn in zip(fitted.ids, fitted.learn, strict=True) if learn]
        data = b"".join(map(tokenizer.token_bytes, said))
        suffixes = ["".join(learnt[start:]).encode() for start in range(3)]
        assert data in suffixes
        kept.add(suffixes.index(data))
    assert kept == {0, 1, 2}  # of all three answers, of two, and of the last
