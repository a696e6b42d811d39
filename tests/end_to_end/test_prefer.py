"""`leveret prefer` on the tiny fine-tuned run: what it learns, how it goes on, what it leaves behind."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_project import ANSWER, WORDS, Command, TinyRun, outcome

from leveret.api import load_model
from leveret.data.batches import Batches
from leveret.data.shards import TokenStore
from leveret.posttraining.config import PreferConfig
from leveret.posttraining.preference import Preferences, measure
from leveret.stages import evaluate_reference

STEPS = 20
BETTER = "touch new.txt"
"""What is to be preferred to what the model has learnt to answer."""


@dataclass(frozen=True)
class Preferring:
    """A project with pairs, and a run that has learnt from them."""

    project: Path
    run: Path
    words: list[str]
    stderr: str


def write_pairs(path: Path) -> None:
    asked = [f"make the file of {word}{number}" for word in WORDS for number in range(40, 60)]
    rows = [{"prompt": text, "chosen": BETTER, "rejected": ANSWER} for text in asked]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def preferring(tiny: TinyRun, leveret: Command, tmp_path_factory: pytest.TempPathFactory) -> Preferring:
    project = tmp_path_factory.mktemp("preferring")
    write_pairs(project / "pairs.jsonl")
    recipe = project / "tiny.yaml"
    shutil.copytree(tiny.project / "texts", project / "texts")
    for name in ("tiny.yaml", "held.jsonl"):
        shutil.copy(tiny.project / name, project / name)
    (project / "mine").mkdir()
    shutil.move(project / "pairs.jsonl", project / "mine" / "pairs.jsonl")
    shutil.copy(tiny.project / "pairs.jsonl", project / "pairs.jsonl")
    settings = (
        f"{{examples: [{{paths: [mine/pairs.jsonl]}}], steps: {STEPS}, batch_size: 4, micro_batch_size: 2,"
        " log_every: 3, eval_every: 5, validation_fraction: 0.2, sft_weight: 2, optimizer: {lr: 1e-2}}"
    )
    words = ["prefer", str(recipe), f"prefer={settings}", "--from", str(tiny.path), "--device", "cpu"]
    done = leveret(*words, "--run-dir", "runs/preferred", cwd=project)
    return Preferring(project, project / "runs" / "preferred", words, done.stderr)


def held_out(run: Path, reference: str) -> dict[str, Any]:
    """What a model makes of the held-out pairs of a run, without a reference."""
    loaded = load_model(reference, "cpu")
    store = TokenStore(run / json.loads((run / "data.json").read_text())["prefer"])
    split = store.split("validation")
    nothing = np.zeros(len(split.starts), dtype=np.float32)
    pairs = Batches(split, 8, 2 * 64, tell_documents=True, known=nothing).in_order()
    config = PreferConfig.model_validate({"examples": [{"paths": ["x"]}], "steps": 1})
    return measure(loaded.engine.model, Preferences(config), pairs, torch.device("cpu"), torch.float32)


def test_held_out_chosen_answers_become_the_likelier_ones(preferring: Preferring, tiny: TinyRun) -> None:
    before, after = (held_out(preferring.run, str(run)) for run in (tiny.path, preferring.run))
    assert before["pairs"] == after["pairs"] > 10
    assert before["preferred"] == 0
    assert after["preferred"] > 0.9
    rows = [json.loads(line) for line in (preferring.run / "prefer" / "metrics.jsonl").read_text().splitlines()]
    told = [row for row in rows if "validation_loss" in row]
    assert [row["step"] for row in told] == [5, 10, 15, 20]
    assert told[-1]["validation_preferred"] == pytest.approx(after["preferred"])
    assert told[-1]["validation_chosen"] == pytest.approx(after["chosen"], rel=1e-2)
    assert told[-1]["validation_loss"] < told[0]["validation_loss"]
    assert told[-1]["validation_margin"] > told[0]["validation_margin"] > 0
    assert "prefer: chosen answer likelier" in preferring.stderr


@pytest.mark.long
def test_a_killed_run_goes_on_to_the_same_bits(preferring: Preferring, leveret: Command) -> None:
    """Killed in a step that no checkpoint follows; the reference of the first start serves the second."""
    words = [*preferring.words, "prefer.checkpoint_every=5", "--run-dir", "runs/killed"]
    leveret(*words, cwd=preferring.project, exit_code=137, LEVERET_FAULTS="die@8")
    killed = preferring.project / "runs" / "killed"
    kept = {path.name: path.stat().st_mtime_ns for path in (killed / "prefer" / "reference").iterdir()}
    assert sorted(kept) == ["manifest.json", "train.npy", "validation.npy"]
    leveret(*words, cwd=preferring.project)
    assert {p.name: p.stat().st_mtime_ns for p in (killed / "prefer" / "reference").iterdir()} == kept
    assert outcome(killed, STEPS, "prefer") == outcome(preferring.run, STEPS, "prefer")


def test_a_finished_stage_is_evaluated_by_its_pairs(preferring: Preferring) -> None:
    loss = evaluate_reference(str(preferring.run), limit=1, file=None, output=None, device="cpu")["loss"]
    assert loss["preferred"] > 0.9
    assert loss["accuracy"] > 0.9
    rows = [json.loads(line) for line in (preferring.run / "prefer" / "metrics.jsonl").read_text().splitlines()]
    assert loss["loss"] == pytest.approx(rows[-1]["validation_loss"], rel=0.05)  # in float32 here


def test_held_out_questions_are_not_preferred_by(preferring: Preferring, leveret: Command) -> None:
    """The audit compares the chosen answers too."""
    leak = {"prompt": f"make the file of {WORDS[0]}30", "chosen": ANSWER, "rejected": BETTER}
    path = preferring.project / "mine" / "leak.jsonl"
    path.write_text((preferring.project / "mine" / "pairs.jsonl").read_text() + json.dumps(leak) + "\n")
    words = [word.replace("mine/pairs.jsonl", "mine/leak.jsonl") for word in preferring.words]
    said = leveret(*words, "--run-dir", "runs/leak", cwd=preferring.project, exit_code=2).stderr
    assert "1 verbatim" in said
    assert "leak into the examples" in said


def test_the_smoke_form_needs_no_data(tiny: TinyRun, leveret: Command, tmp_path: Path) -> None:
    settings = "prefer={examples: [{kind: generated, generator: shell-preferences}], steps: 40}"
    leveret("prefer", "--from", tiny.path, settings, "--smoke", "--run-dir", "smoke", cwd=tmp_path)
    summary = json.loads((tmp_path / "smoke" / "prefer" / "summary.json").read_text())
    assert summary["steps"] == 20
    assert (tmp_path / "smoke" / "prefer" / "reference" / "manifest.json").is_file()
    loaded = load_model(str(tmp_path / "smoke"), "cpu")
    assert (loaded.stage, loaded.step) == ("prefer", 20)
