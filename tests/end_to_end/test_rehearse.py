"""`leveret rehearse`: what would fail is told before, what it will take is told, and nothing is left behind."""

import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import Result
from tiny_project import Command, write_project
from typer.testing import CliRunner

from leveret.cli.app import app
from leveret.planning import checks

TOKEN = "hf_planted0123456789"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = write_project(tmp_path / "own").parent
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LEVERET_CACHE", str(tmp_path / "cache"))
    return folder


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def shapes(*words: str, code: int = 0) -> Result:
    """A rehearsal on shapes only, in this process."""
    done = CliRunner().invoke(app, ["rehearse", "tiny.yaml", "--device", "meta", *words])
    assert done.exit_code == code, done.output
    return done


def lines(output: str, state: str) -> dict[str, str]:
    """What is said of each thing in that state; the last of each."""
    found = [line.split(maxsplit=2) for line in output.splitlines() if line.startswith(f"{state} ")]
    return {what: said for _, what, said in found}


def test_every_stage_takes_a_few_real_steps_and_nothing_stays(project: Path, leveret: Command, tmp_path: Path) -> None:
    before, scratch = files(project), tmp_path / "scratch"
    scratch.mkdir()
    cache = str(tmp_path / "cache")
    words = ["rehearse", "tiny.yaml", "finetune.steps=null", "finetune.epochs=2", "--price", "3.6"]
    said = leveret(*words, cwd=project, TMPDIR=str(scratch), LEVERET_CACHE=cache).stdout
    assert said.endswith("the real run can begin\n")
    found = lines(said, "ok")
    assert found["pretrain"].startswith("20 steps here: ")
    assert found["finetune"].startswith("14 steps here: ")  # two examples of a row's 64 tokens, 16 rows to a batch
    assert "3 steps of 16 rows of 64 tokens" in said
    assert "GiB held at most" in said
    assert "hours of training, $" in found["in"]
    assert "GB of checkpoints and 0.00 GB of shards" in found["disk"]
    assert files(project) == before
    assert not files(scratch)
    assert not (tmp_path / "cache").exists()


@pytest.mark.long
def test_an_interrupted_rehearsal_leaves_nothing(project: Path, environment: Mapping[str, str], tmp_path: Path) -> None:
    before, scratch = files(project), tmp_path / "scratch"
    scratch.mkdir()
    work = subprocess.Popen(
        [sys.executable, "-m", "leveret", "rehearse", "tiny.yaml"], stdout=subprocess.DEVNULL,
        env={**environment, "TMPDIR": str(scratch)},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(scratch.glob("leveret-rehearsal-*/run")):
        assert time.monotonic() < deadline
        assert work.poll() is None
        time.sleep(0.02)
    work.send_signal(signal.SIGINT)
    assert work.wait(30) == 130
    assert files(project) == before
    assert not files(scratch)


def test_what_the_real_run_would_fail_of_is_told_with_how_to_mend_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "pairs.jsonl").unlink()
    monkeypatch.setattr(checks, "free_space", lambda folder: 1000)
    said = shapes(code=1).output
    problems = lines(said, "problem")
    assert "pairs.jsonl" in problems["finetune"]
    assert "make room, set keep_last lower, or take another --run-dir" in problems["disk"]
    assert "the real run would fail: 2 problems" in said


@pytest.mark.long
def test_a_mistake_that_shows_in_the_steps_is_a_problem(project: Path, leveret: Command) -> None:
    leak = (project / "held.jsonl").read_text()
    (project / "pairs.jsonl").write_text(leak + (project / "pairs.jsonl").read_text())
    said = leveret("rehearse", "tiny.yaml", cwd=project, exit_code=1).stdout
    assert "leak" in lines(said, "problem")["run"]


def test_hours_dollars_and_memory_of_another_gpu(project: Path) -> None:
    words = ["--gpu", "l20", "--gpus", "2", "--price", "1.5"]
    told = lines(shapes(*words, "--mfu", "0.4").output, "ok")
    assert told["pretrain"].startswith("20 steps on 2 x l20: 0 s (")
    assert "40% of the peak: you say so" in told["pretrain"]
    assert "($1.5 a GPU-hour" in told["in"]
    unknown = lines(shapes(*words).output, "warning")
    assert "its time is not known: no measured speed" in unknown["pretrain"]
    large = ["model.hidden_size=8192", "model.intermediate_size=32768", "model.num_hidden_layers=32"]
    assert "what would work" in lines(shapes(*words, *large, code=1).output, "problem")["pretrain"]


def test_a_token_is_looked_for_and_never_shown(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    folder = project / "dataset"
    folder.mkdir()
    (folder / "train.jsonl").write_text((project / "texts" / "corpus.jsonl").read_text())
    source = f"data.sources=[{{kind: hub, name: {folder}}}]"
    said = shapes(source).output
    assert "a token of the Hugging Face Hub is there" in said
    assert TOKEN not in said
    assert "problem" not in said
