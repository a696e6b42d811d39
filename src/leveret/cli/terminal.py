"""What a model says on its way to the screen: wrapped by words, without what would command the terminal."""

from __future__ import annotations

import io
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

NARROWEST = 20
"""Columns below which nothing is wrapped by words any more."""


def forgive_encodings() -> None:
    """What input has that is no text becomes a replacement character; what output cannot write is spelt."""
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def is_dumb() -> bool:
    """Whether the terminal takes no escape sequences."""
    return os.environ.get("TERM", "dumb") in ("dumb", "unknown")


def columns() -> int | None:
    """Columns to write in, one less than there are, as terminals differ in what they do at the last; None where
    standard output is no terminal, or too narrow.
    """
    width = shutil.get_terminal_size().columns - 1
    return width if sys.stdout.isatty() and width >= NARROWEST else None


def harmless(text: str) -> str:
    """Text whose control characters, but line ends and tabs, are spelt (\\x1b)."""
    from leveret.display import spelt

    return "".join(character if character in "\n\t" else spelt(character) for character in text)


def note(text: str) -> None:
    """Says something beside the answers, on standard error, faintly where the terminal can."""
    terminal = sys.stderr.isatty()
    text = harmless(text)
    if terminal and (width := columns()):
        text = "\n".join(textwrap.fill(line, width, subsequent_indent="  ") for line in text.splitlines())
    if terminal and not is_dumb() and "NO_COLOR" not in os.environ:
        text = f"\x1b[2m{text}\x1b[0m"
    print(text, file=sys.stderr, flush=True)


def lines(prompt: str, name: str) -> Iterator[str]:
    """What the user types, line by line, with a history kept between sessions on a terminal; ends at ctrl-D."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    ask = _editor(name) if sys.stdout.isatty() and not is_dumb() else _plainly
    while True:
        try:
            line = ask(prompt).strip()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        if line:
            yield line


def _plainly(prompt: str) -> str:
    print(prompt, end="", file=sys.stderr, flush=True)
    try:
        line = sys.stdin.readline()
    except KeyboardInterrupt:
        line = "\n"
    if not line.endswith("\n"):
        print(file=sys.stderr)
    if not line:
        raise EOFError
    return line


def _editor(name: str) -> Callable[[str], str]:
    """A prompt that edits, and remembers under a name."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory

    folder = Path.home() / ".local" / "state" / "leveret"
    folder.mkdir(parents=True, exist_ok=True)
    session: PromptSession[str] = PromptSession(history=FileHistory(str(folder / f"{name}.history")))
    return session.prompt


class Speech:
    """Text that comes in pieces, on its way to standard output.

    A word is held until it is whole, so that it can go to the next line; one wider than a line is cut. Characters that
    command the terminal, or hide what a line says, are spelt (\\x1b).

    Args:
        spell: False gives the text as it is, for pipes that lead to other programs.
    """

    def __init__(self, spell: bool = True) -> None:
        self.spell, self.width = spell, columns()
        self.column, self.word, self.word_width, self.spaces = 0, "", 0, 0

    def write(self, piece: str) -> None:
        text = harmless(piece) if self.spell else piece
        print(text if self.width is None else "".join(map(self._place, text)), end="", flush=True)

    def end(self) -> None:
        """The text is over: what was held goes out, and the line ends."""
        print(self._placed_word(), flush=True)

    def _place(self, character: str) -> str:
        """What goes out now that this character has come."""
        from rich.cells import get_character_cell_size

        if character == "\n":
            out = self._placed_word() + "\n"
            self.column = self.spaces = 0
            return out
        if character in " \t":
            out = self._placed_word()
            self.spaces += 1 if character == " " else 4
            return out
        assert self.width is not None
        cells = get_character_cell_size(character)
        out = self._placed_word() if cells == 2 or self.word_width + cells > self.width else ""
        self.word += character
        self.word_width += cells
        return out + (self._placed_word() if cells == 2 else "")  # scripts of wide characters break anywhere

    def _placed_word(self) -> str:
        """The word held, after the spaces in front of it or on a line of its own."""
        if not self.word:
            return ""
        assert self.width is not None
        if self.column + self.spaces + self.word_width > self.width:
            before, self.column = "\n" * (self.column > 0), 0
        else:
            before = " " * self.spaces
            self.column += self.spaces
        word, self.word = self.word, ""
        self.column += self.word_width
        self.word_width = self.spaces = 0
        return before + word
