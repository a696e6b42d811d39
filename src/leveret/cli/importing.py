"""Verbs that make runs of models from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leveret.cli.options import RunDirectory

import_app = typer.Typer(help="Models of others as runs to go on from.")


@import_app.callback()
def _group() -> None:
    """Keeps `hf` a command of its own, though it is the only one."""


@import_app.command("hf")
def huggingface(
    name: Annotated[str, typer.Argument(metavar="NAME_OR_DIR", help="A name on the Hugging Face hub, or a folder.")],
    run_dir: RunDirectory = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch on the hub.")] = None,
) -> None:
    """Make a run of a Llama-, Mistral-, Qwen3- or GPT-2-shaped model, or one of ours, to generate with and train on."""
    from leveret.export.huggingface import import_model

    run = import_model(name, run_dir or Path("runs") / Path(name).resolve().name, revision)
    print(f"{run.path} is a run now; go on with `leveret pretrain --from {run.path}` or `finetune --from {run.path}`")
