"""The quick form of the benchmark: every trial is done, and goals that do not hang on the load are met."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from serve_fuzz import wrong_requests

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serve_load.py"


@pytest.mark.long
def test_quick_form_loads_and_attacks_a_server() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["benchmark"] == "serve_load"
    assert len(result["rows"]) == 5
    values = {key: goal["value"] for key, goal in result["goals"].items()}
    assert values["errors_under_load"] == values["wrong_requests_5xx"] == 0
    assert values["left_slot_free_seconds"] < 1.0
    assert values["killed_slot_free_seconds"] < 1.0
    assert values["slow_loris_p95_ratio"] > 0
    assert done.stderr == ""


def test_wrong_requests_are_the_same_for_a_seed() -> None:
    assert list(wrong_requests(200, 5)) == list(wrong_requests(200, 5))
    assert len(set(wrong_requests(200, 5))) > 150
