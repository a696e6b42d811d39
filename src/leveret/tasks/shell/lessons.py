"""The corpus of the quickstart: short lessons about shell commands, generated from training pairs only.

No held-out wording, value or company of options stands in it.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from importlib import resources

import yaml
from pydantic import Field

from leveret.config import Config
from leveret.tasks.shell.pairs import ShellOptions, ShellPair, pairs


class LessonOptions(Config):
    """What the generator of lessons is asked for."""

    per_intent: int = Field(300, gt=0)
    """Training pairs of each intent to make lessons of."""
    core: bool = False
    """Only the everyday intents (grammar/core.yaml)."""
    seed: int = 0
    """Seed of the lessons' order and wording; the pairs are those of the shell generator with this seed."""


def lessons(options: LessonOptions) -> Iterator[str]:
    """Documents of one to four pairs each, in prose, and what the glossary says of the commands."""
    rng = random.Random(f"lessons/{options.seed}")
    asked = ShellOptions(per_intent=options.per_intent, core=options.core, seed=options.seed)
    of_intent: dict[str, list[ShellPair]] = defaultdict(list)
    for pair in pairs(asked):
        of_intent[pair.intent].append(pair)
    texts = [f"{command}: {about}" for command, sentences in glossary().items() for about in sentences]
    for group in of_intent.values():
        rng.shuffle(group)
        while group:
            size = min(len(group), rng.choice([1, 2, 3, 4]))
            taken, group = group[:size], group[size:]
            texts.append(_lesson(taken, rng))
    rng.shuffle(texts)
    yield from texts


def _lesson(group: list[ShellPair], rng: random.Random) -> str:
    form = rng.choice(FORMS)
    return "\n".join(form.format(instruction=pair.instruction, command=pair.command) for pair in group)


FORMS = (
    "{instruction}\n    {command}",
    "Question: {instruction}\nAnswer: {command}",
    "{command}\n# {instruction}",
    "# {instruction}\n{command}\n",
)


@lru_cache(maxsize=1)
def glossary() -> dict[str, list[str]]:
    """What each command is for: sentences by command name."""
    text = (resources.files(__package__) / "glossary.yaml").read_text("utf-8")
    content: dict[str, list[str]] = yaml.load(text, yaml.CSafeLoader)
    return content
