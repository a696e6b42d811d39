"""The loop as a whole: a tiny run, stopped and resumed, cut into micro-batches, measured against recorded losses."""

import gc
import json
import math
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import CPU, LENGTH, decoder, figures, losses, same, settings, trainer, unpainted, weights
from torch import Tensor

from leveret.data.batches import Batch
from leveret.data.shards import TokenStore
from leveret.evaluation.loss import held_out_loss
from leveret.hardware.device import environment
from leveret.model.decoder import Decoder
from leveret.training.checkpoint import steps_on_disk
from leveret.training.config import OptimizerConfig, ScheduleConfig
from leveret.training.loop import train, train_step
from leveret.training.metrics import read_metrics
from leveret.training.objective import NextToken, mean_loss
from leveret.training.signals import Interrupted

GOLDEN = Path(__file__).parents[1] / "golden"
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 1, "rope_layout": "interleaved"},
    "gpt2": {"position": "learned", "norm": "layer", "mlp": "gelu", "attention_bias": True, "mlp_bias": True},
    "parallel": {"residual": "parallel-shared-norm", "mlp": "relu2", "qk_norm": True, "tie_word_embeddings": False},
    "ours": {
        "mlp": "relu2",
        "qk_norm": True,
        "residual_init": "zero",
        "value_embeddings": True,
        "value_residual": True,
        "residual_scales": True,
        "rope_fraction": 0.5,
        "sliding_window": 4,
        "window_pattern": "SL",
    },
}


class Broken(Exception):
    """What a test throws into a run."""


@dataclass
class Spoilt(NextToken):
    """The usual objective until a call is reached; then `spoil` decides."""

    at: int
    spoil: Callable[[Tensor], Tensor]
    calls: int = field(default=0)

    def loss(self, model: Decoder, batch: Batch) -> Tensor:
        loss = super().loss(model, batch)
        self.calls += model.training
        return self.spoil(loss) if model.training and self.calls == self.at else loss


def crash(loss: Tensor) -> Tensor:
    raise Broken


# --- stopping and going on -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, store: TokenStore) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        unpainted(patch)
        train(trainer(folder, store, settings()))
    return folder


@pytest.mark.parametrize("at", [5, 8, 10, 12])
def test_after_a_crash_it_goes_on_to_the_last_bit(
    tmp_path: Path, store: TokenStore, undisturbed: Path, at: int
) -> None:
    with pytest.raises(Broken):
        train(trainer(tmp_path, store, settings(), objective=Spoilt(at, crash)))
    assert losses(tmp_path) == losses(undisturbed)[: at - 1]
    torch.rand(7)  # the global generator has moved since
    train(trainer(tmp_path, store, settings(), model=decoder(initializer_range=0.1)))
    assert figures(tmp_path) == figures(undisturbed)
    assert same(weights(tmp_path), weights(undisturbed))


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path: Path, store: TokenStore) -> None:
    """Rows that came after it are gone before the first new step, so that no step stands there twice."""
    whole = [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]  # validations at 4 and 8
    with pytest.raises(Broken):
        train(trainer(tmp_path, store, settings(), objective=Spoilt(11, crash)))
    assert [row["step"] for row in read_metrics(tmp_path)] == [*whole, 9, 10]
    with pytest.raises(Broken):
        train(trainer(tmp_path, store, settings(), objective=Spoilt(2, crash)))
    assert [row["step"] for row in read_metrics(tmp_path)] == [*whole, 9]


@pytest.mark.parametrize("at", [6, 8])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves(
    tmp_path: Path, store: TokenStore, undisturbed: Path, number: signal.Signals, at: int
) -> None:
    def send(loss: Tensor) -> Tensor:
        os.kill(os.getpid(), number)
        return loss

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"{number.name} at step {at}") as caught:
        train(trainer(tmp_path, store, settings(), objective=Spoilt(at, send)))
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
    assert steps_on_disk(tmp_path / "checkpoints")[-1] == at
    train(trainer(tmp_path, store, settings()))
    assert figures(tmp_path) == figures(undisturbed)
    assert same(weights(tmp_path), weights(undisturbed))


