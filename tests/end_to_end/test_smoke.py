"""Every shipped recipe goes the whole way in its smoke form, without a network."""

import json
import time
from pathlib import Path

import pytest
from tiny_project import Command

from leveret.recipe import load_recipe, shipped_recipes

LOADED = {"gpt2-124m", "l20-edu-135m", "parchment-166m", "smallm-20m"}
"""The recipes whose tokenizer is somebody else's."""


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_recipe_in_its_smoke_form_leaves_a_report_within_a_minute(
    name: str, leveret: Command, tmp_path: Path
) -> None:
    started = time.monotonic()
    place = ["--run-dir", "here"] if name != "quickstart" else []
    done = leveret("run", name, "--smoke", *place, cwd=tmp_path)
    assert time.monotonic() - started < 60
    run = tmp_path / "here" if place else tmp_path / "runs" / "quickstart-smoke"
    report = (run / "report.md").read_text()
    assert report.startswith(f"# {name}-smoke\n")
    assert "| pretrain | 20 |" in report
    assert ("a stand-in of 1024 entries is trained" in done.stderr) == (name in LOADED)
    stages = json.loads((run / "state.json").read_text())["stages"]
    recipe, _ = load_recipe(name)
    assert ("finetune" in stages) == (recipe.finetune is not None)
    assert all(stage["finished"] for stage in stages.values())
