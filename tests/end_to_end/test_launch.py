"""`leveret launch`: the files are the right ones, hold no secret, and what can run here runs and goes on."""

import ast
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from tiny_project import Command, write_project
from typer.testing import CliRunner

from leveret.cli.app import app
from leveret.errors import UserError
from leveret.planning.launch import PLATFORMS

STUBS = {
    "scontrol": 'echo "$@" >> scontrol.txt; echo first-machine',
    # As Slurm's, it hands signals on to what it runs.
    "srun": 'trap "echo saved > saved.txt; exit 143" TERM; echo "$@" > srun.txt; while :; do sleep 0.05; done',
    "sbatch": 'grep -q "^#SBATCH" "$1" && echo sbatch "$@" >> submitted.txt',
    "sky": 'echo sky "$@" >> submitted.txt',
    "modal": 'echo modal "$@" >> submitted.txt',
    "docker": 'echo docker "$@" >> submitted.txt',
}
TOKEN = "hf_planted0123456789"
NEEDS = {"torchrun": ["--gpus", "2"], "slurm": ["--gpus", "8"], "skypilot": ["--gpu", "a100-80gb"]}
NEEDS["modal"] = ["--gpu", "A100-80GB", "--gpus", "2"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = write_project(tmp_path / "own").parent
    for name, does in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return folder


def launch(*words: str, mistake: bool = False) -> Result:
    """`leveret launch` on the tiny recipe, in this process."""
    done = CliRunner().invoke(app, ["launch", "tiny.yaml", *words])
    assert isinstance(done.exception, UserError) if mistake else done.exit_code == 0, done.output
    return done


def test_torchrun_is_called_with_what_was_said(project: Path) -> None:
    words = ["pretrain.steps=5", "--on", "torchrun", "--gpus", "2"]
    launch(*words, "--", "--run-dir", "a b")
    _, _, told = (project / "launch/tiny/torchrun.sh").read_text().partition(" -m torch.distributed.run ")
    assert told == (
        "--standalone --nproc-per-node=2 --max-restarts=3 -m leveret run tiny.yaml pretrain.steps=5 --run-dir 'a b'\n"
    )
    launch(*words, "--nodes", "3", "--head", "node1")
    written = (project / "launch/tiny/torchrun.sh").read_text()
    assert "--nnodes=3 --rdzv-backend=c10d --rdzv-endpoint=node1:29500 --rdzv-id=tiny" in written
    assert "'a b'" in (project / "launch/tiny/torchrun.sh.old").read_text()  # perhaps somebody had changed it


@pytest.mark.parametrize(
    ("words", "mistake"),
    [
        (["--on", "torchrun", "--nodes", "2", "--gpus", "1"], "several machines meet at the first of them"),
        (["--on", "torchrun", "--gpus", "1", "--verb", "chat"], "--verb chat does not train"),
        (["pretrain.stepz=5", "--on", "torchrun", "--gpus", "1"], "stepz"),
        (["--on", "lambda"], "--on lambda is not known; take local, torchrun, slurm, skypilot, modal"),
        (["--on", "skypilot"], "say which GPU to rent with --gpu"),
        (["--on", "modal", "--gpu", "L4", "--nodes", "2"], "one machine"),
        (["--on", "local", "--time", "1:00:00"], "--time is for --on slurm"),
        (["--on", "skypilot", "--gpu", "L4", "--", "--run-dir", "here"], "--run-dir means a place on this machine"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(project: Path, words: list[str], mistake: str) -> None:
    assert mistake in str(launch(*words, mistake=True).exception)
    assert not (project / "launch").exists()


def test_a_job_that_is_warned_saves_and_queues_itself_again(project: Path) -> None:
    launch("--on", "slurm", "--nodes", "2", "--gpus", "8", "--time", "1:00:00", "--sbatch", "partition=gpu", "--submit")
    assert (project / "launch/tiny/submitted.txt").read_text() == "sbatch job.sh\n"
    script = project / "launch" / "tiny" / "job.sh"
    for option in ("nodes=2", "gpus-per-node=8", "time=1:00:00", "partition=gpu", "signal=B:USR1@120", "requeue"):
        assert f"#SBATCH --{option}\n" in script.read_text()
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "first-machine,second"}
    job = subprocess.Popen(["bash", script], cwd=project, env=os.environ | slurm)
    deadline = time.monotonic() + 20
    while not (project / "srun.txt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    job.send_signal(signal.SIGUSR1)
    job.wait(20)
    assert (project / "saved.txt").exists()
    assert (project / "scontrol.txt").read_text().splitlines()[-1] == "requeue 7"
    assert "--rdzv-endpoint=first-machine:29500" in (project / "srun.txt").read_text()


def test_no_file_holds_a_secret_and_all_are_handed_over(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe that reads from the hub, on every platform; its secret goes by name."""
    text = (project / "tiny.yaml").read_text()
    (project / "tiny.yaml").write_text(text.replace("{paths: [texts/", "{kind: hub, name: a/b}, {paths: [texts/"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("WANDB_API_KEY", TOKEN)
    for platform in PLATFORMS:
        handing = ["--submit"] * (platform in ("skypilot", "modal", "container"))
        done = launch("pretrain.steps=7", "--to", "there", "--on", platform, *NEEDS.get(platform, []), *handing)
        assert TOKEN not in done.output
    files = [file for file in (project / "there").rglob("*") if file.is_file()]
    assert not [file for file in files if TOKEN.encode() in file.read_bytes()]
    assert not [file for file in files if file.parent.name == "there" and "WANDB" in file.read_text()]  # not used
    sky, modal, build, run = (project / "there" / "submitted.txt").read_text().splitlines()
    assert sky == "sky jobs launch --yes --secret HF_TOKEN skypilot.yaml"
    assert modal == "modal run --detach modal_app.py"
    assert build == "docker build --tag=leveret-tiny ."
    assert "--env=HF_TOKEN --" in run
    for script in ("local.sh", "torchrun.sh", "job.sh"):
        subprocess.run(["bash", "-n", project / "there" / script], check=True)


def test_what_travels_names_its_files_as_they_are_called_there(project: Path) -> None:
    for platform in ("skypilot", "modal"):
        launch("pretrain.steps=7", "--on", platform, "--gpu", "l4")
    folder = project / "launch" / "tiny"
    task = yaml.safe_load((folder / "skypilot.yaml").read_text())
    assert task["resources"]["accelerators"] == "L4:1"
    assert task["resources"]["use_spot"] is True
    assert task["file_mounts"]["/runs"]["mode"] == "MOUNT_CACHED"
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["pretrain"]["steps"] == 7
    there = [*recipe["data"]["sources"][0]["paths"], *recipe["finetune"]["examples"][0]["paths"]]
    assert [Path(task["file_mounts"][place]).name for place in there] == ["corpus.jsonl", "notes.txt", "pairs.jsonl"]
    assert str(project) not in (folder / "recipe.yaml").read_text()
    assert (folder / "leveret/src/leveret/training/loop.py").is_file()
    app = ast.parse((folder / "modal_app.py").read_text())
    called = {node.func.attr: node for node in ast.walk(app) if isinstance(node, ast.Call) and _is_method(node)}
    options = {key.arg: ast.unparse(key.value) for key in called["function"].keywords}
    assert options["gpu"] == "'L4'"
    assert options["volumes"] == "{'/runs': runs}"
    assert options["retries"] == "modal.Retries(max_retries=10, initial_delay=0.0)"


def _is_method(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Attribute)


def test_the_local_script_runs_here_and_goes_on(project: Path, environment: Mapping[str, str]) -> None:
    launch("pretrain.steps=2", "--verb", "pretrain", "--on", "local")
    for said in ("pretrain: step 2/2", "pretrain: already done"):
        done = subprocess.run(["bash", "launch/tiny/local.sh"], env=environment, capture_output=True, text=True)
        assert said in done.stderr


@pytest.mark.long
def test_two_machines_of_torchrun_meet_here_and_go_on(
    project: Path, leveret: Command, environment: Mapping[str, str]
) -> None:
    """Two processes that each take themselves for a machine with one GPU, given the same script."""
    words = ["pretrain.steps=4", "pretrain.parallel.kind=fsdp", "--verb", "pretrain", "--gpus", "1"]
    launch(*words, "--on", "torchrun", "--nodes", "2", "--head", "127.0.0.1")
    script = ["bash", project / "launch" / "tiny" / "torchrun.sh"]

    def of_both() -> str:
        machines = [subprocess.Popen(script, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        said = "".join(machine.communicate(timeout=280)[1] for machine in machines)
        assert [machine.returncode for machine in machines] == [0, 0], said
        return said

    assert of_both().count("pretrain: step 4/4") == 1
    assert "pretrain: already done" in of_both()
