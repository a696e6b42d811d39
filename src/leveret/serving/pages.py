"""The web pages and the JSON that only they read: chat at /, the run at /run.

Pages and scripts are files of the folder pages/, served as they are. What they show of models and users is set as text;
the browser is told to load nothing from elsewhere and to run no script but these.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from leveret.model.counts import count_parameters
from leveret.serving.runview import RunView, without_places
from leveret.tasks.shell.danger import dangers
from leveret.tokenizer.template import template_text

if TYPE_CHECKING:
    from leveret.api import LoadedModel
    from leveret.rundir import RunDir

FOLDER = Path(__file__).parent / "pages"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
"""Nothing but our own files, no script inside a page, and no text that a script could turn into elements."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
SHELL_EXAMPLES = [
    "find all .log files in /var/log older than 30 days",
    "compress the folder photos into photos.tar.gz",
    "show the last 20 lines of server.log",
]
LONGEST_COMMAND = 4000
"""Characters of a command that is looked at for danger."""


class Command(BaseModel):
    """A shell command to look at."""

    command: str = Field(max_length=LONGEST_COMMAND)


def pages_router(model: LoadedModel | None, run: RunDir | None) -> APIRouter:
    """The pages of a model and of the run it came from; either may be missing, and then its page says so."""
    router = APIRouter(include_in_schema=False)
    view = RunView(run.path) if run else None

    @router.get("/")
    def chat() -> Response:
        return _file("chat.html")

    @router.get("/run")
    def run_page() -> Response:
        return _file("run.html")

    @router.get("/static/{name}")
    def static(name: str) -> Response:
        return _file(name)

    @router.get("/api/model")
    def of_model() -> Response:
        if model is None:
            return _refusal(503, "This run has no model yet. Restart the server once it has saved a checkpoint.")
        return JSONResponse(model_facts(model))

    @router.get("/api/run")
    def of_run(request: Request) -> Response:
        if view is None:
            return _refusal(404, "This model was not loaded from a run, so there is nothing to show of one.")
        tag, found = view.read()
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"ETag": tag})
        return JSONResponse(found, headers={"ETag": tag, "Cache-Control": "no-cache"})

    @router.post("/api/dangers")
    def of_command(command: Command) -> dict[str, list[str]]:
        return {"dangers": dangers(command.command)}

    return router


def model_facts(model: LoadedModel) -> dict[str, Any]:
    """What the chat page says of a model, and how it is to be spoken to.

    mode: "shell" (each instruction by itself becomes one command), "chat", or "text" (a base model goes on with it).
    """
    config = model.recipe.model.with_vocabulary(model.tokenizer.vocab_size)
    is_shell = model.chats and model.tokenizer.chat_template == template_text("command")
    return {
        "name": model.recipe.name,
        "description": without_places(model.recipe.description),
        "mode": "shell" if is_shell else "chat" if model.chats else "text",
        "parameters": count_parameters(config).total,
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "stage": model.stage,
        "step": model.step,
        "context": model.engine.context,
        "tokenizer": {
            "kind": model.recipe.tokenizer.kind,
            "entries": model.tokenizer.vocab_size,
            "sha256": model.tokenizer.content_hash,
        },
        "weights_sha256": model.weights_sha256,
        "sampling": model.recipe.generation.model_dump(mode="json"),
        "examples": SHELL_EXAMPLES if is_shell else model.recipe.sample_prompts[:4],
    }


@cache
def _files() -> dict[str, bytes]:
    """The pages' files by name: no other name is ever looked up on the disk."""
    return {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.suffix in KINDS}


def _file(name: str) -> Response:
    content = _files().get(name)
    if content is None:
        return _refusal(404, "There is no such file here.")
    return Response(content, media_type=KINDS[Path(name).suffix], headers=HEADERS)


def _refusal(status: int, message: str) -> Response:
    """An error in the form of the other routes."""
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error", "code": None}}, status)
