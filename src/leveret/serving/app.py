"""The server's routes: OpenAI's, those of operators, and the pages'."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from leveret.serving import schemas
from leveret.serving.config import ServeConfig
from leveret.serving.errors import ApiError
from leveret.serving.gate import Gate
from leveret.serving.metrics import CONTENT_TYPE
from leveret.serving.pages import pages_router
from leveret.serving.schemas import ChatRequest, CompletionRequest
from leveret.serving.service import Service

if TYPE_CHECKING:
    from leveret.api import LoadedModel
    from leveret.rundir import RunDir

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": told, "content": {"application/json": {"schema": ERROR}}}
    for status, told in {
        400: "Something in the request is wrong.",
        401: "The key is missing or wrong.",
        403: "Host or Origin is not this server's own.",
        404: "There is no such model.",
        413: "The body is too large.",
        429: "All slots are busy and the queue is full; Retry-After tells when to try again.",
        431: "Too many header fields.",
        503: "There is no model yet.",
        504: "The time for one request is up.",
    }.items()
}
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with stream, server-sent events.",
        "content": {"application/json": {}, "text/event-stream": {}},
    }
}


FIELDS = {
    name for model in (schemas.CompletionRequest, schemas.ChatRequest, schemas.ResponseFormat, schemas.JsonSchema,
                       schemas.ChatMessage, schemas.StreamOptions, schemas.TextPart) for name in model.model_fields
}  # fmt: skip
"""What may be told of a mistake's place; other names in it are the user's, or those of types."""


def create_app(model: LoadedModel | None, run: RunDir | None, config: ServeConfig) -> FastAPI:
    """The whole application. Without a model, /v1/* answer 503 and the pages work."""
    service = Service(model, config)

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        if service.worker is not None:
            service.worker.start()
        yield
        if service.worker is not None:
            service.worker.stop()

    app = FastAPI(title="leveret", version="1", lifespan=living, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.service = service
    app.include_router(openai_router(service))
    app.include_router(operators_router(service))
    app.include_router(pages_router(model, run))
    app.add_middleware(Gate, config=config, count=service.figures.count)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(ApiError, _told)
    app.openapi = lambda: _described(FastAPI.openapi(app))  # type: ignore[method-assign]
    return app


def openai_router(service: Service) -> APIRouter:
    """OpenAI's routes."""
    router = APIRouter(prefix="/v1", responses=REFUSALS)

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """The one model that is served."""
        return {"object": "list", "data": [_model_card(service)]}

    @router.get("/models/{model:path}")
    async def one_model(model: str) -> dict[str, Any]:
        """The model, if that is its name."""
        card = _model_card(service)
        if model != card["id"]:
            raise ApiError(404, "There is no model of that name.", "model", "model_not_found")
        return card

    @router.post("/completions", response_class=Response, responses=STREAMED)
    async def completions(body: CompletionRequest) -> Response:
        """Goes on with a text."""
        return await service.answer(body)

    @router.post("/chat/completions", response_class=Response, responses=STREAMED)
    async def chat_completions(body: ChatRequest) -> Response:
        """Answers a dialogue."""
        return await service.answer(body)

    return router


def operators_router(service: Service) -> APIRouter:
    """What those who run the server ask."""
    router = APIRouter()

    @router.get("/healthz", responses={503: {"description": "Not ready, or about to end."}})
    async def healthz() -> Response:
        """Whether answers can be had. Needs no key."""
        return JSONResponse({"status": "ok" if service.healthy else "unavailable"}, 200 if service.healthy else 503)

    text = {"description": "Prometheus' text form.", "content": {"text/plain": {}}}

    @router.get("/metrics", response_class=Response, responses={200: text})
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.figures.text(), media_type=CONTENT_TYPE)

    return router


def _model_card(service: Service) -> dict[str, Any]:
    model, _ = service.loaded()
    return {
        "id": model.recipe.name,
        "object": "model",
        "created": service.created,
        "owned_by": "leveret",
        "context_length": model.engine.context,
    }


async def _invalid(request: Request, error: Exception) -> Response:
    """The first mistake, by its place. Never what was written there."""
    assert isinstance(error, RequestValidationError)
    first = _nearest(error.errors())
    told = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error" and len(first["loc"]) < 2:  # of several fields together
        return ApiError(400, f"{told}.", code="invalid_value").response()
    if first["type"] in ("json_invalid", "model_attributes_type") or len(first["loc"]) < 2:
        return ApiError(400, "The body must be a JSON object, sent as application/json.").response()
    place = ".".join(str(part) for part in first["loc"][1:] if isinstance(part, int) or part in FIELDS)
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])
        place = name if name.isidentifier() and len(name) <= 64 else place
        return ApiError(400, f"{place}: this is not known here; leave it out.", place, "unknown_parameter").response()
    return ApiError(400, f"{place}: {told}.", place, "invalid_value").response()


def _nearest(errors: Sequence[Any]) -> Any:
    """The mistake to tell: of a field that may have several forms, that of the form which was meant."""
    of_one_field = [error for error in errors if error["loc"][:2] == errors[0]["loc"][:2]]
    return min(of_one_field, key=lambda error: (error["type"].endswith("_type"), -len(error["loc"])))


async def _refused(request: Request, error: Exception) -> Response:
    """What the router says: no such route, or not by this method."""
    assert isinstance(error, HTTPException)
    messages = {
        400: "The body is not JSON that can be read.",
        404: "There is nothing at this address.",
        405: "This address does not take that method.",
    }
    message = messages.get(error.status_code, "The request cannot be answered.")
    return ApiError(error.status_code, message, headers=error.headers).response()


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


def _described(schema: dict[str, Any]) -> dict[str, Any]:
    """The description without FastAPI's own form of errors, which is not ours."""
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schema.get("components", {}).get("schemas", {}).pop(name, None)
    return schema
