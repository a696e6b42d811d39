"""The JSON Schema of recipes: editors complete and check YAML with it, and the reference of the docs is made from it.

It is stricter than the loader in nothing that a person would write, and laxer in what needs two keys to be judged
(a source's fields by its kind, lengths against the context): that `leveret describe` tells.
"""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from leveret.depth import DEPTHS
from leveret.recipe import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"
UNDERSCORED = r"^[-+]?[0-9]+(_[0-9]+)*$"
"""A whole number as YAML 1.1 lets it be written, 2_000_000; to an editor that knows YAML 1.2 only, it is a text."""


class _Generate(GenerateJsonSchema):
    """Without a title for each field, which says what its key says."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def int_schema(self, schema: Any) -> dict[str, Any]:
        return super().int_schema(schema) | {"type": ["integer", "string"], "pattern": UNDERSCORED}


def recipe_schema() -> dict[str, Any]:
    """Every key of a recipe file with its type, bounds, default and documentation; the dial model.depth among them."""
    schema = Recipe.model_json_schema(schema_generator=_Generate)
    model = schema["$defs"]["ModelConfig"]
    shape = model.pop("required")
    model["properties"] = {
        "depth": {
            "type": "integer",
            "minimum": DEPTHS[0],
            "maximum": DEPTHS[-1],
            "description": "The one dial: a number of layers, from which width, heads, feed-forward layer, context, "
            "tokens, batch and rates follow, as far as the recipe leaves them open.",
        }
    } | model["properties"]
    model["anyOf"] = [{"required": ["depth"]}, {"required": shape}]
    return {"$schema": DIALECT, **schema, "title": "Leveret recipe"}
