"""The base of every config: frozen, strict about keys, lax about numbers, documented field by field."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen piece of a recipe. Unknown keys are refused; each field's docstring is its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
