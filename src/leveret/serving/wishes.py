"""From a client's request to what the engine is asked: prompts in tokens, the way of sampling, the limits kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leveret.errors import UserError
from leveret.inference.config import SamplingConfig
from leveret.inference.request import Request
from leveret.serving.config import ServeConfig
from leveret.serving.errors import ApiError
from leveret.serving.schemas import ChatRequest, CompletionRequest, Sampled

if TYPE_CHECKING:
    from leveret.api import LoadedModel

ROLES = {"developer": "system"}
"""Newer names of roles that templates know by older ones."""


def prompts_of(model: LoadedModel, body: CompletionRequest | ChatRequest, config: ServeConfig) -> list[list[int]]:
    """The prompts in tokens, each within the limit. Takes a while, so call it in a thread.

    Raises:
        ApiError: one is too long (with both numbers) or empty, or the template refuses the messages.
    """
    if isinstance(body, ChatRequest):
        prompts = [_dialogue(model, body)]
        field = "messages"
    else:
        prompts = [_tokens(model, prompt) for prompt in _separate(body.prompt)]
        field = "prompt"
    if not all(prompts):
        raise ApiError(400, "The prompt is empty.", field, "empty_prompt")
    room = longest_prompt(model, config)
    if (longest := max(map(len, prompts))) > room:
        raise ApiError(
            400,
            f"The prompt has {longest} tokens, and {room} is the most that this server takes "
            f"(the model's context is {model.engine.context} tokens).",
            field,
            "context_length_exceeded",
        )
    return prompts


def answers_of(body: CompletionRequest | ChatRequest, config: ServeConfig) -> int:
    """How many answers are asked for.

    Raises:
        ApiError: none, or too many.
    """
    prompts = 1 if isinstance(body, ChatRequest) else len(_separate(body.prompt))
    if not prompts:
        raise ApiError(400, "There is no prompt.", "prompt", "empty_prompt")
    if prompts * body.n > config.max_answers:
        raise ApiError(
            400,
            f"{prompts * body.n} answers are asked for, and {config.max_answers} is the most for one request.",
            "n",
            "too_many_answers",
        )
    return prompts * body.n


def longest_prompt(model: LoadedModel, config: ServeConfig) -> int:
    """Tokens; the context has room for one more."""
    return min(config.max_prompt_tokens or model.engine.context, model.engine.context - 1)


def requests_of(
    prompts: list[list[int]], body: CompletionRequest | ChatRequest, sampling: SamplingConfig
) -> list[Request]:
    """One for each answer, n for each prompt; each has a seed of its own."""
    return [
        Request(prompt, sampling.model_copy(update={"seed": None if sampling.seed is None else sampling.seed + number}))
        for prompt in prompts
        for number in range(body.n)
    ]


def sampling_of(model: LoadedModel, body: CompletionRequest | ChatRequest, config: ServeConfig) -> SamplingConfig:
    """How the answers are drawn: as the recipe says, but for what is asked.

    Raises:
        ApiError: a limit of the server is passed, or the sampler refuses a value.
    """
    stop = [body.stop] if isinstance(body.stop, str) else body.stop
    _few("stop", len(stop or ()), config.max_stop_strings, "stop strings")
    _few("logit_bias", len(body.logit_bias or ()), config.max_logit_bias, "entries")
    bias = {int(token): added for token, added in (body.logit_bias or {}).items()}
    if any(token >= model.tokenizer.vocab_size for token in bias):
        raise ApiError(400, f"Token ids go up to {model.tokenizer.vocab_size - 1}.", "logit_bias")
    wanted = getattr(body, "max_completion_tokens", None) or body.max_tokens
    wanted = wanted or model.recipe.generation.max_new_tokens
    asked: dict[str, Any] = {
        "max_new_tokens": min(wanted, config.max_new_tokens or wanted, model.engine.context),
        "temperature": body.temperature,
        "top_k": body.top_k,
        "top_p": body.top_p,
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "logit_bias": bias or None,
        "stop": stop,
        "seed": body.seed,
        "logprobs": _logprobs(body),
        "json_schema": _schema(body),
    }
    if body.top_p == 0:  # the most probable token alone
        asked |= {"top_p": None, "temperature": 0.0}
    try:
        sampling = model.sampling(**asked)
    except UserError as error:
        raise ApiError(400, str(error)) from None
    return sampling.model_copy(update={"top_k": None}) if body.top_k == 0 else sampling


def _few(field: str, count: int, most: int, what: str) -> None:
    if count > most:
        raise ApiError(400, f"{count} {what} are more than {most}.", field, "too_many")


def _logprobs(body: Sampled) -> int | None:
    if isinstance(body, ChatRequest):
        return (body.top_logprobs or 0) if body.logprobs else None
    return body.logprobs if isinstance(body, CompletionRequest) else None


def _schema(body: Sampled) -> dict[str, Any] | None:
    """The JSON schema that the answer is held to, if one is."""
    form = body.response_format
    if form is None or form.type == "text":
        return None
    return {"type": "object"} if form.json_schema is None else form.json_schema.json_schema


def _dialogue(model: LoadedModel, body: ChatRequest) -> list[int]:
    messages = [{"role": ROLES.get(message.role, message.role), "content": message.text} for message in body.messages]
    try:
        return model.prompt_ids(messages)
    except UserError:  # its words may be the prompt's
        raise ApiError(
            400, "The chat template refuses these messages: look at their roles and order.", "messages"
        ) from None


def _separate(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """The prompts, where one alone may stand without a list around it."""
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [[token for token in prompt if isinstance(token, int)]]
    return [each for each in prompt if not isinstance(each, int)]


def _tokens(model: LoadedModel, prompt: str | list[int]) -> list[int]:
    if isinstance(prompt, str):
        return model.encode(prompt, raw=True)
    if any(token >= model.tokenizer.vocab_size for token in prompt):
        raise ApiError(400, f"Token ids go up to {model.tokenizer.vocab_size - 1}.", "prompt")
    return prompt
