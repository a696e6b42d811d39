"""`leveret plan`: what can be trained with what there is, and what it will be worth."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leveret.cli.options import Device, Overrides, RecipeName

if TYPE_CHECKING:
    from leveret.planning.machines import Place
    from leveret.planning.plan import Wish

plan_app = typer.Typer(
    help="Know before you pay: what to train with a GPU and a budget, how long it takes and what comes of it.",
    rich_markup_mode=None,
    invoke_without_command=True,
)

Gpus = Annotated[
    list[str] | None, typer.Option("--gpu", help="Such as a100-40gb; several to compare. [the machine at hand]")
]


@plan_app.callback()
def plan(
    context: typer.Context,
    gpu: Gpus = None,
    budget: Annotated[float | None, typer.Option(min=0, help="Dollars that it may cost.")] = None,
    hours: Annotated[float | None, typer.Option(min=0, help="Hours that it may take.")] = None,
    tokens: Annotated[str | None, typer.Option(metavar="N", help="Tokens to read, such as 10B.")] = None,
    params: Annotated[str | None, typer.Option(metavar="N", help="Parameters, such as 124M.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe's shape instead of the depth dial's.")] = None,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="GPUs of each node.")] = 1,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Machines.")] = 1,
    data_tokens: Annotated[
        str | None, typer.Option(metavar="N", help="Different tokens that there are; beyond, they repeat.")
    ] = None,
    fit: Annotated[
        str, typer.Option(help="Law of loss: epoch-2024, hoffmann-2022 or muennighoff-2023.")
    ] = "epoch-2024",
    mfu: Annotated[float | None, typer.Option(min=0.001, max=1, help="Share of the peak, if you know it.")] = None,
    probe: Annotated[bool, typer.Option("--probe", help="Measure the speed here, in 50 steps.")] = False,
    price: Annotated[float | None, typer.Option(min=0, help="Dollars an hour of a GPU. [the price list's]")] = None,
    prices: Annotated[Path | None, typer.Option(help="A price list in place of yours or ours.")] = None,
    compare: Annotated[
        list[str] | None, typer.Option(metavar="KEY=A,B,...", help="Several plans, such as budget=20,55,200.")
    ] = None,
    plot: Annotated[Path, typer.Option(help="Where --compare draws loss against dollars.")] = Path("plan.png"),
    write: Annotated[Path | None, typer.Option(help="Write the recipe here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What to train, how long it takes, what it costs, how good it gets."""
    if context.invoked_subcommand is not None:
        return
    from leveret.errors import UserError
    from leveret.planning.machines import HERE, find_place
    from leveret.planning.plan import Wish, read_count

    names = gpu or [HERE]
    counts = {"tokens": tokens, "params": params, "data_tokens": data_tokens}
    read = {name: read_count(text) for name, text in counts.items() if text is not None}
    wish = Wish(recipe, budget, hours, fit=fit, **read)

    def place(name: str, number: int) -> Place:
        return find_place(name, number, nodes, price, mfu, prices)

    if probe:
        if gpu or compare:
            raise UserError("--probe measures the machine at hand; leave --gpu and --compare out")
        _probe(wish, place(HERE, gpus))
    if compare or len(names) > 1:
        if write is not None:
            raise UserError("--write is for one plan; leave --compare out")
        _compare(wish, names, gpus, compare or [], place, plot, as_json)
        return
    _one(wish, place(names[0], gpus), write, as_json)


def _width() -> int:
    return min(shutil.get_terminal_size().columns, 120)


def _one(wish: Wish, place: Place, write: Path | None, as_json: bool) -> None:
    from leveret.planning.plan import make_plan
    from leveret.planning.telling import facts, render

    made = make_plan(wish, place)
    print(json.dumps(facts(made), indent=2) if as_json else render(made, _width()))
    if write is not None:
        write.parent.mkdir(parents=True, exist_ok=True)
        write.write_text(made.text, encoding="utf-8")
        typer.echo(f"written: {write}; go on with `leveret run {write}`", err=True)


def _compare(
    wish: Wish,
    names: list[str],
    number: int,
    wanted: list[str],
    place: Callable[[str, int], Place],
    plot: Path,
    as_json: bool,
) -> None:
    from leveret.planning.comparing import compare, draw
    from leveret.planning.telling import facts, table

    variants = compare(wish, names, number, wanted, place)
    if as_json:
        told = [
            {"label": each.label} | (facts(each.plan) if each.plan else {"refused": each.refused}) for each in variants
        ]
        print(json.dumps(told, indent=2))
    else:
        print(table(variants, _width()))
    draw(variants, plot)
    typer.echo(f"drawn: {plot}", err=True)


def _probe(wish: Wish, place: Place) -> None:
    """Measures the shape that would be chosen at a middling speed, and keeps what was seen for the plan to find."""
    from dataclasses import replace

    from leveret.planning.plan import make_plan
    from leveret.planning.probe import probe
    from leveret.planning.speeds import keep_speed

    typer.echo("probing: 50 steps on this machine", err=True)
    shape = make_plan(wish, replace(place, mfu=place.mfu or 0.4)).shape
    seen = probe(shape.model, shape.config, shape.length)
    path = keep_speed(seen.row(shape.recipe.name, shape.flops))
    typer.echo(
        f"seen: {seen.tokens_per_second:,.0f} tokens/s, {seen.mfu:.1%} of {seen.peak_tflops:.4g} TFLOP/s "
        f"({seen.peak_source}); kept in {path}",
        err=True,
    )


@plan_app.command()
def calibrate(
    recipe: RecipeName,
    overrides: Overrides = None,
    share: Annotated[float, typer.Option(min=0.0001, max=1, help="Of the recipe's own work that may be spent.")] = 0.01,
    fit: Annotated[str, typer.Option(help="Law of loss to move: see leveret plan.")] = "epoch-2024",
    folder: Annotated[
        Path | None, typer.Option("--run-dir", help="Where the small runs go. [runs/NAME-ladder]")
    ] = None,
    device: Device = "auto",
) -> None:
    """Train three small models of a recipe, so that plans know this corpus, tokenizer and recipe."""
    from rich.console import Console

    from leveret.planning.calibration import Held, calibrate, held_by, held_out, keep_calibration
    from leveret.planning.laws import find_fit
    from leveret.recipe import Recipe, load_recipe
    from leveret.run import Run

    whole, base = load_recipe(recipe, overrides)
    console = Console(stderr=True, soft_wrap=True)
    place = folder or Path("runs") / f"{whole.name}-ladder"

    def train(rung: Recipe) -> Held:
        run = Run(rung, base, place / rung.name, console, device)
        run.upto("prepare")
        split = held_out(run.store("pretrain"))
        run.upto("pretrain")
        return held_by(run.run.path, split)

    law = find_fit(fit)
    found = calibrate(whole, train, law, share)
    for rung in found.rungs:
        print(f"{rung.parameters:>12,} parameters  {rung.tokens:>14,} tokens  held-out loss {rung.loss:.4f}")
    print(
        f"offset {found.fit.offset:+.3f} nats, "
        f"efficiency {found.fit.efficiency:.3g}, band {found.fit.band:.2f} at least (80%)"
    )
    print(f"kept in {keep_calibration(whole, found)}")
