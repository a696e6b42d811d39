"""What an hour of a GPU costs: from a small dated file that the user can replace, each price with its source."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, ValidationError

from leveret.config import Config, config_dir
from leveret.errors import UserError
from leveret.strangers.documents import Loader, read_yaml

Text = Annotated[str, BeforeValidator(str)]
"""YAML takes 2024-05-28 for a date and 2025 for a number."""


class Price(Config):
    """What an hour of one GPU costs."""

    dollars_an_hour: float = Field(ge=0)
    """Dollars."""
    source: str
    """Who asks it."""
    date: Text
    """When it was looked up."""


class PriceList(Config):
    """All that is known of prices."""

    date: Text
    """When the list was made."""
    prices: dict[str, Price]
    """By GPU, as --gpu names them."""


def read_prices(path: Path | None = None) -> PriceList:
    """The file that is named, else the user's own prices.yaml, else ours.

    Raises:
        UserError: it cannot be read, or is no price list.
    """
    own = config_dir() / "prices.yaml"
    found = path or (own if own.is_file() else Path(str(resources.files("leveret.hardware") / "prices.yaml")))
    try:
        content: Any = read_yaml(found, Loader)
        return PriceList.model_validate(content)
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{found} is no price list: {' '.join(str(error).split())[:200]}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{found} is no price list: {where}: {first['msg']}") from None