def test_a_finished_run_is_not_trained_again(tmp_path: Path, store: TokenStore, undisturbed: Path) -> None:
    def never(loss: Tensor) -> Tensor:
        raise AssertionError

    before = figures(undisturbed)
    summary = train(trainer(undisturbed, store, settings(), objective=Spoilt(1, never)))
    assert summary["steps"] == 12
    assert figures(undisturbed) == before


def test_a_crash_in_the_last_validation_is_made_good(tmp_path: Path, store: TokenStore, undisturbed: Path) -> None:
    """Also where the last step is no multiple of eval_every."""

    def probe(step: int, model: Decoder) -> dict[str, Any]:
        raise Broken

    config = settings(eval_every=50, checkpoint_every=50)
    with pytest.raises(Broken):
        train(trainer(tmp_path, store, config, probe=probe))
    summary = train(trainer(tmp_path, store, config))
    assert summary["final_validation_loss"] == figures(undisturbed)[-1]["validation_loss"]


# --- cutting a batch -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_micro_batches_do_not_change_the_run(tmp_path: Path, store: TokenStore, packed: TokenStore, kind: str) -> None:
    """8 x 1, 4 x 2, 1 x 8, and a cut that does not come out even. eps keeps Adam from magnifying rounding errors."""
    where = packed if kind == "packed" else store
    optimizer = OptimizerConfig(lr=0.003, eps=1e-4)
    runs = {}
    for size in (8, 4, 3, 1):
        folder = tmp_path / str(size)
        config = settings(micro_batch_size=size, optimizer=optimizer, document_mask=kind == "packed")
        train(trainer(folder, where, config))
        runs[size] = folder
    for folder in runs.values():
        assert losses(folder) == pytest.approx(losses(runs[8]), abs=1e-6)
        for name, weight in weights(folder).items():
            torch.testing.assert_close(weight, weights(runs[8])[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("clip", [None, 0.05, 1e6])
def test_gradients_are_clipped_together(tmp_path: Path, store: TokenStore, clip: float | None) -> None:
    """With plain gradient descent at rate 1 the weights move by the gradient itself."""
    run = trainer(tmp_path, store, settings(grad_clip=clip, micro_batch_size=3))
    batch = run.batches.batch(0)
    (NextToken().loss(run.model, batch) / batch.weight).backward()
    gradient = {name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None}
    run.model.zero_grad()
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    loss, norm = train_step(
        run, torch.optim.SGD(run.model.parameters(), lr=9.0, fused=True), run.micro_batches(batch), 1.0
    )
    wanted = math.sqrt(sum(float(g.double().square().sum()) for g in gradient.values()))
    assert float(norm) == pytest.approx(wanted, rel=1e-4)  # as it was before clipping
    assert float(loss) == pytest.approx(NextToken().loss(decoder(), batch).item() / batch.weight, abs=1e-5)
    factor = min(1.0, clip / wanted) if clip else 1.0
    for name, parameter in run.model.named_parameters():
        torch.testing.assert_close(before[name] - parameter.detach(), gradient[name] * factor, atol=1e-5, rtol=1e-4)
        assert parameter.grad is None


@pytest.mark.parametrize("kind", ["selective", "full", True])
def test_gradient_checkpointing_changes_nothing(
    tmp_path: Path, store: TokenStore, undisturbed: Path, kind: str | bool
) -> None:
    run = trainer(tmp_path, store, settings(gradient_checkpointing=kind))
    train(run)
    assert run.model.gradient_checkpointing == ("full" if kind is True else kind)
    assert losses(tmp_path) == pytest.approx(losses(undisturbed), abs=1e-6)


# --- what is written -----------------------------------------------------------------------------------------


def test_metrics_validations_and_summary(tmp_path: Path, store: TokenStore) -> None:
    def probe(step: int, model: Decoder) -> dict[str, Any]:
        torch.rand(3)  # a probe that forgot to bring its own generator does no harm here: training draws nothing
        return {"exact": step / 100}

    run = trainer(tmp_path, store, settings(steps=10, log_every=3), probe=probe)
    summary = train(run)
    rows = read_metrics(tmp_path)
    trained = [row for row in rows if "loss" in row]
    assert [row["step"] for row in trained] == [1, 3, 6, 9, 10]
    assert all(row["tokens"] == row["step"] * 8 * LENGTH for row in trained)
    assert trained[-1].keys() == {
        "step", "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "mfu", "train_seconds", "peak_memory_bytes"
    }  # fmt: skip
    assert all(row["mfu"] >= 0 and row["peak_memory_bytes"] > 1_000_000 for row in trained)
    validated = [row for row in rows if "validation_loss" in row]
    assert [(row["step"], row["exact"]) for row in validated] == [(4, 0.04), (8, 0.08), (10, 0.1)]
    assert run.validation is not None
    expected, _ = mean_loss(run.model, NextToken(), run.validation.in_order(20), CPU, torch.float32)
    assert validated[-1]["validation_loss"] == expected
    measured = held_out_loss(run.model, run.validation, CPU, 20)
    assert [row["validation_bits_per_byte"] for row in validated][-1] == measured["bits_per_byte"]
    assert summary["final_validation_loss"] == expected
    assert summary["best_validation_loss"] == min(row["validation_loss"] for row in validated)
    assert summary["steps"] == 10
    assert summary["tokens"] == 10 * 8 * LENGTH
    assert summary["epochs"] == 80 / len(run.batches.split.windows)
    assert summary["tokens_per_second"] == pytest.approx(summary["tokens"] / summary["train_seconds"], rel=0.05)
    assert summary["mfu"] >= 0
    assert summary["peak_source"] in ("datasheet", "measured")
    assert summary["peak_memory_bytes"] > 1_000_000
    assert summary["dtype"] == "float32"
    assert (summary["micro_batch_size"], summary["compiled"]) == (8, False)
    assert summary["format_version"] == 1
    json.dumps(summary)


def test_without_a_validation_split(tmp_path: Path, packed: TokenStore) -> None:
    summary = train(trainer(tmp_path, packed, settings(document_mask=True)))
    assert summary["final_validation_loss"] is None
    assert summary["best_validation_loss"] is None
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]


def test_the_best_checkpoint_is_kept(tmp_path: Path, store: TokenStore) -> None:
    """A rate far too high from step 8 on makes the early one the best."""
    config = settings(steps=16, eval_every=2, keep_last=1, optimizer=OptimizerConfig(lr=0.3), grad_clip=None)
    train(trainer(tmp_path, store, config))
    validations = {row["step"]: row["validation_loss"] for row in read_metrics(tmp_path) if "validation_loss" in row}
    best = min(validations, key=validations.__getitem__)
    assert best < 16
    assert steps_on_disk(tmp_path / "checkpoints") == [best, 16]


def test_the_learning_rate_ends_where_training_ends(tmp_path: Path, store: TokenStore) -> None:
    train(trainer(tmp_path, store, settings()))
    rates = [row["lr"] for row in read_metrics(tmp_path) if "lr" in row]
    assert rates[:2] == pytest.approx([0.005, 0.01])
    assert rates[-1] == pytest.approx(0.001)
    assert max(rates) == 0.01


# --- what goes wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [lambda loss: loss * math.nan, lambda loss: loss + (loss - loss.detach()).sqrt()],
    ids=["loss", "gradient only"],
)
def test_spoilt_weights_are_never_saved(tmp_path: Path, store: TokenStore, spoil: Callable[[Tensor], Tensor]) -> None:
    """Between two lines of metrics, too: the command that goes on must find numbers."""
    train(trainer(tmp_path, store, settings(log_every=50), objective=Spoilt(6, spoil)))
    for step in steps_on_disk(tmp_path / "checkpoints"):
        assert all(weight.isfinite().all() for weight in weights(tmp_path, step).values())


