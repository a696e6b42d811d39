"""Requests that are wrong in some way, drawn from a seed: each is whole, so that it must be answered."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

TEXT: dict[str, Any] = {"prompt": "abc", "max_tokens": 2}
DIALOGUE: dict[str, Any] = {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 2}
FIELDS = [
    "prompt", "messages", "model", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens",
    "temperature",
    "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "stop",
    "seed",
    "response_format", "echo", "logprobs", "top_logprobs", "best_of", "suffix", "tools", "chat_template", "beams",
    "user",
    "__class__", "",
]  # fmt: skip
NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 1.5, -0.0, 1e308, 10**19, -(10**19), 10**400, 2**31, 2**63, "", " ", "a", "\x00",
    "\ud800", "\u202e", "a" * 5000, "é" * 2000, "<|im_start|>system\n", "{{ 7*7 }}", "%s%n", "../../etc/passwd", [],
    [[]],
    [None], [0], [-1], [10**9], ["a", 1], [["a"]], ["a"] * 500, [0] * 3000, {}, {"a": 1}, {"1": 100}, {"1": "x"},
    {"-1": 5}, {"99999999999999999999": 1}, {"type": "json_object"}, {"type": "text"}, {"include_usage": True},
    {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nothing"}}},
    {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "http://127.0.0.1:1/"}}},
    {"type": "json_schema", "json_schema": {"schema": {"pattern": "(a+)+$"}}},
    [{"role": "user", "content": [{"type": "text", "text": "a"}]}], [{"role": "assistant", "content": ""}],
    [{"role": "system", "content": "a"}] * 100, [{"role": "tool", "content": "a"}], [{"role": [], "content": {}}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/"}}]}],
]  # fmt: skip
PATHS = ["/v1/completions", "/v1/chat/completions"]
OTHERS = [
    "/", "/v1", "/v1/models", "/v1/models/x", "/v1/models/%00", "/v1/models/" + "a" * 3000, "/metrics", "/healthz",
    "/%2e%2e/%2e%2e/etc/passwd", "/static/../app.py", "//", "/v1/completions/", "/v1/completions?key=x", "*",
    "/openapi.json",
    "http://127.0.0.1:1/v1/models", "/api/run", "/api/dangers", "/run", "/static/%ff",
]  # fmt: skip
METHODS = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "BREW", "get"]
KINDS = ["application/json"] * 8 + [
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "",
    "a/b;",
]
EXTRA = [
    b"X: " + b"y" * 20_000, b"Host: localhost", b"Host: attacker.example", b"Origin: http://attacker.example",
    b"Origin: null", b"Authorization: Bearer \xff\xfe", b"Authorization: Basic ====", b"Expect: 100-continue",
    b"Upgrade: websocket\r\nConnection: Upgrade", b"Content-Encoding: gzip", b"Range: bytes=0-",
    b"Cookie: " + b"a=b; " * 500,
    b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", b": empty", b"no colon",
    b"X:\x00",
    b"X-Forwarded-For: ::1", b"Connection: close", b"Accept: \xc3\x28", b"\r\n".join(b"X-%d: y" % i for i in range(90)),
]  # fmt: skip


def wrong_requests(count: int, seed: int) -> Iterator[bytes]:
    """So many requests; the same for the same seed."""
    draw = random.Random(seed)
    for _ in range(count):
        way = draw.random()
        if way < 0.55:
            yield _request(draw, draw.choice(PATHS), _changed(draw))
        elif way < 0.75:
            yield _request(draw, draw.choice(PATHS), _damaged(draw, _changed(draw)))
        elif way < 0.8:
            yield _request(draw, draw.choice(PATHS), _nested(draw))
        elif way < 0.9:
            yield _request(
                draw, draw.choice(OTHERS), b"" if draw.random() < 0.7 else _changed(draw), draw.choice(METHODS)
            )
        elif way < 0.98:
            yield _request(draw, draw.choice(PATHS + OTHERS), _changed(draw), extra=draw.choice(EXTRA))
        else:
            yield draw.randbytes(draw.randrange(1, 200)).replace(b"\n", b"") + b"\r\n\r\n"


def _changed(draw: random.Random) -> bytes:
    """A request with a few fields set to what does not belong there."""
    body = dict(draw.choice((TEXT, DIALOGUE)))
    for _ in range(draw.randrange(1, 4)):
        body[draw.choice(FIELDS)] = draw.choice(NASTY)
    if draw.random() < 0.1:
        body.pop(draw.choice(list(body)))
    return json.dumps(body, ensure_ascii=True).encode()


def _damaged(draw: random.Random, body: bytes) -> bytes:
    """Bytes of it changed, left out, or put in; or the text cut off."""
    damaged = bytearray(body)
    for _ in range(draw.randrange(1, 6)):
        at = draw.randrange(len(damaged) + 1)
        match draw.randrange(4):
            case 0:
                damaged[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                del damaged[at : at + draw.randrange(1, 20)]
            case 2:
                damaged[at:at] = draw.choice(
                    (b"\xff", b"\x00", b'"', b"[", b"NaN", b"1e999", b"\xed\xa0\x80", b"\\u0000")
                )
            case _:
                del damaged[at:]
    return bytes(damaged)


def _nested(draw: random.Random) -> bytes:
    depth = draw.choice((10, 100, 1000, 10_000, 50_000))
    opening, closing = draw.choice(((b"[", b"]"), (b'{"a":', b"}")))
    value = opening * depth + b"1" + closing * depth
    field = draw.choice([field for field in FIELDS if field])
    return draw.choice((value, b'{"prompt":"a","' + field.encode() + b'":' + value + b"}", value[: len(value) // 2]))


def _request(draw: random.Random, path: str, body: bytes, method: str = "POST", extra: bytes = b"") -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1".encode(),
        b"Host: 127.0.0.1",
        f"Content-Type: {draw.choice(KINDS)}".encode(),
        f"Content-Length: {len(body)}".encode(),
    ]
    ending = b"\r\n\r\n" if b"chunked" in extra else b""  # so that nobody waits for the end of a chunk's size
    return b"\r\n".join([*lines, *([extra] if extra else []), b"", body + ending])
