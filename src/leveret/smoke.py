"""The smoke form of a recipe: the same kind of everything, small enough for a minute on two cores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from leveret.data.config import ExamplesConfig, SourceConfig
from leveret.errors import UserError
from leveret.model.config import ModelConfig
from leveret.posttraining.config import PosttrainingConfig
from leveret.recipe import Recipe, parse_recipe
from leveret.tokenizer.config import TokenizerConfig

STEPS = 20
CONTEXT = 128
HEAD = 16
STAND_IN_VOCABULARY = 1024
GENERATORS = {"finetune": "shell", "prefer": "shell-preferences", "reinforce": "shell"}
"""Of the examples of each stage."""


def shrink(recipe: Recipe, console: Console) -> Recipe:
    """Shrinks a recipe: few layers and steps, narrow, short context, generated data in place of files and the hub.

    A tokenizer that cannot be loaded is replaced by one trained on the generated data, which is said.
    """
    tokenizer, replaced = usable_tokenizer(recipe, console, STAND_IN_VOCABULARY)
    model = _model(recipe.model, keep_vocabulary=not replaced)
    context = model.max_position_embeddings
    training = {
        "steps": STEPS, "tokens": None, "epochs": None, "batch_size": 8, "micro_batch_size": 4, "compile": False,
        "log_every": 5, "eval_every": 10, "eval_batches": 2, "checkpoint_every": None,
    }  # fmt: skip
    content = recipe.model_dump(mode="json")
    content |= {
        "name": f"{recipe.name}-smoke",
        "tokenizer": tokenizer.model_dump(mode="json"),
        "model": model.model_dump(mode="json"),
        "data": content["data"]
        | {"sources": [stand_in_documents()], "sequence_length": context, "validation_fraction": 0.05},
        "sample_prompts": content["sample_prompts"][:2],
    }
    if recipe.pretrain is not None:
        content["pretrain"] |= training
        content["pretrain"]["schedule"]["warmup_steps"] = 2
    for stage in recipe.tuning:
        content[stage] |= training | {
            "sequence_length": context,
            "examples": [stand_in_examples(stage)],
            "validation_fraction": 0.05,
        }
        content[stage]["schedule"]["warmup_steps"] = 2
        if stage == "reinforce":
            content[stage] |= {"group_size": 4, "max_new_tokens": 16, "examples": _prompts(recipe.tuning[stage])}
        content["evaluate"] |= {
            "sets": {"values": _examples("values").model_dump(mode="json")},
            "limit": 8,
            "max_new_tokens": 16,
        }
    return parse_recipe(content, f"{recipe.name} --smoke")


def stand_in_documents() -> dict[str, Any]:
    """A source of text for one that cannot be read."""
    return _documents().model_dump(mode="json")


def stand_in_examples(stage: str) -> dict[str, Any]:
    """A source of a stage's examples, likewise."""
    return _examples("train", GENERATORS[stage]).model_dump(mode="json")


def _documents() -> SourceConfig:
    return SourceConfig(kind="generated", generator="shell-lessons", options={"per_intent": 4, "core": True})


def _examples(split: str, generator: str = "shell") -> ExamplesConfig:
    options = {"split": split, "per_intent": 8, "core": True}
    return ExamplesConfig(kind="generated", generator=generator, options=options)


def _prompts(config: PosttrainingConfig) -> list[dict[str, Any]]:
    """A few of the sources that are sums, and commands in place of all others, since rewards differ."""
    sums = [each for each in config.examples if each.generator == "arithmetic"]
    few = [each.model_copy(update={"options": each.options | {"count": 200}}) for each in sums]
    others = [_examples("train")] if len(sums) < len(config.examples) else []
    return [each.model_copy(update={"weight": None}).model_dump(mode="json") for each in [*few, *others]]


def _model(model: ModelConfig, keep_vocabulary: bool) -> ModelConfig:
    """The same knobs with two layers, heads of 16, and at most four query heads unless the grouping needs more."""
    group = model.num_attention_heads // model.kv_heads
    kv_heads = max(1, min(model.kv_heads, 4 // group))
    hidden = HEAD * group * kv_heads
    explicit = model.head_dim is not None
    return model.model_copy(
        update={
            "vocab_size": model.vocab_size if keep_vocabulary else None,
            "num_hidden_layers": 2,
            "hidden_size": hidden,
            "num_attention_heads": group * kv_heads,
            "num_key_value_heads": None if model.num_key_value_heads is None else kv_heads,
            "head_dim": HEAD if explicit else None,
            "intermediate_size": max(8, round(hidden * model.intermediate_size / model.hidden_size)),
            "max_position_embeddings": min(CONTEXT, model.max_position_embeddings),
        }
    )


def usable_tokenizer(recipe: Recipe, console: Console, most: int | None) -> tuple[TokenizerConfig, bool]:
    """The recipe's tokenizer, of `most` entries if it is trained; and whether it had to be replaced."""
    config = recipe.tokenizer
    if config.trained:
        size = min(config.vocab_size or STAND_IN_VOCABULARY, most or config.vocab_size or STAND_IN_VOCABULARY)
        return config.model_copy(update={"vocab_size": size, "sample_bytes": 1_000_000}), True
    from leveret.tokenizer.load import load_tokenizer

    try:
        load_tokenizer(config, Path.cwd())
    except UserError as error:
        console.print(
            f"smoke: a stand-in of {STAND_IN_VOCABULARY} entries is trained in place of the tokenizer ({error})"
        )
    else:
        return config, False
    roles = {role: getattr(config, role) for role in ("bos_token", "eos_token", "pad_token", "unk_token")}
    special = list(dict.fromkeys(token for token in roles.values() if token)) or ["<|endoftext|>"]
    return TokenizerConfig(
        kind="bpe",
        vocab_size=STAND_IN_VOCABULARY,
        special_tokens=special,
        template=config.template,
        **roles | {"eos_token": roles["eos_token"] or special[0]},
    ), True
