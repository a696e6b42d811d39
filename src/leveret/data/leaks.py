"""The audit of held-out examples: does one of them, or nearly one, stand in what the model was trained on?

`find_leaks` compares examples with examples, `LeaksInText` examples with the documents of pretraining.
Both look only at what an index offers them, so that their time grows with the texts and not with their product.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import tee
from math import ceil
from typing import Literal

from leveret.data.examples import Example
from leveret.data.overlap import NgramIndex, Passage
from leveret.data.sources import Document

Kind = Literal["verbatim", "normalised", "near-duplicate"]
KINDS: tuple[Kind, ...] = ("verbatim", "normalised", "near-duplicate")

NEAR = 0.8
"""Least Jaccard index of the instructions' content words at which two examples are near-duplicates."""

PROSE = 20
"""Content words from which on a response is prose, which may be near another without being the same."""

PROBE = 3
"""Words of an instruction that a document must have before it is searched for all of it."""

FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the this that these those of in on at to from for with by into onto as and or is are be it its all "
        "any each every my me i you your please can could would will just now then there which who what how do "
        "does so using use",
    )
)


@dataclass(frozen=True, slots=True)
class Leak:
    """Held-out example number `heldout` stands in training item number `train` (both from 0)."""

    kind: Kind
    heldout: int
    train: int
    same_response: bool = True
    """False where only the instruction is the same, and training has another answer to it."""


def find_leaks(train: Sequence[Example], heldout: Sequence[Example]) -> list[Leak]:
    """At most one leak for each held-out example, the gravest, in the held-out examples' order.

    The instruction of a longer dialogue is all that was said before its last answer, system messages aside.

    - verbatim: the instruction stands in training character by character. Training on the question is a leak
      whatever the answer; `same_response` says whether the answer is the same too.
    - normalised: so after `normalise`.
    - near-duplicate: instructions whose content words (see `content_words`) have a Jaccard index of at least 0.8, and
      the same normalised response, or, where both are prose, responses that are as much alike.

    So an example that differs from training in a slot only (another path, number or name) is no leak: its response
    differs too, and is too short to be prose. Nor is another question about the same long passage. Among equally grave
    leaks one with the same response is named, then the more alike, then the first in training.
    """
    asked, answered = zip(*map(_texts, train), strict=True) if train else ((), ())
    by_text = _index(asked)
    by_normalised = _index([normalise(text) for text in asked])
    near = _NearIndex(asked, answered, {_key(_texts(example)[1]) for example in heldout})
    leaks = []
    for number, example in enumerate(heldout):
        instruction, response = _texts(example)
        if same := by_text.get(instruction):
            best = next((n for n in same if answered[n] == response), None)
            leaks.append(Leak("verbatim", number, same[0] if best is None else best, best is not None))
        elif same := by_normalised.get(normalise(instruction)):
            best = next((n for n in same if normalise(answered[n]) == normalise(response)), None)
            leaks.append(Leak("normalised", number, same[0] if best is None else best, best is not None))
        elif (nearest := near.nearest(instruction, response)) is not None:
            leaks.append(Leak("near-duplicate", number, nearest))
    return leaks


def leaking(train: Sequence[Example], heldout: Sequence[Example]) -> dict[int, Kind]:
    """The training examples, by number, that are held-out examples, each with the gravest way in which it is one.

    Without these `find_leaks` finds nothing: its three ways are the same seen from either side.
    """
    return {leak.heldout: leak.kind for leak in find_leaks(heldout, train)}


def find_leaks_in_text(heldout: Sequence[Example], documents: Iterable[Document]) -> list[Leak]:
    """What `LeaksInText` finds in all of these documents."""
    search = LeaksInText(heldout)
    search.look(documents)
    return search.leaks


