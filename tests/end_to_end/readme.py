"""The commands that README.md and the tutorial show, taken out of their text."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
ABOUT_A_RUN = {"chat", "shell", "bench", "evaluate", "generate"}
"""Verbs whose model must be there: they are run, with a small one. Those about a recipe are only read."""

_FENCED = re.compile(r"```(?:sh|console)\n(.*?)```", re.DOTALL)
_INLINE = re.compile(r"`(leveret [^`]+)`")
_OPTIONAL = re.compile(r"\[([^\]]+)\]")


def commands(page: str) -> list[list[str]]:
    """The words after `leveret` of every command in a page, once each; what is optional is left in."""
    text = (ROOT / page).read_text("utf-8")
    lines = [line.removeprefix("$ ") for block in _FENCED.findall(text) for line in block.splitlines()]
    lines = [line.removeprefix(".venv/bin/") for line in lines]
    found = [line for line in lines if line.startswith("leveret ")] + _INLINE.findall(text)
    words = [tuple(shlex.split(_OPTIONAL.sub(r"\1", line), comments=True)[1:]) for line in dict.fromkeys(found)]
    return [list(each) for each in dict.fromkeys(words)]
