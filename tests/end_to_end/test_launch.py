"""`leveret launch`: the commands are the right ones, and a job that is warned saves and queues itself again."""

import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from tiny_project import Command, write_project

STUBS = {
    "scontrol": 'echo "$@" >> scontrol.txt; echo first-machine',
    # As Slurm's, it hands signals on to what it runs.
    "srun": 'trap "echo saved > saved.txt; exit 143" TERM; echo "$@" > srun.txt; while :; do sleep 0.05; done',
    "sbatch": "cat > job.sh; echo Submitted batch job 7",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = write_project(tmp_path / "own").parent
    for name, does in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    return folder


def test_torchrun_is_called_with_what_was_said(project: Path, leveret: Command) -> None:
    words = ["tiny.yaml", "pretrain.steps=5", "--gpus", "2", "--print", "--", "--run-dir", "a b"]
    said = leveret("launch", "torchrun", *words, cwd=project).stdout
    _, _, told = said.partition(" -m torch.distributed.run ")
    assert told == (
        "--standalone --nproc-per-node=2 --max-restarts=3 -m leveret run tiny.yaml pretrain.steps=5 --run-dir 'a b'\n"
    )
    said = leveret("launch", "torchrun", *words[:4], "--print", "--nodes", "3", "--head", "node1", cwd=project).stdout
    assert "--nnodes=3 --rdzv-backend=c10d --rdzv-endpoint=node1:29500 --rdzv-id=tiny" in said


@pytest.mark.parametrize(
    ("words", "mistake"),
    [
        (["tiny.yaml", "--nodes", "2", "--gpus", "1"], "several machines meet at the first of them"),
        (["tiny.yaml", "--gpus", "1", "--verb", "chat"], "--verb chat does not train"),
        (["tiny.yaml", "pretrain.stepz=5", "--gpus", "1"], "stepz"),
    ],
)
def test_mistakes_are_told_before_anything_starts(
    project: Path, leveret: Command, words: list[str], mistake: str
) -> None:
    assert mistake in leveret("launch", "torchrun", *words, cwd=project, exit_code=2).stderr


def test_a_job_that_is_warned_saves_and_queues_itself_again(
    project: Path, leveret: Command, environment: Mapping[str, str]
) -> None:
    path = {"PATH": f"{project.parent}:{environment['PATH']}"}
    options = ["--nodes", "2", "--gpus", "8", "--time", "1:00:00", "--sbatch", "partition=gpu"]
    assert "job 7" in leveret("launch", "slurm", "tiny.yaml", *options, cwd=project, **path).stdout
    script = (project / "job.sh").read_text()
    for option in ("nodes=2", "gpus-per-node=8", "time=1:00:00", "partition=gpu", "signal=B:USR1@120", "requeue"):
        assert f"#SBATCH --{option}\n" in script
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "first-machine,second"}
    job = subprocess.Popen(["bash", "job.sh"], cwd=project, env={**environment, **path, **slurm})
    deadline = time.monotonic() + 20
    while not (project / "srun.txt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    job.send_signal(signal.SIGUSR1)
    job.wait(20)
    assert (project / "saved.txt").exists()
    assert (project / "scontrol.txt").read_text().splitlines()[-1] == "requeue 7"
    assert "--rdzv-endpoint=first-machine:29500" in (project / "srun.txt").read_text()
