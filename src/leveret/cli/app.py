"""The verbs. What each needs is imported when it is called, so that --help answers at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leveret.cli import data, speak
from leveret.cli.launch import launch_app
from leveret.cli.runs import runs_app

if TYPE_CHECKING:
    from leveret.run import Run

app = typer.Typer(
    help="Raise small language models from nothing. Every verb that takes a recipe takes a shipped name or a YAML "
    "file, and overrides such as pretrain.steps=100.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data.tokenizer_app, name="tokenizer")
app.add_typer(data.data_app, name="data")
app.add_typer(data.audit_app, name="audit")
app.add_typer(runs_app, name="runs")
app.add_typer(launch_app, name="launch")
speak.add_verbs(app)

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name, or a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe.")]
RunDirectory = Annotated[Path | None, typer.Option("--run-dir", help="Where everything goes. [runs/NAME]")]
Smoke = Annotated[
    bool, typer.Option("--smoke", help="Shrink everything: the whole way in a minute, to see that it works.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, mps, ...")]
Profile = Annotated[
    bool, typer.Option("--profile", help="Show where the time of training steps 5 to 10 goes; writes STAGE/profile/.")
]
Price = Annotated[float | None, typer.Option(min=0, help="Dollars that an hour on this machine costs. [the recipe's]")]
CopyData = Annotated[bool, typer.Option("--copy-data", help="Keep the token shards inside the run directory.")]


def _open(
    name: str,
    overrides: list[str] | None,
    run_dir: Path | None,
    device: str = "auto",
    *,
    smoke: bool = False,
    copy_data: bool = False,
    start_from: str | None = None,
    profile: bool = False,
    price: float | None = None,
) -> Run:
    from rich.console import Console

    from leveret.recipe import load_recipe
    from leveret.run import Run
    from leveret.smoke import shrink

    recipe, base = load_recipe(name, overrides)
    console = Console(stderr=True, soft_wrap=True)
    if smoke:
        recipe = shrink(recipe, console)
    if price is not None:
        recipe = recipe.with_price(price)
    folder = run_dir or Path("runs") / recipe.name
    return Run(recipe, base, folder, console, device, copy_data, start_from, profile)


@app.command()
def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    run_dir: RunDirectory = None,
    smoke: Smoke = False,
    device: Device = "auto",
    copy_data: CopyData = False,
    profile: Profile = False,
    price: Price = None,
) -> None:
    """Do every stage of a recipe that is not already done; leaves report.md in the run directory."""
    work = _open(recipe, overrides, run_dir, device, smoke=smoke, copy_data=copy_data, profile=profile, price=price)
    work.upto()
    if work.group.main:
        speak.summary(work)


@app.command()
def prepare(
    recipe: RecipeName,
    overrides: Overrides = None,
    run_dir: RunDirectory = None,
    copy_data: CopyData = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first row that cannot be read.")] = False,
) -> None:
    """Make the tokenizer and the token shards of a recipe."""
    overrides = [*(overrides or []), *["data.strict=true"] * strict]
    _open(recipe, overrides, run_dir, copy_data=copy_data).upto("prepare")


@app.command()
def pretrain(
    recipe: RecipeName,
    overrides: Overrides = None,
    run_dir: RunDirectory = None,
    device: Device = "auto",
    profile: Profile = False,
    price: Price = None,
) -> None:
    """Train a recipe's model from nothing, after what that needs. A stopped run goes on where it was."""
    _open(recipe, overrides, run_dir, device, profile=profile, price=price).upto("pretrain")


@app.command()
def finetune(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="With --from, that run's own by default.")
    ] = None,
    overrides: Overrides = None,
    run_dir: RunDirectory = None,
    device: Device = "auto",
    start_from: Annotated[
        str | None, typer.Option("--from", help="Fine-tune this model, RUN[/STAGE][@STEP], into a new run directory.")
    ] = None,
    profile: Profile = False,
    price: Price = None,
) -> None:
    """Train a base model on a recipe's examples, after what that needs."""
    from leveret.errors import UserError
    from leveret.rundir import find_run

    if recipe is not None and "=" in recipe and not Path(recipe).exists():
        overrides = [recipe, *(overrides or [])]
        recipe = None
    if start_from is None:
        if recipe is None:
            raise UserError("say which recipe to fine-tune, or which run with --from")
        _open(recipe, overrides, run_dir, device, profile=profile, price=price).upto("finetune")
        return
    source, _, _ = find_run(start_from)
    if run_dir is None:
        run_dir = Path("runs") / f"{source.name}-finetuned"
    name = recipe or str(source / "recipe.yaml")
    _open(name, overrides, run_dir, device, start_from=start_from, profile=profile, price=price).upto("finetune")


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run: DIR or name, /STAGE and @STEP after it if wished.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Examples used of each held-out set.")] = None,
    examples: Annotated[
        str | None,
        typer.Option(help="Match this file's examples instead of the recipe's sets (jsonl, raw text, or A.txt,B.txt)."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write one JSON line for each example here, and leave the run as it is.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Loss, perplexity, bits per byte, and exact match on the held-out sets."""
    from leveret.stages import evaluate_reference

    print(json.dumps(evaluate_reference(run, limit, examples, output, device), indent=2))


@app.command()
def recipes() -> None:
    """List the shipped recipes."""
    from leveret.recipe import load_recipe, shipped_recipes

    for name in shipped_recipes():
        print(f"{name:<18} {load_recipe(name)[0].description}")


@app.command()
def describe(
    recipe: RecipeName,
    overrides: Overrides = None,
    smoke: Smoke = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, the resolved recipe with it.")] = False,
) -> None:
    """What a recipe comes to: parameters, FLOPs, tokens, memory."""
    from leveret.planning.describe import describe_recipe, render_facts

    facts = describe_recipe(_open(recipe, overrides, None, smoke=smoke).recipe)
    print(json.dumps(facts, indent=2) if as_json else render_facts(facts))


@app.command()
def doctor() -> None:
    """Check this machine: versions, device, precision, speed, disk."""
    from leveret.planning.doctor import examine

    for line in examine():
        print(line)
