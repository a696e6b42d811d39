"""Every shipped recipe goes the whole way in its smoke form, without a network, and its model does what README says."""

import json
import time
from pathlib import Path

import pytest
from readme import ABOUT_A_RUN, commands
from tiny_project import Command

from leveret.recipe import load_recipe, shipped_recipes
from leveret.training import STAGES

LOADED = {"gpt2-124m", "l20-edu-135m", "parchment-166m", "smallm-20m", "leveret-124m", "leveret-350m"}
"""The recipes whose tokenizer is somebody else's."""


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_recipe_in_its_smoke_form_leaves_a_report_within_a_minute(
    name: str, leveret: Command, tmp_path: Path
) -> None:
    started = time.monotonic()
    place = ["--run-dir", f"runs/{name}"] if name != "quickstart" else []
    done = leveret("run", name, "--smoke", *place, cwd=tmp_path)
    assert time.monotonic() - started < 60
    run = tmp_path / "runs" / (name if place else "quickstart-smoke")
    report = (run / "report.md").read_text()
    assert report.startswith(f"# {name}-smoke\n")
    assert ("a stand-in of 1024 entries is trained" in done.stderr) == (name in LOADED)
    stages = json.loads((run / "state.json").read_text())["stages"]
    recipe, _ = load_recipe(name)
    assert [stage for stage in STAGES if stage in stages] == list(recipe.stages)
    assert all(f"| {stage} | 20 |" in report for stage in recipe.stages)
    assert all(stage["finished"] for stage in stages.values())
    if place:
        run_what_readme_shows(name, leveret, tmp_path)


def run_what_readme_shows(name: str, leveret: Command, folder: Path) -> None:
    """Every command of README about this model: it answers, whatever twenty steps have taught it."""
    (folder / "instructions.txt").write_text("Instruction: list the files\nInstruction: show the date\n")
    (folder / "gold.txt").write_text("ls\ndate\n")
    shown = [words for words in commands("README.md") if words[0] in ABOUT_A_RUN and name in words]
    assert shown or name.startswith("leveret-")  # README has a table of the published models only
    for words in shown:
        assert leveret(*words, cwd=folder, typed="show the date\n").stdout, words
