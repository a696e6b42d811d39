"""Whether a command has the effect of another: both are run in the sandbox on equal files, and what they leave and say
is compared.

    reference --paths in it--> files to find --sandbox, twice--> expected outcome --the answer's is equal?--> judged

An effect can be expected of a reference that nothing destructive is known of, that succeeds here, changes something or
says something about the files, and does so again. Of any other (a tool is missing, it asks the network, the clock or
the machine) nothing can be said by running it.
"""

from __future__ import annotations

import posixpath
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from leveret.tasks.shell.danger import dangers
from leveret.tasks.shell.sandbox import PLACES, Files, Job, Outcome, lack, run

PATH = re.compile(r"[\w.~/+@%-]*[A-Za-z][\w.~/+@%-]*")
"""A word of a command that may name a file or a folder."""
FILE = re.compile(r"[^/]+\.[A-Za-z]\w*")
"""A name that looks like a file's."""
WORD = re.compile(r"[A-Za-z]\w+")
LINES = 800
PARSE_SECONDS = 5.0


@lru_cache(maxsize=4096)
def parses(command: str) -> bool:
    """Whether bash can read it, which runs nothing of it; a blank is no command."""
    if not command.strip() or "\0" in command:
        return False
    try:
        done = subprocess.run(["bash", "-n"], input=command.encode(), capture_output=True, timeout=PARSE_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@dataclass(frozen=True, slots=True)
class Expected:
    """What a command does with these files."""

    files: Files
    outcome: Outcome


class Effects:
    """Judges commands by their effects, and remembers what was expected. Runs nothing where there is no sandbox."""

    def __init__(self) -> None:
        self._expected: dict[str, Expected | None] = {}

    def expected(self, references: Sequence[str]) -> list[Expected | None]:
        """What each of these commands does; None where nothing can be said of it."""
        new = [each for each in dict.fromkeys(references) if each not in self._expected]
        self._expected |= dict.fromkeys(new)
        left = [(each, scenes(each)) for each in new if not dangers(each)] if lack() is None else []
        while left := [(each, rest) for each, rest in left if rest and self._expected[each] is None]:
            tried = [(each, rest.pop(0)) for each, rest in left]
            jobs = [job for each, files in tried for job in _trials(each, files)]
            done = iter(run(jobs))
            for each, files in tried:
                once, again, nothing, elsewhere = (next(done) for _ in range(4))
                good = once.status == 0 and once.tree is not None and once == again
                if good and (once.tree != nothing.tree or once.output != elsewhere.output):
                    self._expected[each] = Expected(files, once)
        return [self._expected[each] for each in references]

    def same(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """For each (reference, answer) whether the answer has the reference's effect; None where that cannot be said
        of the reference. An answer that something destructive is known of is not run, and has not."""
        expected = self.expected([reference for reference, _ in pairs])
        jobs = {
            (reference, answer): Job(answer, known.files)
            for (reference, answer), known in zip(pairs, expected, strict=True)
            if known is not None and "\0" not in answer and not dangers(answer)
        }
        found = dict(zip(jobs, run(list(jobs.values())), strict=True))
        return [
            None if known is None else found.get(pair) == known.outcome
            for pair, known in zip(pairs, expected, strict=True)
        ]


def _trials(reference: str, files: Files) -> list[Job]:
    """The reference twice, nothing, and the reference among files of the same texts with other names."""
    others = {f"other/{number}": text for number, text in enumerate(files.values())}
    return [Job(reference, files), Job(reference, files), Job(":", files), Job(reference, others)]


def scenes(reference: str) -> list[Files]:
    """Files that a command may be meant to find, the likeliest first: those that it names, also in the folders that it
    names; in its own folder only; nothing but some others."""
    try:
        words = shlex.split(reference)[1:]
    except ValueError:
        return []
    names = [word.rpartition("=")[2] for word in words]
    globs = [re.sub(r"[*?]+", "some", name) for name in names if re.search(r"[*?]", name)]
    paths = {path: name for name in names if PATH.fullmatch(name) and (path := _inside(name))}
    files = [path for path in paths if FILE.fullmatch(Path(path).name)]
    folders = [path for path, name in paths.items() if path not in files and "/" in name]
    text = _text([part for word in words if not word.startswith("-") for part in WORD.findall(word)])
    others = {"notes.txt": text, "deep/data.csv": text}
    some = {Path(name).name: text for name in [*files, *globs] if FILE.fullmatch(Path(name).name)}
    named = dict.fromkeys(files, text)
    in_folders = {f"{folder}/{name}": text for folder in folders for name in (*others, *some)}
    plain = {f"{folder}/{name}": text for folder in folders for name in others}
    every: list[Files] = [others | some | in_folders | named, others | named | plain, others]
    return [scene for number, scene in enumerate(every) if _possible(scene) and scene not in every[:number]]


def _inside(name: str) -> str | None:
    """Where a path may be laid out: absolute in one of PLACES, or relative to the folder; None: nowhere."""
    path = posixpath.normpath(name.removeprefix("~/"))
    if path.startswith("/"):
        return path if path.split("/")[1] in PLACES and path.count("/") > 1 else None
    return None if path == "." or path.startswith(("..", "~")) else path


def _possible(scene: Files) -> bool:
    """Whether no file is to be a folder, too."""
    return not any(other.startswith(f"{path}/") for path in scene for other in scene)


def _text(words: Sequence[str]) -> str:
    """Lines to count, sort and search: some say one of the words, some come twice, all have many columns."""
    said = [*words, "alpha", "beta"]
    columns = " ".join("abcdefghijklmnopqrstuvw")
    lines = [f"{number * 7919 % 997} {said[number % len(said)]} {columns}\n" for number in range(LINES)]
    return "".join([*lines, *lines[: LINES // 3]])
