"""A stage that stops early, through the command line: what is told of it, and what its model is."""

import json
from pathlib import Path

from tiny_project import Command, write_project


def test_a_stage_that_stops_early_leaves_its_best_model(tmp_path: Path, leveret: Command) -> None:
    write_project(tmp_path / "own")
    early = ["finetune.patience=2", "finetune.eval_every=1", "finetune.steps=30", "finetune.optimizer.lr=0.5"]
    short = ["pretrain=null", "evaluate.limit=2", "evaluate.max_new_tokens=2"]
    said = leveret("run", "tiny.yaml", *short, *early, "--run-dir", "run", cwd=tmp_path / "own").stderr
    run = tmp_path / "own" / "run"
    summary = json.loads((run / "finetune" / "summary.json").read_text())
    steps, best = summary["steps"], summary["best_step"]
    assert summary["stopped_early"]
    assert summary["model_step"] == best == steps - 2 < 28
    assert f"finetune: stopped early at step {steps} of 30: 2 validations in a row were no better" in said
    results = json.loads((run / "finetune" / "evaluation" / "results.json").read_text())
    assert results["step"] == best
    assert f"| finetune | {steps}, model of {best} |" in (run / "report.md").read_text()
    shown = leveret("runs", "show", "run", cwd=tmp_path / "own").stdout
    assert f"stopped early; the model is that of step {best}, which validated best" in shown
    assert "stopped-early 1" in shown
