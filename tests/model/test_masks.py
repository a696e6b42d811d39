"""Masks of documents and windows: as truth values, as blocks, and where the layers use them."""

import pytest
import torch
from torch import Tensor

from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.layers import attend
from leveret.model.masks import block_mask, causal_mask, training_masks

POSITIONS = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]])
DOCUMENTS = (POSITIONS == 0).cumsum(1)


def shape(**knobs: object) -> ModelConfig:
    base = {"vocab_size": 17, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4}
    return ModelConfig.model_validate(base | {"intermediate_size": 24, "max_position_embeddings": 10} | knobs)


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one document", "documents"])
@pytest.mark.parametrize("window", [None, 3])
def test_blocks_say_what_truth_values_say(window: int | None, documents: Tensor | None) -> None:
    """FlexAttention, forward on a CPU, where it has no backward, with grouped keys."""
    q, k, v = torch.randn(2, 4, 10, 8), torch.randn(2, 2, 10, 8), torch.randn(2, 2, 10, 8)
    with torch.no_grad():
        by_blocks = attend(q, k, v, block_mask(POSITIONS, window, documents))
        by_values = attend(q, k, v, causal_mask(POSITIONS, window, documents))
    assert torch.allclose(by_blocks, by_values, atol=1e-5)


def test_each_kind_of_layer_has_its_mask_and_no_other_is_made() -> None:
    everything, window = training_masks(shape(sliding_window=3, window_pattern="SL"), POSITIONS, DOCUMENTS)
    assert torch.equal(everything, causal_mask(POSITIONS, None, DOCUMENTS))
    assert torch.equal(window, causal_mask(POSITIONS, 3, DOCUMENTS))
    assert training_masks(shape(sliding_window=3), POSITIONS, DOCUMENTS).everything is None
    assert training_masks(shape(), POSITIONS, DOCUMENTS).window is None
    assert training_masks(shape(window_pattern="SL"), POSITIONS, None) == (None, None)


@pytest.mark.parametrize(
    ("pattern", "layers", "expected"),
    [("S", 3, "SSS"), ("SSL", 4, "LSSL"), ("SL", 3, "LSL"), ("LLLLLS", 2, "LS"), ("L", 2, "LL")],
)
def test_the_pattern_ends_with_the_last_layer(pattern: str, layers: int, expected: str) -> None:
    config = shape(num_hidden_layers=layers, sliding_window=2, window_pattern=pattern)
    assert config.windowed == [letter == "S" for letter in expected]


def test_a_window_reaches_as_far_as_its_layers_together() -> None:
    """Two short layers of two tokens see three tokens back in all; a long one among them sees everything."""
    ids = torch.randint(17, (1, 10), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[0, 0] = (changed[0, 0] + 1) % 17
    for pattern, sees in (("S", False), ("SL", True)):
        torch.manual_seed(0)
        model = Decoder(shape(num_hidden_layers=2, sliding_window=2, window_pattern=pattern)).eval()
        with torch.no_grad():
            moved = (model(ids) - model(changed)).abs().amax(-1)[0]
        assert moved[1] > 1e-6
        assert bool(moved[3:].max() > 1e-6) is sees
