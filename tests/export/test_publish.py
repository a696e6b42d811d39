"""Publishing, against a stand-in of the Hub on this machine: what it gets, what it is not told, and what fails."""

import hashlib
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_stand_in import TOKEN, Hub, stand_in
from tiny_models import ENGLISH, made_tokenizer, write_run
from tiny_project import Command

from leveret.errors import UserError
from leveret.export.publish import check_name, files_of, folder_of, publish
from leveret.export.write import export_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "model", made_tokenizer("bpe-gpt2", ENGLISH), "finetune")


@pytest.fixture(scope="module")
def folder(run: Path) -> Path:
    out = run.with_name("exported")
    export_model(str(run), out, name="me/model")
    return out


@pytest.fixture
def hub() -> Iterator[Hub]:
    with stand_in() as server:
        yield server


def variables(hub: Hub) -> dict[str, str]:
    """For a process: the stand-in as its Hub, without the Hub's own way of storing, which goes elsewhere."""
    reach = {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return reach | {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}


def test_the_hub_gets_the_model_whole(
    hub: Hub, run: Path, folder: Path, leveret: Command, tmp_path: Path, environment: dict[str, str]
) -> None:
    lines: set[str] = set()
    done = threading.Event()
    watcher = threading.Thread(target=watch, args=(lines, done))
    watcher.start()
    said = leveret("publish", run, "me/model", "--private", "--license", "mit", cwd=tmp_path, **variables(hub))
    done.set()
    watcher.join()
    assert said.stdout.splitlines()[-1] == f"{hub.url}/me/model/commit/1"
    assert hub.repos == {"me/model": True}
    assert len(hub.commits) == 1
    assert hub.tokens - {None} == {f"Bearer {TOKEN}"}
    assert "license: mit" in hub.files["README.md"].decode()
    expected = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"}
    assert {name: data for name, data in hub.files.items() if name != "README.md"} == expected
    for name, data in hub.files.items():
        assert f"{len(data):,} bytes  sha256 {hashlib.sha256(data).hexdigest()}" in said.stdout, name
    # The token is nowhere but in the calls.
    assert lines, "the process was not seen"
    assert TOKEN not in said.stdout + said.stderr + "".join(lines)
    assert TOKEN.encode() not in b"".join(hub.files.values())
    places = [tmp_path, run, Path(environment["HF_HOME"])]
    assert not [path for place in places for path in place.rglob("*") if path.is_file() and holds(path)]
    # Once more: nothing has changed, and nothing is sent again.
    stored, calls = len(hub.stored), len(hub.calls)
    leveret("publish", run, "me/model", "--license", "mit", cwd=tmp_path, **variables(hub))
    assert len(hub.commits) == 1
    assert len(hub.stored) == stored
    assert not [call for call in hub.calls[calls:] if call.startswith("/store/")]


def watch(lines: set[str], done: threading.Event) -> None:
    """What the list of processes shows of `leveret publish` while it runs."""
    while not done.is_set():
        for place in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                text = place.read_bytes().decode(errors="replace")
            except OSError:  # it has ended
                continue
            if "publish" in text and "me/model" in text:
                lines.add(text)
        time.sleep(0.05)


def holds(path: Path) -> bool:
    return TOKEN.encode() in path.read_bytes()


def test_a_dry_run_asks_nobody(hub: Hub, run: Path, leveret: Command, tmp_path: Path) -> None:
    told = {key: value for key, value in variables(hub).items() if key != "HF_TOKEN"} | {"HF_TOKEN": ""}
    said = leveret("publish", run, "me/model", "--dry-run", "--dtype", "bfloat16", cwd=tmp_path, **told).stdout
    assert "model.safetensors" in said
    assert f"to {hub.url}/me/model" in said
    assert said.splitlines()[-1] == "a public repository would be made, if there is none; nothing was sent"
    assert hub.calls == []
    assert list(tmp_path.iterdir()) == []


def test_what_can_be_known_before_is_told_before(
    hub: Hub, run: Path, folder: Path, leveret: Command, tmp_path: Path
) -> None:
    nothing = variables(hub) | {"HF_TOKEN": ""}
    assert "set HF_TOKEN" in leveret("publish", run, "me/model", cwd=tmp_path, exit_code=2, **nothing).stderr
    assert hub.calls == []
    for name in ("model", "me/mo del", "a/b/c", ""):
        with pytest.raises(UserError, match="write it as USER/NAME"):
            check_name(name)
    with pytest.raises(UserError, match="there is no run"), folder_of("nowhere", "me/model"):
        pass
    with pytest.raises(UserError, match="is published as it is"), folder_of(str(folder), "me/model", "bfloat16"):
        pass
    with folder_of(str(folder), "me/model") as same:
        assert same == folder


@pytest.fixture
def here(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The stand-in for this process; between its attempts the library does not wait."""
    import huggingface_hub.constants

    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return hub


@pytest.mark.parametrize(
    ("part", "status", "message"),
    [
        ("/api/", 401, r"does not let this HF_TOKEN write to me/model \(401\)"),
        ("/commit/", 403, r"does not let this HF_TOKEN write to me/model \(403\)"),
        ("/repos/create", 503, r"the Hub answered 503; what is there is whole; the same command may be run again"),
        ("/commit/", 500, r"the Hub answered 500"),
        ("/store/", 502, r"the Hub answered 502"),
        ("/preupload/", 400, r"the Hub refuses me/model or what is sent to it \(400\)"),
        ("/repos/create", 0, r"the Hub cannot be reached \(\w+\); .* may be run again"),
        ("/store/", 0, r"the Hub cannot be reached"),
        ("/commit/", 0, r"the Hub cannot be reached"),
    ],
)
def test_what_fails_is_one_line_and_can_be_done_again(
    part: str, status: int, message: str, here: Hub, folder: Path
) -> None:
    here.failing = {part: status}
    with pytest.raises(UserError, match=message) as raised:
        publish(folder, files_of(folder), "me/model", private=False)
    assert "\n" not in str(raised.value)
    assert TOKEN not in str(raised.value)
    assert here.files == {}, "what is sent is seen all at once"
    here.failing = {}
    publish(folder, files_of(folder), "me/model", private=False)
    assert set(here.files) == {path.name for path in folder.iterdir()}


def test_hidden_files_stay_here(here: Hub, folder: Path) -> None:
    (folder / ".env").write_text("secret")
    try:
        files = files_of(folder)
        publish(folder, files, "me/model", private=False)
    finally:
        (folder / ".env").unlink()
    assert set(here.files) == {file.name for file in files} == {path.name for path in folder.iterdir()}


def test_what_is_shown_is_what_is_sent_whatever_it_is_called(here: Hub, folder: Path, tmp_path: Path) -> None:
    """The library takes names for patterns."""
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    for name in ("loss [1].png", "[!x]*"):
        (copy / name).write_text(name)
    (copy / "more").mkdir()
    (copy / "more" / "secret.txt").write_text("stays")
    files = files_of(copy)
    publish(copy, files, "me/model", private=False)
    assert set(here.files) == {file.name for file in files} == {path.name for path in copy.iterdir()} - {"more"}


def test_a_link_that_leads_elsewhere_is_not_published(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    (tmp_path / "key").write_text("secret")
    (copy / "notes.txt").symlink_to(tmp_path / "key")
    with pytest.raises(UserError, match="is a link that leads out of its folder"):
        files_of(copy)


def test_the_library_is_asked_for_when_it_is_used(tmp_path: Path) -> None:
    """`leveret --help` does not import it."""
    code = "import sys, leveret.cli.app; print('huggingface_hub' in sys.modules)"
    done: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.stdout == "False\n"
