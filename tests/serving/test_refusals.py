"""Requests that make no sense, or too much of it: each is refused in one form, and no secret is told."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tiny_server import NEVER_ENDS, Running, running

from leveret.api import LoadedModel

SECRET = "the-words-of-a-prompt"


def post(server: Running, content: bytes, path: str = "/v1/completions", **headers: str) -> httpx.Response:
    kind = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(server.url + path, content=content, headers=kind, timeout=30)


def assert_refused(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert SECRET not in answer.text
    assert "Traceback" not in answer.text
    assert ".py" not in answer.text
    return error


def raw(server: Running, request: str | bytes) -> str:
    """What comes back for these very bytes, until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(request.encode() if isinstance(request, str) else request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer.decode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"{'prompt': 'a'}",
        b'{"prompt": "a",}',
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\x00"}',
        b"\xef\xbb\xbf{}",
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
        b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "max_tokens": 1e999}',
    ],
)
def test_what_is_no_request_is_refused(server: Running, content: bytes) -> None:
    assert_refused(post(server, content))


WRONG: list[dict[str, Any]] = [
    {},
    {"prompt": None},
    {"prompt": 5},
    {"prompt": []},
    {"prompt": [[]]},
    {"prompt": [1.5]},
    {"prompt": [-1]},
    {"prompt": [10**6]},
    {"prompt": [10**30]},
    {"prompt": ["a", 1]},
    {"prompt": {"a": "b"}},
    {"prompt": "a", "max_tokens": 0},
    {"prompt": "a", "max_tokens": -1},
    {"prompt": "a", "max_tokens": 10**30},
    {"prompt": "a", "max_tokens": "many"},
    {"prompt": "a", "n": 0},
    {"prompt": "a", "n": 9},
    {"prompt": "a", "n": 10**9},
    {"prompt": ["a"] * 9},
    {"prompt": ["a"] * 3, "n": 3},
    {"prompt": "a", "temperature": -0.1},
    {"prompt": "a", "temperature": 1e308},
    {"prompt": "a", "top_p": 1.1},
    {"prompt": "a", "logprobs": 21},
    {"prompt": "a", "logprobs": 1, "echo": True},
    {"prompt": "a", "best_of": 2},
    {"prompt": "a", "suffix": "b"},
    {"prompt": "a", "presence_penalty": 3},
    {"prompt": "a", "seed": 2**64},
    {"prompt": "a", "stop": ""},
    {"prompt": "a", "stop": [""]},
    {"prompt": "a", "stop": ["a"] * 17},
    {"prompt": "a", "stop": "a" * 257},
    {"prompt": "a", "logit_bias": {"x": 1}},
    {"prompt": "a", "logit_bias": {"-1": 1}},
    {"prompt": "a", "logit_bias": {"1": 101}},
    {"prompt": "a", "logit_bias": {"99999": 1}},
    {"prompt": "a", "logit_bias": {str(i): 1 for i in range(1025)}},
    {"prompt": "a", "stream_options": {"nothing": True}},
    {"prompt": "a", "chat_template": "{{ messages }}"},
    {"prompt": "a", "beams": 4},
    {"prompt": "a", SECRET: 1},
    {"prompt": "a", "stream": SECRET},
]


@pytest.mark.parametrize("body", WRONG, ids=str)
def test_a_text_request_with_something_wrong_is_refused(server: Running, body: dict[str, Any]) -> None:
    assert_refused(post(server, json.dumps(body).encode()))


def say(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **more}


