"""What an answer may be: one of some texts, or JSON that a schema accepts."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from leveret.errors import UserError
from leveret.inference.config import SamplingConfig
from leveret.inference.sampling import Constraint
from leveret.tokenizer.tokenizer import Tokenizer


def constraint_of(config: SamplingConfig, tokenizer: Tokenizer) -> Constraint | None:
    """What these settings ask for, at the beginning of an answer. Raises UserError for what cannot be."""
    if config.choices:
        return OneOf(config.choices, tokenizer)
    if config.json_schema is not None:
        return Schema(config.json_schema, tokenizer)
    return None


_END = -1


class OneOf:
    """The answer is one of some texts, each in the tokenizer's own spelling: a path through a tree of tokens."""

    def __init__(self, texts: list[str], tokenizer: Tokenizer) -> None:
        self._end = tokenizer.eos_id
        self._here: dict[int, Any] = {}
        for text in texts:
            node = self._here
            for token in tokenizer.encode(text):
                node = node.setdefault(token, {})
            node[_END] = {}
        if self._end is None and any(other != text and other.startswith(text) for text in texts for other in texts):
            raise UserError("a choice begins another, and this tokenizer has no end token to tell them apart: drop one")

    @property
    def done(self) -> bool:
        return self._here.keys() == {_END}

    def restrict(self, logits_V: Tensor) -> None:
        ids = [self._end if token == _END else token for token in self._here]
        kept = logits_V[ids]
        logits_V.fill_(-torch.inf)
        logits_V[ids] = kept

    def add(self, token: int) -> None:
        self._here = self._here[token]


class Schema:
    """The answer is JSON that a JSON schema accepts, with a space after each colon and comma and no other.

    Raises:
        UserError: the schema is none, or asks for what the library cannot check; the library is not there.
    """

    def __init__(self, schema: dict[str, Any], tokenizer: Tokenizer) -> None:
        try:
            from llguidance import JsonCompiler, LLMatcher
        except ModuleNotFoundError:
            raise UserError("json_schema needs llguidance: pip install 'leveret[serve]'") from None

        compiler = JsonCompiler(separators=(", ", ": "), whitespace_flexible=False)
        try:
            grammar = compiler.compile(json.dumps(schema))
        except ValueError as error:
            raise UserError(f"this JSON schema cannot be followed: {' '.join(str(error).split())[:200]}") from None
        self._matcher = LLMatcher(_known_tokens(tokenizer), grammar, log_level=0)
        if self._matcher.is_error():
            reason = " ".join(self._matcher.get_error().split())
            raise UserError(f"this JSON schema cannot be followed: {reason[:200]}")

    @property
    def done(self) -> bool:
        return bool(self._matcher.is_stopped())

    def restrict(self, logits_V: Tensor) -> None:
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        allowed = (bits[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten()[: len(logits_V)].bool()
        logits_V.masked_fill_(~allowed.to(logits_V.device), -torch.inf)

    def add(self, token: int) -> None:
        self._matcher.consume_token(token)


class _Vocabulary:
    """A tokenizer as llguidance wants it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, None
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_tokens.values())
        self.encode = tokenizer.encode

    def __call__(self, text: bytes | str) -> list[int]:
        return self.encode(text if isinstance(text, str) else text.decode(errors="replace"))


@lru_cache(maxsize=1)
def _known_tokens(tokenizer: Tokenizer) -> Any:
    """Made once for a tokenizer: it looks at every token."""
    from llguidance import LLTokenizer, TokenizerWrapper

    if tokenizer.eos_id is None:
        raise UserError("json_schema needs a tokenizer with an end token (eos_token)")
    return LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer)), n_vocab=tokenizer.vocab_size)
