"""Verbs about text before training: tokenizer, data, audit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

tokenizer_app = typer.Typer(
    help="The tokenizer: its corpus, its training, what it does to a text.", no_args_is_help=True
)
data_app = typer.Typer(help="Data files: convert examples, verify shards.", no_args_is_help=True)
audit_app = typer.Typer(help="Checks that an evaluation is honest.", no_args_is_help=True)

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name, or a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe.")]


@tokenizer_app.command("corpus")
def corpus(
    recipe: RecipeName,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The text file to write.")],
    overrides: Overrides = None,
    articles: Annotated[int | None, typer.Option(help="Write at most this many documents.")] = None,
) -> None:
    """Write the documents of a recipe's corpus into one text file, a blank line between two."""
    from itertools import islice

    from leveret.data.sources import write_text
    from leveret.recipe import load_recipe
    from leveret.run import corpus_of

    loaded, base = load_recipe(recipe, overrides)
    count = write_text(out, islice(corpus_of(loaded, base), articles))
    print(f"{count} documents in {out}")


@tokenizer_app.command("train")
def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    run_dir: Annotated[Path | None, typer.Option("--run-dir", help="Where it goes. [runs/NAME]")] = None,
) -> None:
    """Train (or load) a recipe's tokenizer into its run directory."""
    from leveret.cli.app import _open

    work = _open(recipe, overrides, run_dir)
    work.upto("tokenizer")
    print(f"{work.load_tokenizer().vocab_size} entries in {work.run / 'tokenizer'}")


@tokenizer_app.command("show")
def show(
    where: Annotated[str, typer.Argument(metavar="RUN_OR_DIR", help="A run, or a folder with tokenizer.json.")],
    text: Annotated[str | None, typer.Argument(help="A text to encode.")] = None,
) -> None:
    """What a tokenizer is, and how it cuts a text."""
    from leveret.rundir import find_run
    from leveret.tokenizer.tokenizer import Tokenizer

    folder = Path(where)
    tokenizer = Tokenizer.load(folder if (folder / "tokenizer.json").exists() else find_run(where)[0] / "tokenizer")
    if text is None:
        print(f"entries         {tokenizer.vocab_size}")
        for name, number in tokenizer.special_tokens.items():
            print(f"special token   {number:>6}  {name}")
        return
    ids = tokenizer.encode(text)
    for number in ids:
        print(f"{number:>6}  {tokenizer.token_bytes(number).decode('utf-8', 'backslashreplace')!r}")
    print(f"{len(ids)} tokens, {len(text.encode()) / max(len(ids), 1):.2f} bytes each")


@data_app.command("convert")
def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="Examples: jsonl, parquet, raw blocks, or A.txt,B.txt.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The .jsonl file to write.")],
) -> None:
    """Turn examples of any known format into JSON lines."""
    from leveret.data.convert import convert as convert_examples

    print(f"{convert_examples(source, out)} examples in {out}")


@data_app.command("verify")
def verify(folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of token shards.")]) -> None:
    """Compare every file of a folder of shards with its hash; exit code 1 when one differs."""
    from leveret.data.shards import TokenStore

    wrong = TokenStore(folder).verify()
    for name in wrong:
        print(f"differs from its hash: {folder / name}")
    print(f"{len(wrong)} files differ")
    raise typer.Exit(1 if wrong else 0)


@audit_app.callback()
def _group() -> None: ...


@audit_app.command("leaks")
def leaks(
    train: Annotated[str, typer.Option(help="Training examples, in any known format.")],
    heldout: Annotated[str, typer.Option(help="Held-out examples; two aligned text files as A.txt,B.txt.")],
    show: Annotated[int, typer.Option(help="Print the texts of at most this many leaks.")] = 20,
) -> None:
    """Say which held-out examples stand in the training file, and how; exit code 1 when any does."""
    from leveret.data.examples import read_examples
    from leveret.data.leaks import find_leaks, report

    known, asked = list(read_examples(train)), list(read_examples(heldout))
    found = find_leaks(known, asked)
    print(report(found, known, asked, show))
    raise typer.Exit(1 if found else 0)