WRONG_DIALOGUES: list[dict[str, Any]] = [
    {},
    {"messages": []},
    {"messages": "hello"},
    {"messages": [{"role": "user"}]},
    {"messages": [{"role": "king", "content": "a"}]},
    {"messages": [{"role": "tool", "content": SECRET}]},
    {"messages": [{"content": "a"}]},
    {"messages": [{"role": "user", "content": "a"}] * 3000},
    say(5),
    say([{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/picture.png"}}]),
    say([{"type": "text"}]),
    say("a", tools=[{"type": "function", "function": {"name": "f"}}]),
    say("a", chat_template="{{ messages }}"),
    say("a", chat_template_kwargs={}),
    say("a", add_generation_prompt=False),
    say("a", top_logprobs=3),
    say("a", response_format={"type": "yaml"}),
    say("a", response_format={"type": "json_schema"}),
    say("a", response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nothing"}}}),
    say("a", max_completion_tokens=0),
]


@pytest.mark.parametrize("body", WRONG_DIALOGUES, ids=lambda body: str(body)[:80])
def test_a_dialogue_with_something_wrong_is_refused(server: Running, body: dict[str, Any]) -> None:
    assert_refused(post(server, json.dumps(body).encode(), "/v1/chat/completions"))


def test_an_unknown_field_is_named(server: Running) -> None:
    error = assert_refused(server.post("/v1/completions", {"prompt": "a", "chat_template": "{{ x }}"}))
    assert (error["param"], error["code"]) == ("chat_template", "unknown_parameter")
    error = assert_refused(server.post("/v1/completions", {"prompt": "a", "max_tokens": -5}))
    assert error["param"] == "max_tokens"


def test_the_mistake_that_is_told_is_the_one_that_was_made(server: Running) -> None:
    for body, told in (
        ({"prompt": "a", "stop": ""}, "at least 1 character"),
        ({"prompt": [-1]}, "greater than or equal to 0"),
        ({"prompt": "a", "best_of": 2}, "best_of must be n"),
        (say([{"type": "image_url", "image_url": {"url": "x"}}]), "'text'"),
        (say("a", top_logprobs=3), "top_logprobs needs logprobs"),
    ):
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        assert told in assert_refused(server.post(path, body))["message"], body


def test_fields_about_other_things_are_let_through(server: Running) -> None:
    body = {"prompt": "a", "max_tokens": 1, "user": "u", "metadata": {}, "store": False, "stop": None, "suffix": ""}
    assert server.post("/v1/completions", body).status_code == 200
    assert server.post("/v1/chat/completions", say("a", max_tokens=1, tools=[])).status_code == 200


def test_a_lone_surrogate_is_a_character_that_cannot_be_written(server: Running) -> None:
    body = b'{"prompt": "a\\ud800b", "max_tokens": 1, "echo": true}'
    answer = post(server, body)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["text"].startswith("a\ufffdb")


SCHEMAS: dict[str, Any] = {
    "pattern": {"type": "string", "pattern": "(a+)+$"},
    "patternProperties": {"type": "object", "patternProperties": {"(a+)+$": {}}},
    "format": {"type": "string", "format": "regex"},
    "an address": {"$ref": "http://127.0.0.1:1/schema.json"},
    "a file": {"$ref": "file:///etc/passwd"},
    "no type": {"type": "nothing"},
    "alternatives that multiply": {
        "allOf": [
            {"anyOf": [{"type": "string", "maxLength": i}, {"type": "integer", "multipleOf": i}]} for i in range(9, 99)
        ]
    },
    "too large": {"enum": ["x" * 100] * 200},
    "deeper than the stack": json.loads('{"items":' * 200 + "{}" + "}" * 200),
}


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_schemas_bring_no_regular_expression_and_fetch_nothing(server: Running, schema: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    assert_refused(server.post("/v1/chat/completions", say("a", response_format=form)))


def test_a_property_may_be_called_pattern(server: Running) -> None:
    schema = {"type": "object", "properties": {"pattern": {"type": "boolean"}, "$ref": {"type": "null"}}}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    assert server.post("/v1/chat/completions", say("a", response_format=form)).status_code == 200


def test_bodies_have_a_limit_told_or_not(server: Running) -> None:
    large = b'{"prompt": "' + b"a" * 300_000 + b'"}'
    for _ in range(10):  # whoever is still sending when the answer comes must not miss it
        assert_refused(post(server, large), 413)

    def pieces() -> Iterator[bytes]:
        yield from (large[i : i + 10_000] for i in range(0, len(large), 10_000))

    kind = {"Content-Type": "application/json"}
    assert_refused(httpx.post(f"{server.url}/v1/completions", content=pieces(), headers=kind), 413)
    for length, status in (("9" * 19, 413), ("9" * 30, 400), ("-1", 400), ("1e3", 400), ("1_0", 400), ("+1", 400)):
        answer = raw(server, f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n")
        assert answer.startswith(f"HTTP/1.1 {status}"), (length, answer)
        assert '{"error"' in answer


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX : y\r\n\r\n",
        b"GET \xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"y" * 70_000,
    ],
)
def test_what_is_no_http_is_refused_and_the_connection_ends(
    server: Running, request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    answer = raw(server, request_bytes)
    assert answer.startswith(("HTTP/1.1 4", "HTTP/1.1 501")), answer
    assert json.loads(answer.partition("\r\n\r\n")[2])["error"]["message"]
    assert caplog.messages == []


def test_headers_have_a_limit_and_come_once(server: Running) -> None:
    many = {f"X-{number}": "y" for number in range(70)}
    assert_refused(httpx.get(f"{server.url}/v1/models", headers=many), 431)
    assert_refused(httpx.get(f"{server.url}/v1/models", headers={"X-Large": "y" * 20_000}), 431)
    for twice in ([("Origin", "http://a"), ("Origin", "http://b")], [("Authorization", "a"), ("Authorization", "b")]):
        assert_refused(httpx.get(f"{server.url}/v1/models", headers=twice))


def test_prompts_have_a_limit_and_both_numbers_are_told(model: LoadedModel) -> None:
    with running(model, max_prompt_tokens=20, max_new_tokens=4) as small:
        message = assert_refused(small.post("/v1/completions", {"prompt": "a" * 21}))["message"]
        assert "21 tokens" in message
        assert "20 is the most" in message
        answer = small.post("/v1/completions", {"prompt": "a" * 20, "max_tokens": 100, **NEVER_ENDS}).json()
        assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (4, "length")


def test_there_is_nothing_else_here(server: Running) -> None:
    for path in ("/v1", "/v1/embeddings", "/docs", "/redoc", "/../../etc/passwd", "/static/..%2f..%2fsecrets", "/%00"):
        assert_refused(httpx.get(server.url + path), 404)
    assert_refused(httpx.get(f"{server.url}/v1/completions"), 405)


def test_a_run_without_a_checkpoint_says_so() -> None:
    with running(None) as empty:
        assert empty.post("/v1/completions", {"prompt": "a"}).status_code == 503
        for path in ("/v1/models", "/v1/models/tiny"):
            assert assert_refused(httpx.get(empty.url + path), 503)["code"] == "no_model"
        assert httpx.get(f"{empty.url}/healthz").status_code == 200
        assert httpx.get(f"{empty.url}/metrics").status_code == 200
