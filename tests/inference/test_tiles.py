"""Products by tiles of bfloat16 against float64, and decoders that read with them; elsewhere torch does all."""

import pytest
import torch
from torch import nn

from leveret.evaluation.likelihood import Pair, likelihoods
from leveret.hardware.native import instructions
from leveret.inference.engine import Engine
from leveret.inference.quantize import quantise
from leveret.inference.tiles import NEEDED, TiledLinear, library
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.tokenizer.config import TokenizerConfig
from leveret.tokenizer.train import train_tokenizer

HAS_TILES = instructions() >= NEEDED
TOKENIZER = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=270), ["a leveret sleeps in the grass"])
GROUPS = [[Pair([1, 2, 3], [4, 5]), Pair([1, 2, 3], [4, 6, 7])], [Pair(list(range(30)), list(range(50, 90)))]]


def decoder(**changes: object) -> Decoder:
    torch.manual_seed(0)
    shape = {"vocab_size": 270, "hidden_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4}
    shape |= {"intermediate_size": 70, "max_position_embeddings": 128, "initializer_range": 0.2}
    return Decoder(ModelConfig.model_validate(shape | changes)).eval()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 16, 33, 300])
@pytest.mark.parametrize(("inputs", "outputs"), [(5, 7), (32, 64), (577, 97)])
def test_a_product_is_nearly_that_of_float64_and_a_rows_own(threads: int, rows: int, inputs: int, outputs: int) -> None:
    kernels = library()
    if kernels is None:
        assert not HAS_TILES
        return
    before = torch.get_num_threads()
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs)
    x = torch.randn(rows, inputs)
    try:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            tiles = TiledLinear(kernels, linear)
            found, alone = tiles(x), tiles(x[-1:])
            exact = x.double() @ linear.weight.double().T + linear.bias.double()
    finally:
        torch.set_num_threads(before)
    assert (found - exact).abs().max() <= 1e-5 * exact.abs().max()
    assert torch.equal(found[-1:], alone)


@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": False}, {"mlp": "gelu", "mlp_bias": True, "attention_bias": True}]
)
def test_likelihoods_are_those_of_float32(changes: dict[str, object]) -> None:
    model = decoder(**changes)
    reader = Engine(model, TOKENIZER).reader
    assert (reader is not model) == HAS_TILES
    for ours, plain in zip(likelihoods(reader, GROUPS), likelihoods(model, GROUPS), strict=True):
        for one, other in zip(ours, plain, strict=True):
            assert one.loglikelihood == pytest.approx(other.loglikelihood, abs=1e-3)
            assert one.greedy == other.greedy


def test_other_weights_are_left_to_torch() -> None:
    packed, narrow = quantise(decoder(), "int8"), decoder().bfloat16()
    for model, dtype in ((packed, torch.float32), (narrow, torch.bfloat16), (decoder(), torch.bfloat16)):
        assert Engine(model, TOKENIZER, dtype).reader is model