def test_an_error_in_the_loader_is_the_runs(tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(tmp_path, store, settings())
    batch = run.batches.batch

    def broken(step: int) -> Batch:
        if step == 6:
            raise OSError("a shard is gone")
        return batch(step)

    monkeypatch.setattr(run.batches, "batch", broken)
    with pytest.raises(OSError, match="a shard is gone"):
        train(run)
    assert losses(tmp_path)[-1] == pytest.approx(losses(tmp_path)[5]), "all steps before it were taken"
    assert len(losses(tmp_path)) == 6
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


@pytest.mark.parametrize("at", [None, 7])
def test_cycles_are_looked_for_in_pauses_only(tmp_path: Path, store: TokenStore, at: int | None) -> None:
    """And Python's ways are its own again after the run, however it ended."""
    on: list[bool] = []
    collections: list[int] = []

    def note(loss: Tensor) -> Tensor:
        on.append(gc.isenabled())
        collections.append(sum(generation["collections"] for generation in gc.get_stats()))
        if at is not None:
            raise Broken
        return loss

    class Every(Spoilt):
        def loss(self, model: Decoder, batch: Batch) -> Tensor:
            self.at = self.calls + 1
            return super().loss(model, batch)

    assert gc.isenabled()
    with suppress(Broken):
        train(trainer(tmp_path, store, settings(log_every=50), objective=Every(1, note)))
    assert not any(on)
    assert all(b == a for step, (a, b) in enumerate(pairwise(collections), 2) if (step - 1) % 4), "none in a step"
    if at is None:
        assert collections[-1] > collections[0], "but at validations"
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


# --- recorded losses -----------------------------------------------------------------------------------------


def golden_run(folder: Path, name: str, store: TokenStore, packed: TokenStore) -> dict[str, Any]:
    optimizer = {"kind": "muon", "lr": 0.01, "muon_variance": 0.95, "cautious_decay": True} if name == "ours" else {}
    config = settings(
        steps=100, eval_every=50, micro_batch_size=5, document_mask=name == "gpt2", grad_clip=0.5,
        schedule=ScheduleConfig(kind="wsd", warmup_steps=3, decay_fraction=0.3),
        optimizer=optimizer or OptimizerConfig(lr=0.01),
    )  # fmt: skip
    run = trainer(folder, packed if name == "gpt2" else store, config, model=decoder(**SHAPES[name]))
    train(run)
    validations = [row["validation_loss"] for row in read_metrics(folder) if "validation_loss" in row]
    return {"losses": losses(folder), "validation_losses": validations}


def fingerprint() -> dict[str, Any]:
    """What the last bits of a loss depend on."""
    facts = environment(CPU)
    return {key: facts[key] for key in ("torch", "instructions", "threads", "device_name")}


@pytest.mark.parametrize("name", SHAPES)
def test_golden_losses(tmp_path: Path, store: TokenStore, packed: TokenStore, name: str) -> None:
    """100 steps in float32 as they were when this was written: to the bit on the like of the machine that wrote them,
    else to 1e-4. After a change that is meant to change them, delete the file and run this test twice: it writes what
    is not there, and fails for it."""
    found = golden_run(tmp_path, name, store, packed)
    path = GOLDEN / f"{name}.json"
    if not path.exists():
        path.write_text(json.dumps({"fingerprint": fingerprint()} | found, indent=1) + "\n")
        pytest.fail(f"{path.name} was missing and has been written: look at it, then commit it")
    recorded = json.loads(path.read_text())
    close = 0 if recorded["fingerprint"] == fingerprint() else 1e-4
    for kind in ("losses", "validation_losses"):
        assert found[kind] == pytest.approx(recorded[kind], abs=close, rel=0)
    assert recorded["losses"][-1] < recorded["losses"][0] - 0.3
