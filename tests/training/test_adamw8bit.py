"""AdamW with moments of eight bits: close to AdamW, small, and exact across a checkpoint (in test_muon.py)."""

import torch

from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.training.config import OptimizerConfig
from leveret.training.optimizer import make_optimizer, optimizer_state

SHAPE = ModelConfig(
    vocab_size=300,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
    max_position_embeddings=32,
)


def trained(kind: str, steps: int) -> tuple[list[float], int]:
    """Losses of learning rows by heart, and the bytes of the optimizer's state."""
    torch.manual_seed(0)
    model = Decoder(SHAPE)
    optimizer = make_optimizer(model, OptimizerConfig(kind=kind, lr=3e-3))
    ids = torch.randint(0, 300, (4, 32))
    losses = []
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses, sum(t.numel() * t.element_size() for t in optimizer_state(model, optimizer).values())


def test_it_learns_as_adamw_does_in_a_quarter_of_the_memory() -> None:
    exact, large = trained("adamw", 60)
    rough, small = trained("adamw8bit", 60)
    assert exact[-1] < 0.5 < 5 < exact[0]
    for step in (1, 5, 10, 20):
        assert abs(rough[step] - exact[step]) < 0.05 * exact[step]
    assert rough[-1] < 0.5
    assert small < 0.3 * large


def test_the_first_step_is_adamws() -> None:
    """Before anything has been kept in eight bits there is no difference."""
    exact, rough = trained("adamw", 2)[0], trained("adamw8bit", 2)[0]
    assert abs(exact[1] - rough[1]) < 1e-5
