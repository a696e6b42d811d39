"""Examples for fine-tuning and evaluation: dialogues that end in an answer, out of any of the usual formats.

    config --files, dataset, generator--> rows --formats.py--> examples, preference pairs
                                            \\-- Unfit --> drop(where, why)

    messages              {"messages": [{"role", "content"}, ...]}
    instruction-command   {"instruction", "command"}
    prompt-completion     {"prompt", "completion"} or {"prompt", "response"}
    instruction-response  {"instruction", "input" (may be missing or empty), "output" or "response"}
    question-answer       {"question", "answer"}
    preference            {"prompt", "chosen", "rejected"} and its relatives (`formats.preference_of`)
    marked                {"text"} or .txt with marked turns, such as `### Human: ... ### Assistant: ...` (`marks.py`)
    raw                   .txt with blocks headed `Instruction` and `Command`
    a.txt,b.txt           two files aligned line by line, instructions in the first

All but the last two come as .jsonl, .json or .parquet, or from the hub; all but .parquet may be compressed.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from leveret.data.config import ExampleFormat, ExamplesConfig
from leveret.data.dialogues import Example as Example
from leveret.data.dialogues import Message as Message
from leveret.data.dialogues import Preference as Preference
from leveret.data.dialogues import Unfit
from leveret.data.dialogues import one_turn as one_turn
from leveret.data.formats import example_of, pair_or_example_of, preference_of
from leveret.data.readers import read_rows
from leveret.data.refusals import Refusals
from leveret.data.rows import Drop, Row, refuse
from leveret.data.sources import dataset_rows, describe, find_files, generator, label
from leveret.data.streams import file_format, shown
from leveret.data.textfiles import aligned_rows, text_rows
from leveret.errors import UserError

MOST_REFUSED = 0.5
"""Share of a source's rows that may be refused; more of them mean that it is no source of examples."""

T = TypeVar("T")
Parse = Callable[[Row, ExampleFormat, str, str], T]
"""(row, format, source, where) to what stands in it; raises Unfit."""


def examples(
    config: ExamplesConfig,
    base_dir: Path,
    generators: Mapping[str, Callable[..., Iterable[Example]]],
    drop: Drop = refuse,
) -> Iterator[Example]:
    """The examples of one source, in order.

    `base_dir` is what relative paths start from; `generators` are the known ones by name. A row that is no example
    is told to `drop`, by file and line. Raises UserError at the end if there was no example at all, or if more than
    MOST_REFUSED of the rows were refused.
    """
    return _enough(_source(config, base_dir, generators, example_of), "examples", config, base_dir, drop)


def preferences(
    config: ExamplesConfig,
    base_dir: Path,
    generators: Mapping[str, Callable[..., Iterable[Preference]]],
    drop: Drop = refuse,
) -> Iterator[Preference]:
    """The preference pairs of one source, in order; arguments and failures as of `examples`."""
    if config.format not in ("auto", "preference"):
        raise UserError(f"{describe(config)}: pairs to prefer by have the format 'preference', not '{config.format}'")
    read = _source(config, base_dir, generators, lambda row, format, source, where: preference_of(row, source, where))
    return _enough(read, "preference pairs", config, base_dir, drop)


def read_examples(path: str | Path, format: ExampleFormat = "auto", drop: Drop = refuse) -> Iterator[Example]:
    """The examples of a file, a folder, a glob or a pair `instructions.txt,commands.txt`, in order.

    Failures as of `examples`.
    """
    return examples(ExamplesConfig(paths=[str(path)], format=format), Path(), {}, drop)


def read_pairs_or_examples(path: str | Path, drop: Drop = refuse) -> Iterator[Preference | Example]:
    """Like `read_examples`, but rows with two answers are the preference pairs that they are."""
    config = ExamplesConfig(paths=[str(path)])
    return _enough(_source(config, Path(), {}, pair_or_example_of), "examples", config, Path(), drop)


