"""`leveret rehearse`: would the real run go through, and what would it take?"""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from leveret.cli.options import Overrides, RecipeName, RunDirectory

Device = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda, mps, ...; meta: shapes only, nothing computed.")
]
Gpu = Annotated[
    str | None, typer.Option("--gpu", help="What it would take on another GPU, such as a100-40gb. [this machine]")
]
Gpus = Annotated[int, typer.Option("--gpus", min=1, help="How many of these.")]
Price = Annotated[
    float | None, typer.Option("--price", min=0, help="Dollars an hour of one of them, or of this machine.")
]
Mfu = Annotated[
    float | None, typer.Option("--mfu", min=0.01, max=1, help="Share of that GPU's peak that training reaches.")
]


def rehearse(
    recipe: RecipeName,
    overrides: Overrides = None,
    run_dir: RunDirectory = None,
    device: Device = "auto",
    gpu: Gpu = None,
    gpus: Gpus = 1,
    price: Price = None,
    mfu: Mfu = None,
) -> None:
    """Try a recipe's data, disk, secrets and a few real steps of every stage; tell what the real run will take.

    Nothing is left behind. Exit code 1 if the real run would fail.
    """
    from leveret.errors import UserError
    from leveret.planning.machines import find_place
    from leveret.recipe import load_recipe
    from leveret.rehearse import Rehearsal

    resolved, base = load_recipe(recipe, overrides)
    if gpu is None and mfu is not None:
        raise UserError("--mfu is for another GPU; name it with --gpu")
    place = None if gpu is None else find_place(gpu, gpus, price=price, mfu=mfu)
    folder = run_dir or Path("runs") / resolved.name
    before, problems = signal.signal(signal.SIGTERM, _leave), 0
    try:
        for finding in Rehearsal(resolved, base, folder, device, place, price).findings():
            print(finding, flush=True)
            problems += finding.state == "problem"
    finally:
        signal.signal(signal.SIGTERM, before)
    if problems:
        print(f"the real run would fail: {problems} problem{'s' * (problems > 1)}")
        raise typer.Exit(1)
    print("the real run can begin")


def _leave(number: int, frame: FrameType | None) -> None:
    """Being ended is as being interrupted: what was begun is put away."""
    raise KeyboardInterrupt
