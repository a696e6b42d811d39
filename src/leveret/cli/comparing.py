"""The verb that compares models: ours, exported ones, and others'."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from leveret.cli.options import Device
from leveret.errors import UserError


def compare(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL...",
            help="Runs (/STAGE and @STEP after it if wished), exported folders, or ORG/NAME[@REVISION] on the hub.",
        ),
    ] = None,
    suite: Annotated[
        str,
        typer.Option(help="Tasks, with commas: small, six, hellaswag, arithmetic, FILE, FILE.py:FUNCTION, or none."),
    ] = "small",
    bench: Annotated[
        Path | None, typer.Option(help="Folder of the benchmarks' jsonl files. [LEVERET_DATA/bench, else the hub]")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="The first so many questions of each task, and documents of the text.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="A file or folder of held-out text, for bits per byte under any tokenizer.")
    ] = None,
    baselines: Annotated[
        str | None, typer.Option(help="Compare with a set of public models too: l20, those of l20-edu-135m.")
    ] = None,
    output: Annotated[
        Path, typer.Option(help="Folder of comparison.md, comparison.json, pictures and answers.")
    ] = Path("comparison"),
    device: Device = "auto",
) -> None:
    """Compare models under one protocol, with intervals. What a model answered is kept, and not asked again."""
    from leveret.candidates import find_candidate
    from leveret.config import cache_dir
    from leveret.evaluation.baselines import baselines as public
    from leveret.evaluation.baselines import published
    from leveret.evaluation.comparison import Wish
    from leveret.evaluation.comparison import compare as compared
    from leveret.evaluation.comparison_report import write_comparison
    from leveret.evaluation.tasks import find_tasks
    from leveret.evaluation.texts import read_texts

    references = [*(models or []), *(public(baselines) if baselines else [])]
    if len(references) < 2:
        raise UserError("compare takes two models or more: RUN, a folder, ORG/NAME@REVISION, or --baselines l20")
    if bench is None and (data := os.environ.get("LEVERET_DATA")) and (Path(data) / "bench").is_dir():
        bench = Path(data) / "bench"
    tasks = [] if suite == "none" else find_tasks(suite, Path.cwd())
    if not tasks and text is None:
        raise UserError("--suite none leaves nothing to compare by; give some --text")
    texts = [] if text is None else read_texts(text, limit)
    wish = Wish(tasks, limit, bench, texts, published(baselines) if baselines else [])
    found = compared(references, lambda each: find_candidate(each, device), wish, cache_dir() / "answers", _say)
    print(write_comparison(found, output))
    _say(f"written to {output}")
    if found.failures:
        left_out = "; ".join(f"{reference}: {why}" for reference, why in found.failures)
        raise UserError(f"{len(found.failures)} of {len(references)} models are left out: {left_out}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
