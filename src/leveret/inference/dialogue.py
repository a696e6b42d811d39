"""A dialogue: who said what, how it is sampled, what of it fits into a context, and its form on disk.

A file of it is JSON: {"format_version": 1, "model": name, "system": text or null, "sampling": {field: value},
"messages": [{"role": "user" or "assistant", "content": text}]}. The chat page imports such files, and what it exports,
{"format_version": 1, "conversations": [{"model", "updated", "turns", ...}]}, is read here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from leveret.errors import UserError
from leveret.strangers.documents import JSON_BYTES, parse_json
from leveret.strangers.files import read_limited

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Fitted:
    """A dialogue as the model will read it: its token ids, and how many of its oldest messages are not among them."""

    ids: list[int]
    left_out: int


def fit(
    messages: Sequence[Mapping[str, str]],
    encode: Callable[[Sequence[Mapping[str, str]]], list[int]],
    context: int,
    answer: int,
) -> Fitted:
    """The most of a dialogue that leaves room for its answer. What goes is the oldest question with its answer, and
    the next; the system's message and the last question stay.

    Args:
        messages: {"role", "content"} each.
        encode: from messages to the ids of the prompt.
        context: tokens that the model reads.
        answer: tokens that the answer may take; room is kept for a quarter of the context at most.

    Raises:
        UserError: the last question alone does not fit.
    """
    room = context - min(answer, context // 4)
    first = int(bool(messages) and messages[0]["role"] == "system")
    asked = [at for at, message in enumerate(messages) if message["role"] == "user" and at > first]
    ids: list[int] = []
    for start in (first, *asked):
        ids = encode([*messages[:first], *messages[start:]])
        if len(ids) <= room:
            return Fitted(ids, start - first)
    if len(ids) < context:
        return Fitted(ids, (asked or [first])[-1] - first)
    raise UserError(f"the message is too long: with what stands around it {len(ids)} tokens, and {context - 1} fit")


class _Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str


class _File(BaseModel):
    """Keys that others write besides are passed over."""

    format_version: int
    model: str | None = None
    system: str | None = None
    sampling: dict[str, Any] = {}
    messages: list[_Message]


@dataclass(slots=True)
class Dialogue:
    """What was said so far.

    model: the name of the model that answers.
    system: what it is told before the first turn.
    sampling: the fields of SamplingConfig that are not as the recipe has them.
    turns: messages of the user and the assistant.
    """

    model: str = ""
    system: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, str]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, str]]:
        """All of it, as chat templates take it."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    def ask(self, text: str) -> None:
        self.turns.append({"role": "user", "content": text})

    def answer(self, text: str) -> None:
        self.turns.append({"role": "assistant", "content": text})

    def back(self) -> str | None:
        """Takes the last question and what came after it back; returns the question, None if there was none."""
        asked = [at for at, turn in enumerate(self.turns) if turn["role"] == "user"]
        if not asked:
            return None
        question = self.turns[asked[-1]]["content"]
        del self.turns[asked[-1] :]
        return question

    def save(self, path: Path) -> None:
        """Writes a file of it, or again into one.

        Raises:
            UserError: there is a file of something else, or it cannot be written.
        """
        if path.exists():
            try:
                Dialogue.load(path)
            except UserError:
                raise UserError(f"{path} is there and is no dialogue; choose another name") from None
        content = {"format_version": FORMAT_VERSION, "model": self.model, "system": self.system}
        content |= {"sampling": self.sampling, "messages": self.turns}
        partial = path.with_name(f".{path.name}.partial")
        try:
            partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8", "surrogatepass")
            partial.replace(path)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None

    @classmethod
    def load(cls, path: Path) -> Dialogue:
        """Reads a file of one; of the chat page's conversations, the one that was changed last.

        Raises:
            UserError: it cannot be read, or is none.
        """
        try:
            text = read_limited(path, JSON_BYTES).decode("utf-8", "surrogatepass")
            found = _File.model_validate(_newest(parse_json(text)))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the whole"
            raise UserError(f"{path} is no dialogue: {place}: {first['msg']}") from None
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise UserError(f"{path} is no dialogue: it is not JSON") from None
        except ValueError as error:
            raise UserError(f"{path} is no dialogue: {error}") from None
        if found.format_version != FORMAT_VERSION:
            raise UserError(
                f"{path} has format_version {found.format_version}, and this Leveret reads {FORMAT_VERSION}"
            )
        turns = [{"role": message.role, "content": message.content} for message in found.messages]
        system = found.system
        if turns and turns[0]["role"] == "system":
            told = turns.pop(0)["content"]
            system = system or told
        if any(turn["role"] == "system" for turn in turns):
            raise UserError(f"{path} is no dialogue: only its first message may be the system's")
        return cls(found.model or "", system, found.sampling, turns)


def _newest(content: Any) -> Any:
    """The newest of a page's conversations in the form of a dialogue; what is something else, as it is."""
    conversations = content.get("conversations") if isinstance(content, dict) else None
    if not isinstance(conversations, list) or not all(isinstance(each, dict) for each in conversations):
        return content
    newest: dict[str, Any] = max(conversations, key=lambda each: str(each.get("updated")), default={})
    return {**content, "model": newest.get("model"), "messages": newest.get("turns")}
