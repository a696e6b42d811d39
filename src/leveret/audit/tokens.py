"""Mistakes of tokenizers: of special tokens and their roles, and of text that cannot be written.

Of the published models one padded with an ordinary word, one looked its begin and end up under names that its tokenizer
did not know, and its tokenizer had one and the same unknown token for `< > @ \\ ^ { | } ~`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from leveret.audit.finding import Finding, Severity, Stamp, count
from leveret.data.shards import TokenSplit
from leveret.data.sources import Document
from leveret.errors import UserError
from leveret.tokenizer.template import sample_text
from leveret.tokenizer.tokenizer import Tokenizer

MARK = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?[A-Za-z_][\w-]{0,40}>|\[/?[A-Z_]{2,20}\]")
"""What looks like a special token in a rendered conversation."""
STAND_INS = ("<s>", "</s>")
"""Begin and end in `sample_text`, whatever the tokenizer's are."""
SHOWN = 20
"""Characters that a finding names."""
SAMPLE = 2000
"""Documents of the corpus whose characters are looked at."""
ANSWERS = "answers"
"""Where what is to be learnt stands."""


# --- special tokens ----------------------------------------------------------------------------------------------


def audit_tokenizer(tokenizer: Tokenizer, train: Mapping[str, TokenSplit], answers: bool, system: bool = True) -> Stamp:
    """The roles, the special tokens, those of the chat template, and whether the end token is ever trained on.

    Args:
        train: what each stage trains on that is to learn where a text or an answer ends.
        answers: whether the model is to answer, and so to end its answers.
        system: whether what it learns from may have system messages; without, how a template writes them is told, and
            is no finding.
    """
    findings = [
        *_roles(tokenizer),
        *_special_tokens(tokenizer),
        *_template(tokenizer, _marks(tokenizer, system)),
        *_end(tokenizer, train, "error" if answers else "warning"),
    ]
    looked_at = f"{count(len(tokenizer.special_tokens), 'special token')}, their roles, the chat template, the shards"
    if not system:
        known = set(_marks(tokenizer, False))
        others = [mark for mark in _marks(tokenizer, True) if mark not in known]
        looked_at += "".join(
            f"; {finding.what} in front of system messages, and no example has any"
            for finding in _template(tokenizer, others)
        )
    return Stamp("tokenizer", findings, looked_at)


def audit_model_files(tokenizer: Tokenizer, said: Mapping[str, Mapping[str, Any]], answers: bool) -> Stamp:
    """The same of a model that came without its run, as far as its files tell it.

    Args:
        said: what config.json and generation_config.json hold, whose ids other programs go by.
    """
    stamp = audit_tokenizer(tokenizer, {}, answers)
    findings = [*stamp.findings, *(finding for file, facts in said.items() for finding in _ids(tokenizer, file, facts))]
    special = count(len(tokenizer.special_tokens), "special token")
    looked_at = f"{special}, their roles, the chat template, the ids in {' and '.join(said)}"
    return replace(stamp, findings=findings, looked_at=looked_at)


