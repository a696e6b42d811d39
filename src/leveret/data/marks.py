"""Dialogues as one text whose turns are marked, such as `### Human: ... ### Assistant: ...`."""

import re
from collections.abc import Iterator

from leveret.data.dialogues import Message, Unfit, dialogue

_ROLE_OF = {
    "Human": "user",
    "User": "user",
    "Instruction": "user",
    "Input": "user",
    "Assistant": "assistant",
    "Response": "assistant",
    "System": "system",
}
# Each kind by its user's mark. The first may stand anywhere, as datasets write it; the others begin a line.
_KINDS = {
    "### Human:": re.compile(r"(?<!#)### (Human|Assistant|System):"),
    "### Instruction:": re.compile(r"^### (Instruction|Input|Response|System):", re.MULTILINE),
    "Human:": re.compile(r"^(Human|Assistant|System):", re.MULTILINE),
    "User:": re.compile(r"^(User|Assistant|System):", re.MULTILINE),
}
_BETWEEN = re.compile(r"^-{3,}[ \t]*\r?$(?=\s*(?:### (?:Human|Instruction|System)|Human|User|System):)", re.MULTILINE)


def marked_dialogue(text: str, certain: bool) -> tuple[Message, ...]:
    """The dialogue in a text.

    `certain`: the text is known to be one, so that its first mark says which kind of marks count, and text before
    that is the system's message. Else there must be marks of one kind only, from the start on. Raises Unfit.
    """
    kinds = {kind: found for kind, mark in _KINDS.items() if _both(found := list(mark.finditer(text)))}
    if not kinds:
        raise Unfit(f"no marked turns; known are {', '.join(_KINDS)}, each with its answer's mark")
    marks = min(kinds.values(), key=lambda found: found[0].start())
    before = text[: marks[0].start()].strip()
    if len(kinds) > 1 and not certain:
        raise Unfit(f"marks of several kinds ({', '.join(kinds)}); with `format: marked` the first one counts")
    if before and not certain:
        raise Unfit(f"text before the first mark ({marks[0][0]}); with `format: marked` it is the system's message")
    return dialogue([*[Message("system", before)] * bool(before), *_turns(text, marks)])


def dialogue_texts(text: str) -> Iterator[tuple[int, str]]:
    """The dialogues of a file, each with its line: between them stands a line of three dashes or more."""
    line = 1
    start = 0
    for bar in [*_BETWEEN.finditer(text), None]:
        part = text[start : bar.start() if bar else len(text)]
        body = part.lstrip()
        if body:
            yield line + part[: len(part) - len(body)].count("\n"), body
        if bar:
            line += text.count("\n", start, bar.end())
            start = bar.end()


def begins_marked(text: str) -> bool:
    """Whether a mark stands at the start."""
    return any(mark.match(text.lstrip()) for mark in _KINDS.values())


def _both(marks: list[re.Match[str]]) -> bool:
    return {"user", "assistant"} <= {_ROLE_OF[mark[1]] for mark in marks}


def _turns(text: str, marks: list[re.Match[str]]) -> list[Message]:
    """What stands between the marks; an input is a part of its instruction."""
    said: list[Message] = []
    for mark, end in zip(marks, [mark.start() for mark in marks[1:]] + [len(text)], strict=True):
        content = text[mark.end() : end].strip()
        if mark[1] == "Input":
            if not said or said[-1].role != "user":
                raise Unfit("'### Input:' does not follow '### Instruction:'")
            said[-1] = Message("user", f"{said[-1].content}\n\n{content}".strip())
        elif not content:
            raise Unfit(f"nothing follows the mark '{mark[0]}'")
        else:
            said.append(Message(_ROLE_OF[mark[1]], content))
    return said
