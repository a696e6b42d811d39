"""`leveret launch`: the files that start a training somewhere, and their submission."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leveret.cli.options import RecipeName
from leveret.errors import UserError
from leveret.training import STAGES

if TYPE_CHECKING:
    from leveret.planning.launch.plan import Files, Launch
    from leveret.recipe import Recipe

More = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]... [OPTION]...", help="As the verb takes them; options after --."),
]
On = Annotated[str, typer.Option("--on", help="local, torchrun, slurm, skypilot, modal or container.")]
Submit = Annotated[bool, typer.Option("--submit", help="Hand the files over: start it here, or queue it there.")]
To = Annotated[Path | None, typer.Option("--to", help="Where the files are written. [launch/NAME]")]
Verb = Annotated[str, typer.Option("--verb", help=f"run, {' or '.join(STAGES)}.")]
Nodes = Annotated[int, typer.Option("--nodes", min=1, help="Machines.")]
Gpus = Annotated[
    int | None,
    typer.Option("--gpus", min=1, help="Processes on each machine. [one for each GPU here; one on a rented machine]"),
]
Gpu = Annotated[str | None, typer.Option("--gpu", help="skypilot, modal: the GPU to rent, such as A100-80GB.")]
Head = Annotated[str | None, typer.Option("--head", help="torchrun: the first machine's name or address, for several.")]
Time = Annotated[str | None, typer.Option("--time", help="slurm: the job's limit, such as 12:00:00.")]
Sbatch = Annotated[
    list[str] | None, typer.Option("--sbatch", help="slurm: one more option, such as partition=gpu; repeatable.")
]
Bucket = Annotated[
    str | None, typer.Option("--bucket", help="skypilot: of the storage for the run. [leveret-NAME-USER]")
]
BELONGS = {"gpu": {"skypilot", "modal"}, "head": {"torchrun"}, "time": {"slurm"}, "sbatch": {"slurm"},
           "bucket": {"skypilot"}}  # fmt: skip
"""Options that mean something on some platforms only."""


def launch(
    recipe: RecipeName,
    on: On,
    more: More = None,
    submit: Submit = False,
    to: To = None,
    verb: Verb = "run",
    nodes: Nodes = 1,
    gpus: Gpus = None,
    gpu: Gpu = None,
    head: Head = None,
    time: Time = None,
    sbatch: Sbatch = None,
    bucket: Bucket = None,
) -> None:
    """Write the files that run a recipe on several GPUs, on a cluster or on a rented machine; --submit hands them over.

    Started again, each goes on where the run was. Secrets stay in the environment.
    """
    from leveret.planning.launch import CLOUDS, PLATFORMS
    from leveret.planning.launch.plan import Launch
    from leveret.planning.launch.travel import first_option
    from leveret.recipe import load_recipe

    if on not in PLATFORMS:
        raise UserError(f"--on {on} is not known; take {', '.join(PLATFORMS)}")
    if verb not in ("run", *STAGES):
        raise UserError(f"--verb {verb} does not train; take run, {' or '.join(STAGES)}")
    given = {"gpu": gpu, "head": head, "time": time, "sbatch": sbatch, "bucket": bucket}
    for name, value in given.items():
        if value is not None and on not in BELONGS[name]:
            raise UserError(f"--{name} is for --on {' or '.join(sorted(BELONGS[name]))}; leave it out")
    words = more or []
    resolved, base = load_recipe(recipe, words[: first_option(words)])
    secrets = _secrets(resolved) if on in CLOUDS else []
    plan = Launch(verb, recipe, words, resolved, base, nodes, _processes(gpus, on), gpu or "", head or "", time)
    plan = _with(plan, sbatch or [], bucket, secrets)
    files = PLATFORMS[on](plan)
    folder = to or Path("launch") / plan.name
    for path in files.write(folder):
        print(path)
    if secrets:
        print(f"from the environment, when it is submitted: {', '.join(secrets)}")
    if submit:
        _submit(files, folder)
    else:
        there = [f"cd {shlex.quote(str(folder))}", *(shlex.join(command) for command in files.submit)]
        print(f"--submit does: {' && '.join(there)}")


def _with(plan: Launch, options: list[str], bucket: str | None, secrets: list[str]) -> Launch:
    from dataclasses import replace
    from getpass import getuser

    return replace(plan, options=options, bucket=bucket or f"{plan.label}-{getuser().lower()}", secrets=secrets)


def _processes(gpus: int | None, on: str) -> int:
    """On each machine; 0: one, without a GPU."""
    if gpus is not None:
        return gpus
    if on in ("skypilot", "modal"):
        return 1
    import torch

    return torch.cuda.device_count()


def _secrets(recipe: Recipe) -> list[str]:
    """Names of the variables that the recipe can use and that are set here."""
    from leveret.planning.credentials import wanted_secrets

    return [name for name in wanted_secrets(recipe) if os.environ.get(name)]


def _submit(files: Files, folder: Path) -> None:
    """Gives the commands one after the other; the last one's exit code is ours."""
    for command in files.submit:
        try:
            done = subprocess.run(command, cwd=folder, check=False)
        except FileNotFoundError:
            raise UserError(
                f"there is no {command[0]} here; {folder} can be handed over from a machine that has it"
            ) from None
        if done.returncode:
            raise typer.Exit(done.returncode)
