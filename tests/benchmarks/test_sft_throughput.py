"""The quick form of the benchmark: every way learns the same tokens, and the last line is what the docs promise."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "sft_throughput.py"


@pytest.mark.long
def test_quick_form_measures_every_way() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--device", "cpu"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["benchmark"] == "sft_throughput"
    assert result["machine"]["device"] == "cpu"
    assert result["facts"]["lengths"] == "drawn"
    rows = {row["way"]: row for row in result["rows"]}
    assert rows.keys() == {"packed", "padded to row", "padded to batch"}
    assert rows["padded to row"]["rows"] == rows["padded to batch"]["rows"] == result["facts"]["examples"]
    assert rows["packed"]["positions"] <= rows["padded to batch"]["positions"] < rows["padded to row"]["positions"]
    for row in rows.values():
        assert min(row["examples_per_second"], row["learnt_tokens_per_second"], row["packed_vs_this"]) > 0
    assert rows["packed"]["packed_vs_this"] == 1
    assert result["goals"]["packed_vs_padded"] == {"value": rows["padded to row"]["packed_vs_this"], "goal": 3.0}
