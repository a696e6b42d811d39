"""The quick form of the ablations: every variant really trains, and is kept for the next start."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.long
def test_variants_differ_and_finished_runs_are_not_repeated(tmp_path: Path, script: Callable[..., Any]) -> None:
    options = ["--quick", "--device", "cpu", "--work", str(tmp_path)]
    first = script("ablations", *options).last["rows"]
    assert [row["variant"] for row in first] == ["the recipe", "tables at 6e-3", "value residual"]
    assert first[0]["change"] == 0
    assert all(row["change"] != 0 and 0 < row["bits"][0] < 10 for row in first[1:])
    curves = list(tmp_path.glob("the-recipe-*-0.json"))
    assert len(curves) == 1
    written = curves[0].stat().st_mtime_ns
    assert script("ablations", *options).last["rows"] == first
    assert curves[0].stat().st_mtime_ns == written
