"""What kind of command an expected answer is: the categories in which TinyLLM's author found its failures."""

from __future__ import annotations

import re

CATEGORIES = {
    "special characters": re.compile(r"""\\|[$^~@#&%!`]"""),
    "e-mail address": re.compile(r"[\w.+-]+@[\w-]+\.[\w.]+"),
    "redirection": re.compile(r"(?<![-=<>])(?:\d|&)?>{1,2}(?![=>])|<(?![=])"),
    "version specifier": re.compile(r"[=<>~!]=\s*\d|[@:=]v?\d+\.\d+"),
    "pipe chain": re.compile(r"(?<!\|)\|(?!\|)"),
    "regular expression": re.compile(r"\[[^\]]*[-:^][^\]]*\]|\.\*|\.\+|\(\w+\|\w+\)|\\[dwsb.]|\{\d+,?\d*\}"),
}


def categories(command: str) -> list[str]:
    """The categories that a command belongs to; "plain" if to none."""
    return [name for name, pattern in CATEGORIES.items() if pattern.search(command)] or ["plain"]
