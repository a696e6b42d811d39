"""Models of others, from the Hugging Face hub or a folder, as runs to go on from.

    NAME or DIR --> config.json: the shape --> headers of the weights: names and sizes --> weights --> checkpoint
                --> tokenizer.json, chat template -----------------------------------> RUN/tokenizer --> recipe.yaml

A run made so has its pretraining finished at step 0, and imported.json says where it is from. Nothing large is
allocated before names, sizes and types agree, no pickle is read, and no code of the model's is run. Weights become
float32, which holds those of 16 bits exactly: written again under the names they had, they are the same bits.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from leveret.data.shards import file_sha256
from leveret.errors import UserError
from leveret.export.sampling import sampling_of
from leveret.export.shapes import STAGE, shape_of
from leveret.export.source import IMPORTED, stand_in
from leveret.model.config import ModelConfig
from leveret.model.decoder import hollow_decoder
from leveret.model.weights import family, from_disk, to_disk
from leveret.recipe import Recipe, to_yaml
from leveret.rundir import RunDir, write_json
from leveret.strangers.documents import read_json
from leveret.strangers.files import beside
from leveret.strangers.tensors import checked_tensors
from leveret.tokenizer.config import ROLES, TokenizerConfig
from leveret.tokenizer.load import load_tokenizer
from leveret.tokenizer.tokenizer import SpecialRoles, Tokenizer
from leveret.training.checkpoint import Snapshot, write_checkpoint
from leveret.training.lock import Lock

FORMAT_VERSION = 1
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
GENERATION = "generation_config.json"
TOKENIZER = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
WANTED = [CONFIG, GENERATION, "model*.safetensors", INDEX, *TOKENIZER]
"""What is taken from the hub."""
PREFIXES = {"gpt2": "transformer.", "llama": "model."}
"""What names lack in files of the model without its head."""
BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""Ends of names that older files have besides weights: masks and frequencies."""
DTYPES = {"F32", "F16", "BF16"}


@dataclass(frozen=True)
class Origin:
    """Where a model is. revision: the commit, if it is from the hub."""

    name: str
    folder: Path
    revision: str | None


def import_model(name: str, run_dir: Path, revision: str | None = None) -> RunDir:
    """Makes a run of a model in transformers' format.

    Args:
        name: a folder, or a name on the hub.
        revision: commit, tag or branch on the hub.

    Raises:
        UserError: it cannot be read or fetched, the decoder has no such shape, its weights or its tokenizer do not fit
            the shape, or there is a run already.
    """
    begun, run = time.monotonic(), RunDir(run_dir)
    if (run / "recipe.yaml").exists():
        raise UserError(f"{run_dir} is a run already; take another --run-dir")
    model = open_model(name, revision)
    config = model.config
    with Lock(run_dir):
        recipe = to_yaml(model.recipe())
        snapshot = Snapshot(config, model.weights(), {}, {"cpu": torch.get_rng_state()}, {"step": 0}, recipe)
        if config.tie_word_embeddings:
            del snapshot.weights["lm_head.weight"]
        model.tokenizer.save(run / "tokenizer", model_max_length=config.max_position_embeddings)
        write_checkpoint(run / "pretrain" / "checkpoints", snapshot)
        _finish(run, model, time.monotonic() - begun)
        (run / "recipe.yaml").write_text(recipe, encoding="utf-8")  # last: with it, it is a run
    return run


