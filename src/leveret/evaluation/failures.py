"""What kind of command an expected answer is: the categories in which TinyLLM's author found its failures."""

from __future__ import annotations

import re

QUOTED = re.compile(r"""'[^']*'|"(?:\\.|[^"\\])*\"""")

CATEGORIES = {
    "special characters": re.compile(r"""\\|[$^~@#&%!`]"""),
    "e-mail address": re.compile(r"[\w.+-]+@(?:[\w-]+\.)+[A-Za-z]{2,}\b"),
    "redirection": re.compile(r"(?<![-=<>])(?:\d|&)?>{1,2}(?![=>])|<(?![=])"),
    # Two numbers and a dot, but not an IPv4 address.
    "version specifier": re.compile(r"[=<>~!]=\s*\d|[<>@:=]v?\d+\.\d+(?!\d*\.\d+\.\d)"),
    "pipe chain": re.compile(r"(?<!\|)\|(?!\|)"),
    "regular expression": re.compile(r"\[[^\]]*[-:^][^\]]*\]|\.\*|\.\+|\(\w+\|\w+\)|\\[dwsb.]|\{\d+,?\d*\}"),
}


def categories(command: str) -> list[str]:
    """The categories that a command belongs to; "plain" if to none."""
    # Quotes take the meaning from | and >, and outside of them \d is a Windows path and [1-5] the shell's own.
    bare, quoted = QUOTED.sub("''", command), " ".join(QUOTED.findall(command))
    where = {"redirection": bare, "pipe chain": bare, "regular expression": quoted}
    return [name for name, pattern in CATEGORIES.items() if pattern.search(where.get(name, command))] or ["plain"]
