"""Packed weights: what rounding costs, what is kept, and what is written."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from leveret.errors import UserError
from leveret.inference.cache import KeyValueCache
from leveret.inference.quantize import (
    Quantisation,
    pack_int4,
    pack_int8,
    quantise,
    read_quantised,
    rounded,
    unpack,
    write_quantised,
)
from leveret.inference.runner import Runner
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder


def decoder(**knobs: Any) -> Decoder:
    base = {
        "vocab_size": 199,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 100,
        "max_position_embeddings": 32,
        "initializer_range": 0.1,
    }
    torch.manual_seed(0)
    return Decoder(ModelConfig.model_validate(base | knobs)).eval()


def logits(model: Decoder) -> torch.Tensor:
    """Of 20 tokens, by torch or the kernels as the runner pleases."""
    ids = torch.arange(20)[None] * 7 % 199
    cache = KeyValueCache(model.config, 1, 32, torch.device("cpu"), torch.float32).part(0, [0])
    return Runner(model, torch.float32).forward(ids, [20], cache, every=True)[0]


@pytest.mark.parametrize("columns", [1, 31, 32, 70])
def test_int8_is_off_by_half_a_step_at_most(columns: int) -> None:
    weight = torch.randn(13, columns)
    whole, scale = pack_int8(weight)
    assert whole.dtype is torch.int8
    assert ((unpack(whole, scale, columns) - weight).abs() <= 0.5001 * scale[:, None]).all()
    assert torch.equal(scale, weight.abs().amax(1) / 127)


@pytest.mark.parametrize("columns", [1, 31, 32, 70])
def test_int4_has_no_more_error_than_the_plain_scale(columns: int) -> None:
    """Which is the largest weight over 7, with rounding to the nearest whole number."""
    weight = torch.randn(13, columns)
    packed = pack_int4(weight)
    assert packed[0].shape == (13, -(-columns // 32) * 16)
    for begin in range(0, columns, 32):
        group = weight[:, begin : begin + 32]
        scale = group.abs().amax(1, keepdim=True) / 7
        plain = ((group / scale).round() * scale - group).square().sum()
        assert (unpack(*packed, columns)[:, begin : begin + 32] - group).square().sum() <= 1.0001 * plain


@pytest.mark.parametrize("pack", [pack_int8, pack_int4])
def test_zeros_and_what_is_tiny_or_huge_are_packed(pack: Any) -> None:
    weight = torch.zeros(4, 40)
    weight[1], weight[2] = 1e-12, 1e30
    found = unpack(*pack(weight), 40)
    torch.testing.assert_close(found, weight, rtol=1e-6, atol=1e-20)


@pytest.mark.parametrize(("bits", "most"), [("int8", 0.03), ("int4", 0.4)])
@pytest.mark.parametrize("tied", [True, False])
def test_a_quantised_decoder_says_nearly_the_same(bits: Quantisation, most: float, tied: bool) -> None:
    before = logits(decoder(tie_word_embeddings=tied))
    model = quantise(decoder(tie_word_embeddings=tied), bits)
    after = logits(model)
    assert 0 < (after - before).norm() / before.norm() < most
    torch.testing.assert_close(logits(rounded(model)), after, atol=2e-5, rtol=1e-5)
    assert (model.embed_tokens.weight.data_ptr() == model.lm_head.weight.data_ptr()) is tied
    assert not any(type(module) is nn.Linear for module in model.modules())


@pytest.mark.parametrize("knob", ["value_embeddings", "value_residual", "residual_scales"])
def test_what_the_kernels_do_not_know_is_quantised_too(knob: str) -> None:
    before = logits(decoder(**{knob: True}))
    assert (logits(quantise(decoder(**{knob: True}), "int8")) - before).norm() < 0.05 * before.norm()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    model = decoder()
    with torch.no_grad():
        model.layers[1].mlp.down_proj.weight[3, 5] = value  # type: ignore[union-attr, index]
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.down_proj"):
        quantise(model, "int8")


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("knobs", [{}, {"tie_word_embeddings": False, "attention_bias": True, "norm": "layer"}])
def test_what_is_written_comes_back(bits: Quantisation, knobs: dict[str, Any], tmp_path: Path) -> None:
    model = quantise(decoder(**knobs), bits)
    write_quantised(tmp_path / "q", model, {"source_sha256": "abc"})
    found = read_quantised(tmp_path / "q", model.config, "abc")
    assert found is not None
    assert torch.equal(logits(found), logits(model))
    assert read_quantised(tmp_path / "q", model.config, "another") is None
    assert read_quantised(tmp_path / "none", model.config, "abc") is None
    weights = tmp_path / "q" / "weights.safetensors"
    spoilt = bytearray(weights.read_bytes())
    spoilt[-3] ^= 1
    weights.write_bytes(spoilt)
    assert read_quantised(tmp_path / "q", model.config, "abc") is None
