"""A trained model in hand: what `leveret.load` gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from torch import Tensor

from leveret.errors import UserError
from leveret.export.gguf_reading import read_gguf
from leveret.export.huggingface import open_model
from leveret.export.shapes import STAGE
from leveret.export.source import Source, find_source
from leveret.export.write import DTYPES
from leveret.hardware.device import pick_device
from leveret.inference.config import SamplingConfig
from leveret.inference.dialogue import Fitted, fit
from leveret.inference.engine import Answers, Completion, Engine
from leveret.inference.llamacpp import LlamaEngine
from leveret.inference.quantize import Quantisation, quantise, quantised_folder, read_quantised
from leveret.model.config import ModelConfig
from leveret.model.decoder import hollow_decoder
from leveret.recipe import Recipe
from leveret.rundir import RunDir
from leveret.tokenizer.template import render
from leveret.tokenizer.tokenizer import Tokenizer

BACKENDS = ("leveret", "llamacpp")


class LoadedModel:
    """Weights, tokenizer and recipe of one checkpoint, ready to generate.

    A fine-tuned model is asked through its chat template, a base model goes on with the text.

    Args:
        run: None for a model that comes without its run.
        chats: whether prompts go through the chat template. None: if it was trained further than pretraining.
    """

    def __init__(
        self,
        recipe: Recipe,
        engine: Answers,
        run: RunDir | None,
        stage: str,
        step: int,
        weights_sha256: str,
        chats: bool | None = None,
    ) -> None:
        self.recipe, self.engine, self.run, self.stage, self.step = recipe, engine, run, stage, step
        self.weights_sha256 = weights_sha256
        self.chats = stage != "pretrain" if chats is None else chats

    @property
    def tokenizer(self) -> Tokenizer:
        return self.engine.tokenizer

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


def load_model(
    reference: str,
    device: str = "auto",
    dtype: str | None = None,
    quantize: str | None = None,
    backend: str | None = None,
) -> LoadedModel:
    """Loads RUN, RUN/STAGE, RUN/STAGE@STEP, a folder in transformers' format or a GGUF file; see leveret.load."""
    path = Path(reference)
    for option, given, known in (
        ("backend", backend, BACKENDS),
        ("dtype", dtype, tuple(DTYPES)),
        ("quantize", quantize, get_args(Quantisation)),
    ):
        if given is not None and given not in known:
            raise UserError(f"--{option} {given} is not one of {', '.join(known)}")
    if path.suffix == ".gguf":
        if backend == "leveret":
            raise UserError(f"{path} is a GGUF file, which llama.cpp reads: take --backend llamacpp, or the run itself")
        if dtype or quantize or device not in ("auto", "cpu"):
            raise UserError(f"{path}: llama.cpp takes it as it is, on the CPU; leave device, dtype and quantize out")
        return _of_gguf(path)
    if backend == "llamacpp":
        raise UserError(f"llama.cpp reads GGUF files: `leveret export gguf {reference} FILE.gguf` writes one")
    folder = (path / "config.json").is_file() and not (path / "recipe.yaml").exists()
    return (_of_folder if folder else _of_run)(reference, _Place(device, dtype, quantize))


@dataclass(frozen=True)
class _Place:
    """Where weights go, and as what."""

    device: str
    dtype: str | None
    quantize: str | None

    def engine(self, config: ModelConfig, weights: dict[str, Tensor], tokenizer: Tokenizer) -> Engine:
        """Raises RuntimeError or KeyError where the weights are not those of the shape."""
        model = hollow_decoder(config)
        model.load_state_dict(weights, assign=True)
        model.to(pick_device(self.device), DTYPES[self.dtype] if self.dtype else None)
        return Engine(quantise(model, cast(Quantisation, self.quantize)) if self.quantize else model, tokenizer)

    def quantised(self, source: Source) -> Engine | None:
        """With what `leveret quantize` wrote of these weights, if it is what is asked for."""
        if self.quantize is None or self.dtype not in (None, "float32"):
            return None
        folder = quantised_folder(source.run / source.stage, self.quantize, source.checkpoint.step)
        model = read_quantised(folder, source.config, source.checkpoint.weights_sha256)
        return Engine(model.to(pick_device(self.device)), source.tokenizer) if model else None


def _of_run(reference: str, place: _Place) -> LoadedModel:
    source = find_source(reference)
    run, found, config = source.run, source.checkpoint, source.config
    try:
        engine = place.quantised(source) or place.engine(config, found.weights(config), source.tokenizer)
    except (RuntimeError, KeyError):
        raise UserError(f"{found.folder} does not fit {run / 'recipe.yaml'}, which was changed after it") from None
    return LoadedModel(source.recipe, engine, run, source.stage, found.step, found.weights_sha256, source.chats)


def _of_folder(reference: str, place: _Place) -> LoadedModel:
    model = open_model(reference)
    engine = place.engine(model.config, model.weights(), model.tokenizer)
    stage = str(model.facts.get(STAGE, "pretrain"))
    return LoadedModel(model.recipe(), engine, None, stage, 0, model.weights_sha256, model.chats)


def _of_gguf(path: Path) -> LoadedModel:
    model = read_gguf(path)
    engine = LlamaEngine(model.file, model.tokenizer)
    return LoadedModel(model.recipe, engine, None, model.stage, model.step, model.weights_sha256, model.chats)
