"""Weights of transformers' models give the same logits here, and go to disk and back without losing a bit."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.weights import family, from_disk, to_disk

CLOSE = 1e-4
"""Largest difference of any logit, in fp32. Logits here are of size 1."""


def shape(**knobs: object) -> ModelConfig:
    base = {
        "vocab_size": 61,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 24,
    }
    return ModelConfig.model_validate(base | knobs)


GPT2 = {
    "position": "learned",
    "norm": "layer",
    "norm_eps": 1e-5,
    "mlp": "gelu",
    "attention_bias": True,
    "mlp_bias": True,
}

LLAMAS = {
    "plain": shape(),
    "grouped": shape(num_key_value_heads=2),
    "one key head, untied": shape(num_key_value_heads=1, tie_word_embeddings=False),
    "wide heads": shape(num_key_value_heads=2, head_dim=20, rope_theta=500.0, norm_eps=1e-5),
    "narrow heads": shape(hidden_size=40, num_key_value_heads=1, head_dim=6),
    "biases": shape(num_key_value_heads=2, attention_bias=True, mlp_bias=True),
}

OTHERS = {
    "gpt2": shape(**GPT2),
    "gpt2 untied": shape(**GPT2, tie_word_embeddings=False),
    "shared norm, learned": shape(position="learned", residual="parallel-shared-norm", num_key_value_heads=1),
    "parallel, relu2": shape(mlp="relu2", residual="parallel", norm="layer"),
    "qk_norm": shape(qk_norm=True, num_key_value_heads=2, head_dim=6),
    "no positions": shape(position="none", mlp="gelu", mlp_bias=True),
}


def random_weights(model: torch.nn.Module, seed: int) -> None:
    """Every tensor, biases and norms too, is drawn, so that none can be mistaken for another or left out."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15 + (parameter.dim() == 1))


def llama(config: ModelConfig, kind: type[PreTrainedModel] = LlamaForCausalLM) -> PreTrainedModel:
    """transformers' model of this shape."""
    keys: dict[str, Any] = {
        "vocab_size": config.vocabulary,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    made: PreTrainedModel
    if kind is MistralForCausalLM:
        made = MistralForCausalLM(MistralConfig(**keys, sliding_window=config.sliding_window))
    elif kind is Qwen3ForCausalLM:
        made = Qwen3ForCausalLM(Qwen3Config(**keys))
    else:
        keys |= {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}
        made = LlamaForCausalLM(LlamaConfig(**keys))
    random_weights(made, seed=3)
    made.eval()
    return made


def gpt2(config: ModelConfig) -> PreTrainedModel:
    made = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocabulary,
            n_positions=config.max_position_embeddings,
            n_embd=config.hidden_size,
            n_layer=config.num_hidden_layers,
            n_head=config.num_attention_heads,
            n_inner=config.intermediate_size,
            layer_norm_epsilon=config.norm_eps,
            tie_word_embeddings=config.tie_word_embeddings,
        )
    )
    random_weights(made, seed=4)
    made.eval()
    return made


def differ(theirs: PreTrainedModel, ours: Decoder) -> float:
    """The largest difference of any logit, over two rows as long as the context."""
    config = ours.config
    ids = torch.randint(config.vocabulary, (2, config.max_position_embeddings), generator=torch.Generator())
    with torch.no_grad():
        expected: Tensor = theirs(input_ids=ids).logits
        found = ours(ids)
    assert expected.std() > 0.1, "logits this flat would hide a difference"
    return float((expected - found).abs().max())


def loaded(config: ModelConfig, theirs: PreTrainedModel) -> Decoder:
    ours = Decoder(config).eval()
    ours.load_state_dict(from_disk(theirs.state_dict(), config))
    return ours


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("name", LLAMAS)
def test_logits_of_llama(name: str, layout: str) -> None:
    config = LLAMAS[name].model_copy(update={"rope_layout": layout})
    theirs = llama(config)
    assert differ(theirs, loaded(config, theirs)) < CLOSE


@pytest.mark.parametrize("knobs", [{}, {"tie_word_embeddings": False}, {"num_attention_heads": 8}])
def test_logits_of_gpt2(knobs: dict[str, object]) -> None:
    config = shape(**GPT2, **knobs)
    theirs = gpt2(config)
    assert differ(theirs, loaded(config, theirs)) < CLOSE


def test_sliding_window_is_that_of_mistral() -> None:
    config = shape(num_key_value_heads=2, sliding_window=5)
    theirs = llama(config, MistralForCausalLM)
    assert differ(theirs, loaded(config, theirs)) < CLOSE
    assert differ(theirs, loaded(config.model_copy(update={"sliding_window": 6}), theirs)) > 100 * CLOSE


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_qk_norm_is_that_of_qwen3(layout: str) -> None:
    config = shape(num_key_value_heads=2, head_dim=12, qk_norm=True, rope_layout=layout)
    theirs = llama(config, Qwen3ForCausalLM)
    assert differ(theirs, loaded(config, theirs)) < CLOSE


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_llama_loads_what_we_write(layout: str) -> None:
    config = LLAMAS["biases"].model_copy(update={"rope_layout": layout})
    ours = Decoder(config).eval()
    random_weights(ours, seed=5)
    theirs = llama(config)
    missing, unexpected = theirs.load_state_dict(to_disk(ours.state_dict(), config), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied: the embedding is it
    assert differ(theirs, ours) < CLOSE


def test_gpt2_loads_what_we_write() -> None:
    config = shape(**GPT2)
    ours = Decoder(config).eval()
    random_weights(ours, seed=6)
    theirs = gpt2(config)
    missing, unexpected = theirs.load_state_dict(to_disk(ours.state_dict(), config), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    assert differ(theirs, ours) < CLOSE


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("name", [*LLAMAS, *OTHERS])
def test_disk_and_back_is_exact(name: str, layout: str) -> None:
    config = (LLAMAS | OTHERS)[name].model_copy(update={"rope_layout": layout})
    model = Decoder(config)
    random_weights(model, seed=7)
    state = model.state_dict()
    disk = to_disk(state, config)
    assert not any("qkv" in key or "gate_up" in key for key in disk)
    assert all(tensor.is_contiguous() for tensor in disk.values())
    assert sum(t.numel() for t in disk.values()) == sum(p.numel() for p in model.parameters())
    back = from_disk(disk, config)
    assert list(back) == list(state)
    assert all(torch.equal(back[key], state[key]) for key in state)
    again = to_disk(back, config)
    assert again.keys() == disk.keys()
    assert all(torch.equal(again[key], disk[key]) for key in disk)


def test_families() -> None:
    assert {name for name, config in (LLAMAS | OTHERS).items() if family(config) == "gpt2"} == {"gpt2", "gpt2 untied"}


def test_a_missing_tensor_is_named() -> None:
    config = LLAMAS["plain"]
    disk = to_disk(Decoder(config).state_dict(), config)
    del disk["model.layers.1.self_attn.k_proj.weight"]
    with pytest.raises(KeyError, match=r"layers\.1\.self_attn\.k_proj"):
        from_disk(disk, config)
