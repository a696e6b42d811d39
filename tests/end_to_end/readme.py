"""The commands that the pages show, taken out of their text."""

import re
import shlex
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
ABOUT_A_RUN = {"chat", "shell", "bench", "evaluate", "generate"}
"""Verbs whose model must be there: they are run, with a small one. Those about a recipe are only read."""

_FENCED = re.compile(r"```(?:sh|console)\n(.*?)```", re.DOTALL)
_INLINE = re.compile(r"`(leveret [^`]+)`")
_OPTIONAL = re.compile(r"(?<!\S)\[([^\]]+)\](?!\S)")
_SHELL = {">", "|", "&", "&&", ";"}
"""Where a command ends."""


def blocks(page: str) -> list[list[str]]:
    """The lines of every command block of a page; a line that goes on in the next is one with it."""
    found = _FENCED.findall((ROOT / page).read_text("utf-8"))
    return [block.replace("\\\n", " ").splitlines() for block in found]


def typed(block: list[str]) -> list[str]:
    """What a block has the user type: what follows `$ `, or every line where none does; comments aside."""
    marked = [line.removeprefix("$ ") for line in block if line.startswith("$ ")]
    lines = marked or [line for line in block if not line.startswith("#")]
    return [line.removeprefix(".venv/bin/") for line in lines]


def words(line: str) -> list[str]:
    """The words after `leveret`, up to where the shell takes over; what is optional is left in."""
    text = line if "'" in line else _OPTIONAL.sub(r"\1", line)
    return list(takewhile(lambda word: word not in _SHELL, shlex.split(text, comments=True)[1:]))


def commands(page: str, fenced: bool = True, inline: bool = True) -> list[list[str]]:
    """The words after `leveret` of every command in a page, once each."""
    lines = [line for block in blocks(page) for line in typed(block)] if fenced else []
    lines += _INLINE.findall((ROOT / page).read_text("utf-8")) if inline else []
    found = dict.fromkeys(tuple(words(line)) for line in lines if line.startswith("leveret "))
    return [list(each) for each in found]
