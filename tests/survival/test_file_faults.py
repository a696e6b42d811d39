"""Every file operation of a save goes wrong once, in every way: there is always a whole checkpoint to go on from."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from tiny_project import Command, outcome, write_project

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes file operations fail. Elsewhere than on Linux nothing of this is shown, so it fails."""
    assert sys.platform == "linux", "filefaults.c is loaded by Linux's LD_PRELOAD, and not written for other systems"
    made = tmp_path_factory.mktemp("shim") / "filefaults.so"
    source = HERE / "filefaults.c"
    subprocess.run(["cc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", made, source, "-ldl"], check=True)
    return made


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.long)])
def test_a_save_survives_each_of_its_file_operations_going_wrong(
    shim: Path, environment: Mapping[str, str], every: int
) -> None:
    memory = Path("/dev/shm")  # where a flush takes no time; what a flush that fails leads to is the same
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as scratch:
        command = [sys.executable, str(HERE / "saves_under_faults.py"), scratch, str(every)]
        variables = {**environment, "LD_PRELOAD": str(shim)}
        done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=600)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report.pop("wrong") == []
    print(json.dumps(report, indent=1))
    for counted in report["operations"].values():
        assert counted["write"] >= 6
        assert counted["fsync"] >= counted["write"]
        assert counted["rename"] >= 2


SETTINGS = ["pretrain.eval_every=40", "pretrain.checkpoint_every=20", "pretrain.log_every=1", "data.workers=1"]


@pytest.mark.long
def test_a_disk_that_is_full_for_a_while_changes_no_bit(
    tmp_path: Path, shim: Path, environment: Mapping[str, str], leveret: Command
) -> None:
    """All that a run writes meets it: checkpoints, metrics, events, plots; samples of that time are left out."""
    steps = 200
    project = write_project(tmp_path / "own").parent
    command = ["pretrain", "tiny.yaml", f"pretrain.steps={steps}", *SETTINGS, "--run-dir"]
    leveret(*command, "undisturbed", cwd=project)
    run, full = project / "run", tmp_path / "full"
    variables = {"LD_PRELOAD": str(shim), "FILEFAULTS_FOLDER": str(run), "FILEFAULTS_FULL": str(full)}
    process = subprocess.Popen(
        [sys.executable, "-m", "leveret", *command, str(run)], cwd=project, env={**environment, **variables},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    while not (run / "pretrain" / "checkpoints" / "latest").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.002)
    full.touch()
    heard = []
    for line in process.stdout:
        heard.append(line)
        if sum("was not saved (No space left on device)" in each for each in heard) == 2:
            full.unlink(missing_ok=True)
    assert process.wait(timeout=60) == 0, "".join(heard)
    assert any(line.endswith(" is saved\n") for line in heard)
    (rows, _, files), (same_rows, _, same_files) = outcome(run, steps), outcome(project / "undisturbed", steps)
    assert (rows, files) == (same_rows, same_files)
    events = [json.loads(line)["kind"] for line in (run / "pretrain" / "events.jsonl").read_text().splitlines()]
    assert events.count("saved-again") == 1
