"""What goes back to a client: OpenAI's objects, whole or piece by piece."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from leveret.inference.request import Delta, TokenChoice, TokenInfo

LEAST = -9999.0
"""In place of minus infinity, which JSON has no word for."""


@dataclass
class Answer:
    """One answer as it grows."""

    text: str = ""
    tokens: int = 0
    infos: list[TokenInfo] = field(default_factory=list)
    finish: str | None = None

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.tokens += len(delta.tokens)
        self.infos += delta.infos
        self.finish = delta.finish


@dataclass
class Form:
    """The frame of all pieces of one response.

    Args:
        chat: chat.completion, else text_completion.
        logprobs: whether they were asked for.
        opening: for each answer, what stands before its text (the prompt, where echo is asked).
    """

    chat: bool
    model: str
    fingerprint: str
    logprobs: bool
    opening: Sequence[str]

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + secrets.token_hex(12)
        self.created = int(time.time())
        self._offsets = [len(text) for text in self.opening]

    def whole(self, answers: Sequence[Answer], usage: dict[str, Any]) -> dict[str, Any]:
        choices = []
        for index, answer in enumerate(answers):
            choice: dict[str, Any] = {"index": index, "finish_reason": answer.finish}
            if self.chat:
                choice["message"] = {"role": "assistant", "content": answer.text, "refusal": None}
            else:
                choice["text"] = self.opening[index] + answer.text
            choice["logprobs"] = self._logprobs(index, answer.infos)
            choices.append(choice)
        return self._frame("chat.completion" if self.chat else "text_completion", choices) | {"usage": usage}

    def begins(self) -> list[dict[str, Any]]:
        """The first pieces, before any token."""
        if self.chat:
            deltas = [{"role": "assistant", "content": ""} for _ in self.opening]
            return [self._piece({"index": i, "delta": delta}) for i, delta in enumerate(deltas)]
        return [self._piece({"index": i, "text": text}) for i, text in enumerate(self.opening) if text]

    def piece(self, index: int, delta: Delta) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index}
        if self.chat:
            choice["delta"] = {"content": delta.text} if delta.text or delta.finish is None else {}
        else:
            choice["text"] = delta.text
        return self._piece(choice | {"logprobs": self._logprobs(index, delta.infos), "finish_reason": delta.finish})

    def ends(self, usage: dict[str, Any]) -> dict[str, Any]:
        return self._frame("chat.completion.chunk" if self.chat else "text_completion", []) | {"usage": usage}

    def _piece(self, choice: dict[str, Any]) -> dict[str, Any]:
        choice = {"logprobs": None, "finish_reason": None} | choice
        return self._frame("chat.completion.chunk" if self.chat else "text_completion", [choice])

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }

    def _logprobs(self, index: int, infos: Sequence[TokenInfo]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        if self.chat:
            told = [_told(info.chosen) | {"top_logprobs": [_told(top) for top in info.top]} for info in infos]
            return {"content": told, "refusal": None}
        offsets = []
        for info in infos:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(_text(info.chosen))
        return {
            "tokens": [_text(info.chosen) for info in infos],
            "token_logprobs": [_logprob(info.chosen) for info in infos],
            "top_logprobs": [{_text(top): _logprob(top) for top in (info.chosen, *info.top)} for info in infos],
            "text_offset": offsets,
        }


def usage(prompt_tokens: int, longest_prompt: int, answers: Sequence[Answer], context: int) -> dict[str, Any]:
    """Tokens of all prompts and answers, and how much of the context the fullest answer's slot has used."""
    generated = sum(answer.tokens for answer in answers)
    used = longest_prompt + max(answer.tokens for answer in answers)  # the last token of all needs no room
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": generated,
        "total_tokens": prompt_tokens + generated,
        "context": {"used": min(used, context), "limit": context},
    }


def event(content: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def _told(choice: TokenChoice) -> dict[str, Any]:
    return {"token": _text(choice), "logprob": _logprob(choice), "bytes": list(choice.text_bytes)}


def _logprob(choice: TokenChoice) -> float:
    return choice.logprob if math.isfinite(choice.logprob) else LEAST


def _text(choice: TokenChoice) -> str:
    """The token's text; of a piece of a character, its bytes, as OpenAI writes them."""
    try:
        return choice.text_bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in choice.text_bytes)
