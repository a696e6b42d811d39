"""Small decoders whose answers wander, and the plain loop that every way of decoding must agree with."""

from typing import Any

import torch

from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder

CONTEXT = 16
LONG = 64
"""A context that no test fills unless it means to."""
SHAPES: dict[str, dict[str, Any]] = {
    "rope": {"num_key_value_heads": 1, "rope_layout": "interleaved"},
    "learned": {"position": "learned", "norm": "layer", "mlp": "gelu"},
    "sliding window": {"sliding_window": 5, "qk_norm": True},
    "values": {"value_embeddings": True, "value_residual": True, "residual_scales": True},
}


def decoder(context: int = LONG, seed: int = 0, vocab_size: int = 257, **knobs: Any) -> Decoder:
    """A tiny decoder with weights large enough that its answers wander."""
    base = {
        "vocab_size": vocab_size,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
    }
    model = Decoder(ModelConfig.model_validate(base | knobs)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            level = parameter.dim() == 1 and not name.endswith("bias")
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5 + level)
    return model


@torch.no_grad()
def plainly(model: Decoder, prompt: list[int], tokens: int) -> list[int]:
    """Greedy tokens without cache, stop or batch. Past the context only the newest three quarters of it are read,
    and the window grows again from there."""
    context = model.config.max_position_embeddings
    window, said = list(prompt), []
    for _ in range(tokens):
        if len(window) > context:
            window = window[-(context - context // 4) :]
        token = int(model(torch.tensor([window]))[0, -1].argmax())
        window.append(token)
        said.append(token)
    return said


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(9)
    return [torch.randint(1, 257, (length,), generator=generator).tolist() for length in lengths]
