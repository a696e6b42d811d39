"""Small models with drawn weights as finished runs, for what other programs make of them, and tokenizers for them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.recipe import Recipe, to_yaml
from leveret.rundir import RunDir
from leveret.tokenizer import TokenizerConfig, train_tokenizer
from leveret.tokenizer.patterns import PATTERNS
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

SPECIALS = ["<pad>", "<bos>", "<eos>", "<unk>", "<|im_start|>", "<|im_end|>"]
ENGLISH = [
    "To show a file type cat; to make one type touch, many times over. It's they'LL 'S don't 12345 3.14",
    "user\nmake the file of number 12345\nassistant\ntouch it\n\n  indented   text\t tab",
    "x=1; y = {a: b}; // -> :: ... ?! find /var/log -name '*.log' -mtime +30 -exec rm {} \\;",
] * 6
WORLD = [
    "中文字符測試，混合English和中文。日本語テスト 한국어 ไทย हिन्दी العربية مع تشكيل اَلْعَرَبِيَّةُ עברית",
    "русский текст café naïve Ångström ½ ² Ⅷ 👩‍👩‍👧‍👦 👍🏽 e\u0301 a\u0308 «quoted» “curly” €5 £3 × ÷ ©",
] * 6


def made_tokenizer(kind: str, texts: list[str], template: str | None = "chatml") -> Tokenizer:
    """A kind of TokenizerConfig, or `bpe-` and a pattern; smollm and qwen2 are bpe with the cuts of those models."""
    named, _, pattern = kind.partition("-") if kind.startswith("bpe") else (kind, "", "")
    other = kind in ("smollm", "qwen2")
    config = TokenizerConfig.model_validate(
        {
            "kind": "bpe" if other else named,
            "vocab_size": 640,
            "special_tokens": SPECIALS,
            "eos_token": "<eos>",
            "unk_token": "<unk>",
            "template": template,
            "pattern": pattern or "gpt2",
        }
    )
    made = train_tokenizer(config, texts)
    definition = json.loads(made.definition)
    steps = definition["pre_tokenizer"]["pretokenizers"] if other else []
    if kind == "smollm":
        steps[0], steps[1]["use_regex"] = {"type": "Digits", "individual_digits": True}, True
    elif kind == "qwen2":
        steps[0]["pattern"]["Regex"] = PATTERNS["cl100k"].replace("{1,3}", "")
    return Tokenizer(json.dumps(definition), made.roles, made.chat_template) if other else made


def write_run(
    folder: Path,
    tokenizer: Tokenizer,
    stage: str = "pretrain",
    generation: dict[str, Any] | None = None,
    **shape: Any,
) -> Path:
    """A run whose only stage has a model with every weight drawn, biases and norms too."""
    run, config = RunDir(folder), ModelConfig(**(SHAPE | {"vocab_size": tokenizer.vocab_size} | shape))
    recipe = Recipe.model_validate(
        {
            "name": folder.name,
            "tokenizer": {"kind": "huggingface", "source": "tokenizer", **asdict(tokenizer.roles)},
            "data": {"sources": []},
            "pretrain": {"steps": 1},
            "model": config.model_dump(),
            "generation": generation or {},
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
