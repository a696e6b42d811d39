"""Early stopping: the stage ends when the held-out loss gets no better, and its model is the best one validated."""

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny_training import LENGTH, VOCABULARY, figures, same, settings, trainer, weights
from torch import Tensor

from leveret.changes import may_go_on
from leveret.data.batches import Batch
from leveret.data.shards import ShardWriter, TokenStore
from leveret.data.windows import concatenated
from leveret.errors import UserError
from leveret.model.decoder import Decoder
from leveret.recipe import load_recipe, to_yaml
from leveret.training import checkpoint
from leveret.training.checkpoint import steps_on_disk
from leveret.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig
from leveret.training.loop import train
from leveret.training.metrics import read_events
from leveret.training.objective import NextToken
from leveret.training.signals import Interrupted
from leveret.training.stopping import worn_out

PATIENCE = 2


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """A few documents to learn by heart, and others that it helps with for a short while only."""
    folder = tmp_path_factory.mktemp("few") / "store"
    writer, random = ShardWriter(folder, VOCABULARY, 400), torch.Generator().manual_seed(5)
    for split, count in (("train", 6), ("validation", 12)):
        for _ in range(count):
            ids = (torch.randn(LENGTH, generator=random) * 3 + VOCABULARY / 2).long().clamp(0, VOCABULARY - 1)
            writer.add(split, ids.tolist(), 20)
    writer.finish({n: concatenated(writer.starts(n), s.tokens, LENGTH) for n, s in writer.splits.items()}, {})
    return TokenStore(folder)


def stopping(**changes: Any) -> TrainingConfig:
    fields = {"steps": 80, "eval_every": 4, "patience": PATIENCE, "optimizer": OptimizerConfig(lr=0.002)}
    return settings(**fields | {"schedule": ScheduleConfig(kind="constant", warmup_steps=2)} | changes)


def validations(folder: Path) -> dict[int, float]:
    return {row["step"]: row["validation_loss"] for row in figures(folder) if "validation_loss" in row}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, few: TokenStore) -> tuple[Path, dict[str, Any]]:
    """A stage that stopped early, and its summary."""
    folder = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        from tiny_training import unpainted

        unpainted(patch)
        return folder, train(trainer(folder, few, stopping()))


def assert_ended_as(folder: Path, straight: Path) -> None:
    assert figures(folder) == figures(straight)
    assert same(weights(folder), weights(straight))
    assert steps_on_disk(folder / "checkpoints") == steps_on_disk(straight / "checkpoints")


def test_it_ends_when_validations_get_no_better_and_keeps_the_best(
    tmp_path: Path, few: TokenStore, straight: tuple[Path, dict[str, Any]]
) -> None:
    folder, summary = straight
    losses = validations(folder)
    *before, best = [step for step in losses if step <= summary["best_step"]]
    assert before, "the loss got better first"
    assert summary["best_step"] == min(losses, key=losses.__getitem__) == best
    assert summary["steps"] == max(losses) == best + 4 * PATIENCE < 80
    assert (summary["stopped_early"], summary["planned_steps"], summary["model_step"]) == (True, 80, best)
    assert summary["best_validation_loss"] == losses[best] < summary["final_validation_loss"]
    assert steps_on_disk(folder / "checkpoints")[-1] == best
    assert (folder / "checkpoints" / "latest").read_text() == f"step-{best:08d}\n"
    assert {"kind": "stopped-early", "step": max(losses), "best": best} in [
        {key: row.get(key) for key in ("kind", "step", "best")} for row in read_events(folder)
    ]
    train(trainer(tmp_path, few, stopping(steps=best, patience=None)))  # that many steps, and no more
    assert same(weights(tmp_path), weights(folder))


def test_without_patience_all_steps_are_taken(tmp_path: Path, few: TokenStore) -> None:
    summary = train(trainer(tmp_path, few, stopping(patience=None, steps=40)))
    assert (summary["steps"], summary["stopped_early"], summary["model_step"]) == (40, False, 40)
    assert summary["best_step"] < 40


def test_where_all_steps_were_taken_the_model_is_the_best_too(
    tmp_path: Path, few: TokenStore, straight: tuple[Path, dict[str, Any]]
) -> None:
    folder, early = straight
    summary = train(trainer(tmp_path, few, stopping(steps=early["best_step"] + 4)))
    assert (summary["stopped_early"], summary["model_step"]) == (False, early["best_step"])
    assert same(weights(tmp_path), weights(folder))


class Told(NextToken):
    """Sends a signal from the n-th forward pass of training, or of validation."""

    def __init__(self, at: int, training: bool) -> None:
        super().__init__()
        self.left, self.training = at, training

    def loss(self, model: Decoder, batch: Batch) -> Tensor:
        if model.training == self.training:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGTERM)
        return super().loss(model, batch)


