"""What every request passes before it reaches a route: whom it addresses, where it comes from, its key, its size.

Host on the list? -> Origin our own? -> key? -> few headers, each once? -> body within its limit -> route
anything that escapes a route -> 500 without a word of what it was
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import re
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from leveret.serving.config import ServeConfig
from leveret.serving.errors import INTERNAL, ApiError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = "/healthz"
"""The one route that asks for no key."""
DRAINED = 4
"""Times the largest body: so much of a refused one is read."""
LARGEST_HEADERS = 16 << 10
"""Bytes."""
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[0-9a-z._-]+)(?::[0-9]{1,5})?")
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
ONCE = frozenset({b"host", b"origin", b"authorization", b"content-length", b"content-type"})
"""Headers that two readers might read differently when they come twice."""
PROTECTION = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]

logger = logging.getLogger("leveret.serving")


class Gate:
    """The outermost layer of the application.

    Args:
        count: told the route and the status of every response.
    """

    def __init__(self, app: App, config: ServeConfig, count: Callable[[str, int], None]) -> None:
        self.app, self.config, self.count = app, config, count
        self.hosts = LOCAL | {config.host.lower()} | {name.lower() for name in config.allowed_hosts}
        self.key = _digest(config.api_key.encode()) if config.api_key is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, body = False, Body(receive, self.config.max_body_bytes, _declared(scope))

        async def guarded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                if message["status"] >= 400:
                    await body.drain()
                self.count(getattr(scope.get("route"), "path", "none"), message["status"])
                known = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(pair for pair in PROTECTION if pair[0] not in known)]
            await send(message)

        try:
            self.check(scope)
            await self.app(scope, body.receive, guarded)
        except ApiError as error:
            if not begun:
                # What was not read of the body must not be taken for the next request.
                error.headers = {"Connection": "close"} | dict(error.headers or {})
                await error.response()(scope, receive, guarded)
        except Exception as error:
            logger.error("internal error: %s", type(error).__name__)
            if self.config.tracebacks:
                logger.error("%s", traceback.format_exc())
            if not begun:
                await ApiError(500, INTERNAL).response()(scope, receive, guarded)

    def check(self, scope: Scope) -> None:
        """Raises ApiError for a request that goes no further."""
        pairs: list[tuple[bytes, bytes]] = scope["headers"]
        names = [name for name, _ in pairs]
        if len(pairs) > self.config.max_headers:
            raise ApiError(431, f"{len(pairs)} header fields are more than {self.config.max_headers}.")
        if sum(len(name) + len(value) for name, value in pairs) > LARGEST_HEADERS:
            raise ApiError(431, f"The header fields are larger than {LARGEST_HEADERS} bytes together.")
        if any(name in ONCE and names.count(name) > 1 for name in names):
            raise ApiError(400, "A header that may come once came twice.")
        headers = dict(pairs)
        self._check_host(headers, scope)
        if self.key is not None and scope["path"] != OPEN and not self._knows_key(headers.get(b"authorization", b"")):
            kind = "Bearer" if scope["path"].startswith("/v1/") else 'Basic realm="leveret", charset="UTF-8"'
            raise ApiError(
                401,
                "A key is needed: send it as `Authorization: Bearer KEY`.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": kind},
            )
        if _declared(scope) > self.config.max_body_bytes:
            raise too_large(self.config.max_body_bytes)

    def _check_host(self, headers: dict[bytes, bytes], scope: Scope) -> None:
        """A page of another site can make a browser send requests here, by a name of its own that leads here (DNS
        rebinding) or by ours; the browser then tells that name as Host, or that site as Origin."""
        host = headers.get(b"host", b"").decode("latin-1").lower()
        server = scope.get("server")
        found = HOST.fullmatch(host)
        name = found[1].strip("[]") if found else ""
        if name not in self.hosts and (server is None or name != server[0]):
            raise ApiError(403, "This server is not known by that name; --allow-host NAME adds one.", code="host")
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").lower() not in (f"http://{host}", f"https://{host}"):
            raise ApiError(403, "Requests from other sites' pages are not answered.", code="origin")

    def _knows_key(self, authorization: bytes) -> bool:
        scheme, _, given = authorization.partition(b" ")
        if scheme.lower() == b"basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != b"bearer":
            return False
        assert self.key is not None
        return hmac.compare_digest(_digest(given.strip()), self.key)


class Body:
    """Counts the bytes of a body; `declared` is what its header says, 0 where it says nothing."""

    def __init__(self, receive: Receive, most: int, declared: int) -> None:
        self._receive, self._most, self.declared = receive, most, declared
        self.seen, self.complete = 0, False

    async def receive(self) -> Message:
        message = await self._take()
        if self.seen > self._most:
            raise too_large(self._most)
        return message

    async def drain(self) -> None:
        """Reads what is left, within reason: who is still sending when the connection closes never sees the answer."""
        while not self.complete and max(self.seen, self.declared) <= DRAINED * self._most:
            await self._take()

    async def _take(self) -> Message:
        message = await self._receive()
        self.seen += len(message.get("body", b""))
        self.complete = not message.get("more_body", False)
        return message


def _declared(scope: Scope) -> int:
    """Bytes of the body, as its header says."""
    length: bytes = dict(scope["headers"]).get(b"content-length", b"0")
    return int(length) if length.isdigit() else 0


def too_large(most: int) -> ApiError:
    return ApiError(413, f"The request is larger than {most} bytes.", code="too_large")


def _digest(key: bytes) -> bytes:
    """Of equal length for any key, so that comparing tells not even that."""
    return hashlib.sha256(key).digest()
