"""What may be asked: the fields of OpenAI's requests that mean something here, and a few of the sampler's own.

A field that this server does not know is refused, not ignored: whoever sends tools, or a chat template, would believe
that they had an effect. Fields that say nothing about the answer are let through.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

LARGEST = 2**31 - 1
HARMLESS = frozenset(
    {
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "parallel_tool_calls",
    }
)  # fmt: skip
"""Fields about bookkeeping elsewhere."""

Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, le=LARGEST)]
Finite = Field(default=None, allow_inf_nan=False)


class Strict(BaseModel):
    """Unknown fields are refused; null means not given."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nothing(cls, content: Any) -> Any:
        """Drops nulls, and what is harmless."""
        if not isinstance(content, dict):
            return content
        return {key: value for key, value in content.items() if value is not None and key not in HARMLESS}


class StreamOptions(Strict):
    include_usage: bool = False
    """A last piece tells the tokens used."""
    include_obfuscation: bool = False
    """Taken and without effect: there is no padding here."""


class JsonSchema(Strict):
    name: Annotated[str, StringConstraints(max_length=64)] = "answer"
    description: Annotated[str, StringConstraints(max_length=4096)] | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _complete(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("type json_schema and the field json_schema go together")
        return self


class Sampled(Strict):
    """What both kinds of requests have."""

    model: Annotated[str, StringConstraints(max_length=256)] | None = None
    """The name that /v1/models tells, or none."""
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=128)
    """Answers to each prompt; the first has the seed, the others those that follow."""
    max_tokens: int | None = Field(None, ge=1, le=LARGEST)
    """Most tokens of an answer; it also ends with the context. None: the recipe's number."""
    temperature: float | None = Field(None, ge=0, le=2)
    """0 takes the most probable token. None, here and below: as the recipe says."""
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, le=LARGEST)
    """Not OpenAI's. 0: no limit."""
    min_p: float | None = Field(None, ge=0, le=1)
    """Not OpenAI's."""
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    """Not OpenAI's."""
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")], Bias] | None = None
    """Token id to what is added to its logit."""
    stop: Stop | list[Stop] | None = None
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    response_format: ResponseFormat | None = None


class CompletionRequest(Sampled):
    """A text to go on with, or several; token ids where they are known."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    echo: bool = False
    """The answer begins with the prompt."""
    logprobs: int | None = Field(None, ge=0, le=20)
    """How many most probable tokens are told at each place, besides the chosen one."""
    best_of: int | None = Field(None, ge=1, le=128)
    """Only n itself: answers are not ranked."""
    suffix: Literal[""] | None = None
    """Nothing can be put behind the answer."""

    @model_validator(mode="after")
    def _possible(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != self.n:
            raise ValueError("best_of must be n: answers are not ranked here")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo and logprobs do not go together: log-probabilities are of the answer only")
        return self


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ChatMessage(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart]
    name: Annotated[str, StringConstraints(max_length=64)] | None = None
    """Taken and not shown to the model: templates have no place for it."""

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(Sampled):
    """A dialogue to be answered, within the model's own chat template."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=2048)
    max_completion_tokens: int | None = Field(None, ge=1, le=LARGEST)
    """The newer name of max_tokens."""
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Any] | None = Field(None, max_length=0)
    """None can be called."""

    @model_validator(mode="after")
    def _possible(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self
