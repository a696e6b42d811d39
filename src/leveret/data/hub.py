"""Datasets of the Hugging Face hub: numbered rows, one shard at a time, over a network that fails.

    config --resolve_revision--> commit --hub_pieces--> pieces --hub_rows--> (number, row), (number, row), ...
                                                                  |  ^
                                                               breaks: wait, go on with the row after the last

`datasets` finds the files of a subset and split. Parquet files are then read here, through the hub's file system: a
break or a restart costs the row group at hand, and memory holds parts of one row group only. Other formats stream
through `datasets`, which has to read a shard again from its start.

The libraries repeat a request a few times on their own; what they say of that is passed on, so that it is counted.
What they give up is tried again here. A dataset's own code is never run.
"""

from __future__ import annotations

import logging
import lzma
import os
import random
import re
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field, PositiveInt

from leveret.config import Config
from leveret.data.rows import Row
from leveret.errors import UserError

if TYPE_CHECKING:  # config.py may hold a RetryConfig
    from leveret.data.config import OriginConfig

Log = Callable[[str], None]
"""Told, in a line, of every failure of the network that reading outlived."""
T = TypeVar("T")

BATCH_ROWS = 32
"""Rows made into Python objects at once: few, since texts may be long."""
BUFFER_BYTES = 8 << 20
"""What is read of a column at once."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_WIRE = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "aiohttp", "http", "ssl"}
_HELP = {
    401: "no such dataset, or a private one; check its name, or log in with `hf auth login`",
    403: "no access to it; ask for it on the dataset's page, and log in with `hf auth login`",
    404: "not found on the hub; check its name and revision",
}


class RetryConfig(Config):
    """How long a failing network is borne with: waits double from the first to the longest, less a random half."""

    attempts: PositiveInt = 8
    """How often reading may fail in a row, without one new row, before it is given up."""
    first_wait: float = Field(default=1.0, ge=0)
    """Seconds to wait after the first failure."""
    longest_wait: float = Field(default=60.0, ge=0)
    """Seconds that no wait is longer than."""

    def wait(self, failures: int) -> float:
        """Seconds to wait after that many failures in a row; random, so that many readers do not return at once."""
        return min(self.longest_wait, self.first_wait * 2.0 ** min(failures - 1, 64)) * random.SystemRandom().uniform(
            0.5, 1
        )


RETRY = RetryConfig()


@dataclass(frozen=True, slots=True)
class HubPiece:
    """One shard of a dataset's split: an independent, sequential read that can be sent to another process."""

    name: str
    """The data file's path within the dataset; the shard's number where shards are not files."""
    config: OriginConfig
    """Its dataset, with the commit as revision."""
    index: int
    count: int
    """Which one of how many shards it is, from 0."""
    file: str | None
    """Where the file is, if it is a parquet file."""
    retry: RetryConfig

    @property
    def revision(self) -> str | None:
        """Commit on the hub; None for a local folder."""
        return self.config.revision


def _silent(line: str) -> None:
    pass


def resolve_revision(config: OriginConfig, log: Log = _silent, retry: RetryConfig = RETRY) -> str | None:
    """The commit on the hub that name and revision stand for now; None for a local folder.

    Failures as in `hub_rows`.
    """
    if _is_local(config):
        return None
    if config.revision and _COMMIT.fullmatch(config.revision):
        return config.revision
    from huggingface_hub import HfApi

    ask = partial(HfApi().dataset_info, str(config.name), revision=config.revision)
    return str(_Patience(config, retry, log).call(ask).sha)


def hub_pieces(config: OriginConfig, log: Log = _silent, retry: RetryConfig = RETRY) -> list[HubPiece]:
    """The shards of a dataset's split, in order, all at the same commit.

    Failures as in `hub_rows`; an unknown subset or split is a UserError that names those there are.
    """
    pinned = config.model_copy(update={"revision": resolve_revision(config, log, retry)})
    return _Patience(config, retry, log).call(lambda: _pieces(pinned, retry))


def hub_rows(piece: HubPiece, log: Log, start: int = 0) -> Iterator[tuple[int, Row]]:
    """The rows of a shard after the first `start`, each with its number from 1.

    What may pass (time-outs, resets, short answers, status 408, 429 and 5xx) is tried again as `piece.retry` says,
    from the row after the last; `log` is called once for every retry. Raises UserError when the attempts are used
    up, and at once for what will not pass, such as status 401, 403 and 404, or a local file that cannot be read.
    """
    patience = _Patience(piece.config, piece.retry, log, piece.name)
    number, batches = start, None
    while True:
        try:
            with _overheard(partial(patience.tell, number=number)):
                batches = _batches(piece, number) if batches is None else batches
                batch = next(batches, None)
        except Exception as error:  # the libraries raise whatever their layers raise
            patience.after(error, number)
            batches = None
            continue
        if batch is None:
            return
        patience.failures = 0
        for row in batch:
            number += 1
            yield number, row


# --- reading ---------------------------------------------------------------------------------------------------


def _is_local(config: OriginConfig) -> bool:
    return Path(str(config.name)).is_dir()


def _builder(config: OriginConfig) -> Any:
    import datasets

    builder = datasets.load_dataset_builder(config.name, config.subset, revision=config.revision)
    if builder.config.data_files is None:  # what it falls back on, silently and at any revision
        raise ConnectionError("the hub cannot be reached, and a copy in the cache may be another revision")
    return builder


