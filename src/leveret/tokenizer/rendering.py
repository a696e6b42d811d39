"""Jinja at work on a chat template: here for those that we ship, in a process of its own for any other.

    messages --JSON line--> this file, as a program --JSON line--> text, or why there is none

A template from the hub is a program. Jinja's sandbox keeps it from everything but its own values, yet it may loop
without end or write without end. So the program that renders it is ended by the system after a second of computing, has
little memory, none of our environment, and its parent gives up on it by the clock. It serves template after template,
so that a conversation costs a tenth of a millisecond more, and imports nothing of ours.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import jinja2

# Where a generation block begins and ends in the rendered text: noncharacters, which no text should hold.
BEGIN, END = "\U0010fffe", "\U0010ffff"
SECONDS = 1.0
"""Of computing, for one conversation."""
PATIENCE = 30.0
"""Seconds by the clock, on a machine that has other things to do."""
MEMORY = 2**30
"""Bytes that the program may have, its own start with them."""
MOST_TEXT = 2**24
"""Characters of a rendered conversation."""
MOST_TEMPLATE = 2**20
"""Characters of a template; the longest in use have some ten thousand."""
KEPT = ("PATH", "TZ", "LANG", "SYSTEMROOT")
"""What of our environment the program sees: no key is among it."""


class TemplateFailure(Exception):
    """Why there is no text."""


def render_here(template: str, values: dict[str, Any]) -> str:
    """Raises TemplateFailure where the template refuses, or fails."""
    import jinja2

    try:
        text = _compiled(template).render(**values)
    except jinja2.TemplateError as error:
        raise TemplateFailure(f"refuses the messages: {error}") from None
    except Exception as error:  # whatever a stranger's program may do wrong
        raise TemplateFailure(f"fails: {type(error).__name__}: {error}") from None
    if len(text) > MOST_TEXT:
        raise TemplateFailure(f"writes {len(text):,} characters, and at most {MOST_TEXT:,} are taken")
    return text


def render_apart(template: str, values: dict[str, Any]) -> str:
    """The same in a process of its own, with limits on time, memory and output."""
    if len(template) > MOST_TEMPLATE:
        raise TemplateFailure(f"has {len(template):,} characters, and at most {MOST_TEMPLATE:,} are read")
    answer = _program(os.getpid()).ask({"template": template, "values": values})
    if "text" not in answer:
        raise TemplateFailure(answer["failure"])
    return str(answer["text"])


class _Program:
    """The process that renders; a new one is started where the last one was ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = _start()
            process, answer = self._process, b""
            assert process.stdin is not None
            assert process.stdout is not None
            clock = threading.Timer(PATIENCE, process.kill)
            clock.start()
            try:
                process.stdin.write(json.dumps(question).encode() + b"\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            except BrokenPipeError:
                pass
            finally:
                clock.cancel()
            if not answer.endswith(b"\n"):
                self._process = None
                _end(process)
                return {"failure": f"was ended: it took more than {SECONDS:g} s of computing, or too much memory"}
            return json.loads(answer)  # type: ignore[no-any-return]


def _start() -> subprocess.Popen[bytes]:
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    command = [sys.executable, "-I", __file__]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=kept)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):
            pipe.close()  # type: ignore[union-attr]
    process.wait()


@lru_cache(maxsize=1)
def _program(owner: int) -> _Program:
    """The program of this process: one that was forked must not read its parent's answers."""
    return _Program()


def serve() -> None:
    """What the program does: an answer for each line, until there are no more."""
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    import jinja2.sandbox  # before memory is limited

    assert jinja2.sandbox
    with suppress(ImportError):  # a system without it: the parent's clock is left
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in questions:
        _limit_time(SECONDS)
        try:
            question = json.loads(line)
            answer = {"text": render_here(question["template"], question["values"])}
        except TemplateFailure as error:
            answer = {"failure": " ".join(str(error).split())[:300]}
        _limit_time(0)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _limit_time(seconds: float) -> None:
    """The system ends this process when it has computed for so long; 0: never."""
    import signal

    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


@lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    """The template in a sandbox, with the names that transformers gives templates."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}...{% endgeneration %}` becomes BEGIN...END."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> list[nodes.Node]:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            begin, end = (nodes.Output([nodes.TemplateData(mark)]).set_lineno(line) for mark in (BEGIN, END))
            return [begin, *body, end]

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    return environment.from_string(template)


if __name__ == "__main__":
    serve()
