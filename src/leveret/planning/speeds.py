"""How much of a GPU's peak a training reaches: from measurements by size and device, never from a guess.

Ours come first; else other tools' on the same chip at about the same size, with a band as wide as they differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, ValidationError

from leveret.config import Config, config_dir
from leveret.errors import UserError
from leveret.hardware.peak import Gpu, find_gpu
from leveret.strangers.documents import Loader, read_yaml

NEAR = 2.0
"""Times as much or as little work for a token as in a measurement, at most, that it still speaks for."""
OURS_BAND, THEIRS_BAND = 0.1, 0.25
"""Share of an MFU that it may be off to either side: our own on that device; another tool's, at least."""


class Row(Config):
    """One measurement."""

    gpu: str
    """As --gpu names it, or the machine's own name."""
    model: str
    """What was trained."""
    flops_per_token: float = Field(gt=0)
    """Operations of a token, recomputed ones among them."""
    tokens_per_second: float = Field(gt=0)
    """On each device."""
    date: Annotated[str, BeforeValidator(str)]
    """When."""
    source: str
    """Who measured it."""
    ours: bool = False
    """Whether `leveret train` was measured."""
    peak_tflops: float | None = Field(None, gt=0)
    """Of a machine that is not in the table of GPUs."""


class Rows(Config):
    """A table of measurements."""

    date: Annotated[str, BeforeValidator(str)]
    """Of the table."""
    rows: list[Row]
    """In any order."""


@dataclass(frozen=True)
class Speed:
    """mfu: share of the peak that the operations of a step, recomputed ones too, come to. low, high: 80% of what it may
    be. source: in words. ours: whether it is of this project's training."""

    mfu: float
    low: float
    high: float
    source: str
    ours: bool


def read_speeds() -> list[Row]:
    """The measurements of this user, then ours.

    Raises:
        UserError: the user's speeds.yaml is none.
    """
    shipped = Path(str(resources.files("leveret.planning") / "speeds.yaml"))
    return [row for path in (config_dir() / "speeds.yaml", shipped) if path.is_file() for row in _read(path).rows]


def _read(path: Path) -> Rows:
    try:
        content: Any = read_yaml(path, Loader)
        return Rows.model_validate(content)
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise UserError(f"{path} is no table of speeds: {' '.join(str(error).split())[:200]}") from None


def keep_speed(row: Row) -> Path:
    """Adds a measurement to this user's, in the place of one of the same machine and model. Returns the file."""
    path = config_dir() / "speeds.yaml"
    rows = _read(path).rows if path.is_file() else []
    kept = [each for each in rows if (each.gpu, each.model) != (row.gpu, row.model)]
    table = Rows(date=row.date, rows=[*kept, row])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(yaml.safe_dump(table.model_dump(), sort_keys=False), encoding="utf-8")
    partial.replace(path)
    return path


def find_speed(gpu: Gpu, flops_per_token: float, rows: list[Row]) -> Speed:
    """What a training of so much work for a token reaches on that GPU.

    Ours on that very GPU, within a factor of two. Else other tools', on that GPU or else on others of its chip: within
    a factor of two, or between a larger and a smaller one; the band is over all of the chip's that count.

    Raises:
        UserError: nobody has measured the like.
    """
    names = (gpu.alias, gpu.name)
    same = [row for row in rows if row.gpu in names or _chip(row) == gpu.chip]
    same.sort(key=lambda row: row.flops_per_token)
    own = [row for row in same if row.gpu in names]
    if ours := _near([row for row in own if row.ours], flops_per_token):
        return _speed(ours, ours, gpu, flops_per_token, OURS_BAND)
    theirs = _heard([row for row in same if not row.ours], flops_per_token)
    if not theirs:
        raise UserError(_unknown(gpu, same))
    own = _heard([row for row in own if not row.ours], flops_per_token)
    return _speed(own or theirs, theirs, gpu, flops_per_token, THEIRS_BAND)


def _near(rows: list[Row], flops_per_token: float) -> list[Row]:
    return [row for row in rows if abs(math.log(row.flops_per_token / flops_per_token)) <= math.log(NEAR)]


def _heard(rows: list[Row], flops_per_token: float) -> list[Row]:
    """Those, by size, that say something about this one."""
    below = [row for row in rows if row.flops_per_token <= flops_per_token][-1:]
    above = [row for row in rows if row.flops_per_token > flops_per_token][:1]
    between = below + above if below and above else []
    near = _near(rows, flops_per_token)
    return [row for row in rows if row in near or row in between]


def _speed(rows: list[Row], heard: list[Row], gpu: Gpu, flops_per_token: float, band: float) -> Speed:
    """Between the two of the rows around this size, by the logarithm of it; beyond the last of them as that one."""
    smaller = [row for row in rows if row.flops_per_token <= flops_per_token]
    below = smaller[-1] if smaller else rows[0]
    above = next((row for row in rows if row.flops_per_token > flops_per_token), below)
    way = 0.0
    if above is not below and below.flops_per_token < flops_per_token:
        way = math.log(flops_per_token / below.flops_per_token) / math.log(
            above.flops_per_token / below.flops_per_token
        )
    mfu = (1 - way) * _mfu(below, gpu) + way * _mfu(above, gpu)
    found = [_mfu(row, gpu) for row in heard]
    told = " and ".join(_told(row) for row in ([below] if way == 0 else [below, above]))
    source = told if rows[0].ours else f"another tool's: {told}"
    return Speed(mfu, min(mfu * (1 - band), *found), max(mfu * (1 + band), *found), source, rows[0].ours)


def _chip(row: Row) -> str:
    try:
        return find_gpu(row.gpu).chip
    except UserError:
        return row.gpu  # a machine of the user's


def _mfu(row: Row, gpu: Gpu) -> float:
    return row.tokens_per_second * row.flops_per_token / (gpu.tflops * 1e12)


def _told(row: Row) -> str:
    return f"{row.model}, {row.tokens_per_second:,.0f} tokens/s on {row.gpu} ({row.source}; {row.date})"


def _unknown(gpu: Gpu, rows: list[Row]) -> str:
    known = "; ".join(f"{row.model}, on {row.gpu}" for row in rows[:2])
    return (
        f"no measured speed of such a model on {gpu.alias} is known"
        + (f" (the nearest: {known})" if known else "")
        + "; run `leveret plan --probe` there, or say what you know with --mfu"
    )
