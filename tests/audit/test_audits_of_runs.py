"""A run is stamped by itself: errors stop it before it trains, and its report and `leveret audit` show the rest."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console
from tiny_project import write_project
from typer.testing import CliRunner

from leveret.audit.stage import audit_after_training, audit_benchmarks, read_stamps
from leveret.cli.app import app
from leveret.data.examples import one_turn
from leveret.data.sources import Document
from leveret.errors import UserError
from leveret.evaluation.exact_match import write_rows
from leveret.recipe import load_recipe
from leveret.report import _audit
from leveret.run import Run
from leveret.rundir import read_json, write_json
from leveret.tasks.benchmarks import Question
from leveret.tasks.generators import DOCUMENTS, EXAMPLES

BEFORE = ["leaks", "contamination", "validation overlap", "tokenizer", "characters"]
LONG = "To show alpha type cat alpha.txt; to make beta type touch beta.txt, 3 times and more"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEVERET_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_project(tmp_path)
    return tmp_path


def prepared(project: Path, *overrides: str) -> Run:
    recipe, base = load_recipe("tiny.yaml", list(overrides))
    run = Run(recipe, base, project / "run", Console(quiet=True), "cpu")
    run.upto("audit")
    return run


def test_every_run_is_stamped_before_it_trains(project: Path) -> None:
    run = prepared(project)
    stamps = read_stamps(run.run)
    assert list(stamps) == BEFORE
    assert {name: stamps[name].state for name in ("leaks", "contamination", "characters")} == {
        "leaks": "passed", "contamination": "passed", "characters": "passed"
    }  # fmt: skip
    written: dict[str, Any] = read_json(run.run / "audit.json")
    assert {"audit", "state", "not_run", "looked_at", "findings", "facts"} == written["audits"][0].keys()


def test_without_held_out_sets_the_others_are_done(project: Path) -> None:
    stamps = read_stamps(prepared(project, "evaluate.sets={}", "finetune=null", "data.validation_fraction=0").run)
    for name in ("leaks", "contamination"):
        assert "no" in str(stamps[name].not_run)
    assert stamps["validation overlap"].not_run == "pretrain has no validation split"
    assert stamps["tokenizer"].state != "not run"


def test_an_error_stops_the_run_before_it_trains(project: Path) -> None:
    with pytest.raises(
        UserError, match="the audit stops here: tokenizer: the shards of pretrain: the end token '<eos>'"
    ):
        prepared(project, "data.document_format='{text}'")
    assert read_stamps(Run(*load_recipe("tiny.yaml"), project / "run", Console(quiet=True)).run)["tokenizer"].errors
    assert not (project / "run" / "pretrain").exists()


def test_contaminated_examples_have_a_clean_score_beside_the_full_one(project: Path) -> None:
    rows = [json.loads(line) for line in (project / "held.jsonl").read_text().splitlines()]
    rows[0]["instruction"] = LONG
    (project / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = prepared(project)
    found = read_stamps(run.run)["contamination"]
    assert found.state == "findings"
    assert found.facts["sets"]["held"]["rows"] == [1]
    (run.run / "pretrain").mkdir()
    write_json(run.run / "pretrain" / "summary.json", {"steps": 12})
    run.run.begin("pretrain", {})
    run.run.finish("pretrain", {}, 1.0)
    write_rows(run.run / "pretrain" / "evaluation" / "held.jsonl", [{"correct": number > 0} for number in range(16)])
    stamps = {stamp.audit: stamp for stamp in audit_after_training(run.run, run.recipe, {"pretrain": 20})}
    clean = stamps["contamination"].facts["clean"]["held"]["acc"]
    assert (clean["of_all"], clean["accuracy"], clean["left_out"]) == (15 / 16, 1.0, 1)
    assert "training ended at step 12 of 20" in stamps["schedule"].findings[0].what
    shown = _audit(run.run)
    assert "| held | acc | 93.8% | 1 | 100.0% |" in shown
    assert "- schedule, warning: pretrain: training ended at step 12 of 20" in shown


def test_a_corpus_is_searched_as_it_is_trained_on(project: Path) -> None:
    """What data.decontaminate takes out is no contamination."""
    (project / "bench.jsonl").write_text(json.dumps({"question": LONG, "answer": "x"}) + "\n")
    rows = [json.loads(line) for line in (project / "held.jsonl").read_text().splitlines()]
    rows[0]["instruction"] = LONG
    (project / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = prepared(project, "data.decontaminate.sets=[bench.jsonl]")
    assert read_stamps(run.run)["contamination"].state == "passed"


class Counted:
    """A generator that counts how often it is read, and how far."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items, self.readings, self.given = items, 0, 0

    def __call__(self) -> Iterator[Any]:
        self.readings += 1
        for item in self.items:
            self.given += 1
            yield item


