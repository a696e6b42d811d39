"""Verbs that let a model speak: generate, chat, shell, bench; and the summary after a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from leveret.api import LoadedModel
    from leveret.run import Run

RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run: DIR or name, /STAGE and @STEP after it if wished.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, mps, ...")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy. [the recipe's]")]
MaxNew = Annotated[int | None, typer.Option("--max-new-tokens", help="Most tokens of the answer. [the recipe's]")]


def add_verbs(app: typer.Typer) -> None:
    for verb in (generate, chat, shell, bench):
        app.command()(verb)


def generate(
    run: RunName,
    prompt: Annotated[str, typer.Argument(help="What to answer, or (base models) to go on with.")],
    raw: Annotated[bool, typer.Option("--raw", help="No chat template, even for a fine-tuned model.")] = False,
    samples: Annotated[int, typer.Option("-n", "--samples", min=1, help="How many answers.")] = 1,
    max_new_tokens: MaxNew = None,
    temperature: Temperature = None,
    top_k: Annotated[int | None, typer.Option(help="Keep this many most probable tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep the fewest tokens that reach this probability.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Keep tokens this times as probable as the best.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1: less of what was said.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="A string that ends the answer; may be repeated.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the draws.")] = None,
    device: Device = "auto",
) -> None:
    """Answer one prompt, as it comes."""
    import leveret

    sampling = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": stop or None,
        "seed": seed,
    }
    model = leveret.load(run, device)
    if samples > 1:
        for number, completion in enumerate(model.complete([prompt] * samples, raw=raw, **sampling), 1):
            print(f"[{number}] {'' if model.chats and not raw else prompt}{completion.text}")
        return
    if not model.chats or raw:
        print(prompt, end="")
    for piece in model.stream(prompt, raw=raw, **sampling):
        print(piece, end="", flush=True)
    print()


def chat(
    run: RunName,
    system: Annotated[str | None, typer.Option(help="What the model is told before the first turn.")] = None,
    temperature: Temperature = None,
    max_new_tokens: MaxNew = None,
    device: Device = "auto",
) -> None:
    """Talk with a model. /reset forgets the dialogue, ctrl-C stops an answer, ctrl-D leaves."""
    import leveret

    model = leveret.load(run, device)
    opening = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    for line in _lines("> ", "chat"):
        if line == "/reset":
            messages = list(opening)
            continue
        messages.append({"role": "user", "content": line})
        pieces: list[str] = []
        stream = (
            model.chat(messages, temperature=temperature, max_new_tokens=max_new_tokens)
            if model.chats
            else model.stream(line, temperature=temperature, max_new_tokens=max_new_tokens)
        )
        try:
            for piece in stream:
                pieces.append(piece)
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            print(" [stopped]", end="")
        print()
        messages.append({"role": "assistant", "content": "".join(pieces)})


def shell(
    instruction: Annotated[
        str | None, typer.Argument(help="What to do, in English. Without it, a prompt opens.")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="The run to ask.")] = "quickstart",
    run: Annotated[bool, typer.Option("--run", help="Show the command, and run it after a yes.")] = False,
    max_new_tokens: MaxNew = None,
    device: Device = "auto",
) -> None:
    """English to one shell command. The command alone goes to standard output, so that it can be piped."""
    import leveret

    loaded = leveret.load(model, device)
    if instruction is not None:
        raise typer.Exit(_one_command(loaded, instruction, run, max_new_tokens))
    for line in _lines("what to do> ", "shell"):
        _one_command(loaded, line, run, max_new_tokens)


def _one_command(model: LoadedModel, instruction: str, run: bool, max_new_tokens: int | None) -> int:
    """Prints the command for an instruction; with run, asks and runs it. Returns the exit code."""
    import subprocess

    from leveret.tasks.shell.danger import dangers

    command = model.generate(instruction, max_new_tokens=max_new_tokens, temperature=0.0).strip()
    print(command)
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
    run: RunName,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 16,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 128,
    repeat: Annotated[int, typer.Option(min=1, help="Rounds; the median is reported.")] = 5,
    device: Device = "auto",
) -> None:
    """Speed of generation: one stream, greedy."""
    import json

    import leveret
    from leveret.inference.speed import generation_speed

    model = leveret.load(run, device)
    print(json.dumps(generation_speed(model.engine, prompt_tokens, new_tokens, repeat), indent=2))


def _lines(prompt: str, name: str):  # type: ignore[no-untyped-def]
    """What the user types, line by line, with a history kept between sessions on a terminal; ends at ctrl-D."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory

    folder = Path.home() / ".local" / "state" / "leveret"
    folder.mkdir(parents=True, exist_ok=True)
    session: PromptSession[str] = PromptSession(history=FileHistory(str(folder / f"{name}.history")))
    while True:
        try:
            line = session.prompt(prompt).strip()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        if line:
            yield line


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
