"""A training that was stopped or killed, gone on with by the same command, ends with the same weights bit for bit."""

import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from tiny_project import Command, outcome, write_project

STEPS = 200
SETTINGS = [
    f"pretrain.steps={STEPS}", "pretrain.eval_every=20", "pretrain.checkpoint_every=20", "pretrain.log_every=1",
    "pretrain.keep_last=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("interrupt") / "own").parent


@pytest.fixture(scope="module")
def undisturbed(project: Path, leveret: Command) -> Path:
    """A run that nobody stopped."""
    leveret("pretrain", "tiny.yaml", *SETTINGS, "--run-dir", "undisturbed", cwd=project)
    rows, _, _ = outcome(project / "undisturbed", STEPS)
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, STEPS + 1))
    return project / "undisturbed"


def stop_in_the_middle(
    project: Path, name: str, number: signal.Signals, environment: Mapping[str, str]
) -> tuple[int, str]:
    """Starts a training, sends the signal once its second checkpoint is there; its exit code and stderr."""
    command = [sys.executable, "-m", "leveret", "pretrain", "tiny.yaml", *SETTINGS, "--run-dir", name]
    process = subprocess.Popen(command, cwd=project, env=environment, stderr=subprocess.PIPE, text=True)
    checkpoint = project / name / "pretrain" / "checkpoints" / "step-00000040"
    deadline = time.monotonic() + 60
    while not checkpoint.exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def go_on(leveret: Command, project: Path, name: str) -> str:
    """The same command again; what it said."""
    return leveret("pretrain", "tiny.yaml", *SETTINGS, "--run-dir", name, cwd=project).stderr


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_training_saves_and_goes_on_to_the_same_bits(
    number: signal.Signals, exit_code: int, project: Path, undisturbed: Path, leveret: Command,
    environment: Mapping[str, str],
) -> None:  # fmt: skip
    returned, said = stop_in_the_middle(project, number.name, number, environment)
    assert returned == exit_code
    stopped_at = int((project / number.name / "pretrain/checkpoints/latest").read_text().removeprefix("step-"))
    assert 40 <= stopped_at < STEPS
    assert said.splitlines()[-1] == (
        f"leveret: stopped by {number.name} at step {stopped_at}; the same command goes on from here"
    )
    assert "Traceback" not in said
    assert f"pretrain: going on from step {stopped_at}\n" in go_on(leveret, project, number.name)
    assert outcome(project / number.name, STEPS) == outcome(undisturbed, STEPS)


@pytest.mark.long
def test_a_killed_training_goes_on_from_its_last_checkpoint_to_the_same_bits(
    project: Path, undisturbed: Path, leveret: Command, environment: Mapping[str, str]
) -> None:
    returned, _ = stop_in_the_middle(project, "killed", signal.SIGKILL, environment)
    assert returned == -signal.SIGKILL
    assert "pretrain: going on from step " in go_on(leveret, project, "killed")
    assert outcome(project / "killed", STEPS) == outcome(undisturbed, STEPS)


def test_after_a_kill_a_damaged_checkpoint_is_passed_over_with_a_warning(
    project: Path, undisturbed: Path, leveret: Command, environment: Mapping[str, str]
) -> None:
    stop_in_the_middle(project, "damaged", signal.SIGKILL, environment)
    before, newest = sorted((project / "damaged").glob("pretrain/checkpoints/step-*"))[-2:]
    weights = newest / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    said = go_on(leveret, project, "damaged")
    assert f"{newest.name} is damaged: model.safetensors differs from its hash; using the one before it" in said
    assert f"pretrain: going on from step {int(before.name.removeprefix('step-'))}\n" in said
    assert outcome(project / "damaged", STEPS) == outcome(undisturbed, STEPS)
