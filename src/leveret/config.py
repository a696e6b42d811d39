"""The base of every config: frozen, strict about keys, lax about numbers, documented by field; the user's folders."""

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen piece of a recipe. Unknown keys are refused; each field's docstring is its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def cache_dir() -> Path:
    """Where lies what can be made again, such as token shards: $LEVERET_CACHE or ~/.cache/leveret."""
    return Path(os.environ.get("LEVERET_CACHE") or Path.home() / ".cache" / "leveret").absolute()


def config_dir() -> Path:
    """Where the user's own settings lie, such as prices: $LEVERET_CONFIG or ~/.config/leveret."""
    return Path(os.environ.get("LEVERET_CONFIG") or Path.home() / ".config" / "leveret").absolute()
