"""Verbs that look at what training will see, before it does."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leveret.cli.options import Overrides, RecipeName, RunDirectory, open_run
from leveret.cli.train import ENDINGS

if TYPE_CHECKING:
    from leveret.run import Run

inspect_app = typer.Typer(help="Look before training.", no_args_is_help=True)


@inspect_app.callback()
def _group() -> None: ...


class Stage(StrEnum):
    """Stages whose examples can be looked at."""

    finetune = "finetune"
    prefer = "prefer"


@inspect_app.command("examples")
def examples(
    recipe: RecipeName,
    overrides: Overrides = None,
    count: Annotated[int, typer.Option("-n", min=1, help="Examples that are shown, evenly spread.")] = 5,
    stage: Annotated[Stage | None, typer.Option(help="Whose examples. [the first stage that has any]")] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Show where tokens end.")] = False,
    html: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the same as a page here.")] = None,
    run_dir: RunDirectory = None,
    start_from: Annotated[
        str | None, typer.Option("--from", help="With the tokenizer of this run, as training --from it would.")
    ] = None,
) -> None:
    """Print examples as the model will see them: what is learnt, what is cut or left out, how rows are packed."""
    from rich.console import Console

    from leveret.posttraining.look import look, render, too_long
    from leveret.posttraining.look_page import write_html

    chosen = _stage(recipe, overrides, stage)
    work = _open(recipe, overrides, run_dir, start_from, chosen)
    store, tokenizer = work.packed(chosen), work.load_tokenizer()
    plan = work.recipe
    most, row, answers = plan.document_length(chosen), plan.row_length(chosen), plan.tuning[chosen].answers
    found = look(store, tokenizer, chosen, most, row, answers, count)
    policy = found.made["policy"]
    extra = too_long(work.trained_on(chosen), tokenizer, most, policy) if found.made["too_long"] else None
    render(found, extra, Console(), tokens)
    if html is not None:
        write_html(found, extra, html)
        print(f"page written: {html}")


def _stage(recipe: str, overrides: list[str] | None, wanted: Stage | None) -> str:
    """The stage that is meant."""
    from leveret.errors import UserError
    from leveret.recipe import load_recipe

    there = [name for name in load_recipe(recipe, overrides)[0].tuning if name in list(Stage)]
    if not there:
        raise UserError(f"{recipe} has no stage that learns from examples; add one, such as finetune")
    if wanted is not None and wanted not in there:
        raise UserError(f"{recipe} has no stage {wanted}; it has {', '.join(there)}")
    return str(wanted or there[0])


def _open(recipe: str, overrides: list[str] | None, run_dir: Path | None, start_from: str | None, stage: str) -> Run:
    """The run, with its tokenizer, which is made if it is not there. A run that has it is left as it is."""
    from leveret.rundir import find_run

    if start_from is not None:
        source, _, _ = find_run(start_from)
        run_dir = run_dir or Path("runs") / f"{source.name}-{ENDINGS[stage]}"
    first = "pretrain" if start_from is None else stage
    work = open_run(recipe, overrides, run_dir, start_from=start_from, first=first)
    if not work.has_tokenizer():
        work.upto("tokenizer")
    return work