class LeaksInText:
    """Finds held-out examples whose instruction and response both stand in one document; `train` is its number.

    Both as whole words, the response outside the instruction: `verbatim` character by character, `normalised`
    after `normalise`.
    """

    def __init__(self, heldout: Sequence[Example]) -> None:
        self._pairs = [_texts(example) for example in heldout]
        probes = _probes([normalise(instruction) for instruction, _ in self._pairs])
        self._index = NgramIndex.build((Passage("", *probe) for probe in enumerate(probes)), PROBE + 1, shortest=1)
        self._wordless = {number for number, probe in enumerate(probes) if not probe}
        self._found: dict[int, Leak] = {}
        self._seen = 0

    def look(self, documents: Iterable[Document]) -> None:
        """Takes the next documents, which are read once, a few at a time."""
        documents, searched = tee(documents)
        overlaps = self._index.find_each(document.text for document in searched)
        for where, (document, here) in enumerate(zip(documents, overlaps, strict=True), self._seen):
            self._seen = where + 1
            offered = self._wordless.union(overlap.number for overlap in here)
            flat = _flatten(document.text) if offered else ""
            for number in offered:
                known = self._found.get(number)
                if known is not None and known.kind == "verbatim":
                    continue
                if _holds(document.text, *self._pairs[number]):
                    self._found[number] = Leak("verbatim", number, where)
                elif known is None and _holds(flat, *map(normalise, self._pairs[number])):
                    self._found[number] = Leak("normalised", number, where)

    @property
    def leaks(self) -> list[Leak]:
        """At most one for each held-out example, the gravest, then the first, in the held-out examples' order."""
        return [self._found[number] for number in sorted(self._found)]


def report(
    leaks: Sequence[Leak], train: Sequence[Example | Document], heldout: Sequence[Example], most: int = 20
) -> str:
    """Lines for the terminal: how many leak and how, and the texts of the first `most` leaks, gravest first."""
    counts = Counter(leak.kind for leak in leaks)
    lines = [f"{len(leaks)} of {len(heldout)} held-out examples leak into {len(train)} of training"]
    for kind in KINDS:
        others = sum(leak.kind == kind and not leak.same_response for leak in leaks)
        lines.append(f"  {kind:<15}{counts[kind]:>7}" + (f"  ({others} with another answer)" if others else ""))
    for leak in sorted(leaks, key=lambda leak: KINDS.index(leak.kind))[:most]:
        answer = "" if leak.same_response else ", another answer"
        lines.append(f"{leak.kind}: held-out {leak.heldout + 1}, training {leak.train + 1}{answer}")
        lines.append(f"  held-out  {_show(heldout[leak.heldout])}")
        lines.append(f"  training  {_show(train[leak.train])}")
    if len(leaks) > most:
        lines.append(f"... and {len(leaks) - most} more")
    return "\n".join(lines)


# --- texts ---------------------------------------------------------------------------------------------------

_WORD = re.compile(r"\w+")
_CLOSING = re.compile(r"(?<=[\w\"'`)\]}])[.?!]+$")


def normalise(text: str) -> str:
    """The text without what may differ in the same sentence.

    Unicode NFKC, case folded, runs of white space to one space, quotation marks around the whole taken off, and
    . ? ! at its end, where they close a word and are none themselves (`cd ..` stays as it is).
    """
    flat = _CLOSING.sub("", _flatten(text))
    if len(flat) > 2 and flat[0] == flat[-1] and flat[0] in "\"'`" and flat[0] not in flat[1:-1]:
        flat = _CLOSING.sub("", flat[1:-1])
    return flat


def content_words(text: str) -> frozenset[str]:
    """The words and values of a text but for function words, normalised; paths, numbers and names are kept whole."""
    words = (word.strip("\"'`,;:()?!").rstrip(".") or word for word in normalise(text).split())
    return frozenset(word for word in words if word not in FUNCTION_WORDS)