@dataclass(frozen=True)
class Model:
    """A model in transformers' format that fits the decoder as far as its config.json and its tokenizer say.

    facts: the content of config.json.
    """

    origin: Origin
    facts: Mapping[str, Any]
    config: ModelConfig
    tokenizer: Tokenizer

    @property
    def chats(self) -> bool:
        """Whether it is asked through its chat template: if it has one, but for a base model that we exported."""
        return self.tokenizer.chat_template is not None and self.facts.get(STAGE) != "pretrain"

    @property
    def said(self) -> dict[str, Mapping[str, Any]]:
        """What its files say of it besides its tokenizer, by their names."""
        generation = beside(self.origin.folder, GENERATION)
        return {CONFIG: self.facts} | ({GENERATION: read_facts(generation)} if generation.exists() else {})

    def weights(self) -> dict[str, Tensor]:
        """Its weights in memory's form. Raises UserError where they are not those of its shape."""
        return from_disk(read_weights(weight_files(self.origin.folder), self.config), self.config)

    def recipe(self) -> Recipe:
        """What the model is, how it samples, and how it may be trained on. Paths start from the run itself."""
        origin = self.origin
        at = f" at {origin.revision}" if origin.revision else ""
        return stand_in(
            origin.folder.resolve().name if origin.revision is None else origin.name.rpartition("/")[2],
            f"Imported from {origin.name}{at}; what it was trained on is not known here.",
            self.config,
            self.tokenizer,
            generation=sampling_of(origin.folder / GENERATION).model_dump(),
        )

    @property
    def weights_sha256(self) -> str:
        """A hash that names its weights."""
        digests = [file_sha256(path) for path in weight_files(self.origin.folder)]
        return digests[0] if len(digests) == 1 else sha256(json.dumps(digests).encode()).hexdigest()

    def hashes(self) -> dict[str, str]:
        """SHA-256 of its files."""
        folder = self.origin.folder
        there = [folder / name for name in (CONFIG, GENERATION, INDEX, *TOKENIZER)]
        return {path.name: file_sha256(path) for path in [*there, *weight_files(folder)] if path.exists()}


def open_model(name: str, revision: str | None = None) -> Model:
    """Finds a model in transformers' format; its weights are not read yet.

    Raises:
        UserError: it cannot be found or fetched, or neither its shape nor its tokenizer is one of ours.
    """
    origin = locate(name, revision, [CONFIG])
    facts = read_facts(beside(origin.folder, CONFIG))
    config = shape_of(facts, f"{name}'s {CONFIG}")
    origin = locate(name, origin.revision, WANTED)
    for file in (GENERATION, INDEX, *TOKENIZER):
        beside(origin.folder, file)
    tokenizer = _tokenizer(origin.folder, facts)
    if tokenizer.vocab_size > config.vocabulary:
        raise UserError(f"{name}: the tokenizer has {tokenizer.vocab_size} tokens, the model only {config.vocabulary}")
    return Model(origin, facts, config, tokenizer)


def _finish(run: RunDir, model: Model, seconds: float) -> None:
    """Notes where the run is from, and that there is nothing left to do."""
    origin, files = model.origin, model.hashes()
    known = {"source": origin.name, "revision": origin.revision, "architecture": model.facts["architectures"][0]}
    write_json(run / IMPORTED, {"format_version": FORMAT_VERSION, **known, "chats": model.chats, "files": files})
    for stage in ("tokenizer", "pretrain"):
        inputs = {"the imported model": f"{origin.name}@{origin.revision or files[CONFIG][:16]}"}
        run.begin(stage, inputs)
        run.finish(stage, inputs, seconds)


# -- files --------------------------------------------------------------------------------------------------------


