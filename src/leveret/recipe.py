"""The recipe: one typed description of a model's whole life. YAML in, overrides applied, mistakes explained."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from leveret.config import Config
from leveret.data.config import DataConfig
from leveret.depth import expand_depth
from leveret.errors import UserError
from leveret.evaluation.config import EvaluateConfig
from leveret.inference.config import SamplingConfig
from leveret.model.config import ModelConfig
from leveret.posttraining.config import FinetuneConfig, PosttrainingConfig, PreferConfig, ReinforceConfig
from leveret.strangers.documents import Loader, parse_yaml, read_yaml
from leveret.tokenizer.config import TokenizerConfig
from leveret.training import STAGES
from leveret.training.config import TrainingConfig


class _Loader(Loader):
    """YAML with the numbers of YAML 1.2: PyYAML takes 1e-3 and 2e6 for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _read_yaml(text: str) -> Any:
    return parse_yaml(text, _Loader)


class Recipe(Config):
    """Everything that makes one model, stage by stage."""

    name: str = Field(min_length=1)
    """Name of the model, and of its run directory unless another is given."""
    description: str = ""
    """What it is, in a line."""
    tokenizer: TokenizerConfig
    """Text to token ids."""
    data: DataConfig
    """The corpus of pretraining."""
    model: ModelConfig
    """The decoder."""
    pretrain: TrainingConfig | None = None
    """Training from nothing on the corpus; without it, the next stage starts from nothing."""
    finetune: FinetuneConfig | None = None
    """Training on examples, if any."""
    prefer: PreferConfig | None = None
    """Learning which of two answers is the better, if any."""
    reinforce: ReinforceConfig | None = None
    """Learning from rewards for the model's own answers, if any."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What the last stage is measured on."""
    generation: SamplingConfig = SamplingConfig()
    """How the model is sampled unless asked otherwise."""
    sample_prompts: list[str] = []
    """Prompts whose continuations are kept at every validation, in samples.md."""

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        if not self.stages:
            raise ValueError(f"nothing is trained; give one of {', '.join(STAGES)}")
        context = self.model.max_position_embeddings
        for stage in self.stages:
            if (length := self.document_length(stage)) > context:
                name = "data" if stage == "pretrain" else stage
                raise ValueError(
                    f"{name}.sequence_length {length} is longer than model.max_position_embeddings {context}"
                )
            brings_none = self.tokenizer.kind != "huggingface"  # others' tokenizers may come with a template
            if stage != "pretrain" and self.tokenizer.template is None and brings_none:
                raise ValueError(f"{stage} needs tokenizer.template, the name of a chat template")
        return self

    @property
    def stages(self) -> dict[str, TrainingConfig]:
        """The stages that train, in order, those there are."""
        every = {name: getattr(self, name, None) for name in STAGES}
        return {name: config for name, config in every.items() if config is not None}

    @property
    def tuning(self) -> dict[str, PosttrainingConfig]:
        """The stages after pretraining, those there are."""
        return {name: config for name, config in self.stages.items() if isinstance(config, PosttrainingConfig)}

    def document_length(self, stage: str = "pretrain") -> int:
        """Tokens of a stage's window, or of a prompt with its answer at most."""
        config = self.data if stage == "pretrain" else self.tuning[stage]
        return config.sequence_length or self.model.max_position_embeddings

    def row_length(self, stage: str = "pretrain") -> int:
        """Tokens of a stage's row, which has room for all answers to a prompt."""
        answers = 1 if stage == "pretrain" else self.tuning[stage].answers
        return answers * self.document_length(stage)

    def onto(self, base: Recipe) -> Recipe:
        """This recipe for the model and the tokenizer of another; the chat template is its own where it names one."""
        template = self.tokenizer.template or base.tokenizer.template
        tokenizer = base.tokenizer.model_copy(update={"template": template})
        return self.model_copy(update={"model": base.model, "tokenizer": tokenizer})

    def dropping_leaks(self) -> Recipe:
        """This recipe with drop_leaks in every stage that trains on examples.

        Raises:
            UserError: there is none.
        """
        if not self.tuning:
            raise UserError(
                f"--drop-leaks is for stages that train on examples, and {self.name} has none; leave it out"
            )
        return self.model_copy(
            update={name: stage.model_copy(update={"drop_leaks": True}) for name, stage in self.tuning.items()}
        )

    def with_price(self, price: float) -> Recipe:
        """This recipe on a machine that costs so many dollars an hour."""
        changed = {name: stage.model_copy(update={"price": price}) for name, stage in self.stages.items()}
        return self.model_copy(update=changed)


