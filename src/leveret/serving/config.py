"""How the server is set up: where it listens, who may ask, and how much."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from pydantic import Field

from leveret.config import Config
from leveret.errors import UserError

SHORTEST_KEY = 16
"""Characters. A key is tried at network speed, so length is what keeps it."""


class ServeConfig(Config):
    """Address, key, and limits of one server."""

    host: str = "127.0.0.1"
    """Address to listen on. Any but the loopback needs a key."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    api_key: str | None = Field(None, repr=False)
    """What every request but /healthz must bring, as Bearer or as the password of Basic."""
    allowed_hosts: list[str] = []
    """Names by which the server may be addressed, besides its own address and localhost's."""
    slots: int = Field(8, gt=0)
    """Answers that are generated at once; each has its share of the key/value cache."""
    queue: int = Field(64, ge=0)
    """Answers that may wait for a slot; a request beyond gets 429."""
    max_prompt_tokens: int | None = Field(None, gt=0)
    """Longest prompt, tokens. None: whatever leaves room for one new token in the context."""
    max_new_tokens: int | None = Field(None, gt=0)
    """Most tokens of an answer, whatever is asked. None: the context."""
    max_answers: int = Field(8, gt=0)
    """Most answers to one request: prompts times n."""
    max_body_bytes: int = Field(256 << 10, gt=0)
    """Largest body of a request."""
    max_headers: int = Field(64, gt=0)
    """Most header fields of a request; 16 KiB together."""
    max_stop_strings: int = Field(16, gt=0)
    """Most stop strings of a request, each of at most 256 characters."""
    max_logit_bias: int = Field(1024, gt=0)
    """Most entries of a request's logit_bias."""
    max_schema_bytes: int = Field(16 << 10, gt=0)
    """Largest JSON schema that an answer may be held to."""
    request_seconds: float = Field(300.0, gt=0)
    """Longest time from a request to the end of its answer, waiting included."""
    arrival_seconds: float = Field(10.0, gt=0)
    """A request must have come in whole, headers and body, this long after its first byte."""
    stall_seconds: float = Field(1.0, gt=0)
    """A client whose buffers are full and that reads nothing for so long is cut off, and its slot given away."""
    max_connections: int = Field(1024, gt=0)
    """Open connections. Beyond, the one that has waited longest without a whole request goes."""
    drain_seconds: float = Field(30.0, gt=0)
    """After SIGTERM, answers under way have this long to end; new connections are refused at once."""
    tracebacks: bool = False
    """Write the tracebacks of internal errors to the log. They may hold pieces of prompts."""

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def read_key(path: Path) -> str:
    """The key in a file: its first line.

    Raises:
        UserError: it cannot be read, or is too short or no plain text.
    """
    try:
        key = (path.read_text("ascii").splitlines() or [""])[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not plain ASCII text"
        raise UserError(
            f"--api-key-file {path}: {reason}; write one line such as `openssl rand -hex 32` gives"
        ) from None
    if len(key) < SHORTEST_KEY or not key.isprintable() or " " in key:
        raise UserError(
            f"--api-key-file {path}: the key must be one line of at least {SHORTEST_KEY} printable characters without "
            "spaces; `openssl rand -hex 32` gives one"
        )
    return key


def check(config: ServeConfig) -> None:
    """Raises UserError for an open door: another address than the loopback, and no key."""
    if not config.loopback and config.api_key is None:
        raise UserError(
            f"--host {config.host} lets other machines in, so a key is needed: write one into a file and give "
            "--api-key-file FILE, or leave --host out to serve this machine only"
        )
