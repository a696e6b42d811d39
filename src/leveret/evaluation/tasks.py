"""What models are asked: public benchmarks, arithmetic, files of examples, and tasks of the user's own.

    hellaswag, small      public benchmarks (tasks/benchmarks.py), or a suite of them: the likeliest choice
    arithmetic            held-out problems of tasks/arithmetic.py, answered greedily
    FILE                  examples in any format that fine-tuning takes, answered greedily
    tasks.py:capitals     a function in a file or an installed module
    capitals              one by its name in the recipe's `evaluate.tasks`, or an entry point of the group
                          `leveret.tasks`, by which a package brings tasks along

A function of the user's takes nothing and gives rows, or `Rows` of them where an answer may be right otherwise than by
being the expected one but for white space. A row is {"prompt", "answer"}, which is answered greedily, or {"context",
"choices", "gold"} with the right choice's place from 0 on, of which the likeliest is taken.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from itertools import islice
from pathlib import Path
from typing import Any, cast

from leveret.data.examples import Example, read_examples
from leveret.data.filters import hooks
from leveret.errors import UserError
from leveret.evaluation.exact_match import normalise_space
from leveret.tasks.arithmetic import ArithmeticOptions, as_pairs
from leveret.tasks.benchmarks import ALIASES, BENCHMARKS, SUITES, Question, load_benchmark, named

GROUP = "leveret.tasks"
"""Of the entry points."""
ANSWER_TOKENS = 64
"""Of an answer at most, unless a task says otherwise."""
PROBLEMS = ArithmeticOptions(operations=("+", "-", "*"), forms=("symbolic",), count=500, split="heldout")
"""What `arithmetic` asks."""

Tell = Callable[[str], None]
Right = Callable[[str, str], bool]


def exactly(answer: str, expected: str) -> bool:
    """Whether an answer is the expected one but for white space."""
    return normalise_space(answer) == normalise_space(expected)


def last_number(answer: str, expected: str) -> bool:
    """Whether the last word of an answer's first line is the expected number: base models never end by themselves, and
    working stands before its result.
    """
    words = answer.strip().partition("\n")[0].split()
    return bool(words) and words[-1].rstrip(".") == expected


@dataclass(frozen=True, slots=True)
class Rows:
    """What a function of the user's may give.

    right: from (answer, expected) to whether it counts. max_new_tokens: of an answer.
    """

    rows: Iterable[Mapping[str, Any]]
    right: Right = exactly
    max_new_tokens: int = ANSWER_TOKENS


@dataclass(frozen=True, slots=True)
class Asked:
    """A dialogue up to where the answer begins, {"role", "content"} each, and the answer that is expected."""

    messages: tuple[dict[str, str], ...]
    answer: str

    def as_question(self) -> Question:
        """For audits, which look for the text of a question with its answer."""
        return Question(((self.messages[-1]["content"], f" {self.answer}"),), 0, (len(self.answer),))


@dataclass(frozen=True, slots=True)
class Items:
    """What a task asks, all of one kind, and what tells exactly where it is from; `right` as of Rows.

    normed: acc_norm is told too.
    """

    items: Sequence[Question] | Sequence[Asked]
    source: dict[str, Any]
    right: Right = exactly
    max_new_tokens: int = ANSWER_TOKENS
    normed: bool = False

    @property
    def content_hash(self) -> str:
        """SHA-256 in hex of what is asked and how it is scored."""
        rules = {"right": self.source.get("sha256"), "tokens": self.max_new_tokens, "normed": self.normed}
        whole = [rules, [asdict(item) for item in self.items]]
        return hashlib.sha256(json.dumps(whole, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def questions(self) -> list[Question]:
        return [item.as_question() if isinstance(item, Asked) else item for item in self.items]


@dataclass(frozen=True, slots=True)
class Task:
    """A name, and what reads the first so many of its items (None: all) from a folder of benchmarks, or elsewhere."""

    name: str
    load: Callable[[int | None, Path | None, Tell], Items]


def find_tasks(names: str, base_dir: Path, declared: Mapping[str, str] | None = None) -> list[Task]:
    """The tasks that a list with commas means, each once.

    Args:
        base_dir: where paths of files begin.
        declared: the recipe's `evaluate.tasks`.

    Raises:
        UserError: there is no such task, or two have one name.
    """
    found: dict[str, Task] = {}
    for name in filter(None, map(str.strip, names.split(","))):
        for task in _find(name, base_dir, declared or {}):
            known = found.setdefault(task.name, task)
            if known is not task and task.name not in (*BENCHMARKS, "arithmetic"):
                raise UserError(f"--suite: two tasks are called {task.name!r}; give one of them another name")
    if not found:
        raise UserError(f"--suite names nothing; there are {', '.join((*SUITES, *BENCHMARKS, 'arithmetic'))}")
    return list(found.values())


def _find(name: str, base_dir: Path, declared: Mapping[str, str]) -> list[Task]:
    if name in (*SUITES, *BENCHMARKS, *ALIASES):
        return [benchmark(each) for each in named(name)]
    if name in declared:
        return [_own(name, declared[name], base_dir)]
    if name == "arithmetic":
        return [Task(name, _arithmetic)]
    if entries := entry_points(group=GROUP, name=name):
        return [_own(name, next(iter(entries)).value, base_dir)]
    if (base_dir / name).exists():
        return [_of_file(base_dir / name)]
    if ":" in name:
        return [_own(name.rpartition(":")[2], name, base_dir)]
    known = ", ".join((*SUITES, *BENCHMARKS, "arithmetic", *declared, *entry_points(group=GROUP).names))
    raise UserError(f"--suite: there is no benchmark {name!r}, nor a task or a file; there are {known}")


def benchmark(name: str) -> Task:
    """A public benchmark by its own name."""

    def load(limit: int | None, bench: Path | None, tell: Tell) -> Items:
        loaded = load_benchmark(name, bench, limit, tell)
        return Items(loaded.questions, dict(loaded.source), normed=BENCHMARKS[name].normed)

    return Task(name, load)


def _arithmetic(limit: int | None, bench: Path | None, tell: Tell) -> Items:
    items = [_asked(prompt, answer) for prompt, answer in islice(as_pairs(PROBLEMS), limit)]
    return Items(items, {"generator": "arithmetic", **PROBLEMS.model_dump(mode="json")}, last_number, 48)


def _of_file(path: Path) -> Task:
    """Examples, whose answers must be matched exactly."""

    def load(limit: int | None, bench: Path | None, tell: Tell) -> Items:
        items = [_of_example(example) for example in islice(read_examples(path), limit)]
        return Items(items, {"file": path.name})

    return Task(_named(path.stem), load)


def _of_example(example: Example) -> Asked:
    said = tuple({"role": each.role, "content": each.content} for each in example.messages[:-1])
    return Asked(said, example.response)


def _own(name: str, path: str, base_dir: Path) -> Task:
    """A function of the user's."""

    def load(limit: int | None, bench: Path | None, tell: Tell) -> Items:
        made = _call(cast(Callable[[], Any], hooks.load(path, base_dir)), path)
        rows = made if isinstance(made, Rows) else Rows(made)
        try:
            items = [_item(row, path, number) for number, row in enumerate(islice(rows.rows, limit), 1)]
        except UserError:
            raise
        except Exception as error:  # rows of a user's may be anything, also something that fails while it goes on
            raise UserError(f"'{path}' gave no rows ({type(error).__name__}: {error})") from error
        if not items or len({type(item) for item in items}) > 1:
            raise UserError(
                f"'{path}' gave {'rows of both kinds' if items else 'no rows'}; see `leveret.evaluation.tasks`"
            )
        source = {"path": path, "sha256": hooks.source_hash(path, base_dir)}
        return Items(cast(Any, items), source, rows.right, rows.max_new_tokens)

    return Task(_named(name), load)


def _call(function: Callable[[], Any], path: str) -> Any:
    try:
        return function()
    except Exception as error:  # a user's function may raise anything
        raise UserError(f"'{path}' failed ({type(error).__name__}: {error})") from error


def _item(row: Any, path: str, number: int) -> Question | Asked:
    try:
        if "choices" in row:
            choices, gold = [str(text) for text in row["choices"]], int(row["gold"])
            if not 0 <= gold < len(choices):
                raise ValueError(f"gold is {gold}, and there are {len(choices)} choices")
            pairs = tuple((str(row["context"]), f" {text}") for text in choices)
            return Question(pairs, gold, tuple(map(len, choices)))
        return _asked(str(row["prompt"]), str(row["answer"]))
    except (KeyError, TypeError, ValueError) as error:
        told = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise UserError(f"'{path}', row {number} is no question of a task: {told}") from None


def _asked(prompt: str, answer: str) -> Asked:
    return Asked(({"role": "user", "content": prompt},), answer)


def _named(name: str) -> str:
    """A name that files can have."""
    return re.sub(r"[^\w.-]+", "_", name)
