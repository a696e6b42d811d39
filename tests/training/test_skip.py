"""A step whose loss or gradients are no numbers changes no bit of weights or optimizer, and the next one is as if it
had never been."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import decoder, same, settings, trainer
from torch import Tensor

from leveret.data.shards import TokenStore
from leveret.training import loop
from leveret.training.adamw import AdamW
from leveret.training.config import OptimizerConfig
from leveret.training.loop import Trainer, set_up, train_step
from leveret.training.optimizer import load_optimizer_state, optimizer_state
from leveret.training.skipping import step_there

KINDS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "plain adamw": {},
    "adamw8bit": {"kind": "adamw8bit"},
    "muon": {"kind": "muon"},
    "normuon": {"kind": "muon", "muon_variance": 0.95, "cautious_decay": True},
}
WIDE = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 23}
"""Wide enough for moments of eight bits to be kept in bytes."""


class Bench:
    """A model, its optimizer, and steps on the batches of a run."""

    def __init__(self, folder: Path, store: TokenStore, kind: str, **changes: Any) -> None:
        config = settings(optimizer=OptimizerConfig(lr=0.01, **KINDS[kind]), micro_batch_size=4, **changes)
        self.run: Trainer = trainer(folder, store, config, model=decoder(**WIDE))
        self.optimizer = set_up(self.run)
        if kind == "plain adamw":
            self.optimizer = AdamW(self.optimizer.param_groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8)

    def step(self, number: int, spoil: float | None = None, *, loss: bool = False) -> tuple[float, float]:
        """Loss and norm of a step; `spoil` is put into one gradient, or into the loss."""

        def in_gradient(parameter: Tensor) -> None:
            assert parameter.grad is not None
            parameter.grad[0] = spoil

        run = self.run
        parts = run.micro_batches(run.batches.batch(number))
        with ExitStack() as stack:
            if spoil is not None and loss:
                stack.callback(run.loss.register_forward_hook(lambda module, batch, out: out * spoil).remove)
            elif spoil is not None:
                last = list(run.model.parameters())[-1]
                stack.callback(last.register_post_accumulate_grad_hook(in_gradient).remove)
            total, norm = train_step(run, self.optimizer, parts, 0.01)
        return float(total), float(norm)

    def everything(self) -> dict[str, Tensor]:
        state = optimizer_state(self.run.model, self.optimizer) | self.run.model.state_dict()
        return {name: tensor.clone() for name, tensor in state.items()}


@pytest.fixture(params=["on the CPU", "on a device"])
def _decided(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU, and as where nobody may wait for the device."""
    if request.param == "on a device":
        monkeypatch.setattr(loop, "step_if", step_there)


@pytest.mark.usefixtures("_decided")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_spoilt_step_changes_no_bit(tmp_path: Path, store: TokenStore, kind: str, precision: str) -> None:
    bench = Bench(tmp_path, store, kind, precision=precision)
    for number in range(2):
        bench.step(number)
    before = bench.everything()
    for spoil in (math.nan, math.inf, -math.inf):
        for loss in (False, True):
            found = bench.step(2, spoil, loss=loss)
            assert not all(map(math.isfinite, found))
            assert math.isfinite(found[0]) is not loss, "a gradient may be none while the loss is a number"
            assert same(bench.everything(), before)
    assert all(math.isfinite(value) for value in bench.step(2))
    after = bench.everything()
    assert not same(after, before)
    assert all(tensor.isfinite().all() for tensor in after.values() if tensor.is_floating_point())


@pytest.mark.usefixtures("_decided")
@pytest.mark.parametrize("kind", KINDS)
def test_the_steps_after_it_are_as_if_it_had_not_been(tmp_path: Path, store: TokenStore, kind: str) -> None:
    """Also where it is the very first, which makes the optimizer's state."""
    straight, disturbed = Bench(tmp_path, store, kind), Bench(tmp_path, store, kind)
    disturbed.step(9, math.nan)
    for number in range(4):
        assert straight.step(number) == disturbed.step(number)
        disturbed.step(9, math.inf, loss=True)
    assert same(straight.everything(), disturbed.everything())


def test_adamw_written_out_is_torchs(tmp_path: Path, store: TokenStore) -> None:
    """Close to the bit, under the same names: a checkpoint may move between devices with and without a kernel."""
    ours, torchs = Bench(tmp_path, store, "plain adamw"), Bench(tmp_path, store, "adamw")
    for number in range(4):
        assert ours.step(number) == pytest.approx(torchs.step(number), rel=1e-4)
    mine, wanted = ours.everything(), torchs.everything()
    assert mine.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(mine[name], tensor, atol=1e-4, rtol=1e-3)


def test_the_state_of_before_the_first_good_step_is_loaded(tmp_path: Path, store: TokenStore) -> None:
    bench, again = Bench(tmp_path, store, "muon"), Bench(tmp_path, store, "muon")
    bench.step(0, math.nan)
    load_optimizer_state(again.run.model, again.optimizer, optimizer_state(bench.run.model, bench.optimizer))
    assert [bench.step(number) for number in range(3)] == [again.step(number) for number in range(3)]
