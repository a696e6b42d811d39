"""Two processes on one folder: the second is refused, by name of the first."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from tiny_project import Command, write_project

from leveret.errors import UserError
from leveret.training import lock
from leveret.training.lock import Lock, holder


def hold(folder: Path, told: Connection) -> None:
    with Lock(folder):
        told.send("held")
        told.recv()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[tuple[multiprocessing.Process, Connection]]:
    """Another process that works in tmp_path / "stage"."""
    ours, its = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path / "stage", its))
    process.start()
    assert ours.recv() == "held"
    yield process, ours
    process.kill()
    process.join()


def test_a_second_process_is_refused_and_told_of_the_first(
    tmp_path: Path, other: tuple[multiprocessing.Process, Connection]
) -> None:
    process, pipe = other
    with pytest.raises(UserError, match=rf"stage is in use by process {process.pid} on \S+ since 20\S+; stop"):
        Lock(tmp_path / "stage").__enter__()
    assert str(holder(tmp_path / "stage")).startswith(f"process {process.pid} on ")
    pipe.send("enough")
    process.join()
    assert holder(tmp_path / "stage") is None
    with Lock(tmp_path / "stage"):
        assert str(holder(tmp_path / "stage")).startswith(f"process {os.getpid()} on ")


def test_what_a_killed_process_left_is_taken_over(
    tmp_path: Path, other: tuple[multiprocessing.Process, Connection]
) -> None:
    process, _ = other
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert str(process.pid) in (tmp_path / "stage" / "lock").read_text()
    assert holder(tmp_path / "stage") is None
    with Lock(tmp_path / "stage"):
        assert str(os.getpid()) in (tmp_path / "stage" / "lock").read_text()


def test_a_disk_without_locks_is_worked_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(file: object, shared: bool) -> bool:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock, "_locked", none)
    with Lock(tmp_path):
        assert "cannot be locked" in caplog.text
        assert holder(tmp_path) is None


def test_nobody_works_where_nothing_is(tmp_path: Path) -> None:
    assert holder(tmp_path / "nowhere") is None


def test_a_second_command_on_a_run_is_refused_before_it_touches_anything(tmp_path: Path, leveret: Command) -> None:
    """Also one with another recipe, which would set the first one's work aside."""
    project = write_project(tmp_path / "own").parent
    with Lock(project / "run"):
        said = leveret("run", "tiny.yaml", "model.hidden_size=16", "--run-dir", "run", cwd=project, exit_code=2).stderr
    assert f"leveret: run is in use by process {os.getpid()} on " in said
    assert [path.name for path in (project / "run").iterdir()] == ["lock"]
