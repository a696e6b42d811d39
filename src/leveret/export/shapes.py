"""config.json of a Hugging Face model as the shape of our decoder, and the shape as a config.json; or why not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from leveret.errors import UserError
from leveret.model.config import ModelConfig
from leveret.model.weights import family

Facts = Mapping[str, Any]

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
LLAMA = (*SIZES, "max_position_embeddings")
WINDOW = "sliding_window"
NEEDED = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": (*LLAMA, "num_key_value_heads", WINDOW),
    "Qwen3ForCausalLM": (*LLAMA, "num_key_value_heads", "head_dim"),
    "GPT2LMHeadModel": ("vocab_size", "n_embd", "n_layer", "n_head", "n_positions"),
    "LeveretForCausalLM": LLAMA,
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
MOST = {
    "vocabulary": 2**24,
    "hidden_size": 2**20,
    "intermediate_size": 2**24,
    "num_hidden_layers": 2**16,
    "num_attention_heads": 2**16,
    "head_width": 2**16,
    "max_position_embeddings": 2**20,
}
"""What no model has more of; tables are made of these sizes before any weight is looked at."""
OWN = "LeveretForCausalLM"
"""The class in modeling_leveret.py, which has every knob of the decoder."""
LAYERS = {"full_attention": "L", "sliding_attention": "S"}
STAGE = "leveret_stage"
"""The key by which a config.json of ours says what was done last to the model; transformers lets it be."""


def shape_of(facts: Facts, where: str) -> ModelConfig:
    """The decoder's shape for the content of a config.json.

    Raises:
        UserError: the decoder has no such shape; the key is named.
    """
    named = facts.get("architectures")
    kind = named[0] if isinstance(named, list) and named else named
    if not isinstance(kind, str) or kind not in NEEDED:
        other = " (it has biases on q, k and v alone)" if kind == "Qwen2ForCausalLM" else ""
        raise UserError(
            f"{where}: architectures {_short(kind)}{other} is not one of {', '.join(NEEDED)}, which can be imported"
        )
    for key in NEEDED[kind]:
        if key not in facts or (facts[key] is None and key != WINDOW):
            raise UserError(f"{where} has no {key}; it is not whole")
    for key, values in OURS.items():
        own = key == "auto_map" and kind == OWN  # a file of ours, which is not needed here
        if (value := facts.get(key, values[0])) not in values and not own:
            why = WHY.get(key, f"the decoder has {' or '.join(map(str, values))}")
            raise UserError(f"{where}: {key} {_short(value)} cannot be imported: {why}")
    keys = _gpt2(facts) if kind == "GPT2LMHeadModel" else _own(facts) if kind == OWN else _llama(facts, kind, where)
    config = _checked(keys, where)
    for key, most in MOST.items():
        if (size := getattr(config, key)) > most:
            raise UserError(f"{where}: {key} {size} is more than {most}, the most that is believed")
    if kind == "Qwen3ForCausalLM":
        config = _checked(keys | _windows(facts, config.num_hidden_layers, where), where)
    return config


def _checked(keys: Facts, where: str) -> ModelConfig:
    try:
        return ModelConfig.model_validate(keys)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the shape"
        raise UserError(f"{where}: {place}: {first['msg'].removeprefix('Value error, ')}") from None


def _llama(facts: Facts, kind: str, where: str) -> dict[str, Any]:
    """Llama, and what differs from it in a window or in norms of queries and keys. Llama itself has no window, whatever
    its file says."""
    return {
        **{key: facts[key] for key in LLAMA},
        **{key: facts.get(key) for key in ("num_key_value_heads", "head_dim")},
        "sliding_window": facts[WINDOW] if kind == "MistralForCausalLM" else None,
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


def _windows(facts: Facts, layers: int, where: str) -> dict[str, Any]:
    """Qwen3's window, and which layers have it: those of layer_types, else all from max_window_layers on; none unless
    use_sliding_window says so."""
    kinds, first = facts.get("layer_types"), facts.get("max_window_layers", 28)
    if kinds is None:
        if type(first) is not int or first < 0:
            raise UserError(f"{where}: max_window_layers {_short(first)} is no number of layers")
        kinds = ["full_attention"] * min(first, layers) + ["sliding_attention"] * max(0, layers - first)
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in LAYERS for kind in map(str, kinds)):
        raise UserError(f"{where}: layer_types {_short(kinds)} cannot be imported: they must be {', '.join(LAYERS)}")
    if "sliding_attention" not in kinds or not facts.get("use_sliding_window"):
        return {}
    return {"sliding_window": facts.get(WINDOW, 4096), "window_pattern": "".join(LAYERS[kind] for kind in kinds)}


def _gpt2(facts: Facts) -> dict[str, Any]:
    width = facts["n_embd"]
    inner = facts.get("n_inner") or (4 * width if type(width) is int else width)
    return {
        "vocab_size": facts["vocab_size"],
        "hidden_size": width,
        "num_hidden_layers": facts["n_layer"],
        "num_attention_heads": facts["n_head"],
        "intermediate_size": inner,
        "max_position_embeddings": facts["n_positions"],
        "position": "learned",
        "norm": "layer",
        "norm_eps": facts.get("layer_norm_epsilon", 1e-5),
        "mlp": "gelu",
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": facts.get("tie_word_embeddings", True),
    }


def _own(facts: Facts) -> dict[str, Any]:
    """The knobs of a shape that `_facts_of_ours` wrote; what transformers adds to a config.json is passed over.

    On disk weights are in the half layout, whatever they were trained in.
    """
    return {key: facts[key] for key in ModelConfig.model_fields if key in facts} | {"rope_layout": "half"}


def _short(value: Any) -> str:
    return str(value)[:80]


# -- the way back -------------------------------------------------------------------------------------------------

PLAIN = {
    "rope_fraction": 1.0,
    "logit_softcap": None,
    "value_residual": False,
    "value_embeddings": False,
    "residual_scales": False,
}
"""Knobs that no class of transformers' has, and the values with which they change nothing."""
OF_LLAMA = {"position": "rope", "norm": "rms", "mlp": "swiglu", "residual": "sequential"}