def _flatten(text: str) -> str:
    return " ".join((text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold().split())


def _texts(example: Example) -> tuple[str, str]:
    """(all that was said before the last answer, system messages aside; the last answer)."""
    *before, answer = example.messages
    return "\n".join(message.content for message in before if message.role != "system"), answer.content


def _show(item: Example | Document, width: int = 160) -> str:
    text = item.text if isinstance(item, Document) else " -> ".join(_texts(item))
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


# --- indexes -------------------------------------------------------------------------------------------------


def _index(texts: Sequence[str]) -> dict[str, list[int]]:
    """The numbers of the items that have each text."""
    found = defaultdict(list)
    for number, text in enumerate(texts):
        found[text].append(number)
    return dict(found)


def _key(response: str) -> str:
    """What the responses of near-duplicates have in common: the normalised text; of prose nothing."""
    if len(response.split()) >= PROSE and len(content_words(response)) >= PROSE:
        return ""
    return normalise(response)


def _alike(some: frozenset[str], others: frozenset[str]) -> float:
    """Jaccard index."""
    return len(some & others) / len(some | others)


class _NearIndex:
    """Finds the item of a like response with the most alike words.

    Prefix filtering (Chaudhuri, Ganti and Kaushik 2006): with words in one fixed order, rarest first, two sets of
    Jaccard index >= t share one of the first n - ceil(t n) + 1 words of each, n being the size of that set.

    Args:
        asked, answered: of each item.
        keys: of the responses that will be looked for; items with others are left out.
    """

    def __init__(self, asked: Sequence[str], answered: Sequence[str], keys: set[str]) -> None:
        items = [(number, key) for number, key in enumerate(map(_key, answered)) if key in keys]
        self._answered = answered
        self._words = {number: content_words(asked[number]) for number, _ in items}
        self._count = Counter(word for words in self._words.values() for word in words)
        self._postings = defaultdict(list)
        for number, key in items:
            for word in self._prefix(self._words[number]):
                self._postings[key, word].append(number)

    def nearest(self, instruction: str, response: str) -> int | None:
        """The number of the most alike item, the lowest one of equals; None where none is near enough."""
        key, words = _key(response), content_words(instruction)
        offered = {n for word in self._prefix(words) for n in self._postings.get((key, word), ())}
        alike = sorted((-_alike(words, self._words[n]), n) for n in offered)
        near = (number for unlike, number in alike if -unlike >= NEAR)
        if key:
            return next(near, None)
        said = content_words(response)
        return next((n for n in near if _alike(said, content_words(self._answered[n])) >= NEAR), None)

    def _prefix(self, words: frozenset[str]) -> list[str]:
        ordered = sorted(words, key=lambda word: (self._count[word], word))
        return ordered[: len(words) - ceil(NEAR * len(words)) + 1]


def _probes(instructions: Sequence[str]) -> list[str]:
    """Of each instruction the run of `PROBE` words (all of them where it has fewer) that fewest others have."""
    grams = [_grams(words, min(PROBE, len(words))) for words in map(_WORD.findall, instructions)]
    count = Counter(gram for runs in grams for gram in runs)
    rarest = (min(runs, key=lambda gram: (count[gram], gram)) for runs in grams)
    return [" ".join(gram) for gram in rarest]


def _grams(words: Sequence[str], size: int) -> set[tuple[str, ...]]:
    """All runs of `size` words; the one empty run for size 0."""
    return set(zip(*(words[start:] for start in range(size)), strict=False)) if size else {()}


def _holds(text: str, instruction: str, response: str) -> bool:
    """Whether both stand in the text, the response not only as a part of the instruction."""
    return _contains(text, instruction) and _contains(text.replace(instruction, "\n"), response)


def _contains(text: str, part: str) -> bool:
    """Whether `part` stands in `text` as whole words and whole values: `sam` is not in `sam.lee` nor in `/home/sam`."""
    if part not in text:
        return False
    return re.search(rf"(?<![\w/@~-]){re.escape(part)}(?![\w/@-]|[.:]\w)", text) is not None
