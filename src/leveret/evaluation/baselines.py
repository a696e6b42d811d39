"""Public models to compare with, and what was published of them: baselines.yaml."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import yaml

from leveret.errors import UserError


@cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(resources.files(__package__).joinpath("baselines.yaml").read_text("utf-8"))
    return content


def baselines(name: str) -> list[str]:
    """References of a set of models, `ORG/NAME@REVISION`.

    Raises:
        UserError: there is no such set.
    """
    sets = _content()["sets"]
    if name not in sets:
        raise UserError(f"--baselines: there is no set {name!r}; there are {', '.join(sets)}")
    return [f"{entry['model']}@{entry['revision']}" for entry in sets[name]]


def published(name: str) -> list[dict[str, Any]]:
    """What others measured, {"name", "tokens", "protocol", "source", "figures"} each, shares in percent by task."""
    found: list[dict[str, Any]] = _content()["published"].get(name, [])
    return found
