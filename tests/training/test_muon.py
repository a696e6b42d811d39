"""Muon: orthogonal updates, fused projections taken apart, state that survives a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.training.checkpoint import find_checkpoint, save_checkpoint
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


def muon(matrices: list[torch.nn.Parameter], rows: list[list[int]]) -> Muon:
    other = torch.nn.Parameter(torch.zeros(1))
    made = Muon(matrices, rows, torch.optim.AdamW([other]), lr_scale=1.0, momentum=0.9, weight_decay=0.1)
    made.matrices["lr"] = 0.1
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
    mine = {names[p] for p in optimizer.matrices["params"]}
    assert mine == {n for n, p in model.named_parameters() if n.startswith("layers.") and p.dim() == 2}
    everything = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(everything) == len(set(everything)) == len(list(model.parameters()))


def test_training_continues_to_the_bit_from_a_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Decoder(SHAPE)
    optimizer = make_optimizer(model, SETTINGS)
    losses = [step(model, optimizer, seed) for seed in range(4)]
    save_checkpoint(tmp_path, model, optimizer_state(model, optimizer), {"step": 4})
    straight = [step(model, optimizer, seed) for seed in range(4, 8)]

    found = find_checkpoint(tmp_path)
    assert found is not None
    again = Decoder(SHAPE)
    again.load_state_dict(found.weights(SHAPE))
    resumed = make_optimizer(again, SETTINGS)
    load_optimizer_state(again, resumed, found.optimizer())
    assert [step(again, resumed, seed) for seed in range(4, 8)] == straight
    assert losses[0] > 3.5
