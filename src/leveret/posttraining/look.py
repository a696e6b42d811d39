"""Looking before training: what a stage's shards hold, as the model will see it.

TokenStore --look--> Look --render--> a terminal
                         \\-> look_page.py: a page
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leveret.data.examples import Example
from leveret.data.inspect import share
from leveret.data.look import bar, length_table
from leveret.data.shards import TokenSplit, TokenStore
from leveret.data.tables import Table
from leveret.data.windows import IntArray
from leveret.display import spelt
from leveret.posttraining.lengths import Fitter, TooLong, as_messages
from leveret.tokenizer.template import render as render_chat
from leveret.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

HEAD, TAIL = 500, 100
"""Tokens that a terminal shows of a document's beginning and end; the middle is left out."""
TRIED = 200
"""Of the longest examples, how many are looked at for one that does not fit."""
ANSWERS = ("chosen", "rejected")


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a document: the bytes that it stands for, whether it is learnt, whether it is a special one."""

    data: bytes
    learnt: bool
    special: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """A document that is shown: what it is called, and its tokens."""

    title: str
    tokens: list[Token]

    @property
    def counts(self) -> str:
        return f"{len(self.tokens):,} tokens, {sum(token.learnt for token in self.tokens):,} learnt"


@dataclass(frozen=True, slots=True)
class Row:
    """A packed row that is shown."""

    number: int
    documents: list[Shown]
    empty: int
    """Places that are filled up; they teach nothing."""


@dataclass(frozen=True)
class Look:
    """What a stage will be trained on."""

    stage: str
    kind: str
    """What an example is called: "examples", or "pairs" where it has two answers."""
    made: dict[str, Any]
    """What packing says of the examples (`manifest.examples`)."""
    most: int
    """Tokens that a document may have."""
    room: int
    """Places of a row."""
    lengths: IntArray
    """Tokens of each document to train on, [D], rising."""
    fill: NDArray[np.float64]
    """Share of each row's places that is filled, [R]."""
    learnt: int
    unknown: int
    unknown_token: str | None
    examples: list[Shown]
    row: Row

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    def fates(self) -> Iterator[tuple[str, int]]:
        """What becomes of the examples that were read, and of how many; what befalls none is left out."""
        made = self.made
        yield "to train on", made["train"]["examples"]
        others = {
            "to validate with": made.get("validation", {}).get("examples", 0),
            f"of these cut to {self.most:,} tokens": made.get("truncated", 0),
            f"left out, longer than {self.most:,} tokens": made.get("left_out", 0),
            "left out, nearly the same as one to validate with": made.get("near_validation", 0),
        }
        yield from ((what, count) for what, count in others.items() if count)

    def facts(self) -> Iterator[str]:
        """What else there is to say, a line each."""
        if lengths := self.made.get("lengths"):
            yield "Tokens before any cut: " + ", ".join(f"{name} {value:,}" for name, value in lengths.items())
        rows, documents = len(self.fill), len(self.lengths)
        yield (
            f"Rows: {rows:,} of {self.room:,} tokens, {self.fill.mean():.1%} full, the emptiest {self.fill.min():.0%}; "
            f"{documents / rows:.1f} documents in each"
        )
        yield f"Learnt: {self.learnt:,} of {self.tokens:,} tokens, {share(self.learnt, self.tokens)}"
        if self.unknown_token is None:
            yield "Unknown: none; this tokenizer can write everything"
        else:
            yield (
                f"Unknown: {self.unknown:,} tokens are {self.unknown_token}, text that this tokenizer cannot write"
                if self.unknown
                else f"Unknown: no token is {self.unknown_token}"
            )


