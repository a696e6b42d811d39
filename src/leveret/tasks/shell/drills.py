"""Copying drills: values of the grammar's slots said twice, so that a model soon learns to copy what it has not seen.

Copying forms much sooner on text that can only be predicted by copying (Olsson et al., 2022, on induction heads).
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from pydantic import Field

from leveret.config import Config
from leveret.tasks.shell.grammar import load_grammar

KINDS = (
    "branch", "container", "count", "date", "dir", "domain", "email", "envvar", "file", "folder", "glob",
    "host", "image", "ip", "key", "message", "package", "port", "text", "url", "user", "version", "word",
)  # fmt: skip
QUOTES = ("{}", "'{}'", '"{}"', "--{}", "={}", "s/{}/", "{}:", "/{}", "@{}")


class DrillOptions(Config):
    """What the generator of drills is asked for."""

    count: int = Field(4000, gt=0)
    """Drills."""
    seed: int = 0
    """Seed of the draws; no value that is kept out of training is drawn."""


def drills(options: DrillOptions) -> Iterator[str]:
    """Documents of two lines: one to five values, then the same, some quoted, some in another order."""
    slots = load_grammar().slots
    rng = random.Random(f"drills/{options.seed}")
    for _ in range(options.count):
        values = [slots.draw_side(rng.choice(KINDS), False, rng).typed for _ in range(rng.randint(1, 5))]
        again = rng.sample(values, len(values)) if rng.random() < 0.3 else values
        quote = rng.choice(QUOTES)
        yield " ".join(values) + "\n" + " ".join(quote.format(value) for value in again)
