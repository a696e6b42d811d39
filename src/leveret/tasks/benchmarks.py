"""The public benchmarks of small models, each question as the pairs of texts whose likelihood answers it.

Prompts are those of lm-evaluation-harness 0.4 (`tests/evaluation/test_harness.py` compares them, and what is told of
a choice's length, with the harness's own), zero-shot. Rows come from a folder of jsonl files or from the hub.

A local row is shorter than the hub's: it holds the question put together, in a form that is not quite the harness's
(its HellaSwag does not begin the last sentence with a capital, its COPA keeps a comma), which is mended here. Of
CommonsenseQA's five choices the local file holds four.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from leveret.data.config import OriginConfig
from leveret.data.hub import Log, hub_pieces, hub_rows
from leveret.errors import UserError
from leveret.strangers.documents import parse_json
from leveret.strangers.files import read_limited

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked.

    pairs: (context, continuation) of each choice; the likeliest continuation is the answer. A single pair is right if
    each of its tokens is the likeliest. lengths: characters of each choice, by which acc_norm divides.
    """

    pairs: tuple[tuple[str, str], ...]
    gold: int
    lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Where a benchmark comes from, and how a row of it becomes a question.

    split: of the hub's dataset, the one that the harness scores. normed: the harness tells acc_norm too.
    """

    file: str
    dataset: str
    subset: str | None
    split: str
    of_hub: Callable[[Row], Question]
    of_file: Callable[[Row], Question]
    normed: bool = False

    @property
    def origin(self) -> OriginConfig:
        return OriginConfig(kind="hub", name=self.dataset, subset=self.subset, split=self.split)


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions of a benchmark, and what tells exactly where they are from."""

    questions: list[Question]
    source: dict[str, str | None]


def _choose(context: str, choices: Iterable[str], gold: int) -> Question:
    """One context; the choices follow it after a space."""
    texts = list(choices)
    return Question(tuple((context, f" {text}") for text in texts), gold, tuple(map(len, texts)))


def _fill(contexts: Iterable[str], continuation: str, gold: int) -> Question:
    """One continuation after a space; the choices are within the contexts (Trinh and Le, 2018)."""
    texts = list(contexts)
    return Question(tuple((text, f" {continuation}") for text in texts), gold, tuple(map(len, texts)))


def _arc(row: Row) -> Question:
    choices = row["choices"]
    gold = choices["label"].index(row["answerKey"])
    return _choose(f"Question: {row['question']}\nAnswer:", choices["text"], gold)


def _asked(row: Row) -> Question:
    """A local row whose query is the question."""
    return _choose(f"{row['query'].rstrip()}\nAnswer:", row["choices"], row["gold"])


def _plain(row: Row) -> Question:
    return _choose(row["query"], row["choices"], row["gold"])


def _without_marks(text: str) -> str:
    """HellaSwag's WikiHow articles without the marks of their parts."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _hellaswag(row: Row) -> Question:
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return _choose(_without_marks(context), map(_without_marks, row["endings"]), int(row["label"]))


def _hellaswag_file(row: Row) -> Question:
    cut = re.fullmatch(r"(.*[.!?][\"')]*\s+)([a-z][^.!?]*)", row["query"], re.DOTALL)
    context = cut[1] + cut[2].capitalize() if cut else row["query"]
    return _choose(context, row["choices"], row["gold"])


def _lambada(row: Row) -> Question:
    context, _, word = row["text"].rpartition(" ")
    return Question(((context, f" {word}"),), 0, (len(word),))


def _lambada_file(row: Row) -> Question:
    return _lambada({"text": f"{row['context']} {row['continuation']}"})


def _piqa(row: Row) -> Question:
    return _choose(f"Question: {row['goal']}\nAnswer:", (row["sol1"], row["sol2"]), row["label"])


def _winogrande(row: Row) -> Question:
    before, after = row["sentence"].split("_", 1)
    return _fill((before + row["option1"], before + row["option2"]), after.strip(), int(row["answer"]) - 1)


def _filled(row: Row) -> Question:
    """A local row with two contexts."""
    return _fill(row["context_options"], row["continuation"], row["gold"])


def _openbookqa(row: Row) -> Question:
    choices = row["choices"]
    return _choose(row["question_stem"], choices["text"], choices["label"].index(row["answerKey"].strip()))


def _copa(row: Row) -> Question:
    """The harness puts two spaces in front of its choices."""
    connector = {"cause": "because", "effect": "therefore"}[row["question"]]
    choices = [f" {text[0].lower()}{text[1:]}" for text in (row["choice1"], row["choice2"])]
    return _choose(f"{row['premise'].strip()[:-1]} {connector}", choices, row["label"])


def _copa_file(row: Row) -> Question:
    context = re.sub(r", (because|therefore)$", r" \1", row["query"])
    return _choose(context, [f" {text}" for text in row["choices"]], row["gold"])


def _winograd(row: Row) -> Question:
    """The harness puts two spaces in front of what follows the pronoun."""
    text, at = row["text"].replace("  ", " "), row["pronoun_loc"]
    begins = text[at - 2] == "."
    options = []
    for option in row["options"]:
        first = option.split()[0]
        if row["pronoun"].lower() in ("my", "his", "her", "our", "their"):
            option += "'s"
        if not begins and first in _DETERMINERS:
            option = option.replace(first, first.lower())
        options.append(text[:at] + option)
    return _fill(options, text[at + len(row["pronoun"]) :], row["label"])


_DETERMINERS = ("A", "An", "The", "She", "He", "It", "They", "My", "His", "Her", "Their")


def _winograd_file(row: Row) -> Question:
    return _fill(row["context_options"], f" {row['continuation']}", row["gold"])


def _lettered(question: str, choices: list[str], gold: int) -> Question:
    letters = "ABCDE"[: len(choices)]
    lines = [f"{letter}. {text}" for letter, text in zip(letters, choices, strict=True)]
    return _choose("\n".join([f"Question: {question.strip()}", *lines, "Answer:"]), letters, gold)


def _commonsense_qa(row: Row) -> Question:
    return _lettered(row["question"], row["choices"]["text"], "ABCDE".index(row["answerKey"]))


def _commonsense_qa_file(row: Row) -> Question:
    return _choose(row["query"].replace("\nChoices:\n", "\n", 1), row["choices"], row["gold"])


def _boolq(row: Row) -> Question:
    return _choose(f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:", ("no", "yes"), row["label"])


def _boolq_file(row: Row) -> Question:
    return _choose(f"{row['query'].removeprefix('Passage: ')}\nAnswer:", row["choices"], row["gold"])


_ARC, _GLUE = "allenai/ai2_arc", "aps/super_glue"
BENCHMARKS: dict[str, Benchmark] = {
    "arc_easy": Benchmark("arc_easy", _ARC, "ARC-Easy", "test", _arc, _asked, True),
    "arc_challenge": Benchmark("arc_challenge", _ARC, "ARC-Challenge", "test", _arc, _asked, True),
    "hellaswag": Benchmark("hellaswag", "Rowan/hellaswag", None, "validation", _hellaswag, _hellaswag_file, True),
    "lambada_openai": Benchmark(
        "lambada_openai", "EleutherAI/lambada_openai", "default", "test", _lambada, _lambada_file
    ),
    "piqa": Benchmark("piqa", "baber/piqa", None, "validation", _piqa, _asked, True),
    "winogrande": Benchmark("winogrande", "allenai/winogrande", "winogrande_xl", "validation", _winogrande, _filled),
    "openbookqa": Benchmark("openbook_qa", "allenai/openbookqa", "main", "test", _openbookqa, _plain, True),
    "copa": Benchmark("copa", _GLUE, "copa", "validation", _copa, _copa_file),
    "wsc273": Benchmark("winograd", "lighteval/winograd_wsc", "wsc273", "test", _winograd, _winograd_file),
    "commonsense_qa": Benchmark(
        "commonsense_qa", "tau/commonsense_qa", None, "validation", _commonsense_qa, _commonsense_qa_file
    ),
    "boolq": Benchmark("boolq", _GLUE, "boolq", "validation", _boolq, _boolq_file),
}
"""By the harness's names."""

