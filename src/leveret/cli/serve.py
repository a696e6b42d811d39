"""`leveret serve`: OpenAI's routes, the chat page and the run page for one model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leveret.cli.options import Backend, Device, Dtype, Quantize, Speaker
from leveret.errors import UserError

if TYPE_CHECKING:
    from leveret.api import LoadedModel
    from leveret.rundir import RunDir
    from leveret.serving.config import ServeConfig


def serve(
    run: Speaker,
    limits: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Limits, such as slots=16 (ServeConfig).")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on. Any but this machine's own needs a key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    api_key_file: Annotated[Path | None, typer.Option(help="A file whose first line every client must know.")] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name by which clients may address this server; repeatable.")
    ] = None,
    tracebacks: Annotated[
        bool, typer.Option("--tracebacks", help="Log internal errors whole; they may tell prompts.")
    ] = (False),
    device: Device = "auto",
    dtype: Dtype = None,
    quantize: Quantize = None,
    backend: Backend = None,
) -> None:
    """Serve a model: OpenAI's API under /v1, a chat page at /, the run's page at /run."""
    from importlib.util import find_spec

    from leveret.serving.config import check, read_key

    if not all(map(find_spec, ("fastapi", "uvicorn", "prometheus_client"))):
        raise UserError("serving needs FastAPI, uvicorn and prometheus_client: pip install 'leveret[serve]'")
    key = read_key(api_key_file) if api_key_file is not None else None
    own = {"host": host, "port": port, "api_key": key, "allowed_hosts": allow_host or [], "tracebacks": tracebacks}
    config = _config(limits or [], own)
    check(config)
    model, source = _open(run, (device, dtype, quantize, backend))
    from leveret.serving.server import serve as run_server

    run_server(model, source, config)


def _config(limits: list[str], own: dict[str, Any]) -> ServeConfig:
    """Raises UserError for a limit that there is not, or that cannot have this value."""
    from pydantic import ValidationError

    from leveret.serving.config import ServeConfig

    given = dict(text.partition("=")[::2] for text in limits)
    known = ServeConfig.model_fields.keys() - own.keys()
    for name in given.keys() - known:
        raise UserError(f"there is no limit {name!r}; there are {', '.join(sorted(known))}")
    try:
        return ServeConfig.model_validate(given | own)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{first['loc'][0]}: {first['msg']}, not {first['input']!r}") from None


def _open(
    reference: str, options: tuple[str, str | None, str | None, str | None]
) -> tuple[LoadedModel | None, RunDir | None]:
    """The model and the run it came from. A run in progress gives its newest checkpoint, or no model yet."""
    import leveret
    from leveret.rundir import find_run
    from leveret.training import STAGES
    from leveret.training.checkpoint import steps_on_disk

    try:
        run, stage, _ = find_run(reference)
    except UserError:
        return leveret.load(reference, *options), None
    if stage is None and not any(run.finished(name) for name in STAGES):
        begun = [name for name in STAGES if steps_on_disk(run / name / "checkpoints")]
        if not begun:
            return None, run
        reference = str(run / begun[-1])
    return leveret.load(reference, *options), run
