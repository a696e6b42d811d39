"""Numbers that go wrong: steps passed over, roll-backs, spikes, and data that is damaged; each of them planted."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import decoder, figures, losses, same, settings, trainer, unpainted, weights
from torch import Tensor

from leveret.data.batches import Batch
from leveret.data.shards import TokenStore
from leveret.errors import UserError
from leveret.model.decoder import Decoder
from leveret.training import faults
from leveret.training.checkpoint import find_checkpoint, steps_on_disk
from leveret.training.config import GuardConfig, OptimizerConfig, ScheduleConfig
from leveret.training.faults import Faults
from leveret.training.guards import Trend
from leveret.training.loop import train
from leveret.training.metrics import read_events, read_metrics
from leveret.training.objective import NextToken
from leveret.training.signals import Interrupted

Plant = Callable[[str], None]


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    unpainted(monkeypatch)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Plant:
    return lambda text: monkeypatch.setenv(faults.VARIABLE, text)


class Stop(Exception):
    """What a test throws into a run."""


class Watched(NextToken):
    """The usual objective; at its calls `at`, `do` is done to the loss."""

    def __init__(self, at: set[int], do: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.at, self.do, self.calls = at, do, 0

    def loss(self, model: Decoder, batch: Batch) -> Tensor:
        found = super().loss(model, batch)
        if torch.is_grad_enabled():
            self.calls += 1
            if self.calls in self.at:
                return self.do(found)
        return found


def crash(loss: Tensor) -> Tensor:
    raise Stop


def interrupt(loss: Tensor) -> Tensor:
    os.kill(os.getpid(), signal.SIGTERM)
    return loss


def state(folder: Path) -> dict[str, Any]:
    found = find_checkpoint(folder / "checkpoints")
    assert found is not None
    return found.state


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(folder) if event["kind"] == kind]


def all_numbers(folder: Path) -> bool:
    """Of every checkpoint there is, weights and optimizer."""
    for step in steps_on_disk(folder / "checkpoints"):
        found = find_checkpoint(folder / "checkpoints", step)
        assert found is not None
        tensors = [*found.weights(decoder().config).values(), *found.optimizer().values()]
        if not all(tensor.isfinite().all() for tensor in tensors):
            return False
    return True


def complete(folder: Path, store: TokenStore, planted: str) -> Path:
    """A run that nobody stops, with these faults."""
    with pytest.MonkeyPatch.context() as patch:
        unpainted(patch)
        patch.setenv(faults.VARIABLE, planted)
        train(trainer(folder, store, settings()))
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, store: TokenStore) -> Path:
    return complete(tmp_path_factory.mktemp("undisturbed"), store, "")


@pytest.fixture(scope="module")
def rolled_back(tmp_path_factory: pytest.TempPathFactory, store: TokenStore) -> Path:
    return complete(tmp_path_factory.mktemp("rolled-back"), store, "nan@6-10")


# --- steps passed over ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_a_bad_step_is_passed_over_and_told(tmp_path: Path, store: TokenStore, plant: Plant, kind: str) -> None:
    plant(f"{kind}@6")
    summary = train(trainer(tmp_path, store, settings()))
    assert summary["steps"] == 12
    (event,) = events(tmp_path, "skipped")
    assert (event["step"], event["in_a_row"], event["grad_norm"]) == (6, 1, kind)
    rows = [row for row in read_metrics(tmp_path) if "loss" in row]
    assert [row["step"] for row in rows if row["grad_norm"] is None] == [6]
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert (state(tmp_path)["bad_steps"], state(tmp_path)["bad_in_a_row"]) == (1, 0)
    assert events(tmp_path, "roll-back") == []
    assert all_numbers(tmp_path)


def test_a_loss_that_is_no_number_is_null_in_metrics(tmp_path: Path, store: TokenStore) -> None:
    train(trainer(tmp_path, store, settings(), objective=Watched({6}, lambda loss: loss * math.nan)))
    assert [row["step"] for row in read_metrics(tmp_path) if row.get("loss", 0) is None] == [6]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text() + (tmp_path / "events.jsonl").read_text()
    assert events(tmp_path, "skipped")[0]["loss"] == "nan"


def test_steps_between_lines_of_metrics_are_counted_too(tmp_path: Path, store: TokenStore, plant: Plant) -> None:
    """More of them than the guard remembers; a row of bad ones that is over when they are looked at is let be."""
    plant("nan@3-8,nan@100,nan@129,inf@140")
    train(trainer(tmp_path, store, settings(steps=140, log_every=1000, eval_every=1000)))
    assert [event["step"] for event in events(tmp_path, "skipped")] == [3, 4, 5, 6, 7, 8, 100, 129, 140]
    assert events(tmp_path, "roll-back") == []
    assert (state(tmp_path)["bad_steps"], state(tmp_path)["bad_in_a_row"]) == (9, 1)


def test_the_search_for_a_scale_is_no_bad_step(tmp_path: Path, store: TokenStore) -> None:
    """In float16 gradients overflow until the scale is low enough; here that takes more steps than max_skipped."""
    run = trainer(tmp_path, store, settings(precision="fp16", guard=GuardConfig(max_skipped=2)))
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=1000)
    train(run)
    norms = [row["grad_norm"] for row in read_metrics(tmp_path) if "loss" in row]
    assert norms.count(None) > 2
    assert norms[-1] is not None
    assert read_events(tmp_path) == []


# --- roll-backs ----------------------------------------------------------------------------------------------


def test_after_too_many_in_a_row_it_goes_back(
    tmp_path: Path, store: TokenStore, plant: Plant, undisturbed: Path
) -> None:
    """To the checkpoint before, without that data (where the fault is), at half the rate."""
    plant("nan@6-12")
    train(trainer(tmp_path, store, settings()))
    (event,) = events(tmp_path, "roll-back")
    assert (event["step"], event["to"], event["skipped"], event["lr_factor"]) == (10, 4, [5, 6, 7, 8, 9], 0.5)
    assert [event["step"] for event in events(tmp_path, "skipped")] == [6, 7, 8, 9, 10, 6, 7]  # 2 more of the 7 are met
    rows = [row for row in read_metrics(tmp_path) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 13))
    rates = [row["lr"] for row in read_metrics(undisturbed) if "lr" in row]
    factors = [row["lr"] / rate for row, rate in zip(rows, rates, strict=True)]
    assert factors == pytest.approx([1.0] * 4 + [0.5] * 8)
    kept = {key: state(tmp_path)[key] for key in ("skipped", "lr_factor", "rollbacks", "bad_steps")}
    assert kept == {"skipped": [5, 6, 7, 8, 9], "lr_factor": 0.5, "rollbacks": 1, "bad_steps": 7}
    assert all_numbers(tmp_path)


@pytest.mark.parametrize("how", [crash, interrupt])
@pytest.mark.parametrize("at", [3, 7, 9, 10, 11, 15])
def test_a_run_that_is_stopped_around_a_roll_back_ends_with_the_same_bits(
    tmp_path: Path, store: TokenStore, plant: Plant, rolled_back: Path, at: int, how: Callable[[Tensor], Tensor]
) -> None:
    """Before, among and after the bad steps: 6 to 10 are taken by calls 6 to 10, then it goes on from step 5."""
    plant("nan@6-10")
    with pytest.raises((Stop, Interrupted)):
        train(trainer(tmp_path, store, settings(), objective=Watched({at}, how)))
    train(trainer(tmp_path, store, settings()))
    assert figures(tmp_path) == figures(rolled_back)
    assert same(weights(tmp_path), weights(rolled_back))
    assert state(tmp_path) | {"train_seconds": 0} == state(rolled_back) | {"train_seconds": 0}


def test_a_row_seen_late_is_gone_back_from_late(tmp_path: Path, store: TokenStore, plant: Plant) -> None:
    """Also where a signal comes in between: it decides nothing, so that the end is the same."""
    plant("nan@3-10")
    config = settings(steps=20, log_every=10, eval_every=20, checkpoint_every=20)
    train(trainer(tmp_path / "straight", store, config))
    (event,) = events(tmp_path / "straight", "roll-back")
    assert (event["step"], event["to"], event["skipped"]) == (10, 0, list(range(2, 10)))
    with pytest.raises(Interrupted):
        train(trainer(tmp_path / "stopped", store, config, objective=Watched({8}, interrupt)))
    assert state(tmp_path / "stopped")["bad_in_a_row"] == 6
    train(trainer(tmp_path / "stopped", store, config))
    (event,) = events(tmp_path / "stopped", "roll-back")
    assert (event["step"], event["skipped"]) == (10, list(range(2, 10)))


def test_weights_that_give_no_number_at_all_are_gone_back_behind(
    tmp_path: Path, store: TokenStore, plant: Plant
) -> None:
    """The first step from the newest checkpoint is bad, so it may be to blame: the one before is taken."""
    plant("nan@9-13")
    train(trainer(tmp_path, store, settings(steps=16)))
    (event,) = events(tmp_path, "roll-back")
    assert (event["step"], event["to"]) == (13, 4)


def test_without_a_checkpoint_it_begins_anew(tmp_path: Path, store: TokenStore, plant: Plant) -> None:
    """With the weights it began with, to the bit: as a run that never had that data and half the rate all along."""
    plant("nan@2-6")
    kinds = OptimizerConfig(kind="muon", lr=0.01, muon_variance=0.9)
    train(trainer(tmp_path / "back", store, settings(eval_every=12, optimizer=kinds)))
    (event,) = events(tmp_path / "back", "roll-back")
    assert (event["to"], event["skipped"]) == (0, [1, 2, 3, 4, 5])
    half = kinds.model_copy(update={"lr": 0.005})
    schedule = ScheduleConfig(warmup_steps=2, min_lr=0.0005)
    fresh = trainer(tmp_path / "fresh", store, settings(eval_every=12, optimizer=half, schedule=schedule))
    plant("")
    fresh.faults = Faults()
    batch = fresh.batches.batch
    fresh.batches.batch = lambda step: batch(step + 5 if step else 0)  # type: ignore[method-assign]
    train(fresh)
    assert losses(tmp_path / "back") == losses(fresh.folder)
    assert same(weights(tmp_path / "back"), weights(fresh.folder))


def test_it_stops_with_a_report_when_going_back_does_not_help(tmp_path: Path, store: TokenStore, plant: Plant) -> None:
    plant("nan@6-400")
    config = settings(guard=GuardConfig(max_skipped=2, max_rollbacks=2))
    with pytest.raises(UserError, match=r"no numbers at steps 6 to 7, after 2 roll-backs; .*failure.md says what may"):
        train(trainer(tmp_path, store, config))
    assert [event["lr_factor"] for event in events(tmp_path, "roll-back")] == [0.5, 0.25]
    report = (tmp_path / "failure.md").read_text()
    assert "test.optimizer.lr" in report
    assert "0.25 of the schedule's" in report
    (last,) = [row for row in read_metrics(tmp_path) if row["step"] == 5 and "loss" in row]
    assert f"| 5 | {last['loss']} |" in report
    assert "| 7 |" in report
    assert steps_on_disk(tmp_path / "checkpoints") == [4]
    assert all_numbers(tmp_path)
    with pytest.raises(UserError, match="after 2 roll-backs"):  # the same again, from what is on the disk
        train(trainer(tmp_path, store, config))


# --- spikes --------------------------------------------------------------------------------------------------


def noise(count: int, seed: int = 0) -> list[float]:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).tolist()


def test_neither_noise_nor_a_slope_nor_a_warm_up_is_a_spike() -> None:
    for seed in range(5):
        shapes: list[Callable[[int], float]] = [
            lambda step: 3.0,
            lambda step: 10 - 0.05 * step,
            lambda step: 1 + 0.05 * step,
            lambda step: 2.5 + 8 * math.exp(-step / 30),
            lambda step: 1.5 + min(step, 40) / 40,
        ]
        for shape in shapes:
            trend = Trend()
            assert not any(trend.spike(shape(step) + 0.1 * each) for step, each in enumerate(noise(600, seed)))


def test_spikes_are_found_where_they_begin_and_hide_no_other() -> None:
    trend = Trend()
    values = [5 - 0.01 * step + 0.05 * each for step, each in enumerate(noise(300))]
    for begin in (100, 120, 200):
        for step in range(begin, begin + 4):
            values[step] += 1.5
    found = {step: expected for step, value in enumerate(values) if (expected := trend.spike(value)) is not None}
    assert list(found) == [100, 120, 200]
    assert found[100] == pytest.approx(4.0, abs=0.1)


def test_a_new_level_is_got_used_to() -> None:
    trend = Trend()
    values = [3.0 + 0.05 * each for each in noise(100)] + [4.0 + 0.05 * each for each in noise(400, 1)]
    found = [step for step, value in enumerate(values) if trend.spike(value) is not None]
    assert found
    assert found[0] == 100
    assert all(step < 150 for step in found)


def test_a_spike_of_a_run_is_an_event(tmp_path: Path, store: TokenStore) -> None:
    config = settings(steps=64, log_every=10, eval_every=64)
    train(trainer(tmp_path, store, config, objective=Watched({50}, lambda loss: loss * 30)))
    found = events(tmp_path, "spike")
    assert {(event["step"], event["figure"]) for event in found} == {(50, "loss"), (50, "grad_norm")}
    assert all(event["value"] > 5 * event["expected"] > 0 for event in found)


# --- data that is damaged, and loaders that fail -------------------------------------------------------------


def test_a_corrupt_batch_is_refused_by_name_and_what_was_done_is_saved(
    tmp_path: Path, store: TokenStore, plant: Plant, undisturbed: Path
) -> None:
    plant("corrupt@7")
    run = trainer(tmp_path, store, settings())
    window = run.batches.windows_of(6)[-1]
    with pytest.raises(UserError, match=rf"step 7 has token ids outside the vocabulary of 23: row 7, window {window} "):
        train(run)
    assert steps_on_disk(tmp_path / "checkpoints") == [4, 6]
    plant("")
    train(trainer(tmp_path, store, settings()))
    assert figures(tmp_path) == figures(undisturbed)
    assert same(weights(tmp_path), weights(undisturbed))


def test_an_exception_in_the_loader_comes_after_a_save(
    tmp_path: Path, store: TokenStore, plant: Plant, undisturbed: Path
) -> None:
    plant("loader@7")
    with pytest.raises(OSError, match="planted by LEVERET_FAULTS"):
        train(trainer(tmp_path, store, settings()))
    assert steps_on_disk(tmp_path / "checkpoints") == [4, 6]
    plant("")
    train(trainer(tmp_path, store, settings()))
    assert figures(tmp_path) == figures(undisturbed)
    assert same(weights(tmp_path), weights(undisturbed))


# --- planting ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["nan", "nan@0", "nan@x", "bang@3", "die@6:rank", "nan@7-", "slow@3:1"])
def test_a_fault_that_is_none_is_refused(plant: Plant, text: str) -> None:
    plant(f"nan@1,{text}")
    with pytest.raises(UserError, match=r"LEVERET_FAULTS: .* is no fault; write nan\|inf\|"):
        Faults.from_environment()


def test_faults_strike_their_rank_once_and_not_in_a_second_life(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    struck: list[Any] = []
    monkeypatch.setattr(faults.time, "sleep", struck.append)
    monkeypatch.setattr(faults.os, "_exit", struck.append)
    plant(" slow@6-7:rank1, die@8 ,")

    def strike(rank: int) -> list[Any]:
        struck.clear()
        mine = Faults.from_environment(rank)
        for step in (5, 6, 6, 7, 8, 9):
            mine.strike(step)
        return list(struck)

    assert strike(0) == [137]
    assert strike(1) == [faults.SLOW, faults.SLOW, 137]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert strike(1) == []


def test_nothing_is_planted_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(faults.VARIABLE, raising=False)
    assert Faults.from_environment().planted == ()
    assert json.dumps(GuardConfig().model_dump()) == '{"max_skipped": 5, "rollback_lr": 0.5, "max_rollbacks": 3}'
