"""Muon: orthogonal updates, fused projections taken apart, state that survives a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from leveret.errors import UserError
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.training.checkpoint import Snapshot, find_checkpoint, write_checkpoint
from leveret.training.config import OptimizerConfig
from leveret.training.muon import Muon, orthogonalise
from leveret.training.optimizer import load_optimizer_state, make_optimizer, optimizer_state

SHAPE = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    max_position_embeddings=16,
)
SETTINGS = OptimizerConfig(kind="muon", lr=1e-2, muon_lr=2e-2, weight_decay=0.1)


def step(model: Decoder, optimizer: torch.optim.Optimizer, seed: int) -> float:
    ids = torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(seed))
    loss = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.roll(-1, 1).flatten())
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = 1e-2 * group.get("lr_scale", 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def muon(matrices: list[torch.nn.Parameter], rows: list[list[int]], **knobs: Any) -> Muon:
    other = torch.nn.Parameter(torch.zeros(1))
    groups = [{"params": matrices, "lr_scale": 1.0}]
    by_matrix = dict(zip(matrices, rows, strict=True))
    made = Muon(groups, by_matrix, torch.optim.AdamW([other]), momentum=0.9, weight_decay=0.1, **knobs)
    made.param_groups[0]["lr"] = 0.1
    return made


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    for shape in ((3, 32, 32), (1, 16, 48)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)).float())
        assert ((values > 0.5) & (values < 1.3)).float().mean() > 0.8  # a random square's smallest ones stay small
        assert values.max() < 1.4


def test_a_tall_matrix_takes_the_step_of_the_same_one_lying() -> None:
    gradient = torch.randn(48, 16)
    tall, wide = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((48, 16), (16, 48)))
    tall.grad, wide.grad = gradient, gradient.T.contiguous()
    made = muon([tall, wide], [[48], [16]])
    made.step()
    assert torch.equal(tall.detach(), wide.detach().T)
    assert tall.detach().square().mean().sqrt().item() == pytest.approx(0.1 * 0.2, rel=0.15)  # AdamW's size, at lr 0.1


def test_fused_projections_are_orthogonalised_one_by_one() -> None:
    torch.manual_seed(0)
    fused = torch.nn.Parameter(torch.randn(24, 16))
    parts = [torch.nn.Parameter(piece.clone()) for piece in fused.detach().split([16, 4, 4])]
    gradient = torch.randn(24, 16)
    fused.grad = gradient.clone()
    for part, piece in zip(parts, gradient.split([16, 4, 4]), strict=True):
        part.grad = piece.clone()

    muon([fused], [[16, 4, 4]]).step()
    muon(parts, [[16], [4], [4]]).step()
    assert torch.equal(fused.detach(), torch.cat([part.detach() for part in parts]))


def test_only_the_matrices_of_blocks_are_muons() -> None:
    model = Decoder(SHAPE)
    optimizer = make_optimizer(model, SETTINGS)
    assert isinstance(optimizer, Muon)
    names = {parameter: name for name, parameter in model.named_parameters()}
    mine = {names[p] for group in optimizer.own for p in group["params"]}
    assert mine == {n for n, p in model.named_parameters() if n.startswith("layers.") and p.dim() == 2}
    everything = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(everything) == len(set(everything)) == len(list(model.parameters()))


def test_neurons_that_always_move_far_are_held_back() -> None:
    """NorMuon by hand: after two steps each row is divided by its root mean square, the whole keeps its size."""
    torch.manual_seed(0)
    matrix = torch.nn.Parameter(torch.zeros(4, 6))
    made = muon([matrix], [[4]], variance=0.5)
    gradients = [torch.randn(4, 6), torch.randn(4, 6)]
    momentum, mean, expected = torch.zeros(4, 6), None, torch.zeros(4, 6)
    for gradient in gradients:
        matrix.grad = gradient.clone()
        made.step()
        momentum = 0.9 * momentum + 0.1 * gradient
        direction = orthogonalise((0.1 * gradient + 0.9 * momentum)[None])[0].float()
        squares = direction.square().mean(1, keepdim=True)
        mean = squares if mean is None else 0.5 * mean + 0.5 * squares
        scaled = direction / mean.sqrt()
        expected = expected * (1 - 0.1 * 0.1) - 0.1 * 0.2 * 6**0.5 * scaled * direction.norm() / scaled.norm()
    assert torch.allclose(matrix.detach(), expected, atol=1e-3)


def test_cautious_decay_shrinks_only_what_the_update_shrinks() -> None:
    torch.manual_seed(0)
    start, gradient = torch.randn(4, 6), torch.randn(4, 6)
    moved = []
    for cautious in (False, True):
        matrix = torch.nn.Parameter(start.clone())
        matrix.grad = gradient.clone()
        muon([matrix], [[4]], cautious=cautious).step()
        moved.append(matrix.detach())
    towards_zero = (orthogonalise((0.1 * gradient + 0.9 * 0.1 * gradient)[None])[0] * start) > 0
    difference = moved[1] - moved[0]  # what was not decayed
    assert torch.allclose(difference, torch.where(towards_zero, 0, start * 0.1 * 0.1), atol=1e-6)
    assert towards_zero.any()
    assert not towards_zero.all()


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_rates_of_named_parameters(kind: str) -> None:
    """A parameter with the factor zero stays where it is, others move; the first pattern that matches counts."""
    scales = {"layers.0.mlp.*": 1.0, "layers.0.*": 0.0, "embed_*": 0.0}
    model = Decoder(SHAPE)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step(model, make_optimizer(model, OptimizerConfig(kind=kind, lr=1e-2, lr_scales=scales)), 0)
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert still == {n for n in before if n.startswith(("embed_", "layers.0.")) and not n.startswith("layers.0.mlp")}


def test_a_pattern_that_matches_nothing_is_a_mistake() -> None:
    with pytest.raises(UserError, match=r"no parameter is called 'layer\.\*'"):
        make_optimizer(Decoder(SHAPE), OptimizerConfig(lr_scales={"layer.*": 2.0}))


@pytest.mark.parametrize(
    "knobs", [{}, {"muon_variance": 0.95, "cautious_decay": True}, {"kind": "adamw"}, {"kind": "adamw8bit"}]
)
def test_training_continues_to_the_bit_from_a_checkpoint(tmp_path: Path, knobs: dict[str, Any]) -> None:
    torch.manual_seed(0)
    settings = SETTINGS.model_copy(update=knobs)
    model = Decoder(SHAPE)
    optimizer = make_optimizer(model, settings)
    losses = [step(model, optimizer, seed) for seed in range(4)]
    write_checkpoint(tmp_path, Snapshot.of(model, optimizer_state(model, optimizer), {"step": 4}))
    straight = [step(model, optimizer, seed) for seed in range(4, 8)]

    found = find_checkpoint(tmp_path)
    assert found is not None
    again = Decoder(SHAPE)
    again.load_state_dict(found.weights(SHAPE))
    resumed = make_optimizer(again, settings)
    load_optimizer_state(again, resumed, found.optimizer())
    assert [step(again, resumed, seed) for seed in range(4, 8)] == straight
    assert losses[0] > 3.5
