"""The verbs. What each needs is imported when it is called, so that --help answers at once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from leveret.cli import data, speak, train
from leveret.cli.comparing import compare
from leveret.cli.exporting import card, export_app, publish
from leveret.cli.importing import import_app
from leveret.cli.inspect import inspect_app
from leveret.cli.launch import launch
from leveret.cli.options import (
    CopyData,
    Device,
    DropLeaks,
    Overrides,
    Price,
    Profile,
    RecipeName,
    RunDirectory,
    Smoke,
    open_run,
)
from leveret.cli.plan import plan_app
from leveret.cli.quantize import quantize
from leveret.cli.rehearse import rehearse
from leveret.cli.runs import runs_app
from leveret.cli.serve import serve
from leveret.errors import UserError

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
app.add_typer(inspect_app, name="inspect")
app.add_typer(runs_app, name="runs")
app.add_typer(plan_app, name="plan")
app.add_typer(import_app, name="import")
app.add_typer(export_app, name="export")
train.add_verbs(app)
speak.add_verbs(app)
app.command()(rehearse)
app.command()(launch)
app.command()(compare)
app.command()(serve)
app.command()(quantize)
app.command()(card)
app.command()(publish)


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
    drop_leaks: DropLeaks = False,
) -> None:
    """Do every stage of a recipe that is not already done; leaves report.md in the run directory."""
    work = open_run(
        recipe,
        overrides,
        run_dir,
        device,
        smoke=smoke,
        copy_data=copy_data,
        profile=profile,
        price=price,
        drop_leaks=drop_leaks,
    )
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
    drop_leaks: DropLeaks = False,
) -> None:
    """Make the tokenizer and the token shards of a recipe."""
    overrides = [*(overrides or []), *["data.strict=true"] * strict]
    open_run(recipe, overrides, run_dir, copy_data=copy_data, drop_leaks=drop_leaks).upto("prepare")


@app.command()
def evaluate(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A run: DIR or name, /STAGE and @STEP after it; with --suite or --examples also an exported folder.",
        ),
    ],
    limit: Annotated[int | None, typer.Option(min=1, help="Examples used of each held-out set or benchmark.")] = None,
    examples: Annotated[
        str | None,
        typer.Option(help="Match this file's examples instead of the recipe's sets (jsonl, raw text, or A.txt,B.txt)."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write one JSON line for each example here, and leave the run as it is.")
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(help="Tasks instead, with commas: small, six, hellaswag, arithmetic, FILE, FILE.py:FUNCTION."),
    ] = None,
    bench: Annotated[
        Path | None, typer.Option(help="Folder of the benchmarks' jsonl files. [LEVERET_DATA/bench, else the hub]")
    ] = None,
    harness: Annotated[
        bool, typer.Option("--harness", help="Ask through lm-evaluation-harness; --suite may name any task of it then.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Loss, perplexity, bits per byte, and exact match on the held-out sets; or, with --suite, public benchmarks."""
    if suite is not None:
        _evaluate_on_suite(run, suite, limit, examples, bench, output, device, harness)
        return
    if bench is not None or harness:
        raise UserError("--bench and --harness are for benchmarks; name some with --suite")
    from leveret.stages import evaluate_reference

    print(json.dumps(evaluate_reference(run, limit, examples, output, device), indent=2))


def _evaluate_on_suite(
    run: str,
    suite: str,
    limit: int | None,
    examples: str | None,
    bench: Path | None,
    output: Path | None,
    device: str,
    harness: bool,
) -> None:
    if examples is not None:
        raise UserError("--examples and --suite are two evaluations; give one of them")
    from leveret.tasks.benchmarks import SUITES, named

    if bench is None and (data := os.environ.get("LEVERET_DATA")) and (Path(data) / "bench").is_dir():
        bench = Path(data) / "bench"
    theirs = harness and bench is None and suite not in SUITES  # the harness knows more names than ours
    from leveret.stages import ask_through_harness, evaluate_on_suite

    if harness:
        tasks = [name.strip() for name in suite.split(",")] if theirs else named(suite)
        found = ask_through_harness(run, tasks, limit, bench, output, device)
    else:
        found = evaluate_on_suite(run, suite, limit, bench, output, device)
    print(json.dumps(found, indent=2))


@app.command()
def recipes() -> None:
    """List the shipped recipes."""
    from leveret.recipe import load_recipe, shipped_recipes

    for name in shipped_recipes():
        print(f"{name:<18} {load_recipe(name)[0].description}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, with which editors complete and check YAML."""
    from leveret.schema import recipe_schema

    print(json.dumps(recipe_schema(), indent=2))


@app.command()
def describe(
    recipe: RecipeName,
    overrides: Overrides = None,
    smoke: Smoke = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, the resolved recipe with it.")] = False,
) -> None:
    """What a recipe comes to: parameters, FLOPs, tokens, memory."""
    from leveret.planning.describe import describe_recipe, render_facts

    facts = describe_recipe(open_run(recipe, overrides, None, smoke=smoke).recipe)
    print(json.dumps(facts, indent=2) if as_json else render_facts(facts))


@app.command()
def doctor() -> None:
    """Check this machine: versions, device, precision, speed, disk."""
    from leveret.planning.doctor import examine

    for line in examine():
        print(line)
