"""Filters that take lines out: C4's rules for sentences, and addresses and navigation."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from itertools import islice

from leveret.data.filters.config import BoilerplateConfig, C4Config
from leveret.data.filters.measures import Filter, Result


def without_lines(text: str, fault: Callable[[str], str]) -> tuple[str, Counter[str]]:
    """The text without the lines in which a fault is found, and how many had each.

    `fault` gets lines without white space around them, and says "" of a good one. Empty lines stay, but no two in
    a row; a text without faults stays as it is, to the byte.
    """
    kept: list[str] = []
    faults: Counter[str] = Counter()
    for line in text.split("\n"):
        stripped = line.strip()
        if stripped and (found := fault(stripped)):
            faults[found] += 1
        else:
            kept.append(line)
    if not faults:
        return text, faults
    return re.sub(r"\n(?:[ \t\r]*\n){2,}", "\n\n", "\n".join(kept)).strip("\n"), faults


# --- C4 ------------------------------------------------------------------------------------------------------

_END_MARKS = (".", "?", "!", '"', "'", "”", "’")
_JAVASCRIPT = ("javascript",)
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_SENTENCE_END = re.compile(r"[.?!][\"'”’)\]]*(?:\s|$)")


def c4(config: C4Config) -> Filter:
    """The filter of C4's rules. Sentences are counted by their marks, so that abbreviations count too."""
    phrases = _JAVASCRIPT * config.javascript + _POLICIES * config.policies

    def clean(text: str) -> Result:
        lower = text.lower()
        if config.curly_brackets and ("{" in text or "}" in text):
            return Result(None, "curly bracket")
        if config.lorem_ipsum and "lorem ipsum" in lower:
            return Result(None, "lorem ipsum")
        here = [phrase for phrase in phrases if phrase in lower]
        text, faults = without_lines(text, lambda line: _no_sentence(line, config, here))
        if config.least_sentences:
            sentences = sum(1 for _ in islice(_SENTENCE_END.finditer(text), config.least_sentences))
            if sentences < config.least_sentences:
                return Result(None, f"least sentences: {sentences} < {config.least_sentences}", faults)
        return Result(text, edits=faults)

    return clean


def _no_sentence(line: str, config: C4Config, phrases: list[str]) -> str:
    """Why a line is to be taken out; `phrases` are those that stand somewhere in the text."""
    if config.terminal_punctuation and (not line.endswith(_END_MARKS) or line.endswith("...")):
        return "no end mark"
    if len(line.split(None, config.least_words_per_line)) < config.least_words_per_line:
        return "few words"
    longest = config.longest_word
    if longest and len(line) > longest and max(map(len, line.split())) > longest:
        return "long word"
    if phrases:
        lower = line.lower()
        return next((phrase for phrase in phrases if phrase in lower), "")
    return ""


# --- addresses and navigation --------------------------------------------------------------------------------

_URL = re.compile(r"(?:https?://|www\.)[^\s<>\"]+")
_SHORT = 80
"""Lines of more characters are no navigation."""
_COUNTER = re.compile(
    r"(?:\d[\d.,]*\s?[km]?\s+"
    r"(?:likes?|comments?|shares?|views?|followers?|following|replies|reply|votes?|points?|reviews?|tweets?|"
    r"retweets?|downloads?)\W*)+",
    re.IGNORECASE,
)
_BEGINS = re.compile(
    r"(?:sign[ -]?(?:in|up)|log[ -]?(?:in|out)|subscribe|skip to|jump to|back to top|share (?:this|on|via)|"
    r"follow us|like us|click here|print this|e-?mail this|(?:previous|next|older|newer|related) (?:posts?|articles?)|"
    r"posted (?:by|in|on)|filed under|tagged|leave a (?:reply|comment)|powered by|toggle|advertisement|loading)\b",
    re.IGNORECASE,
)
_ENDS = re.compile(
    r"\b(?:continue reading|(?:read|show|see|view|load) (?:more|all))\s*(?:\.{3}|[…»›>→]+)?$", re.IGNORECASE
)
_HOLDS = re.compile(r"all rights reserved|(?:items? in|add to|view) (?:your )?(?:cart|basket)|^©", re.IGNORECASE)
_SEPARATOR = re.compile(r"\s*[|•·»›]\s*|\s+(?:>|/|::)\s+")


def boilerplate(config: BoilerplateConfig) -> Filter:
    """The filter of lines that are addresses or navigation."""

    def clean(text: str) -> Result:
        cleaned, faults = without_lines(text, lambda line: _no_prose(line, config))
        share = 1 - len(cleaned) / max(len(text), 1)
        if faults and config.most_taken_out is not None and share > config.most_taken_out:
            return Result(None, f"most taken out: {share:.4g} > {config.most_taken_out:.4g}", faults)
        return Result(cleaned, edits=faults)

    return clean


def _no_prose(line: str, config: BoilerplateConfig) -> str:
    """Why a line is to be taken out, "" if it is not."""
    if config.most_url_share is not None and ("://" in line or "www." in line):
        in_urls = sum(len(url) for url in _URL.findall(line))
        if in_urls > config.most_url_share * len(line):
            return "address"
    if not config.navigation or len(line) > _SHORT:
        return ""
    if _COUNTER.fullmatch(line):
        return "counter"
    if _HOLDS.search(line) or (not line.endswith((".", "?", "!", ":")) and _BEGINS.match(line)) or _ENDS.search(line):
        return "phrase"
    return "menu" if _is_menu(line) else ""


def _is_menu(line: str) -> bool:
    """Whether a line is three or more items of at most three words, and no row of a table."""
    if line.startswith("|"):
        return False
    items = _SEPARATOR.split(line)
    return len(items) > 2 and all(len(item.split()) <= 3 for item in items)
