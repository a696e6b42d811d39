"""A trained model in hand: what `leveret.load` gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from leveret.errors import UserError
from leveret.hardware.device import pick_device
from leveret.inference.config import SamplingConfig
from leveret.inference.dialogue import Fitted, fit
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
        when it is too long; `fit` tells how many.
        """
        config = self.sampling(**sampling)
        return self.engine.stream(self.fit(messages, config).ids, config)

    def fit(self, messages: Sequence[Mapping[str, str]], config: SamplingConfig) -> Fitted:
        """A dialogue without the oldest turns that leave no room for the answer.

        Raises:
            UserError: its last message alone does not fit.
        """
        return fit(messages, self.prompt_ids, self.engine.context, config.max_new_tokens)

    def prompt_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The ids of a dialogue up to where the answer begins: through the chat template, or (base models) as the text
        it makes, what the user says on lines of its own.
        """
        if self.chats:
            return render(self.tokenizer, messages, add_generation_prompt=True).ids
        text = ""
        for message in messages:
            text += "\n" * bool(text and message["role"] != "assistant") + message["content"]
        return self.encode(text, raw=True)

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
        return self.recipe.generation.changed(**{key: value for key, value in given.items() if value is not None})


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
