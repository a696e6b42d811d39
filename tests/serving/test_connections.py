"""Clients that are slow, vanish, or come all at once: slots are free again at once, and the others go on."""

import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from tiny_server import NEVER_ENDS, Running, running, tiny_model

from leveret.api import LoadedModel
from leveret.inference.scheduler import Scheduler

LONG = {"prompt": "a", "max_tokens": 100_000, **NEVER_ENDS}
"""Takes longer than any test waits."""


@pytest.fixture(scope="module")
def patient_model() -> LoadedModel:
    return tiny_model(context=60_000)


@pytest.fixture
def small(patient_model: LoadedModel) -> Iterator[Running]:
    """Two slots, and room for one more."""
    with running(patient_model, slots=2, queue=1, arrival_seconds=1, stall_seconds=0.5) as up:
        yield up


def request_bytes(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def connect(server: Running, body: dict[str, Any]) -> socket.socket:
    """A client that has asked."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    connection.sendall(request_bytes(body))
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot_within_a_second(small: Running, stream: bool) -> None:
    connection = connect(small, LONG | {"stream": stream})
    small.wait(lambda: small.slots_taken == 1)
    if stream:
        assert connection.recv(4096)
    connection.close()
    assert small.wait(lambda: small.slots_taken == 0) < 1.0
    assert small.service.worker is not None
    small.wait(lambda: small.service.worker.answers == 0)


def test_the_client_library_can_stop_a_stream(small: Running) -> None:
    client = OpenAI(base_url=f"{small.url}/v1", api_key="none", max_retries=0)
    with client.completions.create(
        model="tiny", prompt="a", max_tokens=100_000, stream=True, extra_body=NEVER_ENDS
    ) as stream:
        for number, _ in enumerate(stream):
            if number == 5:
                break
    assert small.wait(lambda: small.slots_taken == 0) < 1.0


def test_a_client_that_is_killed_frees_its_slot(small: Running) -> None:
    code = (
        "import socket, sys\n"
        f"connection = socket.create_connection(('127.0.0.1', {small.port}))\n"
        f"connection.sendall({request_bytes(LONG | {'stream': True})!r})\n"
        "while True:\n    print(len(connection.recv(4096)), flush=True)\n"
    )
    client = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert client.stdout is not None
    client.stdout.readline()
    small.wait(lambda: small.slots_taken == 1)
    client.send_signal(signal.SIGKILL)
    client.wait()
    assert small.wait(lambda: small.slots_taken == 0) < 1.0


def test_a_client_that_does_not_read_is_cut_off(small: Running) -> None:
    """Log-probabilities make an answer of megabytes, which no buffer takes."""
    connection = connect(small, LONG | {"stream": True, "logprobs": 20})
    small.wait(lambda: small.slots_taken == 1)
    small.wait(lambda: small.slots_taken == 0, 20)
    received = b""
    with suppress(ConnectionResetError):
        while piece := connection.recv(1 << 20):
            received += piece
    assert received.count(b'"text":') < 60_000
    assert b"[DONE]" not in received


def test_a_reader_that_is_slow_but_reads_gets_everything(server: Running) -> None:
    body = {"prompt": "a", "max_tokens": 200, "stream": True, "logprobs": 5, **NEVER_ENDS}
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(request_bytes(body))
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += connection.recv(2048)
            time.sleep(0.002)
    assert received.count(b'"text":') == 200
    assert b"data: [DONE]" in received


def test_a_full_server_says_when_to_come_again(small: Running) -> None:
    held = [connect(small, LONG) for _ in range(3)]
    assert small.service.worker is not None
    small.wait(lambda: small.service.worker.answers == 3)
    answer = small.post("/v1/completions", {"prompt": "a", "max_tokens": 1})
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert answer.json()["error"]["code"] == "server_full"
    assert small.post("/v1/completions", {"prompt": "a", "n": 4}).status_code == 429
    assert httpx.get(f"{small.url}/healthz").status_code == 200
    for connection in held:
        connection.close()
    small.wait(lambda: small.service.worker.answers == 0)
    assert small.post("/v1/completions", {"prompt": "a", "max_tokens": 1}).status_code == 200


def test_one_that_waits_in_the_queue_may_leave_too(small: Running) -> None:
    running_two = [connect(small, LONG) for _ in range(2)]
    small.wait(lambda: small.slots_taken == 2)
    waiting = connect(small, LONG)
    assert small.service.worker is not None
    small.wait(lambda: small.service.worker.answers == 3)
    waiting.close()
    small.wait(lambda: small.service.worker.answers == 2)
    for connection in running_two:
        connection.close()


def seconds_until_cut(connection: socket.socket, piece: bytes) -> float:
    """Sends a piece every tenth of a second until the server has had enough."""
    begun = time.monotonic()
    connection.settimeout(0.1)
    while True:
        try:
            connection.sendall(piece)
            if not connection.recv(100):
                return time.monotonic() - begun
        except TimeoutError:
            continue
        except OSError:
            return time.monotonic() - begun


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"GET /healthz HTTP/1.1\r\nHost: loc",
        request_bytes({"prompt": "a" * 100})[:-60],
    ],
    ids=["nothing", "half a header", "half a body"],
)
def test_a_request_that_trickles_in_is_cut_off(small: Running, beginning: bytes) -> None:
    with socket.create_connection(("127.0.0.1", small.port), timeout=10) as connection:
        connection.sendall(beginning)
        assert 0.8 < seconds_until_cut(connection, b" " if beginning else b"") < 3


def test_a_second_request_may_not_trickle_in_either(small: Running) -> None:
    with socket.create_connection(("127.0.0.1", small.port), timeout=10) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in connection.recv(4096)
        assert 0.8 < seconds_until_cut(connection, b"G") < 3


def test_more_connections_than_allowed_push_out_those_that_say_nothing(patient_model: LoadedModel) -> None:
    with running(patient_model, max_connections=10) as server:
        busy = connect(server, LONG | {"stream": True})
        assert busy.recv(4096)
        silent = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(30)]
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        assert len(server.server.server_state.connections) <= 10
        assert silent[0].recv(1) == b""
        assert busy.recv(4096)
        for connection in (*silent, busy):
            connection.close()


def test_a_request_has_a_time_limit(patient_model: LoadedModel) -> None:
    with running(patient_model, request_seconds=0.5) as server:
        answer = server.post("/v1/completions", LONG)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "time_limit")
        assert answer.headers["x-should-retry"] == "false"
        streamed = server.post("/v1/completions", LONG | {"stream": True})
        assert streamed.status_code == 200
        assert json.loads(streamed.text.split("data: ")[-1])["error"]["code"] == "time_limit"
        server.wait(lambda: server.slots_taken == 0)


def test_a_failure_of_the_model_is_no_end_of_the_server(
    small: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    step = Scheduler.step
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(Scheduler, "step", lambda self: 1 / 0)
        answer = small.post("/v1/completions", {"prompt": "the prompt"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
        streamed = small.post("/v1/completions", {"prompt": "the prompt", "stream": True})
        assert '"server_error"' in streamed.text
        assert "[DONE]" not in streamed.text
    assert Scheduler.step is step
    assert small.post("/v1/completions", {"prompt": "a"}).status_code == 200
    assert "ZeroDivisionError" in caplog.text
    for secret in ("the prompt", "Traceback", ".py"):
        assert secret not in "".join(caplog.messages)
        assert secret not in answer.text + streamed.text


def test_a_failure_in_a_route_is_told_without_a_word_of_it(
    small: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(LoadedModel, "encode", lambda self, prompt, raw: {}[prompt])
    answer = small.post("/v1/completions", {"prompt": "the prompt"})
    assert answer.status_code == 500
    assert "KeyError" in caplog.text
    assert "the prompt" not in caplog.text + answer.text


def test_many_clients_at_once_get_their_own_answers(server: Running, model: LoadedModel) -> None:
    prompts = [f"{number} is a number" for number in range(40)]
    bodies = [{"prompt": prompt, "max_tokens": 10, **NEVER_ENDS} for prompt in prompts]
    with ThreadPoolExecutor(20) as pool:
        texts = [a.json()["choices"][0]["text"] for a in pool.map(lambda b: server.post("/v1/completions", b), bodies)]
    bias = {0: -100, 1: -100, 2: -100}
    assert texts == [a.text for a in model.complete(prompts, raw=True, max_new_tokens=10, logit_bias=bias)]


def test_an_answer_under_way_ends_before_the_server_does(patient_model: LoadedModel) -> None:
    with running(patient_model, drain_seconds=20) as server:
        answers: list[httpx.Response] = []
        body = {"prompt": "a", "max_tokens": 600, **NEVER_ENDS}
        asking = threading.Thread(target=lambda: answers.append(server.post("/v1/completions", body)))
        asking.start()
        server.wait(lambda: server.slots_taken == 1)
        server.server.should_exit = True
        server.wait(lambda: server.service.draining)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/healthz")
        asking.join(20)
    assert answers[0].json()["usage"]["completion_tokens"] == 600


def test_draining_ends_when_its_time_is_up(patient_model: LoadedModel) -> None:
    with running(patient_model, drain_seconds=1) as server:
        connection = connect(server, LONG | {"stream": True})
        assert connection.recv(4096)
        begun = time.monotonic()
        server.server.should_exit = True
    assert time.monotonic() - begun < 4
    connection.close()


def test_nothing_is_left_open(small: Running) -> None:
    def files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    small.post("/v1/completions", {"prompt": "a", "max_tokens": 1})
    small.wait(lambda: not small.server.server_state.connections)
    before = files()
    for _ in range(20):
        connect(small, LONG).close()
        small.post("/v1/completions", {"prompt": "a", "max_tokens": 1})
    small.wait(lambda: not small.server.server_state.connections)
    assert files() <= before
    assert small.service.worker is not None
    small.wait(lambda: small.service.worker.answers == 0)
