"""`leveret launch`: a training on several devices, here or as a job."""

from __future__ import annotations

import os
import shlex
import subprocess
from typing import TYPE_CHECKING, Annotated

import typer

from leveret.cli.options import RecipeName
from leveret.training import STAGES

if TYPE_CHECKING:
    from leveret.planning.launch import Launch

launch_app = typer.Typer(
    help="Train on several devices, with torchrun here or as a job of Slurm.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

More = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]... [OPTION]...", help="As the verb takes them; options after --."),
]
Verb = Annotated[str, typer.Option("--verb", help=f"run, {' or '.join(STAGES)}.")]
Nodes = Annotated[int, typer.Option("--nodes", min=1, help="Machines.")]
Gpus = Annotated[int | None, typer.Option("--gpus", min=1, help="Processes on each machine. [one for each GPU here]")]
Print = Annotated[bool, typer.Option("--print", help="Only show what would be done.")]


def _plan(verb: str, recipe: str, more: list[str] | None, nodes: int, gpus: int | None, head: str) -> Launch:
    from leveret.errors import UserError
    from leveret.planning.launch import Launch
    from leveret.recipe import load_recipe

    if verb not in ("run", *STAGES):
        raise UserError(f"--verb {verb} does not train; take run, {' or '.join(STAGES)}")
    words = more or []
    options = next((number for number, word in enumerate(words) if word.startswith("-")), len(words))
    name = load_recipe(recipe, words[:options])[0].name
    if gpus is None:
        import torch

        if (gpus := torch.cuda.device_count()) == 0:
            raise UserError("there is no GPU here to count; give --gpus, the processes on each machine")
    return Launch([verb, recipe, *words], name, nodes, gpus, head)


@launch_app.command()
def torchrun(
    recipe: RecipeName,
    more: More = None,
    verb: Verb = "run",
    nodes: Nodes = 1,
    gpus: Gpus = None,
    head: Annotated[str, typer.Option("--head", help="The first machine's name or address, for several.")] = "",
    show: Print = False,
) -> None:
    """Start the processes of this machine; with several machines, give the same command on each."""
    from leveret.errors import UserError

    if nodes > 1 and not head:
        raise UserError("several machines meet at the first of them: say its name with --head")
    command = _plan(verb, recipe, more, nodes, gpus, head).torchrun()
    if show:
        print(shlex.join(command))
    else:
        os.execv(command[0], command)


@launch_app.command()
def slurm(
    recipe: RecipeName,
    more: More = None,
    verb: Verb = "run",
    nodes: Nodes = 1,
    gpus: Gpus = None,
    time: Annotated[str | None, typer.Option("--time", help="The job's limit, such as 12:00:00.")] = None,
    option: Annotated[list[str] | None, typer.Option("--sbatch", help="One more, such as partition=gpu.")] = None,
    show: Print = False,
) -> None:
    """Hand a job to Slurm that saves before its time is up, queues itself again and goes on."""
    from leveret.errors import UserError

    script = _plan(verb, recipe, more, nodes, gpus, "").sbatch(time, option or [])
    if show:
        print(script, end="")
        return
    try:
        done = subprocess.run(["sbatch"], input=script, text=True, check=False)
    except FileNotFoundError:
        raise UserError("there is no sbatch here; --print shows the script, for a machine that has it") from None
    raise typer.Exit(done.returncode)
