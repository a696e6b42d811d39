"""However a training ends, its exit code says so, and nothing is left of it: no thread, no child, no noise at exit."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from tiny_project import write_project

SETTINGS = ["pretrain.steps=12", "pretrain.log_every=1", "pretrain.eval_every=4", "data.workers=1"]
NOISE = re.compile(
    r"Traceback|Exception ignored|leaked|terminate called|Fatal Python|Segmentation|was never awaited|core dumped|"
    r"destroy_process_group|ResourceWarning"
)
ENDS = {"done": 0, "stopped": 143, "loader": 2, "no numbers": 2, "mistake": 2}
"""Ways to end, and the exit codes that docs/how-to/interrupted.md promises."""
FAULTS = {"loader": "loader@6", "no numbers": "nan@1-12", "stopped": "slow@6"}
GUARD = ["pretrain.guard.max_skipped=2", "pretrain.guard.max_rollbacks=0"]


def end(way: str, name: str, project: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    """Lets a training end that way. Its exit code, and all it said."""
    mistake = ["pretrain.stepz=3"] * (way == "mistake")
    arguments = ["pretrain", "tiny.yaml", *SETTINGS, *GUARD, *mistake, "--run-dir", name]
    process = subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "ignore", "-m", "leveret", *arguments], cwd=project, text=True,
        env={**environment, "LEVERET_FAULTS": FAULTS.get(way, "")}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    if way == "stopped":
        metrics = project / name / "pretrain" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not metrics.exists() or '"step": 5,' not in metrics.read_text():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=240)
    with pytest.raises(ProcessLookupError):  # nobody of its session is left
        os.killpg(process.pid, 0)
    return process.returncode, said


@pytest.mark.parametrize("runs", [5, pytest.param(50, marks=pytest.mark.long)])
def test_every_end_is_clean(tmp_path: Path, environment: Mapping[str, str], runs: int) -> None:
    project = write_project(tmp_path / "own").parent
    for number, way in enumerate(itertools.islice(itertools.cycle(ENDS), runs)):
        code, said = end(way, f"run-{number}", project, environment)
        assert code == ENDS[way], f"{way}: {said}"
        assert not NOISE.search(said), f"{way}: {said}"
        if code == 2:
            assert said.splitlines()[-1].startswith("leveret: ")
