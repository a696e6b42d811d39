"""Verbs that let a model speak: generate, chat (in files of their own), shell, bench; and the summary after a run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from leveret.cli.chat import chat
from leveret.cli.generate import generate
from leveret.cli.options import Backend, Device, Dtype, MaxNew, Quantize, Speaker
from leveret.cli.terminal import harmless, lines

if TYPE_CHECKING:
    from leveret.api import LoadedModel
    from leveret.run import Run


def add_verbs(app: typer.Typer) -> None:
    for verb in (generate, chat, shell, bench):
        app.command()(verb)


def shell(
    instruction: Annotated[
        str | None, typer.Argument(help="What to do, in English. Without it, a prompt opens.")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="The run to ask.")] = "quickstart",
    run: Annotated[bool, typer.Option("--run", help="Show the command, and run it after a yes.")] = False,
    max_new_tokens: MaxNew = None,
    device: Device = "auto",
    dtype: Dtype = None,
    quantize: Quantize = None,
    backend: Backend = None,
) -> None:
    """English to one shell command. The command alone goes to standard output, so that it can be piped."""
    import leveret

    loaded = leveret.load(model, device, dtype, quantize, backend)
    if instruction is not None:
        raise typer.Exit(_one_command(loaded, instruction, run, max_new_tokens))
    for line in lines("what to do> ", "shell"):
        _one_command(loaded, line, run, max_new_tokens)


def _one_command(model: LoadedModel, instruction: str, run: bool, max_new_tokens: int | None) -> int:
    """Prints the command for an instruction; with run, asks and runs it. Returns the exit code."""
    import subprocess

    from leveret.tasks.shell.danger import dangers

    command = model.generate(instruction, max_new_tokens=max_new_tokens, temperature=0.0).strip()
    print(harmless(command) if sys.stdout.isatty() else command)  # what is shown is what would run
    reasons = dangers(command)
    if reasons and (run or sys.stderr.isatty()):
        typer.secho(f"careful: this {', '.join(reasons)}", fg="red", err=True)
    if not run:
        return 0
    print("run it? [y/N] ", end="", file=sys.stderr, flush=True)
    if not command or sys.stdin.readline().strip().lower() not in ("y", "yes"):
        return 1
    return subprocess.run(["bash", "-c", command], check=False).returncode


def bench(
    run: Speaker,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 16,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 128,
    repeat: Annotated[int, typer.Option(min=1, help="Rounds; the median is reported.")] = 5,
    device: Device = "auto",
    dtype: Dtype = None,
    quantize: Quantize = None,
    backend: Backend = None,
) -> None:
    """Speed of generation: one stream, greedy."""
    import json

    import leveret
    from leveret.inference.speed import generation_speed

    model = leveret.load(run, device, dtype, quantize, backend)
    figures = generation_speed(model.engine, prompt_tokens, new_tokens, repeat)
    print(json.dumps(figures | ({"weights": quantize} if quantize else {}), indent=2))


def summary(work: Run) -> None:
    """What a run came to, and what to try next."""
    from leveret.rundir import read_json

    stage = work.run.last_trained()
    results = read_json(work.run / stage / "evaluation" / "results.json") or {}
    for name, figures in results.get("sets", {}).items():
        low, high = figures["interval_95"]
        print(
            f"{name:<14} {figures['accuracy']:>6.1%} exact of {figures['examples']:>5}  (95%: {low:.1%} to {high:.1%})"
        )
    if "loss" in results.get("loss", {}):
        print(f"{'held-out loss':<14} {results['loss']['loss']:.4f} nats a token")
    print(f"report         {work.run / 'report.md'}")
    where = work.run.path
    if work.recipe.tokenizer.template == "command":
        print("try\n" + "\n".join(f'  leveret shell --model {where} "{text}"' for text in EXAMPLES))
    else:
        print(f'try\n  leveret generate {where} "{(work.recipe.sample_prompts or ["Once"])[0]}"')


EXAMPLES = (
    "find all .log files in /var/log older than 30 days",
    "compress the folder photos into photos.tar.gz",
    "show the last 20 lines of server.log",
)
