"""How text is sampled."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator

from leveret.config import Config
from leveret.errors import UserError

_NOT_WITH_BEAMS = (
    "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "choices", "json_schema",
    "draft_tokens",
)  # fmt: skip


class SamplingConfig(Config):
    """Settings of one generation. temperature 0 is greedy. Bounds keep logits finite."""

    model_config = ConfigDict(allow_inf_nan=False)

    max_new_tokens: int = Field(128, gt=0)
    """Most tokens to generate."""
    temperature: float = Field(0.0, ge=0, le=1000)
    """Logits are divided by it; 0 takes the most probable token."""
    top_k: int | None = Field(None, gt=0)
    """Keep this many most probable tokens."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Keep the fewest most probable tokens that together reach this probability (Holtzman et al., 2020)."""
    min_p: float | None = Field(None, ge=0, le=1)
    """Keep tokens at least this times as probable as the most probable one (Nguyen et al., 2024)."""
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    """Penalty on tokens that have occurred: a logit is divided by it if positive, multiplied if negative."""
    repetition_form: Literal["once", "per-count"] = "once"
    """once: the penalty itself, over prompt and answer (Keskar et al., 2019; transformers). per-count: the penalty to
    the power of the number of occurrences (smallm)."""
    repetition_window: int | None = Field(None, gt=0)
    """Look for occurrences among this many last tokens only. None: all."""
    presence_penalty: float = Field(0.0, ge=-100, le=100)
    """Subtracted from the logits of tokens that the answer has so far (OpenAI's formula)."""
    frequency_penalty: float = Field(0.0, ge=-100, le=100)
    """Subtracted from the logits of the answer's tokens, times how often each has occurred in it (OpenAI's formula)."""
    logit_bias: dict[int, Annotated[float, Field(ge=-1000, le=1000)]] = {}
    """Added to the logits of these token ids."""
    logprobs: int | None = Field(None, ge=0, le=20)
    """Tell each token's log-probability, and those of this many most probable tokens: of the model's own distribution,
    before penalties, temperature and truncation. None: nothing is told."""
    beams: int = Field(1, gt=0)
    """Above 1: beam search of this width, which is greedy and goes through no server."""
    length_penalty: float = Field(1.0, ge=-10, le=10)
    """Beams are ranked by the sum of their log-probabilities divided by their length to this power. Above 0 favours
    long answers."""
    choices: list[Annotated[str, Field(min_length=1)]] = []
    """The answer is one of these texts."""
    json_schema: dict[str, Any] | None = None
    """The answer is JSON that this JSON schema accepts."""
    draft_tokens: int = Field(0, ge=0)
    """Guess this many next tokens from what followed the same words earlier, and have the model check all at once.
    Greedy decoding only, whose answer it leaves as it is."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    """Strings that end the answer; they are not part of it."""
    seed: int | None = None
    """Seed of the draws. None: a new one each time."""

    @model_validator(mode="after")
    def _possible(self) -> SamplingConfig:
        if self.choices and self.json_schema is not None:
            raise ValueError("choices and json_schema exclude each other: give one of them")
        if self.temperature > 0 and self.beams > 1:
            raise ValueError("beams are for temperature 0: set it, or beams to 1")
        for name in _NOT_WITH_BEAMS if self.beams > 1 else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"beams go by the model's own probabilities: leave out {name}, or set beams to 1")
        if self.temperature > 0 and self.draft_tokens:
            raise ValueError("draft_tokens are for temperature 0: set it, or draft_tokens to 0")
        return self

    def changed(self, /, **fields: Any) -> SamplingConfig:
        """These settings with some fields changed.

        Raises:
            UserError: there is no such field, or it cannot have this value.
        """
        try:
            return SamplingConfig.model_validate(self.model_dump() | fields)
        except ValidationError as error:
            first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(name, SamplingConfig.model_fields, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(SamplingConfig.model_fields)}"
            raise UserError(f"no sampling option {name!r}; {hint}")
        if not name:
            raise UserError(first["msg"].removeprefix("Value error, "))
        raise UserError(f"{name}: {first['msg']}, not {first['input']!r}")
