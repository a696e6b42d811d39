"""LoRA (Hu et al., 2021): small matrices beside frozen ones, learnt in their place, and put into them for good.

    y = W x + scale * B (A x)      W [out, in] frozen, A [rank, in], B [out, rank]

Where projections are one matrix in memory each has an A and a B of its own, stacked: A [parts * rank, in], B [the
parts' rows, rank]. On disk adapters have peft's names and its adapter_config.json, so that peft puts them onto
transformers' model of the same weights.

Merging computes W + scale * B A in float64 and rounds once. Taking out again is exact because W was kept, not because
it is subtracted: a float does not remember what was added to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leveret.errors import UserError
from leveret.model.config import LoraConfig, ModelConfig, Projection
from leveret.model.decoder import Decoder, hollow_decoder
from leveret.model.weights import family, gpt2_name, projection_rows, to_half, to_interleaved

MATRICES: dict[str, tuple[Projection, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "o_proj": ("o_proj",),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "up_proj": ("up_proj",),
    "down_proj": ("down_proj",),
}
"""The projections in each matrix in memory."""
ENDS = (".lora_A", ".lora_B")
PREFIX = "base_model.model."
"""What peft puts before transformers' names."""


class Part(NamedTuple):
    """What one adapter is of: some rows of a matrix in memory, a module of transformers' on disk."""

    name: str
    holds: tuple[Projection, ...]
    first: int
    end: int

    @property
    def rotated(self) -> bool:
        """Whether its rows are heads that turn with the position, and so have a layout."""
        return self.holds in (("q_proj",), ("k_proj",))