def shipped_recipes() -> dict[str, Path]:
    """The recipes of the package, by name."""
    folder = Path(str(resources.files("leveret.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(name_or_path: str, overrides: list[str] | None = None) -> tuple[Recipe, Path]:
    """Reads a recipe.

    Args:
        name_or_path: a shipped recipe's name, or a YAML file.
        overrides: ``key.key=value``, values in YAML.

    Returns:
        The recipe, and the folder that its relative paths start from.

    Raises:
        UserError: no such recipe, unreadable YAML, or something in it is wrong.
    """
    shipped = shipped_recipes()
    path = Path(name_or_path)
    if name_or_path in shipped:
        path, base = shipped[name_or_path], Path.cwd()
    elif path.is_file():
        # A run's own recipe has whole paths; what is given beside it on the command line starts from here.
        base = Path.cwd() if (path.parent / "state.json").is_file() else path.parent
    else:
        near = difflib.get_close_matches(name_or_path, shipped, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"shipped are {', '.join(shipped)}"
        raise UserError(f"there is no recipe or file {name_or_path!r}; {hint}")
    try:
        content = read_yaml(path, _Loader)
    except (yaml.YAMLError, OSError) as error:
        raise UserError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a recipe: it must be a mapping with keys such as name, tokenizer, model")
    for override in overrides or []:
        _apply(content, override)
    expand_depth(content)
    return parse_recipe(content, str(path)), base


def parse_recipe(content: dict[str, Any], where: str) -> Recipe:
    """Checks a recipe's content. Raises UserError for the first thing wrong."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error)}") from None


def recipe_of_yaml(text: str, where: str) -> Recipe:
    """The inverse of to_yaml. Raises UserError for what is no recipe."""
    try:
        return parse_recipe(_read_yaml(text), where)
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not readable YAML: {' '.join(str(error).split())}") from None


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise UserError(f"{override!r} is not an override; write key.key=value")
    node: Any = content
    *parents, last = key.split(".")
    try:
        for parent in parents:
            if isinstance(node, dict) and node.get(parent) is None:  # left out, or null as resolved recipes say it
                node[parent] = {}
            node = node[int(parent)] if isinstance(node, list) else node[parent]
        node[int(last) if isinstance(node, list) else last] = _read_yaml(value)
    except (TypeError, ValueError, IndexError, AttributeError, yaml.YAMLError):
        raise UserError(f"override {override!r} does not name a place in the recipe") from None


def _explain(error: ValidationError) -> str:
    """The first mistake in one line, with the nearest key where one is unknown."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _fields_at(first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here are {', '.join(known)}"
        return f"unknown key {where!r}; {hint}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("missing", "value_error"):
        return f"{where or 'recipe'}: {message}"
    return f"{where}: {message}, not {first['input']!r}"


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """The keys that the config at a place of the recipe knows."""
    schema = Recipe.model_json_schema()

    def resolved(node: dict[str, Any]) -> dict[str, Any]:
        node = next((option for option in node.get("anyOf", []) if option.get("type") != "null"), node)
        return schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node

    node = schema
    for part in location:
        inner = node["items"] if isinstance(part, int) else node.get("properties", {}).get(part)
        node = resolved(inner or node["additionalProperties"])
    return list(node.get("properties", {}))


def anchored(recipe: Recipe, base_dir: Path) -> Recipe:
    """The recipe with its relative paths made absolute, so that it means the same wherever it is read."""
    content = recipe.model_dump(mode="json")
    tuning = (origin for stage in recipe.tuning for origin in content[stage]["examples"])
    for origin in (*content["data"]["sources"], *tuning, *content["evaluate"]["sets"].values()):
        origin["paths"] = [_absolute(entry, base_dir) for entry in origin["paths"]]
    if sets := content["data"]["decontaminate"]:
        sets["sets"] = [_absolute(entry, base_dir) for entry in sets["sets"]]
    for each in content["data"]["filters"]:
        if (base_dir / each.get("path", ":").partition(":")[0]).is_file():  # not an installed module
            each["path"] = str(base_dir.absolute() / each["path"])
    for name, path in content["evaluate"]["tasks"].items():
        if (base_dir / path.rpartition(":")[0]).is_file():
            content["evaluate"]["tasks"][name] = str(base_dir.absolute() / path)
    if (probe := content["evaluate"]["probe"]) and probe["bench"]:
        probe["bench"] = _absolute(probe["bench"], base_dir)
    tokenizer = content["tokenizer"]
    for key in ("source", "ranks_file"):
        if tokenizer["kind"] != "tiktoken" or key == "ranks_file":
            value = tokenizer[key]
            tokenizer[key] = _absolute(value, base_dir) if value and (base_dir / value).exists() else value
    return Recipe.model_validate(content)


def _absolute(entry: str, base_dir: Path) -> str:
    """An entry of `paths`, or `a.txt,b.txt`, which is two unless a file is called so."""
    parts = [entry] if (base_dir / entry).exists() else entry.split(",")
    return ",".join(str(base_dir.absolute() / Path(part.strip()).expanduser()) for part in parts)


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe, every key spelt out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def digest(value: Any) -> str:
    """A short name for a config or anything that JSON holds: equal content, equal name."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
