"""Held-out examples among those to train on: refused with a way to go on, or left out and counted."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_project import ANSWER, Command, write_project

SHORT = ["pretrain.steps=2", "finetune.steps=2", "finetune.eval_every=1"]
LEAKS = {
    "make the file of alpha3": "verbatim",
    "Make the  FILE of beta4.": "normalised",
    "please make the file of gamma5 now": "near-duplicate",
}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("leaks") / "own"
    write_project(folder)
    with (folder / "held.jsonl").open("a") as file:
        file.writelines(json.dumps({"instruction": asked, "command": ANSWER}) + "\n" for asked in LEAKS)
    return folder


def test_leaks_are_refused_and_then_left_out(project: Path, leveret: Command) -> None:
    done = leveret("finetune", "tiny.yaml", *SHORT, "--run-dir", "run", cwd=project, exit_code=2)
    assert done.stderr.splitlines()[-1] == (
        "leveret: 3 held-out examples leak into the examples (1 verbatim, 1 normalised, 1 near-duplicate; --drop-leaks "
        "leaves such examples out); run/audit.json names them"
    )
    whole = read(Path(read(project / "run" / "data.json")["finetune"]) / "manifest.json")
    assert whole["dropped_leaks"] == {}

    said = leveret("finetune", "tiny.yaml", *SHORT, "--run-dir", "run", "--drop-leaks", cwd=project).stderr
    kinds = dict.fromkeys(LEAKS.values(), 1)
    assert (
        "prepare: left out 3 examples that are held out to evaluate on: 1 verbatim, 1 normalised, 1 near-duplicate\n"
    ) in said
    audit = read(project / "run" / "audit.json")
    assert audit["leaks"] == {"examples": [], "corpus": []}
    assert audit["dropped"] == {"finetune": kinds}
    assert audit["training_examples"] == 240 - 3
    manifest = read(Path(read(project / "run" / "data.json")["finetune"]) / "manifest.json")
    assert manifest["dropped_leaks"] == kinds
    counted = [sum(each["examples"][split]["examples"] for split in ("train", "validation"))
               for each in (whole, manifest)]  # fmt: skip
    assert counted[0] - counted[1] == 3
    assert (project / "run" / "finetune" / "summary.json").is_file()


def test_where_nothing_is_trained_on_examples_there_is_nothing_to_leave_out(project: Path, leveret: Command) -> None:
    done = leveret("prepare", "tiny.yaml", "finetune=null", "--drop-leaks", cwd=project, exit_code=2)
    assert "--drop-leaks is for stages that train on examples, and tiny has none" in done.stderr
