"""`leveret serve` as a process: what it says, what it refuses to do, how it ends."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from tiny_project import Command
from tiny_server import KEY, NEVER_ENDS, tiny_model, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "tiny", tiny_model(context=4096))


@contextmanager
def serving(
    run: Path, environment: Mapping[str, str], *options: str
) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A process that serves: (it, its address, what it said)."""
    command = [sys.executable, "-m", "leveret", "serve", str(run), "--port", "0", "--device", "cpu", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(environment)
    )
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        url = re.search(r"http://\S+", said)
        assert url, said + process.stdout.read()
        for line in process.stdout:
            said += line
            if line.startswith(("limits", "no checkpoint")):
                break
        yield process, url[0], said
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_it_says_where_what_and_how_much_and_drains_at_sigterm(run: Path, environment: Mapping[str, str]) -> None:
    with serving(run, environment, "slots=3", "queue=5") as (process, url, said):
        assert url.startswith("http://127.0.0.1:")
        assert "no key" in said
        assert "model tiny, finetune step 1, context 4096 tokens" in said
        assert "3 answers at once and 5 waiting" in said
        assert len(said.splitlines()) <= 4
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "tiny"
        answers: list[httpx.Response] = []
        body = {"prompt": "a", "max_tokens": 500, **NEVER_ENDS}
        ask = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/v1/completions", json=body, timeout=60))
        )
        ask.start()
        while "leveret_answers_running 1.0" not in httpx.get(f"{url}/metrics").text:
            assert ask.is_alive()
        process.send_signal(signal.SIGTERM)
        ask.join(60)
        assert answers[0].json()["usage"]["completion_tokens"] == 500
        assert process.wait(20) == -signal.SIGTERM
        assert process.stdout is not None
        assert process.stdout.read() == ""


def test_with_a_key_it_serves_other_machines(run: Path, environment: Mapping[str, str], tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    options = ("--host", "0.0.0.0", "--api-key-file", str(tmp_path / "key"))
    with serving(run, environment, *options) as (_, url, said):
        assert "with key" in said
        assert KEY not in said
        here = url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{here}/v1/models").status_code == 401
        assert httpx.get(f"{here}/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


def test_without_a_key_it_serves_this_machine_only(leveret: Command, run: Path, tmp_path: Path) -> None:
    done = leveret("serve", run, "--host", "0.0.0.0", cwd=tmp_path, exit_code=2)
    assert "--api-key-file" in done.stderr
    done = leveret("serve", run, "--api-key-file", "nowhere", cwd=tmp_path, exit_code=2)
    assert "nowhere" in done.stderr


def test_mistakes_are_one_line(leveret: Command, run: Path, tmp_path: Path) -> None:
    for options, told in (
        (["slts=3"], "there is no limit 'slts'"),
        (["slots=none"], "slots"),
        (["api_key=secret"], "there is no limit 'api_key'"),
    ):
        done = leveret("serve", run, *options, cwd=tmp_path, exit_code=2)
        assert told in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert "nothing" in leveret("serve", "nothing", cwd=tmp_path, exit_code=2).stderr


def test_a_port_that_is_taken_is_told(
    leveret: Command, run: Path, environment: Mapping[str, str], tmp_path: Path
) -> None:
    with serving(run, environment) as (_, url, _):
        done = leveret("serve", run, "--port", url.rpartition(":")[2], "--device", "cpu", cwd=tmp_path, exit_code=2)
        assert "--port" in done.stderr


def test_a_run_without_a_checkpoint_shows_its_page(run: Path, environment: Mapping[str, str], tmp_path: Path) -> None:
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    with serving(tmp_path / "begun", environment) as (_, url, said):
        assert "no checkpoint yet" in said
        assert httpx.get(f"{url}/v1/models").status_code == 503
        assert httpx.get(f"{url}/run").status_code == 200
        assert httpx.get(f"{url}/api/run").status_code == 200