@pytest.mark.parametrize("after", [-2, 1, 4, 4 * PATIENCE])
def test_stopped_in_between_it_comes_to_the_same_end(
    tmp_path: Path, few: TokenStore, straight: tuple[Path, dict[str, Any]], after: int
) -> None:
    """By a signal in a step before the best, after it, in one that is validated, and in the very last one."""
    folder, whole = straight
    at = whole["best_step"] + after
    with pytest.raises(Interrupted, match=f"at step {at}"):
        train(trainer(tmp_path, few, stopping(), objective=Told(at, training=True)))
    summary = train(trainer(tmp_path, few, stopping()))
    told = ("steps", "stopped_early", "best_step", "model_step", "final_validation_loss")
    assert [summary[key] for key in told] == [whole[key] for key in told]
    assert_ended_as(tmp_path, folder)


def test_a_signal_in_the_last_validation_is_made_good(
    tmp_path: Path, few: TokenStore, straight: tuple[Path, dict[str, Any]]
) -> None:
    folder, whole = straight
    passes = 2 * (whole["steps"] // 4) - 1  # a validation is two batches, and the second is not begun
    with pytest.raises(Interrupted, match=f"at step {whole['steps']}"):
        train(trainer(tmp_path, few, stopping(), objective=Told(passes, training=False)))
    assert whole["steps"] not in validations(tmp_path)
    train(trainer(tmp_path, few, stopping()))
    assert_ended_as(tmp_path, folder)


@pytest.mark.parametrize("removals", [0, 1])
def test_a_crash_while_the_later_checkpoints_go_is_made_good(
    tmp_path: Path,
    few: TokenStore,
    straight: tuple[Path, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    removals: int,
) -> None:
    remove, left = checkpoint._remove, [removals]

    def crash(folder: Path, step: int) -> None:
        if step > straight[1]["best_step"] and len(validations(tmp_path)) * 4 == straight[1]["steps"]:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
        remove(folder, step)

    monkeypatch.setattr(checkpoint, "_remove", crash)
    with pytest.raises(KeyboardInterrupt):
        train(trainer(tmp_path, few, stopping()))
    monkeypatch.setattr(checkpoint, "_remove", remove)
    assert steps_on_disk(tmp_path / "checkpoints")[-1] == straight[1]["steps"]
    train(trainer(tmp_path, few, stopping(), objective=Told(1, training=True)))  # which no step is taken to see
    assert_ended_as(tmp_path, straight[0])


def test_more_patience_goes_on_from_the_best(
    tmp_path: Path, few: TokenStore, straight: tuple[Path, dict[str, Any]]
) -> None:
    train(trainer(tmp_path / "longer", few, stopping()))
    for folder in ("at-once", "longer"):
        train(trainer(tmp_path / folder, few, stopping(patience=PATIENCE + 2)))
    assert len(validations(tmp_path / "longer")) > len(validations(straight[0]))
    assert_ended_as(tmp_path / "longer", tmp_path / "at-once")


def test_patience_may_change_in_a_stage_that_has_begun(tmp_path: Path, few: TokenStore) -> None:
    short = ["pretrain.tokens=null", "pretrain.steps=80", "pretrain.checkpoint_every=null"]
    recipe = load_recipe("smallm-20m", [*short, "pretrain.patience=2"])[0]
    changed = load_recipe("smallm-20m", [*short, "pretrain.patience=5"])[0]
    train(trainer(tmp_path, few, stopping(steps=4), recipe=to_yaml(recipe)))
    for finished in (True, False):
        goes_on, said = may_go_on(tmp_path, "pretrain", changed, finished, "its recipe changed", lambda config: 80)
        assert goes_on
        assert said == "goes on from step 4 of 80 to 80: pretrain.patience 2 -> 5"


def test_a_best_checkpoint_that_is_damaged_is_not_taken(tmp_path: Path, few: TokenStore) -> None:
    train(trainer(tmp_path, few, stopping(steps=12, patience=None, keep_last=9)))
    folder = tmp_path / "checkpoints"
    (folder / "step-00000008" / "model.safetensors").write_bytes(b"")
    assert checkpoint.go_back_to_best(folder, {4: 2.0, 8: 1.0, 12: 3.0, 16: 0.5}) == 4
    assert steps_on_disk(folder) == [4]
    assert checkpoint.go_back_to_best(folder, {4: math.nan}) is None
    assert steps_on_disk(folder) == [4]


def test_what_cannot_work_is_refused_before_any_step(tmp_path: Path, few: TokenStore) -> None:
    with pytest.raises(UserError, match=r"test\.patience needs held-out data"):
        train(trainer(tmp_path, few, stopping(), validation=None))
    for every in ({"checkpoint_every": 3}, {"checkpoint_every": 4, "eval_every": None}):
        with pytest.raises(ValidationError, match="every validation needs a checkpoint"):
            stopping(**every)
    assert stopping(checkpoint_every=2).patience == PATIENCE


@pytest.mark.parametrize(
    ("losses", "worn"),
    [
        ([], False),
        ([3.0, 2.0, 1.0, 0.5], False),
        ([3.0, 3.0, 3.0], True),  # equal is no better
        ([3.0, 4.0, 2.0, 4.0], False),
        ([3.0, 4.0, 2.0, 4.0, 2.0], True),
        ([3.0, math.nan, math.inf], True),
        ([math.nan, 3.0, 4.0], False),
    ],
)
def test_worn_out(losses: list[float], worn: bool) -> None:
    assert worn_out(dict(enumerate(losses)), 2) is worn
