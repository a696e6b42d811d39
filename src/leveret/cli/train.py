"""Verbs that train: pretrain, finetune, prefer, reinforce."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leveret.cli.options import Device, DropLeaks, Overrides, Price, Profile, RunDirectory, Smoke, open_run

OptionalRecipe = Annotated[
    str | None,
    typer.Argument(metavar="[RECIPE]", help="A recipe's name or YAML file; with --from, that run's own by default."),
]
From = Annotated[
    str | None,
    typer.Option("--from", help="Go on from this model, RUN[/STAGE][@STEP], into a new run directory."),
]


def add_verbs(app: typer.Typer) -> None:
    for verb in (pretrain, finetune, prefer, reinforce):
        app.command()(verb)


def pretrain(
    recipe: OptionalRecipe = None,
    overrides: Overrides = None,
    run_dir: RunDirectory = None,
    device: Device = "auto",
    start_from: From = None,
    smoke: Smoke = False,
    profile: Profile = False,
    price: Price = None,
) -> None:
    """Train a recipe's model on text, after what that needs. A stopped run goes on where it was."""
    _train("pretrain", recipe, overrides, run_dir, device, start_from, smoke, profile, price)


def finetune(
    recipe: OptionalRecipe = None,
    overrides: Overrides = None,
    run_dir: RunDirectory = None,
    device: Device = "auto",
    start_from: From = None,
    smoke: Smoke = False,
    profile: Profile = False,
    price: Price = None,
    drop_leaks: DropLeaks = False,
) -> None:
    """Train a base model on a recipe's examples, after what that needs."""
    _train("finetune", recipe, overrides, run_dir, device, start_from, smoke, profile, price, drop_leaks)


def prefer(
    recipe: OptionalRecipe = None,
    overrides: Overrides = None,
    run_dir: RunDirectory = None,
    device: Device = "auto",
    start_from: From = None,
    smoke: Smoke = False,
    profile: Profile = False,
    price: Price = None,
    drop_leaks: DropLeaks = False,
) -> None:
    """Teach a fine-tuned model which of two answers is the better (DPO), after what that needs."""
    _train("prefer", recipe, overrides, run_dir, device, start_from, smoke, profile, price, drop_leaks)


def reinforce(
    recipe: OptionalRecipe = None,
    overrides: Overrides = None,
    run_dir: RunDirectory = None,
    device: Device = "auto",
    start_from: From = None,
    smoke: Smoke = False,
    profile: Profile = False,
    price: Price = None,
    drop_leaks: DropLeaks = False,
) -> None:
    """Let a fine-tuned model learn from rewards for its own answers (GRPO), after what that needs."""
    _train("reinforce", recipe, overrides, run_dir, device, start_from, smoke, profile, price, drop_leaks)


ENDINGS = {"pretrain": "continued", "finetune": "finetuned", "prefer": "preferred", "reinforce": "reinforced"}
"""What a run made by --from is called after the name of its base."""


def _train(
    stage: str,
    recipe: str | None,
    overrides: list[str] | None,
    run_dir: Path | None,
    device: str,
    start_from: str | None,
    smoke: bool,
    profile: bool,
    price: float | None,
    drop_leaks: bool = False,
) -> None:
    """Everything up to a stage; with start_from, from another run's model on."""
    from leveret.errors import UserError
    from leveret.rundir import find_run

    if recipe is not None and "=" in recipe and not Path(recipe).exists():
        overrides = [recipe, *(overrides or [])]
        recipe = None
    if start_from is not None:
        source, _, _ = find_run(start_from)
        run_dir = run_dir or Path("runs") / f"{source.name}-{ENDINGS[stage]}"
        recipe = recipe or str(source / "recipe.yaml")
    if recipe is None:
        raise UserError(f"say which recipe to {stage}, or which run with --from")
    first = "pretrain" if start_from is None else stage
    work = open_run(
        recipe,
        overrides,
        run_dir,
        device,
        smoke=smoke,
        start_from=start_from,
        first=first,
        profile=profile,
        price=price,
        drop_leaks=drop_leaks,
    )
    work.upto(stage)
