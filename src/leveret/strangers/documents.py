"""JSON and YAML within limits: bytes, levels, and what aliases multiply to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from leveret.strangers.files import read_limited

JSON_BYTES = 64 * 2**20
"""Of a JSON file; the largest tokenizer.json in use have about half of it."""
YAML_BYTES = 2**20
"""Of a recipe; ours have some kilobytes."""
LEVELS = 64
"""Of lists and mappings inside one another."""
NODES = 100_000
"""Values of a YAML text, those behind an alias counted as often as they are named."""


def read_json(path: Path, most: int = JSON_BYTES) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large or too deep, or no JSON.
    """
    return parse_json(read_limited(path, most))


def parse_json(content: bytes | str, once: bool = False) -> Any:
    """Raises ValueError for what is no JSON, has too many levels or, with `once`, a key of a mapping twice."""
    try:
        value = json.loads(content, object_pairs_hook=_each_once if once else None)
    except RecursionError:
        raise _too_deep() from None
    level = [value]
    for _ in range(LEVELS):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return value
    raise _too_deep()


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which makes no objects, with limits on levels and on what aliases multiply to; refused is
    a key that is twice in a mapping, since one of its values would be lost."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._level = self._size = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._level += 1
        if self._level > LEVELS:
            raise yaml.YAMLError(str(_too_deep()))
        before, named = self._size, self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if named:
            if id(node) not in self._sizes:
                raise yaml.YAMLError("an alias stands inside what it names")
            self._size += self._sizes[id(node)]
        else:
            self._size += 1
            self._sizes[id(node)] = self._size - before
        if self._size > NODES:
            raise yaml.YAMLError(f"it has more than {NODES:,} values, those behind aliases counted each time")
        self._level -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)[1]
            raise yaml.YAMLError(f"{twice[:80]!r} is there twice, from line {node.start_mark.line + 1} on")
        return node


def parse_yaml(text: str, loader: type[Loader] = Loader) -> Any:
    """Raises yaml.YAMLError for what is no YAML, or beyond the limits."""
    if len(text) > YAML_BYTES:
        raise yaml.YAMLError(f"it has {len(text):,} characters, and at most {YAML_BYTES:,} are read")
    try:
        return yaml.load(text, loader)
    except (ValueError, RecursionError) as error:  # such as a number of a million digits, a date of month 13
        raise yaml.YAMLError(" ".join(str(error).split())[:200]) from None


def read_yaml(path: Path, loader: type[Loader] = Loader) -> Any:
    """The content of a YAML file.

    Raises:
        OSError: it cannot be read.
        yaml.YAMLError: it is no YAML, or beyond the limits.
    """
    try:
        return parse_yaml(read_limited(path, YAML_BYTES).decode("utf-8"), loader)
    except ValueError as error:
        raise yaml.YAMLError(str(error)) from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)[:80]!r} is there twice")
    return found


def _too_deep() -> ValueError:
    return ValueError(f"it has more than {LEVELS} levels")
