"""evaluation_speed.py: what it makes of measurements, and its quick form all the way."""

import json
from pathlib import Path

import pytest
from benchmark_rows import FILES
from evaluation_speed import goals_of, main

from leveret.tasks.benchmarks import BENCHMARKS


def test_the_goal_is_of_all_tasks_together() -> None:
    rows = [
        {"leveret_s": 1.0, "hf_s": 4.0, "furthest_loglikelihood": 1e-5, "accuracy_equal": True},
        {"leveret_s": 3.0, "hf_s": 4.0, "furthest_loglikelihood": 2e-3, "accuracy_equal": False},
    ]
    goals = goals_of(rows)
    assert goals["vs_hf"] == {"value": 2.0, "goal": 3.0}
    assert goals["loglikelihoods_within"]["value"] == 2e-3
    assert goals["tasks_of_equal_accuracy"]["value"] == 0.5


@pytest.mark.long
def test_the_quick_form_goes_the_whole_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("arc_easy", "lambada_openai"):
        lines = "".join(json.dumps(row) + "\n" for row in FILES[name])
        (tmp_path / f"{BENCHMARKS[name].file}.jsonl").write_text(lines)
    options = ["--quick", "--device", "cpu", "--bench", str(tmp_path), "--suite", "arc_easy,lambada"]
    monkeypatch.setattr("sys.argv", ["evaluation_speed.py", *options])
    main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["benchmark"] == "evaluation_speed"
    assert [row["task"] for row in result["rows"]] == ["arc_easy", "lambada_openai"]
    assert result["goals"]["loglikelihoods_within"]["value"] == pytest.approx(0, abs=1e-3)
    assert result["goals"]["tasks_of_equal_accuracy"]["value"] == 1.0
