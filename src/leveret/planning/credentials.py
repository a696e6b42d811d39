"""Secrets that a recipe can use: named, looked for, never read out."""

from __future__ import annotations

from leveret.recipe import Recipe


def wanted_secrets(recipe: Recipe) -> list[str]:
    """Names of the variables of the environment that hold them."""
    tuning = [origin for stage in recipe.tuning.values() for origin in stage.examples]
    origins = [*recipe.data.sources, *tuning, *recipe.evaluate.sets.values()]
    hub = any(origin.kind == "hub" for origin in origins) or recipe.tokenizer.kind == "huggingface"
    wandb = any("wandb" in stage.trackers for stage in recipe.stages.values())
    return ["HF_TOKEN"] * hub + ["WANDB_API_KEY"] * wandb
