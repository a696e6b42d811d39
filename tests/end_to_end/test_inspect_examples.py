"""`leveret inspect examples` from the command line."""

import json
import re
from pathlib import Path

import pytest
from tiny_project import ANSWER, Command, write_project

LONG = {"instruction": "too long " + "word " * 100, "command": "true"}
PAIR = {"prompt": "make the file", "chosen": ANSWER, "rejected": "rm made.txt"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, leveret: Command) -> Path:
    folder = tmp_path_factory.mktemp("looked") / "own"
    write_project(folder)
    with (folder / "pairs.jsonl").open("a") as file:
        file.write(json.dumps(LONG) + "\n")
    (folder / "better.jsonl").write_text("".join(json.dumps(PAIR | {"rejected": f"rm {n}"}) + "\n" for n in range(9)))
    leveret("tokenizer", "train", "tiny.yaml", cwd=folder)
    return folder


def test_examples_are_shown_and_the_run_is_left_as_it_is(project: Path, leveret: Command) -> None:
    before = {path: path.read_bytes() for path in (project / "runs").rglob("*") if path.is_file()}
    done = leveret("inspect", "examples", "tiny.yaml", "-n", "2", "--html", "new/page.html", cwd=project)
    assert done.stdout.count(f"⟦{ANSWER}<eos>⟧") >= 3  # two examples and a row
    assert re.search(r"left out, longer than 64 tokens +1 ", done.stdout)
    assert "pairs.jsonl, left out: " in done.stdout
    assert "page written: new/page.html" in done.stdout
    assert "What finetune learns from" in (project / "new" / "page.html").read_text()
    cut = leveret("inspect", "examples", "tiny.yaml", "finetune.too_long=truncate", "-n", "1", cwd=project).stdout
    assert re.search(r"of these cut to 64 tokens +1 ", cut)
    assert "pairs.jsonl, cut from " in cut
    assert {path: path.read_bytes() for path in (project / "runs").rglob("*") if path.is_file()} == before


def test_what_is_looked_at_is_what_is_trained_on(project: Path, leveret: Command) -> None:
    """The shards are those that `prepare` takes, and a run that is there is not needed."""
    shown = leveret("inspect", "examples", "tiny.yaml", "--run-dir", "runs/new", "-n", "1", cwd=project)
    assert "tokenizer: training bpe" in shown.stderr
    prepared = leveret("prepare", "tiny.yaml", "--run-dir", "runs/new", cwd=project).stderr
    assert "writing finetune shards" not in prepared
    rows = json.loads((Path(json.loads((project / "runs/new/data.json").read_text())["finetune"]) / "manifest.json")
                      .read_text())["examples"]["train"]["rows"]  # fmt: skip
    assert f"Rows: {rows} of 65 tokens" in shown.stdout


def test_pairs_are_shown_by_their_stage(project: Path, leveret: Command) -> None:
    prefer = "prefer={examples: [{paths: [better.jsonl]}], steps: 1, validation_fraction: 0}"
    shown = leveret(
        "inspect", "examples", "tiny.yaml", prefer, "--stage", "prefer", "-n", "1", "--tokens", cwd=project,
        NO_COLOR="1", COLUMNS="40",
    ).stdout  # fmt: skip
    assert "What prefer learns from" in shown
    assert "example 5 of 9, chosen: " in shown
    assert "example 5 of 9, rejected: " in shown
    assert max(map(len, shown.splitlines())) <= 40


def test_what_is_not_there_is_said(project: Path, leveret: Command) -> None:
    for arguments, said in {
        ("tiny.yaml", "--stage", "prefer"): "tiny.yaml has no stage prefer; it has finetune",
        ("tiny.yaml", "--from", "runs/nowhere"): "there is no run 'runs/nowhere'",
    }.items():
        assert said in leveret("inspect", "examples", *arguments, cwd=project, exit_code=2).stderr
