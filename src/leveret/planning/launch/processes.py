"""This machine: one process, or torchrun's."""

from __future__ import annotations

import shlex
from pathlib import Path

from leveret.errors import UserError
from leveret.planning.launch.plan import HERE, Files, Launch, meeting, one_machine, torchrun_words


def local_files(launch: Launch) -> Files:
    """A script that runs leveret in this folder."""
    one_machine(launch, "local")
    return _script("local.sh", [HERE, "-m", "leveret", *launch.local_words])


def torchrun_files(launch: Launch) -> Files:
    """A script that starts the processes of a machine, the same one on every machine.

    Raises:
        UserError: nobody said how many, or where several machines meet.
    """
    if launch.gpus == 0:
        raise UserError("there is no GPU here to count; give --gpus, the processes on each machine")
    if launch.nodes > 1 and not launch.head:
        raise UserError("several machines meet at the first of them: say its name with --head")
    where = meeting(launch, launch.head)
    return _script("torchrun.sh", torchrun_words(launch, HERE, launch.local_words, where))


def _script(name: str, command: list[str]) -> Files:
    lines = ["#!/bin/bash", f"cd {shlex.quote(str(Path.cwd()))} || exit", f"exec {shlex.join(command)}", ""]
    return Files({name: "\n".join(lines)}, [["bash", name]])
