"""Examples for fine-tuning and evaluation: dialogues that end in an answer, out of any of the usual formats.

    messages              {"messages": [{"role", "content"}, ...]}
    instruction-command   {"instruction", "command"}
    prompt-completion     {"prompt", "completion"} or {"prompt", "response"}
    instruction-response  {"instruction", "input" (may be missing or empty), "output" or "response"}
    raw                   .txt with blocks headed `Instruction` and `Command`
    a.txt,b.txt           two files aligned line by line, instructions in the first

The first four come as .jsonl, .json or .parquet, or from the hub; all but .parquet may be compressed.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, get_args

from leveret.data.config import ExampleFormat, ExamplesConfig
from leveret.data.readers import read_rows, read_text
from leveret.data.rows import Row, checked
from leveret.data.sources import dataset_rows, find_files, generator, label, not_empty
from leveret.data.streams import file_format
from leveret.errors import UserError

ROLES = ("system", "user", "assistant")

# Fields of each format as (question, possible names of the answer), in the order `auto` tries them.
_FIELDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "instruction-command": ("instruction", ("command",)),
    "prompt-completion": ("prompt", ("completion", "response")),
    "instruction-response": ("instruction", ("output", "response")),
}
_EXTRA = ("input", "context")  # Alpaca's and Dolly's name for what the instruction is about
_CONTENT = {"messages", "instruction", *_EXTRA, "command", "prompt", "completion", "output", "response"}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks (`system`, `user` or `assistant`) and what."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """A dialogue whose last message is the assistant's answer to learn or to be judged by."""

    messages: tuple[Message, ...]
    source: str = ""
    """Label of the file, dataset or generator it came from."""
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Whatever else its row says, such as an intent or a category."""

    @property
    def instruction(self) -> str:
        """What the user said last."""
        return next(message.content for message in reversed(self.messages) if message.role == "user")

    @property
    def response(self) -> str:
        """What the assistant said last."""
        return next(message.content for message in reversed(self.messages) if message.role == "assistant")


def one_turn(instruction: str, response: str, source: str = "", meta: Mapping[str, Any] | None = None) -> Example:
    """The example of one question and its answer."""
    return Example((Message("user", instruction), Message("assistant", response)), source, dict(meta or {}))


def examples(
    config: ExamplesConfig,
    base_dir: Path,
    generators: Mapping[str, Callable[..., Iterable[Example]]],
) -> Iterator[Example]:
    """The examples of one source, in order.

    `base_dir` is what relative paths start from; `generators` are the known ones by name. Raises UserError for
    a row that is not an example, naming file and line, and at the end if there was none at all.
    """
    found: Iterator[Example]
    match config.kind:
        case "files":
            found = chain.from_iterable(_entry(path, base_dir, config.format) for path in config.paths)
        case "hub":
            source = str(config.name)
            found = (_from_row(row, config.format, where, source) for where, row in dataset_rows(config))
        case "generated":
            found = iter(generator(config, generators)())
    kept = (e for e in found if all(str(e.meta.get(key)) in wanted for key, wanted in config.where.items()))
    return not_empty(islice(kept, config.max_examples), "examples", config)


def read_examples(path: str | Path, format: ExampleFormat = "auto") -> Iterator[Example]:
    """The examples of a file, a folder, a glob or a pair `instructions.txt,commands.txt`, in order.

    Raises UserError for what cannot be read or is no example, naming file and line.
    """
    return examples(ExamplesConfig(paths=[str(path)], format=format), Path(), {})


def write_examples(path: Path, examples: Iterable[Example]) -> int:
    """Write .jsonl that `read_examples` reads back, meta included; returns the count.

    One-turn examples without a system message are {"instruction", "command"}, the others {"messages"}. The file
    takes its place only when all of it is written.
    """
    if path.suffix != ".jsonl":
        raise UserError(f"{path}: examples are written as .jsonl; choose a name that ends so")
    part = path.with_name(path.name + ".part")
    count = 0
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            for example in examples:
                file.write(json.dumps(_to_row(example), ensure_ascii=False, default=str) + "\n")
                count += 1
        part.replace(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: its folder does not exist; make it first") from error
    finally:
        part.unlink(missing_ok=True)
    return count


def _to_row(example: Example) -> Row:
    if [message.role for message in example.messages] == ["user", "assistant"]:
        return {"instruction": example.instruction, "command": example.response, **example.meta}
    messages = [{"role": message.role, "content": message.content} for message in example.messages]
    return {"messages": messages, **example.meta}


# --- rows ----------------------------------------------------------------------------------------------------


def _entry(entry: str, base_dir: Path, format: ExampleFormat) -> Iterator[Example]:
    """The examples of one entry of `paths`."""
    paths = find_files([entry], base_dir)
    if not (base_dir / entry).exists() and "," in entry and [file_format(path) for path in paths] == [".txt"] * 2:
        yield from _aligned(paths[0], paths[1], label(paths[0], base_dir))
        return
    for path in paths:
        source = label(path, base_dir)
        if file_format(path) == ".txt":
            yield from _raw(path, format, source)
        else:
            for number, row in read_rows(path):
                yield _from_row(row, format, f"{path}:{number}", source)


def _from_row(row: Row, format: ExampleFormat, where: str, source: str) -> Example:
    meta = {key: value for key, value in row.items() if key not in _CONTENT}
    kind = _detect(row, where) if format == "auto" else format
    if kind == "messages":
        return Example(_messages(row.get("messages"), where), source, meta)
    if kind == "raw":
        raise UserError(f"{where}: 'raw' is the format of .txt files; leave it 'auto' here")
    question, answers = _FIELDS[kind]
    answer = next((name for name in answers if row.get(name) is not None), answers[0])
    instruction = _text(row, question, where)
    if kind == "instruction-response" and (extra := next((name for name in _EXTRA if row.get(name)), None)):
        instruction += "\n\n" + _text(row, extra, where)
    return one_turn(instruction, _text(row, answer, where), source, meta)


def _detect(row: Row, where: str) -> str:
    given = {name for name, value in row.items() if value is not None}
    if "messages" in given:
        return "messages"
    for kind, (question, answers) in _FIELDS.items():
        if question in given and not given.isdisjoint(answers):
            return kind
    known = ", ".join(name for name in get_args(ExampleFormat) if name not in ("auto", "raw"))
    raise UserError(f"{where}: fields {', '.join(row) or '(none)'} fit none of the formats {known}")


def _text(row: Row, name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        problem = "missing" if value is None else "empty" if isinstance(value, str) else "not text"
        raise UserError(f"{where}: '{name}' is {problem}; there are: {', '.join(row)}")
    return checked(value, where)


def _messages(turns: object, where: str) -> tuple[Message, ...]:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UserError(f"{where}: 'messages' must be a list of objects with 'role' and 'content'")
    for turn in turns:
        if turn.get("role") not in ROLES:
            raise UserError(f"{where}: unknown role {turn.get('role')!r}; known are {', '.join(ROLES)}")
    messages = tuple(Message(turn["role"], _text(turn, "content", where)) for turn in turns)
    roles = [message.role for message in messages]
    if "user" not in roles or roles[-1] != "assistant":
        raise UserError(f"{where}: a dialogue needs a message of the user and must end with the assistant's")
    return messages


# --- text files ----------------------------------------------------------------------------------------------

_HEADING = re.compile(r"\s*(instruction|command)\s*:?\s*", re.IGNORECASE)


def _raw(path: Path, format: ExampleFormat, source: str) -> Iterator[Example]:
    """Blocks headed `Instruction` and `Command` in turn, each heading alone on its line, bodies of any length."""
    if format not in ("auto", "raw"):
        raise UserError(f"{path}: a .txt file has the format 'raw', not '{format}'")
    instruction = ""
    expected = "instruction"
    for number, heading, body in _blocks(path):
        where = f"{path}:{number}"
        if heading != expected:
            raise UserError(f"{where}: expected the heading '{expected.title()}', found '{heading.title()}'")
        if not body:
            raise UserError(f"{where}: nothing stands under the heading '{heading.title()}'")
        if heading == "instruction":
            instruction, expected = body, "command"
        else:
            yield one_turn(instruction, body, source)
            expected = "instruction"
    if expected == "command":
        raise UserError(f"{path}: the last instruction has no command")


def _blocks(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line number of the heading, heading in small letters, body without blank lines around it)."""
    start, heading = 0, ""
    body: list[str] = []
    for number, line in enumerate(_lines(path), start=1):
        found = _HEADING.fullmatch(line)
        if found:
            if heading:
                yield start, heading, _trim(body)
            start, heading, body = number, found[1].lower(), []
        elif heading:
            body.append(line)
        elif line.strip():
            raise UserError(f"{path}:{number}: text before the first heading 'Instruction'")
    if heading:
        yield start, heading, _trim(body)


def _trim(lines: list[str]) -> str:
    """The lines as one text, without blank lines and spaces around it; what is inside stays as it is."""
    return "\n".join(lines).strip()


def _lines(path: Path) -> list[str]:
    return read_text(path).replace("\r\n", "\n").rstrip().split("\n")


def _aligned(instructions: Path, commands: Path, source: str) -> Iterator[Example]:
    """Line n of one file answered by line n of the other; `Instruction: ` before a line is taken off."""
    asked, answered = _lines(instructions), _lines(commands)
    if len(asked) != len(answered):
        raise UserError(
            f"{instructions} has {len(asked)} lines, {commands} has {len(answered)}; they must agree line by line"
        )
    for number, (instruction, command) in enumerate(zip(asked, answered, strict=True), start=1):
        instruction = re.sub(r"^\s*instruction:", "", instruction, flags=re.IGNORECASE).strip()
        command = command.strip()
        for path, text in ((instructions, instruction), (commands, command)):
            if not text and (instruction or command):
                raise UserError(f"{path}:{number}: this line is empty, but not its counterpart")
        if instruction:
            yield one_turn(instruction, command, source)
