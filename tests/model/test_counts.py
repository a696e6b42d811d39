"""The five reference models have the published numbers of parameters, and FLOPs follow their definition."""

import pytest
import torch

from leveret.model.config import ModelConfig
from leveret.model.counts import count_parameters, flops_per_token
from leveret.model.decoder import Decoder

REFERENCE = {
    "parchment-166m": ModelConfig(
        vocab_size=100_277,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=2048,
        max_position_embeddings=1024,
    ),
    "tinyllm-cli-67m": ModelConfig(
        vocab_size=32_000,
        hidden_size=512,
        num_hidden_layers=12,
        num_attention_heads=8,
        intermediate_size=2048,
        max_position_embeddings=512,
        rope_layout="interleaved",
        residual="parallel",
    ),
    "smallm-20m": ModelConfig(
        vocab_size=50_257,
        hidden_size=256,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=64,
        intermediate_size=1024,
        max_position_embeddings=256,
        position="learned",
        residual="parallel-shared-norm",
    ),
    "gpt2-124m": ModelConfig(
        vocab_size=50_257,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        max_position_embeddings=1024,
        position="learned",
        norm="layer",
        norm_eps=1e-5,
        mlp="gelu",
        attention_bias=True,
        mlp_bias=True,
    ),
    "l20-edu-135m": ModelConfig(
        vocab_size=49_152,
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        max_position_embeddings=2048,
    ),
}

TOTALS = {
    "parchment-166m": 161_966_592,
    "tinyllm-cli-67m": 66_728_448,
    "smallm-20m": 20_535_808,
    "gpt2-124m": 124_439_808,
    "l20-edu-135m": 134_515_008,
}

TINY = ModelConfig(
    vocab_size=13,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=10,
    max_position_embeddings=9,
)


def parameters_by_name(config: ModelConfig) -> dict[str, int]:
    """What the modules really hold; a tied head is named once."""
    with torch.device("meta"):
        return {name: parameter.numel() for name, parameter in Decoder(config).named_parameters()}


@pytest.mark.parametrize("name", TOTALS)
def test_reference_models_have_their_published_size(name: str) -> None:
    counted = count_parameters(REFERENCE[name])
    held = parameters_by_name(REFERENCE[name])
    assert counted.total == sum(held.values()) == TOTALS[name]
    assert counted.embedding == sum(number for key, number in held.items() if key.startswith("embed_"))
    assert counted.non_embedding == counted.total - counted.embedding


def test_the_breakdown_of_parchment() -> None:
    held = parameters_by_name(REFERENCE["parchment-166m"])
    attention = sum(number for key, number in held.items() if ".self_attn." in key)
    mlp = sum(number for key, number in held.items() if ".mlp." in key)
    norms = sum(number for key, number in held.items() if "norm" in key)
    assert held["embed_tokens.weight"] == 100_277 * 768 == 77_012_736
    assert attention == 12 * 4 * 768 * 768 == 28_311_552
    assert mlp == 12 * 3 * 768 * 2048 == 56_623_104
    assert norms == 25 * 768 == 19_200
    assert 77_012_736 + 28_311_552 + 56_623_104 + 19_200 == 161_966_592
    counted = count_parameters(REFERENCE["parchment-166m"])
    assert (counted.embedding, counted.non_embedding) == (77_012_736, 84_953_856)


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"tie_word_embeddings": False},
        {"position": "learned"},
        {"position": "none", "norm": "layer"},
        {"num_key_value_heads": 2, "head_dim": 8, "qk_norm": True},
        {"attention_bias": True, "num_key_value_heads": 1},
        {"mlp_bias": True},
        {"mlp_bias": True, "mlp": "relu2"},
        {"mlp": "gelu", "residual": "parallel"},
        {"residual": "parallel-shared-norm", "norm": "layer"},
    ],
    ids=lambda knobs: ",".join(knobs) or "plain",
)
def test_every_knob_is_counted(knobs: dict[str, object]) -> None:
    config = ModelConfig.model_validate(TINY.model_dump() | knobs)
    held = parameters_by_name(config)
    counted = count_parameters(config)
    assert counted.total == sum(held.values())
    assert counted.embedding == sum(number for key, number in held.items() if key.startswith("embed_"))


@pytest.mark.parametrize("window", [None, 1, 5, 16, 40])
def test_flops_per_token_against_a_sum_over_tokens(window: int | None) -> None:
    config = REFERENCE["l20-edu-135m"].model_copy(update={"sliding_window": window})
    length = 16
    held = parameters_by_name(config)
    matrices = sum(number for key, number in held.items() if "norm" not in key)  # the table is the head's matrix
    pairs = sum(min(token + 1, window or length) for token in range(length))  # (token, key) pairs that attend
    products = 2 * config.num_hidden_layers * config.num_attention_heads * config.head_width * pairs
    # A multiplication and an addition in the forward pass, and twice as many in the backward pass.
    assert flops_per_token(config, length) == pytest.approx(6 * (matrices * length + products) / length, abs=1)
