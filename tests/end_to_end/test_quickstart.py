"""The quickstart itself, with the figures that it promises. Minutes: `make test-long`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

GOALS = {"values": 0.97, "wordings": 0.85, "combinations": 0.40}
SECONDS = 480


@pytest.mark.long
def test_quickstart_reaches_its_goals_in_its_time(tmp_path: Path) -> None:
    environment = os.environ | {"LEVERET_CACHE": str(tmp_path / "cache")}
    environment.pop("OMP_NUM_THREADS", None)
    started = time.monotonic()
    command = [sys.executable, "-m", "leveret", "run", "quickstart", "--run-dir", str(tmp_path / "quickstart")]
    subprocess.run(command, env=environment, check=True)
    seconds = time.monotonic() - started
    results = json.loads((tmp_path / "quickstart/finetune/evaluation/results.json").read_text())
    accuracy = {name: figures["accuracy"] for name, figures in results["sets"].items()}
    assert {name: goal for name, goal in GOALS.items() if accuracy[name] < goal} == {}, accuracy
    assert seconds < SECONDS
    assert (tmp_path / "quickstart/report.md").is_file()
