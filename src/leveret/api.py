"""A trained model in hand: what `leveret.load` gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from leveret.errors import UserError
from leveret.hardware.device import pick_device
from leveret.inference.config import SamplingConfig
from leveret.inference.engine import Completion, Engine
from leveret.model.decoder import hollow_decoder
from leveret.recipe import Recipe
from leveret.rundir import RunDir, find_run
from leveret.tokenizer.template import render
from leveret.tokenizer.tokenizer import Tokenizer
from leveret.training.checkpoint import find_checkpoint


class LoadedModel:
    """Weights, tokenizer and recipe of one checkpoint, ready to generate.

    A fine-tuned model is asked through its chat template, a base model goes on with the text.
    """

    def __init__(self, recipe: Recipe, engine: Engine, run: RunDir, stage: str, step: int, weights_sha256: str) -> None:
        self.recipe, self.engine, self.run, self.stage, self.step = recipe, engine, run, stage, step
        self.weights_sha256 = weights_sha256

    @property
    def tokenizer(self) -> Tokenizer:
        return self.engine.tokenizer

    @property
    def chats(self) -> bool:
        """Whether prompts go through the chat template."""
        return self.stage != "pretrain"

    def generate(self, prompt: str, *, raw: bool = False, **sampling: Any) -> str:
        """The answer to a prompt.

        Args:
            prompt: what the user says (fine-tuned models), or the text to go on with.
            raw: go on with the text even if the model is fine-tuned.
            sampling: fields of SamplingConfig; what is not given is as the recipe's `generation`.
        """
        return self.complete([prompt], raw=raw, **sampling)[0].text

    def complete(self, prompts: Sequence[str], *, raw: bool = False, **sampling: Any) -> list[Completion]:
        """The answers to many prompts at once."""
        return self.engine.generate([self.encode(prompt, raw) for prompt in prompts], self.sampling(**sampling))

    def stream(self, prompt: str, *, raw: bool = False, **sampling: Any) -> Iterator[str]:
        """The answer to a prompt, piece by piece as it comes."""
        return self.engine.stream(self.encode(prompt, raw), self.sampling(**sampling))

    def chat(self, messages: Sequence[dict[str, str]], **sampling: Any) -> Iterator[str]:
        """The answer to a dialogue ({"role", "content"} each), piece by piece. Its oldest turns go
        when it is too long.
        """
        turns = list(messages)
        room = self.engine.context - 1
        while len(ids := render(self.tokenizer, turns, add_generation_prompt=True).ids) > room and len(turns) > 1:
            turns = turns[1:]
        return self.engine.stream(ids, self.sampling(**sampling))

    def encode(self, prompt: str, raw: bool = False) -> list[int]:
        """The prompt's token ids, within the chat template if the model is fine-tuned."""
        if self.chats and not raw:
            return render(self.tokenizer, [{"role": "user", "content": prompt}], add_generation_prompt=True).ids
        start = [] if self.tokenizer.eos_id is None else [self.tokenizer.eos_id]
        return self.tokenizer.encode(prompt) or start

    def sampling(self, **given: Any) -> SamplingConfig:
        """The recipe's way of sampling with these fields changed; None leaves a field as it is.

        Raises:
            UserError: there is no such field, or it cannot have this value.
        """
        known = {key: value for key, value in given.items() if value is not None}
        try:
            return SamplingConfig.model_validate(self.recipe.generation.model_dump() | known)
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"{first['loc'][0]}: {first['msg']}, not {first['input']!r}") from None


def load_model(reference: str, device: str = "auto") -> LoadedModel:
    """Loads RUN, RUN/STAGE or RUN/STAGE@STEP; see leveret.load."""
    run, stage, step = find_run(reference)
    stage = stage or run.last_trained()
    recipe = run.recipe()
    tokenizer = Tokenizer.load(run / "tokenizer")
    found = find_checkpoint(run / stage / "checkpoints", step)
    if found is None:
        raise UserError(f"{run / stage} has no checkpoint" + (f" of step {step}" if step is not None else ""))
    config = recipe.model.with_vocabulary(tokenizer.vocab_size)
    model = hollow_decoder(config)
    try:
        model.load_state_dict(found.weights(config), assign=True)
    except (RuntimeError, KeyError):
        raise UserError(f"{found.folder} does not fit {run / 'recipe.yaml'}, which was changed after it") from None
    model.to(pick_device(device))
    return LoadedModel(recipe, Engine(model, tokenizer), run, stage, found.step, found.weights_sha256)
