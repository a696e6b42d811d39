"""Verbs about text before training: tokenizer, data, audit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from leveret.cli.options import Overrides, RecipeName, open_run

if TYPE_CHECKING:
    from leveret.audit.finding import Stamp
    from leveret.data.shards import TokenStore
    from leveret.tokenizer.tokenizer import Tokenizer

tokenizer_app = typer.Typer(
    help="The tokenizer: its corpus, its training, what it does to a text.", no_args_is_help=True
)
data_app = typer.Typer(help="Data: what filters do, what shards hold, whether they are whole.", no_args_is_help=True)


class _AuditGroup(TyperGroup):
    """`leveret audit RUN` is `leveret audit show RUN`."""

    def parse_args(self, context: Any, arguments: list[str]) -> list[str]:
        if arguments and not arguments[0].startswith("-") and arguments[0] not in self.commands:
            arguments = ["show", *arguments]
        return super().parse_args(context, arguments)


audit_app = typer.Typer(
    help="Checks that an evaluation is honest, and training what was meant. `leveret audit RUN` shows a run's, and "
    "`leveret audit RECIPE` does those that come before training, `leveret audit DIR` that of a model's tokenizer.",
    no_args_is_help=True,
    cls=_AuditGroup,
)


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
    work = open_run(recipe, overrides, run_dir)
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
    source: Annotated[
        str, typer.Argument(metavar="IN", help="Examples: jsonl, parquet, marked turns, raw blocks, or A.txt,B.txt.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The .jsonl file to write.")],
) -> None:
    """Turn examples and preference pairs of any known format into JSON lines; rows that are neither are named."""
    import sys

    from leveret.data.convert import convert as convert_examples
    from leveret.data.refusals import Refusals

    refused = Refusals()
    count = convert_examples(source, out, refused)
    if refused.count:
        print(f"{refused.count:,} of {refused.count + count:,} rows refused: {refused}", file=sys.stderr)
        print(*(f"  {line}" for line in refused.lines()), sep="\n", file=sys.stderr)
    print(f"{count} examples in {out}")


@data_app.command("inspect")
def inspect(
    recipe: RecipeName,
    overrides: Overrides = None,
    limit: Annotated[int, typer.Option(min=1, help="Documents to look at, as many of each source.")] = 1000,
    html: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write a page with histograms and more examples here.")
    ] = None,
) -> None:
    """Show what each filter of a recipe drops and changes, with examples."""
    from rich.console import Console

    from leveret.data.inspect import inspect_sources, render_terminal
    from leveret.data.inspect_page import write_html
    from leveret.data.rows import overlook
    from leveret.recipe import load_recipe
    from leveret.tasks.generators import DOCUMENTS

    loaded, base = load_recipe(recipe, overrides)
    config = loaded.data
    found = inspect_sources(config.sources, config.filters, base, DOCUMENTS, limit, overlook, config.retry)
    Console().print(render_terminal(found))
    if html is not None:
        write_html(found, html)
        print(f"page written: {html}")


Shards = Annotated[str, typer.Argument(metavar="DIR", help="A folder of token shards, or a run.")]


def _find_shards(where: str) -> tuple[Path, Path | None]:
    """The folder of token shards that is meant, and its run where one is."""
    from leveret.errors import UserError
    from leveret.rundir import find_run, read_json

    folder = Path(where)
    if (folder / "manifest.json").is_file():
        return folder, None
    try:
        found, stage, _ = find_run(where)
    except UserError:
        if folder.is_dir():
            raise UserError(f"{folder} is no run, and holds no token shards: it has no manifest.json") from None
        raise
    places = read_json(found / "data.json") or {}
    if not places or stage not in (None, *places):
        raise UserError(f"{where} has no data yet; run `leveret prepare` first")
    return found / places[stage or next(iter(places))], found.path


def _open_shards(where: str, run: str | None) -> tuple[TokenStore, Tokenizer]:
    """The shards in a folder, or those of a run's pretraining, and the tokenizer that made them."""
    from leveret.data.shards import TokenStore
    from leveret.errors import UserError
    from leveret.tokenizer.tokenizer import Tokenizer

    folder, maker = _find_shards(where)
    maker = maker or (Path(run) if run else folder.parent.parent)
    if not (maker / "tokenizer").is_dir():
        raise UserError(f"which tokenizer made {folder}? Say a run that has it with --run, or name the run itself")
    tokenizer = Tokenizer.load(maker / "tokenizer")
    return TokenStore(folder, tokenizer.content_hash), tokenizer


