"""Evaluation sets against a corpus: how much of them stands in it, and how it is taken out.

    files of sets -> text of each example -> NgramIndex --+-> Decontaminator: a document as it is, cut, or dropped
                                                          +-> contamination: a corpus -> a report by set

The text of an example is the question with the right answer, since that is what must not be learnt by heart. GPT-3
(Brown et al. 2020, appendix C) took an example for dirty where it shares any 13-gram with the corpus, and so does
the report; it cut 200 characters on either side out of its documents, where `cut` takes whole sentences.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import tee
from pathlib import Path
from typing import Any, NamedTuple

from leveret.data.config import OriginConfig
from leveret.data.filters.chain import Verdict
from leveret.data.overlap import COMMON, NGRAM, Coverage, DecontaminateConfig, NgramIndex, Overlap, Passage, merged
from leveret.data.readers import read_rows
from leveret.data.sources import Document, find_files, named, source_facts
from leveret.data.words import Words
from leveret.errors import UserError

NAME = "decontamination"
"""What verdicts call this filter."""
FIELDS = (
    *("messages", "passage", "context", "context_options", "query", "question", "instruction", "input", "prompt"),
    *("choices", "continuation", "answer", "output", "response", "completion", "command", "text"),
)
"""Known fields of examples, in the order in which their texts are joined."""
_GOLD = ("gold", "answer", "label")
_LABEL = re.compile(r"^[^\S\n]*(?:Question|Passage|Choices|Answer):", re.MULTILINE)
_OPTION = re.compile(r"^([A-Z])[.)] (.*)\n?", re.MULTILINE)
_BOUND = re.compile(r"""[.!?…]["'”’»)\]]*[^\S\n]+|\n""")


# --- sets ----------------------------------------------------------------------------------------------------


def index_sets(sets: Sequence[str], base_dir: Path, n: int = NGRAM, fields: Sequence[str] = ()) -> NgramIndex:
    """The index of evaluation sets: files, folders and globs, relative to `base_dir`; see `read_sets`."""
    return NgramIndex.build(read_sets(sets, base_dir, fields), n)


def read_sets(sets: Sequence[str], base_dir: Path, fields: Sequence[str] = ()) -> Iterator[Passage]:
    """The examples of evaluation sets, each file a set of its bare name (its path, where two have the same).

    Raises UserError for what cannot be read, and for a row without any of `fields`, by default `FIELDS`.
    """
    paths = find_files(sets, base_dir)
    names = Counter(path.name.partition(".")[0] for path in paths)
    for path in paths:
        bare = path.name.partition(".")[0]
        name = bare if names[bare] == 1 else named(path, base_dir)
        for number, (row, values) in enumerate(read_rows(path)):
            yield Passage(name, number, example_text(values, fields, f"{path}:{row}"))


def example_text(row: Mapping[str, Any], fields: Sequence[str] = (), where: str = "") -> str:
    """The question and the right answer of an example: all its texts among `fields`, joined in their order.

    Of a list only the right item counts, where `gold`, `answer` or `label` holds its number, else all. Labels such
    as `Question:` are left out, as no text but a benchmark's prompt has them; an answer that is one letter of the
    options in the question stands for that option. Raises UserError where the row has no such field.
    """
    known = [name for name in fields or FIELDS if row.get(name) is not None]
    if not known or (fields and len(known) < len(fields)):
        wanted = f"'{next(name for name in fields if name not in known)}'" if fields else "known fields of an example"
        raise UserError(f"{where}: no {wanted}; name some of its fields in 'fields' or with --field: {', '.join(row)}")
    gold = next((row[name] for name in _GOLD if type(row.get(name)) is int), -1)
    texts: list[str] = []
    for value in map(row.__getitem__, known):
        texts += _texts(value[gold] if isinstance(value, list) and 0 <= gold < len(value) else value)
    *question, answer = texts or [""]
    asked = "\n".join(question)
    if answer in (options := dict(_OPTION.findall(asked))):
        asked, answer = _OPTION.sub("", asked), options[answer]
    return _LABEL.sub("", f"{asked}\n{answer}").strip()


