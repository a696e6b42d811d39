"""`leveret evaluate --suite` on the command line: a run, an exported folder, mistakes."""

import json
from pathlib import Path

import pytest
from benchmark_rows import FILES
from tiny_models import ENGLISH, made_tokenizer, write_run
from tiny_project import Command, write_project

from leveret.api import load_model
from leveret.evaluation.suite import evaluate_suite
from leveret.export.write import export_model
from leveret.tasks.benchmarks import BENCHMARKS


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "data" / "bench").mkdir(parents=True)
    for name in ("copa", "arc_easy", "lambada_openai"):
        lines = "".join(json.dumps(row) + "\n" for row in FILES[name])
        (tmp_path / "data" / "bench" / f"{BENCHMARKS[name].file}.jsonl").write_text(lines)
    write_run(tmp_path / "run", made_tokenizer("bpe-gpt2", ENGLISH), "pretrain")
    return tmp_path


def test_benchmarks_are_kept_with_the_run_and_in_its_report(leveret: Command, place: Path) -> None:
    suite = place / "run" / "pretrain" / "evaluation" / "suite"
    done = leveret("evaluate", "run", "--suite", "copa,lambada", "--bench", "data/bench", cwd=place)
    told = json.loads(done.stdout)
    assert list(told["tasks"]) == ["copa", "lambada_openai"]
    assert "copa: acc " in done.stderr
    leveret("evaluate", "run", "--suite", "arc_easy", cwd=place, LEVERET_DATA=str(place / "data"))
    kept = json.loads((suite / "results.json").read_text())
    assert list(kept["tasks"]) == ["copa", "lambada_openai", "arc_easy"]  # the second joins the first
    assert kept["tasks"]["copa"] == told["tasks"]["copa"]
    rows = [json.loads(line) for line in (suite / "copa.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["copa/0", "copa/1"]
    report = (place / "run" / "report.md").read_text()
    assert "## Benchmarks" in report
    assert "| arc_easy | 2 |" in report


def test_a_part_is_told_and_not_kept_and_exports_are_evaluated_too(leveret: Command, place: Path) -> None:
    export_model(str(place / "run"), place / "exported")
    options = ("--suite", "copa", "--bench", "data/bench", "--limit", "1", "--output", "rows.jsonl")
    told = json.loads(leveret("evaluate", "exported", *options, cwd=place).stdout)
    ours = evaluate_suite(load_model(str(place / "run"), "cpu"), ["copa"], 1, place / "data" / "bench")
    assert told["tasks"] == ours.tasks
    assert told["tasks"]["copa"]["n"] == 1
    assert [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()] == ours.rows
    assert not list((place / "exported").glob("evaluation*"))


def test_a_recipe_asks_a_few_questions_while_it_trains(leveret: Command, place: Path) -> None:
    recipe = write_project(place / "project")
    probe = ["evaluate.probe.benchmarks=[copa]", "evaluate.probe.bench=../data/bench", "evaluate.probe.every=4"]
    short = ["finetune=null", "evaluate.sets={}", "sample_prompts=[]", "pretrain.steps=4", "pretrain.eval_every=2"]
    done = leveret("run", recipe, *short, *probe, "--run-dir", place / "made", "--device", "cpu", cwd=place)
    rows = [json.loads(line) for line in (place / "made" / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows if "probe_copa" in row} == {4}
    assert "step 4 · copa " in done.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--suite", "large"], "no benchmark 'large'"),
        (["--suite", "piqa", "--examples", "x.jsonl"], "give one of them"),
        (["--bench", "data/bench"], "name some with --suite"),
    ],
)
def test_mistakes_are_one_line(options: list[str], told: str, leveret: Command, place: Path) -> None:
    done = leveret("evaluate", "run", *options, cwd=place, exit_code=2)
    assert told in " ".join(done.stderr.split())
