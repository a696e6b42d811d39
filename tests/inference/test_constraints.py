"""Answers that must be one of some texts, or JSON that a schema accepts."""

import json
import sys
from typing import Any

import jsonschema
import pytest
from tiny_engine import decoder, prompts

from leveret.errors import UserError
from leveret.inference.config import SamplingConfig
from leveret.inference.engine import Engine
from leveret.inference.request import Request
from leveret.tokenizer import SpecialRoles, Tokenizer

CHOICES = ["yes", "no", "not at all", "né"]


@pytest.fixture(scope="module")
def engine(tokenizer: Tokenizer) -> Engine:
    return Engine(decoder(256), tokenizer)


def test_an_answer_is_one_of_the_choices(engine: Engine) -> None:
    """Even where one begins another; each can come."""
    config = SamplingConfig(temperature=30.0, choices=CHOICES, seed=0)
    answers = engine.generate(prompts(4) * 60, config)
    assert {answer.text for answer in answers} == set(CHOICES)
    assert {answer.finish for answer in answers} == {"stop"}


def test_greedy_goes_by_the_probabilities_of_what_may_come(engine: Engine) -> None:
    (prompt,) = prompts(5)
    config = SamplingConfig(choices=["a", "b", "c"], logprobs=0)
    (answer,) = engine.generate([prompt], config)
    each = [engine.generate([prompt], SamplingConfig(choices=[one], logprobs=0))[0] for one in "abc"]
    assert answer.text == max(each, key=lambda one: one.infos[0].chosen.logprob).text


def test_a_choice_cut_short_says_so(engine: Engine) -> None:
    (answer,) = engine.generate(prompts(3), SamplingConfig(choices=["not at all"], max_new_tokens=3))
    assert (answer.text, answer.finish) == ("not", "length")


def test_without_an_end_token_no_choice_may_begin_another(tokenizer: Tokenizer) -> None:
    endless = Engine(decoder(), Tokenizer(tokenizer.definition, SpecialRoles()))
    assert endless.generate(prompts(3), SamplingConfig(choices=["yes"]))[0].text == "yes"
    with pytest.raises(UserError, match="begins another"):
        endless.generate(prompts(3), SamplingConfig(choices=["no", "not"]))


SCHEMAS: dict[str, dict[str, Any]] = {
    "object": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "kind": {"enum": ["hare", "rabbit", None]},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "array": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 4},
    "nested": {
        "type": "object",
        "properties": {"at": {"$ref": "#/$defs/point"}},
        "required": ["at"],
        "additionalProperties": False,
        "$defs": {
            "point": {
                "type": "array",
                "prefixItems": [{"type": "integer", "minimum": -9, "maximum": 9}, {"enum": ["x", "y"]}],
                "minItems": 2,
                "items": False,
            }
        },
    },
    "choice": {"anyOf": [{"const": 7}, {"type": "string", "pattern": "^[a-c]{1,3}$"}]},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_answer_is_valid(engine: Engine, name: str) -> None:
    schema = SCHEMAS[name]
    config = SamplingConfig(max_new_tokens=150, temperature=1.5, json_schema=schema, seed=1)
    answers = engine.generate(prompts(*range(2, 32)), config)
    for answer in [*answers, *engine.generate(prompts(3), config.model_copy(update={"temperature": 0.0}))]:
        assert answer.finish == "stop"
        jsonschema.validate(json.loads(answer.text), schema)
    assert len({answer.text for answer in answers}) > 3


def test_those_with_and_without_a_schema_keep_company(engine: Engine) -> None:
    scheduler = engine.scheduler(2)

    free = Request(prompts(4)[0], SamplingConfig(max_new_tokens=20), ignore_end=True)
    bound = Request(prompts(5)[0], SamplingConfig(max_new_tokens=150, json_schema=SCHEMAS["array"]))
    texts = {free: "", bound: ""}
    for each in texts:
        scheduler.submit(each)
    while scheduler.running or scheduler.waiting:
        for delta in scheduler.step():
            texts[delta.request] += delta.text
    jsonschema.validate(json.loads(texts[bound]), SCHEMAS["array"])
    assert texts[free] == engine.generate([free.prompt], free.sampling, ignore_end=True)[0].text


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"$ref": "#/nowhere"}, {"pattern": "(", "type": "string"}])
def test_an_impossible_schema_is_refused(engine: Engine, schema: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="JSON schema") as caught:
        engine.generate(prompts(3), SamplingConfig(json_schema=schema))
    assert "\n" not in str(caught.value)


def test_without_the_library_it_says_what_to_install(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UserError, match="pip install"):
        engine.generate(prompts(3), SamplingConfig(json_schema={"type": "null"}))


def test_only_one_constraint() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        SamplingConfig(choices=["a"], json_schema={})