def write_examples(path: Path, examples: Iterable[Example | Preference]) -> int:
    """Write .jsonl that `read_examples` and `preferences` read back, meta included; returns the count.

    One-turn examples without a system message are {"instruction", "command"}, the others {"messages"}, preference
    pairs {"prompt", "chosen", "rejected"}. The file takes its place only when all of it is written.
    """
    if path.suffix != ".jsonl":
        raise UserError(f"{path}: examples are written as .jsonl; choose a name that ends so")
    part = path.with_name(path.name + ".part")
    count = 0
    try:
        # Of half a surrogate pair among the other fields, a backslash makes what JSON has for it.
        with part.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            for example in examples:
                file.write(json.dumps(_to_row(example), ensure_ascii=False, default=str) + "\n")
                count += 1
        part.replace(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: its folder does not exist; make it first") from error
    finally:
        part.unlink(missing_ok=True)
    return count


def _to_row(item: Example | Preference) -> Row:
    if isinstance(item, Preference):
        one = [message.role for message in item.prompt] == ["user"]
        prompt = item.prompt[0].content if one else _to_turns(item.prompt)
        return {"prompt": prompt, "chosen": item.chosen, "rejected": item.rejected, **item.meta}
    if [message.role for message in item.messages] == ["user", "assistant"]:
        return {"instruction": item.instruction, "command": item.response, **item.meta}
    return {"messages": _to_turns(item.messages), **item.meta}


def _to_turns(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


# --- sources -------------------------------------------------------------------------------------------------


def _source(
    config: ExamplesConfig,
    base_dir: Path,
    generators: Mapping[str, Callable[..., Iterable[T]]],
    parse: Parse[T],
) -> Callable[[Drop], Iterator[T]]:
    """What reads a source, once it has a Drop."""

    def read(drop: Drop) -> Iterator[T]:
        for where, row, format, source in _rows(config, base_dir, drop):
            if _wanted(row, config):
                try:
                    yield parse(row, format, source, _named(where, base_dir))
                except Unfit as error:
                    drop(where, str(error))

    def generate(drop: Drop) -> Iterator[T]:
        return (item for item in make() if _wanted(getattr(item, "meta", {}), config))

    if config.kind != "generated":
        return read
    make = generator(config, generators)
    return generate


def _rows(config: ExamplesConfig, base_dir: Path, drop: Drop) -> Iterator[tuple[str, Row, ExampleFormat, str]]:
    """(where, row, format, source) of every row."""
    if config.kind == "hub":
        yield from ((where, row, config.format, str(config.name)) for where, row in dataset_rows(config))
        return
    for entry in config.paths:
        paths = find_files([entry], base_dir)
        of_text = [file_format(path) == ".txt" for path in paths]
        if not (base_dir / entry).exists() and "," in entry and of_text == [True, True]:
            source = label(paths[0], base_dir)
            yield from ((where, row, "auto", source) for where, row in aligned_rows(paths[0], paths[1], drop))
            continue
        for path, text in zip(paths, of_text, strict=True):
            source = label(path, base_dir)
            if text:
                format: ExampleFormat = "auto" if config.format == "raw" else config.format
                yield from ((where, row, format, source) for where, row in text_rows(path, config.format, drop))
            else:
                yield from ((f"{path}:{number}", row, config.format, source) for number, row in read_rows(path, drop))


def _wanted(fields: Mapping[str, Any], config: ExamplesConfig) -> bool:
    """Whether a row has what the source's `where` asks for."""
    return all(_spelt(fields.get(key)) in wanted for key, wanted in config.where.items())


def _spelt(value: object) -> str | None:
    """A text as it is, a number or boolean as JSON has it; None for anything else."""
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, int | float) else None


def _named(where: str, base_dir: Path) -> str:
    """A row's place as the user is told of it: relative to `base_dir` where it lies inside."""
    return shown(where.removeprefix(f"{base_dir}/"))


def _enough(
    read: Callable[[Drop], Iterator[T]], what: str, config: ExamplesConfig, base_dir: Path, drop: Drop
) -> Iterator[T]:
    """What is read, max_examples at most; UserError at the end if it is nothing, or little beside what is refused."""
    refused, count = Refusals(), 0

    def note(where: str, why: str) -> None:
        refused(_named(where, base_dir), why)
        drop(_named(where, base_dir), why)

    for item in islice(read(note), config.max_examples):
        yield item
        count += 1
    if refused.count > MOST_REFUSED * (refused.count + count):
        where, why = refused.first[0]
        few, share = ("too few", f"more than {MOST_REFUSED:.0%}") if count else ("no", "all")
        rows = f"{refused.count:,} of {refused.count + count:,} rows"
        raise UserError(
            f"{few} {what} in {describe(config)}: {rows}, {share}, are refused ({refused}); the first, {where}: {why}"
        )
    if not count:
        asked = f" of which {', '.join(config.where)} is what its `where` asks for" if config.where else ""
        raise UserError(f"no {what} in {describe(config)}{asked}")
