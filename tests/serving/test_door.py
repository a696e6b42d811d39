"""Who gets in: the key, the names the server goes by, the pages that may ask, the addresses it listens on."""

import base64
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.routing import Route
from tiny_server import KEY, Running, running

from leveret.api import LoadedModel
from leveret.errors import UserError
from leveret.serving.config import ServeConfig, check, read_key


@pytest.fixture(scope="module")
def locked(model: LoadedModel) -> Iterator[Running]:
    with running(model, api_key=KEY, allowed_hosts=["models.example"]) as up:
        yield up


def routes(server: Running) -> list[tuple[str, str]]:
    """(method, path) of every route, found by walking the router."""
    app = server.server.config.app
    pairs: list[tuple[str, str]] = []
    for context in app.routes:  # type: ignore[union-attr]
        pairs += walk(context)
    return pairs


def walk(route: object) -> Iterator[tuple[str, str]]:
    if isinstance(route, Route | APIRoute):
        path = route.path.replace("{model:path}", "tiny").replace("{name}", "style.css")
        yield from ((method, path) for method in sorted(route.methods or ()))
    else:
        inner = getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", None)
        assert inner, f"what is {route!r}?"
        for each in inner:
            yield from walk(each)


def test_every_route_but_healthz_asks_for_the_key(locked: Running) -> None:
    found = routes(locked)
    assert {"/", "/run", "/v1/models", "/v1/completions", "/v1/chat/completions", "/metrics", "/openapi.json"} <= {
        path for _, path in found
    }
    for method, path in found:
        answer = httpx.request(method, locked.url + path)
        if path == "/healthz":
            assert answer.status_code == 200
            continue
        assert answer.status_code == 401, (method, path)
        assert answer.headers["www-authenticate"].startswith("Bearer" if path.startswith("/v1/") else "Basic")
        if method != "HEAD":
            assert answer.json()["error"]["code"] == "invalid_api_key"
        with_key = httpx.request(method, locked.url + path, headers={"Authorization": f"Bearer {KEY}"})
        assert with_key.status_code not in (401, 403), (method, path)


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", KEY, f"Token {KEY}", "Basic !!!"],
)
def test_what_is_not_the_key_opens_nothing(locked: Running, authorization: str) -> None:
    answer = httpx.get(f"{locked.url}/v1/models", headers={"Authorization": authorization})
    assert answer.status_code == 401
    assert KEY not in answer.text


def test_a_browser_sends_the_key_as_a_password(locked: Running) -> None:
    for user in ("", "anyone"):
        given = base64.b64encode(f"{user}:{KEY}".encode()).decode()
        assert httpx.get(f"{locked.url}/", headers={"Authorization": f"Basic {given}"}).status_code == 200
    assert httpx.get(f"{locked.url}/v1/models", headers={"Authorization": f"bearer {KEY}"}).status_code == 200
    assert httpx.get(f"{locked.url}/v1/models?key={KEY}").status_code == 401


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("attacker.example", 403),
        ("localhost.attacker.example", 403),
        ("127.0.0.1.attacker.example", 403),
        ("attacker.example@localhost", 403),
        ("10.1.2.3", 403),
        ("[::1", 403),
        ("", 403),
        ("models.example", 403),
    ],
)
def test_other_names_are_not_answered(server: Running, host: str, status: int) -> None:
    assert httpx.get(f"{server.url}/v1/models", headers={"Host": host}).status_code == status


def test_a_name_can_be_allowed(locked: Running) -> None:
    headers = {"Host": "models.example", "Authorization": f"Bearer {KEY}"}
    assert httpx.get(f"{locked.url}/v1/models", headers=headers).status_code == 200


def test_pages_of_other_sites_are_not_answered(server: Running) -> None:
    own = f"127.0.0.1:{server.port}"
    for origin, status in (
        (f"http://{own}", 200),
        ("http://attacker.example", 403),
        (f"http://{own}.attacker.example", 403),
        (f"http://127.0.0.1:{server.port + 1}", 403),
        ("null", 403),
        ("", 403),
    ):
        answer = httpx.get(f"{server.url}/v1/models", headers={"Origin": origin})
        assert answer.status_code == status, origin
        assert not [name for name in answer.headers if name.startswith("access-control")]
    asked = {"Origin": "http://attacker.example", "Access-Control-Request-Method": "POST"}
    preflight = httpx.options(f"{server.url}/v1/completions", headers=asked)
    assert preflight.status_code == 403
    assert not [name for name in preflight.headers if name.startswith("access-control")]


def test_a_form_of_another_site_is_no_request(server: Running) -> None:
    """What a page may send without asking first: text/plain, and forms."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        body = b'{"prompt": "a", "max_tokens": 1}'
        answer = httpx.post(f"{server.url}/v1/completions", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 400


def test_browsers_are_told_to_be_careful(server: Running) -> None:
    for path in ("/", "/v1/models", "/nowhere"):
        headers = httpx.get(server.url + path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "server" not in headers


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "models.example"])
def test_other_addresses_need_a_key(host: str) -> None:
    with pytest.raises(UserError, match="a key is needed"):
        check(ServeConfig(host=host))
    check(ServeConfig(host=host, api_key=KEY))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_needs_none(host: str) -> None:
    check(ServeConfig(host=host))


@pytest.mark.parametrize("text", ["", "short", "x" * 15, "a key with spaces in it", "ä" * 20, "x" * 20 + "\x07"])
def test_a_weak_or_broken_key_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "key"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="openssl rand"):
        read_key(file)
    with pytest.raises(UserError, match="No such file"):
        read_key(tmp_path / "none")


def test_the_key_is_the_files_first_line(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n\n")
    assert read_key(tmp_path / "key") == KEY
    assert KEY not in repr(ServeConfig(api_key=KEY))
