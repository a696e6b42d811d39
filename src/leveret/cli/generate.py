"""`leveret generate`: one prompt, one answer or several, with every option of sampling."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leveret.cli.options import (
    Backend,
    Device,
    Dtype,
    Fields,
    MaxNew,
    Quantize,
    Seed,
    Speaker,
    Temperature,
    read_fields,
)
from leveret.cli.terminal import Speech, forgive_encodings
from leveret.errors import UserError

if TYPE_CHECKING:
    from leveret.api import LoadedModel
    from leveret.inference.config import SamplingConfig
    from leveret.inference.request import TokenChoice, TokenInfo

WIDEST = 20
"""Columns that a token of a table takes, unless it is longer."""

Number = float | None
Count = int | None
Texts = list[str] | None


def generate(
    context: typer.Context,
    run: Speaker,
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="What to answer, or (base models) to go on with; - reads it. [the recipe's sample prompts]"
        ),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="No chat template, even for a fine-tuned model.")] = False,
    samples: Annotated[int, typer.Option("-n", "--samples", min=1, help="How many answers.")] = 1,
    max_new_tokens: MaxNew = None,
    temperature: Temperature = None,
    top_k: Annotated[Count, typer.Option(help="Keep this many most probable tokens.")] = None,
    top_p: Annotated[Number, typer.Option(help="Keep the fewest tokens that reach this probability.")] = None,
    min_p: Annotated[Number, typer.Option(help="Keep tokens this times as probable as the best.")] = None,
    repetition_penalty: Annotated[Number, typer.Option(help="Above 1: less of what was said.")] = None,
    presence_penalty: Annotated[Number, typer.Option(help="Above 0: less of what the answer has so far.")] = None,
    frequency_penalty: Annotated[Number, typer.Option(help="The same, for each time that it has it.")] = None,
    stop: Annotated[Texts, typer.Option(help="A string that ends the answer; repeatable.")] = None,
    seed: Seed = None,
    beams: Annotated[Count, typer.Option(help="Search with so many beams, at temperature 0.")] = None,
    length_penalty: Annotated[Number, typer.Option(help="Above 0: beams prefer long answers.")] = None,
    choices: Annotated[Texts, typer.Option("--choice", help="The answer is one of these texts; repeatable.")] = None,
    json_schema: Annotated[Path | None, typer.Option(help="A JSON schema that the answer keeps to.")] = None,
    logprobs: Annotated[Count, typer.Option(help="Show log-probabilities, and so many other tokens.")] = None,
    fields: Fields = None,
    device: Device = "auto",
    dtype: Dtype = None,
    quantize: Quantize = None,
    backend: Backend = None,
) -> None:
    """Answer one prompt, as it comes."""
    import leveret

    forgive_encodings()
    fixed = read_fields(fields) | _given(context)
    asked = sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt
    model = leveret.load(run, device, dtype, quantize, backend)
    config = model.recipe.generation.changed(**fixed)
    for each in _sample_prompts(model) if asked is None else [asked]:
        ids = model.encode(each, raw)
        before = "" if model.chats and not raw else each
        if samples == 1 and config.logprobs is None:
            _stream(model, ids, before, config)
        else:
            _answers(model, ids, before, config, samples)


def _given(context: typer.Context) -> dict[str, Any]:
    """The options of sampling on the command line; they are called as the fields of SamplingConfig."""
    from leveret.inference.config import SamplingConfig

    given = {name: value for name, value in context.params.items() if name in SamplingConfig.model_fields}
    if given["json_schema"] is not None:
        given["json_schema"] = _read_schema(given["json_schema"])
    return {name: value for name, value in given.items() if value not in (None, [], ())}


def _read_schema(path: Path) -> Any:
    from leveret.strangers.documents import read_json

    try:
        return read_json(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None


def _sample_prompts(model: LoadedModel) -> list[str]:
    """Those of the recipe, when nothing was asked."""
    prompts = model.recipe.sample_prompts
    if not prompts:
        raise UserError("give a prompt: the recipe has no sample_prompts")
    return prompts


def _stream(model: LoadedModel, ids: list[int], before: str, config: SamplingConfig) -> None:
    speech = Speech(spell=sys.stdout.isatty())
    speech.write(before)
    for piece in model.engine.stream(ids, config):
        speech.write(piece)
    speech.end()


def _answers(model: LoadedModel, ids: list[int], before: str, config: SamplingConfig, samples: int) -> None:
    for number, completion in enumerate(model.engine.generate([ids] * samples, config), 1):
        speech = Speech(spell=sys.stdout.isatty())
        speech.write((f"[{number}] " if samples > 1 else "") + before + completion.text)
        speech.end()
        if completion.infos:
            print("\n".join(_table(completion.infos)))


def _table(infos: list[TokenInfo]) -> list[str]:
    """A line for each token of the answer: its log-probability, what it is, and the most probable ones at its place,
    as many as there is room for.
    """
    shown = [_shown(info.chosen) for info in infos]
    left = min(max(len("token"), *map(len, shown)), WIDEST)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    rows = ["logprob  token".ljust(9 + left) + ("  most probable" if infos[0].top else "")]
    for info, text in zip(infos, shown, strict=True):
        row = f"{info.chosen.logprob:7.3f}  {text}".ljust(9 + left)
        for other in info.top:
            row += f"  {_shown(other)} {other.logprob:.2f}" if len(row) < width - WIDEST else ""
        rows.append(row.rstrip())
    return rows


def _shown(token: TokenChoice) -> str:
    """A token in quotes, so that spaces are seen, with nothing that commands the terminal."""
    from leveret.display import spelt

    return f'"{"".join(map(spelt, token.text_bytes.decode("utf-8", "backslashreplace")))}"'
