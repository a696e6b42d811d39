"""Small models with drawn weights as finished runs, for what other programs make of them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.recipe import Recipe, to_yaml
from leveret.rundir import RunDir
from leveret.tokenizer.tokenizer import Tokenizer
from leveret.training.checkpoint import Snapshot, write_checkpoint

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
}
GPT2: dict[str, Any] = {
    "num_key_value_heads": None,
    "position": "learned",
    "norm": "layer",
    "norm_eps": 1e-5,
    "mlp": "gelu",
    "attention_bias": True,
    "mlp_bias": True,
}


def write_run(folder: Path, tokenizer: Tokenizer, stage: str = "pretrain", **shape: Any) -> Path:
    """A run whose only stage has a model with every weight drawn, biases and norms too."""
    run, config = RunDir(folder), ModelConfig(**(SHAPE | {"vocab_size": tokenizer.vocab_size} | shape))
    recipe = Recipe.model_validate(
        {
            "name": folder.name,
            "tokenizer": {"kind": "huggingface", "source": "tokenizer", **asdict(tokenizer.roles)},
            "data": {"sources": []},
            "pretrain": {"steps": 1},
            "model": config.model_dump(),
        }
    )
    model = Decoder(config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15 + (parameter.dim() == 1))
    weights = dict(model.state_dict())
    if config.tie_word_embeddings:
        del weights["lm_head.weight"]
    folder.mkdir(parents=True)
    tokenizer.save(run / "tokenizer")
    snapshot = Snapshot(config, weights, {}, {"cpu": torch.get_rng_state()}, {"step": 0}, to_yaml(recipe))
    write_checkpoint(run / stage / "checkpoints", snapshot)
    run.begin(stage, {})
    run.finish(stage, {}, 0.0)
    (run / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    return folder