class LoraLinear(nn.Linear):
    """A linear layer, its weight and bias taken over and frozen, with adapters for some parts of its rows.

    merged: the adapters are in the weight at the moment.
    """

    def __init__(self, base: nn.Linear, parts: list[Part], config: LoraConfig, generator: torch.Generator) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.parts, self.rank, self.scale, self.merged = parts, config.rank, config.scale, False
        bound = base.in_features**-0.5  # A as an nn.Linear begins, B at zero: at first nothing is changed
        a = torch.empty(len(parts) * self.rank, base.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(a.to(base.weight))
        self.lora_B = nn.Parameter(base.weight.new_zeros(sum(self.rows), self.rank))

    @property
    def rows(self) -> list[int]:
        """Of each part."""
        return [part.end - part.first for part in self.parts]

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        y = super().forward(x)
        if self.merged:
            return y
        pieces, at = [], 0
        low = F.linear(x, self.lora_A).split(self.rank, dim=-1)  # of each part [..., rank]
        for part, inner, b in zip(self.parts, low, self.lora_B.split(self.rows), strict=True):
            if part.first > at:
                pieces.append(y.new_zeros(*y.shape[:-1], part.first - at))
            pieces.append(F.linear(inner, b))
            at = part.end
        if at < self.out_features:
            pieces.append(y.new_zeros(*y.shape[:-1], self.out_features - at))
        return y + self.scale * (torch.cat(pieces, dim=-1) if len(pieces) > 1 else pieces[0])


def parts_of(name: str, rows: int, config: ModelConfig) -> list[Part]:
    """What adapters there can be of the matrix of a module, such as layers.0.self_attn.qkv_proj, with so many rows."""
    holds = MATRICES[name.rpartition(".")[2]]
    if family(config) == "gpt2":
        return [Part(gpt2_name(f"{name}.").removesuffix("."), holds, 0, rows)]
    parts, first = [], 0
    for kind, size in zip(holds, projection_rows(name, rows, config), strict=True):
        parts.append(Part(f"model.{name.rpartition('.')[0]}.{kind}", (kind,), first, first + size))
        first += size
    return parts


def adapted(config: ModelConfig, lora: LoraConfig) -> dict[str, tuple[nn.Linear, list[Part]]]:
    """The modules that get adapters, by name, without values, and the parts of each that do.

    Raises:
        UserError: a target is not in this model.
    """
    model = hollow_decoder(config)
    linear = {f"layers.{name}": each for name, each in model.layers.named_modules() if isinstance(each, nn.Linear)}
    every = {n: (m, parts_of(n, m.out_features, config)) for n, m in linear.items() if n.rpartition(".")[2] in MATRICES}
    if lora.targets is None:
        return every
    wanted = set(lora.targets)
    chosen = {n: (m, [part for part in parts if wanted.issuperset(part.holds)]) for n, (m, parts) in every.items()}
    if lost := wanted - {kind for _, parts in chosen.values() for part in parts for kind in part.holds}:
        groups = dict.fromkeys(" + ".join(part.holds) for _, parts in every.values() for part in parts)
        missing = ", ".join(sorted(lost))
        raise UserError(f"lora.targets: {missing} cannot be adapted in this model; there are {', '.join(groups)}")
    return {name: (module, parts) for name, (module, parts) in chosen.items() if parts}


def count_lora(config: ModelConfig, lora: LoraConfig) -> int:
    """Numbers that the adapters have."""
    return sum(
        lora.rank * (module.in_features + part.end - part.first)
        for module, parts in adapted(config, lora).values()
        for part in parts
    )


def add_lora(model: Decoder, lora: LoraConfig, seed: int) -> None:
    """Freezes the model and gives it adapters that change nothing yet.

    Raises:
        UserError: a target is not in this model.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = adapted(model.config, lora)
    model.requires_grad_(False)
    for name, (_, parts) in chosen.items():
        parent, _, child = name.rpartition(".")
        base = model.get_submodule(name)
        assert isinstance(base, nn.Linear)
        setattr(model.get_submodule(parent), child, LoraLinear(base, parts, lora, generator))
    model.lora = lora


def projections(model: nn.Module) -> dict[str, list[int]]:
    """Of each adapter's matrix, by name, the rows of every part in it."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLinear)}
    a = {f"{name}.lora_A": [layer.rank] * len(layer.parts) for name, layer in layers.items()}
    return a | {f"{name}.lora_B": layer.rows for name, layer in layers.items()}


def split_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A decoder's state as (what it was before it got adapters, the adapters)."""
    adapters = {name: tensor for name, tensor in state.items() if name.endswith(ENDS)}
    return {name: tensor for name, tensor in state.items() if name not in adapters}, adapters


def _with_adapters(weight: Tensor, a: Tensor, b: Tensor, parts: list[Part], lora: LoraConfig) -> Tensor:
    """W + scale * B A, computed wide and rounded once, in the dtype of W."""
    wide = torch.float32 if weight.device.type == "mps" else torch.float64
    out = weight.detach().to(wide, copy=True)
    rows = [part.end - part.first for part in parts]
    for part, a_part, b_part in zip(parts, a.detach().split(lora.rank), b.detach().split(rows), strict=True):
        out[part.first : part.end] += lora.scale * (b_part.to(wide) @ a_part.to(wide))
    return out.to(weight.dtype)


def merge(
    weights: Mapping[str, Tensor], adapters: Mapping[str, Tensor], config: ModelConfig, lora: LoraConfig
) -> dict[str, Tensor]:
    """A decoder's state with the adapters in its weights; neither is changed."""
    out = dict(weights)
    for name, (_, parts) in adapted(config, lora).items():
        a, b = (adapters[name + end] for end in ENDS)
        out[f"{name}.weight"] = _with_adapters(weights[f"{name}.weight"], a, b, parts, lora)
    return out


@contextmanager
def merged(model: Decoder) -> Iterator[None]:
    """Inside, the adapters are in the weights, so that they cost nothing; afterwards every bit is as it was.

    What the weights were is kept in the host's memory meanwhile. A model without adapters is left alone.
    """
    lora, layers = model.lora, [module for module in model.modules() if isinstance(module, LoraLinear)]
    kept = [layer.weight.detach().to("cpu", copy=True) for layer in layers]
    try:
        for layer in layers:
            assert lora is not None
            layer.weight.data.copy_(_with_adapters(layer.weight, layer.lora_A, layer.lora_B, layer.parts, lora))
            layer.merged = True
        yield
    finally:
        for layer, weight in zip(layers, kept, strict=True):
            layer.weight.data.copy_(weight)
            layer.merged = False


# -- peft's format ------------------------------------------------------------------------------------------------


def to_peft(adapters: Mapping[str, Tensor], config: ModelConfig, lora: LoraConfig) -> dict[str, Tensor]:
    """Adapters under peft's names, as adapter_model.safetensors has them."""
    out: dict[str, Tensor] = {}
    for name, (_, parts) in adapted(config, lora).items():
        rows = [part.end - part.first for part in parts]
        pairs = adapters[f"{name}.lora_A"].split(lora.rank), adapters[f"{name}.lora_B"].split(rows)
        for part, a, b in zip(parts, *pairs, strict=True):
            turned = part.rotated and config.rope_layout == "interleaved"
            out[f"{PREFIX}{part.name}.lora_A.weight"] = a.contiguous()
            out[f"{PREFIX}{part.name}.lora_B.weight"] = to_half(b, config.head_width) if turned else b.contiguous()
    return out


def from_peft(disk: Mapping[str, Tensor], config: ModelConfig, lora: LoraConfig) -> dict[str, Tensor]:
    """The inverse of to_peft.

    Raises:
        KeyError: a tensor is missing.
    """
    out: dict[str, Tensor] = {}
    for name, (_, parts) in adapted(config, lora).items():
        a, b = ([disk[f"{PREFIX}{part.name}{end}.weight"] for part in parts] for end in ENDS)
        if config.rope_layout == "interleaved":
            b = [to_interleaved(x, config.head_width) if p.rotated else x for x, p in zip(b, parts, strict=True)]
        out |= {f"{name}.lora_A": torch.cat(a), f"{name}.lora_B": torch.cat(b)}
    return out


def peft_config(config: ModelConfig, lora: LoraConfig) -> dict[str, Any]:
    """The content of adapter_config.json."""
    names = {_peft_target(part, config) for _, parts in adapted(config, lora).values() for part in parts}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": family(config) == "gpt2",
        "target_modules": sorted(names),
    }


def lora_of_peft(content: Mapping[str, Any], config: ModelConfig) -> LoraConfig:
    """The inverse of peft_config."""
    every = [part for _, parts in adapted(config, LoraConfig()).values() for part in parts]
    chosen = [part for part in every if _peft_target(part, config) in content["target_modules"]]
    targets = list(dict.fromkeys(kind for part in chosen for kind in part.holds))
    return LoraConfig(rank=content["r"], alpha=content["lora_alpha"], targets=targets)


def _peft_target(part: Part, config: ModelConfig) -> str:
    """How peft finds the module: by the end of its name. GPT-2 calls two modules of a block c_proj."""
    return ".".join(part.name.split(".")[-2 if family(config) == "gpt2" else -1 :])
