"""Verbs that write a model for other people's tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

export_app = typer.Typer(help="Write a model in the formats of other tools.")


@export_app.callback()
def _group() -> None:
    """Keeps `hf` a command of its own, though it is the only one."""


@export_app.command("hf")
def huggingface(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run: DIR or name, /STAGE and @STEP after it if wished.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
) -> None:
    """Write a Llama-, Mistral-, Qwen3- or GPT-2-shaped model as transformers loads it, without code of ours."""
    from leveret.export.write import export_model

    export_model(run, folder, dtype)
    print(f"AutoModelForCausalLM.from_pretrained({str(folder)!r})")
