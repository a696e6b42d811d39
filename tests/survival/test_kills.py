"""A training killed over and over, at random moments, ends with the bits of one that nobody disturbed."""

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from tiny_project import Command, outcome, write_project

SETTINGS = ["pretrain.eval_every=15", "pretrain.checkpoint_every=5", "pretrain.log_every=1", "data.workers=1"]


def command(steps: int, name: str) -> list[str]:
    return ["pretrain", "tiny.yaml", f"pretrain.steps={steps}", *SETTINGS, "--run-dir", name]


def place(stage: Path) -> str:
    """Where in its work the process was that has just been killed, from what it left."""
    checkpoints = sorted(stage.glob("checkpoints/step-*"))
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    logged, saved = rows[-1]["step"] if rows else 0, int(checkpoints[-1].name[5:]) if checkpoints else 0
    if list(stage.glob("checkpoints/.*partial")):
        return "in a save"
    if logged % 15 == 0 and logged == saved:
        return "in an evaluation, or right after"
    if not saved:
        return "in the first steps"
    return "in a step" if logged > saved else "while starting, or right after a save"


def survive(project: Path, environment: Mapping[str, str], steps: int, kills: int, seed: int) -> Counter[str]:
    """Starts and kills until it was killed so often; where. The last start is left to end by itself."""
    moments, places = random.Random(seed), Counter[str]()
    while sum(places.values()) < kills:
        process = subprocess.Popen(
            [sys.executable, "-m", "leveret", *command(steps, f"killed-{seed}")], cwd=project, env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        stage = project / f"killed-{seed}" / "pretrain"
        before = (stage / "metrics.jsonl").stat().st_mtime_ns if (stage / "metrics.jsonl").exists() else 0
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:  # until it trains, as its metrics are opened
            if (stage / "metrics.jsonl").exists() and (stage / "metrics.jsonl").stat().st_mtime_ns != before:
                break
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.35))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before its kill: take more steps"
        places[place(stage)] += 1
    return places


@pytest.mark.parametrize(
    ("steps", "kills", "seed"), [(120, 3, 1), pytest.param(1500, 50, 2, marks=pytest.mark.long)], ids=["3", "50"]
)
def test_kills_at_random_moments_change_no_bit(
    tmp_path: Path, environment: Mapping[str, str], leveret: Command, steps: int, kills: int, seed: int
) -> None:
    project = write_project(tmp_path / "own").parent
    leveret(*command(steps, "undisturbed"), cwd=project)
    places = survive(project, environment, steps, kills, seed)
    print(f"{kills} kills: {dict(places)}")
    leveret(*command(steps, f"killed-{seed}"), cwd=project)
    assert outcome(project / f"killed-{seed}", steps) == outcome(project / "undisturbed", steps)
    assert not list((project / f"killed-{seed}").rglob(".*partial")), "nothing half is left behind"
