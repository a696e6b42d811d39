"""Text files to rows of examples: blocks under headings, dialogues with marked turns, two files aligned by line."""

import re
from collections.abc import Iterator
from pathlib import Path

from leveret.data.config import ExampleFormat
from leveret.data.marks import begins_marked, dialogue_texts
from leveret.data.readers import read_text
from leveret.data.rows import Drop, Row
from leveret.errors import UserError

_HEADING = re.compile(r"\s*(instruction|command)\s*:?\s*", re.IGNORECASE)


def text_rows(path: Path, format: ExampleFormat, drop: Drop) -> Iterator[tuple[str, Row]]:
    """(where, row) of a .txt: {"instruction", "command"} of blocks, {"text"} of dialogues.

    With `auto` there are blocks where a line is one of their headings, unless the first one begins with a mark. Raises
    UserError for a format that no .txt has.
    """
    if format not in ("auto", "raw", "marked"):
        raise UserError(f"{path}: a .txt file has the format 'raw' or 'marked', not '{format}'")
    text = read_text(path, drop).replace("\r\n", "\n")
    headed = not begins_marked(text) and any(map(_HEADING.fullmatch, text.split("\n")))
    if format == "raw" or (format == "auto" and headed):
        yield from _blocks(text, path, drop)
    else:
        yield from ((f"{path}:{line}", {"text": part}) for line, part in dialogue_texts(text))


def aligned_rows(instructions: Path, commands: Path, drop: Drop) -> Iterator[tuple[str, Row]]:
    """(where, row): line n of one file answered by line n of the other; `Instruction: ` before a line is taken off."""
    asked, answered = _lines(instructions, drop), _lines(commands, drop)
    if len(asked) != len(answered):
        told = f"{instructions} has {len(asked)} lines, {commands} has {len(answered)}"
        drop(str(instructions), f"not aligned ({told}; they must agree line by line)")
        return
    for number, (instruction, command) in enumerate(zip(asked, answered, strict=True), start=1):
        instruction = re.sub(r"^\s*instruction:", "", instruction, flags=re.IGNORECASE).strip()
        command = command.strip()
        if instruction or command:
            path = instructions if command else commands
            yield f"{path}:{number}", {"instruction": instruction, "command": command}


def _lines(path: Path, drop: Drop) -> list[str]:
    return read_text(path, drop).replace("\r\n", "\n").rstrip().split("\n")


def _blocks(text: str, path: Path, drop: Drop) -> Iterator[tuple[str, Row]]:
    """Blocks headed `Instruction` and `Command` in turn, each heading alone on its line, bodies of any length."""
    asked: tuple[int, str] | None = None
    for number, heading, body in _headed(text, path, drop):
        if heading == "instruction":
            if asked:
                drop(f"{path}:{asked[0]}", "this instruction has no command")
            asked = number, body
        elif asked is None:
            drop(f"{path}:{number}", "this command has no instruction")
        else:
            yield f"{path}:{asked[0]}", {"instruction": asked[1], "command": body}
            asked = None
    if asked:
        drop(f"{path}:{asked[0]}", "this instruction has no command")


def _headed(text: str, path: Path, drop: Drop) -> Iterator[tuple[int, str, str]]:
    """(line number of the heading, heading in small letters, body without blank lines and spaces around it)."""
    start, heading = 0, ""
    body: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if found := _HEADING.fullmatch(line):
            if heading:
                yield start, heading, "\n".join(body).strip()
            elif any(map(str.strip, body)):
                drop(f"{path}:1", "text before the first heading 'Instruction'")
            start, heading, body = number, found[1].lower(), []
        else:
            body.append(line)
    if heading:
        yield start, heading, "\n".join(body).strip()
    elif text.strip():
        drop(f"{path}:1", "no heading 'Instruction'")
