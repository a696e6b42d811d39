"""What a run needs besides a machine that computes: its data can be read, its disk has room, its secrets are there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from leveret.config import cache_dir
from leveret.data.config import ExamplesConfig, OriginConfig, SourceConfig
from leveret.data.examples import examples, preferences
from leveret.data.hub import RetryConfig, hub_pieces
from leveret.data.rows import overlook
from leveret.data.sources import describe, documents, pieces
from leveret.errors import UserError
from leveret.planning.credentials import wanted_secrets
from leveret.posttraining.config import PreferConfig
from leveret.recipe import Recipe
from leveret.tasks import generators
from leveret.training.saving import free_space

SAMPLE_BYTES = 300_000
"""Of text that is read of a source."""
SECONDS = 20.0
"""How long a source is read at most to see how much there is of it."""
FEW = RetryConfig(attempts=2, first_wait=0.5)


@dataclass(frozen=True)
class Finding:
    """What one check came to. problem: the real run would fail; the words say how to mend it."""

    state: Literal["ok", "warning", "problem"]
    what: str
    said: str

    def __str__(self) -> str:
        return f"{self.state:<8} {self.what:<13} {self.said}"


@dataclass(frozen=True)
class Sample:
    """The first rows of a source: how many, and bytes of their text. rows_in_all, bytes_in_all: of the whole source as
    far as it is known, perhaps from the size of its files."""

    rows: int
    bytes: int
    rows_in_all: float | None
    bytes_in_all: float | None


def look_at_source(config: SourceConfig, base: Path, counted: bool) -> Sample:
    """Reads the first documents. counted: and on, to see how many there are.

    Raises:
        UserError: it cannot be read.
    """
    found = documents(config, base, generators.DOCUMENTS, overlook, lambda line: None, FEW)
    sizes = [piece.size for piece in pieces(config, base, generators.DOCUMENTS, lambda line: None, FEW)]
    in_files = None if None in sizes else sum(filter(None, sizes))
    return _sampled((len(document.text.encode("utf-8", "replace")) for document in found), counted, in_files)


def look_at_examples(config: ExamplesConfig, base: Path, pairs: bool, counted: bool) -> Sample:
    """The same of a source of examples, or of preferences."""
    if config.kind == "hub":
        hub_pieces(config, lambda line: None, FEW)
    items: Iterable[Any] = (
        preferences(config, base, generators.PREFERENCES, overlook)
        if pairs
        else examples(config, base, generators.EXAMPLES, overlook)
    )
    counted = counted and config.kind != "hub"
    return _sampled((len(repr(item)) for item in items), counted, None)


def _sampled(sizes: Iterator[int], counted: bool, in_files: int | None) -> Sample:
    rows = read = 0
    end, sample = time.monotonic() + SECONDS, None
    for size in sizes:
        rows, read = rows + 1, read + size
        if sample is None and read >= SAMPLE_BYTES:
            sample = (rows, read)
            if not counted or in_files is not None:
                break
        if time.monotonic() > end:
            break
    else:
        return Sample(*(sample or (rows, read)), rows, read)
    rows, read = sample or (rows, read)
    if in_files is None:
        return Sample(rows, read, None, None)
    return Sample(rows, read, rows * in_files / read, in_files)


@dataclass(frozen=True)
class Looked:
    """A source that was looked at: its place (part of the recipe, number in it), and its sample; None: it cannot be
    read."""

    part: str
    number: int
    sample: Sample | None
    finding: Finding


def check_sources(recipe: Recipe, base: Path) -> Iterator[Looked]:
    """Every source that the recipe reads from: of text ("data"), of the stages' examples, and the held-out sets."""
    counting = {stage for stage, config in recipe.stages.items() if config.epochs is not None}
    for number, source in enumerate(recipe.data.sources):
        yield _looked("data", number, source, partial(look_at_source, source, base, "pretrain" in counting))
    for stage, config in recipe.tuning.items():
        pairs = isinstance(config, PreferConfig)
        for number, origin in enumerate(config.examples):
            look = partial(look_at_examples, origin, base, pairs, stage in counting)
            yield _looked(stage, number, origin, look)
    for name, origin in recipe.evaluate.sets.items():
        yield _looked(f"held out {name}", 0, origin, partial(look_at_examples, origin, base, False, False))


def _looked(part: str, number: int, origin: OriginConfig, look: Callable[[], Sample]) -> Looked:
    try:
        sample = look()
    except UserError as error:
        why = " ".join(str(error).split())
        return Looked(part, number, None, Finding("problem", part, f"{describe(origin)}: {why}"))
    known = "" if sample.rows_in_all is None else f" of about {sample.rows_in_all:,.0f}"
    if sample.rows == sample.rows_in_all:
        known = ", all there are"
    said = f"{describe(origin)}: {sample.rows:,} rows read{known}"
    return Looked(part, number, sample, Finding("ok", part, said))


def check_secrets(recipe: Recipe) -> Iterator[Finding]:
    """Whether what the recipe may need is set. Nothing of a secret is shown."""
    wanted = wanted_secrets(recipe)
    if "HF_TOKEN" in wanted:
        from huggingface_hub import get_token

        if get_token():
            yield Finding("ok", "secrets", "a token of the Hugging Face Hub is there")
        else:
            yield Finding(
                "warning", "secrets", "no token of the Hugging Face Hub: public data is read without, but private or "
                "gated data and `leveret publish` need one: set HF_TOKEN, or `hf auth login`",
            )  # fmt: skip
    if "WANDB_API_KEY" in wanted and os.environ.get("WANDB_MODE") == "online":
        there = bool(os.environ.get("WANDB_API_KEY"))
        said = "WANDB_API_KEY is set" if there else "WANDB_API_KEY is not set, and WANDB_MODE is online; set it"
        yield Finding("ok" if there else "problem", "secrets", said)
    if not wanted:
        yield Finding("ok", "secrets", "none is needed")


def check_disk(run_dir: Path, checkpoints: int, shards: int | None) -> Iterator[Finding]:
    """Whether there is room for so many bytes, those of a run and those of its shards, each on its disk."""
    told = "shards, whose size is not known yet" if shards is None else f"{shards / 1e9:.2f} GB of shards"
    places = {"checkpoints": (run_dir, checkpoints), "shards": (cache_dir() / "shards", shards or 0)}
    if _disk(run_dir) == _disk(cache_dir()):
        places = {"all": (run_dir, checkpoints + (shards or 0))}
    for what, (place, need) in places.items():
        free = free_space(place)
        parts = {"checkpoints": "for checkpoints", "shards": f"for {told}"}
        why = parts.get(what, f"for {checkpoints / 1e9:.2f} GB of checkpoints and {told}")
        if free is None or free >= need:
            room = "" if free is None else f", {free / 1e9:.1f} GB free"
            yield Finding("ok", "disk", f"{place}: {need / 1e9:.2f} GB {why}{room}")
        else:
            yield Finding(
                "problem", "disk", f"{place} needs {need / 1e9:.2f} GB {why} and has {free / 1e9:.2f}: make room, set "
                "keep_last lower, or take another --run-dir or LEVERET_CACHE",
            )  # fmt: skip


def _disk(folder: Path) -> int:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return there.stat().st_dev