SUITES: dict[str, tuple[str, ...]] = {"small": tuple(BENCHMARKS), "six": tuple(BENCHMARKS)[:6]}
"""`six` is what l20-edu-135m was published with."""

MOST_BYTES = 2**28
"""Of a file of questions; the largest of these has some ten million."""
ALIASES = {"lambada": "lambada_openai", "winograd": "wsc273", "openbook_qa": "openbookqa"}


def named(names: str) -> list[str]:
    """The benchmarks that a suite's name or a list with commas means, each once.

    Raises:
        UserError: there is no such one.
    """
    found: list[str] = []
    for name in filter(None, map(str.strip, names.split(","))):
        tasks = SUITES.get(name) or (ALIASES.get(name, name),)
        if unknown := [task for task in tasks if task not in BENCHMARKS]:
            known = ", ".join((*SUITES, *BENCHMARKS))
            raise UserError(f"--suite: there is no benchmark {unknown[0]!r}; there are {known}")
        found += [task for task in tasks if task not in found]
    if not found:
        raise UserError(f"--suite names nothing; there are {', '.join((*SUITES, *BENCHMARKS))}")
    return found


def load_benchmark(name: str, folder: Path | None, limit: int | None = None, log: Log = lambda line: None) -> Questions:
    """The first `limit` questions of a benchmark, or all.

    Args:
        folder: of jsonl files; None: the hub's dataset is read.
        log: told of each failure of the network.

    Raises:
        UserError: it is not there, or a row is not what it should be.
    """
    benchmark = BENCHMARKS[name]
    if folder is None:
        pieces = hub_pieces(benchmark.origin, log)
        rows: Iterator[tuple[int, Row]] = (row for piece in pieces for row in hub_rows(piece, log))
        source = {"dataset": benchmark.dataset, "subset": benchmark.subset, "split": benchmark.split}
        return Questions(
            _questions(benchmark.dataset, rows, benchmark.of_hub, limit), {**source, "revision": pieces[0].revision}
        )
    path = folder / f"{benchmark.file}.jsonl"
    try:
        text = read_limited(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} cannot be read ({reason}); --bench names the folder of the files") from None
    rows = _lines(path, text.decode("utf-8", errors="replace"))
    digest = hashlib.sha256(text).hexdigest()
    return Questions(_questions(str(path), rows, benchmark.of_file, limit), {"file": path.name, "sha256": digest})


def _lines(path: Path, text: str) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number} is not JSON ({error})") from None


def _questions(
    where: str, rows: Iterable[tuple[int, Row]], read: Callable[[Row], Question], limit: int | None
) -> list[Question]:
    questions = []
    for number, row in islice(rows, limit):
        try:
            question = read(row)
            question.pairs[question.gold]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise UserError(f"{where}, row {number} is no question of this benchmark ({error!r})") from None
        questions.append(question)
    if not questions:
        raise UserError(f"{where} has no questions")
    return questions
