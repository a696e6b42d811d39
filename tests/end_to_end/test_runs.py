"""`leveret runs`: what there is, how it is doing, its curves, what sets two apart; also where things are damaged."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_project import Command, TinyRun, write_project

from leveret.curves import curve
from leveret.training.lock import Lock


def listed(stdout: str) -> dict[str, list[str]]:
    """The cells of the list by name of run."""
    lines = stdout.splitlines()
    assert lines[0].split() == ["run", "state", "stage", "step", "loss", "val.", "loss", "time", "cost"]
    return {cells[0]: cells[1:] for line in lines[1:] if (cells := line.split())}


def written(run: Path, steps: int = 40, **entry: Any) -> Path:
    """A run's folder as one leaves it that is in pretraining."""
    (run / "pretrain").mkdir(parents=True)
    (run / "recipe.yaml").write_text("name: written\npretrain:\n  steps: 100\n  optimizer:\n    lr: 0.1\n")
    stages = {"pretrain": {"inputs": {}, "finished": None, "seconds": None} | entry}
    (run / "state.json").write_text(json.dumps({"format_version": 1, "stages": stages}))
    rows = [{"step": n, "loss": 1 + math.exp(-n / 9), "lr": 0.1, "grad_norm": 1.0} for n in range(1, steps + 1)]
    rows.append({"step": steps, "validation_loss": 1.25})
    (run / "pretrain" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ledger = {"steps": 100, "seconds": {"training": 3000, "waiting": 600}, "cost": 2.5}
    (run / "pretrain" / "ledger.json").write_text(json.dumps(ledger))
    return run


def test_runs_are_listed_with_their_states(tiny: TinyRun, leveret: Command, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(tiny.path, runs / "done", ignore=shutil.ignore_patterns("checkpoints", "shards"))
    written(runs / "stopped")
    written(runs / "broken", failed="ValueError: planted")
    written(runs / "busy")
    (runs / "no-run").mkdir()
    with Lock(runs / "busy" / "pretrain"):
        found = listed(leveret("runs", cwd=tmp_path, COLUMNS="150").stdout)
    assert list(found) == ["broken", "busy", "done", "stopped"]
    stopped = "interrupted pretrain 40/100 1.0117 1.2500 1 h 00 min $2.50"
    assert " ".join(found["stopped"]) == stopped
    assert found["busy"][:3] == ["running", "pretrain", "40/100"]
    assert found["broken"][:2] == ["failed", "pretrain"]
    assert found["done"][:3] == ["finished", "evaluate", "60/60"]


def test_a_list_fits_a_narrow_terminal_and_takes_a_folder(leveret: Command, tmp_path: Path) -> None:
    written(tmp_path / "elsewhere" / "a-run-with-a-rather-long-name-that-says-a-lot")
    said = leveret("runs", "elsewhere", cwd=tmp_path, COLUMNS="80").stdout
    assert max(map(len, said.splitlines())) <= 80
    assert "interrupted" in said
    assert "40/100" in said
    narrow = leveret("runs", "elsewhere", cwd=tmp_path, COLUMNS="40").stdout
    assert narrow.split()[:2] == ["run", "state"], "what does not fit is left out, from the right"
    assert (
        "".join(line[:27].strip() for line in narrow.splitlines()[1:])
        == "a-run-with-a-rather-long-name-that-says-a-lot"
    )
    (tmp_path / "runs").mkdir()
    assert leveret("runs", cwd=tmp_path).stdout == "no runs in runs\n"
    line = leveret("runs", "nowhere", cwd=tmp_path, exit_code=2).stderr
    assert line == "leveret: there is no folder 'nowhere' to look for runs in; `leveret run RECIPE` makes runs/NAME\n"


def test_what_is_damaged_is_unknown(leveret: Command, tmp_path: Path) -> None:
    for name in ("state.json", "recipe.yaml", "pretrain/metrics.jsonl", "pretrain/ledger.json"):
        for content in (b"", b"[1, 2", b"[]", b'{"stages": 3}', b'{"seconds": {"a": "b"}}', b"\xff\xfe\x00"):
            run = written(tmp_path / "runs" / f"{name.replace('/', '-')}-{content.hex()}")
            (run / name).write_bytes(content)
            (run / "pretrain" / "summary.json").write_bytes(content)
    found = listed(leveret("runs", cwd=tmp_path, COLUMNS="150").stdout)
    assert len(found) == 24
    assert {cells[0] for cells in found.values()} == {"interrupted"}
    names = sorted(found)
    for name in names[3::7]:
        leveret("runs", "show", name, cwd=tmp_path)
    leveret("runs", "compare", names[4], names[16], cwd=tmp_path)


def test_curves_are_drawn_in_the_terminal(tiny: TinyRun, leveret: Command, tmp_path: Path) -> None:
    written(tmp_path / "runs" / "some")
    events = [{"kind": "spike", "step": 7}, {"kind": "spike", "step": 9}, {"kind": "restart", "step": 5}]
    text = "".join(json.dumps(event) + "\n" for event in events)
    (tmp_path / "runs" / "some" / "pretrain" / "events.jsonl").write_text(text)
    said = leveret("runs", "show", "some", cwd=tmp_path, COLUMNS="40").stdout.splitlines()
    assert said[1] == "interrupted at pretrain"
    assert said[2].startswith("pretrain: step 40/100, loss 1.0117, validation loss 1.2500, time 1 h 00 min, cost $2.50")
    assert said[3] == "events: spike 2, restart 1"
    assert {"loss (● validation)", "learning rate", "gradient norm"} <= set(said)
    assert max(map(len, said[4:])) <= 40
    picture = said[said.index("loss (● validation)") + 1 :][:11]
    assert sum("●" in line for line in picture) == 1
    assert picture[-1].split() == ["1", "40"]
    whole = leveret("runs", "show", f"{tiny.path}/pretrain", cwd=tmp_path).stdout
    assert whole.splitlines()[1] == "finished at evaluate"
    assert "pretrain: step 20/20" in whole
    odd = leveret("runs", "show", "some", cwd=tmp_path, COLUMNS="3", PYTHONIOENCODING="ascii").stdout
    assert "pretrain: step 40/100" in odd


def test_a_run_or_stage_that_is_not_there_is_told(leveret: Command, tmp_path: Path) -> None:
    written(tmp_path / "runs" / "some")
    said = leveret("runs", "show", "other", cwd=tmp_path, exit_code=2).stderr
    assert said == "leveret: there is no run 'other' here or under runs/; `leveret runs` lists them\n"
    said = leveret("runs", "show", "some/finetune", cwd=tmp_path, exit_code=2).stderr
    assert said == "leveret: runs/some has no figures of finetune yet\n"


def test_two_runs_are_compared(tiny: TinyRun, leveret: Command, tmp_path: Path) -> None:
    written(tmp_path / "runs" / "a")
    recipe = written(tmp_path / "runs" / "b", steps=20) / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("lr: 0.1", "lr: 0.2"))
    lines = [line.split() for line in leveret("runs", "compare", "a", "b", cwd=tmp_path).stdout.splitlines()]
    assert ["pretrain:", "step", "40", "20"] in lines
    assert ["pretrain.optimizer.lr", "0.1", "0.2"] in lines
    assert ["recipe", "a", "b"] in lines
    same = leveret("runs", "compare", tiny.path, tiny.path, cwd=tmp_path).stdout
    assert "their recipes are equal" in same
    assert "finetune: MFU" in same


def test_a_curve_goes_where_its_points_are() -> None:
    lines = curve([(0, 0.0), (10, 5.0), (20, 10.0)], [], width=30, height=5)
    assert len(lines) == 6
    marked = [[column for column, sign in enumerate(line) if "⠀" < sign <= "⣿"] for line in lines[:5]]
    assert all(marked)
    assert marked[0][-1] > marked[2][0] > marked[4][0]  # upwards to the right
    flat = curve([(1, 3.0)], [(1, 3.0)], width=20, height=3)
    assert sum(line.count("●") for line in flat) == 1


def test_a_failure_is_noted(leveret: Command, tmp_path: Path) -> None:
    recipe = write_project(tmp_path / "own")
    with (tmp_path / "own" / "texts" / "corpus.jsonl").open("a") as corpus:
        corpus.write('{"text": ')
    leveret("prepare", recipe, "--strict", cwd=tmp_path, exit_code=2)
    assert listed(leveret("runs", cwd=tmp_path, COLUMNS="150").stdout)["tiny"] == ["failed", "tokenizer"]
    shown = leveret("runs", "show", "tiny", cwd=tmp_path, COLUMNS="150").stdout.splitlines()
    assert shown[1].startswith("failed at tokenizer: UserError: ")
    assert "corpus.jsonl" in shown[1]


def test_a_run_that_is_killed_is_running_and_then_interrupted(
    leveret: Command, environment: Mapping[str, str], tmp_path: Path
) -> None:
    recipe = write_project(tmp_path / "own")
    settings = ["pretrain.steps=100000", "--run-dir", "runs/long", "--price", "36000"]  # ten dollars a second
    command = [sys.executable, "-m", "leveret", "pretrain", str(recipe), *settings]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    try:
        metrics, deadline = tmp_path / "runs" / "long" / "pretrain" / "metrics.jsonl", time.monotonic() + 120
        while not (metrics.is_file() and metrics.stat().st_size):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert listed(leveret("runs", cwd=tmp_path, COLUMNS="150").stdout)["long"][0] == "running"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert listed(leveret("runs", cwd=tmp_path, COLUMNS="150").stdout)["long"][0] == "interrupted"
    assert "price: 36000.0" in (tmp_path / "runs" / "long" / "recipe.yaml").read_text()
    spent = json.loads((metrics.parent / "ledger.json").read_text())
    assert spent["cost"] == pytest.approx(10 * sum(spent["seconds"].values()), abs=0.1)
