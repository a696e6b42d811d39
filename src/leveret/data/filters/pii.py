"""Masks what identifies a person: e-mail addresses, IP addresses and telephone numbers.

Rules and no model: names and postal addresses stay, and a version number of four parts is taken for an address.
Every pattern begins with one set of characters, which is quick to look for, and has no repetition without bound.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address
from typing import NamedTuple

from leveret.data.filters.config import PiiConfig
from leveret.data.filters.measures import Filter, Result


def _is_public(match: re.Match[str]) -> bool:
    """Whether it is the public address of a host; one that ends with .0 is none, but may be a version."""
    try:
        return ip_address(match[0]).is_global and not match[0].endswith(".0")
    except ValueError:
        return False


_PHONE_WORD = re.compile(
    r"\b(?:tel|telephone|phone|mobile|cell|fax)(?: (?:no|number))?(?:[.:]| is)* {0,2}$", re.IGNORECASE
)


def _is_international(match: re.Match[str]) -> bool:
    return (8 if re.search("[ .-]", match[0]) else 11) <= _digits(match) <= 15  # else it may be a number with its sign


def _follows_phone_word(match: re.Match[str]) -> bool:
    return (
        7 <= _digits(match) <= 15
        and _PHONE_WORD.search(match.string, max(match.start() - 24, 0), match.start()) is not None
    )


def _digits(match: re.Match[str]) -> int:
    return sum(map(str.isdigit, match[0]))


class _Rule(NamedTuple):
    sign: str
    """What stands in every text that the pattern is found in."""
    pattern: re.Pattern[str]
    holds: Callable[[re.Match[str]], bool] = bool
    """Whether what was found is meant."""


_RULES: dict[str, tuple[_Rule, ...]] = {
    "email": (
        _Rule(
            "@",
            re.compile(
                r"[A-Za-z0-9](?<![\w.+%-].)[\w.+%-]{0,63}@"
                r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}\b"
            ),
        ),
    ),
    "ip": (
        _Rule(".", re.compile(r"\d(?<![\w.-].)\d{0,2}(?:\.\d{1,3}){3}(?![\w-]|\.\d)"), _is_public),
        _Rule(":", re.compile(r"[23](?<![\w:.].)[0-9a-fA-F]{3}:[0-9a-fA-F:]{2,34}(?![\w:])"), _is_public),
    ),
    "phone": (
        # +44 20 7946 0958, +1 (212) 555-0123
        _Rule(
            "+",
            re.compile(r"\+(?<![\w+].)[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{2,4}(?:[ .-]?\d{2,5}){1,4}(?!-?\w)"),
            _is_international,
        ),
        # (212) 555-0123
        _Rule("(", re.compile(r"\((?<![\w(].)[2-9]\d\d\)[ .-]?[2-9]\d\d[ .-]\d{4}(?!-?\w)")),
        # 212-555-0123, 1-212-555-0123, 212.555.0123
        _Rule("", re.compile(r"[1-9](?<![\w.+(/-].)(?:(?<=1)[.-][2-9])?\d\d([.-])[2-9]\d\d\1\d{4}(?!-?\w)")),
        # Tel.: 030 1234567
        _Rule("", re.compile(r"[(\d](?<![\w.+(/-].)[\d ().-]{5,18}\d(?!-?\w)"), _follows_phone_word),
    ),
}


def pii(config: PiiConfig) -> Filter:
    """The filter that puts masks in the place of addresses and numbers, and counts them by kind."""
    wanted = [(kind, getattr(config, kind), rule) for kind, rules in _RULES.items() for rule in rules]

    def mask(text: str) -> Result:
        edits: Counter[str] = Counter()
        for kind, instead, rule in wanted:
            if instead is not None and rule.sign in text:
                text = _masked(text, rule, instead, edits, kind)
        return Result(text, edits=edits)

    return mask


def _masked(text: str, rule: _Rule, instead: str, edits: Counter[str], kind: str) -> str:
    def replace(match: re.Match[str]) -> str:
        if not rule.holds(match):
            return match[0]
        edits[kind] += 1
        return instead

    return rule.pattern.sub(replace, text)
