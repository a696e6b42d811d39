"""What a recipe comes to, from its text alone."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from leveret.errors import UserError
from leveret.hardware.device import pick_device
from leveret.model.config import ModelConfig
from leveret.model.counts import count_parameters, flops_per_token
from leveret.planning.memory import inference_memory, planned_memory
from leveret.recipe import Recipe

KNOWN_VOCABULARIES = {"gpt2": 50_257, "cl100k_base": 100_277}


def expected_model(recipe: Recipe) -> ModelConfig:
    """The model's shape with the vocabulary that its tokenizer will have.

    Raises:
        UserError: the vocabulary is not known before the tokenizer is loaded.
    """
    size = recipe.tokenizer.vocab_size or KNOWN_VOCABULARIES.get(recipe.tokenizer.source or "")
    if recipe.model.vocab_size is None and size is None:
        raise UserError("the tokenizer's size is not known before it is loaded; give model.vocab_size")
    return recipe.model.with_vocabulary(size or 0)


def describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """Parameters, work and memory of a recipe's first stage, with the recipe itself."""
    model = expected_model(recipe)
    stage, config = next(iter(recipe.stages.items()))
    length = recipe.row_length(stage)
    tokens_a_step = config.batch_size * length
    steps = config.steps or (-(-config.tokens // tokens_a_step) if config.tokens else None)
    return {
        "format_version": 1,
        "name": recipe.name,
        "parameters": asdict(count_parameters(model)),
        "flops_per_token": flops_per_token(model, length),
        "tokens_per_step": tokens_a_step,
        "stage": stage,
        "steps": steps,
        "tokens": steps and steps * tokens_a_step,
        "memory_bytes": {
            "training": planned_memory(model, config, length, pick_device()),
            "inference": inference_memory(model),
        },
        "recipe": recipe.model_dump(mode="json"),
    }


def render_facts(facts: dict[str, Any]) -> str:
    """describe_recipe's figures as lines for a person."""
    parameters, memory = facts["parameters"], facts["memory_bytes"]
    rows = [
        ("recipe", f"{facts['name']}: {facts['recipe']['description']}"),
        ("parameters", f"{parameters['total']:,} ({parameters['embedding']:,} in tables)"),
        ("FLOPs a token", f"{facts['flops_per_token'] / 1e6:,.1f} million, forward and backward"),
        ("tokens a step", f"{facts['tokens_per_step']:,}"),
    ]
    if facts["steps"]:
        rows.append((facts["stage"], f"{facts['steps']:,} steps, {facts['tokens']:,} tokens"))
    for kind, parts in memory.items():
        told = ", ".join(f"{name} {size_of(size)}" for name, size in parts.items() if name != "total")
        rows.append((f"{kind} memory", f"about {size_of(parts['total'])} ({told})"))
    return "\n".join(f"{name:<18} {value}" for name, value in rows)


def size_of(count: float) -> str:
    """Bytes as a person reads them."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
