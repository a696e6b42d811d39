"""The JSON Schema that editors are given says what the loader says."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from tiny_project import RECIPE, Command

from leveret.errors import UserError
from leveret.recipe import load_recipe, shipped_recipes
from leveret.schema import recipe_schema

SCHEMA = recipe_schema()
CHECK = jsonschema.Draft202012Validator(SCHEMA)


def as_an_editor_reads(text: str) -> Any:
    """With the numbers of YAML 1.2: no underscores in them, but exponents."""

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {
            first: [(tag, form) for tag, form in pairs if not tag.endswith((":int", ":float"))]
            for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    def numbers(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: numbers(value) for key, value in node.items()}
        if isinstance(node, list):
            return [numbers(value) for value in node]
        try:
            return json.loads(node) if isinstance(node, str) and "_" not in node else node
        except json.JSONDecodeError:
            return node

    return numbers(yaml.load(text, Loader))


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_valid(name: str) -> None:
    recipe = as_an_editor_reads(shipped_recipes()[name].read_text())
    assert [f"{error.json_path}: {error.message}" for error in CHECK.iter_errors(recipe)] == []


MISTAKES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a wrong key": lambda recipe: recipe.update(pretain={}),
    "a wrong key within": lambda recipe: recipe["pretrain"]["optimizer"].update(leaning_rate=1e-3),
    "a wrong key in a list": lambda recipe: recipe["data"]["sources"][0].update(path="texts"),
    "a text for a number": lambda recipe: recipe["pretrain"].update(steps="many"),
    "a number out of bounds": lambda recipe: recipe["pretrain"].update(batch_size=0),
    "an unknown choice": lambda recipe: recipe["pretrain"]["optimizer"].update(kind="adam"),
    "an unknown filter": lambda recipe: recipe["data"].update(filters=[{"kind": "golfer"}]),
    "no shape": lambda recipe: recipe["model"].pop("hidden_size"),
    "too deep": lambda recipe: recipe.update(model={"depth": 65}),
    "no tokenizer": lambda recipe: recipe.pop("tokenizer"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_the_loader_refuses_is_refused(mistake: str, tmp_path: Path) -> None:
    path, recipe = tmp_path / "mine.yaml", as_an_editor_reads(RECIPE)
    recipe["pretrain"]["optimizer"] = {"lr": 1e-2}
    for right in (True, False):
        path.write_text(yaml.safe_dump(recipe))
        assert CHECK.is_valid(recipe) == right
        if right:
            load_recipe(str(path))
            MISTAKES[mistake](recipe)
    with pytest.raises(UserError):
        load_recipe(str(path))


def test_the_dial_stands_for_the_shape() -> None:
    assert CHECK.is_valid(as_an_editor_reads(RECIPE) | {"model": {"depth": 6, "max_position_embeddings": 256}})


def properties(node: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        for name, inner in node.get("properties", {}).items():
            yield f"{where}/{name}", inner
    for name, inner in node.items() if isinstance(node, dict) else ():
        yield from properties(inner, f"{where}/{name}")


def test_every_key_is_explained() -> None:
    assert [where for where, key in properties(SCHEMA) if not (key.get("description") or "const" in key)] == []


def test_the_command_prints_it(leveret: Command, tmp_path: Path) -> None:
    assert json.loads(leveret("schema", cwd=tmp_path).stdout) == SCHEMA
