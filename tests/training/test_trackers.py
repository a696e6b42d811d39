"""Trackers are told every step once, over crashes too, and stop nothing."""

import io
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console
from tiny_training import settings, trainer

from leveret.data.shards import TokenStore
from leveret.training.loop import train
from leveret.training.metrics import read_metrics
from leveret.training.trackers import Trackers

Told = list[tuple[int, dict[str, float]]]


def rows(*steps: int) -> list[dict[str, Any]]:
    """A logged step each, and a validation at every even one."""
    found: list[dict[str, Any]] = []
    for step in steps:
        found.append({"step": step, "loss": 1 / step, "lr": 0.1, "grad_norm": None})
        found += [{"step": step, "validation_loss": 2 / step}] * (step % 2 == 0)
    return found


@pytest.fixture
def trackio(monkeypatch: pytest.MonkeyPatch) -> dict[str, Told]:
    """A stand-in for trackio: what each of its runs was told."""
    runs: dict[str, Told] = {}

    class Run:
        def __init__(self, name: str) -> None:
            self.told = runs.setdefault(name, [])

        def log(self, figures: dict[str, float], step: int) -> None:
            if step == 13:
                raise ConnectionError("the server is gone")
            self.told.append((step, figures))

    def init(project: str, name: str, **_: object) -> Run:
        print("* Created new run")
        return Run(name)

    module = ModuleType("trackio")
    module.init, module.finish = init, lambda: print("* Run finished")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", module)
    return runs


def test_a_step_is_told_once_and_what_was_missed_is_made_up(
    tmp_path: Path, trackio: dict[str, Told], capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    folder = tmp_path / "own" / "pretrain"
    folder.mkdir(parents=True)
    first = Trackers(["trackio"], folder, said.append)
    for row in rows(1, 2, 3):
        first.tell([row])  # and then the process is killed
    again = Trackers(["trackio"], folder, said.append)
    again.tell(rows(1, 2))  # what metrics kept
    for row in rows(3, 4, 5):
        again.tell([row])
    again.close()
    late = Trackers(["trackio"], folder, said.append)
    late.tell(rows(1, 2, 3, 4, 5, 6))
    ((name, told),) = trackio.items()
    assert name.startswith("own-pretrain-")
    assert [step for step, _ in told] == [1, 2, 2, 3, 4, 4, 5, 6, 6]
    assert told[0][1] == {"loss": 1.0, "lr": 0.1}
    assert told[2][1] == {"validation_loss": 1.0}
    assert said == []
    assert capsys.readouterr().out == ""


def test_a_tracker_that_fails_or_is_missing_is_said_once(
    tmp_path: Path, trackio: dict[str, Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    said: list[str] = []
    trackers = Trackers(["wandb", "trackio"], tmp_path, said.append)
    assert said == ["wandb is left out: import of wandb halted; None in sys.modules; pip install 'leveret[tracking]'"]
    trackers.tell(rows(12))
    trackers.tell(rows(13))
    trackers.tell(rows(14))
    trackers.close()
    assert said[1:] == ["trackio is left out: the server is gone"]


def test_a_training_tells_tensorboard_what_metrics_say(tmp_path: Path, store: TokenStore) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    said = io.StringIO()
    config = settings(steps=4, eval_every=2, trackers=["tensorboard"])
    train(trainer(tmp_path, store, config, console=Console(file=said, width=200)))
    assert "left out" not in said.getvalue()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    for key in ("loss", "lr", "validation_loss"):
        expected = [(row["step"], pytest.approx(row[key])) for row in read_metrics(tmp_path) if key in row]
        assert [(point.step, point.value) for point in board.Scalars(key)] == expected


def test_wandb_works_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    said: list[str] = []
    for told in (rows(1, 2), rows(1, 2, 3)):
        trackers = Trackers(["wandb"], tmp_path, said.append)
        trackers.tell(told)
        trackers.close()
    assert said == []
    kept = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(kept) == 2
    assert len({path.name for path in kept}) == 1  # one run, in two parts
