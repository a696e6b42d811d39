"""Estimates of memory against what autograd really keeps, and the rows that fit."""

from typing import Any

import pytest
import torch
from torch import Tensor

from leveret.model.config import ModelConfig
from leveret.model.counts import count_parameters
from leveret.model.decoder import Decoder
from leveret.training.config import OptimizerConfig, TrainingConfig
from leveret.training.memory import activation_bytes, cuts, fitting_rows, optimizer_bytes, training_memory
from leveret.training.optimizer import make_optimizer, optimizer_state

CPU = torch.device("cpu")
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "gpt2": {"position": "learned", "norm": "layer", "mlp": "gelu"},
    "palm": {"position": "learned", "residual": "parallel-shared-norm", "num_key_value_heads": 1},
    "relu2": {"norm": "layer", "mlp": "relu2"},
}


def shape(layers: int = 2, **knobs: Any) -> ModelConfig:
    base = {
        "vocab_size": 50,
        "hidden_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 192,
        "max_position_embeddings": 768,
    }
    return ModelConfig.model_validate(base | knobs)


def kept_by_a_layer(config: ModelConfig, length: int, dtype: torch.dtype, recompute: Any) -> float:
    """Bytes of a token that autograd holds for one layer's backward pass, but for weights and their copies."""
    held = []
    for layers in (1, 3):
        model = Decoder(config.model_copy(update={"num_hidden_layers": layers})).train()
        model.gradient_checkpointing = recompute
        shapes = {tuple(p.shape) for p in model.parameters()} | {tuple(p.shape[::-1]) for p in model.parameters()}
        storages: dict[int, int] = {}
        kept: list[Tensor] = []  # so that no address is used twice

        def note(tensor: Tensor, shapes: Any = shapes, storages: Any = storages, kept: Any = kept) -> Tensor:
            if tuple(tensor.shape) not in shapes:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                kept.append(tensor)
            return tensor

        ids = torch.zeros((2, length), dtype=torch.int64)
        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast("cpu", dtype, enabled=dtype is not torch.float32),
        ):
            model.hidden(ids)
        held.append(sum(storages.values()))
    return (held[1] - held[0]) / 2 / (2 * length)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
    ("length", "dtype"), [(100, torch.bfloat16), (600, torch.bfloat16), (100, torch.float32)], ids=str
)
def test_activations_are_what_autograd_keeps(name: str, length: int, dtype: torch.dtype) -> None:
    config = shape(**SHAPES[name])
    for recompute in ("none", "full"):
        expected = kept_by_a_layer(config, length, dtype, recompute)
        assert 0.85 * expected <= activation_bytes(config, length, dtype, CPU, recompute) <= 1.25 * expected


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_optimizer_is_what_its_state_takes(kind: str) -> None:
    config, settings = shape(), OptimizerConfig.model_validate({"kind": kind})
    model = Decoder(config)
    model(torch.zeros((1, 4), dtype=torch.int64)).sum().backward()
    optimizer = make_optimizer(model, settings)
    optimizer.step()
    state = optimizer_state(model, optimizer)
    held = sum(tensor.numel() * tensor.element_size() for name, tensor in state.items() if not name.endswith("/step"))
    assert optimizer_bytes(config, TrainingConfig(steps=1, optimizer=settings)) == pytest.approx(held, rel=0.01)
    assert optimizer_bytes(config, TrainingConfig(steps=1)) == 8 * count_parameters(config).total


def memory(rows: int, **changes: Any) -> dict[str, int]:
    training = TrainingConfig.model_validate({"steps": 1} | changes)
    return training_memory(shape(12, vocab_size=50_000), training, 600, rows, torch.bfloat16, CPU)


def test_what_takes_less_is_estimated_at_less() -> None:
    plain = memory(16)
    assert sum(size for part, size in plain.items() if part != "total") == plain["total"]
    sizes = [memory(16, gradient_checkpointing=kind)["total"] for kind in ("none", "selective", "full")]
    assert sizes == sorted(sizes, reverse=True)
    assert memory(16)["activations"] == 16 * memory(1)["activations"]
    assert memory(16)["logits"] < 3 * memory(1)["logits"], "a chunk of logits at a time"
    optimizers = [memory(1, optimizer={"kind": kind})["optimizer"] for kind in ("adamw", "muon", "adamw8bit")]
    assert optimizers == sorted(optimizers, reverse=True)


def test_cuts_are_even_and_end_with_single_rows() -> None:
    assert list(cuts(16)) == [16, 8, 4, 2, 1]
    assert list(cuts(20)) == [20, 10, 5, 3, 2, 1]
    assert list(cuts(1)) == [1]


def test_the_largest_cut_that_fits() -> None:
    needed = {16: 1600, 8: 800, 4: 400, 2: 200, 1: 100}.__getitem__
    assert fitting_rows(16, needed, 10_000) == 16, "never more than the batch"
    assert fitting_rows(16, needed, 1600) == 8, "with something to spare"
    assert fitting_rows(16, needed, 400) == 2
    assert fitting_rows(16, needed, 10) == 1, "the least there is, and then it is seen"
    assert fitting_rows(16, needed, None) == 16