def facts_of(config: ModelConfig) -> dict[str, Any]:
    """The content of config.json for a shape: of the class of transformers' that computes the same.

    Raises:
        NoClass: there is none; the knob is named.
    """
    if family(config) == "gpt2":
        _only(config, PLAIN | {"sliding_window": None})
        if config.head_width * config.num_attention_heads != config.hidden_size:
            raise NoClass("head_dim", config.head_dim)
        return {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"} | _of_gpt2(config)
    _only(config, PLAIN | OF_LLAMA)
    kind = "qwen3" if config.qk_norm else "llama" if config.sliding_window is None else "mistral"
    if kind != "llama":
        _only(config, {"mlp_bias": False})
    if kind == "mistral":
        _only(config, {"attention_bias": False})
        if not all(config.windowed):
            raise NoClass("window_pattern", config.window_pattern)
    names = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen3": "Qwen3ForCausalLM"}
    return {"architectures": [names[kind]], "model_type": kind} | _of_llama(config, kind)


def facts_for_transformers(config: ModelConfig) -> dict[str, Any]:
    """The content of config.json for any shape: of transformers' own class if it has one, of ours if not."""
    try:
        return facts_of(config)
    except NoClass:
        return _facts_of_ours(config)


def _facts_of_ours(config: ModelConfig) -> dict[str, Any]:
    """The content of config.json for any shape, of the class that goes along in modeling_leveret.py."""
    names = {True: "sliding_attention", False: "full_attention"}
    left = {"rope_layout", "initializer_range", "residual_init"}  # of training; weights on disk are in the half layout
    return {
        "architectures": [OWN],
        "model_type": "leveret",
        "auto_map": {"AutoConfig": "modeling_leveret.LeveretConfig", "AutoModelForCausalLM": f"modeling_leveret.{OWN}"},
        **config.model_dump(mode="json", exclude=left),
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "gate_channels": config.gate_channels,
        "layer_types": [names[windowed] for windowed in config.windowed],
    }


def _of_llama(config: ModelConfig, kind: str) -> dict[str, Any]:
    facts = {key: getattr(config, key) for key in LLAMA} | {
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    if kind != "mistral":
        facts["attention_bias"] = config.attention_bias
    if kind == "llama":
        facts["mlp_bias"] = config.mlp_bias
    else:
        facts["sliding_window"] = config.sliding_window
    if kind == "qwen3":
        names = {True: "sliding_attention", False: "full_attention"}
        facts |= {
            "use_sliding_window": config.sliding_window is not None,
            "layer_types": [names[windowed] for windowed in config.windowed],
        }
    return facts


def _of_gpt2(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocabulary,
        "n_embd": config.hidden_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "n_positions": config.max_position_embeddings,
        "n_inner": config.intermediate_size,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
    } | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)


class NoClass(UserError):
    """A knob, and its value, that no class of transformers' has."""

    def __init__(self, knob: str, value: Any) -> None:
        super().__init__(
            f"transformers has no class for a model with {knob}: {value}; it has some for Llama-, Mistral-, Qwen3- and "
            "GPT-2-shaped models"
        )
        self.knob, self.value = knob, value


def _only(config: ModelConfig, values: Mapping[str, Any]) -> None:
    for knob, value in values.items():
        if (given := getattr(config, knob)) != value:
            raise NoClass(knob, given)
