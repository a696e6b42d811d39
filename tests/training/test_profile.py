"""--profile: a trace, a table, a line."""

import json
import re
from pathlib import Path

from tiny_training import figures, settings, trainer

from leveret.data.shards import TokenStore
from leveret.training.loop import train


def test_a_trace_and_a_table_are_written(tmp_path: Path, store: TokenStore) -> None:
    run = trainer(tmp_path / "profiled", store, settings(micro_batch_size=4), profile=True)
    train(run)
    folder = tmp_path / "profiled" / "profile"
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    marks = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert [marks.count(name) for name in ("step", "data", "forward", "backward", "optimizer")] == [6, 6, 12, 12, 6]
    table = (folder / "table.md").read_text()
    rows = dict(re.findall(r"^\| (\w+) \| ([\d.]+) \| [\d.]+% \|$", table, re.MULTILINE))
    whole = float(rows.pop("all"))
    assert list(rows) == ["data", "forward", "backward", "optimizer", "waiting"]
    assert abs(sum(map(float, rows.values())) - whole) < 0.05
    operators = re.findall(r"^\| ([^|]+) \| (\d+) \| [\d.]+ \| ([\d.]+)% \|$", table, re.MULTILINE)
    assert len(operators) == 10
    shares = [float(share) for _, _, share in operators]
    assert shares == sorted(shares, reverse=True)
    assert any("mm" in name for name, _, _ in operators)
    said = " ".join(run.console.file.getvalue().split())  # type: ignore[attr-defined]
    assert re.search(r"ms a step: data \d+% · forward \d+% · backward \d+% · optimizer \d+% · waiting \d+%", said)
    train(trainer(tmp_path / "plain", store, settings(micro_batch_size=4)))
    assert figures(tmp_path / "profiled") == figures(tmp_path / "plain"), "watching changes nothing"
    assert not (tmp_path / "plain" / "profile").exists()


def test_a_run_that_ends_sooner_still_tells(tmp_path: Path, store: TokenStore) -> None:
    train(trainer(tmp_path, store, settings(steps=6), profile=True))
    assert "mean of 2" in (tmp_path / "profile" / "table.md").read_text()
    train(trainer(tmp_path / "short", store, settings(steps=3), profile=True))
    assert not (tmp_path / "short" / "profile").exists()
