"""What is exported, a trained model of a run, found and checked before anything is written; and what stands for the
recipe of a model that comes back without its run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from leveret.errors import UserError
from leveret.model.config import ModelConfig
from leveret.model.weights import to_disk
from leveret.recipe import Recipe
from leveret.rundir import RunDir, find_run, read_json
from leveret.tokenizer.tokenizer import Tokenizer
from leveret.training.checkpoint import Checkpoint, find_checkpoint

IMPORTED = "imported.json"
"""What a run says of the model that it was made from."""
ROW_LENGTH = 2048
"""Tokens of a row to train on at most, unless the recipe says otherwise: contexts of today fill memories."""


@dataclass(frozen=True)
class Source:
    """One checkpoint of a run, with all that belongs to it."""

    run: RunDir
    stage: str
    recipe: Recipe
    tokenizer: Tokenizer
    config: ModelConfig
    checkpoint: Checkpoint

    @property
    def chats(self) -> bool:
        """Whether it is asked through its chat template: if it was tuned, or is a model of others that has one, since
        what that was trained for is not known."""
        return self.stage != "pretrain" or bool((read_json(self.run / IMPORTED) or {}).get("chats"))

    def weights(self) -> dict[str, torch.Tensor]:
        """Its weights under the names on disk, adapters merged, a tied head left out."""
        return to_disk(self.checkpoint.weights(self.config), self.config)


def find_source(reference: str) -> Source:
    """Takes RUN, RUN/STAGE or RUN/STAGE@STEP.

    Raises:
        UserError: there is no such run, or no such checkpoint of it.
    """
    run, stage, step = find_run(reference)
    stage = stage or run.last_trained()
    recipe, tokenizer = run.recipe(), Tokenizer.load(run / "tokenizer")
    found = find_checkpoint(run / stage / "checkpoints", step)
    if found is None:
        raise UserError(f"{run / stage} has no checkpoint" + (f" of step {step}" if step is not None else ""))
    return Source(run, stage, recipe, tokenizer, recipe.model.with_vocabulary(tokenizer.vocab_size), found)


def stand_in(name: str, description: str, config: ModelConfig, tokenizer: Tokenizer, **known: Any) -> Recipe:
    """A recipe for a model of which no recipe is known: what it is, and how it may be trained on.

    Args:
        known: fields of the recipe that are known all the same.
    """
    return Recipe.model_validate(
        {
            "name": name,
            "description": description,
            "tokenizer": {"kind": "huggingface", "source": "tokenizer", **asdict(tokenizer.roles)},
            "data": {"sources": [], "sequence_length": min(ROW_LENGTH, config.max_position_embeddings)},
            "model": config.model_dump(),
            "pretrain": {"steps": 1000, "optimizer": {"lr": 5e-5}},
            **known,
        }
    )