def _texts(value: object) -> Iterator[str]:
    """All texts in a value: itself, those of its items, of a message its content."""
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from _texts(item)
        case {"content": inner} | {"text": inner}:
            yield from _texts(inner)


# --- taking them out -----------------------------------------------------------------------------------------


class Decontaminator:
    """Keeps the examples of evaluation sets out of a corpus, a document at a time.

    Raises UserError for sets that cannot be read.
    """

    def __init__(self, config: DecontaminateConfig, base_dir: Path) -> None:
        self.index = index_sets(config.sets, base_dir, config.ngram, config.fields)
        self._cut = config.action == "cut"

    def __call__(self, text: str) -> Verdict:
        """The text as it is, without the sentences that overlap, or dropped; `why` names the first example."""
        return self._judge(text, self.index.find(text))

    def each(self, texts: Sequence[str]) -> Iterator[Verdict]:
        """The verdict on each text; for short ones several times as fast as one at a time."""
        return map(self._judge, texts, self.index.find_each(texts))

    def _judge(self, text: str, overlaps: Sequence[Overlap]) -> Verdict:
        if not overlaps:
            return Verdict(text)
        why = f"{overlaps[0].set}: example {overlaps[0].number + 1}"
        if not self._cut:
            return Verdict(None, NAME, why)
        rest = without(text, [(overlap.start, overlap.end) for overlap in overlaps])
        if 2 * len(rest.strip()) < len(text.strip()):
            return Verdict(None, NAME, why)
        return Verdict(rest, edits={NAME: Counter(overlap.set for overlap in overlaps)})


