"""What the engine is asked, and what it gives back piece by piece."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from leveret.errors import UserError
from leveret.inference.config import SamplingConfig

Finish = Literal["stop", "length", "cancelled"]
"""stop: an end token or stop string came. length: max_new_tokens or the end of the context came first."""


class Unfit(UserError):
    """A request that cannot be served. The message has both numbers: what it needs, and what there is."""


@dataclass(eq=False, slots=True)
class Request:
    """One answer that is wanted. Several answers to a prompt are as many requests, with seeds of their own.

    Args:
        prompt: token ids, at least one.
        slide: past the context the window slides; otherwise the answer ends there, and a longer prompt is unfit.
        ignore_end: the end token is a token like others, so that a length is certain (for measuring speed).
    """

    prompt: list[int]
    sampling: SamplingConfig
    slide: bool = False
    ignore_end: bool = False


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """A token, its bytes, and its log-probability (natural)."""

    id: int
    text_bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """A token of an answer, and the most probable ones at its place, best first."""

    chosen: TokenChoice
    top: tuple[TokenChoice, ...]


@dataclass(slots=True)
class Delta:
    """What came of a request in one step.

    text: new text, never half a character or part of a stop string. infos: of the tokens, where logprobs are asked.
    finish: None while it goes on; the last delta of a request has it.
    """

    request: Request
    text: str
    tokens: list[int]
    infos: list[TokenInfo] = field(default_factory=list)
    finish: Finish | None = None