def _pieces(config: OriginConfig, retry: RetryConfig) -> list[HubPiece]:
    builder = _builder(config)
    splits = {str(split): list(map(str, files)) for split, files in builder.config.data_files.items()}
    if config.split not in splits:
        raise UserError(f"{_called(config)}: no such split; there are: {', '.join(splits)}")
    files = splits[config.split]
    parquet = all(file.endswith(".parquet") for file in files)
    count = len(files) if parquet else builder.as_streaming_dataset(config.split).num_shards
    names = [_label(file, config) for file in files]
    if count != len(files):
        names = [f"shard {index}" for index in range(count)]
    return [
        HubPiece(name, config, index, count, files[index] if parquet else None, retry)
        for index, name in enumerate(names)
    ]


def _label(file: str, config: OriginConfig) -> str:
    """A data file's path within its dataset."""
    if config.revision is None:
        return Path(os.path.relpath(file, Path(str(config.name)).resolve())).as_posix()
    return file.partition(f"@{config.revision}/")[2] or file


def _batches(piece: HubPiece, start: int) -> Iterator[list[Row]]:
    """The rows after the first `start`, a few at a time."""
    if piece.file is not None:
        yield from _parquet_batches(piece.file, start)
        return
    stream = _builder(piece.config).as_streaming_dataset(piece.config.split)
    rows = iter(stream.shard(piece.count, piece.index).skip(start))
    while batch := list(islice(rows, BATCH_ROWS)):
        yield batch


def _parquet_batches(path: str, start: int) -> Iterator[list[Row]]:
    import datasets
    import pyarrow.parquet as pq
    from huggingface_hub import HfFileSystem

    opened: Any = HfFileSystem().open(path) if path.startswith("hf://") else Path(path).open("rb")  # noqa: SIM115
    # One row group after the other and without pre_buffer: else all of them may be fetched, and held, at once.
    with opened as raw, pq.ParquetFile(raw, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
        features = datasets.Features.from_arrow_schema(file.schema_arrow)
        number = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if number + count <= start:
                number += count
                continue
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], use_threads=False):
                rows = batch.slice(max(0, start - number)).to_pylist()
                number += len(batch)
                if rows:
                    yield [features.decode_example(row) for row in rows]


# --- failures --------------------------------------------------------------------------------------------------


def dataset_words(config: OriginConfig) -> str:
    """A dataset in a few words."""
    return f"dataset '{config.name}'" + (f" ({config.subset})" if config.subset else "")


def _called(config: OriginConfig) -> str:
    return f"{dataset_words(config)}, split '{config.split}'"


@dataclass
class _Patience:
    """What follows a failure: a wait, or the end."""

    config: OriginConfig
    retry: RetryConfig
    log: Log
    piece: str = ""
    failures: int = 0
    """In a row."""

    def tell(self, line: str, number: int = 0) -> None:
        self.log(f"{self._where(number)}: {line}")

    def _where(self, number: int) -> str:
        return _called(self.config) + (f", {self.piece}" * bool(self.piece)) + (f" after row {number}" * bool(number))

    def call(self, action: Callable[[], T]) -> T:
        """What the action returns, once it does not fail."""
        while True:
            try:
                with _overheard(self.tell):
                    return action()
            except Exception as error:  # as in hub_rows
                self.after(error)

    def after(self, error: Exception, number: int = 0) -> None:
        """Waits, if that may help and there are attempts left; else raises UserError."""
        if isinstance(error, UserError):
            raise error
        self.failures += 1
        passing, reason = _judge(error)
        if _is_local(self.config) or not passing:
            raise UserError(f"{self._where(number)}: cannot be read ({reason})") from error
        if self.failures >= self.retry.attempts:
            raise UserError(
                f"{self._where(number)}: given up after {self.failures} attempts ({reason}); try again later"
            ) from error
        wait = self.retry.wait(self.failures)
        self.tell(f"{reason}; attempt {self.failures + 1} of {self.retry.attempts} in {wait:.1f} s", number)
        time.sleep(wait)


def _judge(error: BaseException) -> tuple[bool, str]:
    """Whether a failure may pass, and why it failed, in one line.

    The libraries dress failures up (a 503 becomes a FileNotFoundError), so the first in the chain of causes that
    comes from the network decides. Where none does, what reads as a truncated answer may pass.
    """
    import pyarrow as pa

    chain = list(islice(_causes(error), 50))  # it may be a ring
    if any(type(link).__name__ == "OfflineModeIsEnabled" for link in chain):
        return False, "the hub must not be asked while HF_HUB_OFFLINE is set"
    for link in chain:
        status = getattr(getattr(link, "response", None), "status_code", None)
        if status is not None:
            passing = status in (408, 429) or status >= 500
            return passing, f"status {status}" + (f": {_HELP[status]}" if status in _HELP else "")
        if isinstance(link, ConnectionError | TimeoutError) or type(link).__module__.split(".")[0] in _WIRE:
            return True, _line(link)
    truncated = isinstance(error, EOFError | zlib.error | lzma.LZMAError | pa.ArrowInvalid) or (
        isinstance(error, OSError) and error.errno is None and not isinstance(error, FileNotFoundError)
    )
    return truncated, _line(error)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _overheard(tell: Log) -> Iterator[None]:
    """Passes on what the libraries log of their own retries."""
    handler = _Overhearing(tell)
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "datasets")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


class _Overhearing(logging.Handler):
    """A retry is told of in two lines: why, and that there will be one."""

    def __init__(self, tell: Log) -> None:
        super().__init__(logging.WARNING)
        self.told = tell
        self.why = ""

    def emit(self, record: logging.LogRecord) -> None:
        line = " ".join(record.getMessage().split())
        if re.search("retry", line, re.IGNORECASE):
            self.told(f"{self.why} {line}".strip())
            line = ""
        self.why = line
