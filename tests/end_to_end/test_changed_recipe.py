"""A training that has begun, gone on with under another recipe: accepted or refused by rule, each key named."""

import re
from pathlib import Path

import pytest
from tiny_project import Command, outcome, write_project

CONSTANT = ["pretrain.schedule.kind=constant", "pretrain.schedule.warmup_steps=2", "pretrain.log_every=1"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("changed") / "own").parent


def said_of_pretrain(text: str) -> list[str]:
    return [line.removeprefix("pretrain: ") for line in text.splitlines() if line.startswith("pretrain: ")]


@pytest.fixture(scope="module")
def begun(project: Path, leveret: Command) -> str:
    """A run that was stopped half-way, which is what a finished run with its end taken away is."""
    leveret("pretrain", "tiny.yaml", *CONSTANT, "--run-dir", "begun", cwd=project)
    state = project / "begun" / "state.json"
    state.write_text(re.sub(r'("pretrain": \{.*?"finished": )"[^"]*"', r"\1null", state.read_text(), flags=re.DOTALL))
    return "begun"


def test_a_longer_run_at_the_same_rates_goes_on_to_the_same_bits(project: Path, leveret: Command) -> None:
    short, long = (
        ["pretrain", "tiny.yaml", *CONSTANT, "pretrain.eval_every=10", f"pretrain.steps={n}"] for n in (20, 30)
    )
    leveret(*long, "--run-dir", "at-once", cwd=project)
    leveret(*short, "--run-dir", "extended", cwd=project)
    said = said_of_pretrain(leveret(*long, "--run-dir", "extended", cwd=project).stderr)
    assert "goes on from step 20 of 20 to 30: pretrain.steps 20 -> 30" in said
    assert "going on from step 20" in said
    assert outcome(project / "extended", 30) == outcome(project / "at-once", 30)


def test_a_longer_run_on_a_schedule_that_has_ended_is_made_again_beside_the_old_one(
    project: Path, leveret: Command
) -> None:
    for steps in (20, 30, 20):
        said = leveret("pretrain", "tiny.yaml", f"pretrain.steps={steps}", "--run-dir", "decayed", cwd=project).stderr
    assert "stale, because pretrain's recipe changed; doing it again" in said_of_pretrain(said)
    assert any("pretrain.steps 30 -> 20, with which step " in line for line in said_of_pretrain(said))
    assert {path.name for path in (project / "decayed").glob("pretrain*")} == {
        "pretrain", "pretrain.stale", "pretrain.stale-2",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("pretrain.optimizer.lr=2e-2", "pretrain.optimizer.lr 0.01 -> 0.02"),
        ("model.qk_norm=true", "model.qk_norm False -> True"),
        ("pretrain.steps=10", "pretrain.steps 20 -> 10, with which step 11 would have had another learning rate"),
    ],
)
def test_another_training_is_refused_while_one_is_on_its_way(
    project: Path, begun: str, leveret: Command, override: str, named: str
) -> None:
    before = (project / begun / "recipe.yaml").read_text()
    arguments = ["pretrain", "tiny.yaml", *CONSTANT, override, "--run-dir", begun]
    last = leveret(*arguments, cwd=project, exit_code=2).stderr.splitlines()[-1]
    assert last.startswith(f"leveret: {begun}/pretrain is at step 20 of another training: {named}; take the old values")
    assert (project / begun / "recipe.yaml").read_text() == before
    assert not list((project / begun).glob("*.stale*"))


def test_what_changes_no_weight_is_accepted_and_what_cuts_steps_otherwise_is_named(
    project: Path, begun: str, leveret: Command
) -> None:
    changed = ["pretrain.log_every=3", "pretrain.keep_last=1", "pretrain.guard.max_skipped=7"]
    changed += ["pretrain.micro_batch_size=2", "pretrain.parallel.kind=ddp"]
    said = said_of_pretrain(
        leveret("pretrain", "tiny.yaml", *CONSTANT, *changed, "--run-dir", begun, cwd=project).stderr
    )
    assert "goes on with pretrain.micro_batch_size None -> 2, pretrain.parallel.kind auto -> ddp" in said
    assert "going on from step 20" in said
