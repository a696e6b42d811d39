"""A way of sampling as generation_config.json has it, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leveret.errors import UserError
from leveret.inference.config import SamplingConfig
from leveret.rundir import read_json

TRUNCATIONS = ("top_k", "top_p", "min_p")
REST = "leveret_sampling"
"""The key under which a file of ours says what transformers has no key for; transformers lets it be."""
TOP_K = 50
"""transformers' own, where a file that draws says nothing."""


def facts_of_sampling(config: SamplingConfig, context: int) -> dict[str, Any]:
    """What transformers has a key for, and the rest under a key of our own.

    Args:
        context: tokens. transformers does not slide its window, so that an answer that may be longer ends there.
    """
    keys = TRUNCATIONS if config.temperature else ()
    fits = config.max_new_tokens < context
    out: dict[str, Any] = {"max_new_tokens": config.max_new_tokens} if fits else {"max_length": context}
    out["do_sample"] = config.temperature > 0
    out |= {key: value for key in keys if (value := getattr(config, key)) is not None}
    if config.temperature:
        out |= {"temperature": config.temperature, "top_k": config.top_k or 0}
    if config.repetition_penalty != 1.0 and config.repetition_form == "once" and config.repetition_window is None:
        out["repetition_penalty"] = config.repetition_penalty
    understood = _understood(out, "what is written").model_dump()
    rest = {key: value for key, value in config.model_dump(mode="json").items() if value != understood[key]}
    return out | ({REST: rest} if rest else {})


def sampling_of(path: Path) -> SamplingConfig:
    """What a generation_config.json says; the usual way where there is none.

    Raises:
        UserError: it says what cannot be.
    """
    try:
        facts = read_json(path) or {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    if not isinstance(facts, dict):
        raise UserError(f"{path} holds no mapping")
    return _understood(facts, str(path))


def _understood(facts: dict[str, Any], where: str) -> SamplingConfig:
    known = {key: value for key in ("max_new_tokens", "repetition_penalty") if (value := facts.get(key)) is not None}
    if facts.get("do_sample"):
        found = {"top_k": TOP_K} | {key: facts[key] for key in TRUNCATIONS if key in facts}
        known |= {"temperature": facts.get("temperature") or 1.0} | {key: found.get(key) or None for key in TRUNCATIONS}
    rest = facts.get(REST, {})
    if not isinstance(rest, dict):
        raise UserError(f"{where}: {REST} is no mapping")
    try:
        return SamplingConfig().changed(**known | rest)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