def locate(name: str, revision: str | None, wanted: list[str]) -> Origin:
    """The folder of a model; from the hub, what of its files is wanted.

    Raises:
        UserError: there is none, or the hub did not give it.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"{name} is a folder, which has no --revision")
        return Origin(str(folder.absolute()), folder, None)
    import huggingface_hub
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the client that it uses

    try:
        found = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=wanted)
    except (HTTPError, OSError, ValueError) as error:
        raise UserError(
            f"{name!r} is no folder here and the hub did not give it ({type(error).__name__}); check its name and "
            "revision, log in with `hf auth login` if it is not public, or give a folder that holds it"
        ) from None
    return Origin(name, Path(found), Path(found).name)


def read_facts(path: Path) -> dict[str, Any]:
    """The mapping that a file of a model holds.

    Raises:
        UserError: it cannot be read, or holds another thing.
    """
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise UserError(f"there is no {path.name} in {path.parent}, so it is no model of transformers'") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no mapping")
    return content


def _tokenizer(folder: Path, facts: Mapping[str, Any]) -> Tokenizer:
    """The model's tokenizer; roles that its own files leave open are taken from config.json's ids."""
    if not (folder / TOKENIZER[0]).exists():
        raise UserError(
            f"there is no {TOKENIZER[0]} in {folder}; write one with transformers: "
            "AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)"
        )
    made = load_tokenizer(TokenizerConfig(kind="huggingface", source=str(folder.absolute())), folder)
    texts = {index: text for text, index in made.special_tokens.items()}
    roles = asdict(made.roles)
    for role in ROLES:
        index = facts.get(f"{role}_id")
        if roles[role] is None and isinstance(index, int):
            roles[role] = texts.get(index)
    return Tokenizer(made.definition, SpecialRoles(**roles), made.chat_template)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model.

    Raises:
        UserError: there are none, or the index names files that are not there or not in the folder.
    """
    if beside(folder, WEIGHTS).is_file():  # a pipe would be waited for
        return [folder / WEIGHTS]
    if not (folder / INDEX).exists():
        raise UserError(
            f"there is no {WEIGHTS} in {folder}, and pickles such as pytorch_model.bin are not read; convert it with "
            "transformers, where you trust it: AutoModelForCausalLM.from_pretrained(MODEL).save_pretrained(FOLDER)"
        )
    places = read_facts(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{folder / INDEX} has no weight_map")
    paths = []
    for name in sorted({str(value) for value in places.values()}):
        if not beside(folder, name).is_file():
            raise UserError(f"{folder / INDEX} names {name!r}, which is no file beside it")
        paths.append(folder / name)
    return paths


# -- weights ------------------------------------------------------------------------------------------------------


def read_weights(paths: list[Path], config: ModelConfig) -> dict[str, Tensor]:
    """The tensors of these files under the names on disk, float32, once all of them are known to fit the shape.

    Raises:
        UserError: a file is damaged, or a tensor is missing, too many, or of another size or type.
    """
    with ExitStack() as stack:
        names: dict[str, tuple[Any, str]] = {}
        for path in paths:
            try:
                file: Any = stack.enter_context(safe_open(checked_tensors(path), "pt"))
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path} is no whole safetensors file ({error})") from None
            for theirs in file.keys():  # noqa: SIM118  # it is no mapping
                ours = _our_name(theirs, config)
                if ours in names:
                    raise UserError(f"{path}: {theirs} is there twice")
                names[ours] = (file, theirs)
        expected = _expected(config, len(names))
        head = None if "lm_head.weight" in expected else names.get("lm_head.weight")
        _check(names, expected)
        out = {name: _tensor(*names[name]) for name in expected}
        if head is not None and not torch.equal(_tensor(*head), out[_embedding(config)]):
            raise UserError("tie_word_embeddings is true in config.json, and lm_head.weight is not the embedding")
        return out


def _our_name(name: str, config: ModelConfig) -> str:
    """The name on disk, with the prefix that files of the model without its head leave out."""
    prefix = PREFIXES[family(config)]
    return name if name.startswith((prefix, "lm_head.")) else prefix + name


def _embedding(config: ModelConfig) -> str:
    return "transformer.wte.weight" if family(config) == "gpt2" else "model.embed_tokens.weight"


def _expected(config: ModelConfig, tensors: int) -> dict[str, torch.Size]:
    """Name and size of every tensor of the shape, made without memory."""
    if config.num_hidden_layers > tensors:
        raise UserError(f"config.json says {config.num_hidden_layers} layers, and there are {tensors} tensors in all")
    if config.position == "rope":  # its angles, which are no weights, would take memory
        config = config.model_copy(update={"max_position_embeddings": 1})
    return {name: tensor.shape for name, tensor in to_disk(hollow_decoder(config).state_dict(), config).items()}


def _check(names: Mapping[str, tuple[Any, str]], expected: Mapping[str, torch.Size]) -> None:
    """From headers alone: names, sizes and types."""
    if missing := [name for name in expected if name not in names]:
        raise UserError(
            f"the weights have no {missing[0]}" + (f", and lack {len(missing)} in all" * (len(missing) > 1))
        )
    extra = names.keys() - expected.keys() - {"lm_head.weight"}
    if strange := sorted(name for name in extra if not name.endswith(BUFFERS)):
        raise UserError(f"the weights have {strange[0]}, for which the decoder has no place with this config.json")
    for name in [*expected, *({"lm_head.weight"} & names.keys() - expected.keys())]:
        file, theirs = names[name]
        part = file.get_slice(theirs)
        if name in expected and list(part.get_shape()) != list(expected[name]):
            raise UserError(f"{theirs} is of size {part.get_shape()}, and config.json makes it {list(expected[name])}")
        if part.get_dtype() not in DTYPES:
            raise UserError(f"{theirs} is of type {part.get_dtype()}; weights of {', '.join(sorted(DTYPES))} are taken")


def _tensor(file: Any, name: str) -> Tensor:
    return file.get_tensor(name).float()  # type: ignore[no-any-return]