def test_the_corpus_is_read_once_for_all_audits(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many documents, and short ones, so that they come in more than one block; a leak is in the last one."""
    texts = [f"document {number} has the words {number * 7} and {number * 11}" for number in range(3000)]
    corpus = Counted([Document(text, "counted") for text in [*texts, LONG + " with make the file of alpha30"]])
    monkeypatch.setitem(cast(dict[str, Any], DOCUMENTS), "counted", corpus)
    recipe, base = load_recipe("tiny.yaml", ["data.sources=[{kind: generated, generator: counted}]"])
    run = Run(recipe, base, project / "run", Console(quiet=True), "cpu")
    run.upto("prepare")
    before, corpus.given = corpus.readings, 0
    run.upto("audit")
    assert corpus.readings == before + 1
    assert corpus.given == 3001
    stamps = read_stamps(run.run)
    assert "in 3,241 documents" in stamps["contamination"].looked_at  # and the 240 examples
    assert stamps["characters"].looked_at == "every character of 2,256 texts"


def test_examples_without_leaks_are_drawn_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("alpha", "beta", "gamma", "delta", "omega")
    asked = [f"make the file of {word}{number}" for word in words for number in range(20)]
    train = Counted([one_turn(text, "touch made.txt", "counted") for text in [*asked, "make the file of alpha30"]])
    monkeypatch.setitem(cast(dict[str, Any], EXAMPLES), "counted", train)
    overrides = ["finetune.examples=[{kind: generated, generator: counted}]", "finetune.drop_leaks=true"]
    run = prepared(project, *overrides)
    assert train.readings == 1
    assert read_json(run.run / "audit.json")["training_examples"] == 100
    assert read_stamps(run.run)["leaks"].state == "passed"


def test_benchmarks_are_searched_for_one_after_the_other(project: Path) -> None:
    run = prepared(project)
    folder = project / "suite"
    known = Question(((LONG, " indeed"), (LONG, " not")), 0, (6, 3))
    other = Question((("What has nobody ever written down in any of these many documents here?", " this"),), 0, (4,))
    for task, questions, right in (("piqa", [known, other], [True, False]), ("copa", [other], [True])):
        write_rows(folder / f"{task}.jsonl", [{"correct": each, "correct_norm": each} for each in right])
        stamp = audit_benchmarks(run, {task: questions}, folder)
    assert {name: found["rows"] for name, found in stamp.facts["sets"].items()} == {"piqa": [1], "copa": []}
    assert stamp.facts["clean"]["piqa"]["acc_norm"]["accuracy"] == 0.0
    assert [finding.where for finding in stamp.findings] == ["piqa"]
    (project / "texts" / "corpus.jsonl").unlink()
    assert "cannot be read" in str(audit_benchmarks(run, {"copa": [other]}, folder).not_run)


def test_leveret_audit_shows_a_recipe_and_a_run(project: Path) -> None:
    done = CliRunner().invoke(app, ["audit", "tiny.yaml", "--run-dir", "run", "finetune=null"])
    assert done.exit_code == 1, done.output
    assert [line.split("  ")[0] for line in done.stdout.splitlines() if not line.startswith(" ")] == BEFORE
    assert "warning: tokenizer.template: the chat template writes '<system>'" in done.stdout  # there are no examples
    assert CliRunner().invoke(app, ["audit", "run"]).stdout == done.stdout
    assert not (project / "run" / "pretrain").exists()
