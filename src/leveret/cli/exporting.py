"""Verbs that write a model for other people's tools."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run: DIR or name, /STAGE and @STEP after it if wished.")]

Licence = Annotated[
    str | None, typer.Option("--license", help="Of the weights, as the Hub names it (mit, apache-2.0); for the card.")
]

export_app = typer.Typer(help="Write a model in the formats of other tools.")


@export_app.command("hf")
def huggingface(
    run: RunName,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    max_shard_size: Annotated[str, typer.Option(help="Of a file of weights, such as 500MB.")] = "5GB",
    licence: Licence = None,
) -> None:
    """Write a model as transformers loads it: Llama-, Mistral-, Qwen3- and GPT-2-shaped ones without code of ours."""
    from leveret.export.write import export_model

    remote = export_model(run, folder, dtype, max_shard_size, licence=licence)
    print(f"AutoModelForCausalLM.from_pretrained({str(folder)!r}{', trust_remote_code=True' * remote})")


@export_app.command("gguf")
def gguf(
    run: RunName,
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="A new file.")],
    dtype: Annotated[str, typer.Option(help="f32, bf16, f16, q8_0 or q4_0.")] = "f16",
) -> None:
    """Write a Llama-, Qwen3- or GPT-2-shaped model as one file for llama.cpp and what is built on it."""
    from leveret.export.gguf import export_gguf

    for note in export_gguf(run, file, dtype):
        print(f"note: {note}", file=sys.stderr)
    print(f"leveret chat {file} --backend llamacpp")


def card(run: RunName, licence: Licence = None) -> None:
    """Write the model card of a run to card.md in it: all that is known of the model, and what is not."""
    from leveret.export.card import write_card_of_run

    print(write_card_of_run(run, licence))


def publish(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run, or a folder that `leveret export hf` wrote.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="USER/NAME on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="A new repository is seen by its owner alone.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent, and send nothing.")] = False,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    max_shard_size: Annotated[str, typer.Option(help="Of a file of weights, such as 500MB.")] = "5GB",
    licence: Licence = None,
) -> None:
    """Send a model with its card to the Hugging Face Hub, in one commit; the token is the environment's HF_TOKEN."""
    from leveret.export.publish import check_name, check_token, files_of, folder_of
    from leveret.export.publish import publish as send

    place = check_name(repo)
    if not dry_run:
        check_token()  # before an export that may take long
    with folder_of(run, repo, dtype, max_shard_size, licence) as folder:
        files = files_of(folder)
        wide, long = max(len(file.name) for file in files), max(len(f"{file.size:,}") for file in files)
        for file in files:
            print(f"{file.name:<{wide}}  {file.size:>{long},} bytes  sha256 {file.sha256}")
        print(f"{len(files)} files, {sum(file.size for file in files):,} bytes, to {place}", flush=True)
        if dry_run:
            print(
                f"a {'private' if private else 'public'} repository would be made, if there is none; nothing was sent"
            )
        else:
            print(send(folder, files, repo, private))