def look(
    store: TokenStore, tokenizer: Tokenizer, stage: str, most: int, row_length: int, answers: int, count: int
) -> Look:
    """Reads the shards that a stage is trained on.

    Args:
        most: tokens that a document may have.
        row_length: tokens that a row may have, but for its last target.
        answers: documents of an example, which follow each other.
        count: examples that are shown, evenly spread.
    """
    split, made = store.split("train"), store.manifest["examples"]
    bounds = [*split.starts.tolist(), split.tokens]
    total = (len(bounds) - 1) // answers
    places = dict.fromkeys((2 * number + 1) * total // (2 * count) for number in range(count))
    shown = []
    for place in places:
        for answer in range(answers):
            start, end = bounds[place * answers + answer : place * answers + answer + 2]
            which = f", {ANSWERS[answer]}" if answers > 1 else ""
            shown.append(Shown(f"example {place + 1:,} of {total:,}{which}", _tokens(split, tokenizer, start, end)))
    unknown = 0 if tokenizer.unk_id is None else sum(int((s == tokenizer.unk_id).sum()) for s in split.shards)
    return Look(
        stage=stage,
        kind="pairs" if answers > 1 else "examples",
        made=made,
        most=most,
        room=row_length + 1,
        lengths=np.sort(np.diff(bounds)),
        fill=split.windows.sizes() / (row_length + 1),
        learnt=sum(int(mask.sum()) for mask in split.masks),
        unknown=unknown,
        unknown_token=tokenizer.roles.unk_token,
        examples=shown,
        row=_row(split, tokenizer, row_length + 1),
    )


def too_long(examples: Iterable[Example], tokenizer: Tokenizer, most: int, policy: TooLong) -> Shown | None:
    """One of the longest examples, if it does not fit: what is left of it, or what is left out."""
    by_size = sorted(examples, key=lambda example: -sum(len(message.content) for message in example.messages))
    fit = Fitter(tokenizer, most, policy)
    for example in by_size[:TRIED]:
        fitted = fit(example)
        if fit.too_long:
            shown = render_chat(tokenizer, as_messages(example)) if fitted is None else fitted
            fate = "left out" if fitted is None else f"cut from {fit.lengths[-1]:,} tokens"
            return Shown(f"{visible(example.source)}, {fate}", _named(tokenizer, shown.ids, shown.learn))
    return None


def _row(split: TokenSplit, tokenizer: Tokenizer, room: int) -> Row:
    """The row in the middle, by how many documents the rows hold: neither the fullest nor the emptiest."""
    starts = np.array([start for start, _ in split.windows.pieces.tolist()])
    lengths = np.array([length for _, length in split.windows.pieces.tolist()])
    held = np.searchsorted(split.starts, starts + lengths) - np.searchsorted(split.starts, starts)
    number = int(np.argsort(held, kind="stable")[len(held) // 2])
    start, end = int(starts[number]), int(starts[number] + lengths[number])
    borders = [border for border in split.starts.tolist() if start < border < end]
    spans = list(pairwise([start, *borders, end]))
    documents = [
        Shown(f"document {place} of {len(spans)}", _tokens(split, tokenizer, *span))
        for place, span in enumerate(spans, start=1)
    ]
    return Row(number + 1, documents, room - (end - start))


def _tokens(split: TokenSplit, tokenizer: Tokenizer, start: int, end: int) -> list[Token]:
    ids, learn = (split.read(arrays, start, end - start).tolist() for arrays in (split.shards, split.masks))
    return _named(tokenizer, ids, learn)


def _named(tokenizer: Tokenizer, ids: Sequence[int], learn: Sequence[bool]) -> list[Token]:
    special = set(tokenizer.special_tokens.values())
    pairs = zip(ids, learn, strict=True)
    return [Token(tokenizer.token_bytes(index), bool(learnt), index in special) for index, learnt in pairs]


# --- text that a terminal or a page may show -----------------------------------------------------------------


def visible(text: str) -> str:
    """Text in which nothing is invisible or commands a terminal: that is spelt out, and line ends are marked."""
    return "".join("↵\n" if character == "\n" else spelt(character) for character in text)


def spans(tokens: Sequence[Token]) -> Iterator[tuple[str, Token, int]]:
    """(text, a token that shares its look, tokens) of the fewest tokens that make up whole characters."""
    data, count = b"", 0
    for number, token in enumerate(tokens):
        data, count = data + token.data, count + 1
        following = tokens[number + 1] if number + 1 < len(tokens) else None
        apart = following is None or (following.learnt, following.special) != (token.learnt, token.special)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            if not apart:
                continue
            text = data.decode("utf-8", "backslashreplace")
        yield visible(text), token, count
        data, count = b"", 0


# --- the terminal --------------------------------------------------------------------------------------------


def render(found: Look, extra: Shown | None, console: Console, borders: bool) -> None:
    """Prints it all. `extra`: an example that is too long; `borders`: show where tokens end."""
    from rich.text import Text

    painter = _Painter(console, borders)
    fates = [[what, f"{count:,}"] for what, count in found.fates()]
    console.print(Table(f"What {found.stage} learns from", [found.kind, "count"], fates))
    console.print(length_table(found.lengths, "Tokens of a document to train on"))
    console.print(_fill_table(found))
    for fact in found.facts():
        console.print(Text(fact))
    console.print(painter.legend())
    for shown in [*found.examples, *([extra] if extra else [])]:
        painter.document(shown)
    row = found.row
    console.print(Text(f"\nRow {row.number:,} of {len(found.fill):,}, as it is packed", style="bold"))
    for document in row.documents:
        painter.document(document)
    console.print(Text(f"then {row.empty:,} places filled up, which teach nothing" if row.empty else "and it is full"))


def _fill_table(found: Look) -> Table:
    """How many rows are how full, by tenths."""
    counts, _ = np.histogram(found.fill, np.linspace(0, 1, 11))
    rows = [
        [f"{10 * tenth} to {10 * tenth + 10}%", f"{n:,}", f"{n / len(found.fill):.1%}", bar(n / counts.max())]
        for tenth, n in enumerate(counts.tolist())
        if n
    ]
    return Table(f"How full the rows of {found.room:,} tokens are", ["full", "rows", "share", ""], rows)


class _Painter:
    """Documents in colours; with marks where there are none."""

    def __init__(self, console: Console, borders: bool) -> None:
        self.console = console
        self.marked = console.no_color or console.color_system is None
        ascii_only = console.options.ascii_only
        self.marks = ("[[", "]]") if ascii_only else ("⟦", "⟧")
        self.border = ("|" if ascii_only else "│") if borders else ""
        self.ascii_only = ascii_only

    def legend(self) -> Text:
        from rich.text import Text

        text = Text("\nLearnt: ")
        text.append("like this".join(self.marks if self.marked else ("", "")), style=STYLES["learnt"])
        text.append("; special tokens: ")
        text.append("<like this>", style=STYLES["special"])
        if self.border:
            text.append(f"; tokens end at {self.border}")
        return text

    def document(self, shown: Shown) -> None:
        """Its title and its tokens."""
        from rich.text import Text

        self.console.print(Text(f"\n{shown.title}: {shown.counts}", style="bold"))
        if len(shown.tokens) <= HEAD + TAIL:
            self.console.print(self._painted(shown.tokens))
            return
        self.console.print(self._painted(shown.tokens[:HEAD]))
        self.console.print(Text(self._written(f"… {len(shown.tokens) - HEAD - TAIL:,} tokens …"), style="bold"))
        self.console.print(self._painted(shown.tokens[-TAIL:]))

    def _painted(self, tokens: Sequence[Token]) -> Text:
        from rich.text import Text

        text = Text(overflow="fold")
        for learnt, group in groupby(tokens, key=lambda token: token.learnt):
            text.append(self.marks[0] if self.marked and learnt else "", style=STYLES["learnt"])
            for said, token, count in spans(list(group)):
                style = "learnt" if token.learnt else "special" if token.special else "masked"
                text.append(self._written(said), style=STYLES[style])
                text.append(self.border * count, style="dim")
            text.append(self.marks[1] if self.marked and learnt else "", style=STYLES["learnt"])
        return text

    def _written(self, text: str) -> str:
        """What the terminal can write."""
        return text.replace("↵", "\\n").encode("ascii", "backslashreplace").decode() if self.ascii_only else text


STYLES = {"learnt": "bold green", "special": "cyan", "masked": ""}
