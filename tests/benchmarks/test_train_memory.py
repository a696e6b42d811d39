"""The quick form of the benchmark: every case runs, and the last line is what the docs promise."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train_memory.py"


def test_quick_form_measures_every_case() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--device", "cpu"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["benchmark"] == "train_memory"
    assert result["machine"]["device"] == "cpu"
    rows = {row["case"]: row for row in result["rows"]}
    models = ("smallm-20m", "tinyllm-cli-67m", "gpt2-124m", "l20-edu-135m", "parchment-166m")
    assert list(rows) == [f"fits:{name}" for name in models] + ["chunked:parchment-166m", "plain:parchment-166m"]
    for row in rows.values():
        assert min(row["peak_gb"], row["estimate_gb"]) > 0
        assert row["micro_batch_size"] == 16, "so little fits at once"
    assert result["goals"]["peak_gb_of_five"]["value"] == max(rows[f"fits:{name}"]["peak_gb"] for name in models)
    assert 0 < result["goals"]["chunked_of_plain"]["value"] < 1