def without(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """The text without the sentences, or the lines where they are no sentences, that have a part in a span."""
    bounds = {0, len(text)}
    for found in _BOUND.finditer(text):
        bounds |= {found.start(), found.end()} if found[0] == "\n" else {found.end()}
    places = sorted(bounds)
    wide = ((places[bisect_right(places, start) - 1], places[bisect_left(places, end)]) for start, end in spans)
    kept, last = [], 0
    for start, end in merged(wide):
        kept.append(text[last:start])
        last = end
    return "".join([*kept, text[last:]])


def facts(config: DecontaminateConfig, base_dir: Path) -> dict[str, Any]:
    """What decides the verdicts, as JSON, for manifests and fingerprints: the config, and the content of its files."""
    files = source_facts(OriginConfig(paths=config.sets), base_dir)["files"]
    return config.model_dump(mode="json", exclude={"sets"}) | {"files": files}


# --- the audit -----------------------------------------------------------------------------------------------

NEARLY = 0.8
"""Share of an example's words from which on nearly all of it stands in a document."""
SHOWN = 3
"""Overlapping passages that a report shows of each set."""


class Shown(NamedTuple):
    """An overlap as a report shows it."""

    row: int
    """Number of the example in its set, from 1."""
    where: str
    """Of the document."""
    start: int
    """Its first character in the document, from 0."""
    text: str
    """What stands in the document, white space aside."""


@dataclass(slots=True)
class Found:
    """What was found of one set."""

    coverage: Coverage
    examples: set[int] = field(default_factory=set)
    """Numbers of the examples that stand in the corpus, at least in part."""
    documents: int = 0
    """Documents that hold some of the set."""
    whole: set[int] = field(default_factory=set)
    """Those of them of which one document has nearly all words; of the others it has a phrase."""
    passages: list[Shown] = field(default_factory=list)
    """The first few overlaps, each of another example."""

    @property
    def share(self) -> float:
        """Of the examples that could be found, those that were."""
        return len(self.examples) / max(self.coverage.audited, 1)


@dataclass(slots=True)
class Contamination:
    """What of some evaluation sets stands in a corpus; `facts` is it as JSON."""

    ngram: int
    ignored: int
    """N-grams of more than ten examples, which were not looked for."""
    sets: dict[str, Found]
    documents: int = 0
    characters: int = 0

    def facts(self) -> dict[str, Any]:
        """For a file: all that `render` says, and which examples were found, by row from 1."""
        return {
            "format_version": 1,
            "ngram": self.ngram,
            "ignored_ngrams": self.ignored,
            "documents": self.documents,
            "characters": self.characters,
            "sets": {
                name: {
                    "examples": found.coverage.passages,
                    "too_short": found.coverage.short,
                    "only_ignored_ngrams": found.coverage.common,
                    "contaminated": len(found.examples),
                    "share": found.share,
                    "documents": found.documents,
                    "rows": sorted(number + 1 for number in found.examples),
                    "nearly_whole": sorted(number + 1 for number in found.whole),
                    "passages": [passage._asdict() for passage in found.passages],
                }
                for name, found in self.sets.items()
            },
        }


def audit_contamination(
    corpus: Iterable[Document],
    sets: Sequence[str],
    n: int = NGRAM,
    base_dir: Path = Path(),
    fields: Sequence[str] = (),
) -> Contamination:
    """What of evaluation sets (see `read_sets`) stands in a corpus, in runs of n words; reads it once.

    Raises UserError for sets that cannot be read.
    """
    return contamination(corpus, index_sets(sets, base_dir, n, fields))


def contamination(corpus: Iterable[Document], index: NgramIndex, shown: int = SHOWN) -> Contamination:
    """What of an index's sets stands in a corpus, with the first `shown` overlapping passages of each."""
    search = Search(index, shown)
    search.look(corpus)
    return search.found


class Search:
    """Looks for the passages of an index in a corpus; `found` is what it has found of them so far."""

    def __init__(self, index: NgramIndex, shown: int = SHOWN) -> None:
        self.found = Contamination(index.n, index.common, {name: Found(known) for name, known in index.sets.items()})
        self._index, self._shown, self._lengths = index, shown, index.lengths()

    def look(self, documents: Iterable[Document]) -> None:
        """Takes the next documents, which are read once, a few at a time."""
        report = self.found
        documents, searched = tee(documents)
        for document, overlaps in zip(documents, self._index.find_each(one.text for one in searched), strict=True):
            report.documents += 1
            report.characters += len(document.text)
            for name in {overlap.set for overlap in overlaps}:
                report.sets[name].documents += 1
            there: Counter[tuple[str, int]] = Counter()
            for start, end, name, number in overlaps:
                found = report.sets[name]
                there[name, number] += len(Words(document.text[start:end]))
                if number not in found.examples and len(found.passages) < self._shown:
                    text = " ".join(document.text[start:end].split())
                    found.passages.append(Shown(number + 1, document.where or document.source, start, text))
                found.examples.add(number)
            for (name, number), words in there.items():
                if words >= NEARLY * self._lengths[name, number]:
                    report.sets[name].whole.add(number)


def render(report: Contamination, width: int = 160) -> str:
    """Lines for the terminal: a table of the sets, then the passages, of each at most `width` characters."""
    read = f"{report.documents:,} documents, {report.characters / 1e6:,.1f} million characters"
    wide = max([24, *map(len, report.sets)])
    lines = [
        f"{read}, searched for runs of {report.ngram} words",
        "",
        f"{'set':<{wide}}{'examples':>10}{'too short':>11}{'found':>9}{'share':>9}{'documents':>11}",
    ]
    for name, found in report.sets.items():
        given, short = found.coverage.passages, found.coverage.short
        some = f"{len(found.examples):>9,}{found.share:>9.2%}{found.documents:>11,}"
        lines.append(f"{name:<{wide}}{given:>10,}{short:>11,}{some}")
    if report.ignored:
        lost = sum(found.coverage.common for found in report.sets.values())
        lines.append(f"ignored: {report.ignored:,} runs that stand in more than {COMMON} examples")
        lines.append(f"not searched for: {lost:,} examples that have no other")
    for name, found in report.sets.items():
        for passage in found.passages:
            text = passage.text if len(passage.text) <= width else passage.text[: width - 1] + "…"
            lines += ["", f"{name}, example {passage.row}: {passage.where}, character {passage.start}", f"  {text}"]
    return "\n".join(lines)
