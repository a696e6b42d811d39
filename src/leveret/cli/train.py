"""Verbs that train: pretrain, finetune, prefer, reinforce."""

from __future__ import annotations

from collections.abc import Callable
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
VERBS = {
    "pretrain": "Train a recipe's model on text, after what that needs. A stopped run goes on where it was.",
    "finetune": "Train a base model on a recipe's examples, after what that needs.",
    "prefer": "Teach a fine-tuned model which of two answers is the better (DPO), after what that needs.",
    "reinforce": "Let a fine-tuned model learn from rewards for its own answers (GRPO), after what that needs.",
}
ENDINGS = {"pretrain": "continued", "finetune": "finetuned", "prefer": "preferred", "reinforce": "reinforced"}
"""What a run made by --from is called after the name of its base."""


def add_verbs(app: typer.Typer) -> None:
    for stage, does in VERBS.items():
        app.command(stage, help=does)(_verb(stage))


def _verb(stage: str) -> Callable[..., None]:
    """Does everything up to a stage; with --from, from another run's model on."""

    def train(
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

    return train
