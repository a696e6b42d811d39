"""Weights of 8 or 4 bits: the same decoder with its matrices packed, so that fewer bytes are read for each token.

    int8    a weight is a whole number times its row's scale
    int4    a weight is a whole number from -8 to 7 times the scale of its group of 32; two to a byte. The embedding
            and the head, where rounding costs most, are int8

Only weights are rounded; what they are multiplied with stays as it is.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load, save_file
from torch import Tensor, nn

from leveret.errors import UserError
from leveret.inference.kernels import GROUP, library, matrix, product
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder, hollow_decoder
from leveret.strangers.documents import read_json
from leveret.strangers.tensors import checked_tensors

FORMAT_VERSION = 1
WEIGHTS, FACTS = "weights.safetensors", "quantised.json"
EMBEDDING = ("embed_tokens.weight", "embed_tokens.scale")
Quantisation = Literal["int8", "int4"]
FEW = 32
"""Most inputs that are multiplied with packed weights on a CPU; for more of them they are unpacked once."""


def pack_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers [rows, columns] and scales [rows] of a matrix: each row's largest weight becomes 127."""
    scale = weight.float().abs().amax(dim=1).clamp(min=1e-30) / 127
    return (weight.float() / scale[:, None]).round().to(torch.int8), scale


def pack_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes [rows, groups * 16] and scales [rows, groups] of a matrix.

    The weight farthest from zero becomes -8 or, with a slightly larger scale, -7 or 7; of several such scales each
    group takes the one with the least squared error. Byte j of a group holds weights j (low half) and j + 16, each
    plus 8.
    """
    rows, columns = weight.shape
    groups = F.pad(weight.float(), (0, -columns % GROUP)).view(rows, -1, GROUP)
    farthest = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))
    best = torch.full_like(farthest, torch.inf)
    scale, whole = torch.zeros_like(farthest), torch.zeros_like(groups)
    for divisor in (-8.5, -8.0, -7.5, -7.0, 7.0):
        tried = torch.where(farthest == 0, 1.0, farthest / divisor)
        rounded = (groups / tried).round().clamp(-8, 7)
        error = (rounded * tried - groups).square().sum(dim=2, keepdim=True)
        better = error < best
        best, scale = torch.where(better, error, best), torch.where(better, tried, scale)
        whole = torch.where(better, rounded, whole)
    low, high = (whole + 8).to(torch.uint8).chunk(2, dim=2)
    return (low | high << 4).view(rows, -1), scale[..., 0].contiguous()


def unpack(weight: Tensor, scale: Tensor, columns: int) -> Tensor:
    """The matrix [rows, columns] in float32."""
    if weight.dtype is torch.int8:
        return weight * scale[:, None]
    pairs = weight.view(len(weight), -1, GROUP // 2)
    whole = torch.cat((pairs & 15, pairs >> 4), dim=2).float() - 8
    return (whole * scale[..., None]).flatten(1)[:, :columns]


class Quantised(nn.Module):
    """A packed matrix [rows, columns]; dtype is that of what it gives."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, columns: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.columns, self.dtype = columns, dtype


class QuantisedLinear(Quantised):
    """In place of nn.Linear."""

    def __init__(self, weight: Tensor, scale: Tensor, columns: int, dtype: torch.dtype, bias: Tensor | None) -> None:
        super().__init__(weight, scale, columns, dtype)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        few = x.numel() <= FEW * self.columns
        if few and x.device.type == "cpu" and (kernels := library()) is not None:
            rows = matrix(self.weight, self.scale, None, self.columns)
            y = product(kernels, rows, x.reshape(-1, self.columns)).view(*x.shape[:-1], -1).to(x.dtype)
            return y if self.bias is None else y + self.bias
        return F.linear(x, unpack(self.weight, self.scale, self.columns).to(x.dtype), self.bias)


class QuantisedEmbedding(Quantised):
    """In place of nn.Embedding."""

    def forward(self, ids: Tensor) -> Tensor:
        flat = ids.flatten()
        return unpack(self.weight[flat], self.scale[flat], self.columns).to(self.dtype).view(*ids.shape, -1)


def quantise(model: Decoder, bits: Quantisation) -> Decoder:
    """Packs the decoder's matrices and tables, in place; norms, biases and learned positions stay. Returns it.

    Raises:
        UserError: a weight is not finite.
    """
    done: dict[int, tuple[Tensor, Tensor]] = {}  # tied weights are packed once
    for name, module in list(model.named_modules()):
        if type(module) not in (nn.Linear, nn.Embedding) or name == "embed_positions" or "value_gate" in name:
            continue
        weight = module.weight.detach()
        if weight.data_ptr() not in done:
            if not weight.isfinite().all():
                raise UserError(f"{name} has weights that are not finite, which cannot be quantised")
            wide = bits == "int8" or len(weight) == model.config.vocabulary
            done[weight.data_ptr()] = pack_int8(weight) if wide else pack_int4(weight)
        _replace(model, name, *done[weight.data_ptr()], weight.dtype)
    return model


def _replace(model: Decoder, name: str, weight: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
    parent, _, last = name.rpartition(".")
    old: Any = model.get_submodule(name)
    if isinstance(old, nn.Embedding):
        new: Quantised = QuantisedEmbedding(weight, scale, old.embedding_dim, dtype)
    else:
        new = QuantisedLinear(weight, scale, old.in_features, dtype, old.bias)
    setattr(model.get_submodule(parent), last, new)


def rounded(model: Decoder) -> Decoder:
    """A plain decoder with the weights that a quantised one stands for, for what reads weights themselves."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(".scale")}
    for name, module in model.named_modules():
        if isinstance(module, Quantised):
            state[f"{name}.weight"] = unpack(module.weight, module.scale, module.columns).to(module.dtype)
    plain = hollow_decoder(model.config)
    plain.load_state_dict(state, assign=True)
    return plain.eval()


def quantised_folder(stage: Path, bits: str, step: int) -> Path:
    """Where the quantised form of a stage's checkpoint lies."""
    return stage / "quantised" / f"{bits}-step-{step}"


def write_quantised(folder: Path, model: Decoder, facts: dict[str, Any]) -> int:
    """Writes a quantised decoder and what is to be known of it into a new folder. Returns the bytes of its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    first: dict[int, str] = {}  # a tied head is left out
    state = {k: v.contiguous() for k, v in model.state_dict().items() if first.setdefault(v.data_ptr(), k) == k}
    save_file(state, folder / WEIGHTS)
    digest = sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    known = {"format_version": FORMAT_VERSION, **facts, "sha256": digest}
    (folder / FACTS).write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    return (folder / WEIGHTS).stat().st_size


def read_quantised(folder: Path, config: ModelConfig, source: str) -> Decoder | None:
    """The quantised decoder of a folder, if it is there, whole, and was made of weights of this hash."""
    try:
        facts = read_json(folder / FACTS)
        raw = checked_tensors(folder / WEIGHTS).read_bytes()
    except (OSError, ValueError):
        return None
    made = (facts.get("format_version"), facts.get("source_sha256"), facts.get("sha256"))
    if made != (FORMAT_VERSION, source, sha256(raw).hexdigest()):
        return None
    model, state = hollow_decoder(config), load(raw)
    if config.tie_word_embeddings:
        state |= {name.replace("embed_tokens", "lm_head"): state[name] for name in EMBEDDING if name in state}
    for name in [name.removesuffix(".scale") for name in state if name.endswith(".scale")]:
        _replace(model, name, state[f"{name}.weight"], state[f"{name}.scale"], torch.float32)
    model.load_state_dict(state, assign=True)
    return model
