"""Rows of every format to examples and preference pairs."""

from typing import get_args

from leveret.data.config import ExampleFormat
from leveret.data.dialogues import Example, Message, Preference, Unfit, dialogue, messages_of, names, text_of
from leveret.data.marks import marked_dialogue
from leveret.data.rows import Row

# Fields of each format as (question, possible names of the answer), in the order `auto` tries them.
_FIELDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "instruction-command": ("instruction", ("command",)),
    "prompt-completion": ("prompt", ("completion", "response")),
    "instruction-response": ("instruction", ("output", "response")),
    "question-answer": ("question", ("answer",)),
}
_EXTRA = ("input", "context")  # Alpaca's and Dolly's name for what the instruction is about
_ANSWERS = ("chosen", "rejected")
_CONTENT = {"messages", "instruction", *_EXTRA, "command", "prompt", "completion", "output", "response", *_ANSWERS}


def example_of(row: Row, format: ExampleFormat, source: str, where: str) -> Example:
    """The example in a row, in the format or, with `auto`, in the first that has all its fields. Raises Unfit."""
    kind = _detect(row) if format == "auto" else format
    if kind == "preference":
        return preference_of(row, source, where).example
    if kind == "raw":
        raise Unfit("'raw' is the format of .txt files; leave it 'auto' here")
    used = set(_CONTENT)
    if kind == "messages":
        said = messages_of(row.get("messages"), "messages")
    elif kind == "marked":
        used |= {"text"}
        said = list(marked_dialogue(text_of(row, "text"), certain=format == "marked"))
    else:
        question, answers = _FIELDS[kind]
        used |= {question, *answers}
        answer = next((name for name in answers if row.get(name) is not None), answers[0])
        asked = _instruction(row) if kind == "instruction-response" else text_of(row, question)
        said = [Message("user", asked), Message("assistant", text_of(row, answer))]
    return Example(dialogue(said), source, {key: value for key, value in row.items() if key not in used}, where)


def preference_of(row: Row, source: str, where: str) -> Preference:
    """The preference pair in a row. Raises Unfit.

    `chosen` and `rejected` are answers to `prompt` (a text or messages) or to `instruction` and `input`, or they are
    dialogues, as messages or as texts with marked turns, that differ in their last message only.
    """
    prompt = _prompt(row)
    better, chosen = _answered(row, "chosen", prompt)
    worse, rejected = _answered(row, "rejected", prompt)
    if better != worse:
        raise Unfit("'chosen' and 'rejected' differ before their last message")
    if chosen.strip() == rejected.strip():
        raise Unfit("'chosen' and 'rejected' are the same")
    for answer in (chosen, rejected):
        dialogue([*better, Message("assistant", answer)])
    meta = {key: value for key, value in row.items() if key not in _CONTENT}
    return Preference(tuple(better), chosen, rejected, source, meta, where)


def pair_or_example_of(row: Row, format: ExampleFormat, source: str, where: str) -> Preference | Example:
    """The preference pair in a row that has both answers, else its example. Raises Unfit."""
    if format in ("auto", "preference") and all(row.get(name) is not None for name in _ANSWERS):
        return preference_of(row, source, where)
    return example_of(row, format, source, where)


def _detect(row: Row) -> str:
    given = {name for name, value in row.items() if value is not None}
    if "messages" in given:
        return "messages"
    for kind, (question, answers) in _FIELDS.items():
        if question in given and not given.isdisjoint(answers):
            return kind
    if given.issuperset(_ANSWERS):
        return "preference"
    if "text" in given:
        return "marked"
    known = ", ".join(name for name in get_args(ExampleFormat) if name not in ("auto", "raw"))
    raise Unfit(f"fits no known format; its fields are: {names(row)}; known are {known}")


def _instruction(row: Row) -> str:
    """The instruction, and below it what it is about."""
    instruction = text_of(row, "instruction")
    about = next((name for name in _EXTRA if _given(row.get(name))), None)
    return f"{instruction}\n\n{text_of(row, about)}" if about else instruction


def _given(value: object) -> bool:
    return bool(value.strip() if isinstance(value, str) else value)


def _prompt(row: Row) -> list[Message] | None:
    """What both answers of a pair answer; None where they bring it themselves."""
    if isinstance(prompt := row.get("prompt"), list):
        return messages_of(prompt, "prompt")
    if prompt is not None:
        return [Message("user", text_of(row, "prompt"))]
    return None if row.get("instruction") is None else [Message("user", _instruction(row))]


def _answered(row: Row, name: str, prompt: list[Message] | None) -> tuple[list[Message], str]:
    """What stands before an answer of a pair, and the answer."""
    value = row.get(name)
    if not isinstance(value, list):
        text = text_of(row, name)
        if prompt is not None:
            return prompt, text
        said = list(marked_dialogue(text, certain=True))
    elif not (said := messages_of(value, name)) or said[-1].role != "assistant":
        raise Unfit(f"the last message of '{name}' is not the assistant's")
    *before, answer = said
    if before and prompt is not None and before != prompt:
        raise Unfit(f"'{name}' does not begin with the prompt")
    return before or prompt or [], answer.content
