"""Opens the port and serves until it is told to stop."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING

import uvicorn

from leveret.errors import UserError
from leveret.hardware.allocator import keep_freed_memory
from leveret.serving.app import create_app
from leveret.serving.config import ServeConfig, check
from leveret.serving.guard import guarded_protocol
from leveret.serving.wishes import longest_prompt

if TYPE_CHECKING:
    from leveret.api import LoadedModel
    from leveret.rundir import RunDir

BACKLOG = 1024
"""Connections that the system holds until they are taken."""


class Server(uvicorn.Server):
    """uvicorn's, which tells the application when it begins to drain."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.app.state.service.draining = True  # type: ignore[union-attr]
        await super().shutdown(sockets)


def make_server(model: LoadedModel | None, run: RunDir | None, config: ServeConfig) -> Server:
    """A server that `serve(sockets=[...])` starts."""
    # Its log would hold what strangers send, and tracebacks; what is worth telling, leveret.serving tells.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)
    return Server(
        uvicorn.Config(
            create_app(model, run, config),
            http=guarded_protocol(config),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=int(max(1, config.drain_seconds)),
        )
    )


def open_socket(config: ServeConfig) -> socket.socket:
    """Listens. Raises UserError where the address is not to be had."""
    check(config)
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise UserError(
            f"{config.host} port {config.port} cannot be opened ({error.strerror}); choose another with --port"
        ) from None


def facts(model: LoadedModel | None, config: ServeConfig, port: int) -> list[str]:
    """What is said at the start: where, what, and how much."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    lines = [f"serving at http://{host}:{port} (OpenAI's routes under /v1), {'with' if config.api_key else 'no'} key"]
    if model is None:
        return [*lines, "no checkpoint yet: the run's page works, /v1 answers 503"]
    most = config.max_new_tokens or model.engine.context
    return [
        *lines,
        f"model {model.recipe.name}, {model.stage} step {model.step}, context {model.engine.context} tokens, "
        f"{model.engine.device}",
        f"limits: {config.slots} answers at once and {config.queue} waiting; prompts {longest_prompt(model, config)} "
        f"and answers {most} tokens; {config.request_seconds:g} s and {config.max_body_bytes >> 10} KiB a request",
    ]


def serve(model: LoadedModel | None, run: RunDir | None, config: ServeConfig) -> None:
    """Serves until SIGTERM or ctrl-C, then lets the answers under way end."""
    keep_freed_memory()
    with open_socket(config) as sock:
        server = make_server(model, run, config)
        for line in facts(model, config, sock.getsockname()[1]):
            print(line, flush=True)
        server.run(sockets=[sock])
