"""`leveret chat`: a dialogue in the terminal.

Answers go to standard output, all else to standard error, so that a pipe carries answers only.
"""

from __future__ import annotations

import difflib
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leveret.cli.options import (
    Backend,
    Device,
    Dtype,
    Fields,
    MaxNew,
    Quantize,
    Seed,
    Speaker,
    Temperature,
    read_fields,
)
from leveret.cli.terminal import Speech, columns, forgive_encodings, lines, note
from leveret.errors import UserError

if TYPE_CHECKING:
    from leveret.api import LoadedModel
    from leveret.inference.config import SamplingConfig
    from leveret.inference.dialogue import Dialogue


def chat(
    run: Speaker,
    system: Annotated[str | None, typer.Option(help="What the model is told before the first turn.")] = None,
    load: Annotated[Path | None, typer.Option(help="Go on with the dialogue of this file.")] = None,
    temperature: Temperature = None,
    max_new_tokens: MaxNew = None,
    seed: Seed = None,
    fields: Fields = None,
    device: Device = "auto",
    dtype: Dtype = None,
    quantize: Quantize = None,
    backend: Backend = None,
) -> None:
    """Talk with a model. /help lists what else can be typed; ctrl-C stops an answer, ctrl-D leaves."""
    import leveret
    from leveret.inference.dialogue import Dialogue

    forgive_encodings()
    dialogue = Dialogue.load(load) if load else Dialogue()
    dialogue.system = system or dialogue.system
    given = {"temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed}
    dialogue.sampling |= read_fields(fields) | {name: value for name, value in given.items() if value is not None}
    Chat(leveret.load(run, device, dtype, quantize, backend), dialogue).talk()


class Chat:
    """A model, a dialogue with it, and what can be typed."""

    def __init__(self, model: LoadedModel, dialogue: Dialogue) -> None:
        self.model, self.dialogue = model, dialogue
        self.sampling = self._sampling(dialogue)
        dialogue.model = model.recipe.name

    def talk(self) -> None:
        """Reads and answers until there is nothing more to read."""
        if sys.stdin.isatty():
            note("/help lists what else can be typed; ctrl-C stops an answer, ctrl-D leaves")
            if self.model.recipe.tokenizer.template == "command":
                note("this model learnt single instructions: /reset between them")
        for line in lines("> ", "chat"):
            try:
                self.take(line)
            except UserError as error:
                note(" ".join(str(error).split()))

    def take(self, line: str) -> None:
        """Does what a line says: a command, or something to answer."""
        if not line.startswith("/") or line.startswith("//"):
            self._ask(line.removeprefix("/") if line.startswith("//") else line)
            return
        name, _, argument = line[1:].partition(" ")
        if name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, 1)
            raise UserError(f"there is no /{name}; " + (f"did you mean /{near[0]}?" if near else "/help lists all"))
        COMMANDS[name](self, argument.strip())

    # --- answers ---------------------------------------------------------------------------------------------

    def _ask(self, text: str) -> None:
        """Has a question answered; one that has no answer does not stay."""
        self.dialogue.ask(text)
        try:
            answer, stopped = self._say()
        except BaseException:
            self.dialogue.back()
            raise
        if stopped and not answer:
            self.dialogue.back()
            note("stopped before the first word; the question is taken back")
            return
        self.dialogue.answer(answer)
        self._tell_room(
            "stopped; what is shown stays in the dialogue" if stopped else "" if answer else "no words came"
        )

    def _say(self) -> tuple[str, bool]:
        """Prints the answer as it comes. Returns it, and whether ctrl-C stopped it."""
        fitted = self.model.fit(self.dialogue.messages, self.sampling)
        if fitted.left_out:
            some = "message is" if fitted.left_out == 1 else f"{fitted.left_out} messages are"
            note(f"the oldest {some} left out of what the model reads: the context is full")
        speech, pieces = Speech(), []
        with _stoppable() as stopped:
            stream = self.model.engine.stream(fitted.ids, self.sampling)
            try:
                for piece in stream:
                    pieces.append(piece)
                    speech.write(piece)
                    if stopped():
                        break
            except KeyboardInterrupt:
                pass
            finally:
                speech.end()
                del stream  # which takes it out of the engine
            return "".join(pieces), stopped()

    def _tell_room(self, first: str = "") -> None:
        """How much of the context the dialogue takes, on a terminal; `first` is said in any case."""
        if sys.stdin.isatty():
            limit = self.model.engine.context
            used = len(self.model.prompt_ids(self.dialogue.messages))
            first += ("; " if first else "") + f"context: {used} of {limit} tokens"
            first += ", so the oldest will be left out" if used > limit else ""
        if first:
            note(first)

    # --- commands --------------------------------------------------------------------------------------------

    def help(self, _: str) -> None:
        """this list"""
        usages = [(f"/{name} {USAGE.get(name, '')}".rstrip(), command.__doc__) for name, command in COMMANDS.items()]
        width = columns() or 80
        left = max(len(usage) for usage, _ in usages) + 2
        apart = width < left + 30
        told = [f"{usage}\n  {what}" if apart else f"{usage:<{left}}{what}" for usage, what in usages]
        told.append("// begins a message that begins with /; ctrl-C stops an answer, ctrl-D leaves")
        if not self.model.chats:
            told.append("this model is not fine-tuned: it goes on with the text so far, yours and its own")
        note("\n".join(told))

    def reset(self, _: str) -> None:
        """forget the dialogue, but for the system's message"""
        self.dialogue.turns.clear()
        note("the dialogue is forgotten")

    def system(self, text: str) -> None:
        """what the model is told first; `none` takes it away"""
        if text:
            self.dialogue.system = None if text == "none" else text
        note(f"system: {self.dialogue.system or 'none'}")

    def save(self, name: str) -> None:
        """keep the dialogue in a file (JSON)"""
        self.dialogue.save(_file(name))
        note(f"{_count(self.dialogue)} in {name}")

    def load(self, name: str) -> None:
        """go on with the dialogue of a file"""
        from leveret.inference.dialogue import Dialogue

        found = Dialogue.load(_file(name))
        self.sampling = self._sampling(found)
        found.model = self.model.recipe.name
        self.dialogue = found
        note(f"{_count(found)} from {name}")
        if sys.stdin.isatty():
            self._show_last()

    def set(self, text: str) -> None:
        """how answers are sampled; alone, show it"""
        name, _, value = text.partition(" ")
        if value:
            changed = self.dialogue.sampling | read_fields([f"{name}={value}"])
            self.sampling = self._with(changed)
            self.dialogue.sampling = changed
        fields = type(self.sampling).model_fields
        if name and name not in fields:
            self._with({name: None})
        for each in [name] if name else fields:
            here = "  (changed here)" if each in self.dialogue.sampling and not name else ""
            note(f"{each} {_written(getattr(self.sampling, each))}{here}")

    def retry(self, _: str) -> None:
        """answer the last question again"""
        before = list(self.dialogue.turns)
        question = self.dialogue.back()
        if question is None:
            raise UserError("nothing was asked yet")
        try:
            self._ask(question)
        finally:
            if len(self.dialogue.turns) < len(before):
                self.dialogue.turns = before

    def undo(self, _: str) -> None:
        """take the last question and its answer back"""
        question = self.dialogue.back()
        if question is None:
            raise UserError("nothing was asked yet")
        note(f"taken back: {textwrap.shorten(question, 60, placeholder='...')}")

    def _show_last(self) -> None:
        """Shows the last question and its answer again, after a dialogue was loaded."""
        speech = Speech()
        for turn in self.dialogue.turns[-2:]:
            speech.write(("> " if turn["role"] == "user" else "") + turn["content"])
            speech.end()

    def _sampling(self, dialogue: Dialogue) -> SamplingConfig:
        return self._with(dialogue.sampling)

    def _with(self, fields: dict[str, Any]) -> SamplingConfig:
        """The recipe's way of sampling with these fields changed."""
        return self.model.recipe.generation.changed(**fields)


USAGE = {"system": "TEXT", "save": "FILE", "load": "FILE", "set": "FIELD VALUE"}
COMMANDS: dict[str, Callable[[Chat, str], None]] = {
    "help": Chat.help,
    "reset": Chat.reset,
    "retry": Chat.retry,
    "undo": Chat.undo,
    "system": Chat.system,
    "set": Chat.set,
    "save": Chat.save,
    "load": Chat.load,
}


def _file(name: str) -> Path:
    if not name:
        raise UserError("say which file")
    return Path(name).expanduser()


def _count(dialogue: Dialogue) -> str:
    number = len(dialogue.turns)
    return f"{number} message{'' if number == 1 else 's'}"


def _written(value: Any) -> str:
    """A value as /set takes it."""
    import json

    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """While it lasts, ctrl-C is only noted, so that it does not tear the engine's work apart; a second one does."""
    pressed = False

    def noted(_number: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, noted)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
