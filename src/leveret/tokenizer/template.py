"""Chat templates: messages to ids, with what the assistant said marked for learning.

messages -> text of special tokens inside them hidden -> Jinja -> cut at the template's own special tokens
         -> each run of text encoded whole, as plain text -> ids, and a flag per id

A run is cut where the assistant begins or stops speaking, if tokens would otherwise reach across that border: so what
generation starts from is what training had in front of the answer, and no token is half learnt. Here alone ids differ
from those of transformers, which cuts the prompt in one way and the same text with its answer in another. Of the
shipped templates that is llama3 over GPT-2's pattern: "\\n\\n" at the end of a prompt is one token, and stays one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import cycle, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leveret.errors import UserError
from leveret.tokenizer.rendering import BEGIN, END, TemplateFailure, render_apart, render_here

if TYPE_CHECKING:
    from leveret.tokenizer.tokenizer import After, Tokenizer

TEMPLATES = Path(__file__).parent / "templates"
# Stands around the number of what is hidden; a noncharacter too, and hidden itself where a text does hold it.
FENCE = "\ufdd0"


@dataclass(frozen=True)
class Rendered:
    """A conversation as the model reads it."""

    ids: list[int]
    """Token ids."""
    learn: list[bool]
    """For each id, whether the assistant wrote it (its content and end token)."""


def template_names() -> list[str]:
    """The names of the shipped templates."""
    return sorted(path.stem for path in TEMPLATES.glob("*.jinja"))


def template_text(name: str | None) -> str | None:
    """The Jinja text of a shipped template; None for None. Raises UserError for an unknown name."""
    if name is None:
        return None
    if name not in template_names():
        raise UserError(f"no chat template '{name}'; choose one of {', '.join(template_names())}")
    return (TEMPLATES / f"{name}.jinja").read_text("utf-8").removesuffix("\n")


def render(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False
) -> Rendered:
    """Ids of `messages` ({"role", "content"} each) under the tokenizer's chat template, and which to learn.

    Equal to transformers' apply_chat_template, but that the text of special tokens inside messages stays text, and that
    no token reaches across a border of the assistant's.
    Raises UserError when there is no template or it refuses the messages.
    """
    if tokenizer.chat_template is None:
        raise UserError("the tokenizer has no chat template; set tokenizer.template (command, chatml, ...)")
    marks = re.compile("|".join(re.escape(t) for t in _longest_first([*tokenizer.special_tokens, BEGIN, END])))
    hider = _Hider(marks)
    roles = {role: token for role, token in asdict(tokenizer.roles).items() if token is not None}
    text = _render_text(
        tokenizer.chat_template,
        messages=[hider.hide(dict(message)) for message in messages],
        add_generation_prompt=add_generation_prompt,
        **roles,
    )
    return _encode_rendered(tokenizer, text, marks, hider)


def render_text(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False
) -> str:
    """What the chat template writes, special tokens spelt out.

    Raises UserError when there is no template or it refuses the messages.
    """
    if tokenizer.chat_template is None:
        raise UserError("the tokenizer has no chat template; set tokenizer.template (command, chatml, ...)")
    roles = {role: token for role, token in asdict(tokenizer.roles).items() if token is not None}
    said = [dict(message) for message in messages]
    text = _render_text(tokenizer.chat_template, messages=said, add_generation_prompt=add_generation_prompt, **roles)
    return text.replace(BEGIN, "").replace(END, "")


def sample_text(template: str, system: bool = True) -> str:
    """The text of a short conversation under `template`, for comparing tokenizers.

    Raises UserError when the template refuses it.
    """
    roles = {"bos_token": "<s>", "eos_token": "</s>"}
    said = ["Be brief.", " liste les fichiers ⚠️ plus vieux que 30 jours ", "find . -mtime +30", "ok", ""]
    messages = [
        {"role": role, "content": content}
        for role, content in zip(["system", "user", "assistant", "user", "assistant"], said, strict=True)
    ]
    said_to = messages if system else messages[1:]
    text = _render_text(template, messages=said_to, add_generation_prompt=True, **roles)
    return text.replace(BEGIN, "").replace(END, "")


class _Hider:
    """Puts numbered place-holders for the special text in messages, and takes them out again."""

    def __init__(self, marks: re.Pattern[str]) -> None:
        self._marks = re.compile(f"{marks.pattern}|{FENCE}")
        self._hidden: list[str] = []

    def hide(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._marks.sub(self._place_holder, value)
        if isinstance(value, Mapping):
            return {key: self.hide(item) for key, item in value.items()}
        return [self.hide(item) for item in value] if isinstance(value, list) else value

    def _place_holder(self, match: re.Match[str]) -> str:
        self._hidden.append(match[0])
        return f"{FENCE}{len(self._hidden) - 1}{FENCE}"

    def show(self, text: str) -> str:
        return re.sub(f"{FENCE}([0-9]+){FENCE}", lambda m: self._hidden[int(m[1])], text)


def _encode_rendered(tokenizer: Tokenizer, text: str, marks: re.Pattern[str], hider: _Hider) -> Rendered:
    ids: list[int] = []
    learn: list[bool] = []
    inside = False
    run = _Run(None, inside)

    def end_run(token: str | None) -> None:
        nonlocal run
        for part, said in zip(run.parts(tokenizer, token), cycle([run.learnt, not run.learnt])):
            ids.extend(part)
            learn.extend([said] * len(part))
        run = _Run(token, inside)

    position = 0
    for match in marks.finditer(text):
        run.text += hider.show(text[position : match.start()])
        position = match.end()
        if match[0] not in (BEGIN, END):
            end_run(match[0])
            ids.append(tokenizer.special_tokens[match[0]])
            learn.append(inside)
        elif inside != (match[0] == BEGIN):
            inside = not inside
            run.edges.append(len(run.text))
    run.text += hider.show(text[position:])
    end_run(None)
    return Rendered(ids, learn)


@dataclass
class _Run:
    """Text between two special tokens."""

    after: str | None
    """The special token in front of it."""
    learnt: bool
    """Whether it begins with what the assistant says."""
    text: str = ""
    edges: list[int] = field(default_factory=list)
    """Where in the text the assistant begins or stops, in turn."""

    def parts(self, tokenizer: Tokenizer, before: str | None) -> list[list[int]]:
        """The ids from edge to edge; `before`: the special token that follows. Some eat the space beside them."""
        start = len(self.text) - len(self.text.lstrip()) if self.after in tokenizer.eat_right else 0
        text = self.text[start:].rstrip() if before in tokenizer.eat_left else self.text[start:]
        edges = [min(max(edge - start, 0), len(text)) for edge in self.edges]
        return _encode_parts(tokenizer, text, edges, "nothing" if self.after is None else "token")


def _encode_parts(tokenizer: Tokenizer, text: str, edges: list[int], after: After) -> list[list[int]]:
    """The ids from edge to edge: those of the whole text, if they begin with those of the text up to the edge; else the
    text is cut there."""
    ids = tokenizer.encode(text, after=after)
    bounds = [0]
    for number, edge in enumerate(edges):
        head = tokenizer.encode(text[:edge], after=after) if edge < len(text) else ids
        if ids[: len(head)] != head:
            rest = [later - edge for later in edges[number + 1 :]]
            return [
                *_encode_parts(tokenizer, text[:edge], edges[:number], after),
                *_encode_parts(tokenizer, text[edge:], rest, "text"),
            ]
        bounds.append(len(head))
    return [ids[a:b] for a, b in pairwise([*bounds, len(ids)])]


def _longest_first(tokens: list[str]) -> list[str]:
    return sorted(tokens, key=lambda token: (-len(token), token))


def _render_text(template: str, **values: Any) -> str:
    render_it = render_here if template in _shipped() else render_apart
    try:
        return render_it(template, values)
    except TemplateFailure as error:
        raise UserError(f"the chat template {error}") from None


@lru_cache(maxsize=1)
def _shipped() -> frozenset[str | None]:
    """The templates that we wrote."""
    return frozenset(map(template_text, template_names()))
