"""The generators that recipes name: documents for pretraining, examples for fine-tuning and evaluation, preferences."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from leveret.config import Config
from leveret.data.examples import Example, Message, Preference, one_turn
from leveret.data.sources import Document
from leveret.errors import UserError
from leveret.tasks.arithmetic import ArithmeticOptions, as_documents, as_pairs, as_preferences
from leveret.tasks.shell.drills import DrillOptions, drills
from leveret.tasks.shell.lessons import LessonOptions, lessons
from leveret.tasks.shell.mistakes import preferences
from leveret.tasks.shell.pairs import ShellOptions, pairs


@lru_cache(maxsize=1)
def version() -> str:
    """A hash of everything under tasks/: a changed generator makes other data."""
    folder = Path(__file__).parent
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".yaml"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:16]


Options = TypeVar("Options", bound=Config)


def _checked(kind: type[Options], given: dict[str, Any], name: str) -> Options:
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        known = ", ".join(kind.model_fields)
        raise UserError(f"generator {name}: {first['loc'][0]}: {first['msg']}; its options are {known}") from None


def _shell(**options: Any) -> Iterator[Example]:
    for pair in pairs(_checked(ShellOptions, options, "shell")):
        yield one_turn(pair.instruction, pair.command, "shell", {"intent": pair.intent, "shell": pair.shell})


def _arithmetic(**options: Any) -> Iterator[Example]:
    for prompt, answer in as_pairs(_checked(ArithmeticOptions, options, "arithmetic")):
        yield one_turn(prompt, answer, "arithmetic")


def _shell_preferences(**options: Any) -> Iterator[Preference]:
    for pair in preferences(_checked(ShellOptions, options, "shell-preferences")):
        prompt = (Message("user", pair.instruction),)
        meta = {"intent": pair.intent, "shell": pair.shell, "mistake": pair.mistake}
        yield Preference(prompt, pair.chosen, pair.rejected, "shell-preferences", meta)


def _arithmetic_preferences(**options: Any) -> Iterator[Preference]:
    for prompt, right, wrong in as_preferences(_checked(ArithmeticOptions, options, "arithmetic-preferences")):
        yield Preference((Message("user", prompt),), right, wrong, "arithmetic-preferences")


def _shell_lessons(**options: Any) -> Iterator[Document]:
    for text in lessons(_checked(LessonOptions, options, "shell-lessons")):
        yield Document(text, "shell-lessons")


def _shell_drills(**options: Any) -> Iterator[Document]:
    for text in drills(_checked(DrillOptions, options, "shell-drills")):
        yield Document(text, "shell-drills")


def _arithmetic_lines(**options: Any) -> Iterator[Document]:
    for text in as_documents(_checked(ArithmeticOptions, options, "arithmetic")):
        yield Document(text, "arithmetic")


EXAMPLES: Mapping[str, Callable[..., Iterable[Example]]] = {"shell": _shell, "arithmetic": _arithmetic}
PREFERENCES: Mapping[str, Callable[..., Iterable[Preference]]] = {
    "shell-preferences": _shell_preferences,
    "arithmetic-preferences": _arithmetic_preferences,
}
DOCUMENTS: Mapping[str, Callable[..., Iterable[Document]]] = {
    "shell-lessons": _shell_lessons,
    "shell-drills": _shell_drills,
    "arithmetic": _arithmetic_lines,
}
