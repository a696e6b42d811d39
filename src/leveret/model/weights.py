"""Weights on disk have transformers' names, unfused; in memory q, k, v and gate, up are fused. One table each family.

    llama   norm rms, no learned positions: LlamaForCausalLM's names; shapes that transformers has no class for
            (parallel blocks, learned positions, other feed-forward layers) keep these names too
    gpt2    learned positions, LayerNorm, GELU, biases: GPT2LMHeadModel's names, its matrices transposed

Rotary weights are written in the half layout, whatever the layout in memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from leveret.model.config import ModelConfig

GPT2_NAMES = [
    (r"embed_tokens\.", "transformer.wte."),
    (r"embed_positions\.", "transformer.wpe."),
    (r"layers\.(\d+)\.input_layernorm\.", r"transformer.h.\1.ln_1."),
    (r"layers\.(\d+)\.post_attention_layernorm\.", r"transformer.h.\1.ln_2."),
    (r"layers\.(\d+)\.self_attn\.qkv_proj\.", r"transformer.h.\1.attn.c_attn."),
    (r"layers\.(\d+)\.self_attn\.o_proj\.", r"transformer.h.\1.attn.c_proj."),
    (r"layers\.(\d+)\.mlp\.up_proj\.", r"transformer.h.\1.mlp.c_fc."),
    (r"layers\.(\d+)\.mlp\.down_proj\.", r"transformer.h.\1.mlp.c_proj."),
    (r"norm\.", "transformer.ln_f."),
]


def family(config: ModelConfig) -> str:
    """Which table of names a shape uses: "gpt2" or "llama"."""
    gpt2 = (
        config.position == "learned"
        and config.norm == "layer"
        and config.mlp == "gelu"
        and config.residual == "sequential"
        and config.attention_bias
        and config.mlp_bias
        and config.kv_heads == config.num_attention_heads
        and not (config.qk_norm or config.value_residual or config.value_embeddings or config.residual_scales)
    )
    return "gpt2" if gpt2 else "llama"


def projection_rows(name: str, rows: int, config: ModelConfig) -> list[int]:
    """The rows of each projection in a matrix in memory: those of q, k, v or gate, up where they are fused."""
    if "qkv_proj" in name:
        return [heads * config.head_width for heads in (config.num_attention_heads, config.kv_heads, config.kv_heads)]
    return [rows // 2] * 2 if "gate_up_proj" in name else [rows]


def to_disk(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """A decoder's state (or anything of its shape, such as an optimizer's moments) under the names on disk."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "lm_head.weight":
            if not config.tie_word_embeddings:
                out[name] = tensor
        elif family(config) == "gpt2":
            out[gpt2_name(name)] = tensor.t() if _transposed(name) else tensor
        elif "qkv_proj" in name:
            for part, piece in zip("qkv", tensor.split(projection_rows(name, len(tensor), config)), strict=True):
                turned = part != "v" and config.rope_layout == "interleaved"
                piece = to_half(piece, config.head_width) if turned else piece
                out["model." + name.replace("qkv_proj", f"{part}_proj")] = piece
        elif "gate_up_proj" in name:
            for part, piece in zip(("gate", "up"), tensor.chunk(2), strict=True):
                out["model." + name.replace("gate_up", part)] = piece
        elif name.endswith(("q_norm.weight", "k_norm.weight")) and config.rope_layout == "interleaved":
            out["model." + name] = to_half(tensor, config.head_width)
        else:
            out["model." + name] = tensor
    return {name: tensor.contiguous() for name, tensor in out.items()}


def from_disk(disk: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The inverse of to_disk. A tied head is put back.

    Raises:
        KeyError: a tensor is missing.
    """
    state: dict[str, Tensor] = {}
    for name in _memory_names(config):
        if name == "lm_head.weight":
            state[name] = state["embed_tokens.weight"] if config.tie_word_embeddings else disk[name]
        elif family(config) == "gpt2":
            tensor = disk[gpt2_name(name)]
            state[name] = tensor.t().contiguous() if _transposed(name) else tensor
        elif "qkv_proj" in name:
            pieces = [disk["model." + name.replace("qkv_proj", f"{part}_proj")] for part in "qkv"]
            if config.rope_layout == "interleaved":
                pieces[:2] = [to_interleaved(p, config.head_width) for p in pieces[:2]]
            state[name] = torch.cat(pieces)
        elif "gate_up_proj" in name:
            state[name] = torch.cat([disk["model." + name.replace("gate_up", part)] for part in ("gate", "up")])
        elif name.endswith(("q_norm.weight", "k_norm.weight")) and config.rope_layout == "interleaved":
            state[name] = to_interleaved(disk["model." + name], config.head_width)
        else:
            state[name] = disk["model." + name]
    return state


def tied(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """A decoder's state whose tied head was left out, with it."""
    return state | ({"lm_head.weight": state["embed_tokens.weight"]} if config.tie_word_embeddings else {})


def _memory_names(config: ModelConfig) -> list[str]:
    from leveret.model.decoder import hollow_decoder

    return list(hollow_decoder(config).state_dict())


def gpt2_name(name: str) -> str:
    for pattern, replacement in GPT2_NAMES:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name, count=1)
    return name


def _transposed(name: str) -> bool:
    """GPT-2's own matrices are stored input-first."""
    return name.endswith("proj.weight")


def to_half(tensor: Tensor, width: int) -> Tensor:
    """Rows of each head from (0, 1), (2, 3), ... pairs to first halves, then second halves."""
    return tensor.view(-1, width // 2, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def to_interleaved(tensor: Tensor, width: int) -> Tensor:
    """The inverse of to_half."""
    return tensor.view(-1, 2, width // 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
