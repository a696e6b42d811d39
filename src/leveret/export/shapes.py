"""config.json of a Hugging Face model as the shape of our decoder, or why it cannot be one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from leveret.errors import UserError
from leveret.model.config import ModelConfig

Facts = Mapping[str, Any]

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
LLAMA = (*SIZES, "max_position_embeddings")
NEEDED = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": (*LLAMA, "num_key_value_heads", "sliding_window"),
    "Qwen3ForCausalLM": (*LLAMA, "num_key_value_heads", "head_dim"),
    "GPT2LMHeadModel": ("vocab_size", "n_embd", "n_layer", "n_head", "n_positions"),
}
"""Keys of which transformers' own defaults are of one certain size of model, so that they must be there."""
OURS = {
    "hidden_act": ("silu",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "quantization_config": (None,),
    "auto_map": (None,),
}
"""Keys that change what is computed, and the values with which it is what the decoder computes."""
WHY = {
    "quantization_config": "only weights as they were trained can be gone on with",
    "auto_map": "it runs code of its own, which is not run here",
}
MOST = {"max_position_embeddings": 2**20, "head_width": 2**16, "hidden_size": 2**20, "intermediate_size": 2**24}
"""What no model has more of; tables are made of these sizes before any weight is looked at."""
LAYERS = {"full_attention": "L", "sliding_attention": "S"}


def shape_of(facts: Facts, where: str) -> ModelConfig:
    """The decoder's shape for the content of a config.json.

    Raises:
        UserError: the decoder has no such shape; the key is named.
    """
    named = facts.get("architectures") or ["none"]
    kind = named[0]
    if kind not in NEEDED:
        other = " (it has biases on q, k and v alone)" if kind == "Qwen2ForCausalLM" else ""
        raise UserError(
            f"{where}: architectures {kind}{other} is not one of {', '.join(NEEDED)}, which can be imported"
        )
    for key in NEEDED[kind]:
        if key not in facts:
            raise UserError(f"{where} has no {key}; it is not whole")
    for key, values in OURS.items():
        if (value := facts.get(key, values[0])) not in values:
            why = WHY.get(key, f"the decoder has {' or '.join(map(str, values))}")
            raise UserError(f"{where}: {key} {_short(value)} cannot be imported: {why}")
    keys = _gpt2(facts) if kind == "GPT2LMHeadModel" else _llama(facts, kind, where)
    try:
        config = ModelConfig.model_validate(keys)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the shape"
        raise UserError(f"{where}: {place}: {first['msg'].removeprefix('Value error, ')}") from None
    for key, most in MOST.items():
        if (size := getattr(config, key)) > most:
            raise UserError(f"{where}: {key} {size} is more than {most}, the most that is believed")
    return config


def _llama(facts: Facts, kind: str, where: str) -> dict[str, Any]:
    """Llama, and what differs from it in a window or in norms of queries and keys."""
    return {
        **{key: facts[key] for key in LLAMA},
        **{key: facts.get(key) for key in ("num_key_value_heads", "head_dim")},
        **_window(facts, where),
        "rope_theta": _rope_theta(facts, where),
        "norm_eps": facts.get("rms_norm_eps", 1e-6),
        "qk_norm": kind == "Qwen3ForCausalLM",
        "attention_bias": kind != "MistralForCausalLM" and facts.get("attention_bias", False),
        "mlp_bias": kind == "LlamaForCausalLM" and facts.get("mlp_bias", False),
        "tie_word_embeddings": facts.get("tie_word_embeddings", False),
    }


def _rope_theta(facts: Facts, where: str) -> float:
    """The base of the angles, which newer files have among rope_parameters."""
    rope = facts.get("rope_parameters") or facts.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise UserError(f"{where}: rope_parameters {_short(rope)} is no mapping")
    if (kind := rope.get("rope_type", rope.get("type", "default"))) != "default":
        raise UserError(f"{where}: rope scaling of type {_short(kind)} cannot be imported: the decoder has none")
    for place in (facts, rope):
        if (share := place.get("partial_rotary_factor", 1.0)) != 1.0:
            raise UserError(f"{where}: partial_rotary_factor {_short(share)} cannot be imported: all dimensions turn")
    return rope.get("rope_theta", facts.get("rope_theta", 10_000.0))  # type: ignore[no-any-return]


def _window(facts: Facts, where: str) -> dict[str, Any]:
    """The sliding window, and which layers have it."""
    kinds, size = facts.get("layer_types"), facts.get("sliding_window")
    if kinds is None:
        return {"sliding_window": size if facts.get("use_sliding_window", True) else None}
    if len(kinds) != facts["num_hidden_layers"] or not set(kinds) <= LAYERS.keys():
        raise UserError(f"{where}: layer_types {_short(kinds)} cannot be imported: they must be {', '.join(LAYERS)}")
    if "sliding_attention" not in kinds:
        return {}
    return {"sliding_window": size, "window_pattern": "".join(LAYERS[kind] for kind in kinds)}


def _gpt2(facts: Facts) -> dict[str, Any]:
    width = facts["n_embd"]
    return {
        "vocab_size": facts["vocab_size"],
        "hidden_size": width,
        "num_hidden_layers": facts["n_layer"],
        "num_attention_heads": facts["n_head"],
        "intermediate_size": facts.get("n_inner") or 4 * width,
        "max_position_embeddings": facts["n_positions"],
        "position": "learned",
        "norm": "layer",
        "norm_eps": facts.get("layer_norm_epsilon", 1e-5),
        "mlp": "gelu",
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": facts.get("tie_word_embeddings", True),
    }


def _short(value: Any) -> str:
    return str(value)[:80]