def _ids(tokenizer: Tokenizer, file: str, facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Ids of begin, end and padding that are no special tokens, or others than the tokenizer's own."""
    special = {index: text for text, index in tokenizer.special_tokens.items()}
    for role in ("bos", "eos", "pad"):
        where, own = f"{file}: {role}_token_id", getattr(tokenizer, f"{role}_id")
        given = facts.get(f"{role}_token_id")
        every = [index for index in (given if isinstance(given, list) else [given]) if isinstance(index, int)]
        mend = "write the id of a special token" if own is None else f"write {own}, the tokenizer's {role}_token"
        for index in every:
            if not 0 <= index < tokenizer.vocab_size:
                yield Finding(
                    "error", f"the tokenizer has no token {index}, only {tokenizer.vocab_size:,}", where, mend
                )
            elif index == tokenizer.unk_id:
                yield Finding("error", f"{index} is the unknown token", where, mend)
            elif index not in special:
                word = tokenizer.token_bytes(index).decode("utf-8", "replace")
                yield Finding("error", f"{index} is {word!r}, an ordinary word, which stands in texts", where, mend)
        if every and own is not None and own not in every and all(index in special for index in every):
            named = " and ".join(repr(special[index]) for index in every)
            yield Finding("warning", f"{named}, where the tokenizer says {special.get(own, own)!r}", where, mend)


def _roles(tokenizer: Tokenizer) -> Iterator[Finding]:
    for role, text in asdict(tokenizer.roles).items():
        if text is None or role == "unk_token":
            continue
        index = getattr(tokenizer, role.replace("token", "id"))
        where, mend = f"tokenizer.{role}", f"name one of {', '.join(list(tokenizer.special_tokens)[:8]) or 'its own'}"
        if index == tokenizer.unk_id:
            yield Finding("error", f"{text!r} is the unknown token (id {index})", where, mend)
        elif text not in tokenizer.special_tokens:
            yield Finding("error", f"{text!r} (id {index}) is an ordinary word, which stands in texts", where, mend)


def _special_tokens(tokenizer: Tokenizer) -> Iterator[Finding]:
    for text, index in tokenizer.special_tokens.items():
        ids = tokenizer.encode(text, special=True)
        if ids != [index]:
            became = "the unknown token" if tokenizer.unk_id in ids else f"{count(len(ids), 'other token')}"
            mend = "make it an added token of tokenizer.json"
            yield Finding("error", f"{text!r} resolves to {became}, not to its id {index}", "tokenizer", mend)


def _marks(tokenizer: Tokenizer, system: bool) -> list[str]:
    """What looks like a special token in a conversation under the chat template, with a system message or without."""
    if tokenizer.chat_template is None:
        return []
    for tried in dict.fromkeys((system, False)):
        try:
            return list(dict.fromkeys(MARK.findall(sample_text(tokenizer.chat_template, tried))))
        except UserError:  # one that refuses the messages of the sample, such as a system message
            continue
    return []


def _template(tokenizer: Tokenizer, marks: Iterable[str]) -> Iterator[Finding]:
    """Marks of the chat template that are no special tokens."""
    for mark in marks:
        if mark in tokenizer.special_tokens or mark in STAND_INS:
            continue
        ids = tokenizer.encode(mark, special=True)
        unknown = tokenizer.unk_id is not None and tokenizer.unk_id in ids
        became = "resolves to the unknown token" if unknown else f"is read as {count(len(ids), 'token')} of text"
        yield Finding(
            "error" if unknown else "warning",
            f"the chat template writes {mark!r}, which {became}",
            "tokenizer.template",
            "add it to tokenizer.special_tokens, or take another template",
        )


def _end(tokenizer: Tokenizer, train: Mapping[str, TokenSplit], severity: Severity) -> Iterator[Finding]:
    end = tokenizer.eos_id
    if end is None:
        what = "there is no end token: nothing tells the model where a text or an answer ends"
        yield Finding(severity, what, "tokenizer.eos_token", "name a special token that ends documents and turns")
        return
    for stage, split in train.items():
        learnt_from = (ids[mask] for ids, mask in zip(split.shards, split.masks, strict=True))
        if not any(np.any(ids == end) for ids in (learnt_from if split.masks else split.shards)):
            learnt = "is never learnt in" if split.masks else "stands nowhere in"
            what = f"the end token {tokenizer.roles.eos_token!r} {learnt} {count(split.tokens, 'training token')}"
            mend = "end documents with it, and answers through the chat template"
            yield Finding("error", what, f"the shards of {stage}", mend)


# --- text that cannot be written -----------------------------------------------------------------------------------


class CharacterAudit:
    """Counts characters that do not come back from the tokenizer: in answers to learn, in held-out ones, and in the
    first `SAMPLE` documents of the corpus.

    An unknown token in an answer to learn is an error; characters that come back as others, and other texts, warn.
    """

    def __init__(self, tokenizer: Tokenizer, targets: Iterable[str], held_out: Iterable[str]) -> None:
        self._tokenizer, self._texts = tokenizer, 0
        self._counts = {ANSWERS: self._counted(targets), "held-out answers": self._counted(held_out)}
        self._corpus: Counter[str] = Counter()
        self._documents = 0

    def _counted(self, texts: Iterable[str]) -> Counter[str]:
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text)
            self._texts += 1
        return counts

    @property
    def wants_more(self) -> bool:
        return self._documents < SAMPLE

    def look(self, documents: Sequence[Document]) -> None:
        first = documents[: SAMPLE - self._documents]
        self._corpus.update(self._counted(document.text for document in first))
        self._documents += len(first)

    def stamp(self) -> Stamp:
        findings, facts = [], {}
        for where, counts in (self._counts | {"the corpus": self._corpus}).items():
            unknown, changed = _lost(self._tokenizer, counts)
            severity: Severity = "error" if where == ANSWERS else "warning"
            found: list[tuple[dict[str, int], Severity, str]] = [
                (unknown, severity, "has no token for, so that they cannot be written"),
                (changed, "warning", "gives back as others"),
            ]
            for lost, grave, how in found:
                if lost:
                    shown = " ".join(f"{character!r} ({number:,})" for character, number in list(lost.items())[:SHOWN])
                    what = f"{count(len(lost), 'character')} that the tokenizer {how}: {shown}"
                    mend = "take one that falls back on bytes and keeps text as it is: kind bpe, or sentencepiece-bpe"
                    findings.append(Finding(grave, what, where, mend))
            facts[where] = {"unknown": unknown, "changed": changed}
        return Stamp("characters", findings, f"every character of {count(self._texts, 'text')}", facts=facts)


def _lost(tokenizer: Tokenizer, counts: Counter[str]) -> tuple[dict[str, int], dict[str, int]]:
    """The characters that have no token, and those that come back as others; the most frequent first."""
    unknown, changed = {}, {}
    for character, number in counts.most_common():
        text = f"a{character}a"
        ids = tokenizer.encode(text)
        if tokenizer.unk_id is not None and tokenizer.unk_id in ids:
            unknown[character] = number
        elif tokenizer.decode(ids) != text:
            changed[character] = number
    return unknown, changed
