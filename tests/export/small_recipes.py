"""The shapes of the shipped recipes, narrow: the same knobs, tokenizers of the same kind, drawn weights."""

from dataclasses import dataclass
from pathlib import Path

from tiny_models import ENGLISH, made_tokenizer, write_run

from leveret.recipe import load_recipe
from leveret.tokenizer.tokenizer import Tokenizer

TOKENIZERS = {
    "parchment-166m": "bpe-cl100k",
    "tinyllm-cli-67m": "sentencepiece-bpe",
    "smallm-20m": "bpe-gpt2",
    "gpt2-124m": "bpe-gpt2",
    "l20-edu-135m": "smollm",
    "quickstart": "bpe-words",
}
REMOTE = {"tinyllm-cli-67m", "smallm-20m", "quickstart"}
"""Those that transformers has no class for."""
HEAD = 16
CONTEXT = 128


@dataclass(frozen=True)
class Small:
    """A run of a recipe's shape."""

    name: str
    path: Path
    tokenizer: Tokenizer
    stage: str


def write_small(name: str, folder: Path) -> Small:
    """A finished run of this recipe's shape, of its last stage that trains, two layers deep and some 64 wide."""
    recipe, _ = load_recipe(name)
    model = recipe.model
    group = model.num_attention_heads // model.kv_heads
    heads = 4 if group < 4 and 4 % group == 0 else group
    shape = model.model_dump() | {
        "num_hidden_layers": 2,
        "hidden_size": heads * HEAD,
        "num_attention_heads": heads,
        "num_key_value_heads": None if model.num_key_value_heads is None else heads // group,
        "intermediate_size": 96,
        "max_position_embeddings": CONTEXT,
        "vocab_size": None,
    }
    tokenizer = made_tokenizer(TOKENIZERS[name], ENGLISH, recipe.tokenizer.template)
    shape["vocab_size"] = tokenizer.vocab_size
    stage = "finetune" if recipe.finetune else "pretrain"
    path = write_run(folder / name, tokenizer, stage, recipe.generation.model_dump(), **shape)
    return Small(name, path, tokenizer, stage)
