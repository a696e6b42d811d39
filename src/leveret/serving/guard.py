"""What uvicorn has no limit for: a request that trickles in, an answer that nobody reads, too many connections."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from leveret.serving.config import ServeConfig
from leveret.serving.errors import ApiError

SPARE_FILES = 64
"""File descriptors that are left for everything but connections."""
HIGH, LOW = 64 << 10, 48 << 10
"""Bytes of an answer that wait unsent: from HIGH on a client counts as stalled, until it has taken some."""
SEND_BUFFER = 128 << 10
"""Bytes that the system may hold for a client; its own choice goes to megabytes."""


class Guarded(H11Protocol):
    """A connection under the limits of a server, which guarded_protocol gives it."""

    limits: ServeConfig
    most: int
    idle: dict[Guarded, None]
    """The connections without a whole request, the longest waiting first."""
    _late: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= self.most and self.idle:
            longest = next(iter(self.idle))
            del self.idle[longest]
            longest.transport.abort()
        super().connection_made(transport)
        transport.set_write_buffer_limits(HIGH, LOW)
        if (sock := transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self.idle.pop(self, None)
        for timer in (self._late, self._stalled):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._incomplete():
            self._await_request()
        elif self._late is not None:
            self.idle.pop(self, None)
            self._late.cancel()
            self._late = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._incomplete():  # else the next request had come already
            self.idle[self] = None

    def _incomplete(self) -> bool:
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def _await_request(self) -> None:
        self.idle.setdefault(self, None)
        if self._late is None:
            self._late = self.loop.call_later(self.limits.arrival_seconds, self._give_up)

    def _give_up(self) -> None:
        self._late = None
        self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self.limits.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def send_400_response(self, msg: str) -> None:
        """In OpenAI's form, like every other refusal. A route that still reads the body is told that it is over."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(ApiError(400, "This is not HTTP as this server reads it.").body).encode()
            headers: list[Any] = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def guarded_protocol(config: ServeConfig) -> type[H11Protocol]:
    """The class of one server's connections."""
    most = min(config.max_connections, _files() - SPARE_FILES)
    return type("Guarded", (Guarded,), {"limits": config, "most": most, "idle": {}})


def _files() -> int:
    """How many files this process may open, the limit raised as far as it goes by itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20
