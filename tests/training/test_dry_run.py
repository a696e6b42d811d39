"""What is settled before the first step: the rows of a micro-batch, compiling, and that the largest goes through."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import LENGTH, decoder, figures, settings, trainer

from leveret.data.batches import Batch
from leveret.data.shards import TokenStore
from leveret.errors import UserError
from leveret.model.decoder import Decoder
from leveret.training import dry_run
from leveret.training.dry_run import memory_told, settle, wants_compiling
from leveret.training.loop import Trainer, train
from leveret.training.memory import USABLE, training_memory
from leveret.training.objective import NextToken


class Noted(NextToken):
    """Remembers the batches it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Batch] = []

    def loss(self, model: Decoder, batch: Batch) -> torch.Tensor:
        self.seen.append(batch)
        return super().loss(model, batch)


def room_for(run: Trainer, rows: int) -> int:
    """Memory, less the weights that are there already, in which that many rows and no more should fit."""
    sizes = training_memory(run.model.config, run.config, LENGTH, rows, run.dtype, run.device)
    return int((sizes["total"] - sizes["weights"]) / USABLE) + 1


@pytest.mark.parametrize("tell", [False, True])
def test_it_leaves_everything_as_it_was(tmp_path: Path, packed: TokenStore, tell: bool) -> None:
    objective = Noted()
    run = trainer(tmp_path, packed, settings(document_mask=tell), objective=objective)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    state = torch.get_rng_state()
    dry_run.dry_run(run, 5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.model.state_dict().items())
    assert all(parameter.grad is None for parameter in run.model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    (batch,) = objective.seen
    real = run.micro_batches(run.batches.batch(0))[0]
    assert batch.inputs.shape == (5, LENGTH)
    assert (batch.weight, batch.learnt) == (5 * LENGTH, None), "as full as a micro-batch can be"
    for name, tensor in real.tensors().items():
        if name != "places":
            tried = batch.tensors()[name]
            assert (tried.dtype, tried.stride()) == (tensor.dtype, tensor.stride()), "or it would be compiled twice"
    assert batch.tensors().keys() == real.tensors().keys() - {"places"}


@pytest.mark.parametrize("rows", [8, 4, 2, 1])
def test_the_micro_batch_is_found_from_the_memory(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    run = trainer(tmp_path, store, settings(micro_batch_size="auto"))
    monkeypatch.setattr(dry_run, "available_memory", lambda device: room_for(run, rows))
    said: list[str] = []
    settle(run, 12, {}, said.append)
    assert run.rows == rows
    assert said == [f"micro-batches of {rows} of 8 rows, as many as fit into the memory"]
    assert [len(part.inputs) for part in run.micro_batches(run.batches.batch(0))] == [rows] * (8 // rows)


def test_a_run_keeps_to_the_micro_batch_it_began_with(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much memory there is later: another cut would round differently."""
    config = settings(micro_batch_size="auto")
    run = trainer(tmp_path, store, config)
    monkeypatch.setattr(dry_run, "available_memory", lambda device: room_for(run, 2))
    train(run)
    state = json.loads((tmp_path / "checkpoints" / "step-00000012" / "state.json").read_text())
    assert (state["micro_batch_size"], state["compiled"]) == (2, False)
    again = trainer(tmp_path, store, config)
    monkeypatch.setattr(dry_run, "available_memory", lambda device: 10**12)
    assert train(again)["micro_batch_size"] == again.rows == 2
    fixed = trainer(tmp_path / "fixed", store, settings(micro_batch_size=2))
    train(fixed)
    assert figures(tmp_path / "fixed") == figures(tmp_path)


class Greedy(NextToken):
    """Needs more memory than there is for more than `most` rows."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.tried = most, 0

    def loss(self, model: Decoder, batch: Batch) -> torch.Tensor:
        self.tried += 1
        if len(batch.inputs) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB.")
        return super().loss(model, batch)


def test_running_out_of_memory_names_the_key(tmp_path: Path, store: TokenStore) -> None:
    with pytest.raises(UserError, match=r"too small for 8 rows of 12 tokens at once; set test\.micro_batch_size: auto"):
        train(trainer(tmp_path, store, settings(), objective=Greedy(4)))
    with pytest.raises(UserError, match=r"for 1 rows .* at once; set test.gradient_checkpointing: full$"):
        train(trainer(tmp_path, store, settings(micro_batch_size=1), objective=Greedy(0)))
    least = settings(micro_batch_size=1, gradient_checkpointing="full")
    with pytest.raises(UserError, match=r"take shorter rows or a smaller model$"):
        train(trainer(tmp_path, store, least, objective=Greedy(0)))


def test_other_errors_stay_what_they_are(tmp_path: Path, store: TokenStore) -> None:
    with pytest.raises(RuntimeError, match="shapes") as caught, memory_told(trainer(tmp_path, store, settings())):
        raise RuntimeError("shapes do not match")
    assert not isinstance(caught.value, UserError)


@pytest.mark.parametrize(("most", "rows"), [(8, 8), (5, 4), (1, 1), (0, 1)])
def test_trying_halves_until_it_fits(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch, most: int, rows: int
) -> None:
    """What CUDA's search does, on a CPU."""
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    objective = Greedy(most)
    run = trainer(tmp_path, store, settings(), objective=objective)
    assert dry_run._tried_rows(run, 8, 1000) == rows
    assert objective.tried == {8: 1, 5: 2, 1: 4, 0: 4}[most]
    assert all(parameter.grad is None for parameter in run.model.parameters())


def test_long_runs_are_compiled_and_short_ones_are_not(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from leveret.model.counts import flops_per_token

    def wants(steps: int, before: bool | None = None, **changes: Any) -> bool:
        return wants_compiling(trainer(tmp_path, store, settings(**changes)), steps, before)

    monkeypatch.setattr(dry_run, "peak_flops", lambda device, dtype: (1e9, "measured"))
    step = 8 * LENGTH * flops_per_token(decoder().config, LENGTH) / 1e9  # seconds
    enough = int(dry_run.PAYS_AFTER / step) + 1
    assert [wants(steps) for steps in (12, enough - 2, enough)] == [False, False, True]
    assert wants(enough, compile=False) is False
    assert wants(12, compile=True) is True
    assert [wants(12, before=True), wants(enough, before=False)] == [True, False], "as the run began"
