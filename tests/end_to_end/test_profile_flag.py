"""`--profile` through the command line."""

from pathlib import Path

from tiny_project import Command, write_project


def test_a_profiled_pretraining_says_where_its_time_goes(tmp_path: Path, leveret: Command) -> None:
    write_project(tmp_path)
    done = leveret("pretrain", "tiny.yaml", "pretrain.steps=10", "--profile", cwd=tmp_path)
    folder = tmp_path / "runs" / "tiny" / "pretrain" / "profile"
    told = [line for line in done.stderr.splitlines() if " ms a step: data " in line]
    assert [line.partition(":")[0] for line in told] == ["pretrain"]
    assert "# Costliest operators" in (folder / "table.md").read_text()
    assert (folder / "trace.json").stat().st_size > 1000
    for verb in ("run", "finetune"):
        assert "--profile" in leveret(verb, "--help", cwd=tmp_path).stdout
