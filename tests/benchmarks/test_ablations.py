"""The quick form of the ablations: every variant really trains, and is kept for the next start."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ablations.py"


def quick_form(work: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--device", "cpu", "--work", str(work)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
def test_variants_differ_and_finished_runs_are_not_repeated(tmp_path: Path) -> None:
    first = quick_form(tmp_path)["rows"]
    assert [row["variant"] for row in first] == ["the recipe", "tables at 6e-3", "value residual"]
    assert first[0]["change"] == 0
    assert all(row["change"] != 0 and 0 < row["bits"][0] < 10 for row in first[1:])
    curves = list(tmp_path.glob("the-recipe-*-0.json"))
    assert len(curves) == 1
    written = curves[0].stat().st_mtime_ns
    assert quick_form(tmp_path)["rows"] == first
    assert curves[0].stat().st_mtime_ns == written
