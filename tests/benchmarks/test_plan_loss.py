"""The quick form of the benchmark: a ladder, a foretelling, the larger run, and the last line that the docs promise."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "plan_loss.py"


@pytest.mark.long
def test_quick_form_foretells_and_trains() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["benchmark"] == "plan_loss"
    *runs, facts = result["rows"]
    assert len(runs) == 4
    assert runs[-1]["run"] == "large"
    losses = [run["loss"] for run in runs]
    assert losses == sorted(losses, reverse=True)
    assert 3 < facts["times_the_largest"] < 6
    assert facts["measured"] == losses[-1]
    assert result["goals"]["off_by_nats"]["value"] == round(abs(facts["foretold"] - facts["measured"]), 4)
