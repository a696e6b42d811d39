"""Arguments and options that several verbs share, and the opening of a recipe as a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leveret.errors import UserError

if TYPE_CHECKING:
    from leveret.run import Run

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
DropLeaks = Annotated[
    bool,
    typer.Option(
        "--drop-leaks", help="Leave examples that are held out to evaluate on out of training, and count them."
    ),
]
CopyData = Annotated[bool, typer.Option("--copy-data", help="Keep the token shards inside the run directory.")]

RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run: DIR or name, /STAGE and @STEP after it if wished.")]
Speaker = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run: DIR or name, /STAGE and @STEP after it if wished; an exported folder; a GGUF file."
    ),
]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float32 or bfloat16. [as the weights are]")]
Quantize = Annotated[str | None, typer.Option("--quantize", help="int8 or int4: smaller and faster, a little worse.")]
Backend = Annotated[str | None, typer.Option("--backend", help="leveret, or llamacpp for GGUF files.")]
MaxNew = Annotated[int | None, typer.Option("--max-new-tokens", help="Most tokens of the answer. [the recipe's]")]
Temperature = Annotated[float | None, typer.Option("--temperature", help="0 is greedy. [the recipe's]")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of the draws.")]
Fields = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Any other option of sampling (SamplingConfig); repeatable."),
]

BOOLEAN = "tag:yaml.org,2002:bool"


def open_run(
    name: str,
    overrides: list[str] | None,
    run_dir: Path | None,
    device: str = "auto",
    *,
    smoke: bool = False,
    copy_data: bool = False,
    start_from: str | None = None,
    first: str = "pretrain",
    profile: bool = False,
    price: float | None = None,
    drop_leaks: bool = False,
) -> Run:
    """The run that these options mean.

    start_from: the run whose model and tokenizer are taken in place of the recipe's own, to train on from `first`.
    """
    from rich.console import Console

    from leveret.recipe import load_recipe
    from leveret.run import Run
    from leveret.rundir import find_run
    from leveret.smoke import shrink

    recipe, base = load_recipe(name, overrides)
    console = Console(stderr=True, soft_wrap=True)
    if smoke:
        recipe = shrink(recipe, console)
    if start_from is not None:
        recipe = recipe.onto(find_run(start_from)[0].recipe())
    if price is not None:
        recipe = recipe.with_price(price)
    if drop_leaks:
        recipe = recipe.dropping_leaks()
    folder = run_dir or Path("runs") / recipe.name
    return Run(recipe, base, folder, console, device, copy_data, start_from, first, profile)


def read_fields(fields: list[str] | None) -> dict[str, Any]:
    """What `FIELD=VALUE` says of each, values in YAML; yes and no are texts, as in YAML 1.2.

    Raises:
        UserError: it cannot be read so.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {
            first: [(tag, form) for tag, form in pairs if tag != BOOLEAN or first in "tTfF"]
            for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    found = {}
    for each in fields or []:
        name, equals, value = each.partition("=")
        if not equals:
            raise UserError(f"{each!r} does not set anything; write FIELD=VALUE")
        try:
            found[name.strip()] = yaml.load(value, Loader)
        except yaml.YAMLError:
            raise UserError(f"{name}: {value!r} is not readable YAML; write text in quotes") from None
    return found
