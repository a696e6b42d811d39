"""The parts of the reference that are made out of the code, as Markdown: the recipe's keys and the verbs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import typer

from leveret.cli.app import app
from leveret.schema import recipe_schema
from leveret.training import STAGES

SCHEMA = recipe_schema()
Schema = dict[str, Any]


# --- the command line -----------------------------------------------------------------------------------------------


def commands() -> str:
    """Every verb's --help."""
    return "\n".join(_verbs(typer.main.get_command(app), "leveret", None))


def _verbs(command: Any, name: str, parent: Any) -> Iterator[str]:
    context = command.make_context(
        name.rpartition(" ")[2], [], parent, resilient_parsing=True, terminal_width=80, max_content_width=80
    )
    depth = 2 if parent is None else min(1 + name.count(" "), 3)
    yield f"{'#' * depth} {name}\n\n```text\n{command.get_help(context)}\n```\n"
    for verb, inner in sorted(getattr(command, "commands", {}).items()):
        yield from _verbs(inner, f"{name} {verb}", context)


# --- the recipe -----------------------------------------------------------------------------------------------------


def recipe() -> str:
    """Every key of a recipe, by its whole name, as overrides on the command line say it."""
    top, sections = [], []
    told: dict[str, str] = {}
    for key, node in SCHEMA["properties"].items():
        if (name := _config(node)) is None:
            top += [_entry(key, node, key in SCHEMA["required"])]
            continue
        config = SCHEMA["$defs"][name]
        sections += [f"## {key}\n\n{node['description']}\n\n{config['description']}\n"]
        base = SCHEMA["$defs"]["TrainingConfig"] if key in STAGES[1:] else None
        if base is not None:
            sections += ["Every key of `pretrain` is one here too. These are added, or have another default:\n"]
        sections += list(_keys(key, config, told, base))
    return "\n".join(["## At the top\n", *top, *sections])


def _keys(place: str, config: Schema, told: dict[str, str], base: Schema | None = None) -> Iterator[str]:
    """Entries of a config's keys and of those within them.

    told: where the keys of a config were told, by its name; they are told once.
    base: only keys that differ from this config's.
    """
    shared = {} if base is None else base["properties"]
    required = [key for one in (config, *config.get("anyOf", [])) for key in one.get("required", [])]
    for key, node in config["properties"].items():
        if shared.get(key) == node or "const" in node:
            continue
        name, inner = f"{place}.{key}", _config(node)
        within = name + (".N" if "items" in node else ".NAME" if "additionalProperties" in node else "")
        known = told.get(inner or "")
        yield _entry(name, node, key in required, f"Its keys are those of `{known}`." if known else "")
        if inner is not None and not known:
            told[inner] = within
            inherited = _config(shared[key]) if key in shared else None
            yield from _keys(within, SCHEMA["$defs"][inner], told, SCHEMA["$defs"].get(inherited))
        for kind, each in _kinds(node).items():
            yield f"**{within}** of kind `{kind}`: {each['description']}\n"
            for name, inner_node in each["properties"].items():
                if "const" not in inner_node:
                    yield _entry(f"{within}.{name} ({kind})", inner_node, name in each.get("required", []))


def _entry(name: str, node: Schema, required: bool, more: str = "") -> str:
    """One key: its type, its default, and what its docstring says."""
    lines = [f"```{{confval}} {name}", f":type: {_type(node)}"]
    if required:
        lines += [":default: required"]
    elif not (_config(node) and node.get("default")):  # the keys of a config say their own
        lines += [f":default: `{json.dumps(node.get('default'), ensure_ascii=False)}`"]
    return "\n".join([*lines, "", node["description"], *([""] * bool(more)), more, "```", ""])


def _options(node: Schema) -> list[Schema]:
    """What a value may be, null aside."""
    return [option for option in node.get("anyOf", [node]) if option.get("type") != "null"]


def _config(node: Schema) -> str | None:
    """The name of the config that a key holds, alone, as a list's items or as a mapping's values."""
    for option in _options(node):
        inner = option.get("items", option.get("additionalProperties", option))
        if isinstance(inner, dict) and "$ref" in inner:
            return str(inner["$ref"].rpartition("/")[2])
    return None


def _kinds(node: Schema) -> dict[str, Schema]:
    """Configs of a list that are told apart by their `kind`."""
    mapping = node.get("items", {}).get("discriminator", {}).get("mapping", {})
    return {kind: SCHEMA["$defs"][reference.rpartition("/")[2]] for kind, reference in mapping.items()}


WORDS = {"string": "text", "boolean": "`true` or `false`", "object": "mapping"}
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def _type(node: Schema) -> str:
    """What a value may be, in words."""
    return " or ".join(map(_one_type, _options(node)))


def _one_type(node: Schema) -> str:
    if "enum" in node or "const" in node:
        return ", ".join(f"`{value}`" for value in node.get("enum", [node.get("const")]))
    if "$ref" in node or "oneOf" in node:
        return "mapping"
    if "prefixItems" in node:
        return f"list of {len(node['prefixItems'])}, each: {_one_type(node['prefixItems'][0])}"
    if node["type"] == "array":
        return f"list, each: {_type(node['items'])}"
    if isinstance(values := node.get("additionalProperties"), dict):
        return f"mapping, each value: {_type(values)}"
    kind = node["type"][0] if isinstance(node["type"], list) else node["type"]
    bounds = " and ".join(f"{words} {node[key]}" for key, words in BOUNDS.items() if key in node)
    return f"{WORDS.get(kind, kind)} {bounds}".strip()


PAGES: dict[str, Callable[[], str]] = {"recipe": recipe, "commands": commands}
