"""The quick form of the benchmark: every contestant really trains, and the last line is what the docs promise."""

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train_speed.py"


@pytest.mark.long
def test_quick_form_measures_everyone() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--device", "cpu"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["benchmark"] == "train_speed"
    assert result["machine"]["device"] == "cpu"
    rows = {row["contestant"]: row for row in result["rows"]}
    expected = {"matrix products", "leveret, eager", "plain GPT-2, eager"}
    for name in ("transformers", "litgpt"):
        if find_spec(name):
            expected.add(f"{name}, eager")
        else:
            assert f"{name} is not installed" in done.stdout
    assert rows.keys() == expected
    for name, row in rows.items():
        speeds = row["tokens_per_second"], row["best_tokens_per_second"], row["ms_per_step"]
        assert min(*speeds, row["peak_memory_bytes"], row["of_limit"]) > 0
        assert math.isclose(row["ms_per_step"] * row["tokens_per_second"], 64e3, rel_tol=0.01)
        assert math.isclose(row["parameters"], rows["leveret, eager"]["parameters"], rel_tol=0.02)
        if name != "matrix products":  # fresh weights know nothing yet, of the same tokens
            assert math.isclose(row["first_loss"], math.log(512), rel_tol=0.02)
    assert rows["leveret, eager"]["vs_best_peer"] > 0