Maker = Annotated[str | None, typer.Option("--run", help="The run whose tokenizer made these shards.")]


@data_app.command("sample")
def sample(
    folder: Shards,
    count: Annotated[int, typer.Option("-n", min=1, help="Windows.")] = 3,
    seed: Annotated[int, typer.Option(help="Names the choice.")] = 0,
    split: Annotated[str, typer.Option(help="train or validation.")] = "train",
    run: Maker = None,
) -> None:
    """Print windows of the shards as text: what training reads."""
    from leveret.data.look import sample as windows

    for number, text in enumerate(windows(*_open_shards(folder, run), count, seed, split), start=1):
        print(f"═══ window {number} ═══\n{text}\n")


@data_app.command("stats")
def stats(
    folder: Shards,
    plots: Annotated[Path | None, typer.Option(file_okay=False, help="Draw PNG pictures into this folder.")] = None,
    run: Maker = None,
) -> None:
    """Document lengths, tokens by source, token frequencies and compression of the shards."""
    from rich.console import Console

    from leveret.data import look

    found = look.stats(*_open_shards(folder, run))
    console = Console()
    for table in look.render(found):
        console.print(table)
    for path in look.plot(found, plots) if plots else []:
        print(f"picture: {path}")


@data_app.command("verify")
def verify(where: Shards) -> None:
    """Compare every file of a folder of shards with its hash; exit code 1 when one differs."""
    from leveret.data.shards import TokenStore

    folder, _ = _find_shards(where)
    wrong = TokenStore(folder).verify()
    for name in wrong:
        print(f"differs from its hash: {folder / name}")
    print(f"{len(wrong)} files differ")
    raise typer.Exit(1 if wrong else 0)


@audit_app.callback()
def _group() -> None: ...


@audit_app.command("show")
def audit_show(
    where: Annotated[
        str,
        typer.Argument(
            metavar="RUN|RECIPE|DIR", help="A run; a recipe, which is prepared first; a model in transformers' format."
        ),
    ],
    overrides: Overrides = None,
    run_dir: Annotated[Path | None, typer.Option("--run-dir", help="Where a recipe's run goes. [runs/NAME]")] = None,
) -> None:
    """Say what the audits of a run, a recipe or a model's files found; exit code 1 when anything was found."""
    from leveret.audit.finding import lines
    from leveret.audit.stage import read_stamps
    from leveret.errors import UserError
    from leveret.rundir import find_run

    if (Path(where) / "config.json").is_file() and not (Path(where) / "recipe.yaml").exists():
        stamps = [_audit_of_files(where)]
    else:
        try:
            run = find_run(where)[0]
        except UserError:
            work = open_run(where, overrides, run_dir)
            run = work.run
            work.upto("audit")
        if not (stamps := list(read_stamps(run).values())):
            raise UserError(f"{run.path} has not been audited; `leveret run {run / 'recipe.yaml'}` does it")
    print(*lines(stamps), sep="\n")
    raise typer.Exit(1 if any(stamp.findings for stamp in stamps) else 0)


def _audit_of_files(folder: str) -> Stamp:
    from leveret.audit.tokens import audit_model_files
    from leveret.export.huggingface import open_model

    model = open_model(folder)
    return audit_model_files(model.tokenizer, model.said, model.chats)


@audit_app.command("contamination")
def contamination(
    recipe: RecipeName,
    sets: Annotated[list[str], typer.Option("--set", help="An evaluation set, such as a .jsonl, or a folder of them.")],
    overrides: Overrides = None,
    ngram: Annotated[int, typer.Option(min=5, help="Words in a row that make an overlap.")] = 13,
    fields: Annotated[
        list[str] | None, typer.Option("--field", help="A field of the sets' examples, where they have no known ones.")
    ] = None,
    output: Annotated[Path | None, typer.Option(dir_okay=False, help="Write all of it as JSON here.")] = None,
) -> None:
    """Say what of evaluation sets stands in a recipe's corpus; exit code 1 when anything does."""
    import json

    from leveret.data.contamination import audit_contamination, render
    from leveret.recipe import load_recipe
    from leveret.run import corpus_of

    loaded, base = load_recipe(recipe, overrides)
    report = audit_contamination(corpus_of(loaded, base), sets, ngram, Path.cwd(), fields or ())
    print(render(report))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(report.facts(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    raise typer.Exit(1 if any(found.examples for found in report.sets.values()) else 0)


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
